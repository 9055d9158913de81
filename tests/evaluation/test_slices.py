"""Slices: every row counted, small cells pooled, noise not flagged."""

import numpy as np
import pandas as pd
import pytest

from smartrouter.evaluation.slices import SLICES, SliceRefused, amount_bands, slice_scores


@pytest.fixture(scope="module")
def attempts():
    rng = np.random.default_rng(7)
    n = 6000
    return pd.DataFrame(
        {
            "processor": rng.choice(["WORLDPAY", "MIT", "ELAVON"], n),
            "brand": rng.choice(["VISA", "MASTERCARD"], n),
            "currency": rng.choice(["MXN", "USD", "COP", "CRC"], n, p=[0.8, 0.199, 0.0005, 0.0005]),
            "amount": rng.lognormal(7, 1, n),
            "initiation": rng.choice(["CIT", "MIT", None], n, p=[0.9, 0.05, 0.05]),
            "sequence_order": rng.choice([1, 2, 3, 4, 9], n, p=[0.8, 0.1, 0.05, 0.03, 0.02]),
        }
    )


def test_every_slice_holds_every_row_once(attempts):
    rng = np.random.default_rng(1)
    p = rng.beta(7, 3, len(attempts))
    y = rng.random(len(attempts)) < p
    table = slice_scores(attempts, y, p)
    assert set(table["slice"]) == set(SLICES)
    assert (table.groupby("slice")["n"].sum() == len(attempts)).all()
    assert not table["off"].any()
    assert (table["low"] <= table["came"]).all() and (table["came"] <= table["high"]).all()
    assert {"unknown", "CIT", "MIT"} == set(table[table.slice == "initiation"].value)
    assert {"1", "2", "3", "4+"} == set(table[table.slice == "attempt"].value)
    assert "2 rare values" in set(table[table.slice == "currency"].value)


def test_a_slice_that_is_off_is_found(attempts):
    y = np.random.default_rng(2).random(len(attempts)) < np.where(attempts["processor"] == "MIT", 0.55, 0.7)
    table = slice_scores(attempts, y, np.full(len(attempts), 0.7))
    worst = table.loc[table["gap"].abs().idxmax()]
    assert (worst["slice"], worst["value"], worst["off"]) == ("processor", "MIT", True)
    assert worst["gap"] == pytest.approx(0.15, abs=0.03)
    fine = table[(table["slice"] == "processor") & (table["value"] != "MIT")]
    assert not fine["off"].any()


def test_auc_is_left_out_of_cells_without_enough_of_a_class(attempts):
    table = slice_scores(attempts, np.ones(len(attempts)), np.full(len(attempts), 0.9))
    assert table["auc"].isna().all()


def test_bands_are_within_a_currency():
    bands = amount_bands(pd.Series([1.0, 2, 3, 4, 5] * 2 + [np.nan]), pd.Series(["USD"] * 5 + ["MXN"] * 5 + ["MXN"]))
    assert bands[:5].tolist() == bands[5:10].tolist() and len(set(bands[:5])) == 5
    assert bands.isna().tolist() == [False] * 10 + [True]


def test_frames_that_cannot_be_sliced_are_refused(attempts):
    with pytest.raises(SliceRefused, match="as many"):
        slice_scores(attempts, [1], [0.5])
    with pytest.raises(SliceRefused, match="no slice column"):
        slice_scores(pd.DataFrame({"x": [1.0]}), [1], [0.5])
