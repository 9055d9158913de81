"""Every error is a problem document that says what came, what was expected and what to do."""

import json
import re

import pytest

from serve.app import create_app
from serve.problems import KINDS
from serve.schemas import Problem
from serve.security import KeysRequired
from smartrouter.core.settings import Settings

PREDICT = "/api/v1/ml/predict"
JSON = "application/json"


def problem(answer, status, slug):
    """Check that an answer is a problem document of one kind, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    body = Problem.model_validate_json(answer.data).model_dump()
    assert body["type"] == f"/openapi#problem-{slug}"
    assert (body["status"], body["title"]) == KINDS[slug][:2]
    assert body["request_id"] == answer.headers["X-Request-ID"]
    return body


def test_no_such_path(client):
    problem(client.get("/api/v1/ml/nothing"), 404, "not-found")


def test_wrong_method_names_the_right_ones(client):
    answer = client.get(PREDICT)
    problem(answer, 405, "method-not-allowed")
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data", None])
def test_wrong_media_type(client, payment, kind):
    problem(client.post(PREDICT, data=json.dumps(payment), content_type=kind), 415, "wrong-type")


def test_media_type_with_charset_is_json(client, payment):
    answer = client.post(PREDICT, data=json.dumps(payment), content_type="application/json; charset=utf-8")
    assert answer.status_code == 200


def test_too_large_by_length_and_while_reading(client):
    problem(client.post(PREDICT, data=b" " * (256 * 1024 + 1), content_type=JSON), 413, "too-large")
    assert client.post(PREDICT, data=b" " * (256 * 1024), content_type=JSON).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}x",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b"[" * 100_000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b'{"a": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}',
        b'{"a": 1, "a": 2}',
        b'{"order": {"amount": 1, "amount": 2}}',
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda b: repr(b[:24]),
)
def test_what_is_not_json(client, body):
    problem(client.post(PREDICT, data=body, content_type=JSON), 400, "malformed-json")


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"'])
def test_json_that_is_no_object(client, body):
    found = problem(client.post(PREDICT, data=body, content_type=JSON), 422, "invalid")
    assert found["errors"][0]["path"] == "$"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"transaction_id": None}, "$.transaction_id"),
        ({"transaction_id": ""}, "$.transaction_id"),
        ({"transaction_id": "a\u0000b"}, "$.transaction_id"),
        ({"transaction_id": "a\nb"}, "$.transaction_id"),
        ({"transaction_id": "x" * 129}, "$.transaction_id"),
        ({"transaction_id": 7}, "$.transaction_id"),
        ({"merchant_id": "../volaris"}, "$.merchant_id"),
        ({"merchant_id": "nobody"}, "$.merchant_id"),
        ({"order": {"amount": -1, "currency": "MXN"}}, "$.order.amount"),
        ({"order": {"amount": "abc", "currency": "MXN"}}, "$.order.amount"),
        ({"order": {"amount": True, "currency": "MXN"}}, "$.order.amount"),
        ({"order": {"amount": 1e400, "currency": "MXN"}}, "$.order.amount"),
        ({"order": {"amount": None, "currency": "MXN"}}, "$.order.amount"),
        ({"order": {"amount": 1, "currency": "mxn"}}, "$.order.currency"),
        ({"order": {"amount": 1}}, "$.order.currency"),
        ({"order": {"amount": 1, "currency": "MXN", "vip": 1}}, "$.order.vip"),
        ({"order": []}, "$.order"),
        ({"card": {"bin": "41523", "brand": "VISA"}}, "$.card.bin"),
        ({"card": {"bin": 415231, "brand": "VISA"}}, "$.card.bin"),
        ({"card": {"bin": "415231", "brand": "VISA", "last_four": "12345"}}, "$.card.last_four"),
        ({"payment": {"initiation": "mit"}}, "$.payment.initiation"),
        ({"attempt": {"sequence_order": 0}}, "$.attempt.sequence_order"),
        ({"attempt": {"sequence_order": "1"}}, "$.attempt.sequence_order"),
        ({"attempt": {"previous": [{"processor": "A", "at": "yesterday"}]}}, "$.attempt.previous[0].at"),
        ({"attempt": {"previous": [{"processor": "A", "at": "2026-01-01T00:00:00"}]}}, "$.attempt.previous[0].at"),
        ({"user": {"is_guest": "yes"}}, "$.user.is_guest"),
        ({"geo": {"latitude": 91}}, "$.geo.latitude"),
        ({"eligible_processors": "WORLDPAY"}, "$.eligible_processors"),
        ({"surprise": {"deep": 1}}, "$.surprise"),
        ({"model_type": "oracle"}, "$.model_type"),
    ],
    ids=str,
)
def test_what_breaks_the_contract_is_named_by_its_path(client, payment, change, path):
    body = {**payment, **change}
    body = {name: value for name, value in body.items() if value is not None}
    text = json.dumps(body).replace("Infinity", "1e400")
    found = problem(client.post(PREDICT, data=text, content_type=JSON), 422, "invalid")
    assert path in [fault["path"] for fault in found["errors"]]


@pytest.mark.parametrize("field", ["transaction_id", "merchant_id", "order", "card"])
def test_required_fields(client, payment, field):
    del payment[field]
    found = problem(client.post(PREDICT, json=payment), 422, "invalid")
    assert found["errors"] == [{"path": f"$.{field}", "reason": "required field is missing"}]


def test_all_faults_come_at_once(client, payment):
    payment |= {"order": {"amount": -1, "currency": "x"}, "extra": 1}
    found = problem(client.post(PREDICT, json=payment), 422, "invalid")
    assert {fault["path"] for fault in found["errors"]} == {"$.order.amount", "$.order.currency", "$.extra"}


def test_lone_surrogates_are_refused(client, payment):
    text = json.dumps(payment).replace("tx-1", "tx-\\ud800")
    assert client.post(PREDICT, data=text, content_type=JSON).status_code in (400, 422)


@pytest.mark.parametrize("kind", ["retry_predictor", "retry_sequence", "message_optimizer"])
def test_model_types_of_later_releases_are_refused_not_faked(client, payment, kind):
    found = problem(client.post(PREDICT, json={**payment, "model_type": kind}), 422, "not-available")
    assert "processor_selector" in found["detail"]


def test_a_payment_that_nobody_takes(client, payment):
    payment["card"]["brand"], payment["order"]["currency"] = "CARNET", "COP"
    found = problem(client.post(PREDICT, json=payment), 422, "no-processor")
    assert {"path": "$.eligible_processors", "reason": "MIT: currency_not_supported"} in found["errors"]


def test_codes_that_nobody_knows_are_told_as_such(client, payment):
    found = problem(client.post(PREDICT, json={**payment, "eligible_processors": ["NOPE"]}), 422, "no-processor")
    assert "unknown processors: NOPE" in found["detail"] and "MIT" in found["detail"] and "brand" not in found["detail"]
    payment["card"]["brand"] = "CARNET"
    payment["order"]["currency"] = "COP"
    found = problem(client.post(PREDICT, json={**payment, "eligible_processors": ["NOPE", "MIT"]}), 422, "no-processor")
    assert "eligible_processors takes brand CARNET in COP; NOPE is unknown" in found["detail"]


def test_what_to_do_is_told_once(client, payment):
    client.post(PREDICT, json=payment)
    details = [problem(client.post(PREDICT, json={**payment, "user": {"user_id": "u-2"}}), 409, "key-reused")["detail"]]
    event = {"prediction_id": "p-1", "event_id": "e1", "processor": "NOPE", "status": "approved"}
    details.append(problem(client.post("/api/v1/ml/feedback", json=event), 422, "invalid")["detail"])
    event |= {"processor": "MIT", "occurred_at": "2999-01-01T00:00:00Z"}
    details.append(problem(client.post("/api/v1/ml/feedback", json=event), 422, "invalid")["detail"])
    body = {"state": "down", "minutes": 5, "who": "  ", "reason": "x"}
    details.append(problem(client.post("/api/v1/processors/MIT/override", json=body), 422, "invalid")["detail"])
    for detail in details:
        advice = [part for part in detail.split(". ") if re.match(r"(Repeat|Check|Correct|Send|Say|Use|Set)\b", part)]
        assert len(advice) == 1 and detail.endswith("."), detail


# -- keys, limits, ids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "", "wrong", "one,two", "ключ"])
def test_no_or_wrong_key(make_app, payment, key):
    client = make_app(api_keys="one, two").test_client()
    headers = {} if key is None else {"X-API-Key": key.encode().decode("latin-1")}
    problem(client.post(PREDICT, json=payment, headers=headers), 401, "key-required")


@pytest.mark.parametrize("key", ["one", "two"])
def test_several_keys_are_valid_at_once(make_app, payment, key):
    client = make_app(api_keys="one, two").test_client()
    assert client.post(PREDICT, json=payment, headers={"X-API-Key": key}).status_code == 200
    assert client.get("/health").status_code == 200  # probes need none


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_an_open_network_needs_a_key(tmp_path, host):
    with pytest.raises(KeysRequired, match="SMARTROUTER_API_KEYS"):
        create_app(Settings(home=tmp_path, host=host), decide=None, load_model=None)


def test_too_many(make_app, payment):
    client = make_app(api_keys="one,two", rate_limit="3/minute").test_client()
    statuses = [client.post(PREDICT, json=payment, headers={"X-API-Key": "one"}).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    answer = client.post(PREDICT, json=payment, headers={"X-API-Key": "one"})
    problem(answer, 429, "too-many")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert client.post(PREDICT, json=payment, headers={"X-API-Key": "two"}).status_code == 200
    assert client.get("/health").status_code == 200


def test_request_ids_are_taken_made_and_never_trusted(client):
    assert client.get("/health", headers={"X-Request-ID": "abc-1"}).headers["X-Request-ID"] == "abc-1"
    for strange in ("a b", "a\tb", "é", "x" * 65, '"}{'):
        made = client.get("/health", headers={"X-Request-ID": strange}).headers["X-Request-ID"]
        assert made != strange and made.startswith("r")


def test_an_unexpected_failure_is_a_problem_without_its_inside(client, parts, payment, monkeypatch, logfile):
    monkeypatch.setattr(parts.answerer, "known", lambda request: 1 / 0)
    found = problem(client.post(PREDICT, json=payment), 500, "internal")
    assert "ZeroDivision" not in json.dumps(found)
    assert "ZeroDivisionError" in logfile.read_text()


def test_log_lines_are_json_whatever_the_caller_sends(client, payment, logfile):
    payment["order"]["order_id"] = "x\u2028y"
    client.post(PREDICT + '?a="\r\n{"level":"forged"}', json=payment, headers={"User-Agent": '"\x1b[31m'})
    client.get('/"}\n{"level": "forged"')
    lines = [json.loads(line) for line in logfile.read_text().splitlines()]
    assert not [line for line in lines if line["level"] == "forged"]
    last = [line for line in lines if line["event"] == "request"]
    assert last[0]["merchant"] == "volaris" and last[0]["prediction_id"].startswith("p") and last[0]["ms"] >= 0
    assert last[1]["route"] == "(none)"
