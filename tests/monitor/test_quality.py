"""Bad extracts are refused in words; good ones pass."""

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from smartrouter.monitor.quality import NEEDED, ExtractRefused, Gate, gate, require

BOUNDS = Gate(least_rows=800)
N = 900
START = datetime(2026, 1, 1)
MOMENTS = [START + timedelta(minutes=30 * i) for i in range(N)]


def columns():
    """A healthy extract as lists."""
    return {
        "attempt_id": [f"a{i}" for i in range(N)],
        "order_id": [f"o{i // 2}" for i in range(N)],
        "processor": [("WORLDPAY", "MIT", "ELAVON")[i % 3] for i in range(N)],
        "brand": ["VISA"] * N,
        "currency": ["MXN"] * N,
        "amount": [100.0 + i for i in range(N)],
        "attempted_at": list(MOMENTS),
        "known_at": [m + timedelta(seconds=3) for m in MOMENTS],
        "approved": [i % 5 > 1 for i in range(N)],
        "counts_in_rate": [True] * N,
    }


def failed(changes, level="error", bounds=BOUNDS):
    checks = gate(pa.table(columns() | changes), bounds)
    return {c.name: c.found for c in checks if not c.passed and c.level == level}


def replaced(name, value, where=range(3)):
    values = columns()[name]
    for i in where:
        values[i] = value
    return {name: values}


def test_a_healthy_extract_passes():
    checks = gate(pa.table(columns()), BOUNDS)
    assert len(checks) == len({c.name for c in checks}) == 15 and all(c.passed for c in checks)
    require(checks)


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
        (replaced("amount", None, range(100)), "missing", "amount in 11.1%"),
        ({"brand": pa.nulls(N, pa.string())}, "missing", "brand in 100.0%"),
        ({"propensity": [1.0] * (N - 5) + [1.2] * 5}, "ranges", "propensity in 0.6%"),
        ({"propensity": [0.5] * (N - 5) + [0.0] * 5}, "propensity", "0 in 0.56% of 900 choices"),
        ({"propensity": [None] * (N - 10) + [0.0] + [0.5] * 9}, "propensity", "0 in 10.00% of 10 choices"),
        ({"approved": [True] * N}, "outcomes", "one kind of outcome only: approved"),
        ({"approved": [False] * N}, "outcomes", "one kind of outcome only: declined"),
        ({"approved": [i % 100 > 0 for i in range(N)]}, "outcomes", "the rarer in 1.0%"),
        ({"approved": pa.nulls(N, pa.bool_())}, "answered", "100.0% never answered"),
        (replaced("approved", None, range(0, N, 4)), "answered", "25.0% never answered"),
        (replaced("approved", None, range(N - 30, N)), "newest", "61.2% of the last 24 h unanswered"),
        (replaced("known_at", START - timedelta(days=1)), "order", "3 outcomes before"),
        ({"known_at": [m + timedelta(days=4 * (i % 20 == 0)) for i, m in enumerate(MOMENTS)]}, "delay", "96.00 h"),
        (
            {"attempted_at": [START + timedelta(minutes=30 * i, days=3 * (i > 400)) for i in range(N)]}
            | {"known_at": [START + timedelta(days=22)] * N},
            "no hole",
            "72.5 h without an attempt from 2026-01-09T08:00",
        ),
    ],
)
def test_a_fault_is_found_and_named(changes, check, words):
    assert words in failed(changes)[check]
    with pytest.raises(ExtractRefused, match="champion is unchanged"):
        require(gate(pa.table(columns() | changes), BOUNDS))


def test_a_few_choices_without_a_chance_are_told_and_do_not_stop():
    changes = {"propensity": [0.5] * (N - 2) + [0.0] * 2}
    assert "0 in 0.22%" in failed(changes, "warning")["propensity"] and not failed(changes)
    require(gate(pa.table(columns() | changes), BOUNDS))


def test_the_same_attempt_under_two_ids_is_found():
    again = pa.table(columns()).slice(0, 9).set_column(0, "attempt_id", pa.array([f"b{i}" for i in range(9)]))
    checks = gate(pa.concat_tables([pa.table(columns()), again]), BOUNDS)
    assert [c.found[:5] for c in checks if not c.passed] == ["0.99%"]


def test_short_and_empty_extracts():
    short = gate(pa.table(columns()).slice(0, 100), BOUNDS)
    assert "100 attempts" in {c.name: c.found for c in short if not c.passed}["rows"]
    empty = gate(pa.table(columns()).slice(0, 0), BOUNDS)
    assert "0 attempts" in {c.name: c.found for c in empty if not c.passed}["rows"]
    single = gate(pa.table(columns()).slice(0, 1), BOUNDS)
    assert {"rows", "outcomes"} <= {c.name for c in single if not c.passed}


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_column_is_named(name):
    checks = gate(pa.table(columns()).drop_columns([name]), BOUNDS)
    assert len(checks) == 2  # the deeper checks wait until every column is there
    assert f"{name}: column is not there" in checks[0].found and not checks[0].passed


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("approved", ["yes"] * N, "approved: is string where bool is declared"),
        ("amount", pa.nulls(N), "amount: is null where double is declared"),
        ("attempted_at", [m.isoformat() for m in MOMENTS], "attempted_at: is string where timestamp[us] is declared"),
    ],
)
def test_a_column_of_another_type_is_named(name, values, words):
    checks = gate(pa.table(columns() | {name: values}), BOUNDS)
    assert len(checks) == 2 and words in checks[0].found and not checks[0].passed


def test_an_all_missing_column_is_told_and_does_not_stop():
    empty = {"bank": pa.nulls(N, pa.string())}
    assert failed(empty) == {}
    assert "never filled: bank; their features stay at the fill value" in failed(empty, level="warning")["empty"]


def test_a_column_that_went_dark_is_told():
    dark = {"bank": [None if i > N * 0.8 else "BBVA" for i in range(N)]}
    assert failed(dark) == {}
    assert "bank (+" in failed(dark, level="warning")["dark"]


def test_a_thin_day_is_told():
    kept = [i for i in range(N) if not 480 <= i < 528 or i % 16 == 0]  # of the eleventh day, three attempts
    table = pa.table(columns()).take(kept)
    found = {c.name: c.found for c in gate(table, BOUNDS) if not c.passed}
    assert found == {"thin days": "2026-01-11 (3)"}


@pytest.mark.parametrize("bad", [{"most_odd": -0.1}, {"least_minority": 0.6}, {"most_gap_hours": 0.0}, {"unknown": 1}])
def test_bounds_are_bounded(bad):
    with pytest.raises(ValidationError):
        Gate(**bad)


def test_the_public_attempts_pass(tmp_path):
    source = Path(__file__).parents[3] / "shared/data/psp_attempts.csv"
    if not source.exists():
        pytest.skip("the public attempts are not here")
    from smartrouter.core.settings import Settings
    from smartrouter.warehouse.connect import connect
    from smartrouter.warehouse.ingest import ingest
    from smartrouter.warehouse.queries import attempts, merchants

    url = f"duckdb:///{tmp_path / 'warehouse.duckdb'}"
    settings = Settings.load({"SMARTROUTER_WAREHOUSE": url, "SMARTROUTER_HOME": str(tmp_path)})
    ingest(source, Path(__file__).parents[2] / "params/ingest/psp.yaml", settings)
    with connect(url, job="test") as warehouse:
        table = attempts(warehouse, merchants(warehouse)["merchant_id"][0].as_py())
    assert [c.name for c in gate(table, Gate()) if c.level == "error" and not c.passed] == []
