"""The rules as read from the warehouse say what the logged traffic did."""

import numpy as np
import pytest

from smartrouter.rules.policy import load_policy
from smartrouter.rules.static import choose, parse_rules, sync_rules
from smartrouter.warehouse.connect import connect
from smartrouter.warehouse.queries import attempts, routing_rules


@pytest.fixture(scope="module")
def log(small_warehouse):
    with connect(small_warehouse) as warehouse:
        rows = routing_rules(warehouse, "volaris").to_pylist()
        frame = attempts(warehouse, "volaris").to_pandas()
    return rows, frame


def test_the_rules_choose_what_was_logged_where_nobody_explored(log, root):
    rows, frame = log
    policy = load_policy("volaris", root / "params")
    first = frame[(frame["sequence_order"] == 1) & (frame["explored"] == False)]  # noqa: E712  null is neither
    changes = sorted(
        {r["created_at"] for r in rows if r["created_at"]} | {r["deleted_at"] for r in rows if r["deleted_at"]}
    )
    seen = 0
    for start, end in zip([None, *changes], [*changes, None], strict=True):
        inside = np.ones(len(first), bool)
        inside &= True if start is None else (first["attempted_at"] >= start).to_numpy()
        inside &= True if end is None else (first["attempted_at"] < end).to_numpy()
        part = first[inside]
        if part.empty:
            continue
        answer = choose(parse_rules(rows, "volaris", at=start or part["attempted_at"].iloc[0]), part, policy)
        assert (answer["rule_id"] == part["rule_id"]).all()
        assert (answer["processor"] == part["processor"]).all()
        seen += len(part)
    assert seen == len(first) > 1_000


def test_the_live_rules_are_synchronised(small_warehouse, tmp_path):
    with connect(small_warehouse) as warehouse:
        rules = sync_rules(warehouse, "volaris", tmp_path / "rules" / "volaris.json")
    assert rules.rules[0].processors == ("AMEX",) and rules.rules[-1].is_default
    assert len({r.rule_id[0] for r in rules.rules}) == 1  # only the version that is live
