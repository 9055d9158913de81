"""The retrain report from the outside: one real run, and what is left when it goes wrong."""

import json
import re
import shutil
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
import yaml
from click.testing import CliRunner

from smartrouter.core.files import CannotWrite
from smartrouter.core.settings import Settings
from smartrouter.models.package import champion, load_release
from smartrouter.monitor.skew import read_reference
from smartrouter.retrain import run as running
from smartrouter.retrain.plan import ParamsRefused
from smartrouter.retrain.run import outcome, reserve, run

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "reports" / "retrain.ipynb"
CI = ROOT / "params" / "retrain" / "ci.yaml"
NAME = "processor_selector.volaris"


def settings_of(home: Path, **more: str) -> Settings:
    values = {"SMARTROUTER_HOME": str(home), "SMARTROUTER_PARAMS": str(ROOT / "params")}
    return Settings.load(values | {f"SMARTROUTER_{k.upper()}": v for k, v in more.items()})


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("retrain")


@pytest.fixture(scope="module")
def first(home, small_warehouse, lines):
    """One real run with the ci parameters on the small simulated merchant."""
    return run(CI, settings_of(home, warehouse=small_warehouse), lines.append, out=home / "out")


def test_the_first_run_promotes_a_release_that_loads(first, home, lines):
    assert (first.status, first.exit_code, first.promoted) == ("promoted", 0, True), first.verdict
    release = load_release(champion(home / "releases", NAME))
    assert release.manifest["version"] == "1" == first.content["version"]
    assert set(release.manifest["learnt"]) == {"WORLDPAY", "MIT", "ELAVON"}
    assert "## Quality" in (release.path / "model_card.md").read_text()
    kept = read_reference(release.path)
    assert "reference.json" in release.manifest["files"] and kept["contract"] == release.manifest["contract"]
    assert {"bank", "amount"} <= set(kept["requests"]) and "processor" in kept["features"]
    card = (release.path / "model_card.md").read_text()
    assert "\nBlessed: " in card and "| lift over the logged choices | " in card and "| latency, p99 | " in card
    assert "\n## Families of this training\n" in card and re.search(r", trained on [CG]PU\.", card)
    assert any(re.search(r"trained \w+ in \d+ s on (CPU|GPU)", line) for line in lines)
    assert (
        all(row["p99_ms"] > 0 for row in release.manifest["facts"]["families"]) and release.manifest["facts"]["checks"]
    )
    assert release.manifest["facts"]["blessed"] == "yes" and first.content["blessed"]
    assert {c["area"] for c in first.content["checks"]} == {"quality", "calibration", "lift", "latency"}
    assert any("attempts extracted" in line for line in lines) and lines[-1].startswith("retrain: promote")


def test_the_evidence_is_complete(first):
    names = {p.name.removeprefix(first.run_id) for p in first.folder.iterdir() if p.name.startswith(first.run_id)}
    assert {".ipynb", ".html", ".result.json"} <= names and first.folder.name == "ci"
    content = json.loads(first.result.read_text())
    assert (
        content["status"] == "promoted" and content["metrics"]["auc"] > 0.55 and content["params"]["forest_trees"] == 20
    )
    executed = nbformat.read(first.notebook, as_version=4)
    assert all(cell.get("execution_count") for cell in executed.cells if cell.cell_type == "code")


def test_what_has_no_row_is_a_sentence_and_no_figure(first):
    cells = [c for c in nbformat.read(first.notebook, as_version=4).cells if "verdict.shown(" in c.source]
    kinds = [o.output_type for c in cells for o in c.outputs]
    assert len(cells) == 6 and set(kinds) == {"stream"} and "there is no champion yet" in str(cells)


def test_every_row_of_the_checks_figure_names_itself_only(first):
    (cell,) = [c for c in nbformat.read(first.notebook, as_version=4).cells if "checks_frame(blessing)" in c.source]
    (figure,) = [o.data["application/vnd.plotly.v1+json"] for o in cell.outputs]
    on_axis = {}
    for trace in figure["data"]:
        on_axis.setdefault(trace["yaxis"], set()).update(trace["y"])
    assert len(on_axis) > 5 and all(len(names) == 1 for names in on_axis.values())
    assert not any("categoryarray" in figure["layout"][axis.replace("y", "yaxis")] for axis in on_axis)


