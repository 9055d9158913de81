"""How many requests a key may make: the generic cell rate algorithm, one number a key.

flask-limiter was measured first: with its in-memory storage it took a quarter of a prediction's time (it starts a timer
thread every few requests). Its notation for limits is kept, read by the library beneath it.
"""

import threading

from limits import parse_many

from smartrouter.core.errors import SmartrouterError


class RateRefused(SmartrouterError):
    """A rate limit that cannot be read."""


class Rates:
    """Limits each key to `amount` requests a `period`, bursts of `amount` included; counts this process only."""

    def __init__(
        self,
        text: str,  # such as 600/minute; several separated by ;
    ):
        try:
            parsed = [(item.amount, item.get_expiry()) for item in parse_many(text)]
        except ValueError:
            raise RateRefused(f"rate limit {text!r}", "such as 600/minute", "Set SMARTROUTER_RATE_LIMIT") from None
        self.steps = [(period / amount, float(period)) for amount, period in parsed]  # seconds a request; a period
        self.due: list[dict[str, float]] = [{} for _ in parsed]  # when the requests so far are paid off
        self.lock = threading.Lock()

    def wait(
        self,
        key: str,
        now: float,  # seconds, any steady clock
    ) -> float:
        """Count one request; return 0.0, or the seconds until it would be allowed (then it is not counted)."""
        with self.lock:
            due = [max(table.get(key, 0.0), now) for table in self.due]
            late = max(at + step - now - period for at, (step, period) in zip(due, self.steps, strict=True))
            if late > 1e-9:
                return late
            for table, at, (step, _) in zip(self.due, due, self.steps, strict=True):
                table[key] = at + step
            return 0.0
