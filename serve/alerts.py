"""Sends alerts from the worker that keeps the store: a thread for each target, none of them in a payment's way."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from serve.logs import Log
from serve.metrics import Metrics
from smartrouter.feedback.store import Store, StoreUnavailable
from smartrouter.monitor.alerts import Pace, Target, TargetRefused, Turn, opened, send, targets, turn
from smartrouter.monitor.outbox import Outbox, Pending, join, pending

LOOK_S = 0.5  # between two looks at what is pending


class Alerts:
    """The targets of this service."""

    def __init__(
        self,
        store: Store,
        setting: str,  # SMARTROUTER_ALERTS
        zone_of: Callable[[str], str],  # merchant -> IANA zone
        log: Log,
        metrics: Metrics,
        pace: Pace | None = None,
    ):
        self.zone_of, self.log, self.metrics, self.pace = zone_of, log, metrics, pace or Pace()
        self.problem = ""
        try:
            self.boxes = [(target, Outbox(store, target.key)) for target in targets(setting)]
        except TargetRefused as error:  # a file that went after the service had started: payments go on
            self.boxes, self.problem = [], f"alerts: {error}"
            log.write("error", "alerts_refused", message=str(error))
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start a thread for each target; only the worker that keeps the store does."""
        self.threads = [
            threading.Thread(target=self.work, args=box, name=f"alerts {box[0].name}", daemon=True)
            for box in self.boxes
        ]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """Stop them; a send that is under way is not waited for, another worker sends again."""
        self.stop.set()
        for thread in self.threads:
            thread.join(timeout=1)

    def work(self, target: Target, outbox: Outbox) -> None:
        """Join, then tell what is pending until stopped; no failure ends the work."""
        joined = False
        while not self.stop.wait(LOOK_S):
            try:
                if not joined:
                    join(outbox)
                    opened(target)  # loads apprise now, and not in the first outage
                    joined = True
                while not self.stop.is_set() and self.tell(target, outbox).batch is not None:
                    pass
            except StoreUnavailable as error:
                if self.log.seldom(f"alerts_wait {target.name}") is not None:
                    self.log.write("warning", "alerts_wait", target=target.name, cause=error.cause)
            except Exception as error:
                self.log.failure("alerts_failed", error, target=target.name)

    def tell(self, target: Target, outbox: Outbox) -> Turn:
        """One turn, counted and logged."""
        now, metrics = time.time(), self.metrics
        done = turn(outbox, partial(send, target, limit_s=self.pace.send_s), now, self.pace, self.zone_of)
        if done.batch is not None:
            metrics.alerts.labels(target.name, "failed" if done.failed else "sent").inc()
            facts: dict[str, Any] = {"target": target.name, "incident": done.batch.name, "changes": len(done.lines)}
            if done.failed:
                self.log.write("warning", "alert_failed", reason=done.failed, tries=done.pending.tries + 1, **facts)
            else:
                self.log.write("info", "alert_sent", **facts)
        metrics.alerts_pending.labels(target.name).set(changes(done.pending))
        metrics.alerts_oldest.labels(target.name).set(age_s(done.pending, now))
        return done

    def readiness(self, now: float) -> list[dict[str, Any]]:
        """What is pending for each target, as the store says; the same in every worker."""
        found = []
        for target, outbox in self.boxes:
            told: dict[str, Any] = {"target": target.name, "pending": None, "oldest_s": None, "failed_in_a_row": None}
            try:
                waits = pending(outbox)
                told |= {"pending": changes(waits), "oldest_s": round(age_s(waits, now), 1)}
                told["failed_in_a_row"] = waits.tries
            except StoreUnavailable:
                pass  # the store's own line says so
            found.append(told)
        return found


def changes(waits: Pending) -> int:
    """How many transitions are pending."""
    return sum(len(batch.lines) for batch in waits.batches)


def age_s(waits: Pending, now: float) -> float:
    """Seconds since the oldest pending transition, 0 where all is told."""
    oldest = waits.oldest_at()
    return 0.0 if oldest is None else max(now - oldest, 0.0)
