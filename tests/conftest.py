"""What every test shares: a clean environment and one small simulated warehouse a session."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["PLOTLY_RENDERER"] = "json"  # figures are built and serialised, no browser is opened
for _name in [name for name in os.environ if name.startswith("SMARTROUTER_")]:
    del os.environ[_name]  # a developer's own settings must not change what the tests see

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT
