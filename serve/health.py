"""The processors' health in the service: every worker looks for changes, one listens to what is not answered."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from pydantic_core import from_json

from serve.logs import Log
from serve.metrics import Metrics
from smartrouter.feedback.health import Keepers, refresh, tick
from smartrouter.feedback.store import Store, StoreUnavailable, newest_outcome
from smartrouter.outage.control import Transition, effective
from smartrouter.outage.watch import Watch, answered, started

VIEW_S = 0.04  # between two looks at the states: a change is seen by every worker within a tenth of a second
TICK_S = 0.25  # between two looks at what is not answered
ELECT_S = 1.0  # how soon another worker takes over from one that died
SAY_S = 10.0  # between two lines that say that the store is gone
SEEN_S = 0.05  # an answer that was not there at the last reading was decided at most so long before it
LATE_S = 3.0  # an answer is in the store so soon after its decision
LISTEN_LOCK = 0x736D73  # any number, the same for all workers; another than feedback.store.ORDER_LOCK
STATES = ("up", "degraded", "down", "recovering")


def open_keepers(store: Store, log: Log, metrics: Metrics, url: str = "") -> Keepers:
    """The keepers of a worker, which log and count what happens; with a URL, they keep the health in Redis."""

    said: dict[str, float] = {}  # what -> time.monotonic() of its last line

    def failed(what: str, error: Exception) -> None:
        metrics.health_failures.labels(what).inc()
        if isinstance(error, StoreUnavailable):
            if time.monotonic() - said.get(what, -SAY_S) >= SAY_S:
                said[what] = time.monotonic()
                log.write("warning", what, cause=error.cause)
        else:
            log.failure(what, error)

    def moved(merchant_id: str, told: Sequence[Transition]) -> None:
        for line in told:
            metrics.transitions.labels(merchant_id, line.key.partition("|")[0], line.after).inc()
            log.write(
                "warning" if line.after in ("down", "degraded", "gap") else "info",
                "processor_state",
                merchant=merchant_id,
                key=line.key,
                before=line.before,
                after=line.after,
                why=line.why,
                incident=line.incident or None,
            )

    if url:
        from smartrouter.feedback.shared import SharedKeepers  # here: most services need no Redis

        return SharedKeepers(store, url, failed, moved)
    return Keepers(store, failed, moved)


class Looking:
    """A thread in every worker that keeps the views of its keepers fresh."""

    def __init__(self, keepers: Keepers, log: Log, metrics: Metrics):
        self.keepers, self.log, self.metrics, self.stop = keepers, log, metrics, threading.Event()
        self.told: dict[str, Any] = {}  # merchant -> the view that the metrics tell
        self.thread = threading.Thread(target=self.work, name="looking", daemon=True)

    def start(self) -> None:
        """Look once before the first payment, then keep looking."""
        self.look()
        self.thread.start()

    def close(self) -> None:
        """Stop it."""
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join(timeout=5)

    def age_s(self) -> float | None:
        """Seconds since the views were known to be right; None: never."""
        at = self.keepers.fresh_at
        return None if at is None else max(time.monotonic() - at, 0.0)

    def states(self, merchant_id: str) -> dict[str, str]:
        """The state of each processor as decisions see it now."""
        keeper, now = self.keepers.of.get(merchant_id), time.time()
        return {code: effective(control, now) for code, control in keeper.view.controls.items()} if keeper else {}

    def work(self) -> None:
        """Look until stopped; no failure ends the thread."""
        while not self.stop.wait(VIEW_S):
            try:
                self.look()
            except Exception as error:
                self.log.failure("looking", error)

    def look(self) -> None:
        """Refresh the views, and tell the metrics where one changed."""
        refresh(self.keepers)
        self.metrics.view_age.set(self.age_s() or 0.0)
        for merchant_id, keeper in self.keepers.of.items():
            if self.told.get(merchant_id) is not keeper.view:
                self.told[merchant_id] = keeper.view
                self.tell(merchant_id)

    def tell(self, merchant_id: str) -> None:
        """Set the state of each processor: 1 for the one it has, 0 for the others."""
        for code, found in self.states(merchant_id).items():
            for state in STATES:
                self.metrics.states.labels(merchant_id, code, state).set(float(state == found))


@contextmanager
def chosen(store: Store, stop: threading.Event) -> Iterator[bool]:
    """Wait to be the one worker of all, on all hosts; False when stopped before. The lock ends with its process."""
    if store.embedded:
        with open(store.path.with_name(store.path.name + ".listening"), "a+b") as file:
            yield wait_for(lambda: locked(file.fileno()), stop)
        return
    with store.engine.connect() as connection:
        ask = sa.text(f"SELECT pg_try_advisory_lock({LISTEN_LOCK})")
        connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            yield wait_for(lambda: bool(connection.execute(ask).scalar()), stop)
        finally:
            connection.invalidate()  # the lock is its session's, which the pool would keep


def locked(file: int) -> bool:
    """Whether this process has the lock of an open file now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(ours: Any, stop: threading.Event) -> bool:
    """Ask once a second until the answer is yes; False when stopped before."""
    while not ours():
        if stop.wait(ELECT_S):
            return False
    return True


