"""The Flask application: routes, errors and records around `serve.answer` and the store."""

import gc
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flask import Flask, Response, g, request
from flask_openapi3 import Info, OpenAPI, Tag
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from serve import pages
from serve.alerts import Alerts
from serve.answer import Answerer
from serve.body import MOST_BYTES, parse, read_bytes
from serve.health import Listening, Looking, open_keepers
from serve.logs import Log
from serve.merchants import MODEL_TYPE, LoadModel, Merchants
from serve.metrics import Metrics
from serve.problems import MEDIA_TYPE, ProblemError, document, invalid, refusal, respond
from serve.processors import (
    LIFT_EXAMPLE,
    OVERRIDE_EXAMPLE,
    LiftedState,
    LiftRequest,
    MerchantQuery,
    OverrideRequest,
    ProcessorPath,
    ProcessorsResponse,
    ProcessorState,
    forced,
    lifted,
    listing,
)
from serve.rates import Rates
from serve.schemas import (
    EXAMPLE,
    FEEDBACK_EXAMPLE,
    BatchResponse,
    FeedbackBatch,
    FeedbackReceipt,
    Health,
    PredictRequest,
    PredictResponse,
    Problem,
    Ready,
)
from serve.security import Keys, check_exposure, refuse_cards_outside_body, request_id_of
from serve.upkeep import Upkeep
from smartrouter.core.settings import Settings
from smartrouter.feedback.health import Keepers
from smartrouter.feedback.outcome import Feedback, OutcomeRefused, check_outcome, excluded_in, oddities
from smartrouter.feedback.store import Receipt, Store, StoreUnavailable, check, new_id, save_feedback

RETRY_AFTER_S = "2"
ROUTING, OUTCOMES, OPERATIONS = Tag(name="routing"), Tag(name="feedback"), Tag(name="operations")
STATES = Tag(name="processors")


class DocumentedApp(OpenAPI):
    """flask-openapi3's application, with our reading of bodies: the document comes from the same types.

    Its own reading takes the body as parsed JSON, which loses what we refuse (repeated keys, NaN, card numbers in
    unknown fields), and answers faults in its own shape.
    """

    @staticmethod
    def create_view_func(
        func: Any, header: Any, cookie: Any, path: Any, query: Any, form: Any, body: Any, *_: Any, **__: Any
    ) -> Any:
        """A view that gets what its function asks for, checked: parts of the path, the query, the body."""
        if path is query is body is None:
            return func

        @wraps(func)
        def view(**given: Any) -> Any:
            found = {} if body is None else {"body": parse(body, read_bytes())}
            for name, kind, values in (("path", path, given), ("query", query, request.args)):
                if kind is not None:
                    found[name] = checked(kind, dict(values), name)
            return func(**found)

        return view


