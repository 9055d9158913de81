"""The approval detector: how soon it sees a drop, how seldom it errs, and that what hits everybody moves no traffic.

A simulation with full knowledge: what the model says (`p0`) and what is true are both drawn here. Runs that need
millions of attempts use `Pairs`, the detector of two processors over many replications at once; a test holds it to the
package's step, outcome by outcome.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.parts import row, say
from smartrouter.outage.approval import Approval, ApprovalConfig, fresh, update

MILLION = 1_000_000
CONFIG = ApprovalConfig()
DROP = np.log(0.5 / 0.5) - np.log(0.3 / 0.7)  # approval .70 -> .50, in logit of a decline
SHARES = {"A": 0.4, "B": 0.3, "C": 0.2, "D": 0.1}
ISSUERS, BINS_EACH = 20, 8
BEGINS, ENDS, ATTEMPTS = 3_000, 9_000, 12_000  # of the event, and of a scenario
SEEDS = 100


# --- many replications at once ---------------------------------------------------------------------------------------


def mixtures(evidence: np.ndarray, declined: np.ndarray, odds: np.ndarray, config: ApprovalConfig) -> np.ndarray:
    """`mixture` of the package over replications: evidence [ratios, n], declined and odds [n]; not capped."""
    ratios = np.array(config.odds_ratios)[:, None]
    p = odds / (1 + odds)
    return (1 + evidence) * np.where(declined, ratios, 1.0) / (1 - p + p * ratios)


class Pairs:
    """The detector of two processors without issuers and BINs, `n` replications at once, up to an alarm."""

    def __init__(self, n: int, config: ApprovalConfig = CONFIG):
        self.config, self.rows = config, np.arange(n)
        self.evidence = np.zeros((len(config.odds_ratios), 2, n))
        self.cusum, self.bias, self.common = np.zeros((2, n)), np.zeros((2, n)), np.zeros((2, n))
        self.weight, self.sums = np.full((2, n), config.bias_prior), np.zeros((4, 2, n))

    def step(self, where: np.ndarray, declined: np.ndarray, p0: np.ndarray, threshold: float) -> np.ndarray:
        """One outcome at processor `where` (0 or 1) in each replication; True where it raises an alarm."""
        c, me, peer, x = self.config, (where, self.rows), (1 - where, self.rows), declined.astype(float)
        plain = p0 / (1 - p0) * np.exp(self.bias[me])
        odds = plain * np.exp(np.where(self.common[me] > c.peer_noise, self.common[me], 0))
        here = plain * np.exp(self.common[me])
        self.tell(peer, x, plain)
        p, q = odds / (1 + odds), here / (1 + here)
        calm = (self.cusum[me] < c.bias_freeze) & (self.common[me] < c.peer_noise)
        self.weight[me] = np.where(calm, np.minimum(c.bias_memory, self.weight[me] + p * (1 - p)), self.weight[me])
        self.bias[me] += np.where(calm, (x - p) / self.weight[me], 0)
        safe = odds * np.exp(c.margin)
        evidence = np.minimum(mixtures(self.evidence[:, where, self.rows], declined, safe, c), 100 * threshold)
        self.evidence[:, where, self.rows] = evidence
        gain = np.log(np.where(declined, c.onset_ratio, 1) * (1 + safe) / (1 + safe * c.onset_ratio))
        self.cusum[me] = cusum = np.maximum(self.cusum[me] + gain, 0)
        sums = self.sums[:, where, self.rows]
        sums[0] += x - q
        sums[1] += q * (1 - q)
        self.sums[:, where, self.rows] = sums = np.where(cusum > 0, sums, 0)
        excess, information = self.contrast(sums)
        z = (excess - c.tolerance * information - c.z**2 / 6) / np.sqrt(np.maximum(information, 1e-12))
        over = evidence.mean(0) >= threshold
        alarm = over & (information > 0) & (z >= c.z)
        explained = over & ~alarm & (excess < np.sqrt(information))
        self.evidence[:, where[explained], self.rows[explained]] = 0
        return alarm

    def tell(self, peer: tuple[np.ndarray, np.ndarray], x: np.ndarray, plain: np.ndarray) -> None:
        """What the peer learns of the outcome."""
        here = plain * np.exp(self.common[peer])
        p, suspicious = here / (1 + here), self.cusum[peer] > 0
        self.sums[2][peer] += np.where(suspicious, x - p, 0)
        self.sums[3][peer] += np.where(suspicious, p * (1 - p), 0)
        self.common[peer] += (x - p) / self.config.peer_memory

    @staticmethod
    def contrast(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Excess over the peers and its variance, of sums [4, n]."""
        own, mine, peers, theirs = sums
        both, known = np.maximum(mine + theirs, 1e-12), (mine > 0) & (theirs > 0)
        return np.where(known, (own * theirs - peers * mine) / both, 0), np.where(known, mine * theirs / both, 0)

    def forget(self, where: np.ndarray, which: np.ndarray) -> None:
        """Begin again at processor `where` of the replications `which` (bool): after an alarm that is counted."""
        me = (where[which], self.rows[which])
        self.evidence[:, me[0], me[1]], self.sums[:, me[0], me[1]], self.cusum[me] = 0, 0, 0


