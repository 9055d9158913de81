"""Predict over HTTP on the real server: closed loop, steady rate, and an empty Flask route beside it in the same run.

    python -m bench.serve_bench

The server runs as in production (Granian, two workers, embedded store, access log to a file) with the champion that
lies in SMARTROUTER_HOME, on a store of its own. Afterwards every answer is looked for in the store by its id.
"""

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.http_load import Load, Report, closed_loop, get, post, steady
from smartrouter.core.settings import PREFIX, Settings
from smartrouter.rules.policy import MerchantPolicy, load_policy

ROOT = Path(__file__).resolve().parents[1]
IN_FLIGHT, RATE = 20, 345.0
BODIES = 512
BANKS = ("BBVA", "BANAMEX", "SANTANDER", "BANORTE", "HSBC", "AZTECA", "INBURSA", "SCOTIABANK")
PLACES = ("MEX", "CUN", "GDL", "TIJ", "MTY", "LAX", "BOG", "GUA")


def worker_app() -> Callable[..., Any]:
    """The real application, and beside it an empty Flask application at /empty."""
    from flask import Flask

    from serve.app import worker_app as real

    service, empty = real(), Flask("empty")
    empty.add_url_rule("/empty", view_func=lambda: "")

    def dispatch(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        return (empty if environ["PATH_INFO"] == "/empty" else service)(environ, start)

    return dispatch


def bodies(policy: MerchantPolicy, count: int = BODIES, seed: int = 7) -> list[bytes]:
    """Payments as a merchant sends them, each with the place of its number left open."""
    rng = random.Random(seed)
    ways = [(b, c) for p in policy.processors for b in sorted(p.brands) for c in sorted(p.currencies)]
    made = []
    for _ in range(count):
        brand, currency = rng.choice(ways) if rng.random() < 0.3 else (rng.choice(("VISA", "MASTERCARD")), "MXN")
        body = {
            "transaction_id": "tx-{id}",
            "merchant_id": policy.merchant_id,
            "model_type": "processor_selector",
            "order": {
                "order_id": f"o-{rng.randrange(10**9)}",
                "amount": round(rng.lognormvariate(7.6, 0.8), 2),
                "currency": currency,
                "order_type": rng.choice(("flight", "ancillary")),
                "mcc": "4511",
            },
            "card": {
                "bin": str(rng.randrange(400000, 559999)),
                "brand": brand,
                "bank": rng.choice(BANKS),
                "funding": rng.choice(("credit", "debit")),
                "country": rng.choice(("MX", "MX", "MX", "US")),
                "last_four": f"{rng.randrange(10000):04d}",
            },
            "payment": {"initiation": "CIT", "method_type": "card"},
            "attempt": {"sequence_order": 1},
            "user": {"user_id": f"u-{rng.randrange(50000)}", "is_guest": rng.random() < 0.3, "sessions": 3},
            "device": {"browser": "Chrome", "os": "Android", "device": "mobile"},
            "geo": {"city": "CDMX", "country": "MX"},
            "airline": {
                "is_international": rng.random() < 0.2,
                "origin": rng.choice(PLACES),
                "destination": rng.choice(PLACES),
                "passengers": rng.randrange(1, 6),
                "departure_at": "2026-12-01T12:00:00Z",
            },
        }
        if rng.random() < 0.15:
            body["attempt"] = {
                "sequence_order": 2,
                "previous": [
                    {"processor": "WORLDPAY", "error_code": "51", "hard_soft": "soft", "at": "2026-04-15T18:00:00Z"}
                ],
            }
        made.append(json.dumps(body).encode())
    return made


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(home: Path, settings: Settings, workers: int = 2) -> Iterator[str]:
    """A running server with its own store under `home`; gives its URL and stops it at the end."""
    port = free_port()
    rules = Path(settings.home) / "rules"
    if rules.is_dir():
        shutil.copytree(rules, home / "rules")
    given = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    given |= {
        f"{PREFIX}HOME": str(home),
        f"{PREFIX}PARAMS": str(Path(settings.params).resolve()),
        f"{PREFIX}RELEASES": str(Path(settings.releases).resolve()),
        f"{PREFIX}MERCHANT": settings.merchant,
        f"{PREFIX}PORT": str(port),
        f"{PREFIX}WORKERS": str(workers),
        f"{PREFIX}DURABILITY": settings.durability,
        f"{PREFIX}ALERTS": settings.alerts,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = "from serve.run import main; from smartrouter.core.settings import Settings; "
    command += "main(Settings.load(), target='bench.serve_bench:worker_app')"
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-c", command], env=given, stdout=log, stderr=log, cwd=home)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, home / "server.log")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(url: str, process: subprocess.Popen, log: Path, patience_s: float = 60.0) -> None:
    """Return when the server answers; raise with its log when it ends or stays silent."""
    limit = time.monotonic() + patience_s
    while time.monotonic() < limit and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).read()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")


def stored(path: Path) -> tuple[set[bytes], Counter[str]]:
    """Ids of all stored predictions, and how they were made."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT prediction_id, approach, fallback_reason FROM predictions").fetchall()
    ways = Counter(approach if not why else f"{approach} ({why})" for _, approach, why in rows)
    return {identity.encode() for identity, _, _ in rows}, ways


def measure(seconds: float = 15.0, settings: Settings | None = None, workers: int = 2) -> dict[str, Any]:
    """Run everything; return the numbers and whether each bar was met."""
    settings = settings or Settings.load()
    policy = load_policy(settings.merchant, settings.params, settings.home)
    payments, answered = bodies(policy), []
    with (
        tempfile.TemporaryDirectory(prefix="smartrouter-bench-") as folder,
        server(Path(folder), settings, workers) as url,
    ):
        host, port = url.removeprefix("http://").split(":")
        address, path = (host, int(port)), f"{url}/api/v1/ml/predict"

        def note(answer: bytes) -> None:
            place = answer.find(b'"prediction_id":"') + 17
            answered.append(answer[place : place + 33])

        def predict(first: int) -> Load:
            return Load(address, post(path, payments, first=first), 200, note)

        closed_loop(predict(0), IN_FLIGHT, 2.0)  # warm up: caches of text hashes, the allocator, the page cache
        empty = closed_loop(Load(address, get(f"{url}/empty")), IN_FLIGHT, seconds / 3)
        loop = closed_loop(predict(10**6), IN_FLIGHT, seconds)
        even = steady(predict(10**8), RATE, seconds)
        empty_after = closed_loop(Load(address, get(f"{url}/empty")), IN_FLIGHT, seconds / 3)
        found, ways = stored(Path(folder) / "store.db")
    missing = len(set(answered) - found)
    return result(loop, even, (empty, empty_after), ways, len(answered), missing)


def result(
    loop: Report, even: Report, empty: tuple[Report, Report], ways: Counter[str], answered: int, missing: int
) -> dict[str, Any]:
    """The table's numbers."""
    asked, by_model = sum(ways.values()) - ways["hard_rule"], ways["model"]
    bare = sum(e.rps for e in empty) / 2
    return {
        "closed loop, 20 in flight": asdict(loop),
        "steady 345/s": asdict(even),
        "empty route": [asdict(e) for e in empty],
        "predict / empty": round(loop.rps / bare, 3) if bare else None,
        "made by": dict(ways),
        "answers": answered,
        "answers without a stored prediction": missing,
        "bars": {
            "at least 1000 requests/s": loop.rps >= 1000 and loop.errors == 0,
            "p99 within 40 ms": loop.p99_ms <= 40,
            "p95 within 10 ms at 345/s": even.p95_ms <= 10 and even.errors == 0,
            "every answer stored": missing == 0 and answered > 0,
            "at least 99 % of the answers that no hard rule made came from the model": by_model >= 0.99 * asked > 0,
        },
    }


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 15.0), indent=1))
