"""The models: what training costs, how good and how well calibrated the champion is, what serving each family takes."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import parts

TRAINED, LATER = 240_000, 100_000  # rows of the trainer's comparison
PAIRS = 3  # A B A B A B: what else the machine does meets both
RACERS: dict[str, dict[str, Any]] = {
    "the forest family": {},
    "the forest family, half of the columns a split": {"columns_ratio": 0.5},
    "the same, and no category read as unknown, as LightGBM has it": {"columns_ratio": 0.5, "unknown_share": 0.0},
    "the trees under the route effects": {
        "trees": 200,
        "depth": 6,
        "shrinkage": 0.08,
        "min_examples": 200,
        "columns_ratio": 0.3,
    },
}
CONTENDERS = ("forest", "mixed")  # the others have not come near them on the simulated merchant, and take longer
LEAST_ROWS = 10_000  # of a processor, below which its calibration gets a test, not a threshold
ECE, ECE_PROCESSOR = 0.01, 0.02


def trainer() -> list[dict[str, Any]]:
    """Training time of our trees against LightGBM's: equal trees, leaves, shrinkage, rows in a leaf, and threads.

    On all cores by the clock, and on one thread by the time on a core: where others use the cores too, LightGBM's
    threads wait for each other and lose far more than ours, and only the second is fair.
    """
    data = parts.dataset(parts.pull(parts.build_world(parts.MILLION, "million")))
    X, y = (array[: TRAINED + LATER].copy() for array in (data.X, data.y))
    del data
    threads = sorted({1, os.cpu_count() or 1})
    return [race(name, shape, X, y, n) for name, shape in RACERS.items() for n in threads]


def race(name: str, shape: dict[str, Any], X: np.ndarray, y: np.ndarray, threads: int) -> dict[str, Any]:
    """One shape of forest against LightGBM, in interleaved pairs, and both on the rows that come after."""
    from smartrouter.models import forest

    early, later = slice(0, TRAINED), slice(TRAINED, None)
    clock, unit = (time.process_time, "s on a core") if threads == 1 else (time.perf_counter, "s")
    like_ours(forest.train(X[:1_000], y[:1_000], trees=1), 1).fit(X[:1_000], y[:1_000])  # imports are no training
    ours, theirs = [], []
    for pair in range(PAIRS):
        began = clock()
        fitted = forest.train(X[early], y[early], threads=threads, **shape)
        between = clock()
        rival = like_ours(fitted, threads).fit(X[early], y[early])
        ours.append(between - began)
        theirs.append(clock() - between)
        parts.say(f"{name}, {threads} threads, pair {pair + 1}: ours {ours[-1]:.1f}, LightGBM {theirs[-1]:.1f} {unit}")
    own = raw_loss(fitted.logit(X[later]), y[later])
    other = raw_loss(rival.predict(X[later], raw_score=True), y[later])
    ratio = float(np.median(np.array(ours) / np.array(theirs)))
    speed = f"{ratio:.2f} times (median of {PAIRS} pairs: {spelt(ours)} against {spelt(theirs)} {unit})"
    text = f"{speed}; log loss on the next {len(y) - TRAINED:,} rows {own:.5f} against {other:.5f}"
    what = f"training, {TRAINED:,} rows x {X.shape[1]} columns, {threads} threads, {name}: {told(fitted)}"
    return parts.row(what, "3 times LightGBM's, log loss no worse", text, ratio <= 3 and own <= other)


def like_ours(fitted: Any, threads: int) -> Any:
    """An untrained LightGBM of the same trees, leaves, shrinkage and rows in a leaf as a forest of ours."""
    from lightgbm import LGBMClassifier

    facts, levels = fitted.facts, int(fitted.arrays["depth"])
    shape = {"n_estimators": facts["trees"], "max_depth": levels, "num_leaves": 2**levels}
    shape |= {"learning_rate": facts["shrinkage"], "min_child_samples": facts["min_examples"]}
    return LGBMClassifier(**shape, n_jobs=threads, random_state=7, verbose=-1)


def told(fitted: Any) -> str:
    """The common shape in words."""
    facts, levels = fitted.facts, int(fitted.arrays["depth"])
    shape = f"{facts['trees']} trees of {2**levels} leaves, shrinkage {facts['shrinkage']}"
    return f"{shape}, {facts['min_examples']} rows in a leaf; ours, {facts['columns_ratio']:.0%} of the columns"


def spelt(seconds: list[float]) -> str:
    """Seconds as text."""
    return ", ".join(f"{s:.1f}" for s in seconds)


def raw_loss(z: np.ndarray, y: np.ndarray) -> float:
    """Log loss of logits, in nats."""
    return float(np.mean(np.logaddexp(0, z) - y * z))


def contenders(data: Any) -> tuple[list[Any], Any]:
    """Candidates and champion (retrain.steps.Candidate), chosen and refit as a retraining does it.

    With the parameters of params/retrain/prod.yaml, but not tuned, and without the families that have not come near.
    """
    from smartrouter.core.settings import Settings
    from smartrouter.retrain import steps
    from smartrouter.retrain.plan import begin, read_params

    values = read_params(parts.ROOT / "params/retrain/prod.yaml") | {"families": list(CONTENDERS), "tune_minutes": 0}
    job = begin(values, Settings(params=parts.ROOT / "params"))
    candidates = []
    for family in job.plan.families:
        candidates.append(steps.train_one(job, data, family))
        parts.say(f"{family} trained in {candidates[-1].seconds:.0f} s")
    chosen = steps.refit(job, data, steps.best(data, candidates))
    parts.say(f"champion {chosen.family}, refit, {chosen.seconds:.0f} s in all")
    return candidates, chosen


def lift() -> list[dict[str, Any]]:
    """Share of the achievable lift over the static rules on the last month, which no model has seen.

    On worlds that no decision was made on; `contest` does the same at a quarter of the size.
    """
    worlds = ((seed, parts.build_world(parts.MILLION, "million", seed)) for seed in parts.FRESH)
    return [row for seed, folder in worlds for row in lift_of(folder, f"1,000,000 attempts, seed {seed}")]


def lift_of(folder: Path, label: str) -> list[dict[str, Any]]:
    """Train the contenders on the months before the last, and judge them and the champion by the truth on the last."""
    from smartrouter.evaluation.metrics import score
    from smartrouter.world.truth import achievable_lift, load_truth

    table = parts.pull(folder)
    data = parts.dataset(table, test=0.25)
    truth = load_truth(folder / "truth", folder / "warehouse.duckdb")
    last = data.at_ms >= data.splits.test_ms
    candidates, chosen = contenders(data)
    rows = []
    for one in (*candidates, chosen):
        found = achievable_lift(truth, *parts.choices(table, data, one.fitted, one.calibration))
        quality = score(data.y[last], one.p_test)
        worth = f"rules {found.baseline:.4f}, model {found.policy:.4f}, oracle {found.oracle:.4f}"
        fit = f"AUC {quality.auc:.4f}, log loss {quality.log_loss:.4f}, ECE {quality.ece:.4f}"
        text = f"{found.share:.0%} of {found.achievable * 100:.2f} points ({worth}; {found.n:,} first attempts; {fit})"
        if one is not chosen:
            rows.append(parts.row(f"lift, {label}, last month, {one.family}", "", text, None))
    how = "lowest log loss on the calibration rows, then refit with them"
    what, bar = f"lift, {label}: the champion ({chosen.family}: {how})", "80 % of the achievable lift"
    rows.append(parts.row(what, bar, text, found.share >= 0.8))
    return [*rows, *calibration_of(data, chosen, label)]


def calibration_of(data: Any, chosen: Any, label: str) -> list[dict[str, Any]]:
    """Expected calibration error of the champion on the last month, in all and at each processor."""
    from smartrouter.evaluation.metrics import score

    last = data.at_ms >= data.splits.test_ms
    y, p = data.y[last], chosen.p_test
    code = data.X[last][:, parts.processor_column()].astype(int)
    whole = score(y, p)
    gap = f"said {whole.mean_probability:.4f}, came {whole.approval_rate:.4f}"
    text = f"ECE {whole.ece:.4f} ({gap}) on {whole.n:,} attempts"
    what = f"calibration, {label}: the champion, last month"
    rows = [parts.row(what, f"ECE {ECE}", text, whole.ece <= ECE)]
    for place in np.unique(code[code > 0]):
        name, mine = data.lookups.processors[place - 1], code == place
        rows.append(processor_row(f"{label}, {name}", y[mine], p[mine]))
    return rows


def processor_row(name: str, y: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """One processor's calibration: against the threshold, or against what a perfect model shows on as few rows."""
    from smartrouter.evaluation.metrics import score

    one = score(y, p)
    text = f"ECE {one.ece:.4f} (said {one.mean_probability:.4f}, came {one.approval_rate:.4f}) on {one.n:,} attempts"
    what = f"calibration, {name}"
    if one.n >= LEAST_ROWS:
        return parts.row(what, f"ECE {ECE_PROCESSOR}", text, one.ece <= ECE_PROCESSOR)
    rng = np.random.default_rng(7)
    perfect = [score(rng.random(len(p)) < p, p).ece for _ in range(200)]
    share = float(np.mean(np.array(perfect) >= one.ece))
    return parts.row(what, "test at 1 %: no worse than chance", f"{text}; p {share:.3f}", share >= 0.01)


