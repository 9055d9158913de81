"""Outcomes over HTTP: durable, once, in any order; and the models learn of them."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from smartrouter.feedback.store import connect_file, counts

PREDICT, FEEDBACK, BATCH = "/api/v1/ml/predict", "/api/v1/ml/feedback", "/api/v1/ml/feedback/batch"


def event(prediction_id="p-unknown", event_id="e1", **values):
    base = {"prediction_id": prediction_id, "event_id": event_id, "processor": "WORLDPAY", "status": "declined"}
    return {**base, "error_code": "51", **values}


@pytest.fixture
def answered(client, payment):
    """The id of an answered payment."""
    return client.post(PREDICT, json=payment).json["prediction_id"]


def until(condition, seconds=5.0):
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    assert condition()


def test_an_outcome_is_counted_once_and_learned(client, parts, answered):
    first = client.post(FEEDBACK, json=event(answered))
    assert (first.status_code, first.json) == (202, {"event_id": "e1", "status": "counted", "outcome": "soft"})
    again = client.post(FEEDBACK, json=event(answered))
    assert (again.status_code, again.json["status"]) == (202, "duplicate")
    assert counts(parts.store) == {"predictions": 1, "feedback": 1, "outcomes": 1}
    model = parts.merchants.get("volaris").model
    until(lambda: model.applied)
    (row,) = model.applied
    assert row["request"]["card"]["bin"] == "415231" and row["request"]["merchant_id"] == "volaris"
    assert (row["processor"], row["outcome"]) == ("WORLDPAY", "soft")
    assert abs(row["known_at"] - time.time()) < 60 and row["at"] <= row["known_at"]
    assert client.get("/ready").json["features"]["last_outcome_id"] == 1


def test_a_used_event_id_with_another_content_is_a_conflict(client, answered):
    client.post(FEEDBACK, json=event(answered))
    answer = client.post(FEEDBACK, json=event(answered, error_code="43"))
    assert answer.status_code == 409 and answer.json["errors"][0]["path"] == "$.event_id"
    assert client.post(FEEDBACK, json=event(answered, "e2", status="approved", error_code=None)).json["status"] == (
        "superseded"
    )


def test_feedback_for_an_unknown_prediction_is_kept_and_found_later(client, parts, payment):
    unknown = event(None, attempt_id="a-1", merchant_id="volaris")
    del unknown["prediction_id"]
    assert client.post(FEEDBACK, json=unknown).json["status"] == "kept"
    client.post(PREDICT, json={**payment, "attempt": {"attempt_id": "a-1"}})
    until(lambda: counts(parts.store)["outcomes"] == 1)


def test_late_feedback_is_normal_and_feedback_from_the_future_is_not(client, answered):
    old = (datetime.now(UTC) - timedelta(days=30)).isoformat()
    assert client.post(FEEDBACK, json=event(answered, occurred_at=old)).status_code == 202
    ahead = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    answer = client.post(FEEDBACK, json=event(answered, "e2", occurred_at=ahead))
    assert answer.status_code == 422 and answer.json["errors"][0]["path"] == "$.occurred_at"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"processor": "WORDLPAY"}, "$.processor"),
        ({"merchant_id": "nobody"}, "$.merchant_id"),
        ({"status": "ok"}, "$.status"),
        ({"event_id": None}, "$.event_id"),
        ({"occurred_at": "2026-04-15T18:00:00"}, "$.occurred_at"),
        ({"eror_code": "51"}, "$.eror_code"),
        ({"prediction_id": None}, "$"),
    ],
    ids=str,
)
def test_impossible_feedback_is_refused_by_its_path(client, parts, change, path):
    body = {name: value for name, value in {**event(), **change}.items() if value is not None}
    answer = client.post(FEEDBACK, json=body)
    assert answer.status_code == 422 and path in [fault["path"] for fault in answer.json["errors"]]
    assert counts(parts.store)["feedback"] == 0


def test_what_is_odd_about_an_outcome_is_told_and_it_counts(client, parts, payment):
    answered = client.post(PREDICT, json=payment | {"attempt": {"attempt_id": "a-9"}}).json
    assert client.post(FEEDBACK, json=event(answered["prediction_id"])).json.keys() == {"event_id", "status", "outcome"}
    odd = event(None, "e2", attempt_id="a-9", merchant_id="volaris", processor="AMEX")
    odd |= {"occurred_at": "1970-01-01T00:00:00Z"}
    del odd["prediction_id"]
    answer = client.post(FEEDBACK, json=odd)
    assert answer.status_code == 202 and answer.json["status"] == "counted"
    early, elsewhere = answer.json["notes"]
    assert early.startswith("occurred_at 1970-01-01T00:00:00+00:00 lies before the decision of 20")
    assert elsewhere.startswith("AMEX was not ranked (brand_not_supported)") and "is not judged" in elsewhere
    assert "notes" not in client.post(FEEDBACK, json=odd).json, "a duplicate"
    items = [event(answered["prediction_id"], "e3", processor="MIT"), odd | {"event_id": "e4", "stage": "retry"}]
    receipts = [item["receipt"] for item in client.post(BATCH, json={"items": items}).json["items"]]
    assert "notes" not in receipts[0] and len(receipts[1]["notes"]) == 2
    assert counts(parts.store)["outcomes"] == 4


# -- batch -------------------------------------------------------------------------------------------------------------


def test_a_batch_is_answered_event_by_event(client, parts, answered):
    items = [
        event(answered),
        event(answered),
        event(answered, processor="nowhere"),
        {"event_id": "x"},
        event("p-other"),
        event(answered, error_code="43"),
    ]
    answer = client.post(BATCH, json={"items": items})
    assert answer.status_code == 207
    found = answer.json["items"]
    assert [item["index"] for item in found] == list(range(6))
    assert [item["status"] for item in found] == [202, 202, 422, 422, 202, 409]
    receipts = [item["receipt"]["status"] for item in found if item["receipt"]]
    assert receipts == ["counted", "duplicate", "kept"]
    assert found[2]["problem"]["errors"][0]["path"] == "$.items[2].processor"
    assert counts(parts.store)["feedback"] == 2


def test_a_thousand_events_and_no_more(client, parts):
    items = [event(f"p{n}", "e", error_code="5") for n in range(1000)]
    answer = client.post(BATCH, json={"items": items})
    assert answer.status_code == 202 and len(answer.json["items"]) == 1000
    assert counts(parts.store)["feedback"] == 1000
    small = [{"event_id": str(n)} for n in range(1001)]
    assert client.post(BATCH, json={"items": small}).status_code == 422
    assert client.post(BATCH, json={"items": []}).status_code == 422
    assert client.post(BATCH, json={"items": [1]}).status_code == 422


# -- without a store ---------------------------------------------------------------------------------------------------


def test_what_is_not_durable_is_not_acknowledged(client, parts, tmp_path):
    parts.store.wait_s = 0.05
    other = connect_file(tmp_path / "store.db")
    other.execute("BEGIN IMMEDIATE")
    for path, body in ((FEEDBACK, event()), (BATCH, {"items": [event()]})):
        answer = client.post(path, json=body)
        assert answer.status_code == 503 and answer.content_type == "application/problem+json"
        assert answer.headers["Retry-After"]
    other.execute("ROLLBACK")
    other.close()
    assert counts(parts.store)["feedback"] == 0
    assert client.post(FEEDBACK, json=event()).status_code == 202


def test_a_full_disk_is_not_acknowledged_either(client, parts):
    (pages,) = parts.store.writer.execute("PRAGMA page_count").fetchone()
    parts.store.writer.execute(f"PRAGMA max_page_count={pages}")
    statuses = []
    for number in range(300):
        statuses.append(client.post(FEEDBACK, json=event(f"p{number}", "e" * 100)).status_code)
        if statuses[-1] != 202:
            break
    assert statuses[-1] == 503
    kept = counts(parts.store)["feedback"]
    assert kept == statuses.count(202)
