"""Granian, with one change of manner: workers that were killed are replaced, however often it happens."""

import signal
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


class Server(Granian):  # type: ignore[valid-type,misc]  # MPServer or MTServer, by the interpreter
    """The server of `serve.run`."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.respawned_wrks = Respawned(self)
