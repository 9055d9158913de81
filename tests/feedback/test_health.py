"""Health in the store: once for each outcome, the same for all workers, all or nothing; for every database."""

import json
import multiprocessing
import random
import threading
import time
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from bench.health_bench import survive
from smartrouter.feedback import health as module
from smartrouter.feedback.health import (
    Keepers,
    Routed,
    ended_of,
    force,
    give_back,
    known_states,
    latest,
    refresh,
    reserve,
    tick,
)
from smartrouter.feedback.outcome import Feedback
from smartrouter.feedback.shared import SWEEP_S, SharedKeepers
from smartrouter.feedback.store import (
    Store,
    StoreUnavailable,
    connect_file,
    counts,
    prediction_row,
    reconcile,
    save_feedback,
    save_prediction,
    upgrade,
)
from smartrouter.feedback.tables import ROUTED
from smartrouter.outage import health as engine
from smartrouter.outage.config import load_config
from smartrouter.outage.control import Alarm
from smartrouter.outage.health import WHOLE_EVERY, UnknownProcessor, open_health
from smartrouter.outage.override import make_override
from smartrouter.outage.saved import load_parts, parts_of, save_part
from smartrouter.outage.signal import build_taxonomy
from smartrouter.outage.watch import Watch, started
from tests.conftest import ROOT

NOW = 1_776_254_400.0
CONFIG = load_config(ROOT / "params/outage/default.yaml")
CODES = ("WORLDPAY", "MIT", "ELAVON")
STATUSES = ("approved", "declined", "error")


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def place(request):
    """Where health is kept; with Redis, the rest is in SQLite."""
    return request.param


@pytest.fixture
def url(place, empty_store):
    return empty_store("postgresql" if place == "postgresql" else "sqlite")


@pytest.fixture
def open_keepers(request, place, url):
    """Start a worker: its own store, and the keeper of one merchant."""
    upgrade(url)
    made, shared = [], request.getfixturevalue("redis_url") if place == "redis" else None

    def start(**given):
        keepers = SharedKeepers(Store(url), shared, **given) if shared else Keepers(Store(url), **given)
        keepers.put("volaris", CONFIG, CODES)
        refresh(keepers)
        carry(keepers)
        made.append(keepers)
        return keepers

    yield start
    for keepers in made:
        keepers.store.close()


@pytest.fixture
def keepers(open_keepers):
    return open_keepers()


def request_of(**card):
    """The request of a payment."""
    return json.dumps({"order": {"currency": "MXN"}, "card": {"brand": "VISA", **card}})


def payment(number, **values):
    """A stored answer, WORLDPAY first; cards of many BINs."""
    row = {
        "prediction_id": f"p{number}",
        "merchant_id": "volaris",
        "transaction_id": f"tx-{number}",
        "request_hash": str(number),
        "request": request_of(bin=str(415200 + number % 90), bank=f"BANK{number % 3}"),
        "response": "{}",
        "ranking": '["WORLDPAY","MIT"]',
        "probabilities": "[0.8,0.7]",
        "approach": "model",
        "latency_ms": 1.0,
        "created_at": NOW + number,
    }
    return prediction_row(**{**row, **values})


def event(number, status="error", **values):
    code = {"declined": "05"}.get(status)
    facts = {"prediction_id": f"p{number}", "event_id": "e1", "processor": "WORLDPAY", "error_code": code, **values}
    return Feedback(status=status, **facts)


def post(keepers, number, status="error", after_s=0.8, **values):
    """Store a payment and its outcome."""
    save_prediction(keepers.store, payment(number))
    return save_feedback(keepers.store, [event(number, status, **values)], NOW + number + after_s, keepers)


def kill(keepers, first=0):
    """Let WORLDPAY fail until it is down; return the next payment's number."""
    for number in range(first, first + 20):
        post(keepers, number)
        if keepers.of["volaris"].view.controls["WORLDPAY"].mode == "down":
            return number + 1
    raise AssertionError("it never went down")


def mode(keepers, code="WORLDPAY"):
    refresh(keepers)
    return keepers.of["volaris"].view.controls[code].mode


