"""The service over real releases: what training wrote is what HTTP answers, learns from and swaps."""

import json
import shutil
import time
from datetime import UTC, datetime

import numpy as np
import pytest

from serve.app import create_app
from serve.logs import Log
from serve.schemas import PredictRequest
from smartrouter.core.settings import Settings
from smartrouter.features.dataset import build, requests_of
from smartrouter.features.matrix import FEATURE_NAMES
from smartrouter.feedback.store import connect_file, outcomes_after, upgrade
from smartrouter.models import calibrate, linear, mixed
from smartrouter.models.bounds import measure
from smartrouter.models.package import Predictor, load_release, stamp, write_json, write_release
from smartrouter.rules.static import sync_rules
from smartrouter.warehouse.connect import connect
from smartrouter.warehouse.queries import attempts

PREDICT, FEEDBACK = "/api/v1/ml/predict", "/api/v1/ml/feedback"
PROCESSORS = ("WORLDPAY", "MIT", "ELAVON", "AMEX")
LEARNT = PROCESSORS[:3]
NAME = "processor_selector.volaris"
CARD = {"bin": "415231", "brand": "VISA", "bank": "BBVA", "funding": "credit", "country": "MX", "last_four": "1234"}


def payment(transaction_id: str) -> dict:
    """One person's payment by one card, as a merchant sends it."""
    return {
        "transaction_id": transaction_id,
        "merchant_id": "volaris",
        "order": {"amount": 2450.0, "currency": "MXN", "order_type": "flight"},
        "card": CARD,
        "user": {"user_id": "u-1"},
    }


def until(condition, seconds=3.0):
    """Wait for what the background thread is to do."""
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    assert condition()


@pytest.fixture(scope="module")
def table(small_warehouse):
    """All attempts of the small simulated merchant."""
    with connect(small_warehouse) as warehouse:
        return attempts(warehouse, "volaris")


@pytest.fixture(scope="module")
def made(table, small_warehouse, root, tmp_path_factory):
    """A home folder as training leaves it: two releases, version 1 promoted, the static rules at hand."""
    home = tmp_path_factory.mktemp("home")
    data = build(table, processors=PROCESSORS, learn=LEARNT, time_zone="America/Mexico_City", home_currency="MXN")
    early, middle, _ = data.splits.masks(data.at_ms)
    codes = data.X[middle][:, FEATURE_NAMES.index("processor")].astype(int)
    for version, strength in (("1", 1.0), ("2", 0.01)):
        fitted = linear.train(data.X[early], data.y[early], strength=strength, iterations=60)
        calibration = calibrate.fit(fitted.logit(data.X[middle]), data.y[middle], codes, len(PROCESSORS))
        folder = home / "releases" / NAME / version
        write_release(folder, name=NAME, fitted=fitted, calibration=calibration, data=data, learnt=LEARNT)
        stamp(folder, version)
    write_json(home / "releases" / NAME / "champion.json", {"version": "1"})
    (home / "rules").mkdir()
    with connect(small_warehouse) as warehouse:
        sync_rules(warehouse, "volaris", home / "rules" / "volaris.json")
    return home


@pytest.fixture
def home(made, tmp_path):
    """A test's own copy."""
    return shutil.copytree(made, tmp_path / "home")


@pytest.fixture
def app(home, root, tmp_path):
    """The service with the package's router and releases."""
    settings = Settings(home=home, params=root / "params", deadline_ms=5000.0)  # patient: a busy machine is no fault
    upgrade(settings.store)
    with open(tmp_path / "access.log", "ab", buffering=0) as stream:
        app = create_app(settings, log=Log("info", stream.fileno()))
        yield app
        app.extensions["smartrouter"].close()


def moment_of(home, prediction_id: str) -> int:
    """When a prediction was made, in ms."""
    with connect_file(home / "store.db") as store:
        (at,) = store.execute("SELECT created_at FROM predictions WHERE prediction_id = ?", [prediction_id]).fetchone()
    return int(at * 1000)


