"""The published warehouse: contract, ids that join, rules that replay, truth apart, nothing half-written."""

import json
import re
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from smartrouter.core.cards import find_card_number
from smartrouter.core.files import CannotWrite
from smartrouter.rules.policy import load_policy
from smartrouter.rules.static import parse_rules
from smartrouter.warehouse import queries
from smartrouter.warehouse.connect import connect
from smartrouter.warehouse.schema import CONTRACT, verify_contract
from smartrouter.world import publish as module
from smartrouter.world.publish import WarehouseExists, build
from smartrouter.world.truth import TruthError, load_truth

ROOT = Path(__file__).parents[2]
FILES = {
    "merchant_file": ROOT / "params/merchants/volaris.yaml",
    "world_file": ROOT / "params/world/volaris.yaml",
}
VIEWS = [view for view in CONTRACT if view.startswith("SOURCES.")]


def rows(folder: Path, sql: str) -> list[tuple]:
    """Result of a query on the warehouse in `folder`."""
    with duckdb.connect(str(folder / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def tables(folder: Path) -> dict[str, list[tuple]]:
    """All rows of all views, in their stored order."""
    return {view: rows(folder, f"SELECT * FROM {view}") for view in VIEWS}


def test_the_contract_is_met_and_no_view_is_empty(small_world, small_warehouse):
    with connect(small_warehouse) as connection:
        verify_contract(connection)
    assert not [view for view in VIEWS if not rows(small_world, f"SELECT count(*) FROM {view}")[0][0]]


def test_same_seed_same_tables_other_seed_other_tables(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        build(
            tmp_path / name / "warehouse.duckdb", tmp_path / name / "truth", days=7, attempts=1500, seed=seed, **FILES
        )
    a, b, c = (tables(tmp_path / name) for name in "abc")
    assert a == b
    assert a["SOURCES.VW_ATHENA_PAYMENT_ATTEMPT"] != c["SOURCES.VW_ATHENA_PAYMENT_ATTEMPT"]
    truths = [pq.read_table(tmp_path / name / "truth/attempts.parquet") for name in "ab"]
    assert truths[0].equals(truths[1]) or truths[0].to_pandas().equals(truths[1].to_pandas())


@pytest.mark.parametrize(
    ("child", "key", "parent"),
    [
        ("VW_ATHENA_PAYMENT", "ORDER_ID", "VW_ATHENA_ORDER"),
        ("VW_ATHENA_ORDER_COMPLEMENT", "ORDER_ID", "VW_ATHENA_ORDER"),
        ("VW_ATHENA_PAYMENT_ATTEMPT", "PAYMENT_ID", "VW_ATHENA_PAYMENT"),
        ("VW_ATHENA_PAYMENT_EVENTS", "PAYMENT_ATTEMPT_ID", "VW_ATHENA_PAYMENT_ATTEMPT"),
        ("VW_ATHENA_ORDER", "TARGET_USER_ID", "VW_ATHENA_TARGET_USER"),
        ("VW_ATHENA_ORDER", "CHANNEL_ID", "VW_ATHENA_CHANNEL"),
        ("VW_ORDER_AIRLINE_INFORMATION_DETAIL_ALL", "ORDER_ID", "VW_ORDER_AIRLINE_DETAIL_ALL"),
    ],
)
def test_keys_join_and_are_unique(small_world, child, key, parent):
    lost = f"SELECT count(*) FROM SOURCES.{child} c ANTI JOIN SOURCES.{parent} p USING ({key})"
    assert rows(small_world, lost) == [(0,)]
    twice = f"SELECT count(*) - count(DISTINCT {key}) FROM SOURCES.{parent}"
    assert rows(small_world, twice) == [(0,)]


def test_passengers_and_flights_agree_with_the_booking(small_world):
    wrong = """SELECT count(*) FROM SOURCES.VW_ORDER_AIRLINE_DETAIL_ALL b JOIN
        (SELECT ORDER_ID, count(*) n FROM SOURCES.VW_ORDER_AIRLINE_INFORMATION_DETAIL_ALL GROUP BY 1) i USING (ORDER_ID)
        WHERE n <> TOTAL_FLIGHT_NUMBERS * TOTAL_PASSENGER"""
    assert rows(small_world, wrong) == [(0,)]


def test_routing_detail_holds_what_was_decided(small_world):
    got = rows(
        small_world,
        """SELECT DYNAMIC_ROUTING_DETAIL, PAYMENT_ATTEMPT_PROCESSOR_CODE, PAYMENT_ATTEMPT_CARD_BRAND
        FROM SOURCES.VW_ATHENA_PAYMENT_ATTEMPT""",
    )
    keys = {"eligible", "propensity", "explored", "approach", "message", "card_funding", "network_advice_code"}
    details = [(json.loads(text), code, brand) for text, code, brand in got]
    assert all(keys | {"order_type", "mcc"} <= set(detail) for detail, _, _ in details)
    assert all(code in detail["eligible"] for detail, code, _ in details)
    assert all(0 < detail["propensity"] <= 1 for detail, _, _ in details)
    advised = {brand for detail, _, brand in details if detail["network_advice_code"]}
    assert advised == {"MASTERCARD"}, "only Mastercard sends advice codes"


def test_an_unanswered_attempt_has_no_outcome_anywhere(small_world):
    got = rows(
        small_world,
        """SELECT count(*), count(PAYMENT_ATTEMPT_APPROVED_INDICATOR), count(PAYMENT_ATTEMPT_ERROR_CODE),
            count_if(PAYMENT_ATTEMPT_ACCEPTANCE_RATE_INDICATOR) FROM SOURCES.VW_ATHENA_PAYMENT_ATTEMPT a
        WHERE NOT EXISTS (SELECT 1 FROM SOURCES.VW_ATHENA_PAYMENT_EVENTS e
            WHERE e.PAYMENT_ATTEMPT_ID = a.PAYMENT_ATTEMPT_ID AND EVENT_TYPE = 'outcome')""",
    )
    assert got[0][0] > 10 and got[0][1:] == (0, 0, 0)


def test_events_start_and_then_answer(small_world):
    got = rows(
        small_world,
        """SELECT count(*) FROM SOURCES.VW_ATHENA_PAYMENT_EVENTS s JOIN SOURCES.VW_ATHENA_PAYMENT_EVENTS o
        USING (PAYMENT_ATTEMPT_ID) WHERE s.EVENT_TYPE = 'attempt_started' AND o.EVENT_TYPE = 'outcome'
        AND (o.EVENT_CREATED_AT <= s.EVENT_CREATED_AT OR s.PAYMENT_ATTEMP_EVENT_INDEX <> 0)""",
    )
    assert got == [(0,)]


def test_the_published_rules_replay_what_the_simulator_followed(small_world, small_warehouse):
    policy, truth = load_policy("volaris", ROOT / "params"), load_truth(small_world / "truth")
    with connect(small_warehouse) as connection:
        frame = queries.attempts(connection, "volaris").to_pylist()
        rule_rows = queries.routing_rules(connection, "volaris").to_pylist()
    ruled = dict(zip(truth.attempt_id, truth.rules_processor, strict=True))
    current = dict(zip(truth.attempt_id, truth.rule_version == "volaris-routing-2", strict=True))
    rules, checked = parse_rules(rule_rows, "volaris"), 0
    for attempt in frame:
        if attempt["n_previous"] or attempt["sequence_order"] > 1 or not current[attempt["attempt_id"]]:
            continue
        order, rule_id = rules.order(attempt, attempt["eligible"].split("|"), policy.default_order)
        assert order[0] == ruled[attempt["attempt_id"]] and rule_id == attempt["rule_id"]
        checked += 1
    assert checked > 3000


def test_eligible_agrees_with_the_merchant_file(small_warehouse):
    policy = load_policy("volaris", ROOT / "params")
    with connect(small_warehouse) as connection:
        frame = queries.attempts(connection, "volaris").to_pylist()
    for attempt in frame[:2000]:
        if attempt["sequence_order"] == 1:
            offered = set(attempt["eligible"].split("|"))
            takes = {
                p.code
                for p in policy.processors
                if attempt["brand"] in p.brands and attempt["currency"] in p.currencies
            }
            assert offered == takes


def test_no_card_number_is_published(small_world):
    for view in VIEWS:
        for row in rows(small_world, f"SELECT * FROM {view} USING SAMPLE 300"):
            assert not [value for value in row if isinstance(value, str) and find_card_number(value)]


def test_an_existing_warehouse_is_refused_and_kept(tmp_path):
    target = tmp_path / "warehouse.duckdb"
    target.write_bytes(b"precious")
    with pytest.raises(WarehouseExists, match=r"warehouse\.duckdb"):
        build(target, tmp_path / "truth", days=7, attempts=500, seed=1, **FILES)
    assert target.read_bytes() == b"precious" and not (tmp_path / "truth").exists()


def test_replace_puts_a_new_world_in_the_place_of_the_old(tmp_path):
    for _ in range(2):
        build(tmp_path / "w.duckdb", tmp_path / "truth", days=7, attempts=500, seed=1, replace=True, **FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["truth", "w.duckdb"]


FULL = "No space left on device"
BY_DUCKDB = duckdb.IOException(f'IO Error: Could not write file "w.duckdb": {FULL}')


@pytest.mark.parametrize("step", ["write_warehouse", "write_truth"])
@pytest.mark.parametrize("error", [OSError(28, FULL), BY_DUCKDB], ids=["system", "duckdb"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, step, error):
    write = getattr(module, step)

    def full(*given):
        write(*given)
        raise error

    monkeypatch.setattr(module, step, full)
    with pytest.raises(CannotWrite, match=FULL):
        build(tmp_path / "w.duckdb", tmp_path / "truth", days=7, attempts=500, seed=1, **FILES)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_dies_keeps_the_old_world(tmp_path, monkeypatch):
    build(tmp_path / "w.duckdb", tmp_path / "truth", days=7, attempts=500, seed=1, **FILES)
    before = (tmp_path / "w.duckdb").read_bytes()
    monkeypatch.setattr(module, "write_truth", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(CannotWrite, match="full"):
        build(tmp_path / "w.duckdb", tmp_path / "truth", days=7, attempts=500, seed=2, replace=True, **FILES)
    assert (tmp_path / "w.duckdb").read_bytes() == before and (tmp_path / "truth/attempts.parquet").exists()


def test_truth_is_not_in_the_warehouse_and_no_model_code_opens_it(small_world):
    names = {name.lower() for view in VIEWS for name in CONTRACT[view]}
    assert not names & {"p_worldpay", "y_worldpay", "eta_worldpay", "suspicion", "cause"}
    texts = {path.relative_to(ROOT / "smartrouter").as_posix(): path for path in (ROOT / "smartrouter").rglob("*.py")}
    texts = {name: path.read_text(encoding="utf-8") for name, path in texts.items() if name != "_modidx.py"}
    judges = {
        "drill/payments.py",  # a drill's payments are made of it, and its router is judged by it; it trains nothing
        "drill/play.py",
        "evaluation/contest.py",
        "retrain/reroute.py",
    }  # they measure against the truth, after everything is trained
    opened = re.compile(r"world\.truth|message_shifts|world[/\\.]physics|truth[/\\]attempts")
    readers = {
        name for name, text in texts.items() if opened.search(text) and not name.startswith(("world/", "cli.py"))
    }
    assert readers == judges, f"{readers} read the truth"
    asks_a_judge = re.compile(r"import .*\b(contest|reroute)\b|\b(contest|reroute) import")
    callers = {name for name, text in texts.items() if asks_a_judge.search(text)} - judges
    assert callers <= {"retrain/review.py", "retrain/run.py", "cli.py"}, f"{callers} could learn from the truth"


def test_truth_and_warehouse_must_be_of_one_world(tmp_path):
    for name, seed in (("a", 5), ("b", 6)):
        folder = tmp_path / name
        build(folder / "warehouse.duckdb", folder / "truth", days=7, attempts=500, seed=seed, **FILES)
    truth, other = tmp_path / "a" / "truth", tmp_path / "b" / "warehouse.duckdb"
    assert len(load_truth(truth, tmp_path / "a" / "warehouse.duckdb").attempt_id) > 0
    with pytest.raises(TruthError, match=r"world volaris-5-7-.* world volaris-6-7-.*smartrouter world --replace"):
        load_truth(truth, other)
    (tmp_path / "a" / "warehouse.duckdb").unlink()
    load_truth(truth)  # nothing beside it to compare with
    other.rename(tmp_path / "a" / "warehouse.duckdb")
    with pytest.raises(TruthError, match="both of one world"):
        load_truth(truth)


def test_flat_view_joins(small_world):
    flat = rows(small_world, "SELECT count(*), count(DISTINCT PAYMENT_ATTEMPT_ID) FROM ABTESTING.ALL_VIEWS_FLAT")
    attempts = rows(small_world, "SELECT count(*) FROM SOURCES.VW_ATHENA_PAYMENT_ATTEMPT")[0][0]
    assert flat == [(attempts, attempts)]


def test_truth_and_warehouse_speak_of_the_same_attempts(small_world):
    truth = load_truth(small_world / "truth")
    got = dict(rows(small_world, "SELECT PAYMENT_ATTEMPT_ID, PAYMENT_ATTEMPT_PROCESSOR_CODE FROM SOURCES.VW_ATHENA_PAYMENT_ATTEMPT"))  # fmt: skip  # noqa: E501
    assert got == dict(zip(truth.attempt_id, truth.processor, strict=True))
    labels = dict(
        rows(
            small_world,
            "SELECT PAYMENT_ATTEMPT_ID, PAYMENT_ATTEMPT_APPROVED_INDICATOR FROM SOURCES.VW_ATHENA_PAYMENT_ATTEMPT",
        )
    )
    columns = np.array([truth.processors.index(code) for code in truth.processor])
    happened = truth.approved[np.arange(len(columns)), columns]
    known = [(labels[i], y) for i, y in zip(truth.attempt_id, happened, strict=True) if labels[i] is not None]
    assert all(label == y for label, y in known)


@pytest.fixture(autouse=True)
def tidy(tmp_path):
    """Remove what a test built, the temporary folder may be small."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)
