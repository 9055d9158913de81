"""The state machine of a processor: what moves it, what never does, and that it goes on the same from its JSON."""

import json
import math
from pathlib import Path
from random import Random

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import ValidationError

from smartrouter.core.documents import PlainLoader
from smartrouter.outage.candidates import order_least_bad, routable
from smartrouter.outage.control import (
    KINDS,
    SOURCES,
    Alarm,
    Control,
    ControlConfig,
    ControlRefused,
    Force,
    Outcome,
    Tick,
    counts,
    effective,
    in_maintenance,
    logit_shift,
    next_probe_at,
    relieved,
    reserve_probe,
    shift_of,
    since_of,
    step,
    weight,
)
from smartrouter.outage.override import make_override

CONFIG = ControlConfig()
HARD = Alarm("technical", 4, 4)
NOW = 1_000_000.0


def run(state, *events, now=NOW):
    """Step through events, each a pair (seconds later, event); return (state, now, transitions)."""
    told = []
    for later, event in events:
        now += later
        state, new = step(state, event, now, CONFIG)
        told += new
    return state, now, told


def down(alarm=HARD, now=NOW):
    """A processor that has just gone down."""
    return run(Control("A"), (0, alarm), now=now)[0]


def probed(state, now, kind="ok", rate=10.0):
    """Reserve the next probe and let it report; return (state, now, transitions)."""
    now = max(now, state.probing.next_at)
    state, probe = reserve_probe(state, now, 0.5, rate, CONFIG)
    assert probe is not None
    return run(state, (0.1, Outcome(kind, now, probe=probe.id)), now=now)


def recovered(state, now):
    """Let probes succeed until it is taken back."""
    while state.mode == "down":
        state, now, _ = probed(state, now)
    return state, now


def force(state, now, lasts=600.0, **kwargs):
    """An override as an event."""
    return Force(make_override(state, who="ana", reason="practice run", now=now, until=now + lasts, **kwargs))


# --- down and back --------------------------------------------------------------------------------------------------


def test_an_alarm_takes_it_out_of_the_next_decision():
    state, now, told = run(Control("A"), (0, HARD))
    assert [(t.before, t.after, t.why, t.at) for t in told] == [("up", "down", "technical alarm", NOW)]
    assert told[0].incident == state.incident != "" and told[0].evidence["failures"] == 4
    assert weight(state, now, CONFIG) == 0
    assert routable(["A", "B"], {"A": state}, {}, now, {}, CONFIG).order == ("B",)


def test_it_comes_back_by_probes_slowly_and_the_incident_ends_later():
    state, now = recovered(down(), NOW)
    assert state.mode == "recovering" and weight(state, now, CONFIG) == pytest.approx(CONFIG.first_weight, abs=0.01)
    assert 0.4 < weight(state, now + CONFIG.slow_start_s / 2, CONFIG) < 0.6
    state, now, told = run(state, (CONFIG.slow_start_s, Tick()), (CONFIG.coalesce_s, Tick()), now=now)
    assert [(t.before, t.after, t.closes) for t in told] == [("recovering", "up", False), ("up", "up", True)]
    assert state.incident == "" and weight(state, now, CONFIG) == 1


@pytest.mark.parametrize(("failures", "attempts", "least", "most"), [(9, 9, 3, 3), (10, 20, 10, 10), (9, 40, 20, 40)])
def test_the_number_of_probes_follows_from_how_bad_it_was(failures, attempts, least, most):
    state, _ = recovered(down(Alarm("technical", failures, attempts)), NOW)
    assert least <= state.probing.made <= most


@pytest.mark.parametrize(("overdue", "left"), [(0.0, 0), (0.1, 4)])
def test_an_overdue_probe_is_no_proof_where_healthy_answers_are_often_late(overdue, left):
    state, now = down(Alarm("technical", 9, 18, overdue=overdue)), NOW
    for _ in range(4):
        state, now, _ = probed(state, now)
    state, probe = reserve_probe(state, state.probing.next_at, 0.5, 10.0, CONFIG)
    state, now, _ = run(state, (0, Tick()), now=probe.deadline + 1)
    assert state.mode == "down" and state.probing.run == left


