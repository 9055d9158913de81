"""How soon a failing processor is found, how often for nothing, and at what cost.

One false alarm in a million attempts, healthy technical failure rate 0.005. Detection starts without evidence,
which is its worst case. The CUSUM that is told the severity is the bound for any rule.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.parts import percentiles, row, say
from smartrouter.outage.config import load_config
from smartrouter.outage.delay import cusum_threshold, cusum_to_alarm, mixture_to_alarm
from smartrouter.outage.detector import fresh, threshold, update
from smartrouter.outage.silence import fresh_answers, learn_answer, replay_silence, silent, survival

ROOT = Path(__file__).resolve().parents[1]
CONFIG = load_config(ROOT / "params/outage/default.yaml")
BETWEEN = 1e6  # attempts between false alarms
HEALTHY = 0.005  # technical failure rate
BARS = {1.0: 4, 0.5: 8, 0.2: 25, 0.05: 163, 0.02: 754}  # failing share -> mean attempts
RUNS = 20_000  # replications of a detection
HEALTHY_RUNS = 1000  # replications of a false alarm


def detect() -> list[dict[str, Any]]:
    """Delays, false alarms, the black hole and the cost of an update."""
    return [*delays(), *false_alarms(), *black_hole(), *quiet_health(), *cost()]


def delays() -> list[dict[str, Any]]:
    """Mean attempts to detection, with the rate known exactly and under the margin, beside the CUSUM's."""
    rng, rows, technical = np.random.default_rng(7), [], CONFIG.technical
    alarm_at = technical.overshoot * BETWEEN
    for true, bar in BARS.items():
        say(f"delay at {true:.0%} failures")
        exact = mixture_to_alarm(true, HEALTHY, alarm_at, RUNS, rng, technical)
        assumed = HEALTHY * technical.margin
        careful = mixture_to_alarm(true, assumed, alarm_at, RUNS, rng, technical).mean()
        bounds = []
        for p0 in (HEALTHY, assumed):
            told = min(true, 0.9999)
            nats = cusum_threshold(p0, told, BETWEEN, 100, rng)
            bounds.append(cusum_to_alarm(true, p0, told, nats, RUNS, rng).mean())
        error = exact.std() / np.sqrt(RUNS)
        found = f"{exact.mean():.1f} +- {error:.1f} (p95 {np.quantile(exact, 0.95):.0f}; bound {bounds[0]:.1f})"
        rows.append(row(f"outage, mean attempts to detect {true:.0%} failures", f"{bar}", found, exact.mean() <= bar))
        found = f"{careful:.1f} (bound of any rule safe there: {bounds[1]:.1f})"
        rows.append(row(f"the same with the margin of {technical.margin}", f"{bar}", found, careful <= bar))
    return rows


def false_alarms() -> list[dict[str, Any]]:
    """Measured attempts between false alarms."""
    rng, rows, technical = np.random.default_rng(11), [], CONFIG.technical
    alarm_at = technical.overshoot * BETWEEN
    cases = [("rate learned exactly, no margin", HEALTHY, HEALTHY, True)]
    cases += [("true rate 1.5 times the learned one, default margin", 1.5 * HEALTHY, technical.margin * HEALTHY, True)]
    cases += [("true rate 1.5 times the learned one, no margin", 1.5 * HEALTHY, HEALTHY, False)]
    cases += [(f"rate {p:.1%} learned exactly, no margin", p, p, False) for p in (0.002, 0.01, 0.02)]
    for what, true, assumed, barred in cases:
        say(f"false alarms, {what}")
        between = mixture_to_alarm(true, assumed, alarm_at, HEALTHY_RUNS, rng, technical)
        found = f"{between.mean():,.0f} +- {between.std() / np.sqrt(HEALTHY_RUNS):,.0f}"
        met = between.mean() >= BETWEEN if barred else None
        rows.append(row(f"outage, attempts between false alarms: {what}", "1,000,000" if barred else "-", found, met))
    return rows


