"""The bench of recovery holds its bars on few seeds, and shows the mistakes of the usual rules."""

import numpy as np
import pytest

from bench.recovery_bench import KINDS, Fixed, Ours, played
from smartrouter.outage.control import ControlConfig


@pytest.mark.parametrize("rate", [1.0, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_recovery_costs_few_payments_and_little_time(rate, kind):
    found = played(lambda: Ours(ControlConfig()), rate, KINDS[kind], 60)
    assert np.mean([t.probes for t in found]) <= 10
    assert np.mean([t.delay_s for t in found]) <= 160
    assert np.mean([t.wrong for t in found]) <= 0.1


def test_five_in_a_row_restores_a_brown_out_by_mistake():
    found = played(lambda: Fixed(0.01, 0.0, 5), 10.0, KINDS["50 % brown-out"], 10)
    assert np.mean([t.wrong for t in found]) > 1 and np.mean([t.probes for t in found]) > 50
