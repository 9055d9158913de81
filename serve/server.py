"""Granian, with changes: killed workers are always replaced, Ctrl-C reaches the parent only, a stop is told again."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from granian import Granian

KILLED = (-signal.SIGKILL, -signal.SIGTERM)


class Respawned(dict[int, float]):
    """When each worker was started again; forgets it for workers that were killed from outside.

    Granian ends the whole service when a worker dies within 5.5 s of its start. That is right for one that cannot load
    (it exits by itself); one that the kernel or an operator killed twice says nothing against the service.
    """

    def __init__(self, server: Any):
        super().__init__()
        self.server = server

    def get(self, index: int, default: Any = None) -> Any:
        """The time that Granian compares with now."""
        workers = [worker for worker in self.server.wrks if worker.idx == index]
        if any(worker.inner.exitcode in KILLED for worker in workers):
            return default
        return super().get(index, default)


def remind(pids: list[int], stopped: threading.Event) -> None:
    """Tell processes that are still there to stop, twice."""
    for _ in range(2):
        if stopped.wait(1.0):
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


@contextmanager
def without_interrupt() -> Iterator[None]:
    """Processes started inside never see SIGINT.

    A terminal sends Ctrl-C to all of them, and the parent then ends its workers by SIGTERM. A Granian worker that gets
    both stops halfway, holds on until the kill timeout (5 s) and is killed.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Server(Granian):  # type: ignore[valid-type,misc]  # MPServer or MTServer, by the interpreter
    """The server of `serve.run`."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.respawned_wrks = Respawned(self)

    def _spawn_workers(self, *given: Any, **named: Any) -> None:
        with without_interrupt():
            super()._spawn_workers(*given, **named)

    def _stop_workers(self) -> None:
        """Stop the workers; the first signal was lost in half of the stops that were tried, the second one in none."""
        stopped, pids = threading.Event(), [worker.inner.pid for worker in self.wrks]
        threading.Thread(target=remind, args=(pids, stopped), name="remind", daemon=True).start()
        try:
            super()._stop_workers()
        finally:
            stopped.set()

    def _respawn_workers(self, *given: Any, **named: Any) -> None:
        with without_interrupt():
            super()._respawn_workers(*given, **named)