def families() -> list[dict[str, Any]]:
    """Every family packaged: time for 4 rows, and the largest difference to its SavedModel on 10,000 rows."""
    from smartrouter.models import calibrate, deep, forest, linear, mixed, wide_deep
    from smartrouter.models.runtime import FAMILIES

    data = parts.dataset(parts.pull(parts.build_world(250_000, "quarter")))
    early, middle, _ = data.splits.masks(data.at_ms)
    X, y = data.X[early][-60_000:], data.y[early][-60_000:]
    trainers = {
        "linear": linear.train,
        "linear_split": lambda X, y: linear.train(X, y, split=True),
        "forest": forest.train,
        "mixed": mixed.train,
        "deep": deep.train,
        "wide_deep": wide_deep.train,
    }
    rows = []
    for family in FAMILIES:
        fitted, seconds = parts.timed(lambda f=family: trainers[f](X, y))
        parts.say(f"{family} trained in {seconds:.0f} s")
        codes = data.X[middle][:, parts.processor_column()].astype(int)
        raw = fitted.logit(data.X[middle])
        rows += packaged(data, fitted, calibrate.fit(raw, data.y[middle], codes, len(data.lookups.processors)))
    return rows


def packaged(data: Any, fitted: Any, calibration: Any) -> list[dict[str, Any]]:
    """One family's rows: its release is written, loaded, timed and compared with its SavedModel."""
    from smartrouter.models.package import load_release, load_tensorflow, write_release

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "release"
        made = {"name": "bench", "fitted": fitted, "calibration": calibration, "data": data}
        write_release(path, **made, learnt=data.lookups.processors)
        runtime = load_release(path).runtime
        spans = np.ascontiguousarray(data.X[-20_000:]).reshape(5_000, 4, -1)
        spent, worked = zip(*(timed_call(runtime.probabilities, four) for four in spans), strict=True)
        many = data.X[-10_000:]
        gap = np.abs(runtime.probabilities(many) - load_tensorflow(path / "saved_model")(many)).max()
    spent, worked = spent[200:], worked[200:]
    text = f"{parts.percentiles(spent)}; p99 of the time on a core {np.percentile(worked, 99) * 1000:.3f} ms"
    parity = f"packaged {fitted.family} against its SavedModel, {len(many):,} rows"
    return [
        parts.row(f"packaged {fitted.family}, 4 rows", "p99 1 ms", text, np.percentile(spent, 99) <= 0.001),
        parts.row(parity, "1e-6", f"largest {gap:.1e}", gap <= 1e-6),
    ]


