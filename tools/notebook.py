"""Edit notebooks as text: `open` writes .edit/<room>_<name>.py (py:percent), `save` brings it back.

    python tools/notebook.py open nbs/router/decide.ipynb
    $EDITOR .edit/router/decide.py
    python tools/notebook.py save nbs/router/decide.ipynb      # ids, format, clean, export
    python tools/notebook.py save --run nbs/router/decide.ipynb  # and execute it, keeping small outputs

A new notebook is a new .edit file and `save`. Exported cells get ids a person can read, because the exported
module shows them.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPORT = re.compile(r"^#\|\s*exports?\b", re.M)
NAME = re.compile(r"^(?:@.*\n)*(?:def|class|async def)\s+(\w+)|^([A-Za-z_]\w*)\s*(?::[^=\n]+)?=", re.M)


def run(*command: str, cwd: Path = ROOT) -> None:
    """Run a tool of this environment; stop with its output when it fails."""
    tool = Path(sys.executable).parent / command[0]
    done = subprocess.run([str(tool), *command[1:]], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def text_path(notebook: Path) -> Path:
    """Where the text twin of a notebook lies."""
    relative = notebook.resolve().relative_to(ROOT)
    return ROOT / ".edit" / Path(*relative.parts[1:]).with_suffix(".py")


def name_cells(notebook: Path) -> None:
    """Give every cell a stable id: exported ones the name they define, others their place."""
    content = json.loads(notebook.read_text())
    taken: set[str] = set()
    for index, cell in enumerate(content["cells"]):
        source = "".join(cell["source"])
        found = NAME.search(source) if EXPORT.search(source) else None
        stem = (found.group(1) or found.group(2)) if found else f"{cell['cell_type'][:4]}-{index:02d}"
        stem = "imports" if EXPORT.search(source) and not found else stem.strip("_") or "private"
        name, n = stem[:60], 2
        while name in taken:
            name, n = f"{stem[:56]}-{n}", n + 1
        taken.add(name)
        cell["id"] = name
    content["metadata"] = {
        "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"},
    }
    content["nbformat"], content["nbformat_minor"] = 4, 5
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def drop_chatter(notebook: Path) -> None:
    """Drop what libraries wrote to stderr while the notebook ran."""
    content = json.loads(notebook.read_text())
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def save(notebook: Path, execute: bool) -> None:
    """Text twin -> notebook -> (executed) -> cleaned -> module."""
    source = text_path(notebook)
    notebook.parent.mkdir(parents=True, exist_ok=True)
    update = ["--update"] if notebook.exists() else []
    run("jupytext", *update, "--to", "ipynb", "--set-kernel", "python3", str(source), "-o", str(notebook))
    name_cells(notebook)
    run("ruff", "format", "-q", str(notebook))
    run("ruff", "check", "-q", "--fix", str(notebook))
    exported = notebook.resolve().is_relative_to(ROOT / "nbs")
    if exported:  # before running: the first example of a notebook imports its own module
        run("nbdev_export", "--path", str(notebook))
    if execute:
        run("jupyter", "execute", "--inplace", "--timeout=600", str(notebook), cwd=notebook.parent)
        drop_chatter(notebook)
    run("nbdev_clean", "--fname", str(notebook))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["open", "save"])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--run", action="store_true", help="execute the notebook and keep its outputs")
    options = parser.parse_args()
    for notebook in options.notebooks:
        if options.action == "save":
            save(notebook.resolve(), options.run)
        else:
            target = text_path(notebook)
            target.parent.mkdir(parents=True, exist_ok=True)
            run("jupytext", "--to", "py:percent", str(notebook), "-o", str(target))
            print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
