"""Whether the service could start here, asked before anything long is done: keys for the address, and a free port."""

import errno
import socket

from serve.security import check_exposure
from smartrouter.core.errors import SmartrouterError
from smartrouter.core.settings import Settings


class CannotListen(SmartrouterError):
    """The service's address and port are taken, not allowed, or not of this machine."""


def check(settings: Settings) -> None:
    """Raise `CannotListen`, or what `check_exposure` raises, where the service could not start."""
    check_exposure(settings.host, settings.api_keys)
    place = f"port {settings.port} of {settings.host}"
    remedies = {
        errno.EADDRINUSE: (f"{place} is taken", "Stop what listens there, or set SMARTROUTER_PORT to another port"),
        errno.EACCES: (f"{place} needs rights that this user lacks", "Set SMARTROUTER_PORT to 1024 or more"),
    }
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as probe:  # without SO_REUSEPORT: a second service must not share ours
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except OSError as error:
        known = (f"{settings.host} is no address to listen on ({error.strerror or error})", "Correct SMARTROUTER_HOST")
        given, remedy = remedies.get(error.errno or 0, known)
        raise CannotListen(given, "a free port on an address of this machine", remedy) from error
