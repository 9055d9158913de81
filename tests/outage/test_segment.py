"""Segments: a dead BIN alone goes down, memory is bounded, the baseline only rises, the promise on false alarms."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from smartrouter.outage.segment import (
    SegmentConfig,
    SegmentRefused,
    baseline,
    from_json,
    observe,
    segment_of,
)

PARAMS = Path(__file__).resolve().parents[2] / "params" / "outage" / "default.yaml"
CONFIG, P0, RATES = SegmentConfig(), 0.0075, (0.02, 0.05, 0.2, 0.5, 0.98)


def see(segments, key, failed, p0=P0, threshold=1e6):
    return observe(segments, key, failed, p0, threshold=threshold, config=CONFIG)


def plain(evidence, failed, p0):
    """The least detector of a whole processor: Shiryaev-Roberts over failure rates, none below the baseline."""
    rates = [max(rate, p0) for rate in RATES]
    return [(1 + r) * (rate / p0 if failed else (1 - rate) / (1 - p0)) for r, rate in zip(evidence, rates, strict=True)]


def until_down(dead, most, seed):
    """(attempts until the processor alarms, or `most`; segments down by then) of 60 BINs, 1 to 3 with 5 % each."""
    rng, segments, evidence, down = np.random.default_rng(seed), {}, [0.0] * len(RATES), set()
    share = np.array([10, 5, 5, 5, *(75 / np.arange(2, 58) / np.sum(1 / np.arange(2, 58)))])
    for count, bin_ in enumerate(rng.choice(60, most, p=share / share.sum()).tolist(), start=1):
        failed, key = bool(bin_ in dead or rng.random() < 0.005), str(bin_)
        if key in down:
            continue
        evidence = plain(evidence, failed, baseline(segments, key, P0, CONFIG))
        if see(segments, key, failed).alarmed:
            down.add(key)
        if np.mean(evidence) >= 1e6:
            return count, down
    return most, down


def test_the_file_holds_the_defaults():
    assert SegmentConfig(**yaml.safe_load(PARAMS.read_text())["segment"]) == CONFIG


@pytest.mark.parametrize(
    "wrong", [{"odds_ratios": [0.9]}, {"odds_ratios": []}, {"keep": 1}, {"prior": 0}, {"most": 0}, {"bins": 6}]
)
def test_parameters_out_of_range_or_unknown_are_refused(wrong):
    with pytest.raises(ValidationError):
        SegmentConfig(**wrong)


def test_a_segment_is_currency_and_bin_group():
    assert segment_of("MXN", "41523199") == segment_of("MXN", "415231") == "MXN:415231"
    assert segment_of("USD", "415231", 4) == "USD:4152" and segment_of("USD", "") == "USD"


def test_a_dead_processor_is_found_in_three_to_five_attempts():
    counts = [until_down(set(range(60)), 100, seed)[0] for seed in range(300)]
    assert 3 <= np.mean(counts) <= 5 and max(counts) <= 15


def test_three_dead_bins_go_down_and_the_processor_does_not():
    runs = [until_down({1, 2, 3}, 1500, seed) for seed in range(40)]
    assert {count for count, _ in runs} == {1500}
    assert all(down == {"1", "2", "3"} for _, down in runs)


def test_healthy_segments_stay():
    runs = [until_down(set(), 3000, seed) for seed in range(20)]
    assert all(count == 3000 and not down for count, down in runs)


def test_the_expected_evidence_of_all_segments_together_grows_by_one_an_attempt():
    rng, total = np.random.default_rng(2), []
    for _ in range(3000):
        segments = {}
        for key in rng.integers(0, 5, 30).astype(str).tolist():
            see(segments, key, bool(rng.random() < 0.3), p0=0.3, threshold=1e9)
        total.append(sum(np.mean(s.evidence) for s in segments.values()))
    assert abs(np.mean(total) - 30) < 5 * np.std(total) / np.sqrt(len(total)) and np.mean(total) > 15


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=50), st.floats(1e-5, 0.5))
def test_the_baseline_lies_between_the_processors_rate_and_one(outcomes, p0):
    segments = {}
    assert baseline(segments, "x", p0, CONFIG) == p0
    for failed in outcomes:
        before = baseline(segments, "x", p0, CONFIG)
        see(segments, "x", failed, p0)
        after = baseline(segments, "x", p0, CONFIG)
        assert p0 <= after < 1 and (after >= before - 1e-12 if failed else after <= before + 1e-12)
    assert baseline(segments, "y", p0, CONFIG) == p0


def test_memory_is_bounded_and_the_least_recently_seen_goes():
    segments = {}
    for key in range(200):
        see(segments, "kept", False)
        see(segments, str(key), False)
    assert len(segments) == CONFIG.most and "kept" in segments and "199" in segments and "0" not in segments


def test_an_alarm_is_raised_once_and_needs_no_infinity():
    segments = {}
    found = [see(segments, "x", True, p0=0.0) for _ in range(1000)]
    assert [f.raised for f in found].count(True) == 1 and found[-1].evidence <= 1e8


@pytest.mark.parametrize("p0", [-0.1, 1.0, float("nan")])
def test_what_is_no_probability_is_refused_and_changes_nothing(p0):
    segments = {}
    with pytest.raises(SegmentRefused, match="Give the learned"):
        see(segments, "x", True, p0)
    assert segments == {}


def test_saved_and_read_it_goes_on_the_same():
    segments = {}
    for i in range(20):
        see(segments, str(i % 3), i % 4 == 0)
    again = {key: from_json(json.loads(json.dumps(s.as_json())), CONFIG) for key, s in segments.items()}
    assert again == segments and see(again, "1", True) == see(segments, "1", True)
    with pytest.raises(SegmentRefused, match="Start this segment fresh"):
        from_json([1, 2], CONFIG)
