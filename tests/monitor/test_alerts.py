"""Alerts: at least once, in order, one name an incident, few, and no secret anywhere; the same for every database."""

import importlib.util
import itertools
import json
import random
import re
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smartrouter.cli import main
from smartrouter.core.cards import find_card_number
from smartrouter.feedback.store import Store, upgrade
from smartrouter.feedback.tables import TRANSITIONS
from smartrouter.monitor.alerts import (
    Pace,
    TargetRefused,
    key_of,
    masked,
    message,
    opened,
    rest_s,
    send,
    some_targets,
    targets,
    try_target,
    turn,
)
from smartrouter.monitor.outbox import Batch, Line, Outbox, accepted, claim, join, pending
from smartrouter.outage.config import load_config
from smartrouter.outage.control import Alarm
from smartrouter.outage.health import Ended, moved, open_health, outcome, reserve, tick

spec = importlib.util.spec_from_file_location("alert_stubs", Path(__file__).with_name("stubs.py"))
stubs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stubs)
NOON, Stub, change = stubs.NOON, stubs.Stub, stubs.change
PACE = Pace()
SECRET = "s3cr3tpath"


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, empty_store, open_store):
    return open_store(empty_store(request.param))


@pytest.fixture
def stub():
    made = Stub()
    yield made
    made.close()


def target_of(stub):
    return targets(f"json://127.0.0.1:{stub.port}/{SECRET}")[0]


def joined(store, target):
    outbox = Outbox(store, target.key)
    join(outbox)
    return outbox


def run(outbox, target, start, end, step=5.0):
    """Turns from `start` to `end` seconds after noon, as the service's thread does them; return those that sent."""
    tell, done, at = partial(send, target, limit_s=PACE.send_s), [], start
    while at <= end:
        now = turn(outbox, tell, NOON + at, PACE, lambda merchant: "UTC")
        done += [now] if now.batch else []
        at += 0.0 if now.batch and not now.failed else step
    return done


def ids(told):
    """First and last transition that a message covers, as it says itself."""
    first, last = re.search(r"transitions? (\d+)(?: to (\d+))?\.", told).groups()
    return int(first), int(last or first)


def names(stub):
    return {re.search(r"Incident (\S+),", said["message"]).group(1) for said in stub.took}


# -- delivery ----------------------------------------------------------------------------------------------------------


def test_an_incident_is_told_from_its_beginning_to_its_end(store, stub):
    target = target_of(stub)
    outbox = joined(store, target)
    steps = [("down", 0, False), ("recovering", 600, False), ("up", 750, False), ("up", 2550, True)]
    for after, at, closes in steps:
        change(store, after, at, closes=closes)
        run(outbox, target, at, at)
    run(outbox, target, 2550, 2600)
    assert [said["type"] for said in stub.took] == ["failure", "warning", "success"]
    assert [ids(said["message"]) for said in stub.took] == [(1, 1), (2, 2), (3, 4)]
    assert len(names(stub)) == 1 and not pending(outbox).batches


