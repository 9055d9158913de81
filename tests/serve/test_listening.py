"""Who listens to what is not answered: one worker of all, from the store alone, also after it took over."""

import threading
import time

import pytest

from serve.health import LATE_S, Listening, chosen, open_keepers
from serve.logs import Log
from serve.metrics import Metrics
from smartrouter.feedback.health import latest, refresh
from smartrouter.feedback.outcome import Feedback
from smartrouter.feedback.store import Store, prediction_row, save_feedback, save_prediction, upgrade
from smartrouter.outage.config import load_config
from tests.conftest import ROOT

NOW = 1_776_254_400.0
CONFIG = load_config(ROOT / "params/outage/default.yaml")


@pytest.fixture
def open_listening(tmp_path):
    """Build a worker's listener over one store; no thread runs."""
    url, made = f"sqlite:///{tmp_path / 'store.db'}", []
    upgrade(url)

    def build():
        log, metrics = Log("error"), Metrics()
        keepers = open_keepers(Store(url), log, metrics)
        keepers.put("volaris", CONFIG, ("WORLDPAY", "MIT"))
        made.append(keepers)
        return Listening(keepers, log, metrics)

    yield build
    for keepers in made:
        keepers.store.close()


@pytest.fixture
def listening(open_listening):
    return open_listening()


def sent(listening, number, at, code="WORLDPAY", merchant="volaris"):
    """Store a payment that was sent."""
    row = prediction_row(
        prediction_id=f"p{number}",
        merchant_id=merchant,
        transaction_id=f"tx-{number}",
        request_hash="",
        request="{}",
        response="{}",
        ranking=f'["{code}"]',
        probabilities="[0.8]",
        approach="rules",
        latency_ms=1.0,
        created_at=at,
    )
    save_prediction(listening.store, row)


def answer(listening, number, now, code="WORLDPAY", status="approved"):
    """Store its outcome."""
    event = Feedback(prediction_id=f"p{number}", event_id="e1", processor=code, status=status)
    assert save_feedback(listening.store, [event], now, listening.keepers) == ["counted"]


def waiting(listening):
    """Ids of payments that are waited for."""
    found = listening.watches.get("volaris", {})
    return sorted(name for watch in found.values() for name in watch.open)


def test_payments_are_waited_for_until_any_outcome_comes(listening):
    listening.follow(NOW)
    sent(listening, 1, NOW + 0.1)
    sent(listening, 2, NOW + 0.2, "MIT")
    sent(listening, 3, NOW + 0.3)
    sent(listening, 4, NOW + 0.4, merchant="elsewhere")
    listening.follow(NOW + 0.5)
    assert waiting(listening) == ["p1", "p2", "p3"]
    answer(listening, 1, NOW + 1)
    answer(listening, 2, NOW + 1, "WORLDPAY")  # the merchant went elsewhere
    listening.follow(NOW + 1.25)
    assert waiting(listening) == ["p3"]
    listening.follow(NOW + 1.5)  # what was read twice counts once
    assert waiting(listening) == ["p3"]


def test_an_outcome_that_is_read_before_its_payment_ends_the_wait(listening):
    listening.follow(NOW)
    listening.end("p1", NOW + 0.2)  # committed between the two readings
    sent(listening, 1, NOW + 0.1)
    listening.follow(NOW + 0.5)
    assert waiting(listening) == [] and listening.early == {}


def test_a_payment_that_is_stored_late_is_not_missed(listening):
    listening.follow(NOW)
    listening.follow(NOW + 2)
    sent(listening, 1, NOW + 2 - LATE_S + 0.5)
    listening.follow(NOW + 2.25)
    assert waiting(listening) == ["p1"]


def test_who_takes_over_knows_what_is_open_and_what_is_answered(open_listening):
    first, second = open_listening(), open_listening()
    first.follow(NOW)
    for number in range(40):
        sent(first, number, NOW + number)
        if number % 2:
            answer(first, number, NOW + number + 0.5)
    first.follow(NOW + 41)
    second.follow(NOW + 41)
    assert waiting(second) == [f"p{n}" for n in sorted(range(0, 40, 2), key=str)]
    answer(second, 0, NOW + 42)
    second.follow(NOW + 42)
    assert "p0" not in waiting(second)


def test_what_is_old_is_forgotten(listening):
    listening.follow(NOW)
    sent(listening, 1, NOW)
    listening.turn(NOW + 0.25)
    listening.end("p-unknown", NOW + 0.3)
    late = NOW + CONFIG.silence.horizon_s + 2 * LATE_S
    for second in range(3):
        listening.turn(late + second)
    assert (waiting(listening), listening.sent, listening.early) == ([], {}, {})


def test_silence_alone_takes_a_processor_out(listening):
    for number in range(100):
        sent(listening, number, NOW + number / 10)
        answer(listening, number, NOW + number / 10 + 0.8)
    listening.turn(NOW + 11)
    for number in range(100, 160):
        sent(listening, number, NOW + 1 + number / 10)
        listening.turn(NOW + 1 + number / 10)
    (line,) = latest(listening.keepers, "volaris")
    assert (line.key, line.after, line.why) == ("WORLDPAY", "down", "silence alarm")
    assert line.at < NOW + 11 + 3.6  # ten payments a second that nobody answers
    refresh(listening.keepers)
    assert listening.keepers.of["volaris"].view.controls["WORLDPAY"].mode == "down"


def test_one_is_chosen_and_another_when_that_one_ends(open_listening):
    store, other = (open_listening().store for _ in range(2))
    stop, turns = threading.Event(), []

    def wait():
        with chosen(other, stop) as ours:
            turns.append(ours)

    with chosen(store, threading.Event()) as ours:
        assert ours
        waiting_one = threading.Thread(target=wait)
        waiting_one.start()
        time.sleep(0.1)
        assert turns == []
    waiting_one.join(timeout=10)
    assert turns == [True]
    with chosen(store, stop):
        stop.set()
        wait()
    assert turns == [True, False]
