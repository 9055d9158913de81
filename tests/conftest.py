"""What every test shares: a clean environment and one small simulated warehouse a session."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["PLOTLY_RENDERER"] = "json"  # figures are built and serialised, no browser is opened
for _name in [name for name in os.environ if name.startswith("SMARTROUTER_")]:
    del os.environ[_name]  # a developer's own settings must not change what the tests see

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("house", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("house")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with warehouse.duckdb and truth/ of a simulated merchant: 12,000 attempts in 40 days."""
    from smartrouter.world.publish import build

    folder = tmp_path_factory.mktemp("world")
    files = {"merchant_file": ROOT / "params/merchants/volaris.yaml", "world_file": ROOT / "params/world/volaris.yaml"}
    build(folder / "warehouse.duckdb", folder / "truth", days=40, attempts=12_000, seed=7, **files)
    return folder


@pytest.fixture(scope="session")
def small_warehouse(small_world: Path) -> str:
    """The URL of the small simulated warehouse."""
    return f"duckdb:///{small_world / 'warehouse.duckdb'}"