def test_what_came_while_the_target_was_down_is_told_in_order_when_it_is_up(store, stub):
    target = target_of(stub)
    outbox = joined(store, target)
    stub.up = False
    for n in range(12):
        key = ("WORLDPAY", "MIT")[n % 2]
        change(store, ("down", "recovering")[n // 2 % 2], 50.0 * n, key=key)
        run(outbox, target, 50.0 * n, 50.0 * n + 45)
    for key in ("WORLDPAY", "MIT"):
        change(store, "up", 600, key=key, closes=True)
    assert not stub.took and len(stub.refused) > 5
    stub.up = True
    run(outbox, target, 601, 700)
    assert not pending(outbox).batches
    for name in names(stub):
        mine = [said for said in stub.took if name in said["message"]]
        covered = [ids(said["message"]) for said in mine]
        assert [said["type"] for said in mine] == ["warning", "success"] and covered[0][1] < covered[1][0]
    assert len(names(stub)) == 2 and max(ids(said["message"])[1] for said in stub.took) == 14


def test_twenty_flaps_are_four_messages(store, stub):
    target = target_of(stub)
    outbox = joined(store, target)
    for n in range(40):
        change(store, ("down", "recovering")[n % 2], 15.0 * n, before=("recovering", "down")[n % 2])
        run(outbox, target, 15.0 * n, 15.0 * n + 10)
    change(store, "up", 600, closes=True)
    run(outbox, target, 600, 700)
    assert len(stub.took) <= 4 and not pending(outbox).batches
    assert stub.took[-1]["type"] == "success" and len(names(stub)) == 1


def test_a_degradation_that_turns_into_an_outage_is_told_at_once(store, stub):
    target = target_of(stub)
    outbox = joined(store, target)
    change(store, "degraded", 0, logit_shift=-0.8)
    run(outbox, target, 0, 0)
    change(store, "down", 10, failures=5, attempts=6)
    run(outbox, target, 10, 10)
    assert [said["type"] for said in stub.took] == ["warning", "failure"]


def test_a_dead_target_holds_nobody_else_up(store, stub):
    other = Stub()
    other.up = False
    slack, pager = target_of(other), target_of(stub)
    boxes = [(joined(store, target), target) for target in (slack, pager)]
    change(store, "down")
    for outbox, target in boxes:
        run(outbox, target, 0, 100)
    assert len(stub.took) == 1 and not other.took and pending(boxes[0][0]).tries == len(other.refused)
    other.up = True
    run(*boxes[0], 200, 200)
    assert len(other.took) == 1 and len(stub.took) == 1
    other.close()


DIES = """
import os, sys
from smartrouter.feedback.store import Store
from smartrouter.monitor.alerts import Pace, send, targets, turn
from smartrouter.monitor.outbox import Outbox

(target,) = targets(sys.argv[2])

def tell(message, name):
    assert send(target, message, name, 10.0) == ""
    os._exit(9)

turn(Outbox(Store(sys.argv[1]), target.key), tell, float(sys.argv[3]), Pace(), lambda merchant: "UTC")
"""


def test_killed_between_send_and_record_it_sends_again_under_the_same_name(store, stub):
    target = target_of(stub)
    outbox = joined(store, target)
    change(store, "down")
    url = store.engine.url.render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", DIES, url, target.url, str(NOON)], capture_output=True, text=True)
    assert done.returncode == 9 and len(stub.took) == 1, done.stderr
    assert not run(outbox, target, 1, 1)  # it may still be on its way
    run(outbox, target, 2 * PACE.send_s, 2 * PACE.send_s)
    assert len(stub.took) == 2 and stub.took[0]["message"] == stub.took[1]["message"]
    assert not pending(outbox).batches


def test_one_worker_sends(store):
    outboxes = [Outbox(store, "t") for _ in range(8)]
    join(outboxes[0])
    change(store, "down")
    won, start = [], threading.Barrier(8)

    def worker(outbox):
        start.wait()
        won.append(claim(outbox, NOON, 20.0))

    threads = [threading.Thread(target=worker, args=(outbox,)) for outbox in outboxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]


def test_a_new_target_is_spared_the_history_and_a_known_one_keeps_its_place(store, stub):
    change(store, "down")
    outbox = joined(store, target_of(stub))
    assert not pending(outbox).batches
    change(store, "recovering", 600)
    join(Outbox(store, outbox.target))  # the service starts again
    assert [line.after for line in pending(Outbox(store, outbox.target)).batches[0].lines] == ["recovering"]


def test_what_has_no_incident_wakes_nobody_up(store):
    outbox = Outbox(store, "t")
    join(outbox)
    change(store, "down", incident="")
    assert not pending(outbox).batches


def test_the_same_incident_of_two_merchants_is_two_incidents(store, stub):
    target = target_of(stub)
    outbox = joined(store, target)
    for merchant in ("volaris", "psp"):
        change(store, "down", merchant=merchant)
    run(outbox, target, 0, 0)
    assert {said["title"] for said in stub.took} == {"WORLDPAY is down (volaris)", "WORLDPAY is down (psp)"}


def test_an_incident_that_a_target_refuses_does_not_stand_before_the_others(store):
    outbox, told = Outbox(store, "t"), []
    join(outbox)
    change(store, "down", key="WORLDPAY")
    change(store, "down", key="MIT")

    def tell(message, name):
        told.append(name)
        return "refused" if "WORLDPAY" in name else ""

    for at in range(0, 20, 2):
        turn(outbox, tell, NOON + at, PACE, lambda merchant: "UTC")
    assert sum("MIT" in name for name in told) == 1 and told.index("volaris/MIT@1767268800.000") == 1


def test_a_clock_that_was_set_back_silences_nobody(store):
    outbox = Outbox(store, "t")
    join(outbox)
    change(store, "down")
    assert claim(outbox, NOON + 86_400, 20.0)
    done = turn(outbox, lambda message, name: "", NOON, PACE, lambda merchant: "UTC")
    assert done.batch is not None and not done.failed


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("AB"), st.sampled_from(["down", "recovering", "degraded", "up"]), st.booleans()),
        min_size=1,
        max_size=25,
    ),
    answers=st.lists(st.sampled_from(["", "", "refused", "killed"]), min_size=1, max_size=8),
    gap_s=st.sampled_from([1.0, 30.0, 400.0]),
)
def test_every_change_is_told_whatever_fails(tmp_path_factory, steps, answers, gap_s):
    url = f"sqlite:///{tmp_path_factory.mktemp('s') / 'store.db'}"
    upgrade(url)
    store = Store(url)
    outbox, told, replies = Outbox(store, "t"), [], itertools.cycle([*answers, ""])
    join(outbox)

    def tell(message, name):
        answer = next(replies)
        if answer in ("", "killed"):
            told.append((name, *ids(message.body), message.kind))
        if answer == "killed":
            raise KeyboardInterrupt
        return answer

    def step(now):
        try:
            return turn(outbox, tell, now, PACE, lambda merchant: "UTC")
        except KeyboardInterrupt:
            return None

    numbers, wrote, now = {"A": 0, "B": 0}, {}, NOON
    for row, (key, after, closes) in enumerate(steps, 1):
        incident = f"{key}@{numbers[key]}"
        numbers[key] += closes
        change(store, after, now - NOON, key=key, incident=incident, closes=closes)
        wrote.setdefault(f"volaris/{incident}", []).append((row, closes))
        step(now)
        now += gap_s
        outbox = Outbox(store, "t")
    for _ in range(400):
        if not pending(outbox).batches:
            break
        step(now)
        now += 61.0
    assert not pending(outbox).batches
    for name, rows in wrote.items():
        spans = [(first, last) for said, first, last, _ in told if said == name]
        assert all(any(first <= row <= last for first, last in spans) for row, _ in rows)
        assert spans == sorted(spans)
        closed = any(closes for _, closes in rows)
        kinds = [kind for said, *_, kind in told if said == name]
        assert ("success" in kinds) == closed and (not closed or len(rows) == 1 or kinds[0] != "success")
    store.close()


