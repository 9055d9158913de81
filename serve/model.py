"""The package's router and releases, as the service uses them."""

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from smartrouter.models.package import Predictor, load_release
from smartrouter.router.decide import decide

APPLY_WAIT_S = 1.0  # how long an outcome waits for a model call to end

__all__ = ["Champion", "decide", "load_model"]


class Busy(Exception):
    """A model call did not end, so its state could not be changed."""


class Champion:
    """A loaded release; its feature state is read and changed by one thread at a time."""

    def __init__(self, predictor: Predictor):
        manifest = predictor.release.manifest
        self.predictor, self.lock = predictor, threading.Lock()
        self.name, self.version, self.learnt = predictor.name, predictor.version, predictor.learnt
        self.known_until = float(manifest.get("known_until_ms") or 0) / 1000
        self.created_at = datetime.fromisoformat(str(manifest["created_at"])).timestamp()
        self.feature_contract = str(manifest["contract"])

    def probabilities(self, request: Mapping[str, Any], processors: Sequence[str], now_ms: int) -> Any:
        """Approval probability of each processor."""
        with self.lock:
            return self.predictor.probabilities(request, processors, now_ms)

    def intervals(self, request: Mapping[str, Any], processors: Sequence[str], now_ms: int, level: float) -> Any:
        """Approval probability of each processor, and its bounds where the release has them."""
        with self.lock:
            return self.predictor.intervals(request, processors, now_ms, level)

    def apply(self, row: Mapping[str, Any]) -> None:
        """Fold in one outcome; raises `Busy` when a model call hangs."""
        if not self.lock.acquire(timeout=APPLY_WAIT_S):
            raise Busy("a model call holds the feature state")
        try:
            self.predictor.apply(row)
        finally:
            self.lock.release()


def load_model(folder: Path) -> Champion:
    """Load and check a release folder; raises the errors of `smartrouter.models.package`."""
    return Champion(Predictor(load_release(folder)))
