"""Decisions while processors are down: never empty, never to the dead, and with the right propensity."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrouter.outage.config import load_config
from smartrouter.outage.control import Alarm, Control, Force, Tick, step
from smartrouter.outage.override import make_override
from smartrouter.outage.probe import Probe
from smartrouter.outage.states import View
from smartrouter.router.decide import decide
from smartrouter.router.failover import place, scene_of, shifted
from smartrouter.router.live import NobodyTakesIt, Router, SnapshotRefused
from smartrouter.rules.policy import load_policy

CODES = ["WORLDPAY", "MIT", "ELAVON"]
CHANCES = {"WORLDPAY": 0.8, "MIT": 0.7, "ELAVON": 0.6}
PAYMENT = {
    "order": {"amount": 2450.0, "currency": "MXN"},
    "card": {"bin": "415231", "brand": "VISA", "bank": "BBVA"},
    "payment": {"initiation": "CIT"},
}


class Fixed:
    """A model with one probability a processor."""

    name, version, learnt = "processor_selector.volaris", "7", frozenset(CHANCES)

    def probabilities(self, request, processors, now_ms):
        """Return the fixed probabilities."""
        return [CHANCES[p] for p in processors]


class Source:
    """States, and at most one probe."""

    def __init__(self, config, controls, outlets=None, lends=False):
        self.view, self.lends, self.asked = View(config, controls, outlets or {}, 0.0), lends, []

    def reserve(self, code, name, now, u):
        """Lend a probe, or none."""
        self.asked.append(code)
        if self.lends == "raises":
            raise OSError("the store is gone")
        return Probe(f"{code}#1", now, now + 60) if self.lends else None


@pytest.fixture(scope="module")
def config(root):
    """The parameters that ship."""
    return load_config(root / "params/outage/default.yaml")


@pytest.fixture(scope="module")
def policy(root):
    """The first merchant's policy."""
    return load_policy("volaris", root / "params")


def state_of(mode, code, config, now=100.0):
    """A processor in a mode."""
    if mode == "down":
        return step(Control(code), Alarm("technical", 4, 4), now, config.control)[0]
    if mode == "degraded":
        return step(Control(code), Alarm("approval", logit_shift=-1.0), now, config.control)[0]
    if mode == "recovering":
        return Control(code, mode="recovering", since=now, back=now, shown="recovering")
    return Control(code)


MODES = st.fixed_dictionaries({code: st.sampled_from(["up", "degraded", "down", "recovering"]) for code in CODES})


@settings(max_examples=200, deadline=None)
@given(modes=MODES, ago=st.floats(0, 140), share=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 1000))
def test_an_order_is_never_empty_and_never_dead_while_one_lives(config, modes, ago, share, seed):
    source = Source(config, {code: state_of(mode, code, config) for code, mode in modes.items()})
    scene = scene_of(source, CODES, "MXN", "415231", 100.0 + ago)
    found = place(CODES, [], CHANCES, share, Random(seed), scene)
    assert found.order and set(found.order) <= set(CODES) and len(set(found.order)) == len(found.order)
    assert found.all_down == all(mode == "down" for mode in modes.values())
    if not found.all_down:
        assert all(modes[code] != "down" for code in found.order)
        assert {e.processor for e in found.excluded} | set(found.order) == set(CODES)
        assert 0 < found.propensity <= 1
    else:
        assert set(found.order) == set(CODES) and found.excluded == ()


@settings(max_examples=12, deadline=None)
@given(modes=MODES, ago=st.floats(0, 140), share=st.sampled_from([0.0, 0.2]))
def test_propensities_are_the_frequencies(config, modes, ago, share):
    source = Source(config, {code: state_of(mode, code, config) for code, mode in modes.items()})
    scene = scene_of(source, CODES, "MXN", "415231", 100.0 + ago)
    rng, n = Random(7), 3000
    places = [place(CODES, [], CHANCES, share, rng, scene) for _ in range(n)]
    told = {found.order[0]: found.propensity for found in places}
    for code, propensity in told.items():
        seen = sum(found.order[0] == code for found in places) / n
        assert abs(seen - propensity) < 5 * (propensity * (1 - propensity) / n) ** 0.5 + 1e-9
    assert sum(told.values()) <= 1 + 1e-9


