"""One small warehouse, on DuckDB and behind the real Snowflake connector on a stand-in server."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
import sqlglot

from smartrouter.warehouse.connect import Connection, connect
from smartrouter.warehouse.schema import ddl

DETAIL = (
    '{"eligible": ["WORLDPAY", "MIT", "ELAVON"], "propensity": 0.97, "explored": false, "approach": "rules",'
    ' "message": "standard", "card_funding": "credit", "network_advice_code": %s,'
    ' "order_type": "flight", "mcc": "4511"}'
)


def literal(value: Any) -> str:
    """A value as SQL text; test data only."""
    if value is None or isinstance(value, bool):
        return {None: "NULL", True: "TRUE", False: "FALSE"}[value]
    return str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"


def insert(view: str, **columns: Any) -> str:
    """An INSERT in Snowflake SQL."""
    names = ", ".join(columns)
    values = ", ".join(
        f"PARSE_JSON({literal(v)})" if k == "DYNAMIC_ROUTING_DETAIL" else literal(v) for k, v in columns.items()
    )
    return f"INSERT INTO SOURCES.{view} ({names}) SELECT {values}"


def attempt(
    name: str,
    order: str,
    number: int,
    processor: str,
    started: str,
    *known: str,
    approved: bool = False,
    code: str | None = None,
    kind: str | None = None,
    category: str | None = None,
    advice: str = "null",
) -> list[str]:
    """An attempt on 2026-04-15 with its start and any number of outcome events."""
    rows = [
        insert(
            "VW_ATHENA_PAYMENT_ATTEMPT",
            PAYMENT_ATTEMPT_ID=name,
            PAYMENT_ID=f"p-{order}",
            ORDER_ID=order,
            PAYMENT_ATTEMPT_SEQUENCE_ORDER=number,
            PAYMENT_ATTEMPT_PROCESSOR_CODE=processor,
            PAYMENT_ATTEMPT_APPROVED_INDICATOR=approved,
            PAYMENT_ATTEMPT_ACCEPTANCE_RATE_INDICATOR=True,
            PAYMENT_ATTEMPT_ERROR_CODE=code,
            PAYMENT_ATTEMPT_HARD_SOFT_TYPE=kind,
            PAYMENT_ATTEMPT_ERROR_CATEGORY=category,
            PAYMENT_ATTEMPT_AMOUNT_USD=100.5,
            PAYMENT_ATTEMPT_CARD_BRAND="VISA",
            DYNAMIC_ROUTING_DETAIL=DETAIL % advice,
        )
    ]
    events = [("attempt_started", started), *(("outcome", at) for at in known)]
    return rows + [
        insert(
            "VW_ATHENA_PAYMENT_EVENTS",
            PAYMENT_ATTEMPT_ID=name,
            PAYMENT_ATTEMP_EVENT_INDEX=index,
            EVENT_TYPE=kind_of,
            EVENT_CREATED_AT=f"2026-04-15 {at}",
        )
        for index, (kind_of, at) in enumerate(events)
    ]


def order(name: str, merchant: str = "volaris", flight: bool = True) -> list[str]:
    """An order with its payment, complement and, if asked for, two flights of two passengers."""
    rows = [
        insert(
            "VW_ATHENA_ORDER",
            COMMERCE_ID=merchant,
            ORDER_ID=name,
            TARGET_USER_ID="u-1",
            CHANNEL_ID=1,
            ORDER_DATE="2026-04-15",
            ORDER_TIME="12:00:00",
            ORDER_ORIGINAL_GMV_AMOUNT=2450.75,
            PAYMENT_CURRENCY="MXN",
            CARD_LAST_FOUR="1234",
            CARD_COUNTRY="MX",
            USER_IS_GUEST=False,
            TOTA_MINUTES_BROWSING=6.5,
            TOTAL_EVENTS_BEFORE_PURCHASE=7,
            LATITUDE=19.43,
            LONGITUDE=-99.13,
            ORDER_CITY_NAME="Ciudad de México",
        ),
        insert("VW_ATHENA_ORDER_COMPLEMENT", ORDER_ID=name, FRAUD_RISK_SCORE=10.5, CHALLENGE_3DS_INDICATOR=False),
        insert(
            "VW_ATHENA_PAYMENT",
            PAYMENT_ID=f"p-{name}",
            ORDER_ID=name,
            CARD_BIN="415231",
            BANK="BBVA",
            MCI_MSI_TYPE="CIT",
        ),
    ]
    if flight:
        rows.append(
            insert("VW_ORDER_AIRLINE_DETAIL_ALL", ORDER_ID=name, BOOKINGISINTERNATIONAL=False, TOTAL_FLIGHT_NUMBERS=2)
        )
        for number, origin, target, day in (("Y4 2", "TIJ", "MEX", 21), ("Y4 1", "MEX", "TIJ", 18)):
            for passenger, member in (("ADT", "VC1"), ("CHD", None)):
                rows.append(
                    insert(
                        "VW_ORDER_AIRLINE_INFORMATION_DETAIL_ALL",
                        ORDER_ID=name,
                        FLIGHT_NUMBER=number,
                        ORIGIN_IATA_CODE=origin,
                        DESTINATION_IATA_CODE=target,
                        DEPARTURE_DATE=f"2026-04-{day} 07:00:00",
                        PASSENGER_TYPE=passenger,
                        PASSENGER_FREQUENT_FLYER_CODE=member,
                        SERVICE_CLASS="ZERO",
                    )
                )
    return rows


def content() -> list[str]:
    """What the small warehouse holds, as Snowflake SQL."""
    soft = {"kind": "soft", "category": "customer"}
    rule = {"MERCHANT_RULE_ID": 201, "STRATEGY": "priority", "SHADOW_MODE": "false"}
    return [
        insert("VW_ATHENA_CHANNEL", CHANNEL_ID=1, CHANNEL_NAME="WEB"),
        insert("VW_ATHENA_TARGET_USER", TARGET_USER_ID="u-1", TARGET_USER_BROWSER="Firefox"),
        *order("o-1"),
        *attempt("a-1", "o-1", 1, "WORLDPAY", "12:00:00", "12:00:02", code="51", advice='"01"', **soft),
        *attempt("a-2", "o-1", 2, "MIT", "12:00:30", "12:00:31.5"),  # declined without a code
        *attempt("a-3", "o-1", 3, "ELAVON", "12:01:00", "12:01:09", "12:01:01", approved=True),  # answered twice
        *order("o-2", flight=False),
        *attempt("b-1", "o-2", 1, "MIT", "13:00:00", "13:01:30", code="91", kind="soft", category="technical"),
        *attempt("b-2", "o-2", 2, "WORLDPAY", "13:00:40", code="05", approved=True),  # never answered
        *attempt("b-3", "o-2", 3, "ELAVON", "13:02:00", "13:02:01", code="54", kind="hard", category="customer"),
        *order("x-1", merchant="psp", flight=False),
        *attempt("x-9", "x-1", 1, "UK_CARD", "14:00:00", "14:00:02", approved=True),
        insert("VW_ROUTING_MERCHANT_RULE", ID=201, MERCHANT_ID="volaris", LABEL="Dollars", STATUS="active", PRIORITY=1),
        insert("VW_ROUTING_MERCHANT_RULE_OPTION", ID=5, LABEL="currency", OPERATORS_AVAILABLE="eq|in"),
        insert(
            "VW_ROUTING_MERCHANT_RULE_CONDITION",
            **{"ID": 1, "MERCHANT_RULE_ID": 201, "MERCHANT_RULE_OPTION_ID": 5, "OPERATOR": "in", "OPERAND": "USD|COP"},
        ),
        insert("VW_ROUTING_MERCHANT_RULE_MEMBER", ID=11, SORT=2, CAPABILITIES='{"processor": "MIT"}', **rule),
        insert("VW_ROUTING_MERCHANT_RULE_MEMBER", ID=12, SORT=1, CAPABILITIES='{"processor": "ELAVON"}', **rule),
    ]


class Bench:
    """An open warehouse, with a way to change it that the product does not have."""

    def __init__(self, open_one: Callable[[], Connection], change: Callable[[str], Any]):
        self.open_one, self.change = open_one, change


def fill_duckdb(path: Path, statements: list[str]) -> None:
    """Run Snowflake SQL on a DuckDB file."""
    with duckdb.connect(str(path)) as raw:
        for statement in statements:
            raw.execute(sqlglot.transpile(statement, read="snowflake", write="duckdb")[0])


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key made for this run."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    path = tmp_path_factory.mktemp("key") / "key.p8"
    form, open_key = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, open_key))
    return path


def null_times(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Mend fakesnow 0.12: it sends a null time as a struct of nulls, which the connector reads as 1970.

    Snowflake itself marks the struct as null.
    """
    import pyarrow as pa

    def mended(times: Any) -> Any:
        times = times.combine_chunks() if isinstance(times, pa.ChunkedArray) else times
        struct = plain(times)
        return pa.StructArray.from_arrays(struct.flatten(), fields=list(struct.type), mask=times.is_null())

    return mended


