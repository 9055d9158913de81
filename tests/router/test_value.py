"""Value: what an approval is worth less its fees, in the order's currency, and the ranking by it."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrouter.router.decide import decide
from smartrouter.router.value import ValueRefused, best_first, exchange, expected_value, values_of
from smartrouter.rules.policy import Fees, parse_policy

TEXT = """
merchant_id: acme
time_zone: UTC
currency: EUR
processors:
  - {code: CHEAP, id: 1, brands: [VISA], currencies: [EUR, CHF], fees: {success: 1, failure: 0.5, currency: EUR}}
  - {code: DEAR, id: 2, brands: [VISA], currencies: [EUR, CHF], fees: {success: 10, failure: 5, currency: EUR}}
  - {code: SHARE, id: 3, brands: [VISA], currencies: [EUR], fees: {success: 0, failure: 0, currency: USD, success_bps: 90}}
default_order: [CHEAP, DEAR, SHARE]
exploration: 0.1
rank_by: value
margin: 0.1
rates: {CHF: 1.25, USD: 0.8}
"""  # noqa: E501
POLICY = parse_policy(TEXT)
CAREFUL = parse_policy(f"{TEXT}cautious: 0.9\n")
BY_APPROVAL = parse_policy(TEXT.replace("rank_by: value", "rank_by: approval"))
PART = st.floats(0, 1)
MONEY = st.floats(0, 1e6)


class Fixed:
    """A model with one probability a processor."""

    name, version = "processor_selector.acme", "1"

    def __init__(self, **chances):
        self.chances, self.learnt = chances, frozenset(chances)

    def probabilities(self, request, processors, now_ms):
        """Return the fixed probabilities."""
        return np.array([self.chances[p] for p in processors])


class Bounded(Fixed):
    """The same with lower bounds, or without any."""

    def __init__(self, lower, **chances):
        super().__init__(**chances)
        self.lower, self.levels = lower, []

    def intervals(self, request, processors, now_ms, level):
        """Return the fixed probabilities and bounds."""
        self.levels.append(level)
        chances = self.probabilities(request, processors, now_ms)
        low = None if self.lower is None else np.array([self.lower[p] for p in processors])
        return chances, low, None if low is None else np.ones(len(processors))


MODEL = Fixed(CHEAP=0.6, DEAR=0.7, SHARE=0.5)


def ask(policy, amount=100.0, currency="EUR", rng=None, model=MODEL):
    """The decision for one payment."""
    payment = {"order": {"amount": amount, "currency": currency}, "card": {"bin": "400000", "brand": "VISA"}}
    return decide(payment, now=0, policy=policy, predictor=model, rng=rng)


@given(PART, MONEY, MONEY, MONEY, st.floats(0, 10_000), PART, st.floats(0.001, 1000))
def test_the_value_is_the_mean_of_what_can_happen(p, amount, success, failure, bps, margin, rate):
    fees = Fees(success, failure, "EUR", bps)
    won = expected_value(1.0, amount, fees, margin, rate)
    lost = expected_value(0.0, amount, fees, margin, rate)
    assert won == pytest.approx(amount * margin - amount * bps / 10_000 - rate * success, rel=1e-9, abs=1e-6)
    assert lost == pytest.approx(-rate * failure)
    mixed = expected_value(p, amount, fees, margin, rate)
    assert mixed == pytest.approx(p * won + (1 - p) * lost, rel=1e-9, abs=1e-6 * (1 + abs(won) + abs(lost)))


def test_arrays_are_valued_row_by_row():
    chances, amounts = np.array([0.2, 0.9]), np.array([10.0, 1_000.0])
    whole = expected_value(chances, amounts, Fees(3, 1, "EUR"), 0.1)
    assert whole.tolist() == [expected_value(p, a, Fees(3, 1, "EUR"), 0.1) for p, a in [(0.2, 10.0), (0.9, 1_000.0)]]


def test_rates_go_over_the_home_currency():
    assert exchange(POLICY, "EUR", "EUR") == 1 and exchange(POLICY, "SEK", "SEK") == 1
    assert exchange(POLICY, "CHF", "EUR") == 1.25 and exchange(POLICY, "EUR", "CHF") == 0.8
    assert exchange(POLICY, "USD", "CHF") == pytest.approx(0.64)
    for pair in (("SEK", "EUR"), ("EUR", "SEK")):
        with pytest.raises(ValueRefused, match="SEK"):
            exchange(POLICY, *pair)


def test_fees_are_turned_into_the_orders_currency():
    euro, franc = (values_of(POLICY, 100.0, c, {"DEAR": 0.5})["DEAR"] for c in ("EUR", "CHF"))
    assert euro == pytest.approx(0.5 * (10 - 10) - 0.5 * 5) and franc == pytest.approx(0.5 * (10 - 8) - 0.5 * 4)


def test_a_value_that_cannot_be_told_is_refused():
    with pytest.raises(ValueRefused, match="margin"):
        values_of(parse_policy(TEXT.replace("margin: 0.1\n", "").replace(": value", ": approval")), 1, "EUR", {})
    free = TEXT.replace(", fees: {success: 1, failure: 0.5, currency: EUR}", "").replace(": value", ": approval")
    with pytest.raises(ValueRefused, match="CHEAP"):
        values_of(parse_policy(free), 1, "EUR", {"CHEAP": 0.5})
    with pytest.raises(ValueRefused, match="SEK"):
        values_of(POLICY, 1, "SEK", {"CHEAP": 0.5})


@given(PART, PART, st.floats(0, 10_000))
def test_caution_never_raises_a_value(p, low, amount):
    chances, lower = {"CHEAP": p, "DEAR": p}, {"DEAR": min(p, low)}
    plain, cautious = (values_of(POLICY, amount, "EUR", chances, bound) for bound in (None, lower))
    assert cautious["DEAR"] <= plain["DEAR"] and cautious["CHEAP"] == plain["CHEAP"]


def test_caution_takes_the_sure_one():
    chances, lower = {"CHEAP": 0.60, "DEAR": 0.75}, {"CHEAP": 0.58, "DEAR": 0.50}
    assert best_first(values_of(POLICY, 1_000, "EUR", chances), POLICY.codes)[0] == "DEAR"
    assert best_first(values_of(POLICY, 1_000, "EUR", chances, lower), POLICY.codes)[0] == "CHEAP"


def test_a_cautious_merchant_is_ranked_by_lower_bounds_and_told_so():
    lower = {"CHEAP": 0.55, "DEAR": 0.40, "SHARE": 0.10}
    model = Bounded(lower, **MODEL.chances)
    plain, careful = ask(POLICY, 2_000.0, model=model), ask(CAREFUL, 2_000.0, model=model)
    assert (plain.ranking[0].processor, careful.ranking[0].processor) == ("DEAR", "CHEAP")
    assert model.levels == [0.9] and (plain.caution, careful.caution) == (None, "applied")
    assert {r.processor: r.approval_low for r in careful.ranking} == lower
    assert {r.processor: r.approval_probability for r in careful.ranking} == MODEL.chances
    assert all(r.approval_low is None for r in plain.ranking)
    values = values_of(POLICY, 2_000.0, "EUR", MODEL.chances, lower)
    assert {r.processor: r.expected_value for r in careful.ranking} == values


def test_a_model_without_bounds_ranks_by_the_point_and_the_decision_says_so():
    plain, careful = ask(POLICY, 2_000.0), ask(CAREFUL, 2_000.0, model=Bounded(None, **MODEL.chances))
    assert careful.ranking == plain.ranking and careful.approach == "model"
    assert careful.caution == "no_intervals" and careful.fallback_reason is None


def test_caution_is_said_of_models_only():
    assert ask(CAREFUL, model=None).caution is None
    assert ask(CAREFUL, model=Bounded({}, CHEAP=0.5)).fallback_reason == "model_failed"


def test_exploration_is_the_same_for_the_cautious():
    model = Bounded({"CHEAP": 0.55, "DEAR": 0.40, "SHARE": 0.10}, **MODEL.chances)
    pairs = [[ask(p, 2_000.0, rng=Random(seed), model=model) for p in (POLICY, CAREFUL)] for seed in range(500)]
    assert all(plain.explored == careful.explored for plain, careful in pairs)
    assert sum(plain.explored for plain, _ in pairs) > 20


def test_ties_fall_to_the_order():
    assert best_first({"A": 1.0, "B": 2.0, "C": 2.0}, ["C", "B", "A"]) == ["C", "B", "A"]


def test_small_orders_go_to_the_cheap_one_and_large_ones_to_the_one_that_approves():
    small, large = ask(POLICY, 100.0), ask(POLICY, 2_000.0)
    assert [r.processor for r in small.ranking] == ["CHEAP", "SHARE", "DEAR"]
    assert [r.processor for r in large.ranking] == ["DEAR", "CHEAP", "SHARE"]
    for found in (small, large):
        values = [r.expected_value for r in found.ranking]
        assert values == sorted(values, reverse=True) and found.approach == "model"
        assert {r.processor: r.approval_probability for r in found.ranking} == MODEL.chances


def test_approval_is_ranked_as_before_whatever_the_fees():
    found = ask(BY_APPROVAL)
    assert [r.processor for r in found.ranking] == ["DEAR", "CHEAP", "SHARE"]
    assert all(r.expected_value is None for r in found.ranking)


def test_exploration_and_propensity_are_those_of_approval():
    by_value = [ask(POLICY, rng=Random(seed)) for seed in range(3_000)]
    by_approval = [ask(BY_APPROVAL, rng=Random(seed)) for seed in range(3_000)]
    assert [f.explored for f in by_value] == [f.explored for f in by_approval]
    firsts = {f.ranking[0].processor: f.propensity for f in by_value}
    assert sum(firsts.values()) == pytest.approx(1) and firsts["CHEAP"] == pytest.approx(1 - 0.1 + 0.1 / 3)


def test_what_the_model_never_saw_has_no_value_and_comes_last():
    found = ask(POLICY, model=Fixed(CHEAP=0.1, DEAR=0.1))
    assert found.ranking[-1].processor == "SHARE" and found.ranking[-1].expected_value is None


def test_rules_and_fallbacks_have_no_value():
    assert all(r.expected_value is None for r in ask(POLICY, model=None).ranking)
