"""Drills as data: what is refused, and that aiming, stretching and worsening keep the rest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrouter.drill.scenario import (
    DrillRefused,
    Effect,
    aimed,
    changed,
    load_scenarios,
    named,
    stretched,
    worsened,
)

CODES = ["WORLDPAY", "MIT", "ELAVON", "AMEX"]
WANTED = (
    "healthy hard blackhole brownout50 brownout20 slow approval_drop decline_wave issuer_down flapping ramp few_bins"
)
WANTED += (
    " night bad_feedback all_down cascade restarts riskier_mix flash_sale small_capacity feedback_gap card_testing"
)
WANTED += " lucky_streaks"


def test_every_situation_that_was_promised_ships(scenarios):
    assert set(WANTED.split()) <= set(scenarios)


def test_every_drill_asks_something(scenarios):
    assert all(any(v is not None for v in s.bars.model_dump().values()) for s in scenarios.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {name: a, title: A drill, colour: blue}", "colour"),
        ("- {name: a, title: A drill, effects: [{minutes: 5, failing: 1.5}]}", "0.effects.0.failing '1.5'"),
        ("- {name: a, title: A drill, rate: .nan}", "0.rate 'nan': Input should be a finite number"),
        ("- {name: a, title: A drill, minutes: 10, effects: [{minutes: 20, failing: 1}]}", "after the drill's 10"),
        ("- {name: A B, title: A drill}", "name"),
        ("- {name: a, title: A drill}\n- {name: a, title: Again}", "a given twice"),
        ("- {name: a, title: [}", "YAML"),
        ("name: a", "list"),
        ("", "list"),
    ],
)
def test_a_faulty_file_is_refused_with_the_place(tmp_path, text, words):
    path = tmp_path / "drills.yaml"
    path.write_text(text)
    with pytest.raises(DrillRefused, match=words) as caught:
        load_scenarios(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 2


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DrillRefused, match="nowhere"):
        load_scenarios(tmp_path / "nowhere.yaml")


def test_an_unknown_drill_is_told_with_the_known_ones(scenarios):
    with pytest.raises(DrillRefused, match="blackhole"):
        named(scenarios, "earthquake")


def test_an_unknown_processor_is_told_with_the_known_ones(scenarios):
    with pytest.raises(DrillRefused, match="ELAVON"):
        aimed(scenarios["decline_wave"], "PAYPAL", CODES)


@given(st.sampled_from(WANTED.split()), st.sampled_from(CODES))
def test_aiming_leaves_no_placeholder(scenarios, name, target):
    found = {code for effect in aimed(scenarios[name], target, CODES).effects for code in effect.processors}
    assert found <= set(CODES)


@given(st.sampled_from([n for n in WANTED.split() if n not in ("healthy", "feedback_gap")]), st.floats(1, 120))
def test_stretching_scales_events_and_keeps_the_quiet_after(scenarios, name, minutes):
    before, after = scenarios[name], stretched(scenarios[name], minutes)
    ends = [max(s.ends_min for s in (*d.effects, *d.bursts, *d.mix, *d.attacks)) for d in (before, after)]
    assert after.minutes - ends[1] == pytest.approx(before.minutes - ends[0], abs=1e-6)
    first = [(*d.effects, *d.bursts, *d.mix, *d.attacks)[0].minutes for d in (before, after)]
    assert ends[1] / ends[0] == pytest.approx(minutes / first[0])


def test_a_severity_needs_attempts_that_fail(scenarios):
    assert worsened(scenarios["hard"], 0.4).effects[0].failing == 0.4
    assert worsened(scenarios["blackhole"], 0.4).effects[0].hanging == 0.4
    with pytest.raises(DrillRefused, match="decline_wave"):
        worsened(scenarios["decline_wave"], 0.4)


@pytest.mark.parametrize("severity", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_severity_that_is_no_share_is_refused_by_its_own_name(scenarios, severity):
    with pytest.raises(DrillRefused, match=r"^severity .*a share from 0 to 1"):
        worsened(scenarios["hard"], severity)


@pytest.mark.parametrize("minutes", [float("nan"), 0.0, -5.0, 9_999.0, float("inf")])
def test_a_length_that_cannot_be_is_refused_by_its_own_name(scenarios, minutes):
    with pytest.raises(DrillRefused, match=r"^minutes .*within 10,000 minutes"):
        stretched(scenarios["cascade"], minutes)


def test_values_out_of_range_are_refused(scenarios):
    with pytest.raises(DrillRefused, match="rate"):
        changed(scenarios["hard"], rate=-1)


@given(st.floats(0, 60), st.floats(0.1, 60), st.floats(0, 60), st.floats(0, 300), st.floats(0, 300))
def test_strength_is_a_share_and_nothing_outside(begins, lasts, ramp, on, off):
    effect = Effect(begins_min=begins, minutes=lasts, ramp_min=ramp, on_s=on, off_s=off)
    minutes = np.linspace(-5, 130, 400)
    strength = effect.strength(minutes)
    assert ((strength >= 0) & (strength <= 1)).all()
    assert not strength[(minutes < begins) | (minutes >= begins + lasts)].any()


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        ({"processors": ["MIT"], "failing": 0.5}, True),
        ({"processors": ["MIT"], "hanging": 1.0}, True),
        ({"processors": ["MIT"], "capacity_per_s": 1.0}, True),
        ({"failing": 0.5}, False),
        ({"failing": 0.5, "outage": True}, True),
        ({"processors": ["MIT"], "failing": 1.0, "largest_bins": 3}, False),
        ({"processors": ["MIT"], "approval_odds": 0.1, "issuers": ["BBVA"]}, False),
    ],
)
def test_an_outage_is_what_hits_whole_named_processors(effect, expected):
    assert Effect(minutes=5, **effect).is_outage is expected
