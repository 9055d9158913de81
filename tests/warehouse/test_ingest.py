"""Files in every state of disrepair: what is taken in, what is refused, and that nothing is ever half-written."""

import datetime as dt
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.core.errors import SmartrouterError
from smartrouter.core.files import CannotWrite
from smartrouter.rules.policy import load_policy
from smartrouter.rules.static import parse_rules
from smartrouter.warehouse import ingest as module
from smartrouter.warehouse.connect import connect
from smartrouter.warehouse.ingest import IngestFailed, RowsDiffer, TooManyRejected, ingest
from smartrouter.warehouse.mapping import MappingRefused, load_mapping, parse_mapping
from smartrouter.warehouse.queries import attempts, routing_rules
from smartrouter.warehouse.rows import CardNumbersInFile, FileRefused
from smartrouter.warehouse.schema import verify_contract

MAPPING = """
merchant_id: shop
currency: MXN
time_zone: America/Mexico_City
usd_rate: 0.05
columns:
  when: {to: VW_ATHENA_PAYMENT_EVENTS.EVENT_CREATED_AT}
  country: {to: VW_ATHENA_ORDER.CARD_COUNTRY}
  total: {to: VW_ATHENA_ORDER.ORDER_ORIGINAL_GMV_AMOUNT}
  psp: {to: VW_ATHENA_PAYMENT_ATTEMPT.PAYMENT_ATTEMPT_PROCESSOR_CODE}
  ok: {to: VW_ATHENA_PAYMENT_ATTEMPT.PAYMENT_ATTEMPT_APPROVED_INDICATOR, values: {Y: true, N: false}}
  card: {to: VW_ATHENA_PAYMENT_ATTEMPT.PAYMENT_ATTEMPT_CARD_BRAND}
constants: {VW_ATHENA_CHANNEL.CHANNEL_NAME: WEB}
purchases: {same: [country, total], within_s: 60}
outcome: {after_s: 2.0}
processors: [{code: WORLDPAY, id: 76, fees: {success: 1, failure: 0, currency: MXN}}, {code: ELAVON}]
reject_at_most: 0.5
"""
HEADER = "when,country,total,psp,ok,card\n"
GOOD = [
    "2026-04-15 12:00:00,MX,150.00,WORLDPAY,N,VISA\n",
    "2026-04-15 12:00:40,MX,150.00,ELAVON,Y,VISA\n",
    "2026-04-15 12:00:50,MX,150.00,ELAVON,Y,VISA\n",  # after an approval: another purchase
    "2026-04-15 12:10:00,US,99.5,ELAVON,N,MASTERCARD\n",
]


