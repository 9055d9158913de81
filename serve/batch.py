"""Ranks a file of requests by the code that answers them over HTTP: batches and what-if; nothing is recorded."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from serve.answer import Answerer
from serve.body import parse
from serve.logs import Log
from serve.merchants import Merchants
from serve.metrics import Metrics
from serve.model import decide, load_model
from serve.problems import ProblemError
from serve.schemas import PredictRequest
from smartrouter.core.errors import SmartrouterError, listed
from smartrouter.core.files import CannotWrite
from smartrouter.core.settings import Settings
from smartrouter.feedback.store import Store, upgrade

PATIENT_MS = 10_000.0  # nobody waits for a single line: a busy machine must not turn model answers into rule answers
TOLD = 12  # faults spelt out
EVERY = 20_000  # lines between two words of progress


class RequestsRefused(SmartrouterError):
    """Lines of the file are no requests that the service would answer; nothing was written."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """What came of a file of requests."""

    answers: int
    by_model: int
    out: Path
    seconds: float


def rank_file(
    requests: Path,  # JSON lines, each a body of POST /api/v1/ml/predict
    out: Path,  # JSON lines, each the response to the line of the same number; replaced at once or not at all
    settings: Settings,
    progress: Callable[[str], None] = lambda text: None,
    at: datetime | None = None,  # the moment of decision, with a zone; None: now. History stays the newest
) -> Ranked:
    """Rank every request of a file; raises `RequestsRefused` with line numbers, or `CannotWrite`."""
    start = time.perf_counter()
    answerer, merchants = prepare(settings)
    try:
        told = {f"{name}: {why}" for name, m in merchants.now.items() for why in m.problems.values()}
        for problem in sorted(told):
            progress(problem)
        for warning in later_history(merchants, at) if at else ():
            progress(warning)
        now = (at or datetime.now(UTC)).timestamp()
        by_model, answers = write_answers(requests, Path(out), answerer, now, progress)
    finally:
        answerer.close()
        merchants.store.close()
    return Ranked(answers, by_model, Path(out), time.perf_counter() - start)


def prepare(settings: Settings) -> tuple[Answerer, Merchants]:
    """What a worker of the service holds, as it is at this moment and without its threads."""
    settings = settings.model_copy(update={"deadline_ms": PATIENT_MS})
    upgrade(settings.store)
    log, metrics = Log("error"), Metrics()
    merchants = Merchants(settings, Store(settings.store, settings.durability), load_model, log, metrics)
    merchants.load()
    return Answerer(settings, None, merchants, decide, metrics, log), merchants


def later_history(merchants: Merchants, at: datetime) -> Iterator[str]:
    """A warning for each model that knows outcomes from after `at`: its history is never turned back."""
    for merchant_id, merchant in sorted(merchants.now.items()):
        if merchant.model is not None and merchant.model.known_until > at.timestamp():
            known = datetime.fromtimestamp(merchant.model.known_until, UTC).isoformat(timespec="seconds")
            asked = at.astimezone(UTC).isoformat(timespec="seconds")
            told = (
                f"{merchant_id}: asked about {asked}, but version {merchant.model.version} knows outcomes until {known}"
            )
            yield f"{told}: a what-if, no replay of what would have been answered then"


def lines(requests: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that hold something."""
    with requests.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def write_answers(
    requests: Path, out: Path, answerer: Answerer, now: float, progress: Callable[[str], None]
) -> tuple[int, int]:
    """Answer line by line into a file beside `out`, which takes its place when every line was answered."""
    part: str | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            counts = answer_lines(requests, file, answerer, now, progress)
        os.chmod(part, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(part, out)
        part = None
    except OSError as error:
        raise CannotWrite(out, error) from error
    finally:
        if part is not None:
            Path(part).unlink(missing_ok=True)
    return counts


def answer_lines(
    requests: Path, file: TextIO, answerer: Answerer, now: float, progress: Callable[[str], None]
) -> tuple[int, int]:
    """Answer every line, or raise with all lines that cannot be answered."""
    by_model = answers = refused = 0
    faults: list[str] = []
    for number, line in lines(requests):
        try:
            answer = answerer.answer(parse(PredictRequest, line), now)
        except ProblemError as problem:
            refused += 1
            if len(faults) < TOLD:
                where = "; ".join(f"{e['path']} {e['reason']}" for e in problem.errors[:3]) or problem.detail
                faults.append(f"line {number}: {where}")
            continue
        document = json.loads(answer.text) | {"stored": False}
        file.write(json.dumps(document, separators=(",", ":")) + "\n")
        answers += 1
        by_model += answer.approach == "model"
        if answers % EVERY == 0:
            progress(f"{answers:,} ranked")
    if refused or not answers:
        given = f"{requests.name}: {refused} lines cannot be answered ({listed(faults, TOLD)})"
        raise RequestsRefused(
            given if refused else f"{requests.name} holds no request",
            "one request of the HTTP API a line (JSON)",
            "Correct the file: nothing was written",
        )
    return by_model, answers
