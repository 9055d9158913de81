"""Probes: how often, how many must succeed, and that nothing waits for ever."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from smartrouter.outage.probe import (
    ProbeConfig,
    Probing,
    begun,
    best_spacing_s,
    confirm_spacing_s,
    needed,
    overdue,
    reported,
    reserved,
    restored,
    seen,
    severity,
    timed_spacing_s,
)

PLAN = ProbeConfig()
U = st.floats(0, 1, exclude_max=True)


def down(failures=4, attempts=4, now=0.0, **kwargs):
    """A processor that has just gone down."""
    return begun(failures, attempts, now, 30.0, PLAN, **kwargs)


def sent(probing, now, rate=10.0, u=0.5):
    """Reserve a probe that must be due."""
    probing, probe = reserved(probing, "A", now, u, rate, PLAN)
    assert probe is not None
    return probing, probe


def in_a_row(probing, times, now):
    """Let so many probes succeed."""
    for _ in range(times):
        now = max(now, probing.next_at)
        probing, probe = sent(probing, now)
        probing = reported(probing, probe.id, False, now + 0.1, PLAN)
    return probing, now + 0.1


@pytest.mark.parametrize(("failing", "wanted"), [(1.0, 3), (0.99, 3), (0.5, 10), (0.3, 20), (0.2, 31), (0.01, 60)])
def test_the_number_of_successes_follows_from_the_severity(failing, wanted):
    assert needed(failing, PLAN) == wanted


@given(st.floats(0, 1))
def test_so_many_successes_are_one_in_a_thousand_while_it_fails(failing):
    wanted = needed(failing, PLAN)
    assert PLAN.least_successes <= wanted <= PLAN.most_successes
    if wanted < PLAN.most_successes:
        assert (1 - failing) ** wanted <= 1 / PLAN.odds * (1 + 1e-9)


@given(st.floats(0.01, 1000), U)
def test_spacing_takes_no_more_than_its_share_and_no_more_than_its_time(rate, u):
    spacing = timed_spacing_s(rate, u, PLAN)
    assert PLAN.spacing_s * (1 - PLAN.jitter) <= spacing <= PLAN.most_spacing_s * (1 + PLAN.jitter)
    if 1 / (PLAN.share * rate) <= PLAN.most_spacing_s:
        assert 1 / (spacing * rate) <= PLAN.share / (1 - PLAN.jitter) * (1 + 1e-9)
    assert confirm_spacing_s(rate, PLAN) <= PLAN.confirm_spacing_s


def test_spacing_without_a_known_rate_is_by_time():
    assert timed_spacing_s(None, 0.5, PLAN) == timed_spacing_s(0.0, 0.5, PLAN) == PLAN.spacing_s
    assert confirm_spacing_s(None, PLAN) == PLAN.confirm_spacing_s


def test_the_cheapest_spacing_is_where_the_derivative_vanishes():
    outage, lost, gain = 1800.0, 1.0, 0.08

    def cost(tau):
        return lost * outage / tau + gain * tau / 2

    best = best_spacing_s(outage, lost, gain)
    assert cost(best) < min(cost(best * 0.9), cost(best * 1.1)) and math.isclose(best, 212, rel_tol=0.01)


def test_no_probe_before_the_hold_and_one_at_a_time():
    probing = down()
    assert reserved(probing, "A", 29.9, 0.5, 10.0, PLAN) == (probing, None)
    probing, probe = sent(probing, 30.0)
    assert probe.deadline == 30.0 + PLAN.deadline_s
    assert reserved(probing, "A", 30.1, 0.5, 10.0, PLAN)[1] is None
    assert reserved(probing, "A", 229.0, 0.5, 10.0, PLAN)[1] is None
    assert reserved(probing, "A", 230.0, 0.5, 10.0, PLAN)[1] is not None


def test_a_slow_answer_holds_the_next_timed_probe_back():
    plan = ProbeConfig(spacing_s=20.0)
    probing, _ = reserved(down(), "A", 30.0, 0.5, 10.0, plan)
    assert reserved(probing, "A", 60.0, 0.5, 10.0, plan)[1] is None, "due, and the first has not answered"
    assert reserved(probing, "A", 90.0, 0.5, 10.0, plan)[1] is not None, "its deadline has passed"


def test_confirming_probes_fly_together_up_to_the_limit():
    probing, now = in_a_row(down(), 1, 30.0)
    flying = []
    for k in range(20):
        probing, probe = reserved(probing, "A", now + 5 * k, 0.5, 10.0, PLAN)
        flying += [probe] if probe else []
    assert len(probing.flying) <= PLAN.most_flying
    assert len({p.id for p in flying}) == len(flying)


def test_a_hard_outage_is_over_after_few_and_a_brown_out_after_many():
    probing, now = down(), 30.0
    for _ in range(9):
        now = max(now, probing.next_at)
        probing, probe = sent(probing, now)
        probing = reported(probing, probe.id, True, now + 1, PLAN)
    probing, _ = in_a_row(probing, 3, now + 1)
    assert restored(probing, PLAN)
    half, _ = in_a_row(down(failures=10, attempts=20), 9, 30.0)
    assert not restored(half, PLAN)
    assert restored(in_a_row(half, 1, 1000.0)[0], PLAN)


def test_a_failure_ends_the_run_and_waits():
    probing, now = in_a_row(down(failures=5, attempts=10), 4, 30.0)
    probing, probe = sent(probing, max(now, probing.next_at))
    ended = reported(probing, probe.id, True, now + 3, PLAN)
    assert ended.run == 0 and ended.next_at == now + 3 + ended.spacing_s
    assert severity(ended) < severity(probing), "four of five came through: it is less bad than it seemed"


def test_what_was_on_its_way_at_a_failure_starts_no_new_run():
    probing, now = in_a_row(down(), 1, 30.0)
    probing, first = sent(probing, now)
    probing, second = sent(probing, max(now + 0.1, probing.next_at))
    probing = reported(probing, first.id, True, now + 5, PLAN)
    after = reported(probing, second.id, False, now + 6, PLAN)
    assert after.run == 0 and after.next_at == probing.next_at and after.successes > probing.successes


def test_deadlines_count_as_failures_and_late_answers_do_not_count():
    probing, probe = sent(down(), 30.0)
    assert overdue(probing, probe.deadline - 0.001, PLAN) is probing
    late = overdue(probing, probe.deadline, PLAN)
    assert late.flying == () and late.failures > probing.failures * (1 - 1 / PLAN.memory)
    assert reported(late, probe.id, False, probe.deadline + 1, PLAN) is late


def test_unknown_and_second_outcomes_change_nothing():
    probing, probe = sent(down(), 30.0)
    assert reported(probing, "B#1", False, 31.0, PLAN) is probing
    once = reported(probing, probe.id, False, 31.0, PLAN)
    assert reported(once, probe.id, False, 32.0, PLAN) is once
    assert reported(once, probe.id, True, 32.0, PLAN) is once


def test_an_outcome_that_says_nothing_lets_the_next_payment_try():
    probing, probe = sent(down(), 30.0)
    after = reported(probing, probe.id, None, 31.0, PLAN)
    assert (after.run, after.failures, after.next_at) == (0, probing.failures, 31.0)


def test_ids_are_not_used_again_after_a_relapse():
    probing, probe = sent(down(), 30.0)
    again = begun(4, 4, 40.0, 60.0, PLAN, probing)
    assert again.flying == () and reported(again, probe.id, False, 41.0, PLAN) is again
    _, other = sent(again, 100.0)
    assert other.id != probe.id


def test_after_a_relapse_the_run_that_restored_it_counts_against_its_severity():
    restored_run, _ = in_a_row(down(), 4, 30.0)
    again = begun(0, 0, 500.0, 30.0, PLAN, restored_run)
    assert severity(again) < severity(restored_run)
    assert needed(severity(again), PLAN) > needed(severity(restored_run), PLAN)


@given(st.lists(st.booleans(), max_size=60), st.floats(0, 1e6), st.floats(0, 1))
def test_severity_stays_a_probability_and_memory_is_bounded(outcomes, attempts, share):
    probing = begun(attempts * share, attempts, 0.0, 30.0, PLAN)
    for failed in outcomes:
        probing = seen(probing, failed, PLAN)
    assert 0 < severity(probing) < 1
    assert 0 <= probing.failures + probing.successes <= PLAN.memory * (1 + 1e-9)


@given(st.integers(1, 30))
def test_several_outcomes_at_once_are_the_same_as_one_by_one(times):
    one = down()
    for _ in range(times):
        one = seen(one, True, PLAN)
    together = seen(down(), True, PLAN, times)
    assert math.isclose(one.failures, together.failures) and one.successes == together.successes


def test_json_in_the_middle_of_a_flight():
    probing, _ = sent(down(), 30.0)
    assert Probing.from_json(json.loads(json.dumps(probing.as_json()))) == probing


@pytest.mark.parametrize("wrong", [{"share": 0}, {"odds": 1}, {"spacing_s": float("nan")}, {"spacing": 10}])
def test_a_plan_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        ProbeConfig(**wrong)
