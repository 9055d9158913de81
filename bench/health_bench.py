"""The processors' health in the store: what it adds to a feedback transaction, and what kill -9 loses or doubles.

python -m bench.main --part feedback      # a minute
python -m bench.main --part durability    # 100,000 events, four processes, fifty kills: some minutes
"""

import gc
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from pydantic_core import to_json

from bench import parts
from smartrouter.feedback.health import Keepers, Routed, ended_of, force, latest
from smartrouter.feedback.outcome import Feedback
from smartrouter.feedback.store import (
    Store,
    StoreUnavailable,
    connect_file,
    maintain,
    prediction_row,
    save_feedback,
    upgrade,
)
from smartrouter.outage import health as engine
from smartrouter.outage.config import load_config
from smartrouter.outage.control import Transition
from smartrouter.outage.override import make_override
from smartrouter.outage.saved import load_parts, parts_of, save_part
from smartrouter.outage.signal import build_taxonomy

CONFIG = load_config(parts.ROOT / "params/outage/default.yaml")
CODES = ("WORLDPAY", "MIT", "ELAVON", "AMEX", "SANTANDER")
START, RATE = 1_776_254_400.0, 20.0  # epoch seconds, payments a second of simulated time
WORKERS, EVENTS, KILLS = 4, 100_000, 60
WAYS = ("without health", "with health", "with health, two workers in turn")
MEASURED, KNOWN = 4000, 6000  # outcomes timed; outcomes before them, so that every table of the engine is full


def payments(count: int, seed: int = 7) -> Iterator[dict[str, Any]]:
    """Stored answers of a merchant with 500 BINs and 60 issuers; WORLDPAY is dead in the middle tenth."""
    rng = random.Random(seed)
    for number in range(count):
        first, second = rng.sample(CODES, 2)
        issuer = int(60 * rng.random() ** 3)
        card = {"bin": str(400_000 + 10 * issuer + rng.randrange(10)), "brand": "VISA", "bank": f"ISSUER {issuer}"}
        yield prediction_row(
            prediction_id=f"p{number}",
            merchant_id="volaris",
            transaction_id=f"tx-{number}",
            request_hash=str(number),
            request=json.dumps({"order": {"currency": "MXN", "amount": 2450.0}, "card": card}),
            response="{}",
            ranking=json.dumps([first, second]),
            probabilities="[0.8,0.7]",
            approach="model",
            latency_ms=1.0,
            created_at=START + number / RATE,
        )


def outcome(row: dict[str, Any], number: int, count: int) -> Feedback:
    """What came of one payment: the same whoever reports it, and however often."""
    code, rng = json.loads(row["ranking"])[0], random.Random(number)
    dead = code == "WORLDPAY" and 0.45 * count <= number < 0.55 * count
    status = "error" if dead or rng.random() < 0.004 else "approved" if rng.random() < 0.8 else "declined"
    return Feedback(
        prediction_id=row["prediction_id"],
        event_id="e1",
        processor=code,
        status=status,
        error_code="05" if status == "declined" else None,
    )


def prepare(folder: Path, count: int) -> tuple[str, list[Feedback]]:
    """A store with so many answers; its URL, and the outcomes to come."""
    url = f"sqlite:///{folder / 'store.db'}"
    upgrade(url)
    rows = list(payments(count))
    with closing(Store(url)) as store, store.writing() as cursor:
        cursor.executemany(store.sql["add_prediction"], rows)
    return url, [outcome(row, number, count) for number, row in enumerate(rows)]


def worker(url: str) -> Keepers:
    """What a worker of the service holds."""
    keepers = Keepers(Store(url))
    keepers.put("volaris", CONFIG, CODES)
    return keepers


def arrived(number: int) -> float:
    """When an outcome comes, epoch seconds."""
    return START + number / RATE + 1.5