def by_value(root, home, more: str = "") -> None:
    """Write the merchant's own file: ranked by value, MIT by far the cheapest."""
    text = (root / "params" / "merchants" / "volaris.yaml").read_text()
    for code, fee in {"WORLDPAY": 900, "MIT": 5, "ELAVON": 400, "AMEX": 5}.items():
        fees = f"fees: {{success: {fee}, failure: 1, currency: MXN}}"
        text = text.replace(f"{{code: {code},", f"{{code: {code}, {fees},")
    (home / "merchants").mkdir()
    rates = "rates: {USD: 18.0, COP: 0.0045, CRC: 0.035, GTQ: 2.3}"
    (home / "merchants" / "volaris.yaml").write_text(f"{text}\nrank_by: value\nmargin: 0.5\n{rates}\n{more}")


def test_a_cautious_merchant_gets_lower_bounds_or_hears_that_there_are_none(made, home, table, root):
    by_value(root, home, "cautious: 0.9\n")
    settings = Settings(home=home, params=root / "params", deadline_ms=5000.0)
    upgrade(settings.store)
    app = create_app(settings)
    client = app.test_client()
    answer = client.post(PREDICT, json=payment("tx-a")).json
    assert answer["model"]["version"] == "1" and answer["decision"]["caution"] == "no_intervals"  # a linear model
    assert all("approval_low" not in line for line in answer["ranking"])
    data = build(table, processors=PROCESSORS, learn=LEARNT, time_zone="America/Mexico_City", home_currency="MXN")
    early, middle, _ = data.splits.masks(data.at_ms)
    fitted = mixed.train(data.X[early], data.y[early], trees=10, min_examples=50)
    codes = data.X[middle][:, FEATURE_NAMES.index("processor")].astype(int)
    calibration = calibrate.fit(fitted.logit(data.X[middle]), data.y[middle], codes, len(PROCESSORS))
    bounds, folder = measure(fitted, calibration, data.X[middle], data.y[middle]), home / "releases" / NAME / "4"
    made_of = {"fitted": fitted, "calibration": calibration, "data": data, "bounds": bounds}
    write_release(folder, name=NAME, learnt=LEARNT, **made_of)
    stamp(folder, "4")
    write_json(home / "releases" / NAME / "champion.json", {"version": "4"})
    until(lambda: client.get("/ready").json["model"]["version"] == "4")
    for number in range(10):
        answer = client.post(PREDICT, json=payment(f"tx-{number}")).json
        assert answer["decision"]["approach"] == "model" and answer["decision"]["caution"] == "applied"
        for line in answer["ranking"]:
            low, fee = line["approval_low"], {"WORLDPAY": 900, "MIT": 5, "ELAVON": 400}[line["processor"]]
            assert 0 < low < line["approval_probability"] < 1
            assert line["expected_value"] == pytest.approx(low * (2450 * 0.5 - fee) - (1 - low))
    app.extensions["smartrouter"].close()


def test_a_merchant_that_ranks_by_value_gets_the_values_and_others_do_not(client, home, root, tmp_path):
    assert all("expected_value" not in line for line in client.post(PREDICT, json=payment("tx-a")).json["ranking"])
    by_value(root, home)
    settings = Settings(home=home, params=root / "params", deadline_ms=5000.0)
    app = create_app(settings)
    ranking = app.test_client().post(PREDICT, json=payment("tx-b")).json["ranking"]
    app.extensions["smartrouter"].close()
    values = [line["expected_value"] for line in ranking]
    assert all("approval_low" not in line for line in ranking) and ranking[0]["processor"] == "MIT"
    assert values == sorted(values, reverse=True)
    for line in ranking:
        p, fee = line["approval_probability"], {"WORLDPAY": 900, "MIT": 5, "ELAVON": 400}[line["processor"]]
        assert line["expected_value"] == pytest.approx(p * (2450 * 0.5 - fee) - (1 - p))


def test_the_answer_is_what_the_loaded_release_says(app, client, home):
    predictor, plain = Predictor(load_release(home / "releases" / NAME / "1")), 0
    for number in range(20):
        answer = client.post(PREDICT, json=payment(f"tx-{number}")).json
        ranking = {line["processor"]: line["approval_probability"] for line in answer["ranking"]}
        assert answer["decision"]["approach"] == "model" and answer["model"] == {"name": NAME, "version": "1"}
        assert set(ranking) == set(LEARNT) and all(0 < p < 1 for p in ranking.values())
        expected = predictor.probabilities(payment(""), list(ranking), moment_of(home, answer["prediction_id"]))
        assert np.abs(expected - list(ranking.values())).max() < 1e-9
        if not answer["decision"]["explored"]:
            assert list(ranking.values()) == sorted(ranking.values(), reverse=True)
            plain += 1
    assert plain >= 10