def test_late_answers_keep_nobody_out_for_ever_and_a_brown_out_in():
    rng, wrong, tries = Random(7), 0, []
    for failing, most in ((0.0, 400), (0.5, 20)):  # back; still out, with as many probes as half an hour has
        for _ in range(60):
            state, now, n = down(Alarm("technical", 9, 18, overdue=0.1)), NOW, 0
            while state.mode == "down" and n < most:
                now, n = max(now, state.probing.next_at), n + 1
                state, probe = reserve_probe(state, now, 0.5, 10.0, CONFIG)
                if probe is None:
                    state, now, _ = run(state, (60.0, Tick()), now=now)
                elif rng.random() < failing:
                    state, now, _ = run(state, (0.1, Outcome("technical", now, probe=probe.id)), now=now)
                elif rng.random() < 0.9:
                    state, now, _ = run(state, (0.1, Outcome("ok", now, probe=probe.id)), now=now)
            tries += [n] if not failing else []
            wrong += bool(failing) and state.mode != "down"
    assert max(tries) < 200 and wrong <= 5  # of 60, a tenth is the bar


def test_lucky_ordinary_outcomes_do_not_restore_it():
    state, _, told = run(down(), *[(1, Outcome("ok", NOW + 1))] * 200)
    assert state.mode == "down" and told == []


def test_an_answer_of_a_bank_proves_a_technical_outage_over_and_a_loss_of_approvals_not():
    for kind, run_length in (("ok", 1), ("issuer", 1), ("customer", 1), ("technical", 0)):
        assert probed(down(), NOW, kind)[0].probing.run == run_length
    lost = down(Alarm("approval", 30, 40, logit_shift=-4.0))
    for kind, run_length in (("ok", 1), ("issuer", 0), ("customer", 0), ("technical", 0)):
        assert probed(lost, NOW, kind)[0].probing.run == run_length


def after_a_collapse(approving, seed):
    """Probe for an hour a processor that approves so many; return (seconds until taken back, declined probes)."""
    rng, now, lost = Random(seed), NOW, 0
    state = down(Alarm("approval", logit_shift=-4.0))
    while state.mode == "down" and now < NOW + 3600:
        now += rng.expovariate(10.0)
        state, probe = reserve_probe(state, now, rng.random(), 10.0, CONFIG)
        if probe is not None:
            kind = "ok" if rng.random() < approving else "issuer"
            lost += kind == "issuer"
            state, _, _ = run(state, (0.5, Outcome(kind, now, probe=probe.id)), now=now)
    return now - NOW, lost


def test_a_collapse_of_approvals_is_over_when_most_are_approved_although_some_are_not():
    back = [after_a_collapse(0.7, seed)[0] for seed in range(40)]
    assert sum(back) / 40 < 300 and max(back) < 3600
    still = [after_a_collapse(0.1, seed) for seed in range(40)]
    assert sum(t < 3600 for t, _ in still) <= 1 and sum(lost for _, lost in still) / 40 < 25


def test_an_estimate_of_the_detector_stands_for_a_few_attempts():
    exact, rough = (down(Alarm("technical", *n, severity=s)) for n, s in (((5, 10), None), ((0, 0), 0.5)))
    assert exact.mode == rough.mode == "down"
    assert exact.probing.failures == 5 and rough.probing.failures == 2.5
    assert down(Alarm("silence", severity=0.05)).mode == "degraded"


def test_a_relapse_is_the_same_incident_and_waits_twice_as_long():
    state, now, holds, incidents = down(), NOW, [], set()
    for _ in range(8):
        holds.append(state.hold_s)
        incidents.add(state.incident)
        state, now = recovered(state, now)
        state, now, told = run(state, (5, HARD), now=now)
        assert told[-1].after == "down"
    assert holds == [30, 60, 120, 240, 480, 600, 600, 600] and len(incidents) == 1


def test_the_hold_halves_while_it_is_healthy():
    state = down()
    now = NOW
    for _ in range(3):
        state, now = recovered(state, now)
        state, now, _ = run(state, (5, HARD), now=now)
    assert state.hold_s == 240
    state, now = recovered(state, now)
    state, now, _ = run(state, (CONFIG.slow_start_s, Tick()), now=now)
    for hours, hold in ((0.6, 120), (1.1, 60), (24, 30)):
        later, _, _ = run(state, (hours * 3600, HARD), now=now)
        assert (later.hold_s, later.downs) == (hold, 1) and later.incident != state.incident


