"""What an outcome means, which are refused, and that one counts once."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from smartrouter.core.answers import HARD_CODES, OUTCOMES, TECHNICAL_CODES, classify
from smartrouter.feedback.outcome import (
    Feedback,
    OutcomeRefused,
    check_outcome,
    idempotency_key,
    oddities,
)

NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
BASE = {"prediction_id": "p1", "event_id": "e1", "processor": "WORLDPAY", "status": "declined"}


@pytest.mark.parametrize(
    ("given_fields", "outcome"),
    [
        ({"status": "approved"}, "approved"),
        ({"status": "timeout"}, "technical"),
        ({"status": "error", "error_code": "51"}, "technical"),
        ({"error_code": "51"}, "soft"),
        ({"error_code": "05"}, "soft"),
        ({"error_code": "05", "advice_code": "03"}, "hard"),
        ({"error_code": "05", "advice_code": "3"}, "hard"),
        ({"error_code": "79", "advice_code": "21"}, "hard"),
        ({"error_code": "43"}, "hard"),
        ({"error_code": "r1"}, "hard"),
        ({"error_code": "43", "hard_soft": "soft"}, "soft"),
        ({"error_code": "51", "hard_soft": "hard"}, "hard"),
        ({"error_code": "91", "hard_soft": "hard"}, "technical"),
        ({"error_code": "912"}, "technical"),
        ({"error_code": "51", "error_category": "technical"}, "technical"),
        ({"error_code": "82"}, "soft"),
        ({}, "soft"),
    ],
)
def test_codes_are_read_as_the_networks_mean_them(given_fields, outcome):
    assert Feedback(**{**BASE, **given_fields}).outcome == outcome


@given(
    st.sampled_from(["approved", "declined", "timeout", "error"]),
    st.none() | st.text(max_size=20),
    st.sampled_from([None, "hard", "soft"]),
    st.none() | st.text(max_size=5),
    st.sampled_from([None, "customer", "technical"]),
)
def test_every_answer_has_exactly_one_class(status, code, hard_soft, advice, category):
    outcome = classify(status, code, hard_soft, advice, category)
    assert outcome in OUTCOMES
    assert (outcome == "approved") == (status == "approved")


def test_no_code_has_two_meanings():
    assert not HARD_CODES & TECHNICAL_CODES


@pytest.mark.parametrize(
    "change",
    [
        {"prediction_id": None},
        {"prediction_id": None, "attempt_id": "a1"},  # whose?
        {"event_id": ""},
        {"event_id": "a\nb"},
        {"event_id": "x" * 129},
        {"processor": "worldpay"},
        {"status": "maybe"},
        {"stage": "other"},
        {"occurred_at": datetime(2026, 4, 15)},
        {"sequence_order": 0},
        {"latency_ms": float("nan")},
        {"eror_code": "51"},
    ],
)
def test_malformed_events_are_refused(change):
    with pytest.raises(ValidationError):
        Feedback(**{**BASE, **change})


def test_events_that_cannot_be_true_are_refused_with_their_field():
    def refused(**change):
        with pytest.raises(OutcomeRefused) as caught:
            check_outcome(Feedback(**{**BASE, **change}), NOW.timestamp(), {"WORLDPAY", "MIT"})
        return caught.value.path

    assert refused(occurred_at=NOW + timedelta(minutes=6)) == "$.occurred_at"
    assert refused(processor="WORDLPAY") == "$.processor"
    assert refused(status="approved", error_code="51") == "$.status"
    assert refused(status="approved", hard_soft="hard") == "$.status"


def test_late_events_and_slightly_fast_clocks_are_welcome():
    changes = [{"occurred_at": NOW - timedelta(days=40)}, {"occurred_at": NOW + timedelta(minutes=4)}]
    changes.append({"status": "approved", "error_code": "00"})
    for change in changes:
        assert check_outcome(Feedback(**{**BASE, **change}), NOW.timestamp(), {"WORLDPAY"}) is None


ids = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)


@given(ids, ids, ids, ids)
def test_keys_are_equal_only_for_the_same_attempt_stage_and_event(a, b, c, d):
    one, two = (Feedback(**{**BASE, "prediction_id": p, "event_id": e}) for p, e in ((a, b), (c, d)))
    assert (idempotency_key(one) == idempotency_key(two)) == ((a, b) == (c, d))


def test_attempt_ids_of_two_merchants_do_not_meet():
    base = {**BASE, "prediction_id": None, "attempt_id": "a1"}
    keys = {idempotency_key(Feedback(**base, merchant_id=m)) for m in ("volaris", "other")}
    assert len(keys) == 2
    assert idempotency_key(Feedback(**base, merchant_id="volaris", stage="retry")) not in keys


def test_what_is_odd_is_said_and_nothing_else():
    def said(ranking=("WORLDPAY", "MIT"), excluded=(), **change):
        return oddities(Feedback(**{**BASE, **change}), NOW.timestamp(), ranking, dict(excluded))

    assert said() == said(occurred_at=NOW - timedelta(minutes=4)) == said(occurred_at=NOW + timedelta(days=30)) == []
    (early,) = said(occurred_at=NOW - timedelta(minutes=6))
    assert "before the decision of 2026-04-15T12:00:00+00:00" in early
    told = {"brand_not_supported": "not judged", "hard_rule": "not judged", "processor_down": "is judged"}
    for reason, judged in told.items():
        (elsewhere,) = said(processor="AMEX", excluded={"AMEX": reason}.items())
        assert reason in elsewhere and judged in elsewhere
    assert "no candidate" in said(processor="AMEX")[0]