# -- targets and secrets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        "not-a-url",
        f"pigeon://{SECRET}",
        f"slack://{SECRET}",
        f"pagerduty://{SECRET}",
        f"json://127.0.0.1/{SECRET} and more",
        "   ",
    ],
)
def test_a_url_that_cannot_be_is_refused_without_repeating_it(setting, capfd):
    with pytest.raises(TargetRefused) as caught:
        some_targets(setting)
    shown = str(caught.value) + "".join(capfd.readouterr())
    assert "slack://" in caught.value.expected and SECRET not in shown


def test_urls_come_from_the_setting_or_from_a_file(tmp_path):
    mail = "mailtos://ana:pw@example.org?to=noc@example.org,cto@example.org"
    wanted = ["json://127.0.0.1:1/a", mail]
    assert [t.url for t in targets(f"{wanted[0]}, {mail}")] == wanted
    assert [t.name for t in targets("\n".join(wanted))] == ["1-json", "2-mailtos"]
    file = tmp_path / "alerts.yaml"
    file.write_text(f'# on call\n- "{wanted[0]}"\n\n- {mail}\n- {mail}\n')
    assert [t.url for t in targets(str(file))] == wanted
    file.write_text("# nobody\n")
    with pytest.raises(TargetRefused):
        targets(str(file))
    assert targets("") == ()


def test_a_target_shows_and_stores_no_secret(store, stub, capfd):
    target = target_of(stub)
    stub.up = False
    outbox = joined(store, target)
    change(store, "down")
    (done,) = run(outbox, target, 0, 0)
    assert "503" in done.failed and SECRET not in done.failed + repr(target) + target.key
    with store.engine.connect() as connection:
        assert SECRET not in str(connection.execute(sa.text("SELECT * FROM alerts")).all())
    assert SECRET not in "".join(capfd.readouterr())
    assert key_of(target.url) == target.key != key_of(target.url + "x")


@given(st.lists(st.text("abcXYZ019_-", min_size=5, max_size=20), min_size=1, max_size=4))
def test_no_part_of_a_url_is_left_in_a_reason(parts):
    url = f"json://host.example/{'/'.join(parts)}"
    shown = masked(f"failed at {url} ({parts[0]})", url)
    assert not any(part in shown for part in parts)


def test_a_card_number_that_somebody_typed_is_masked():
    number = "4111" + "1111" * 3
    said = {"who": "ana", "reason": f"card {number}", "until": NOON + 60}
    line = Line(1, "WORLDPAY", "up", "down", "override", NOON, said, False)
    shown = message(Batch("volaris", "i", (line,), 0.0, 0, False), (line,))
    assert find_card_number(shown.body) is None and "ana" in shown.body


# -- services ----------------------------------------------------------------------------------------------------------


def test_pagerduty_gets_one_dedup_key_for_trigger_and_resolve(store, stub, monkeypatch):
    from apprise.plugins import pagerduty

    monkeypatch.setitem(pagerduty.PAGERDUTY_API_LOOKUP, "us", f"http://127.0.0.1:{stub.port}/v2/enqueue")
    (target,) = targets("pagerduty://integrationkey@apikey")
    outbox = joined(store, target)
    for n in range(30):
        change(store, ("down", "recovering")[n % 2], n, failures=3, attempts=4, severity=0.5)
    run(outbox, target, 30, 30)
    change(store, "up", 40, closes=True)
    run(outbox, target, 40, 40)
    trigger, resolve = stub.took
    assert (trigger["event_action"], resolve["event_action"]) == ("trigger", "resolve")
    assert trigger["dedup_key"] == resolve["dedup_key"] == "volaris/WORLDPAY@1767268800.000"
    assert len(trigger["payload"]["summary"]) <= 1024
    assert trigger["payload"]["summary"].startswith("WORLDPAY is recovering (volaris)")


def test_a_service_that_never_answers_is_given_up(stub):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        port = deaf.getsockname()[1]
        for query, limit_s in (("?rto=0.2", 5.0), ("?rto=2", 0.2)):
            (target,) = targets(f"json://127.0.0.1:{port}/{SECRET}{query}")
            failed = try_target(target, limit_s)
            assert failed and SECRET not in failed


def test_optional_in_a_url_does_not_turn_a_failure_into_a_success(stub):
    stub.up = False
    (target,) = targets(f"json://127.0.0.1:{stub.port}/?optional=yes")
    assert "503" in try_target(target)