@contextmanager
def checkpointed(path: Path) -> Iterator[None]:
    """Checkpoints as the service makes them, in a process of their own."""
    context = multiprocessing.get_context("fork")
    keeper = context.Process(target=checkpoint, args=(path,), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        keeper.terminate()
        keeper.join()


def checkpoint(path: Path) -> None:
    """Move the log into the file twice a second, for ever."""
    connection = connect_file(path)
    while True:
        time.sleep(0.5)
        maintain(connection, path)


# -- what it costs ---------------------------------------------------------------------------------------------------


def feedback() -> list[dict[str, Any]]:
    """The feedback transaction without health, with it, and with it where two workers take turns."""
    with tempfile.TemporaryDirectory(prefix="smartrouter-bench-") as folder:
        places = [Path(folder) / name for name in ("alone", "both")]
        for place in places:
            place.mkdir()
        (one, events), (both, _) = (prepare(place, KNOWN + 3 * MEASURED) for place in places)
        with checkpointed(places[0] / "store.db"), checkpointed(places[1] / "store.db"):
            found = timed_ways((one, both), events)
    rows = []
    for way, bar in zip(WAYS, (None, 1.0, 1.0), strict=True):
        (p50, cpu50), (p99, cpu99), (rare, _) = np.percentile(np.array(found[way]) * 1000, [50, 99, 99.9], axis=0)
        text = f"p50 {p50:.3f} ms, p99 {p99:.3f} ms (of the processor's time {cpu50:.3f} and {cpu99:.3f}), "
        text += f"p99.9 {rare:.1f} ms over {len(found[way])}, load {os.getloadavg()[0]:.1f}"
        name = f"feedback transaction {way}"
        rows.append(parts.row(name, "" if bar is None else "p99 <= 1 ms", text, None if bar is None else p99 <= bar))
    return [*rows, seen_by_another()]


def seen_by_another(changes: int = 60) -> dict[str, Any]:
    """How long after its commit a change is in the view of another worker that answers payments meanwhile."""
    with tempfile.TemporaryDirectory(prefix="smartrouter-bench-") as folder:
        url, _ = prepare(Path(folder), 0)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        other = context.Process(target=look_on, args=(url, there), daemon=True)
        other.start()
        here.recv()
        keepers, taken = worker(url), []
        for number in range(changes):
            state, now = ("down", "up")[number % 2], time.time()
            forced = make_override(state, who="bench", reason="bench", now=now, until=now + 60)
            force(keepers, "volaris", "MIT", forced, now)
            began = time.time()
            taken.append(here.recv() - began)
            time.sleep(0.05 + 0.001 * number)
        keepers.store.close()
        other.terminate()
        other.join()
    p50, worst = np.median(taken) * 1000, max(taken) * 1000
    text = f"p50 {p50:.0f} ms, worst {worst:.0f} ms over {changes}, load {os.getloadavg()[0]:.1f}"
    return parts.row("a change is seen by another worker", "within 100 ms", text, worst <= 100)


def look_on(url: str, told: Any) -> None:
    """Tell when each change is seen, as the service's thread looks; for ever."""
    from serve.health import Looking, open_keepers
    from serve.logs import Log
    from serve.metrics import Metrics

    log, metrics = Log("error"), Metrics()
    keepers = open_keepers(Store(url), log, metrics)
    keepers.put("volaris", CONFIG, CODES)
    Looking(keepers, log, metrics).start()
    view = keepers.of["volaris"].view
    told.send(None)
    while True:
        while view is keepers.of["volaris"].view:
            time.sleep(0.001)
        view = keepers.of["volaris"].view
        told.send(time.time())


def timed_ways(urls: tuple[str, str], events: list[Feedback]) -> dict[str, list[tuple[float, float]]]:
    """Seconds, and those of the processor's time, of each transaction, the ways in turn; the last has its own store."""
    alone, first, second = worker(urls[0]), worker(urls[1]), worker(urls[1])
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    gc.collect()
    gc.freeze()  # as the service does
    for number, event in enumerate(events):
        if number < KNOWN:
            for keepers in (alone, first):
                save_feedback(keepers.store, [event], arrived(number), keepers)
            continue
        turn = number % 6
        way, keepers = WAYS[turn % 3], (alone, alone, first, alone, alone, second)[turn]
        began, worked = time.perf_counter(), time.thread_time()
        save_feedback(keepers.store, [event], arrived(number), None if way == WAYS[0] else keepers)
        found[way].append((time.perf_counter() - began, time.thread_time() - worked))
    for keepers in (alone, first, second):
        keepers.store.close()
    gc.unfreeze()
    return found


# -- whether anything is lost or doubled -------------------------------------------------------------------------------


def send(url: str, events: list[Feedback], mine: int, told: Path) -> None:
    """Send every fourth event, now and then one of another worker's; say so after the answer; go on where it ended."""
    keepers, rng = worker(url), random.Random(os.getpid())
    done = told.read_text().split() if told.exists() else []
    with open(told, "ab", buffering=0) as file:
        for number in range(mine + WORKERS * len(done), len(events), WORKERS):
            other = max(number - rng.randrange(200), 0) if rng.random() < 0.05 else number
            patient(keepers, [events[number], events[other]], arrived(number))
            file.write(b"%d\n" % number)


def patient(keepers: Keepers, events: list[Feedback], now: float) -> None:
    """Send until it is taken, as a sender does that is told 503."""
    while True:
        try:
            save_feedback(keepers.store, events, now, keepers)
            return
        except StoreUnavailable:
            time.sleep(0.05)


def survive(folder: Path, count: int, kills: int, seed: int = 7) -> dict[str, Any]:
    """Send so many events from four processes of which random ones are killed; return what came of it."""
    url, events = prepare(folder, count)
    rng, context, killed = random.Random(seed), multiprocessing.get_context("fork"), 0
    files = [folder / f"told-{n}" for n in range(WORKERS)]
    began = time.perf_counter()

    def start(n: int) -> Any:
        process = context.Process(target=send, args=(url, events, n, files[n]))
        process.start()
        return process

    with checkpointed(folder / "store.db"):
        running = [start(n) for n in range(WORKERS)]
        while any(process.is_alive() for process in running):
            done = sum(f.stat().st_size for f in files if f.exists()) / (len(str(count)) + 0.7)
            if killed < kills and done > count * killed / (kills + 1):
                n = rng.randrange(WORKERS)
                if running[n].is_alive():
                    os.kill(running[n].pid, signal.SIGKILL)
                    running[n].join()
                    killed += 1
                    running[n] = start(n)
            time.sleep(0.005)
    seconds = time.perf_counter() - began
    acknowledged = {int(line) for f in files for line in f.read_text().split()}
    return {"killed": killed, "seconds": seconds, "exits": [p.exitcode for p in running], **checked(url, acknowledged)}


def checked(url: str, acknowledged: set[int]) -> dict[str, Any]:
    """Compare what was acknowledged, what is counted and what is known with a clean run of the log."""
    keepers = worker(url)
    with keepers.store.engine.connect() as connection:
        counted = [int(i[1:]) for (i,) in connection.execute(sa.text("SELECT prediction_id FROM outcomes ORDER BY id"))]
        health, told = clean_run(connection)
    kept, rows = engine.open_health(CONFIG, CODES), keepers.store.read("health_parts", merchant_id="volaris", version=0)
    refused = load_parts(kept, [((code, part), json.loads(state)) for code, part, state in rows])
    lines = latest(keepers, "volaris", 10_000)[::-1]
    keepers.store.close()
    return {
        "acknowledged": len(acknowledged),
        "lost": len(acknowledged - set(counted)),
        "twice": len(counted) - len(set(counted)),
        "equal": not refused and everything(kept) == everything(health),
        "transitions": [line.after for line in lines],
        "transitions_equal": [(a.key, a.after, a.at) for a in lines] == [(a.key, a.after, a.at) for a in told],
    }


def everything(health: engine.Health) -> list[Any]:
    """All that is known, in writing; the order of segments included."""
    return [(part, to_json(save_part(health, part))) for part in parts_of(health)]


def clean_run(connection: sa.Connection) -> tuple[engine.Health, list[Transition]]:
    """What one engine makes of the log of outcomes, in the order of ids."""
    health, taxonomy, told = engine.open_health(CONFIG, CODES), build_taxonomy(CONFIG.signal), []
    query = "SELECT p.request, p.ranking, p.probabilities, p.health, p.created_at, f.stage, f.processor,"
    query += " f.received_at, f.body FROM outcomes o JOIN predictions p ON p.prediction_id = o.prediction_id"
    query += " JOIN feedback f ON f.id = o.feedback_id ORDER BY o.id"
    for request, ranking, chances, known, at, *rest in connection.execute(sa.text(query)):
        row = dict(zip(("stage", "processor", "received_at", "body"), rest, strict=True))
        ended = ended_of(Routed("volaris", request, ranking, chances, known, at), row, taxonomy)
        told += engine.outcome(health, ended, row["received_at"])
    return health, told


def durability() -> list[dict[str, Any]]:
    """100,000 events from four processes, of which random ones are killed."""
    with tempfile.TemporaryDirectory(prefix="smartrouter-bench-") as folder:
        found = survive(Path(folder), EVENTS, KILLS)
    text = f"{found['acknowledged']:,} acknowledged, {found['killed']} kills, "
    text += f"{found['lost']} lost, {found['twice']} twice, "
    text += f"state {'equal' if found['equal'] else 'DIFFERENT'}, transitions {', '.join(found['transitions'])} "
    text += f"{'equal' if found['transitions_equal'] else 'DIFFERENT'}, {found['seconds']:.0f} s"
    met = found["acknowledged"] == EVENTS and found["killed"] >= 50 and not found["lost"] and not found["twice"]
    met = met and found["equal"] and found["transitions_equal"]
    return [parts.row("durability of feedback and health", "0 lost, 0 twice, equal to a clean run", text, met)]
