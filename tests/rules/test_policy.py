"""Merchant policies: what a file may say, and who may take a payment."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrouter.rules.policy import (
    Fees,
    PolicyRefused,
    UnknownMerchant,
    eligible,
    hard_rule,
    load_policy,
    parse_policy,
)

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params"
SHIPPED = (PARAMS / "merchants" / "volaris.yaml").read_text()
CODES = ["WORLDPAY", "MIT", "ELAVON", "AMEX"]


@pytest.fixture(scope="module")
def volaris():
    return load_policy("volaris", PARAMS)


def test_shipped_policy_has_the_four_processors(volaris):
    assert set(volaris.codes) == set(CODES)
    assert volaris.processor_id("WORLDPAY") == 76 and volaris.processor_id("MIT") == 85
    assert volaris.processor_id("ELAVON") is None and volaris.processor_id("NOBODY") is None
    assert eligible(volaris, "VISA", "MXN")[0] and "AMEX" not in eligible(volaris, "VISA", "MXN")[0]


def test_amex_is_a_hard_rule_and_others_are_not(volaris):
    assert hard_rule(volaris, {"brand": "AMEX", "currency": "MXN"}).processor == "AMEX"
    assert hard_rule(volaris, {"brand": "VISA", "currency": "MXN"}) is None
    assert eligible(volaris, "AMEX", "MXN")[0] == ["AMEX"]


@given(
    brand=st.sampled_from(["VISA", "MASTERCARD", "AMEX", "CARNET", "DINERS", ""]),
    currency=st.sampled_from(["MXN", "USD", "COP", "EUR", ""]),
    requested=st.none() | st.lists(st.sampled_from([*CODES, "ADYEN", ""]), max_size=6),
)
def test_each_processor_is_eligible_or_excluded_once(volaris, brand, currency, requested):
    may, may_not = eligible(volaris, brand, currency, requested)
    named = may + [code for code, _ in may_not]
    assert sorted(named) == sorted(set(volaris.codes) | set(requested or []))
    assert all(reason for _, reason in may_not)
    for code in may:
        assert brand in volaris.by_code[code].brands and currency in volaris.by_code[code].currencies
        assert not requested or code in requested


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("merchant_id:", "merchantid:"), "merchantid"),
        (("time_zone: America/Mexico_City", "time_zone: America/Nowhere"), "time_zone"),
        (("currency: MXN", "currency: pesos"), "currency"),
        (("id: 76", "id: many"), "processors.0.id"),
        (("default_order: [", "default_order: [NOBODY, "), "default_order"),
        (("when: {brand: AMEX}", "when: {moon: full}"), "hard_rules.0.when"),
        (("currency: MXN", "currency: MXN\ncurrency: USD"), "comes twice"),
        (("merchant_id: volaris", "merchant_id: ../volaris"), "merchant_id"),
    ],
)
def test_a_fault_is_named(change, named):
    text = SHIPPED.replace(*change, 1)
    assert text != SHIPPED
    with pytest.raises(PolicyRefused, match=named.replace(".", r"\.")):
        parse_policy(text, "x.yaml")


@pytest.mark.parametrize("text", ["", "[]", "just words", "a: [", "processors: null"])
def test_no_policy_at_all_is_refused(text):
    with pytest.raises(PolicyRefused):
        parse_policy(text)


@pytest.mark.parametrize("name", ["acme", "../merchants/volaris", "", "volaris.yaml", "VOLARIS", "a" * 300])
def test_unknown_merchants_are_told_the_known_ones(name):
    with pytest.raises(UnknownMerchant, match="volaris"):
        load_policy(name, PARAMS)


def test_a_second_merchant_needs_no_code(tmp_path):
    (tmp_path / "merchants").mkdir()
    (tmp_path / "merchants" / "acme.yaml").write_text(
        "{merchant_id: acme, time_zone: Europe/Berlin, currency: EUR, default_order: [P1],"
        " processors: [{code: P1, id: null, brands: [VISA], currencies: [EUR]}]}"
    )
    acme = load_policy("acme", PARAMS, tmp_path)
    assert eligible(acme, "VISA", "EUR") == (["P1"], []) and hard_rule(acme, {"brand": "AMEX"}) is None
    (tmp_path / "merchants" / "acme.yaml").rename(tmp_path / "merchants" / "other.yaml")
    with pytest.raises(PolicyRefused, match="acme"):
        load_policy("other", PARAMS, tmp_path)


def test_an_operators_own_file_wins_and_may_hold_fees(tmp_path):
    (tmp_path / "merchants").mkdir()
    own = SHIPPED.replace("code: WORLDPAY,", "code: WORLDPAY, fees: {success: 5, failure: 2.5, currency: EUR},")
    (tmp_path / "merchants" / "volaris.yaml").write_text(own)
    assert load_policy("volaris", PARAMS, tmp_path).by_code["WORLDPAY"].fees == Fees(5.0, 2.5, "EUR")
    assert load_policy("volaris", PARAMS).by_code["WORLDPAY"].fees is None
    with pytest.raises(PolicyRefused, match=r"processors\.0\.fees\.success"):
        parse_policy(own.replace("success: 5", "success: -5"))


BY_VALUE = """
merchant_id: acme
time_zone: Europe/Berlin
currency: EUR
processors:
  - {code: P1, id: null, brands: [VISA], currencies: [EUR, CHF], fees: {success: 1, failure: 0.5, currency: EUR}}
  - code: P2
    id: null
    brands: [VISA]
    currencies: [EUR]
    fees: {success: 0, failure: 0, currency: USD, success_bps: 90}
