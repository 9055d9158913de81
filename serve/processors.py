"""States of the processors for people: what holds, why, since when, and what somebody forces."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, Field

from serve.problems import ProblemError, refusal
from serve.schemas import Code, Id, Strict
from smartrouter.feedback.health import Keeper, Keepers, force, known_states, latest
from smartrouter.feedback.outcome import text_of
from smartrouter.outage.control import ControlRefused, Transition
from smartrouter.outage.health import UnknownProcessor
from smartrouter.outage.override import Override, OverrideRefused, make_override
from smartrouter.outage.states import State

OVERRIDE_EXAMPLE = {
    "state": "down",
    "who": "ana@example.com",
    "reason": "WORLDPAY announced an incident on its status page",
    "minutes": 30,
}
LIFT_EXAMPLE = {"who": "ana@example.com", "reason": "WORLDPAY closed its incident"}

StateName = Literal["up", "degraded", "down", "recovering"]
Said = Annotated[str, text_of(500)]


class ProcessorPath(Strict):
    """Which processor."""

    code: Code = Field(description="Of the merchant's policy")


class MerchantQuery(Strict):
    """Whose processors."""

    merchant_id: Id | None = Field(None, description="Needed where the service knows several merchants")


class OverrideRequest(Strict):
    """A state that a person forces: it wins over every detector, and ends by itself."""

    state: Literal["up", "degraded", "down"]
    who: Said = Field(description="Who forces it")
    reason: Said = Field(description="Why: the next shift reads it")
    until: AwareDatetime | None = Field(None, description="ISO 8601 with zone; this or minutes is required")
    minutes: Annotated[float, Field(gt=0, le=60 * 24 * 31, allow_inf_nan=False)] | None = None
    logit_shift: Annotated[float, Field(ge=-10, lt=0)] | None = Field(
        None, description="For degraded only: added to the logit of its approval probability; -1 makes 0.70 a 0.46"
    )


class LiftRequest(Strict):
    """The end of what was forced."""

    who: Said = Field(description="Who lifts it")
    reason: Said = Field(description="Why")


class ForcedPart(BaseModel):
    """What a person forces."""

    state: Literal["up", "degraded", "down"]
    who: str
    reason: str
    since: str
    until: str


class WindowPart(BaseModel):
    """A window of maintenance, running or next."""

    begins: str
    ends: str


class ScorePart(BaseModel):
    """How a processor did in a window."""

    attempts: int
    approved_share: float | None
    technical_share: float | None


class ProcessorState(BaseModel):
    """What holds for one processor."""

    processor: str
    state: StateName
    since: str | None = Field(description="ISO 8601; null: always")
    why: str | None
    incident: str | None = Field(description="Open at the processor or at any of its segments")
    next_probe: str | None = Field(
        description="ISO 8601: the next payment after it that could go there tries it; null: no payment may"
    )
    weight: float = Field(description="Share of the payments it would win that it gets")
    logit_shift: float = Field(description="Added to the logit of its approval probability")
    override: ForcedPart | None
    maintenance: WindowPart | None
    segments: dict[str, StateName] = Field(description="Currency and BIN group that is not up -> its state")
    scores: dict[str, ScorePart] = Field(description="Minutes, 5 and 15 -> how it did")


class LiftedState(ProcessorState):
    """What holds after something forced was lifted."""

    lifted: bool = Field(description="False: nothing was forced, and nothing changed")


class TransitionPart(BaseModel):
    """One change of state."""

    key: str = Field(description="Processor, processor|segment, or feedback")
    incident: str | None
    before: str
    after: str
    why: str
    at: str
    evidence: dict[str, Any]
    closes: bool = Field(description="The incident is over")


class ProcessorsResponse(BaseModel):
    """All processors of a merchant, and the latest changes."""

    merchant_id: str
    at: str
    processors: list[ProcessorState]
    transitions: list[TransitionPart]


def iso(at: float) -> str:
    """Epoch seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def refused(path: str, reason: str) -> ProblemError:
    """The problem of one field."""
    return ProblemError("invalid", f"{path}: {reason}", [{"path": path, "reason": reason}])


def keeper_of(keepers: Keepers, merchant_id: str | None) -> Keeper:
    """The merchant that is asked about, or the only one."""
    known = keepers.of
    if merchant_id is None and len(known) == 1:
        return next(iter(known.values()))
    found = known.get(merchant_id or "")
    if found is None:
        names = ", ".join(sorted(known)) or "none: no outage parameters could be read"
        raise refused("query.merchant_id", f"one of {names} is expected")
    return found