class Shop:
    """A folder with a mapping, a file to be written, and a place for the warehouse."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings: Any = SimpleNamespace(home=folder / "state", warehouse=f"duckdb:///{folder}/state/w.duckdb")
        self.file = folder / "shop.csv"

    def ingest(self, *rows: str, mapping: str = MAPPING, header: str = HEADER, **options: Any) -> Any:
        self.file.write_text(header + "".join(rows), encoding="utf-8")
        return ingest(self.file, parse_mapping(mapping), self.settings, **options)

    def attempts(self, merchant: str = "shop") -> list[dict[str, Any]]:
        with connect(self.settings.warehouse) as warehouse:
            verify_contract(warehouse)
            return attempts(warehouse, merchant, empty_ok=True).to_pylist()

    def rejects(self) -> list[dict[str, Any]]:
        path = self.folder / "state" / "ingest" / "shop.rejected.csv"
        return pd.read_csv(path, keep_default_na=False).to_dict("records")

    @property
    def untouched(self) -> bool:
        return not (self.folder / "state" / "w.duckdb").exists() and not (self.folder / "state" / "merchants").exists()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_a_good_file(shop: Shop) -> None:
    said: list[str] = []
    report = shop.ingest(*GOOD, progress=said.append)
    rows = shop.attempts()
    assert (report.accepted, report.rejected, report.orders, report.unmapped) == (4, 0, 3, ())
    assert [row["sequence_order"] for row in rows] == [1, 2, 1, 1]
    assert [row["previous_processors"] for row in rows] == [None, "WORLDPAY", None, None]
    assert rows[0]["attempted_at"] == dt.datetime(2026, 4, 15, 18) == report.first_at  # Mexico City is UTC-6
    assert rows[0]["known_at"] - rows[0]["attempted_at"] == dt.timedelta(seconds=2)
    assert {row["channel"] for row in rows} == {"WEB"} and rows[3]["brand"] == "MASTERCARD"
    assert any("read 4 rows" in line for line in said) and any("4 of 4 attempts of 3 orders" in line for line in said)


def test_the_merchant_needs_no_code(shop: Shop) -> None:
    report = shop.ingest(*GOOD)
    policy = load_policy("shop", shop.folder / "state")
    assert policy.codes == ("WORLDPAY", "ELAVON") and policy.processor_id("WORLDPAY") == 76
    assert policy.by_code["ELAVON"].brands == {"VISA", "MASTERCARD"}
    assert yaml.safe_load(report.merchant_file.read_text())["processors"][0]["fees"]["success"] == 1.0
    with connect(shop.settings.warehouse) as warehouse:
        rules = parse_rules(routing_rules(warehouse, "shop").to_pylist(), "shop")
    assert rules.order({"brand": "VISA"})[0] == ("WORLDPAY", "ELAVON")


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ("2026-04-31 12:00:00,MX,1,ELAVON,Y,VISA", "when", "is no time"),
        ("15/04/2026,MX,1,ELAVON,Y,VISA", "when", "is no time"),
        ("2026-13-01,MX,1,ELAVON,Y,VISA", "when", "is no time"),
        (",MX,1,ELAVON,Y,VISA", "when", "is empty"),
        ("0026-04-15,MX,1,ELAVON,Y,VISA", "when", "is no time"),
        ("2026-04-15,MX,-1,ELAVON,Y,VISA", "total", "must be more than 0"),
        ("2026-04-15,MX,0,ELAVON,Y,VISA", "total", "must be more than 0"),
        ("2026-04-15,MX,nan,ELAVON,Y,VISA", "total", "is no number"),
        ("2026-04-15,MX,1e999,ELAVON,Y,VISA", "total", "is no number"),
        ('2026-04-15,MX,"1,50",ELAVON,Y,VISA', "total", "is no number"),
        ("2026-04-15,MX,,ELAVON,Y,VISA", "total", "is empty"),
        ("2026-04-15,MX,1,PAYPAL,Y,VISA", "psp", "is no processor of the mapping (WORLDPAY, ELAVON)"),
        ("2026-04-15,MX,1,ELAVON,maybe,VISA", "ok", "is not among the mapping's values"),
        ("2026-04-15,MX,1,ELAVON,,VISA", "ok", "is empty"),
        ("2026-04-15,MX,1,ELAVON", "", "has 4 fields, the header has 6"),
    ],
)
def test_a_bad_row_is_reported_with_its_line(shop: Shop, row: str, column: str, reason: str) -> None:
    report = shop.ingest(*GOOD, row + "\n")
    assert (report.accepted, report.rejected) == (4, 1)
    (reject,) = shop.rejects()
    assert (reject["line"], reject["column"]) == (6, column) and reason in reject["reason"]


def test_lines_are_those_of_an_editor(shop: Shop) -> None:
    quoted = '2026-04-15 12:20:00,"M\nX",10,ELAVON,Y,VISA\n'
    shop.ingest(*GOOD, quoted, "2026-04-15,MX,-1,ELAVON,Y,VISA\n", "\n", "x,MX,-1,ELAVON,Y,VISA\n")
    assert [reject["line"] for reject in shop.rejects()] == [8, 10, 10]


def test_too_many_bad_rows_stop_the_import(shop: Shop) -> None:
    bad = "x,MX,1,ELAVON,Y,VISA\n"
    with pytest.raises(TooManyRejected, match=r"5 of 9 rows.*line 6: when 'x' is no time"):
        shop.ingest(*GOOD, *[bad] * 5)
    assert shop.untouched and len(shop.rejects()) == 5
    with pytest.raises(TooManyRejected):
        shop.ingest(bad, mapping=MAPPING.replace("0.5", "1.0"))  # nothing at all is left
    assert shop.untouched


def test_clock_changes(shop: Shop) -> None:
    mapping = MAPPING.replace("America/Mexico_City", "Europe/Berlin")
    skipped, twice = "2026-03-29 02:30:00,MX,1,ELAVON,Y,VISA\n", "2026-10-25 02:30:00,MX,2,ELAVON,Y,VISA\n"
    told = "2026-10-25T02:30:00+02:00,MX,3,ELAVON,Y,VISA\n"
    shop.ingest(*GOOD, skipped, twice, told, mapping=mapping)
    assert [reject["line"] for reject in shop.rejects()] == [6, 7]
    assert shop.attempts()[-1]["attempted_at"] == dt.datetime(2026, 10, 25, 0, 30)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "lacks column"),
        (HEADER.encode(), "has no rows"),
        (b"when,country\n1,2\n", r"lacks column\(s\) total, psp, ok, card"),
        (HEADER.replace("card", "when").encode() + b"a,b,c,d,e,f\n", "names a column twice"),
        ((HEADER + GOOD[0]).encode() + "2026-04-15,Perú,1,ELAVON,Y,VISA\n".encode("latin-1"), r"byte \d+ is not utf-8"),
        (HEADER.encode() + b'"2026-04-15,MX,1,ELAVON,Y,VISA\n', "cannot be read"),
    ],
)
def test_a_file_that_is_no_such_table(shop: Shop, content: bytes, reason: str) -> None:
    shop.file.write_bytes(content)
    with pytest.raises(FileRefused, match=reason):
        ingest(shop.file, parse_mapping(MAPPING), shop.settings)
    assert shop.untouched


def test_other_encodings_and_decimals(shop: Shop) -> None:
    text = HEADER.replace(",", ";") + "2026-04-15 12:00:00;Perú;1,50;ELAVON;Y;VISA\n"
    shop.file.write_bytes(text.encode("latin-1"))
    mapping = MAPPING + 'file: {delimiter: ";", encoding: latin-1, decimal: ","}\n'
    ingest(shop.file, parse_mapping(mapping), shop.settings)
    assert [(row["amount"], row["card_country"]) for row in shop.attempts()] == [(1.5, "Perú")]


def test_no_file(shop: Shop) -> None:
    with pytest.raises(FileRefused, match="no file at"):
        ingest(shop.folder / "none.csv", parse_mapping(MAPPING), shop.settings)
    assert shop.untouched


CARD = ["4111", "1111", "1111", "1111"]  # a well-known test number, never written out


@pytest.mark.parametrize("number", ["".join(CARD), " ".join(CARD), "-".join(CARD), "card " + "".join(CARD)])
@pytest.mark.parametrize("place", ["mapped", "unmapped", "header"])
def test_card_numbers_stop_the_file(shop: Shop, number: str, place: str) -> None:
    extra = {"mapped": "note", "unmapped": "note", "header": number}[place]
    cells = {"mapped": ("x", number), "unmapped": (number, "VISA"), "header": ("x", "VISA")}[place]
    row = f"2026-04-15 12:00:00,MX,1,ELAVON,Y,{cells[1]},{cells[0]}\n"
    with pytest.raises(CardNumbersInFile) as caught:
        shop.ingest(row, header=HEADER.strip() + f",{extra}\n")
    assert "1111" not in str(caught.value) and shop.untouched
    assert not (shop.folder / "state" / "ingest").exists()


def test_unmapped_columns_are_named(shop: Shop) -> None:
    rows = [row.strip() + ",a,b\n" for row in GOOD]
    mapping = MAPPING + "ignore: [colour]\n"
    report = shop.ingest(*rows, header=HEADER.strip() + ",colour,shape\n", mapping=mapping)
    assert report.unmapped == ("shape",)


def counts(shop: Shop) -> dict[str, int]:
    """Rows in the views of a payment."""
    with duckdb.connect(shop.settings.warehouse.removeprefix("duckdb:///")) as raw:
        views = ("ORDER", "PAYMENT", "PAYMENT_ATTEMPT", "PAYMENT_EVENTS", "CHANNEL")
        found = {v: raw.execute(f"SELECT COUNT(*) FROM SOURCES.VW_ATHENA_{v}").fetchone() for v in views}
        return {view: row[0] for view, row in found.items() if row}


def test_the_same_file_again_changes_nothing(shop: Shop) -> None:
    shop.ingest(*GOOD)
    before = shop.attempts(), counts(shop)
    for replace in (False, True):
        report = shop.ingest(*GOOD, replace=replace)
        assert (report.accepted, report.present, report.replaced) == (0, 4, 0)
        assert (shop.attempts(), counts(shop)) == before
    assert before[1] == {"ORDER": 3, "PAYMENT": 3, "PAYMENT_ATTEMPT": 4, "PAYMENT_EVENTS": 8, "CHANNEL": 1}


@given(cut=st.integers(1, 4), overlap=st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_two_overlapping_exports_are_as_good_as_one(tmp_path_factory: Any, cut: int, overlap: int) -> None:
    """Only a purchase that the second file knows the beginning of can go on; so the cut is not in the middle of one."""
    rows = [*GOOD, "2026-04-15 12:10:20,US,99.5,WORLDPAY,Y,MASTERCARD\n"]
    whole, parts = (Shop(tmp_path_factory.mktemp("shop")) for _ in range(2))
    whole.ingest(*rows)
    parts.ingest(*rows[:cut])
    report = parts.ingest(*rows[0 if cut in (1, 4) else max(0, cut - overlap) :])
    assert report.accepted == 5 - cut and report.replaced == 0
    assert parts.attempts() == whole.attempts() and counts(parts) == counts(whole)


OWN_IDS = MAPPING.replace("constants:", "  id: {to: VW_ATHENA_PAYMENT_ATTEMPT.PAYMENT_ATTEMPT_ID}\nconstants:")
NAMED = [f"{row.strip()},t{number}\n" for number, row in enumerate(GOOD)]
OWN_HEADER = HEADER.strip() + ",id\n"


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [(3, ",Y,", ",N,"), (2, "12:00:00", "12:00:01"), (5, "99.5", "98.5"), (5, "US", "CA"), (2, "VISA", "MASTERCARD")],
)
def test_a_corrected_row_is_refused_and_taken_on_request(shop: Shop, line: int, old: str, new: str) -> None:
    options: Any = {"mapping": OWN_IDS, "header": OWN_HEADER}
    shop.ingest(*NAMED, **options)
    before = shop.attempts(), counts(shop)
    corrected = [row.replace(old, new) if number == line else row for number, row in enumerate(NAMED, start=2)]
    later = "2026-04-16 12:00:00,MX,7,ELAVON,Y,VISA,t9\n"
    with pytest.raises(RowsDiffer, match=rf"1 of 5 rows .* line {line} \(attempt t{line - 2}\).*--replace"):
        shop.ingest(*corrected, later, **options)
    assert (shop.attempts(), counts(shop)) == before
    report = shop.ingest(*corrected, later, replace=True, **options)
    assert (report.accepted, report.replaced, report.present) == (2, 1, 3)
    fresh = Shop(shop.folder / "fresh")
    fresh.folder.mkdir()
    fresh.ingest(*corrected, later, **options)
    if (line, old) != (3, ",Y,"):  # that one ends the purchase otherwise; what is there keeps its order
        assert shop.attempts() == fresh.attempts()
    assert len(shop.attempts()) == 5 and counts(shop)["PAYMENT_EVENTS"] == 10


def test_a_part_of_an_order_replaces_only_its_rows(shop: Shop) -> None:
    options: Any = {"mapping": OWN_IDS, "header": OWN_HEADER}
    shop.ingest(*NAMED, **options)
    second = NAMED[1].replace(",Y,", ",N,")
    assert shop.ingest(second, replace=True, **options).replaced == 1
    rows = shop.attempts()
    assert [row["sequence_order"] for row in rows] == [1, 2, 1, 1] and not rows[1]["approved"]
    assert rows[0]["order_id"] == rows[1]["order_id"]
    with duckdb.connect(shop.settings.warehouse.removeprefix("duckdb:///")) as raw:
        sql = "SELECT ORDER_APPROVED_INDICATOR FROM SOURCES.VW_ATHENA_ORDER WHERE ORDER_ID = $1"
        assert raw.execute(sql, [rows[0]["order_id"]]).fetchall() == [(False,)]


def test_without_ids_a_new_row_among_known_ones_may_be_a_correction(shop: Shop) -> None:
    shop.ingest(*GOOD)
    before = shop.attempts()
    corrected = [*GOOD[:2], GOOD[2].replace(",Y,", ",N,"), GOOD[3]]
    with pytest.raises(RowsDiffer, match=r"1 rows without an attempt id .* line 4.*--replace"):
        shop.ingest(*corrected)
    assert shop.attempts() == before
    assert shop.ingest(*corrected, replace=True).accepted == 1 and len(shop.attempts()) == 5


def test_two_merchants_share_a_warehouse(shop: Shop) -> None:
    shop.ingest(*GOOD)
    shop.ingest(*GOOD, mapping=MAPPING.replace("merchant_id: shop", "merchant_id: other"))
    assert len(shop.attempts("shop")) == len(shop.attempts("other")) == 4
    ids = {row["attempt_id"] for name in ("shop", "other") for row in shop.attempts(name)}
    assert len(ids) == 8


def test_equal_rows_are_two_attempts(shop: Shop) -> None:
    report = shop.ingest(GOOD[0], GOOD[0])
    assert report.accepted == 2 and len({row["attempt_id"] for row in shop.attempts()}) == 2


def test_parquet_is_the_same(shop: Shop, tmp_path: Path) -> None:
    shop.ingest(*GOOD)
    wanted = [{k: v for k, v in row.items() if not k.endswith("_id")} for row in shop.attempts()]
    frame = pd.read_csv(shop.file, parse_dates=["when"])
    frame.to_parquet(tmp_path / "shop.parquet")
    other = Shop(tmp_path / "other")
    ingest(tmp_path / "shop.parquet", parse_mapping(MAPPING), other.settings)
    assert [{k: v for k, v in row.items() if not k.endswith("_id")} for row in other.attempts()] == wanted
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(FileRefused, match="cannot be read"):
        ingest(tmp_path / "bad.parquet", parse_mapping(MAPPING), other.settings)


def test_own_ids_outcome_times_and_details(shop: Shop) -> None:
    mapping = MAPPING.replace("purchases: {same: [country, total], within_s: 60}\n", "").replace(
        "after_s: 2.0", "column: answered"
    )
    more = "  id: {to: VW_ATHENA_PAYMENT_ATTEMPT.PAYMENT_ATTEMPT_ID}\n  order: {to: VW_ATHENA_ORDER.ORDER_ID}\n"
    more += "  funding: {to: VW_ATHENA_PAYMENT_ATTEMPT.DYNAMIC_ROUTING_DETAIL.card_funding}\n"
    more += "  code: {to: VW_ATHENA_PAYMENT_ATTEMPT.PAYMENT_ATTEMPT_ERROR_CODE}\n"
    mapping = mapping.replace("constants:", more + "constants:")
    header = HEADER.strip() + ",id,order,funding,code,answered\n"
    rows = [
        "2026-04-15 12:00:00,MX,5,WORLDPAY,N,VISA,t1,o1,debit,51,2026-04-15 12:00:03\n",
        "2026-04-15 12:01:00,MX,5,ELAVON,N,VISA,t2,o1,,,\n",  # no answer, no funding
        "2026-04-15 12:02:00,MX,5,ELAVON,N,VISA,t3,o1,,,2026-04-15 12:01:59\n",  # answered before it began
    ]
    shop.ingest(*rows, mapping=mapping, header=header)
    assert [reject["reason"] for reject in shop.rejects()] == ["is before the attempt began"]
    first, second = shop.attempts()
    assert (first["attempt_id"], first["order_id"], first["funding"]) == ("t1", "o1", "debit")
    assert (second["known_at"], second["approved"], second["funding"]) == (None, None, None)
    assert (second["prev_error_code"], second["n_previous"]) == ("51", 1)


def test_a_policy_that_somebody_edited_stays(shop: Shop) -> None:
    path = shop.ingest(*GOOD).merchant_file
    path.write_text("# mine\n" + path.read_text())
    later = "2026-04-16 12:00:00,MX,1,ELAVON,Y,VISA\n"
    shop.ingest(later)
    assert path.read_text().startswith("# mine")
    shop.ingest(later, replace=True)
    assert not path.read_text().startswith("# mine")


@pytest.mark.parametrize("step", ["insert", "add_channels", "default_rule", "tables"])
def test_a_failure_half_way_leaves_nothing(shop: Shop, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise duckdb.IOException("Could not write file: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        with pytest.raises(IngestFailed, match="No space left on device"):
            shop.ingest(*GOOD)
        assert shop.untouched
    shop.ingest(*GOOD)
    before = shop.attempts()
    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        with pytest.raises(IngestFailed):
            shop.ingest(*GOOD, mapping=MAPPING.replace("merchant_id: shop", "merchant_id: other"))
    assert shop.attempts() == before and shop.attempts("other") == []


FULL_DISK = """
import resource, signal, sys
from types import SimpleNamespace
from pathlib import Path
from smartrouter.core.errors import SmartrouterError
from smartrouter.warehouse.ingest import ingest
from smartrouter.warehouse.mapping import parse_mapping
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
settings = SimpleNamespace(home=folder / "state", warehouse=f"duckdb:///{folder}/state/w.duckdb")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    ingest(folder / "shop.csv", parse_mapping((folder / "shop.yaml").read_text()), settings)
except SmartrouterError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("limit", "kind"), [(10, "CannotWrite"), (30_000, "IngestFailed")])
def test_a_disk_that_is_full(shop: Shop, limit: int, kind: str) -> None:
    """A real process under a real limit on its files: first the report does not fit, then the warehouse."""
    shop.file.write_text(HEADER + "".join(GOOD))
    (shop.folder / "shop.yaml").write_text(MAPPING)
    command = [sys.executable, "-c", FULL_DISK, str(shop.folder), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.stdout.startswith(kind), done.stdout + done.stderr
    assert shop.untouched
    shop.ingest(*GOOD)
    assert len(shop.attempts()) == 4


def test_places_that_cannot_be_written(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    (shop.folder / "file").write_text("a file where a folder is wanted")
    shop.file.write_text(HEADER + "".join(GOOD))
    blocked = SimpleNamespace(home=shop.folder / "file", warehouse=shop.settings.warehouse)
    with pytest.raises(CannotWrite):
        ingest(shop.file, parse_mapping(MAPPING), blocked)
    blocked = SimpleNamespace(home=shop.folder / "state", warehouse=f"duckdb:///{shop.folder}/file/w.duckdb")
    with pytest.raises(CannotWrite):
        ingest(shop.file, parse_mapping(MAPPING), blocked)
    read_only = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(read_only))
    with pytest.raises(CannotWrite, match="Read-only file system"):
        ingest(shop.file, parse_mapping(MAPPING), shop.settings)
    assert shop.untouched


def test_snowflake_is_not_written(shop: Shop) -> None:
    shop.settings.warehouse = "snowflake://account/DB"
    with pytest.raises(IngestFailed, match="duckdb URL"):
        shop.ingest(*GOOD)
    assert shop.untouched


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("currency: MXN\ntime", "curency: MXN\ntime", "curency: Extra inputs"),
        ("when: {to:", "when: {too:", "columns.when.too: Extra inputs"),
        ("within_s: 60", "within_s: 0", "purchases.within_s"),
        ("within_s: 60", "within_s: sixty", "purchases.within_s"),
        ("fees: {success: 1", "fees: {success: -1", r"processors.0.fees.success"),
        ("CARD_COUNTRY", "CARD_CONTRY", "columns.country.to.*CARD_COUNTRY"),
        ("VW_ATHENA_CHANNEL.CHANNEL_NAME", "VW_ATHENA_CHANNEL.COLOUR", "constants"),
        ("total], within", "colour], within", "colour is used and not mapped"),
        ("{code: ELAVON}", "{code: WORLDPAY}", "processor WORLDPAY is defined twice"),
        ("merchant_id: shop", "merchant_id: ../shop", "merchant_id"),
        ("America/Mexico_City", "../etc/passwd", "no IANA time zone"),
        ("  ok: {", "  when: {", "comes twice"),
        ("outcome: {after_s: 2.0}", "outcome: {}", "either after_s or column"),
        ("merchant_id: shop", "[", "valid YAML"),
        ("reject_at_most: 0.5", "reject_at_most: 50", "reject_at_most"),
    ],
)
def test_mappings_are_checked(old: str, new: str, reason: str) -> None:
    assert old in MAPPING
    with pytest.raises(MappingRefused, match=reason):
        parse_mapping(MAPPING.replace(old, new, 1), "m.yaml")


