"""One contract suite over every family: what any fitted model owes to packaging, evaluation and serving."""

import numpy as np
import pytest

from smartrouter.core.files import CannotWrite
from smartrouter.features.dataset import build
from smartrouter.features.matrix import CONTRACT_VERSION, FEATURE_NAMES
from smartrouter.models import calibrate, deep, effects, forest, linear, mixed, package, wide_deep
from smartrouter.models.bounds import measure
from smartrouter.models.fitted import Untrainable
from smartrouter.models.package import (
    Predictor,
    ReleaseCorrupt,
    ReleaseExists,
    ReleaseMissing,
    champion,
    load_release,
    load_tensorflow,
    stamp,
    write_json,
    write_release,
)
from smartrouter.models.runtime import FAMILIES
from smartrouter.warehouse.connect import connect
from smartrouter.warehouse.queries import attempts

PROCESSORS = ("WORLDPAY", "MIT", "ELAVON", "AMEX")
SMALL = {"layers": (16, 8), "epochs": 3, "batch": 256}
TRAINERS = {
    "linear": lambda X, y: linear.train(X, y, iterations=60),
    "linear_split": lambda X, y: linear.train(X, y, iterations=60, split=True),
    "forest": lambda X, y: forest.train(X, y, trees=30, min_examples=50),
    "mixed": lambda X, y: mixed.train(X, y, trees=30, min_examples=50),
    "deep": lambda X, y: deep.train(X, y, **SMALL),
    "wide_deep": lambda X, y: wide_deep.train(X, y, **SMALL),
}
PROCESSOR, BANK, BIN = (FEATURE_NAMES.index(name) for name in ("processor", "bank", "bin_number"))


@pytest.fixture(scope="module")
def data(small_warehouse):
    """The dataset of the small simulated merchant."""
    with connect(small_warehouse) as warehouse:
        return build(
            attempts(warehouse, "volaris"),
            processors=PROCESSORS,
            learn=PROCESSORS[:3],
            time_zone="America/Mexico_City",
            home_currency="MXN",
        )


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request):
    """Every family that the runtime knows."""
    return request.param


@pytest.fixture(scope="module")
def fitted(family, data):
    """One trained model of the family."""
    early, _, _ = data.splits.masks(data.at_ms)
    return TRAINERS[family](data.X[early], data.y[early])


@pytest.fixture(scope="module")
def parts(fitted, data):
    """What `write_release` asks for beside a folder."""
    _, middle, _ = data.splits.masks(data.at_ms)
    codes = data.X[middle][:, FEATURE_NAMES.index("processor")].astype(int)
    calibration = calibrate.fit(fitted.logit(data.X[middle]), data.y[middle], codes, len(PROCESSORS))
    asked = {"fitted": fitted, "calibration": calibration, "data": data, "learnt": PROCESSORS[:3]}
    bounds = measure(fitted, calibration, data.X[middle], data.y[middle])
    return asked | {"name": "processor_selector.volaris", "bounds": bounds}


@pytest.fixture(scope="module")
def release(parts, tmp_path_factory):
    """The model as a release folder, version 3."""
    folder = tmp_path_factory.mktemp("releases") / parts["name"] / "3"
    write_release(folder, **parts)
    stamp(folder, "3")
    return folder


def test_a_family_beats_the_constant_forecast(fitted, data):
    early, _, last = data.splits.masks(data.at_ms)
    z, y = fitted.logit(data.X[last]), data.y[last]
    rate = data.y[early].mean()
    constant = -np.mean(y * np.log(rate) + (1 - y) * np.log(1 - rate))
    assert np.mean(np.logaddexp(0, z) - y * z) < constant


def test_bulk_and_runtime_scores_agree(fitted, data):
    own = FAMILIES[fitted.family](fitted.arrays).logit(data.X[-10_000:])
    bulk = fitted.logit(data.X[-10_000:])
    assert np.abs(1 / (1 + np.exp(-own)) - 1 / (1 + np.exp(-bulk))).max() < 1e-6


def test_training_twice_gives_the_same_model(family, fitted, data):
    early, _, _ = data.splits.masks(data.at_ms)
    again = TRAINERS[family](data.X[early], data.y[early])
    assert all(np.array_equal(fitted.arrays[name], again.arrays[name]) for name in fitted.arrays)


def test_one_row_scores_as_it_does_among_many(fitted, data):
    rows = data.X[-50:]
    alone = np.concatenate([fitted.logit(rows[i : i + 1]) for i in range(len(rows))])
    assert np.abs(alone - fitted.logit(rows)).max() < 1e-9