def carry(keepers):
    """What the worker that listens does, until nothing is left to do."""
    for _ in range(2):
        keepers.swept_at = -SWEEP_S
        keepers.carry(NOW + 100)


def told_to(keepers):
    """The store's log of changes, newest first."""
    carry(keepers)
    return latest(keepers, "volaris")


def parts(keepers):
    """Everything that is kept."""
    return {part: json.loads(to_json(values)) for part, values in keepers.whole("volaris") if values is not None}


def raw_parts(keepers):
    """Every name that is kept, also of what is gone."""
    if keepers.kind == "redis":
        return [tuple(name.split("|", 1)) for name in keepers.redis.zrange("smartrouter:{volaris}:order", 0, -1)]
    with keepers.store.engine.connect() as connection:
        return connection.execute(sa.text("SELECT processor, part FROM health")).all()


def counted_in(keepers):
    """In which order outcomes moved the health: that of their ids, in Redis that of the versions which counted them."""
    if keepers.kind != "redis":
        return lambda number, row: number
    key = "smartrouter:{{volaris}}:counted:{}:{}:{}".format
    return lambda number, row: (int(keepers.redis.get(key(*row))), number)


def replayed(keepers):
    """What a fresh engine makes of the log, and what it tells."""
    told = []
    health, taxonomy = open_health(CONFIG, CODES), build_taxonomy(CONFIG.signal)
    query = "SELECT o.id, p.prediction_id, p.request, p.ranking, p.probabilities, p.health, p.created_at, f.stage,"
    query += " f.processor, f.received_at, f.body FROM outcomes o JOIN feedback f ON f.id = o.feedback_id"
    query += " JOIN predictions p ON p.prediction_id = o.prediction_id"
    place = counted_in(keepers)
    with keepers.store.engine.connect() as connection:
        rows = sorted(connection.execute(sa.text(query)), key=lambda row: place(row[0], (row[1], row[7], row[8])))
    for _, _, request, ranking, chances, known, at, *rest in rows:
        row = dict(zip(("stage", "processor", "received_at", "body"), rest, strict=True))
        ended = ended_of(Routed("volaris", request, ranking, chances, known, at), row, taxonomy)
        told += engine.outcome(health, ended, row["received_at"])
    return health, told


def written(health):
    """All that is known, in writing."""
    return [(part, to_json(save_part(health, part))) for part in parts_of(health)]


def check_replay(keepers):
    carry(keepers)
    health, _ = replayed(keepers)
    kept = open_health(CONFIG, CODES)
    assert load_parts(kept, [(part, state) for part, state in parts(keepers).items()]) == []
    assert parts_of(kept) == parts_of(health)  # segments included, the latest seen last
    assert [to_json(save_part(kept, p)) for p in parts_of(kept)] == [
        to_json(save_part(health, p)) for p in parts_of(kept)
    ]


# -- once ----------------------------------------------------------------------------------------------------------


def test_an_outage_moves_the_state_once_for_every_worker(open_keepers):
    told = []
    first, second = open_keepers(moved=lambda merchant, lines: told.extend(lines)), open_keepers()
    kill(first)
    assert mode(second) == "down" and mode(second, "MIT") == "up"
    assert [(line.key, line.before, line.after) for line in told] == [("WORLDPAY", "up", "down")]
    assert told_to(second) == told
    assert known_states(second, "volaris", NOW + 60)["WORLDPAY"].state == "down"
    assert mode(open_keepers()) == "down"  # a start in the middle of the outage
    check_replay(first)


def test_duplicates_superseded_and_unknown_outcomes_move_nothing(keepers):
    post(keepers, 1)
    before, version = parts(keepers), keepers.of["volaris"].version
    for number in range(10):
        again = [event(1), event(1, event_id=f"e{number + 2}"), event(999, event_id=f"x{number}")]
        assert save_feedback(keepers.store, again, NOW + 5, keepers) == [
            "duplicate",
            "superseded",
            "kept",
        ]
    assert (parts(keepers), keepers.of["volaris"].version) == (before, version)


