"""The same tests on DuckDB and on the real Snowflake connector over HTTP."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smartrouter.core.errors import SmartrouterError
from smartrouter.warehouse.connect import Connection, QueryFailed
from smartrouter.warehouse.queries import (
    ATTEMPTS,
    BY,
    EmptyExtract,
    RepeatedKeys,
    approval,
    attempts,
    earlier_attempts,
    merchants,
    routing_rules,
    volume,
)
from smartrouter.warehouse.schema import CONTRACT, MissingFromWarehouse, UnknownIdentifier, identifier, verify_contract
from smartrouter.warehouse.sql import QueryRefused

HOSTILE = [
    "x' OR '1'='1",
    "volaris'; DROP TABLE SOURCES.VW_ATHENA_ORDER; --",
    "' UNION SELECT * FROM SOURCES.VW_ATHENA_PAYMENT --",
    "volaris' /*",
    '"; DELETE FROM SOURCES.VW_ATHENA_ORDER; --',
    ":merchant_id",
    "?",
    "%(merchant_id)s",
    "$1",
    "\\'; SELECT 1; --",
    "volaris\x00",
]


def count(warehouse: Connection) -> int:
    return warehouse.query("SELECT COUNT(*) AS N FROM SOURCES.VW_ATHENA_ORDER")["n"][0].as_py()


def test_contract_holds(warehouse: Connection) -> None:
    assert verify_contract(warehouse) is None


def test_attempts_frame(warehouse: Connection) -> None:
    frame = attempts(warehouse, "volaris")
    assert frame.schema == ATTEMPTS
    assert frame["attempt_id"].to_pylist() == ["a-1", "a-2", "a-3", "b-1", "b-2", "b-3"]
    first = frame.slice(0, 1).to_pylist()[0]
    assert first["attempted_at"] == dt.datetime(2026, 4, 15, 12) and first["known_at"] == dt.datetime(
        2026, 4, 15, 12, 0, 2
    )
    wanted = {
        "eligible": "WORLDPAY|MIT|ELAVON",
        "propensity": 0.97,
        "explored": False,
        "message": "standard",
        "advice_code": "01",
        "amount": 2450.75,
        "currency": "MXN",
        "order_type": "flight",
        "mcc": "4511",
        "channel": "WEB",
        "is_guest": False,
        "browsing_minutes": 6.5,
        "city": "Ciudad de México",
        "three_ds": False,
        "bin": "415231",
        "bank": "BBVA",
        "funding": "credit",
        "last_four": "1234",
        "initiation": "CIT",
        "browser": "Firefox",
        "flights": 2,
        "origin": "MEX",
        "destination": "TIJ",
        "departure_at": dt.datetime(2026, 4, 18, 7),
        "frequent_flyer": True,
        "adults": 1,
        "children": 1,
        "infants": 0,
    }
    assert {name: first[name] for name in wanted} == wanted


def test_only_outcomes_known_before_count(warehouse: Connection) -> None:
    rows = {row["attempt_id"]: row for row in attempts(warehouse, "volaris").to_pylist()}
    third, hanging, last = rows["a-3"], rows["b-2"], rows["b-3"]
    assert (third["n_previous"], third["n_previous_soft"], third["previous_processors"]) == (2, 1, "WORLDPAY|MIT")
    # the attempt just before had no code: its emptiness must not be filled from the one before that
    assert (third["prev_processor"], third["prev_error_code"], third["prev_advice_code"]) == ("MIT", None, None)
    assert rows["a-2"]["prev_error_code"] == "51" and rows["a-2"]["prev_advice_code"] == "01"
    assert hanging["n_previous"] == 0 and hanging["prev_processor"] is None  # MIT had not answered yet
    assert (last["n_previous"], last["n_previous_technical"], last["prev_processor"]) == (1, 1, "MIT")
    assert third["known_at"] == dt.datetime(2026, 4, 15, 12, 1, 1)  # the first of two answers


def test_unanswered_attempt_has_no_outcome(warehouse: Connection) -> None:
    row = attempts(warehouse, "volaris").to_pylist()[4]
    names = ["known_at", "approved", "error_code", "error_category", "hard_soft", "advice_code"]
    assert row["attempt_id"] == "b-2" and [row[name] for name in names] == [None] * 6


def test_engines_agree(build: Callable[[str, str], Any]) -> None:
    frames, sums, rules = [], [], []
    for engine in ("duckdb", "snowflake"):
        with build(engine, "AGREE").open_one() as warehouse:
            frames.append(attempts(warehouse, "volaris"))
            sums.append(approval(warehouse, "volaris", [word for word in BY if word != "bin"]))
            rules.append(routing_rules(warehouse, "volaris"))
            flat = warehouse.query("SELECT * FROM ABTESTING.ALL_VIEWS_FLAT ORDER BY PAYMENT_ATTEMPT_ID")
            frames.append(flat.drop_columns(["dynamic_routing_detail"]))
    assert frames[0].equals(frames[2]) and frames[1].to_pylist() == frames[3].to_pylist()
    assert sums[0].to_pylist() == sums[1].to_pylist() and rules[0].to_pylist() == rules[1].to_pylist()


@pytest.mark.parametrize(
    ("start", "end", "ids"),
    [
        ("12:00:30", "12:01:00", ["a-2"]),
        ("13:00:00", None, ["b-1", "b-2", "b-3"]),
        (None, "12:00:00.000001", ["a-1"]),
    ],
)
def test_window_is_half_open(warehouse: Connection, start: str | None, end: str | None, ids: list[str]) -> None:
    times = [dt.datetime.fromisoformat(f"2026-04-15T{at}") if at else None for at in (start, end)]
    assert attempts(warehouse, "volaris", *times)["attempt_id"].to_pylist() == ids


def test_window_with_a_zone_is_utc(warehouse: Connection) -> None:
    mexico = dt.timezone(dt.timedelta(hours=-6))
    frame = attempts(warehouse, "volaris", dt.datetime(2026, 4, 15, 7, tzinfo=mexico))
    assert frame["attempt_id"].to_pylist() == ["b-1", "b-2", "b-3"]
    assert frame["n_previous"].to_pylist() == [0, 0, 1]  # context reaches back beyond the window


@pytest.mark.parametrize(
    ("start", "ids"),
    [("12:00:00", []), ("12:00:30", ["a-1"]), ("12:00:30.000001", ["a-1", "a-2"]), ("13:02:00", ["b-1", "b-2"])],
)
def test_orders_that_a_start_cuts_in_two_are_completed(warehouse: Connection, start: str, ids: list[str]) -> None:
    moment = dt.datetime.fromisoformat(f"2026-04-15T{start}")
    found = earlier_attempts(warehouse, "volaris", moment)
    assert found.schema == ATTEMPTS and found["attempt_id"].to_pylist() == ids
    whole = {row["attempt_id"]: row for row in attempts(warehouse, "volaris").to_pylist()}
    assert found.to_pylist() == [whole[name] for name in ids]
    assert earlier_attempts(warehouse, "volaris", moment.replace(tzinfo=dt.UTC)).equals(found)
    assert earlier_attempts(warehouse, "psp", moment).num_rows == 0  # of another merchant


def test_empty_extract_names_the_merchants(warehouse: Connection) -> None:
    with pytest.raises(EmptyExtract, match=r"'volari'.*volaris, psp"):
        attempts(warehouse, "volari")
    with pytest.raises(EmptyExtract, match="2030"):
        attempts(warehouse, "volaris", dt.datetime(2030, 1, 1))
    empty = attempts(warehouse, "volari", empty_ok=True)
    assert empty.num_rows == 0 and empty.schema == ATTEMPTS


@pytest.mark.parametrize("hostile", HOSTILE)
def test_injection_through_values(warehouse: Connection, hostile: str) -> None:
    before = count(warehouse)
    for ask in (
        lambda: attempts(warehouse, hostile, empty_ok=True).num_rows,
        lambda: earlier_attempts(warehouse, hostile, dt.datetime(2026, 4, 15, 13)).num_rows,
        lambda: routing_rules(warehouse, hostile).num_rows,
        lambda: approval(warehouse, hostile).num_rows,
        lambda: volume(warehouse, hostile).num_rows,
    ):
        try:
            assert ask() == 0
        except QueryFailed:
            assert "\x00" in hostile  # no engine takes a null character in text
    for name in ("start", "end"):
        with pytest.raises(SmartrouterError):
            attempts(warehouse, "volaris", **{name: hostile})  # type: ignore[arg-type]
    assert count(warehouse) == before and verify_contract(warehouse) is None


@pytest.mark.parametrize("hostile", HOSTILE)
def test_injection_through_names(warehouse: Connection, hostile: str) -> None:
    with pytest.raises(QueryRefused):
        approval(warehouse, "volaris", by=[hostile])
    with pytest.raises(UnknownIdentifier):
        identifier(hostile)
    with pytest.raises(UnknownIdentifier):
        identifier("SOURCES.VW_ATHENA_ORDER", hostile)
    with pytest.raises(QueryRefused):
        warehouse.query("SELECT :a AS A", {hostile: 1})
    assert count(warehouse) == 3


@pytest.mark.parametrize("value", [["volaris"], {"a": 1}, b"volaris", object(), ("a",)])
def test_only_plain_values_are_bound(warehouse: Connection, value: object) -> None:
    with pytest.raises(QueryRefused, match="merchant_id"):
        attempts(warehouse, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO SOURCES.VW_ATHENA_CHANNEL VALUES (9, 'X')",
        "UPDATE SOURCES.VW_ATHENA_CHANNEL SET CHANNEL_NAME = 'X'",
        "DELETE FROM SOURCES.VW_ATHENA_CHANNEL",
        "TRUNCATE TABLE SOURCES.VW_ATHENA_CHANNEL",
        "DROP TABLE SOURCES.VW_ATHENA_CHANNEL",
        "ALTER TABLE SOURCES.VW_ATHENA_CHANNEL ADD COLUMN X INT",
        "CREATE TABLE SOURCES.X AS SELECT 1 AS A",
        "MERGE INTO SOURCES.VW_ATHENA_CHANNEL T USING SOURCES.VW_ATHENA_CHANNEL S ON FALSE WHEN MATCHED THEN DELETE",
        "GRANT SELECT ON SOURCES.VW_ATHENA_ORDER TO ROLE PUBLIC",
        "USE ROLE ACCOUNTADMIN",
        "SET X = 1",
        "CALL SYSTEM$WAIT(1)",
        "COPY INTO @stage FROM SOURCES.VW_ATHENA_ORDER",
        "PUT file:///etc/passwd @~",
        "SELECT 1 AS A; SELECT 2 AS B",
        "SELECT 1 AS A; DROP TABLE SOURCES.VW_ATHENA_CHANNEL",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM SOURCES.VW_SALARIES",
        "SELECT * FROM @stage/file.csv",
        "SELECT * FROM TABLE(RESULT_SCAN(LAST_QUERY_ID()))",
        "SELECT A FROM SOURCES.VW_ATHENA_CHANNEL WHERE EXISTS (SELECT 1 FROM OTHER.SECRETS)",
        "",
        "SELECT FROM WHERE",
        "ATTACH 'x.duckdb'",
        "PRAGMA database_list",
        "EXPLAIN SELECT 1",
    ],
)
def test_reading_only(warehouse: Connection, text: str) -> None:
    with pytest.raises(QueryRefused):
        warehouse.query(text)


def test_reading_of_other_kinds(warehouse: Connection) -> None:
    cte = warehouse.query("WITH A AS (SELECT CHANNEL_ID FROM SOURCES.VW_ATHENA_CHANNEL) SELECT COUNT(*) AS N FROM A")
    both = warehouse.query("SELECT 1 AS N UNION ALL SELECT 2 AS N ORDER BY N")
    described = warehouse.query("DESCRIBE TABLE SOURCES.VW_ATHENA_CHANNEL")
    assert cte["n"].to_pylist() == [1] and both["n"].to_pylist() == [1, 2] and described.num_rows == 2


def test_answers_have_one_form(warehouse: Connection) -> None:
    table = warehouse.query(
        "SELECT TOTA_MINUTES_BROWSING, ORDER_TIME, ORDER_DATE, CHANNEL_ID AS C, COUNT(*) AS N "
        "FROM SOURCES.VW_ATHENA_ORDER GROUP BY 1, 2, 3, 4"
    )
    kinds = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert kinds == {
        "total_minutes_browsing": "double",
        "order_time": "time64[us]",
        "order_date": "date32[day]",
        "c": "int64",
        "n": "int64",
    }
    with pytest.raises(QueryRefused, match="named twice"):
        warehouse.query('SELECT 1 AS A, 2 AS "a"')


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_as_it_went(warehouse: Connection, text: str) -> None:
    row = warehouse.query("SELECT CAST(:a AS VARCHAR) AS A, ':b' AS B WHERE :a = :a", {"a": text}).to_pylist()
    assert row == [{"a": text, "b": ":b"}]


def test_numbers_and_times_come_back(warehouse: Connection) -> None:
    at = dt.datetime(2026, 4, 15, 12, 0, 0, 123456)
    casts = {"at": "TIMESTAMP_NTZ", "n": "BIGINT", "x": "FLOAT", "none": "VARCHAR"}
    sql = "SELECT " + ", ".join(f"CAST(:{name} AS {kind}) AS {name}" for name, kind in casts.items())
    row = warehouse.query(sql, {"at": at, "n": 2**40, "x": 0.1, "none": None}).to_pylist()[0]
    assert row == {"at": at, "n": 2**40, "x": 0.1, "none": None}


def test_unknown_column_is_a_failed_query(warehouse: Connection) -> None:
    with pytest.raises(QueryFailed, match="NOPE"):
        warehouse.query("SELECT NOPE FROM SOURCES.VW_ATHENA_CHANNEL")


def test_values_and_names_must_match(warehouse: Connection) -> None:
    with pytest.raises(QueryRefused, match="values for no name"):
        warehouse.query("SELECT :a AS A")
    with pytest.raises(QueryRefused, match="values for a, b"):
        warehouse.query("SELECT :a AS A", {"a": 1, "b": 2})


def test_sums(warehouse: Connection) -> None:
    rows = approval(warehouse, "volaris", ["processor"]).to_pylist()
    assert [(row["processor"], row["attempts"], row["counted"], row["approved"]) for row in rows] == [
        ("ELAVON", 2, 2, 1),
        ("MIT", 2, 2, 0),
        ("WORLDPAY", 2, 2, 1),
    ]
    assert volume(warehouse, "volaris").to_pylist()[0]["amount_usd"] == pytest.approx(603.0)
    assert merchants(warehouse)["merchant_id"].to_pylist() == ["volaris", "psp"]
    bands = approval(warehouse, "volaris", ["amount_band", "hour_utc"]).to_pylist()
    assert [(row["amount_band"][:1], row["hour_utc"]) for row in bands] == [("3", 12), ("3", 13)]


def test_sums_need_known_words(warehouse: Connection) -> None:
    for by in ([], ["processor", "processor"], ["colour"]):
        with pytest.raises(QueryRefused):
            approval(warehouse, "volaris", by)


def test_routing_rules_in_long_form(warehouse: Connection) -> None:
    rows = routing_rules(warehouse, "volaris").to_pylist()
    assert [(row["rule_id"], row["field"], row["operand"], row["capabilities"]) for row in rows] == [
        (201, "currency", "USD|COP", '{"processor": "ELAVON"}'),
        (201, "currency", "USD|COP", '{"processor": "MIT"}'),
    ]


def test_flat_view_has_one_row_an_attempt(warehouse: Connection) -> None:
    flat = warehouse.query("SELECT * FROM ABTESTING.ALL_VIEWS_FLAT")
    sample = warehouse.query("SELECT PAYMENT_ATTEMPT_ID FROM ABTESTING.ALL_VIEWS_FLAT_SAMPLE")
    assert flat.num_rows == 7 and len(set(flat["payment_attempt_id"].to_pylist())) == 7
    assert {"total_minutes_browsing", "payment_time"} <= set(flat.column_names)
    assert set(sample["payment_attempt_id"].to_pylist()) <= set(flat["payment_attempt_id"].to_pylist())


def test_progress_changes_nothing(warehouse: Connection) -> None:
    quiet, loud = attempts(warehouse, "volaris"), attempts(warehouse, "volaris", progress=True)
    assert quiet.equals(loud)


@pytest.mark.parametrize("engine", ["duckdb", "snowflake"])
def test_everything_missing_is_named_at_once(engine: str, build: Callable[[str, str], Any]) -> None:
    bench = build(engine, "BROKEN")
    for view in ("ALL_VIEWS_FLAT_SAMPLE", "ALL_VIEWS_FLAT"):
        bench.change(f"DROP VIEW ABTESTING.{view}")
    bench.change("DROP TABLE SOURCES.VW_ATHENA_CHANNEL")
    bench.change("ALTER TABLE SOURCES.VW_ATHENA_PAYMENT RENAME COLUMN PATMENT_TIME TO PAYMENT_TIME")
    bench.change("ALTER TABLE SOURCES.VW_ATHENA_ORDER DROP COLUMN CARD_COUNTRY")
    with bench.open_one() as warehouse, pytest.raises(MissingFromWarehouse) as caught:
        verify_contract(warehouse)
    assert caught.value.missing == (
        "SOURCES.VW_ATHENA_CHANNEL",
        "SOURCES.VW_ATHENA_ORDER.CARD_COUNTRY",
        "SOURCES.VW_ATHENA_PAYMENT.PATMENT_TIME",
    )
    assert all(name in str(caught.value) for name in caught.value.missing)
    with bench.open_one() as warehouse, pytest.raises(MissingFromWarehouse) as failed:
        warehouse.query("SELECT CHANNEL_NAME FROM SOURCES.VW_ATHENA_CHANNEL")  # the engine names the first one only
    assert failed.value.missing == caught.value.missing and isinstance(failed.value.__context__, QueryFailed)


@pytest.mark.parametrize("engine", ["duckdb", "snowflake"])
def test_an_empty_database_lacks_every_view(engine: str, build: Callable[[str, str], Any]) -> None:
    bench = build(engine, "BARE")
    bench.change("DROP SCHEMA SOURCES CASCADE")
    with bench.open_one() as warehouse, pytest.raises(MissingFromWarehouse) as caught:
        verify_contract(warehouse)
    assert set(caught.value.missing) == set(CONTRACT)


@pytest.mark.parametrize("engine", ["duckdb", "snowflake"])
def test_repeated_keys_are_named(engine: str, build: Callable[[str, str], Any]) -> None:
    bench = build(engine, "TWICE")
    bench.change("INSERT INTO SOURCES.VW_ATHENA_ORDER_COMPLEMENT (ORDER_ID) SELECT 'o-1'")
    with (
        bench.open_one() as warehouse,
        pytest.raises(RepeatedKeys, match=r"VW_ATHENA_ORDER_COMPLEMENT.ORDER_ID \(1 keys\)"),
    ):
        attempts(warehouse, "volaris")
