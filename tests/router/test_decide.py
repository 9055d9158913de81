"""The router's decisions: properties that callers rely on, and a golden file of payments."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.router.decide import TOP, decide
from smartrouter.rules.policy import load_policy, parse_policy
from smartrouter.rules.static import load_rules, sync_rules
from smartrouter.warehouse.connect import connect

GOLDEN = Path(__file__).with_name("golden_decisions.json")


class Fixed:
    """A model with one probability a processor."""

    name, version = "processor_selector.volaris", "7"

    def __init__(self, chances):
        self.chances, self.learnt = chances, frozenset(chances)

    def probabilities(self, request, processors, now_ms):
        """Return the fixed probabilities."""
        return np.array([self.chances[p] for p in processors])


class Raises(Fixed):
    """A model that fails."""

    def probabilities(self, request, processors, now_ms):
        """Fail."""
        raise RuntimeError("no")


@pytest.fixture(scope="module")
def policy(root):
    """The first merchant's policy."""
    return load_policy("volaris", root / "params")


@pytest.fixture(scope="module")
def rules(small_warehouse, tmp_path_factory):
    """Its static rules, through the snapshot."""
    path = tmp_path_factory.mktemp("rules") / "volaris.json"
    with connect(small_warehouse) as warehouse:
        sync_rules(warehouse, "volaris", path)
    return load_rules(path)


PAYMENTS = st.fixed_dictionaries(
    {
        "order": st.fixed_dictionaries(
            {"amount": st.floats(0.01, 1e6), "currency": st.sampled_from(["MXN", "USD", "COP", "CRC", "JPY"])}
        ),
        "card": st.fixed_dictionaries(
            {
                "bin": st.sampled_from(["415231", "545454"]),
                "brand": st.sampled_from(["VISA", "MASTERCARD", "CARNET", "AMEX"]),
            }
        ),
        "payment": st.fixed_dictionaries({"initiation": st.sampled_from(["CIT", "MIT"])}),
    },
    optional={
        "eligible_processors": st.lists(st.sampled_from(["WORLDPAY", "MIT", "ELAVON", "AMEX", "NEW"]), max_size=4)
    },
)
MODELS = st.sampled_from(
    [
        None,
        Fixed({"WORLDPAY": 0.7, "MIT": 0.8, "ELAVON": 0.6}),
        Fixed({"MIT": 0.5}),
        Raises({"WORLDPAY": 0.5, "MIT": 0.4}),
    ]
)


@settings(max_examples=300, deadline=None)
@given(PAYMENTS, MODELS, st.integers(0, 10**6), st.booleans())
def test_every_payment_is_ranked_by_who_may_take_it(policy, rules, payment, model, seed, with_rules):
    found = decide(
        payment, now=1e9, policy=policy, rules=rules if with_rules else None, predictor=model, rng=Random(seed)
    )
    named = [r.processor for r in found.ranking]
    assert len(set(named)) == len(named) <= TOP and [r.rank for r in found.ranking] == list(range(1, len(named) + 1))
    brand, currency = payment["card"]["brand"], payment["order"]["currency"]
    for code in named:
        taken = policy.by_code[code]
        assert found.approach == "hard_rule" or (brand in taken.brands and currency in taken.currencies)
    assert not set(named) & {e.processor for e in found.excluded}
    assert 0 < found.propensity <= 1 and (found.approach == "rules") == (found.fallback_reason is not None)
    if found.approach == "model" and not found.explored:
        chances = [r.approval_probability for r in found.ranking if r.approval_probability is not None]
        assert chances == sorted(chances, reverse=True)


def test_the_same_attempt_gets_the_same_answer(policy, rules):
    payment = {"order": {"amount": 900, "currency": "MXN"}, "card": {"bin": "415231", "brand": "VISA"}}
    model = Fixed({"WORLDPAY": 0.7, "MIT": 0.7, "ELAVON": 0.7})
    once, again = (decide(payment, now=0, policy=policy, rules=rules, predictor=model, rng=Random(5)) for _ in "ab")
    assert once == again


