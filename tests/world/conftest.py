"""One larger history in memory for all tests of the world."""

from pathlib import Path

import pytest

from smartrouter.world.simulate import World, WorldConfig, simulate

ROOT = Path(__file__).parents[2]
FILES = {
    "merchant_file": ROOT / "params/merchants/volaris.yaml",
    "world_file": ROOT / "params/world/volaris.yaml",
}


@pytest.fixture(scope="session")
def history() -> World:
    """100,000 attempts in 120 days, simulated but not published (about a second)."""
    return simulate(WorldConfig(120, 100_000, 11, **FILES))
