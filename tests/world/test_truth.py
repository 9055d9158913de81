"""The ruler: values of policies against the truth."""

from datetime import datetime

import numpy as np
import pytest

from smartrouter.world.truth import (
    TruthError,
    achievable_lift,
    load_truth,
    message_probability,
    outages,
)


@pytest.fixture(scope="module")
def truth(small_world):
    return load_truth(small_world / "truth")


def test_rules_win_nothing_and_the_oracle_all(truth):
    rows = truth.first_attempts(rule_version="volaris-routing-2")
    ids, p = truth.attempt_id[rows], truth.probability[rows]
    rules = achievable_lift(truth, ids, truth.rules_processor[rows])
    oracle = achievable_lift(truth, ids, np.array(truth.processors)[np.nanargmax(p, axis=1)])
    assert rules.lift == 0 and rules.share == 0 and rules.changed == 0
    assert oracle.share == pytest.approx(1) and oracle.lift == pytest.approx(rules.achievable)
    assert rules.baseline < rules.oracle and oracle.lift_se < 0.002


def test_rows_come_in_any_order_and_a_baseline_may_be_given(truth):
    rows = truth.first_attempts()[:500]
    shuffled = np.random.default_rng(7).permutation(rows)
    one = achievable_lift(truth, truth.attempt_id[rows], truth.processor[rows])
    two = achievable_lift(truth, truth.attempt_id[shuffled], truth.processor[shuffled])
    assert one.policy == pytest.approx(two.policy)
    same = achievable_lift(truth, truth.attempt_id[rows], truth.processor[rows], truth.processor[rows])
    assert same.lift == 0


def test_periods_and_choices(truth):
    start, end = datetime(2026, 1, 10), datetime(2026, 1, 20)
    rows = truth.first_attempts(start, end, choice_only=True)
    assert truth.is_first[rows].all() and (np.isfinite(truth.probability[rows]).sum(axis=1) > 1).all()
    assert (truth.attempted_at[rows] >= np.datetime64(start)).all() and (
        truth.attempted_at[rows] < np.datetime64(end)
    ).all()


def test_wrong_questions_are_refused(truth, tmp_path):
    rows = truth.first_attempts()
    ids = truth.attempt_id[rows[:2]]
    with pytest.raises(TruthError, match="WORDLPAY"):
        achievable_lift(truth, ids, np.array(["WORDLPAY", "MIT"]))
    with pytest.raises(TruthError, match="A999999999"):
        achievable_lift(truth, np.array(["A999999999"]), np.array(["MIT"]))
    amex = truth.attempt_id[rows[truth.processor[rows] == "AMEX"][:1]]
    with pytest.raises(TruthError, match="ineligible"):
        achievable_lift(truth, amex, np.array(["WORLDPAY"]))
    with pytest.raises(TruthError, match="at least one"):
        achievable_lift(truth, ids[:0], np.array([], "U"))
    with pytest.raises(TruthError, match="no truth"):
        load_truth(tmp_path)


def test_message_settings_move_probabilities_both_ways(truth):
    rows = truth.first_attempts()
    sent = truth.message[rows] == "standard"
    own = message_probability(truth, rows, "standard")[sent]
    assert np.allclose(own, truth.probability[rows][sent], equal_nan=True, atol=1e-6)
    change = message_probability(truth, rows, "rich_data")[sent] - own
    assert np.nanmin(change) < -0.003 and np.nanmax(change) > 0.003
    with pytest.raises(TruthError, match="shout"):
        message_probability(truth, rows, "shout")


def test_outages_are_listed_by_time(truth):
    events = outages(truth)
    assert events and all(event["start"] < event["end"] for event in events)
    assert [event["start"] for event in events] == sorted(event["start"] for event in events)
