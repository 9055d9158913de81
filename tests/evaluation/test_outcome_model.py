"""The table of approval probabilities is cross-fitted, knows interactions, and has answers where data are few."""

import numpy as np
import pytest

from smartrouter.evaluation.metrics import log_losses
from smartrouter.evaluation.outcome_model import folds_of, outcome_table
from smartrouter.evaluation.overlap import PolicyRefused


def payments(n=3_000, seed=3):
    rng = np.random.default_rng(seed)
    X = rng.normal(0, 1, (n, 2))
    action = rng.integers(0, 3, n)
    truth = 1 / (1 + np.exp(-0.6 - np.outer(X[:, 0], [-0.8, 0.0, 0.8])))
    reward = (rng.random(n) < truth[np.arange(n), action]).astype(float)
    return X, action, reward, truth


def test_interactions_are_learnt_and_one_hot_cannot():
    X, action, reward, truth = payments()
    table = outcome_table(X, action, reward, 3, rng=np.random.default_rng(1))
    plain = outcome_table(X, action, reward, 3, rng=np.random.default_rng(1), interactions=False)
    assert table.shape == (3_000, 3) and ((table > 0) & (table < 1)).all()
    assert np.abs(table - truth).mean() < 0.035 < 0.08 < np.abs(plain - truth).mean()


def test_scale_and_constant_columns_do_not_matter():
    X, action, reward, _ = payments(900)
    one = outcome_table(X, action, reward, 3, rng=np.random.default_rng(1))
    scaled = np.column_stack([1000 * X[:, 0] + 5, X[:, 1], np.full(900, 7.0)])
    assert np.allclose(outcome_table(scaled, action, reward, 3, rng=np.random.default_rng(1)), one, atol=1e-4)


def test_own_answers_are_not_seen():
    rng = np.random.default_rng(2)
    noise, coin = rng.normal(0, 1, (300, 30)), rng.integers(0, 2, 300).astype(float)
    table = outcome_table(noise, np.zeros(300, int), coin, 1, rng=rng)
    assert log_losses(coin, table[:, 0]).mean() > np.log(2)


def test_groups_go_to_one_fold_and_folds_are_even():
    groups = np.repeat(np.arange(40), 3)
    fold = folds_of(120, 4, np.random.default_rng(1), groups)
    assert (fold.reshape(40, 3) == fold[::3, None]).all()
    assert np.bincount(fold).tolist() == [30, 30, 30, 30]


def test_a_processor_that_was_never_logged_gets_what_is_common():
    X, action, reward, _ = payments(900)
    table = outcome_table(X, np.minimum(action, 1), reward, 3, rng=np.random.default_rng(1))
    assert np.isfinite(table).all() and abs(table[:, 2].mean() - reward.mean()) < 0.05


@pytest.mark.parametrize(("answer", "rate"), [(1.0, 41 / 42), (0.0, 1 / 42)])
def test_one_class_only_gives_the_smoothed_rate(answer, rate):
    table = outcome_table(np.zeros((60, 1)), np.zeros(60, int), np.full(60, answer), 2, rng=np.random.default_rng(1))
    assert table == pytest.approx(rate)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": [[float("nan")], [1.0]]}, "finite numbers"),
        ({"X": [1.0, 2.0]}, "one row a payment"),
        ({"action": [0]}, "1 actions"),
        ({"action": [0, 5]}, "actions 0 to 1"),
        ({"reward": [0.5, 1]}, "rewards 0 or 1"),
        ({"folds": 3}, "3 folds for 2 independent rows"),
        ({"folds": 1}, "2 folds or more"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {"X": [[1.0], [2.0]], "action": [0, 1], "reward": [0, 1], "actions": 2, "folds": 2}
    with pytest.raises(PolicyRefused, match=message):
        outcome_table(**good | change, rng=np.random.default_rng(1))