def test_late_and_future_outcomes_flip_nothing(keepers):
    for number in range(20):
        save_prediction(keepers.store, payment(number))
        save_prediction(keepers.store, payment(100 + number, created_at=NOW + 90_000))
    events = [event(n) for n in (*range(20), *range(100, 120))]
    assert set(save_feedback(keepers.store, events, NOW + 3600, keepers)) == {"counted"}
    assert mode(keepers) == "up" and told_to(keepers) == []


def test_an_outcome_before_its_payment_moves_the_state_when_it_is_matched(keepers):
    early = [event(number) for number in range(8)]
    assert set(save_feedback(keepers.store, early, NOW + 8, keepers)) == {"kept"}
    assert parts(keepers) == {}
    for number in range(8):
        save_prediction(keepers.store, payment(number))
    assert mode(keepers) == "up"
    assert reconcile(keepers.store, NOW + 10, keepers) == 8
    assert mode(keepers) == "down"
    assert reconcile(keepers.store, NOW + 11, keepers) == 0


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from(STATUSES), st.sampled_from(CODES[:2]), st.integers(1, 6)),
        min_size=1,
        max_size=12,
    )
)
def test_two_workers_make_of_batches_what_one_engine_makes_of_the_log(tmp_path_factory, batches):
    url = f"sqlite:///{tmp_path_factory.mktemp('health') / 'store.db'}"
    upgrade(url)
    workers = [Keepers(Store(url)) for _ in range(2)]
    for keepers in workers:
        keepers.put("volaris", CONFIG, CODES)
    number = 0
    for worker, status, code, size in batches:
        events = []
        for _ in range(size):
            number += 1
            save_prediction(workers[worker].store, payment(number))
            events.append(event(number, status, processor=code))
        save_feedback(workers[worker].store, events, NOW + number + 0.5, workers[worker])
    check_replay(workers[0])
    for keepers in workers:
        keepers.store.close()


def test_what_is_written_in_pieces_is_whole_for_whoever_comes_late(open_keepers):
    keepers, other = open_keepers(), open_keepers()
    rng = random.Random(7)
    for number in range(WHOLE_EVERY + 40):  # 90 BINs, 64 are kept
        turn = other if number in (20, WHOLE_EVERY + 30) else keepers
        post(turn, number, "approved" if rng.random() < 0.9 else "declined")
    kept = [part for code, part in parts(keepers) if part.startswith("segment:")]
    assert len(kept) == CONFIG.segment.most
    check_replay(keepers)
    assert written(other.of["volaris"].health) != written(keepers.of["volaris"].health)  # it has not looked since
    tick(other, "volaris", {}, NOW + WHOLE_EVERY + 40)
    assert written(other.of["volaris"].health) == written(keepers.of["volaris"].health)


def test_an_attack_with_thousands_of_cards_leaves_no_more_parts_than_are_kept(open_keepers):
    keepers, behind = open_keepers(), open_keepers()
    for number in range(400):
        save_prediction(keepers.store, payment(number, request=request_of(bin=str(500_000 + number))))
        worker = behind if number == 100 else keepers
        save_feedback(worker.store, [event(number, "approved")], NOW + number + 0.8, worker)
    names = [part for code, part in raw_parts(keepers) if part.startswith("segment:")]
    assert len(names) == CONFIG.segment.most == len(keepers.of["volaris"].health.lines["WORLDPAY"].segments)
    tick(behind, "volaris", {}, NOW + 401)  # 299 segments came and 299 went since it looked
    assert written(behind.of["volaris"].health) == written(keepers.of["volaris"].health)
    check_replay(keepers)


def test_segments_that_are_forgotten_are_gone_for_everybody(open_keepers):
    keepers, other = open_keepers(), open_keepers()
    for number in range(5):
        post(keepers, number, "approved")
    tick(other, "volaris", {}, NOW + 6)
    keepers.step("volaris", lambda health: (engine.forget(health, "WORLDPAY", ""), ()))
    tick(other, "volaris", {}, NOW + 7)
    assert not other.of["volaris"].health.lines["WORLDPAY"].segments
    post(keepers, 7, "approved")
    tick(other, "volaris", {}, NOW + 9)
    assert written(other.of["volaris"].health) == written(keepers.of["volaris"].health)
    assert len([part for _, part in raw_parts(keepers) if part.startswith("segment:")]) <= 5


