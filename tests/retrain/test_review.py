"""What a review concludes, on evidence made up for the purpose."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from smartrouter.evaluation.metrics import log_loss_difference, score
from smartrouter.retrain import reroute, review
from smartrouter.retrain.choices import open_routes
from smartrouter.retrain.review import Pair, by_chance, decide, held_out, latency_frame, seen_until
from smartrouter.retrain.verdict import Comparison
from smartrouter.rules.policy import parse_policy

RNG = np.random.default_rng(7)
N = 4_000
TRUTH = RNG.beta(6, 3, N)
Y = (RNG.random(N) < TRUTH).astype(float)
BOLD = TRUTH**1.6 / (TRUTH**1.6 + (1 - TRUTH) ** 1.6)
HOUR = 3_600_000


def manifest(**more):
    about = {"version": "2", "trained_from": "1970-01-01T00:00:00+00:00", "trained_until": "1970-01-02T00:00:00+00:00"}
    return about | {"parameters": {}, "rows": {"trained": 1_000, "calibrated": 200}} | more


def released(**more):
    return SimpleNamespace(manifest=manifest(**more))


def comparison(p, other, slices=None):
    return Comparison("1", "", False, score(Y, other), score(Y, p), log_loss_difference(Y, p, other), slices)


def test_the_calibration_rows_count_as_seen_unless_the_model_was_trained_with_them():
    at = np.arange(N, dtype=np.int64) * HOUR // 10
    assert seen_until(manifest(), at) == at[1_199]
    assert seen_until(manifest(parameters={"refit": True}), at) == 24 * HOUR + 999
    assert seen_until(manifest(), at[:500]) == at[499]  # a shorter extract: all of it was seen


def test_judged_is_what_neither_has_seen_and_too_little_is_refused():
    at = np.arange(N, dtype=np.int64) * HOUR // 10
    held, note = held_out(Pair(released(), released(rows={"trained": 2_000, "calibrated": 100}), False), at)
    assert held.sum() == N - 2_100 and note == ""
    held, note = held_out(Pair(released(), released(rows={"trained": 3_900, "calibrated": 0}), False), at)
    assert held.sum() == N - 1_200 and "only 100 attempts" in note
    with pytest.raises(review.NothingHeldOut, match="300 attempts later"):
        held_out(Pair(released(), None, False), at[:1_500])


@pytest.mark.parametrize(
    ("p", "other", "worries", "expected"),
    [
        (TRUTH, BOLD, [], "promote"),
        (BOLD, TRUTH, [], "keep"),
        (TRUTH, TRUTH, [], "keep"),
        (TRUTH, BOLD, ["requests have shifted: bank"], "look closer"),
    ],
)
def test_better_is_promoted_anything_less_is_kept_and_worries_come_first(p, other, worries, expected):
    decision, reasons = decide(Pair(None, None, False), comparison(p, other), worries)
    assert decision == expected and any("log loss against version 1" in words for words in reasons)


def test_better_on_the_whole_and_worse_in_a_slice_needs_a_person():
    row = {"slice": "processor", "value": "MIT", "n": 300, "difference": 0.02, "worse": True, "better": False}
    decision, reasons = decide(Pair(None, None, False), comparison(TRUTH, BOLD, pd.DataFrame([row])), [])
    assert decision == "look closer" and "worse than version 1 at processor MIT" in reasons[0]


def test_many_worse_slices_are_three_and_a_count_the_worst_first():
    row = {"slice": "bank", "n": 300, "worse": True, "better": False}
    rows = [row | {"value": f"b{i}", "difference": 0.01 + i / 1_000} for i in range(18)]
    _, reasons = decide(Pair(None, None, False), comparison(TRUTH, BOLD, pd.DataFrame(rows)), [])
    assert reasons[0].startswith("worse than version 1 at bank b17 (+0.0270 on 300 rows), bank b16")
    assert reasons[0].endswith("and 15 more (slices table)") and reasons[0].count("rows)") == 3


def test_a_live_version_is_kept_and_said_to_be_live_also_where_it_is_better():
    for found in (comparison(TRUTH, BOLD), comparison(TRUTH, TRUTH), Comparison(None, "it is the first version")):
        decision, reasons = decide(Pair(None, None, True), found, [])
        assert decision == "keep" and reasons[0] == "it is live already"


def test_without_another_version_a_sound_one_is_promoted():
    alone = Comparison(None, "it is the first version")
    assert decide(Pair(None, None, False), alone, []) == ("promote", ["it is the first version", "it is sound"])
    assert decide(Pair(None, None, True), alone, ["AUC 0.5"]) == ("look closer", ["AUC 0.5"])


def test_a_calibrated_model_is_within_chance_and_a_bold_one_is_not():
    from smartrouter.evaluation.metrics import expected_calibration_error, reliability

    rng = np.random.default_rng(7)
    assert expected_calibration_error(reliability(Y, BOLD)) > by_chance(BOLD, rng)
    assert expected_calibration_error(reliability(Y, TRUTH)) < 1.3 * by_chance(TRUTH, rng)


def test_latency_is_what_the_clock_says():
    runtime = SimpleNamespace(probabilities=lambda X: np.zeros(len(X)))
    model = SimpleNamespace(name="version 2", release=SimpleNamespace(runtime=runtime))
    evidence = SimpleNamespace(models=(model,), X=np.zeros((9, 3), np.float32))
    ticks = iter(np.cumsum([0, 0.002] * 100))
    found = latency_frame(evidence, 100, lambda: next(ticks))
    assert found["ms"].tolist() == pytest.approx([2.0, 2.0])


# --- reroute --------------------------------------------------------------------------------------------------------

POLICY = parse_policy(
    """
