"""One pool of payments, the shipped drills and outage parameters for all tests of drills."""

import pytest

from smartrouter.drill.payments import open_pool
from smartrouter.drill.scenario import aimed, changed, load_scenarios, stretched
from smartrouter.outage.config import load_config


@pytest.fixture(scope="session")
def pool(root):
    return open_pool("volaris", root / "params", attempts=6000)


@pytest.fixture(scope="session")
def scenarios(root):
    return load_scenarios(root / "params" / "drill" / "scenarios.yaml")


@pytest.fixture(scope="session")
def config(root):
    return load_config(root / "params" / "outage" / "default.yaml")


@pytest.fixture(scope="session")
def short(pool, scenarios):
    """A shipped drill of a few minutes, aimed at WORLDPAY."""

    def make(name, **values):
        drill = stretched(scenarios[name], 3.0)
        size = {"rate": 2.0, "warm_minutes": 3.0, "minutes": min(drill.minutes, 8.0)}
        return aimed(changed(drill, **size | values), "WORLDPAY", pool.codes)

    return make