def test_twenty_flaps_are_one_incident():
    state, now, told = Control("A"), NOW, []
    for _ in range(20):
        state, now, new = run(state, (10, HARD), now=now)
        told += new
        state, now = recovered(state, now)
        state, now, new = run(state, (CONFIG.slow_start_s, Tick()), now=now)
        told += new
    state, now, new = run(state, (CONFIG.coalesce_s, Tick()), now=now)
    told += new
    assert len({t.incident for t in told}) == 1 and sum(t.closes for t in told) == 1


def test_a_probe_that_never_reports_blocks_nothing():
    state = down()
    now = NOW
    for _ in range(5):
        now = max(now, state.probing.next_at)
        state, probe = reserve_probe(state, now, 0.5, 10.0, CONFIG)
        assert probe is not None
    state, now, told = run(state, (CONFIG.probe.deadline_s, Tick()), now=now)
    assert state.probing.flying == () and told == [] and state.mode == "down"
    state, _ = recovered(state, now)
    assert state.mode == "recovering"


@pytest.mark.parametrize("failing", [1.0, 0.5])
@pytest.mark.parametrize("rate", [0.1, 1.0, 10.0])
def test_half_an_hour_of_probes_costs_ten_payments_at_most_on_average(rate, failing):
    lost = 0
    for seed in range(10):
        rng, now, state = Random(seed), NOW, down(Alarm("technical", 4 + (failing < 1), 4 + 4 * (failing < 1)))
        while now < NOW + 1800 and state.mode == "down":
            now += rng.expovariate(rate)
            state, probe = reserve_probe(state, now, rng.random(), rate, CONFIG)
            if probe is not None:
                kind = "technical" if rng.random() < failing else "ok"
                lost += kind == "technical"
                state, _, _ = run(state, (0.5, Outcome(kind, now, probe=probe.id)), now=now)
    assert lost <= 100


def test_what_began_before_the_return_is_no_evidence():
    state, now = recovered(down(), NOW)
    assert not counts(state, now - 5) and counts(state, now + 1)
    later, _, _ = run(state, (CONFIG.slow_start_s, Tick()), now=now)
    assert later.mode == "up" and not counts(later, now - 5)
    assert not counts(down(), NOW + 5) and counts(Control("A"), 5.0)


# --- degraded -------------------------------------------------------------------------------------------------------


def test_a_drop_of_approvals_degrades_and_a_collapse_takes_out():
    for shift, mode in ((-0.8, "degraded"), (-2.9, "degraded"), (-3.0, "down")):
        assert down(Alarm("approval", 60, 120, logit_shift=shift)).mode == mode
    state = down(Alarm("approval", 60, 120, logit_shift=-0.8))
    assert logit_shift(state, NOW, CONFIG) == -0.8 and weight(state, NOW, CONFIG) == 1
    assert routable(["A", "B"], {"A": state}, {}, NOW, {}, CONFIG).order == ("A", "B")


def test_a_mild_alarm_during_the_slow_start_does_not_hurry_it():
    state, now = recovered(down(), NOW)
    share = weight(state, now + 10, CONFIG)
    state, now, _ = run(state, (10, Alarm("approval", 9, 20, logit_shift=-0.8)), now=now)
    assert state.mode == "degraded" and weight(state, now, CONFIG) == share < 0.2
    assert weight(state, now + CONFIG.slow_start_s, CONFIG) == 1


def test_few_technical_failures_degrade():
    state = down(Alarm("technical", 20, 400))
    assert state.mode == "degraded" and -0.2 < state.logit_shift < -0.1
    assert run(state, (1, HARD))[0].mode == "down", "and can get worse"


def test_shift_of_is_the_logit_of_what_is_left():
    p, failing = 0.7, 0.1
    left = p * (1 - failing)
    assert shift_of(failing, p) == pytest.approx(math.log(left / (1 - left)) - math.log(p / (1 - p)))


def test_ordinary_approvals_end_a_degradation_and_declines_do_not():
    start = down(Alarm("approval", 60, 120, logit_shift=-0.8))
    state, _, told = run(start, *[(1, Outcome("ok", NOW + 1, 0.7))] * 100)
    assert [t.why for t in told] == ["evidence gone"] and state.mode == "up"
    half = [(1, Outcome("ok" if k % 2 else "issuer", NOW + 1, 0.7)) for k in range(100)]
    assert run(start, *half)[0].mode == "degraded"
    silent = [(1, Outcome(kind, NOW + 1, p)) for kind, p in (("customer", 0.7), ("ok", None))] * 100
    assert run(start, *silent)[0].relief == 0


