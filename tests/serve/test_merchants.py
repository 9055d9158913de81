"""A model knows every outcome that is new to it, once, and no other is read for it."""

import json
import time

import pytest

import serve.merchants
from smartrouter.feedback.outcome import Feedback
from smartrouter.feedback.store import (
    Store,
    StoreUnavailable,
    outcomes_after,
    prediction_row,
    save_feedback,
    save_prediction,
    upgrade,
)

NOW = 1_776_254_400.0
KNOWN_AT = [10, 30, 20, 20, 50, 40, 60, 5, 70, 80, 65, 90]  # seconds after NOW, in the order of the log


def until(condition, seconds=5.0):
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    assert condition()


def tell(store, first, times):
    """Predictions of three merchants in turn, each with its outcome."""
    for number, known_at in enumerate(times, first):
        name, merchant = f"p{number}", ("volaris", "volaris", "unknown")[number % 3]
        text = json.dumps({"merchant_id": merchant, "transaction_id": name})
        blank = dict.fromkeys(("ranking", "probabilities", "response"), "[]") | {"approach": "rules", "latency_ms": 1.0}
        facts = {"merchant_id": merchant, "transaction_id": name, "request": text, "request_hash": name}
        save_prediction(store, prediction_row(prediction_id=name, created_at=NOW, **facts, **blank))
        event = Feedback(prediction_id=name, event_id="e", processor="MIT", status="approved")
        assert save_feedback(store, [event], NOW + known_at) == ["counted"]


@pytest.fixture
def store(settings, monkeypatch):
    """A log of twelve outcomes that is read in pages of three."""
    monkeypatch.setattr(serve.merchants, "PAGE", 3)
    upgrade(settings.store)
    opened = Store(settings.store)
    tell(opened, 0, KNOWN_AT)
    yield opened
    opened.close()


@pytest.fixture
def reads(monkeypatch):
    """Where each read of the log began."""
    found = []

    def noted(store, last, most):
        found.append(last)
        return outcomes_after(store, last, most)

    monkeypatch.setattr(serve.merchants, "outcomes_after", noted)
    return found


def expected(store, known_until):
    """Transactions of the outcomes that a model must be told, in their order."""
    rows = [(json.loads(row.request), row.known_at) for row in outcomes_after(store, 0)]
    return [r["transaction_id"] for r, at in rows if r["merchant_id"] == "volaris" and at > known_until]


def told(parts):
    return [row["request"]["transaction_id"] for row in parts.merchants.get("volaris").model.applied]


@pytest.mark.parametrize("known", [0, 20, 55, 85, 90, 1000])
def test_a_worker_that_starts_reads_from_the_first_new_outcome(store, make_app, promote, reads, known):
    promote("1", known_until=NOW + known)
    parts = make_app().extensions["smartrouter"]
    assert told(parts) == expected(store, NOW + known) and parts.merchants.last == len(KNOWN_AT)
    new = [place for place, at in enumerate(KNOWN_AT) if at > known]  # ids count from one
    assert reads[0] == (new[0] if new else len(KNOWN_AT))
    tell(store, 12, [100, 110])
    until(lambda: parts.merchants.last == 14)
    assert told(parts) == expected(store, NOW + known) and len(told(parts)) == len(set(told(parts)))


def test_a_promotion_reads_from_the_first_new_outcome(store, make_app, promote, reads):
    promote("1", known_until=NOW + 1000)
    parts = make_app().extensions["smartrouter"]
    reads.clear()
    promote("2", known_until=NOW + 62)
    until(lambda: parts.merchants.get("volaris").model.version == "2")
    assert told(parts) == expected(store, NOW + 62) and min(reads) == KNOWN_AT.index(70)


def test_a_first_champion_is_told_all_that_came_before_it(store, make_app, promote):
    parts = make_app().extensions["smartrouter"]
    assert parts.merchants.last == len(KNOWN_AT)
    promote("1")
    until(lambda: parts.merchants.get("volaris").model is not None)
    assert told(parts) == expected(store, 0.0)


def test_a_store_that_is_gone_at_the_start_is_read_when_it_is_back(store, make_app, promote, monkeypatch):
    gone = [True]

    def read(self, name, plain=Store.read, **values):
        if gone:
            raise StoreUnavailable("unreachable", "no answer")
        return plain(self, name, **values)

    monkeypatch.setattr(Store, "read", read)
    promote("1", known_until=NOW + 20)
    parts = make_app().extensions["smartrouter"]
    assert parts.merchants.get("volaris").model.version == "1" and told(parts) == []
    gone.clear()
    until(lambda: parts.merchants.last == len(KNOWN_AT))
    assert told(parts) == expected(store, NOW + 20)
