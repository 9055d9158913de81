"""The processors' health in Redis: what a step costs, how often it is computed again, how soon others see it.

python -m bench.main --part redis      # a minute; starts a redis-server of its own
"""

import multiprocessing
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import redis

from bench import parts
from bench.health_bench import CODES, CONFIG, arrived, outcome, payments
from smartrouter.feedback import shared
from smartrouter.feedback.health import Routed, ended_of, force, refresh
from smartrouter.feedback.shared import Counted, SharedKeepers, connect, submit
from smartrouter.feedback.store import Store, StoreUnavailable, feedback_row, upgrade
from smartrouter.outage.override import make_override
from smartrouter.outage.signal import build_taxonomy

KNOWN, MEASURED = 4000, 1000  # outcomes before, so that every table of the engine is full; outcomes a worker then times
PACED_S = 0.04  # between two outcomes of a worker where four together have 100 a second
LOOK_S = 0.04  # between two looks of another worker, as in the service
CHANGES = 60  # changes of state whose way to another worker is timed


@contextmanager
def redis_running() -> Iterator[tuple[str, str]]:
    """A server that appends to its file as one in production would; (store URL, Redis URL)."""
    with tempfile.TemporaryDirectory(prefix="smartrouter-bench-") as folder:
        place, store = f"unix://{folder}/redis.sock", f"sqlite:///{folder}/store.db"
        options = ["--port", "0", "--unixsocket", f"{folder}/redis.sock", "--dir", folder, "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "everysec"]
        server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        try:
            while not answers(place):
                time.sleep(0.02)
            upgrade(store)
            yield store, place
        finally:
            server.terminate()
            server.wait()


def answers(place: str) -> bool:
    """Whether a server takes commands."""
    try:
        return bool(connect(place).ping())
    except redis.RedisError:
        return False


def on_their_way(count: int) -> list[Counted]:
    """Outcomes as the store would hand them over."""
    taxonomy, found = build_taxonomy(CONFIG.signal), []
    for number, row in enumerate(payments(count)):
        came = feedback_row(outcome(row, number, count), arrived(number)) | {"matched_id": row["prediction_id"]}
        routed = Routed(*(row[name] for name in Routed._fields))
        key = f"{row['prediction_id']}:{came['stage']}:{came['processor']}"
        found.append(Counted("volaris", key, ended_of(routed, came, taxonomy), arrived(number)))
    return found


def worker(urls: tuple[str, str]) -> SharedKeepers:
    """What a worker of the service holds."""
    keepers = SharedKeepers(Store(urls[0]), urls[1])
    keepers.put("volaris", CONFIG, CODES)
    return keepers


def timed_steps(urls: tuple[str, str], lines: list[Counted], pause_s: float) -> dict[str, Any]:
    """Submit outcomes one by one; seconds of each, steps computed again, and outcomes left for later."""
    keepers, seconds, again, left = worker(urls), [], [0], 0
    learn = shared.take_over

    def counting(*given: Any) -> None:
        again[0] += bool(given[3])  # a step that was undone; without, it only read what is new
        learn(*given)

    shared.take_over = counting
    keepers.whole("volaris")  # connected
    for line in lines:
        time.sleep(pause_s)
        began = time.perf_counter()
        try:
            submit(keepers, [line])
        except StoreUnavailable:
            left += 1
        seconds.append(time.perf_counter() - began)
    shared.take_over = learn
    return {"seconds": seconds, "again": again[0], "left": left}


def together(urls: tuple[str, str], shares: list[list[Counted]], pause_s: float) -> dict[str, Any]:
    """The same by several processes at once."""
    with multiprocessing.get_context("spawn").Pool(len(shares)) as pool:
        found = pool.starmap(timed_steps, [(urls, share, pause_s) for share in shares])
    return {
        "seconds": [s for one in found for s in one["seconds"]],
        "again": sum(one["again"] for one in found),
        "left": sum(one["left"] for one in found),
    }


def sights(urls: tuple[str, str]) -> list[float]:
    """Seconds from a change of state at one worker until decisions of another see it."""
    first, second, stop, found = worker(urls), worker(urls), threading.Event(), []

    def look() -> None:
        while not stop.wait(LOOK_S):
            refresh(second)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(CHANGES):
        now, state = 2e9 + number, ("down", "up")[number % 2]
        force(first, "volaris", "MIT", make_override(state, who="bench", reason="bench", now=now, until=now + 60), now)
        began = time.perf_counter()
        while (held := second.of["volaris"].view.controls["MIT"].override) is None or held.since != now:
            time.sleep(0.0005)
        found.append(time.perf_counter() - began)
    stop.set()
    thread.join()
    return found


def told(what: str, bar: str, found: dict[str, Any], most_ms: float | None) -> dict[str, Any]:
    """A row of the table."""
    p50, p99 = np.percentile(np.array(found["seconds"]) * 1000, [50, 99])
    steps = len(found["seconds"])
    text = f"p50 {p50:.3f} ms, p99 {p99:.3f} ms over {steps:,}, computed again {found['again'] / steps:.3f} a step, "
    text += f"{found['left']} left for later, load {os.getloadavg()[0]:.1f}"
    return parts.row(what, bar, text, None if most_ms is None else p99 <= most_ms)


def shared_health() -> list[dict[str, Any]]:
    """Steps of one worker, of four at full speed, of four at 100 outcomes a second; and how soon a change is seen."""
    if not shutil.which("redis-server"):
        return [parts.row("health in Redis", "-", "redis-server is not installed", None)]
    lines = on_their_way(KNOWN + 9 * MEASURED)
    rest, paced = lines[KNOWN:], MEASURED // 4
    with redis_running() as urls:
        submit(worker(urls), lines[:KNOWN])
        alone = timed_steps(urls, rest[:MEASURED], 0.0)
        four = together(urls, [rest[MEASURED + n : 5 * MEASURED : 4] for n in range(4)], 0.0)
        slowly = together(urls, [rest[5 * MEASURED + n : 5 * MEASURED + 4 * paced : 4] for n in range(4)], PACED_S)
        seen = sights(urls)
    most = max(seen) * 1000
    text = f"p50 {np.median(seen) * 1000:.0f} ms, most {most:.0f} ms over {len(seen)}, load {os.getloadavg()[0]:.1f}"
    return [
        told("a step of the health in Redis, one worker", "p99 <= 1 ms", alone, 1.0),
        told("the same, four workers at 100 outcomes a second", "p99 <= 2 ms", slowly, 2.0),
        told("the same, four workers at full speed", "", four, None),
        parts.row("a change of state in Redis is seen by another worker", "<= 100 ms", text, most <= 100),
    ]
