"""The reference describes training, survives JSON, and finds what changed; equal rows raise no alarm."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.features.matrix import CONTRACT, FEATURE_NAMES
from smartrouter.monitor.skew import (
    ReferenceMissing,
    compare,
    counted,
    feature_frame,
    read_reference,
    reference_of,
    stability,
    summarise,
)

RNG = np.random.default_rng(7)
TRAINED = pd.DataFrame(
    {
        "amount": RNG.lognormal(7, 1, 6_000),
        "bank": RNG.choice(["BBVA", "BANAMEX", None], 6_000, p=[0.6, 0.3, 0.1]),
        "three_ds": RNG.choice([True, False, None], 6_000),
        "mcc": "4511",
        "latitude": np.nan,
    }
)
REFERENCE = json.loads(json.dumps({name: summarise(TRAINED[name]) for name in TRAINED}))


def found(changes, rows=2_000):
    later = TRAINED.sample(rows, replace=True, random_state=3).assign(**changes)
    return compare(REFERENCE, later).set_index("column")


def test_rows_like_those_of_training_raise_no_alarm():
    table = found({})
    assert not table["shifted"].any() and (table["unseen_now"] == 0).all()
    assert table.loc["latitude", "missing_now"] == 1  # an all-missing column is described, and equal to itself


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"bank": None}, "bank"),
        ({"bank": "NU"}, "bank"),
        ({"amount": TRAINED["amount"].median() * 30}, "amount"),
        ({"three_ds": True}, "three_ds"),
        ({"latitude": 19.4}, "latitude"),
        ({"mcc": "3000"}, "mcc"),
    ],
)
def test_a_column_that_changed_is_found_alone(changes, column):
    table = found(changes)
    assert table.index[table["shifted"]].tolist() == [column]


def test_shares_say_what_happened():
    assert found({"bank": None}).loc["bank", "missing_now"] == 1
    assert found({"bank": "NU"}).loc["bank", "unseen_now"] == 1
    absent = compare(REFERENCE, TRAINED.drop(columns="bank")).set_index("column")
    assert absent.loc["bank", "missing_now"] == 1 and absent.loc["bank", "shifted"]


def test_a_few_rows_are_not_enough_to_be_sure():
    table = compare(REFERENCE, TRAINED.head(5)).set_index("column")
    assert not table["shifted"].any() and (table["bound"] > 0.1).any()


@pytest.mark.parametrize(("reference", "frame"), [({}, TRAINED), (REFERENCE, TRAINED.head(0))])
def test_nothing_to_compare_is_refused(reference, frame):
    with pytest.raises(ReferenceMissing):
        compare(reference, frame)


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.booleans()), max_size=60))
@settings(max_examples=60, deadline=None)
def test_every_row_falls_into_one_bin(values):
    for summary in REFERENCE.values():
        if summary["kind"] == "number":
            counts = counted(pd.Series(values, dtype=object), summary)
            assert counts.sum() == len(values) and counts[0] >= sum(v is None for v in values)
    own = summarise(pd.Series(values, dtype=object))
    assert sum(own["counts"]) == own["rows"] == len(values)


@given(st.lists(st.integers(0, 500), min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_the_index_is_zero_for_equal_shares_and_never_negative(counts):
    counts = np.array(counts)
    assert stability(counts, counts, 0.01)[0] == pytest.approx(0)
    assert stability(counts, counts[::-1], 0.01)[0] >= 0


def test_false_alarms_come_as_often_as_promised():
    rng, p = np.random.default_rng(11), np.random.default_rng(12).dirichlet(np.ones(12))
    alarms = [psi > bound for psi, bound in (pair(rng, p) for _ in range(2_000))]
    assert sum(alarms) <= 40  # 1 % of 2,000 is 20


def pair(rng, p):
    return stability(rng.multinomial(20_000, p), rng.multinomial(1_500, p), 0.01)


def test_features_at_their_fill_value_are_missing():
    X = np.array([[f.missing for f in CONTRACT], [3.0] * len(CONTRACT)], dtype=np.float32)
    frame = feature_frame(X)
    assert frame.columns.tolist() == list(FEATURE_NAMES)
    assert frame.iloc[0].isna().all() and frame.iloc[1].notna().all()
    assert frame["processor"].iloc[1] == "3"


def test_a_reference_is_written_and_read(tmp_path):
    X = RNG.integers(-1, 9, (500, len(FEATURE_NAMES))).astype(np.float32)
    made = reference_of(X, TRAINED.head(500), "1-abc")
    (tmp_path / "reference.json").write_text(json.dumps(made))
    kept = read_reference(tmp_path)
    assert kept == made and kept["rows"] == 500 and set(kept["requests"]) == set(TRAINED)
    assert not compare(kept["features"], feature_frame(X))["shifted"].any()


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_release_without_a_reference_is_told(tmp_path, content):
    if content is not None:
        (tmp_path / "reference.json").write_text(content)
    with pytest.raises(ReferenceMissing, match=r"reference\.json"):
        read_reference(tmp_path)