@pytest.fixture(scope="session")
def server() -> Iterator[dict[str, Any]]:
    """A Snowflake over HTTP, for the real connector."""
    import fakesnow
    import fakesnow.arrow

    fakesnow.arrow.timestamp_to_sf_struct = null_times(fakesnow.arrow.timestamp_to_sf_struct)
    logging.getLogger("fakesnow.server").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    with fakesnow.server() as arguments:
        yield arguments


@pytest.fixture(scope="session")
def snowflake_settings(key_file: Path) -> SimpleNamespace:
    """What the environment would say."""
    return SimpleNamespace(
        snowflake_user="ROUTER",
        snowflake_private_key_file=key_file,
        snowflake_private_key_passphrase="",
        snowflake_warehouse="ML_WH",
        snowflake_role="ML_READER",
    )


@pytest.fixture(scope="session")
def build(
    server: dict[str, Any], snowflake_settings: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Bench]:
    """A function that builds the small warehouse on an engine under a name."""
    import snowflake.connector

    def make(engine: str, name: str) -> Bench:
        if engine == "duckdb":
            path = tmp_path_factory.mktemp(name) / "warehouse.duckdb"
            fill_duckdb(path, content_with_ddl())
            return Bench(lambda: connect(f"duckdb:///{path}"), lambda sql: fill_duckdb(path, [sql]))
        raw = snowflake.connector.connect(database=name, schema="PUBLIC", **server)
        for statement in content_with_ddl():
            raw.cursor().execute(statement)
        url = f"snowflake://fakesnow/{name}?host=127.0.0.1&port={server['port']}&protocol=http"
        return Bench(lambda: connect(url, snowflake_settings), lambda sql: raw.cursor().execute(sql))

    return make


def content_with_ddl() -> list[str]:
    """All statements, in Snowflake SQL."""
    return [*ddl("snowflake"), *content()]


@pytest.fixture(scope="session", params=["duckdb", "snowflake"])
def bench(request: pytest.FixtureRequest, build: Callable[[str, str], Bench]) -> Bench:
    """The small warehouse on each engine; tests only read it."""
    return build(request.param, "PAYMENT_ML")


@pytest.fixture
def warehouse(bench: Bench) -> Iterator[Connection]:
    """An open connection to the small warehouse."""
    with bench.open_one() as connection:
        yield connection
