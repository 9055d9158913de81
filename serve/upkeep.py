"""What one worker does for all: checkpoints the store's log, matches feedback that came early, and sends alerts."""

import fcntl
import os
import threading
import time
from typing import IO

from serve.alerts import Alerts
from serve.logs import Log
from smartrouter.feedback.health import Keepers
from smartrouter.feedback.store import Store, StoreUnavailable, connect_file, maintain, reconcile

CHECKPOINT_S = 0.5
RECONCILE_S = 2.0
ELECT_S = 1.0  # how soon another worker takes over when the one with the lock dies


class Upkeep:
    """A thread that works only in the worker that holds the lock; the kernel gives the lock up when a process dies."""

    def __init__(self, store: Store, keepers: Keepers, alerts: Alerts, log: Log):
        self.store, self.keepers, self.alerts, self.log, self.stop = store, keepers, alerts, log, threading.Event()
        self.wal_bytes = 0
        self.thread = threading.Thread(target=self.work, name="upkeep", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def close(self) -> None:
        """Stop it."""
        self.stop.set()
        self.alerts.close()
        if self.thread.is_alive():
            self.thread.join(timeout=5)

    def work(self) -> None:
        """Wait for the lock, then keep the store until stopped."""
        if not self.store.embedded:
            return self.keep(None)
        path = self.store.path.with_name(self.store.path.name + ".upkeep")
        try:
            with open(path, "a+b") as file:
                while not self.elected(file):
                    if self.stop.wait(ELECT_S):
                        return None
                self.log.write("info", "upkeep", elected=os.getpid())
                return self.keep(file)
        except OSError as error:
            self.log.failure("upkeep_failed", error)

    def elected(self, file: IO[bytes]) -> bool:
        """Whether this worker has the lock now."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def keep(self, _held: IO[bytes] | None) -> None:
        """Checkpoint and reconcile in turn, with the alerts beside it; no failure ends the work."""
        self.alerts.start()
        connection = connect_file(self.store.path) if self.store.embedded else None
        next_match = time.monotonic()
        try:
            while not self.stop.wait(CHECKPOINT_S):
                try:
                    if connection is not None:
                        self.wal_bytes = maintain(connection, self.store.path)
                    if time.monotonic() >= next_match:
                        reconcile(self.store, time.time(), self.keepers)
                        next_match = time.monotonic() + RECONCILE_S
                except StoreUnavailable as error:
                    self.log.write("warning", "upkeep_waits", cause=error.cause)
                except Exception as error:
                    self.log.failure("upkeep_failed", error)
        finally:
            if connection is not None:
                connection.close()