def test_the_evidence_of_one_outcome_is_its_likelihood_ratio():
    p, shift = 0.7, -0.8
    lowered = 1 / (1 + math.exp(-(math.log(p / (1 - p)) + shift)))
    assert relieved(0.0, True, p, shift) == pytest.approx(math.log(p / lowered))
    assert relieved(5.0, False, p, shift) == pytest.approx(5.0 + math.log((1 - p) / (1 - lowered)))
    assert relieved(0.0, False, p, shift) == 0.0
    for extreme in (0.0, 1.0):
        assert math.isfinite(relieved(1.0, True, extreme, -20.0)) and math.isfinite(relieved(1, False, extreme, -20.0))


def test_a_degradation_without_news_fades():
    state = down(Alarm("approval", 60, 120, logit_shift=-0.8))
    assert logit_shift(state, NOW + CONFIG.fade_s, CONFIG) == pytest.approx(-0.4)
    assert run(state, (2.9 * CONFIG.fade_s, Tick()))[0].mode == "degraded"
    state, _, told = run(state, (3.1 * CONFIG.fade_s, Tick()))
    assert state.mode == "up" and told[0].why == "faded"


def test_a_new_alarm_confirms_a_degradation_without_telling_it_twice():
    state, now, told = run(down(Alarm("approval", 9, 20, -0.8)), (900, Alarm("approval", 9, 20, -1.2)))
    assert told == [] and logit_shift(state, now, CONFIG) == -1.2


# --- people ---------------------------------------------------------------------------------------------------------


def test_an_override_wins_and_ends_by_itself():
    state, now, told = run(down(), (10, force("up", NOW + 10)))
    assert told[0].after == "up" and told[0].evidence["who"] == "ana" and told[0].evidence["until"] == NOW + 610
    assert effective(state, now) == "up" and state.mode == "down" and weight(state, now, CONFIG) == 1
    assert reserve_probe(state, now + 60, 0.5, 10.0, CONFIG) == (state, None)
    assert effective(state, now + 600) == "down", "also before anything steps"
    state, now, told = run(state, (600, Tick()), now=now)
    assert [(t.before, t.after, t.why) for t in told] == [("up", "down", "override over")]


def test_a_forced_degradation_has_its_own_shift():
    state, now, _ = run(Control("A"), (0, force("degraded", NOW, logit_shift=-0.5)))
    assert effective(state, now) == "degraded" and logit_shift(state, now, CONFIG) == -0.5
    assert logit_shift(state, now + 600, CONFIG) == 0


def test_a_forced_down_is_not_probed_and_returns_slowly():
    state, now, told = run(Control("A"), (0, force("down", NOW)))
    assert told[0].incident == "", "nobody is woken up"
    assert reserve_probe(state, now + 300, 0.5, 10.0, CONFIG) == (state, None)
    for event, later in ((Tick(), 600), (Force(None, "bo", "done"), 60)):
        back, _, told = run(state, (later, event), now=now)
        assert back.mode == effective(back, now + later) == "recovering" and told[0].before == "down"
    assert told[0].evidence["lifted_by"] == "bo" and told[0].why == "override lifted"


def test_an_alarm_under_an_override_is_told_and_waits():
    state, now, told = run(Control("A"), (0, force("up", NOW)), (5, HARD))
    assert (told[1].before, told[1].after, told[1].evidence["mode"]) == ("up", "up", "down")
    assert effective(state, now) == "up" and state.mode == "down"


def test_what_people_do_is_told_even_if_nothing_changes():
    state, _, told = run(down(), (1, force("down", NOW + 1)), (1, Force(None, "bo", "mistake")), (1, Force(None)))
    assert [(t.before, t.after, t.why) for t in told] == [
        ("down", "down", "override"),
        ("down", "down", "override lifted"),
    ]
    assert state.mode == "down"


def test_an_override_that_is_too_long_is_refused_by_the_step_as_well():
    short = CONFIG.model_copy(update={"override_most_s": 60.0})
    with pytest.raises(ControlRefused, match="at most 60 s"):
        step(Control("A"), force("down", NOW), NOW, short)