class Listening:
    """A thread that, in one worker of all, follows which payments were sent and answered, and lets time pass."""

    def __init__(self, keepers: Keepers, log: Log, metrics: Metrics):
        self.keepers, self.store, self.log, self.metrics = keepers, keepers.store, log, metrics
        self.stop = threading.Event()
        self.forget()
        self.thread = threading.Thread(target=self.work, name="listening", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def close(self) -> None:
        """Stop it."""
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join(timeout=5)

    def forget(self) -> None:
        """Know of no payment."""
        self.last: int | None = None  # id of the last outcome that was read; None: start over
        self.watches: dict[str, dict[str, Watch]] = {}  # merchant -> processor
        self.sent: dict[str, tuple[float, str, str]] = {}  # id -> (at, merchant, processor), in the order of reading
        self.early: dict[str, float] = {}  # id -> when its outcome was read, before the payment itself was
        self.read_at = 0.0  # epoch seconds

    def work(self) -> None:
        """Wait to be chosen, then listen until stopped; a connection that broke is one to wait on again."""
        while not self.stop.is_set():
            try:
                with chosen(self.store, self.stop) as ours:
                    if ours:
                        self.log.write("info", "listening", elected=os.getpid())
                        self.listen()
            except Exception as error:
                self.log.failure("listening_failed", error)
                self.stop.wait(ELECT_S)

    def listen(self) -> None:
        """Read and tick in turn until stopped; a store that is gone for a while is waited for."""
        self.forget()
        while not self.stop.wait(TICK_S):
            try:
                self.turn(time.time())
            except StoreUnavailable as error:
                self.keepers.failed("listening_waits", error)

    def turn(self, now: float) -> None:
        """Read what is new, and let time pass for each merchant; raises `StoreUnavailable`.

        Each merchant's tick is a write transaction, also where nothing changes and nothing is written: 0.06 ms in
        SQLite, 0.3 ms in Redis on a busy machine. Computing first, and locking for a change only, would cost as much.
        """
        self.follow(now)
        for merchant_id, keeper in self.keepers.of.items():
            found = self.watches.get(merchant_id, {})
            tick(self.keepers, merchant_id, {code: w for code, w in found.items() if code in keeper.codes}, now)
        self.keepers.carry(now)
        self.metrics.ticks.inc()

    def follow(self, now: float) -> None:
        """Read payments that were sent, then outcomes; both overlap what was read before, and count once."""
        horizon = max((keeper.config.silence.horizon_s for keeper in self.keepers.of.values()), default=0.0)
        if self.last is None:
            self.forget()
            last, since = newest_outcome(self.store), now - horizon
            self.read_sent(since, now)
            over = [row[1] for row in self.store.read("answered_since", since=since)]
            self.last = last
        else:
            self.read_sent(now - LATE_S - self.pause(now), now)
            rows = self.store.read("answered_after", last=self.last)
            over = [prediction_id for _, prediction_id in rows]
            self.last = rows[-1][0] if rows else self.last
        self.read_at = now
        for prediction_id in over:
            self.end(prediction_id, now)
        self.drop(now - LATE_S - self.pause(now) - horizon)

    def pause(self, now: float) -> float:
        """Seconds since the last reading: usually a quarter of one."""
        return max(now - self.read_at, 0.0)

    def read_sent(self, since: float, now: float) -> None:
        """Watch payments that were sent since."""
        ((text,),) = self.store.read("sent_since", since=since)
        new = [row for row in from_json(text or "[]") if row[0] not in self.sent]
        for prediction_id, merchant_id, ranking, at in sorted(new, key=lambda row: row[3]):
            keeper = self.keepers.of.get(merchant_id)
            if keeper is None:
                continue
            code = next(iter(from_json(ranking)), "")
            self.sent[prediction_id] = at, merchant_id, code
            if code not in keeper.codes:
                continue
            watch = self.watches.setdefault(merchant_id, {}).setdefault(code, Watch())
            config = keeper.config
            seen = min(max(at, now - self.pause(now) - SEEN_S), now)  # other hosts' clocks may be off
            started(watch, prediction_id, seen, config.silence.newest, config.watch.most_open)
            if self.early.pop(prediction_id, None) is not None:
                answered(watch, prediction_id)

    def end(self, prediction_id: str, now: float) -> None:
        """Stop to wait for a payment, whichever processor its outcome speaks of."""
        if prediction_id not in self.sent:
            self.early[prediction_id] = now
            return
        _, merchant_id, code = self.sent[prediction_id]
        watch = self.watches.get(merchant_id, {}).get(code)
        if watch is not None:
            answered(watch, prediction_id)

    def drop(self, before: float) -> None:
        """Forget payments from before, and outcomes whose payment never came."""
        for known, at_of in ((self.sent, lambda v: v[0]), (self.early, lambda v: v)):
            old = []
            for prediction_id, value in known.items():
                if at_of(value) >= before:
                    break
                old.append(prediction_id)
            for prediction_id in old:
                del known[prediction_id]
