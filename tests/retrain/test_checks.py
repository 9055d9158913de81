"""Which processors can be learnt, and which features: extracts that are short, one-sided, or know too much."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from smartrouter.features.dataset import build
from smartrouter.features.matrix import FEATURE_NAMES
from smartrouter.monitor.quality import ExtractRefused, require
from smartrouter.retrain.checks import check_extract, check_features, choosable, entities, keyed, learnable_processors
from smartrouter.retrain.plan import make_plan
from smartrouter.rules.policy import load_policy
from smartrouter.warehouse.connect import connect
from smartrouter.warehouse.queries import attempts, earlier_attempts

POLICY = load_policy("volaris", Path(__file__).parents[2] / "params")
PLAN = make_plan({"least_rows": 800, "least_per_processor": 50})
N = 900
START = datetime(2026, 1, 1)


def columns():
    """A healthy extract as lists."""
    moments = [START + timedelta(minutes=30 * i) for i in range(N)]
    return {
        "attempt_id": [f"a{i}" for i in range(N)],
        "order_id": [f"o{i // 2}" for i in range(N)],
        "processor": [("WORLDPAY", "MIT", "ELAVON")[i % 3] for i in range(N)],
        "brand": ["VISA"] * N,
        "currency": ["MXN"] * N,
        "amount": [100.0 + i for i in range(N)],
        "attempted_at": moments,
        "known_at": [m + timedelta(seconds=3) for m in moments],
        "approved": [i % 5 > 1 for i in range(N)],
        "counts_in_rate": [True] * N,
    }


def failed(changes, level="error", plan=PLAN):
    checks = check_extract(pa.table(columns() | changes), POLICY, plan)
    return {c.name: c.found for c in checks if not c.passed and c.level == level}


def test_a_healthy_extract_passes_rows_and_processors():
    checks = check_extract(pa.table(columns()), POLICY, PLAN)
    assert all(c.passed for c in checks)
    assert {"rows", "outcomes", "learnable", "all learnt", "known codes"} <= {c.name for c in checks}
    require(checks)


def test_no_processor_that_the_policy_knows_is_an_error():
    found = failed({"processor": ["OTHER"] * N})
    assert "no processor can be learnt" in found["learnable"]
    with pytest.raises(ExtractRefused, match="champion is unchanged"):
        require(check_extract(pa.table(columns() | {"processor": ["OTHER"] * N}), POLICY, PLAN))


def test_one_processor_only_is_learnt_and_the_others_are_told():
    alone = {"processor": ["MIT"] * N}
    assert failed(alone) == {}
    assert "hardly seen in training: WORLDPAY, ELAVON" in failed(alone, level="warning")["all learnt"]
    assert learnable_processors(pa.table(columns() | alone), POLICY, PLAN) == ("MIT",)


def test_a_processor_never_seen_in_training_is_told_and_left_to_the_rules():
    late = ["ELAVON" if i > 850 else ("WORLDPAY", "MIT")[i % 2] for i in range(N)]
    assert failed({"processor": late}) == {}
    warned = failed({"processor": late}, level="warning")["all learnt"]
    assert "hardly seen in training: ELAVON" in warned and "static rules" in warned
    assert learnable_processors(pa.table(columns() | {"processor": late}), POLICY, PLAN) == ("WORLDPAY", "MIT")
    one_sided = [False if p == "MIT" else i % 5 > 1 for i, p in enumerate(columns()["processor"])]
    assert "MIT" not in learnable_processors(pa.table(columns() | {"approved": one_sided}), POLICY, PLAN)


def test_a_code_that_the_policy_does_not_know_is_told():
    strange = ["OTHER"] * 3 + columns()["processor"][3:]
    assert "OTHER" in failed({"processor": strange}, level="warning")["known codes"]


def test_hard_ruled_processors_are_not_learnt():
    assert choosable(POLICY) == tuple(c for c in POLICY.codes if c != "AMEX")


def test_processors_are_not_asked_about_when_the_rows_cannot_be_read():
    text = pa.table(columns()).set_column(8, "approved", pa.array(["yes"] * N))
    assert [c.name for c in check_extract(text, POLICY, PLAN)] == ["columns", "rows"]
    assert [c.name for c in check_extract(pa.table(columns()).slice(0, 0), POLICY, PLAN)] == ["columns", "rows"]


# --- features -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(small_warehouse):
    """The small simulated merchant's extract and dataset."""
    with connect(small_warehouse, job="test") as warehouse:
        table = attempts(warehouse, "volaris")
    learn = choosable(POLICY)
    data = build(table, processors=POLICY.codes, learn=learn, time_zone="America/Mexico_City", home_currency="MXN")
    return table, data


