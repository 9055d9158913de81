"""Estimators by hand, against the truth of small worlds, and in what they promise: bounds, coverage, refusals."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from statsmodels.stats.proportion import proportion_confint

from smartrouter.evaluation.overlap import OverlapRefused, PolicyRefused, checked_log
from smartrouter.evaluation.policy import dm, dr, evaluate, ips, lift, sndr, snips, switch_dr, t_quantile, targeted

WEIGHTED, MODELLED = (ips, snips), (dm, dr, sndr, switch_dr)
RATES = np.array([0.60, 0.70, 0.75])

# three payments, two processors: weights 0.5, 2 and 1.5
REWARD, ACTION, PSCORE = [1.0, 0.0, 1.0], [0, 1, 1], [0.8, 0.25, 0.4]
DIST = [[0.4, 0.6], [0.5, 0.5], [0.4, 0.6]]
TABLE = [[0.8, 0.5], [0.6, 0.4], [0.5, 0.7]]


def default(reward, action, pscore, dist, table):
    return targeted(checked_log(reward, action, pscore, dist), table)[0]


def world(n=2_000, explore=0.3, seed=1):
    """A log with random exploration whose approval rates are RATES, and a model that is five points off."""
    rng = np.random.default_rng(seed)
    action = np.where(rng.random(n) < explore, rng.integers(0, 3, n), 0)
    pscore = np.where(action == 0, 1 - explore * 2 / 3, explore / 3)
    return (rng.random(n) < RATES[action]).astype(float), action, pscore, np.tile(RATES - [0, 0, 0.05], (n, 1))


def to(processor, n=2_000):
    return np.tile(np.eye(3)[processor], (n, 1))


# --- by hand --------------------------------------------------------------------------------------------------------


def test_every_formula_by_hand():
    arrays_ = (REWARD, ACTION, PSCORE, DIST)
    assert ips(*arrays_).raw == pytest.approx((0.5 + 0 + 1.5) / 3)
    assert snips(*arrays_).raw == pytest.approx(2 / 4)
    means = [0.62, 0.5, 0.62]  # the model under the policy
    corrections = [0.5 * 0.2, 2 * -0.4, 1.5 * 0.3]
    assert dm(*arrays_, TABLE).raw == pytest.approx(np.mean(means))
    assert dr(*arrays_, TABLE).raw == pytest.approx(np.mean(means) + sum(corrections) / 3)
    assert sndr(*arrays_, TABLE).raw == pytest.approx(np.mean(means) + sum(corrections) / 4)
    kept = corrections[0] + corrections[2]
    assert switch_dr(*arrays_, TABLE, limit=1.8).raw == pytest.approx(np.mean(means) + kept / 3)
    assert ips(*arrays_).ess == pytest.approx(16 / 6.5)


def test_standard_errors_by_hand():
    rounds = np.array([0.5, 0.0, 1.5])
    assert ips(REWARD, ACTION, PSCORE, DIST).se == pytest.approx(rounds.std(ddof=1) / np.sqrt(3))
    shift = (0.1 - 0.8 + 0.45) / 4
    w = np.array([0.5, 2, 1.5]) * 3 / 4
    psi = np.array([0.62, 0.5, 0.62]) + w * (np.array([0.2, -0.4, 0.3]) - shift)
    assert sndr(REWARD, ACTION, PSCORE, DIST, TABLE).se == pytest.approx(psi.std(ddof=1) / np.sqrt(3))


def test_switch_dr_is_dr_without_a_limit_and_dm_with_none_kept():
    reward, action, pscore, table = world()
    log = (reward, action, pscore, to(2), table)
    assert switch_dr(*log, limit=1e9).raw == pytest.approx(dr(*log).raw)
    assert switch_dr(*log, limit=0.0).raw == pytest.approx(dm(*log).raw)


def test_the_default_cancels_the_weighted_residuals():
    reward, action, pscore, table = world()
    log = checked_log(reward, action, pscore, to(1))
    value, influence = targeted(log, table)
    assert abs(influence.mean()) < 1e-9  # the residual term is zero, so the moved model's mean is doubly robust
    assert value.raw == pytest.approx(snips(reward, action, pscore, to(1)).raw)  # one rate a processor: the same number


def test_a_constant_model_gives_wilson_on_snips():
    reward, action, pscore, _ = world()
    log, flat = (reward, action, pscore, to(2)), np.full((2_000, 3), 0.6)
    ours, theirs = default(*log, flat), snips(*log)
    assert [ours.raw, ours.low, ours.high] == pytest.approx([theirs.raw, theirs.low, theirs.high], abs=1e-6)


def test_the_interval_of_equal_weights_is_wilsons():
    reward = np.repeat([1.0, 0.0], [4_000, 6_000])
    found = snips(reward, np.zeros(10_000, int), np.ones(10_000), np.ones((10_000, 1)))
    assert (found.low, found.high) == pytest.approx(proportion_confint(4_000, 10_000, method="wilson"), abs=1e-4)
    assert t_quantile(np.ones(11)) == pytest.approx(2.2281, abs=1e-4)  # t table, 10 degrees of freedom


# --- properties -----------------------------------------------------------------------------------------------------


def test_on_its_own_log_every_weighting_is_the_plain_mean():
    reward, action, _, table = world()
    shares = np.bincount(action) / len(action)
    dist = np.tile(shares, (len(action), 1))
    for estimator in WEIGHTED:
        assert estimator(reward, action, shares[action], dist).raw == pytest.approx(reward.mean())
    assert default(reward, action, shares[action], dist, table).raw == pytest.approx(reward.mean(), abs=1e-3)


def test_without_residuals_dr_is_dm():
    reward, action, pscore, _ = world()
    perfect = np.tile(reward[:, None], (1, 3))
    log = (reward, action, pscore, to(2), perfect)
    assert dr(*log).raw == pytest.approx(dm(*log).raw) and sndr(*log).raw == pytest.approx(dm(*log).raw)


def test_self_normalised_estimates_know_no_scale_of_the_propensities():
    reward, action, pscore, table = world()
    for estimator in (snips, lambda *a: default(*a, table), lambda *a: sndr(*a, table)):
        one, other = estimator(reward, action, pscore, to(2)), estimator(reward, action, pscore / 3, to(2))
        found = [other.estimate, other.low, other.high]
        assert found == pytest.approx([one.estimate, one.low, one.high], abs=1e-6)
    assert ips(reward, action, pscore / 3, to(2)).raw == pytest.approx(3 * ips(reward, action, pscore, to(2)).raw)


unit = st.floats(0, 1)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), n=st.integers(2, 25), k=st.integers(1, 4))
def test_nothing_leaves_the_unit_interval(data, n, k):
    reward = data.draw(arrays(float, n, elements=st.sampled_from([0.0, 1.0, 0.5])))
    action = data.draw(arrays(int, n, elements=st.integers(0, k - 1)))
    pscore = data.draw(arrays(float, n, elements=st.floats(0.01, 1)))
    mass = data.draw(arrays(float, (n, k), elements=st.floats(0, 1))) + 1e-3
    dist = mass / mass.sum(axis=1, keepdims=True)
    table = data.draw(arrays(float, (n, k), elements=unit))
    values = [e(reward, action, pscore, dist) for e in WEIGHTED]
    values += [e(reward, action, pscore, dist, table) for e in (*MODELLED, default)]
    for value in values:
        assert 0 <= value.low <= value.estimate + 1e-9 and value.estimate <= value.high + 1e-9 <= 1 + 2e-9, value
        assert value.n == n and np.isfinite(value.se)
        held = min(max(value.raw, 0), 1)
        if value.method != "targeted":
            assert value.estimate == held
    ours, model = values[-1], values[2]
    assert min(ours.raw, model.raw) - 1e-5 <= ours.estimate <= max(ours.raw, model.raw) + 1e-5


def test_all_approved_and_all_declined_have_intervals_with_one_open_side():
    _, action, pscore, table = world()
    for answer in (0.0, 1.0):
        found = default(np.full(2_000, answer), action, pscore, to(2), table)
        assert found.raw == pytest.approx(answer, abs=1e-6)
        assert 0.005 < found.high - found.low < 0.1 and 0 <= found.low <= found.high <= 1


# --- the truth ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_all_estimators_agree_with_the_truth(seed):
    reward, action, pscore, table = world(40_000, 0.5, seed)
    dist = np.tile([0.1, 0.3, 0.6], (40_000, 1))
    truth = float(RATES @ [0.1, 0.3, 0.6])
    good = table + np.array([0, 0, 0.05])
    values = [e(reward, action, pscore, dist) for e in WEIGHTED]
    values += [e(reward, action, pscore, dist, good) for e in (*MODELLED, default)]
    assert [v.estimate for v in values] == pytest.approx([truth] * 7, abs=0.02)


def test_intervals_cover_and_the_model_moves_an_estimate_by_half_a_standard_error_at_most():
    inside, errors, moves = [], [], []
    for seed in range(200):
        reward, action, pscore, table = world(600, 0.3, seed)
        right, wrong = table + np.array([0, 0, 0.05]), table - np.array([0, 0, 0.35])
        found = [default(reward, action, pscore, to(2, 600), q) for q in (right, wrong)]
        inside.append([v.low <= 0.75 <= v.high for v in found])
        errors.append([v.estimate - 0.75 for v in found] + [found[0].raw - 0.75])
        moves.append([abs(v.estimate - v.raw) / max(v.raw - v.low, v.high - v.raw) for v in found])
    assert (np.mean(inside, axis=0) > 0.92).all()
    helped, misled, unmoved = np.sqrt(np.mean(np.square(errors), axis=0))
    assert helped < 0.75 * unmoved and misled < 1.25 * unmoved
    assert np.max(moves) < 0.5


def test_the_lift_covers_and_is_narrower_than_two_intervals():
    inside, narrower = [], []
    for seed in range(200):
        reward, action, pscore, table = world(800, 0.3, seed)
        found = lift(reward, action, pscore, to(2, 800), table)
        truth = 0.75 - (0.8 * RATES[0] + 0.1 * RATES[1] + 0.1 * RATES[2])
        inside.append(found.low <= truth <= found.high)
        near = lift(reward, action, pscore, to(2, 800), table, baseline_dist=0.8 * to(2, 800) + 0.2 * to(0, 800))
        narrower.append((near.high - near.low) / (near.candidate.high - near.candidate.low))
        assert near.low <= near.estimate <= near.high and found.low <= found.estimate <= found.high
    assert np.mean(inside) > 0.92 and np.median(narrower) < 0.3


def test_lift_of_a_policy_over_itself_is_zero():
    reward, action, pscore, table = world()
    found = lift(reward, action, pscore, to(2), table, baseline_dist=to(2))
    assert found.estimate == 0 and found.low <= 0 <= found.high and found.high - found.low < 0.03
    swapped = lift(reward, action, pscore, to(1), table, baseline_dist=to(2))
    assert swapped.estimate == pytest.approx(
        -lift(reward, action, pscore, to(2), table, baseline_dist=to(1)).estimate, abs=0.02
    )


# --- groups ---------------------------------------------------------------------------------------------------------


def test_groups_of_one_change_nothing_and_copies_widen():
    reward, action, pscore, table = world()
    one = evaluate(reward, action, pscore, to(2), table)
    single = evaluate(reward, action, pscore, to(2), table, groups=np.arange(2_000))
    assert (single.low, single.high) == pytest.approx((one.low, one.high))
    twice = [np.repeat(a, 4, axis=0) for a in (reward, action, pscore, to(2), table)]
    copied = evaluate(*twice, groups=np.repeat(np.arange(2_000), 4))
    blind = evaluate(*twice)
    assert blind.high - blind.low < 0.6 * (one.high - one.low)
    assert copied.high - copied.low == pytest.approx(one.high - one.low, rel=0.1)
    wide, narrow = lift(*twice, groups=np.repeat(np.arange(2_000), 4)), lift(*twice)
    assert wide.high - wide.low > 1.6 * (narrow.high - narrow.low)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_refusals_reach_the_caller():
    reward, action, pscore, table = world(200, 0.1)
    for call in (evaluate, lift):
        with pytest.raises(OverlapRefused, match="not enough overlap"):
            call(reward, action, pscore, to(2, 200), table)
        with pytest.raises(OverlapRefused, match="no exploration"):
            call(np.ones(90), np.zeros(90, int), np.ones(90), to(2, 90), table[:90])
        with pytest.raises(PolicyRefused, match="propensity zero"):
            call(reward, action, np.zeros(200), to(2, 200), table)
    with pytest.raises(PolicyRefused, match=r"groups of shape \(3,\)"):
        evaluate(reward, action, pscore, to(0, 200), table, groups=[1, 2, 3])
    with pytest.raises(OverlapRefused, match="not enough overlap"):
        lift(reward, action, pscore, to(0, 200), table, baseline_dist=to(2, 200))


@pytest.mark.parametrize("estimator", [snips, lambda *a: sndr(*a, np.full((9, 3), 0.5))])
def test_a_policy_that_did_nothing_that_was_logged_has_no_self_normalised_value(estimator):
    with pytest.raises(OverlapRefused):
        estimator(np.ones(9), np.zeros(9, int), np.full(9, 0.5), to(2, 9))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.full((2_000, 2), 0.5), r"estimated_rewards of shape \(2000, 2\)"),
        (np.full((2_000, 3), np.nan), "6000 missing or infinite values in estimated_rewards"),
        (np.full((2_000, 3), 1.5), "estimated_rewards between 1.5"),
    ],
)
def test_a_bad_model_is_refused(table, message):
    reward, action, pscore, _ = world()
    for estimator in (*MODELLED, evaluate, lift):
        with pytest.raises(PolicyRefused, match=message):
            estimator(reward, action, pscore, to(2), table)


def test_results_are_frozen_and_plain():
    reward, action, pscore, table = world()
    found = lift(reward, action, pscore, to(2), table)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.estimate = 1.0
    assert json.loads(json.dumps(found.as_dict()))["candidate"]["method"] == "targeted"
    assert set(found.candidate.as_dict()) == {"method", "estimate", "low", "high", "se", "n", "ess", "raw"}
