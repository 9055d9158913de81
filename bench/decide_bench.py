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

ROUNDS, PAYMENTS = 30, 300
CHANCES = {"WORLDPAY": 0.8, "MIT": 0.7, "ELAVON": 0.6, "AMEX": 0.5}


class Fixed:
    """A model that costs nothing: what is measured is the rest of the decision."""

    name, version, learnt = "fixed", "1", frozenset(CHANCES)

    def probabilities(self, request: Any, processors: Any, now_ms: int) -> list[float]:
        """Fixed probabilities."""
        return [CHANCES[code] for code in processors]


class Looking(Fixed):
    """It builds the features of each request as the service does, and asks no model: a lower bound of the real cost."""

    def __init__(self, state: Any, now_ms: int):
        self.state, self.now_ms = state, now_ms

    def probabilities(self, request: Any, processors: Any, now_ms: int) -> list[float]:
        """Fixed probabilities, after real features."""
        self.state.features(request, tuple(processors), self.now_ms)
        return super().probabilities(request, processors, now_ms)


class Held:
    """A view that nobody changes."""

    def __init__(self, seen: View):
        self.view = seen

    def reserve(self, code: str, name: str, now: float, u: float) -> Probe | None:
        """Lend no probe."""
        return None


def decide_cost() -> list[dict[str, Any]]:
    """Rows of the bench table: medians of ratios over rounds in turn."""
    from smartrouter.features.dataset import requests_of
    from smartrouter.features.live import freeze, thaw

    table = parts.pull(parts.build_world(250_000, "quarter"))
    data = parts.dataset(table)
    looking = Looking(thaw(freeze(data.outcomes, data.lookups), data.lookups), int(data.outcomes.known_ms[-1]) + 1_000)
    payments = requests_of(table.slice(table.num_rows - PAYMENTS, PAYMENTS).to_pylist())
    policy = load_policy("volaris", parts.ROOT / "params")
    config = load_config(parts.ROOT / "params/outage/default.yaml")
    quiet, trouble = (open_health(config, policy.codes) for _ in range(2))
    for second in range(6):
        outcome(trouble, Ended("WORLDPAY", second - 0.5, "technical"), float(second))
    cases = {"none": None, "all up": Held(view(quiet)), "one down": Held(view(trouble))}
    rows = []
    for how, model in (("with the features of the request", looking), ("without features and model", Fixed())):
        spent: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, health in cases.items():
                began = time.perf_counter()
                for n, payment in enumerate(payments):
                    decide(payment, now=10.0, policy=policy, predictor=model, rng=Random(n), health=health)
                spent[name].append((time.perf_counter() - began) / PAYMENTS * 1e6)
        for name in ("all up", "one down"):
            ratio = statistics.median(a / b for a, b in zip(spent[name], spent["none"], strict=True))
            medians = " against ".join(f"{statistics.median(spent[which]):.0f}" for which in (name, "none"))
            text, judged = f"{ratio:.3f} times ({medians} us)", model is looking
            bar, met = ("<= 1.05 times", ratio <= 1.05) if judged else ("", None)
            rows.append(parts.row(f"decide, {name}, {how}", bar, text, met))
    return rows
