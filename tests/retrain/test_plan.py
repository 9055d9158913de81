"""Parameters: the report's cell, the files and the record know the same keys; everything else is refused."""

from pathlib import Path

import pytest
import yaml

from smartrouter.core.settings import Settings
from smartrouter.retrain.plan import ParamsRefused, Plan, begin, make_plan, read_params
from smartrouter.retrain.run import checked_params, report_parameters
from smartrouter.rules.policy import UnknownMerchant

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "reports" / "retrain.ipynb"
FILES = sorted((ROOT / "params" / "retrain").glob("*.yaml"))


def test_the_report_has_the_plans_parameters_in_the_same_order():
    assert report_parameters(REPORT) == list(Plan.model_fields)


def test_the_reports_defaults_are_the_plans():
    import papermill

    defaults = {k: yaml.safe_load(v["default"]) for k, v in papermill.inspect_notebook(str(REPORT)).items()}
    defaults["promote"] = str(defaults["promote"]).lower() == "true"
    assert make_plan(defaults) == Plan()


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_each_file_has_every_key_and_is_valid(path):
    values = read_params(path)
    assert list(values) == list(Plan.model_fields)
    assert make_plan(values, str(path)).promote


def test_the_three_files_are_there():
    assert [p.stem for p in FILES] == ["ci", "embedded", "prod"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"forest_tress": 3}, "did you mean forest_trees"),
        ({"oracle": 1}, "unknown key oracle"),
        ({"forest_trees": "many"}, "forest_trees"),
        ({"forest_trees": 3.5}, "forest_trees"),
        ({"forest_trees": True}, "forest_trees"),
        ({"forest_trees": 0}, "forest_trees"),
        ({"test_share": float("nan")}, "test_share"),
        ({"families": []}, "families"),
        ({"families": ["oracle"]}, "families.0"),
        ({"families": ["forest", "forest"]}, "comes twice"),
        ({"start": "yesterday"}, "start"),
        ({"start": "2026-13-01", "end": "2026-01-01"}, "month"),
        ({"start": "2026-02-01", "end": "2026-01-01"}, "not before"),
        ({"calibrate_share": 0.4, "test_share": 0.4}, "less than 30 %"),
        ({"promote": "yes"}, "promote"),
    ],
)
def test_bad_values_are_named(values, named):
    with pytest.raises(ParamsRefused, match=named) as caught:
        make_plan(values, "mine.yaml")
    assert caught.value.exit_code == 2 and "mine.yaml" in str(caught.value)


def test_a_fault_names_the_value_and_says_in_words_what_is_expected():
    with pytest.raises(ParamsRefused) as caught:
        make_plan({"start": "yesterday", "end": "2026-02-30", "families": ["oracle"], "seed": -1})
    said = str(caught.value)
    assert "start 'yesterday': expected a moment in UTC such as 2026-01-31" in said and "pattern" not in said
    assert "end '2026-02-30': day is out of range" in said and "seed '-1'" in said
    assert "families.0 'oracle': expected 'linear', " in said and "at least 1 item" not in said


def test_a_refused_file_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("families: [oracle]\n")
    settings = Settings.load({"SMARTROUTER_PARAMS": str(ROOT / "params"), "SMARTROUTER_HOME": str(tmp_path)})
    with pytest.raises(ParamsRefused) as caught:
        checked_params(tmp_path / "mine.yaml", REPORT, settings)
    assert str(caught.value).startswith(f"{tmp_path}/mine.yaml: families.0 'oracle'")


def test_all_faults_come_at_once():
    with pytest.raises(ParamsRefused) as caught:
        make_plan({"forest_tress": 3, "seed": -1, "test_share": 2})
    assert all(name in str(caught.value) for name in ("forest_tress", "seed", "test_share"))


@pytest.mark.parametrize("text", ["[1, 2]", "seed: 1\nseed: 2", "a: [", "just text", "\x00"])
def test_files_that_are_no_mapping_are_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ParamsRefused, match=r"mine\.yaml"):
        read_params(tmp_path / "mine.yaml")


def test_missing_files_and_strange_names_are_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "a b.yaml", tmp_path / "..yaml"):
        with pytest.raises(ParamsRefused):
            read_params(path)


def test_dates_without_quotes_and_empty_files_work(tmp_path):
    (tmp_path / "a.yaml").write_text("start: 2026-01-01\nend: 2026-02-01T06:00:00\n")
    plan = make_plan(read_params(tmp_path / "a.yaml"))
    assert (plan.since.isoformat(), plan.until.isoformat()) == ("2026-01-01T00:00:00", "2026-02-01T06:00:00")
    (tmp_path / "b.yaml").write_text("")
    assert make_plan(read_params(tmp_path / "b.yaml")) == Plan()


def test_the_merchant_comes_from_the_parameters_or_the_settings(tmp_path):
    settings = Settings.load({"SMARTROUTER_PARAMS": str(ROOT / "params"), "SMARTROUTER_HOME": str(tmp_path)})
    assert begin({}, settings).name == "processor_selector.volaris"
    with pytest.raises(UnknownMerchant, match="acme"):
        begin({"merchant": "acme"}, settings)
