"""Recovery after an outage: payments lost to probes, time until restored, wrong restores; against two usual rules."""

import heapq
import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench import parts
from smartrouter.outage.control import Alarm, Control, ControlConfig, Outcome, Tick, reserve_probe, step, weight

SEEDS = 400
OUTAGE_S = (1700.0, 1900.0)  # half an hour, drawn around it so that no phase of the probes is lucky
SHARE, HEALTHY = 0.4, 0.005  # natural share of the traffic, technical failures of a healthy processor
ASSUMED, GRID, THRESHOLD = 0.0075, (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.995), 1e6
KINDS = {"hard": 1.0, "50 % brown-out": 0.5}
RATES = (0.1, 1.0, 10.0)  # eligible payments a second


@dataclass
class Watch:
    """A mixture of Shiryaev-Roberts statistics: the alarm that starts an outage and finds a wrong restoration."""

    evidence: list[float] = field(default_factory=lambda: [0.0] * len(GRID))
    failures: int = 0
    attempts: int = 0

    def saw(self, failed: bool) -> bool:
        """Take in one outcome; return whether this is an alarm."""
        self.failures, self.attempts = self.failures + failed, self.attempts + 1
        ratio = [p / ASSUMED if failed else (1 - p) / (1 - ASSUMED) for p in GRID]
        self.evidence = [(1 + e) * r for e, r in zip(self.evidence, ratio, strict=True)]
        if max(self.evidence) < 1:  # nothing suspicious: what was counted says nothing about an outage
            self.failures = self.attempts = 0
        return sum(self.evidence) / len(GRID) >= THRESHOLD


class Ours:
    """smartrouter.outage.control."""

    def __init__(self, config: ControlConfig):
        self.config, self.state = config, Control("A")

    def alarm(self, watch: Watch, now: float) -> None:
        """Take the processor out."""
        event = Alarm("technical", watch.failures, watch.attempts)
        self.state, _ = step(self.state, event, now, self.config)

    def next_at(self) -> float:
        """Return the first moment at which a payment may be a probe."""
        return self.state.probing.next_at

    def asks(self, now: float, rate: float, rng: np.random.Generator) -> str | None:
        """Return the id of a probe if this payment is one."""
        self.state, probe = reserve_probe(self.state, now, rng.random(), rate, self.config)
        return probe.id if probe else None

    def answered(self, probe: str, failed: bool, now: float) -> None:
        """Take in the outcome of a probe."""
        event = Outcome("technical" if failed else "ok", now, probe=probe)
        self.state, _ = step(self.state, event, now, self.config)

    def weight(self, now: float) -> float:
        """Return the share of its traffic."""
        self.state, _ = step(self.state, Tick(), now, self.config)
        return weight(self.state, now, self.config)


class Fixed:
    """A fixed number of successes in a row, tried by a share of the payments or after a fixed time."""

    def __init__(self, share: float, wait_s: float, successes: int):
        self.share, self.wait_s, self.successes = share, wait_s, successes
        self.down, self.run, self.due, self.made = False, 0, 0.0, 0

    def alarm(self, watch: Watch, now: float) -> None:
        """Take the processor out."""
        self.down, self.run, self.due = True, 0, now + self.wait_s

    def next_at(self) -> float:
        """Return the first moment at which a payment may be a probe."""
        return self.due

    def asks(self, now: float, rate: float, rng: np.random.Generator) -> str | None:
        """Return the id of a probe if this payment is one."""
        if now < self.due or rng.random() >= self.share:
            return None
        self.due, self.made = now + self.wait_s, self.made + 1
        return str(self.made)

    def answered(self, probe: str, failed: bool, now: float) -> None:
        """Take in the outcome of a probe."""
        self.run = 0 if failed else self.run + 1
        self.down = self.down and self.run < self.successes

    def weight(self, now: float) -> float:
        """Return the share of its traffic."""
        return 0.0 if self.down else 1.0


@dataclass(frozen=True, slots=True)
class Told:
    """What one outage cost."""

    probes: int  # failed probes while it was out
    wrong: int  # restored while it was out
    lost: int  # payments that failed because of it
    delay_s: float  # from the end to the restoration


