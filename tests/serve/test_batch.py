"""A file of requests is ranked as the service ranks it, whole or not at all."""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import serve.batch
from serve.batch import RequestsRefused, off_history, rank_file
from smartrouter.core.files import CannotWrite

FACTS = ("ranking", "excluded", "decision", "model")


@dataclass
class StandIn:
    """A model that ranks by the order it is given."""

    known_until: float = 0.0
    pause_s: float = 0.0
    name: str = "processor_selector.volaris"
    version: str = "1"
    learnt: tuple = ("WORLDPAY", "MIT", "ELAVON")
    created_at: float = 0.0
    feature_contract: str = "stand-in"

    def probabilities(self, request, processors, now_ms):
        time.sleep(self.pause_s)
        return np.linspace(0.9, 0.5, len(processors))


@pytest.fixture
def payments(payment):
    """Two hundred payments of several brands, currencies and retries."""
    made = []
    for i in range(200):
        currency = ("MXN", "USD", "COP")[i % 3]
        brand = "AMEX" if i % 10 == 9 else ("VISA", "MASTERCARD")[i % 2]
        order = {"amount": 100 + 37 * i, "currency": currency}
        made.append({**payment, "transaction_id": f"tx-{i}", "order": order, "card": {"bin": "415231", "brand": brand}})
    return made


@pytest.fixture
def given(tmp_path, payments):
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in payments))
    return path


def test_the_file_gets_the_answers_of_the_service(settings, given, payments, tmp_path):
    from serve.app import create_app

    done = rank_file(given, tmp_path / "out.jsonl", settings)
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (done.answers, done.by_model) == (200, 0) and [a["transaction_id"] for a in answers] == [
        p["transaction_id"] for p in payments
    ]
    assert {a["decision"]["approach"] for a in answers} == {"rules", "hard_rule"}
    assert not any(a["stored"] for a in answers)
    app = create_app(settings)
    try:
        client = app.test_client()
        for payment, answer in zip(payments[:30], answers, strict=False):
            live = client.post("/api/v1/ml/predict", json=payment).get_json()
            assert {k: live[k] for k in FACTS} == {k: answer[k] for k in FACTS}
    finally:
        app.extensions["smartrouter"].close()


def test_nothing_is_recorded(settings, given, tmp_path):
    from smartrouter.feedback.store import Store, counts

    rank_file(given, tmp_path / "out.jsonl", settings)
    store = Store(settings.store, settings.durability)
    try:
        assert counts(store)["predictions"] == 0
    finally:
        store.close()


def test_the_same_file_gets_the_same_answers(settings, given, tmp_path):
    at, texts = datetime(2026, 4, 1, 12, tzinfo=UTC), []
    for name in ("a", "b"):
        rank_file(given, tmp_path / name, settings, at=at)
        answers = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        texts.append([{k: a[k] for k in FACTS} for a in answers])
    assert texts[0] == texts[1]


def test_a_bad_line_refuses_the_file_and_names_every_line(settings, given, payment, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("what was there\n")
    number = " ".join(["4111"] + ["1111"] * 3)
    bad = ["{", json.dumps({**payment, "colour": "blue"}), json.dumps({**payment, "transaction_id": number}), "[]"]
    bad.append(json.dumps({**payment, "merchant_id": "nobody"}))
    given.write_text(given.read_text() + "".join(line + "\n" for line in bad))
    with pytest.raises(RequestsRefused) as refused:
        rank_file(given, out, settings)
    said = str(refused.value)
    assert all(f"line {n}:" in said for n in range(201, 206)) and "$.colour" in said and "1111 1111" not in said
    assert "line 201: not JSON (Expecting property name" in said and "column" not in said
    assert out.read_text() == "what was there\n" and not list(tmp_path.glob(".out*"))


def test_a_file_without_requests_is_refused(settings, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(RequestsRefused, match="no request"):
        rank_file(empty, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named(settings, given, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="file"):
        rank_file(given, tmp_path / "file" / "out.jsonl", settings)


def test_a_moment_before_the_end_of_the_history_is_called_a_what_if(settings, given, promote, tmp_path, monkeypatch):
    known = datetime(2026, 4, 1, 12, tzinfo=UTC)
    promote("1")
    monkeypatch.setattr(serve.batch, "load_model", lambda folder: StandIn(known_until=known.timestamp()))
    for at, warnings in ((None, 0), (known, 0), (known - timedelta(hours=1), 1)):
        told = []
        done = rank_file(given, tmp_path / "out.jsonl", settings, told.append, at)
        told = [line for line in told if "what-if" in line]
        assert done.answers == 200 and len(told) == warnings
    assert "2026-04-01T11:00:00+00:00" in told[0] and "2026-04-01T12:00:00+00:00" in told[0]


def test_a_moment_long_after_the_newest_outcome_is_said(settings, given, promote, tmp_path, monkeypatch):
    known = datetime(2026, 4, 1, 12, tzinfo=UTC)
    promote("1")
    monkeypatch.setattr(serve.batch, "load_model", lambda folder: StandIn(known_until=known.timestamp()))
    for days, warnings in ((0, 0), (1, 0), (3, 1)):
        told = []
        rank_file(given, tmp_path / "out.jsonl", settings, told.append, known + timedelta(days=days))
        told = [line for line in told if "newest outcome" in line]
        assert len(told) == warnings
    assert told[0].startswith("volaris: asked about 2026-04-04T12:00:00+00:00") and "3.0 days" in told[0]


def test_feedback_makes_the_history_newer():
    at = datetime(2026, 4, 4, tzinfo=UTC)
    day = at.timestamp() - 86_400
    assert not list(off_history("1", day - 5 * 86_400, day, at)) and list(off_history("1", 0.0, day - 1, at))


def test_what_could_not_be_loaded_is_one_line_and_only_of_merchants_asked_for(settings, given, tmp_path):
    (tmp_path / "merchants").mkdir()
    policy = (settings.params / "merchants" / "volaris.yaml").read_text().replace("volaris", "otra")
    (tmp_path / "merchants" / "otra.yaml").write_text(policy)
    told = []
    rank_file(given, tmp_path / "out.jsonl", settings, told.append)
    assert len(told) == 1 and told[0].startswith("volaris: ") and "no champion at" in told[0]


def test_a_slow_model_is_waited_for(settings, given, promote, tmp_path, monkeypatch, payments):
    """Over HTTP the deadline turns a slow model into rules; nobody waits for a line of a file."""

    promote("1")
    monkeypatch.setattr(serve.batch, "load_model", lambda folder: StandIn(pause_s=0.06))
    given.write_text("".join(json.dumps(p) + "\n" for p in payments[:6]))
    done = rank_file(given, tmp_path / "out.jsonl", settings)
    assert done.by_model == done.answers == 6
