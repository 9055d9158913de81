"""Black holes where nearly all payments go to one processor: the router in a closed loop.

python -m bench.main favoured      # half a minute
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from bench import parts
from smartrouter.outage.config import load_config
from smartrouter.outage.control import Transition
from smartrouter.router.live import Router
from smartrouter.rules.policy import load_policy

RATE = 10.0  # payments a second
SEEDS = 20
START = 1_776_254_400.0  # epoch seconds of second 0


class Favouring:
    """A model that likes the processors in their order, whatever the payment."""

    name, version = "favouring", "1"

    def __init__(self, codes: Sequence[str]):
        self.chance = {code: 0.8 - 0.05 * place for place, code in enumerate(codes)}
        self.learnt = frozenset(codes)

    def probabilities(self, request: Mapping[str, Any], processors: Sequence[str], now_ms: int) -> list[float]:
        """Return one probability a processor."""
        return [self.chance[code] for code in processors]

    def intervals(self, request: Mapping[str, Any], processors: Sequence[str], now_ms: int, level: float) -> Any:
        """Return the probabilities without bounds."""
        return self.probabilities(request, processors, now_ms), None, None


def swallowed(
    seed: int, exploration: float, holes: dict[int, tuple[float, float]], seconds: float = 60.0
) -> tuple[list[str], list[str], list[tuple[str, str, float]]]:
    """Codes, payments lost to black holes (place of the processor -> begin, end), what was told from second 0 on."""
    policy = replace(load_policy("volaris", parts.ROOT / "params"), exploration=exploration)
    config = load_config(parts.ROOT / "params/outage/default.yaml")
    router = Router(policy, config, rng=Random(seed), predictor=Favouring(policy.codes))
    rng, now, n, told = Random(seed + 100), -200.0, 0, list[Transition]()
    due, lost = list[tuple[float, str, str]](), list[str]()
    hole = {policy.codes[place]: span for place, span in holes.items()}
    while now < seconds:
        now += rng.expovariate(RATE)
        while due and due[0][0] <= now:
            at, attempt, status = heapq.heappop(due)
            told += router.outcome(attempt, status, START + at)
        card = {"bin": str(400_000 + rng.randrange(200)), "brand": "VISA"}
        payment: dict[str, Any] = {"transaction_id": str(n), "merchant_id": "volaris", "card": card}
        payment["order"] = {"amount": 100.0, "currency": "MXN"}
        decision = router.decide(payment, START + now)
        router.started(str(n), payment, decision, START + now)
        code = decision.ranking[0].processor
        begins, ends = hole.get(code, (0.0, 0.0))
        if begins <= now < ends:
            lost.append(code)
            heapq.heappush(due, (now + 30.0, str(n), "timeout"))
        else:
            heapq.heappush(due, (now + 0.3 + rng.expovariate(1.5), str(n), "approved"))
        told += router.tick(START + now)
        n += 1
    return list(policy.codes), lost, [(t.key, t.after, t.at - START) for t in told if t.at >= START]


def favoured() -> list[dict[str, Any]]:
    """A black hole at the processor that all payments prefer, with the exploration that ships and without."""
    rows = []
    for exploration in (0.02, 0.0):
        left, sent = [], []
        for seed in range(SEEDS):
            codes, lost, told = swallowed(seed, exploration, {0: (0.0, 60.0)}, 40.0)
            left.append(next((at for key, after, at in told if (key, after) == (codes[0], "down")), float("inf")))
            sent.append(len(lost))
        text = f"left after {sum(left) / SEEDS:.1f} s (worst {max(left):.1f}), "
        text += f"{sum(sent) / SEEDS:.0f} payments (worst {max(sent)}), {SEEDS} seeds"
        what = f"black hole at the processor that all prefer, 10/s, exploration {exploration:g}"
        rows.append(parts.row(what, "3.6 s, 36 payments", text, max(left) <= 3.6 and max(sent) <= 36))
    return rows
