"""Static rules: parsing, order for one payment, and the same over a frame."""

import json
import math
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.rules.policy import eligible, load_policy
from smartrouter.rules.static import (
    Condition,
    NoRules,
    Rule,
    RuleSet,
    RulesRefused,
    arranged,
    choose,
    from_json,
    load_rules,
    parse_rules,
    sync_rules,
    to_json,
)

POLICY = load_policy("volaris", Path(__file__).parents[2] / "params")
OLD, NEW = datetime(2026, 1, 1), datetime(2026, 3, 1)


def row(rule_id=201, processor="ELAVON", **changes):
    """One row of the long form: a rule with one condition and one member."""
    values = {
        "rule_id": rule_id,
        "label": f"label {rule_id}",
        "status": "active",
        "priority": rule_id,
        "is_default": "false",
        "ignore_next_rules": "true",
        "created_at": NEW,
        "deleted_at": None,
        "condition_id": rule_id * 10,
        "field": "currency",
        "operator": "eq",
        "operand": "USD",
        "member_id": rule_id * 100,
        "sort": 1,
        "strategy": "priority",
        "shadow_mode": "false",
        "capabilities": json.dumps({"processor": processor}),
    }
    return values | changes


def default(rule_id=299, processor="WORLDPAY", **changes):
    nothing = dict.fromkeys(["condition_id", "field", "operator", "operand"])
    return row(rule_id, processor, is_default="true", **nothing) | changes


def test_long_form_is_folded_by_priority_and_sort():
    members = [("MIT", 2, 12), ("WORLDPAY", 3, 13), ("ELAVON", 1, 11)]
    conditions = [(1, "currency", "in", "USD|COP"), (2, "amount", "gte", "6000")]
    rows = [
        row(205, code, sort=sort, member_id=member, condition_id=c, field=f, operator=o, operand=v)
        for code, sort, member in members
        for c, f, o, v in conditions
    ]
    rules = parse_rules([default(), *rows], "volaris")
    assert [r.rule_id for r in rules.rules] == ["205", "299"]
    assert rules.rules[0].processors == ("ELAVON", "MIT", "WORLDPAY")
    assert rules.rules[0].conditions == (
        Condition("currency", "in", ("USD", "COP")),
        Condition("amount", "gte", ("6000",)),
    )
    assert rules.order({"currency": "COP", "amount": 6000})[1] == "205"
    assert rules.order({"currency": "COP", "amount": 5999.99})[1] == "299"


def test_deleted_and_inactive_rules_are_dropped_unless_asked_for_their_time():
    old = [row(101, "MIT", status="inactive", created_at=OLD, deleted_at=NEW), default(199, "MIT", created_at=OLD)]
    old[1] |= {"deleted_at": NEW, "status": "inactive"}
    rows = [*old, row(201), default()]
    assert [r.rule_id for r in parse_rules(rows, "m").rules] == ["201", "299"]
    assert [r.rule_id for r in parse_rules(rows, "m", at=datetime(2026, 2, 1)).rules] == ["101", "199"]
    assert [r.rule_id for r in parse_rules(rows, "m", at=NEW).rules] == ["201", "299"]
    with pytest.raises(NoRules, match="2025"):
        parse_rules(rows, "m", at=datetime(2025, 1, 1))


def test_shadow_members_do_not_take_payments():
    rows = [default(processor="MIT", member_id=1), default(processor="ELAVON", member_id=2, shadow_mode="true")]
    assert parse_rules(rows, "m").rules[0].processors == ("MIT",)


@pytest.mark.parametrize(
    ("faulty", "named"),
    [
        ({"operator": "like"}, "unknown operator 'like'"),
        ({"field": "moon"}, "unknown field 'moon'"),
        ({"field": None}, "unknown field None"),
        ({"operand": None}, "with 0 values"),
        ({"operand": "USD|COP"}, "with 2 values"),
        ({"field": "amount", "operator": "gt", "operand": "much"}, "no number"),
        ({"field": "amount", "operator": "gt", "operand": "nan"}, "no number"),
        ({"operator": "gt", "operand": "6"}, "which is text"),
        ({"capabilities": "{}"}, "without a processor"),
        ({"capabilities": "not json"}, "without a processor"),
        ({"member_id": None}, "has no processor"),
        ({"priority": None}, "has no priority"),
        ({"priority": 400}, "never matches"),
        ({"ignore_next_rules": "false"}, "lets later rules"),
        ({"strategy": "volume"}, "strategy 'volume'"),
        ({"is_default": "true"}, "is the default and has conditions"),
        ({"condition_id": None}, "has no condition"),
    ],
)
def test_a_malformed_rule_is_named(faulty, named):
    with pytest.raises(RulesRefused, match=r"rule 201") as caught:
        parse_rules([row(**faulty), default()], "m")
    assert named in str(caught.value)


def test_no_rules_and_no_default():
    with pytest.raises(NoRules, match="volaris"):
        parse_rules([], "volaris")
    with pytest.raises(RulesRefused, match="no default"):
        parse_rules([row()], "m")


