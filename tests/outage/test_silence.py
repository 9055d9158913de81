"""Evidence of attempts without an answer, and what a slow answer is."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from smartrouter.outage.detector import TechnicalConfig, threshold
from smartrouter.outage.silence import (
    AnswersRefused,
    SilenceConfig,
    answers_from_json,
    bin_of,
    fresh_answers,
    learn_answer,
    replay_silence,
    silent,
    slow_after,
    survival,
)

CONFIG, TECHNICAL = SilenceConfig(), TechnicalConfig()
WAITS = st.lists(st.none() | st.floats(0, 200), max_size=60)


def learned(rng, many=20_000, lost=0.0):
    answers = fresh_answers(CONFIG)
    for seconds, gone in zip(0.8 * np.exp(0.46 * rng.normal(size=many)), rng.random(many) < lost, strict=True):
        learn_answer(answers, None if gone else float(seconds), CONFIG)
    return answers


@pytest.fixture(scope="module")
def answers():
    return learned(np.random.default_rng(7))


@pytest.fixture(scope="module")
def slower(answers):
    return survival(answers, CONFIG)


def test_survival_falls_from_one_and_follows_the_truth(slower):
    assert slower[0] == 1 and slower == sorted(slower, reverse=True) and slower[-1] > 0
    assert len(slower) == CONFIG.bins + 1
    for seconds in (0.5, 1.0, 2.0):
        true = 0.5 * math.erfc(math.log(seconds / 0.8) / 0.46 / math.sqrt(2))
        before = 0.5 * math.erfc(math.log(seconds / CONFIG.ratio / 0.8) / 0.46 / math.sqrt(2))
        assert true - 0.02 <= slower[bin_of(seconds, CONFIG)] <= before + 0.02


@given(st.floats(0, 1e6))
def test_an_age_lies_in_its_bin(age):
    at = bin_of(age, CONFIG)
    assert 0 <= at <= CONFIG.bins
    if 0 < at < CONFIG.bins:
        lower = CONFIG.first_s * CONFIG.ratio ** (at - 1)
        assert lower * 0.999 <= age <= lower * CONFIG.ratio * 1.001


def test_nothing_learned_means_no_conclusion():
    slower = survival(fresh_answers(CONFIG), CONFIG)
    assert silent([100.0] * 50, slower, CONFIG, TECHNICAL) < 1000
    assert slow_after(fresh_answers(CONFIG), CONFIG) == math.inf


def test_old_answers_fade():
    config = SilenceConfig(memory_attempts=500)
    answers = fresh_answers(config)
    for seconds in [1.0] * 3000 + [10.0] * 3000:
        learn_answer(answers, seconds, config)
    assert survival(answers, config)[bin_of(9.0, config)] > 0.95


def test_weights_stay_finite_over_many_answers():
    config = SilenceConfig(memory_attempts=100)
    answers = fresh_answers(config)
    for _ in range(10_000):
        learn_answer(answers, 1.0, config)
    assert answers.weight <= 1e6 * 1.01 and all(map(math.isfinite, survival(answers, config)))


@pytest.mark.parametrize("age", [-0.1, math.nan])
def test_an_answer_before_its_start_is_refused(age):
    answers = fresh_answers(CONFIG)
    with pytest.raises(AnswersRefused, match="clocks"):
        learn_answer(answers, age, CONFIG)
    assert answers == fresh_answers(CONFIG)


def test_json_round_trip(answers):
    again = answers_from_json(json.loads(json.dumps(answers.as_json())), CONFIG)
    assert again == answers
    for values in ({}, {"counts": [0.0], "weight": 1.0}, {"counts": answers.counts}):
        with pytest.raises(AnswersRefused):
            answers_from_json(values, CONFIG)


@pytest.mark.parametrize("p1_share", [0.9, 0.3, 0.01])
def test_the_mean_ratio_of_one_attempt_is_one_at_any_age(slower, p1_share):
    config = TechnicalConfig(severities=(p1_share,), weights=(1.0,))
    rest = (1 - p1_share) / p1_share
    for age in (0.5, 2.0, 50.0):
        share = slower[bin_of(age, CONFIG)]
        open_ = silent([age], slower, CONFIG, config) / (1 + rest)
        assert share * open_ + (1 - share) * (1 - p1_share) == pytest.approx(1)


@given(WAITS, st.integers(0, 59), st.floats(0.1, 100))
def test_older_is_never_less_evidence_and_an_answer_never_more(waits, place, more):
    rng_answers = survival(learned(np.random.default_rng(3), 300), CONFIG)
    value = silent(waits, rng_answers, CONFIG, TECHNICAL)
    assert math.isfinite(value) and value >= 0
    if place < len(waits) and waits[place] is not None:
        older = [*waits[:place], waits[place] + more, *waits[place + 1 :]]
        answered = [*waits[:place], None, *waits[place + 1 :]]
        assert silent(older, rng_answers, CONFIG, TECHNICAL) >= value * (1 - 1e-12)
        assert silent(answered, rng_answers, CONFIG, TECHNICAL) <= value * (1 + 1e-12)


def test_only_the_newest_attempts_are_looked_at(slower):
    waits = [5.0] * 300 + [0.01] * CONFIG.newest
    assert silent(waits, slower, CONFIG, TECHNICAL) == silent(waits[300:], slower, CONFIG, TECHNICAL)
    assert math.isfinite(silent([100.0] * 1000, slower, CONFIG, TECHNICAL))


@pytest.mark.parametrize("per_s, most_s", [(0.1, 40), (1, 7), (10, 3.6), (100, 2)])
def test_a_black_hole_is_found_before_the_first_time_out_or_soon_after_the_third_payment(slower, per_s, most_s):
    ages = [most_s - i / per_s for i in range(1, int(most_s * per_s) + 1)]
    assert silent(ages, slower, CONFIG, TECHNICAL) > threshold(per_s, TECHNICAL)


@pytest.mark.parametrize("per_s", [1.0, 10.0, 100.0])
def test_health_stays_far_below_the_alarm(slower, per_s):
    rng = np.random.default_rng(11)
    many = 2000
    starts = np.cumsum(rng.exponential(1 / per_s, many))
    took = 0.8 * np.exp(0.46 * rng.normal(size=many))
    assert max(replay_silence(starts.tolist(), took.tolist(), slower, CONFIG, TECHNICAL)) < 1e6


def test_lost_feedback_weakens_the_rule():
    slower = survival(learned(np.random.default_rng(5), lost=0.1), CONFIG)
    assert silent([100.0] * 3, slower, CONFIG, TECHNICAL) < 1e4
    assert slow_after(learned(np.random.default_rng(5), lost=0.1), CONFIG) == math.inf


def test_slow_is_what_hardly_any_healthy_answer_is_and_never_below_the_floor(answers):
    bound = slow_after(answers, CONFIG)
    assert 2.5 < bound < 5
    quick = fresh_answers(CONFIG)
    for _ in range(5000):
        learn_answer(quick, 0.05, CONFIG)
    assert slow_after(quick, CONFIG) == CONFIG.slow_floor_s


@pytest.mark.parametrize(
    "change", [{"ratio": 1.0}, {"horizon_s": 1.0}, {"newest": 0}, {"doubts": 3}, {"first_s": math.nan}]
)
def test_a_faulty_section_is_refused(change):
    with pytest.raises(ValidationError):
        SilenceConfig.model_validate(change)
