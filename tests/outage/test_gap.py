"""Silence of one, and silence of all: who is blamed, and when it is the feedback that is missing."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrouter.outage.config import load_config
from smartrouter.outage.health import Ended, open_health, outcome, tick
from smartrouter.outage.silence import fresh_answers, learn_answer, may_reach, silent, survival
from smartrouter.outage.watch import Watch, answered, let_go, silent_since, started, waits_of

SHARES = {"WORLDPAY": 0.45, "MIT": 0.3, "ELAVON": 0.2, "AMEX": 0.05}  # thin and thick


@pytest.fixture(scope="module")
def config(root):
    """The parameters that ship."""
    return load_config(root / "params/outage/default.yaml")


def played(config, hangs, *, seed, rate=4.0, warm_s=600, then_s=60):
    """Mode of each processor and what was told, after `hangs(code, now, rng)` kept outcomes back from second 0 on."""
    rng, health, told, due = random.Random(seed), open_health(config, list(SHARES)), [], []
    watches, now, n = {code: Watch() for code in SHARES}, -float(warm_s), 0
    while now < then_s:
        now += rng.expovariate(rate)
        code, n = rng.choices(list(SHARES), list(SHARES.values()))[0], n + 1
        started(watches[code], str(n), now, most=config.silence.newest)
        due.append((now + rng.lognormvariate(-0.1, 0.4), code, str(n), now, now >= 0 and hangs(code, now, rng)))
        for item in sorted(d for d in due if d[0] <= now):
            due.remove(item)
            at, where, attempt, began, lost = item
            if lost or (at >= 0 and hangs(where, at, rng) is None):
                continue
            answered(watches[where], attempt)
            told += outcome(health, Ended(where, began, "ok"), at)
        told += tick(health, watches, now)
    return {code: line.control.mode for code, line in health.lines.items()}, told


@pytest.mark.parametrize("seed", range(8))
def test_when_no_outcome_comes_through_nobody_is_blamed(config, seed):
    modes, told = played(config, lambda code, now, rng: None if now < 45 else False, seed=seed)
    assert set(modes.values()) == {"up"}
    assert [(t.before, t.after) for t in told] == [("up", "gap"), ("gap", "up")]


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("code", ["WORLDPAY", "ELAVON"])
def test_one_that_gives_no_answers_is_blamed_while_others_answer(config, code, share):
    modes, told = played(config, lambda c, now, rng: c == code and rng.random() < share, seed=3)
    assert modes == {c: "down" if c == code else "up" for c in SHARES}
    assert [t.key for t in told if t.after == "down"] == [code]


def test_where_nobody_else_has_payments_the_silent_one_is_blamed(config):
    health, watches = open_health(config, ["WORLDPAY", "MIT"]), {"WORLDPAY": Watch(), "MIT": Watch()}
    for n in range(400):
        started(watches["WORLDPAY"], str(n), float(n), most=400)
        answered(watches["WORLDPAY"], str(n))
        outcome(health, Ended("WORLDPAY", float(n), "ok"), n + 0.8)
    for n in range(400, 420):
        started(watches["WORLDPAY"], str(n), float(n), most=400)
        tick(health, watches, n + 0.5)
    assert health.lines["WORLDPAY"].control.mode == "down"


WAITS = st.lists(st.none() | st.floats(0, 200), max_size=60)


@given(WAITS, st.lists(st.floats(0, 40), max_size=200), st.floats(1, 1e9))
def test_the_bound_never_hides_evidence(config, waits, ages, least):
    answers = fresh_answers(config.silence)
    for age in ages:
        learn_answer(answers, age, config.silence)
    slower = survival(answers, config.silence)
    if silent(waits, slower, config.silence, config.technical) >= least:
        assert may_reach(waits, slower, least, config.silence, config.technical)


@given(st.lists(st.booleans(), max_size=40))
def test_what_was_answered_before_the_oldest_open_attempt_is_no_evidence(config, answers):
    watch = Watch()
    for n, has in enumerate(answers):
        started(watch, str(n), float(n), most=400)
        if has:
            answered(watch, str(n))
    whole = [None if has else 100.0 - n for n, has in enumerate(answers)]
    slower = survival(fresh_answers(config.silence), config.silence)
    found = waits_of(watch, 100.0, 0.0)
    assert whole[len(whole) - len(found) :] == found
    assert silent(found, slower, config.silence, config.technical) == silent(
        whole, slower, config.silence, config.technical
    )


def test_silence_begins_after_the_last_answer_and_what_is_let_go_says_nothing():
    watch = Watch()
    for n in range(5):
        started(watch, str(n), float(n), most=400)
    answered(watch, "2")
    assert (
        silent_since(watch, 0.0) == 3.0 and silent_since(watch, 4.0) == 4.0 and silent_since(watch, 5.0) == float("inf")
    )
    let_go(watch, 4.0)
    assert waits_of(watch, 10.0, 0.0) == [6.0]
