"""Features that know the outcome are caught, honest ones are not, and what cannot be audited is refused."""

import numpy as np
import pytest

from smartrouter.monitor.leakage import (
    AuditRefused,
    Limits,
    audit,
    earlier_of,
    leakage_checks,
    own_outcome,
    time_test,
)

N = 12_000


def simulated(seed=7):
    """Users with their own approval rates, and labels: rows by time."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 1_500, N)
    return rng, user, (rng.random(N) < rng.beta(6, 4, 1_500)[user]).astype(float)


def history(user, y, own):
    """Shrunk approval rate of the user so far, with or without the attempt itself."""
    seen, approved, out = np.zeros(user.max() + 1), np.zeros(user.max() + 1), np.empty(len(y))
    for i, (u, label) in enumerate(zip(user, y, strict=True)):
        if own:
            seen[u], approved[u] = seen[u] + 1, approved[u] + label
        out[i] = (approved[u] + 3) / (seen[u] + 5)
        if not own:
            seen[u], approved[u] = seen[u] + 1, approved[u] + label
    return out


def probes(x, y, user):
    found = audit(np.column_stack([x]), y, ["x"], {"user": earlier_of(user, np.arange(N))})
    return {one.probe for one in found}


def test_each_kind_of_leak_is_caught_by_its_probe():
    rng, user, y = simulated()
    assert probes(history(user, y, own=True), y, user) == {"own outcome"}
    assert "power" in probes(np.where(y == 1, rng.integers(1, 9, N), 0), y, user)
    refunded = np.where((y == 1) & (rng.random(N) < 0.2), 1.0, 0.0)  # seldom there, and then the payment was approved
    assert probes(refunded, y, user) == {"certain"}


def test_honest_features_raise_no_alarm_in_thirty_worlds():
    alarms = []
    for seed in range(30):
        rng, user, y = simulated(seed)
        amount = rng.lognormal(7, 1, N) * (1 + 0.3 * y)  # of the request, and predicts
        X = np.column_stack([history(user, y, own=False), amount, rng.normal(size=N), user % 7])
        earlier = {"user": earlier_of(user, np.arange(N))}
        alarms += audit(X, y, ["history", "amount", "noise", "code"], earlier)
    assert alarms == []


def test_power_is_flagged_only_beyond_chance():
    rng, user, y = simulated()
    x = y + rng.normal(0, 1 / 0.96, N)  # its true AUC is about 0.75
    assert "power" not in probes(x, y, user)
    assert "power" in probes(y + rng.normal(0, 0.8, N), y, user)
    few = audit(x[:1_000, None], y[:1_000], ["x"], {}, limits=Limits(auc=0.74))
    assert few == []


def test_constant_and_trusted_features_are_left_alone():
    _, user, y = simulated()
    assert probes(np.full(N, -1.0), y, user) == set()
    assert audit(y[:, None], y, ["x"], {}, trusted=("x",)) == []


def test_certainty_looks_at_first_attempts_only():
    _, _, y = simulated()
    first = np.arange(N) % 5 > 0
    stolen = np.where(first, 0.0, 1.0)
    y = np.where(first, y, 0.0)  # after a hard decline nothing is approved, and that is known
    assert audit(stolen[:, None], y, ["hard decline before"], {}, first) == []
    assert {s.probe for s in audit(stolen[:, None], y, ["hard decline before"], {})} == {"certain"}


@pytest.mark.parametrize(
    ("rows", "y"), [(999, np.arange(999) % 2), (2_000, np.ones(2_000)), (2_000, np.arange(1_999) % 2)]
)
def test_what_cannot_be_audited_is_refused(rows, y):
    with pytest.raises(AuditRefused, match="1,000 rows or more"):
        audit(np.zeros((rows, 1)), y, ["x"], {})


def test_earlier_of_links_rows_of_one_entity():
    keys = np.array([5, 6, 5, 5, 6, 7])
    assert earlier_of(keys, np.arange(6)).tolist() == [-1, -1, 0, 2, 1, -1]
    assert earlier_of(keys, np.array([0, 3, 4])).tolist() == [-1, -1, -1, 0, -1, -1]
    assert earlier_of(keys, np.array([], dtype=int)).tolist() == [-1] * 6


def test_own_outcome_of_a_feature_that_never_moves_is_zero():
    pairs = np.column_stack([np.arange(1, 100), np.arange(99)])
    assert own_outcome(np.zeros(100), np.arange(100) % 2, pairs) == 0


def test_the_time_test_counts_what_differs():
    given = np.array([[1.0, 2.0], [np.nan, 4.0]])
    assert time_test(given, given.copy(), ["a", "b"]) == {}
    assert time_test(given, np.array([[1.0, 2.5], [np.nan, 4.5]]), ["a", "b"]) == {"b": 2}
    with pytest.raises(AuditRefused):
        time_test(given, given[:1], ["a", "b"])


def test_the_checks_name_feature_and_count():
    checks = leakage_checks([], {"user_rate": 17}, 50_000, 200)
    assert [c.passed for c in checks] == [True, False] and "user_rate (17 times)" in checks[1].found