def test_exploration_happens_as_often_as_the_policy_says_and_is_recorded(policy):
    payment = {"order": {"amount": 900, "currency": "MXN"}, "card": {"bin": "415231", "brand": "VISA"}}
    model = Fixed({"WORLDPAY": 0.7, "MIT": 0.8, "ELAVON": 0.6})
    found = [decide(payment, now=0, policy=policy, predictor=model, rng=Random(i)) for i in range(6_000)]
    share = np.mean([f.explored for f in found])
    assert abs(share - policy.exploration) < 0.006
    firsts = {f.ranking[0].processor: f.propensity for f in found}
    assert abs(sum(firsts.values()) - 1) < 1e-9 and firsts["MIT"] > 0.98


def test_a_second_merchant_needs_no_code():
    text = """
merchant_id: bakery
time_zone: Europe/Vienna
currency: EUR
processors:
  - {code: ADY, id: 1, brands: [VISA], currencies: [EUR]}
  - {code: STR, id: null, brands: [VISA, JCB], currencies: [EUR, CHF]}
hard_rules:
  - {when: {currency: CHF}, processor: STR, reason: only one takes francs}
default_order: [STR, ADY]
"""
    policy = parse_policy(text)
    euro = {"order": {"amount": 3.5, "currency": "EUR"}, "card": {"bin": "400000", "brand": "VISA"}}
    assert [r.processor for r in decide(euro, now=0, policy=policy).ranking] == ["STR", "ADY"]
    franc = {"order": {"amount": 3.5, "currency": "CHF"}, "card": {"bin": "400000", "brand": "JCB"}}
    assert decide(franc, now=0, policy=policy).approach == "hard_rule"


@pytest.mark.parametrize("asked", [None, ["WORLDPAY"]])
def test_a_hard_rule_wins_over_what_its_processor_lists(policy, asked):
    assert "JPY" not in policy.by_code["AMEX"].currencies
    yen = {"order": {"amount": 90_000, "currency": "JPY"}, "card": {"bin": "371449", "brand": "AMEX"}}
    found = decide(yen | {"eligible_processors": asked}, now=0, policy=policy, predictor=Fixed({"WORLDPAY": 0.9}))
    assert found.approach == "hard_rule" and [r.processor for r in found.ranking] == ["AMEX"]
    assert {(e.processor, e.reason) for e in found.excluded} == {(c, "hard_rule") for c in policy.codes if c != "AMEX"}


def test_a_processor_behind_the_third_is_named_and_not_lost():
    codes = ["A", "B", "C", "D", "E"]
    lines = "\n".join(f"  - {{code: {c}, id: null, brands: [VISA], currencies: [EUR]}}" for c in codes)
    zone = "merchant_id: many\ntime_zone: UTC\ncurrency: EUR"
    policy = parse_policy(f"{zone}\nprocessors:\n{lines}\ndefault_order: [A, B, C, D, E]\n")
    payment = {"order": {"amount": 1, "currency": "EUR"}, "card": {"bin": "400000", "brand": "VISA"}}
    for model in (None, Fixed(dict(zip(codes, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True)))):
        found = decide(payment, now=0, policy=policy, predictor=model)
        assert len(found.ranking) == TOP and {e.reason for e in found.excluded} == {"behind_the_first_3"}
        assert {r.processor for r in found.ranking} | {e.processor for e in found.excluded} == set(codes)


def test_golden_decisions(policy, rules):
    cases = json.loads(GOLDEN.read_text())
    for case in cases:
        model = Fixed(case["chances"]) if case["chances"] else None
        found = decide(case["payment"], now=1_776_276_000.0, policy=policy, rules=rules, predictor=model)
        told = {
            "ranking": [[r.processor, r.approval_probability] for r in found.ranking],
            "excluded": [[e.processor, e.reason] for e in found.excluded],
            "approach": found.approach,
            "fallback_reason": found.fallback_reason,
            "rule_id": found.rule_id,
        }
        assert told == case["decision"], case["name"]
