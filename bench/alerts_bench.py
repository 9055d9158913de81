"""Alerts while their target is down: is everything told afterwards, and do payments notice?

    python -m bench.alerts_bench

The real server (Granian, two workers, embedded store) with two webhooks as targets: one that is always up, and one that
fails. Two runs. Delivery: it is down for ten minutes, five of silence (connections are taken and never answered) and
five of 503, while a state changes every five seconds. Latency: payments are predicted at a steady rate, in phases with
it up and with it down in turn, so that a busy machine hits both alike.
"""

import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from bench.http_load import Load, Report, address_of, post, steady
from bench.parts import HOME, release_for_service, row, say
from bench.serve_bench import RATE, ROOT, bodies, server
from smartrouter.core.settings import Settings
from smartrouter.feedback.tables import TRANSITIONS, open_engine
from smartrouter.monitor.outbox import ALERTS
from smartrouter.rules.policy import load_policy

DOWN_S = 600.0
EVERY_S = 5.0  # between two changes
PHASE_S, PAIRS = 15.0, 6  # of load, up and down in turn
CHANGES = ("down", "recovering", "down", "recovering", "up", "end")  # of one incident
PATIENCE_S = 120.0  # until all is told


class Stub:
    """A webhook: `up`, `silent` or `refusing`; remembers what it took."""

    def __init__(self) -> None:
        self.mode, self.took, self.tries = "up", [], 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.tries += 1
                if stub.mode == "silent":
                    return time.sleep(30)
                if stub.mode == "up":
                    stub.took.append(said)
                self.send_response(200 if stub.mode == "up" else 503)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"json://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def told(self) -> set[tuple[str, int]]:
        """(incident, transition) of all that it was told; a span may name ids of other incidents, which do no harm."""
        pattern = re.compile(r"Incident (\S+), transitions? (\d+)(?: to (\d+))?\.")
        found = [pattern.search(said["message"]).groups() for said in self.took]
        return {(name, n) for name, first, last in found for n in range(int(first), int(last or first) + 1)}


def changes() -> Iterator[dict[str, Any]]:
    """Endless state changes of two processors in turn."""
    number = 0
    while True:
        key = ("WORLDPAY", "MIT")[number % 2]
        step, incident = number // 2 % len(CHANGES), number // 2 // len(CHANGES)
        closes = CHANGES[step] == "end"
        yield {
            "merchant_id": "volaris",
            "key": key,
            "incident": f"{key}@{incident}",
            "before": "up" if closes or not step else CHANGES[step - 1],
            "after": "up" if closes else CHANGES[step],
            "why": "bench",
            "at": time.time(),
            "evidence": "{}",
            "closes": closes,
        }
        number += 1


class Writer:
    """Writes a change every few seconds while it runs, and ends its incidents at its own end."""

    def __init__(self, store: str) -> None:
        self.engine, self.stop, self.wrote = open_engine(store), threading.Event(), set[tuple[str, int]]()
        self.thread = threading.Thread(target=self.work, daemon=True)

    def work(self) -> None:
        """One change at a time."""
        for count, change in enumerate(changes(), 1):
            with self.engine.begin() as connection:
                number = connection.execute(TRANSITIONS.insert(), change).inserted_primary_key[0]
            self.wrote.add((f"volaris/{change['incident']}", number))
            if self.stop.wait(EVERY_S) and count % (2 * len(CHANGES)) == 0:
                return

    def finish(self) -> None:
        """Stop and wait."""
        self.stop.set()
        self.thread.join()


@contextmanager
def running(always: Stub, sometimes: Stub) -> Iterator[tuple[str, Writer]]:
    """A server that tells both, once both have joined: its URL, and a writer into its store."""
    home = HOME / "serve"
    if not (home / "releases").is_dir():
        release_for_service(home)
    alerts = f"{always.url}/always {sometimes.url}/sometimes"
    settings = Settings(home=home, params=ROOT / "params", alerts=alerts)
    with tempfile.TemporaryDirectory(prefix="smartrouter-bench-") as folder, server(Path(folder), settings) as url:
        writer = Writer(f"sqlite:///{Path(folder) / 'store.db'}")
        both = sa.select(sa.func.count()).select_from(ALERTS).where(ALERTS.c.incident == "")
        limit = time.monotonic() + PATIENCE_S
        while time.monotonic() < limit:
            with writer.engine.connect() as connection:
                if connection.execute(both).scalar_one() == 2:
                    break
            time.sleep(0.2)
        yield url, writer