def test_a_probe_goes_to_the_dead_one_first_and_has_no_propensity(config, policy):
    source = Source(config, {"WORLDPAY": state_of("down", "WORLDPAY", config)}, lends=True)
    early = decide(PAYMENT, now=101.0, policy=policy, predictor=Fixed(), health=source)
    assert early.probe is None and source.asked == [] and early.ranking[0].processor == "MIT"
    due = decide(PAYMENT, now=200.0, policy=policy, predictor=Fixed(), health=source)
    assert (due.probe, due.propensity, due.explored) == ("WORLDPAY#1", None, False)
    assert [r.processor for r in due.ranking] == ["WORLDPAY", "MIT", "ELAVON"]
    assert all(e.processor != "WORLDPAY" for e in due.excluded)


def test_a_store_that_is_gone_lends_no_probe_and_breaks_nothing(config, policy):
    source = Source(config, {"WORLDPAY": state_of("down", "WORLDPAY", config)}, lends="raises")
    found = decide(PAYMENT, now=200.0, policy=policy, predictor=Fixed(), health=source)
    assert found.approach == "model" and found.probe is None and source.asked == ["WORLDPAY"]


def test_rules_and_hard_rules_know_the_states(config, policy):
    down = {code: state_of("down", code, config) for code in ("WORLDPAY", "AMEX")}
    found = decide(PAYMENT, now=101.0, policy=policy, health=Source(config, down))
    assert found.approach == "rules" and found.ranking[0].processor != "WORLDPAY"
    assert next(e for e in found.excluded if e.processor == "WORLDPAY").since.startswith("1970-01-01T00:01:40")
    amex = PAYMENT | {"card": {"bin": "371234", "brand": "AMEX"}}
    found = decide(amex, now=101.0, policy=policy, health=Source(config, down))
    assert found.approach == "hard_rule" and found.ranking[0].processor == "AMEX" and found.all_down


def test_only_the_dead_segment_is_left(config, policy):
    outlet = step(Control("WORLDPAY|MXN:415231"), Alarm("technical", 4, 4), 100.0, config.control)[0]
    source = Source(config, {}, {"WORLDPAY": {"MXN:415231": outlet}})
    found = decide(PAYMENT, now=101.0, policy=policy, predictor=Fixed(), health=source)
    assert found.excluded[-1].reason == "segment_down" and found.ranking[0].processor == "MIT"
    other = PAYMENT | {"card": {"bin": "545454", "brand": "VISA"}}
    assert decide(other, now=101.0, policy=policy, predictor=Fixed(), health=source).ranking[0].processor == "WORLDPAY"


def test_a_dead_currency_binds_all_its_cards(config, policy):
    outlet = step(Control("WORLDPAY|MXN"), Alarm("technical", 4, 4), 100.0, config.control)[0]
    source = Source(config, {}, {"WORLDPAY": {"MXN": outlet}})
    for card in (PAYMENT["card"], {"bin": "545454", "brand": "VISA"}):
        found = decide(PAYMENT | {"card": card}, now=101.0, policy=policy, predictor=Fixed(), health=source)
        assert found.excluded[-1].reason == "segment_down" and found.ranking[0].processor == "MIT"
    dollars = PAYMENT | {"order": PAYMENT["order"] | {"currency": "USD"}}
    found = decide(dollars, now=101.0, policy=policy, predictor=Fixed(), health=source)
    assert found.ranking[0].processor == "WORLDPAY"


