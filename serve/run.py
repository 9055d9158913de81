"""Starts the service: Granian in front of the Flask application, several workers, one store."""

import os
import socket
from pathlib import Path

from serve.rates import Rates
from serve.security import check_exposure
from smartrouter.core.errors import SmartrouterError
from smartrouter.core.settings import PREFIX, Settings
from smartrouter.feedback.store import upgrade
from smartrouter.rules.policy import load_policy

THREADS = 1  # per worker: more only fight for the interpreter (measured: 4 threads answer half as many) …
THREADS_THAT_WAIT = 4  # … unless each answer waits for a disk or a network
BACKLOG = 1024  # connections that may wait to be accepted
BACKPRESSURE = 256  # requests taken on at the same time, per worker
TARGET = "serve.app:worker_app"  # what each worker loads and calls


class CannotListen(SmartrouterError):
    """The address is taken, or not ours."""


def check(settings: Settings) -> None:
    """Raise a `SmartrouterError` when the service could not start with these settings."""
    check_exposure(settings.host, settings.api_keys)
    Rates(settings.rate_limit)
    load_policy(settings.merchant, settings.params, settings.home)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host.strip("[]"), settings.port))
    except OSError as error:
        raise CannotListen(
            f"{settings.host} port {settings.port}: {error.strerror}",
            "an address of this machine with a free port",
            "Stop what listens there, or set SMARTROUTER_PORT",
        ) from None


def share_metrics(folder: Path) -> None:
    """Empty and announce the folder in which the workers' numbers meet; before prometheus_client is ever loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.db"):
        old.unlink(missing_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder.resolve())
    os.environ["PROMETHEUS_DISABLE_CREATED_SERIES"] = "true"


def announce(settings: Settings) -> None:
    """Put the settings into the environment, where workers read them after they start."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is not None:
            os.environ[f"{PREFIX}{name.upper()}"] = str(value)


def main(settings: Settings, target: str = TARGET) -> None:
    """Prepare the store and serve until a signal; workers that die are started again."""
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings

    from serve.server import Server

    check(settings)
    upgrade(settings.store)
    share_metrics(Path(settings.home) / "metrics")
    announce(settings)
    embedded = settings.store.startswith("sqlite")
    server = Server(
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
        backpressure=BACKPRESSURE,
        blocking_threads=THREADS if embedded and settings.durability == "process" else THREADS_THAT_WAIT,
        respawn_failed_workers=True,
        respawn_interval=0.5,
        workers_kill_timeout=5,
        log_level="warning",
        log_access=False,
    )
    server.serve()


if __name__ == "__main__":
    main(Settings.load())
