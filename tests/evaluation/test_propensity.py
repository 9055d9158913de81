"""Propensities: estimated ones are those of the world, wrong ones are seen."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.evaluation.overlap import PolicyRefused
from smartrouter.evaluation.propensity import check_propensity, estimate_propensity

ALL = np.ones((6, 2), bool)


def drawn(table, rng):
    return (table.cumsum(axis=1) > rng.random(len(table))[:, None]).argmax(axis=1)


def rules(n=8_000, seed=5):
    """Three cells, three processors, the last of which is not eligible in the first cell."""
    rng = np.random.default_rng(seed)
    cell = rng.integers(0, 3, n)
    true = np.array([[0.9, 0.1, 0.0], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4]])[cell]
    return cell, true, drawn(true, rng)


def test_estimated_propensities_are_those_of_the_world():
    cell, true, action = rules()
    found = estimate_propensity(action, cell, true > 0, rng=np.random.default_rng(1))
    assert np.abs(found - true).max() < 0.035
    assert (found[true == 0] == 0).all()
    assert check_propensity(action, found).right


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 30))
def test_rows_sum_to_one_and_every_choice_had_a_chance(seed, actions, cells):
    rng = np.random.default_rng(seed)
    eligible = rng.random((60, actions)) < 0.6
    action = rng.integers(0, actions, 60)
    eligible[np.arange(60), action] = True
    found = estimate_propensity(action, rng.integers(0, cells, 60), eligible, rng=rng)
    assert found.sum(axis=1) == pytest.approx(1)
    assert (found[~eligible] == 0).all() and (found[np.arange(60), action] > 0).all()


def test_labels_may_be_text_and_groups_are_kept_together():
    cell, true, action = rules(900)
    text = np.array(["VISA MXN", "VISA USD", "MASTERCARD MXN"])[cell]
    assert estimate_propensity(action, text, true > 0, rng=np.random.default_rng(1)).shape == (900, 3)
    groups = np.zeros(900, int)
    with pytest.raises(PolicyRefused, match="5 folds for 1 independent rows"):
        estimate_propensity(action, cell, true > 0, rng=np.random.default_rng(1), groups=groups)


def test_right_propensities_pass_and_wrong_ones_do_not():
    false_alarms = 0
    for seed in range(60):
        _, true, action = rules(1_000, seed)
        false_alarms += not check_propensity(action, true, level=0.05).right
        wrong = 0.9 * true + 0.1 * np.array([0.0, 1.0, 0.0])
        assert not check_propensity(action, wrong, level=0.05).right
    assert false_alarms <= 8  # 3 are expected; 9 or more have a chance of 0.002
    assert json.loads(json.dumps(check_propensity(action, true).as_dict()))["n"] == 1_000


def test_a_deterministic_policy_is_right_about_itself():
    table = np.eye(2)[[0, 1, 1, 0]]
    found = check_propensity([0, 1, 1, 0], table)
    assert found.right and found.ece == 0 and found.lowest == 1 and found.z == (0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": [1, 2]}, "2 cells"),
        ({"eligible": ALL[:3]}, r"eligibility of shape \(3, 2\)"),
        ({"eligible": ~ALL}, "6 payments at a processor that was not eligible"),
        ({"action": [0, 1, 2, 0, 1, 0]}, "actions from 0 to 2"),
        ({"strength": 0.0}, "strength 0.0"),
        ({"strength": float("nan")}, "strength nan"),
        ({"folds": 7}, "7 folds for 6 independent rows"),
    ],
)
def test_bad_input_to_estimating_is_refused(change, message):
    good = {"action": [0, 1, 1, 0, 1, 0], "cells": [0] * 6, "eligible": ALL}
    with pytest.raises(PolicyRefused, match=message):
        estimate_propensity(**good | change, rng=np.random.default_rng(1))


@pytest.mark.parametrize(
    ("action", "table", "message"),
    [
        ([0, 1], [[1.0, 0.0], [1.0, 0.0]], "1 choices whose logged propensity is zero"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "actions from 0 to 1"),
        ([0, 1], [[0.5, 0.4], [0.5, 0.5]], "do not sum to 1"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], "logging_dist of shape"),
    ],
)
def test_bad_input_to_the_check_is_refused(action, table, message):
    with pytest.raises(PolicyRefused, match=message):
        check_propensity(action, table)
