"""Our router against the baseline policies, on the same payments of the simulated merchant."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import parts
from bench.model_bench import contenders
from smartrouter.evaluation.baselines import (
    DiscountedThompson,
    Learner,
    SlidingUCB,
    SuccessWindow,
    best_single,
)
from smartrouter.evaluation.contest import (
    Costs,
    Payments,
    chances,
    even,
    oracle,
    payments_of,
    play,
    regret_by_day,
    scoreboard,
    segments,
)
from smartrouter.world.truth import Truth, load_truth, rows_of

SEED = 7
SEEDS = (7, 8, 9)  # of the best baseline, whose luck the bar must not hang on
FAMILIES: dict[str, list[tuple[str, Callable[[int], Learner]]]] = {  # what each may choose from before the last month
    "success window": [(f"{n} outcomes", partial(SuccessWindow, window=n)) for n in (125, 500, 2000)],
    "discounted Thompson": [(f"discount {g}", partial(DiscountedThompson, discount=g)) for g in (0.998, 0.9995)],
    "sliding-window UCB": [
        (f"{n} outcomes, xi {xi}", partial(SlidingUCB, window=n, xi=xi))
        for n, xi in ((2000, 0.1), (8000, 0.1), (8000, 0.6))
    ],
}


FEES = {"WORLDPAY": (0.20, 0.10), "MIT": (0.12, 0.06), "ELAVON": (0.15, 0.05), "AMEX": (0.30, 0.10)}  # USD, assumed


def contest() -> list[dict[str, Any]]:
    """Approval, regret, fees and share of the achievable lift of each policy in the last month of fresh worlds."""
    return [row for seed in parts.FRESH for row in contest_of(seed)]


def contest_of(world: int) -> list[dict[str, Any]]:
    """All policies on the world of that seed, and the bar.

    Baselines choose in closed loop and learn from their own outcomes. Ours, trained on the months before, reads the
    history as the log has it, and explores the share that the merchant's policy sets.
    """
    folder = parts.build_world(250_000, "quarter", world)
    table, truth = parts.pull(folder), load_truth(folder / "truth")
    ids, ours = champion(table)
    rows, payments, keys, first = field(table, truth)
    place = {row: at for at, row in enumerate(rows.tolist())}
    judged = [(place[row], code) for row, code in zip(rows_of(truth, ids).tolist(), ours, strict=True) if row in place]
    last, chosen = np.array([at for at, _ in judged]), codes_of(truth, [code for _, code in judged])
    before = np.flatnonzero(payments.at_s < payments.at_s[last].min())
    width = len(truth.processors)
    rules = codes_of(truth, truth.rules_processor[rows])
    logged = codes_of(truth, truth.processor[rows])
    heard = before[first.approved.notna().to_numpy()[before]]
    single = best_single(logged[heard], first.approved.to_numpy()[heard].astype(float), width)
    whole = {"static rules": rules, "logged (rules, some explored)": logged}
    whole["best single processor"] = play(single, payments, keys["none"], SEED)
    whole["drawn evenly"] = even(payments, np.random.default_rng(SEED))
    published, tuned = tune(payments, before, keys, width)
    whole |= {name: choice for name, (choice, _) in {**published, **tuned}.items()}
    entries = {name: choice[last] for name, choice in whole.items()} | {
        "ours": explored(payments.take(last), chosen),
        "ours without exploration": chosen,
        "oracle": oracle(payments)[last],
    }
    period = payments.take(last)
    success, failure = np.array([FEES[code] for code in truth.processors]).T
    board = scoreboard(period, entries, baseline="static rules", reference="ours", costs=Costs(success, failure))
    lines = regret_by_day(period, entries)[9::10].T.round().to_string()
    parts.say(f"approvals lost against the oracle, each tenth day:\n{lines}")
    regret = board.set_index("policy").regret.drop("oracle")
    window, best = next(iter(published)), regret.drop(["ours", "ours without exploration"]).index[0]
    truths = chances(payments, oracle(payments))
    seeds = SEEDS if best in tuned else ()
    lost = [(truths - chances(payments, tuned[best][1](seed)))[last].mean() for seed in seeds] or [regret[best]]
    text = f"{regret['ours'] / np.mean(lost):.2f} times: ours {regret['ours'] * 100:.3f} points a payment, {best} "
    text += f"{np.mean(lost) * 100:.3f} (seeds: {', '.join(f'{x * 100:.3f}' for x in lost)})"
    against = f"{regret['ours'] / regret[window]:.2f} times"
    name = f"contest, seed {world}: our regret against the"
    return [
        *(shown_row(line, world) for line in board.to_dict("records")),
        parts.row(f"{name} {window}", "", against, None),
        parts.row(f"{name} best baseline's", "half", text, regret["ours"] <= np.mean(lost) / 2),
    ]


def explored(payments: Payments, chosen: np.ndarray) -> np.ndarray:
    """The choices with the merchant's share of them drawn among the eligible processors, as the router does."""
    from smartrouter.rules.policy import load_policy

    rng = np.random.default_rng(SEED)
    drawn = rng.random(len(chosen)) < load_policy("volaris", parts.ROOT / "params").exploration
    return np.where(drawn, even(payments, rng), chosen)