def test_a_window_of_maintenance_is_told_as_such_from_its_first_second(config, policy):
    window = (1000.0, 2000.0)
    state, _ = step(Control("WORLDPAY"), Tick(window), 500.0, config.control)
    source = Source(config, {"WORLDPAY": state})
    found = decide(PAYMENT, now=1000.5, policy=policy, predictor=Fixed(), health=source)  # before any tick has seen it
    (line,) = [e for e in found.excluded if e.processor == "WORLDPAY"]
    assert (line.reason, line.since) == ("processor_maintenance", "1970-01-01T00:16:40.000+00:00")
    override = make_override("down", who="ana", reason="test", now=1100.0, until=1200.0)
    forced, _ = step(state, Force(override), 1100.0, config.control)
    found = decide(PAYMENT, now=1101.0, policy=policy, predictor=Fixed(), health=Source(config, {"WORLDPAY": forced}))
    assert next(e for e in found.excluded if e.processor == "WORLDPAY").reason == "processor_down"


def test_a_degraded_one_is_lowered_and_the_record_says_so(config, policy):
    source = Source(config, {"WORLDPAY": state_of("degraded", "WORLDPAY", config)})
    found = decide(PAYMENT, now=100.0, policy=policy, predictor=Fixed(), health=source)
    lowered = {r.processor: r.approval_probability for r in found.ranking}
    assert found.ranking[0].processor == "MIT" and lowered["WORLDPAY"] == pytest.approx(0.5954, abs=1e-3)
    assert [(s.processor, s.state, s.logit_shift) for s in found.health] == [("WORLDPAY", "degraded", -1.0)]
    assert shifted(CHANCES, None) is CHANCES


def test_without_trouble_a_decision_is_the_same(config, policy):
    quiet = Source(config, {code: Control(code) for code in CODES})
    object.__setattr__(quiet.view, "quiet_until", float("inf"))
    busy = Source(config, {code: Control(code) for code in CODES})
    for seed in range(50):
        made = [
            decide(PAYMENT, now=1.0, policy=policy, predictor=Fixed(), rng=Random(seed), health=h)
            for h in (None, quiet, busy)
        ]
        assert made[0] == made[1] == made[2]


def run_router(policy, config, dead, seconds, rng_seed=7, router=None):
    """A payment each half second; one processor answers with errors within `dead` (from, to)."""
    router, sent, told = router or Router(policy, config, rng=Random(rng_seed), predictor=Fixed()), [], []
    for n in range(2 * seconds):
        now = n / 2
        payment = PAYMENT | {"card": PAYMENT["card"] | {"bin": str(400000 + n % 977)}}
        decision = router.decide(payment, now)
        sent.append(decision.ranking[0].processor)
        router.started(str(n), payment, decision, now)
        failed = sent[-1] == "WORLDPAY" and dead[0] <= now < dead[1]
        told += router.outcome(str(n), "error" if failed else "approved", now + 0.4)
    return router, sent, told


def test_a_dead_processor_is_left_and_taken_back(policy, config):
    _, sent, told = run_router(policy, config, (60, 600), 1200)
    assert sent[:120].count("WORLDPAY") > 110 and 0 < sent[120:1200].count("WORLDPAY") <= 12
    assert [t.after for t in told] == ["down", "recovering", "up"] and sent[-100:].count("WORLDPAY") > 90


def test_unknown_and_second_outcomes_change_nothing(policy, config):
    router, _, _ = run_router(policy, config, (0, 0), 30)
    before = router.snapshot()
    for _ in range(50):
        assert router.outcome("nobody", "error", 30.0) == () and router.outcome("3", "error", 30.0) == ()
    after = router.snapshot()
    assert after["health"] == before["health"] and after["watches"] == before["watches"]


