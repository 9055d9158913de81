"""The router in a closed loop where nearly all payments go to one processor."""

import pytest

from bench.favoured_bench import swallowed


@pytest.mark.parametrize("seed", range(4))
def test_a_black_hole_that_gets_nearly_all_payments_is_left_before_its_first_time_out(seed):
    codes, lost, told = swallowed(seed, 0.02, {0: (0.0, 60.0)}, 20.0)
    assert told[0][:2] == (codes[0], "down") and told[0][2] < 8 and len(lost) < 80


def test_a_second_black_hole_is_left_too_and_is_no_gap():
    codes, lost, told = swallowed(1, 0.0, {0: (0.0, 60.0), 1: (20.0, 60.0)})
    assert [(key, after) for key, after, _ in told if after in ("down", "gap")][:2] == [
        (codes[0], "down"),
        (codes[1], "down"),
    ]
    assert len(lost) < 120


@pytest.mark.parametrize("exploration", [0.02, 0.0])
def test_a_gap_where_one_gets_nearly_all_takes_out_no_other(exploration):
    codes, _, told = swallowed(1, exploration, {place: (0.0, 60.0) for place in range(4)}, 25.0)
    assert [key for key, after, _ in told if after == "down"] == [codes[0]]