def test_a_refusal_shows_every_check_and_names_the_parameter(home, small_warehouse):
    (home / "many.yaml").write_text(yaml.safe_dump(yaml.safe_load(CI.read_text()) | {"least_rows": 10_000_000}))
    result = run(home / "many.yaml", settings_of(home / "refused", warehouse=small_warehouse), out=home / "out")
    assert result.exit_code == 2 and "Mend the source, or the parameter least_rows; " in result.verdict
    page = result.html.read_text(encoding="utf-8")
    assert {"<td>rows</td>", "<td>duplicates</td>", "<td>least_rows</td>"} <= set(re.findall("<td>.*?</td>", page))


def test_the_page_shows_its_plots_without_a_network(first):
    page = first.html.read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot(") >= 6
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"https?://", page)
    assert page.index("plotly.js v") < page.index('class="plotly-graph-div"')
    assert page.count("plotly.js v") == 1 or len(page) < 8_000_000  # the script is there once
    assert "there is no champion yet" in page


def test_the_registry_knows_what_the_version_was_made_of(first, home, small_warehouse):
    from smartrouter.registry.promotion import show
    from smartrouter.registry.versions import open_registry

    seen = show(open_registry(settings_of(home, warehouse=small_warehouse)), NAME)
    assert seen["version"] == "1" and seen["tags"]["verdict"] == "promote"
    assert seen["lineage"]["feature_contract"] == seen["manifest"]["contract"]
    assert int(seen["lineage"]["rows"]) > 10_000 and len(seen["lineage"]["digest"]) == 32
    assert seen["metrics"]["test_auc"] == pytest.approx(first.content["metrics"]["auc"])
    assert [e["action"] for e in seen["history"]] == ["promote"] and seen["history"][0]["at"] >= seen["created_at"]


def test_a_retraining_from_the_middle_of_the_history_goes_live(tmp_path, small_warehouse):
    values = yaml.safe_load(CI.read_text()) | {
        "start": "2026-01-20T12:00",
        "families": ["linear"],
        "linear_iterations": 20,
    }
    (tmp_path / "late.yaml").write_text(yaml.safe_dump(values))
    settings, out = settings_of(tmp_path, warehouse=small_warehouse), tmp_path / "out"
    ended = run(tmp_path / "late.yaml", settings, lambda line: None, REPORT, out)
    assert (ended.status, ended.exit_code) == ("promoted", 0), ended.verdict
    assert "500 decisions replayed, all equal" in ended.html.read_text(encoding="utf-8")
    assert champion(tmp_path / "releases", NAME).name == "1"


def test_the_same_again_is_compared_with_the_champion_on_the_same_rows(first, home, small_warehouse):
    from smartrouter.retrain import steps, verdict
    from smartrouter.retrain.plan import begin, read_params

    job = begin(read_params(CI) | {"families": ["forest"]}, settings_of(home, warehouse=small_warehouse))
    table = steps.extract(job)
    data = steps.features(job, table)
    chosen = steps.refit(job, data, steps.train(job, data)[0])
    found = verdict.compare(job, data, table, chosen)
    blessing = verdict.examine(job, data, table, chosen, found)
    if first.content["family"] == "forest":
        assert found.same and abs(found.difference.estimate) < 1e-6  # its own features give its own probabilities
    decided = verdict.judge(chosen, found, blessing)
    assert {c.name for c in blessing.checks if c.against} >= {"log loss against version 1", "lift over version 1"}
    assert decided.decision == "keep" and found.champion == "1"


def test_the_command_line_promotes_a_version_that_is_not_blessed_only_by_force(first, home, small_warehouse, tmp_path):
    from smartrouter.cli import main
    from smartrouter.models.package import stamp
    from smartrouter.registry.versions import open_registry, register

    shutil.copytree(champion(home / "releases", NAME), tmp_path / "release")
    stamp(tmp_path / "release", "")
    tags = {"blessed": "no", "reasons": "latency, p99 80 ms (expected: at most 50 ms for 4 rows)"}
    version = register(open_registry(settings_of(home)), NAME, tmp_path / "release", tags=tags)

    def ask(*words: str):
        return CliRunner().invoke(main, ["models", *words], env={"SMARTROUTER_HOME": str(home)})

    refused = ask("promote", NAME, version, "--reason", "it feels better")
    assert (
        refused.exit_code == 2 and "not blessed: latency, p99 80 ms" in refused.stderr and "--force" in refused.stderr
    )
    assert ask("promote", NAME, version, "--force").exit_code == 2  # a reason is required
    assert ask("promote", NAME, version, "--force", "--reason", " ").exit_code == 2
    forced = ask("promote", NAME, version, "--force", "--reason", "the drill of June")
    assert forced.exit_code == 0 and "forced): the drill of June" in forced.stdout
    listed = ask("list").stdout.splitlines()
    assert "blessed" in listed[0] and " no" in listed[-2] and " yes" in listed[-1]
    assert ask("rollback", NAME, "--reason", "the drill is over").exit_code == 0
    assert champion(home / "releases", NAME).name == "1"


