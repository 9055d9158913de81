"""Guards over the whole: layers, notebooks in step with the package, params, README, nothing that must not be here."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml

from smartrouter.core.cards import find_card_number

ROOT = Path(__file__).resolve().parents[1]

# One room a folder, data walks from left to right; a room imports from itself and from rooms before it.
ROOMS = ["core", "warehouse", "world", "features", "models", "evaluation", "experiments", "registry", "rules", "outage"]
ROOMS += ["retry", "message", "router", "feedback", "monitor", "retrain", "serve", "bench", "cli"]
MAY_HOLD_TENSORFLOW = {"models", "evaluation", "retrain"}
TENSORFLOW = {"tensorflow", "keras", "tensorflow_decision_forests", "ydf", "tf_keras"}
WORKBENCH = {"IPython", "jupyterlab", "nbdev", "fastcore", "papermill", "mlflow", "plotly", "dash", "matplotlib"}
HEAVY = TENSORFLOW | WORKBENCH | {"pandas", "duckdb", "pyarrow", "sklearn", "scipy", "sqlglot", "snowflake", "lightgbm"}
HEAVY |= {"apprise"}
LIGHT = {"core", "features", "rules", "outage", "router", "feedback", "serve", "cli"}
LIGHT |= {"models/runtime", "models/package", "monitor/alerts", "monitor/outbox"}
PARAMS_WITHOUT_REPORT = {"merchants", "ingest", "outage", "world"}  # read by their rooms, which refuse unknown keys
EXPORTED = re.compile(r"^#\|\s*exports?\b", re.M)


@cache
def kept_files() -> tuple[Path, ...]:
    """Every file that git keeps or would keep, relative to the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(Path(name) for name in sorted(set(listed.split("\0"))) if name and (ROOT / name).is_file())


def under(folder: str, suffix: str) -> list[Path]:
    """Kept files below `folder` with `suffix`."""
    return [path for path in kept_files() if path.parts[0] == folder and path.suffix == suffix]


@cache
def cells(notebook: Path) -> list[dict]:
    """A notebook's cells, each with its source as one string."""
    content = json.loads((ROOT / notebook).read_text(encoding="utf-8"))
    return [{**cell, "source": "".join(cell["source"])} for cell in content["cells"]]


def default_exp(notebook: Path) -> str | None:
    """The module that a notebook says it exports to."""
    found = [re.search(r"^#\|\s*default_exp\s+(\S+)", cell["source"], re.M) for cell in cells(notebook)]
    return next((match.group(1) for match in found if match), None)


NOTEBOOKS = under("nbs", ".ipynb")
EXPLORING = [path for path in NOTEBOOKS if path.parts[1] == "eda"]
TEACHING = [path for path in NOTEBOOKS if path.parts[1] != "eda"]
REPORTS = under("reports", ".ipynb")
MODULES = [path for path in under("smartrouter", ".py") if path.name not in {"__init__.py", "_modidx.py"}]
PLAIN = [path for folder in ("serve", "bench") for path in under(folder, ".py")]


# --- layers ---------------------------------------------------------------------------------------------------------


