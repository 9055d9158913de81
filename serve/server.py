"""Granian, with two changes of manner: killed workers are always replaced, and Ctrl-C reaches the parent only."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
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

    def _respawn_workers(self, *given: Any, **named: Any) -> None:
        with without_interrupt():
            super()._respawn_workers(*given, **named)
