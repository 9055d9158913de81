"""A service over a temporary store with a stand-in for router and model, where a test is not about them."""

import json
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from serve.app import create_app
from serve.logs import Log
from smartrouter.core.settings import Settings
from smartrouter.feedback.store import upgrade
from smartrouter.outage.control import effective
from smartrouter.rules.policy import eligible, hard_rule

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class FakeModel:
    """Ranks by a fixed table; counts what it is told."""

    version: str = "1"
    name: str = "processor_selector.volaris"
    known_until: float = 0.0
    created_at: float = field(default_factory=time.time)
    feature_contract: str = "fake"
    pause_s: float = 0.0
    fails: bool = False
    applied: list = field(default_factory=list)
    table: ClassVar = {"WORLDPAY": 0.8, "MIT": 0.7, "ELAVON": 0.6, "AMEX": 0.9}

    def probabilities(self, request, processors, now_ms):
        time.sleep(self.pause_s)
        if self.fails:
            raise RuntimeError("the model is broken")
        return [self.table[p] for p in processors]

    def apply(self, row):
        self.applied.append(row)


def fake_load(folder: Path) -> FakeModel:
    """A release of one file."""
    content = json.loads((folder / "manifest.json").read_text())
    if content.get("corrupt"):
        raise ValueError("checksum differs")
    facts = {name: content[name] for name in ("pause_s", "fails", "known_until") if name in content}
    return FakeModel(version=content["version"], **facts)


def fake_decide(payment, *, now, policy, rules=None, predictor=None, rng=None, health=None):
    """The router's shape in twenty lines."""
    card, order = payment["card"], payment["order"]
    allowed, excluded = eligible(policy, card["brand"], order["currency"], payment.get("eligible_processors"))
    rule = hard_rule(policy, {"brand": card["brand"]})
    approach, why, probabilities = "rules", None, {}
    if rule:
        approach, allowed = "hard_rule", [rule.processor]
    elif predictor is not None:
        try:
            found = predictor.probabilities(payment, allowed, int(now * 1000))
            probabilities, approach = dict(zip(allowed, found, strict=True)), "model"
            allowed = sorted(allowed, key=lambda p: -probabilities[p])
        except Exception:
            why = "model"
    ranking = [
        SimpleNamespace(
            rank=i,
            processor=p,
            processor_id=policy.processor_id(p),
            approval_probability=probabilities.get(p),
            expected_value=None,
            approval_low=None,
        )
        for i, p in enumerate(allowed[:3], 1)
    ]
    return SimpleNamespace(
        ranking=ranking,
        excluded=[SimpleNamespace(processor=p, reason=r, since=None) for p, r in excluded],
        approach=approach,
        explored=False,
        propensity=1.0,
        fallback_reason=why,
        rule_id=None,
        model_name=predictor.name if approach == "model" else None,
        model_version=predictor.version if approach == "model" else None,
        caution=None,
        **seen_by(health, ranking, payment, now),
    )


def seen_by(health, ranking, payment, now):
    """What the router does with health, in a few lines: dead ones go last, or first with a probe."""
    found = {"probe": None, "all_down": False, "health": ()}
    if health is None:
        return found
    down = [line for line in ranking if effective(health.view.controls[line.processor], now) == "down"]
    tried = [(line, probe) for line in down if (probe := health.reserve(line.processor, "", now, 0.5))][:1]
    for line in down:
        ranking.remove(line)
        ranking.append(line)
    for line, probe in tried:
        ranking.remove(line)
        ranking.insert(0, line)
        found["probe"] = probe.id
    found["health"] = tuple(SimpleNamespace(processor=x.processor, state="down", logit_shift=0.0) for x in down)
    return found


def write_champion(home: Path, version: str, **facts) -> None:
    """Write a release and point to it, as promotion does."""
    name = home / "releases" / "processor_selector.volaris"
    folder = name / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"version": version, **facts}))
    beside = name / "champion.json.new"
    beside.write_text(json.dumps({"version": version}))
    beside.replace(name / "champion.json")


@pytest.fixture(scope="session", name="write_champion")
def _write_champion():
    return write_champion


@pytest.fixture
def promote(tmp_path):
    """Promote a release of the test's merchant: promote("2", pause_s=1.0)."""
    return partial(write_champion, tmp_path)


@pytest.fixture
def settings(tmp_path) -> Settings:
    """A patient deadline: only tests about slow models may see one pass, however busy the machine is."""
    return Settings(home=tmp_path, params=ROOT / "params", deadline_ms=5000.0)


@pytest.fixture
def logfile(tmp_path):
    return tmp_path / "access.log"


@pytest.fixture
def open_app(settings, logfile):
    """Start the service over the test's settings, with the package's own router unless told otherwise."""
    made = []

    def start(parts=None, **changes):
        used = settings.model_copy(update=changes)
        upgrade(used.store)
        stream = open(logfile, "ab", buffering=0)  # noqa: SIM115
        app = create_app(used, **(parts or {}), log=Log("info", stream.fileno()))
        made.append((app, stream))
        return app

    yield start
    for app, stream in made:
        app.extensions["smartrouter"].close()
        stream.close()


@pytest.fixture
def make_app(open_app):
    """The same with a stand-in for router and model."""
    return partial(open_app, {"decide": fake_decide, "load_model": fake_load})


@pytest.fixture
def app(make_app, promote):
    promote("1")
    return make_app()


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def parts(app):
    return app.extensions["smartrouter"]


@pytest.fixture
def payment():
    return {
        "transaction_id": "tx-1",
        "merchant_id": "volaris",
        "order": {"amount": 2450.0, "currency": "MXN"},
        "card": {"bin": "415231", "brand": "VISA"},
    }
