"""Starts the service: Granian in front of the Flask application, several workers, one store."""

import errno
import importlib.util
import os
import socket
import tempfile
from pathlib import Path

from serve.rates import Rates
from serve.security import check_exposure
from smartrouter.core.errors import SmartrouterError
from smartrouter.core.settings import PREFIX, Settings
from smartrouter.feedback.tables import open_engine
from smartrouter.outage.config import config_path, load_config
from smartrouter.rules.policy import load_policy

THREADS = 1  # per worker: more only fight for the interpreter (measured: 4 threads answer half as many) …
THREADS_THAT_WAIT = 4  # … unless each answer waits for a disk or a network
BACKLOG = 1024  # connections that may wait to be accepted
BACKPRESSURE = 256  # requests taken on at the same time, per worker
TARGET = "serve.app:worker_app"  # what each worker loads and calls


class CannotListen(SmartrouterError):
    """The service's address and port are taken, not allowed, or not of this machine."""


class CannotKeep(SmartrouterError):
    """The home folder cannot be written to."""


def check(settings: Settings) -> None:
    """Raise a `SmartrouterError` where the service could not start with these settings; quick, and starts nothing."""
    check_exposure(settings.host, settings.api_keys)
    Rates(settings.rate_limit)
    load_policy(settings.merchant, settings.params, settings.home)
    load_config(config_path(settings.merchant, settings.params, settings.home))
    check_home(settings.home)
    if settings.alerts:
        from smartrouter.monitor.alerts import some_targets

        some_targets(settings.alerts)
    open_engine(settings.store).dispose()  # looks at the URL and for its driver, and connects to nothing
    check_health(settings.health)
    check_port(settings.host, settings.port)


def check_health(url: str) -> None:
    """Raise a `SmartrouterError` for a URL that names no Redis; connects to nothing."""
    if url:
        from smartrouter.feedback.shared import connect

        connect(url).close()


def check_workbench(settings: Settings) -> None:
    """Raise a `SmartrouterError` for a warehouse or MLflow URL that cannot be; the serving install uses neither."""
    if importlib.util.find_spec("duckdb"):
        from smartrouter.warehouse.connect import parse_url

        parse_url(settings.warehouse)
    if importlib.util.find_spec("mlflow"):
        from smartrouter.registry.versions import check_url

        check_url(settings.mlflow)


def check_home(home: Path) -> None:
    """Raise `CannotKeep` where nothing can be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise CannotKeep(
            f"{home} cannot be written to ({error.strerror or error})",
            "a folder for the service's state",
            "Set SMARTROUTER_HOME to another folder, or correct its rights",
        ) from error


def check_port(host: str, port: int) -> None:
    """Raise `CannotListen` where the address cannot be listened on."""
    place = f"port {port} of {host}"
    remedies = {
        errno.EADDRINUSE: (f"{place} is taken", "Stop what listens there, or set SMARTROUTER_PORT to another port"),
        errno.EACCES: (f"{place} needs rights that this user lacks", "Set SMARTROUTER_PORT to 1024 or more"),
    }
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as probe:  # without SO_REUSEPORT: a second service must not share ours
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except OSError as error:
        known = (f"{host} is no address to listen on ({error.strerror or error})", "Correct SMARTROUTER_HOST")
        given, remedy = remedies.get(error.errno or 0, known)
        raise CannotListen(given, "a free port on an address of this machine", remedy) from error


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
    from smartrouter.feedback.store import upgrade

    check(settings)
    upgrade(settings.store)
    share_metrics(Path(settings.home) / "metrics" / str(settings.port))  # another service may share the home
    announce(settings)
    embedded = settings.store.startswith("sqlite") and not settings.health
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
