"""Intervals: any family's trainer, resampled days, bounds that stay probabilities, refusals in words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.features.matrix import CONTRACT
from smartrouter.models import forest, linear
from smartrouter.models.interval import IntervalRefused, around, bootstrap, draw_blocks, group_means, widening

DAY = 86_400_000


def merchant(n=1_500, days=20):
    """Rows, outcomes and moments: one number that matters."""
    rng = np.random.default_rng(3)
    X = np.zeros((n, len(CONTRACT)), dtype=np.float32)
    X[:, 115] = rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(-X[:, 115]))).astype(np.float32)
    return X, y, np.sort(rng.integers(0, days * DAY, n))


TRAINERS = {
    "linear": lambda X, y, seed: linear.train(X, y, iterations=20),
    "forest": lambda X, y, seed: forest.train(X, y, trees=5, min_examples=20, seed=seed),
}


@pytest.mark.parametrize("family", sorted(TRAINERS))
def test_members_differ_and_the_same_seed_gives_the_same_ones(family):
    X, y, at = merchant()
    one, two = (bootstrap(TRAINERS[family], X, y, at, members=3, seed=5) for _ in range(2))
    assert np.array_equal(one.logits(X[:50]), two.logits(X[:50]))
    assert one.logits(X[:50]).std(axis=0).min() > 0 and {m.family for m in one.members} == {family}


@given(st.integers(5, 40), st.integers(0, 1_000))
@settings(max_examples=30, deadline=None)
def test_whole_days_are_drawn_in_order(days, seed):
    at = np.sort(np.random.default_rng(seed).integers(0, days * DAY, 50 * days))
    rows = draw_blocks(at, np.random.default_rng(seed))
    assert (np.diff(rows) >= 0).all()
    whole, drawn = np.bincount(at // DAY), np.bincount(at[rows] // DAY, minlength=days)
    assert (drawn % whole == 0).all() and (drawn // whole).sum() == len(whole)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=12), st.floats(0, 1), st.floats(1, 5))
@settings(max_examples=80, deadline=None)
def test_bounds_are_probabilities_around_the_estimate(drawn, estimate, widen):
    drawn = np.array(drawn)[:, None]
    plain, wide = (around(np.array([estimate]), drawn, widen=w) for w in (1.0, widen))
    assert 0 <= wide.low <= plain.low + 1e-12 and plain.high <= wide.high + 1e-12 <= 1 + 1e-11
    assert plain.low <= max(estimate, 1e-6) + 1e-9 and plain.high >= min(estimate, 1 - 1e-6) - 1e-9


def test_residuals_beyond_noise_and_spread_widen():
    n, groups = 40_000, 40
    rng = np.random.default_rng(1)
    group = rng.integers(0, groups, n)
    estimate = np.full(n, 0.6)
    drawn = 0.6 + rng.normal(0, 0.01, (8, groups))[:, group]
    honest = (rng.random(n) < (0.6 + rng.normal(0, 0.01, groups))[group]).astype(float)
    off = (rng.random(n) < (0.6 + rng.normal(0, 0.05, groups))[group]).astype(float)
    assert widening(honest, estimate, drawn, group) < 2.5 < widening(off, estimate, drawn, group) < 10


def test_means_of_groups():
    rows = np.array([[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]])
    assert group_means(rows, np.array([0, 0, 1])).tolist() == [[0.5, 0.5], [0, 1]]


def test_what_no_interval_can_be_made_of_is_refused():
    X, y, at = merchant(200, days=3)
    with pytest.raises(IntervalRefused, match="3 blocks of time"):
        bootstrap(TRAINERS["linear"], X, y, at)
    with pytest.raises(IntervalRefused, match="2 members"):
        bootstrap(TRAINERS["linear"], X, y, at, members=2)
    with pytest.raises(IntervalRefused, match="out of order"):
        bootstrap(TRAINERS["linear"], X, y, at[::-1])
    with pytest.raises(IntervalRefused, match="groups of 50 rows"):
        widening(y, np.full(200, 0.5), np.full((3, 200), 0.5), np.zeros(200, int))
