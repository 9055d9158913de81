"""Success rate and cost per success of policies on the real attempts file, off-policy: never success alone."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import parts
from smartrouter.evaluation.baselines import best_single
from smartrouter.evaluation.overlap import OverlapRefused, checked_log, overlap_of, require_overlap
from smartrouter.evaluation.policy import snips
from smartrouter.router.value import expected_value
from smartrouter.rules.policy import MerchantPolicy, load_policy

MARGINS = (0.02, 0.05, 0.20)  # share of the amount that an approval is worth; the file does not say, so several
SHAPE = {"depth": 6, "trees": 100, "min_examples": 300}
RESAMPLES = 200


def value() -> list[dict[str, Any]]:
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
    rows = [told(name, facts, plan, blocks) for name, plan in plans.items()]
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
    heard = past[past.approved.notna()]
    column = heard.processor.map({code: k for k, code in enumerate(policy.codes)}).to_numpy()
    single = policy.codes[best_single(column, heard.approved.astype(float), len(policy.codes)).order[0]]
    places = np.flatnonzero(data.columns["at_ms"] >= data.splits.test_ms)
    places = places[frame.approved.notna().to_numpy()[places]]
    chance = np.zeros((len(places), len(policy.codes)))
    for k, code in enumerate(policy.codes):
        number = np.full(len(places), data.lookups.processors.index(code))
        X = logged_matrix(data.columns, places, number, data.reader, data.lookups)
        chance[:, k] = calibration.apply(fitted.logit(X), number + 1)
    return policy, frame.iloc[places].reset_index(drop=True), chance, str(single)


def estimated_propensities(log: pd.DataFrame, action: np.ndarray, actions: int) -> np.ndarray:
    """Probability of each processor given what is known before routing, by cross-fitted logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.preprocessing import StandardScaler

    facts = pd.get_dummies(log[["brand", "card_country", "prev_processor"]].fillna("none"), dtype=float)
    facts["three_ds"] = log.three_ds.astype(float).fillna(0)
    facts["amount"], facts["attempt"] = np.log1p(log.amount.astype(float)), log.n_previous.clip(upper=4).astype(float)
    hour = log.attempted_at.dt.hour * (2 * np.pi / 24)
    facts["hour_sin"], facts["hour_cos"] = np.sin(hour), np.cos(hour)
    X = StandardScaler().fit_transform(facts)
    taken = np.zeros((len(log), actions))
    found = cross_val_predict(LogisticRegression(max_iter=500), X, action, method="predict_proba")
    taken[:, np.unique(action)] = found
    return taken


def one_hot(choice: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A policy that makes these choices, as probabilities."""
    plan = np.zeros_like(like)
    plan[np.arange(len(choice)), choice] = 1
    return plan


def told(
    name: str,
    facts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],  # approved, fee paid, action, pscore
    plan: np.ndarray,
    blocks: list[np.ndarray],  # rows of each purchase: the attempts of one purchase are no independent witnesses
) -> dict[str, Any]:
    """The pair as a row, each with a bootstrap standard error over purchases."""

    def pair(rows: np.ndarray) -> tuple[float, float]:
        approved, fee, action, pscore = (fact[rows] for fact in facts)
        success = snips(approved, action, pscore, plan[rows]).estimate
        return success, most * snips(fee / most, action, pscore, plan[rows]).estimate / success

    most = facts[1].max()  # the estimator takes rewards in [0, 1]
    try:
        overlap = require_overlap(overlap_of(checked_log(facts[0], facts[2], facts[3], plan)))
    except OverlapRefused as error:
        return parts.row(f"value, real attempts: {name}", "", f"refused: {error}", None)
    rng = np.random.default_rng(7)
    draws = [rng.integers(len(blocks), size=len(blocks)) for _ in range(RESAMPLES)]
    spread = np.std([pair(np.concatenate([blocks[b] for b in draw])) for draw in draws], axis=0)
    success, cost = pair(np.arange(len(plan)))
    text = f"success {success:.2%} ± {spread[0]:.2%}, cost per success {cost:.2f} ± {spread[1]:.2f} EUR"
    return parts.row(f"value, real attempts: {name}", "", f"{text} (effective sample {overlap.ess:,.0f})", None)