def test_mapping_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("merchant_id: Perú".encode("latin-1"))
    for name in ("none.yaml", "latin.yaml"):
        with pytest.raises(MappingRefused):
            load_mapping(tmp_path / name)
    for text in ("", "- a", "x", "a: &a [*a]"):
        with pytest.raises(SmartrouterError):
            parse_mapping(text)


cell = st.one_of(
    st.sampled_from(
        ["2026-04-15 12:00:00", "MX", "1.5", "-1", "ELAVON", "Y", "N", "VISA", "", "NaN", "2026-04-15T12:00:00Z"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), max_size=8),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(cell, min_size=6, max_size=6), min_size=1, max_size=5))
def test_any_cells_are_judged(tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]]) -> None:
    """Whatever stands in the cells, rows are either accepted or reported, and no other error appears."""
    from smartrouter.warehouse.rows import Raw, judge

    columns = [list(column) for column in zip(*cells, strict=True)]
    names = ["when", "country", "total", "psp", "ok", "card"]
    lines = list(range(2, len(cells) + 2))
    raw = Raw(dict(zip(names, columns, strict=True)), lines, rows=len(cells))
    rows, rejects = judge(raw, parse_mapping(MAPPING))
    assert {line for line, *_ in rejects} | set(rows["line"]) == set(lines)
    assert not {line for line, *_ in rejects} & set(rows["line"])
    assert rows["known_at"].notna().all()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from("AB"), st.booleans()), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_purchases_do_not_depend_on_the_order_of_rows(rows: list[tuple[int, str, bool]], random: Any) -> None:
    from smartrouter.warehouse.ingest import identify
    from smartrouter.warehouse.rows import Raw, judge

    rows = list({row[0]: row for row in rows}.values())  # one attempt a second, so that time alone orders them

    def orders(some: list[tuple[int, str, bool]]) -> list[tuple[str, str]]:
        start = pd.Timestamp("2026-04-15 12:00:00")
        times = [str(start + pd.Timedelta(seconds=second)) for second, *_ in some]
        flags = ["Y" if approved else "N" for *_, approved in some]
        same = {"total": ["1"] * len(some), "psp": ["ELAVON"] * len(some), "card": ["VISA"] * len(some)}
        cells = {"when": times, "country": [country for _, country, _ in some], "ok": flags, **same}
        made, _ = judge(Raw(cells, list(range(len(some))), rows=len(some)), parse_mapping(MAPPING))
        done = identify(made, parse_mapping(MAPPING))
        assert (done.groupby("order_id").size() == done.groupby("order_id")["sequence_order"].max()).all()
        return sorted(zip(done["attempt_id"], done["order_id"], strict=True))

    shuffled = list(rows)
    random.shuffle(shuffled)
    assert orders(rows) == orders(shuffled)