def tiny_report(folder: Path, *cells: str) -> Path:
    """A report with one parameter and these cells."""
    parameters = nbformat.v4.new_code_cell("seed: int = 7", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, *code], metadata=kernel), folder / "tiny.ipynb")
    return folder / "tiny.ipynb"


def tiny_run(folder: Path, *cells: str, params: str = "seed: 1\n"):
    (folder / "mine.yaml").write_text(params)
    return run(folder / "mine.yaml", settings_of(folder), lambda line: None, report=tiny_report(folder, *cells))


EMPTY = "from smartrouter.warehouse.queries import EmptyExtract\nraise EmptyExtract('no attempts', 'some', 'Look')"


@pytest.mark.parametrize(
    ("cell", "exit_code", "words"),
    [(EMPTY, 2, "EmptyExtract: no attempts"), ("1 / 0", 1, "division"), ("import os; os._exit(9)", 1, "DeadKernel")],
)
def test_a_run_that_fails_leaves_its_evidence(tmp_path, cell, exit_code, words):
    result = tiny_run(tmp_path, "print('so far so good')", cell)
    assert (result.status, result.exit_code) == ("failed", exit_code) and words in result.verdict
    content = json.loads(result.result.read_text())
    assert content["status"] == "failed" and content["exit_code"] == exit_code
    assert "so far so good" in result.html.read_text() or exit_code == 1
    assert not (tmp_path / "releases").exists()


def test_a_report_without_a_verdict_has_failed():
    assert outcome(None, None)["verdict"].startswith("failed: NoVerdict")
    kept = {"decision": "promote", "promoted": False, "verdict": "dry run"}
    assert outcome(kept, None)["status"] == "kept" and outcome(kept, None)["exit_code"] == 0
    rejected = {"decision": "reject", "promoted": False, "verdict": "reject: AUC"}
    assert outcome(rejected, None)["exit_code"] == 1


@pytest.mark.parametrize("params", ["sed: 1\n", "seed: many\n", "merchant: acme\n", "- 1\n"])
def test_bad_input_is_refused_before_anything_is_made(tmp_path, params):
    with pytest.raises(Exception) as caught:
        tiny_run(tmp_path, "pass", params=params)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_unknown_keys_are_refused_for_the_real_report_too(tmp_path):
    values = yaml.safe_load(CI.read_text()) | {"forest_tress": 3}
    (tmp_path / "ci.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ParamsRefused, match="did you mean forest_trees"):
        run(tmp_path / "ci.yaml", settings_of(tmp_path), report=REPORT, out=tmp_path / "out")


def test_nothing_is_ever_overwritten(tmp_path):
    now = datetime(2026, 4, 1, 9)
    paths = [reserve(tmp_path / "ci", now) for _ in range(3)]
    assert len(set(paths)) == 3 and all(p.exists() for p in paths)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running.os, "open", full)
    with pytest.raises(CannotWrite, match="No space"):
        reserve(tmp_path / "ci", datetime(2026, 4, 1, 9))


def test_a_disk_that_fills_up_in_the_middle_is_said_and_the_page_too(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("papermill.execute_notebook", full)
        with pytest.raises(CannotWrite, match="No space"):
            tiny_run(tmp_path, "pass")
    (result,) = (tmp_path / "out").rglob("*.result.json")
    assert json.loads(result.read_text())["verdict"] == "failed: interrupted"
    running.write_page(tmp_path / "gone.ipynb", tmp_path / "gone.html")
    assert "No notebook: FileNotFoundError" in (tmp_path / "gone.html").read_text()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CannotWrite, match="No space"):
        running.write_page(tmp_path / "tiny.ipynb", tmp_path / "full.html")
    assert not (tmp_path / "full.html").exists()


def test_the_report_is_linear():
    cells = nbformat.read(REPORT, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    assert code[0].metadata.get("tags") == ["parameters"]
    assert not [c for c in code if re.search(r"^\s*(def|class|for|while|if|try)\b|lambda (?!t:)", c.source, re.M)]
    assert "verdict.finish" in code[-1].source and not any(c.outputs for c in code)
    assert shutil.which("python")  # the kernel needs an interpreter on this machine
