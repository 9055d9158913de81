"""Who may call: API keys, card numbers outside the body, and whether an open service is allowed at all."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from serve.problems import ProblemError
from smartrouter.core.cards import find_card_number
from smartrouter.core.errors import SmartrouterError

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,63}")


class KeysRequired(SmartrouterError):
    """The service would be open to a network without any key."""


class Keys:
    """The valid API keys, kept as SHA-256 digests; several are valid at once, for rotation."""

    def __init__(
        self,
        text: str,  # comma-separated
    ):
        self.digests = [hashlib.sha256(key.encode()).digest() for key in map(str.strip, text.split(",")) if key]

    def valid(self, given: str | None) -> bool:
        """Compare with every key in constant time; without any configured key everybody may call."""
        if not self.digests:
            return True
        if not given:
            return False
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        return any([hmac.compare_digest(digest, known) for known in self.digests])  # a list: no early end


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, keys: str) -> None:
    """Raise `KeysRequired` when the service would listen beyond this machine without a key."""
    if not loopback(host) and not Keys(keys).digests:
        raise KeysRequired(
            f"host {host} and no API key",
            "at least one key, or a loopback address such as 127.0.0.1",
            "Set SMARTROUTER_API_KEYS to one or more keys, comma-separated",
        )


def refuse_cards_outside_body(environ: Mapping[str, Any]) -> None:
    """Raise `ProblemError` when the request line or a header of a WSGI request holds a full card number."""
    path, query = environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", "")
    if len(path) + len(query) >= 13:
        for text in (path, query, unquote(path), unquote(query.replace("+", " "))):
            if find_card_number(text) is not None:
                raise ProblemError("card-number", "A full card number was found in the URL", [fault("$url")])
    for name, value in environ.items():
        if (
            name[:5] == "HTTP_"
            and (len(value) >= 13 or len(name) >= 18)
            and (find_card_number(value) or find_card_number(name[5:].replace("_", "-")))
        ):
            raise ProblemError("card-number", "A full card number was found in a header", [fault("$headers")])


def fault(path: str) -> dict[str, str]:
    """The errors entry of a card number."""
    return {"path": path, "reason": "full card number"}


def request_id_of(given: str | None) -> str | None:
    """The caller's request id when it is safe to repeat and to log, else None."""
    if given and REQUEST_ID.fullmatch(given) and find_card_number(given) is None:
        return given
    return None