def outage(router: Ours | Fixed, rate: float, failing: float, rng: np.random.Generator) -> Told:
    """Play one outage from its beginning to the restoration after its end."""
    now, watch, answers, probes, wrong, lost = 0.0, Watch(), [], 0, 0, 0
    out, number, end = False, 0, rng.uniform(*OUTAGE_S)
    while True:
        share = router.weight(now)
        if out and share > 0:
            if now >= end:
                return Told(probes, wrong, lost, now - end)
            wrong, out, watch = wrong + 1, False, Watch()
            answers = []
        if not out and now >= end:
            return Told(probes, wrong, lost, 0.0)
        earliest = max(now, router.next_at()) if out else now
        arrival = earliest + rng.exponential(1 / (rate if out else rate * SHARE))
        if answers and answers[0][0] <= arrival:
            now, _, probe, failed = heapq.heappop(answers)
            if probe is not None:
                router.answered(probe, failed, now)
            elif not out and watch.saw(failed):
                router.alarm(watch, now)
                out = True
            continue
        now = arrival
        probe = router.asks(now, rate, rng) if out else None
        if probe is None and (out or rng.random() >= share):
            continue
        failed = bool(rng.random() < (failing if now < end else HEALTHY))
        if now < end and failed:
            probes, lost = probes + (probe is not None), lost + (probe is None)
        number += 1
        heapq.heappush(answers, (now + 0.8 * math.exp(0.6 * rng.standard_normal()), number, probe, failed))


def played(make: Any, rate: float, failing: float, seeds: int) -> list[Told]:
    """Play so many outages, each with its own seed and a router of its own."""
    return [outage(make(), rate, failing, np.random.default_rng([7, seed])) for seed in range(seeds)]


def told(found: list[Told]) -> tuple[str, bool]:
    """Return the figures as text, and whether the three bars are met."""
    probes, wrong, lost = (float(np.mean([getattr(t, name) for t in found])) for name in ("probes", "wrong", "lost"))
    delays = np.array([t.delay_s for t in found])
    text = f"{probes:.1f} lost to probes, restored after {delays.mean():.0f} s (p95 {np.percentile(delays, 95):.0f}), "
    text += f"{wrong:.3f} wrong restores, {lost:.0f} lost before the alarm and to wrong restores"
    return text, probes <= 10 and delays.mean() <= 150 and wrong <= 0.1


def cost(calls: int = 20_000) -> dict[str, Any]:
    """What an ordinary outcome at a healthy processor costs, which is nearly all that happens."""
    config, state, event, taken = ControlConfig(), Control("A"), Outcome("ok", 1e9, 0.7), []
    for _ in range(calls):
        began = time.perf_counter_ns()
        step(state, event, 1e9 + 1, config)
        taken.append(time.perf_counter_ns() - began)
    p50, p99 = np.percentile(np.array(taken) / 1000, [50, 99])
    return parts.row(
        "control: step of an ordinary outcome", "p99 <= 10 us", f"p50 {p50:.1f}, p99 {p99:.1f} us", p99 <= 10
    )


def recovery(seeds: int = SEEDS) -> list[dict[str, Any]]:
    """A 30-minute outage at several rates, hard and half: ours, ours without the share, and two usual rules."""
    config = ControlConfig()
    timed = config.model_copy(update={"probe": config.probe.model_copy(update={"share": 1.0})})
    bar, rows = "<= 10 lost to probes, <= 150 s, <= 0.1 wrong", []
    for rate in RATES:
        for kind, failing in KINDS.items():
            name = f"recovery, {kind}, {rate:g}/s"
            text, met = told(played(lambda: Ours(config), rate, failing, seeds))
            rows.append(parts.row(name, bar, text, met))
            if 1 / (config.probe.share * rate) > config.probe.spacing_s:  # the share binds: show what it costs
                text, met = told(played(lambda: Ours(timed), rate, failing, seeds))
                rows.append(parts.row(f"{name}: probe.share 1", bar, text, met))
            few = max(seeds // 8, 10)
            text, _ = told(played(lambda: Fixed(0.01, 0.0, 5), rate, failing, few))
            rows.append(parts.row(f"{name}: 1 %, 5 in a row", "", text, None))
            text, _ = told(played(lambda: Fixed(1.0, 60.0, 1), rate, failing, few))
            rows.append(parts.row(f"{name}: half-open 60 s, 1 success", "", text, None))
    return [*rows, cost()]
