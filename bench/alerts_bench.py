"""Alerts while their target is down: is everything told afterwards, and do payments notice?

    python -m bench.alerts_bench

The real server (Granian, two workers, embedded store) with two targets: one that is always up, and one that is down for
ten minutes: five of silence (connections are taken and never answered) and five of 503. Meanwhile a state changes every
five seconds, and payments are predicted at a steady rate, in phases before, during and after.
"""

import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from bench.http_load import Load, closed_loop, post, steady
from bench.parts import HOME, release_for_service, row, say
from bench.serve_bench import RATE, ROOT, bodies, server
from smartrouter.core.settings import Settings
from smartrouter.feedback.tables import open_engine
from smartrouter.monitor.outbox import TRANSITIONS
from smartrouter.rules.policy import load_policy

DOWN_S = 600.0
EVERY_S = 5.0  # between two changes
PHASE_S, PHASES = 20.0, 3  # of load, in each condition
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
    """Writes a change every few seconds while it runs."""

    def __init__(self, store: str) -> None:
        self.engine, self.stop, self.wrote = open_engine(store), threading.Event(), set[tuple[str, int]]()
        TRANSITIONS.create(self.engine, checkfirst=True)
        self.thread = threading.Thread(target=self.work, daemon=True)

    def work(self) -> None:
        """One change at a time."""
        for change in changes():
            with self.engine.begin() as connection:
                number = connection.execute(TRANSITIONS.insert(), change).inserted_primary_key[0]
            self.wrote.add((f"volaris/{change['incident']}", number))
            if self.stop.wait(EVERY_S):
                return


def measure(down_s: float = DOWN_S, settings: Settings | None = None) -> dict[str, Any]:
    """Run it; return the numbers."""
    home = HOME / "serve"
    if not (home / "releases").is_dir():
        release_for_service(home)
    always, sometimes = Stub(), Stub()
    settings = settings or Settings(home=home, params=ROOT / "params")
    settings = settings.model_copy(update={"alerts": f"{always.url}/always {sometimes.url}/sometimes"})
    policy = load_policy(settings.merchant, settings.params, settings.home)
    payments, first = bodies(policy), iter(range(10**6, 10**9, 10**6))
    with tempfile.TemporaryDirectory(prefix="smartrouter-bench-") as folder, server(Path(folder), settings) as url:
        host, port = url.removeprefix("http://").split(":")

        def load() -> Load:
            return Load((host, int(port)), post(f"{url}/api/v1/ml/predict", payments, first=next(first)))

        closed_loop(load(), 20, 3.0)  # warm up
        writer = Writer(f"sqlite:///{Path(folder) / 'store.db'}")
        time.sleep(10.0)  # both targets have joined
        before = [steady(load(), RATE, PHASE_S) for _ in range(PHASES)]
        writer.thread.start()
        sometimes.mode, began, during = "silent", time.monotonic(), []
        while (spent := time.monotonic() - began) < down_s:
            sometimes.mode = "silent" if spent < down_s / 2 else "refusing"
            if len(during) < 2 * PHASES and spent >= len(during) * down_s / (2 * PHASES):
                during.append(steady(load(), RATE, min(PHASE_S, down_s / (2 * PHASES))))
            else:
                time.sleep(0.2)
        writer.stop.set()
        writer.thread.join()
        sometimes.mode, up_at = "up", time.monotonic()
        while not writer.wrote <= sometimes.told() and time.monotonic() - up_at < PATIENCE_S:
            time.sleep(0.2)
        waited = time.monotonic() - up_at
        after = [steady(load(), RATE, PHASE_S) for _ in range(PHASES)]
    return {
        "down_s": down_s,
        "changes": len(writer.wrote),
        "missing": len(writer.wrote - sometimes.told()),
        "missing at the other": len(writer.wrote - always.told()),
        "messages": len(sometimes.took),
        "messages at the other": len(always.took),
        "tries while down": sometimes.tries - len(sometimes.took),
        "waited_s": round(waited, 1),
        "errors": sum(report.errors for report in (*before, *during, *after)),
        "p50 without": [r.p50_ms for r in (*before, *after)],
        "p50 with": [r.p50_ms for r in during],
        "p99 without": [r.p99_ms for r in (*before, *after)],
        "p99 with": [r.p99_ms for r in during],
    }


def alerts() -> list[dict[str, Any]]:
    """The rows of the table."""
    found = measure()
    say(str(found))
    missing = found["missing"] + found["missing at the other"]
    told = f"{found['missing']} missing, told within {found['waited_s']} s in {found['messages']} messages"
    other = f"the other target, always up: {found['missing at the other']} missing in {found['messages at the other']}"
    without, with_ = (float(np.median(found[f"p99 {way}"])) for way in ("without", "with"))
    spread = float(max(found["p99 without"]) - min(found["p99 without"]))
    times = f"{with_:.2f} ms against {without:.2f} ms (phases without differ by {spread:.2f} ms)"
    name = f"alerts, target down for {found['down_s']:.0f} s, {found['changes']} state changes"
    return [
        row(f"{name}: told afterwards", "all", f"{told}; {other}", missing == 0),
        row(
            f"{name}: median p99 of predict at {RATE:.0f}/s",
            "unchanged: within the spread of the phases without, or 1 ms",
            f"{times}, {found['errors']} errors",
            with_ - without <= max(spread, 1.0) and not found["errors"],
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
