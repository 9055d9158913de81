"""Starts the service: Granian in front of the Flask application, several workers, one store."""

import os
import sys
from pathlib import Path

from serve.metrics import prepare
from serve.security import check_exposure
from smartrouter.core.settings import PREFIX, Settings
from smartrouter.feedback.store import upgrade

BLOCKING_THREADS = 4  # per worker: a thread waits while the store or a slow model is waited for
BACKLOG = 1024
TARGET = "serve.app:worker_app"  # what each worker loads and calls


def announce(settings: Settings) -> None:
    """Put the settings into the environment, where workers read them after they start."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is not None:
            os.environ[f"{PREFIX}{name.upper()}"] = str(value)


def main(settings: Settings, target: str = TARGET) -> None:
    """Prepare the store and serve until a signal; workers that die are started again."""
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings

    check_exposure(settings.host, settings.api_keys)
    upgrade(settings.store)
    prepare(Path(settings.home) / "metrics")
    announce(settings)
    server = Granian(
        target,
        factory=True,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.WSGI,
        workers=settings.workers,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=10_000),
        websockets=False,
        backlog=BACKLOG,
        backpressure=int(os.environ.get("SR_BACKPRESSURE", "64")),
        blocking_threads=int(os.environ.get("SR_THREADS", BLOCKING_THREADS)),
        respawn_failed_workers=True,
        respawn_interval=0.5,
        workers_kill_timeout=10,
        log_level="warning",
        log_access=False,
    )
    server.serve()


if __name__ == "__main__":
    sys.exit(main(Settings.load()))