def room_of(path: Path) -> str:
    """The room that a module lies in: smartrouter/rules/static.py -> rules, serve/app.py -> serve."""
    return (path.parts[1] if path.parts[0] == "smartrouter" else path.parts[0]).removesuffix(".py")


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """Absolute names that a module imports, with the line, and whether that happens when it is loaded."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    package = path.with_suffix("").parts
    later = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(scope, ast.If) and ast.unparse(scope.test).endswith("TYPE_CHECKING"))
        for node in ast.walk(scope)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: -node.level] if node.level else ())
            stem = ".".join(part for part in (base, node.module) if part)
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, node.lineno, id(node) not in later) for name in names]
    return found


def test_every_room_has_its_place_in_the_order():
    assert {room_of(path) for path in MODULES + PLAIN} <= set(ROOMS)


def test_layers_a_room_imports_only_from_rooms_above_it():
    wrong = []
    for path in MODULES + PLAIN:
        room = room_of(path)
        for name, line, _ in imports(path):
            parts = name.split(".")
            target = parts[1] if parts[0] == "smartrouter" and len(parts) > 1 else parts[0]
            if target in ROOMS and parts[0] in {"smartrouter", "serve", "bench"}:
                if ROOMS.index(target) > ROOMS.index(room):
                    wrong.append(f"{path}:{line} {room} imports {name}")
            elif parts[0] in {"tests", "tools", "reports"}:
                wrong.append(f"{path}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_layers_tensorflow_only_inside_functions_of_the_rooms_that_may():
    wrong = [
        f"{path}:{line} imports {name}"
        for path in MODULES + PLAIN
        for name, line, at_load in imports(path)
        if name.split(".")[0] in TENSORFLOW and (at_load or room_of(path) not in MAY_HOLD_TENSORFLOW)
    ]
    assert not wrong, "\n".join(wrong)


def test_layers_what_serves_loads_nothing_heavy():
    def light(path: Path) -> bool:
        return room_of(path) in LIGHT or "/".join(path.with_suffix("").parts[1:3]) in LIGHT

    wrong = [
        f"{path}:{line} loads {name}"
        for path in MODULES + PLAIN
        for name, line, at_load in imports(path)
        if light(path) and at_load and name.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.skipif(not (ROOT / "serve" / "app.py").exists(), reason="serve/app.py is not there yet")
def test_layers_the_serving_process_starts_without_the_workbench():
    code = f"import sys, serve.app, smartrouter.cli; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# --- notebooks and the package --------------------------------------------------------------------------------------


def test_default_exp_agrees_with_the_path():
    wrong = [
        f"{path}: {default_exp(path)}"
        for path in TEACHING
        if default_exp(path) != ".".join(path.with_suffix("").parts[1:])
    ]
    assert not wrong, "\n".join(wrong)
    assert [path for path in EXPLORING + REPORTS if default_exp(path)] == []


def test_every_module_has_its_notebook():
    orphans = [path for path in MODULES if not (ROOT / "nbs" / Path(*path.parts[1:]).with_suffix(".ipynb")).exists()]
    assert not orphans, f"modules without a notebook, delete them or bring the notebook back: {orphans}"


def test_sync_the_package_is_what_the_notebooks_export(tmp_path):
    for name in ("nbs", "smartrouter"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    for name in ("settings.ini", "setup.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for path in MODULES:
        (tmp_path / path).unlink(missing_ok=True)
    done = subprocess.run([Path(sys.executable).parent / "nbdev_export"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    fresh = {p.relative_to(tmp_path): p.read_text() for p in (tmp_path / "smartrouter").rglob("*.py")}
    here = {p.relative_to(ROOT): p.read_text() for p in (ROOT / "smartrouter").rglob("*.py")}
    differing = sorted(str(path) for path in fresh.keys() | here.keys() if fresh.get(path) != here.get(path))
    assert not differing, f"run nbdev_export, or bring an edit back with nbdev_update: {differing}"


@pytest.mark.parametrize("notebook", NOTEBOOKS + REPORTS, ids=str)
def test_clean_notebook(notebook):
    from execnb.nbio import dict2nb, nb2str
    from nbdev.clean import clean_nb

    text = (ROOT / notebook).read_text(encoding="utf-8")
    cleaned = dict2nb(json.loads(text))
    clean_nb(cleaned, allowed_cell_metadata_keys=["tags"], clean_ids=False)
    assert json.loads(nb2str(cleaned)) == json.loads(text), f"run: nbdev_clean --fname {notebook}"
    ids = Counter(cell["id"] for cell in cells(notebook))
    assert max(ids.values()) == 1, ids.most_common(2)


# --- style ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", NOTEBOOKS + REPORTS, ids=str)
def test_style_of_notebook(notebook):
    first, all_cells = cells(notebook)[0], cells(notebook)
    assert first["cell_type"] == "markdown"
    lines = [line for line in first["source"].splitlines() if line.strip()]
    assert re.match(r"# \S", lines[0]), "the first cell starts with `# Title`"
    assert lines[1].startswith("> "), "then `> one sentence`, the module's docstring"
    prose = [cell for cell in all_cells if cell["cell_type"] == "markdown"]
    exported = [cell["source"] for cell in all_cells if cell["cell_type"] == "code" and EXPORTED.search(cell["source"])]
    assert len(prose) * 2 >= len(exported), f"{len(prose)} cells of prose for {len(exported)} exported ones"
    written = [[line for line in s.splitlines() if line.strip() and not line.startswith("#|")] for s in exported]
    longest = max(written, key=len, default=[])
    assert len(longest) <= 40, f"an exported cell of {len(longest)} lines: {longest[:2]}"
    size_kb = (ROOT / notebook).stat().st_size / 1000
    assert size_kb <= 250, f"{size_kb:.0f} kB: keep outputs small, plots with few points"
    starred = [s for s in exported if re.search(r"^\s*from \S+ import \*", s, re.M)]
    assert not starred, "import names, not stars"
    failed = [o for c in all_cells for o in c.get("outputs", []) if o["output_type"] == "error"]
    assert not failed, "an output kept is an error; show errors with try and print"


@pytest.mark.parametrize("report", REPORTS, ids=str)
def test_style_a_report_is_linear(report):
    defined = [
        f"{node.name} in cell {cell['id']}"
        for cell in cells(report)
        if cell["cell_type"] == "code"
        for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", cell["source"], flags=re.M)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    assert not defined, f"every number of a report comes from a package call: {defined}"
    assert [c for c in cells(report) if "parameters" in c.get("metadata", {}).get("tags", [])], "no parameters cell"


# --- params ---------------------------------------------------------------------------------------------------------

PARAMS = [path for path in under("params", ".yaml") if path.parts[1] not in PARAMS_WITHOUT_REPORT]


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_params_are_known_to_their_report(params):
    from papermill import inspect_notebook

    report = ROOT / "reports" / f"{params.parts[1]}.ipynb"
    assert report.exists(), f"{params} has no report {report.name}"
    given = yaml.safe_load((ROOT / params).read_text(encoding="utf-8")) or {}
    unknown = set(given) - set(inspect_notebook(str(report)))
    assert not unknown, f"{params} sets {sorted(unknown)}, which {report.name} has no parameter for"


# --- README ---------------------------------------------------------------------------------------------------------


def shown_commands(page: str) -> list[list[str]]:
    """`make …` and `smartrouter …` lines of a page's code blocks, as words."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.M | re.S)
    joined = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    start = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?((?:make|smartrouter)\b.*)")
    found = [match.group(1) for line in joined if (match := start.match(line))]
    return [shlex.split(re.split(r"\s[|&>]", line)[0], comments=True) for line in found]


