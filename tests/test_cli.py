"""The command line: exit codes to be trusted, one line for what is foreseen, nothing heavy before a command runs."""

import errno
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from smartrouter.cli import Commands, embedded_file, main
from smartrouter.core.errors import SmartrouterError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def ask(home, monkeypatch):
    """Run `smartrouter …` in this process, with its state in a folder of the test."""
    monkeypatch.setenv("SMARTROUTER_HOME", str(home))
    monkeypatch.setenv("SMARTROUTER_PARAMS", str(ROOT / "params"))

    def run(*words: str, **environ: str) -> Result:
        return CliRunner().invoke(main, list(words), env={f"SMARTROUTER_{k.upper()}": v for k, v in environ.items()})

    return run


def every_command(group: click.Group, *words: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found += every_command(command, *words, name) if isinstance(command, click.Group) else [(*words, name)]
    return found


@pytest.mark.parametrize("words", every_command(main), ids=" ".join)
def test_every_command_has_help_with_an_example(ask, words):
    answer = ask(*words, "--help")
    assert answer.exit_code == 0
    assert f"smartrouter {' '.join(words)}" in answer.output.split("Example:")[-1]


@pytest.mark.parametrize("words", every_command(main), ids=" ".join)
def test_every_command_refuses_an_unknown_option(ask, words):
    answer = ask(*words, "--colour", "blue")
    assert answer.exit_code == 2 and "--colour" in answer.output


def test_a_mistyped_warehouse_is_not_simulated_into(ask, tmp_path):
    path = tmp_path / "warehous.duckdb"
    answer = ask("world", "--unless-present", warehouse=f"duckdb:///{path}")
    assert answer.exit_code == 2 and answer.stderr.count("\n") == 1
    assert "SMARTROUTER_WAREHOUSE=duckdb:///" in answer.stderr and "Correct the path" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from smartrouter.cli import main; main(['--help'], standalone_mode=False); "
        "heavy = {'numpy', 'pandas', 'pyarrow', 'duckdb', 'mlflow', 'tensorflow', 'ydf', 'flask', 'pydantic'}; "
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr.strip() == "set()", done.stderr


class Unhappy(SmartrouterError):
    exit_code = 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            SmartrouterError("a given", "an expected", "A remedy"),
            2,
            "smartrouter: a given. Expected an expected. A",
        ),
        (Unhappy("no gain", "a gain", "Wait"), 1, "smartrouter: no gain"),
        (OSError(errno.ENOSPC, "No space left on device", "x.duckdb"), 2, "no space left on the disk of x.duckdb"),
    ],
)
def test_foreseen_failures_are_one_line_on_standard_error(error, code, said):
    @click.group(cls=Commands)
    def group():
        pass

    @group.command()
    def fail():
        raise error

    answer = CliRunner().invoke(group, ["fail"])
    assert answer.exit_code == code
    assert said in answer.stderr and answer.stderr.count("\n") == 1 and answer.stdout == ""


def test_a_missing_extra_is_one_line(ask, monkeypatch):
    monkeypatch.delitem(sys.modules, "smartrouter.warehouse.connect", raising=False)
    monkeypatch.setitem(sys.modules, "duckdb", None)  # its import fails as that of a missing package
    answer = ask("rules", "sync", warehouse=f"duckdb:///{__file__}")
    assert answer.exit_code == 2 and answer.stderr.count("\n") == 1
    assert "duckdb is not installed" in answer.stderr and "pip install 'smartrouter[all]'" in answer.stderr


def test_unforeseen_failures_keep_their_traceback():
    @click.group(cls=Commands)
    def group():
        pass

    @group.command()
    def fail():
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(group, ["fail"]).exception, ZeroDivisionError)


def test_world_is_made_once_and_never_overwritten_silently(ask, home):
    first = ask("world", "--days", "10", "--attempts", "500", "--seed", "3")
    assert first.exit_code == 0, first.output
    made = (home / "warehouse.duckdb").stat().st_mtime_ns
    assert ask("world", "--days", "10", "--attempts", "500").exit_code == 2
    assert ask("world", "--unless-present").exit_code == 0
    assert (home / "warehouse.duckdb").stat().st_mtime_ns == made
    assert ask("world", "--days", "10", "--attempts", "600", "--replace").exit_code == 0
    assert (home / "warehouse.duckdb").stat().st_mtime_ns > made


