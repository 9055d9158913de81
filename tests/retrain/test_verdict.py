"""The verdict: what is promoted, kept and rejected, on candidates made up for the purpose."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from smartrouter.core.settings import Settings
from smartrouter.evaluation.metrics import log_loss_difference, score
from smartrouter.evaluation.slices import slice_regressions
from smartrouter.features.dataset import Splits
from smartrouter.retrain.plan import RESULT_TYPE, begin
from smartrouter.retrain.steps import Candidate, best
from smartrouter.retrain.verdict import (
    Comparison,
    Published,
    Verdict,
    compare,
    faults,
    finish,
    judge,
    slice_frame,
    worse_slices,
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


def job(tmp_path, **values):
    return begin(values, Settings.load({"SMARTROUTER_PARAMS": PARAMS, "SMARTROUTER_HOME": str(tmp_path)}))


def candidate(p, family="forest"):
    fitted = SimpleNamespace(facts={"rows": 2000, "seconds": 1.0, "trees": 20}, importance={}, family=family)
    return Candidate(family, fitted, None, p[2000:3000], p[3000:], 1.0)


def against(p, p_champion, **more):
    """A comparison of two made-up models."""
    y, mine, theirs = Y[3000:], p[3000:], p_champion[3000:]
    return Comparison("4", "", False, score(y, theirs), score(y, mine), log_loss_difference(y, mine, theirs), **more)


PROUD = TRUTH**2 / (TRUTH**2 + (1 - TRUTH) ** 2)  # log odds twice too large: worse than a constant
BOLD = TRUTH**1.4 / (TRUTH**1.4 + (1 - TRUTH) ** 1.4)  # sound, and worse than the truth


def test_a_sound_candidate_without_a_champion_is_promoted(tmp_path):
    verdict = judge(job(tmp_path), DATA, candidate(TRUTH), Comparison(None, "there is no champion yet"))
    assert verdict.decision == "promote" and "no champion yet" in verdict.text


@pytest.mark.parametrize(
    ("p", "values", "words"),
    [
        (RNG.permutation(TRUTH), {}, "at least 0.55 is required"),
        (PROUD, {"most_ece": 0.03}, "calibration error 0.1"),
        (np.full(N, Y[:2000].mean()), {}, "not below that of a constant"),
        (1 - TRUTH, {}, "AUC 0.3"),
    ],
)
def test_an_unsound_candidate_is_rejected_whatever_is_live(tmp_path, p, values, words):
    for comparison in (Comparison(None, "there is no champion yet"), against(p, RNG.permutation(TRUTH))):
        verdict = judge(job(tmp_path, **values), DATA, candidate(p), comparison)
        assert verdict.decision == "reject" and words in verdict.text


def test_one_class_in_the_test_rows_is_rejected(tmp_path):
    data = SimpleNamespace(**{**vars(DATA), "y": np.where(np.arange(N) >= 3000, 1, Y)})
    assert any("AUC" in words for words in faults(job(tmp_path), data, candidate(TRUTH)))


def test_better_beyond_doubt_is_promoted_and_anything_less_is_kept(tmp_path):
    wide = {"most_ece": 0.2}
    assert judge(job(tmp_path), DATA, candidate(TRUTH), against(TRUTH, PROUD)).decision == "promote"
    assert judge(job(tmp_path, **wide), DATA, candidate(BOLD), against(BOLD, TRUTH)).decision == "keep"
    hardly = np.clip(TRUTH + 0.004 * RNG.normal(size=N), 0.01, 0.99)
    for one, other in [(TRUTH, hardly), (hardly, TRUTH), (TRUTH, TRUTH)]:
        kept = judge(job(tmp_path), DATA, candidate(one), against(one, other))
        assert kept.decision == "keep" and "version 4" in kept.text and not kept.copy


def test_the_margin_lets_an_equal_model_in_but_never_one_that_lost(tmp_path):
    close = np.clip(TRUTH + 0.01 * RNG.normal(size=N), 0.01, 0.99)
    one, other = sorted([TRUTH, close], key=lambda p: score(Y[3000:], p[3000:]).log_loss)
    lenient = job(tmp_path, at_most_worse=0.01)
    assert judge(lenient, DATA, candidate(one), against(one, other)).decision == "promote"
    assert judge(lenient, DATA, candidate(other), against(other, one)).decision == "keep"


def test_a_copy_and_an_unfair_comparison_are_kept(tmp_path):
    same = Comparison("4", "", True, None, None, log_loss_difference(Y[3000:], TRUTH[3000:], TRUTH[3000:]))
    assert judge(job(tmp_path), DATA, candidate(TRUTH), same).copy
    unfair = Comparison("4", "only 3 test rows are later than the champion's training")
    verdict = judge(job(tmp_path), DATA, candidate(TRUTH), unfair)
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


def test_a_slice_that_got_worse_keeps_the_champion_and_is_named(tmp_path):
    frame = pd.DataFrame({"processor": np.where(np.arange(N) % 5, "WORLDPAY", "MIT")})[3000:]
    mixed = np.where(np.arange(N) % 5, TRUTH, PROUD)  # better but for one processor
    other = np.where(np.arange(N) % 5, PROUD, TRUTH)
    slices = slice_regressions(frame, Y[3000:], mixed[3000:], other[3000:])
    comparison = against(mixed, other, slices=slices)
    assert worse_slices(comparison)[0].startswith("processor MIT (+")
    verdict = judge(job(tmp_path, most_ece=0.2), DATA, candidate(mixed), comparison)
    assert verdict.decision == "keep" and "worse than version 4 at processor MIT" in verdict.text
    assert slice_frame(comparison)["verdict"].tolist() == ["worse", "better"]
    fine = against(mixed, other, slices=slice_regressions(frame, Y[3000:], TRUTH[3000:], other[3000:]))
    assert (
        worse_slices(fine) == []
        and judge(job(tmp_path, most_ece=0.2), DATA, candidate(mixed), fine).decision == "promote"
    )


def test_without_a_comparison_the_table_of_slices_is_empty_and_has_its_columns():
    nothing = slice_frame(Comparison(None, "there is no champion yet"))
    assert nothing.empty and {"cell", "difference", "verdict"} <= set(nothing.columns)