@pytest.fixture
def psp_file(root: Path) -> Path:
    path = root.parent / "shared" / "data" / "psp_attempts.csv"
    if not path.is_file():
        pytest.skip("the real attempts have no licence and are not part of the repository")
    return path


def test_real_attempts(psp_file: Path, root: Path, shop: Shop) -> None:
    report = ingest(psp_file, root / "params/ingest/psp.yaml", shop.settings)
    assert (report.accepted, report.rejected, report.unmapped) == (40_328, 0, ())
    frame = pd.DataFrame(shop.attempts("psp"))
    assert frame["approved"].mean() == pytest.approx(0.2025, abs=1e-3)
    assert set(frame["card_country"]) == {"DE", "AT", "CH"} and set(frame["brand"]) == {"VISA", "MASTERCARD", "DINERS"}
    assert frame["sequence_order"].max() == 10 and (frame["n_previous"] < frame["sequence_order"]).all()
    policy = load_policy("psp", shop.folder / "state")
    assert policy.codes == ("SIMPLECARD", "UK_CARD", "MONEYCARD", "GOLDCARD")


def test_the_shipped_mapping_is_valid(root: Path) -> None:
    files: list[Path] = sorted((root / "params" / "ingest").glob("*.yaml"))
    load: Callable[[Path], Any] = load_mapping
    assert files and all(load(file).merchant_id for file in files)
