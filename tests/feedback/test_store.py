"""Durability, idempotency and recovery: the same suite for every database."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import time

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from smartrouter.feedback import store as module
from smartrouter.feedback.outcome import Feedback, digest
from smartrouter.feedback.store import (
    KeyReused,
    Store,
    StoreUnavailable,
    check,
    connect_file,
    counts,
    first_outcome,
    maintain,
    new_id,
    newest_outcome,
    outcomes_after,
    prediction_row,
    reconcile,
    save_feedback,
    save_prediction,
    upgrade,
)
from smartrouter.feedback.tables import METADATA, PREDICTIONS, UrlRefused, migrations_folder
from smartrouter.monitor.outbox import ALERTS

NOW = 1_776_254_400.0


def prediction(transaction="tx-1", body="{}", **values):
    return prediction_row(
        **{
            "prediction_id": new_id("p", NOW),
            "merchant_id": "volaris",
            "transaction_id": transaction,
            "request_hash": digest(body),
            "request": body,
            "response": f'{{"for":"{transaction}"}}',
            "ranking": "[]",
            "probabilities": "[]",
            "approach": "rules",
            "latency_ms": 1.0,
            "created_at": NOW,
            **values,
        }
    )


def event(prediction_id="p1", event_id="e1", **values):
    values = {"processor": "WORLDPAY", "status": "declined", "error_code": "51", **values}
    return Feedback(prediction_id=prediction_id, event_id=event_id, **values)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, empty_store):
    return empty_store(request.param)


@pytest.fixture
def store(url, open_store):
    return open_store(url)


@pytest.fixture
def file_store(empty_store, open_store):
    return open_store(empty_store("sqlite"))


# -- the same for every database -----------------------------------------------------------------------------------


def test_migrations_make_exactly_the_tables_of_the_code(store, url):
    upgrade(url)  # again
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, [METADATA, ALERTS.metadata]) == []


def test_a_store_of_the_release_before_keeps_its_rows(tmp_path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    engine, config = sa.create_engine(url), Config()
    config.set_main_option("script_location", str(migrations_folder()))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        old = {name: value for name, value in prediction().items() if name != "health"}
        names = ", ".join(old)
        connection.execute(sa.text(f"INSERT INTO predictions ({names}) VALUES (:{names.replace(', ', ', :')})"), old)
        connection.commit()
    upgrade(url)
    with engine.connect() as connection:
        assert connection.execute(sa.select(PREDICTIONS.c.transaction_id, PREDICTIONS.c.health)).all() == [
            ("tx-1", None)
        ]
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        connection.commit()
        assert connection.execute(sa.text("SELECT transaction_id FROM predictions")).all() == [("tx-1",)]
    engine.dispose()


def test_an_answer_is_given_once(store):
    first = save_prediction(store, prediction())
    again = save_prediction(store, prediction(response='{"for":"someone else"}'))
    assert (first.replayed, again.replayed) == (False, True)
    assert again.response == first.response
    assert counts(store)["predictions"] == 1


@pytest.mark.parametrize("change", [{"merchant_id": "m2"}, {"sequence": 2}, {"model_type": "retry_predictor"}])
def test_another_merchant_attempt_or_model_type_is_another_answer(store, change):
    save_prediction(store, prediction())
    assert not save_prediction(store, prediction(**change)).replayed


def test_another_body_under_the_same_key_is_refused(store):
    save_prediction(store, prediction())
    with pytest.raises(KeyReused, match="sequence_order"):
        save_prediction(store, prediction(body='{"amount":2}'))
    assert counts(store)["predictions"] == 1


def test_threads_racing_for_one_attempt_get_one_answer(store):
    answers, barrier = [], threading.Barrier(8)

    def race(number):
        row = prediction(response=f'{{"number":{number}}}')
        barrier.wait()
        answers.append(save_prediction(store, row))

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({a.response for a in answers}) == 1
    assert [a.replayed for a in answers].count(False) == 1


def test_feedback_counts_once_however_it_comes(store):
    row = prediction()
    save_prediction(store, row)
    known = row["prediction_id"]
    receipts = save_feedback(
        store,
        [
            event(known),
            event(known),
            event(known, error_code="43"),  # the same key, another content
            event(known, "e2", status="approved", error_code=None),  # the attempt was counted
            event(known, "e3", processor="MIT"),  # the next processor of the same ranking
            event(known, "e1", stage="retry"),
            event("p-unknown"),
        ],
        NOW + 5,
    )
    assert receipts == ["counted", "duplicate", "conflict", "superseded", "counted", "counted", "kept"]
    rows = outcomes_after(store, 0)
    assert [(r.processor, r.outcome) for r in rows] == [("WORLDPAY", "soft"), ("MIT", "soft"), ("WORLDPAY", "soft")]
    assert [r.id for r in rows] == sorted(r.id for r in rows)
    assert (rows[0].request, rows[0].known_at, rows[0].at) == ("{}", NOW + 5, NOW)
    assert outcomes_after(store, rows[0].id) == rows[1:]


def test_feedback_finds_its_prediction_by_attempt_or_transaction(store):
    save_prediction(store, prediction("tx-1", attempt_id="a-1"))
    save_prediction(store, prediction("tx-2", sequence=3))
    by_attempt = Feedback(attempt_id="a-1", merchant_id="volaris", event_id="e", processor="MIT", status="approved")
    by_transaction = by_attempt.model_copy(update={"attempt_id": "a-9", "transaction_id": "tx-2", "sequence_order": 3})
    other_merchant = by_attempt.model_copy(update={"merchant_id": "m2"})
    assert save_feedback(store, [by_attempt, by_transaction, other_merchant], NOW) == ["counted", "counted", "kept"]


def test_feedback_before_its_prediction_is_reconciled_once(store):
    late = Feedback(attempt_id="a-1", merchant_id="volaris", event_id="e", processor="MIT", status="approved")
    assert save_feedback(store, [event("p-late"), late], NOW) == ["kept", "kept"]
    assert reconcile(store, NOW + 9) == 0
    save_prediction(store, prediction("tx-1", prediction_id="p-late"))
    save_prediction(store, prediction("tx-2", attempt_id="a-1"))
    assert reconcile(store, NOW + 9) == 2
    assert reconcile(store, NOW + 9) == 0
    assert [r.known_at for r in outcomes_after(store, 0)] == [NOW, NOW]
    assert newest_outcome(store) == outcomes_after(store, 0)[-1].id
    assert first_outcome(store, NOW) is None
    assert save_feedback(store, [event("p-late")], NOW + 9) == ["duplicate"]


def test_the_first_new_outcome_is_found_where_times_are_out_of_order(store):
    assert (newest_outcome(store), first_outcome(store, 0.0)) == (0, None)
    for number in range(6):
        save_prediction(store, prediction(f"tx-{number}", prediction_id=f"p{number}"))
    for number, known_at in enumerate([10.0, 30.0, 20.0, 20.0, 50.0, 40.0]):
        save_feedback(store, [event(f"p{number}")], NOW + known_at)
    rows = outcomes_after(store, 0)
    assert newest_outcome(store) == rows[-1].id
    for known_until in (0.0, 9.0, 10.0, 25.0, 30.0, 45.0, 50.0, 60.0):
        new = [row.id for row in rows if row.known_at > NOW + known_until]
        assert first_outcome(store, NOW + known_until) == (new[0] if new else None)


def test_nothing_of_a_failed_transaction_stays(store):
    with pytest.raises(RuntimeError), store.writing() as cursor:
        cursor.execute(store.sql["add_prediction"], prediction())
        raise RuntimeError("the process is told to stop here")
    assert counts(store)["predictions"] == 0
    save_prediction(store, prediction())  # the connection is clean


def test_two_stores_on_one_database_see_each_other(store, url):
    other = Store(url)
    try:
        save_prediction(store, prediction())
        assert save_prediction(other, prediction()).replayed
    finally:
        other.close()


# -- SQLite ----------------------------------------------------------------------------------------------------------


def test_workers_racing_for_one_attempt_get_one_answer(file_store):
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        answers = pool.starmap(answer_all, [(str(file_store.engine.url), n) for n in range(3)])
    assert answers[0] == answers[1] == answers[2]
    assert counts(file_store)["predictions"] == 40


def answer_all(url, number):
    """One worker of three that all answer the same forty attempts."""
    store = Store(url)
    rows = [prediction(f"tx-{n}", response=f'{{"worker":{number}}}') for n in range(40)]
    answers = [save_prediction(store, row).response for row in rows]
    store.close()
    return answers


def write_until_killed(url, acknowledged):
    """Store feedback and say so only after the commit, until killed."""
    store = Store(url)
    for number in range(10**6):
        save_feedback(store, [event("p-none", f"{os.getpid()}-{number}")], NOW)
        with open(acknowledged, "ab", buffering=0) as file:
            file.write(f"{os.getpid()}-{number}\n".encode())


def test_no_acknowledged_feedback_is_lost_when_writers_are_killed(file_store, tmp_path):
    context = multiprocessing.get_context("spawn")
    url, acknowledged = str(file_store.engine.url), tmp_path / "acknowledged"
    for _ in range(2):
        writers = [context.Process(target=write_until_killed, args=(url, acknowledged)) for _ in range(2)]
        for writer in writers:
            writer.start()
        limit, size = time.monotonic() + 30, acknowledged.stat().st_size if acknowledged.exists() else 0
        while time.monotonic() < limit and (not acknowledged.exists() or acknowledged.stat().st_size < size + 2000):
            time.sleep(0.02)
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    told = set(acknowledged.read_text().split())
    with file_store.engine.connect() as connection:
        kept = {
            body for (body,) in connection.execute(sa.text("SELECT json_extract(body, '$.event_id') FROM feedback"))
        }
        assert connection.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
    assert len(told) > 100
    assert told <= kept


def test_a_full_disk_is_named_and_leaves_a_usable_store(file_store):
    (pages,) = file_store.writer.execute("PRAGMA page_count").fetchone()
    file_store.writer.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreUnavailable) as caught:
        for number in range(100):
            save_feedback(file_store, [event("p1", f"e{number}", error_code="5")] * 1, NOW)
            save_prediction(file_store, prediction(f"tx-{number}", request="x" * 3000))
    assert caught.value.cause == "full"
    before = counts(file_store)
    file_store.writer.execute("PRAGMA max_page_count=100000")
    save_prediction(file_store, prediction("after"))
    assert counts(file_store)["predictions"] == before["predictions"] + 1


def test_a_locked_store_is_named_within_its_time(file_store, tmp_path):
    other = connect_file(tmp_path / "store.db")
    other.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        save_prediction(file_store, prediction(), wait_s=0.05)
    assert caught.value.cause == "busy"
    assert time.monotonic() - start < 1.0
    with pytest.raises(StoreUnavailable):
        check(file_store, wait_s=0.01)
    other.execute("ROLLBACK")
    check(file_store)
    save_prediction(file_store, prediction())
    other.close()


def test_the_log_is_moved_into_the_file_and_cut_when_large(file_store, tmp_path, monkeypatch):
    for number in range(50):
        save_prediction(file_store, prediction(f"tx-{number}", request="x" * 3000))
    log = tmp_path / "store.db-wal"
    size = log.stat().st_size
    connection = connect_file(tmp_path / "store.db")
    assert maintain(connection, tmp_path / "store.db") == size  # passive: the log is reused, not cut
    monkeypatch.setattr(module, "WAL_LIMIT_BYTES", 1000)
    assert maintain(connection, tmp_path / "store.db") == 0
    connection.close()
    assert counts(file_store)["predictions"] == 50


def test_power_durability_flushes_every_commit(tmp_path):
    for durability, level in (("process", 1), ("power", 2)):
        connection = connect_file(tmp_path / "x.db", durability)
        assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
        connection.close()


def test_urls_that_name_no_store_are_refused(tmp_path):
    for url in ("duckdb:///x", "sqlite://", "not a url", "postgresql+nodriver://u@h/d"):
        with pytest.raises(UrlRefused):
            Store(url)


def test_a_store_without_tables_says_so(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(StoreUnavailable) as caught:
        save_prediction(store, prediction())
    assert caught.value.cause == "missing"
    store.close()


def test_ids_sort_by_time_and_never_look_like_a_card_number():
    from smartrouter.core.cards import find_card_number

    made = [new_id("p", NOW + n / 1000) for n in range(5000)]
    assert made == sorted(made) and len(set(made)) == 5000
    assert not [i for i in made if find_card_number(i)]


def test_sqlite_is_new_enough_for_what_is_used():
    assert sqlite3.sqlite_version_info >= (3, 35)  # RETURNING


def test_a_store_that_keeps_failing_turns_callers_away_at_once_and_recovers(file_store, tmp_path):
    other = connect_file(tmp_path / "store.db")
    other.execute("BEGIN IMMEDIATE")
    waits = []
    for number in range(8):
        start = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            save_feedback(file_store, [event("p1", f"e{number}")], NOW) if number % 2 else save_prediction(
                file_store, prediction(f"tx-{number}"), wait_s=0.1
            )
        assert caught.value.cause == "busy"
        waits.append(time.monotonic() - start)
        file_store.wait_s = 0.1
    assert all(wait >= 0.1 for wait in waits[:3]) and sum(wait < 0.05 for wait in waits[3:]) >= 3
    other.execute("ROLLBACK")
    other.close()
    time.sleep(0.3)
    assert save_feedback(file_store, [event()], NOW) == ["kept"]
    assert file_store.failures.in_a_row == 0