default_order: [P1, P2]
rank_by: value
margin: 0.1
rates: {CHF: 1.05, USD: 0.9}
"""


def test_a_merchant_may_rank_by_value():
    acme = parse_policy(BY_VALUE)
    assert (acme.rank_by, acme.margin, dict(acme.rates)) == ("value", 0.1, {"CHF": 1.05, "USD": 0.9})
    assert acme.by_code["P2"].fees == Fees(0.0, 0.0, "USD", 90.0)


def test_a_merchant_that_ranks_by_value_may_be_cautious():
    assert parse_policy(BY_VALUE).cautious is None
    assert parse_policy(BY_VALUE + "cautious: 0.9\n").cautious == 0.9


def test_approval_is_what_processors_are_ranked_by_unless_the_file_says_otherwise(volaris):
    assert (volaris.rank_by, volaris.margin, dict(volaris.rates)) == ("approval", None, {})
    kept = parse_policy(BY_VALUE.replace("rank_by: value", "rank_by: approval").replace("margin: 0.1\n", ""))
    assert kept.rank_by == "approval" and kept.by_code["P1"].fees.success == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("margin: 0.1\n", ""), "needs margin"),
        (("margin: 0.1", "margin: 1.5"), "margin"),
        (("margin: 0.1", "margin: 0"), "margin"),
        (("rank_by: value", "rank_by: price"), "rank_by"),
        ((", fees: {success: 1, failure: 0.5, currency: EUR}", ""), "fees of P1"),
        (("CHF: 1.05, ", ""), "rates.CHF"),
        ((", USD: 0.9", ""), "rates.USD"),
        (("CHF: 1.05", "CHF: 0"), "rates.CHF is no rate"),
        (("CHF: 1.05", "CHF: .inf"), "rates.CHF is no rate"),
        (("CHF: 1.05", "CHF: .nan"), "rates.CHF is no rate"),
        (("CHF: 1.05", "CHF: 1.05, EUR: 1"), "home currency"),
        (("failure: 0.5, currency: EUR", "failure: 0.5"), "processors.0.fees.currency"),
        (("success: 1, failure", "sucess: 1, failure"), "processors.0.fees.sucess"),
        (("success_bps: 90", "success_bps: -1"), "processors.1.fees.success_bps"),
        (("margin: 0.1", "margins: 0.1"), "margins"),
        (("margin: 0.1", "margin: 0.1\ncautious: 0.5"), "cautious: Input should be greater than 0.5"),
        (("margin: 0.1", "margin: 0.1\ncautious: 1"), "cautious: Input should be less than 1"),
        (("margin: 0.1", "margin: 0.1\ncautious: .nan"), "cautious"),
        (("margin: 0.1", "margin: 0.1\ncautious: yes"), "cautious"),
        (("rank_by: value", "rank_by: approval\ncautious: 0.9"), "cautious needs rank_by value"),
    ],
)
def test_what_value_needs_is_asked_for_when_the_file_is_read(change, named):
    text = BY_VALUE.replace(*change, 1)
    assert text != BY_VALUE
    with pytest.raises(PolicyRefused, match=named.replace(".", r"\.")):
        parse_policy(text)


def test_rules_are_light_to_import():
    heavy = "pandas tensorflow duckdb plotly mlflow pyarrow"
    code = f"import sys, smartrouter.rules.policy; assert not set('{heavy}'.split()) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_folder_without_any_merchant_says_what_is_missing(tmp_path):
    (tmp_path / "var").mkdir()
    with pytest.raises(UnknownMerchant) as error:
        load_policy("volaris", tmp_path / "nonexist", tmp_path / "var")
    assert f"there is no folder {tmp_path / 'nonexist'}." in str(error.value)
    assert "SMARTROUTER_PARAMS" in error.value.remedy
