"""Overrides need a reason and an end; windows of maintenance are found at their local time."""

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from smartrouter.core.documents import PlainLoader
from smartrouter.outage.override import (
    LONGEST_S,
    MaintenanceConfig,
    Override,
    OverrideRefused,
    make_override,
    next_window,
)

NOW = 1_767_268_800.0
GOOD = {"state": "down", "who": "ana", "reason": "practice run", "now": NOW, "until": NOW + 600}
SUNDAYS = {"processor": "A", "days": ["sun"], "at": "03:00", "minutes": 90, "zone": "America/New_York"}


def at(text):
    """Epoch seconds of an ISO time with zone."""
    return datetime.fromisoformat(text).timestamp()


def section(**parts):
    """A maintenance section as it comes from a file."""
    return MaintenanceConfig.model_validate(parts)


def test_an_override_holds_until_its_end():
    override = make_override(**GOOD)
    assert override.holds(NOW) and override.holds(NOW + 599.9) and not override.holds(NOW + 600)
    assert Override.from_json(override.as_json()) == override


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", "recovering"),
        ("state", "off"),
        ("who", ""),
        ("who", "  "),
        ("reason", ""),
        ("reason", "x" * 501),
        ("reason", "a\nb"),
        ("until", NOW),
        ("until", NOW - 1),
        ("until", NOW + LONGEST_S + 1),
        ("until", float("nan")),
        ("until", float("inf")),
    ],
)
def test_an_override_without_sense_is_refused_with_what_to_do(field, value):
    with pytest.raises(OverrideRefused) as error:
        make_override(**{**GOOD, field: value})
    assert error.value.given and error.value.expected and error.value.remedy


@pytest.mark.parametrize("shift", [0.0, 0.5, -11.0, float("nan")])
def test_a_degradation_lowers_within_bounds(shift):
    with pytest.raises(OverrideRefused):
        make_override(**{**GOOD, "state": "degraded", "logit_shift": shift})
    assert make_override(**{**GOOD, "state": "degraded", "logit_shift": -0.5}).logit_shift == -0.5
    assert make_override(**{**GOOD, "logit_shift": -0.5}).logit_shift == 0.0, "a shift belongs to degraded only"


def test_weekly_windows_keep_their_local_time_when_the_clocks_change():
    found = section(weekly=[SUNDAYS])
    before = next_window(found, "A", at("2026-03-01T00:00:00+00:00"))
    after = next_window(found, "A", at("2026-03-09T00:00:00+00:00"))
    local = [datetime.fromtimestamp(w[0], ZoneInfo("America/New_York")).hour for w in (before, after)]
    assert local == [3, 3]
    assert after[0] - before[0] == 14 * 86_400 - 3600


def test_a_window_that_runs_is_found_until_it_ends():
    found = section(weekly=[SUNDAYS])
    begin, end = next_window(found, "A", NOW)
    assert end - begin == 5400
    assert next_window(found, "A", begin) == next_window(found, "A", end - 0.1) == (begin, end)
    assert next_window(found, "A", end)[0] > end


def test_windows_that_touch_are_one():
    once = [
        {"processor": "A", "begins": "2026-01-02T01:00:00Z", "ends": "2026-01-02T03:00:00Z"},
        {"processor": "A", "begins": "2026-01-02T02:00:00Z", "ends": "2026-01-02T05:00:00Z"},
        {"processor": "A", "begins": "2026-01-02T05:00:00Z", "ends": "2026-01-02T06:00:00+00:00"},
        {"processor": "A", "begins": "2026-01-02T07:00:00Z", "ends": "2026-01-02T08:00:00Z"},
        {"processor": "B", "begins": "2026-01-02T06:00:00Z", "ends": "2026-01-02T09:00:00Z"},
    ]
    assert next_window(section(once=once), "A", NOW) == (at("2026-01-02T01:00:00Z"), at("2026-01-02T06:00:00Z"))
    assert next_window(section(once=once), "C", NOW) is None


@given(st.floats(0, 2e9), st.integers(1, 1440), st.sets(st.sampled_from(["mon", "wed", "sat"]), min_size=1))
def test_the_next_window_ends_after_now_and_begins_within_a_week(now, minutes, days):
    found = section(weekly=[{**SUNDAYS, "days": sorted(days), "minutes": minutes}])
    begin, end = next_window(found, "A", now)
    assert end > now and begin <= now + 7 * 86_400 + 7200
    starts = [begin]
    for _ in range(3):
        starts.append(next_window(found, "A", end)[0])
        end = next_window(found, "A", end)[1]
    assert all(a < b for a, b in pairwise(starts))


def test_windows_as_a_file_has_them():
    text = """
    once:
      - {processor: ELAVON, begins: 2026-01-02T22:00:00-06:00, ends: 2026-01-03T06:00:00-06:00}
    weekly:
      - {processor: WORLDPAY, days: [sun, mon], at: "12:30", minutes: 30, zone: America/Mexico_City}
    """
    found = section(**yaml.load(text, PlainLoader))
    assert next_window(found, "ELAVON", NOW)[0] == datetime(2026, 1, 3, 4, tzinfo=UTC).timestamp()
    assert next_window(found, "WORLDPAY", NOW)[0] == datetime(2026, 1, 4, 18, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "wrong",
    [
        {"weekly": [{**SUNDAYS, "zone": "Mexico"}]},
        {"weekly": [{**SUNDAYS, "at": 750}]},
        {"weekly": [{**SUNDAYS, "at": "24:00"}]},
        {"weekly": [{**SUNDAYS, "days": []}]},
        {"weekly": [{**SUNDAYS, "minutes": 0}]},
        {"weekly": [{**SUNDAYS, "day": "sun"}]},
        {"once": [{"processor": "A", "begins": "2026-01-02T01:00:00", "ends": "2026-01-02T02:00:00"}]},
        {"once": [{"processor": "A", "begins": "2026-01-02T02:00:00Z", "ends": "2026-01-02T01:00:00Z"}]},
    ],
)
def test_a_window_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        section(**wrong)
