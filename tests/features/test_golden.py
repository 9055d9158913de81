"""The values of fixed requests under the contract: a changed formula needs a new GENERATION.

`python tests/features/test_golden.py` writes golden.json anew, and refuses other values for a contract that is on file.
"""

import json
import sys
from pathlib import Path

import numpy as np

from smartrouter.features.columns import DAY_MS, HOUR_MS, Lookups
from smartrouter.features.history import KINDS
from smartrouter.features.live import LiveState
from smartrouter.features.matrix import CONTRACT_VERSION, FEATURE_NAMES

GOLDEN = Path(__file__).with_name("golden.json")
RAISE = "raise GENERATION in nbs/features/matrix.ipynb"
WRITE = "run: python tests/features/test_golden.py"
PROCESSORS = ("ELAVON", "MIT", "WORLDPAY")
START = 1_767_225_600_000  # 2026-01-01 UTC
OUTCOMES, CALM = 300, 200  # fifty requests are asked about between the last hundred outcomes
WORDS = {
    "brand": ("VISA", "MASTERCARD", "AMEX"),
    "bank": ("BBVA", "BANORTE", "HSBC", "AZTECA"),
    "funding": ("debit", "credit"),
    "card_country": ("MX", "US", "CO"),
    "currency": ("MXN", "USD"),
    "order_type": ("flight", "bag"),
    "mcc": ("4511", "3000"),
    "channel": ("web", "app"),
    "site": ("mx", "us"),
    "fraud_risk_level": ("low", "high"),
    "initiation": ("CIT", "MIT"),
    "weather": ("Clear", "Rain"),
    "country": ("MX", "US"),
    "state": ("NL", "JAL", "TX"),
    "browser": ("Chrome", "Safari"),
    "os": ("Android", "iOS"),
    "device": ("phone", "desktop"),
    "equipment": ("Samsung", "Apple"),
    "carrier": ("Y4", "AM"),
    "origin": ("MEX", "GDL", "TIJ"),
    "destination": ("CUN", "MTY"),
    "service_class": ("basic", "plus"),
}


def lookups() -> Lookups:
    """Tables as training would fit them, written by hand."""
    texts = WORDS | {
        "prev_processor": PROCESSORS,
        "prev_error_code": ("51", "05", "91"),
        "prev_hard_soft": ("soft", "hard"),
        "prev_error_category": ("customer", "technical", "issuer"),
        "prev_advice_code": ("03", "24"),
    }
    return Lookups(
        processors=PROCESSORS,
        time_zone="America/Mexico_City",
        home_currency="MXN",
        home_country="MX",
        prior=0.62,
        day_zero=START // DAY_MS,
        categories={name: {word: i + 1 for i, word in enumerate(words)} for name, words in texts.items()},
        amount_grid={"MXN": tuple(np.linspace(2.0, 4.5, 21)), "USD": tuple(np.linspace(1.0, 3.0, 21))},
        code_category={"51": "customer", "05": "issuer", "91": "technical"},
    )


