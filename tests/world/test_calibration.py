"""Does the world look like Mexico, and is it hard? Public figures are in the docstrings."""

import numpy as np
import pytest

from smartrouter.world.physics import CAUSES


@pytest.fixture(scope="module")
def first(history):
    """Row numbers of the first attempts of all orders."""
    return np.flatnonzero(history.attempts["is_first"])


def mean(history, rows) -> float:
    return float(history.attempts["approved"][rows].mean())


def test_the_number_of_attempts_is_what_was_asked_for(history):
    assert len(history.attempts["at"]) == pytest.approx(100_000, rel=0.03)


def test_acceptance_by_count_and_by_value(history, first):
    """Card-not-present acceptance in Mexico is 62 to 72 % by count and lower by value (Banxico, CONDUSEF)."""
    by_count = mean(history, first)
    amount = history.demand.orders["amount_mxn"][history.attempts["order"][first]].astype(float)
    by_value = float((history.attempts["approved"][first] * amount).sum() / amount.sum())
    assert 0.62 <= by_count <= 0.72
    assert 0.02 < by_count - by_value < 0.10


def test_credit_is_accepted_more_often_than_debit(history, first):
    """72 against 69 % in September 2024, 65 to 71 against 60 to 64 % in 2016 to 2018."""
    funding = history.catalogue.bin_funding[history.attempts["bin"][first]]
    credit, debit, prepaid = (mean(history, first[funding == code]) for code in range(3))
    assert 0.03 < credit - debit < 0.12 and debit > prepaid


def test_insufficient_funds_are_near_45_percent_of_declines(history, first):
    """One processor publishes 45 % for airlines."""
    declined = first[~history.attempts["approved"][first]]
    assert 0.40 <= np.mean(history.attempts["cause"][declined] == CAUSES.index("funds")) <= 0.50


def test_every_cause_happens_and_technical_ones_are_rare(history, first):
    cause = history.attempts["cause"][first]
    assert set(cause) == set(range(len(CAUSES)))
    technical = np.isin(cause, [CAUSES.index("timeout"), CAUSES.index("technical")]).mean()
    assert 0.003 < technical < 0.02


def test_the_oracle_beats_the_rules_by_two_points_and_not_by_ten(history, first):
    """Published live uplift over rules is 0.9 to 1.2 points; the best possible must be above that, and not a gift."""
    p, share = history.truth["p"][first], history.attempts["at"][first] / (history.config.days * 86400)
    current = history.book.version_at(share) == len(history.book.versions) - 1
    rules = p[np.arange(len(first)), history.attempts["ruled"][first]]
    lift = (np.nanmax(p, axis=1) - rules)[current].mean()
    assert 0.018 <= lift <= 0.030


def test_the_rules_are_sensible(history, first):
    """The current rules are at least about as good as the best single processor of each currency, in hindsight."""
    share = history.attempts["at"][first] / (history.config.days * 86400)
    rows = first[history.book.version_at(share) == len(history.book.versions) - 1]
    p, currency = (
        history.truth["p"][rows].astype(float),
        history.demand.orders["currency"][history.attempts["order"][rows]],
    )
    several = np.isfinite(p).sum(axis=1) > 1
    single = np.zeros(len(rows))
    for code in np.unique(currency[several]):
        own = several & (currency == code)
        single[own] = p[own][:, np.nan_to_num(p[own]).sum(axis=0).argmax()]
    rules = p[np.arange(len(rows)), history.attempts["ruled"][rows]]
    assert rules[several].mean() > single[several].mean() - 0.002


def test_most_of_the_gap_is_structure(history, first):
    """Perfect averages per issuer, currency and amount band reach well over half of the oracle; never all of it."""
    share = history.attempts["at"][first] / (history.config.days * 86400)
    rows = first[history.book.version_at(share) == len(history.book.versions) - 1]
    a, orders, p = history.attempts, history.demand.orders, history.truth["p"][rows].astype(float)
    band = np.searchsorted(history.file.physics.amount_bands, orders["amount_mxn"][a["order"][rows]])
    cells = (a["issuer"][rows].astype(int) * 8 + orders["currency"][a["order"][rows]]) * 4 + band
    sums = np.stack([np.bincount(cells, np.nan_to_num(p[:, k])) for k in range(p.shape[1])], axis=1)
    choice = np.where(np.isfinite(p), sums[cells], -1).argmax(axis=1)
    own = np.arange(len(rows))
    rules, oracle = p[own, a["ruled"][rows]].mean(), np.nanmax(p, axis=1).mean()
    assert 0.5 < (p[own, choice].mean() - rules) / (oracle - rules) < 0.95