def state_part(state: State) -> dict[str, Any]:
    """One processor's state as JSON."""
    forced, window = state.override, state.window
    return {
        "processor": state.processor,
        "state": state.state,
        "since": iso(state.since) if state.since else None,
        "why": state.why or None,
        "incident": state.incident or None,
        "next_probe": None if state.next_probe is None else iso(state.next_probe),
        "weight": state.weight,
        "logit_shift": state.logit_shift,
        "override": {
            "state": forced.state,
            "who": forced.who,
            "reason": forced.reason,
            "since": iso(forced.since),
            "until": iso(forced.until),
        }
        if forced
        else None,
        "maintenance": {"begins": iso(window[0]), "ends": iso(window[1])} if window else None,
        "segments": state.segments,
        "scores": {str(minutes): score for minutes, score in state.scores.items()},
    }


def transition_parts(lines: Iterable[Transition]) -> list[dict[str, Any]]:
    """Changes of state as JSON, with all times in ISO 8601."""
    return [
        {
            **line.as_json(),
            "at": iso(line.at),
            "incident": line.incident or None,
            "evidence": {name: iso(value) if name == "until" else value for name, value in line.evidence.items()},
        }
        for line in lines
    ]


def listing(keepers: Keepers, query: MerchantQuery, now: float) -> dict[str, Any]:
    """The answer to GET /api/v1/processors; raises `StoreUnavailable`."""
    keeper = keeper_of(keepers, query.merchant_id)
    found = known_states(keepers, keeper.merchant_id, now)
    return {
        "merchant_id": keeper.merchant_id,
        "at": iso(now),
        "processors": [state_part(state) for state in found.values()],
        "transitions": transition_parts(latest(keepers, keeper.merchant_id)),
    }


def override_of(body: OverrideRequest, longest_s: float, now: float) -> Override:
    """The override that a body asks for; raises `ProblemError`."""
    if (body.until is None) == (body.minutes is None):
        raise refused("$.until", "until or minutes is required, and not both")
    if body.logit_shift is not None and body.state != "degraded":
        raise refused("$.logit_shift", f"only degraded takes one, not {body.state}")
    until = body.until.timestamp() if body.until else now + (body.minutes or 0.0) * 60
    named = "$.until" if body.until else "$.minutes"
    if not 0 < until - now <= longest_s:
        raise refused(named, f"an end within {longest_s / 60:.0f} minutes from now is expected")
    shift = -1.0 if body.logit_shift is None else body.logit_shift
    try:
        return make_override(
            body.state,
            who=body.who,
            reason=body.reason,
            now=now,
            until=until,
            logit_shift=shift,
            longest_s=longest_s,
        )
    except OverrideRefused as error:
        raise refusal(error, "$") from None


def forced(keepers: Keepers, code: str, query: MerchantQuery, body: OverrideRequest, now: float) -> dict[str, Any]:
    """Force a state, and answer with the one that then holds; raises `ProblemError` or `StoreUnavailable`."""
    keeper = keeper_of(keepers, query.merchant_id)
    override = override_of(body, keeper.config.control.override_most_s, now)
    told(keeper, code, override, body, now)
    return state_part(known_states(keepers, keeper.merchant_id, now)[code])


def lifted(keepers: Keepers, code: str, query: MerchantQuery, body: LiftRequest, now: float) -> dict[str, Any]:
    """Lift what was forced, and answer with the state that then holds; raises as `forced`."""
    keeper = keeper_of(keepers, query.merchant_id)
    done = any(line.why == "override lifted" for line in told(keeper, code, None, body, now))
    return {**state_part(known_states(keepers, keeper.merchant_id, now)[code]), "lifted": done}


def told(
    keeper: Keeper, code: str, override: Override | None, body: OverrideRequest | LiftRequest, now: float
) -> tuple[Transition, ...]:
    """Change what is forced; return the changes that this made."""
    try:
        return force(keeper.keepers, keeper.merchant_id, code, override, now, body.who, body.reason)
    except UnknownProcessor as error:
        raise refused("path.code", f"{error.expected} is expected") from None
    except ControlRefused as error:
        raise refusal(error, "$") from None