# --- delays and false alarms -----------------------------------------------------------------------------------------


def single_delay(n: int, threshold: float, rng: np.random.Generator, p1: float = 0.5) -> np.ndarray:
    """Attempts to the alarm of the plain mixture, p0 = 0.3 known, p1 not; int [n]."""
    evidence, odds = np.zeros((len(CONFIG.odds_ratios), n)), np.full(n, 0.3 / 0.7)
    found = np.zeros(n, int)
    for attempt in range(1, 20_000):
        evidence = mixtures(evidence, rng.random(n) < p1, odds, CONFIG)
        found[(found == 0) & (evidence.mean(0) >= threshold)] = attempt
        if found.all():
            break
    return found


def single_alarms(n: int, steps: int, threshold: float, rng: np.random.Generator) -> tuple[int, float]:
    """(false alarms, healthy attempts) of the plain mixture, p0 = 0.3 known; the first 1,000 attempts do not count."""
    evidence, odds, alarms = np.zeros((len(CONFIG.odds_ratios), n)), np.full(n, 0.3 / 0.7), 0
    for attempt in range(steps + 1_000):
        evidence = mixtures(evidence, rng.random(n) < 0.3, odds, CONFIG)
        alarm = evidence.mean(0) >= threshold
        if alarm.any():
            alarms += int(alarm.sum()) * (attempt >= 1_000)
            evidence[:, alarm] = 0
    return alarms, float(n * steps)


def pair_delay(n: int, share: float, threshold: float, rng: np.random.Generator, warm: int = 2_000) -> np.ndarray:
    """Own attempts to the alarm after approval fell to .50 at a processor with `share` of the traffic; int [n]."""
    pairs, own, found = Pairs(n), np.zeros(n, int), np.zeros(n, int)
    for attempt in range(warm + 20_000):
        where = (rng.random(n) >= share).astype(int)
        hit = (where == 0) & (attempt >= warm)
        own += hit
        alarm = pairs.step(where, rng.random(n) < np.where(hit, 0.5, 0.3), np.full(n, 0.3), threshold)
        if attempt < warm:
            pairs.forget(where, alarm)
        found[(found == 0) & alarm & hit] = own[(found == 0) & alarm & hit]
        if found.all():
            break
    return found


def pair_alarms(n: int, steps: int, threshold: float, rng: np.random.Generator, wrong: float) -> tuple[int, float, int]:
    """(false alarms, healthy attempts, attempts with the evidence) of both; the model is `wrong` logit at the first."""
    pairs, alarms, crossed = Pairs(n), 0, 0
    for _ in range(steps):
        where = (rng.random(n) >= 0.4).astype(int)
        odds = np.exp(rng.normal(-0.9, 0.7, n))
        true = odds * np.exp(np.where(where == 0, wrong, 0))
        alarm = pairs.step(where, rng.random(n) < true / (1 + true), odds / (1 + odds), threshold)
        alarms += int(alarm.sum())
        over = pairs.evidence[:, where, pairs.rows].mean(0) >= threshold
        crossed += int(over.sum())
        pairs.forget(where, alarm)
    return alarms, float(n * steps), crossed


# --- scenarios with issuers and BINs ---------------------------------------------------------------------------------


