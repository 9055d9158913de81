"""Baseline policies: they find the best processor, follow when it changes, and never leave the eligible ones."""

from collections import deque
from math import sqrt
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.evaluation.baselines import (
    BaselineRefused,
    DiscountedThompson,
    FixedOrder,
    SlidingUCB,
    SuccessWindow,
    best_single,
    spread,
)

LEARNERS = {
    "window": lambda k: SuccessWindow(k),
    "thompson": lambda k: DiscountedThompson(k, 0.998),
    "ucb": lambda k: SlidingUCB(k, 1000, 0.1),
}


def run(policy, chances_at, n, seed=7, segment="all"):
    """Choices of a policy whose outcomes arrive at once."""
    rng, chosen = Random(seed), []
    for t in range(n):
        p = policy.choose(segment, [0, 1, 2], rng)
        policy.learn(segment, p, rng.random() < chances_at(t)[p])
        chosen.append(p)
    return np.array(chosen)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_best_processor_of_a_still_world_is_found(name):
    chosen = run(LEARNERS[name](3), lambda t: (0.5, 0.8, 0.6), 6_000)
    assert (chosen[-2_000:] == 1).mean() > 0.85


@pytest.mark.parametrize("name", LEARNERS)
def test_a_switch_of_the_best_processor_is_followed(name):
    chosen = run(LEARNERS[name](3), lambda t: (0.5, 0.8, 0.6) if t < 4_000 else (0.5, 0.2, 0.7), 8_000)
    assert (chosen[2_000:4_000] == 1).mean() > 0.7 and (chosen[-2_000:] == 2).mean() > 0.7


@pytest.mark.parametrize("name", LEARNERS)
def test_segments_share_nothing(name):
    policy, rng = LEARNERS[name](2), Random(3)
    for t in range(4_000):
        segment = t % 2
        p = policy.choose(segment, [0, 1], rng)
        policy.learn(segment, p, rng.random() < (0.8 if p == segment else 0.5))
    picks = np.array([[policy.choose(s, [0, 1], rng) for s in (0, 1)] for _ in range(300)])
    assert (picks == [0, 1]).mean() > 0.8


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*LEARNERS, "order"]),
    steps=st.lists(st.tuples(st.sets(st.integers(0, 3), min_size=1), st.booleans(), st.integers(0, 2)), max_size=60),
    seed=st.integers(0, 1000),
)
def test_only_eligible_processors_are_chosen_and_the_same_seed_chooses_the_same(name, steps, seed):
    def play():
        policy = LEARNERS[name](4) if name in LEARNERS else FixedOrder((2, 0, 3, 1))
        rng, chosen = Random(seed), []
        for eligible, approved, segment in steps:
            chosen.append(policy.choose(segment, sorted(eligible), rng))
            policy.learn(segment, chosen[-1], approved)
        return chosen

    once = play()
    assert all(p in step[0] for p, step in zip(once, steps, strict=True)) and once == play()


def test_hedging_draws_its_share_evenly():
    policy, rng = SuccessWindow(4), Random(1)
    for p in (1, 2, 3):
        policy.learn("all", p, False)
    counts = np.bincount([policy.choose("all", [0, 1, 2, 3], rng) for _ in range(20_000)], minlength=4) / 20_000
    assert counts[1:] == pytest.approx(0.0125, abs=0.004) and counts[0] == pytest.approx(0.9625, abs=0.006)


def windows(policy, successes):
    """Set the windows of one segment."""
    policy.of("all")
    for p, good in enumerate(successes):
        policy.outcomes["all"][p] = deque([1] * good + [0] * (policy.window - good))
        policy.successes["all"][p] = good


def test_the_window_resets_below_three_sigma_and_not_above():
    policy = SuccessWindow(3, hedging=0.0)
    rate = 100 / 125
    bound = rate - 3 * sqrt(rate * (1 - rate) / 125)
    above, below = int(bound * 125) + 1, int(bound * 125)
    windows(policy, (100, above, below))
    assert policy.choose("all", [0, 1, 2], Random(1)) == 0
    assert policy.successes["all"][:2] == [100, above]
    assert policy.successes["all"][2] / 125 == pytest.approx(bound, abs=1 / 125)
    assert sum(policy.outcomes["all"][2]) == policy.successes["all"][2] and len(policy.outcomes["all"][2]) == 125
    still = SuccessWindow(3, hedging=0.0, sigmas=float("inf"))
    windows(still, (100, 50, 0))
    still.choose("all", [0, 1, 2], Random(1))
    assert still.successes["all"] == [100, 50, 0]


def test_sigma_is_at_least_that_of_nine_tenths():
    policy = SuccessWindow(2, hedging=0.0)
    windows(policy, (125, 115))  # best is 1.0: sigma is sqrt(0.09 / 125), and the bound 0.9195
    policy.choose("all", [0, 1], Random(1))
    assert policy.successes["all"][1] == 115
    windows(policy, (125, 114))
    policy.choose("all", [0, 1], Random(1))
    assert policy.successes["all"][1] == 125 - int(3 * sqrt(0.09 / 125) * 125)


@given(st.integers(2, 300).flatmap(lambda window: st.tuples(st.just(window), st.integers(2, window))))
def test_spread_has_as_many_failures_as_asked_for(given_):
    window, failures = given_
    outcomes = spread(window, failures)
    assert len(outcomes) == window and outcomes.count(0) == failures and outcomes[0] == outcomes[-1] == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=300))
def test_counts_agree_with_the_window(history):
    window, ucb = SuccessWindow(3, 20), SlidingUCB(3, 50)
    for p, approved in history:
        window.learn("all", p, approved)
        ucb.learn("all", p, approved)
    for p in range(3):
        own = [1] * 20 + [int(a) for q, a in history if q == p]
        assert window.of("all")[p] == sum(own[-20:])
        recent = [a for q, a in history[-50:] if q == p]
        assert (ucb.of("all")[0][p], ucb.of("all")[1][p]) == (len(recent), sum(recent))


def test_thompson_forgets_by_its_discount():
    policy = DiscountedThompson(2, 0.9)
    for _ in range(200):
        policy.learn("all", 0, True)
    assert policy.of("all")[0][0] == pytest.approx(10)
    for _ in range(50):
        policy.learn("all", 1, False)
    assert policy.of("all")[0][0] < 0.1 and policy.of("all")[1][1] == pytest.approx(10, abs=0.1)


def test_a_processor_that_the_log_never_saw_comes_last():
    assert best_single([2, 2, 0, 0], [1, 1, 1, 0], 4).order == (2, 0, 1, 3)
    assert best_single([], [], 2).order == (0, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SuccessWindow(2, window=1),
        lambda: SuccessWindow(2, hedging=1.5),
        lambda: DiscountedThompson(2, 0.0),
        lambda: SlidingUCB(2, window=0),
        lambda: SlidingUCB(2, xi=-1),
        lambda: SlidingUCB(2, xi=float("nan")),
    ],
)
def test_parameters_that_cannot_work_are_refused(make):
    with pytest.raises(BaselineRefused, match="between"):
        make()