def test_maintenance_is_down_without_alarm():
    window = (NOW + 100, NOW + 400)
    state, _, told = run(Control("A"), (0, Tick(window)))
    assert told == [] and effective(state, NOW + 99.9) == "up"
    assert effective(state, NOW + 100) == "down", "also before anything steps"
    state, now, told = run(state, (100, Tick(window)), (5, HARD), now=NOW)
    assert [(t.after, t.why, t.incident) for t in told] == [("down", "maintenance", "")]
    assert state.mode == "up" and reserve_probe(state, now, 0.5, 10.0, CONFIG) == (state, None)
    state, _, told = run(state, (295, Tick()), now=now)
    assert (told[0].after, told[0].why) == ("recovering", "maintenance over")


def test_an_override_wins_over_maintenance():
    state, now, _ = run(Control("A"), (0, Tick((NOW, NOW + 900))), (1, force("up", NOW + 1)))
    assert effective(state, now) == "up"
    state, _, told = run(state, (600, Tick((NOW, NOW + 900))), now=now)
    assert told[0].after == "down"


# --- all down -------------------------------------------------------------------------------------------------------


def test_all_down_gives_the_least_bad_first():
    states = {code: down(Alarm("technical", bad, 9)) for code, bad in (("A", 9), ("B", 3), ("C", 9))}
    answer = routable(["A", "B", "C"], states, {"A": 0.8, "B": 0.7, "C": 0.9}, NOW, {}, CONFIG)
    assert answer.all_down and answer.order == ("B", "C", "A") and answer.excluded == ()


def test_what_people_took_out_is_the_last_resort():
    states = {"A": run(Control("A"), (0, force("down", NOW)))[0], "B": down()}
    assert order_least_bad(["A", "B"], states, {"A": 0.9, "B": 0.1}, NOW) == ("B", "A")


def test_what_returns_takes_its_share_and_everything_if_nothing_else_is_left():
    state, now = recovered(down(), NOW)
    states = {"A": state, "B": down()}
    assert routable(["A", "C"], states, {}, now, {"A": 0.04}, CONFIG).order == ("A", "C")
    away = routable(["A", "C"], states, {}, now, {"A": 0.06}, CONFIG)
    assert away.order == ("C",) and away.excluded[0][:2] == ("A", "recovering")
    only = routable(["A", "B"], states, {}, now, {"A": 0.99}, CONFIG)
    assert only.order == ("A",) and not only.all_down


def test_an_unknown_processor_is_up_and_no_candidate_is_no_order():
    assert routable(["X"], {}, {}, NOW, {}, CONFIG).order == ("X",)
    assert routable([], {}, {}, NOW, {}, CONFIG).order == ()


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        Alarm("guess", 4, 4),
        Alarm("technical", 5, 4),
        Alarm("technical", -1, 4),
        Alarm("technical", float("nan"), 4),
        Alarm("technical", 4, float("inf")),
        Alarm("technical", severity=1.5),
        Alarm("silence", severity=float("nan")),
        Alarm("approval", 4, 9, logit_shift=0.5),
        Alarm("approval", 4, 9, logit_shift=float("nan")),
        Outcome("declined", NOW),
        Outcome("ok", NOW, p=1.5),
        Outcome("ok", NOW, p=float("nan")),
        "down",
    ],
)
def test_an_event_that_cannot_be_is_refused_with_what_to_do(event):
    with pytest.raises(ControlRefused) as error:
        step(Control("A"), event, NOW, CONFIG)
    assert error.value.given and error.value.expected and error.value.remedy


def test_a_time_that_is_none_is_refused():
    with pytest.raises(ControlRefused):
        step(Control("A"), Tick(), float("nan"), CONFIG)


