"""From bytes to a checked request: media type, size, JSON, card numbers, types, in this order."""

import json
import re
from typing import Any, NoReturn, TypeVar

from flask import request
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import RequestEntityTooLarge

from serve.problems import ProblemError, card_number, invalid
from smartrouter.core.cards import CardNumberRefused, refuse_card_numbers

MOST_BYTES = 256 * 1024
MOST_DEPTH = 32
Body = TypeVar("Body", bound=BaseModel)


class Repeated(ValueError):
    """A key came twice in one JSON object."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: which of two values counts would be anyone's guess."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Repeated("a key comes twice in one object")
    return found


def no_constant(name: str) -> NoReturn:
    """NaN and the infinities are not JSON."""
    raise ValueError(f"{name} is not JSON")


# Whether a text could hold a card number at all: a superset of what `refuse_card_numbers` finds in its values, which
# walks the whole document. Escapes and other scripts hide digits from it, so texts with them are always walked.
SUSPECT = re.compile(r"[0-9](?:[ ._/,:;|*+\-]{0,3}[0-9]){12}|[0-9.][eE]")
DECODER = json.JSONDecoder(object_pairs_hook=once, parse_constant=no_constant)


def read_bytes() -> bytes:
    """The body of the request at hand; raises for a wrong media type or too many bytes."""
    if request.mimetype != "application/json":
        raise ProblemError("wrong-type", f"Content-Type is {request.mimetype[:60] or 'missing'}")
    length = request.content_length
    if length is not None and length > MOST_BYTES:
        raise ProblemError("too-large", f"The body has {length} bytes")
    try:
        raw = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raw = None
    if raw is None or len(raw) > MOST_BYTES:  # a chunked body is cut one byte beyond the limit
        raise ProblemError("too-large", f"The body has more than {MOST_BYTES} bytes")
    return raw


def read_json(raw: bytes) -> Any:
    """Parse strictly; raises for anything that is not one JSON value in UTF-8 or hides a card number."""
    try:
        text = raw.decode("utf-8")
        document = DECODER.decode(text)
    except UnicodeDecodeError:
        raise ProblemError("malformed-json", "The body is not UTF-8") from None
    except json.JSONDecodeError as error:
        if not raw:
            raise ProblemError("malformed-json", "The body is empty, where this call needs a JSON object") from None
        where = f"line {error.lineno} column {error.colno}"
        raise ProblemError("malformed-json", f"{error.msg} at {where}", [{"path": "$", "reason": where}]) from None
    except RecursionError:
        raise ProblemError("malformed-json", "The body is nested too deeply") from None
    except ValueError as error:
        raise ProblemError("malformed-json", f"The body cannot be read: {str(error)[:60]}") from None
    if text.count("{") + text.count("[") > MOST_DEPTH:
        check_depth(document)
    if suspect(text):
        try:
            refuse_card_numbers(document)
        except CardNumberRefused as error:
            raise card_number(error) from None
    return document


def suspect(text: str) -> bool:
    """Whether a JSON text must be searched for card numbers value by value."""
    return "\\" in text or not text.isascii() or SUSPECT.search(text) is not None


def check_depth(value: Any, depth: int = 0) -> None:
    """Refuse documents nested beyond any request of ours, before they are walked by anything recursive."""
    if depth > MOST_DEPTH:
        raise ProblemError("malformed-json", f"The body is nested deeper than {MOST_DEPTH} levels")
    if isinstance(value, dict):
        for item in value.values():
            if isinstance(item, dict | list):
                check_depth(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict | list):
                check_depth(item, depth + 1)


def parse(kind: type[Body], raw: bytes) -> Body:
    """A checked request of one type; raises `ProblemError`."""
    read_json(raw)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise invalid(error) from None