QUICK = make_plan({"replay_rows": 200})


def test_the_features_of_the_simulated_merchant_raise_no_alarm(world):
    checks = check_features(*world, QUICK)
    assert [(c.name, c.level, c.passed) for c in checks] == [
        ("leakage", "error", True),
        ("point in time", "error", True),
    ]
    assert "200 decisions" in checks[1].found


@pytest.fixture(scope="module")
def late(small_warehouse):
    """An extract from the middle of the history, and what its first orders tried before."""
    moment = datetime(2026, 1, 20)
    with connect(small_warehouse, job="test") as warehouse:
        return attempts(warehouse, "volaris", moment), earlier_attempts(warehouse, "volaris", moment)


def point_in_time(table, before):
    learn = choosable(POLICY)
    data = build(table, processors=POLICY.codes, learn=learn, time_zone="America/Mexico_City", home_currency="MXN")
    return check_features(table, data, make_plan({"replay_rows": 1_000}), before)[1]


def test_an_extract_from_the_middle_of_the_history_raises_no_alarm(late):
    table, before = late
    check = point_in_time(table, before)
    assert check.passed and "1,000 decisions replayed" in check.found


@pytest.mark.parametrize("of", ["orders that the start cut", "whole orders"])
def test_a_skew_in_an_extract_from_the_middle_is_found(late, of):
    table, before = late
    cut = set(before["order_id"].to_pylist())
    frame = table.select(["order_id", "n_previous"]).to_pandas()
    chosen = frame["order_id"].isin(cut) == (of == "orders that the start cut")
    retried = chosen & (frame["n_previous"] > 0)
    counts = frame["n_previous"] + retried  # one attempt too many, as if one without an answer were counted
    skewed = table.set_column(table.schema.get_field_index("n_previous"), "n_previous", pa.array(counts))
    check = point_in_time(skewed, before)
    assert not check.passed and "n_previous (" in check.found


def planted(data, column, values):
    """The dataset with one feature replaced."""
    X = data.X.copy()
    X[:, FEATURE_NAMES.index(column)] = values
    return replace(data, X=X)


def leaks(table, data):
    """What each planted leak puts into a column: the answer, the order's future, today's user, an own outcome."""
    order = table.select(["order_id", "user_id", "bin", "processor"]).take(data.index).to_pandas()
    y = pd.Series(data.y.astype(float))
    user, route = y.groupby(order["user_id"].to_numpy()), y.groupby((order["bin"] + order["processor"]).to_numpy())
    return {
        "authorization code": data.y,
        "final attempts": order.groupby("order_id")["user_id"].transform("size").to_numpy(),
        "user as of today": (user.transform("sum") / (user.transform("size") + 2)).to_numpy(),
        "rate with its own outcome": ((route.cumsum() + 6) / (route.cumcount() + 11)).to_numpy(),
    }


@pytest.mark.parametrize(
    "leak", ["authorization code", "final attempts", "user as of today", "rate with its own outcome"]
)
def test_a_planted_leak_stops_the_retraining_and_is_named(world, leak):
    table, data = world
    checks = check_features(table, planted(data, "rate_processor_bin", leaks(table, data)[leak]), QUICK)
    assert "rate_processor_bin" in next(c.found for c in checks if c.name == "leakage" and not c.passed)
    with pytest.raises(ExtractRefused, match="rate_processor_bin"):
        require(checks)


def test_a_trusted_feature_is_not_audited(world):
    table, data = world
    plan = make_plan({"replay_rows": 200, "trusted_features": ["rate_processor_bin"]})
    known = planted(data, "rate_processor_bin", leaks(table, data)["authorization code"])
    assert all(c.passed for c in check_features(table, known, plan))


def test_too_few_rows_are_told_and_not_audited():
    data = SimpleNamespace(y=np.zeros(999))
    (check,) = check_features(None, data, PLAN)
    assert check.level == "warning" and not check.passed and "999 attempts, not audited" in check.found


def test_unknown_keys_take_no_part():
    frame = pd.DataFrame({"user_id": ["u", None], "bin": [None, None], "processor": ["MIT", "MIT"]})
    codes, rows = keyed(entities(frame)["user"], np.array([True, True]))
    assert rows.tolist() == [0] and codes[1] == -1
    assert keyed(entities(frame)["BIN at processor"], np.array([True, True]))[1].size == 0
    assert keyed(entities(frame)["processor"], np.array([True, False]))[1].tolist() == [0]
