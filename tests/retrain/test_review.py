"""What a review concludes, on evidence made up for the purpose."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from smartrouter.evaluation.bless import Bounds, Scored, calibration_checks
from smartrouter.evaluation.metrics import log_loss_difference, score
from smartrouter.retrain import reroute, review
from smartrouter.retrain.choices import open_routes
from smartrouter.retrain.review import Pair, calibration_frame, decide, gate_words, held_out, latency_frame, seen_until
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
    decision, reasons = decide(Pair(released(), None, False), comparison(p, other), worries)
    assert decision == expected and any("log loss against version 1" in words for words in reasons)


def test_better_on_the_whole_and_worse_in_a_slice_needs_a_person():
    row = {"slice": "processor", "value": "MIT", "n": 300, "difference": 0.02, "worse": True, "better": False}
    decision, reasons = decide(Pair(released(), None, False), comparison(TRUTH, BOLD, pd.DataFrame([row])), [])
    assert decision == "look closer" and "worse than version 1 at processor MIT" in reasons[0]


def test_many_worse_slices_are_three_and_a_count_the_worst_first():
    row = {"slice": "bank", "n": 300, "worse": True, "better": False}
    rows = [row | {"value": f"b{i}", "difference": 0.01 + i / 1_000} for i in range(18)]
    _, reasons = decide(Pair(released(), None, False), comparison(TRUTH, BOLD, pd.DataFrame(rows)), [])
    assert reasons[0].startswith("worse than version 1 at bank b17 (+0.0270 on 300 rows), bank b16")
    assert reasons[0].endswith("and 15 more (slices table)") and reasons[0].count("rows)") == 3


def test_a_live_version_is_kept_and_said_to_be_live_also_where_it_is_better():
    for found in (comparison(TRUTH, BOLD), comparison(TRUTH, TRUTH), Comparison(None, "it is the first version")):
        decision, reasons = decide(Pair(released(), None, True), found, [])
        assert decision == "keep" and reasons[0] == "it is live already"


def test_without_another_version_a_sound_one_is_promoted():
    alone = Comparison(None, "it is the first version")
    assert decide(Pair(released(), None, False), alone, [])[1][1:] == ["it is the first version", "it is sound"]
    assert decide(Pair(released(), None, True), alone, ["AUC 0.5"]) == ("look closer", ["AUC 0.5"])


@pytest.mark.parametrize(("blessed", "words"), [("yes", "blessed it"), ("no", "--force"), ("unknown", "--force")])
def test_what_the_gate_said_is_a_reason_and_what_it_refused_is_never_recommended(blessed, words):
    pair = Pair(released(facts={"blessed": blessed, "reasons": "AUC 0.5" if blessed == "no" else ""}), None, False)
    decision, reasons = decide(pair, comparison(TRUTH, BOLD), [])
    assert decision == ("look closer" if blessed == "no" else "promote") and words in reasons[0]
    assert ("AUC 0.5" in gate_words(pair)) == (blessed == "no")
    assert decide(pair, comparison(BOLD, TRUTH), [])[0] == "keep"
    assert decide(replace(pair, live=True), comparison(TRUTH, BOLD), [])[0] == "keep"
    doubtful = decide(replace(pair, live=True), comparison(TRUTH, TRUTH), [])
    assert doubtful[0] == ("look closer" if blessed == "no" else "keep")
    alone = decide(pair, Comparison(None, "it is the first version"), [])
    assert alone[0] == decision and gate_words(pair) in alone[1]


def test_a_live_version_that_is_worse_beyond_doubt_is_not_recommended():
    decision, reasons = decide(Pair(released(), None, True), comparison(BOLD, TRUTH), [])
    assert decision == "look closer" and reasons[0] == "it is live already"
    assert "worse beyond doubt" in decide(Pair(released(), None, False), comparison(BOLD, TRUTH), [])[1]


def test_calibration_is_judged_as_the_gate_judges_it():
    models = tuple(SimpleNamespace(name=name) for name in ("version 2", "version 1"))
    frame = pd.DataFrame({"processor": np.where(np.arange(N) % 40, "A", "B")})
    evidence = SimpleNamespace(models=models, y=Y, frame=frame, said={"version 2": TRUTH, "version 1": TRUTH**3})
    found = calibration_frame(SimpleNamespace(job=SimpleNamespace(plan=Bounds())), evidence)
    assert found.groupby("model")["passed"].all().to_dict() == {"version 2": True, "version 1": False}
    assert found["group"].tolist() == ["all", "A"] * 2  # B has too few
    gate = calibration_checks(Scored(Y, TRUTH, frame["processor"], 0.5), Bounds())
    assert found["sentence"].tolist()[:2] == [c.sentence for c in gate]


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


def test_shares_of_traffic_sum_to_one():
    shares = reroute.traffic_frame(logged(), "brand").groupby(["policy", "brand"])["share"].sum()
    assert shares.tolist() == pytest.approx([1.0] * 3)


def test_without_a_payment_with_a_choice_every_table_is_empty_and_says_so():
    none = logged(0, said={"version 2": np.zeros((0, 2))}, sent={"version 2": np.zeros(0, int)}, note="no payment")
    assert reroute.value_frame(none)["note"].str.startswith("not shown: an empty log").all()
    assert reroute.lift_frame(none)["estimate"].isna().all() and reroute.overlap_frame(none).empty
    assert reroute.traffic_frame(none).empty


def choices_of(n=600, missing=0, explored=0.3, seed=5):
    """Frame, action, may and pair of a log of two processors, of which some propensities are missing."""
    rng = np.random.default_rng(seed)
    action = (rng.random(n) < explored).astype(np.int64)
    frame = pd.DataFrame({"brand": "VISA", "currency": "MXN", "propensity": np.where(action, explored, 1 - explored)})
    frame.loc[: missing - 1, "propensity"] = np.nan
    return frame, action, np.ones((n, 2), bool), np.ones(n, bool)


def test_a_missing_propensity_is_estimated_and_the_logged_ones_stay():
    frame, action, may, pair = choices_of(missing=6)
    table, note = reroute.propensities(frame, action, may, pair, 7)
    made = table[np.arange(600), action]
    assert (made[6:] == frame["propensity"][6:]).all() and np.isfinite(made).all()
    assert note == "logged propensities, those of 6 of 600 payments estimated"
    assert reroute.propensities(*choices_of(missing=600), 7)[1] == "propensities of all 600 payments estimated"
    assert reroute.propensities(*choices_of(), 7)[1] == "logged propensities"


def test_the_chance_of_the_other_is_known_where_two_compete_learnt_or_not():
    frame, action, may, pair = choices_of()
    assert reroute.propensities(frame, action, may, pair, 7)[0].sum(axis=1) == pytest.approx(1)
    table, _ = reroute.propensities(frame, action, may, ~pair, 7)  # a third, not learnt, competes too
    assert np.isnan(table[np.arange(600), 1 - action]).all()
    assert reroute.propensity_check(table, action) == (None, "")


def test_right_propensities_are_shown_and_wrong_or_impossible_ones_show_no_value():
    frame, action, may, pair = choices_of()
    found, refused = reroute.propensity_check(reroute.propensities(frame, action, may, pair, 7)[0], action)
    assert found.right and refused == ""
    stale = np.tile([0.95, 0.05], (600, 1))
    found, refused = reroute.propensity_check(stale, action)
    assert not found.right and refused.startswith("the propensities are not right: ")
    none = np.where(np.arange(600)[:, None] < 3, 1 - np.eye(2)[action], 0.5)
    assert reroute.propensity_check(none, action) == (None, "3 choices whose logged propensity is zero")
    made = logged(check=found, refused=refused)
    for frame in (reroute.value_frame(made), reroute.lift_frame(made)):
        assert frame["estimate"].isna().all() and (frame["note"] == f"not shown: {refused}").all()
    assert reroute.overlap_frame(made).empty and "ess" in reroute.overlap_frame(made)
    assert reroute.propensity_frame(made)["processor"].tolist() == ["A", "B"]
    assert reroute.propensity_frame(logged()).empty


def test_without_a_truth_the_contest_says_where_none_was_found(tmp_path):
    settings = SimpleNamespace(warehouse=f"duckdb:///{tmp_path}/warehouse.duckdb")
    asked, made = SimpleNamespace(job=SimpleNamespace(settings=settings)), SimpleNamespace(action=[1])
    board, skipped = reroute.truth_frame(asked, made)
    assert board.empty and skipped == "skipped: no truth in the folder truth beside the warehouse"
