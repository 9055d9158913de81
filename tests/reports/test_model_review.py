"""The review report from the outside: one real run on two versions, and clear errors where there is nothing."""

import json
import re
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
import yaml
from click.testing import CliRunner

from smartrouter.cli import main
from smartrouter.core.settings import Settings
from smartrouter.models.package import ReleaseMissing
from smartrouter.registry.promotion import promote
from smartrouter.registry.versions import UnknownVersion, open_registry
from smartrouter.retrain import plan, review, steps
from smartrouter.retrain.plan import ParamsRefused
from smartrouter.retrain.run import outcome, report_parameters, run
from smartrouter.retrain.verdict import Verdict, publish

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "reports" / "model_review.ipynb"
CI = ROOT / "params" / "model_review" / "ci.yaml"
NAME = "processor_selector.volaris"


def settings_of(home: Path, warehouse: str = "") -> Settings:
    values = {"SMARTROUTER_HOME": str(home), "SMARTROUTER_PARAMS": str(ROOT / "params")}
    return Settings.load(values | ({"SMARTROUTER_WAREHOUSE": warehouse} if warehouse else {}))


@pytest.fixture(scope="module")
def settings(tmp_path_factory, small_warehouse):
    """Two versions of a linear model: the first, which hardly learnt, is the champion."""
    now = settings_of(tmp_path_factory.mktemp("review"), small_warehouse)
    values = {"families": ["linear"], "linear_iterations": 30, "least_rows": 2000, "least_per_processor": 100}
    table = steps.extract(plan.begin(values, now))
    data = steps.features(plan.begin(values, now), table)
    for strength in (0.0001, 0.3):
        job = plan.begin(values | {"linear_strength": strength}, now)
        chosen = steps.refit(job, data, steps.best(data, steps.train(job, data)))
        publish(job, data, table, [chosen], chosen, Verdict("keep", ("a test",)), datetime(2026, 4, 1))
    promote(open_registry(now), NAME, "1", "a test", datetime(2026, 4, 1), force=True)
    return now


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def done(settings, lines):
    """One run of the real report with the ci parameters."""
    return run(CI, settings, lines.append, REPORT, out=Path(settings.home) / "out", check=review.begin)


def test_the_newest_version_is_reviewed_against_the_champion(done, lines):
    content = done.content
    assert content["error"] is None, done.verdict
    assert (content["version"], content["against"], content["live"]) == ("2", "1", False)
    assert done.status in {"recommends promote", "recommends keep", "look closer"}
    assert done.exit_code == (1 if done.status == "look closer" else 0)
    assert content["comparison"]["n"] == content["metrics"]["n"] > 1_000
    assert {"version 2", "version 1", "best single processor", "drawn evenly"} == {
        r["policy"] for r in content["lifts"]
    }
    assert ("version 2", "version 1") in {(r["policy"], r["against"]) for r in content["lifts"]}
    assert lines[0].startswith("model_review: processor_selector.volaris, version 2 (linear)")


def test_the_evidence_is_complete_and_json(done):
    names = {p.name.removeprefix(done.run_id) for p in done.folder.iterdir() if p.name.startswith(done.run_id)}
    assert {".ipynb", ".html", ".result.json"} <= names and done.folder.parts[-2:] == ("model_review", "ci")
    content = json.loads(done.result.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert content["report"] == "model_review.ipynb" and content["params"]["policy_rows"] == 5000
    executed = nbformat.read(done.notebook, as_version=4)
    assert all(cell.get("execution_count") for cell in executed.cells if cell.cell_type == "code")


def test_the_page_shows_its_plots_without_a_network(done, lines):
    page = done.html.read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot(") >= 17
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"https?://", page)
    for title in (
        "Checks of the extract",
        "Reliability overall",
        "Share of the achievable lift",
        "Latency of the packaged",
    ):
        assert title in page
    assert "oracle" in page and any(line.startswith("model_review: contest on 1,") for line in lines)


def test_a_review_changes_nothing(done, settings):
    from smartrouter.registry.versions import list_versions, open_registry

    found = list_versions(open_registry(settings), NAME)
    assert [(v.version, v.champion) for v in found] == [("2", False), ("1", True)]


@pytest.mark.parametrize(("asked", "words"), [({"version": "9"}, "version '9'"), ({"against": "7"}, "version '7'")])
def test_an_unknown_version_is_named_with_the_known_ones(settings, asked, words):
    with pytest.raises(UnknownVersion, match=words) as caught:
        review.load(review.begin(asked, settings))
    assert "2" in caught.value.expected and "1" in caught.value.expected and caught.value.exit_code == 2


def test_an_empty_registry_is_said(tmp_path):
    with pytest.raises(UnknownVersion, match="none yet"):
        review.load(review.begin({}, settings_of(tmp_path)))


def test_a_missing_release_is_an_error_for_the_candidate_and_a_note_for_the_champion(settings):
    folder = Path(settings.releases) / NAME
    for version in ("1", "2"):
        (folder / version).rename(folder / "away")
        try:
            if version == "2":
                with pytest.raises(ReleaseMissing, match="no release at"):
                    review.load(review.begin({}, settings))
            else:
                pair = review.load(review.begin({}, settings))
                assert pair.reference is None and "version 1 cannot be loaded: no release at" in pair.note
                with pytest.raises(ReleaseMissing, match="no release at"):
                    review.load(review.begin({"against": "1"}, settings))
        finally:
            (folder / "away").rename(folder / version)


def test_the_champion_is_held_against_the_version_before_it_and_the_first_against_none(settings):
    first = review.load(review.begin({"version": 1}, settings))
    assert first.live and first.reference is None and first.note.startswith("it is the first version")
    second = review.load(review.begin({"version": "2"}, settings))
    assert not second.live and second.reference.manifest["version"] == "1"


def test_the_command_ends_with_two_for_a_version_that_is_not_there(tmp_path, small_warehouse, monkeypatch):
    monkeypatch.setattr("smartrouter.retrain.run.report_path", lambda name: REPORT)
    values = {"SMARTROUTER_HOME": str(tmp_path), "SMARTROUTER_PARAMS": str(ROOT / "params")}
    monkeypatch.setattr("smartrouter.retrain.run.reserve", lambda folder, now: pytest.fail("something was written"))
    for version in ("two", "9"):
        asked = ["models", "review", "--version", version, "--params", str(CI)]
        answer = CliRunner().invoke(main, asked, env=values | {"SMARTROUTER_WAREHOUSE": small_warehouse})
        assert answer.exit_code == 2 and "version" in answer.output and "Unknown" not in answer.output


def test_unknown_keys_are_refused_before_anything_is_made(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"versoin": "2"}))
    with pytest.raises(ParamsRefused, match="did you mean version"):
        run(tmp_path / "mine.yaml", settings_of(tmp_path), report=REPORT, out=tmp_path / "out", check=review.begin)
    assert not (tmp_path / "out").exists()


def test_the_report_and_the_files_have_the_parameters_of_the_record_in_its_order():
    names = report_parameters(REPORT)
    assert set(names) == set(review.Questions.model_fields)
    for path in sorted((ROOT / "params" / "model_review").glob("*.yaml")):
        values = plan.read_params(path)
        assert list(values) == names
        plan.checked(review.Questions, values, str(path), "the report")


def test_a_report_that_says_its_own_status_keeps_it():
    said = {"status": "look closer", "exit_code": 1, "decision": "look closer", "promoted": False, "verdict": "look"}
    assert outcome(said, None) == said | {"error": None}