def checked(kind: type[BaseModel], values: dict[str, Any], root: str) -> BaseModel:
    """Texts of a URL as their type; raises `ProblemError`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise invalid(error, root) from None


@dataclass
class Parts:
    """What an application is made of; kept under `app.extensions["smartrouter"]`."""

    settings: Settings
    store: Store
    merchants: Merchants
    answerer: Answerer
    metrics: Metrics
    log: Log
    keepers: Keepers
    upkeep: Upkeep
    looking: Looking
    listening: Listening
    alerts: Alerts

    def close(self) -> None:
        """Stop the threads and close the store."""
        for thread in (self.listening, self.looking, self.merchants, self.upkeep):
            thread.close()
        self.answerer.close()
        self.store.close()


def create_app(
    settings: Settings,
    *,
    decide: Callable[..., Any] | None = None,  # default: smartrouter.router.decide.decide
    load_model: LoadModel | None = None,  # default: serve.model.load_model
    log: Log | None = None,
) -> Flask:
    """The application over a store that `feedback.store.upgrade` has prepared; starts its background thread."""
    check_exposure(settings.host, settings.api_keys)
    from serve import model  # here: tests without a model need no numpy

    decide, load_model = decide or model.decide, load_model or model.load_model
    log, metrics = log or Log(settings.log_level), Metrics()
    store = Store(settings.store, settings.durability)
    keepers = open_keepers(store, log, metrics, settings.health)
    merchants = Merchants(settings, store, load_model, log, metrics, keepers)
    answerer = Answerer(settings, store, merchants, decide, metrics, log)
    alerts = Alerts(store, settings.alerts, merchants.zone, log, metrics)
    around = Upkeep(store, keepers, alerts, log), Looking(keepers, log, metrics), Listening(keepers, log, metrics)
    parts = Parts(settings, store, merchants, answerer, metrics, log, keepers, *around, alerts)
    app = DocumentedApp(
        "serve",
        info=Info(
            title="smartrouter", version=release(), description="Ranks payment processors and learns from outcomes."
        ),
        security_schemes={"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
        responses={},
        doc_ui=False,
        validation_error_model=Problem,
    )
    app.config["MAX_CONTENT_LENGTH"] = MOST_BYTES + 1
    app.url_map.strict_slashes = False
    app.extensions["smartrouter"] = parts
    guard(app, parts)
    routing(app, parts)
    states(app, parts)
    operations(app, parts)
    merchants.start()
    parts.looking.start()
    parts.listening.start()
    parts.upkeep.start()
    return app


def release() -> str:
    """The installed version."""
    try:
        return version("smartrouter")
    except PackageNotFoundError:
        return "0.0.0"


# -- every request -----------------------------------------------------------------------------------------------------


def guard(app: Flask, parts: Parts) -> None:
    """Request ids, keys, limits, errors, log and metrics around every request."""
    keys, log, metrics = Keys(parts.settings.api_keys), parts.log, parts.metrics
    rates = Rates(parts.settings.rate_limit)
    seen: dict[tuple[str, int], Any] = {}
    times: dict[str, Any] = {}

    @app.before_request
    def enter() -> None:
        start, now, environ = time.perf_counter(), time.time(), request.environ
        here = g._get_current_object()  # one look-up for all that follows
        here.start, here.now = start, now
        here.request_id = request_id_of(environ.get("HTTP_X_REQUEST_ID")) or new_id("r", now)
        refuse_cards_outside_body(environ)
        if not environ["PATH_INFO"].startswith("/api/"):
            return
        key = environ.get("HTTP_X_API_KEY")
        if not keys.valid(key):
            raise ProblemError("key-required", "The header X-API-Key is missing or holds no valid key")
        seconds = rates.wait(key if keys.digests and key else environ.get("REMOTE_ADDR", ""), start)
        if seconds:
            wait = {"Retry-After": str(math.ceil(seconds))}
            raise ProblemError("too-many", f"More than {parts.settings.rate_limit} for this caller", headers=wait)

    @app.after_request
    def leave(response: Response) -> Response:
        here, rule, method = g._get_current_object(), request.url_rule, request.environ["REQUEST_METHOD"]
        response.headers["X-Request-ID"] = here.request_id
        route = rule.rule if rule else "(none)"
        status, seconds = response.status_code, time.perf_counter() - here.start
        counter = seen.get((route, status)) or seen.setdefault((route, status), metrics.requests.labels(route, status))
        counter.inc()
        timer = times.get(route) or times.setdefault(route, metrics.seconds.labels(route))
        timer.observe(seconds)
        kind = here.get("problem")
        if kind:
            metrics.problems.labels(kind).inc()
        log.write(
            "error" if status >= 500 else "info",
            "request",
            request_id=here.request_id,
            method=method if method in METHODS else "other",
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            problem=kind,
            **here.get("facts", {}),
        )
        return response

    @app.errorhandler(ProblemError)
    def problem(error: ProblemError) -> Response:
        return respond(error)

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        slug = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 415: "wrong-type"}.get(error.code or 0)
        headers = {"Allow": ", ".join(sorted(error.valid_methods or []))} if isinstance(error, MethodNotAllowed) else {}
        return respond(ProblemError(slug or "bad-request", error.name, headers=headers))

    @app.errorhandler(StoreUnavailable)
    def no_store(error: StoreUnavailable) -> Response:
        log.failure("store_unavailable", error, request_id=g.request_id, cause=error.cause)
        return respond(
            ProblemError("store-unavailable", f"The store is {error.cause}", headers={"Retry-After": RETRY_AFTER_S})
        )

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        log.failure("request_failed", error, request_id=g.get("request_id"))
        return respond(ProblemError("internal", "An unexpected error, which is in the log under this request_id"))


METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})


# -- routes ------------------------------------------------------------------------------------------------------------


def problem_response(*slugs: str) -> dict[Any, Any]:
    """The document's responses of some problems."""
    from serve.problems import KINDS

    found: dict[str, Any] = {}
    schema = {"$ref": "#/components/schemas/Problem"}
    for slug in slugs:
        status, title, _ = KINDS[slug]
        text = found.get(str(status), {}).get("description")
        found[str(status)] = {
            "description": f"{text}; {title.lower()}" if text else title,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
    return found


BODY_PROBLEMS = (
    "malformed-json",
    "key-required",
    "key-reused",
    "too-large",
    "wrong-type",
    "invalid",
    "card-number",
    "too-many",
)


def with_example(example: Any) -> dict[str, Any]:
    """The document's request body example."""
    return {"requestBody": {"required": True, "content": {"application/json": {"example": example}}}}


def routing(app: DocumentedApp, parts: Parts) -> None:
    """Predict and feedback."""
    answerer, store, metrics = parts.answerer, parts.store, parts.metrics
    key: list[dict[str, list[Any]]] = [{"key": []}]
    if not parts.settings.api_keys:
        key.append({})  # OpenAPI's way to say that none is needed

    @app.post(
        "/api/v1/ml/predict",
        summary="Rank the processors for one payment",
        tags=[ROUTING],
        security=key,
        responses={200: PredictResponse, **problem_response(*BODY_PROBLEMS, "not-available", "no-processor")},
    )
    def predict(body: PredictRequest) -> Response:
        here = g._get_current_object()
        here.facts = {"merchant": body.merchant_id}
        answer = answerer.answer(body, here.now)
        here.facts |= {"prediction_id": answer.prediction_id, "approach": answer.approach}
        here.facts |= {"fallback": answer.fallback_reason, "replayed": answer.replayed or None}
        response = Response(answer.text, 200, content_type="application/json")
        response.headers["X-Prediction-Stored"] = "true" if answer.stored else "false"
        if answer.replayed:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    @app.post(
        "/api/v1/ml/feedback",
        summary="Record the outcome of one attempt",
        description="202 means written to the store: the event survives a kill -9 of the service "
        "(SMARTROUTER_DURABILITY=process, the default), or a loss of power too (power). "
        "The same event sent again counts once.",
        tags=[OUTCOMES],
        security=key,
        responses={202: FeedbackReceipt, **problem_response(*BODY_PROBLEMS, "store-unavailable")},
    )
    def feedback(body: Feedback) -> Response:
        check_event(body, parts, g.now, "$")
        (receipt,) = save_feedback(store, [body], g.now, parts.keepers)
        metrics.feedback.labels(receipt).inc()
        g.facts = {"merchant": body.merchant_id, "prediction_id": body.prediction_id, "receipt": receipt}
        if receipt == "conflict":
            raise conflict(body, "$")
        return Response(json.dumps(receipt_of(body, receipt, store)), 202, content_type="application/json")

    @app.post(
        "/api/v1/ml/feedback/batch",
        summary="Record up to 1000 outcomes",
        description="Each event is checked and answered on its own: 202 all durable, 207 some refused.",
        tags=[OUTCOMES],
        security=key,
        responses={202: BatchResponse, 207: BatchResponse, **problem_response(*BODY_PROBLEMS, "store-unavailable")},
    )
    def feedback_batch(body: FeedbackBatch) -> Response:
        events, answers = check_batch(body, parts, g.now)
        receipts = save_feedback(store, list(events.values()), g.now, parts.keepers) if events else []
        for (index, event), receipt in zip(events.items(), receipts, strict=True):
            metrics.feedback.labels(receipt).inc()
            if receipt == "conflict":
                answers[index] = refused_item(index, conflict(event, f"$.items[{index}]"))
            else:
                found = receipt_of(event, receipt, store)
                answers[index] = {"index": index, "status": 202, "receipt": found, "problem": None}
        status = 202 if all(a["status"] == 202 for a in answers.values()) else 207
        g.facts = {"events": len(answers)}
        text = json.dumps({"items": [answers[index] for index in sorted(answers)]})
        return Response(text, status, content_type="application/json")


def check_event(event: Feedback, parts: Parts, now: float, root: str) -> None:
    """Raise `ProblemError` for an event that cannot be true."""
    known = parts.merchants.now
    if event.merchant_id is not None and event.merchant_id not in known:
        reason = f"unknown merchant {event.merchant_id}"
        raise ProblemError("invalid", reason, [{"path": f"{root}.merchant_id", "reason": reason}])
    owners = [known[event.merchant_id]] if event.merchant_id else list(known.values())
    codes = {code for merchant in owners for code in merchant.policy.codes}
    try:
        check_outcome(event, now, codes or None)
    except OutcomeRefused as error:
        raise refusal(error, root + error.path.removeprefix("$")) from None


def check_batch(body: FeedbackBatch, parts: Parts, now: float) -> tuple[dict[int, Feedback], dict[int, dict[str, Any]]]:
    """Events that may be stored by their place, and the answers to those that may not."""
    events: dict[int, Feedback] = {}
    answers: dict[int, dict[str, Any]] = {}
    for index, item in enumerate(body.items):
        root = f"$.items[{index}]"
        try:
            event = Feedback.model_validate_json(json.dumps(item))
            check_event(event, parts, now, root)
            events[index] = event
        except ValidationError as error:
            answers[index] = refused_item(index, invalid(error, root))
        except ProblemError as problem:
            answers[index] = refused_item(index, problem)
    return events, answers


def refused_item(index: int, problem: ProblemError) -> dict[str, Any]:
    """The answer to an event that was not stored."""
    return {"index": index, "status": problem.status, "receipt": None, "problem": document(problem)}


def conflict(event: Feedback, root: str) -> ProblemError:
    """The problem of a used event id with another content."""
    reason = f"event_id {event.event_id} was used for a different outcome of this attempt and stage"
    return ProblemError("key-reused", reason, [{"path": f"{root}.event_id", "reason": reason}])


def receipt_of(event: Feedback, receipt: Receipt, store: Store) -> dict[str, Any]:
    """The answer to an event that is durable."""
    notes = notes_of(event, store) if receipt == "counted" else []
    found = {"event_id": event.event_id, "status": receipt, "outcome": event.outcome}
    return found | ({"notes": notes} if notes else {})


def notes_of(event: Feedback, store: Store) -> list[str]:
    """What is odd about an event that was counted; nothing where its decision is not found at once."""
    try:
        found = [(event.prediction_id,)] if event.prediction_id else []
        found = found or store.read("by_attempt", merchant_id=event.merchant_id, attempt_id=event.attempt_id)
        rows = [row for name, *_ in found for row in store.read("said", prediction_id=name)]
    except StoreUnavailable:
        return []  # it is durable all the same
    said = [(at, json.loads(ranking), excluded_in(response)) for at, ranking, response in rows]
    return [note for facts in said for note in oddities(event, *facts)]


def states(app: DocumentedApp, parts: Parts) -> None:
    """States of the processors, and what people force."""
    key: list[dict[str, list[Any]]] = [{"key": []}] if parts.settings.api_keys else [{"key": []}, {}]
    problems = problem_response(*BODY_PROBLEMS, "store-unavailable")

    @app.get(
        "/api/v1/processors",
        summary="State of each processor, since when and why",
        responses={
            200: ProcessorsResponse,
            **problem_response("key-required", "invalid", "card-number", "too-many", "store-unavailable"),
        },
        tags=[STATES],
        security=key,
    )
    def processors(query: MerchantQuery) -> Response:
        return Response(json.dumps(listing(parts.keepers, query, g.now)), content_type="application/json")

    @app.post(
        "/api/v1/processors/<code>/override",
        summary="Force a processor's state",
        description="Wins over every detector, and ends by itself; the change is on record. "
        "A second one takes the place of the first.",
        responses={200: ProcessorState, **problems},
        tags=[STATES],
        security=key,
    )
    def override(path: ProcessorPath, query: MerchantQuery, body: OverrideRequest) -> Response:
        found = forced(parts.keepers, path.code, query, body, g.now)
        return Response(json.dumps(found), content_type="application/json")

    @app.delete(
        "/api/v1/processors/<code>/override",
        summary="Lift what was forced",
        description="The detectors decide again. Where nothing is forced it changes nothing, and `lifted` is false: "
        "a request that is repeated because its answer was lost is no error.",
        responses={200: LiftedState, **problems},
        tags=[STATES],
        security=key,
    )
    def lift(path: ProcessorPath, query: MerchantQuery, body: LiftRequest) -> Response:
        found = lifted(parts.keepers, path.code, query, body, g.now)
        return Response(json.dumps(found), content_type="application/json")


def operations(app: DocumentedApp, parts: Parts) -> None:
    """Health, readiness, metrics and the document."""
    alive = json.dumps({"status": "ok", "version": release()})

    @app.get("/health", summary="Whether the process lives", tags=[OPERATIONS], responses={200: Health})
    def health() -> Response:
        return Response(alive, content_type="application/json")

    @app.get("/ready", summary="What the service stands on", tags=[OPERATIONS], responses={200: Ready, 503: Ready})
    def ready() -> Response:
        state = readiness(parts)
        return Response(json.dumps(state), 503 if state["missing"] else 200, content_type="application/json")

    @app.get(
        "/metrics",
        summary="Counters of all workers for Prometheus",
        tags=[OPERATIONS],
        responses={200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        return Response(parts.metrics.text(), content_type=parts.metrics.content_type)

    @app.route("/openapi/openapi.json")
    def openapi_document() -> Response:
        return Response(json.dumps(specification(app)), content_type="application/json")

    @app.route("/openapi")
    def openapi_page() -> Response:
        return Response(pages.page(specification(app)), content_type="text/html; charset=utf-8")

    @app.route("/")
    def root() -> Response:
        return Response(status=302, headers={"Location": "/openapi"})


def readiness(parts: Parts) -> dict[str, Any]:
    """Model, store and feature state of the merchant that this service is for; `missing` makes it not ready."""
    merchant_id, merchants = parts.settings.merchant, parts.merchants
    merchant = merchants.get(merchant_id)
    model = merchant.model if merchant else None
    missing, detail = [], None
    if merchant is None:
        missing.append(f"policy of merchant {merchant_id}: {merchants.refused.get(merchant_id, 'no such file')}")
    if model is None:
        missing.append(f"model {MODEL_TYPE}.{merchant_id}: the static rules answer")
    try:
        check(parts.store)
    except StoreUnavailable as error:
        detail = str(error)
        missing.append(f"store: {error.cause}")
    problems = [f"{what}: {text}" for what, text in (merchant.problems if merchant else {}).items()]
    problems += [f"policy of {name}: {text}" for name, text in merchants.refused.items() if name != merchant_id]
    problems += [parts.alerts.problem] if parts.alerts.problem else []
    return {
        "status": "not_ready" if missing else "ready",
        "missing": missing,
        "problems": problems,
        "model": {
            "name": model.name,
            "version": model.version,
            "age_s": round(max(time.time() - model.created_at, 0.0), 1),
            "feature_contract": model.feature_contract,
        }
        if model
        else None,
        "store": {
            "status": "unavailable" if detail else "ok",
            "kind": parts.store.engine.dialect.name,
            "detail": detail,
        },
        "features": {
            "outcomes_applied": merchants.applied,
            "last_outcome_id": merchants.last,
            "lag_s": merchants.lag_s,
        },
        "health": {
            "kind": parts.keepers.kind,
            "view_age_s": None if (age_s := parts.looking.age_s()) is None else round(age_s, 3),
            "states": parts.looking.states(merchant_id),
        },
        "rules_version": merchant.rules.version if merchant and merchant.rules else None,
        "alerts": parts.alerts.readiness(time.time()),
    }


EXAMPLES: dict[tuple[str, str], Any] = {
    ("post", "/api/v1/ml/predict"): EXAMPLE,
    ("post", "/api/v1/ml/feedback"): FEEDBACK_EXAMPLE,
    ("post", "/api/v1/ml/feedback/batch"): {"items": [FEEDBACK_EXAMPLE]},
    ("post", "/api/v1/processors/{code}/override"): OVERRIDE_EXAMPLE,
    ("delete", "/api/v1/processors/{code}/override"): LIFT_EXAMPLE,
}


def specification(app: DocumentedApp) -> dict[str, Any]:
    """The OpenAPI document, with examples and without the 422 that flask-openapi3 adds to calls without input."""
    spec = app.api_doc
    if "x-complete" in spec:
        return spec
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            if method == "get" and not operation.get("parameters"):
                operation["responses"].pop("422", None)
            elif (method, path) in EXAMPLES:
                operation["requestBody"]["content"]["application/json"]["example"] = EXAMPLES[method, path]
                operation["requestBody"]["required"] = True
    batch = spec["components"]["schemas"]["FeedbackBatch"]  # checked one by one, so that one fault spoils one event
    batch["properties"]["items"]["items"] = {"$ref": "#/components/schemas/Feedback"}
    spec["components"]["schemas"].pop("ValidationErrorModel", None)
    spec["x-complete"] = True
    return spec


def worker_app() -> Flask:
    """What a Granian worker loads: settings from the environment, everything else after the fork."""
    app = create_app(Settings.load(os.environ))
    gc.collect()
    gc.freeze()  # what is here stays: collections no longer walk it, which would take tens of ms now and then
    return app
