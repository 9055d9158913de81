"""The technical detector, its baseline, and the fast copy that the bench runs."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from smartrouter.outage.delay import (
    after_successes,
    cusum_threshold,
    cusum_to_alarm,
    in_a_row,
    mixture_to_alarm,
    window_to_alarm,
)
from smartrouter.outage.detector import (
    Baseline,
    DetectorRefused,
    TechnicalConfig,
    assumed_rate,
    attempts_per_s,
    baseline_from_json,
    detector_from_json,
    drop_held,
    evidence,
    failure_rate,
    fresh,
    fresh_baseline,
    learn,
    severity,
    threshold,
    update,
)
from tests.outage.detectors import check_detector

CONFIG = TechnicalConfig()
SHARES = st.floats(1e-6, 0.999)


def test_keeps_what_every_detector_keeps():
    check_detector(
        lambda: fresh(CONFIG),
        lambda state, failed, p0: update(state, failed, p0, CONFIG),
        lambda values: detector_from_json(values, CONFIG),
    )


@pytest.mark.parametrize("p0", [0.03, 0.2, 0.6])
def test_one_step_is_a_martingale_exactly(p0):
    for parts in ([0.0] * 5, [3.0, 0.1, 70.0, 900.0, 12.0]):
        before = evidence(fresh(CONFIG) if not any(parts) else detector_from_json({"parts": parts}, CONFIG), CONFIG)
        after = sum(
            chance * update(detector_from_json({"parts": parts}, CONFIG), failed, p0, CONFIG)
            for failed, chance in ((True, p0), (False, 1 - p0))
        )
        assert after == pytest.approx(before + 1)


def test_three_failures_in_a_row_and_one_success_in_between():
    state = fresh(CONFIG)
    values = [update(state, True, 0.005, CONFIG) for _ in range(3)]
    assert values == sorted(values) and values[1] < 1e6 < values[2]
    assert update(state, False, 0.005, CONFIG) < values[2]


@given(st.lists(st.tuples(st.booleans(), SHARES), max_size=80))
def test_evidence_is_finite_and_what_the_state_says(steps):
    state = fresh(CONFIG)
    for failed, p0 in steps:
        value = update(state, failed, p0, CONFIG)
        assert math.isfinite(value) and value >= 0
        assert value == pytest.approx(evidence(state, CONFIG))
    assert 0 <= severity(state, CONFIG) <= max(CONFIG.severities)


def test_a_healthy_share_above_all_severities_is_no_evidence():
    state = fresh(CONFIG)
    for attempt in range(1, 20):
        assert update(state, True, 0.99, CONFIG) == pytest.approx(attempt)


@pytest.mark.parametrize("p0", [0.0, 1.0, -0.1, math.nan, math.inf])
def test_an_impossible_share_is_refused_and_nothing_changes(p0):
    state = fresh(CONFIG)
    with pytest.raises(DetectorRefused, match="between 0 and 1"):
        update(state, True, p0, CONFIG)
    assert state == fresh(CONFIG)


def test_failures_without_end_stay_an_alarm_and_keep_the_severity():
    state = fresh(CONFIG)
    for _ in range(20_000):
        assert update(state, True, 1e-6, CONFIG) > 0
    assert evidence(state, CONFIG) > 1e40 and severity(state, CONFIG) == pytest.approx(0.98)


@pytest.mark.parametrize(
    "values", [{}, {"parts": [1.0]}, {"parts": [math.nan] * 5}, {"parts": [-1.0] * 5}, {"parts": "x"}]
)
def test_a_broken_state_is_refused(values):
    with pytest.raises(DetectorRefused, match="Start it fresh"):
        detector_from_json(values, CONFIG)


def test_severity_says_how_bad_it_is():
    rng, found = np.random.default_rng(7), []
    assert severity(fresh(CONFIG), CONFIG) == 0
    for true in (0.05, 0.3, 1.0):
        state = fresh(CONFIG)
        for failed in rng.random(400) < true:
            update(state, bool(failed), 0.005, CONFIG)
        found.append(severity(state, CONFIG))
    assert found == sorted(found) and found[0] < 0.1 and found[2] > 0.9


def test_the_budget_in_time_becomes_attempts():
    assert threshold(1.0, CONFIG) == pytest.approx(90 * 86_400 * 3 * 0.6)
    assert threshold(0.0, CONFIG) == CONFIG.least_threshold
    assert threshold(10.0, CONFIG) == pytest.approx(10 * threshold(1.0, CONFIG))


# --- baseline ---


def test_a_baseline_starts_with_the_belief_and_ends_with_the_truth():
    baseline, rng = fresh_baseline(CONFIG), np.random.default_rng(7)
    assert failure_rate(baseline, CONFIG) == CONFIG.prior_rate
    assert attempts_per_s(baseline, CONFIG) == CONFIG.prior_per_s
    for at, failed in enumerate(rng.random(60_000) < 0.02):
        learn(baseline, bool(failed), float(at * 10), False, CONFIG)
    assert failure_rate(baseline, CONFIG) == pytest.approx(0.02, rel=0.2)
    assert assumed_rate(baseline, CONFIG) == pytest.approx(1.5 * failure_rate(baseline, CONFIG))
    assert attempts_per_s(baseline, CONFIG) == pytest.approx(0.1, rel=0.05)


def test_what_is_held_counts_when_the_suspicion_passes_and_not_after_an_alarm():
    calm, held, alarmed = (fresh_baseline(CONFIG) for _ in range(3))
    for at, failed in enumerate([True] * 4 + [False] * 6):
        learn(calm, failed, float(at), False, CONFIG)
        learn(held, failed, float(at), at < 9, CONFIG)
        learn(alarmed, failed, float(at), True, CONFIG)
    assert alarmed.attempts == 0 and alarmed.held_attempts == 10
    drop_held(alarmed)
    assert failure_rate(alarmed, CONFIG) == CONFIG.prior_rate
    assert failure_rate(held, CONFIG) == pytest.approx(failure_rate(calm, CONFIG), rel=1e-3)


def test_floor_and_ceiling():
    never, always = Baseline(attempts=1e6), Baseline(attempts=1e6, failures=1e6)
    assert assumed_rate(never, CONFIG) == CONFIG.floor and assumed_rate(always, CONFIG) == CONFIG.ceiling


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e10), st.booleans()), max_size=40))
def test_a_baseline_survives_any_order_of_times(events):
    baseline = fresh_baseline(CONFIG)
    for failed, at, suspicious in events:
        learn(baseline, failed, at, suspicious, CONFIG)
    assert 0 < failure_rate(baseline, CONFIG) < 1 and math.isfinite(attempts_per_s(baseline, CONFIG))
    assert baseline_from_json(json.loads(json.dumps(baseline.as_json()))) == baseline


def test_a_broken_baseline_is_refused():
    with pytest.raises(DetectorRefused):
        baseline_from_json({"attempts": 1.0})


@pytest.mark.parametrize(
    "change",
    [
        {"severities": [1.0, 0.5, 0.2, 0.05, 0.02]},
        {"weights": [1.0]},
        {"weights": [0.5, 0.5, 0.5, 0.5, 0.5]},
        {"floor": 0.3},
        {"margin": 0.5},
        {"budget_days": math.nan},
        {"mragin": 1.5},
    ],
)
def test_a_faulty_section_is_refused(change):
    with pytest.raises(ValidationError):
        TechnicalConfig.model_validate(change)


# --- the fast copy and the rules it is compared with ---


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.floats(1e-4, 0.3))
def test_the_jump_over_successes_is_the_same_as_step_by_step(gaps, p0):
    state = fresh(CONFIG)
    severities = np.maximum(CONFIG.severities, p0)
    ratio, lift = (1 - severities) / (1 - p0), severities / p0
    parts = np.zeros((1, 5))
    for gap in gaps:
        for _ in range(gap):
            update(state, False, p0, CONFIG)
        value = update(state, True, p0, CONFIG)
        parts = (1 + after_successes(parts, ratio, np.array([gap]))) * lift
    assert (parts @ np.array(CONFIG.weights))[0] == pytest.approx(value, rel=1e-9)


def test_the_fast_copy_takes_as_many_attempts_as_the_scalar_step():
    rng, slow = np.random.default_rng(7), []
    for _ in range(500):
        state, attempts, value = fresh(CONFIG), 0, 0.0
        while value < 1e5:
            value = update(state, bool(rng.random() < 0.3), 0.005, CONFIG)
            attempts += 1
        slow.append(attempts)
    fast = mixture_to_alarm(0.3, 0.005, 1e5, 5000, rng, CONFIG)
    assert fast.mean() == pytest.approx(np.mean(slow), rel=0.1)
    assert np.quantile(fast, 0.9) == pytest.approx(np.quantile(slow, 0.9), rel=0.15)


def test_no_false_alarm_sooner_than_the_promise():
    rng = np.random.default_rng(7)
    for p0 in (0.002, 0.005, 0.01):
        between = mixture_to_alarm(p0, p0, 0.6 * 2e4, 400, rng, CONFIG)
        assert between.mean() > 2e4


def test_rules_of_the_trade():
    rng = np.random.default_rng(7)
    assert in_a_row(1.0, 5) == 5 and in_a_row(0.5, 2) == pytest.approx(6)
    assert set(window_to_alarm(1.0, 4, 10, 20, rng)) == {4.0}
    assert window_to_alarm(0.5, 2, 2, 20_000, rng).mean() == pytest.approx(6, rel=0.05)
    nats = cusum_threshold(0.01, 0.2, 2000, 400, rng)
    assert cusum_to_alarm(0.01, 0.01, 0.2, nats, 2000, rng).mean() > 1500
    assert cusum_to_alarm(0.2, 0.01, 0.2, nats, 2000, rng).mean() < 25
