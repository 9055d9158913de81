"""A valid request always gets a usable ranking, the same one for the same attempt, and it is on record."""

import json
import sqlite3
import threading
import time

import pytest

from serve.app import create_app
from serve.logs import Log
from serve.schemas import EXAMPLE, PredictResponse
from smartrouter.feedback.store import connect_file, counts, upgrade

PREDICT = "/api/v1/ml/predict"


def rows(tmp_path):
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.row_factory = sqlite3.Row
    found = [dict(row) for row in connection.execute("SELECT * FROM predictions ORDER BY created_at")]
    connection.close()
    return found


def test_the_contracts_own_example(client, tmp_path):
    answer = client.post(PREDICT, json=EXAMPLE)
    body = PredictResponse.model_validate(answer.json).model_dump(exclude_unset=True)
    assert body == answer.json  # nothing beside the documented fields
    assert answer.headers["X-Prediction-Stored"] == "true" and body["stored"]
    assert [r["processor"] for r in body["ranking"]] == ["WORLDPAY", "MIT", "ELAVON"]
    assert body["ranking"][0] == {"rank": 1, "processor": "WORLDPAY", "processor_id": 76, "approval_probability": 0.8}
    assert body["decision"]["approach"] == "model" and body["decision"]["fallback_reason"] is None
    assert body["model"] == {"name": "processor_selector.volaris", "version": "1"}
    (row,) = rows(tmp_path)
    assert row["prediction_id"] == body["prediction_id"]
    assert row["response"] == answer.text
    assert json.loads(row["request"])["card"]["bin"] == "415231"
    assert (row["model_version"], row["approach"], row["propensity"], row["shadow"]) == ("1", "model", 1.0, 0)
    assert json.loads(row["probabilities"]) == [0.8, 0.7, 0.6]


def test_only_the_required_fields(client, payment):
    assert client.post(PREDICT, json=payment).status_code == 200


@pytest.mark.parametrize("amount", [2450, 2450.0, "2450", "2450.00", 0, "0.01", 999999999999])
def test_amounts_are_numbers_or_decimal_text(client, payment, amount):
    payment["order"]["amount"] = amount
    assert client.post(PREDICT, json=payment).status_code == 200


# -- the same attempt --------------------------------------------------------------------------------------------------


def test_the_same_attempt_gets_the_same_answer(client, payment):
    first = client.post(PREDICT, json=payment)
    again = client.post(PREDICT, json=payment)
    assert again.data == first.data
    assert again.headers["Idempotency-Replayed"] == "true" and "Idempotency-Replayed" not in first.headers


def test_the_same_request_written_differently_is_the_same(client, payment):
    first = client.post(PREDICT, json=payment)
    other = {**dict(reversed(payment.items())), "model_type": "processor_selector", "attempt": {"sequence_order": 1}}
    other["order"] = {"currency": "MXN", "amount": "2450.00"}
    other["card"] = {"brand": "visa", "bin": "415231"}
    assert client.post(PREDICT, json=other).data == first.data


def test_another_body_under_the_same_attempt_is_refused(client, payment):
    client.post(PREDICT, json=payment)
    payment["order"]["amount"] = 1.0
    answer = client.post(PREDICT, json=payment)
    assert answer.status_code == 409 and answer.content_type == "application/problem+json"
    assert "sequence_order" in answer.json["detail"]
    payment["attempt"] = {"sequence_order": 2}
    assert client.post(PREDICT, json=payment).status_code == 200


def test_threads_racing_for_one_attempt_get_one_answer(app, payment, parts):
    answers, barrier = [], threading.Barrier(6)

    def race():
        client = app.test_client()
        barrier.wait()
        answers.append(client.post(PREDICT, json=payment))

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {a.status_code for a in answers} == {200}
    assert len({a.data for a in answers}) == 1
    assert counts(parts.store)["predictions"] == 1


# -- without a model ---------------------------------------------------------------------------------------------------


def test_a_missing_model_is_answered_by_rules(make_app, payment):
    client = make_app().test_client()
    answer = client.post(PREDICT, json=payment).json
    assert answer["decision"]["approach"] == "rules"
    assert answer["decision"]["fallback_reason"] == "model_missing"
    assert answer["model"] is None
    assert [r["processor"] for r in answer["ranking"]] == ["WORLDPAY", "MIT", "ELAVON"]


def test_a_slow_model_is_answered_by_rules_within_the_deadline(make_app, payment, promote):
    promote("1", pause_s=1.0)
    client = make_app(deadline_ms=30.0).test_client()
    reasons, waits = [], []
    for number in range(5):
        payment["transaction_id"] = f"tx-{number}"
        start = time.perf_counter()
        decision = client.post(PREDICT, json=payment).json["decision"]
        waits.append(time.perf_counter() - start)
        assert decision["approach"] == "rules"
        reasons.append(decision["fallback_reason"])
    assert reasons[:2] == ["model_slow", "model_slow"]
    assert reasons[2:] == ["model_saturated"] * 3  # no waiting behind calls that hang
    assert max(waits) < 0.9 and min(waits[2:]) < 0.2


def test_a_model_that_recovers_is_used_again(make_app, payment, promote):
    promote("1", pause_s=0.15)
    app = make_app(deadline_ms=30.0)
    client = app.test_client()
    for number in range(3):
        client.post(PREDICT, json={**payment, "transaction_id": f"slow-{number}"})
    app.extensions["smartrouter"].merchants.get("volaris").model.pause_s = 0.0
    time.sleep(0.5)
    assert client.post(PREDICT, json=payment).json["decision"]["approach"] == "model"