def test_world_writes_only_into_an_embedded_warehouse(ask):
    url = "snowflake://account/PAYMENT_ML"
    answer = ask("world", warehouse=url)
    assert answer.exit_code == 2 and "duckdb:///path" in answer.output
    assert ask("world", "--unless-present", warehouse=url).exit_code == 0
    assert str(embedded_file("duckdb:////somewhere/x.duckdb")) == "/somewhere/x.duckdb"


def test_rules_are_synced_and_shown(ask, home, small_world):
    assert ask("rules", "show").exit_code == 2
    missing = ask("rules", "sync")
    assert missing.exit_code == 2 and "Traceback" not in missing.output
    assert (
        ask("rules", "sync", warehouse=f"duckdb:///{small_world}/warehouse.duckdb").exit_code == 0
        and (home / "rules" / "volaris.json").exists()
    )
    shown = ask("rules", "show")
    assert shown.exit_code == 0 and "AMEX" in shown.output and "always" in shown.output


LACKING = ("VW_ATHENA_CHANNEL", "VW_ATHENA_PAYMENT.BANK", "VW_ROUTING_MERCHANT_RULE.LABEL")
LACKING += ("VW_ROUTING_MERCHANT_RULE_OPTION",)


@pytest.mark.parametrize("words", [("rules", "sync"), ("retrain", "--params", f"{ROOT}/params/retrain/ci.yaml")])
def test_all_that_a_warehouse_lacks_is_named_at_once(ask, home, tmp_path, monkeypatch, words):
    import duckdb

    from smartrouter.warehouse.schema import create_contract

    with duckdb.connect(str(tmp_path / "lacking.duckdb")) as raw:
        create_contract(raw)
        raw.execute("DROP VIEW ABTESTING.ALL_VIEWS_FLAT_SAMPLE; DROP VIEW ABTESTING.ALL_VIEWS_FLAT")
        for name in LACKING:
            view, _, column = name.partition(".")
            raw.execute(f"ALTER TABLE SOURCES.{view} DROP {column}" if column else f"DROP TABLE SOURCES.{view}")
    (tmp_path / "reports").mkdir()
    shutil.copy(ROOT / "reports" / "retrain.ipynb", tmp_path / "reports")
    monkeypatch.chdir(tmp_path)  # the report's evidence stays in the folder of the test
    answer = ask(*words, warehouse=f"duckdb:///{tmp_path}/lacking.duckdb")
    assert answer.exit_code == 2, answer.output
    assert f"lacks 4 name(s): {', '.join(f'SOURCES.{name}' for name in LACKING)}. " in answer.output
    assert not (home / "rules").exists() and not (home / "releases").exists() and "trained" not in answer.output


def test_settings_that_are_unknown_or_impossible_are_refused(ask):
    assert "SMARTROUTER_PORT" in ask("serve", "--check", port="eighty").output
    answer = ask("rules", "show", warehose="duckdb:///x")
    assert answer.exit_code == 2 and "SMARTROUTER_WAREHOUSE?" in answer.output
    assert ask("rules", "sync", merchant="nobody", warehouse="duckdb:///missing.duckdb").exit_code == 2


def test_serve_says_before_it_starts_what_would_stop_it(ask):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        taken = ask("serve", "--check", port=port)
    assert taken.exit_code == 2 and f"port {port}" in taken.output and "SMARTROUTER_PORT" in taken.output
    assert ask("serve", "--check", port=port).exit_code == 0
    assert ask("serve", "--check", host="0.0.0.0", port=port).exit_code == 2  # other addresses need a key
    assert ask("serve", "--check", host="no.such.host.invalid", api_keys="k" * 40).exit_code == 2
    for setting, value in (("rate_limit", "many"), ("merchant", "nobody"), ("home", f"{__file__}/var")):
        refused = ask("serve", "--check", port=port, **{setting: value})
        assert refused.exit_code == 2 and refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("store", "mysql://me:hunter2@host/db"),
        ("store", "sqlite://"),
        ("store", "var/store.db"),
        ("warehouse", "var/warehouse.duckdb"),
        ("warehouse", "snowflake://me:hunter2@account/DB"),
        ("warehouse", "postgresql://me:hunter2@host/db"),
        ("mlflow", "var/mlflow.db"),
        ("mlflow", "ftp://me:hunter2@host"),
        ("mlflow", "me:hunter2@host"),
        ("mlflow", "sqlite:///"),
        ("mlflow", "http://"),
    ],
)
def test_serve_says_before_it_starts_which_url_cannot_be(ask, home, setting, value):
    refused = ask("serve", "--check", port=str(free_port()), **{setting: value})
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1, refused.output
    assert f"SMARTROUTER_{setting.upper()}" in refused.stderr or "SMARTROUTER_SNOWFLAKE" in refused.stderr
    assert "hunter2" not in refused.stderr and list(home.iterdir()) == []


