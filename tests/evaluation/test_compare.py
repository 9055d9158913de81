"""Candidates on the same later rows: intervals, refusals, and a rule that prefers what is simple within noise."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrouter.evaluation.compare import (
    Choices,
    CompareRefused,
    Fold,
    choose,
    compare,
    forward_folds,
    greedy,
    pooled_groups,
)
from smartrouter.evaluation.metrics import MetricRefused, log_loss_difference


def expit(z):
    return 1 / (1 + np.exp(-z))


def fold(seed=7, n=8_000, explored=0.3, pscore=True):
    """Payments at three processors: `pays` knows payments, `routes` knows processors, `same` is `pays` and noise."""
    rng = np.random.default_rng(seed)
    good, edge = rng.normal(0.5, 1.4, n), rng.normal(0, 0.6, (n, 3))
    chance = expit(good[:, None] + edge)
    rule = rng.integers(0, 3, n)
    action = np.where(rng.random(n) < explored, rng.integers(0, 3, n), rule)
    came = (rng.random(n) < chance[np.arange(n), action]).astype(float)
    p = {
        "pays": expit(good[:, None] + 0.2 * rng.normal(0, 1, (n, 3))),
        "routes": expit(0.3 + 0.1 * good[:, None] + 0.5 * edge),
    }
    p["same"] = np.clip(p["pays"] + rng.normal(0, 1e-3, (n, 3)), 0.001, 0.999)
    chosen = np.where(action == rule, 1 - explored + explored / 3, explored / 3)
    log = Choices(came, action, chosen, np.ones((n, 3), bool), p)
    said = {name: table[np.arange(n), action] for name, table in p.items()}
    return Fold(came, said, choices=log if pscore else None), chance


def test_log_loss_is_paired_and_value_finds_what_log_loss_does_not_see():
    one, chance = fold()
    table = compare([one], "pays").set_index("candidate")
    against = log_loss_difference(one.y, one.p["routes"], one.p["pays"])
    assert table.loc["routes", "difference"] == pytest.approx(against.estimate)
    assert table.loc["routes", "difference_low"] == pytest.approx(against.low)
    assert table.loc["routes", "difference_low"] > 0 and table.loc["routes", "lift_low"] > 0
    assert (table.loc["pays", ["difference", "difference_low", "lift", "lift_high"]] == 0).all()
    for name, line in table.iterrows():
        truth = (chance * greedy(one.choices.p[name], one.choices.eligible)).sum(axis=1).mean()
        assert line["value_low"] <= truth <= line["value_high"]


def test_folds_are_pooled_by_their_rows():
    one, two = fold(7, 3_000)[0], fold(8, 2_000)[0]
    table = compare([one, two], "pays").set_index("candidate")
    assert (table["n"] == 5_000).all() and (table["payments"] == 5_000).all()
    alone = [compare([f], "pays").set_index("candidate")["log_loss"] for f in (one, two)]
    assert table["log_loss"].to_dict() == pytest.approx((0.6 * alone[0] + 0.4 * alone[1]).to_dict())


def test_groups_widen_intervals_and_never_meet_across_folds():
    one = fold(n=2_000)[0]
    twice = Fold(np.tile(one.y, 2), {k: np.tile(v, 2) for k, v in one.p.items()})
    orders = Fold(twice.y, twice.p, np.tile(np.arange(2_000), 2))
    narrow, wide = (compare([f], "pays").set_index("candidate").loc["routes"] for f in (twice, orders))
    spans = [line["difference_high"] - line["difference_low"] for line in (narrow, wide)]
    assert spans[1] == pytest.approx(spans[0] * np.sqrt(2), rel=0.01)
    assert pooled_groups([["a", "a"], None, ["a"]], [2, 2, 1]).tolist() == [0, 0, 1, 2, 3]


def test_a_log_that_says_nothing_shows_no_value():
    silent, _ = fold(pscore=False)
    assert compare([silent], "pays")["note"].str.contains("no propensities").all()
    fixed, _ = fold(n=400, explored=0.01)
    table = compare([fixed], "pays")
    assert table["value"].isna().all() and table["note"].str.startswith("value not shown").all()
    found = choose([fixed], "value", order=("pays", "same", "routes"))
    assert found.by == "log_loss" and "value not shown" in found.reason


def test_the_rule_takes_the_best_or_the_simpler_one_within_noise():
    one, _ = fold()
    order = ("same", "pays", "routes")
    best = choose([one], order=order)
    other = next(name for name in ("same", "pays") if name != best.candidate)
    assert best.candidate == best.best != "routes" and best.reason.endswith("by log loss")
    simple = choose([one], within=5.0, order=(other, best.best, "routes"))
    assert simple.candidate == other and "simpler" in simple.reason and simple.best == best.best
    assert choose([one], within=5.0, order=("routes", best.best, other)).candidate == best.best  # beyond noise
    assert choose([one], within=5.0).candidate == best.best  # without an order the best one stays
    assert choose([one], "value", order=order).candidate == "routes"


@given(st.floats(0, 10), st.permutations(("pays", "same", "routes")))
def test_the_taken_one_is_never_further_off_than_the_rule_allows(within, order):
    found = choose([SMALL], within=within, order=order)
    line = found.table.set_index("candidate").loc[found.candidate]
    arm = (line["difference_high"] - line["difference_low"]) / 2
    assert found.candidate == found.best or line["difference"] <= within * arm / 1.96 + 1e-9


SMALL = fold(n=300, pscore=False)[0]


@given(st.lists(st.integers(0, 50), min_size=30, max_size=80), st.integers(1, 4))
def test_folds_go_forward_and_split_no_moment(moments, folds):
    at = np.sort(np.array(moments))
    try:
        found = forward_folds(at, folds)
    except CompareRefused:
        return
    assert len(found) == folds and found[-1][1] == len(at)
    assert all(at[start - 1] < at[start] for start, _ in found)
    assert all(one[1] == two[0] for one, two in pairwise(found))


@pytest.mark.parametrize("bad", [{"folds": 0}, {"first": 1.0}, {"first": 0.0}, {"folds": 200}])
def test_folds_that_cannot_be_are_refused(bad):
    with pytest.raises(CompareRefused):
        forward_folds(np.arange(100), **bad)
    with pytest.raises(CompareRefused, match="order"):
        forward_folds(np.array([2, 1, 3]))
    with pytest.raises(CompareRefused):
        forward_folds(np.array([], dtype=int))


def test_bad_input_is_refused():
    one, _ = fold(n=500)
    with pytest.raises(CompareRefused, match="reference"):
        compare([one], "oracle")
    with pytest.raises(CompareRefused, match="the same in every fold"):
        compare([one, Fold(one.y, {"pays": one.p["pays"]})], "pays")
    with pytest.raises(CompareRefused):
        compare([], "pays")
    with pytest.raises(MetricRefused):
        compare([Fold(one.y, {"pays": one.p["pays"] * 2})], "pays")
    with pytest.raises(CompareRefused, match="groups"):
        compare([Fold(one.y, one.p, [1, 2])], "pays")
    nobody = replace(one.choices, eligible=np.zeros((500, 3), bool))
    with pytest.raises(CompareRefused, match="eligible"):
        compare([Fold(one.y, one.p, choices=nobody)], "pays")
    for rule in ({"by": "auc"}, {"within": -1}, {"within": np.inf}):
        with pytest.raises(CompareRefused, match="log_loss or value"):
            choose([one], **rule)
