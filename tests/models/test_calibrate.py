"""Calibration: improves log loss, never breaks on little data."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.models.calibrate import crossed, fit


def loss(p, y):
    return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))


@settings(max_examples=25, deadline=None)
@given(st.floats(0.3, 3.0), st.floats(-1.5, 1.5), st.integers(0, 10**6))
def test_calibration_never_makes_the_fitted_rows_worse(scale, shift, seed):
    rng = np.random.default_rng(seed)
    code = rng.integers(1, 4, 2_000)
    z = rng.normal(0.6, 0.8, len(code))
    y = (rng.random(len(code)) < 1 / (1 + np.exp(-z))).astype(float)
    raw = scale * z + shift
    found = fit(raw, y, code, 3)
    assert loss(found.apply(raw, code), y) <= loss(1 / (1 + np.exp(-raw)), y) + 1e-6


def test_a_processor_without_rows_gets_the_common_bias():
    rng = np.random.default_rng(7)
    z = rng.normal(size=5_000)
    y = (rng.random(len(z)) < 1 / (1 + np.exp(-z - 0.5))).astype(float)
    found = fit(z, y, np.ones(len(z), dtype=int), 3)
    assert abs(found.bias[2] - found.bias[3]) < 1e-6 and found.bias[2] > 0.2


def test_one_kind_of_outcome_stays_finite():
    found = fit(np.zeros(100), np.ones(100), np.ones(100, dtype=int), 1)
    assert np.isfinite(found.apply(np.zeros(2), np.array([0, 1]))).all()


def test_a_row_takes_no_part_in_its_own_crossed_calibration():
    rng = np.random.default_rng(7)
    z, code = rng.normal(size=1_000), rng.integers(1, 4, 1_000)
    y = (rng.random(1_000) < 1 / (1 + np.exp(-z))).astype(float)
    before = crossed(z, y, code, 3)
    for half, other in ((slice(500), slice(500, None)), (slice(500, None), slice(500))):
        turned = y.copy()
        turned[half] = 1 - turned[half]
        after = crossed(z, turned, code, 3)
        assert np.array_equal(after[half], before[half]) and (after[other] != before[other]).all()
        assert np.array_equal(before[half], fit(z[other], y[other], code[other], 3).apply(z[half], code[half]))


def test_crossing_next_to_no_rows_keeps_the_score():
    assert crossed(np.zeros(0), np.zeros(0), np.zeros(0, int), 3).shape == (0,)
    assert np.isclose(crossed(np.array([2.0]), np.ones(1), np.ones(1, int), 3), 1 / (1 + np.exp(-2))).all()