merchant_id: acme
time_zone: UTC
currency: MXN
processors:
  - {code: A, id: 1, brands: [VISA, AMEX], currencies: [MXN, USD]}
  - {code: B, id: 2, brands: [VISA], currencies: [MXN]}
  - {code: C, id: 3, brands: [AMEX], currencies: [MXN]}
hard_rules:
  - {when: {brand: AMEX}, processor: C, reason: only there}
default_order: [A, B, C]
"""
)


def test_nobody_competes_where_a_hard_rule_decides_or_a_fact_is_missing():
    frame = pd.DataFrame({"brand": ["VISA", "VISA", "AMEX", None], "currency": ["MXN", "USD", "MXN", "MXN"]})
    assert open_routes(frame, POLICY, ["A", "B"]).tolist() == [[1, 1], [1, 0], [0, 0], [0, 0]]
    assert open_routes(frame[:0], POLICY, ["A", "B"]).shape == (0, 2)


def test_the_logged_list_narrows_what_the_policy_allows_and_never_widens_it():
    facts = {"brand": ["VISA"] * 4, "currency": ["MXN", "MXN", "MXN", "USD"]}
    frame = pd.DataFrame(facts | {"eligible": ["B", "", None, "A|B"]})
    assert open_routes(frame, POLICY, ["A", "B"]).tolist() == [[0, 1], [1, 1], [1, 1], [1, 0]]


def logged(n=N, explored=0.5, **more):
    """A log of two processors, of which the second approves more."""
    rng = np.random.default_rng(3)
    action = (rng.random(n) < explored).astype(np.int64)
    pscore = np.where(action == 1, explored, 1 - explored)
    chance = np.column_stack([np.full(n, 0.5), np.full(n, 0.7)])
    reward = (rng.random(n) < chance[np.arange(n), action]).astype(float)
    frame = pd.DataFrame({"order_id": np.arange(n).astype(str), "brand": "VISA", "currency": "MXN"})
    frame["propensity"] = pscore
    may = np.ones((n, 2), bool)
    sent = {"version 2": np.ones(n, int), "version 1": np.zeros(n, int)}
    said = {"version 2": chance, "version 1": np.full((n, 2), 0.6)}
    made = {"actions": ("A", "B"), "frame": frame, "may": may, "action": action, "reward": reward, "pscore": pscore}
    return reroute.Choices(**(made | {"said": said, "sent": sent, "note": ""} | more))


def test_the_better_policy_is_worth_more_and_the_pair_is_compared():
    values = reroute.value_frame(logged()).set_index("policy")
    assert values.loc["version 2", "low"] < 0.7 < values.loc["version 2", "high"]
    assert values.loc["drawn evenly", "low"] < 0.6 < values.loc["drawn evenly", "high"]
    lifts = reroute.lift_frame(logged()).set_index(["policy", "against"])
    assert lifts.loc[("version 2", "version 1"), "low"] > 0.1 and lifts.loc[("version 1", "logged rules"), "high"] < 0
    assert (reroute.overlap_frame(logged())["mean_weight"] - 1).abs().max() < 0.1


def test_a_log_without_exploration_shows_nothing_and_says_why():
    none = logged(explored=0.0)
    values = reroute.value_frame(none).set_index("policy")
    assert np.isnan(values.loc["version 2", "estimate"])
    assert values.loc["version 2", "note"].startswith("not shown: no exploration")
    lifts = reroute.lift_frame(none).set_index(["policy", "against"])
    assert lifts.loc[("version 2", "version 1"), "note"].startswith("not shown")
    assert not (lifts["high"] < 0).any()


def test_propensities_that_were_not_logged_are_estimated_and_said():
    made = logged()
    found, note = reroute.propensities(made.frame, made.action, made.may, 7)
    assert (found == made.pscore).all() and note == "logged propensities"
    lacking = made.frame.assign(propensity=made.frame["propensity"].where(made.frame.index % 4 > 0))
    found, note = reroute.propensities(lacking, made.action, made.may, 7)
    assert np.abs(found - 0.5).max() < 0.05 and "25% not logged" in note


def test_shares_of_traffic_sum_to_one():
    shares = reroute.traffic_frame(logged(), "brand").groupby(["policy", "brand"])["share"].sum()
    assert shares.tolist() == pytest.approx([1.0] * 3)


def test_without_a_payment_with_a_choice_every_table_is_empty_and_says_so():
    none = logged(0, said={"version 2": np.zeros((0, 2))}, sent={"version 2": np.zeros(0, int)}, note="no payment")
    assert reroute.value_frame(none)["note"].str.startswith("not shown: an empty log").all()
    assert reroute.lift_frame(none)["estimate"].isna().all() and reroute.overlap_frame(none).empty
    assert reroute.traffic_frame(none).empty
