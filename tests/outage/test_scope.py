"""Whose payments fail: one currency's, or everybody's."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrouter.outage.scope import MOST_CURRENCIES, Scope, confined_to, take_note
from smartrouter.outage.segment import SegmentConfig, kin_of, segment_of

CONFIG = SegmentConfig()
P0 = 0.0075


def seen(*outcomes, expected=P0):
    """A scope that has taken note of (currency, failed)."""
    scope = Scope()
    for currency, failed in outcomes:
        take_note(scope, currency, failed, expected, CONFIG)
    return scope


def test_a_payment_is_in_its_currency_and_its_bin_group():
    assert kin_of(segment_of("USD", "41523199")) == ("USD", "USD:415231")
    assert kin_of(segment_of("USD", "")) == ("USD",)
    assert kin_of(segment_of("", "")) == ()


@pytest.mark.parametrize(
    ("outcomes", "found"),
    [
        ([("USD", True)] * 6 + [("MXN", False)] * 20, {"USD"}),
        ([("USD", True), ("COP", True), ("MXN", False), ("MXN", False)] * 5, {"USD", "COP"}),
        ([("USD", True)] * 20, set()),  # nothing to compare with
        ([("USD", True), ("MXN", True)] * 10, set()),  # all fail
        ([("USD", True)] * 3 + [("MXN", False)], set()),  # too early to say
        ([("", True)] * 6 + [("MXN", False)] * 20, set()),  # a currency that nobody named cannot be taken out
        ([("MXN", False)] * 50, set()),
    ],
)
def test_currencies_that_fail_alone_are_named(outcomes, found):
    assert set(confined_to(seen(*outcomes), P0, CONFIG)) == found


def test_counts_begin_with_the_failures():
    quiet = seen(*[("MXN", False)] * 500)
    assert quiet == Scope()
    over = seen(("USD", True), *[("MXN", False)] * 500)
    assert over == Scope()
    assert seen(*[("MXN", False)] * 500, ("USD", True)).counts == {"USD": [1.0, 1.0]}


def test_failures_that_a_dead_bin_explains_weigh_little():
    assert seen(("MXN", True), ("MXN", False), expected=0.9) == Scope()
    assert seen(("MXN", True), ("MXN", False)).counts == {"MXN": [2.0, 1.0]}


@given(st.lists(st.tuples(st.sampled_from(["USD", "MXN", "COP", ""]), st.booleans()), max_size=60))
def test_it_is_plain_numbers_and_names_only_what_failed(outcomes):
    scope = seen(*outcomes)
    assert Scope(*json.loads(json.dumps(scope.as_json()))) == scope
    for failures, attempts in confined_to(scope, P0, CONFIG).values():
        assert 0 < failures <= attempts


def test_memory_is_bounded():
    scope = seen(*((f"X{n:02d}", True) for n in range(90)))
    assert len(scope.counts) <= MOST_CURRENCIES + 1
    assert sum(attempts for attempts, _ in scope.counts.values()) == 90
