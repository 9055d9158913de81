"""Six kinds of payment log whose truth is known, to judge off-policy estimates on; knows nothing of any estimator.

Fixed before an estimator was tried on them: sizes, coefficients and seeds stay when a bar is missed. The approval
of a payment depends on issuer, amount, funding, border and processor, with interactions that no linear model holds
and with a part of the customer's own that nobody sees. The logging policy is a table of rules plus exploration (or a
softmax of the same scores); the policy in question is another, better informed table followed 98 % of the time.
"""

from dataclasses import dataclass

import numpy as np

WORLDS = 400  # of each kind
SEED = 20_261_124  # world i of kind k is drawn from (SEED, k, i)
POPULATION = 50_000  # payments that the true value is averaged over; leaves an error of 0.0005 in it
ISSUERS = 4
FOLLOW = 0.98  # share in which the policy in question takes its own first choice; the rest is drawn evenly


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of log."""

    name: str
    n: int  # logged payments
    actions: int  # processors
    explore: float  # share of payments drawn evenly among the eligible; 0: softmax of the scores
    eligible: float = 1.0  # chance that a processor is eligible for an issuer and border


KINDS = (
    Kind("exploration 2 %", 20_000, 6, 0.02),
    Kind("exploration 5 %", 5_000, 6, 0.05),
    Kind("exploration 10 %", 5_000, 6, 0.10),
    Kind("exploration 20 %, eligibility", 5_000, 8, 0.20, eligible=0.7),
    Kind("softmax logging", 5_000, 6, 0.0),
    Kind("small n", 600, 4, 0.20),
)
SHARPNESS = 3.0  # of the softmax, per unit of logit


@dataclass(frozen=True, slots=True)
class World:
    """A log, the policy in question on it, and that policy's true approval rate."""

    X: np.ndarray  # [n, 6] what a model may see: amount, credit, cross-border, issuer (three indicators)
    eligible: np.ndarray  # bool [n, actions]
    action: np.ndarray  # int [n]
    pscore: np.ndarray  # [n] probability with which that action was taken
    reward: np.ndarray  # [n] 1 = approved
    action_dist: np.ndarray  # [n, actions] the policy in question
    truth: float  # its approval rate in the population
    logged_truth: float  # the logging policy's


@dataclass(frozen=True, slots=True)
class Merchant:
    """The coefficients of one world."""

    kind: Kind
    first: np.ndarray  # [actions]
    issuer: np.ndarray  # [issuers, actions]
    slope: np.ndarray  # [actions] of the amount
    large: np.ndarray  # [actions] above one standard deviation of the amount: a threshold
    abroad: np.ndarray  # [actions] credit and cross-border together: a product
    own: np.ndarray  # [issuers] common to all processors
    allowed: np.ndarray  # bool [issuers, 2, actions]
    old_noise: np.ndarray  # [cells, actions] what the logging rules believe beside the truth
    new_noise: np.ndarray  # [cells, actions]


def merchant(kind: Kind, rng: np.random.Generator) -> Merchant:
    """Draw the coefficients of one world."""
    k, cells = kind.actions, ISSUERS * 8
    allowed = rng.random((ISSUERS, 2, k)) < kind.eligible
    allowed[..., 0] = allowed[..., 1] = True  # two processors take everything
    return Merchant(
        kind=kind,
        first=rng.normal(0, 0.25, k),
        issuer=rng.normal(0, 0.4, (ISSUERS, k)),
        slope=rng.normal(0, 0.2, k),
        large=rng.normal(0, 0.4, k),
        abroad=rng.normal(0, 0.4, k),
        own=rng.normal(0, 0.3, ISSUERS),
        allowed=allowed,
        old_noise=rng.normal(0, 0.6, (cells, k)),
        new_noise=rng.normal(0, 0.3, (cells, k)),
    )


def payments(m: Merchant, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw n payments: what a model may see, the true approval probabilities, and both policies."""
    amount, credit = rng.normal(0, 1, n), rng.random(n) < 0.6
    border, issuer = rng.random(n) < 0.25, rng.choice(ISSUERS, n, p=[0.4, 0.3, 0.2, 0.1])
    large = amount > 1
    common = 0.35 + 0.5 * credit - 0.6 * border - 0.25 * amount + m.own[issuer]
    by_action = m.first + m.issuer[issuer] + amount[:, None] * m.slope
    by_action = by_action + large[:, None] * m.large + (credit & border)[:, None] * m.abroad
    hidden = rng.normal(0, 0.8, n)  # the customer's own part: the same at every processor
    approval = 1 / (1 + np.exp(-(common + hidden)[:, None] - by_action))
    eligible = m.allowed[issuer, border.astype(int)]
    cell = issuer * 8 + credit * 4 + border * 2 + large
    old = np.where(eligible, by_action + m.old_noise[cell], -np.inf)
    new = np.where(eligible, by_action + m.new_noise[cell], -np.inf)
    even = eligible / eligible.sum(axis=1, keepdims=True)
    if m.kind.explore > 0:
        logging = (1 - m.kind.explore) * first_choice(old) + m.kind.explore * even
    else:
        odds = np.exp(SHARPNESS * (old - old.max(axis=1, keepdims=True)))
        logging = odds / odds.sum(axis=1, keepdims=True)
    X = np.column_stack([amount, credit, border, *(issuer == i for i in range(1, ISSUERS))]).astype(float)
    policy = FOLLOW * first_choice(new) + (1 - FOLLOW) * even
    return {"X": X, "eligible": eligible, "approval": approval, "logging": logging, "policy": policy}


def first_choice(scores: np.ndarray) -> np.ndarray:
    """Return 1 at each row's highest score and 0 elsewhere."""
    return (np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]).astype(float)


def world(place: int, index: int, seed: int = SEED) -> World:
    """Return world `index` of kind number `place`."""
    rng = np.random.default_rng((seed, place, index))
    m = merchant(KINDS[place], rng)
    whole = payments(m, POPULATION, rng)
    log = payments(m, m.kind.n, rng)
    rows = np.arange(m.kind.n)
    action = (log["logging"].cumsum(axis=1) > rng.random(m.kind.n)[:, None]).argmax(axis=1)
    return World(
        X=log["X"],
        eligible=log["eligible"],
        action=action,
        pscore=log["logging"][rows, action],
        reward=(rng.random(m.kind.n) < log["approval"][rows, action]).astype(float),
        action_dist=log["policy"],
        truth=float((whole["policy"] * whole["approval"]).sum(axis=1).mean()),
        logged_truth=float((whole["logging"] * whole["approval"]).sum(axis=1).mean()),
    )