def test_an_outcome_before_its_start_counts_once_and_flips_nothing(policy, config):
    router = Router(policy, config, rng=Random(7), predictor=Fixed())
    for n in range(1200):
        now = n / 2
        decision = router.decide(PAYMENT, now)
        if n % 5 == 0:
            assert router.outcome(str(n), "approved", now) == ()
        router.started(str(n), PAYMENT, decision, now)
        router.started(str(n), PAYMENT, decision, now)
        router.outcome(str(n), "approved", now + 0.4)
    assert {state.state for state in router.states(700.0).values()} == {"up"} and not router.sent and not router.early
    assert sum(state.scores[15]["attempts"] for state in router.states(600.0).values()) == 1200


def test_a_restart_in_an_outage_stays_down_and_tells_nothing_twice(policy, config):
    router, _, told = run_router(policy, config, (5, 900), 60)
    other = Router(policy, config, rng=Random(1), predictor=Fixed())
    other.restore(router.snapshot())
    assert other.decide(PAYMENT, 60.1).ranking[0].processor == "MIT"
    assert len(told) == 1 and other.tick(61.0) == ()


def test_a_snapshot_of_something_else_is_refused(policy, config):
    router = Router(policy, config, rng=Random(1))
    for wrong in ({}, {"health": 3}, router.snapshot() | {"health": [["WORLDPAY", "technical", [1]]]}):
        with pytest.raises(SnapshotRefused):
            Router(policy, config, rng=Random(1)).restore(wrong)


def test_what_a_decision_finds_out_is_told_later(policy, config):
    router, _, _ = run_router(policy, config, (0, 0), 10)
    router.force("MIT", make_override("down", who="ana", reason="test", now=10.0, until=20.0), 10.0)
    router.decide(PAYMENT, 30.0)
    assert [t.why for t in router.tick(30.1)] == ["override over"] and router.tick(30.2) == ()


def test_an_override_wins_in_the_next_decision(policy, config):
    router, _, _ = run_router(policy, config, (0, 0), 10)
    router.force("WORLDPAY", make_override("down", who="ana", reason="test", now=10.0, until=70.0), 10.0)
    assert router.decide(PAYMENT, 10.1).ranking[0].processor == "MIT"
    router.force("WORLDPAY", None, 11.0, "ana", "over")
    assert router.states(11.0)["WORLDPAY"].state == "recovering"


def test_a_probe_that_is_not_sent_is_given_back(config, policy):
    router = Router(policy, config, rng=Random(7))
    for n in range(20):
        card = {**PAYMENT["card"], "bin": str(400_000 + n)}
        decision = router.decide({**PAYMENT, "card": card}, n / 10)
        router.started(str(n), {**PAYMENT, "card": card}, decision, n / 10)
        router.outcome(str(n), "error" if decision.ranking[0].processor == "WORLDPAY" else "approved", n / 10)
    what_if = next(d for n in range(2000) if (d := router.decide(PAYMENT, 60.0 + n)).probe)
    at = next(p.at for p in router.view.controls["WORLDPAY"].probing.flying)
    assert not router.decide(PAYMENT, at).probe  # it is reserved
    router.give_back(what_if, at)
    router.give_back(router.decide({**PAYMENT, "eligible_processors": ["MIT"]}, at), at)  # no probe: nothing happens
    assert router.view.controls["WORLDPAY"].probing.flying == ()
    again = next(d for n in range(2000) if (d := router.decide(PAYMENT, at + n)).probe)
    assert again.probe != what_if.probe


def test_a_payment_that_nobody_takes_was_not_sent(config, policy):
    router = Router(policy, config, rng=Random(7))
    payment = {**PAYMENT, "card": {"bin": "415231", "brand": "NOBODYS"}}
    decision = router.decide(payment, 0.0)
    assert decision.ranking == ()
    with pytest.raises(NobodyTakesIt, match=r"brand_not_supported.*Send nothing"):
        router.started("1", payment, decision, 0.0)
    router.started("1", payment, decision, 0.0, processor="MIT")  # against the decision, and so be it
    assert router.outcome("1", "approved", 1.0) == () and router.states(1.0)["MIT"].state == "up"
