"""Runs a call with a time limit: Python cannot stop a thread, so the caller leaves and the thread finishes alone."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any


class TooSlow(Exception):
    """The call did not answer in time."""


class Saturated(Exception):
    """All threads are busy with calls that have not come back."""


class Job:
    """One call on its way."""

    __slots__ = ("abandoned", "call", "done", "error", "finished", "result")

    def __init__(self, call: Callable[[], Any]):
        self.call, self.done = call, threading.Lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None
        self.abandoned = self.finished = False


class Deadline:
    """A few threads; a call that finds all of them stuck is turned away at once instead of queueing."""

    def __init__(
        self,
        threads: int = 2,  # calls at the same time
        queued: int = 16,  # calls that may wait for a thread
    ):
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.most, self.flying, self.lock = threads + queued, 0, threading.Lock()
        self.stuck, self.threads = 0, threads
        for index in range(threads):
            threading.Thread(target=self.work, name=f"model-{index}", daemon=True).start()

    def work(self) -> None:
        """Take jobs until told to stop."""
        while (job := self.jobs.get()) is not None:
            if not job.abandoned:
                try:
                    job.result = job.call()
                except BaseException as error:
                    job.error = error
            with self.lock:
                self.flying -= 1
                self.stuck -= job.abandoned
                job.finished = True
            job.done.release()

    def run(
        self,
        call: Callable[[], Any],
        limit: float,  # time.perf_counter() at which the caller leaves
    ) -> Any:
        """The call's result or exception; raises `TooSlow` or `Saturated`."""
        with self.lock:
            if self.stuck >= self.threads or self.flying >= self.most:
                raise Saturated(f"{self.flying} model calls have not come back")
            self.flying += 1
        job = Job(call)
        self.jobs.put(job)
        if not job.done.acquire(timeout=max(limit - time.perf_counter(), 0.0)):
            with self.lock:
                if not job.finished:
                    job.abandoned = True
                    self.stuck += 1
                    raise TooSlow
        if job.error is not None:
            raise job.error
        return job.result

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        for _ in range(self.threads):
            self.jobs.put(None)
