"""The parts of the bench: each measures one thing for real and returns rows of the table."""

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "var" / "bench"
REAL = Path(os.environ.get("PSP_ATTEMPTS", ROOT.parent / "shared" / "data" / "psp_attempts.csv"))
MILLION = 1_000_000
DAYS = 120
SEED = 7  # of the world that decisions were made on
FRESH = (11, 12)  # of worlds that no decision has looked at: the bars are held against these


def row(what: str, bar: str, measured: str, met: bool | None) -> dict[str, Any]:
    """Return one row of the table."""
    return {"what": what, "bar": bar, "measured": measured, "met": None if met is None else bool(met)}


def say(text: str) -> None:
    """Print progress."""
    print(f"bench:   {text}", file=sys.stderr, flush=True)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return (result, seconds)."""
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def percentiles(seconds: list[float]) -> str:
    """Return p50 and p99 in ms as text."""
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    return f"p50 {p50:.3f} ms, p99 {p99:.3f} ms over {len(seconds)} calls"


def build_world(attempts: int, name: str, seed: int = SEED) -> Path:
    """Return the folder of a simulated merchant of that size, built if it is not there."""
    from smartrouter.world.publish import build

    folder = HOME / (name if seed == SEED else f"{name}-{seed}")
    if not (folder / "warehouse.duckdb").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            "merchant_file": ROOT / "params/merchants/volaris.yaml",
            "world_file": ROOT / "params/world/volaris.yaml",
        }
        build(folder / "warehouse.duckdb", folder / "truth", days=DAYS, attempts=attempts, seed=seed, **files)
    return folder


def pull(folder: Path, merchant: str = "volaris") -> Any:
    """Return the attempts frame of a bench warehouse."""
    from smartrouter.warehouse.connect import connect
    from smartrouter.warehouse.queries import attempts

    with connect(f"duckdb:///{folder / 'warehouse.duckdb'}") as warehouse:
        return attempts(warehouse, merchant)


def dataset(table: Any, test: float = 0.15) -> Any:
    """Return the dataset of the simulated merchant."""
    from smartrouter.features.dataset import build
    from smartrouter.rules.policy import load_policy

    policy = load_policy("volaris", ROOT / "params")
    forced = {rule.processor for rule in policy.hard_rules}
    learn = [code for code in policy.codes if code not in forced]
    return build(
        table,
        processors=policy.codes,
        learn=learn,
        time_zone=policy.time_zone,
        home_currency=policy.currency,
        test=test,
    )


def world() -> list[dict[str, Any]]:
    """Generate and publish a million attempts."""
    shutil.rmtree(HOME / "million", ignore_errors=True)
    _, seconds = timed(lambda: build_world(MILLION, "million"))
    return [row("world, 1,000,000 attempts generated and published", "120 s", f"{seconds:.0f} s", seconds <= 120)]


def features() -> list[dict[str, Any]]:
    """Build the whole contract for a million logged attempts, and for half of them."""
    from smartrouter.features.matrix import CONTRACT

    table = pull(build_world(MILLION, "million"))
    half, half_s = timed(lambda: dataset(table.slice(0, table.num_rows // 2)))
    del half
    gc.collect()
    data, seconds = timed(lambda: dataset(table))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ratio = seconds / half_s
    size = f"{table.num_rows:,} attempts x {len(CONTRACT)} features"
    return [
        row(
            f"features offline, {size}",
            "150 s, 8 GB",
            f"{seconds:.0f} s, peak {peak:.1f} GiB",
            seconds <= 150 and peak <= 8,
        ),
        row(
            "features offline, twice the rows",
            "2.3 times",
            f"{ratio:.2f} times ({half_s:.0f} s to {seconds:.0f} s)",
            ratio <= 2.3,
        ),
        row("features offline, rows used", "", f"{len(data.y):,} learnable", None),
    ]


def request() -> list[dict[str, Any]]:
    """Features of one request x 4 processors."""
    from smartrouter.features.dataset import requests_of
    from smartrouter.features.live import freeze, thaw

    table = pull(build_world(250_000, "quarter"))
    data = dataset(table)
    state = thaw(freeze(data.outcomes, data.lookups), data.lookups)
    asked = requests_of(table.slice(table.num_rows - 5_000, 5_000).to_pylist())
    now, four = int(data.outcomes.known_ms[-1]) + 1_000, data.lookups.processors
    gc.collect()
    spent = [timed(lambda i=i: state.features(asked[i], four, now + 20 * i))[1] for i in range(5_000)][200:]
    return [
        row(
            "features, one request x 4 processors", "p99 1.5 ms", percentiles(spent), np.percentile(spent, 99) <= 0.0015
        )
    ]


def parity() -> list[dict[str, Any]]:
    """Replay 10,000 decisions live against offline."""
    from smartrouter.features.replay import replay

    table = pull(build_world(250_000, "quarter"))
    part = table.slice(0, 60_000)
    data = dataset(part)
    checked = replay(part, data, decisions=10_000, start=part.num_rows - 10_000)
    wrong = sum(checked.mismatches().values())
    return [
        row(
            f"parity, live against offline, {checked.live.size:,} values",
            "0 mismatches",
            f"{wrong} mismatches",
            wrong == 0,
        )
    ]


def processor_column() -> int:
    """Return the column of the processor's code."""
    from smartrouter.features.matrix import FEATURE_NAMES

    return FEATURE_NAMES.index("processor")