STATES = {
    "up": Control("A"),
    "down": down(),
    "degraded": down(Alarm("approval", 9, 20, -0.8)),
    "recovering": recovered(down(), NOW)[0],
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probe", ["", "A#77", "B#1"])
@pytest.mark.parametrize("started", [0.0, NOW - 120, NOW + 120, NOW + 1e6, float("nan")])
def test_an_outcome_that_is_early_late_unknown_or_from_the_future_flips_nothing(name, kind, probe, started):
    before = STATES[name]
    now = before.clock + 1
    for _ in range(3):
        after, told = step(before, Outcome(kind, started, 0.7, probe), now, CONFIG)
        assert told == () and after.mode == before.mode
        before = after


def test_a_probe_counts_once():
    state = down()
    now = state.probing.next_at
    state, probe = reserve_probe(state, now, 0.5, 10.0, CONFIG)
    outcome = Outcome("ok", now, probe=probe.id)
    state, _, _ = run(state, (1, outcome), (1, outcome), (1, outcome), now=now)
    assert state.probing.run == 1


def test_two_clocks_two_minutes_apart_do_not_make_it_flap():
    window, state, told = (NOW, NOW + 900), Control("A"), []
    for k in range(20):
        skew = 120.0 if k % 2 == 0 else 0.0
        state, new = step(state, Tick(window), NOW - 60 + k + skew, CONFIG)
        told += new
    assert [t.after for t in told] == ["down"]


def test_two_clocks_two_minutes_apart_do_not_keep_it_down():
    state, true, probe = down(), NOW, None
    while state.mode == "down" and true < NOW + 600:
        true += 1.0
        state, _, _ = run(state, (0, Tick()), now=true + 120)
        if probe is not None:
            state, _, _ = run(state, (0, Outcome("ok", true - 1, probe=probe.id)), now=true)
        state, probe = reserve_probe(state, true, 0.5, 1.0, CONFIG)
    assert state.mode == "recovering" and true < NOW + 300


def test_a_clock_that_was_set_back_moves_what_was_planned():
    state = down()
    earlier = NOW - 7200
    state, _, told = run(state, (0, Tick()), now=earlier)
    assert told == [] and state.mode == "down" and state.probing.next_at == earlier + CONFIG.hold_s
    state, now = recovered(state, earlier)
    assert state.mode == "recovering" and now < NOW - 7000


def test_the_default_file_is_the_default():
    file = Path(__file__).parents[2] / "params" / "outage" / "default.yaml"
    read = yaml.load(file.read_text(encoding="utf-8"), PlainLoader)["control"]
    assert ControlConfig.model_validate(read) == CONFIG
    assert set(read) == set(ControlConfig.model_fields) and set(read["probe"]) == set(type(CONFIG.probe).model_fields)


@pytest.mark.parametrize("wrong", [{"hold": 3}, {"probe": {"share": 2}}, {"hold_s": 700}, {"slow_start_s": math.nan}])
def test_a_section_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        ControlConfig.model_validate(wrong)


def test_an_outage_that_goes_on_after_an_override_began_when_it_began():
    state, now, _ = run(down(), (100, force("up", NOW + 100)), (200, Force(None, "bo", "it still fails")))
    assert (state.shown, state.shown_since) == ("down", NOW)
    expired, _, told = run(down(), (100, force("up", NOW + 100)), (700, Tick()))
    assert told[-1].why == "override over" and expired.shown_since == NOW
    up, now, _ = run(Control("A"), (0, force("degraded", NOW)), (60, Force(None, "bo", "over")))
    assert (up.shown, up.shown_since) == ("up", now), "what people did is over from now"


def test_since_is_right_before_a_step_has_seen_it():
    window = (NOW + 100, NOW + 400)
    state, _, _ = run(Control("A"), (0, Tick(window)))
    assert since_of(state, NOW + 100) == NOW + 100 and in_maintenance(state, NOW + 100)
    assert since_of(state, NOW + 99) == 0 and not in_maintenance(state, NOW + 400)
    forced, _, _ = run(state, (50, force("up", NOW + 50)))
    assert not in_maintenance(forced, NOW + 101) and since_of(forced, NOW + 101) == forced.shown_since
    lapsed, _, _ = run(down(), (10, force("up", NOW + 10)))
    assert since_of(lapsed, NOW + 611) == NOW, "its end has not been seen yet"


@pytest.mark.parametrize("how", ["override", "window"])
@pytest.mark.parametrize("name", ["degraded", "recovering", "up"])
def test_whatever_was_taken_out_returns_slowly(name, how):
    state = {
        "degraded": down(Alarm("approval", 9, 20, -0.8)),
        "recovering": recovered(down(), NOW)[0],
        "up": Control("A", clock=NOW),
    }[name]
    now = state.clock + 100
    if how == "override":
        state, now, told = run(state, (0, force("down", now)), (40, Force(None, "bo", "done")), now=now)
    else:
        state, now, told = run(state, (0, Tick((now, now + 40))), (40, Tick()), now=now)
    wanted = "degraded" if name == "degraded" else "recovering"
    assert told[-1].before == "down" and told[-1].after == state.mode == wanted
    assert weight(state, now, CONFIG) == CONFIG.first_weight and not counts(state, now - 1)
    assert weight(state, now + CONFIG.slow_start_s, CONFIG) == 1


def test_the_next_probe_can_be_told():
    state = down()
    assert next_probe_at(state, NOW, CONFIG) == NOW + CONFIG.hold_s
    now = NOW + CONFIG.hold_s
    state, probe = reserve_probe(state, now, 0.5, 10.0, CONFIG)
    assert next_probe_at(state, now, CONFIG) == state.probing.next_at > probe.deadline
    state, now, _ = run(state, (0.1, Outcome("ok", now, probe=probe.id)), now=now)
    assert next_probe_at(state, now, CONFIG) == now, "the first success is confirmed at once"
    for _ in range(CONFIG.probe.most_flying):
        now = state.probing.next_at
        state, probe = reserve_probe(state, now, 0.5, 10.0, CONFIG)
    assert next_probe_at(state, now, CONFIG) == state.probing.flying[0].deadline, "as many as may are on their way"
    forced, now, _ = run(state, (1, force("down", now + 1)), now=now)
    closed, _, _ = run(down(), (1, Tick((NOW, NOW + 900))))
    for none in (forced, closed, Control("A"), recovered(down(), NOW)[0]):
        assert next_probe_at(none, none.clock or NOW, CONFIG) is None


@settings(max_examples=100, deadline=None)
@given(rate=st.sampled_from([0.1, 1.0, 10.0]), seed=st.integers(0, 10**6))
def test_no_probe_goes_before_the_next_one_that_was_told(rate, seed):
    rng, now, state = Random(seed), NOW, down()
    for _ in range(60):
        now += rng.expovariate(rate)
        state, _, _ = run(state, (0, Tick()), now=now)  # a probe that never reports fails at its deadline
        told = next_probe_at(state, now, CONFIG)
        after, probe = reserve_probe(state, now, rng.random(), rate, CONFIG)
        assert (probe is not None) == (state.mode == "down" and now >= told)
        state = after
        if probe is not None and rng.random() < 0.8:
            state, _, _ = run(state, (0.2, Outcome(rng.choice(["ok", "technical"]), now, probe=probe.id)), now=now)
            now += 0.2
        if state.mode != "down":
            break


# --- anything in any order ------------------------------------------------------------------------------------------

CODES = ("A", "B", "C")
MOVES = {  # (from, to) -> what may do it
    ("up", "down"): {Alarm},
    ("degraded", "down"): {Alarm},
    ("recovering", "down"): {Alarm},
    ("up", "degraded"): {Alarm},
    ("recovering", "degraded"): {Alarm},
    ("down", "recovering"): {Outcome},
    ("degraded", "up"): {Outcome, Tick, Force, Alarm},  # or it faded before
    ("recovering", "up"): {Outcome, Tick, Force, Alarm},  # the slow start was over
    ("up", "recovering"): {Outcome, Tick, Force, Alarm},  # people gave it back
    ("degraded", "recovering"): {Outcome, Tick, Force, Alarm},  # it faded, and people gave it back
}


class Life(RuleBasedStateMachine):
    """Three processors, and whatever may happen to them."""

    @initialize()
    def begin(self):
        """All are up."""
        self.now = NOW
        self.states = {code: Control(code) for code in CODES}
        self.open, self.asked = {code: "" for code in CODES}, {code: [] for code in CODES}

    def do(self, code, event, skew=0.0):
        """Step, and check all that holds for any step."""
        before, at = self.states[code], self.now + skew
        after, told = step(before, event, at, CONFIG)
        twin, retold = step(Control.from_json(json.loads(json.dumps(before.as_json()))), event, at, CONFIG)
        assert (twin, retold) == (after, told), "its JSON has the same future"
        shown = before.shown
        for transition in told:
            assert transition.before == shown and json.dumps(transition.as_json())
            shown = transition.after
            assert transition.incident or transition.after != "degraded" or after.override is not None
            if transition.incident:
                assert self.open[code] in ("", transition.incident), "one incident at a time"
            self.open[code] = "" if transition.closes else transition.incident or self.open[code]
        assert after.shown == shown and self.open[code] == after.incident
        if after.mode != before.mode:
            if (before.mode, after.mode) == ("down", "recovering"):
                assert event.probe and after.probing.run >= CONFIG.probe.least_successes
            assert type(event) in MOVES[before.mode, after.mode]
        self.states[code] = after

    codes, skews = st.sampled_from(CODES), st.sampled_from([0.0, 0.0, -120.0, 120.0])

    @rule(seconds=st.sampled_from([0.1, 3.0, 40.0, 200.0, 2000.0]))
    def wait(self, seconds):
        """Time passes."""
        self.now += seconds

    @rule(code=codes, begin=st.none() | st.floats(-500, 500), lasts=st.floats(1, 1000), skew=skews)
    def tick(self, code, begin, lasts, skew):
        """Time is told, maybe with a window."""
        window = None if begin is None else (self.now + begin, self.now + begin + lasts)
        self.do(code, Tick(window), skew)

    @rule(code=codes, source=st.sampled_from(SOURCES), bad=st.integers(0, 9), shift=st.floats(-5, 0), skew=skews)
    def alarm(self, code, source, bad, shift, skew):
        """A detector is certain."""
        self.do(code, Alarm(source, bad, 9, shift if source == "approval" else 0.0), skew)

    @rule(code=codes, kind=st.sampled_from(KINDS), ago=st.floats(-200, 200), p=st.none() | st.floats(0, 1), skew=skews)
    def ordinary(self, code, kind, ago, p, skew):
        """An attempt ends, some before they began."""
        self.do(code, Outcome(kind, self.now - ago, p), skew)

    @rule(code=codes, u=st.floats(0, 1, exclude_max=True), rate=st.sampled_from([None, 0.1, 10.0]))
    def ask(self, code, u, rate):
        """A payment asks whether it is a probe."""
        before = self.states[code]
        after, probe = reserve_probe(before, self.now, u, rate, CONFIG)
        if probe is not None:
            assert before.mode == "down" and probe.id not in self.asked[code]
            assert effective(before, self.now) == "down" and self.now < probe.deadline
            self.asked[code].append(probe.id)
        assert after.mode == before.mode
        self.states[code] = after

    @rule(code=codes, kind=st.sampled_from(KINDS), which=st.integers(0, 3), skew=skews)
    def answer(self, code, kind, which, skew):
        """A probe reports, some of them twice or too late."""
        if self.asked[code]:
            self.do(code, Outcome(kind, self.now, probe=self.asked[code][-1 - which % len(self.asked[code])]), skew)

    @rule(code=codes)
    def luck(self, code):
        """Probes succeed for a while."""
        for _ in range(12):
            self.now = max(self.now, self.states[code].probing.next_at)
            self.ask(code, 0.5, 10.0)
            self.answer(code, "ok", 0, 0.0)

    @rule(code=codes, state=st.sampled_from(["up", "degraded", "down"]), lasts=st.floats(1, 3000))
    def forced(self, code, state, lasts):
        """A person forces a state."""
        self.do(code, force(state, self.now, lasts))
        assert effective(self.states[code], self.now) == state

    @rule(code=codes)
    def lift(self, code):
        """A person lifts it."""
        self.do(code, Force(None, "bo", "done"))
        assert self.states[code].override is None

    @invariant()
    def holds(self):
        """What holds at any time."""
        for state in self.states.values():
            if state.override is not None and state.override.holds(self.now):
                assert effective(state, self.now) == state.override.state
            assert 0 <= weight(state, self.now, CONFIG) <= 1 and logit_shift(state, self.now, CONFIG) <= 0
            assert len(state.probing.flying) <= CONFIG.probe.most_flying
            assert CONFIG.hold_s <= state.hold_s <= CONFIG.most_hold_s or state.hold_s == 0
        answer = routable(CODES, self.states, {"A": 0.7}, self.now, {"A": 0.5, "B": 0.99}, CONFIG)
        assert set(answer.order) | {gone for gone, _, _ in answer.excluded} == set(CODES) and answer.order
        assert answer.all_down == all(effective(s, self.now) == "down" for s in self.states.values())


Life.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLife = Life.TestCase
