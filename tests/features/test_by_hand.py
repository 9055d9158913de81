"""A dozen features worked out with pencil and paper."""

from datetime import UTC, datetime
from math import log10

import numpy as np
import pytest

from smartrouter.features.columns import DAY_MS, Lookups, with_clock
from smartrouter.features.history import Offline, Outcomes, Prefix, ProcessorLog, array_log, entity_keys, subject_keys
from smartrouter.features.live import LiveState
from smartrouter.features.matrix import FEATURE_NAMES
from smartrouter.features.transaction import paydays

DAY_ZERO = 20_500  # days since 1970
NOON = DAY_ZERO * DAY_MS + DAY_MS // 2
MINUTE = 60_000
LOOKUPS = Lookups(
    processors=("ELAVON", "MIT"),
    time_zone="America/Mexico_City",
    home_currency="MXN",
    home_country="MX",
    prior=0.6,
    day_zero=DAY_ZERO,
    categories={"currency": {"MXN": 1}, "bank": {"BBVA": 1}, "card_country": {"MX": 1}},
    amount_grid={"MXN": tuple(np.linspace(2, 4, 21))},
)
REQUEST = {
    "order": {"amount": 1000.0, "currency": "MXN"},
    "card": {"bin": "415231", "brand": "VISA", "bank": "BBVA", "country": "MX", "last_four": "1234"},
    "user": {"user_id": "u-1"},
}


def logit(rate: float) -> float:
    return float(np.log(rate / (1 - rate)))


def told(state: LiveState, request: dict = REQUEST, now_ms: int = NOON, processor: str = "MIT") -> dict[str, float]:
    """Features of one candidate by name."""
    return dict(zip(FEATURE_NAMES, state.features(request, (processor,), now_ms)[0].tolist(), strict=True))


def after(*kinds: str, request: dict = REQUEST, known_ms: int = NOON - MINUTE) -> LiveState:
    """A state that knows these outcomes at MIT, one a millisecond."""
    state = LiveState(LOOKUPS)
    for index, kind in enumerate(kinds):
        state.apply(request, "MIT", kind, known_ms - 1_000, known_ms + index)
    return state


def test_a_rate_is_pulled_towards_its_parents_by_thirty_outcomes():
    seen = told(after(*["approved"] * 4, *["soft"] * 6))
    processor = (4 + 30 * 0.6) / (10 + 30)  # towards the merchant's 0.6
    issuer = (4 + 30 * processor) / (10 + 30)  # BBVA at MIT, towards MIT
    assert (processor, issuer) == (0.55, 0.5125)
    assert seen["rate_processor"] == pytest.approx(logit(0.55), abs=1e-6)
    assert seen["rate_processor_issuer"] == pytest.approx(logit(0.5125), abs=1e-6)
    assert seen["edge_processor_issuer"] == pytest.approx(logit(0.5125) - logit(0.55), abs=1e-6)
    assert told(after(*["approved"] * 4), processor="ELAVON")["rate_processor"] == pytest.approx(logit(0.6), abs=1e-6)


def test_an_outcome_weighs_half_after_forty_five_days():
    state = after(*["approved"] * 4, *["soft"] * 6)
    assert told(state)["known_processor"] == pytest.approx(log10(1 + 10), abs=1e-6)
    later = told(state, now_ms=NOON + 45 * DAY_MS)
    assert later["known_processor"] == pytest.approx(log10(1 + 5), abs=1e-6)
    assert later["rate_processor"] == pytest.approx(logit((2 + 18) / (5 + 30)), abs=1e-6)


def test_a_technical_outcome_is_in_no_rate_and_in_the_health_and_the_history():
    seen = told(after("technical", "technical"))
    assert seen["known_processor"] == 0 and seen["rate_processor"] == pytest.approx(logit(0.6), abs=1e-6)
    assert seen["health_technical_15m"] == 1 and seen["technical_streak"] == 2
    assert seen["user_outcomes_log"] == pytest.approx(log10(1 + 2), abs=1e-6)


def test_the_outcome_of_a_retry_is_in_no_rate():
    again = REQUEST | {"attempt": {"previous": [{"processor": "ELAVON", "error_code": "51", "hard_soft": "soft"}]}}
    seen = told(after("approved", request=again))
    assert seen["known_processor"] == 0 and seen["health_approval_15m"] > 0.6


def test_paydays_are_the_fifteenth_and_the_last_day():
    day = np.array([1.0, 14, 15, 16, 30, 31])
    to, since = paydays(day, np.full(6, 31.0))
    assert to.tolist() == [14, 1, 0, 15, 1, 0] and since.tolist() == [1, 14, 0, 1, 15, 0]
    to, since = paydays(np.array([27.0, 28]), np.full(2, 28.0))
    assert to.tolist() == [1, 0] and since.tolist() == [12, 0]


@pytest.mark.parametrize(
    ("moment", "zone", "hour"),
    [
        ("2026-03-08T06:59", "America/New_York", 1),  # then clocks jump from 2 to 3
        ("2026-03-08T07:00", "America/New_York", 3),
        ("2026-11-01T05:30", "America/New_York", 1),  # then from 2 back to 1
        ("2026-11-01T06:30", "America/New_York", 1),
        ("2026-07-01T05:00", "America/Mexico_City", 23),  # no summer time since 2022: the day before
        ("2022-07-01T05:00", "America/Mexico_City", 0),
    ],
)
def test_the_local_hour_follows_the_zones_clock(moment, zone, hour):
    ms = int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() * 1000)
    for moments in ([ms], [ms, ms + 1]):  # one live request, and a column of them
        assert with_clock({"at_ms": np.array(moments)}, zone)["hour"][0] == hour


