"""Health in Redis: what it adds to the contract of test_health: losing races, losing Redis, losing what Redis held."""

import multiprocessing
import socket
import threading

import pytest
from pydantic_core import to_json

from smartrouter.feedback import store as store_module
from smartrouter.feedback.health import known_states, latest, refresh, reserve, tick
from smartrouter.feedback.outcome import Feedback
from smartrouter.feedback.shared import (
    COUNTED_S,
    SWEEP_S,
    TRIES,
    HealthUrlRefused,
    SharedKeepers,
    connect,
    moved_to,
)
from smartrouter.feedback.store import Store, StoreUnavailable, counts, save_feedback, save_prediction, upgrade
from smartrouter.outage.health import open_health
from smartrouter.outage.saved import load_parts, parts_of, save_part
from tests.feedback.test_health import (
    CODES,
    CONFIG,
    NOW,
    STATUSES,
    carry,
    check_replay,
    event,
    kill,
    mode,
    parts,
    payment,
    post,
    replayed,
    told_to,
)


@pytest.fixture
def url(tmp_path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    return url


def worker(url, place, **given):
    keepers = SharedKeepers(Store(url), place, **given)
    keepers.put("volaris", CONFIG, CODES)
    refresh(keepers)
    return keepers


@pytest.fixture
def start(url, redis_server):
    """Start a worker, as on one of several hosts."""
    made = []

    def start(**given):
        made.append(worker(url, redis_server.url, **given))
        carry(made[-1])
        return made[-1]

    yield start
    for keepers in made:
        keepers.store.close()
        keepers.redis.close()


def attempts(keepers, code="WORLDPAY"):
    return known_states(keepers, "volaris", NOW + 100)[code].scores[15]["attempts"]


# -- races ---------------------------------------------------------------------------------------------------------


def send_all(url, place, seed, barrier_of):
    """One host of several: the same outcomes as the others, in an order of its own, and a share of its own."""
    keepers = worker(url, place)
    for place_of in range(120):
        number = (place_of * 7 + seed * 40) % 120
        code = CODES[number % 2]
        status = "error" if code == "WORLDPAY" and number > 60 else STATUSES[number % 2]
        save_feedback(keepers.store, [event(number, status, processor=code)], NOW + 90, keepers)
    keepers.store.close()


def test_hosts_that_race_lose_and_double_nothing(url, redis_url):
    first = worker(url, redis_url)
    carry(first)
    for number in range(120):
        save_prediction(first.store, payment(number, created_at=NOW + 89))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(send_all, [(url, redis_url, seed, None) for seed in range(3)])
    assert counts(first.store)["outcomes"] == 120
    check_replay(first)
    assert attempts(first) + attempts(first, "MIT") == 120
    _, told = replayed(first)
    assert told and latest(first, "volaris") == told[::-1]  # each once, in the order of versions
    first.store.close()


def test_who_loses_a_race_computes_again_on_what_the_winner_wrote(start):
    slow, fast = start(), start()
    for number in range(8):
        post(slow, number, "approved")
    ran = []

    def do(health):
        ran.append(len(ran))
        if len(ran) < 4:
            post(fast, 10 + len(ran), "approved")  # somebody is faster, three times
        health.gap = f"gap{len(ran)}"
        health.dirty.add(("", "gap"))
        return len(ran), ()

    assert slow.step("volaris", do) == 4
    assert parts(fast)["", "gap"] == "gap4" and attempts(fast) == 11
    check_engine_is_store(slow)


def check_engine_is_store(keepers):
    """What the worker knows is what is kept."""
    known, kept = keepers.of["volaris"].health, open_health(CONFIG, CODES)
    assert load_parts(kept, parts(keepers).items()) == []
    assert [(part, to_json(save_part(kept, part))) for part in parts_of(kept)] == [
        (part, to_json(save_part(known, part))) for part in parts_of(known)
    ]


def test_who_always_loses_gives_up_and_loses_nothing(start):
    slow, fast = start(), start()
    numbers = iter(range(10, 10 + 2 * TRIES))

    def do(health):
        post(fast, next(numbers), "approved")
        health.dirty.add(("", "gap"))
        return None, ()

    with pytest.raises(StoreUnavailable):
        slow.step("volaris", do)
    assert attempts(slow) == TRIES
    post(slow, 1, "approved")
    check_replay(slow)


def test_a_step_that_is_computed_again_leaves_the_order_of_segments(start):
    slow, fast = start(), start()
    for number in range(200):
        post((slow, fast)[number % 2], number, "approved")  # each finds that the other was faster
    check_replay(slow)


# -- Redis is away -------------------------------------------------------------------------------------------------


def test_while_redis_is_away_feedback_is_durable_and_states_stay(start, redis_server):
    told, failed = [], []
    keepers = start(failed=lambda what, error: failed.append(what), moved=lambda m, lines: told.extend(lines))
    other = start()
    number = kill(keepers)
    refresh(other)
    redis_server.stop()
    for more in range(number, number + 30):
        assert post(keepers, more, "approved", processor="MIT") == ["counted"]
    assert mode(keepers) == "down" and mode(other) == "down"
    assert reserve(keepers, "volaris", "WORLDPAY", "", NOW + 60, 0.5) is None
    with pytest.raises(StoreUnavailable):
        tick(keepers, "volaris", {}, NOW + 60)
    assert {"outcomes_wait", "health_not_read", "no_probe_reserved"} == set(failed)
    redis_server.start()
    keepers.failures.in_a_row = 0
    assert mode(keepers) == "down" and attempts(keepers, "MIT") == 0
    carry(keepers)
    assert attempts(keepers, "MIT") == 30
    carry(other)
    assert attempts(other, "MIT") == 30 and len(told) == 1 == len(told_to(other))
    check_replay(other)


def test_an_outcome_whose_worker_died_between_store_and_redis_is_carried_over(start):
    keepers = start()
    for number in range(3):
        post(keepers, number, "approved")
    save_prediction(keepers.store, payment(3))
    assert save_feedback(keepers.store, [event(3, "approved")], NOW + 4) == ["counted"]  # and then the lights went out
    assert attempts(keepers) == 3
    carry(keepers)
    carry(keepers)
    assert attempts(keepers) == 4
    check_replay(keepers)


def test_outcomes_that_waited_too_long_are_counted_and_flip_nothing(start):
    keepers = start()
    for number in range(20):
        save_prediction(keepers.store, payment(number))
        save_feedback(keepers.store, [event(number)], NOW + number + 1)
    for _ in range(2):
        keepers.swept_at = -SWEEP_S
        keepers.carry(NOW + 30 + CONFIG.watch.stale_s)
    assert mode(keepers) == "up" and told_to(keepers) == []
    states = known_states(keepers, "volaris", NOW + 31 + CONFIG.watch.stale_s)
    assert states["WORLDPAY"].scores[5]["attempts"] == 20


def test_what_may_have_been_forgotten_is_counted_no_second_time(start):
    keepers = start()
    for number in range(3):
        post(keepers, number, "approved")
    keys = [*keepers.redis.scan_iter("*counted:*")]
    assert len(keys) == 3 and all(0 < keepers.redis.ttl(key) <= COUNTED_S for key in keys)
    keepers.redis.delete(*keys)  # their hour is over
    moved_to(keepers, 0)  # and whoever carries over had stopped before them
    for _ in range(2):
        keepers.swept_at = -SWEEP_S
        keepers.carry(NOW + COUNTED_S)
    assert attempts(keepers) == 3


def test_what_came_before_the_first_worker_is_nobodys_business(url, redis_url):
    store = Store(url)
    for number in range(20):
        save_prediction(store, payment(number))
        save_feedback(store, [event(number)], NOW + number + 1)
    keepers = worker(url, redis_url)
    carry(keepers)
    carry(keepers)
    assert parts(keepers) == {}
    store.close()


def test_a_redis_that_never_answers_is_asked_three_times(url, monkeypatch):
    monkeypatch.setattr(store_module, "REST_S", 1e9)
    with socket.create_server(("127.0.0.1", 0)) as hole:
        hole.setblocking(False)
        keepers = SharedKeepers(Store(url), f"redis://:hunter2@127.0.0.1:{hole.getsockname()[1]}/0")
        told = []
        keepers.failed = lambda what, error: told.append(str(error))
        keepers.put("volaris", CONFIG, CODES)
        for number in range(30):
            assert post(keepers, number) == ["counted"]
        tried = 0
        while True:
            try:
                hole.accept()[0].close()
            except BlockingIOError:
                break
            tried += 1
    assert tried == 3 and len(told) == 30
    assert not any("hunter2" in text for text in told)
    keepers.store.close()


# -- Redis forgets -------------------------------------------------------------------------------------------------


def test_a_redis_that_comes_back_empty_is_told_the_states(start, redis_server):
    told = []
    keepers, other = start(moved=lambda m, lines: told.extend(lines)), start()
    number = kill(keepers)
    carry(other)
    refresh(other)
    redis_server.client().flushall()
    assert mode(keepers) == "down" and mode(other) == "down"  # as far as is known
    tick(other, "volaris", {}, NOW + 31)
    assert parts(other)["WORLDPAY", "control"][0]["mode"] == "down"
    post(keepers, number, "approved", processor="MIT")
    assert mode(keepers) == "down" and mode(start()) == "down"
    assert attempts(other, "MIT") == 1 and attempts(other) == 0
    assert len(told) == 1


def test_a_redis_that_restarts_from_an_older_file_is_not_mistaken_for_the_latest(start, redis_server):
    first, second = start(), start()
    for number in range(5):
        post(first, number, "approved")
    client = redis_server.client()
    client.close()
    raw = connect(redis_server.url)
    raw.connection_pool.connection_kwargs["decode_responses"] = False
    older = {key: raw.dump(key) for key in raw.keys()}  # noqa: SIM118
    for number in range(5, 8):
        post(first, number, "approved", processor="ELAVON")  # these are lost
    raw.flushall()
    for key, value in older.items():
        raw.restore(key, 0, value)
    for number in range(8, 11):
        post(second, number, "approved", processor="MIT")  # as many versions as were lost
    assert first.of["volaris"].version == second.of["volaris"].version
    post(first, 11, "approved")
    assert (attempts(first), attempts(first, "MIT"), attempts(first, "ELAVON")) == (6, 3, 0)
    check_engine_is_store(first)


# -- told ----------------------------------------------------------------------------------------------------------


def test_what_is_told_is_carried_over_once_whoever_carries(start):
    workers = [start() for _ in range(3)]
    kill(workers[0])
    barrier = threading.Barrier(3)

    def carry_on(keepers):
        barrier.wait()
        for _ in range(3):
            keepers.carry(NOW + 30)

    threads = [threading.Thread(target=carry_on, args=(keepers,)) for keepers in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line.after for line in latest(workers[0], "volaris")] == ["down"]


# -- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "memcached://:hunter2@cache",
        "hunter2",
        "http://user:hunter2@host",
        "redis://:hunter2@host:port/0",
        "redis://:hunter2@host:6379/0?socket_timeout=hunter2",
        "redis+hunter2hunter2hunter2://host",
    ],
)
def test_a_url_that_names_no_redis_is_refused_without_repeating_it(url):
    with pytest.raises(HealthUrlRefused) as caught:
        connect(url)
    assert "SMARTROUTER_HEALTH" in str(caught.value) and "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@127.0.0.1:1/0", "rediss://127.0.0.1:1", "unix:///nowhere/redis.sock"]
)
def test_an_address_where_nothing_listens_is_no_fault_of_the_url(url, tmp_path):
    place, failed = f"sqlite:///{tmp_path / 'store.db'}", []
    upgrade(place)
    keepers = SharedKeepers(Store(place), url, failed=lambda what, error: failed.append((what, str(error))))
    keepers.put("volaris", CONFIG, CODES)
    refresh(keepers)
    assert failed[0][0] == "health_not_read" and "hunter2" not in failed[0][1]
    keepers.store.close()


def test_a_wrong_password_is_in_no_error(redis_server, url):
    client = redis_server.client()
    client.config_set("requirepass", "sesame")
    failed = []
    keepers = SharedKeepers(Store(url), redis_server.url.replace("unix://", "unix://:hunter2@"))
    keepers.failed = lambda what, error: failed.append(str(error))
    keepers.put("volaris", CONFIG, CODES)
    refresh(keepers)
    assert failed and "hunter2" not in failed[0] and "Redis" in failed[0]
    keepers.store.close()


def test_feedback_of_a_batch_moves_fifty_at_a_time(start):
    keepers = start()
    for number in range(130):
        save_prediction(keepers.store, payment(number))
    events = [
        Feedback(prediction_id=f"p{n}", event_id="e1", processor="WORLDPAY", status="approved") for n in range(130)
    ]
    save_feedback(keepers.store, events, NOW + 130, keepers)
    assert keepers.of["volaris"].version == 3
    check_replay(keepers)