def test_a_failing_model_is_answered_by_rules_and_logged(make_app, payment, promote, logfile):
    promote("1", fails=True)
    decision = make_app().test_client().post(PREDICT, json=payment).json["decision"]
    assert (decision["approach"], decision["fallback_reason"]) == ("rules", "model_failed")
    (line,) = [found for found in map(json.loads, logfile.read_text().splitlines()) if found["event"] == "model_failed"]
    assert (line["merchant"], line["error"], line["message"]) == ("volaris", "RuntimeError", "the model is broken")


def test_a_failing_router_is_answered_by_the_policy(app, parts, payment):
    parts.answerer.decide = lambda *a, **k: 1 / 0
    client = app.test_client()
    answer = client.post(PREDICT, json=payment).json
    assert answer["decision"]["fallback_reason"] == "router_failed"
    assert [r["processor"] for r in answer["ranking"]] == ["WORLDPAY", "MIT", "ELAVON"]
    payment |= {"transaction_id": "tx-2", "card": {"bin": "371449", "brand": "AMEX"}}
    answer = client.post(PREDICT, json=payment).json
    assert answer["decision"]["approach"] == "hard_rule"
    assert [r["processor"] for r in answer["ranking"]] == ["AMEX"]


def test_the_hard_rule_asks_no_model(make_app, payment, promote):
    promote("1", fails=True)
    payment["card"] = {"bin": "371449", "brand": "AMEX"}
    answer = make_app().test_client().post(PREDICT, json=payment).json
    assert answer["decision"]["approach"] == "hard_rule" and answer["model"] is None
    assert answer["decision"]["fallback_reason"] is None


# -- without a store ---------------------------------------------------------------------------------------------------


def fill(store):
    """No page more for this store."""
    (pages,) = store.writer.execute("PRAGMA page_count").fetchone()
    store.writer.execute(f"PRAGMA max_page_count={pages}")


def post_until_not_stored(client, payment):
    for number in range(200):
        answer = client.post(PREDICT, json={**payment, "transaction_id": f"tx-{number}"})
        assert answer.status_code == 200
        if answer.headers["X-Prediction-Stored"] == "false":
            return answer
    raise AssertionError("the disk never filled up")


def test_a_full_disk_still_gets_a_ranking_that_says_so(client, parts, payment, logfile):
    fill(parts.store)
    answer = post_until_not_stored(client, payment)
    assert answer.json["stored"] is False and answer.json["ranking"]
    assert "prediction_not_stored" in logfile.read_text()
    assert 'predictions_not_stored_total{cause="full"}' in client.get("/metrics").text
    ready = client.get("/ready")
    assert ready.status_code == 200 or "store: full" in ready.json["missing"]
    parts.store.writer.execute("PRAGMA max_page_count=100000")
    answer = client.post(PREDICT, json={**payment, "transaction_id": "tx-after"})
    assert answer.headers["X-Prediction-Stored"] == "true"


def test_a_locked_store_does_not_hold_payments_up_for_long(client, parts, payment, tmp_path, monkeypatch):
    monkeypatch.setattr("serve.answer.STORE_WAIT_S", 0.05)
    other = connect_file(tmp_path / "store.db")
    other.execute("BEGIN IMMEDIATE")
    waits = []
    for number in range(6):
        start = time.perf_counter()
        answer = client.post(PREDICT, json={**payment, "transaction_id": f"tx-{number}"})
        waits.append(time.perf_counter() - start)
        assert answer.status_code == 200 and answer.json["stored"] is False
    assert client.get("/ready").json["missing"] == ["store: busy"]
    other.execute("ROLLBACK")
    other.close()
    time.sleep(0.3)  # the store is asked again four times a second
    assert client.post(PREDICT, json=payment).json["stored"] is True
    assert client.get("/ready").status_code == 200
    assert sum(waits) < 2.0


def test_the_real_router_answers_by_rules_and_hard_rule(settings, payment, logfile):
    """No stand-ins: the package's own router, with a broken release in place of a model."""
    release = settings.releases / "processor_selector.volaris"
    (release / "1").mkdir(parents=True)
    (release / "champion.json").write_text('{"version": "1"}')
    upgrade(settings.store)
    with open(logfile, "ab", buffering=0) as stream:
        app = create_app(settings, log=Log("info", stream.fileno()))
        try:
            client = app.test_client()
            answer = client.post(PREDICT, json=payment)
            assert PredictResponse.model_validate(answer.json).decision.fallback_reason == "model_missing"
            assert [r["processor"] for r in answer.json["ranking"]] == ["WORLDPAY", "MIT", "ELAVON"]
            amex = {**payment, "transaction_id": "tx-2", "card": {"bin": "371449", "brand": "amex"}}
            answer = client.post(PREDICT, json=amex).json
            assert answer["decision"]["approach"] == "hard_rule" and answer["ranking"][0]["processor"] == "AMEX"
            carnet = {**payment, "transaction_id": "tx-3", "card": {"bin": "506199", "brand": "CARNET"}}
            assert [r["processor"] for r in client.post(PREDICT, json=carnet).json["ranking"]] == ["MIT"]
            nobody = {**carnet, "transaction_id": "tx-4", "order": {"amount": 1, "currency": "COP"}}
            assert client.post(PREDICT, json=nobody).status_code == 422
            assert "manifest.json" in " ".join(client.get("/ready").json["problems"])
        finally:
            app.extensions["smartrouter"].close()