def test_a_currency_that_training_never_saw_has_no_code_and_a_middling_rank():
    seen = told(LiveState(LOOKUPS), REQUEST | {"order": {"amount": 1000.0, "currency": "XXX"}})
    assert (seen["currency"], seen["amount_rank"], seen["amount_band"], seen["is_home_currency"]) == (0, 0.5, 2, 0)
    home = told(LiveState(LOOKUPS))
    assert (home["currency"], home["amount_rank"], home["is_home_currency"]) == (1, 0.5, 1)  # log10 1000, from 2 to 4
    assert told(LiveState(LOOKUPS), REQUEST | {"order": {"amount": 1e6, "currency": "MXN"}})["amount_band"] == 4


def outcomes(known_ms: list[int], kinds: list[int]) -> Outcomes:
    """First attempts of REQUEST at MIT."""
    state, n = LiveState(LOOKUPS), len(known_ms)
    columns = columns_of(n)
    rows = np.arange(n)
    entity = entity_keys(columns, rows, np.full(n, state.hashes[1]))
    ones = np.ones(n, dtype=bool)
    codes = np.ones(n, dtype=np.int64)
    return Outcomes(np.array(known_ms), np.array(kinds), ones, codes, entity, subject_keys(columns), codes * 100_000)


def columns_of(n: int) -> dict[str, np.ndarray]:
    """The columns of REQUEST n times."""
    from smartrouter.features.columns import from_request

    return {name: np.repeat(value, n) for name, value in from_request(REQUEST, NOON, LOOKUPS).items()}


def test_an_outcome_that_arrives_at_the_very_moment_is_not_known_yet():
    known = outcomes([NOON], [0])
    reader, columns = Offline(known, LOOKUPS), columns_of(2)
    moments = np.array([NOON, NOON + 1])
    keys = entity_keys(columns, np.arange(2), np.full(2, LiveState(LOOKUPS).hashes[1]))
    assert (reader.rate_sums(keys, moments)[:, :, 0] > 0).all(axis=1).tolist() == [False, True]
    assert not reader.rate_sums(keys, moments)[0].any()
    assert reader.subject_sums(subject_keys(columns), moments)[:, :, 0].tolist() == [[0, 0], [1, 1]]
    assert reader.window_counts(np.ones(2, dtype=int), moments)[:, 0].tolist() == [0, 1]
    start, stop = Prefix(np.array([5], dtype=np.uint64), np.array([NOON])).at(np.full(2, 5, np.uint64), moments)
    assert (stop - start).tolist() == [0, 1]


def test_windows_hold_the_last_quarter_hour_and_the_last_twenty_outcomes():
    log = ProcessorLog()
    for index in range(25):
        log.add(NOON + index, 0 if index < 5 else 3)  # five approvals, then twenty technical failures
    kinds = np.array([0] * 5 + [3] * 20)
    known = outcomes([NOON + i for i in range(25)], kinds.tolist())
    arrays = array_log(known, np.ones(25, dtype=bool))
    for now_ms, quarter in ((NOON + 15 * MINUTE, 25), (NOON + 15 * MINUTE + 1, 24), (NOON + 16 * MINUTE, 0)):
        one = log.read_one(now_ms)
        assert one == arrays.read(np.array([now_ms]))[0].tolist()
        spans = np.array(one[:20]).reshape(5, 4)  # outcomes, approved, soft, technical of 15 min, 1 h, 24 h, 20, 100
        assert spans[0, 0] == quarter and spans[1].tolist() == [25, 5, 0, 20]
        assert spans[3].tolist() == [20, 0, 0, 20] and spans[4].tolist() == [25, 5, 0, 20]
        assert one[20:] == [20, NOON + 24, NOON + 4]  # streak, last outcome, last approval


def test_nobody_has_no_history_however_many_nobodies_paid():
    guest = {"order": REQUEST["order"], "card": {"bin": "415231", "brand": "VISA"}}
    seen = told(after("approved", "soft", request=guest), guest)
    assert seen["has_user"] == 0
    for who in ("user", "card"):
        assert seen[f"{who}_outcomes_log"] == 0 and seen[f"{who}_approval"] == pytest.approx(0.6)
        assert seen[f"{who}_soft_share"] == seen[f"{who}_age_days"] == seen[f"{who}_amount_ratio_log"] == -1


def test_a_user_and_a_card_are_remembered():
    seen = told(after("approved", "approved", "soft", known_ms=NOON - 40 * DAY_MS), now_ms=NOON)
    assert seen["user_approval"] == seen["card_approval"] == pytest.approx((2 + 3 * 0.6) / (3 + 3))
    assert seen["user_soft_share"] == pytest.approx(1 / 3) and seen["user_last_approved"] == 0
    assert seen["user_age_days"] == 40 and seen["user_amount_ratio_log"] == pytest.approx(0, abs=1e-6)


def test_missing_parts_of_a_card_are_unknown_and_not_zero():
    bare = REQUEST | {"card": {"bin": "41523199", "brand": "VISA"}}
    seen = told(after("approved", request=bare), bare)
    assert (seen["bin_number"], seen["bin_digits"], seen["bin_industry"]) == (415231, 8, 4)
    assert (seen["bank"], seen["funding"], seen["card_country"], seen["is_home_card"]) == (0, 0, 0, 0)
    assert seen["card_outcomes_log"] == 0 and seen["user_outcomes_log"] > 0  # no last four: no card, but a user
    none = told(LiveState(LOOKUPS), {"order": REQUEST["order"], "card": {"brand": "VISA"}})
    assert (none["bin_number"], none["bin_digits"], none["bin_industry"]) == (-1, 0, -1)
