"""URLs, files, keys, logins and retries: what goes wrong, and in which words."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from snowflake.connector import errors

from smartrouter.core.errors import SmartrouterError
from smartrouter.core.settings import Settings
from smartrouter.warehouse import connect as module
from smartrouter.warehouse.connect import (
    KeyFileRefused,
    LoginRefused,
    NotAWarehouseFile,
    QueryFailed,
    SnowflakeConnection,
    WarehouseBusy,
    WarehouseFileMissing,
    WarehouseUnreachable,
    WarehouseUrlRefused,
    connect,
    is_transient,
    parse_url,
    read_private_key,
    retried,
    snowflake_arguments,
)
from smartrouter.warehouse.queries import attempts
from smartrouter.warehouse.schema import CONTRACT, MissingFromWarehouse, create_contract, ddl, verify_contract
from smartrouter.warehouse.sql import positional, translated


@pytest.mark.parametrize(
    "url",
    [
        "",
        "warehouse.duckdb",
        "duckdb:///",
        "duckdb://file",
        "postgres://host/db",
        "snowflake://",
        "snowflake://account",
        "snowflake://account/DB/SCHEMA/MORE",
        "snowflake://account/DB?warehous=X",
        "snowflake://account/DB?protocol=http",
        "snowflake://account/DB?protocol=http&host=example.org",
    ],
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(WarehouseUrlRefused, match=r"duckdb:///path|https"):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "snowflake://me:hunter2@account/DB",
        "snowflake://account/DB?password=hunter2",
        "snowflake://account/DB?token=hunter2",
        "snowflake://account/DB?private_key_passphrase=hunter2",
        "mysql://me:hunter2@host/db",
    ],
)
def test_no_secret_is_repeated(url: str) -> None:
    with pytest.raises(WarehouseUrlRefused) as caught:
        connect(url)
    assert "hunter2" not in str(caught.value)


def test_duckdb_urls() -> None:
    assert parse_url("duckdb:///var/w.duckdb").path == "var/w.duckdb"
    assert parse_url("duckdb:////srv/my%20files/w.duckdb").path == "/srv/my files/w.duckdb"


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.duckdb").write_text("hello " * 100)
    (tmp_path / "folder").mkdir()
    with pytest.raises(WarehouseFileMissing, match="smartrouter world"):
        connect(f"duckdb:///{tmp_path / 'none.duckdb'}")
    for name in ("text.duckdb", "folder"):
        with pytest.raises(NotAWarehouseFile, match="is not a DuckDB database"):
            connect(f"duckdb:///{tmp_path / name}")
    with pytest.raises(WarehouseUrlRefused, match="Rename the file"):
        connect(f"duckdb:///{tmp_path / 'Sources.duckdb'}", read_only=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "text.duckdb"]


def test_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    with duckdb.connect(str(path)) as raw:
        create_contract(raw)
        with pytest.raises(WarehouseBusy, match="Wait for the writer"):
            connect(f"duckdb:///{path}")
    assert verify_contract(connect(f"duckdb:///{path}")) is None


def test_a_file_made_elsewhere_by_setting(tmp_path: Path) -> None:
    """Views instead of tables, in lower case, wider than the contract, another catalog name: all fine."""
    path = tmp_path / "my company's data.duckdb"
    with duckdb.connect(str(path)) as raw:
        raw.execute("CREATE SCHEMA base; CREATE SCHEMA sources")
        for statement in ddl("duckdb"):
            if statement.startswith("CREATE TABLE"):
                raw.execute(statement.replace("SOURCES.", "base.").lower())
        for view in CONTRACT:
            name = view.split(".")[1].lower()
            raw.execute(f"CREATE VIEW sources.{name} AS SELECT *, 1 AS more_columns FROM base.{name}")
    settings = Settings.load({"SMARTROUTER_WAREHOUSE": f"duckdb:///{path}"})
    with connect(settings.warehouse, settings) as warehouse:
        verify_contract(warehouse)
        assert attempts(warehouse, "anyone", empty_ok=True).num_rows == 0


def test_a_duckdb_file_without_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "other.duckdb"
    with duckdb.connect(str(path)) as raw:
        raw.execute("CREATE TABLE t (a INT)")
    with (
        connect(f"duckdb:///{path}") as warehouse,
        pytest.raises(MissingFromWarehouse, match=f"lacks {len(CONTRACT)} name"),
    ):
        verify_contract(warehouse)


def test_a_check_that_fails_too_leaves_the_first_word(tmp_path: Path) -> None:
    warehouse = connect(f"duckdb:///{tmp_path / 'w.duckdb'}", read_only=False)
    warehouse.raw.execute("BEGIN; CREATE TABLE T (A INT PRIMARY KEY); INSERT INTO T VALUES (1)")
    with pytest.raises(duckdb.Error):
        warehouse.raw.execute("INSERT INTO T VALUES (1)")  # no query can run before the roll-back
    with pytest.raises(QueryFailed, match="refused a query"):
        warehouse.query("SELECT 1 AS N")
    warehouse.close()


def test_embedded_files_are_read_only(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    with duckdb.connect(str(path)) as raw:
        create_contract(raw)
    with connect(f"duckdb:///{path}") as warehouse:
        for text in (
            "CREATE TABLE x (a INT)",
            "COPY (SELECT 1) TO 'x.csv'",
            "SELECT * FROM read_text('/etc/hostname')",
        ):
            with pytest.raises(duckdb.Error):  # also where somebody goes round our own check
                warehouse.raw.execute(text)
    with pytest.raises(WarehouseUrlRefused, match="only read"):
        connect("snowflake://account/DB", SimpleNamespace(), read_only=False)


def test_private_keys(tmp_path: Path, key_file: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"open sesame")
    form, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "locked.p8").write_bytes(key.private_bytes(form, kind, locked))
    (tmp_path / "text.p8").write_text("no key")
    assert read_private_key(tmp_path / "locked.p8", "open sesame") == read_private_key(key_file)
    for file, passphrase in [("locked.p8", ""), ("locked.p8", "hunter2"), ("text.p8", ""), ("none.p8", "")]:
        with pytest.raises(KeyFileRefused, match="SMARTROUTER_SNOWFLAKE_PRIVATE_KEY_FILE") as caught:
            read_private_key(tmp_path / file, passphrase)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(KeyFileRefused, match="nothing set"):
        connect("snowflake://account/DB", SimpleNamespace(snowflake_user="ME"))
    with pytest.raises(LoginRefused, match="SMARTROUTER_SNOWFLAKE_USER"):
        connect("snowflake://account/DB", SimpleNamespace())


def test_what_snowflake_is_told(snowflake_settings: SimpleNamespace) -> None:
    sent = snowflake_arguments(parse_url("snowflake://acme/PAYMENT_ML?role=OTHER"), snowflake_settings, "retrain")
    assert (sent["role"], sent["warehouse"], sent["user"]) == ("OTHER", "ML_WH", "ROUTER")
    assert sent["authenticator"] == "SNOWFLAKE_JWT" and sent["paramstyle"] == "qmark"
    assert sent["session_parameters"]["QUERY_TAG"] == "smartrouter/retrain"
    assert "password" not in sent and "protocol" not in sent


@pytest.fixture
def answering() -> Iterator[Callable[[int, dict[str, Any]], str]]:
    """A function that starts a server with one answer to every call, and gives its URL."""
    running: list[HTTPServer] = []

    def start(status: int, body: dict[str, Any]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"snowflake://acme/DB?host=127.0.0.1&port={server.server_port}&protocol=http&login_timeout=2"

    yield start
    for server in running:
        server.shutdown()


def test_login_refused(answering: Callable[..., str], snowflake_settings: SimpleNamespace) -> None:
    body = {"success": False, "code": "390144", "message": "JWT token is invalid. [abc]", "data": {}}
    with pytest.raises(LoginRefused, match="JWT token is invalid") as caught:
        connect(answering(200, body), snowflake_settings)
    assert caught.value.__cause__ is not None


def test_nobody_answers(
    answering: Callable[..., str], snowflake_settings: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module, "retried", partial(retried, sleep=pauses.append, waits_s=(0.5,)))
    with pytest.raises(WarehouseUnreachable) as caught:
        connect(answering(503, {}), snowflake_settings)
    assert caught.value.exit_code == 1


def test_a_query_survives_two_hiccups(build: Callable[[str, str], Any]) -> None:
    connection = build("snowflake", "HICCUP").open_one()
    real, failures, pauses = connection.raw, [errors.OperationalError("lost"), errors.ServiceUnavailableError()], []

    class Flaky:
        def cursor(self) -> Any:
            if failures:
                raise failures.pop()
            return real.cursor()

    tried = SnowflakeConnection(Flaky(), sleep=pauses.append)
    rows = tried.query("SELECT COUNT(*) AS N FROM SOURCES.VW_ATHENA_ORDER WHERE COMMERCE_ID = :m", {"m": "volaris"})
    assert rows["n"].to_pylist() == [2] and pauses == [0.5, 2.0]
    connection.close()


def test_retries_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fail(error: Exception) -> None:
        calls.append(1)
        raise error

    with pytest.raises(errors.OperationalError):
        retried(lambda: fail(errors.OperationalError("x")), sleep=lambda _: None)
    assert len(calls) == 4
    calls.clear()
    with pytest.raises(errors.ProgrammingError):
        retried(lambda: fail(errors.ProgrammingError("x")), sleep=lambda _: None)
    assert len(calls) == 1 and not is_transient(errors.OperationalError("x", errno=390100))


@given(
    st.lists(
        st.sampled_from([":a", ":b", "':a'", '":b"', "X:a", "-- :b\n", "/* :a */", " ", "= ", "(", ")"]), max_size=12
    )
)
def test_placeholders_are_found_where_they_are(parts: list[str]) -> None:
    wanted = [part[1:] for part in parts if part in (":a", ":b")]
    text, order = positional(" ".join(parts), {"a": "A", "b": "B"})
    assert order == [name.upper() for name in wanted] and text.count("?") == len(wanted)


def test_translation_is_done_once() -> None:
    translated.cache_clear()
    for _ in range(3):
        translated("SELECT ORDER_ID FROM SOURCES.VW_ATHENA_ORDER WHERE ORDER_ID = :id")
    assert translated.cache_info().misses == 1


def test_every_error_is_of_the_family() -> None:
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 8 and all(issubclass(kind, SmartrouterError) for kind in kinds)
