"""What the states of the processors cost a decision: the same payments with and without them, in turn."""

import statistics
import time
from random import Random
from typing import Any

from bench import parts
from smartrouter.outage.config import load_config
from smartrouter.outage.health import Ended, open_health, outcome
from smartrouter.outage.probe import Probe
from smartrouter.outage.states import View, view
from smartrouter.router.decide import decide
from smartrouter.rules.policy import load_policy

ROUNDS, PAYMENTS = 60, 500
CHANCES = {"WORLDPAY": 0.8, "MIT": 0.7, "ELAVON": 0.6}


class Fixed:
    """A model that costs nothing, so that what is measured is the rest of the decision."""

    name, version, learnt = "fixed", "1", frozenset(CHANCES)

    def probabilities(self, request: Any, processors: Any, now_ms: int) -> list[float]:
        """Fixed probabilities."""
        return [CHANCES[code] for code in processors]


class Held:
    """A view that nobody changes."""

    def __init__(self, seen: View):
        self.view = seen

    def reserve(self, code: str, name: str, now: float, u: float) -> Probe | None:
        """Lend no probe."""
        return None


def decide_cost() -> list[dict[str, Any]]:
    """Rows of the bench table: medians of ratios over rounds in turn."""
    policy, config = (
        load_policy("volaris", parts.ROOT / "params"),
        load_config(parts.ROOT / "params/outage/default.yaml"),
    )
    quiet, trouble = (open_health(config, policy.codes) for _ in range(2))
    for second in range(6):
        outcome(trouble, Ended("WORLDPAY", second - 0.5, "technical"), float(second))
    cases = {"none": None, "all up": Held(view(quiet)), "one down": Held(view(trouble))}
    spent: dict[str, list[float]] = {name: [] for name in cases}
    payments = [
        {
            "order": {"amount": 2450.0, "currency": "MXN"},
            "card": {"bin": str(400000 + n), "brand": "VISA", "bank": "BBVA"},
            "payment": {"initiation": "CIT"},
        }
        for n in range(PAYMENTS)
    ]
    for _ in range(ROUNDS):
        for name, health in cases.items():
            began = time.perf_counter()
            for n, payment in enumerate(payments):
                decide(payment, now=10.0, policy=policy, predictor=Fixed(), rng=Random(n), health=health)
            spent[name].append((time.perf_counter() - began) / PAYMENTS * 1e6)
    rows = []
    for name in ("all up", "one down"):
        ratio = statistics.median(a / b for a, b in zip(spent[name], spent["none"], strict=True))
        text = f"{ratio:.3f} times ({statistics.median(spent[name]):.1f} against {statistics.median(spent['none']):.1f} us, without the model)"
        rows.append(parts.row(f"decide with states, {name}", "<= 1.05 times", text, ratio <= 1.05))
    return rows
