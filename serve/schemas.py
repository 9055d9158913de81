"""What comes in and goes out over HTTP: the types that validate requests are the types that the document shows."""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from smartrouter.feedback.outcome import text_of

MODEL_TYPES = ("processor_selector", "retry_predictor", "retry_sequence", "message_optimizer")
AVAILABLE = ("processor_selector",)
MOST_AMOUNT = 10**12
MOST_FEEDBACK = 1000

EXAMPLE: dict[str, Any] = {
    "transaction_id": "tx-openapi-1",
    "merchant_id": "volaris",
    "model_type": "processor_selector",
    "order": {"order_id": "o-1", "amount": 2450.0, "currency": "MXN", "order_type": "flight", "mcc": "4511"},
    "card": {
        "bin": "415231",
        "brand": "VISA",
        "bank": "BBVA",
        "funding": "credit",
        "country": "MX",
        "last_four": "1234",
    },
    "payment": {"initiation": "CIT", "method_type": "card"},
    "attempt": {"sequence_order": 1},
    "user": {"user_id": "u-1", "is_guest": False},
    "eligible_processors": ["WORLDPAY", "MIT", "ELAVON"],
}
FEEDBACK_EXAMPLE = {
    "prediction_id": "p019d9103360a0c1d2e3f405162738495a",
    "event_id": "evt-1",
    "processor": "WORLDPAY",
    "status": "declined",
    "error_code": "51",
    "occurred_at": "2026-04-15T18:00:02Z",
}


def to_amount(value: Any) -> Any:
    """A number, or a decimal number as text, as float; anything else is left for the type to refuse."""
    if isinstance(value, str) and len(value) <= 32 and value.isascii():
        try:
            return float(Decimal(value)) if not set(value) - set("0123456789.") else value
        except InvalidOperation:
            return value
    return float(value) if type(value) is int and abs(value) <= MOST_AMOUNT else value


Text = Annotated[str, text_of(200)]
Short = Annotated[str, text_of(64)]
Id = Annotated[str, text_of(128)]
Code = Annotated[str, text_of(40, r"^[A-Z0-9_]+$")]
Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Amount = Annotated[
    float,
    BeforeValidator(to_amount),
    Field(ge=0, le=MOST_AMOUNT, allow_inf_nan=False),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": MOST_AMOUNT},
                {"type": "string", "pattern": r"^[0-9]{1,12}(\.[0-9]{1,6})?$"},
            ],
            "description": "Major units; a number, or a decimal number as text",
        }
    ),
]
FlagNumber = Annotated[bool | Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)], Field(union_mode="smart")]


def upper(text: str) -> str:
    """Brands are compared in capital letters."""
    return text.upper()


class Strict(BaseModel):
    """Unknown fields are refused with their path; no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Order(Strict):
    """What is bought."""

    order_id: Id | None = None
    amount: Amount
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")] = Field(description="ISO 4217")
    order_type: Short | None = None
    mcc: Annotated[str, StringConstraints(pattern=r"^[0-9]{4}$")] | None = None
    channel: Short | None = None
    site: Short | None = None
    store_code: Short | None = None
    fraud_risk_score: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)] | None = None
    fraud_risk_level: Short | None = None


class Card(Strict):
    """The card, never its number."""

    bin: Annotated[str, StringConstraints(pattern=r"^[0-9]{6,8}$")] = Field(description="First 6 to 8 digits")
    brand: Annotated[str, text_of(40, r"^[A-Za-z0-9_ \-]+$"), AfterValidator(upper)]
    bank: Text | None = None
    funding: Short | None = None
    country: Country | None = None
    last_four: Annotated[str, StringConstraints(pattern=r"^[0-9]{4}$")] | None = None


class Payment(Strict):
    """How the payment is made."""

    initiation: Literal["CIT", "MIT"] | None = Field(None, description="Customer- or merchant-initiated")
    method_type: Short | None = None
    three_ds: FlagNumber | None = None


class Previous(Strict):
    """An earlier attempt of the same order."""

    processor: Code
    error_code: Annotated[str, text_of(20)] | None = None
    error_category: Literal["customer", "issuer", "fraud", "data", "technical"] | None = None
    hard_soft: Literal["hard", "soft"] | None = None
    advice_code: Annotated[str, text_of(20)] | None = None
    at: AwareDatetime | None = Field(None, description="ISO 8601 with zone")


class Attempt(Strict):
    """Which attempt this is."""

    attempt_id: Id | None = Field(None, description="The merchant's own id; feedback may refer to it")
    sequence_order: Annotated[int, Field(ge=1, le=1000)] = 1
    previous: Annotated[list[Previous], Field(max_length=50)] = Field(
        default_factory=list,
        description="Earlier attempts of the order whose outcome is known, a recorded time-out or error included. "
        "One that still waits for its answer does not belong here, as it is not in training: it counts in "
        "sequence_order only",
    )


class User(Strict):
    """Who pays."""

    user_id: Id | None = None
    is_guest: bool | None = None
    browsing_minutes: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = None
    events_before_purchase: Count | None = None
    sessions: Count | None = None


class Device(Strict):
    """On what."""

    browser: Short | None = None
    os: Short | None = None
    device: Short | None = None
    equipment: Short | None = None


class Geo(Strict):
    """From where."""

    latitude: Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)] | None = None
    longitude: Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)] | None = None
    city: Text | None = None
    state: Text | None = None
    country: Country | None = None
    weather: Short | None = None


class Airline(Strict):
    """Which flight."""

    is_international: bool | None = None
    carrier: Short | None = None
    flights: Count | None = None
    passengers: Count | None = None
    round_trip: bool | None = None
    origin: Short | None = None
    destination: Short | None = None
    departure_at: AwareDatetime | None = Field(None, description="ISO 8601 with zone")
    service_class: Short | None = None
    frequent_flyer: bool | None = None
    adults: Count | None = None
    children: Count | None = None
    infants: Count | None = None


class PredictRequest(Strict):
    """One payment whose processors are to be ranked."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    transaction_id: Id
    merchant_id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_\-]{0,63}$")]
    model_type: Literal["processor_selector", "retry_predictor", "retry_sequence", "message_optimizer"] = (
        "processor_selector"
    )
    order: Order
    card: Card
    payment: Payment = Payment()
    attempt: Attempt = Attempt()
    user: User = User()
    device: Device = Device()
    geo: Geo = Geo()
    airline: Airline = Airline()
    eligible_processors: Annotated[list[Code], Field(max_length=50)] | None = None


