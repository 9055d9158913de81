"""Every notebook runs from top to bottom, all in one process, so that TensorFlow is loaded once."""

import gc
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.fixture
def aside(monkeypatch):
    """Give back what running a notebook in this process changes."""
    main, path, displayhook = sys.modules["__main__"], list(sys.path), sys.displayhook
    environ = dict(os.environ)
    yield
    sys.modules["__main__"], sys.path[:], sys.displayhook = main, path, displayhook
    os.environ.clear()
    os.environ.update(environ)
    gc.collect()


@pytest.mark.notebook
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "nbs").as_posix())
def test_notebook(notebook, aside, capsys):
    from nbdev.test import test_nb as run_notebook

    passed, seconds = run_notebook(notebook, skip_flags=["notest", "slow"])
    with capsys.disabled():  # progress: the slow ones have a name
        print(f"\n{notebook.relative_to(ROOT)} {seconds:.1f} s ", end="", flush=True)
    assert passed, capsys.readouterr().err
