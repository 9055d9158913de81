"""An outage over HTTP: left at the next payment, seen by every worker, on record once; and what people force."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from smartrouter.feedback.store import connect_file

PREDICT, FEEDBACK, PROCESSORS = "/api/v1/ml/predict", "/api/v1/ml/feedback", "/api/v1/processors"
WHO = {"who": "ana@example.com", "reason": "announced on the status page"}


def until(condition, seconds=10.0):
    limit = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < limit:
        time.sleep(0.01)
    assert found
    return found


def pay(client, number, **changes):
    """One payment; cards of many BINs."""
    body = {
        "transaction_id": f"tx-{number}",
        "merchant_id": "volaris",
        "order": {"amount": 2450.0, "currency": "MXN"},
        "card": {"bin": str(415200 + number), "brand": "VISA"},
    }
    answer = client.post(PREDICT, json=body | changes)
    assert answer.status_code == 200
    return answer.json


def report(client, answered, **outcome):
    """The outcome at the first processor of the ranking."""
    body = {
        "prediction_id": answered["prediction_id"],
        "event_id": "e1",
        "processor": answered["ranking"][0]["processor"],
        "status": "error",
        **outcome,
    }
    answer = client.post(FEEDBACK, json=body)
    assert answer.status_code == 202
    return answer.json["status"]


def kill(client, first=0):
    """Let the first processor fail until it is left; return its code and how many payments that took."""
    dead = pay(client, first)["ranking"][0]["processor"]
    for number in range(first + 1, first + 40):
        answered = pay(client, number)
        if answered["ranking"][0]["processor"] != dead:
            return dead, number - first - 1
        report(client, answered)
    raise AssertionError("never left")


def state_of(client, code, path=PROCESSORS):
    return next(p for p in client.get(path).json["processors"] if p["processor"] == code)


def test_a_dead_processor_is_left_at_the_next_payment_and_says_why(open_app):
    client = open_app().test_client()
    dead, lost = kill(client)
    assert lost <= 6
    answered = pay(client, 100)
    (line,) = [e for e in answered["excluded"] if e["processor"] == dead]
    assert line["reason"] == "processor_down" and datetime.fromisoformat(line["since"]).tzinfo is not None
    assert answered["decision"]["health"] == {dead: "down"} and "probe" not in answered["decision"]
    found = state_of(client, dead)
    assert (found["state"], found["why"], found["weight"]) == ("down", "technical alarm", 0.0)
    assert found["incident"].startswith(f"{dead}@") and found["scores"]["5"]["technical_share"] == 1.0
    (told,) = client.get(PROCESSORS).json["transitions"]
    assert (told["key"], told["before"], told["after"], told["closes"]) == (dead, "up", "down", False)
    assert told["evidence"]["severity"] > 0.9
    text = client.get("/metrics").text
    assert f'smartrouter_processor_transitions_total{{after="down",merchant="volaris",processor="{dead}"}} 1.0' in text
    until(
        lambda: (
            f'processor_state{{merchant="volaris",processor="{dead}",state="down"}} 1.0' in client.get("/metrics").text
        )
    )
    assert client.get("/ready").json["health"]["states"][dead] == "down"


def test_another_worker_sees_it_and_a_new_one_starts_with_it(open_app):
    first, second = (open_app().test_client() for _ in range(2))
    dead, _ = kill(first)
    seen = until(lambda: second.get("/ready").json["health"]["states"][dead] == "down")
    assert seen and pay(second, 100)["ranking"][0]["processor"] != dead
    third = open_app().test_client()
    assert pay(third, 101)["ranking"][0]["processor"] != dead
    assert len(third.get(PROCESSORS).json["transitions"]) == 1


def test_duplicates_and_strangers_move_nothing(open_app):
    client = open_app().test_client()
    answered = pay(client, 1)
    assert report(client, answered) == "counted"
    for _ in range(20):
        assert report(client, answered) == "duplicate"
        assert report(client, {**answered, "prediction_id": "p-unknown"}, event_id=f"e{time.monotonic_ns()}") == "kept"
    found = state_of(client, answered["ranking"][0]["processor"])
    assert found["state"] == "up" and found["scores"]["5"]["attempts"] == 1


def test_an_outcome_that_waits_for_its_payment_counts_when_that_comes(open_app):
    client = open_app().test_client()
    dead = pay(client, 0)["ranking"][0]["processor"]
    for number in range(1, 8):
        event = {"attempt_id": f"a-{number}", "merchant_id": "volaris", "event_id": "e1", "processor": dead}
        assert client.post(FEEDBACK, json={**event, "status": "error"}).json["status"] == "kept"
    assert state_of(client, dead)["state"] == "up"
    for number in range(1, 8):
        pay(client, number, attempt={"attempt_id": f"a-{number}"})
    until(lambda: state_of(client, dead)["state"] == "down")


def test_a_black_hole_is_found_by_its_silence(open_app):
    client = open_app().test_client()
    other = None
    for number in range(60):  # what is normal: an answer at once
        answered = pay(client, number)
        assert report(client, answered, status="approved") == "counted"
    silent = answered["ranking"][0]["processor"]
    limit = time.monotonic() + 8
    while time.monotonic() < limit and other is None:
        number += 1
        found = pay(client, number)["ranking"][0]["processor"]
        other = found if found != silent else None
        time.sleep(0.05)
    assert other is not None
    assert state_of(client, silent)["why"] == "silence alarm"


def test_a_store_that_is_gone_leaves_the_last_view(open_app, settings):
    app = open_app()
    client = app.test_client()
    dead, _ = kill(client)
    parts = app.extensions["smartrouter"]
    parts.store.reader.close()
    until(lambda: client.get("/ready").json["health"]["view_age_s"] > 0.3)
    assert pay(client, 100)["ranking"][0]["processor"] != dead
    answer = client.get(PROCESSORS)
    assert (answer.status_code, answer.json["type"]) == (503, "/openapi#problem-store-unavailable")


# -- what people force -------------------------------------------------------------------------------------------------


def test_an_override_wins_is_on_record_and_is_lifted(open_app):
    client = open_app().test_client()
    code = pay(client, 1)["ranking"][0]["processor"]
    answer = client.post(f"{PROCESSORS}/{code}/override", json={"state": "down", "minutes": 30, **WHO})
    assert answer.status_code == 200 and answer.json["state"] == "down"
    assert answer.json["override"]["who"] == WHO["who"] and answer.json["incident"] is None
    assert pay(client, 2)["ranking"][0]["processor"] != code
    lifted = client.delete(f"{PROCESSORS}/{code}/override", json={"who": "li@example.com", "reason": "over"})
    assert lifted.status_code == 200 and lifted.json["override"] is None
    assert lifted.json["state"] == "recovering"  # what comes back starts slowly
    told = client.get(PROCESSORS).json["transitions"]
    assert [(t["before"], t["after"], t["incident"]) for t in told] == [
        ("down", "recovering", None),
        ("up", "down", None),
    ]
    assert told[0]["evidence"]["lifted_by"] == "li@example.com" and told[1]["evidence"]["reason"] == WHO["reason"]
    again = client.delete(f"{PROCESSORS}/{code}/override", json=WHO)
    assert again.status_code == 200 and not again.json["lifted"]
    assert len(client.get(PROCESSORS).json["transitions"]) == 2


def test_an_override_ends_by_itself(open_app):
    client = open_app().test_client()
    code = pay(client, 1)["ranking"][0]["processor"]
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    assert client.post(f"{PROCESSORS}/{code}/override", json={"state": "down", "until": soon, **WHO}).status_code == 200
    until(lambda: state_of(client, code)["override"] is None)
    until(lambda: client.get(PROCESSORS).json["transitions"][0]["why"] == "override over")


def test_forcing_up_brings_traffic_to_what_the_detectors_hold_for_dead(open_app):
    client = open_app().test_client()
    dead, _ = kill(client)
    answer = client.post(f"{PROCESSORS}/{dead}/override", json={"state": "up", "minutes": 5, **WHO})
    assert (answer.json["state"], answer.json["weight"]) == ("up", 1.0)
    assert pay(client, 100)["ranking"][0]["processor"] == dead


GOOD = {"state": "down", "minutes": 30, **WHO}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"state": "recovering"}, "$.state"),
        ({"state": None}, "$.state"),
        ({"who": ""}, "$.who"),
        ({"reason": None}, "$.reason"),
        ({"minutes": None}, "$.until"),
        ({"until": "2030-01-01T00:00:00Z"}, "$.until"),
        ({"minutes": None, "until": "2020-01-01T00:00:00Z"}, "$.until"),
        ({"minutes": None, "until": "2020-01-01T00:00:00"}, "$.until"),
        ({"minutes": 60 * 25}, "$.minutes"),
        ({"minutes": -1}, "$.minutes"),
        ({"logit_shift": -1.0}, "$.logit_shift"),
        ({"state": "degraded", "logit_shift": 1.0}, "$.logit_shift"),
        ({"because": "x"}, "$.because"),
    ],
)
def test_a_wrong_override_is_refused_with_its_path(open_app, change, path):
    body = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    answer = open_app().test_client().post(f"{PROCESSORS}/WORLDPAY/override", json=body)
    assert answer.status_code == 422
    assert answer.json["errors"][0]["path"] == path and answer.json["errors"][0]["reason"]


def test_unknown_processors_merchants_and_card_numbers_are_refused(open_app):
    client = open_app().test_client()
    for url, path in (
        (f"{PROCESSORS}/NOBODY/override", "path.code"),
        (f"{PROCESSORS}/no-code/override", "path.code"),
        (f"{PROCESSORS}/WORLDPAY/override?merchant_id=nobody", "query.merchant_id"),
        (f"{PROCESSORS}/WORLDPAY/override?merchant=volaris", "query.merchant"),
    ):
        answer = client.post(url, json=GOOD)
        assert (answer.status_code, answer.json["errors"][0]["path"]) == (422, path)
    card = "4" + "1" * 15
    for answer in (
        client.post(f"{PROCESSORS}/WORLDPAY/override", json={**GOOD, "reason": f"card {card}"}),
        client.get(f"{PROCESSORS}?merchant_id={card}"),
    ):
        assert answer.status_code == 422 and card not in answer.text
        assert answer.json["type"] == "/openapi#problem-card-number"
    assert client.get(PROCESSORS).json["transitions"] == []


def test_a_degraded_processor_is_ranked_lower_and_what_was_taken_off_is_stored(open_app, settings):
    client = open_app().test_client()
    body = {"state": "degraded", "minutes": 5, "logit_shift": -2.0, **WHO}
    answer = client.post(f"{PROCESSORS}/WORLDPAY/override", json=body)
    assert (answer.json["state"], answer.json["logit_shift"]) == ("degraded", -2.0)
    answered = pay(client, 1)
    assert answered["decision"]["health"] == {"WORLDPAY": "degraded"}
    connection = connect_file(settings.home / "store.db")
    (kept,) = connection.execute("SELECT health FROM predictions").fetchone()
    connection.close()
    assert json.loads(kept) == {"probe": None, "all_down": False, "shifts": {"WORLDPAY": -2.0}}


def test_an_operator_sees_when_it_is_tried_next_and_times_in_iso(open_app):
    client = open_app().test_client()
    dead, _ = kill(client)
    found = state_of(client, dead)
    next_probe, since = (datetime.fromisoformat(found[name]) for name in ("next_probe", "since"))
    assert timedelta(seconds=25) < next_probe - since < timedelta(seconds=35)
    assert all(p["next_probe"] is None for p in client.get(PROCESSORS).json["processors"] if p["state"] == "up")
    url = f"{PROCESSORS}/{dead}/override"
    forced = client.post(url, json={"state": "up", "minutes": 5, **WHO}).json
    assert forced["next_probe"] is None and forced["incident"] == found["incident"]
    told = client.get(PROCESSORS).json["transitions"][0]["evidence"]
    assert datetime.fromisoformat(told["until"]) - datetime.now(UTC) > timedelta(minutes=4)
    lifted = client.delete(url, json={"who": "bo", "reason": "still dead"}).json
    assert (lifted["lifted"], lifted["state"], lifted["since"]) == (True, "down", found["since"])


def test_lifting_where_nothing_is_forced_says_so(open_app):
    client = open_app().test_client()
    answer = client.delete(f"{PROCESSORS}/MIT/override", json=WHO)
    assert (answer.status_code, answer.json["lifted"], answer.json["state"]) == (200, False, "up")
    assert client.get(PROCESSORS).json["transitions"] == []
    empty = client.delete(f"{PROCESSORS}/MIT/override", content_type="application/json")
    assert empty.status_code == 400 and "empty" in empty.json["detail"]


# -- probes ------------------------------------------------------------------------------------------------------------


def test_a_probe_is_sent_once_and_given_back_where_it_was_not_sent(open_app, settings, tmp_path):
    folder = tmp_path / "outage"
    folder.mkdir()
    text = (settings.params / "outage" / "default.yaml").read_text()
    for before, after in (("hold_s: 30.0", "hold_s: 0.0"), ("spacing_s: 200.0", "spacing_s: 3600.0")):
        assert before in text
        text = text.replace(before, after, 1)
    (folder / "volaris.yaml").write_text(text)
    app = open_app()
    client, keeper = app.test_client(), app.extensions["smartrouter"].keepers.of["volaris"]
    dead, number = pay(client, 0)["ranking"][0]["processor"], 0
    while keeper.view.controls[dead].mode == "up":
        number += 1
        report(client, pay(client, number))
    pay(client, 1)  # answered before: its probe was not sent
    assert keeper.view.controls[dead].probing.made == 1 and keeper.view.controls[dead].probing.flying == ()
    probe = pay(client, 100)
    assert probe["decision"]["probe"] and probe["ranking"][0]["processor"] == dead
    assert probe["decision"]["propensity"] is None
    assert [pay(client, n)["ranking"][0]["processor"] == dead for n in range(101, 106)] == [False] * 5
    assert len(keeper.view.controls[dead].probing.flying) == 1
    report(client, probe, status="approved")
    assert keeper.view.controls[dead].probing.run == 1
    assert f'smartrouter_probes_total{{merchant="volaris",processor="{dead}"}} 1.0' in client.get("/metrics").text


def test_a_parameter_file_that_breaks_keeps_what_was_there(open_app, settings, tmp_path):
    app = open_app()
    keepers = app.extensions["smartrouter"].keepers
    before = keepers.of["volaris"].config
    (tmp_path / "outage").mkdir()
    (tmp_path / "outage" / "default.yaml").write_text("signl: {}")
    until(lambda: any(p.startswith("outage:") for p in app.test_client().get("/ready").json["problems"]))
    assert keepers.of["volaris"].config is before
