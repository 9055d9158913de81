"""Bounds: the factor that outcomes ask for, what has none, and intervals that hold a known truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.features.matrix import FEATURE_NAMES
from smartrouter.models import calibrate, linear, mixed
from smartrouter.models.bounds import BANK, PROCESSOR, Gaps, coverage, deviation, factor_of, gaps, measure
from smartrouter.models.effects import CROSSES, Effects, cross_keys
from smartrouter.models.package import runtime_arrays
from smartrouter.models.runtime import Runtime

ISSUERS, N = 16, 30_000


def merchant():
    """Rows, outcomes and true approval rates [issuer, processor]; one payment in six leaves its usual processor."""
    rng = np.random.default_rng(11)
    X = np.zeros((N, len(FEATURE_NAMES)), dtype=np.float32)
    bank = rng.integers(1, ISSUERS + 1, N)
    code = np.where(rng.random(N) < 0.75, bank % 3 + 1, rng.integers(1, 4, N))
    X[:, BANK], X[:, PROCESSOR] = bank, code
    truth = 1 / (1 + np.exp(-(0.7 + rng.normal(0, 0.4, (ISSUERS + 1, 4)))))
    return X, (rng.random(N) < truth[bank, code]).astype(np.float32), truth


@pytest.fixture(scope="module")
def made():
    """(rows, outcomes, truth, model of the first 20,000, its calibration and bounds)."""
    X, y, truth = merchant()
    fitted = mixed.train(X[:20_000], y[:20_000], trees=10, depth=3, min_examples=50)
    later = slice(20_000, N)
    code = X[later, PROCESSOR].astype(int)
    calibration = calibrate.fit(fitted.logit(X[later]), y[later], code, 3)
    return X, y, truth, fitted, calibration, measure(fitted, calibration, X[later], y[later])


def every_route():
    """One row an issuer and processor."""
    ask = np.zeros((3 * ISSUERS, len(FEATURE_NAMES)), dtype=np.float32)
    ask[:, BANK], ask[:, PROCESSOR] = np.repeat(np.arange(1, ISSUERS + 1), 3), np.tile([1, 2, 3], ISSUERS)
    return ask


def test_intervals_of_every_route_hold_the_truth(made):
    _, _, truth, fitted, calibration, bounds = made
    p, low, high = Runtime(runtime_arrays(fitted, calibration, bounds)).intervals(every_route(), bounds.level)
    came = truth[1:, 1:].ravel()
    assert np.mean((low <= came) & (came <= high)) >= 0.8 and bounds.coverage >= 0.8
    assert ((low < p) & (p < high)).all() and np.median(high - low) < 0.3


def test_a_higher_level_is_wider_and_the_probability_stays(made):
    _, _, _, fitted, calibration, bounds = made
    runtime, ask = Runtime(runtime_arrays(fitted, calibration, bounds)), every_route()
    (p, low, _), (same, lower, _) = (runtime.intervals(ask, level) for level in (0.6, 0.95))
    assert (lower < low).all() and np.array_equal(p, same) and np.array_equal(p, runtime.probabilities(ask))


def test_what_was_seen_often_is_surer_than_what_was_seen_seldom_or_never(made):
    X, _, _, fitted, _, _ = made
    ask = every_route()
    usual = ask[:, BANK] % 3 + 1 == ask[:, PROCESSOR]
    effects = Effects(fitted.arrays)
    variance = effects.variance(ask)
    assert variance[usual].max() < variance[~usual].min()
    never = ask[:3].copy()
    never[:, BANK] = 999
    assert (effects.variance(never) > variance[:3]).all()
    nobody = X[:1].copy()
    nobody[:, PROCESSOR] = 200
    assert effects.variance(nobody) == pytest.approx(fitted.arrays["cross_variance"].sum())


def test_variances_stand_beside_their_cells(made):
    arrays = made[3].arrays
    assert arrays["cell_variance"].shape == arrays["cell_keys"].shape and arrays["cross_variance"].shape == (
        len(CROSSES),
    )
    assert (arrays["cell_variance"] > 0).all() and (arrays["cross_variance"] > 0).all()
    which = np.minimum(arrays["cell_keys"] >> 58, len(CROSSES) - 1)
    assert (arrays["cell_variance"] <= arrays["cross_variance"][which] * 2).all()
    assert np.isin(cross_keys(every_route()), arrays["cell_keys"]).mean() > 0.9


def test_a_release_without_variances_or_without_a_factor_has_no_intervals(made):
    _, _, _, fitted, calibration, bounds = made
    arrays = runtime_arrays(fitted, calibration, bounds)
    old = {name: array for name, array in arrays.items() if name not in ("cell_variance", "cross_variance")}
    unmeasured = runtime_arrays(fitted, calibration)
    whole = Runtime(arrays)
    for part in (old, unmeasured, {n: a for n, a in old.items() if n != "interval_factor"}):
        p, low, high = Runtime(part).intervals(every_route(), 0.9)
        assert low is None and high is None and np.array_equal(p, whole.probabilities(every_route()))


def test_what_cannot_be_measured_has_no_bounds(made):
    X, y, _, fitted, calibration, _ = made
    plain = linear.train(X[:2_000], y[:2_000], iterations=5)
    assert measure(plain, calibration, X[:5_000], y[:5_000]) is None
    assert deviation(plain, 1.0, X[:5], np.full(5, 0.5)) is None
    assert measure(fitted, calibration, X[:100], y[:100]) is None
    assert measure(fitted, calibration, X[:0], y[:0]) is None


def test_a_world_that_moved_asks_for_a_larger_factor(made):
    X, _, truth, fitted, calibration, bounds = made
    rng = np.random.default_rng(3)
    found = []
    for moved in (0.4, 1.2):  # logits; a little is within the variances, more is not
        logit = np.log(truth / (1 - truth)) + rng.normal(0, moved, truth.shape)
        rate = 1 / (1 + np.exp(-logit))[X[20_000:, BANK].astype(int), X[20_000:, PROCESSOR].astype(int)]
        y = (rng.random(len(rate)) < rate).astype(np.float32)
        found.append(measure(fitted, calibration, X[20_000:], y).factor)
    assert bounds.factor <= found[0] < found[1] and found[1] > 1.5 * bounds.factor


@given(st.floats(0.7, 4), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_the_factor_of_gaps_is_found(factor, seed):
    rng = np.random.default_rng(seed)
    spread, noise = rng.uniform(0.01, 0.04, 2_000), rng.uniform(1e-5, 4e-4, 2_000)
    found = Gaps(rng.normal(0, np.sqrt((factor * spread) ** 2 + noise)), noise, spread, np.full(2_000, 100.0))
    assert factor_of(found) == pytest.approx(max(1.0, factor), rel=0.2)
    held = coverage(found, factor_of(found), 0.9)
    assert held > 0.86 and (factor < 1 or held == pytest.approx(0.9, abs=0.04))


def test_gaps_within_luck_give_the_least_factor():
    found = Gaps(np.zeros(10), np.full(10, 1e-4), np.full(10, 0.02), np.full(10, 100.0))
    assert factor_of(found) == 1.0


def test_small_groups_are_left_out():
    y, group = np.array([1.0] * 60 + [0.0] * 49), np.repeat([0, 2], [60, 49])
    found = gaps(y, np.full(109, 0.5), np.full(109, 0.02), group)
    assert found.gap.tolist() == [0.5] and found.size.tolist() == [60] and found.noise == pytest.approx(0.25 / 60)