def usual_answers(
    rng: np.random.Generator,
    many: int,  # answers
) -> np.ndarray:
    """Seconds to healthy answers: median 0.8 s, 99.9 % within 3.3 s."""
    return 0.8 * np.exp(0.4586 * rng.normal(size=many))


def learned(
    rng: np.random.Generator,
) -> list[float]:
    """The survival after 40,000 healthy answers."""
    answers = fresh_answers(CONFIG.silence)
    for seconds in usual_answers(rng, 40_000):
        learn_answer(answers, float(seconds), CONFIG.silence)
    return survival(answers, CONFIG.silence)


def black_hole() -> list[dict[str, Any]]:
    """Seconds and payments until a processor that swallows everything is found: Poisson arrivals, looks every 50 ms."""
    rng, rows = np.random.default_rng(13), []
    slower = learned(rng)
    for per_s in (0.1, 1.0, 10.0, 100.0):
        say(f"black hole at {per_s:g}/s")
        alarm_at, seconds, payments = threshold(per_s, CONFIG.technical), [], []
        for _ in range(100):
            starts, now = np.cumsum(rng.exponential(1 / per_s, 1500)), 0.0
            open_: list[float] = []
            while not open_ or silent(open_, slower, CONFIG.silence, CONFIG.technical) < alarm_at:
                now += 0.05
                open_ = [min(now - s, 30.0) for s in starts[: np.searchsorted(starts, now)].tolist()]
            seconds.append(now)
            payments.append(len(open_))
        found = f"{np.mean(seconds):.1f} s (p95 {np.quantile(seconds, 0.95):.1f}), {np.mean(payments):.1f} payments"
        barred = per_s == 10
        met = (np.mean(seconds) <= 3.6 and np.mean(payments) <= 36) if barred else None
        what = f"outage, black hole at {per_s:g}/s, 30 s time-out, one false alarm in 90 days"
        rows.append(row(what, "3.6 s, 36 payments" if barred else "-", found, met))
    return rows


def quiet_health() -> list[dict[str, Any]]:
    """False alarms of silence over 600,000 healthy attempts, looked at before each answer."""
    rng, highest, alarms, attempts = np.random.default_rng(17), 0.0, 0, 0
    slower = learned(rng)
    for per_s, many in ((1.0, 250_000), (10.0, 300_000), (100.0, 50_000)):
        say(f"silence in health at {per_s:g}/s")
        starts = np.cumsum(rng.exponential(1 / per_s, many)).tolist()
        took = usual_answers(rng, many).tolist()
        evidence = np.array(replay_silence(starts, took, slower, CONFIG.silence, CONFIG.technical))
        highest, attempts = max(highest, float(evidence.max())), attempts + many
        alarms += int((evidence >= threshold(per_s, CONFIG.technical)).sum())
    found = f"{alarms} (highest evidence {highest:.2g}, lowest threshold {threshold(1.0, CONFIG.technical):.2g})"
    return [row(f"outage, false alarms of silence in {attempts:,} healthy attempts", "0", found, alarms == 0)]


def cost() -> list[dict[str, Any]]:
    """Time of one update, and of one look at 100 open attempts."""
    technical, state, seconds = CONFIG.technical, fresh(CONFIG.technical), []
    failed = (np.random.default_rng(19).random(200_000) < HEALTHY).tolist()
    for outcome in failed:
        began = time.perf_counter()
        update(state, outcome, 0.0075, technical)
        seconds.append(time.perf_counter() - began)
    p50, p99 = np.percentile(np.array(seconds) * 1e6, [50, 99])
    slower, ages, looks = learned(np.random.default_rng(23)), [0.02 * i for i in range(100, 0, -1)], []
    for _ in range(2000):
        began = time.perf_counter()
        silent(ages, slower, CONFIG.silence, technical)
        looks.append(time.perf_counter() - began)
    return [
        row("outage, detector update", "p99 10 us", f"p50 {p50:.1f} us, p99 {p99:.1f} us", p99 <= 10),
        row("outage, one look at 100 unanswered attempts", "-", percentiles(looks), None),
    ]
