"""Readiness, reloads, metrics, pages, and what the serving process does not carry."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve.deadline import Deadline, Saturated, TooSlow
from serve.rates import RateRefused, Rates
from serve.run import CannotKeep, CannotListen, check
from serve.security import KeysRequired
from smartrouter.outage.config import OutageConfigRefused
from smartrouter.rules.policy import UnknownMerchant

ROOT = Path(__file__).resolve().parents[2]
PREDICT = "/api/v1/ml/predict"


def until(condition, seconds=5.0):
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    assert condition()


# -- readiness and reloads ---------------------------------------------------------------------------------------------


def test_ready_says_what_it_stands_on(client):
    answer = client.get("/ready")
    body = answer.json
    assert answer.status_code == 200 and body["status"] == "ready" and body["missing"] == []
    assert body["model"]["version"] == "1" and 0 <= body["model"]["age_s"] < 60
    assert body["store"] == {"status": "ok", "kind": "sqlite", "detail": None}
    assert body["features"] == {"outcomes_applied": 0, "last_outcome_id": 0, "lag_s": None}


def test_a_missing_model_is_not_ready_and_appears_without_a_restart(make_app, payment, promote):
    client = make_app().test_client()
    answer = client.get("/ready")
    assert answer.status_code == 503 and "processor_selector.volaris" in answer.json["missing"][0]
    assert client.get("/health").status_code == 200
    assert client.post(PREDICT, json=payment).status_code == 200
    promote("1")
    until(lambda: client.get("/ready").status_code == 200)


def test_promotion_and_rollback_take_effect(client, payment, promote):
    versions = []
    for number, version in enumerate(["1", "2", "1"]):
        promote(version)
        until(lambda v=version: client.get("/ready").json["model"]["version"] == v)
        versions.append(client.post(PREDICT, json={**payment, "transaction_id": f"t{number}"}).json["model"]["version"])
    assert versions == ["1", "2", "1"]
    assert 'reloads_total{result="loaded",what="model"}' in client.get("/metrics").text


def test_a_corrupt_release_keeps_the_old_model_and_shows(client, payment, promote, logfile):
    promote("2", corrupt=True)
    until(lambda: any(text.startswith("model") for text in client.get("/ready").json["problems"]))
    body = client.get("/ready")
    assert body.status_code == 200 and body.json["model"]["version"] == "1"
    assert any("checksum differs" in text for text in body.json["problems"])
    assert client.post(PREDICT, json=payment).json["model"]["version"] == "1"
    assert "load_failed" in logfile.read_text()
    promote("3")
    until(lambda: client.get("/ready").json["model"]["version"] == "3")
    assert not [p for p in client.get("/ready").json["problems"] if p.startswith("model")]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "../../etc"}', '{"version": null}', '{"v": 1}'])
def test_a_broken_pointer_keeps_the_old_model(client, tmp_path, content):
    pointer = tmp_path / "releases" / "processor_selector.volaris" / "champion.json"
    pointer.write_text(content)
    until(lambda: any(p.startswith("model") for p in client.get("/ready").json["problems"]))
    assert client.get("/ready").json["model"]["version"] == "1"


def test_a_new_model_learns_what_came_since_its_training(client, parts, payment, promote):
    prediction = client.post(PREDICT, json=payment).json["prediction_id"]
    event = {"prediction_id": prediction, "event_id": "e", "processor": "MIT", "status": "approved"}
    client.post("/api/v1/ml/feedback", json=event)
    until(lambda: parts.merchants.last == 1)
    promote("2")
    until(lambda: parts.merchants.get("volaris").model.version == "2")
    assert [row["outcome"] for row in parts.merchants.get("volaris").model.applied] == ["approved"]


def test_another_merchant_needs_a_policy_file_and_no_code(client, payment, tmp_path):
    (tmp_path / "merchants").mkdir()
    policy = (ROOT / "params" / "merchants" / "volaris.yaml").read_text().replace("volaris", "otra")
    (tmp_path / "merchants" / "otra.yaml").write_text(policy)
    payment["merchant_id"] = "otra"
    until(lambda: client.post(PREDICT, json=payment).status_code == 200)
    assert client.post(PREDICT, json=payment).json["decision"]["fallback_reason"] == "model_missing"


def test_a_merchant_without_any_release_is_no_warning_and_one_whose_champion_is_gone_is(
    client, payment, tmp_path, logfile, promote
):
    (tmp_path / "merchants").mkdir()
    policy = (ROOT / "params" / "merchants" / "volaris.yaml").read_text().replace("volaris", "otra")
    (tmp_path / "merchants" / "otra.yaml").write_text(policy)
    (tmp_path / "releases" / "processor_selector.volaris" / "champion.json").unlink()

    def levels():
        lines = [json.loads(line) for line in logfile.read_text().splitlines()]
        return {line["merchant"]: line["level"] for line in lines if line.get("what") == "model" and "merchant" in line}

    until(lambda: {"otra", "volaris"} <= levels().keys() and levels()["volaris"] == "warning")
    assert levels()["otra"] == "info"


def test_the_policy_of_the_home_folder_wins_and_is_followed(settings, make_app, payment, tmp_path):
    (tmp_path / "merchants").mkdir()
    (tmp_path / "merchants" / "Not a name.yaml").write_text("")  # spoils nothing
    own, theirs = tmp_path / "merchants" / "volaris.yaml", settings.params / "merchants" / "volaris.yaml"
    own.write_text(theirs.read_text().replace("id: 76", "id: 77"))
    client, numbers = make_app().test_client(), iter(range(10_000))

    def first_id():
        found = client.post(PREDICT, json={**payment, "transaction_id": f"t{next(numbers)}"}).json
        return found["ranking"][0]["processor_id"]

    assert first_id() == 77
    own.write_text(theirs.read_text().replace("id: 76", "id: 780"))
    until(lambda: first_id() == 780)
    assert any("Not a name" in text for text in client.get("/ready").json["problems"])


# -- metrics and pages -------------------------------------------------------------------------------------------------


def test_metrics_count_what_happened(client, payment):
    client.post(PREDICT, json=payment)
    client.post(PREDICT, json=payment)
    client.post(PREDICT, json={})
    text = client.get("/metrics").text
    assert f'smartrouter_requests_total{{route="{PREDICT}",status="200"}} 2.0' in text
    assert 'smartrouter_decisions_total{approach="model",fallback=""} 2.0' in text
    assert "smartrouter_predictions_replayed_total 1.0" in text
    assert 'smartrouter_problems_total{kind="invalid"} 1.0' in text
    assert f'smartrouter_request_seconds_count{{route="{PREDICT}"}} 3.0' in text


def test_the_document_lists_exactly_what_is_served(app, client):
    spec = client.get("/openapi/openapi.json").json
    assert spec["openapi"].startswith("3.1")
    served = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith(("/openapi", "/static")) and rule.rule != "/"
    }
    assert {(path, method) for path, item in spec["paths"].items() for method in item} == served
    required = spec["components"]["schemas"]["PredictRequest"]["required"]
    assert required == ["transaction_id", "merchant_id", "order", "card"]
    text = json.dumps(spec)
    for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in spec["components"]["schemas"]


def test_the_page_needs_nothing_from_elsewhere(client):
    page = client.get("/openapi").text
    assert "/api/v1/ml/feedback/batch" in page and "problem-card-number" in page and "curl -s" in page
    assert "<script" not in page and "src=" not in page and "http://127.0.0.1:8000/api" in page
    assert client.get("/openapi/").status_code == 200
    assert client.get("/").headers["Location"] == "/openapi"


# -- starting ----------------------------------------------------------------------------------------------------------


def test_the_service_refuses_to_start_where_it_could_not_serve(settings):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match="SMARTROUTER_PORT"):
            check(settings.model_copy(update={"port": port}))
    check(settings.model_copy(update={"port": port}))
    with pytest.raises(KeysRequired):
        check(settings.model_copy(update={"host": "0.0.0.0", "port": port}))
    with pytest.raises(UnknownMerchant):
        check(settings.model_copy(update={"merchant": "nobody", "port": port}))
    with pytest.raises(RateRefused):
        check(settings.model_copy(update={"rate_limit": "many", "port": port}))
    (settings.home / "outage").mkdir()
    (settings.home / "outage" / "volaris.yaml").write_text("signl: {}")
    with pytest.raises(OutageConfigRefused, match="signl"):
        check(settings.model_copy(update={"port": port}))
    (settings.home / "outage" / "volaris.yaml").unlink()
    (settings.home / "file").write_text("")
    with pytest.raises(CannotKeep, match="SMARTROUTER_HOME"):
        check(settings.model_copy(update={"home": settings.home / "file" / "var", "port": port}))


def test_the_serving_process_is_light():
    code = (
        "import sys, serve.app, serve.model, serve.run, granian; print(*sorted(m.split('.')[0] for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.split())
    heavy = {"tensorflow", "keras", "pandas", "pyarrow", "duckdb", "IPython", "jupyter", "notebook", "mlflow", "plotly"}
    heavy |= {"nbdev", "fastcore", "papermill", "sklearn", "scipy", "ydf", "snowflake", "sqlglot", "matplotlib"}
    assert not loaded & heavy


# -- small parts -------------------------------------------------------------------------------------------------------


def test_a_deadline_ends_and_threads_come_back():
    deadline = Deadline(threads=1)
    assert deadline.run(lambda: 7, time.perf_counter() + 1) == 7
    with pytest.raises(ZeroDivisionError):
        deadline.run(lambda: 1 / 0, time.perf_counter() + 1)
    with pytest.raises(TooSlow):
        deadline.run(lambda: time.sleep(0.3), time.perf_counter() + 0.02)
    with pytest.raises(Saturated):
        deadline.run(lambda: 7, time.perf_counter() + 1)
    time.sleep(0.4)
    assert deadline.run(lambda: 8, time.perf_counter() + 1) == 8
    assert (deadline.flying, deadline.stuck) == (0, 0)
    deadline.close()


def test_rates_let_a_burst_through_and_then_the_rate():
    rates = Rates("10/second")
    waits = [rates.wait("a", 100.0) for _ in range(11)]
    assert waits[:10] == [0.0] * 10 and 0 < waits[10] <= 0.1
    assert rates.wait("b", 100.0) == 0.0
    assert rates.wait("a", 100.1) == 0.0
    assert rates.wait("a", 100.1) > 0
    both = Rates("5/second;8/minute")
    assert [both.wait("a", 200.0 + n / 2) > 0 for n in range(10)] == [False] * 8 + [True] * 2
