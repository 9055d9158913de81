"""What a worker knows of each merchant: policy, static rules and the champion model, watched and swapped whole."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from serve.logs import Log
from serve.metrics import Metrics
from smartrouter.core.errors import SmartrouterError
from smartrouter.core.settings import Settings
from smartrouter.feedback.health import Keepers
from smartrouter.feedback.outcome import OutcomeRow
from smartrouter.feedback.store import Store, StoreUnavailable, first_outcome, newest_outcome, outcomes_after
from smartrouter.models.package import pointed_version
from smartrouter.outage.config import Config, config_path, load_config
from smartrouter.rules.policy import MerchantPolicy, UnknownMerchant, load_policy, policy_path
from smartrouter.rules.static import RuleSet, load_rules

MODEL_TYPE = "processor_selector"
WATCH_S = 0.4  # between two looks at the files
FOLLOW_S = 0.2  # between two looks at the outcomes
RETRY_S = 5.0  # before a file that failed to load is tried again
PAGE = 500  # outcomes a read


class Model(Protocol):
    """A loaded model with its feature state; built once a release, used by many threads."""

    @property
    def name(self) -> str:
        """Such as processor_selector.volaris."""

    @property
    def version(self) -> str:
        """Of the release."""

    @property
    def known_until(self) -> float:
        """Epoch seconds: outcomes that the release knows from its training."""

    @property
    def created_at(self) -> float:
        """Epoch seconds."""

    @property
    def feature_contract(self) -> str | None:
        """Version of the features that it was trained on."""

    def probabilities(self, request: Any, processors: Any, now_ms: int) -> Any:
        """Approval probability of each processor."""

    def intervals(self, request: Any, processors: Any, now_ms: int, level: float) -> Any:
        """Probabilities, lower and upper bounds; None for bounds that it cannot tell."""

    def apply(self, row: dict[str, Any]) -> None:
        """Fold one outcome into the feature state."""


LoadModel = Callable[[Path], Model]  # a release folder -> a model; raises SmartrouterError when it is corrupt
Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Merchant:
    """One merchant at one moment; never changed, only replaced."""

    policy: MerchantPolicy
    rules: RuleSet | None = None
    model: Model | None = None
    outage: Config | None = None
    problems: dict[str, str] = field(default_factory=dict)  # what failed to load -> why


def stamp(path: Path) -> Stamp:
    """What changes when a file is replaced; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class NoChampion(SmartrouterError):
    """No model was promoted yet."""


class NoRelease(NoChampion):
    """No model was trained yet, so none is missing: the static rules are meant to answer."""


def champion_version(
    pointer: Path,  # champion.json
) -> str:
    """The version that a pointer names; raises `NoChampion` or `ReleaseCorrupt`."""
    version = pointed_version(pointer)
    if version is None:
        remedy = "Train and promote a model: smartrouter retrain, then smartrouter models promote"
        kind = NoChampion if any(pointer.parent.glob("*/manifest.json")) else NoRelease
        raise kind(f"no champion at {pointer}", "a pointer to a release", remedy)
    return version