def test_rests_double_up_to_a_minute():
    rests = [rest_s(tries, PACE) for tries in (1, 2, 3, 4, 5, 6, 7, 100_000)]
    assert rests == [2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize("zone,shown", [("America/Mexico_City", "06:00:00 CST"), ("UTC", "12:00:00 UTC")])
def test_times_are_in_the_merchants_zone(zone, shown):
    line = Line(1, "feedback", "up", "gap", "no outcomes", NOON, {"processors": ["MIT"]}, False)
    told = message(Batch("volaris", "i", (line,), 0.0, 0, False), (line,), zone)
    assert shown in told.body and told.title == "feedback is missing (volaris)" and told.kind == "warning"


def test_the_command_says_which_target_failed(stub, tmp_path):
    other = Stub()
    other.up = False
    urls = f"json://127.0.0.1:{stub.port}/{SECRET} json://127.0.0.1:{other.port}/{SECRET}"
    environ = {"SMARTROUTER_HOME": str(tmp_path), "SMARTROUTER_ALERTS": urls}
    answer = CliRunner().invoke(main, ["alerts", "test"], env=environ)
    assert answer.exit_code == 1 and SECRET not in answer.output
    assert [line.split()[:2] for line in answer.output.splitlines()[1:]] == [["1-json", "sent"], ["2-json", "Failed"]]
    assert [said["type"] for said in stub.took] == ["warning", "success"]
    other.up = True
    assert CliRunner().invoke(main, ["alerts", "test"], env=environ).exit_code == 0
    other.close()


def test_the_rows_of_an_incident_say_what_was_told(store):
    outbox = Outbox(store, "t")
    join(outbox)
    change(store, "down")
    change(store, "up", 60, closes=True)
    (batch,) = pending(outbox).batches
    accepted(outbox, batch, batch.lines[:1], NOON)
    (batch,) = pending(outbox).batches
    assert batch.paged and batch.sent_at == NOON and [line.closes for line in batch.lines] == [True]
    assert opened(targets("json://127.0.0.1:1")[0]).overflow_mode.value == "truncate"


def test_a_real_outage_reads_from_down_to_over(store, root):
    config = load_config(root / "params/outage/default.yaml")
    health, rng = open_health(config, ["WORLDPAY", "MIT"]), random.Random(7)
    outbox, told = Outbox(store, "t"), []
    join(outbox)

    def tell(message, name):
        told.append(message)
        return ""

    for second in range(0, 3700, 2):
        now, kind = NOON + second, "technical" if second < 120 else "ok"
        happened = list(tick(health, {}, now)) + list(outcome(health, Ended("MIT", now - 1, "ok", 0.7), now))
        if health.lines["WORLDPAY"].control.mode != "down":
            happened += outcome(health, Ended("WORLDPAY", now - 1, kind, 0.7), now)
        elif probe := reserve(health, "WORLDPAY", "", now, rng.random()):
            happened += outcome(health, Ended("WORLDPAY", now, kind, 0.7, probe=probe.id), now + 1)
        for change_ in happened:
            row = {**change_.as_json(), "merchant_id": "volaris", "evidence": json.dumps(change_.evidence)}
            with store.engine.begin() as connection:
                connection.execute(TRANSITIONS.insert(), row)
        while turn(outbox, tell, now, PACE, lambda merchant: "America/Mexico_City").batch:
            pass
    assert told[0].title == "WORLDPAY is down (volaris)"
    assert re.search(r"\(about 9\d% of its payments are lost\)", told[0].body)
    assert told[-1].title == "WORLDPAY is up, incident over (volaris)" and told[-1].kind == "success"
    assert [m.kind for m in told] == ["failure", "warning", "info", "success"]
    assert any("probes in a row succeeded" in m.body for m in told)


# -- an incident of several -------------------------------------------------------------------------------------------


def line(number, after, key="WORLDPAY", before="up", why="technical alarm", at=0.0, closes=False, **evidence):
    """One line of an incident, `at` seconds after noon."""
    return Line(number, key, before, after, why, NOON + at, evidence, closes)


def told_of(*lines, zone="UTC"):
    """The message about these lines."""
    return message(Batch("volaris", "WORLDPAY@1767268800.000", lines, 0.0, 0, False), lines, zone)


def test_thirty_dead_bins_are_one_title_and_one_line():
    bins = [line(n, "down", f"WORLDPAY|MXN:{400000 + n}", at=n, segments={"down": n}) for n in range(1, 31)]
    assert told_of(bins[0]).title == "WORLDPAY for MXN:400001 is down (volaris)"
    told = told_of(*bins)
    assert told.title == "WORLDPAY for 30 card groups is down (volaris)" and told.kind == "failure"
    head, traffic, *_ = told.body.splitlines()
    assert traffic.endswith("Its other payments go on.")
    assert head.startswith("Since 2026-01-01 12:00:01 UTC: 30 card groups up to down, technical alarm (MXN:400001, ")
    assert "and 27 more; until 2026-01-01 12:00:30 UTC" in head and len(told.body) < 500 and ids(told.body) == (1, 30)


def test_the_processor_itself_is_the_title_while_it_is_not_up():
    bins = [line(n, "down", f"WORLDPAY|MXN:{400000 + n}", segments={"down": n}) for n in range(1, 4)]
    dead = line(4, "down", at=9, segments={"down": 3}, severity=0.98)
    late = line(5, "down", "WORLDPAY|MXN:400005", at=10, segments={"down": 4}, processor="down")
    told = told_of(*bins, dead, late)
    assert told.title == "WORLDPAY is down (volaris)" and told.kind == "failure"
    assert told.body.startswith("Since 2026-01-01 12:00:09 UTC: up to down, technical alarm (about 98% of its")
    back = line(6, "up", before="recovering", why="slow start done", segments={"down": 2, "recovering": 2})
    assert told_of(back).title == "WORLDPAY for 2 card groups is down (volaris)" and told_of(back).kind == "failure"
    over = line(7, "up", "WORLDPAY|MXN:400001", why="incident over", closes=True)
    assert told_of(over).title == "WORLDPAY is up, incident over (volaris)" and told_of(over).kind == "success"


def test_what_was_lost_is_told_in_the_past_when_it_answers_again():
    gone = {"mode": "down", "severity": 0.84}
    assert "about 84% of its payments are lost" in told_of(line(1, "down", **gone)).body
    back = line(2, "recovering", before="down", why="probes", mode="recovering", severity=0.84, successes=4)
    assert "(about 84% of its payments were lost; 4 probes in a row succeeded)" in told_of(back).body


FORCED = {"who": "ana@example.com", "reason": "try it", "until": NOON + 600}


def test_what_people_did_is_history_and_no_headline():
    down = line(1, "down", severity=0.98, mode="down")
    up = line(2, "up", before="down", why="override", at=60, **FORCED)
    lifted = line(3, "down", why="override lifted", at=90, lifted_by="bo", lifted_because="no better", **FORCED)
    told = told_of(down, up, lifted, zone="America/Mexico_City")
    assert told.title == "WORLDPAY is down (volaris)" and told.kind == "failure"
    assert told.body.startswith("Since 2026-01-01 06:00:00 CST: up to down, technical alarm (about 98%")
    assert "override (who ana@example.com: try it; until 2026-01-01 06:10:00 CST)" in told.body
    assert "lifted by bo: no better" in told.body
    forced = told_of(down, up)
    assert forced.title == "WORLDPAY is down, up by hand (volaris)" and "It gets all of its payments." in forced.body
    under = line(4, "up", before="up", mode="down", severity=0.98)
    assert told_of(under).title == "WORLDPAY is down, up by hand (volaris)" and told_of(under).kind == "failure"


def test_what_people_did_waits_for_the_next_line_of_its_incident(store, stub):
    target = target_of(stub)
    outbox = joined(store, target)
    change(store, "down", 0)
    run(outbox, target, 0, 0)
    change(store, "up", 60, before="down", why="override", **FORCED)
    change(store, "down", 120, why="override over", **FORCED)
    assert not run(outbox, target, 60, 900) and not pending(Outbox(store, outbox.target)).batches
    change(store, "recovering", 1000, before="down", why="probes")
    run(outbox, target, 1000, 1000)
    assert [ids(said["message"]) for said in stub.took] == [(1, 1), (2, 4)]
    assert stub.took[1]["title"] == "WORLDPAY is recovering (volaris)"
    assert "who ana@example.com" in stub.took[1]["message"]
    change(store, "up", 3000, why="override over", closes=True, **FORCED)
    run(outbox, target, 3000, 3000)
    assert stub.took[2]["type"] == "success"


def test_the_death_of_the_processor_is_told_at_once_although_a_segment_was(store, stub):
    target = target_of(stub)
    outbox = joined(store, target)
    incident = "WORLDPAY@1767268800.000"
    for n in range(3):
        change(store, "down", n, key=f"WORLDPAY|MXN:40000{n}", incident=incident)
        run(outbox, target, n, n)
    assert len(stub.took) == 1
    change(store, "down", 10, incident=incident)
    run(outbox, target, 10, 10)
    assert [ids(said["message"]) for said in stub.took] == [(1, 1), (2, 4)] and len(names(stub)) == 1
    assert stub.took[1]["title"] == "WORLDPAY is down (volaris)"


def test_thirty_dead_bins_and_the_processor_page_once_and_resolve_once(store, stub, root, monkeypatch):
    from apprise.plugins import pagerduty

    monkeypatch.setitem(pagerduty.PAGERDUTY_API_LOOKUP, "us", f"http://127.0.0.1:{stub.port}/v2/enqueue")
    (target,) = targets("pagerduty://integrationkey@apikey")
    outbox = joined(store, target)
    health = open_health(load_config(root / "params/outage/default.yaml"), ["WORLDPAY", "MIT"])
    bins, dead = [f"MXN:{400000 + n}" for n in range(30)], Alarm("technical", 3, 3)

    def write(told):
        with store.engine.begin() as connection:
            for one in told:
                row = {**one.as_json(), "merchant_id": "volaris", "evidence": json.dumps(one.evidence)}
                connection.execute(TRANSITIONS.insert(), row)

    for second in range(0, 4000, 5):
        told = list(tick(health, {}, NOON + second))
        if second < 150:
            told += moved(health, "WORLDPAY", bins[second // 5], dead, NOON + second)
        if second == 75:
            told += moved(health, "WORLDPAY", "", Alarm("technical", severity=1.0), NOON + second)
        for name in ["", *bins] if second > 200 else []:
            if probe := reserve(health, "WORLDPAY", name, NOON + second, 0.5):
                ended = Ended("WORLDPAY", NOON + second, "ok", currency="MXN", bin=name[4:], probe=probe.id)
                told += outcome(health, ended, NOON + second)
        write(told)
        run(outbox, target, second, second)
    assert not health.lines["WORLDPAY"].outlets and not pending(outbox).batches
    keys = {said["dedup_key"] for said in stub.took}
    actions = [said["event_action"] for said in stub.took]
    assert keys == {"volaris/WORLDPAY@1767268800.000"} and len(stub.took) <= 12
    assert actions == ["trigger"] * (len(actions) - 1) + ["resolve"]
    assert stub.took[0]["payload"]["summary"].startswith("WORLDPAY for MXN:400000 is down (volaris)")
    assert any(said["payload"]["summary"].startswith("WORLDPAY is down (volaris)") for said in stub.took)
