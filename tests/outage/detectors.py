"""What every sequential detector has to keep, whatever it watches."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np


def check_detector(
    start: Callable[[], Any],  # a state without evidence
    step: Callable[[Any, bool, float], float],  # (state, failed, p0) -> evidence; changes the state
    from_json: Callable[[Any], Any],  # of `state.as_json()`
    p0: float = 0.1,  # healthy failing share
    attempts: int = 15,  # of the martingale; few, because rare high runs carry its mean
    runs: int = 6000,
) -> None:
    """Assert promise, monotony, memory in JSON and finite numbers of one detector."""
    rng = np.random.default_rng(7)

    def play(outcomes: Any) -> tuple[Any, float]:
        state, value = start(), 0.0
        for failed in outcomes:
            value = step(state, bool(failed), p0)
        return state, value

    reached = [play(row)[1] for row in rng.random((runs, attempts)) < p0]
    error = float(np.std(reached) / math.sqrt(runs))
    assert np.mean(reached) - attempts < 4 * error, "healthy evidence must not grow faster than one an attempt"
    outcomes = rng.random(60) < 0.3
    for place in range(0, 60, 7):
        better, worse = outcomes.copy(), outcomes.copy()
        better[place], worse[place] = False, True
        assert play(worse)[1] >= play(better)[1], "a failure more is never less evidence"
    state, _ = play(outcomes)
    again = from_json(json.loads(json.dumps(state.as_json())))
    for failed in rng.random(50) < 0.5:
        assert step(again, bool(failed), p0) == step(state, bool(failed), p0), "kept in JSON, it goes on alike"
    state = start()
    for failed in [True] * 5000 + [False] * 5000:
        assert math.isfinite(step(state, failed, p0))
    json.dumps(state.as_json(), allow_nan=False)  # raises for what is no number