def timed_call(call: Callable[[np.ndarray], Any], rows: np.ndarray) -> tuple[float, float]:
    """Seconds that passed, and seconds that this thread was on a core: a shared machine takes the thread away."""
    began, worked = time.perf_counter(), time.thread_time()
    call(rows)
    return time.perf_counter() - began, time.thread_time() - worked


SHAPES = ((4, 300, 300), (4, 150, 300), (6, 150, 100), (6, 100, 300))  # of forests on the real file


def real() -> list[dict[str, Any]]:
    """Real attempts through ingest: what forward folds choose against untuned LightGBM, last 20 % by time."""
    what, bar = "real attempts, log loss on the last 20 %", "below untuned LightGBM's"
    if not parts.REAL.is_file():
        text = f"skipped: no file {parts.REAL.name}; name it in PSP_ATTEMPTS"
        return [parts.row(what, bar, text, None)]
    from lightgbm import LGBMClassifier
    from sklearn.metrics import roc_auc_score

    data = real_data()
    last = data.at_ms >= data.splits.test_ms
    X, y, before = data.X, data.y, ~last
    used = X[before].std(axis=0) > 0  # columns that this file has at all
    rival = LGBMClassifier(verbose=-1, random_state=7, n_jobs=2).fit(X[before][:, used], y[before])
    logits = {"LightGBM": rival.predict(X[last][:, used], raw_score=True)}
    trainers = real_trainers()
    folds = forward_losses(trainers, X[before], y[before])  # the test rows choose nothing
    best = min(folds, key=lambda name: folds[name])
    logits |= {name: train(X[before], y[before]).logit(X[last]) for name, train in trainers.items()}
    rows = []
    for name, z in logits.items():
        seen = f"; {folds[name]:.4f} on five forward folds before" if name in folds else ""
        text = f"log loss {raw_loss(z, y[last]):.4f}, AUC {roc_auc_score(y[last], z):.4f}{seen}"
        rows.append(parts.row(f"real attempts, {name}", "", text, None))
    ours, theirs = raw_loss(logits[best], y[last]), raw_loss(logits["LightGBM"], y[last])
    text = f"{best} (best on the folds) {ours:.4f} against {theirs:.4f}, {int(last.sum()):,} attempts"
    return [*rows, parts.row(what, bar, text, ours < theirs)]