# -- at the same time ----------------------------------------------------------------------------------------------


def test_threads_with_the_same_outcomes_count_each_once(open_keepers):
    workers, barrier = [open_keepers() for _ in range(2)], threading.Barrier(4)
    for number in range(60):
        save_prediction(workers[0].store, payment(number))

    def send(seed):
        keepers, order = workers[seed % 2], list(range(60))
        random.Random(seed).shuffle(order)
        barrier.wait()
        for number in order:
            save_feedback(keepers.store, [event(number, STATUSES[number % 2])], NOW + 70, keepers)

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(workers[0].store)["outcomes"] == 60
    carry(workers[0])  # a worker whose threads crowd each other leaves some for later
    scores = known_states(workers[0], "volaris", NOW + 70)["WORLDPAY"].scores
    assert scores[5]["attempts"] == 60
    check_replay(workers[0])


def send_all(url, seed):
    """One worker of two that send the same outcomes in an order of their own."""
    keepers = Keepers(Store(url))
    keepers.put("volaris", CONFIG, CODES)
    order = list(range(80))
    random.Random(seed).shuffle(order)
    for number in order:
        save_feedback(keepers.store, [event(number, STATUSES[number % 2])], NOW + 90, keepers)
    keepers.store.close()


def test_processes_with_the_same_outcomes_count_each_once(tmp_path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    keepers = Keepers(Store(url))
    keepers.put("volaris", CONFIG, CODES)
    for number in range(80):
        save_prediction(keepers.store, payment(number))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(send_all, [(url, seed) for seed in range(2)])
    assert counts(keepers.store)["outcomes"] == 80
    assert known_states(keepers, "volaris", NOW + 90)["WORLDPAY"].scores[5]["attempts"] == 80
    check_replay(keepers)
    keepers.store.close()


def test_killed_workers_lose_nothing_double_nothing_and_leave_the_state_of_a_clean_run(tmp_path):
    found = survive(tmp_path, 1200, 6)
    assert found["killed"] >= 3 and found["exits"] == [0] * 4
    assert (found["acknowledged"], found["lost"], found["twice"]) == (1200, 0, 0)
    assert found["equal"] and found["transitions_equal"] and found["transitions"][:1] == ["down"]


# -- all or nothing ------------------------------------------------------------------------------------------------


def test_what_is_rolled_back_is_forgotten_here_and_there(open_keepers):
    told = []
    first, second = open_keepers(moved=lambda *lines: told.append(lines)), open_keepers()
    number = kill(first) - 1
    before, lines = parts(first), len(told)
    for attempt in range(1, 4):
        save_prediction(first.store, payment(number + attempt))
    with pytest.raises(RuntimeError), first.writing() as cursor:
        row = {"matched_id": f"p{number + 1}", "stage": "processor", "processor": "WORLDPAY", "received_at": NOW + 30}
        row["routed"] = [payment(number + 1)[name] for name in ROUTED]
        first.count(cursor, [{**row, "body": '{"status":"error"}'}], NOW + 30)
        raise RuntimeError("the process is told to stop here")
    assert parts(first) == before and len(told) == lines
    save_feedback(second.store, [event(number + 2)], NOW + 31, second)
    save_feedback(first.store, [event(number + 3)], NOW + 32, first)
    check_replay(first)


def test_an_error_in_a_step_costs_no_outcome_and_no_other_step(keepers, monkeypatch):
    failed, real = [], module.engine.outcome

    def poisoned(health, ended, now):
        told = real(health, ended, now)
        if ended.processor == "MIT":
            raise ZeroDivisionError("after all of the work")
        return told

    keepers.failed = lambda what, error: failed.append((what, type(error)))
    monkeypatch.setattr(module.engine, "outcome", poisoned)
    for number in range(3):
        save_prediction(keepers.store, payment(number))
    events = [event(0, "approved"), event(1, "approved", processor="MIT"), event(2, "approved")]
    assert save_feedback(keepers.store, events, NOW + 3, keepers) == ["counted"] * 3
    assert failed == [("outcome_moved_no_health", ZeroDivisionError)]
    scores = {code: state.scores[5]["attempts"] for code, state in known_states(keepers, "volaris", NOW + 3).items()}
    assert scores == {"WORLDPAY": 2, "MIT": 0, "ELAVON": 0}
    monkeypatch.undo()
    post(keepers, 5, "approved")
    assert known_states(keepers, "volaris", NOW + 6)["WORLDPAY"].scores[5]["attempts"] == 3


def test_outcomes_of_a_merchant_that_nobody_keeps_are_counted(keepers):
    save_prediction(keepers.store, payment(1, merchant_id="elsewhere"))
    assert save_feedback(keepers.store, [event(1)], NOW + 2, keepers) == ["counted"]
    assert parts(keepers) == {}


def test_two_merchants_in_one_batch_move_their_own_health(keepers):
    keepers.put("second", CONFIG, CODES)
    for number in range(12):
        save_prediction(keepers.store, payment(number, merchant_id=("volaris", "second")[number % 2]))
    statuses = {n: "error" if n % 2 else "approved" for n in range(12)}
    save_feedback(keepers.store, [event(n, s) for n, s in statuses.items()], NOW + 12, keepers)
    refresh(keepers)
    modes = {name: keeper.view.controls["WORLDPAY"].mode for name, keeper in keepers.of.items()}
    assert modes == {"volaris": "up", "second": "down"}
    assert told_to(keepers) == [] and len(latest(keepers, "second")) == 1


# -- time, people, probes ------------------------------------------------------------------------------------------


def test_time_writes_only_what_it_changed(keepers):
    version = keepers.of["volaris"].version
    for second in range(5):
        tick(keepers, "volaris", {}, NOW + second)
    assert keepers.of["volaris"].version == version and parts(keepers) == {}
    kill(keepers)
    now = NOW + 60
    probe = reserve(keepers, "volaris", "WORLDPAY", "", now, 0.5)
    tick(keepers, "volaris", {}, probe.deadline + 1)
    assert keepers.of["volaris"].view.controls["WORLDPAY"].probing.flying == ()  # its deadline passed


def test_silence_takes_a_processor_out_in_the_store(open_keepers):
    keepers, other = open_keepers(), open_keepers()
    for number in range(100):
        post(keepers, number, "approved")
    watches = {"WORLDPAY": Watch()}
    for number in range(100, 140):
        started(watches["WORLDPAY"], f"p{number}", NOW + number / 10 + 90, CONFIG.silence.newest)
    tick(keepers, "volaris", watches, NOW + 110)
    assert mode(other) == "down" and told_to(other)[0].why == "silence alarm"


def test_one_probe_for_all_workers_and_threads(open_keepers):
    workers = [open_keepers() for _ in range(2)]
    kill(workers[0])
    found, barrier = [], threading.Barrier(6)

    def ask(number):
        barrier.wait()
        found.append(workers[number % 2].of["volaris"].reserve("WORLDPAY", "", NOW + 60, 0.5))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (probe,) = [p for p in found if p is not None]
    assert mode(workers[1]) == "down" and workers[1].of["volaris"].view.controls["WORLDPAY"].probing.flying == (probe,)
    give_back(workers[1], "volaris", probe.id, NOW + 61)
    give_back(workers[1], "volaris", "WORLDPAY#99", NOW + 61)  # unknown: nothing
    again = reserve(workers[0], "volaris", "WORLDPAY", "", NOW + 61, 0.5)
    assert again is not None and again.id != probe.id


def test_a_probe_that_reports_is_known_by_the_stored_decision(keepers):
    number = kill(keepers)
    probe = reserve(keepers, "volaris", "WORLDPAY", "", NOW + 60, 0.5)
    known = json.dumps({"probe": probe.id, "all_down": False, "shifts": {}})
    save_prediction(keepers.store, payment(number, health=known, created_at=NOW + 60))
    save_feedback(keepers.store, [event(number, "approved")], NOW + 61, keepers)
    probing = keepers.of["volaris"].view.controls["WORLDPAY"].probing
    assert (probing.run, probing.flying) == (1, ())


def test_asking_for_a_probe_never_raises(keepers, url):
    kill(keepers)
    failed = []
    keepers.failed = lambda what, error: failed.append(what)
    assert reserve(keepers, "volaris", "NOBODY", "", NOW + 60, 0.5) is None
    assert reserve(keepers, "nobody", "WORLDPAY", "", NOW + 60, 0.5) is None
    assert keepers.lock.acquire()  # somebody else's turn, for long
    assert reserve(keepers, "volaris", "WORLDPAY", "", NOW + 60, 0.5) is None
    give_back(keepers, "volaris", "WORLDPAY#1", NOW + 60)
    keepers.lock.release()
    assert failed == ["no_probe_reserved"] * 3 + ["no_probe_given_back"]
    assert reserve(keepers, "volaris", "WORLDPAY", "", NOW + 60, 0.5) is not None


def test_what_people_force_is_shared_audited_and_ends(open_keepers):
    keepers, other = open_keepers(), open_keepers()
    override = make_override("down", who="ana", reason="announced", now=NOW, until=NOW + 60)
    told = force(keepers, "volaris", "MIT", override, NOW)
    assert [(line.before, line.after, line.incident) for line in told] == [("up", "down", "")]
    refresh(other)
    assert other.of["volaris"].view.controls["MIT"].override == override
    with pytest.raises(UnknownProcessor):
        force(keepers, "volaris", "NOBODY", override, NOW)
    tick(other, "volaris", {}, NOW + 61)
    refresh(keepers)
    assert keepers.of["volaris"].view.controls["MIT"].override is None
    assert [line.why for line in told_to(keepers)] == ["override over", "override"]


def test_changed_parameters_start_fresh_what_they_concern_and_leave_states(open_keepers):
    failed = []
    keepers = open_keepers(failed=lambda what, error: failed.append(what))
    number = kill(keepers)
    technical = CONFIG.technical.model_copy(update={"severities": (0.9, 0.1), "weights": (0.5, 0.5)})
    keepers.put("volaris", CONFIG.model_copy(update={"technical": technical}), (*CODES, "NEW"))
    assert keepers.of["volaris"].view.controls["WORLDPAY"].mode == "down"  # at once, before any refresh
    assert mode(keepers) == "down" and mode(keepers, "NEW") == "up"
    post(keepers, number, "approved")
    assert failed == ["health_starts_fresh"]
    post(keepers, number + 1, "approved")
    assert failed == ["health_starts_fresh"]


# -- the store is gone ---------------------------------------------------------------------------------------------


def test_a_store_that_is_gone_leaves_the_view_and_is_told(tmp_path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    failed = []
    keepers = Keepers(Store(url), failed=lambda what, error: failed.append(what))
    keepers.put("volaris", CONFIG, CODES)
    kill(keepers)
    fresh_at = keepers.fresh_at
    keepers.store.close()
    assert mode(keepers) == "down" and keepers.fresh_at == fresh_at
    assert failed == ["health_not_read"]
    assert reserve(keepers, "volaris", "WORLDPAY", "", NOW + 60, 0.5) is None
    with pytest.raises(StoreUnavailable):
        tick(keepers, "volaris", {}, NOW + 60)


def test_a_locked_store_keeps_nobody_long_from_a_probe(tmp_path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    keepers = Keepers(Store(url))
    keepers.put("volaris", CONFIG, CODES)
    kill(keepers)
    other = connect_file(tmp_path / "store.db")
    other.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    assert reserve(keepers, "volaris", "WORLDPAY", "", NOW + 60, 0.5) is None
    assert time.monotonic() - start < 1.0
    other.execute("ROLLBACK")
    other.close()
    assert reserve(keepers, "volaris", "WORLDPAY", "", NOW + 60, 0.5) is not None
    keepers.store.close()


# -- what an outcome says ------------------------------------------------------------------------------------------


def ended(row, **values):
    routed = Routed(*(payment(7, **values)[name] for name in Routed._fields))
    row = {
        "stage": "processor",
        "processor": "WORLDPAY",
        "received_at": NOW + 30,
        "body": '{"status":"approved"}',
        **row,
    }
    return ended_of(routed, row, build_taxonomy(CONFIG.signal))


@pytest.mark.parametrize(
    ("row", "started_at"),
    [
        ({}, NOW + 7),
        ({"body": '{"status":"approved","latency_ms":900}'}, NOW + 7),  # its own decision says it exactly
        ({"processor": "MIT"}, NOW + 7),
        ({"processor": "MIT", "body": '{"status":"approved","latency_ms":900}'}, NOW + 29.1),
        ({"stage": "retry", "body": '{"status":"approved","latency_ms":900}'}, NOW + 29.1),
        ({"processor": "MIT", "body": '{"status":"approved","latency_ms":600000}'}, NOW + 7),
    ],
)
def test_when_an_attempt_began(row, started_at):
    assert ended(row).started == started_at
    assert ended(row).dated == (started_at != NOW + 7 or "processor" not in row or "latency" in row.get("body", ""))


def test_only_the_first_processor_reports_a_probe():
    known = '{"probe":"WORLDPAY#3","all_down":false,"shifts":{"MIT":-1.0}}'
    assert ended({}, health=known).probe == "WORLDPAY#3"
    assert ended({"processor": "MIT"}, health=known).probe == ""
    assert ended({"stage": "retry"}, health=known).probe == ""
    assert ended({"processor": "MIT"}, health=known).p == pytest.approx(0.8638, abs=1e-4)
    assert ended({"processor": "ELAVON"}).p is None


# -- odd outcomes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "wanted"), [("brand_not_supported", "up"), ("not_requested", "down")])
def test_a_merchant_may_route_against_us_but_not_blame_a_processor_that_takes_no_such_card(keepers, reason, wanted):
    told = json.dumps({"excluded": [{"processor": "ELAVON", "reason": reason, "since": None}]})
    for number in range(12):
        save_prediction(keepers.store, payment(number, response=told))
        one = event(number, processor="ELAVON", latency_ms=700.0)
        assert save_feedback(keepers.store, [one], NOW + number + 0.8, keepers) == ["counted"]
    assert mode(keepers, "ELAVON") == wanted and counts(keepers.store)["outcomes"] == 12
    assert mode(keepers) == mode(keepers, "MIT") == "up"


def test_the_senders_date_neither_ages_nor_renews_an_outcome(keepers):
    just_now, long_ago = datetime.fromtimestamp(NOW, UTC), datetime(1970, 1, 1, tzinfo=UTC)
    for number in range(20):
        save_prediction(keepers.store, payment(number, created_at=NOW - 86_400 + number))
        save_feedback(keepers.store, [event(number, occurred_at=just_now)], NOW + number, keepers)
    assert mode(keepers) == "up", "yesterday's payments, whatever their date says"
    for number in range(20, 30):
        post(keepers, number, occurred_at=long_ago)
    assert mode(keepers) == "down", "a wrong clock at the sender hides no outage"


def test_what_fails_at_one_processor_is_one_incident_for_every_worker(open_keepers):
    first, second = open_keepers(), open_keepers()

    def fail(keepers, name, now):
        alarm = Alarm("technical", 3, 3)
        keepers.step("volaris", lambda health: (None, engine.moved(health, "WORLDPAY", name, alarm, now)))

    fail(first, "MXN:415231", NOW)
    fail(second, "MXN:415232", NOW + 1)
    fail(first, "", NOW + 2)
    told = told_to(open_keepers())
    assert [line.evidence["segments"] for line in told] == [{"down": 2}, {"down": 2}, {"down": 1}]
    assert {line.incident for line in told} == {f"WORLDPAY@{NOW:.3f}"}
