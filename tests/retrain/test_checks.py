"""Bad extracts are refused in words; good ones pass."""

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from smartrouter.retrain.checks import (
    NEEDED,
    ExtractRefused,
    check_extract,
    choosable,
    learnable_processors,
    require,
)
from smartrouter.retrain.plan import make_plan
from smartrouter.rules.policy import load_policy

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


def test_a_healthy_extract_passes():
    checks = check_extract(pa.table(columns()), POLICY, PLAN)
    assert len(checks) == 9 and all(c.passed for c in checks)
    require(checks)


def replaced(name, value, where=range(3)):
    values = columns()[name]
    for i in where:
        values[i] = value
    return {name: values}


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        (replaced("attempt_id", "a5"), "columns", "attempt_id: not unique in 4 rows"),
        (replaced("attempt_id", None, [7]), "columns", "attempt_id: missing in 1 rows"),
        (replaced("order_id", None), "columns", "order_id: missing in 3 rows"),
        (replaced("processor", None), "columns", "processor: missing in 3 rows"),
        (replaced("attempted_at", None), "columns", "attempted_at: missing in 3 rows"),
        (replaced("currency", "pesos"), "columns", "such as 'pesos'"),
        (replaced("amount", -1.0), "columns", "such as '-1.0'"),
        ({"approved": [True] * N}, "outcomes", "one kind of outcome only: approved"),
        ({"approved": [False] * N}, "outcomes", "one kind of outcome only: declined"),
        ({"approved": pa.nulls(N, pa.bool_())}, "answered", "100.0% never answered"),
        (replaced("approved", None, range(0, N, 4)), "answered", "25.0% never answered"),
        ({"processor": ["OTHER"] * N}, "learnable", "no processor can be learnt"),
        (replaced("known_at", START - timedelta(days=1)), "order", "3 outcomes before"),
        (
            {"attempted_at": [START + timedelta(minutes=30 * i, days=3 * (i > 400)) for i in range(N)]}
            | {"known_at": [START + timedelta(days=90)] * N},
            "no hole",
            "72.5 h without an attempt from 2026-01-09T08:00",
        ),
    ],
)
def test_a_fault_is_found_and_named(changes, check, words):
    found = failed(changes)
    assert words in found[check]
    with pytest.raises(ExtractRefused, match="champion is unchanged"):
        require(check_extract(pa.table(columns() | changes), POLICY, PLAN))


def test_short_and_empty_extracts():
    short = check_extract(pa.table(columns()).slice(0, 100), POLICY, PLAN)
    assert "100 attempts" in {c.name: c.found for c in short if not c.passed}["rows"]
    empty = check_extract(pa.table(columns()).slice(0, 0), POLICY, PLAN)
    assert "0 attempts" in {c.name: c.found for c in empty if not c.passed}["rows"]


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_column_is_named(name):
    checks = check_extract(pa.table(columns()).drop_columns([name]), POLICY, PLAN)
    assert len(checks) == 2  # the deeper checks wait until every column is there
    assert f"{name}: column is not there" in checks[0].found and not checks[0].passed


def test_a_processor_never_seen_in_training_is_told_and_left_to_the_rules():
    late = ["ELAVON" if i > 850 else ("WORLDPAY", "MIT")[i % 2] for i in range(N)]
    assert failed({"processor": late}) == {}
    warned = failed({"processor": late}, level="warning")["all learnt"]
    assert "hardly seen in training: ELAVON" in warned and "static rules" in warned
    assert learnable_processors(pa.table(columns() | {"processor": late}), POLICY, PLAN) == ("WORLDPAY", "MIT")
    one_sided = [False if p == "MIT" else i % 5 > 1 for i, p in enumerate(columns()["processor"])]
    assert "MIT" not in learnable_processors(pa.table(columns() | {"approved": one_sided}), POLICY, PLAN)


def test_a_code_that_the_policy_does_not_know_is_told():
    assert "OTHER" in failed(replaced("processor", "OTHER"), level="warning")["known codes"]


def test_hard_ruled_processors_are_not_learnt():
    assert choosable(POLICY) == tuple(c for c in POLICY.codes if c != "AMEX")
