"""One JSON line a record, written at once, so that lines of several workers never mix and no value can forge a line."""

import json
import os
import time
import traceback
from typing import Any

from smartrouter.core.cards import find_card_number

ENCODE = json.JSONEncoder(ensure_ascii=True, default=str).encode  # built once: json.dumps builds one a call
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Log:
    """Writes records of a level and above to a file descriptor."""

    def __init__(
        self,
        level: str = "info",  # one of LEVELS
        descriptor: int = 1,  # standard output
    ):
        self.least, self.descriptor, self.pid = LEVELS[level], descriptor, os.getpid()
        self.told: dict[str, tuple[float, int]] = {}  # key -> (when it was written last, how often it came since)

    def seldom(self, key: str) -> int | None:
        """How often `key` came since its last record; None within a second of it, so that a storm is one line."""
        now, (last, missed) = time.monotonic(), self.told.get(key, (-1.0, 0))
        if now - last < 1.0:
            self.told[key] = last, missed + 1
            return None
        self.told[key] = now, 0
        return missed

    def write(self, level: str, event: str, **fields: Any) -> None:
        """Write one record; fields that are None are left out. A log that cannot be written stops nothing."""
        if LEVELS[level] < self.least:
            return
        record = {"time": round(time.time(), 3), "level": level, "event": event, "pid": self.pid}
        record |= {name: value for name, value in fields.items() if value is not None}
        try:
            os.write(self.descriptor, ENCODE(record).encode() + b"\n")
        except OSError:
            return

    def failure(self, event: str, error: BaseException, **fields: Any) -> None:
        """Write an unexpected error: its type and where it happened; its text only if it holds no card number."""
        missed = self.seldom(f"{event} {type(error).__name__}")
        if missed is None:
            return
        frames = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)[-8:]]
        text = str(error)[:500]
        safe = text if find_card_number(text) is None else "(withheld: holds a card number)"
        self.write(
            "error", event, error=type(error).__name__, message=safe, frames=frames, missed=missed or None, **fields
        )
