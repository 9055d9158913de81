"""From a checked request to a stored answer: the one place where payments are ranked, over HTTP or from a file."""

import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from serve.deadline import Deadline, Saturated, TooSlow
from serve.logs import Log
from serve.merchants import MODEL_TYPE, Merchant, Merchants, Model
from serve.metrics import Metrics
from serve.problems import ProblemError
from serve.schemas import AVAILABLE, PredictRequest
from smartrouter.core.errors import listed
from smartrouter.core.settings import Settings
from smartrouter.feedback.health import Keeper, give_back
from smartrouter.feedback.outcome import digest
from smartrouter.feedback.store import KeyReused, Store, StoreUnavailable, new_id, prediction_row, save_prediction
from smartrouter.rules.policy import eligible, hard_rule

TOP = 3  # processors in an answer
STORE_WAIT_S = 1.0  # how long an answer waits for its place on disk; the usual wait is under a millisecond

Decide = Callable[..., Any]  # smartrouter.router.decide.decide


def encode(value: Any) -> str:
    """Compact JSON by pydantic's encoder, five times faster than the standard library's."""
    return to_json(value).decode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What leaves the service, and what the log says of it."""

    text: str  # JSON
    replayed: bool
    stored: bool
    prediction_id: str
    approach: str
    fallback_reason: str | None


class Bounded:
    """A model whose calls end within the deadline: it stands in for the model before the router."""

    def __init__(self, model: Model, deadline: Deadline, limit: float, log: Log, merchant_id: str):
        self.model, self.deadline, self.limit, self.log, self.merchant_id = model, deadline, limit, log, merchant_id
        self.name, self.version = model.name, model.version
        self.reason: str | None = None

    def __getattr__(self, name: str) -> Any:
        """Everything else is the model's own."""
        return getattr(self.model, name)

    def probabilities(self, *given: Any, **named: Any) -> Any:
        """The model's probabilities; raises, and remembers why, when there are none in time."""
        return self.bounded(lambda: self.model.probabilities(*given, **named))

    def intervals(self, *given: Any, **named: Any) -> Any:
        """The model's probabilities and bounds; raises as `probabilities` does."""
        return self.bounded(lambda: self.model.intervals(*given, **named))

    def bounded(self, call: Callable[[], Any]) -> Any:
        """The call's answer; raises, and remembers why, when there is none in time."""
        try:
            return self.deadline.run(call, self.limit)
        except TooSlow:
            self.reason = "model_slow"
            raise
        except Saturated:
            self.reason = "model_saturated"
            raise
        except Exception as error:
            self.reason = "model_failed"
            self.log.failure("model_failed", error, merchant=self.merchant_id, version=self.version)
            raise


