"""A candidate's bounds: measured on the calibration rows, kept by the refit."""

import pytest

from smartrouter.core.settings import Settings
from smartrouter.retrain import steps
from smartrouter.retrain.plan import begin, read_params

SMALL = {"families": ["linear", "mixed"], "linear_iterations": 5, "mixed_trees": 5, "mixed_depth": 3}


@pytest.fixture(scope="module")
def job(small_warehouse, root, tmp_path_factory):
    """A plan of two families, one with variances."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), params=root / "params", warehouse=small_warehouse)
    return begin(read_params(root / "params/retrain/ci.yaml") | SMALL, settings)


def test_the_family_with_variances_gets_bounds_and_the_refit_keeps_them(job):
    data = steps.features(job, steps.extract(job))
    plain, mixed = steps.train(job, data)
    assert plain.bounds is None and mixed.bounds.factor >= 1.0
    assert mixed.bounds.rows <= int(data.splits.masks(data.at_ms)[1].sum()) and mixed.bounds.groups >= 5
    again = steps.refit(job, data, mixed)
    assert again.bounds == mixed.bounds and again.fitted.facts["refit"]
