"""What the service counts, for Prometheus; right with several workers, also when one of them died.

With several workers each process keeps its numbers in memory-mapped files below PROMETHEUS_MULTIPROC_DIR, and whichever
worker is asked adds them all up.
"""

import os
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metrics:
    """The counters of one application."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        if os.environ.get(FOLDER) and values.ValueClass is values.MutexValue:
            raise RuntimeError("prometheus_client was loaded before its folder was announced: workers would not add up")
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry, "namespace": "smartrouter"}
        self.requests = Counter("requests", "Answered requests", ["route", "status"], **make)
        self.seconds = Histogram("request_seconds", "Time from parsing to answer", ["route"], buckets=SECONDS, **make)
        self.decisions = Counter("decisions", "Rankings by how they came about", ["approach", "fallback"], **make)
        self.replayed = Counter("predictions_replayed", "Requests answered from the record", **make)
        self.not_stored = Counter("predictions_not_stored", "Rankings answered without a record", ["cause"], **make)
        self.feedback = Counter("feedback", "Outcome events by what became of them", ["receipt"], **make)
        self.problems = Counter("problems", "Refused requests by kind of problem", ["kind"], **make)
        self.reloads = Counter("reloads", "Loads of a release, rule set or policy", ["what", "result"], **make)
        self.alerts = Counter("alerts", "Alert messages by what became of them", ["target", "result"], **make)
        latest: dict[str, Any] = {**make, "labelnames": ["target"], "multiprocess_mode": "mostrecent"}
        self.alerts_pending = Gauge("alerts_pending", "State changes that the target was not told yet", **latest)
        self.alerts_oldest = Gauge("alerts_oldest_seconds", "Age of the oldest of them, 0 where all is told", **latest)
        self.applied = Counter("outcomes_applied", "Outcomes folded into the feature state of a worker", **make)
        self.health_failures = Counter("health_failures", "Failed steps of the processors' health", ["what"], **make)
        self.transitions = Counter(
            "processor_transitions", "Changes of state, segments included", ["merchant", "processor", "after"], **make
        )
        self.probes = Counter("probes", "Payments that tried what was down", ["merchant", "processor"], **make)
        self.ticks = Counter("health_ticks", "Times that silence was listened to", **make)
        self.states = Gauge(
            "processor_state",
            "1 for the state that a processor has, 0 for the others",
            ["merchant", "processor", "state"],
            multiprocess_mode="mostrecent",
            **make,
        )
        self.view_age = Gauge(
            "health_view_age_seconds", "Age of the states that decisions see", multiprocess_mode="livemax", **make
        )
        self.version = Gauge("model_version", "Version in use", ["model"], multiprocess_mode="mostrecent", **make)

    def text(self) -> bytes:
        """The numbers of all workers in Prometheus' format."""
        if not os.environ.get(FOLDER):
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)