def delivery(down_s: float = DOWN_S) -> dict[str, Any]:
    """Whether everything is told to a target that was down for `down_s` seconds, and when."""
    always, sometimes = Stub(), Stub()
    with running(always, sometimes) as (_, writer):
        sometimes.mode = "silent"
        writer.thread.start()
        time.sleep(down_s / 2)
        sometimes.mode = "refusing"
        time.sleep(down_s / 2)
        writer.finish()
        meanwhile, sometimes.mode, up_at = len(always.told() & writer.wrote), "up", time.monotonic()
        while not writer.wrote <= sometimes.told() & always.told() and time.monotonic() - up_at < PATIENCE_S:
            time.sleep(0.2)
        waited_s = time.monotonic() - up_at
    order = [said["type"] for said in sometimes.took if "WORLDPAY@0," in said["message"]]
    return {
        "down_s": down_s,
        "changes": len(writer.wrote),
        "missing": len(writer.wrote - sometimes.told()),
        "missing at the other": len(writer.wrote - always.told()),
        "told to the other meanwhile": meanwhile,
        "messages": len(sometimes.took),
        "messages to the other": len(always.took),
        "tries while down": sometimes.tries - len(sometimes.took),
        "kinds of the first incident": order,
        "waited_s": round(waited_s, 1),
    }


def latency(rate: float = RATE, pairs: int = PAIRS) -> dict[str, Any]:
    """Latency of predict with the target up and with it down, in turn."""
    always, sometimes = Stub(), Stub()
    payments = bodies(load_policy("volaris", ROOT / "params"))
    found: dict[str, list[Report]] = {"up": [], "down": []}
    with running(always, sometimes) as (url, writer):

        def load(number: int, seconds: float) -> Report:
            path = f"{url}/api/v1/ml/predict"
            return steady(Load(address_of(url), post(path, payments, first=number * 10**6)), rate, seconds)

        load(1, 3.0)  # warm up
        writer.thread.start()
        for pair in range(pairs):
            for way in ("up", "down"):
                sometimes.mode = way if way == "up" else ("silent", "refusing")[pair % 2]
                found[way].append(load(2 * pair + (way == "down") + 2, PHASE_S))
        writer.finish()
    return {
        "rate": rate,
        "tries while down": sometimes.tries - len(sometimes.took),
        "errors": sum(report.errors for reports in found.values() for report in reports),
        **{f"p50 {way}": [r.p50_ms for r in reports] for way, reports in found.items()},
        **{f"p99 {way}": [r.p99_ms for r in reports] for way, reports in found.items()},
    }


def alerts() -> list[dict[str, Any]]:
    """The rows of the table."""
    told, speed = delivery(), latency()
    say(str(told | speed))
    missing = told["missing"] + told["missing at the other"]
    first = f"all {told['changes']} within {told['waited_s']} s in {told['messages']} messages"
    up, down = (float(np.median(speed[f"p99 {way}"])) for way in ("up", "down"))
    spread = float(np.subtract(*np.percentile(speed["p99 up"], [75, 25])))
    return [
        row(
            f"alerts, a target down for {told['down_s']:.0f} s, {told['changes']} state changes: told afterwards",
            "all",
            first if not missing else f"{missing} missing",
            missing == 0,
        ),
        row(
            f"predict at {speed['rate']:.0f}/s with an alert target down, median p99 of {PAIRS} phases",
            "as with it up: within the quartiles' distance of its phases, or 1 ms",
            f"{down:.2f} ms against {up:.2f} ms (distance {spread:.2f} ms), {speed['errors']} errors",
            down - up <= max(spread, 1.0) and not speed["errors"],
        ),
    ]


if __name__ == "__main__":
    print(json.dumps({**delivery(), **latency()}, indent=1))