def choices(table: Any, data: Any, fitted: Any, calibration: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return (attempt ids, chosen processors) of the test period's first attempts with a choice."""
    from smartrouter.features.columns import dictionary
    from smartrouter.features.dataset import logged_matrix
    from smartrouter.rules.policy import eligible, load_policy

    policy = load_policy("volaris", ROOT / "params")
    forced = {rule.processor for rule in policy.hard_rules}
    places = np.flatnonzero(
        (data.columns["at_ms"] >= data.splits.test_ms)
        & (data.columns["n_previous"] == 0)
        & (data.columns["sequence_order"] == 1)
    )
    brand, brands = dictionary(table, "brand")
    currency, currencies = dictionary(table, "currency")
    allowed = {
        (b, c): set(eligible(policy, bn, cn)[0]) - forced
        for b, bn in enumerate(brands)
        for c, cn in enumerate(currencies)
    }
    pairs = list(zip(brand[places].tolist(), currency[places].tolist(), strict=True))
    open_ = np.array([len(allowed[p]) >= 2 for p in pairs])
    places, pairs = places[open_], [p for p, o in zip(pairs, open_, strict=True) if o]
    codes = [p for p in data.lookups.processors if p not in forced]
    scores = np.full((len(places), len(codes)), -np.inf)
    for index, code in enumerate(codes):
        mine = np.array([code in allowed[p] for p in pairs])
        number = np.full(int(mine.sum()), data.lookups.processors.index(code))
        X = logged_matrix(data.columns, places[mine], number, data.reader, data.lookups)
        scores[mine, index] = calibration.apply(fitted.logit(X), number + 1)
    ids = np.array(table["attempt_id"].take(places).to_pylist())
    return ids, np.array(codes)[scores.argmax(axis=1)]


def serve() -> list[dict[str, Any]]:
    """Predict over HTTP with a forest trained on a quarter of a million attempts; see bench.serve_bench."""
    from bench.serve_bench import measure
    from smartrouter.core.settings import Settings

    home = HOME / "serve"
    if not (home / "releases").is_dir():
        release_for_service(home)
    settings = Settings(home=home, params=ROOT / "params")
    found = measure(settings=settings)
    say(str(found))
    closed, steady, lost = (
        found["closed loop, 20 in flight"],
        found["steady 345/s"],
        found["answers without a stored prediction"],
    )
    bare = [e["rps"] for e in found["empty route"]]
    speed = f"{closed['rps']:.0f} requests/s, p50 {closed['p50_ms']:.1f} ms, p99 {closed['p99_ms']:.1f} ms"
    kept = f"{lost} of {found['answers']} answers not stored; made by {found['made by']}"
    even = f"p50 {steady['p50_ms']:.1f} ms, p95 {steady['p95_ms']:.1f} ms, p99 {steady['p99_ms']:.1f} ms"
    bars = found["bars"]
    by_model = bars["at least 99 % of the answers that no hard rule made came from the model"]
    good = bars["at least 1000 requests/s"] and bars["p99 within 40 ms"] and bars["every answer stored"] and by_model
    return [
        row(
            f"predict over HTTP, 20 in flight, durability {settings.durability}",
            "1,000 requests/s, p99 40 ms, all stored, 99 % by the model",
            f"{speed}; {kept}",
            good,
        ),
        row("predict over HTTP, steady 345/s", "p95 10 ms", even, bars["p95 within 10 ms at 345/s"]),
        row(
            "empty Flask route, same server and run",
            "",
            f"{np.mean(bare):.0f} requests/s; ratio {found['predict / empty']}",
            None,
        ),
    ]


def release_for_service(home: Path) -> None:
    """Write a forest, the rules and the champion's pointer into a home folder."""
    from smartrouter.models import calibrate, forest
    from smartrouter.models.package import stamp, write_json, write_release
    from smartrouter.rules.static import sync_rules
    from smartrouter.warehouse.connect import connect

    folder = build_world(250_000, "quarter")
    with connect(f"duckdb:///{folder / 'warehouse.duckdb'}") as warehouse:
        sync_rules(warehouse, "volaris", home / "rules" / "volaris.json")
    data = dataset(pull(folder))
    early, middle, _ = data.splits.masks(data.at_ms)
    fitted = forest.train(data.X[early], data.y[early])
    codes = data.X[middle][:, processor_column()].astype(int)
    calibration = calibrate.fit(fitted.logit(data.X[middle]), data.y[middle], codes, len(data.lookups.processors))
    name = "processor_selector.volaris"
    path = home / "releases" / name / "1"
    learnt = sorted({data.lookups.processors[code - 1] for code in np.unique(codes) if code})
    write_release(path, name=name, fitted=fitted, calibration=calibration, data=data, learnt=learnt)
    stamp(path, "1")
    write_json(home / "releases" / name / "champion.json", {"version": "1", "reason": "bench"})


def ope() -> list[dict[str, Any]]:
    """Off-policy estimates on six kinds of log whose truth is known; see bench.ope_bench."""
    from bench.ope_bench import as_rows, run

    return as_rows(run(), row)


def fresh() -> list[dict[str, Any]]:
    """A fresh clone in another folder: `make run` until the first good answer, then `make test`."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "smartrouter"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SMARTROUTER_", "VIRTUAL_ENV"))} | {
            "SMARTROUTER_PORT": "8123"
        }
        began = time.monotonic()
        with (Path(folder) / "run.log").open("w") as log:
            process = subprocess.Popen(
                ["make", "run"], cwd=clone, env=env, stdout=log, stderr=log, start_new_session=True
            )
            try:
                seconds = first_answer("http://127.0.0.1:8123", process, began)
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=30)
        if seconds is None:
            say((Path(folder) / "run.log").read_text()[-2000:])
        done, tests = timed(
            lambda: subprocess.run(["make", "test"], cwd=clone, env=env, stdout=subprocess.PIPE, text=True)
        )
        verdict = done.stdout.strip().splitlines()[-1:] or ["no output"]
    answer = f"{seconds:.0f} s" if seconds is not None else "no good answer"
    return [
        row(
            "`make run` in a fresh clone, downloads cached: first good answer",
            "5 min",
            answer,
            seconds is not None and seconds <= 300,
        ),
        row(
            "`make test`, notebooks included",
            "12 min",
            f"{tests:.0f} s: {verdict[0]}",
            done.returncode == 0 and tests <= 720,
        ),
    ]


def first_answer(base: str, process: subprocess.Popen, began: float) -> float | None:
    """Return the seconds until a model's ranking came back, None if the process ended or 15 minutes passed."""
    order, card = {"amount": 2450, "currency": "MXN"}, {"bin": "415231", "brand": "VISA"}
    payment = {"transaction_id": "bench-1", "merchant_id": "volaris", "order": order, "card": card}
    body = json.dumps(payment).encode()
    asked = urllib.request.Request(f"{base}/api/v1/ml/predict", body, {"Content-Type": "application/json"})
    while process.poll() is None and time.monotonic() - began < 900:
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                if answer.status == 200 and b'"approach":"model"' in answer.read().replace(b": ", b":"):
                    return time.monotonic() - began
        except OSError:
            pass
        time.sleep(0.5)
    return None
