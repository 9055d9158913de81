"""A log is checked, measured and refused in words that say what is wrong."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.core.errors import SmartrouterError
from smartrouter.evaluation.overlap import (
    OverlapRefused,
    PolicyRefused,
    checked_log,
    effective_sample,
    overlap_of,
    require_overlap,
)

GOOD = {
    "reward": [1, 0, 1, 1],
    "action": [0, 1, 0, 1],
    "pscore": [0.5, 0.5, 0.5, 0.5],
    "action_dist": [[0.5, 0.5]] * 4,
}
NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("reward", [1, 0, NAN, 1], "1 missing or infinite values in reward"),
        ("reward", [1, 0, 2, 1], "reward between 0 and 2"),
        ("reward", [], "an empty log"),
        ("pscore", [0.5, 0.0, 0.5, 0.5], "1 payments with propensity zero, the first at row 1"),
        ("pscore", [0.5, 1.2, 0.5, 0.5], "pscore between 0.5 and 1.2"),
        ("pscore", [0.5, -0.1, 0.5, 0.5], "pscore between -0.1"),
        ("pscore", [0.5, float("inf"), 0.5, 0.5], "missing or infinite values in pscore"),
        ("pscore", [0.5, 0.5], r"pscore of shape \(2,\)"),
        ("action", [0, 1, 2, 1], "actions from 0 to 2"),
        ("action", [0, -1, 0, 1], "actions from -1 to 1"),
        ("action", [0.0, 1.0, 0.0, 1.0], "action of shape .* and type float64"),
        ("action", [0, 1], r"action of shape \(2,\)"),
        ("action_dist", [[0.5, 0.48]] * 4, "4 rows of action_dist that do not sum to 1, such as row 0: 0.98"),
        ("action_dist", [[1.5, -0.5]] * 4, "action_dist between -0.5 and 1.5"),
        ("action_dist", [[0.5, NAN]] * 4, "4 missing or infinite values in action_dist"),
        ("action_dist", [0.5, 0.5, 0.5, 0.5], "action_dist of shape"),
        ("action_dist", [[0.5, 0.5]] * 3, "action_dist of shape"),
    ],
)
def test_each_fault_has_its_own_sentence(name, wrong, message):
    with pytest.raises(PolicyRefused, match=message) as found:
        checked_log(**GOOD | {name: wrong})
    assert isinstance(found.value, SmartrouterError) and found.value.remedy


def test_weights_are_the_ratio_of_the_policies():
    log = checked_log([1, 0], [0, 1], [0.8, 0.2], [[0.4, 0.6], [0.4, 0.6]])
    assert log.weight == pytest.approx([0.5, 3.0])


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=50), st.floats(0.01, 100))
def test_effective_sample_lies_between_one_and_n_and_knows_no_scale(weights, scale):
    w = np.array(weights)
    size = effective_sample(w)
    assert 1 - 1e-9 <= size <= len(w) + 1e-9
    assert effective_sample(scale * w) == pytest.approx(size)


def test_effective_sample_by_hand():
    assert effective_sample(np.array([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    assert effective_sample(np.ones(7)) == pytest.approx(7)
    assert effective_sample(np.zeros(3)) == 0


def log_of(n, explore, towards, seed=1):
    rng = np.random.default_rng(seed)
    action = np.where(rng.random(n) < explore, rng.integers(0, 2, n), 0)
    pscore = np.where(action == 0, 1 - explore / 2, explore / 2)
    return checked_log(rng.integers(0, 2, n), action, pscore, np.tile(towards, (n, 1)))


def test_diagnostics_of_a_fair_log():
    found = require_overlap(overlap_of(log_of(5_000, 0.2, [0.0, 1.0])))
    assert found.n == 5_000 and 400 < found.ess < 600
    assert found.explored == 1 and found.unsupported == 0
    assert found.largest_weights == (10.0,) * 5
    assert abs(found.mean_weight_z) < 4 and found.mean_weight == pytest.approx(1, abs=0.2)
    assert json.loads(json.dumps(found.as_dict()))["n"] == 5_000


def test_refused_without_exploration_but_not_for_the_policy_that_logged():
    with pytest.raises(OverlapRefused, match=r"no exploration in the log.*50\.0%"):
        require_overlap(overlap_of(checked_log([1] * 90, [0] * 90, [1.0] * 90, [[0.5, 0.5]] * 90)))
    assert require_overlap(overlap_of(checked_log([1] * 90, [0] * 90, [1.0] * 90, [[1.0, 0.0]] * 90))).ess == 90


def test_refused_where_the_log_never_went():
    log = log_of(4_000, 0.5, [0.5, 0.5])
    wider = checked_log(log.reward, log.action, log.pscore, np.tile([0.4, 0.4, 0.2], (4_000, 1)))
    with pytest.raises(OverlapRefused, match=r"20\.0% of the policy's choices lie where the log never went"):
        require_overlap(overlap_of(wider))


def test_refused_with_too_few_that_count():
    with pytest.raises(OverlapRefused, match="not enough overlap: 400 logged payments count as"):
        require_overlap(overlap_of(log_of(400, 0.05, [0.0, 1.0])))
    nothing = checked_log([1] * 90, [0] * 90, [0.5] * 90, [[0.0, 1.0]] * 90)
    found = overlap_of(nothing)
    assert (found.ess, found.heaviest_share, found.unsupported) == (0.0, 0.0, 1.0)
    with pytest.raises(OverlapRefused):
        require_overlap(found)
    with pytest.raises(OverlapRefused, match=r"count as 0\.0"):
        require_overlap(found, most_unsupported=1.0)


def test_refused_with_wrong_propensities():
    log = log_of(4_000, 0.4, [0.0, 1.0])
    halved = checked_log(log.reward, log.action, log.pscore / 2, log.action_dist)
    with pytest.raises(OverlapRefused, match="standard errors from 1"):
        require_overlap(overlap_of(halved))


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_right_propensities_are_not_refused(seed):
    assert require_overlap(overlap_of(log_of(2_000, 0.2, [0.0, 1.0], seed))).ess >= 30
