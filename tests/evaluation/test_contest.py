"""The contest: nobody sees the future, nobody chooses what is not eligible, and the oracle regrets nothing."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.evaluation.baselines import DiscountedThompson, FixedOrder, SlidingUCB, SuccessWindow
from smartrouter.evaluation.contest import (
    ContestRefused,
    Costs,
    Payments,
    even,
    mean_by_day,
    oracle,
    payments_of,
    play,
    regret_by_day,
    scoreboard,
    segments,
)
from smartrouter.warehouse.connect import connect
from smartrouter.warehouse.queries import attempts
from smartrouter.world.truth import load_truth, rows_of


def made(n=2_000, k=3, seed=1, never=0.05, closed=0.3):
    """Payments over ten days with delays, gaps in eligibility and outcomes that never arrive."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(0, 10 * 86_400, n))
    chance = rng.uniform(0.4, 0.9, (n, k))
    chance[:, 1:][rng.random((n, k - 1)) < closed] = np.nan
    known = np.where(rng.random(n) < never, np.inf, at + rng.exponential(3_000, n))
    return Payments(at, known, chance, rng.random((n, k)) < np.nan_to_num(chance))


class Witness:
    """Chooses at random and keeps what it was told, in order."""

    def __init__(self):
        self.told, self.clock = [], []

    def choose(self, segment, eligible, rng):
        """Remember how much was known at this payment."""
        self.clock.append(len(self.told))
        return eligible[rng.randrange(len(eligible))]

    def learn(self, segment, processor, approved):
        """Keep it."""
        self.told.append((segment, processor, approved))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200))
def test_outcomes_are_told_when_they_arrive_and_to_whom_they_belong(seed, n):
    payments, witness = made(n, seed=seed), Witness()
    chosen = play(witness, payments, np.arange(n), seed=seed)
    for row, known in enumerate(witness.clock):
        assert known == (payments.known_s < payments.at_s[row]).sum()
    for segment, processor, approved in witness.told:  # the segment is the payment's number
        assert processor == chosen[segment] and approved == payments.approved[segment, processor]
    order = [segment for segment, _, _ in witness.told]
    assert len(set(order)) == len(order) and (np.diff(payments.known_s[order]) >= 0).all()


def test_an_outcome_that_never_arrives_is_never_told():
    payments, witness = made(never=1.0), Witness()
    play(witness, payments, np.zeros(2_000, int), seed=1)
    assert witness.told == []


@pytest.mark.parametrize("make", [SuccessWindow, DiscountedThompson, SlidingUCB])
def test_the_same_seed_plays_the_same_and_only_eligible_ones(make):
    payments = made()
    key = np.arange(2_000) % 3
    once, again = (play(make(3), payments, key, seed=5) for _ in "ab")
    assert np.array_equal(once, again)
    assert np.isfinite(payments.probability[np.arange(2_000), once]).all()


def test_an_ineligible_choice_ends_the_contest():
    class Stubborn(Witness):
        def choose(self, segment, eligible, rng):
            return 2

    payments = made()
    with pytest.raises(ContestRefused, match="processor 2"):
        play(Stubborn(), payments, np.zeros(2_000, int), seed=1)
    with pytest.raises(ContestRefused, match="stubborn: processor 2"):
        entries = {"stubborn": np.full(2_000, 2), "oracle": oracle(payments)}
        scoreboard(payments, entries, baseline="oracle", reference="oracle")


def test_the_oracle_regrets_nothing_and_everybody_else_no_less():
    payments = made()
    key = np.zeros(2_000, int)
    entries = {"oracle": oracle(payments), "even": even(payments, np.random.default_rng(1))}
    entries["thompson"] = play(DiscountedThompson(3), payments, key, seed=1)
    board = scoreboard(payments, entries, baseline="even", reference="thompson").set_index("policy")
    assert board.loc["oracle", ["regret", "regret_se"]].tolist() == [0, 0] and (board.regret >= 0).all()
    assert board.loc["oracle", "share"] == 1 and board.loc["even", "share"] == 0
    assert board.loc["thompson", ["gap", "gap_se"]].tolist() == [0, 0]
    assert board.loc["oracle", "approval"] == pytest.approx(np.nanmax(payments.probability, axis=1).mean())
    total = regret_by_day(payments, entries)
    assert total.iloc[-1]["even"] == pytest.approx(board.loc["even", "regret"] * 2_000)
    assert (total.diff().dropna() >= 0).all().all() and len(total) == 10