class Answerer:
    """Ranks payments and puts every answer on record before it leaves."""

    def __init__(
        self,
        settings: Settings,
        store: Store | None,  # None: answers are not recorded (files of what-ifs)
        merchants: Merchants,
        decide: Decide,
        metrics: Metrics,
        log: Log,
    ):
        self.settings, self.store, self.merchants, self.decide = settings, store, merchants, decide
        self.metrics, self.log, self.deadline = metrics, log, Deadline()
        self.ways: dict[tuple[str, str], Any] = {}  # counters of metrics.decisions

    def answer(self, request: PredictRequest, now: float) -> Answer:
        """Rank one payment; raises `ProblemError` only for faults of the request."""
        start = time.perf_counter()
        merchant = self.known(request)
        body = request.model_dump_json(exclude_none=True)
        document = json.loads(body)
        keeper = self.keeper(request.merchant_id)
        decision, reason = self.rank(document, merchant, now, start, keeper)
        latency_ms = round((time.perf_counter() - start) * 1000, 3)
        answered = respond(request, merchant, decision, reason, new_id("p", now), latency_ms)
        answer = self.record(request, body, answered, kept_health(decision), now)
        if decision.probe is not None and keeper is not None:
            self.probed(keeper, decision, answer, now)
        way = answer.approach, answer.fallback_reason or ""
        counter = self.ways.get(way) or self.ways.setdefault(way, self.metrics.decisions.labels(*way))
        counter.inc()
        return answer

    def keeper(self, merchant_id: str) -> Keeper | None:
        """The health of the merchant's processors; None for what-ifs, which meet healthy ones and send no probe."""
        keepers = self.merchants.keepers
        return None if keepers is None else keepers.of.get(merchant_id)

    def probed(self, keeper: Keeper, decision: Any, answer: Answer, now: float) -> None:
        """Count a probe that is sent; one whose answer is on no record, or on an older one, was not."""
        if answer.stored and not answer.replayed:
            self.metrics.probes.labels(keeper.merchant_id, decision.ranking[0].processor).inc()
        else:
            give_back(keeper.keepers, keeper.merchant_id, decision.probe, now)

    def known(self, request: PredictRequest) -> Merchant:
        """The merchant of a request that this release can answer."""
        if request.model_type not in AVAILABLE:
            reason = f"{request.model_type} is not available in this release; available: {', '.join(AVAILABLE)}"
            raise ProblemError("not-available", reason, [{"path": "$.model_type", "reason": reason}])
        merchant = self.merchants.get(request.merchant_id)
        if merchant is None:
            reason = f"unknown merchant {request.merchant_id}: no policy file of that name"
            raise ProblemError("invalid", reason, [{"path": "$.merchant_id", "reason": reason}])
        return merchant

    def rank(
        self, document: dict[str, Any], merchant: Merchant, now: float, start: float, health: Keeper | None
    ) -> tuple[Any, str | None]:
        """The router's decision and why no model was used; without a router the policy's own order."""
        limit = start + self.settings.deadline_ms / 1000
        name = merchant.policy.merchant_id
        model = Bounded(merchant.model, self.deadline, limit, self.log, name) if merchant.model else None
        reason = "model_missing" if model is None else None
        seed = hashlib.blake2b(attempt_key(document).encode(), digest_size=8).digest()
        try:
            decision = self.decide(
                document,
                now=now,
                policy=merchant.policy,
                rules=merchant.rules,
                predictor=model,
                rng=random.Random(int.from_bytes(seed)),
                health=health,
            )
        except Exception as error:
            self.log.failure("router_failed", error, merchant=name)
            decision, reason = last_resort(document, merchant), "router_failed"
        return decision, (model.reason if model and model.reason else reason)

    def record(
        self, request: PredictRequest, body: str, answered: dict[str, Any], health: str | None, now: float
    ) -> Answer:
        """Store the answer, or find the one stored before; an answer that cannot be stored says so."""
        answered["stored"] = self.store is not None
        text, decision = encode(answered), answered["decision"]
        facts = (answered["prediction_id"], decision["approach"], decision["fallback_reason"])
        if self.store is None:
            return Answer(text, False, False, *facts)
        try:
            saved = save_prediction(self.store, row_of(request, body, answered, text, health, now), STORE_WAIT_S)
        except KeyReused as error:
            faults = [{"path": "$.transaction_id", "reason": error.given}]
            raise ProblemError("key-reused", error.given, faults, remedy=error.remedy) from None
        except StoreUnavailable as error:
            self.metrics.not_stored.labels(error.cause).inc()
            self.log.failure("prediction_not_stored", error, cause=error.cause, prediction_id=facts[0])
            answered["stored"] = False
            return Answer(encode(answered), False, False, *facts)
        if saved.replayed:
            self.metrics.replayed.inc()
            first = json.loads(saved.response)
            then = first["decision"]
            return Answer(saved.response, True, True, first["prediction_id"], then["approach"], then["fallback_reason"])
        return Answer(text, False, True, *facts)

    def close(self) -> None:
        """End the model threads."""
        self.deadline.close()


def attempt_key(document: dict[str, Any]) -> str:
    """What makes an attempt the same attempt."""
    sequence = document["attempt"]["sequence_order"]
    return f"{document['merchant_id']}\n{document['transaction_id']}\n{sequence}\n{MODEL_TYPE}"


def kept_health(decision: Any) -> str | None:
    """What the decision knew of the processors' health, as it is stored; None when all was quiet."""
    if not (decision.probe or decision.all_down or decision.health):
        return None
    shifts = {shown.processor: shown.logit_shift for shown in decision.health if shown.logit_shift}
    return encode({"probe": decision.probe, "all_down": decision.all_down, "shifts": shifts})


def told_health(decision: Any) -> dict[str, Any]:
    """What the answer says of the processors' health, where there is something to say."""
    states = {shown.processor: shown.state for shown in decision.health}
    return {
        **({"probe": True} if decision.probe else {}),
        **({"all_down": True} if decision.all_down else {}),
        **({"health": states} if states else {}),
    }


