"""Success rate and cost per success of policies on the real attempts file, off-policy: never success alone."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import parts
from smartrouter.router.value import expected_value
from smartrouter.rules.policy import MerchantPolicy, load_policy

MARGINS = (0.02, 0.05, 0.20)  # share of the amount that an approval is worth; the file does not say, so several
SHAPE = {"depth": 6, "trees": 100, "min_examples": 300}
RESAMPLES = 200
Estimator = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]  # reward, action, pscore, action_dist


def snips(
    reward: np.ndarray,  # [n]
    action: np.ndarray,  # [n] columns of action_dist that were taken
    pscore: np.ndarray,  # [n] probability with which they were taken
    action_dist: np.ndarray,  # [n, actions] probabilities of the policy to judge
) -> float:
    """Self-normalised inverse propensity score (Swaminathan and Joachims 2015): mean reward under the policy."""
    weight = action_dist[np.arange(len(action)), action] / pscore
    return float((weight * reward).sum() / weight.sum())


def value(estimator: Estimator = snips) -> list[dict[str, Any]]:
    """Logged, best single, approval-ranked and value-ranked policies on the last 20 % of the real attempts by time."""
    if not parts.REAL.is_file():
        text = f"skipped: no file {parts.REAL.name}; name it in PSP_ATTEMPTS"
        return [parts.row("value on real attempts", "success rate with cost per success", text, None)]
    policy, log, chance, single = judged()
    action = log.processor.map({code: k for k, code in enumerate(policy.codes)}).to_numpy()
    fees = np.array([[p.fees.failure, p.fees.success] for p in policy.processors if p.fees])
    taken = estimated_propensities(log, action, len(policy.codes))
    known = taken[np.arange(len(action)), action]
    amount = log.amount.to_numpy(float)
    worths = {"approval-ranked model": chance}
    for margin in MARGINS:
        columns = [expected_value(chance[:, k], amount, p.fees, margin) for k, p in enumerate(policy.processors)]
        worths[f"value-ranked model, margin {margin:.0%}"] = np.column_stack(columns)
    plans = {"logged": taken, f"best single ({single})": one_hot(np.full(len(log), policy.codes.index(single)), taken)}
    plans |= {name: one_hot(worth.argmax(axis=1), taken) for name, worth in worths.items()}
    outcome = log.approved.to_numpy(int)
    facts = outcome.astype(float), fees[action, outcome], action, known
    blocks = list(log.groupby("order_id", sort=False).indices.values())
    rows = [told(name, estimator, facts, plan, blocks) for name, plan in plans.items()]
    fit = -np.mean(np.log(known)) / -np.sum(taken.mean(axis=0) * np.log(taken.mean(axis=0)))
    text = f"{len(log):,} attempts; propensities {known.min():.3f} to {known.max():.3f}, entropy {fit:.2f} of random"
    return [*rows, parts.row("value, real attempts: how random the assignment is", "", text, None)]


def judged() -> tuple[MerchantPolicy, pd.DataFrame, np.ndarray, str]:
    """Policy, the last 20 % of the log, calibrated approval probability at each processor, and the best single one."""
    from smartrouter.core.settings import Settings
    from smartrouter.features.dataset import build, logged_matrix
    from smartrouter.models import calibrate, forest
    from smartrouter.warehouse.ingest import ingest

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        ingest(parts.REAL, parts.ROOT / "params/ingest/psp.yaml", Settings(home=home))
        policy = load_policy("psp", home)
        table = parts.pull(home, "psp")
    facts = {"time_zone": policy.time_zone, "home_currency": policy.currency}
    data = build(table, processors=policy.codes, calibrate=0.1, test=0.2, **facts)
    early, middle, _ = data.splits.masks(data.at_ms)
    fitted = forest.train(data.X[early], data.y[early], **SHAPE)
    codes = data.X[middle][:, parts.processor_column()].astype(int)
    calibration = calibrate.fit(fitted.logit(data.X[middle]), data.y[middle], codes, len(policy.codes))
    frame = table.to_pandas()
    past = frame[data.columns["at_ms"] < data.splits.test_ms]
    single = past.approved.astype(float).groupby(past.processor).mean().idxmax()
    places = np.flatnonzero(data.columns["at_ms"] >= data.splits.test_ms)
    places = places[frame.approved.notna().to_numpy()[places]]
    chance = np.zeros((len(places), len(policy.codes)))
    for k, code in enumerate(policy.codes):
        number = np.full(len(places), data.lookups.processors.index(code))
        X = logged_matrix(data.columns, places, number, data.reader, data.lookups)
        chance[:, k] = calibration.apply(fitted.logit(X), number + 1)
    return policy, frame.iloc[places].reset_index(drop=True), chance, str(single)


def estimated_propensities(log: pd.DataFrame, action: np.ndarray, actions: int) -> np.ndarray:
    """Probability of each processor given what is known before routing, by logistic regression on the same log."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    facts = pd.get_dummies(log[["brand", "card_country", "prev_processor"]].fillna("none"), dtype=float)
    facts["three_ds"] = log.three_ds.astype(float).fillna(0)
    facts["amount"], facts["attempt"] = np.log1p(log.amount.astype(float)), log.n_previous.clip(upper=4).astype(float)
    hour = log.attempted_at.dt.hour * (2 * np.pi / 24)
    facts["hour_sin"], facts["hour_cos"] = np.sin(hour), np.cos(hour)
    X = StandardScaler().fit_transform(facts)
    found = LogisticRegression(max_iter=500).fit(X, action)
    taken = np.zeros((len(log), actions))
    taken[:, found.classes_] = found.predict_proba(X)
    return taken


def one_hot(choice: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A policy that makes these choices, as probabilities."""
    plan = np.zeros_like(like)
    plan[np.arange(len(choice)), choice] = 1
    return plan


def told(
    name: str,
    estimator: Estimator,
    facts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],  # approved, fee paid, action, pscore
    plan: np.ndarray,
    blocks: list[np.ndarray],  # rows of each purchase: the attempts of one purchase are no independent witnesses
) -> dict[str, Any]:
    """The pair as a row, each with a bootstrap standard error over purchases."""

    def pair(rows: np.ndarray) -> tuple[float, float]:
        approved, fee, action, pscore = (fact[rows] for fact in facts)
        success = estimator(approved, action, pscore, plan[rows])
        return success, estimator(fee, action, pscore, plan[rows]) / success

    rng = np.random.default_rng(7)
    draws = [rng.integers(len(blocks), size=len(blocks)) for _ in range(RESAMPLES)]
    spread = np.std([pair(np.concatenate([blocks[b] for b in draw])) for draw in draws], axis=0)
    success, cost = pair(np.arange(len(plan)))
    weight = plan[np.arange(len(plan)), facts[2]] / facts[3]
    sample = weight.sum() ** 2 / (weight**2).sum()
    text = f"success {success:.2%} ± {spread[0]:.2%}, cost per success {cost:.2f} ± {spread[1]:.2f} EUR"
    return parts.row(f"value, real attempts: {name}", "", f"{text} (effective sample {sample:,.0f})", None)
