"""Slices: every row counted, small cells pooled, noise not flagged."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from smartrouter.evaluation.slices import (
    MOST_CELLS,
    SLICES,
    SliceRefused,
    amount_bands,
    cell,
    holm,
    pooled,
    slice_regressions,
    slice_scores,
    sliceable,
)


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
            "bank": rng.choice(["BBVA", "HSBC", None], n),
            "bin": rng.choice(["41523188", "510510", None], n, p=[0.6, 0.3, 0.1]),
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


def test_issuer_and_bin_group_are_slices(attempts):
    columns = sliceable(attempts)
    assert set(columns["issuer"]) == {"BBVA", "HSBC", "unknown"}
    assert set(columns["bin_group"]) == {"415231", "510510", "unknown"}


def test_many_values_are_pooled_beyond_the_largest():
    values = pd.Series(np.repeat([f"{i:06d}" for i in range(100)], np.arange(60, 160)))
    cells = pooled(values, least=50).value_counts()
    assert len(cells) == MOST_CELLS + 1 and "80 rare values" in cells and cells.sum() == len(values)


def test_every_metric_lies_in_its_interval(attempts):
    p = np.random.default_rng(3).beta(7, 3, len(attempts))
    table = slice_scores(attempts, np.random.default_rng(4).random(len(attempts)) < p, p)
    for name in ("gap", "log_loss", "auc"):
        told = table[table[name].notna()]
        assert len(told) and (told[f"{name}_low"] <= told[name]).all() and (told[name] <= told[f"{name}_high"]).all()
    wide = table[table["n"] < 500]["gap_high"] - table[table["n"] < 500]["gap_low"]
    assert wide.min() > (table["gap_high"] - table["gap_low"]).min()


# --- against the champion -------------------------------------------------------------------------------------------


def test_a_slice_that_got_worse_is_named_and_one_that_got_better_too(attempts):
    truth = np.where(attempts["processor"] == "MIT", 0.5, 0.8)
    y = np.random.default_rng(5).random(len(attempts)) < truth
    champion, candidate = np.where(attempts["processor"] == "MIT", 0.5, 0.7), np.full(len(attempts), 0.8)
    table = slice_regressions(attempts, y, candidate, champion, by=["processor"]).set_index("value")
    assert table.index[table["worse"]].tolist() == ["MIT"]
    assert set(table.index[table["better"]]) == {"WORLDPAY", "ELAVON"}
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()
    assert (table["p_adjusted"] >= table["p_value"]).all()


def test_sure_but_immaterial_is_not_flagged(attempts):
    truth = np.full(len(attempts), 0.7)
    y = np.random.default_rng(6).random(len(attempts)) < truth
    table = slice_regressions(attempts, y, np.full(len(attempts), 0.55), truth, material=1.0)
    assert (table["p_adjusted"] < 0.05).any() and not table["worse"].any()
    assert slice_regressions(attempts, y, np.full(len(attempts), 0.55), truth)["worse"].any()


def test_rows_of_one_order_are_not_independent(attempts):
    y = np.random.default_rng(8).random(len(attempts)) < 0.7
    p, other = np.full(len(attempts), 0.7), np.full(len(attempts), 0.6)
    alone = slice_regressions(attempts, y, p, other, by=["brand"])
    twice = pd.concat([attempts, attempts], ignore_index=True)
    again = slice_regressions(
        twice, np.tile(y, 2), np.tile(p, 2), np.tile(other, 2), np.tile(np.arange(len(y)), 2), ["brand"]
    )
    assert (again["high"] - again["low"]).to_numpy() == pytest.approx(
        (alone["high"] - alone["low"]).to_numpy(), rel=0.01
    )


def test_too_few_rows_are_not_judged_and_equal_models_are_not_flagged(attempts):
    y, p = np.arange(150) % 2, np.full(150, 0.5)
    assert slice_regressions(attempts.head(150), y, p, p).empty
    same = slice_regressions(
        attempts, np.arange(len(attempts)) % 2, np.full(len(attempts), 0.5), np.full(len(attempts), 0.5)
    )
    assert len(same) and (same["difference"] == 0).all() and not (same["worse"] | same["better"]).any()


def test_a_frame_without_slice_columns_is_refused():
    with pytest.raises(SliceRefused, match="no slice column"):
        slice_regressions(pd.DataFrame({"other": [1, 2]}), [0, 1], [0.5, 0.5], [0.5, 0.5])


@pytest.mark.parametrize("p", [[], [0.5], [0.01, 0.04, 0.03, 0.005], [0.2, 0.2, 1.0], [1e-9, 0.9, 0.02]])
def test_holm_is_that_of_statsmodels(p):
    wanted = multipletests(p, method="holm")[1] if p else []
    assert np.allclose(holm(np.array(p, dtype=float)), wanted)


# --- few rows, and orders -------------------------------------------------------------------------------------------


def test_a_single_rare_value_is_marked_and_a_frequent_last_one_is_not():
    values = pd.Series(["MXN"] * 90 + ["USD"] * 60 + ["COP"] * 7)
    assert pooled(values, least=50).value_counts().to_dict() == {"MXN": 90, "USD": 60, "COP (few)": 7}
    many = pd.Series(np.repeat([f"{i:06d}" for i in range(MOST_CELLS + 1)], 60))
    assert not pooled(many, least=50).str.contains("few").any()


def test_a_cell_of_one_order_has_no_interval_of_the_log_loss():
    frame = pd.DataFrame({"currency": ["MXN"] * 60 + ["USD"], "order_id": np.arange(61)})
    y, p = np.arange(61) % 3 > 0, np.linspace(0.4, 0.8, 61)
    table = slice_scores(frame, y, p).set_index("value")
    assert table.loc["USD (few)", ["log_loss_low", "log_loss_high"]].isna().all()
    assert table.loc["USD (few)", "low"] < table.loc["USD (few)", "high"]
    assert table.loc["MXN", "log_loss_low"] < table.loc["MXN", "log_loss"] < table.loc["MXN", "log_loss_high"]
    assert cell(np.ones(5), np.full(5, 0.7), ["a"] * 5)["log_loss_high"] is None


def test_attempts_of_one_order_count_as_one_in_the_interval_of_the_log_loss():
    rng = np.random.default_rng(8)
    p = np.repeat(rng.beta(6, 3, 500), 4)
    y = np.repeat((rng.random(500) < p[::4]).astype(float), 4)
    apart, together = cell(y, p), cell(y, p, np.repeat(np.arange(500), 4))
    widths = [found["log_loss_high"] - found["log_loss_low"] for found in (apart, together)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