def request(i: int, at_ms: int) -> dict:
    """Request number i: every field takes several values or is absent, by arithmetic alone."""
    word = {n: w[(i * (k + 3) + i // 5) % (len(w) + 1) - 1] for k, (n, w) in enumerate(WORDS.items())}
    if i % 9 == 8:
        word |= {"bank": "", "currency": "COP", "origin": ""}
    number = i % 13
    previous = [
        {
            "processor": PROCESSORS[(i + k) % 3],
            "error_code": ("51", "05", "91")[(i // 3 + k) % 3],
            "hard_soft": (None, "soft", "hard")[(i + k) % 3],
            "advice_code": (None, "03", "24")[(i // 2 + k) % 3],
            "at": stamp(at_ms - (k + 1) * 97_000 - i * 1_000),
        }
        for k in range((0, 0, 0, 1, 2)[i % 5])
    ]
    airline = {n: word[n] for n in ("carrier", "origin", "destination", "service_class")} | {
        "is_international": i % 2 == 0,
        "flights": 1 + i % 2,
        "passengers": 1 + i % 4,
        "round_trip": i % 3 == 0,
        "frequent_flyer": i % 6 == 0,
        "adults": 1 + i % 3,
        "children": i % 2,
        "infants": i % 4 // 3,
        "departure_at": stamp(at_ms + number * 31 * 3_600_000 // 2),
    }
    return {
        "order": {
            "amount": (250.0, 1_200.0, 899.5, 4_321.99, 75.25)[i % 5] * (1 + i // 5 % 3),
            "fraud_risk_score": i % 7 * 11.0,
        }
        | {n: word[n] for n in ("currency", "order_type", "mcc", "channel", "site", "fraud_risk_level")},
        "card": {
            "bin": ("415231", "52345678", "371230", "")[i % 4],
            "brand": word["brand"],
            "bank": word["bank"],
            "funding": word["funding"],
            "country": word["card_country"],
            "last_four": f"{i % 11 * 777:04d}" if i % 3 else "",
        },
        "payment": {"initiation": word["initiation"], "three_ds": i % 4 == 1},
        "attempt": {"sequence_order": len(previous) + 1, "previous": previous},
        "user": {"user_id": f"u-{i % 8}" if i % 6 else "", "is_guest": i % 6 == 0, "sessions": number}
        | ({"browsing_minutes": 1.5 * number, "events_before_purchase": 4 * number} if i % 7 else {}),
        "device": {n: word[n] for n in ("browser", "os", "device", "equipment")},
        "geo": {"latitude": 19.0 + number, "longitude": -99.0 - number}
        | {n: word[n] for n in ("country", "state", "weather")},
        "airline": airline if i % 10 != 9 else {},
    }


def stamp(ms: int) -> str:
    """ISO 8601 with zone."""
    return str(np.datetime64(ms, "ms")) + "Z"


def values() -> tuple[np.ndarray, dict[str, float]]:
    """The matrix of all requests x processors, and one weighted sum a feature: no two rows can be swapped unnoticed."""
    state, lines = LiveState(lookups()), []
    for i in range(OUTCOMES):
        burst, late = divmod(max(i - CALM, 0), 10)  # one outcome in five hours, then ten bursts of one in three minutes
        at_ms = START + min(i, CALM) * 5 * HOUR_MS + burst * 45 * HOUR_MS + late * 180_000
        kind = KINDS[(0, 0, 1, 0, 3, 0, 2, 0, 0, 1, 3, 3)[i % 12]]
        state.apply(request(i, at_ms), PROCESSORS[i * 7 % 5 % 3], kind, at_ms, at_ms + 2_000 + i % 4)
        if i >= CALM and i % 2:
            lines.append(state.features(request(3 * i + i // 7, at_ms + 30_000), PROCESSORS, at_ms + 30_000))
    X = np.concatenate(lines)
    weights = np.sqrt(np.arange(1, len(X) + 1))
    sums = weights @ X.astype(np.float64) / weights.sum()
    return X, dict(zip(FEATURE_NAMES, sums.round(8).tolist(), strict=True))


def changed(golden: dict, found: dict[str, float]) -> list[str]:
    """Features whose values are others than those on file, or that are on one side only."""
    before = golden["values"]
    same = before.keys() & found.keys()
    moved = [n for n in same if not np.isclose(before[n], found[n], rtol=1e-6, atol=1e-6)]
    return sorted(moved + list(before.keys() ^ found.keys()))


def test_no_formula_changes_under_an_unchanged_contract():
    golden, (X, found) = json.loads(GOLDEN.read_text()), values()
    assert golden["contract"] == CONTRACT_VERSION, f"golden.json holds {golden['contract']}: {WRITE}"
    moved = changed(golden, found)
    assert not moved, f"other values under contract {CONTRACT_VERSION}: {moved}. {RAISE}; then {WRITE}"
    assert X.shape == (50 * len(PROCESSORS), len(FEATURE_NAMES))
    constant = [n for n, column in zip(FEATURE_NAMES, X.T, strict=True) if (column == column[0]).all()]
    assert constant == []  # a feature that never moves here would be watched by nobody


def test_a_changed_formula_is_noticed(monkeypatch):
    from smartrouter.features import history, transaction

    golden = json.loads(GOLDEN.read_text())
    monkeypatch.setattr(transaction, "paydays", lambda day, days: (days - day, day))
    assert changed(golden, values()[1]) == ["days_since_payday", "days_to_payday"]
    monkeypatch.undo()
    monkeypatch.setattr(history, "SHRINK", 29.0)
    assert "rate_processor" in changed(golden, values()[1])


if __name__ == "__main__":
    before = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"contract": ""}
    now = values()[1]
    if before["contract"] == CONTRACT_VERSION and changed(before, now):
        sys.exit(f"values changed under contract {CONTRACT_VERSION}: {RAISE} first")
    GOLDEN.write_text(json.dumps({"contract": CONTRACT_VERSION, "values": now}, indent=1) + "\n")