def test_declines_move_the_live_features(app, client, home):
    live = app.extensions["smartrouter"].merchants.get("volaris").model.predictor
    later = int(time.time() * 1000) + 60_000
    row = live.release.state.features(payment(""), ("MIT",), later)
    (before,) = live.probabilities(payment(""), ("MIT",), later)
    for number in range(60):
        told = client.post(PREDICT, json=payment(f"tx-{number}")).json["prediction_id"]
        event = {"prediction_id": told, "event_id": "e", "processor": "MIT", "status": "declined", "error_code": "51"}
        assert client.post(FEEDBACK, json=event).status_code == 202
    until(lambda: client.get("/ready").json["features"]["outcomes_applied"] == 60)
    moved = live.release.state.features(payment(""), ("MIT",), later)
    fallen = {name for name, then, now in zip(FEATURE_NAMES, row[0], moved[0], strict=True) if now < then}
    assert {"rate_processor", "rate_processor_bin", "health_approval_15m", "user_approval", "card_approval"} <= fallen
    (after,) = live.probabilities(payment(""), ("MIT",), later)
    assert abs(after - before) > 0.01  # which way is the model's affair: sixty declines in a row are beyond its data
    fresh = Predictor(load_release(home / "releases" / NAME / "1"))
    for o in outcomes_after(app.extensions["smartrouter"].store, 0, 100):
        facts = {"processor": o.processor, "outcome": o.outcome, "at": o.at, "known_at": o.known_at}
        assert fresh.apply({"request": json.loads(o.request), **facts})
    assert np.array_equal(fresh.release.state.features(payment(""), ("MIT",), later), moved)


def test_a_promotion_is_followed_and_a_missing_release_is_not(app, client, home):
    def shown():
        return client.get("/ready").json

    pointer = home / "releases" / NAME / "champion.json"
    first = client.post(PREDICT, json=payment("tx-1")).json
    assert shown()["model"]["version"] == first["model"]["version"] == "1"
    write_json(pointer, {"version": "2"})
    until(lambda: shown()["model"]["version"] == "2")
    second = client.post(PREDICT, json=payment("tx-2")).json
    assert second["model"]["version"] == "2" and second["decision"]["approach"] == "model"
    chances = [{r["processor"]: r["approval_probability"] for r in answer["ranking"]} for answer in (first, second)]
    assert all(chances[0][p] != chances[1][p] for p in LEARNT)
    write_json(pointer, {"version": "3"})
    until(lambda: shown()["problems"])
    now = shown()
    assert now["status"] == "ready" and now["model"]["version"] == "2"
    assert len(now["problems"]) == 1 and "no release at" in now["problems"][0] and f"{NAME}/3" in now["problems"][0]
    assert client.post(PREDICT, json=payment("tx-3")).json["model"]["version"] == "2"


def as_json(value: object) -> str:
    """A datetime as it is sent."""
    assert isinstance(value, datetime)
    return value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC).isoformat().replace("+00:00", "Z")


def test_a_request_sent_over_http_gives_the_features_of_its_row(table, made):
    state = load_release(made / "releases" / NAME / "1").state
    rows = table.slice(table.num_rows - 1_500).to_pylist()
    asked = [(request, row["attempted_at"]) for request, row in zip(requests_of(rows), rows, strict=True)][-500:]
    assert any(request["attempt"]["previous"] for request, _ in asked)
    differing: dict[str, int] = {}
    for request, at in asked:
        sent = PredictRequest.model_validate_json(json.dumps(request, default=as_json))
        heard = json.loads(sent.model_dump_json(exclude_none=True))
        now_ms = int(at.replace(tzinfo=at.tzinfo or UTC).timestamp() * 1000)
        pair = [state.features(form, LEARNT, now_ms) for form in (request, heard)]
        for place in np.flatnonzero((pair[0] != pair[1]).any(axis=0)):
            differing[FEATURE_NAMES[place]] = differing.get(FEATURE_NAMES[place], 0) + 1
    assert differing == {}