CODES = ["WORLDPAY", "MIT", "ELAVON", "AMEX"]
currencies = st.sampled_from(["MXN", "USD", "COP", "CRC", None])
text_conditions = st.builds(
    Condition,
    st.sampled_from(["currency", "brand", "bank"]),
    st.sampled_from(["in", "not_in"]),
    st.lists(st.sampled_from(["MXN", "USD", "VISA", "CARNET", "BBVA"]), min_size=1, max_size=3).map(tuple),
)
amount_conditions = st.builds(
    Condition,
    st.just("amount"),
    st.sampled_from(["gt", "gte", "lt", "lte", "eq", "neq"]),
    st.sampled_from(["100", "6000", "0.5"]).map(lambda v: (v,)),
)
rule_sets = st.lists(
    st.builds(
        Rule,
        st.integers(1, 999).map(str),
        st.just("x"),
        st.integers(1, 99),
        st.just(False),
        st.lists(text_conditions | amount_conditions, min_size=1, max_size=3).map(tuple),
        st.lists(st.sampled_from(CODES), min_size=1, max_size=3, unique=True).map(tuple),
    ),
    max_size=5,
).map(lambda rules: RuleSet("volaris", tuple(rules)))
payments = st.fixed_dictionaries(
    {
        "brand": st.sampled_from(["VISA", "MASTERCARD", "CARNET", "AMEX", "DINERS"]),
        "currency": st.sampled_from(["MXN", "USD", "COP", "EUR"]),
        "amount": st.none() | st.sampled_from([0.5, 99.0, 100.0, 6000.0, 7000.5]),
        "bank": st.none() | st.sampled_from(["BBVA", "BANORTE"]),
        "previous_processors": st.none() | st.sampled_from(["MIT", "WORLDPAY|MIT", "WORLDPAY|MIT|ELAVON"]),
    }
)


@given(members=st.lists(st.sampled_from(CODES)), among=st.lists(st.sampled_from(CODES), unique=True))
def test_order_is_a_permutation_of_the_eligible(members, among):
    order = arranged(members, among, POLICY.default_order)
    assert sorted(order) == sorted(among)
    named = [code for code in order if code in members]
    assert list(order[: len(named)]) == named  # the rule's members come first


@given(rules=rule_sets, payment=payments)
def test_the_first_matching_rule_decides(rules, payment):
    order, rule_id = rules.order(payment, eligible(POLICY, payment["brand"], payment["currency"])[0], CODES)
    holds = [
        r.rule_id
        for r in rules.rules
        if all(payment.get(c.fact) is not None and c.test()(payment[c.fact]) for c in r.conditions)
    ]
    assert rule_id == (holds[0] if holds else None)
    assert sorted(order) == sorted(eligible(POLICY, payment["brand"], payment["currency"])[0])


@settings(max_examples=60, deadline=None)
@given(rules=rule_sets, rows=st.lists(payments, min_size=1, max_size=12))
def test_a_frame_gives_what_single_payments_give(rules, rows):
    frame = pd.DataFrame(rows)
    frame["amount"] = frame["amount"].astype(float)
    answer = choose(rules, frame, POLICY)
    for payment, got in zip(rows, answer.itertuples(), strict=True):
        may = eligible(POLICY, payment["brand"], payment["currency"])[0]
        order, rule_id = rules.order(payment, may, POLICY.default_order)
        assert (got.order, got.rule_id) == ("|".join(order), rule_id)
        left = [c for c in order if c not in (payment["previous_processors"] or "").split("|")]
        expected = (left or list(order) or [None])[0]
        assert got.processor == expected


def test_a_fact_that_is_missing_never_matches():
    rules = RuleSet("m", (Rule("1", "", 1, False, (Condition("card_country", "neq", ("MX",)),), ("MIT",)),))
    assert rules.order({"card_country": "US"}) == (("MIT",), "1")
    assert rules.order({"card_country": None}) == ((), None) == rules.order({})
    frame = pd.DataFrame({"brand": "VISA", "currency": "MXN", "card_country": ["US", None, math.nan]})
    assert choose(rules, frame, POLICY)["rule_id"].tolist() == ["1", None, None]


@given(rules=rule_sets)
def test_the_snapshot_round_trips(rules):
    again = from_json(to_json(rules))
    assert again == rules and again.version == rules.version


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "merchant_id": "m", "rules": [{}]}'])
def test_a_broken_snapshot_is_refused(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(RulesRefused, match=r"m\.json"):
        load_rules(tmp_path / "m.json")


def test_a_missing_snapshot_says_how_to_make_one(tmp_path):
    with pytest.raises(NoRules, match="sync"):
        load_rules(tmp_path / "m.json")


class Rows:
    """Stands in for a warehouse connection; the query text is tested in tests/warehouse."""

    def __init__(self, rows):
        self.rows = rows

    def to_pylist(self):
        return self.rows


def test_sync_keeps_the_last_good_rules(tmp_path, monkeypatch):
    queries = pytest.importorskip("smartrouter.warehouse.queries")
    monkeypatch.setattr(queries, "routing_rules", lambda connection, merchant: connection)
    path = tmp_path / "rules" / "volaris.json"
    good = sync_rules(Rows([row(), default()]), "volaris", path)
    assert load_rules(path) == good
    for bad in ([], [row(operator="like"), default()]):
        with pytest.raises((NoRules, RulesRefused)):
            sync_rules(Rows(bad), "volaris", path)
        assert load_rules(path) == good
    assert [p.name for p in path.parent.iterdir()] == ["volaris.json"]