def real_data() -> Any:
    """The dataset of the real attempts file."""
    from smartrouter.core.settings import Settings
    from smartrouter.features.dataset import build
    from smartrouter.rules.policy import load_policy
    from smartrouter.warehouse.ingest import ingest

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        ingest(parts.REAL, parts.ROOT / "params/ingest/psp.yaml", Settings(home=home))
        policy = load_policy("psp", home)
        where = {"time_zone": policy.time_zone, "home_currency": policy.currency}
        return build(parts.pull(home, "psp"), processors=policy.codes, **where, calibrate=0.1, test=0.2)


def real_trainers() -> dict[str, Any]:
    """What may be chosen on the real file: name -> trainer."""
    from smartrouter.models import forest, linear, mixed

    forests = {
        f"forest, depth {depth}, {trees} trees, {rows} rows in a leaf": partial(
            forest.train, depth=depth, trees=trees, min_examples=rows
        )
        for depth, trees, rows in SHAPES
    }
    return forests | {"mixed": mixed.train, "linear": linear.train}


def forward_losses(trainers: dict[str, Any], X: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Mean log loss of each trainer on five folds, each trained on what came before it."""
    cuts = [(int(len(y) * share), int(len(y) * (share + 0.1))) for share in (0.5, 0.6, 0.7, 0.8, 0.9)]
    losses = {}
    for name, train in trainers.items():
        found = [raw_loss(train(X[:cut], y[:cut]).logit(X[cut:end]), y[cut:end]) for cut, end in cuts]
        losses[name] = float(np.mean(found))
        parts.say(f"{name}: {losses[name]:.5f}")
    return losses


ALONE = {"families": ["mixed"], "tune_minutes": 0}  # the champion's family without the others


def retrain() -> list[dict[str, Any]]:
    """The whole retraining of params/retrain/prod.yaml on a million attempts: time and peak memory."""
    return [retraining("all families of prod.yaml", {}, 25, 12)]


def retrain_alone() -> list[dict[str, Any]]:
    """The same with the champion's family alone."""
    return [retraining(f"{ALONE['families'][0]} alone, not tuned", ALONE, 6, 12)]


def retraining(label: str, changes: dict[str, Any], minutes: float, gib: float) -> dict[str, Any]:
    """Run the CLI on a copy of the million's home; time and the largest sum of its processes' resident memory."""
    import yaml

    world = parts.build_world(parts.MILLION, "million")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "home").mkdir()
        shutil.copy(world / "warehouse.duckdb", place / "home")
        shutil.copytree(parts.ROOT / "params", place / "params")
        shutil.copytree(parts.ROOT / "reports", place / "reports", ignore=shutil.ignore_patterns("out"))
        values = yaml.safe_load((parts.ROOT / "params/retrain/prod.yaml").read_text()) | changes
        (place / "bench.yaml").write_text(yaml.safe_dump(values))
        bare = {n: v for n, v in os.environ.items() if not n.startswith("SMARTROUTER_")}
        env = bare | {"SMARTROUTER_HOME": str(place / "home"), "SMARTROUTER_PARAMS": str(place / "params")}
        command = [str(Path(sys.executable).with_name("smartrouter")), "retrain", "--params", "bench.yaml"]
        code, seconds, peak = watched(command, place, env)
    text = f"{seconds / 60:.1f} min, peak {peak:.1f} GiB, exit code {code}"
    good = code == 0 and seconds <= 60 * minutes and peak <= gib
    return parts.row(f"retraining, 1,000,000 attempts, {label}", f"{minutes} min, {gib} GB", text, good)


def watched(command: list[str], folder: Path, env: dict[str, str]) -> tuple[int, float, float]:
    """Exit code, seconds and peak memory (GiB) of a command and all that it starts."""
    import psutil

    began, peak = time.monotonic(), 0
    with (folder / "run.log").open("w") as log:
        process = psutil.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        while process.poll() is None:
            held = 0
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    held += one.memory_info().rss
            peak = max(peak, held)
            time.sleep(0.5)
    seconds = time.monotonic() - began
    lines = (folder / "run.log").read_text().splitlines()
    for line in lines if process.returncode else [line for line in lines if "trained" in line]:
        parts.say(line)
    return process.returncode, seconds, peak / 2**30