def test_a_check_asks_nobody_and_makes_nothing(ask, home):
    nobody = {"mlflow": f"http://127.0.0.1:{free_port()}", "warehouse": "snowflake://account/DB"}
    assert ask("serve", "--check", port=str(free_port()), **nobody).exit_code == 0
    assert ask("serve", "--check", port=str(free_port()), mlflow="postgresql://host/db").exit_code == 0
    assert list(home.iterdir()) == []


def free_port() -> int:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        return other.getsockname()[1]


@pytest.mark.parametrize("fault", ["no folder", "other contract", "other file", "broken pointer"])
def test_a_champion_that_cannot_be_loaded_is_not_live(ask, home, tmp_path, fault):
    from smartrouter.features.matrix import CONTRACT_VERSION

    folder = home / "releases" / "processor_selector.volaris" / "1"
    folder.mkdir(parents=True)
    (folder.parent / "champion.json").write_text('{"version": "1"}' if fault != "broken pointer" else "{")
    contract = "0.0" if fault == "other contract" else CONTRACT_VERSION
    (folder / "manifest.json").write_text(json.dumps({"contract": contract, "files": {"lookups.json": "0" * 64}}))
    if fault == "no folder":
        shutil.rmtree(folder)
    (tmp_path / "wrong.yaml").write_text("sed: 1\n")  # it gets as far as the parameters, so it does retrain
    answer = ask("retrain", "--params", str(tmp_path / "wrong.yaml"), "--unless-present")
    told, refused = answer.stderr.splitlines()
    why = {"no folder": "no release at", "other contract": "contract", "other file": "lookups.json is missing"}
    assert told.startswith("model: the champion cannot be used") and why.get(fault, "champion.json") in told
    assert answer.exit_code == 2 and "sed" in refused


def test_files_that_are_not_there_are_refused(ask):
    for words in (
        ["ingest", "x.csv", "--mapping", "y.yaml"],
        ["retrain", "--params", "x.yaml"],
        ["predict", "x", "--out", "y"],
    ):
        answer = ask(*words)
        assert answer.exit_code == 2 and "does not exist" in answer.output


def test_models_of_an_empty_registry(ask):
    listed = ask("models", "list")
    assert listed.exit_code == 0 and listed.stdout == "" and "smartrouter retrain" in listed.stderr
    assert ask("models", "show", "processor_selector.volaris").exit_code == 2
    assert ask("models", "promote", "processor_selector.volaris", "1").exit_code == 2  # a reason is required
    assert ask("models", "promote", "processor_selector.volaris", "1", "--force").exit_code == 2
    assert ask("models", "rollback", "processor_selector.volaris", "--reason", "why not").exit_code == 2


CARD = "4111" + "1111" * 3


def test_no_answer_repeats_a_card_number(ask, tmp_path):
    (tmp_path / "a.yaml").write_text(f"merchant: '{CARD}'\n")
    (tmp_path / "b.yaml").write_text(f"card_{CARD}: 1\n")
    for words in (
        ["retrain", "--params", str(tmp_path / "a.yaml")],
        ["retrain", "--params", str(tmp_path / "b.yaml")],
        ["retrain", "--params", f"{CARD}.yaml"],
        ["models", "show", CARD],
        ["models", "promote", f"processor_selector.{CARD}", "1", "--reason", "why"],
        ["predict", CARD, "--out", "y"],
        ["models", "promote", "processor_selector.volaris", "1", "--reason", f"asked by {CARD}"],
        ["world", "--days", CARD],
        [CARD],
        [f"--{CARD}"],
        ["models", CARD],
    ):
        answer = ask(*words)
        assert answer.exit_code == 2 and CARD not in answer.output and "411111…1111" in answer.output, answer.output
    answer = ask("rules", "show", merchant=CARD)
    assert answer.exit_code == 2 and CARD not in answer.output, answer.output


def test_promoting_the_live_version_again_says_that_nothing_changed(capsys):
    from smartrouter.cli import show_change
    from smartrouter.registry.promotion import Change

    change = Change(1, "promote", "2", "1", "better", "2026-04-01T09:00:00Z", "done")
    show_change(change, "better ")
    show_change(change, "a newer reason")
    first, again = capsys.readouterr().out.splitlines()
    assert first == "version 2 is live since 2026-04-01T09:00:00Z (before: 1): better"
    assert "is already live" in again and again.endswith("reason not changed: better")
