"""A retraining that is tuned: only training rows, what it finds is in the plan and recorded, and off means off."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from smartrouter.core.settings import Settings
from smartrouter.models.tune import Between
from smartrouter.retrain import steps, tuning
from smartrouter.retrain.plan import ParamsRefused, begin, make_plan, read_params

ROOT = Path(__file__).parents[2]
SMALL = {"families": ["linear", "forest"], "linear_iterations": 10, "forest_trees": 5, "forest_shrinkage": 0.3}
SMALL |= {"tune_minutes": 1000.0, "tune_families": ["forest"], "tune_trials": 2}


@pytest.fixture(scope="module")
def job(small_warehouse, tmp_path_factory):
    home = tmp_path_factory.mktemp("tuning")
    values = {"SMARTROUTER_HOME": str(home), "SMARTROUTER_PARAMS": str(ROOT / "params")}
    settings = Settings.load(values | {"SMARTROUTER_WAREHOUSE": small_warehouse})
    return begin(read_params(ROOT / "params/retrain/ci.yaml") | SMALL, settings)


@pytest.fixture(scope="module")
def table(job):
    return steps.extract(job)


@pytest.fixture(scope="module")
def data(job, table):
    return steps.features(job, table)


@pytest.fixture(scope="module")
def candidates(job, data):
    return steps.train(job, data)


def planned(job, **more):
    return replace(job, plan=make_plan(job.plan.model_dump() | more))


def test_two_trials_are_made_recorded_and_used(job, data, table, monkeypatch):
    quick = {"trees": Between(3, 9, whole=True), "depth": Between(2, 4, whole=True)}
    monkeypatch.setitem(tuning.SPACES, "forest", quick)
    found = tuning.search(job, data, tuning.recorder(job, data, table), clock=count().__next__)
    assert [t.number for t in found[0].trials] == [0, 1] and found[0].trials[0].parameters["trees"] == 5
    better = tuning.tuned(job, found)
    assert tuning.start_of(better.plan, "forest") == found[0].best
    assert better.plan.model_dump().keys() == job.plan.model_dump().keys() and better.settings == job.settings
    from smartrouter.registry.versions import open_registry

    client = open_registry(job.settings).client
    experiment = client.get_experiment_by_name(f"{job.name}.tuning")
    runs = client.search_runs([experiment.experiment_id])
    kept = {int(run.data.params["trial"]): run.data for run in runs}
    assert sorted(kept) == [0, 1] and kept[0].params["trees"] == "5" and kept[0].params["state"] == "complete"
    assert kept[0].metrics["loss"] == pytest.approx(found[0].start_loss)
    assert kept[0].params["dataset_digest"] == data.digest
    frame = tuning.trials_frame(found)
    assert len(frame) == 2 and frame["log_loss"].notna().all()
    again = tuning.search(job, data, clock=count().__next__)
    assert again[0].trials == found[0].trials  # tune_trials counts what the study already holds
    other = tuning.search(planned(job, seed=8), data, clock=count().__next__)
    assert other[0].study != found[0].study


def test_only_training_rows_reach_the_trainer(job, data, monkeypatch):
    early, later, last = data.splits.masks(data.at_ms)
    marked = replace(data, X=data.X.copy())
    marked.X[later | last, 0] = 1e6  # of no training row
    seen = []

    class Fitted:
        def logit(self, X):
            seen.append((len(X), X[:, 0].max()))
            return np.zeros(len(X))

    def spy(plan, family, X, y):
        seen.append((len(X), X[:, 0].max()))
        return Fitted()

    monkeypatch.setattr(tuning, "fit_family", spy)
    tuning.search(planned(job, seed=9, tune_trials=3), marked, clock=count().__next__)
    assert len(seen) >= 8 and max(high for _, high in seen) < 1e6
    assert max(n for n, _ in seen) < early.sum()


def test_off_is_off(job, data, table):
    off = planned(job, tune_minutes=0.0)
    assert tuning.search(off, data) == [] and tuning.tuned(off, []) == off
    assert tuning.recorder(off, data, table) is None
    assert tuning.recorder(planned(job, promote=False), data, table) is None
    assert tuning.trials_frame([]).empty and "log_loss" in tuning.trials_frame([])


def test_the_minutes_are_shared_out_over_the_families(job, data, monkeypatch):
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock, given = Clock(), []

    def one(job, data, family, minutes, clock_, on_trial):
        given.append((family, round(minutes, 3)))
        clock.now += 60.0
        return tuning.Tuned(family, family, tuning.start_of(job.plan, family), ())

    monkeypatch.setattr(tuning, "search_one", one)
    both = planned(job, tune_minutes=10.0, tune_families=["linear", "forest"])
    tuning.search(both, data, clock=clock)
    assert given == [("linear", 5.0), ("forest", 9.0)]


def test_every_searched_parameter_is_in_the_plan_and_each_family_has_its_own():
    plan = make_plan({})
    for family, space in tuning.SPACES.items():
        assert tuning.start_of(plan, family).keys() == space.keys()
    one = tuning.with_values(plan, "deep", {"rate": 0.009})
    both = tuning.with_values(one, "wide_deep", {"rate": 0.001})
    assert (both.deep_rate, both.wide_deep_rate) == (0.009, 0.001)


def test_production_tunes_every_family_that_it_trains():
    plan = make_plan(read_params(ROOT / "params/retrain/prod.yaml"))
    assert plan.tune_minutes and set(plan.tune_families) == set(plan.families)


@pytest.mark.parametrize(
    "values",
    [
        {"tune_families": ["oracle"]},
        {"tune_families": ["linear_split"]},
        {"tune_families": ["forest", "forest"]},
        {"tune_minutes": 1.0, "tune_families": []},
        {"tune_minutes": 1.0, "families": ["linear"], "tune_families": ["forest"]},
        {"tune_minutes": -1.0},
        {"tune_minutes": float("inf")},
        {"tune_trials": 0},
        {"choose_by": "auc"},
        {"choose_within": -0.5},
        {"choose_folds": 0},
    ],
)
def test_bad_parameters_are_refused(values):
    with pytest.raises(ParamsRefused, match=r"tune_|choose_|twice"):
        make_plan(values)


def test_the_lowest_log_loss_of_the_calibration_rows_is_taken_by_default(job, data, table, candidates):
    choice = steps.compared(job, data, table, candidates)
    assert choice.candidate == steps.best(data, candidates).family == steps.best(data, candidates, choice).family
    _, later, _ = data.splits.masks(data.at_ms)
    assert (choice.table["n"] == later.sum()).all() and choice.table["payments"].between(1, later.sum()).all()
    assert set(steps.choice_frame(choice)["measure"]) >= {"log loss, nats"}


def test_the_simplest_family_is_taken_within_noise(job, data, table, candidates):
    choice = steps.compared(planned(job, choose_within=10.0), data, table, candidates)
    assert choice.candidate == "linear"


def test_forward_folds_end_where_the_test_rows_begin(job, data, table, monkeypatch):
    parts = []
    trained = steps.train

    def spy(job, part):
        parts.append(part)
        return trained(job, part)

    monkeypatch.setattr(steps, "train", spy)
    folds = steps.forward(planned(job, choose_folds=2, families=["linear"], tune_minutes=0.0), data, table)
    known = (data.at_ms < data.splits.test_ms).sum()
    assert len(folds[0].y) + len(folds[1].y) == pytest.approx(0.6 * known, abs=2)
    assert max(part.at_ms.max() for part in parts) < data.splits.test_ms
    for part in parts:
        early, later, last = part.splits.masks(part.at_ms)
        assert part.at_ms[early].max() < part.at_ms[later].min() < part.at_ms[last].min() and later.sum() > 100


def test_choices_hold_first_attempts_that_had_a_choice(data, table, candidates):
    _, later, _ = data.splits.masks(data.at_ms)
    found = steps.logged_choices(data, table, candidates, later)
    rows = np.arange(len(found.action))
    assert found.eligible[rows, found.action].all() and (found.eligible.sum(axis=1) > 1).all()
    assert ((found.pscore > 0) & (found.pscore < 1)).all() and found.eligible.any(axis=0).sum() == 3
    for p in found.p.values():
        assert ((p > 0) == found.eligible.any(axis=0)).all() and p.max() < 1
    nothing = pa.nulls(table.num_rows, pa.float64())
    blank = table.set_column(table.schema.get_field_index("propensity"), "propensity", nothing)
    assert steps.logged_choices(data, blank, candidates, later) is None
