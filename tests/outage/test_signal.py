"""The taxonomy of answers: what the shipped table says, and what a table may not say."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from smartrouter.core import answers
from smartrouter.outage.config import load_config
from smartrouter.outage.signal import SignalConfig, build_taxonomy, classify
from smartrouter.world.config import load_world

ROOT = Path(__file__).parents[2]
TAXONOMY = build_taxonomy(load_config(ROOT / "params/outage/default.yaml").signal)


def test_every_code_of_the_simulated_merchant_is_described():
    world = load_world(ROOT / "params/world/volaris.yaml")
    for brand in world.brands:
        for code in world.codes:
            assert classify(TAXONOMY, "declined", code.code, brand).why in ("code", "brand"), (brand, code.code)
    for code in world.mastercard.groups.values():
        assert classify(TAXONOMY, "declined", code, "MASTERCARD").why in ("code", "brand")


def test_technical_here_is_technical_in_the_world_and_nothing_of_the_customer_is():
    world = load_world(ROOT / "params/world/volaris.yaml")
    for code in world.codes:
        kind = classify(TAXONOMY, "declined", code.code, "VISA").kind
        assert (kind == "technical") == (code.category == "technical"), code.code


@pytest.mark.parametrize("code", sorted(answers.TECHNICAL_CODES - {"91", "911", "912"}))
def test_the_routers_technical_codes_are_technical(code):
    assert classify(TAXONOMY, "declined", code).kind == "technical"


@pytest.mark.parametrize("code", sorted(answers.HARD_CODES))
def test_the_routers_hard_codes_are_hard(code):
    assert classify(TAXONOMY, "declined", code, "VISA").hard


@pytest.mark.parametrize(
    "code, brand, kind",
    [
        ("82", "VISA", "customer"),
        ("82", "MASTERCARD", "issuer"),
        ("83", "VISA", "issuer"),
        ("83", "mastercard", "issuer"),
        ("91", "VISA", "issuer"),
        ("911", "AMEX", "technical"),
        ("912", "AMEX", "issuer"),
        ("100", "AMEX", "issuer"),
        ("5", None, "issuer"),
        (" 05 ", "CARNET", "issuer"),
        ("n7", "VISA", "customer"),
        ("503", "VISA", "technical"),
        ("HTTP 502", None, "technical"),
        ("http_429", None, "technical"),
        ("HTTP 404", None, "issuer"),
        ("request_timeout", None, "technical"),
        ("ECONNREFUSED connection refused", None, "technical"),
        ("insufficient_funds", None, "customer"),
        (None, None, "issuer"),
        ("", "VISA", "issuer"),
    ],
)
def test_kind_of_a_decline(code, brand, kind):
    assert classify(TAXONOMY, "declined", code, brand).kind == kind


def test_the_status_is_stronger_than_the_code():
    assert classify(TAXONOMY, "approved", "05") == ("ok", False, "status")
    assert classify(TAXONOMY, "timeout", "51") == ("technical", False, "status")
    assert classify(TAXONOMY, "error") == ("technical", False, "status")


def test_the_senders_category_decides_for_unknown_codes_and_when_it_says_technical():
    assert classify(TAXONOMY, "declined", "ZZ9", category="fraud") == ("customer", False, "category")
    assert classify(TAXONOMY, "declined", "05", category="technical") == ("technical", False, "category")
    assert classify(TAXONOMY, "declined", "51", category="issuer").kind == "customer"


def test_hard_by_the_sender_or_by_advice():
    assert classify(TAXONOMY, "declined", "05", hard_soft="hard").hard
    assert not classify(TAXONOMY, "declined", "14", hard_soft="soft").hard
    assert classify(TAXONOMY, "declined", "05", "MASTERCARD", advice_code="3").hard
    assert not classify(TAXONOMY, "declined", "96", hard_soft="hard").hard  # a technical failure forbids nothing


@given(st.text(max_size=300), st.text(max_size=20), st.text(max_size=300))
def test_any_text_has_a_kind(code, brand, message):
    signal = classify(TAXONOMY, "declined", code, brand, message=message)
    assert signal.kind in ("technical", "issuer", "customer")


@given(st.sampled_from(["approved", "declined", "timeout", "error"]), st.none() | st.text(max_size=5))
def test_agrees_with_the_routers_reading_of_the_status(status, code):
    if status != "declined":
        router = answers.classify(status, code)
        assert (classify(TAXONOMY, status, code).kind == "technical") == (router == "technical")


@pytest.mark.parametrize(
    "change, path",
    [
        ({"codes": {}}, "codes"),
        ({"codes": {"issuer": {"soft": ["05"]}, "customer": {"hard": ["05"]}}}, "codes"),
        ({"codes": {"bank": {"soft": ["05"]}}}, "codes"),
        ({"codes": {"issuer": {"soft": [5]}}}, "codes"),
        ({"brands": {"VISA": {"issuer": {"soft": ["05"], "hard": ["05"]}}}}, "brands"),
        ({"texts": [{"match": "(", "kind": "technical"}]}, "texts"),
        ({"unknown": "ok"}, "unknown"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_faulty_table_is_refused(change, path):
    with pytest.raises(ValidationError) as caught:
        SignalConfig.model_validate({"codes": {"issuer": {"soft": ["05"]}}} | change)
    assert path in str(caught.value)