class Merchants:
    """Keeps every merchant current from one background thread; readers take what is there without a lock."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        load_model: LoadModel,
        log: Log,
        metrics: Metrics,
        keepers: Keepers | None = None,  # of the processors' health; None: all are taken to be up
    ):
        self.settings, self.store, self.load_model, self.log, self.metrics = settings, store, load_model, log, metrics
        self.keepers = keepers
        self.now: dict[str, Merchant] = {}
        self.seen: dict[tuple[str, str], tuple[Stamp, float]] = {}  # (merchant, what) -> (stamp, try again at)
        self.last, self.applied = 0, 0
        self.newest: dict[str, float] = {}  # merchant -> epoch seconds of the newest outcome folded in
        self.lag_s: float | None = None
        self.refused: dict[str, str] = {}  # merchants whose very policy cannot be read
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.work, name="merchants", daemon=True)

    # -- reading -----------------------------------------------------------------------------------------------------

    def get(self, merchant_id: str) -> Merchant | None:
        """The merchant as it is now."""
        return self.now.get(merchant_id)

    def zone(self, merchant_id: str) -> str:
        """The merchant's time zone, UTC for one that is not known."""
        merchant = self.now.get(merchant_id)
        return merchant.policy.time_zone if merchant else "UTC"

    # -- the background thread ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load everything once, then keep watching."""
        self.load()
        self.thread.start()

    def load(self) -> None:
        """Load everything once; each champion reads the outcomes that are new to it, and no other is read."""
        try:
            self.last = newest_outcome(self.store)  # before the champions, which catch up to here
        except StoreUnavailable as error:  # they start as they were trained, and follow from the first outcome
            self.log.write("warning", "outcomes_not_read", cause=error.cause)
        self.look()
        self.follow()

    def close(self) -> None:
        """Stop watching."""
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join(timeout=5)

    def work(self) -> None:
        """Look at files and outcomes until stopped; no failure ends the thread."""
        next_look = time.monotonic() + WATCH_S
        while not self.stop.wait(FOLLOW_S):
            try:
                self.follow()
                if time.monotonic() >= next_look:
                    self.look()
                    next_look = time.monotonic() + WATCH_S
            except Exception as error:
                self.log.failure("background", error)

    def folders(self) -> tuple[Path, Path]:
        """Where policies lie: the parameters, and additions in the home folder."""
        return self.settings.params, self.settings.home

    def ids(self) -> Iterator[str]:
        """Every merchant with a policy file."""
        found = {path.stem for folder in self.folders() for path in (folder / "merchants").glob("*.yaml")}
        yield from sorted(found)

    def look(self) -> None:
        """Load what changed: policies, rule snapshots, champion pointers, outage parameters."""
        for merchant_id in self.ids():
            self.fresh(merchant_id, "policy", self.policy_file(merchant_id), self.load_policy)
            if merchant_id in self.now:
                rules = self.settings.home / "rules" / f"{merchant_id}.json"
                self.fresh(merchant_id, "rules", rules, self.load_rules)
                pointer = self.settings.releases / f"{MODEL_TYPE}.{merchant_id}" / "champion.json"
                self.fresh(merchant_id, "model", pointer, self.load_champion)
                if self.keepers is not None:
                    self.fresh(merchant_id, "outage", config_path(merchant_id, *self.folders()), self.load_outage)
                    self.keep(self.keepers, self.now[merchant_id])

    def policy_file(self, merchant_id: str) -> Path:
        """The file that `load_policy` would read, also where its name is none of a merchant; its load says so."""
        try:
            return policy_path(merchant_id, *self.folders())
        except UnknownMerchant:
            return self.settings.home / "merchants" / f"{merchant_id}.yaml"

    def fresh(self, merchant_id: str, what: str, path: Path, load: Callable[[str, Path], None]) -> None:
        """Run `load` when the file changed or its last load failed a while ago; a failure keeps what was there."""
        now, (before, again) = stamp(path), self.seen.get((merchant_id, what), ((0, 0, 0), 0.0))
        if now == before and time.monotonic() < again:
            return
        try:
            load(merchant_id, path)
            self.seen[merchant_id, what] = now, float("inf")
            self.note(merchant_id, what, None)
        except Exception as error:
            if now != before:  # once a change, not once a try
                self.tell(error, merchant_id, what)
                self.metrics.reloads.labels(what, "failed").inc()
            self.seen[merchant_id, what] = now, time.monotonic() + RETRY_S
            self.note(merchant_id, what, str(error)[:500])

    def tell(self, error: Exception, merchant_id: str, what: str) -> None:
        """Log why something could not be loaded; our own errors explain themselves, others need their place."""
        if isinstance(error, SmartrouterError):
            level = "info" if isinstance(error, NoRelease) else "warning"
            self.log.write(level, "load_failed", merchant=merchant_id, what=what, message=str(error)[:500])
        else:
            self.log.failure("load_failed", error, merchant=merchant_id, what=what)

    def note(self, merchant_id: str, what: str, problem: str | None) -> None:
        """Keep the reason why something could not be loaded, until it could."""
        merchant = self.now.get(merchant_id)
        if merchant is None:
            self.refused[merchant_id] = problem or "no policy"
            return
        self.refused.pop(merchant_id, None)
        problems = {name: text for name, text in merchant.problems.items() if name != what}
        self.now[merchant_id] = replace(merchant, problems=problems | ({what: problem} if problem else {}))

    def load_policy(self, merchant_id: str, _path: Path) -> None:
        """Read the policy file."""
        policy = load_policy(merchant_id, *self.folders())
        merchant = self.now.get(merchant_id)
        self.now[merchant_id] = replace(merchant, policy=policy) if merchant else Merchant(policy)
        self.metrics.reloads.labels("policy", "loaded").inc()

    def load_rules(self, merchant_id: str, path: Path) -> None:
        """Read the snapshot of the static rules; without any, the policy's default order answers."""
        rules = load_rules(path)
        self.now[merchant_id] = replace(self.now[merchant_id], rules=rules)
        self.metrics.reloads.labels("rules", "loaded").inc()

    def load_champion(self, merchant_id: str, pointer: Path) -> None:
        """Load the release that the pointer names, bring its feature state up to date, then swap."""
        version = champion_version(pointer)
        current = self.now[merchant_id].model
        if current is not None and current.version == version:
            return
        model = self.load_model(pointer.parent / version)
        self.catch_up(merchant_id, model)
        self.now[merchant_id] = replace(self.now[merchant_id], model=model)
        self.metrics.reloads.labels("model", "loaded").inc()
        self.metrics.version.labels(model.name).set(float(version) if version.isdigit() else 0.0)
        self.log.write("info", "model_loaded", merchant=merchant_id, model=model.name, version=version)

    # -- health of the processors -------------------------------------------------------------------------------------

    def load_outage(self, merchant_id: str, path: Path) -> None:
        """Read the outage parameters."""
        self.now[merchant_id] = replace(self.now[merchant_id], outage=load_config(path))
        self.metrics.reloads.labels("outage", "loaded").inc()

    def keep(self, keepers: Keepers, merchant: Merchant) -> None:
        """Keep the health of the merchant's processors, under the parameters and the policy as they are now."""
        if merchant.outage is not None:
            keepers.put(merchant.policy.merchant_id, merchant.outage, merchant.policy.codes)

    # -- outcomes ----------------------------------------------------------------------------------------------------

    def catch_up(self, merchant_id: str, model: Model) -> None:
        """Fold in what came between the release's training and the place up to which this worker has read."""
        if not self.last or (first := first_outcome(self.store, model.known_until)) is None:
            return
        last = first - 1
        while last < self.last and (rows := outcomes_after(self.store, last, PAGE)):
            for row in rows:
                request = json.loads(row.request)
                if row.id <= self.last and request.get("merchant_id") == merchant_id:
                    self.apply(model, request, row)
            last = rows[-1].id

    def follow(self) -> None:
        """Fold new outcomes into the models."""
        try:
            while rows := outcomes_after(self.store, self.last, PAGE):
                for row in rows:
                    request = json.loads(row.request)
                    merchant = self.now.get(request.get("merchant_id", ""))
                    if merchant is not None and merchant.model is not None:
                        self.apply(merchant.model, request, row)
                self.last, self.lag_s = rows[-1].id, max(time.time() - rows[-1].known_at, 0.0)
        except StoreUnavailable as error:
            self.log.write("warning", "outcomes_not_read", cause=error.cause)

    def apply(self, model: Model, request: dict[str, Any], row: OutcomeRow) -> None:
        """Fold one outcome of the model's merchant into it, if it is new to it."""
        if row.known_at <= model.known_until:
            return
        try:
            model.apply(
                {
                    "request": request,
                    "processor": row.processor,
                    "outcome": row.outcome,
                    "at": row.at,
                    "known_at": row.known_at,
                }
            )
            self.applied += 1
            merchant_id = str(request.get("merchant_id", ""))
            self.newest[merchant_id] = max(self.newest.get(merchant_id, 0.0), row.known_at)
            self.metrics.applied.inc()
        except Exception as error:
            self.log.failure("outcome_not_applied", error, outcome_id=row.id)