def traffic(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`ATTEMPTS` payments: issuer, bin, where (place in SHARES), odds by the model, logit of what is true beyond it."""
    weights = 1 / np.arange(1, ISSUERS + 1)
    issuer = rng.choice(ISSUERS, ATTEMPTS, p=weights / weights.sum())
    bins = 1 / np.arange(1, BINS_EACH + 1)
    bin_ = issuer * BINS_EACH + rng.choice(BINS_EACH, ATTEMPTS, p=bins / bins.sum())
    shares = np.array(list(SHARES.values()))
    favourite = rng.permuted(np.tile(np.arange(4), (ISSUERS, 1)), axis=1) == 0  # each issuer has one
    tilt = np.where(favourite, 3.0, 1.0)
    chances = tilt * shares / (tilt * shares).sum(1, keepdims=True)
    where = (rng.random(ATTEMPTS)[:, None] > chances.cumsum(1)[issuer]).sum(1).clip(0, 3)
    odds = np.exp(rng.normal(-0.9, 0.7, ATTEMPTS))
    return {"issuer": issuer, "bin": bin_, "where": where, "odds": odds, "beyond": np.zeros(ATTEMPTS)}


def drop(t: dict[str, np.ndarray], now: np.ndarray, rng: np.random.Generator) -> None:
    """Approval falls from about .70 to .50 at A alone: the one event that must be seen."""
    t["beyond"] += np.where(now & (t["where"] == 0), DROP, 0)


def wave(t: dict[str, np.ndarray], now: np.ndarray, rng: np.random.Generator) -> None:
    """Declines on all processors alike, odds times 1.5 to 6."""
    t["beyond"] += np.where(now, rng.uniform(0.4, 1.8), 0)


def issuer_down(t: dict[str, np.ndarray], now: np.ndarray, rng: np.random.Generator) -> None:
    """One of the five largest issuers declines 98 % everywhere."""
    t["beyond"] += np.where(now & (t["issuer"] == rng.integers(5)), 4.8, 0)


def riskier(t: dict[str, np.ndarray], now: np.ndarray, rng: np.random.Generator) -> None:
    """Two in five customers are riskier, twice as often at A: the model sees one logit, 0.6 more it does not."""
    new = now & (rng.random(ATTEMPTS) < np.where(t["where"] == 0, 0.6, 0.3))
    t["odds"] *= np.where(new, np.exp(1.0), 1)
    t["beyond"] += np.where(new, 0.6, 0)


def card_testing(t: dict[str, np.ndarray], now: np.ndarray, rng: np.random.Generator) -> None:
    """Two attempts in five are stolen cards of one to five BINs, nine in ten of them at A, 97 % declined."""
    test = now & (rng.random(ATTEMPTS) < 0.4)
    chosen = rng.choice(ISSUERS * BINS_EACH, rng.integers(1, 6), replace=False)
    t["bin"] = np.where(test, rng.choice(chosen, ATTEMPTS), t["bin"])
    t["issuer"] = t["bin"] // BINS_EACH
    t["where"] = np.where(test & (rng.random(ATTEMPTS) < 0.9), 0, t["where"])
    t["beyond"] += np.where(test, 4.4, 0)


Event = Callable[[dict[str, np.ndarray], np.ndarray, np.random.Generator], None]
COMMON: dict[str, Event] = {
    "decline wave": wave,
    "one issuer down": issuer_down,
    "riskier mix": riskier,
    "card testing": card_testing,
}


def outcomes(event: Event, seed: int) -> Iterator[tuple[int, str, bool, float, str, str]]:
    """(attempt, processor, declined, p0, issuer, bin) of one run of a scenario."""
    rng = np.random.default_rng(seed)
    t, at = traffic(rng), np.arange(ATTEMPTS)
    event(t, (at >= BEGINS) & (at < ENDS), rng)
    true = t["odds"] * np.exp(t["beyond"])
    declined = (rng.random(ATTEMPTS) < true / (1 + true)).tolist()
    p0 = (t["odds"] / (1 + t["odds"])).tolist()
    names = list(SHARES)
    for i, (w, issuer, bin_) in enumerate(zip(*(t[k].tolist() for k in ("where", "issuer", "bin")), strict=True)):
        yield i, names[w], declined[i], p0[i], f"bank {issuer}", f"{400000 + bin_}"


def run(event: Event, seed: int, threshold: float = MILLION, config: ApprovalConfig = CONFIG) -> dict[str, Any]:
    """Alarms of one run as (processor, attempt, own attempts since the event began, shift); peak of the evidence."""
    board: dict[str, Approval] = {code: fresh(config) for code in SHARES}
    since, alarms, peak, nothing = dict.fromkeys(SHARES, 0), [], 0.0, 0
    for i, code, declined, p0, issuer, bin_ in outcomes(event, seed):
        since[code] += i >= BEGINS
        found = update(board, code, declined, p0, threshold=threshold, config=config, issuer=issuer, bin_=bin_)
        peak, nothing = max(peak, found.evidence), nothing + found.nearly_nothing
        if found.raised:
            alarms.append((code, i, since[code], found.shift))
    return {"alarms": alarms, "peak": peak, "nothing": nothing}


def cost_us(seed: int = 7) -> np.ndarray:
    """Microseconds of each update, four processors with issuers and BINs, float [n]."""
    board, spent = {code: fresh(CONFIG) for code in SHARES}, []
    for _, code, declined, p0, issuer, bin_ in list(outcomes(drop, seed)):
        began = time.perf_counter()
        update(board, code, declined, p0, threshold=MILLION, config=CONFIG, issuer=issuer, bin_=bin_)
        spent.append(time.perf_counter() - began)
    return np.array(spent) * 1e6


# --- the part --------------------------------------------------------------------------------------------------------


def rate_text(alarms: int, attempts: float) -> str:
    """Attempts a false alarm as text, with the count that it rests on."""
    between = f"{attempts / alarms:.2g}" if alarms else f"over {attempts:.2g}"
    return f"{between} ({alarms} in {attempts:.2g})"


def approval() -> list[dict[str, Any]]:
    """Rows of the bench table."""
    rng = np.random.default_rng(7)
    rows = []
    say("delays")
    single = single_delay(10_000, MILLION, rng)
    rows.append(
        row("approval .70 -> .50, single stream, mean attempts", "<= 142", f"{single.mean():.0f}", single.mean() <= 142)
    )
    pair = pair_delay(10_000, 0.4, MILLION, rng)
    text = f"{pair.mean():.0f} (p95 {np.quantile(pair, 0.95):.0f})"
    rows.append(row("the same with peers, 40 % share", "<= 300", text, pair.mean() <= 300))
    say("false alarms")
    alarms, attempts = single_alarms(4_000, 20_000, MILLION, rng)
    text, met = rate_text(alarms, attempts), attempts >= alarms * MILLION
    rows.append(row("healthy attempts a false alarm, single stream", ">= 1e6", text, met))
    for wrong in (0.0, 0.1, -0.1, 0.2):
        alarms, attempts, crossed = pair_alarms(4_000, 8_000, MILLION, rng, wrong)
        text = f"{rate_text(alarms, attempts)}; evidence over it in {crossed} attempts"
        rows.append(row(f"with peers, model {wrong:+.1f} logit wrong", ">= 1e6", text, attempts >= alarms * MILLION))
    for name, event in COMMON.items():
        say(name)
        runs = [run(event, seed) for seed in range(SEEDS)]
        bad = sum(bool(r["alarms"]) for r in runs)
        past = sum(r["peak"] >= MILLION for r in runs)
        text = f"{bad} ({past} had the evidence, the peers said no)"
        rows.append(row(f"{name}: runs with an alarm in {SEEDS} seeds", "0", text, bad == 0))
    say("drop at A in full traffic")
    found = [[a for a in run(drop, seed)["alarms"] if a[0] == "A"] for seed in range(SEEDS)]
    delays = np.array([f[0][2] for f in found if f])
    text = f"{delays.mean():.0f} (p95 {np.quantile(delays, 0.95):.0f}), found in {len(delays)} of {SEEDS}"
    rows.append(row("drop at A with issuers, BINs and peers, mean attempts of A", "", text, None))
    spent = np.quantile(cost_us(), [0.5, 0.99])
    text = f"p50 {spent[0]:.1f}, p99 {spent[1]:.1f} us"
    rows.append(row("one update, four processors", "p99 <= 10 us", text, spent[1] <= 10))
    return rows