def test_probabilities_are_honest(history):
    """Among attempts with a stated probability near x, a share near x is approved: also for retries."""
    a, p = history.attempts, history.truth["p"]
    chosen = p[np.arange(len(p)), a["processor"]].astype(float)
    for rows in (a["is_first"], ~a["is_first"]):
        bins = np.digitize(chosen[rows], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
        for code in np.unique(bins):
            own = bins == code
            tolerance = 0.01 + 4 * 0.5 / np.sqrt(own.sum())
            assert abs(a["approved"][rows][own].mean() - chosen[rows][own].mean()) < tolerance
    for column in range(p.shape[1]):
        fits = np.isfinite(p[:, column])
        assert abs(history.truth["y"][fits, column].mean() - p[fits, column].mean()) < 0.01


def test_retries_are_correlated(history):
    """An empty account stays empty a second later; a technical failure heals at another processor."""
    a = history.attempts
    cause = np.zeros(a["is_first"].sum(), np.int8)
    cause[a["order"][a["is_first"]]] = a["cause"][a["is_first"]]
    second = (a["payment"] == 1) & (a["sequence"] == 2)
    why = cause[a["order"][second]]
    rate = {name: a["approved"][second][why == CAUSES.index(name)].mean() for name in ("funds", "risk", "timeout")}
    assert rate["funds"] < 0.05 < rate["risk"] < mean(history, a["is_first"]) - 0.15 < rate["timeout"]


def test_funds_heal_with_days(history):
    """Renewals that lacked money pay more often a day or more later than a cascade does at once."""
    a, renewal = history.attempts, history.demand.orders["is_renewal"][history.attempts["order"]]
    later = (a["payment"] > 1) & (a["sequence"] == 1) & renewal
    assert a["approved"][later].mean() > 0.10


def test_exploration_share_and_propensity(history):
    a = history.attempts
    several = np.isfinite(history.truth["p"]).sum(axis=1) > 1
    first = a["is_first"] & several
    assert abs(a["explored"][first].mean() - 0.04) < 0.004
    assert not a["explored"][~several].any() and (a["propensity"][~several] == 1).all()
    followed = a["processor"] == a["ruled"]
    assert (a["propensity"][first & followed] > 0.96).all() and (a["propensity"][first & ~followed] < 0.021).all()
    assert abs(np.mean(1 / a["propensity"][first] * (a["processor"][first] == 0) / 1) -
               np.isfinite(history.truth["p"][first, 0]).mean()) < 0.05  # fmt: skip


def test_rhythm_nights_and_paydays(history):
    local = history.demand.orders["at"] / 3600 + history.catalogue.utc_offset_hours
    hour = (local % 24).astype(int)
    assert np.mean(hour == 3) < 0.25 * np.mean(hour == 20)
    day = np.bincount((local / 24).clip(0).astype(int), minlength=121)
    assert day[10] > 1.15 * np.mean([day[3], day[17]]), "payday against the same weekday around it"


def test_outages_and_issuer_events(history):
    kinds = {event[2] for event in history.weather.events}
    assert {"hard", "brownout", "slow", "issuer_event"} <= kinds
    _, who, _, start, end = next(e for e in history.weather.events if e[0] == "issuer")
    issuer = [i.name for i in history.file.issuers].index(who)
    assert history.weather.issuer_decline[int((start + end) / 2 / 600), issuer] > 0.5
    hard = next(e for e in history.weather.events if e[2] == "hard")
    column = history.catalogue.processors.index(hard[1])
    assert history.weather.technical[int((hard[3] + hard[4]) / 120), column] > 0.9


def test_feedback_is_late_twice_and_never(history):
    a = history.attempts
    delay = a["known_at"] - a["at"]
    assert 0.001 < np.isnan(delay).mean() < 0.01
    assert 0.01 < np.nanmean(delay > 120) < 0.06
    assert 0.005 < np.isfinite(a["repeated_at"]).mean() < 0.02
    assert np.nanmax(a["known_at"]) < history.config.days * 86400