COMMANDS = sorted({tuple(line) for page in ("README.md", "CONTRIBUTING.md") for line in shown_commands(page)})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_readme_commands_exist(command):
    if command[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        missing = [word for word in command[1:] if "=" not in word and word not in targets]
        assert not missing, f"no such target: {missing}"
        return
    from click.testing import CliRunner

    from smartrouter.cli import main

    words, node = list(command[1:]), main
    while words and hasattr(node, "commands") and words[0] in node.commands:
        node = node.commands[words.pop(0)]
    assert not hasattr(node, "commands") or not words or words[0].startswith("-"), f"no such command: {words[0]}"
    known = {option for param in node.params for option in getattr(param, "opts", [])} | {"--help", "--version"}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known
    shown = CliRunner().invoke(main, [*command[1 : len(command) - len(words)], "--help"])
    assert shown.exit_code == 0, shown.output


def test_readme_names_every_setting():
    from smartrouter.core.settings import PREFIX, Settings

    named = set(re.findall(rf"`{PREFIX}(\w+)`", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named >= {name.upper() for name in Settings.model_fields}
    assert {name for name in named if name != "*"} <= {name.upper() for name in Settings.model_fields}


# --- what must not be here ------------------------------------------------------------------------------------------

TEXT = [p for p in kept_files() if p.suffix not in {".png", ".ico", ".gz", ".parquet", ".npz", ".zip", ".pdf"}]


@cache
def text_of(path: Path) -> str:
    """A kept file's text, the empty string for a binary one."""
    raw = (ROOT / path).read_bytes()
    return "" if b"\0" in raw[:4096] else raw.decode("utf-8", errors="replace")


def test_no_card_number_in_any_file():
    wrong = [
        f"{path}:{number} {masked}"
        for path in TEXT
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if (masked := find_card_number(line))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_path_of_a_machine_and_no_registry_host():
    hosts = ["pypi" + ".org", "python" + "hosted", "conda" + ".anaconda", "index" + "-url", "find" + "-links"]
    places = [r"(?<![\w.])/(?:root|work)/\w", r"(?<![\w.])/home/(?!user\b)\w", r"(?<![\w.])/Users/\w"]
    temporary = [r"/tmp/tmp[a-z0-9_]{8}\b", r"/tmp/ipykernel_\d"]
    here = [re.escape(str(ROOT))]
    pattern = re.compile("|".join([*map(re.escape, hosts), *places, *temporary, *here]))
    wrong = [
        f"{path}:{number} {found.group()}"
        for path in TEXT
        if path != Path("tests/test_house.py")
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if (found := pattern.search(line))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_test_asserts_nothing():
    functions = [
        (path, node)
        for path in under("tests", ".py")
        for node in ast.walk(ast.parse(text_of(path)))
        if isinstance(node, ast.FunctionDef)
    ]
    calls = {
        id(node): {ast.unparse(n.func).split(".")[-1] for n in ast.walk(node) if isinstance(n, ast.Call)}
        for _, node in functions
    }
    checking = {node.name for _, node in functions if any(isinstance(n, ast.Assert) for n in ast.walk(node))}
    checking |= {node.name for _, node in functions if "check=True" in ast.unparse(node)}  # of a subprocess
    checking |= {"raises"}
    while more := {node.name for _, node in functions if calls[id(node)] & checking} - checking:
        checking |= more  # helpers that check, and helpers that call these
    idle = [f"{p}:{n.lineno} {n.name}" for p, n in functions if n.name.startswith("test_") and n.name not in checking]
    assert not idle, idle
