"""Metrics against scikit-learn, statsmodels and what they promise."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from smartrouter.evaluation.metrics import (
    MetricRefused,
    expected_calibration_error,
    log_loss_difference,
    mean_difference,
    reliability,
    score,
    wilson,
)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(7)
    p = rng.beta(6, 3, 5000)
    return (rng.random(5000) < p).astype(int), p


def test_score_equals_sklearn(rows):
    y, p = rows
    result = score(y, p)
    assert result.auc == pytest.approx(roc_auc_score(y, p))
    assert result.log_loss == pytest.approx(log_loss(y, p))
    assert result.brier == pytest.approx(brier_score_loss(y, p))
    assert result.n == 5000 and result.approval_rate == y.mean()
    assert result.ece < 0.03
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.auc = 1.0


@pytest.mark.parametrize("y", [[1, 1, 1], [0, 0, 0]])
def test_one_class_has_no_auc(y):
    result = score(y, [0.2, 0.4, 0.6])
    assert result.auc is None and np.isfinite(result.log_loss)


@pytest.mark.parametrize(
    ("y", "p"),
    [([], []), ([1], [0.1, 0.2]), ([2], [0.5]), ([1], [1.1]), ([1], [float("nan")]), ([[1]], [[0.5]]), ([None], [0.5])],
)
def test_bad_input_is_refused(y, p):
    with pytest.raises(MetricRefused):
        score(np.array(y, dtype=float), p)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.9, 1.0])), min_size=1, max_size=200))
def test_bins_hold_every_row_once_and_keep_ties_together(pairs):
    y, p = np.array([float(a) for a, _ in pairs]), np.array([b for _, b in pairs])
    table = reliability(y, p, bins=7)
    assert sum(b.n for b in table) == len(pairs)
    assert all(one.highest < two.lowest for one, two in pairwise(table))
    assert all(b.low - 1e-9 <= b.came <= b.high + 1e-9 for b in table)
    assert 0 <= expected_calibration_error(table) <= 1


def test_bins_have_equal_mass(rows):
    sizes = [b.n for b in reliability(*rows, bins=10)]
    assert len(sizes) == 10 and max(sizes) - min(sizes) <= 2


def test_ece_is_the_offset_of_a_shifted_model():
    y = np.tile([1, 1, 1, 0], 500)
    assert score(y, np.full(2000, 0.75)).ece == pytest.approx(0)
    assert score(y, np.full(2000, 0.65)).ece == pytest.approx(0.10)


@given(n=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_contains_its_estimate(n, share):
    rate = wilson(int(n * share), n)
    assert 0 <= rate.low <= rate.estimate + 1e-12 and rate.estimate <= rate.high + 1e-12 <= 1 + 2e-12


def test_wilson_value_of_the_textbook():
    rate = wilson(81, 263)  # Newcombe 1998, table I
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)
    for wrong in [(1, 0), (-1, 5), (6, 5)]:
        with pytest.raises(MetricRefused):
            wilson(*wrong)


def test_the_better_model_is_seen_and_the_same_model_is_not(rows):
    y, p = rows
    worse = np.clip(p + 0.1, 0, 1)
    better = log_loss_difference(y, p, worse)
    assert better.high < 0 and better.estimate == pytest.approx(
        log_loss(y, p) - log_loss(y, np.clip(worse, 1e-6, 1 - 1e-6))
    )
    same = log_loss_difference(y, p, p)
    assert (same.estimate, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_groups_of_one_change_nothing_and_copies_widen(rows):
    y, p = rows
    worse = p * 0.95
    single = log_loss_difference(y, p, worse, groups=np.arange(len(y)))
    assert single == log_loss_difference(y, p, worse)
    twice = np.repeat(np.arange(len(y)), 2)
    doubled = log_loss_difference(np.repeat(y, 2), np.repeat(p, 2), np.repeat(worse, 2), groups=twice)
    assert doubled.high - doubled.low == pytest.approx(single.high - single.low)
    assert doubled.groups == single.n


def test_the_interval_covers():
    rng = np.random.default_rng(11)
    inside = [d.low <= 0.3 <= d.high for d in (mean_difference(rng.normal(0.3, 1, 200)) for _ in range(500))]
    assert 0.92 <= np.mean(inside) <= 0.98


def test_one_group_cannot_be_compared():
    with pytest.raises(MetricRefused, match="at least 2"):
        log_loss_difference([1, 0], [0.5, 0.5], [0.4, 0.4], groups=["o", "o"])