def respond(
    request: PredictRequest,
    merchant: Merchant,
    decision: Any,  # of the router
    reason: str | None,  # why no model was used, as far as we know better than the router
    prediction_id: str,
    latency_ms: float,
) -> dict[str, Any]:
    """The response document."""
    if not decision.ranking:
        raise nobody(request, decision)
    asked = decision.approach == "model" and decision.model_name is not None
    return {
        "prediction_id": prediction_id,
        "transaction_id": request.transaction_id,
        "model_type": request.model_type,
        "ranking": [
            {
                "rank": r.rank,
                "processor": r.processor,
                "processor_id": r.processor_id,
                "approval_probability": r.approval_probability,
                **({} if r.expected_value is None else {"expected_value": r.expected_value}),
                **({} if r.approval_low is None else {"approval_low": r.approval_low}),
            }
            for r in decision.ranking[:TOP]
        ],
        "excluded": [{"processor": e.processor, "reason": e.reason, "since": e.since} for e in decision.excluded],
        "decision": {
            "approach": decision.approach,
            "explored": decision.explored,
            "propensity": decision.propensity,
            "fallback_reason": (reason or decision.fallback_reason) if decision.approach == "rules" else None,
            "rule_id": decision.rule_id,
            **({} if decision.caution is None else {"caution": decision.caution}),
            **told_health(decision),
        },
        "model": {"name": decision.model_name, "version": decision.model_version} if asked else None,
        "experiment": None,
        "latency_ms": latency_ms,
        "stored": True,
    }


def nobody(request: PredictRequest, decision: Any) -> ProblemError:
    """The problem of a payment that no processor takes; codes that nobody knows are told as such."""
    faults = [{"path": "$.eligible_processors", "reason": f"{e.processor}: {e.reason}"} for e in decision.excluded]
    named = set(request.eligible_processors or ())
    unknown = sorted(e.processor for e in decision.excluded if e.reason == "unknown_processor")
    known = [e.processor for e in decision.excluded if e.reason != "unknown_processor"]
    if named and named <= set(unknown):
        detail = f"eligible_processors names only unknown processors: {listed(unknown)}"
        detail += f". Expected some of {listed(known)}"
        return ProblemError("no-processor", detail, faults, remedy="Correct the codes, or leave the field out.")
    who = "None of the processors in eligible_processors" if named else "No processor"
    detail = f"{who} takes brand {request.card.brand} in {request.order.currency}"
    return ProblemError("no-processor", detail + (f"; {listed(unknown)} is unknown" if unknown else ""), faults)


def row_of(
    request: PredictRequest, body: str, answered: dict[str, Any], text: str, health: str | None, now: float
) -> dict[str, Any]:
    """The row of the predictions table."""
    decision, model = answered["decision"], answered["model"] or {}
    return prediction_row(
        prediction_id=answered["prediction_id"],
        merchant_id=request.merchant_id,
        transaction_id=request.transaction_id,
        sequence=request.attempt.sequence_order,
        model_type=request.model_type,
        attempt_id=request.attempt.attempt_id,
        request_hash=digest(body),
        request=body,
        response=text,
        ranking=encode([r["processor"] for r in answered["ranking"]]),
        probabilities=encode([r["approval_probability"] for r in answered["ranking"]]),
        approach=decision["approach"],
        explored=decision["explored"],
        propensity=decision["propensity"],
        fallback_reason=decision["fallback_reason"],
        model_name=model.get("name"),
        model_version=model.get("version"),
        latency_ms=answered["latency_ms"],
        created_at=now,
        health=health,
    )


@dataclass(frozen=True, slots=True)
class Line:
    """One processor of the order of last resort."""

    rank: int
    processor: str
    processor_id: int | None
    approval_probability: float | None = None
    expected_value: float | None = None
    approval_low: float | None = None
    reason: str = ""
    since: str | None = None


@dataclass(frozen=True, slots=True)
class LastResort:
    """A decision made of the policy alone, when the router itself failed."""

    ranking: tuple[Line, ...]
    excluded: tuple[Line, ...]
    approach: str
    rule_id: str | None = None
    explored: bool = False
    propensity: float = 1.0
    fallback_reason: str | None = "router_failed"
    model_name: str | None = None
    model_version: str | None = None
    caution: str | None = None
    probe: str | None = None
    all_down: bool = False
    health: tuple[Any, ...] = ()


def last_resort(document: dict[str, Any], merchant: Merchant) -> LastResort:
    """The hard rule, or what is eligible in the policy's default order."""
    policy, card, order = merchant.policy, document["card"], document["order"]
    allowed, excluded = eligible(policy, card["brand"], order["currency"], document.get("eligible_processors"))
    facts = {**card, **order, "card_country": card.get("country"), **document.get("payment", {})}
    rule = hard_rule(policy, facts)
    if rule is not None:
        ranking = (Line(1, rule.processor, policy.processor_id(rule.processor)),)
        return LastResort(ranking, (), "hard_rule", fallback_reason=None)
    ordered = [code for code in policy.default_order if code in allowed]
    lines = tuple(Line(rank, code, policy.processor_id(code)) for rank, code in enumerate(ordered[:TOP], 1))
    return LastResort(lines, tuple(Line(0, code, None, reason=why) for code, why in excluded), "rules")
