"""Off-policy estimates on six kinds of log, 400 worlds each: coverage, width, error, refusals; see bench.ope_worlds."""

import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from bench.ope_worlds import KINDS, SEED, WORLDS, world

COLUMNS = ("refused", "truth", "estimate", "low", "high", "dr", "dr_low", "dr_high", "snips_low", "snips_high")
COLUMNS += ("lift", "lift_truth", "lift_low", "lift_high", "ess", "outside", "raw")


def measure(job: tuple[int, int, int]) -> list[float]:
    """Return the columns of one world (kind, index, seed); nan where the estimate was refused."""
    from threadpoolctl import threadpool_limits

    from smartrouter.evaluation import policy
    from smartrouter.evaluation.outcome_model import outcome_table
    from smartrouter.evaluation.overlap import OverlapRefused

    place, index, seed = job
    with threadpool_limits(1):
        w = world(place, index, seed)
        log, k = (w.reward, w.action, w.pscore, w.action_dist), w.action_dist.shape[1]
        drawn = np.random.default_rng((seed, place, index, 1))
        table = outcome_table(w.X, w.action, w.reward, k, rng=drawn)
        one_hot = outcome_table(w.X, w.action, w.reward, k, rng=drawn, interactions=False)
        try:
            found = policy.lift(*log, table)
        except OverlapRefused:
            return [1.0, w.truth] + [np.nan] * (len(COLUMNS) - 2)
        ours, plain, weighted = found.candidate, policy.dr(*log, one_hot), policy.snips(*log)
        all_seven = [ours, plain, weighted, policy.ips(*log), policy.dr(*log, table)]
        all_seven += [e(*log, table) for e in (policy.dm, policy.sndr, policy.switch_dr)]
        outside = any(not 0 <= v <= 1 for x in all_seven for v in (x.estimate, x.low, x.high))
        values = [
            ours.estimate,
            ours.low,
            ours.high,
            plain.estimate,
            plain.low,
            plain.high,
            weighted.low,
            weighted.high,
        ]
        values += [found.estimate, w.truth - w.logged_truth, found.low, found.high, ours.ess, float(outside)]
        values.append(float(any(not 0 <= x.raw <= 1 for x in all_seven)))
        return [0.0, w.truth, *values]


def inside(c: dict[str, np.ndarray], low: str, high: str, truth: str = "truth") -> float:
    """Return the share of intervals that hold the truth."""
    return float(np.mean((c[low] <= c[truth]) & (c[truth] <= c[high])))


def error(c: dict[str, np.ndarray], name: str) -> float:
    """Return the root mean squared error of an estimate."""
    return float(np.sqrt(np.mean((c[name] - c["truth"]) ** 2)))


def summary(c: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the figures of some worlds that were not refused."""
    return {
        "worlds": len(c["truth"]),
        "coverage": inside(c, "low", "high"),
        "coverage_lift": inside(c, "lift_low", "lift_high", "lift_truth"),
        "coverage_dr": inside(c, "dr_low", "dr_high"),
        "coverage_snips": inside(c, "snips_low", "snips_high"),
        "ratio": error(c, "estimate") / error(c, "dr"),
        "rmse": error(c, "estimate"),
        "width": float(np.median(c["high"] - c["low"])),
        "width_dr": float(np.median(c["dr_high"] - c["dr_low"])),
        "ess": float(np.median(c["ess"])),
        "least_ess": float(c["ess"].min()),
        "outside": float(c["outside"].sum()),
        "raw": float(c["raw"].sum()),
    }


def run(worlds: int = WORLDS, seed: int = SEED, workers: int | None = None) -> dict[str, Any]:
    """Return per kind, and pooled, the figures of `summary` and how many worlds were refused."""
    jobs = [(place, index, seed) for place in range(len(KINDS)) for index in range(worlds)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        rows = np.array(list(pool.map(measure, jobs, chunksize=20)))
    kind, refused = np.array([place for place, _, _ in jobs]), rows[:, 0] == 1
    found: dict[str, Any] = {}
    for name, of in [*((k.name, kind == p) for p, k in enumerate(KINDS)), ("pooled", kind >= 0)]:
        kept = dict(zip(COLUMNS, rows[of & ~refused].T, strict=True))
        found[name] = summary(kept) | {"refused": int((of & refused).sum())}
    return found


def as_rows(found: dict[str, Any], row: Any) -> list[dict[str, Any]]:
    """Return the rows of the bench's table."""
    kinds = {k: v for k, v in found.items() if k != "pooled"}
    rows = []
    for name, s in kinds.items():
        text = f"{s['coverage']:.1%} (SNIPS {s['coverage_snips']:.1%}, plain DR {s['coverage_dr']:.1%}); "
        text += (
            f"width {s['width']:.3f} (plain DR {s['width_dr']:.3f}); RMSE {s['rmse']:.4f}, {s['ratio']:.2f} of plain "
        )
        text += f"DR's; lift covered {s['coverage_lift']:.1%}; median ESS {s['ess']:.0f}; {s['refused']} refused"
        good = s["coverage"] >= 0.925 and s["ratio"] <= 0.9
        rows.append(row(f"off-policy, {name}", "95 % intervals cover 92.5 %; RMSE 0.9 of plain DR's", text, good))
    s, worlds = found["pooled"], found["pooled"]["worlds"]
    covered = f"{s['coverage']:.2%} of {worlds:,} worlds; lift {s['coverage_lift']:.2%}"
    rows.append(row("off-policy, six kinds pooled: coverage", "94 to 98 %", covered, 0.94 <= s["coverage"] <= 0.98))
    worst = max(v["ratio"] for v in kinds.values())
    ratio = f"{s['ratio']:.3f} pooled, {worst:.3f} at worst"
    rows.append(row("off-policy, RMSE over plain DR's (one-hot logistic)", "0.9", ratio, max(s["ratio"], worst) <= 0.9))
    outside = f"{s['outside']:.0f} worlds (all are held within; a formula's own result left it in {s['raw']:.0f})"
    rows.append(row("off-policy, an estimate or bound outside [0, 1]", "none", outside, s["outside"] == 0))
    least = f"{s['refused']} worlds refused, least effective sample used {s['least_ess']:.1f}"
    rows.append(row("off-policy, refused under an effective sample of 30", "all", least, s["least_ess"] >= 30))
    return rows
