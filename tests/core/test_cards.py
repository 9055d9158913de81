"""A full card number is found however it is written, and its digits are never repeated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrouter.core.cards import CardNumberRefused, find_card_number, luhn, mask_card_numbers, refuse_card_numbers


def with_check_digit(stem: str) -> str:
    """Return `stem` and the digit that makes it pass Luhn."""
    return next(stem + d for d in "0123456789" if luhn(stem + d))


STEMS = st.text("0123456789", min_size=12, max_size=18).filter(lambda s: len(set(s)) > 2)
SIXTEEN = st.text("0123456789", min_size=15, max_size=15).filter(lambda s: len(set(s)) > 2)


@given(STEMS)
def test_a_bare_number_is_found_and_masked(stem):
    number = with_check_digit(stem)
    found = find_card_number(f"order {number}, thanks")
    assert found is not None and number not in found


@given(SIXTEEN, st.sampled_from([" ", "-", ".", "_", "/", "  "]), st.sampled_from(["", "x", "order_"]))
def test_a_number_in_groups_of_four_is_found_between_any_neighbours(stem, separator, before):
    number = with_check_digit(stem)
    groups = separator.join(number[i : i + 4] for i in range(0, 16, 4))
    assert find_card_number(f"{before}{groups}") is not None


@given(STEMS, SIXTEEN, st.sampled_from([" ", "-", ".", "/"]))
def test_every_number_of_a_message_is_masked_and_the_rest_stays(stem, other, separator):
    bare, number = with_check_digit(stem), with_check_digit(other)
    grouped = separator.join(number[i : i + 4] for i in range(0, 16, 4))
    said = mask_card_numbers(f"no model 'card.{bare}' and none at var/{grouped}, see docs")
    assert bare not in said and grouped not in said and find_card_number(said) is None
    assert said.startswith("no model 'card.") and said.endswith(", see docs")


@given(st.text(st.characters(exclude_categories=["N"])))
def test_a_message_without_a_number_is_left_alone(text):
    assert mask_card_numbers(text) == text


@given(STEMS, st.sampled_from(["key", "value", "list", "number"]))
def test_it_is_refused_wherever_it_hides_and_never_repeated(stem, place):
    number = with_check_digit("4" + stem[1:])
    document = {"key": {number: 1}, "value": {"a": number}, "list": {"a": ["b", number]}, "number": {"a": int(number)}}
    with pytest.raises(CardNumberRefused) as caught:
        refuse_card_numbers(document[place])
    assert number not in str(caught.value)


@pytest.mark.parametrize("text", ["19.4326018123456", "2026-11-22T07:24:00.123456Z", "a3f5550000000004", "0" * 16])
def test_times_coordinates_and_hashes_are_let_through(text):
    assert find_card_number(text) is None


@pytest.mark.parametrize(
    "separator", [".", "/", "_", ",", ":", ";", "|", "*", "+", " - ", "\u200b", "\u00ad", "\u00a0"]
)
def test_grouped_numbers_are_found_and_no_door_looks_past_them(separator):
    from serve.body import suspect

    grouped = separator.join(["4111", "1111", "1111", "1111"])
    assert find_card_number(f"pay {grouped} now") == "411111…1111"
    assert suspect(f'{{"bank":"{grouped}"}}')