def test_even_draws_each_eligible_processor_alike():
    payments = made(20_000, closed=0.0)
    assert np.bincount(even(payments, np.random.default_rng(3))) / 20_000 == pytest.approx(1 / 3, abs=0.015)


def test_fees_are_expected_over_the_truth():
    chance = np.array([[0.5, 0.8], [0.5, 0.8]])
    payments = Payments(np.zeros(2), np.zeros(2), chance, np.ones((2, 2), bool))
    entries = {"cheap": np.zeros(2, int), "dear": np.ones(2, int)}
    costs = Costs(np.array([1.0, 10.0]), np.array([0.5, 5.0]))
    board = scoreboard(payments, entries, baseline="cheap", reference="cheap", costs=costs).set_index("policy")
    assert board.loc["cheap", ["fee", "fee_per_success"]].tolist() == pytest.approx([0.75, 1.5])
    assert board.loc["dear", ["fee", "fee_per_success"]].tolist() == pytest.approx([9.0, 11.25])


def test_days_are_the_witnesses():
    rng = np.random.default_rng(5)
    day = np.repeat(np.arange(50), 40)
    alone = rng.normal(size=2_000)
    together = np.repeat(rng.normal(size=50), 40)
    assert mean_by_day(alone, day * 86_400.0)[1] == pytest.approx(1 / np.sqrt(2_000), rel=0.25)
    assert mean_by_day(together, day * 86_400.0)[1] == pytest.approx(1 / np.sqrt(50), rel=0.25)
    assert np.isnan(mean_by_day(alone, np.zeros(2_000))[1])


def test_segments_number_each_combination_once():
    assert segments(["A", "A", "B", None], [1, 2, 1, 1]).tolist() == [0, 1, 2, 3]
    assert segments(pd.Series([None, None]), ["x", "x"]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p: (p.at_s[::-1], p.known_s, p.probability, p.approved), "order of time"),
        (lambda p: (p.at_s, p.known_s, np.full_like(p.probability, np.nan), p.approved), "without a processor"),
        (lambda p: (p.at_s, p.at_s - 1, p.probability, p.approved), "before its payment"),
        (lambda p: (p.at_s, np.full_like(p.at_s, np.nan), p.probability, p.approved), "NaN"),
        (lambda p: tuple(a[:0] for a in (p.at_s, p.known_s, p.probability, p.approved)), "0 payments"),
    ],
)
def test_payments_that_cannot_be_played_are_refused(change, named):
    with pytest.raises(ContestRefused, match=named):
        Payments(*change(made()))


def test_entries_that_do_not_fit_are_refused():
    payments = made()
    with pytest.raises(ContestRefused, match="one choice for each"):
        scoreboard(payments, {"short": np.zeros(5, int)}, baseline="short", reference="short")
    with pytest.raises(ContestRefused, match="rules"):
        scoreboard(payments, {"oracle": oracle(payments)}, baseline="rules", reference="oracle")


def test_the_simulated_merchant_can_be_played(small_world, small_warehouse):
    truth = load_truth(small_world / "truth")
    with connect(small_warehouse) as warehouse:
        frame = attempts(warehouse, "volaris").select(["attempt_id", "known_at", "currency", "bank"]).to_pandas()
    frame.index = rows_of(truth, frame.attempt_id.to_numpy().astype("U"))
    first = frame.loc[truth.first_attempts(choice_only=True)]
    payments = payments_of(truth, first.index.to_numpy(), first.known_at.dt.tz_localize(None).to_numpy())
    assert (np.isfinite(payments.probability).sum(axis=1) >= 2).all()
    delay = payments.known_s - payments.at_s
    assert 0 < np.isinf(delay).mean() < 0.05 and 0.2 < np.median(delay) < 60
    key = segments(first.bank, first.currency)
    entries = {"oracle": oracle(payments), "ucb": play(SlidingUCB(4, 2000, 0.1), payments, key, seed=1)}
    entries["first"] = play(FixedOrder((0, 1, 2, 3)), payments, key, seed=1)
    board = scoreboard(payments, entries, baseline="first", reference="ucb")
    assert board.policy.iloc[0] == "oracle" and (board.regret_se.iloc[1:] > 0).all()
