"""What training read and what the service would have read at the same moment are the same numbers."""

from datetime import datetime

import numpy as np
import pytest

from smartrouter.core.answers import classify
from smartrouter.features.columns import numeric
from smartrouter.features.dataset import build, kinds_of, logged_matrix, requests_of
from smartrouter.features.history import KINDS, Offline
from smartrouter.features.live import LiveState, freeze, thaw
from smartrouter.features.matrix import FEATURE_NAMES
from smartrouter.features.replay import replay
from smartrouter.warehouse.connect import connect
from smartrouter.warehouse.queries import attempts, earlier_attempts

PROCESSORS = ("WORLDPAY", "MIT", "ELAVON", "AMEX")


@pytest.fixture(scope="module")
def table(small_warehouse):
    """All attempts of the small simulated merchant."""
    with connect(small_warehouse) as warehouse:
        return attempts(warehouse, "volaris")


@pytest.fixture(scope="module")
def data(table):
    """The dataset built from them."""
    return build(
        table, processors=PROCESSORS, learn=PROCESSORS[:3], time_zone="America/Mexico_City", home_currency="MXN"
    )


def differing(offline: np.ndarray, live: np.ndarray) -> dict[str, int]:
    """Count differing values a feature."""
    counts = (offline != live).sum(axis=0)
    return {FEATURE_NAMES[i]: int(counts[i]) for i in np.flatnonzero(counts)}


def test_every_replayed_decision_sees_the_same_features_live_and_offline(table, data):
    checked = replay(table, data, decisions=3_000, start=0)
    assert checked.decisions == 3_000
    assert differing(checked.offline, checked.live) == {}


@pytest.mark.parametrize("start", ["2026-01-07T03:00", "2026-01-20T18:30"])
def test_a_history_that_begins_in_the_middle_is_the_same_live_and_offline(small_warehouse, start):
    moment = datetime.fromisoformat(start)
    with connect(small_warehouse) as warehouse:
        late, before = attempts(warehouse, "volaris", moment), earlier_attempts(warehouse, "volaris", moment)
    assert 0 < before.num_rows < 100 and set(before["order_id"].to_pylist()) <= set(late["order_id"].to_pylist())
    data = build(
        late, processors=PROCESSORS, learn=PROCESSORS[:3], time_zone="America/Mexico_City", home_currency="MXN"
    )
    checked = replay(late, data, before=before, decisions=1_500)
    assert checked.decisions == 1_500 and differing(checked.offline, checked.live) == {}
    assert {"n_previous", "rate_processor"} <= set(replay(late, data, decisions=1_500).mismatches())


def test_a_frozen_history_goes_on_like_one_that_never_stopped(table, data):
    cut = len(data.outcomes.kind) // 2
    part = type(data.outcomes)(*(getattr(data.outcomes, f)[:cut] for f in data.outcomes.__dataclass_fields__))
    thawed = thaw(freeze(part, data.lookups), data.lookups)
    later = int(part.known_ms[-1]) + 1
    rows = table.slice(table.num_rows // 2, 300).to_pylist()
    whole = Offline(part, data.lookups)
    for request in requests_of(rows)[:200]:
        live = thawed.features(request, ("MIT", "WORLDPAY"), later)
        fresh = LiveState(data.lookups)
        fresh.rate_sums = lambda keys, ms: whole.rate_sums(keys, ms)
        fresh.subject_sums = lambda keys, ms: whole.subject_sums(keys, ms)
        fresh.window_counts = lambda processor, ms: whole.window_counts(processor, ms)
        assert differing(fresh.features(request, ("MIT", "WORLDPAY"), later), live) == {}


def test_candidates_of_one_request_are_built_as_if_each_had_been_logged(data):
    rows = data.index[-50:]
    for code in range(3):
        one = logged_matrix(data.columns, rows, np.full(len(rows), code), data.reader, data.lookups)
        assert (one[:, FEATURE_NAMES.index("processor")] == code + 1).all()
        assert not np.isnan(one).any()


def test_training_and_service_read_every_answer_alike(table, data):
    rows = table.slice(0, 4_000).to_pylist()
    kinds = kinds_of(table, numeric(table, "approved"))[: len(rows)]
    for row, kind in zip(rows, kinds, strict=True):
        status = "approved" if row["approved"] else "declined"
        said = (row["error_code"], row["hard_soft"], row["advice_code"], row["error_category"])
        assert KINDS[kind] == classify(status, *said)


def test_an_earlier_attempt_counts_only_once_its_outcome_is_known(table, data):
    """The rule that the schema states for `attempt.previous`: attempts that still wait for an answer are not listed."""
    rows, place = table.to_pylist(), FEATURE_NAMES.index("n_previous")
    state, began, waiting = LiveState(data.lookups), {}, 0
    for at_ms, row, request in zip(data.columns["at_ms"].tolist(), rows, requests_of(rows), strict=True):
        earlier = [r for r in began.setdefault(row["order_id"], []) if r["attempted_at"] < row["attempted_at"]]
        began[row["order_id"]].append(row)
        known = [r for r in earlier if r["known_at"] and r["known_at"] < row["attempted_at"]]
        if len(known) < len(earlier):  # one is still under way, or was never answered
            waiting += 1
            live = state.features(request, ("MIT",), at_ms)[0]
            assert live[place] == row["n_previous"] == len(known) == len(request["attempt"]["previous"])
            assert row["previous_processors"] == ("|".join(r["processor"] for r in known) or None)
    assert waiting > 50
