"""Every error of the service as a problem document (RFC 9457): what came, what was expected, what to do."""

import json
import re
from typing import Any

from flask import Response, g
from pydantic import ValidationError

from smartrouter.core.cards import CardNumberRefused
from smartrouter.core.errors import SmartrouterError

KINDS = {  # slug -> (status, title, what a caller does about it)
    "malformed-json": (400, "The body is not JSON", "Send one JSON object in UTF-8, without NaN or repeated keys."),
    "bad-request": (400, "The request cannot be read", "Check the HTTP request."),
    "key-required": (401, "No valid API key", "Send a valid key in the header X-API-Key."),
    "not-found": (404, "There is nothing at this path", "The calls are listed at /openapi."),
    "method-not-allowed": (405, "The path does not take this method", "The header Allow lists the methods."),
    "key-reused": (409, "The same key came with different content", "Repeat the request unchanged, or use a new key."),
    "too-large": (413, "The body is too large", "Send at most 256 KiB; split a batch."),
    "wrong-type": (415, "The body has the wrong type", "Send Content-Type: application/json."),
    "invalid": (422, "The request breaks the contract", "Correct the fields that errors lists."),
    "card-number": (422, "A full card number was sent", "Send the BIN and the last four digits only."),
    "not-available": (422, "This model type is not in this release", "Use one of the available model types."),
    "no-processor": (422, "No processor takes this payment", "See errors for each processor's reason."),
    "too-many": (429, "Too many requests", "Wait for the seconds in the header Retry-After."),
    "internal": (500, "The service failed", "Try again; report the request_id when it stays."),
    "store-unavailable": (503, "The store cannot be written", "Send it again after Retry-After: nothing was kept."),
}
LONG_NUMBER = re.compile(r"\d(?:[^0-9A-Za-z\[\]]{0,2}\d){12}")  # 13 digits or more, perhaps in groups
MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """An error on its way to the caller."""

    def __init__(
        self,
        slug: str,  # key of KINDS
        detail: str,  # what happened this time; without anything of a card number
        errors: list[dict[str, str]] | None = None,  # path and reason of each fault
        headers: dict[str, str] | None = None,
        remedy: str = "",  # what to do about it; default: what KINDS says
    ):
        super().__init__(detail)
        self.slug, self.detail, self.errors, self.headers = slug, detail, errors or [], headers or {}
        self.remedy = remedy or KINDS[slug][2]

    @property
    def status(self) -> int:
        """HTTP status."""
        return KINDS[self.slug][0]


def document(problem: ProblemError) -> dict[str, Any]:
    """The problem document of an error."""
    status, title, _ = KINDS[problem.slug]
    detail, remedy = (text if text.endswith((".", "!")) else f"{text}." for text in (problem.detail, problem.remedy))
    return {
        "type": f"/openapi#problem-{problem.slug}",
        "title": title,
        "status": status,
        "detail": f"{detail} {remedy}",
        "errors": problem.errors,
        "request_id": g.get("request_id", ""),
    }


def respond(problem: ProblemError) -> Response:
    """The HTTP answer of an error."""
    body = json.dumps(document(problem), ensure_ascii=True)
    g.problem = problem.slug
    return Response(body, problem.status, problem.headers, content_type=MEDIA_TYPE)


def tame(name: str, most: int) -> str | None:
    """A name that a caller invented, shortened and printable; None where it could hold a card number."""
    if LONG_NUMBER.search(name):
        return None
    return "".join(c if c.isprintable() else "?" for c in name)[:most]


def json_path(parts: tuple[Any, ...], root: str = "$") -> str:
    """A JSONPath of pydantic's location; a part that a caller invented is shortened and never holds a card number."""
    path = root
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += "." + (tame(str(part), 64) or "<key>")
    return path


def faults_of(error: ValidationError, root: str = "$") -> list[dict[str, str]]:
    """Path and reason of each fault, without the values themselves."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False)[:50]:
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = "unknown field"
        elif fault["type"] == "missing":
            message = "required field is missing"
        branch = [p for p in fault["loc"] if not (isinstance(p, str) and p in UNION_TAGS)]
        faults.append({"path": json_path(tuple(branch), root), "reason": message[:300]})
    return faults


UNION_TAGS = frozenset({"bool", "constrained-float", "float", "function-before[to_amount(), float]"})


def invalid(error: ValidationError, root: str = "$") -> ProblemError:
    """The problem of a request that breaks its type."""
    faults = faults_of(error, root)
    first = faults[0]
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return ProblemError("invalid", f"{first['path']}: {first['reason']}{more}", faults)


def refusal(error: SmartrouterError, path: str) -> ProblemError:
    """The problem of a request that one of our own checks refuses: what to do is told once, in its words."""
    faults = [{"path": path, "reason": f"{error.given}; {error.remedy}"}]
    return ProblemError("invalid", f"{error.given}. Expected {error.expected}", faults, remedy=error.remedy)


def card_number(error: CardNumberRefused) -> ProblemError:
    """The problem of a request that holds a card number; its digits are not repeated, not even masked."""
    path = tame(error.path, 200) or "$"
    return ProblemError(
        "card-number", f"A full card number was found at {path}", [{"path": path, "reason": "full card number"}]
    )
