"""A search keeps its budget, goes on where it stopped, repeats itself with a seed, and says what it gave up."""

from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest

from smartrouter.models.tune import SPACES, Between, OneOf, TuneRefused, inner_split, log_loss, study_name, tune

N = 400
AT = np.arange(N) * 60_000
X = np.arange(N, dtype=np.float32)[:, None]
Y = (np.random.default_rng(7).random(N) < 0.6).astype(np.float32)
SPACE = {"x": Between(0.0, 10.0), "shape": OneOf(((8,), (8, 4)))}
START = {"x": 9.0, "shape": (8,)}


@dataclass
class Says:
    """The same logit for every row."""

    logit_of_all: float

    def logit(self, X):
        return np.full(len(X), self.logit_of_all)


def fit(values, X, y):
    return Says(0.4 - 0.3 * abs(values["x"] - 3))


def search(**more):
    given = {"start": START, "space": SPACE, "minutes": 1e6, "clock": count().__next__, "trials": 12}
    return tune("toy", more.pop("fit", fit), X, Y, AT, **(given | more))


def test_the_best_trial_wins_and_the_start_is_tried_first():
    found = search(trials=25)
    assert found.trials[0].parameters == START and found.start_loss == found.trials[0].loss
    assert found.loss == min(t.loss for t in found.trials if t.loss is not None) < found.start_loss
    assert abs(found.best["x"] - 3) < 1.5 and found.best["shape"] in ((8,), (8, 4))
    assert found.completed[0].loss == pytest.approx(log_loss(np.full(100, fit(found.best, X, Y).logit_of_all), Y[300:]))


def test_the_same_seed_gives_the_same_trials_and_another_seed_others():
    one, two, other = search(seed=7), search(seed=7), search(seed=8)
    assert [t.parameters for t in one.trials] == [t.parameters for t in two.trials]
    assert [t.parameters for t in one.trials] != [t.parameters for t in other.trials]


def test_the_minutes_are_kept_on_the_clock_that_is_given():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()

    def slow(values, X, y):
        clock.now += 10 * len(X) / 300
        return fit(values, X, y)

    found = search(fit=slow, minutes=1.0, clock=clock, trials=100)
    assert 60 <= clock.now <= 60 + 10 and len(found.trials) < 12
    assert sum(t.seconds for t in found.trials) == pytest.approx(clock.now, abs=0.1)
    late = search(fit=slow, minutes=0.01, clock=clock, trials=100)
    assert [t.why for t in late.trials] == ["no time left"]
    assert late.loss is None and late.best == START  # nothing was completed: what there was stays


def test_a_search_goes_on_where_it_stopped(tmp_path):
    storage = f"sqlite:///{tmp_path / 'tuning.db'}"
    first = search(storage=storage, trials=5)
    again = search(storage=storage, trials=5)
    more = search(storage=storage, trials=9)
    assert again.trials == first.trials and more.trials[:5] == first.trials and len(more.trials) == 9
    drawn = [tuple(t.parameters.items()) for t in more.trials]
    assert len(set(drawn)) == 9  # the second call does not draw what the first one drew
    assert search(storage=storage, trials=5, data="other rows").study != first.study
    assert len(search(storage=storage, trials=2, data="other rows").trials) == 5


def test_a_changed_space_is_another_study():
    names = {study_name(family, space, "rows") for family, space in SPACES.items()}
    names |= {study_name("forest", SPACES["forest"] | {"depth": Between(3, 8, whole=True)}, "rows")}
    assert len(names) == len(SPACES) + 1


def test_pruned_and_failed_trials_are_recorded_and_each_trial_is_told_once():
    told = []
    found = search(trials=25, on_trial=told.append)
    assert tuple(told) == found.trials and [t.number for t in told] == list(range(25))
    pruned = [t for t in found.trials if t.state == "pruned"]
    assert pruned and all(t.loss is None and t.first_loss is not None and t.why for t in pruned)
    frame = found.frame()
    assert len(frame) == 25 and frame["best_so_far"].iloc[-1] == found.loss
    broken = search(fit=lambda values, X, y: Says(np.nan if values["x"] < 8 else 0.3), trials=6)
    assert {t.state for t in broken.trials} <= {"complete", "failed", "pruned"} and broken.loss is not None


def test_later_rows_never_train():
    seen = []

    def spy(values, X, y):
        seen.append((X[:, 0].min(), X[:, 0].max(), len(X)))
        return fit(values, X, y)

    search(fit=spy, trials=3)
    assert {high for _, high, _ in seen} == {299.0}  # rows 300 to 399 score
    assert {(low, n) for low, _, n in seen} == {(225.0, 75), (0.0, 300)}  # the latest quarter first


def test_a_start_outside_the_space_is_taken_in():
    found = search(start={"x": 30.0, "shape": (64,)}, trials=3)
    assert found.trials[0].parameters == {"x": 30.0, "shape": (64,)}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"minutes": 0}, "0 minutes"),
        ({"minutes": float("nan")}, "nan minutes"),
        ({"trials": 0}, "0 trials"),
        ({"space": None}, "family 'toy'"),
        ({"start": {"x": 1.0}}, "no value of shape"),
        ({"storage": "sqlite:////nowhere/at/all.db"}, "does not open"),
    ],
)
def test_bad_input_is_refused(more, named):
    with pytest.raises(TuneRefused, match=named):
        search(**more)


def test_the_inner_split_keeps_a_moment_on_one_side():
    assert inner_split(np.array([1, 2, 3, 4, 4, 4, 4, 4])) == 3
    for wrong in ([2, 1, 3], [5, 5, 5, 5], []):
        with pytest.raises(TuneRefused):
            inner_split(np.array(wrong))


def test_the_shipped_spaces_name_parameters_of_their_trainers():
    import inspect

    from smartrouter.models import deep, forest, linear, mixed, wide_deep

    for module in (deep, forest, linear, mixed, wide_deep):
        family = module.__name__.rpartition(".")[2]
        assert set(SPACES[family]) <= set(inspect.signature(module.train).parameters)
