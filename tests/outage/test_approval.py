"""The approval detector: the promise on false alarms, what peers change, what one BIN may do, bad input, JSON."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.approval_bench import CONFIG, Pairs, card_testing, drop, issuer_down, run, single_delay, wave
from smartrouter.outage.approval import (
    ApprovalConfig,
    ApprovalRefused,
    approval_in_drop,
    calm,
    contrast,
    expected_decline,
    fresh,
    from_json,
    mixture,
    significance,
    update,
)

PARAMS = Path(__file__).resolve().parents[2] / "params" / "outage" / "default.yaml"
MILLION = 1e6


def board(*codes):
    return {code: fresh(CONFIG) for code in codes or ("A", "B", "C")}


def feed(on, code, declined, p0=0.3, **known):
    return update(on, code, declined, p0, threshold=MILLION, config=CONFIG, **known)


# --- parameters


def test_the_file_holds_the_defaults():
    assert ApprovalConfig(**yaml.safe_load(PARAMS.read_text())["approval"]) == ApprovalConfig()


@pytest.mark.parametrize(
    "wrong",
    [
        {"odds_ratios": [1.0]},
        {"odds_ratios": []},
        {"odds_ratios": [float("nan")]},
        {"z": -1},
        {"bin_cap": 0},
        {"issuer_share": 0},
        {"down_approval": 1.1},
        {"most_keys": 0},
        {"speed": 3},
    ],
)
def test_parameters_out_of_range_or_unknown_are_refused(wrong):
    with pytest.raises(ValidationError):
        ApprovalConfig(**wrong)


# --- the mixture


@settings(max_examples=200, deadline=None)
@given(st.floats(0.001, 0.999), st.lists(st.floats(0, 1e6), min_size=7, max_size=7))
def test_the_statistic_less_time_is_a_martingale(p, evidence):
    odds = p / (1 - p)
    declined = np.array(mixture(evidence, True, odds, CONFIG.odds_ratios, math.inf))
    approved = np.array(mixture(evidence, False, odds, CONFIG.odds_ratios, math.inf))
    assert p * declined + (1 - p) * approved == pytest.approx(np.array(evidence) + 1, rel=1e-9)
    assert (declined > approved).all()


def test_a_billion_declines_do_not_overflow():
    state = [1e300] * 7
    for declined in (True, True, False):
        state = mixture(state, declined, 1e-3, CONFIG.odds_ratios, 1e8)
    assert all(0 <= r <= 1e8 for r in state)


def test_a_drop_is_seen_soon_without_peers():
    delays = single_delay(2_000, MILLION, np.random.default_rng(1))
    assert 120 < delays.mean() < 150


# --- the step


def test_many_replications_step_as_one_does():
    rng, n = np.random.default_rng(3), 6
    pairs, boards, compared = Pairs(n), [board("A", "B") for _ in range(n)], 0
    ended = np.zeros(n, bool)
    for attempt in range(1500):
        where, p0 = rng.integers(0, 2, n), rng.uniform(0.1, 0.6, n)
        odds = p0 / (1 - p0) * np.where((where == 0) & (attempt > 600), 2.3, 1)
        declined = rng.random(n) < odds / (1 + odds)
        alarm = pairs.step(where, declined, p0, MILLION)
        for i in np.flatnonzero(~ended):
            code = "AB"[where[i]]
            found = feed(boards[i], code, bool(declined[i]), float(p0[i]))
            assert found.raised == alarm[i]
            ended[i] |= found.raised
            if not found.raised:
                assert boards[i][code].evidence == pytest.approx(pairs.evidence[:, where[i], i], rel=1e-9)
                assert boards[i][code].cusum == pytest.approx(pairs.cusum[where[i], i], abs=1e-9)
                compared += 1
    assert ended.any() and compared > 3000


def test_a_drop_at_one_is_found_and_the_shift_is_about_right():
    found = [run(drop, seed)["alarms"] for seed in (1, 2)]
    assert [[a[0] for a in alarms][:1] for alarms in found] == [["A"], ["A"]]
    assert all(0.4 < alarms[0][3] < 2.5 for alarms in found)


@pytest.mark.parametrize("event", [wave, issuer_down, card_testing])
def test_what_hits_everybody_moves_nothing(event):
    assert [run(event, seed)["alarms"] for seed in (201, 202)] == [[], []]


def test_without_peers_there_is_no_alarm():
    alone = board("A")
    assert not any(feed(alone, "A", True).alarmed for _ in range(300))
    silent = board("A", "B")
    assert not any(feed(silent, "A", True).alarmed for _ in range(300))


def total_failure(on):
    """A declines everything, B works; the first alarm and the attempts of A until then."""
    for attempt in range(1, 200):
        feed(on, "B", attempt % 10 < 3)
        found = feed(on, "A", True)
        if found.raised:
            return found, attempt
    raise AssertionError("no alarm")


def test_nearly_nothing_needs_more_than_a_few_declines():
    on = board("A", "B")
    found, attempt = total_failure(on)
    assert attempt < 30 and found.shift > 1
    later = [feed(on, "A", True) for _ in range(40)]
    assert later[-1].nearly_nothing and not any(f.raised for f in later)


def test_an_alarm_ends_when_the_processor_works_again():
    on, rng = board("A", "B"), np.random.default_rng(5)
    total_failure(on)
    found = [feed(on, "A", bool(rng.random() < 0.3)) for _ in range(1500)]
    cleared = [i for i, f in enumerate(found) if f.cleared]
    assert len(cleared) == 1 and not found[-1].alarmed and found[cleared[0]].shift == 0


def test_calm_keeps_what_was_learned():
    on = board("A", "B")
    total_failure(on)
    on["A"].bias = 0.1
    calm(on["A"])
    assert not on["A"].alarmed and on["A"].cusum == 0 and on["A"].bias == 0.1 and not any(on["A"].evidence)


def test_an_alarmed_processor_tells_its_peers_nothing():
    on = board("A", "B")
    total_failure(on)
    before = on["B"].as_json()
    feed(on, "A", True)
    assert on["B"].as_json() == before


def test_one_bin_contributes_a_few_declines_only():
    on = board("A", "B")
    for _ in range(300):
        feed(on, "B", False, bin_="400001")
        found = feed(on, "A", True, bin_="400002", issuer="X")
    assert found.evidence < 1e4 and on["A"].attempts <= 8 and not found.alarmed
    assert on["A"].bins["400002"] <= CONFIG.bin_cap + 1
    for _ in range(20):
        feed(on, "A", False, bin_="400002")
    assert on["A"].bins.get("400002", 0.0) < CONFIG.bin_cap


def test_the_bias_of_the_model_is_learned_and_a_drop_is_not():
    on, rng = board("A", "B"), np.random.default_rng(7)
    for _ in range(8000):
        feed(on, "A", bool(rng.random() < 0.33))
        feed(on, "B", bool(rng.random() < 0.30))
    learned = on["A"].bias
    assert 0.05 < learned < 0.25 and abs(on["B"].bias) < 0.1
    for attempt in range(60):
        feed(on, "B", attempt % 10 < 3)
        feed(on, "A", True)
    assert on["A"].bias < learned + 0.05


def test_memory_is_bounded():
    on = board("A", "B")
    for i in range(500):
        feed(on, "A", True, bin_=f"{400000 + i}", issuer=f"bank {i}")
        feed(on, "B", True, bin_=f"{400000 + i}", issuer=f"bank {i}")
    for state in on.values():
        assert len(state.bins) <= 64 and len(state.issuers) <= 64 and len(state.strata) <= 65
        assert "400499" in state.bins and "bank 499" in state.issuers


# --- comparison


def test_strata_without_the_other_side_tell_nothing():
    assert contrast({}) == (0.0, 0.0) and significance(0.0, 0.0, CONFIG) == 0
    assert contrast({"X": [9.0, 3.0, 0.0, 0.0], "Y": [0.0, 0.0, 5.0, 2.0]}) == (0.0, 0.0)


@settings(max_examples=100, deadline=None)
@given(st.floats(-50, 50), st.floats(0.1, 100), st.floats(-50, 50), st.floats(0.1, 100))
def test_one_stratum_is_the_two_sample_z(own, mine, peers, theirs):
    excess, information = contrast({"": [own, mine, peers, theirs]})
    plain = (own / mine - peers / theirs) / math.sqrt(1 / mine + 1 / theirs)
    assert excess / math.sqrt(information) == pytest.approx(plain, rel=1e-6, abs=1e-9)
    assert significance(excess, information, CONFIG) < plain + 1e-9
    assert plain >= 5 or significance(excess, information, CONFIG) < CONFIG.z


# --- the model's probability, and back


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), st.floats(0, 6), st.floats(0.01, 1))
def test_a_shift_lowers_the_approval_by_the_odds_of_the_issuers(approval, shift, share):
    low = approval_in_drop(approval, shift, share)
    assert -1e-12 <= low <= approval + 1e-12 and approval_in_drop(approval, 0.0, share) == pytest.approx(approval)
    p0 = expected_decline(approval, share)
    assert 0 <= p0 <= 1
    if 0.01 < approval < 0.99:
        odds = p0 / (1 - p0) * math.exp(shift)
        counted = approval + (1 - approval) * share
        assert low == pytest.approx(counted / (1 + odds))


# --- bad input and JSON


@pytest.mark.parametrize("p0", [-0.1, 1.1, float("nan"), float("inf")])
def test_what_is_no_probability_is_refused_and_changes_nothing(p0):
    on = board()
    before = {code: state.as_json() for code, state in on.items()}
    with pytest.raises(ApprovalRefused, match="a probability"):
        feed(on, "A", True, p0)
    assert {code: state.as_json() for code, state in on.items()} == before


def test_an_unknown_processor_is_refused():
    with pytest.raises(ApprovalRefused, match="one of A, B, C"):
        feed(board(), "Z", True)


@pytest.mark.parametrize("p0", [0.0, 1.0])
def test_certainties_of_the_model_are_survived(p0):
    on = board()
    assert all(math.isfinite(feed(on, "A", declined, p0).evidence) for declined in (True, False) * 50)


def test_a_state_of_other_fields_is_refused():
    with pytest.raises(ApprovalRefused, match="Start this processor fresh"):
        from_json({"evidence": []}, CONFIG)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ABC"), st.booleans(), st.floats(0, 1), st.sampled_from(["", "X", "Y"])), max_size=60
    ),
    st.integers(0, 60),
)
def test_saved_in_the_middle_it_goes_on_the_same(events, cut):
    on, other = board(), board()
    for i, (code, declined, p0, issuer) in enumerate(events):
        if i == cut:
            other = {c: from_json(json.loads(json.dumps(s.as_json())), CONFIG) for c, s in other.items()}
        known = {"issuer": issuer, "bin_": issuer and "400001"}
        found = feed(on, code, declined, p0, **known)
        assert found == feed(other, code, declined, p0, **known) and math.isfinite(found.evidence)
    assert on == other
