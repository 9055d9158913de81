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
OLD_S = 86_400.0  # the newest outcome may be this much older than the moment that is asked about
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
        now = (at or datetime.now(UTC)).timestamp()
        note = Notes(merchants, at, progress)
        by_model, answers = write_answers(requests, Path(out), answerer, now, progress, note)
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


class Notes:
    """Says what a reader of the answers should know of each merchant that is asked for, once."""

    def __init__(self, merchants: Merchants, at: datetime | None, progress: Callable[[str], None]):
        self.merchants, self.at, self.progress = merchants, at, progress
        self.told: set[str] = set()

    def __call__(self, merchant_id: str) -> None:
        """One line of what could not be loaded, and one where the history does not belong to `at`."""
        merchant = self.merchants.get(merchant_id)
        if merchant_id in self.told or merchant is None:
            return
        self.told.add(merchant_id)
        if merchant.problems:
            self.progress(f"{merchant_id}: {'; '.join(merchant.problems.values())}")
        if self.at is not None and merchant.model is not None:
            newest = max(merchant.model.known_until, self.merchants.newest.get(merchant_id, 0.0))
            for warning in off_history(merchant.model.version, merchant.model.known_until, newest, self.at):
                self.progress(f"{merchant_id}: {warning}")


def off_history(
    version: str,
    trained: float,  # epoch seconds of the newest outcome that the release knows
    newest: float,  # the same, feedback since then included
    at: datetime,
) -> Iterator[str]:
    """A warning when the release knows outcomes from after `at`, or when the newest one is over a day older."""
    asked, moment = at.astimezone(UTC).isoformat(timespec="seconds"), at.timestamp()
    if trained > moment:
        told = f"asked about {asked}, but version {version} knows outcomes until {utc(trained)}"
        yield f"{told}: a what-if, no replay of what would have been answered then"
    elif moment - newest > OLD_S:
        told = f"asked about {asked}, but the newest outcome known to version {version} is of {utc(newest)}"
        yield f"{told}: what happens in the {(moment - newest) / 86_400:.1f} days between is not known"


def utc(seconds: float) -> str:
    """Epoch seconds as a moment."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def lines(requests: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that hold something."""
    with requests.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def write_answers(
    requests: Path, out: Path, answerer: Answerer, now: float, progress: Callable[[str], None], note: Notes
) -> tuple[int, int]:
    """Answer line by line into a file beside `out`, which takes its place when every line was answered."""
    part: str | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            counts = answer_lines(requests, file, answerer, now, progress, note)
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
    requests: Path, file: TextIO, answerer: Answerer, now: float, progress: Callable[[str], None], note: Notes
) -> tuple[int, int]:
    """Answer every line, or raise with all lines that cannot be answered."""
    by_model = answers = refused = 0
    faults: list[str] = []
    for number, line in lines(requests):
        try:
            asked = parse(PredictRequest, line)
            note(asked.merchant_id)
            answer = answerer.answer(asked, now)
        except ProblemError as problem:
            refused += 1
            if len(faults) < TOLD:
                where = "; ".join(f"{e['path']} {e['reason']}" for e in problem.errors[:3]) or problem.detail
                if problem.slug == "malformed-json" and problem.errors:  # its place within the line misleads
                    where = f"not JSON ({problem.detail.partition(' at line ')[0]})"
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
