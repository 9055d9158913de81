"""Drills over many seeds: calm where everybody declines, speed in a black hole, and the way back after half an hour."""

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from bench import parts
from smartrouter.drill.payments import Pool, draw, open_pool
from smartrouter.drill.play import play
from smartrouter.drill.rivals import players
from smartrouter.drill.scenario import Scenario, aimed, changed, load_scenarios, stretched
from smartrouter.drill.score import Result, Score, drill, findings, shown
from smartrouter.outage.config import Config, load_config

CALM = ("decline_wave", "issuer_down", "riskier_mix", "card_testing")  # common causes: nobody is to be left
CALM_SEEDS, SHIPPED_SEEDS, HOLE_SEEDS, BACK_SEEDS = 100, 10, 20, 20
TARGET = "WORLDPAY"


def opened() -> tuple[Pool, Config, dict[str, Scenario]]:
    """Return payments, outage parameters and drills."""
    params = parts.ROOT / "params"
    scenarios = load_scenarios(params / "drill" / "scenarios.yaml")
    return open_pool("volaris", params), load_config(params / "outage" / "default.yaml"), scenarios


def ours(pool: Pool, config: Config, scenario: Scenario, seeds: Iterable[int]) -> list[Score]:
    """Play one drill with ours, each seed another world."""
    found = []
    for seed in seeds:
        found += [r.score for r in drill(pool, aimed(scenario, TARGET, pool.codes), config, ["ours"], seed)]
        if seed % 10 == 9:
            parts.say(f"{scenario.name}: {seed + 1} seeds")
    return found


def calm(
    pool: Pool, config: Config, scenarios: dict[str, Scenario], seeds: int = CALM_SEEDS, shipped: int = SHIPPED_SEEDS
) -> list[dict[str, Any]]:
    """Causes that everybody shares: failovers of many short runs, and all bars of a few as they ship."""
    rows = []
    for name in CALM:
        whole = scenarios[name]
        short = changed(stretched(whole, 15), rate=2.0, warm_minutes=8.0, minutes=18.0)
        found = ours(pool, config, short, range(seeds))
        text, out = moved(found), sum(s.false_failovers for s in found)
        rows.append(parts.row(f"drill {name}, 15 min at 2/s, {seeds} seeds", "0 failovers", text, out == 0))
        found = ours(pool, config, whole, range(shipped))
        missed = [s.seed for s in found if not all(f.met for f in findings(s, whole.bars))]
        text = moved(found) + (f"; bars missed at seeds {', '.join(map(str, missed))}" if missed else "")
        what = f"the same as shipped, {whole.minutes:g} min at {whole.rate:g}/s, {shipped} seeds"
        rows.append(parts.row(what, "its own in each", text, not missed))
    return rows


def moved(found: list[Score]) -> str:
    """Return in words what was moved without need."""
    out, low, small = (sum(getattr(s, n) for s in found) for n in ("false_failovers", "false_degradations", "segments"))
    worlds, payments = sum(s.false_failovers > 0 for s in found), sum(s.payments for s in found)
    return f"{out} failovers (in {worlds} seeds), {low} degradations, {small} segments, {payments:,} payments"


def hole(pool: Pool, config: Config, scenarios: dict[str, Scenario], seeds: int = HOLE_SEEDS) -> list[dict[str, Any]]:
    """A black hole at a processor that gets 10 payments a second."""
    probe = draw(pool, changed(scenarios["healthy"], rate=5.0, minutes=10, rhythm=False), 7)
    share = np.mean(play(probe, players(probe, config, ["none"])[0]).processor == pool.codes.index(TARGET))
    size = {"rate": round(10 / share, 2), "warm_minutes": 3.0, "minutes": 2.0}
    scenario = changed(stretched(scenarios["blackhole"], 1.0), **size)
    lost = [s.outages[0] for s in ours(pool, config, scenario, range(seeds))]
    left = np.array([np.inf if o.left_s is None else o.left_s for o in lost])
    sent = np.array([o.sent for o in lost])
    text = f"{shown(left.max())} s, {sent.max()} payments (mean {left.mean():.1f} s, {sent.mean():.0f} payments)"
    what = f"drill blackhole, 10/s at the processor, worst of {seeds} seeds"
    return [parts.row(what, "3.6 s, 36 payments", text, left.max() <= 3.6 and sent.max() <= 36)]


def back(pool: Pool, config: Config, scenarios: dict[str, Scenario], seeds: int = BACK_SEEDS) -> list[dict[str, Any]]:
    """Half an hour out: attempts until it is left, probes, and the way back."""
    rows = []
    for name in ("hard", "brownout50"):
        scenario = changed(scenarios[name], warm_minutes=8.0, minutes=40.0)
        found = [s.outages[0] for s in ours(pool, config, scenario, range(seeds))]
        names = ("seen", "sacrificed", "wrong_restores")
        seen, probes, wrong = (float(np.mean([getattr(o, n) for o in found])) for n in names)
        again = np.array([np.inf if o.restored_s is None else o.restored_s for o in found])
        text = f"left after {seen:.1f} outcomes, {probes:.1f} probes failed, restored after {shown(again.mean())} s"
        text += f" (worst {shown(again.max())}), {wrong:.2f} wrong restores"
        most, slips = (5, 0.0) if name == "hard" else (12, 0.1)
        bar = f"{most} outcomes, 10 probes, 150 s, {slips:g} wrong"
        met = seen <= most and probes <= 10 and again.mean() <= 150 and wrong <= slips
        rows.append(parts.row(f"drill {name}, 30 min, 3/s, {seeds} seeds", bar, text, met))
    return rows


def every(pool: Pool, config: Config, scenarios: dict[str, Scenario]) -> list[dict[str, Any]]:
    """Each drill once, with its own bars, against the usual rules."""
    lost: dict[str, int] = {}
    rows = []
    for name, scenario in scenarios.items():
        size = {"minutes": 120.0} if name == "healthy" else {}
        target = aimed(changed(scenario, **size), TARGET, pool.codes)
        results: list[Result] = drill(pool, target, config, ["ours", "rolling50", "streak60", "none"])
        for result in results:
            lost[result.score.player] = lost.get(result.score.player, 0) + result.score.lost
        found = f"lost {results[0].score.lost} approvals of {results[0].score.payments:,} payments"
        text = f"{found}; {', '.join(results[0].missed)}" if results[0].missed else found
        rows.append(parts.row(f"drill {name}: {scenario.title.lower()}", "its own", text, results[0].passed))
        parts.say(f"{name}: {text}")
    told = ", ".join(f"{name} {n:,}" for name, n in lost.items())
    return [*rows, parts.row("drills, approvals lost against the oracle", "", told, None)]


def drills() -> list[dict[str, Any]]:
    """The whole part."""
    place = opened()
    return [*calm(*place), *hole(*place), *back(*place), *every(*place)]


if __name__ == "__main__":  # one section alone: python -m bench.drill_bench hole 5
    sections = {"calm": calm, "hole": hole, "back": back, "every": every}
    seeds_ = [int(word) for word in sys.argv[2:]]
    for row_ in sections[sys.argv[1]](*opened(), *seeds_):
        print(f"{row_['what']} | {row_['bar']} | {row_['measured']} | {row_['met']}")
