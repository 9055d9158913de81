"""The engine: every way into it, and what may never move a state."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.outage.config import load_config, parse_config
from smartrouter.outage.control import Alarm
from smartrouter.outage.health import Ended, UnknownProcessor, force, forget, moved, open_health, outcome, reserve, tick
from smartrouter.outage.override import make_override
from smartrouter.outage.saved import load_parts, load_watch, parts_of, save_part, save_watch
from smartrouter.outage.scope import Scope
from smartrouter.outage.states import states, view
from smartrouter.outage.watch import Watch, answered, started

CODES = ["WORLDPAY", "MIT", "ELAVON"]


@pytest.fixture(scope="module")
def config(root):
    """The parameters that ship."""
    return load_config(root / "params/outage/default.yaml")


@pytest.fixture
def health(config):
    """Three processors of which nothing is known."""
    return open_health(config, CODES)


def modes(health):
    """Mode of each processor."""
    return {code: line.control.mode for code, line in health.lines.items()}


def dumped(health):
    """Everything that a store would keep."""
    return {part: json.dumps(save_part(health, part)) for part in parts_of(health)}


def fail(health, code, times, now=0.0, **facts):
    """So many technical failures, one a second."""
    told = []
    for n in range(times):
        told += outcome(health, Ended(code, now + n - 0.5, "technical", **facts), now + n)
    return told


def test_a_hard_outage_is_left_within_five_attempts(health):
    told = fail(health, "WORLDPAY", 5)
    assert [(t.key, t.before, t.after) for t in told] == [("WORLDPAY", "up", "down")]
    assert modes(health) == {"WORLDPAY": "down", "MIT": "up", "ELAVON": "up"}


def test_one_bin_takes_its_segment_out_and_no_processor(health):
    told = fail(health, "WORLDPAY", 12, currency="MXN", bin="415231")
    assert [(t.key, t.after) for t in told] == [("WORLDPAY|MXN:415231", "down")]
    assert set(modes(health).values()) == {"up"}
    assert view(health).outlets["WORLDPAY"]["MXN:415231"].mode == "down" and view(health).quiet_until == 0
    assert states(health, 20.0)["WORLDPAY"].segments == {"MXN:415231": "down"}


def mixed(health, failing, times, now=0.0):
    """Payments in dollars and pesos by turns, one a second, of many cards; those in `failing` currencies fail."""
    told = []
    for n in range(times):
        currency = ("USD", "MXN")[n % 2]
        facts = {"currency": currency, "bin": str(400_000 + 7 * n)}
        kind = "technical" if currency in failing else "ok"
        told += outcome(health, Ended("WORLDPAY", now + n - 0.5, kind, **facts), now + n)
    return told


def test_a_currency_that_fails_alone_is_taken_out_alone(health, config):
    told = mixed(health, {"USD"}, 60)
    assert [(t.key, t.after) for t in told] == [("WORLDPAY|USD", "down")]
    assert set(modes(health).values()) == {"up"}
    assert states(health, 60.0)["WORLDPAY"].segments == {"USD": "down"}
    assert view(health).outlets["WORLDPAY"].keys() == {"USD"}
    again = open_health(config, CODES)
    assert not load_parts(again, [(part, save_part(health, part)) for part in parts_of(health)])
    assert dumped(again) == dumped(health)


def test_a_processor_that_fails_in_all_currencies_is_taken_out(health):
    assert ("WORLDPAY", "down") in [(t.key, t.after) for t in mixed(health, {"USD", "MXN"}, 12)]


def test_a_currency_is_tried_and_comes_back(health):
    mixed(health, {"USD"}, 60)
    assert reserve(health, "WORLDPAY", "MXN:400007", 120.0, 0.5) is None
    now = 120.0
    while health.lines["WORLDPAY"].outlets["USD"].mode == "down":
        probe = reserve(health, "WORLDPAY", "USD:400007", now, 0.5)
        if probe:
            assert probe.id.startswith("WORLDPAY|USD#")
            ended = Ended("WORLDPAY", now, "ok", currency="USD", bin="400007", probe=probe.id)
            outcome(health, ended, now + 1.0)
        now += 2.0
        assert now < 200
    assert health.lines["WORLDPAY"].outlets["USD"].mode == "recovering"


def test_in_a_window_of_maintenance_no_segment_is_alarmed(root):
    text = (root / "params/outage/default.yaml").read_text()
    window = "once: [{processor: WORLDPAY, begins: 1970-01-01T00:00:00Z, ends: 1970-01-01T01:00:00Z}]"
    health = open_health(parse_config(text.replace("once: []", window)), CODES)
    tick(health, {}, 1.0)
    told = fail(health, "WORLDPAY", 12, now=10.0, currency="MXN", bin="415231") + mixed(health, {"USD"}, 60, now=30.0)
    assert told == [] and not health.lines["WORLDPAY"].outlets


def test_a_drop_that_begins_in_a_window_of_maintenance_is_found_after_it(root):
    text = (root / "params/outage/default.yaml").read_text()
    window = "once: [{processor: WORLDPAY, begins: 1970-01-01T00:33:20Z, ends: 1970-01-01T01:06:40Z}]"  # 2000 to 4000 s
    health, rng, told = open_health(parse_config(text.replace("once: []", window)), CODES[:2]), random.Random(7), []
    for n in range(6000):
        code = CODES[n % 2]
        approved = rng.random() < (0.45 if code == "WORLDPAY" and n > 2200 else 0.8)
        kind = "ok" if approved else "issuer" if rng.random() < 0.7 else "customer"
        ended = Ended(code, n - 1.0, kind, p=0.8, issuer="BBVA", bin=str(400_000 + n % 97))
        told += tick(health, {}, float(n)) + outcome(health, ended, float(n))
    assert [(t.key, t.after) for t in told if t.after == "degraded"] == [("WORLDPAY", "degraded")]
    assert all(t.at > 4000 for t in told if t.after == "degraded")


def test_what_spoke_against_a_currency_is_forgotten_when_it_returns(health):
    mixed(health, {"USD"}, 60)
    line = health.lines["WORLDPAY"]
    line.scope.suspicion, line.scope.counts = 9.0, {"USD": [20.0, 20.0]}
    forget(health, "WORLDPAY", "USD")
    assert line.scope == Scope() and not [name for name in line.segments if name.startswith("USD")]
    assert [name for name in line.segments if name.startswith("MXN")]


def test_many_bins_take_the_processor_out(health):
    for n in range(8):
        outcome(health, Ended("WORLDPAY", n - 0.5, "technical", currency="MXN", bin=str(415231 + n)), float(n))
    assert modes(health)["WORLDPAY"] == "down"


@pytest.mark.parametrize(
    ("given", "now"),
    [
        (Ended("NOBODY", 0.0, "technical"), 1.0),  # unknown processor
        (Ended("WORLDPAY", 1000.0, "technical"), 1.0),  # it starts after it has ended
        (Ended("WORLDPAY", 0.0, "technical"), 10_000.0),  # a batch brings it hours later
    ],
)
def test_what_says_nothing_about_now_moves_no_state(health, given, now):
    assert [t for n in range(100) for t in outcome(health, given, now + n)] == []
    assert set(modes(health).values()) == {"up"}


def test_clocks_two_minutes_apart_move_no_state(health):
    rng = random.Random(7)
    for n in range(6000):
        code, now = rng.choice(CODES), n * 0.5
        skew = rng.choice([-120.0, 0.0, 120.0])  # of the worker that decided
        outcome(health, Ended(code, now - 1.0 + skew, "ok", 0.8, "MXN", str(400000 + n % 300), "BBVA"), now)
    assert set(modes(health).values()) == {"up"}


def test_late_everywhere_is_no_failure_and_late_at_one_is(config):
    found = {}
    for late in (CODES, ["WORLDPAY"]):
        health, now = open_health(config, CODES), 0.0
        for n in range(4500):
            now = n * 0.5
            code = CODES[n % 3]
            age = 20.0 if n > 4200 and code in late else 0.5 + 0.4 * (n % 7) / 7
            outcome(health, Ended(code, now - age, "ok"), now)
        found[len(late)] = modes(health)
    assert set(found[3].values()) == {"up"}
    assert found[1]["WORLDPAY"] == "down" and found[1]["MIT"] == found[1]["ELAVON"] == "up"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_customers_move_no_state(config, seed):
    health, rng = open_health(config, CODES), random.Random(seed)
    for n in range(400):
        outcome(health, Ended(rng.choice(CODES), n - 1.0, "customer", 0.8, "MXN", "415231", "BBVA"), float(n))
    assert set(modes(health).values()) == {"up"}


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_parts_that_are_said_to_have_changed_are_all_that_changed(config, data):
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    health, copy = open_health(config, CODES), open_health(config, CODES)
    for n in range(data.draw(st.integers(1, 150))):
        kind = rng.choices(["ok", "technical", "issuer", "customer"], [4, rng.choice([0, 6]), 2, 1])[0]
        bin_ = str(415231 + rng.randrange(3)) if rng.random() < 0.7 else ""
        outcome(health, Ended(rng.choice(CODES[:2]), n - 1.0, kind, rng.random(), "MXN", bin_, "BBVA"), float(n))
        if rng.random() < 0.1:
            tick(health, {}, n + 0.5)
        for code in CODES:
            reserve(health, code, "MXN:415231", n + 0.7, rng.random())
        saved = [(part, json.loads(json.dumps(save_part(health, part)))) for part in sorted(health.dirty)]
        health.dirty.clear()
        assert load_parts(copy, saved) == []
        assert dumped(copy) == dumped(health)


def test_segments_are_dropped_from_the_store_too(config):
    health, copy = open_health(config, CODES), open_health(config, CODES)
    for n in range(3 * config.segment.most):
        outcome(health, Ended("WORLDPAY", n - 1.0, "ok", 0.8, "MXN", str(400000 + n), "BBVA"), float(n))
        load_parts(copy, [(part, save_part(health, part)) for part in sorted(health.dirty)])
        health.dirty.clear()
    assert len(copy.lines["WORLDPAY"].segments) == config.segment.most
    assert list(copy.lines["WORLDPAY"].segments) == list(health.lines["WORLDPAY"].segments)


def test_a_broken_part_starts_fresh_and_is_named(config, health):
    fail(health, "WORLDPAY", 5)
    saved = {part: save_part(health, part) for part in parts_of(health)}
    for part, wrong in ((("WORLDPAY", "technical"), [1]), (("WORLDPAY", "control"), None), (("", "board"), {"MIT": 3})):
        other = open_health(config, CODES)
        assert load_parts(other, [(p, wrong if p == part else v) for p, v in saved.items()]) == [part]
    other = open_health(config, ["MIT"])
    assert load_parts(other, list(saved.items())) == [] and modes(other) == {"MIT": "up"}


def test_silence_at_one_is_an_outage_and_at_all_a_gap(config):
    for silent_codes, wanted in ((["MIT"], {"MIT"}), (CODES, set())):
        health, watches, told, due = open_health(config, CODES), {c: Watch() for c in CODES}, [], []
        for n in range(9400):
            now, code = n / 10, CODES[n % 3]
            started(watches[code], str(n), now, most=400)
            if not (now > 900 and code in silent_codes):
                due.append((now + 0.5 + (n % 10) / 10, code, str(n), now))
            for item in [d for d in due if d[0] <= now]:
                due.remove(item)
                answered(watches[item[1]], item[2])
                told += outcome(health, Ended(item[1], item[3], "ok"), now)
            told += tick(health, watches, now)
        assert {code for code, mode in modes(health).items() if mode == "down"} == wanted
        assert {t.key for t in told} == (wanted or {"feedback"})
    for n in range(9400, 9800):  # the outcomes come through again
        now, code = n / 10, CODES[n % 3]
        for name in list(watches[code].open):
            answered(watches[code], name)
        told += tick(health, watches, now)
    assert told[-1].key == "feedback" and told[-1].closes and health.gap == ""


def test_people_win_and_are_on_record(health):
    override = make_override("down", who="ana", reason="settlement file", now=0.0, until=600.0)
    told = force(health, "MIT", override, 0.0)
    assert told[0].evidence["who"] == "ana" and told[0].after == "down"
    for n in range(50):
        outcome(health, Ended("MIT", n - 0.5, "ok", 0.8), float(n))
    assert states(health, 50.0)["MIT"].state == "down"
    told = tick(health, {}, 601.0)
    assert states(health, 601.0)["MIT"].state == "recovering" and told[0].why == "override over"
    with pytest.raises(UnknownProcessor, match="NOBODY"):
        force(health, "NOBODY", None, 0.0)


def test_a_return_forgets_the_evidence_and_keeps_what_is_normal(health):
    for n in range(200):
        outcome(health, Ended("MIT", n - 0.5, "ok", 0.8, "MXN", "415231"), float(n))
    learned = health.lines["MIT"].baseline.attempts
    moved(health, "MIT", "", Alarm("technical", 4, 4), 200.0)
    force(health, "MIT", make_override("up", who="ana", reason="fixed", now=201.0, until=202.0), 201.0)
    tick(health, {}, 203.0)
    now = 203.0
    while health.lines["MIT"].control.mode == "down" and now < 2000:
        probe = reserve(health, "MIT", "", now, 0.5)
        if probe:
            outcome(health, Ended("MIT", now, "ok", probe=probe.id), now + 1)
        now += 1
    line = health.lines["MIT"]
    assert line.control.mode == "recovering" and max(line.detector.parts) == 0 and not line.segments
    assert line.baseline.attempts == learned


def test_a_watch_survives_being_saved():
    watch = Watch()
    for n in range(10):
        started(watch, str(n), float(n), most=4)
    answered(watch, "8")
    again = load_watch(json.loads(json.dumps(save_watch(watch))))
    assert save_watch(again) == save_watch(watch)
    assert answered(again, "9") == 9.0 and again.latest[-1].answered


def test_a_fallback_whose_start_is_not_known_is_never_late(health):
    for n in range(3000):
        outcome(health, Ended(CODES[n % 3], n - 0.8, "ok"), float(n))
    for n in range(3000, 3200):  # the first processor times out after 30 s, and nobody says so
        outcome(health, Ended("MIT", n - 31.0, "ok", dated=False), float(n))
    assert set(modes(health).values()) == {"up"}


def test_changed_odds_ratios_start_the_parts_fresh(config, health):
    for n in range(50):
        outcome(health, Ended("MIT", n - 0.8, "issuer", 0.8, "MXN", "415231", "BBVA"), float(n))
    saved = [(part, save_part(health, part)) for part in parts_of(health)]
    shorter = {
        name: getattr(config, name).model_copy(update={"odds_ratios": (2.0, 9.0)}) for name in ("approval", "segment")
    }
    other = open_health(config.model_copy(update=shorter), CODES)
    assert set(load_parts(other, saved)) == {("", "board"), ("MIT", "segment:00")}
    outcome(other, Ended("MIT", 60.0, "issuer", 0.8, "MXN", "415231", "BBVA"), 61.0)


def test_a_gap_with_all_traffic_at_one_takes_down_one_at_most(config):
    health, watches = open_health(config, CODES), {code: Watch() for code in CODES}
    for n in range(1800):
        now = n / 2
        started(watches["WORLDPAY"], str(n), now, most=400)
        answered(watches["WORLDPAY"], str(n))
        outcome(health, Ended("WORLDPAY", now, "ok"), now + 0.4)
        for code in CODES[1:]:
            outcome(health, Ended(code, now, "ok"), now + 0.4)
    for n in range(1800, 2200):  # nothing comes back any more, and the payments go to the first that is not down
        now = n / 2
        code = next((c for c in CODES if health.lines[c].control.mode != "down"), CODES[0])
        started(watches[code], str(n), now, most=400)
        tick(health, watches, now)
    assert list(modes(health).values()).count("down") == 1 and health.gap


def test_a_degraded_one_stays_while_the_drop_lasts_and_returns_after_it(config):
    health, rng, seen = open_health(config, CODES), random.Random(7), []
    for n in range(36_000):  # 3 a second; approval .85, at WORLDPAY odds of an issuer's decline five times as high
        now, code = n / 3, rng.choice(CODES)
        bad = code == "WORLDPAY" and 3000 <= now < 9000
        issuer, customer = 0.06 * (5 if bad else 1), 0.09
        approved = 0.85
        u = rng.random() * (approved + issuer + customer)
        kind = "ok" if u < approved else "issuer" if u < approved + issuer else "customer"
        bin_ = str(400000 + rng.randrange(300))
        outcome(health, Ended(code, now - 1, kind, approved, "MXN", bin_, f"BANK{rng.randrange(9)}"), now)
        if n % 3 == 0:
            tick(health, {}, now)
        seen.append(health.lines["WORLDPAY"].control.mode)
    first = seen.index("degraded")
    assert 9000 < first < 12_000 and set(seen[first : 3 * 9000]) == {"degraded"} and seen[-1] == "up"
    assert modes(health)["MIT"] == modes(health)["ELAVON"] == "up"


def test_a_smaller_failure_beside_a_degradation_makes_nothing_better(health):
    moved(health, "MIT", "", Alarm("approval", logit_shift=-2.0), 10.0)
    moved(health, "MIT", "", Alarm("technical", severity=0.05), 20.0)
    assert health.lines["MIT"].control.logit_shift < -1.9


def test_a_segment_that_nothing_tries_is_let_go(health, config):
    told = fail(health, "WORLDPAY", 12, currency="MXN", bin="415231")
    day = config.segment.untried_s
    assert tick(health, {}, day / 2) == () and health.lines["WORLDPAY"].outlets
    (closed,) = tick(health, {}, day + 100)
    assert closed.closes and closed.incident == told[0].incident and not health.lines["WORLDPAY"].outlets
    assert view(health).quiet_until == float("inf")


def test_an_old_hold_does_not_come_back(health):
    for start in (0.0, 30 * 86_400.0):
        moved(health, "MIT", "", Alarm("approval", logit_shift=-1.0), start)
        moved(health, "MIT", "", Alarm("technical", severity=1.0), start + 10)
        first = health.lines["MIT"].control.hold_s
        now = start + 10
        while health.lines["MIT"].control.mode == "down":
            now += 1
            probe = reserve(health, "MIT", "", now, 0.5)
            if probe:
                outcome(health, Ended("MIT", now, "ok", probe=probe.id), now)
        for _ in range(4):  # relapses
            moved(health, "MIT", "", Alarm("technical", severity=1.0), now + 1)
            while health.lines["MIT"].control.mode == "down":
                now += 1
                probe = reserve(health, "MIT", "", now, 0.5)
                if probe:
                    outcome(health, Ended("MIT", now, "ok", probe=probe.id), now)
        assert first == 30.0


def healed(health, code, names, now):
    """Let probes of a processor and its segments succeed until no incident is open; return what is told."""
    told, start = [], now
    while any(state.incident for state in (health.lines[code].control, *health.lines[code].outlets.values())):
        now += 1.0 if now < start + 400 else 60.0
        assert now < start + 90_000
        for name in ["", *names]:
            if probe := reserve(health, code, name, now, 0.5):
                told += outcome(health, Ended(code, now, "ok", currency="MXN", bin=name[4:], probe=probe.id), now)
        told += tick(health, {}, now)
    return told


BINS = [f"MXN:{400000 + n}" for n in range(30)]
DEAD = Alarm("technical", 3, 3)


def test_thirty_dead_bins_and_then_the_processor_are_one_incident(health):
    told = [t for n, name in enumerate(BINS[:15]) for t in moved(health, "WORLDPAY", name, DEAD, float(n))]
    told += moved(health, "WORLDPAY", "", Alarm("technical", severity=1.0), 15.0)
    told += [t for n, name in enumerate(BINS[15:]) for t in moved(health, "WORLDPAY", name, DEAD, 16.0 + n)]
    assert {t.incident for t in told} == {"WORLDPAY@0.000"} and len(told) == 31
    assert told[0].evidence["segments"] == {"down": 1} and told[15].evidence["segments"] == {"down": 15}
    assert "processor" not in told[0].evidence and told[-1].evidence["processor"] == "down"
    (other,) = moved(health, "MIT", "", Alarm("technical", severity=1.0), 50.0)
    assert other.incident == "MIT@50.000"
    told += healed(health, "WORLDPAY", BINS, 60.0)
    assert {t.incident for t in told} == {"WORLDPAY@0.000"}
    assert [t.closes for t in told].count(True) == 1 and told[-1].closes and not health.lines["WORLDPAY"].outlets
    assert {t.key for t in told if t.after == "up"} == {"WORLDPAY", *(f"WORLDPAY|{name}" for name in BINS)}


def test_what_alarms_again_joins_the_incident_that_others_keep_open(health):
    first, second = BINS[:2]
    moved(health, "WORLDPAY", first, DEAD, 0.0)
    moved(health, "WORLDPAY", second, DEAD, 10.0)
    now = 10.0
    while second in health.lines["WORLDPAY"].outlets:  # the first stays down
        now += 1.0
        if probe := reserve(health, "WORLDPAY", second, now, 0.5):
            outcome(health, Ended("WORLDPAY", now, "ok", currency="MXN", bin=second[4:], probe=probe.id), now)
        assert not any(t.closes for t in tick(health, {}, now))
    (again,) = moved(health, "WORLDPAY", second, DEAD, now + 5)
    assert again.incident == "WORLDPAY@0.000" and again.evidence["segments"] == {"down": 2}
    assert states(health, now + 5)["WORLDPAY"].incident == again.incident


def test_an_incident_goes_on_from_what_was_saved_and_ends_once(config, health):
    for n, name in enumerate(BINS[:3]):
        moved(health, "WORLDPAY", name, DEAD, float(n))
    other = open_health(config, CODES)
    assert load_parts(other, [(part, json.loads(saved)) for part, saved in dumped(health).items()]) == []
    told = [*moved(other, "WORLDPAY", "", Alarm("silence", severity=1.0), 4.0)]
    told += healed(other, "WORLDPAY", BINS[:3], 5.0)
    assert {t.incident for t in told} == {"WORLDPAY@0.000"} and [t.closes for t in told].count(True) == 1


def test_segments_that_nothing_tries_end_their_incident_together(health, config):
    for n, name in enumerate(BINS[:3]):
        moved(health, "WORLDPAY", name, DEAD, float(n))
    told = tick(health, {}, config.segment.untried_s + 100)
    assert [t.closes for t in told] == [False, False, True] and {t.incident for t in told} == {"WORLDPAY@0.000"}


def test_what_people_do_at_a_processor_is_no_part_of_an_incident_of_a_segment(health):
    moved(health, "WORLDPAY", BINS[0], DEAD, 0.0)
    (told,) = force(health, "WORLDPAY", make_override("down", who="ana", reason="test", now=1.0, until=60.0), 1.0)
    assert told.incident == "" and not told.closes and "segments" not in told.evidence