def test_codes_that_no_lookup_gives_are_read_as_the_nearest_or_as_unknown(fitted, data):
    rows, unknown = data.X[-200:].copy(), data.X[-200:].copy()
    if fitted.family == "forest":  # orders codes: one beyond the last reads as the last
        unknown[:, BANK] = data.X[:, BANK].max()
    elif fitted.family in ("linear", "linear_split"):  # has one row more than it needs only where codes are fewest
        unknown[:, BANK] = fitted.arrays["table"].shape[-1] - 1
    else:
        unknown[:, BANK] = 0
    rows[:, BANK] = 9_999
    if fitted.family == "mixed":  # its trees order codes too, its cells do not know the value
        model, last, other = FAMILIES["mixed"](fitted.arrays), unknown.copy(), unknown.copy()
        last[:, BANK], other[:, BANK] = data.X[:, BANK].max(), 8_888
        assert np.array_equal(model.effects.value(rows), model.effects.value(other))
        assert np.array_equal(model.forest.logit(rows), model.forest.logit(last))
        return
    assert np.isfinite(fitted.logit(rows)).all()
    assert np.abs(fitted.logit(rows) - fitted.logit(unknown)).max() < 1e-9


def test_a_bin_or_processor_that_training_never_saw_gets_a_plausible_answer(fitted, data):
    rows, approved = data.X[-200:].copy(), data.y.mean()
    rows[:, BIN], rows[:, PROCESSOR], rows[:, BANK] = 987_654, 0, 0
    p = 1 / (1 + np.exp(-fitted.logit(rows)))
    assert abs(p.mean() - approved) < 0.25 and (p > 0.001).all() and (p < 0.999).all()


@pytest.fixture(scope="module")
def newcomers(small_warehouse):
    """A third of the issuers and a fifth of the BINs come only in its test rows; and which rows those are."""
    with connect(small_warehouse) as warehouse:
        table = attempts(warehouse, "volaris")
    frame = table.select(["bank", "bin", "approved", "attempted_at"]).to_pandas()
    rates = frame.assign(approved=frame["approved"].astype(float)).groupby("bank")["approved"].mean().sort_values()
    new = (frame["bank"].isin(rates.index[1::3]) | frame["bin"].isin(sorted(frame["bin"].unique())[::5])).to_numpy()
    kept = ~new | (frame["attempted_at"] >= frame["attempted_at"].quantile(0.6)).to_numpy()
    names = {"processors": PROCESSORS, "learn": PROCESSORS[:3], "time_zone": "America/Mexico_City"}
    share = 0.4 / (1 - (~kept).mean())  # of the rows that are left, the last 40 % of the time
    found = build(table.filter(kept), **names, home_currency="MXN", calibrate=0.15, test=share)
    return found, new[kept][found.index]


def test_an_unknown_issuer_reads_like_the_mean_and_not_like_the_worst(family):
    rng, rates = np.random.default_rng(7), np.linspace(0.35, 0.8, 10)  # codes ascend by approval, none is unknown
    X = np.zeros((12_000, len(FEATURE_NAMES)), dtype=np.float32)
    X[:, BANK], X[:, PROCESSOR] = rng.integers(1, 11, len(X)), rng.integers(1, 4, len(X))
    X[:, FEATURE_NAMES.index("amount_log")] = rng.normal(3, 0.4, len(X))
    y = (rng.random(len(X)) < rates[X[:, BANK].astype(int) - 1]).astype(np.float32)
    shape = {"trees": 100, "min_examples": 50, "columns_ratio": 1.0}
    trees = {"forest": lambda: forest.train(X, y, **shape), "mixed": lambda: mixed.train(X, y, **shape)}
    fitted = trees.get(family, lambda: TRAINERS[family](X, y))()
    said = {}
    for code in (0, 1, 10):
        rows = X[:2_000].copy()
        rows[:, BANK] = code
        said[code] = (1 / (1 + np.exp(-fitted.logit(rows)))).mean()
    assert said[1] < 0.5 < 0.65 < said[10]
    assert abs(said[0] - y.mean()) < 0.08


def test_issuers_and_bins_that_training_never_saw_are_calibrated(family, newcomers):
    found, new = newcomers
    early, later, last = found.splits.masks(found.at_ms)
    assert not (new & early).any() and (new & last).sum() > 1_000
    code = found.X[:, PROCESSOR].astype(int)
    fitted = TRAINERS[family](found.X[early], found.y[early])
    used = later & ~new
    calibration = calibrate.fit(fitted.logit(found.X[used]), found.y[used], code[used], len(PROCESSORS))
    gaps = {}
    for name, rows in (("new", new & last), ("known", ~new & last)):
        p = calibration.apply(fitted.logit(found.X[rows]), code[rows])
        gaps[name] = p.mean() - found.y[rows].mean()
    assert abs(gaps["new"] - gaps["known"]) < 0.05  # 3 standard errors of 2,500 and 2,000 rows are 0.043