class Ranked(BaseModel):
    """One processor of the ranking."""

    rank: int
    processor: str
    processor_id: int | None
    approval_probability: float | None = Field(description="In [0, 1]; null where no model was asked")
    expected_value: float | None = Field(
        None,
        description="Major units of the order's currency; only there when the merchant ranks by value. The lower of "
        "the two values where `approval_low` is there",
    )
    approval_low: float | None = Field(
        None, description="Lower bound of the probability; only there for a cautious merchant and a model with bounds"
    )


class Excluded(BaseModel):
    """A processor that was not ranked, and why."""

    processor: str
    reason: str
    since: str | None = None


class DecisionPart(BaseModel):
    """How the ranking came about."""

    approach: Literal["model", "rules", "hard_rule"]
    explored: bool
    propensity: float | None
    fallback_reason: str | None
    rule_id: str | None
    caution: Literal["applied", "no_intervals"] | None = Field(
        None, description="Only there when a cautious merchant's payment was ranked by a model: whether it has bounds"
    )
    probe: bool = Field(False, description="Only there when true: this payment tries a processor that is down")
    all_down: bool = Field(
        False, description="Only there when true: no processor is healthy, and the ranking is of the least bad"
    )
    health: dict[str, Literal["degraded", "down", "recovering"]] = Field(
        default_factory=dict, description="Only there when not empty: candidates that are not up, by processor"
    )


class ModelPart(BaseModel):
    """Which model was asked."""

    name: str
    version: str


class ExperimentPart(BaseModel):
    """Which experiment the payment is in."""

    id: str
    variant: str
    bucket: int
    shadow: bool


class PredictResponse(BaseModel):
    """The ranking of one payment, up to three processors, with its explanation."""

    prediction_id: str
    transaction_id: str
    model_type: str
    ranking: list[Ranked]
    excluded: list[Excluded]
    decision: DecisionPart
    model: ModelPart | None
    experiment: ExperimentPart | None
    latency_ms: float
    stored: bool = Field(description="False when the store was unavailable: the ranking holds, but is on no record")


class FeedbackReceipt(BaseModel):
    """What became of one event."""

    event_id: str
    status: Literal["counted", "kept", "superseded", "duplicate"]
    outcome: Literal["approved", "soft", "hard", "technical"]
    notes: list[str] = Field(
        default_factory=list, description="Only there when not empty: what is odd about an event that counts"
    )


class FeedbackBatch(Strict):
    """Up to 1000 events; each is checked and answered on its own."""

    items: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_FEEDBACK)]


class ProblemItem(BaseModel):
    """One fault of a request."""

    path: str
    reason: str


class Problem(BaseModel):
    """RFC 9457 problem document, as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[ProblemItem]
    request_id: str


class BatchItem(BaseModel):
    """The answer to one event of a batch: a receipt or a problem."""

    index: int
    status: int = Field(description="202 durable, 409 conflict, 422 refused")
    receipt: FeedbackReceipt | None = None
    problem: Problem | None = None


class BatchResponse(BaseModel):
    """One answer an event, in the order of the request."""

    items: list[BatchItem]


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"]
    version: str


class ReadyModel(BaseModel):
    """The model in use."""

    name: str
    version: str
    age_s: float
    feature_contract: str | None


class ReadyStore(BaseModel):
    """The operational store."""

    status: Literal["ok", "unavailable"]
    kind: str
    detail: str | None


class ReadyFeatures(BaseModel):
    """How far the live feature state has followed the outcomes."""

    outcomes_applied: int
    last_outcome_id: int
    lag_s: float | None


class ReadyHealth(BaseModel):
    """The processors' health, as decisions see it."""

    kind: str = Field(description="Where it is kept: in the store, or in Redis")
    view_age_s: float | None = Field(description="Since the states were known to be right; null: never read")
    states: dict[str, Literal["up", "degraded", "down", "recovering"]]


class ReadyAlerts(BaseModel):
    """One alert target; null where the store cannot be read."""

    target: str
    pending: int | None
    oldest_s: float | None
    failed_in_a_row: int | None


class Ready(BaseModel):
    """What the service stands on."""

    status: Literal["ready", "not_ready"]
    missing: list[str]
    problems: list[str]
    model: ReadyModel | None
    store: ReadyStore
    features: ReadyFeatures
    health: ReadyHealth
    rules_version: str | None
    alerts: list[ReadyAlerts]
