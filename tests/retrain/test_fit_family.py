"""Every family that the parameters know has a trainer, and gets the plan's parameters."""

from typing import get_args

import numpy as np
import pytest

from smartrouter.features.matrix import CONTRACT
from smartrouter.models.fitted import Untrainable
from smartrouter.models.runtime import FAMILIES
from smartrouter.retrain.plan import Family, ParamsRefused, make_plan
from smartrouter.retrain.steps import fit_family

PLAN = make_plan(
    {
        "deep_layers": [8, 4],
        "deep_epochs": 1,
        "deep_batch": 64,
        "wide_deep_layers": [4, 2],
        "wide_deep_epochs": 2,
        "wide_deep_batch": 32,
        "forest_columns_ratio": 0.4,
        "mixed_columns_ratio": 0.5,
        "forest_trees": 3,
        "mixed_trees": 3,
        "linear_iterations": 5,
    }
)


def rows():
    """300 attempts at two processors."""
    rng = np.random.default_rng(7)
    X = np.zeros((300, len(CONTRACT)), dtype=np.float32)
    X[:, 89], X[:, 9] = rng.integers(1, 3, 300), rng.normal(3, 1, 300)
    return X, (rng.random(300) < 0.6).astype(np.float32)


def test_the_parameters_know_the_families_of_the_runtime():
    assert set(get_args(Family)) == set(FAMILIES)


@pytest.mark.parametrize("family", get_args(Family))
def test_a_family_is_trained_with_the_plans_parameters(family):
    X, y = rows()
    fitted = fit_family(PLAN, family, X, y)
    assert fitted.family == family and np.isfinite(fitted.logit(X)).all()
    wanted = {"layers": [8, 4], "epochs": 1, "batch": 64, "trees": 3, "strength": 1.0}
    wanted |= {"layers": [4, 2], "epochs": 2, "batch": 32} if family == "wide_deep" else {}
    wanted |= {"columns_ratio": {"forest": 0.4, "mixed": 0.5}.get(family)}
    assert all(fitted.facts[name] == value for name, value in wanted.items() if name in fitted.facts)
    with pytest.raises(Untrainable):
        fit_family(PLAN, family, X, y * 0)


@pytest.mark.parametrize("name", ["deep_layers", "wide_deep_layers"])
@pytest.mark.parametrize("layers", [[], [0], [5000], "128", [1.5], [8] * 7])
def test_layers_that_no_network_can_have_are_refused(name, layers):
    with pytest.raises(ParamsRefused, match=name):
        make_plan({name: layers})