def champion(table: Any) -> tuple[np.ndarray, np.ndarray]:
    """Attempt ids and processors that the champion chooses in the last month, trained as `model_bench.lift_of` does."""
    data = parts.dataset(table, test=0.25)
    _, chosen = contenders(data)
    return parts.choices(table, data, chosen.fitted, chosen.calibration)


def field(table: Any, truth: Truth) -> tuple[np.ndarray, Payments, dict[str, np.ndarray], Any]:
    """Truth rows of all first attempts with a choice, their payments, segmentations, and what the log says of them."""
    names = ["attempt_id", "known_at", "approved", "currency", "brand", "bank"]
    frame = table.select(names).to_pandas()
    frame.index = rows_of(truth, frame.attempt_id.to_numpy().astype("U"))
    rows = truth.first_attempts(choice_only=True)
    first = frame.loc[rows]
    payments = payments_of(truth, rows, first.known_at.dt.tz_localize(None).to_numpy())
    keys = {
        "none": np.zeros(len(rows), int),
        "currency x brand": segments(first.currency, first.brand),
        "issuer": segments(first.bank),
        "issuer x currency": segments(first.bank, first.currency),
    }
    return rows, payments, keys, first


def codes_of(truth: Truth, processors: Any) -> np.ndarray:
    """Columns of the truth for processor codes."""
    column = {code: place for place, code in enumerate(truth.processors)}
    return np.array([column[code] for code in processors], int)


Entry = tuple[np.ndarray, Callable[[int], np.ndarray]]  # choices, and how to play again with another seed


def tune(
    payments: Payments, before: np.ndarray, keys: dict[str, np.ndarray], width: int
) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Play every baseline; returns the published window, and each family's best by true regret before the period."""
    best, published, tuned = chances(payments, oracle(payments)), {}, {}
    for family, shapes in FAMILIES.items():
        found = []
        for shape, make in shapes:
            for segment, key in keys.items():
                again = partial(lambda seed, m, k: play(m(width), payments, k, seed), m=make, k=key)
                choice = again(SEED)
                regret = (best - chances(payments, choice))[before].mean()
                found.append((regret, f"{family}, {shape}, by {segment}", (choice, again)))
                parts.say(f"{found[-1][1]}: regret {regret * 100:.3f} before the last month")
        if family == "success window":
            name, entry = min(found[: len(keys)], key=lambda f: f[0])[1:]
            published[f"{name} (published)"] = entry
        name, entry = min(found, key=lambda f: f[0])[1:]
        tuned[f"{name} (tuned)"] = entry
    return published, tuned


def shown_row(line: dict[str, Any], world: int) -> dict[str, Any]:
    """One policy as a row of the table."""
    regret = f"regret {line['regret'] * 100:.3f} ± {line['regret_se'] * 100:.3f} points"
    gap = f"{line['gap'] * 100:+.3f} ± {line['gap_se'] * 100:.3f} against ours"
    text = f"approval {line['approval']:.4f}, {regret} ({gap}), {line['share']:.1%} of the achievable lift, "
    text += f"fees {line['fee']:.4f} USD a payment, {line['fee_per_success']:.4f} an approval"
    return parts.row(f"contest, seed {world}, last month: {line['policy']}", "", text, None)