def test_numbers_far_outside_of_what_was_seen_do_not_run_away(fitted, data):
    early, _, _ = data.splits.masks(data.at_ms)
    numeric = np.array([i for i in range(len(FEATURE_NAMES)) if i in set(linear.NUMERIC) and i != BIN])
    low, high = data.X[early].min(axis=0), data.X[early].max(axis=0)
    if fitted.family == "mixed":  # reads these as codes of cells; an unknown cell adds nothing
        numeric = np.setdiff1d(numeric, effects.COLUMNS)
    far, edge = data.X[-20:].copy(), data.X[-20:].copy()
    far[:, numeric] = np.where(np.arange(len(numeric)) % 2, 1e6, -1e6)
    edge[:, numeric] = np.where(np.arange(len(numeric)) % 2, high[numeric], low[numeric])
    assert np.abs(fitted.logit(far) - fitted.logit(edge)).max() < 1e-6


def test_sixty_declines_do_not_raise_a_processors_probability(fitted, data):
    from smartrouter.features.live import freeze, thaw

    request = {"order": {"amount": 900, "currency": "MXN"}, "card": {"bin": "415231", "brand": "VISA", "bank": "BBVA"}}
    state = thaw(freeze(data.outcomes, data.lookups), data.lookups)
    now = int(data.outcomes.known_ms[-1]) + 60_000
    before = fitted.logit(state.features(request, ("MIT",), now + 61_000))
    for second in range(60):
        state.apply(request, "MIT", "hard", now + 1_000 * second, now + 1_000 * second + 500)
    after = fitted.logit(state.features(request, ("MIT",), now + 61_000))
    assert after < before + 0.05


def few_rows(data, n=400):
    early, _, _ = data.splits.masks(data.at_ms)
    rows = np.flatnonzero(early)[:n]
    return data.X[rows].copy(), data.y[rows].copy()


def test_tiny_data_one_processor_and_missing_columns_still_train(family, data):
    X, y = few_rows(data)
    X[:, PROCESSOR] = 2
    X[:, BANK], X[:, FEATURE_NAMES.index("amount_log")], X[:, BIN] = 0, -1, -1
    fitted = TRAINERS[family](X, y)
    z = fitted.logit(data.X[-300:])
    assert np.isfinite(z).all() and set(fitted.importance) == set(FEATURE_NAMES)


def test_one_outcome_only_is_refused_in_words(family, data):
    X, y = few_rows(data)
    with pytest.raises(Untrainable, match="400 attempts with the outcomes"):
        TRAINERS[family](X, np.ones_like(y))
    with pytest.raises(Untrainable, match="400 rows and 399 labels"):
        TRAINERS[family](X, y[1:])
    X[3, 5] = np.nan
    with pytest.raises(Untrainable, match="not finite"):
        TRAINERS[family](X, y)


def test_importance_names_every_feature_and_sums_to_one(fitted):
    assert set(fitted.importance) == set(FEATURE_NAMES)
    assert abs(sum(fitted.importance.values()) - 1) < 1e-6


def test_the_runtime_equals_the_saved_model(release, data):
    loaded = load_release(release)
    artifact = load_tensorflow(release / "saved_model")
    rows = data.X[-10_000:]
    assert np.abs(loaded.runtime.probabilities(rows) - artifact(rows)).max() < 1e-6


def test_a_release_has_intervals_or_says_that_it_has_none(release, parts, data):
    loaded, rows = load_release(release), data.X[-200:]
    p, low, high = loaded.runtime.intervals(rows, 0.9)
    assert np.array_equal(p, loaded.runtime.probabilities(rows))
    told = loaded.manifest["intervals"]
    if loaded.manifest["family"] != "mixed":
        assert told is None and low is None and high is None
        return
    assert told["factor"] == parts["bounds"].factor and told["level"] == 0.9 and 0 < told["coverage"] <= 1
    assert ((low < p) & (p < high)).all() and (low > 0).all() and (high < 1).all()
    predictor, now = Predictor(loaded), loaded.manifest["known_until_ms"] + 60_000
    request = {"order": {"amount": 900, "currency": "MXN"}, "card": {"bin": "415231", "brand": "VISA", "bank": "BBVA"}}
    asked, lowest, _ = predictor.intervals(request, PROCESSORS[:3], now, 0.9)
    assert np.array_equal(asked, predictor.probabilities(request, PROCESSORS[:3], now)) and (lowest < asked).all()


