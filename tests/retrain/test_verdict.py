"""The verdict: what is promoted, kept and rejected, on candidates made up for the purpose."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from smartrouter.core.settings import Settings
from smartrouter.evaluation.bless import Bounds, Comparison, Latency, Scored, bless, compared, worse_slices
from smartrouter.features.dataset import Splits
from smartrouter.retrain.plan import RESULT_TYPE, begin
from smartrouter.retrain.steps import Candidate, best
from smartrouter.retrain.verdict import (
    Published,
    Verdict,
    blessed_tags,
    blessing_lines,
    compare,
    family_lines,
    finish,
    judge,
    limits,
    not_before,
    slice_frame,
    slice_lines,
    training_facts,
)

PARAMS = str(Path(__file__).parents[2] / "params")
RNG = np.random.default_rng(7)
N = 6_000
TRUTH = RNG.beta(6, 3, N)
Y = (RNG.random(N) < TRUTH).astype(np.float32)
AT = np.arange(N) * 60_000
DATA = SimpleNamespace(
    y=Y, at_ms=AT, splits=Splits(int(AT[2000]), int(AT[3000])), digest="d" * 64, contract="1", index=np.arange(N)
)
FRAME = pd.DataFrame({"processor": np.where(np.arange(N) % 5, "WORLDPAY", "MIT")})[3000:]
FIRST = Comparison(None, "there is no champion yet")
QUICK = Latency(0.1, 0.3, 200, 4)


def job(tmp_path, **values):
    return begin(values, Settings.load({"SMARTROUTER_PARAMS": PARAMS, "SMARTROUTER_HOME": str(tmp_path)}))


def candidate(p, family="forest"):
    fitted = SimpleNamespace(facts={"rows": 2000, "seconds": 1.0, "trees": 20}, importance={}, family=family)
    return Candidate(family, fitted, None, p[2000:3000], p[3000:], 1.0)


def against(p, p_champion, **values):
    """A comparison of two made-up models; every fifth payment was at MIT."""
    return compared("4", FRAME, Y[3000:], p[3000:], p_champion[3000:], Bounds(**values))


def judged(p, comparison, y=Y, latency=QUICK, **values):
    """The verdict on a made-up candidate."""
    scored = Scored(y[3000:], p[3000:], FRAME["processor"], float(Y[:2000].mean()))
    return judge(candidate(p), comparison, bless(scored, latency, Bounds(**values), comparison, "no log"))


PROUD = TRUTH**2 / (TRUTH**2 + (1 - TRUTH) ** 2)  # log odds twice too large: worse than a constant
BOLD = TRUTH**1.4 / (TRUTH**1.4 + (1 - TRUTH) ** 1.4)  # sound, and worse than the truth


def test_a_sound_candidate_without_a_champion_is_promoted():
    verdict = judged(TRUTH, FIRST)
    assert verdict.decision == "promote" and verdict.blessing.blessed
    assert "no champion yet" in verdict.text and "lift over the logged choices not shown: no log" in verdict.text


@pytest.mark.parametrize(
    ("p", "values", "words"),
    [
        (RNG.permutation(TRUTH), {}, "(expected: at least 0.55)"),
        (PROUD, {"most_ece": 0.03}, "calibration error 0.1"),
        (np.full(N, Y[:2000].mean()), {}, "log loss against a constant"),
        (1 - TRUTH, {}, "AUC 0.3"),
        (np.where(np.arange(N) % 5, TRUTH, TRUTH - 0.2), {}, "calibration error at MIT 0.2"),
        (TRUTH, {"latency": Latency(80.0, 90.0, 200, 4)}, "latency, median 80.00 ms"),
        (TRUTH, {"lift_must_be": "better"}, "not shown: no log"),
    ],
)
def test_an_unfit_candidate_is_rejected_whatever_is_live(p, values, words):
    for comparison in (FIRST, against(p, RNG.permutation(TRUTH))):
        verdict = judged(np.clip(p, 0.01, 0.99), comparison, **values)
        assert verdict.decision == "reject" and words in verdict.text and not verdict.blessing.blessed


def test_one_class_in_the_test_rows_is_rejected():
    verdict = judged(TRUTH, FIRST, y=np.ones(N))
    assert verdict.decision == "reject" and "AUC unknown" in verdict.text


def test_better_beyond_doubt_is_promoted_and_anything_less_is_kept():
    wide = {"most_ece": 0.2, "most_ece_processor": 0.2}
    assert judged(TRUTH, against(TRUTH, PROUD)).decision == "promote"
    assert judged(BOLD, against(BOLD, TRUTH), **wide).decision == "keep"
    hardly = np.clip(TRUTH + 0.004 * RNG.normal(size=N), 0.01, 0.99)
    for one, other in [(TRUTH, hardly), (hardly, TRUTH), (TRUTH, TRUTH)]:
        kept = judged(one, against(one, other))
        assert kept.decision == "keep" and "version 4" in kept.text and not kept.copy


def test_a_copy_and_an_unfair_comparison_are_kept():
    assert judged(TRUTH, replace(against(TRUTH, TRUTH), same=True)).copy
    unfair = Comparison("4", "only 3 test rows are later than the champion's training")
    verdict = judged(TRUTH, unfair)
    assert verdict.decision == "keep" and "only 3 test rows" in verdict.text


def test_the_family_is_chosen_on_the_calibration_rows(tmp_path):
    late = np.where(np.arange(N) >= 3000, RNG.permutation(TRUTH), TRUTH)
    assert best(DATA, [candidate(PROUD, "linear"), candidate(late, "forest")]).family == "forest"


@pytest.mark.parametrize("content", ["{", '{"version": "9"}', '{"version": "../9"}'])
def test_a_champion_that_cannot_be_loaded_is_no_competition(tmp_path, content):
    folder = tmp_path / "releases" / "processor_selector.volaris"
    folder.mkdir(parents=True)
    (folder / "champion.json").write_text(content)
    found = compare(job(tmp_path), DATA, None, candidate(TRUTH))
    assert found.champion is None and "cannot be loaded" in found.note
    assert compare(job(tmp_path / "other"), DATA, None, candidate(TRUTH)).note == "there is no champion yet"


def test_the_result_shows_itself_and_carries_its_content(tmp_path):
    verdict = Verdict("keep", ("<b>not better</b>",))
    result = finish(job(tmp_path), DATA, candidate(TRUTH), against(TRUTH, PROUD), verdict, Published("5", False, {}))
    bundle = result._repr_mimebundle_()
    assert bundle[RESULT_TYPE]["version"] == "5" and bundle[RESULT_TYPE]["decision"] == "keep"
    assert "&lt;b&gt;" in bundle["text/html"] and "<b>" not in bundle["text/html"]
    dry = finish(job(tmp_path, promote=False), DATA, candidate(TRUTH), Comparison(None, ""), verdict, Published())
    assert dry.content["verdict"].startswith("dry run")


def test_a_slice_that_got_worse_keeps_the_champion_and_is_named():
    wide = {"most_ece": 0.2, "most_ece_processor": 0.2}
    mixed = np.where(np.arange(N) % 5, TRUTH, PROUD)  # better but for one processor
    other = np.where(np.arange(N) % 5, PROUD, TRUTH)
    comparison = against(mixed, other)
    assert worse_slices(comparison)[0].startswith("processor MIT (+")
    verdict = judged(mixed, comparison, **wide)
    assert verdict.decision == "keep" and "worse than version 4: processor MIT" in verdict.text
    assert slice_frame(comparison)["verdict"].tolist() == ["worse", "better"]
    fine = against(TRUTH, other)
    assert worse_slices(fine) == [] and judged(TRUTH, fine, **wide).decision == "promote"


def test_a_version_and_its_card_say_whether_it_was_blessed_and_why_not():
    kept, good = judged(TRUTH, against(TRUTH, TRUTH)).blessing, judged(TRUTH, FIRST).blessing
    assert blessed_tags(good) == {"blessed": "yes", "reasons": ""} and blessed_tags(None) == {}
    assert blessed_tags(kept)["blessed"] == "no" and "against version 4" in blessed_tags(kept)["reasons"]
    card = "\n".join([*blessing_lines(kept), *limits(kept)])
    assert (
        "Not blessed: " in card
        and "could not be judged." in card
        and "| not judged |" in card
        and "| calibration error at MIT | 0." in card
        and "| latency, p99 | 0.30 ms |" in card
    )
    assert "- lift over the logged choices: not shown: no log." in card and "extrapolated" in "\n".join(limits(None))


def test_without_a_comparison_the_table_of_slices_is_empty_and_has_its_columns():
    nothing = slice_frame(Comparison(None, "there is no champion yet"))
    assert nothing.empty and {"cell", "difference", "verdict"} <= set(nothing.columns)


FAMILIES = pd.DataFrame(
    {"family": ["linear", "deep"], "log_loss": [0.6, 0.59], "auc": [0.7, None], "ece": [0.01, 0.02]}
    | {"median_ms": [0.02, 0.1], "p99_ms": [0.05, 0.3], "seconds": [3.0, 20.0], "device": ["CPU", "GPU"]}
)


def test_the_device_of_a_training_is_said_and_is_the_cpu_where_a_family_knows_no_other():
    one = candidate(TRUTH)
    assert (one.device, one.told) == ("CPU", "forest in 1 s on CPU")
    one.fitted.facts["device"] = "GPU"
    assert one.told == "forest in 1 s on GPU"


def test_the_card_tells_each_family_with_its_latency_and_device():
    lines = family_lines(FAMILIES)
    assert lines[1] == "| linear | 0.6000 | 0.7000 | 0.020 | 0.050 | 3 | CPU |"
    assert lines[2] == "| deep | 0.5900 |  | 0.100 | 0.300 | 20 | GPU |"


def test_a_version_goes_live_no_earlier_than_it_was_made():
    made = "2026-04-01T09:00:07Z"
    assert not_before(datetime(2026, 4, 1, 9), made) == datetime(2026, 4, 1, 9, 0, 7, tzinfo=UTC)
    assert not_before(datetime(2026, 4, 1, 9, tzinfo=UTC), made) == datetime(2026, 4, 1, 9, 0, 7, tzinfo=UTC)
    assert not_before(datetime(2026, 4, 1, 10), made) == datetime(2026, 4, 1, 10, tzinfo=UTC)


def test_a_release_keeps_checks_and_families_as_json_for_a_later_review():
    kept = training_facts(judged(TRUTH, FIRST), FAMILIES)
    back = json.loads(json.dumps(kept))
    assert back == kept and back["blessed"] == "yes" and back["families"][1]["auc"] is None
    assert back["checks"][0]["check"] == "AUC" and back["checks"][0]["state"] == "passed"
    assert training_facts(Verdict("keep", ("an example",)), FAMILIES)["checks"] == []


def test_a_slice_without_an_interval_has_none_in_the_card():
    row = {"slice": "bank", "value": "X (few)", "n": 1, "came": 1.0, "said": 0.7, "log_loss": 0.357, "auc": None}
    bare = pd.DataFrame([row | {"log_loss_low": np.nan, "log_loss_high": np.nan, "off": False}])
    assert slice_lines(bare) == ["| bank X (few) | 1 | 1.000 | 0.700 | 0.357 |  |  |"]
    assert "0.357 (0.300 to 0.400)" in slice_lines(bare.assign(log_loss_low=0.3, log_loss_high=0.4))[0]