def test_a_release_from_before_intervals_loads_and_has_none(release, tmp_path):
    import shutil

    from smartrouter.models.package import checksum, read_manifest

    copy = tmp_path / "3"
    shutil.copytree(release, copy)
    added = ("cell_variance", "cross_variance", "interval_factor")
    with np.load(copy / "runtime.npz") as arrays:
        kept = {name: arrays[name] for name in arrays.files if name not in added}
    np.savez(copy / "runtime.npz", **kept)
    manifest = {name: value for name, value in read_manifest(copy).items() if name != "intervals"}
    manifest["files"]["runtime.npz"] = checksum(copy / "runtime.npz")
    write_json(copy / "manifest.json", manifest)
    rows = np.zeros((4, len(FEATURE_NAMES)), dtype=np.float32)
    assert load_release(copy).runtime.intervals(rows, 0.9)[1:] == (None, None)


def test_a_loaded_release_ranks_a_request_and_learns_an_outcome(release):
    predictor = Predictor(load_release(release))
    request = {"order": {"amount": 900, "currency": "MXN"}, "card": {"bin": "415231", "brand": "VISA", "bank": "BBVA"}}
    now = predictor.release.manifest["known_until_ms"] + 60_000
    before = predictor.probabilities(request, PROCESSORS[:3], now)
    assert ((before > 0) & (before < 1)).all() and predictor.version == "3"
    outcome = {"request": request, "processor": "MIT", "outcome": "soft", "at": now / 1000, "known_at": now / 1000}
    assert predictor.apply(outcome) and not predictor.apply(outcome | {"processor": "NEVER_SEEN"})
    after = predictor.release.state.features(request, ("MIT",), now + 1_000)
    assert after.shape == (1, len(FEATURE_NAMES))


def test_a_processor_never_seen_in_training_is_not_guessed(release):
    predictor = Predictor(load_release(release))
    with pytest.raises(KeyError):
        predictor.probabilities({"order": {"amount": 1, "currency": "MXN"}, "card": {}}, ["NEVER_SEEN"], 0)


@pytest.mark.parametrize("name", ["runtime.npz", "lookups.json", "history/rate_rows.npy", "model_card.md"])
def test_a_changed_or_missing_file_is_named(release, tmp_path, name):
    import shutil

    copy = tmp_path / "3"
    shutil.copytree(release, copy)
    with (copy / name).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ReleaseCorrupt, match=f"{name} differs"):
        load_release(copy)
    (copy / name).unlink()
    with pytest.raises(ReleaseCorrupt, match=f"{name} is missing"):
        load_release(copy)


def test_a_release_of_another_contract_is_refused(release, tmp_path):
    import shutil

    from smartrouter.features.contract import ContractMismatch
    from smartrouter.models.package import read_manifest

    copy = tmp_path / "3"
    shutil.copytree(release, copy)
    write_json(copy / "manifest.json", read_manifest(copy) | {"contract": "0-00000000"})
    with pytest.raises(ContractMismatch, match=CONTRACT_VERSION):
        load_release(copy)


def test_a_folder_without_a_manifest_is_no_release(tmp_path):
    with pytest.raises(ReleaseMissing, match="no release"):
        load_release(tmp_path)


def test_the_champion_pointer_is_read_or_refused(tmp_path):
    folder = tmp_path / "processor_selector.volaris"
    assert champion(tmp_path, folder.name) is None
    folder.mkdir()
    write_json(folder / "champion.json", {"version": "12"})
    assert champion(tmp_path, folder.name) == folder / "12"
    for bad in ('{"version": "../../etc"}', "{", "[]", '{"other": 1}'):
        (folder / "champion.json").write_text(bad)
        with pytest.raises(ReleaseCorrupt, match=r"champion\.json"):
            champion(tmp_path, folder.name)


FULL = "No space left on device"


BY_TENSORFLOW = RuntimeError(f"variables/part-0; {FULL} [Op:SaveV2]")


@pytest.mark.parametrize(
    ("step", "error"),
    [("save_arrays", OSError(28, FULL)), ("save_tensorflow", BY_TENSORFLOW), ("write_json", OSError(28, FULL))],
)
def test_a_full_disk_leaves_nothing_of_a_release(parts, tmp_path, monkeypatch, step, error):
    def full(*_):
        raise error

    monkeypatch.setattr(package, step, full)
    with pytest.raises(CannotWrite, match=FULL):
        write_release(tmp_path / "candidate", **parts)
    assert list(tmp_path.iterdir()) == []


def test_a_release_is_never_written_over(parts, release, tmp_path):
    before = {p.name for p in release.iterdir()}
    with pytest.raises(ReleaseExists, match="3"):
        write_release(release, **parts)
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="File exists"):
        write_release(tmp_path / "file" / "candidate", **parts)
    assert {p.name for p in release.iterdir()} == before
