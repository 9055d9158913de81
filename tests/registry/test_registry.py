"""Versions and promotion on a temporary SQLite: repeats, crashes in between, corrupt folders, full disks."""

import json
import os
import shutil
import socket
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrouter.core.cards import CardNumberRefused
from smartrouter.core.files import CannotWrite
from smartrouter.registry import promotion, versions
from smartrouter.registry.lineage import Lineage, dataset_digest, git_commit, trace, without_secrets
from smartrouter.registry.promotion import NoReason, NotBlessed, NothingToRollBack, history, promote, rollback, show
from smartrouter.registry.versions import (
    Registry,
    RegistryUnavailable,
    RegistryUrlRefused,
    ReleaseRefused,
    UnknownVersion,
    list_models,
    list_versions,
    log_run,
    register,
)

NAME = "processor_selector.volaris"
NOW = datetime(2026, 4, 1, 9)
GOOD = {"blessed": "yes"}
LINEAGE = Lineage("duckdb:///w.duckdb", "volaris", "2026-01-01", "2026-03-31", 9, "ab" * 16, "1", None, False, "0.1")


class Broken(Exception):
    """What the stand-in for the checksum check raises."""


def check_files(folder):
    """Stands in for models.package.load_release: the folder's one file must be whole."""
    if (folder / "weights").read_text() != "whole":
        raise Broken(str(folder))


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """MLflow's tables, made once: that takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    assert list_models(Registry(f"sqlite:///{path}", path.parent, path.parent)) == []
    return path


@pytest.fixture
def registry(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "releases", tmp_path / "art", verify=check_files)


@pytest.fixture
def trained(tmp_path):
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"name": NAME, "version": ""}))
    (folder / "weights").write_text("whole")
    return folder


@pytest.fixture
def three(registry, trained):
    """Versions 1, 2 and 3, blessed, none promoted."""
    return [register(registry, NAME, trained, tags=GOOD) for _ in range(3)]


def test_a_server_that_does_not_answer_is_said_soon(tmp_path, monkeypatch):
    for name in versions.LIMITS:
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # what is set already stays
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://me:hunter2@127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(RegistryUnavailable, match=f"http://{url.rpartition('@')[2]}") as caught:
            list_models(Registry(url, tmp_path, tmp_path))
    assert "hunter2" not in str(caught.value) and "SMARTROUTER_MLFLOW" in str(caught.value)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1" and os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "4"


@pytest.mark.parametrize("url", ["", "mlruns", "file:///mlruns", "mysql://me:hunter2@host/db", "https://"])
def test_an_url_of_another_kind_is_refused(tmp_path, url):
    with pytest.raises(RegistryUrlRefused, match="SMARTROUTER_MLFLOW") as caught:
        list_models(Registry(url, tmp_path, tmp_path))
    assert "hunter2" not in str(caught.value)


def pointer(registry):
    return promotion.pointed_version(registry, NAME)


def alias(registry):
    return versions.champion_of(registry, NAME)


def test_register_numbers_stamps_and_places(registry, trained):
    run_id = log_run(registry, NAME, "ci", {"trees": 20}, {"auc": 0.7, "none": None}, LINEAGE, NOW)
    version = register(registry, NAME, trained, run_id, {"family": "forest"})
    assert version == "1" == register(registry, NAME, trained, run_id)
    assert register(registry, NAME, trained) == "2"
    assert json.loads((registry.folder(NAME, "1") / "manifest.json").read_text())["version"] == "1"
    assert json.loads((trained / "manifest.json").read_text())["version"] == ""
    found = list_versions(registry, NAME)
    assert [(v.version, v.champion, v.stored) for v in found] == [("2", False, True), ("1", False, True)]
    seen = show(registry, NAME, "1")
    assert (
        seen["metrics"] == {"auc": 0.7} and seen["params"] == {"trees": "20"} and seen["tags"] == {"family": "forest"}
    )
    assert seen["lineage"]["digest"] == LINEAGE.digest and seen["lineage"]["feature_contract"] == "1"
    assert list_models(registry) == [NAME]


def test_a_run_that_died_while_registering_is_completed(registry, trained, monkeypatch):
    run_id = log_run(registry, NAME, "ci", {}, {}, LINEAGE, NOW)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            register(registry, NAME, trained, run_id, GOOD)
    assert [(v.version, v.stored) for v in list_versions(registry, NAME)] == [("1", False)]
    assert not list((registry.releases / NAME).glob(".1.*"))
    with pytest.raises(ReleaseRefused, match="no release folder"):
        promote(registry, NAME, "1", "why", NOW)
    assert register(registry, NAME, trained, run_id) == "1"
    assert list_versions(registry, NAME)[0].stored


def test_a_corrupt_or_foreign_release_is_not_registered(registry, trained):
    (trained / "weights").write_text("half")
    with pytest.raises(Broken):
        register(registry, NAME, trained)
    with pytest.raises(ReleaseRefused, match=r"processor_selector\.volaris"):
        register(registry, "processor_selector.acme", trained)
    with pytest.raises(ReleaseRefused, match="no release folder"):
        register(registry, NAME, trained / "nowhere")
    assert list_models(registry) == []  # no number was used up


def test_promote_and_roll_back(registry, three):
    promote(registry, NAME, "1", "first", NOW)
    promote(registry, NAME, "2", "better", NOW + timedelta(hours=1))
    assert (alias(registry), pointer(registry)) == ("2", "2")
    change = rollback(registry, NAME, "fell", NOW + timedelta(hours=2))
    assert (change.version, change.before, change.reason) == ("1", "2", "fell")
    assert (alias(registry), pointer(registry)) == ("1", "1")
    content = json.loads(promotion.pointer_path(registry, NAME).read_text())
    assert content == {"version": "1", "promoted_at": "2026-04-01T11:00:00Z", "reason": "fell"}
    assert [e.action for e in history(registry, NAME)] == ["promote", "promote", "rollback"]
    assert show(registry, NAME)["version"] == "1"


def test_pressing_twice_changes_nothing_more(registry, three):
    promote(registry, NAME, "1", "first", NOW)
    first = promote(registry, NAME, "2", "better", NOW)
    assert promote(registry, NAME, "2", "again", NOW + timedelta(days=1)) == first
    back = rollback(registry, NAME, "fell", NOW)
    assert rollback(registry, NAME, "fell again", NOW) == back and alias(registry) == "1"
    assert len(history(registry, NAME)) == 3
    assert rollback(registry, NAME, "further", NOW, to="3").version == "3"


def test_what_does_not_exist_is_refused(registry, three):
    with pytest.raises(UnknownVersion, match="3, 2, 1"):
        promote(registry, NAME, "9", "why", NOW)
    with pytest.raises(UnknownVersion, match="none yet"):
        promote(registry, "processor_selector.acme", "1", "why", NOW)
    with pytest.raises(UnknownVersion, match="no champion"):
        show(registry, NAME)
    with pytest.raises(NothingToRollBack):
        rollback(registry, NAME, "why", NOW)
    promote(registry, NAME, "1", "first", NOW)
    with pytest.raises(NothingToRollBack):
        rollback(registry, NAME, "why", NOW)
    for reason in ("", "  \n"):
        with pytest.raises(NoReason):
            promote(registry, NAME, "2", reason, NOW)
    for name in ("../x", "a", "A.b", "a.b/c", "a' or '1'='1.b", ""):
        with pytest.raises(UnknownVersion):
            promote(registry, name, "1", "why", NOW)
    assert (alias(registry), pointer(registry)) == ("1", "1")


def test_a_model_that_is_not_there_leaves_no_folder(registry):
    for ask in (lambda: promote(registry, NAME, "1", "why", NOW), lambda: rollback(registry, NAME, "why", NOW)):
        with pytest.raises(UnknownVersion, match="none yet"):
            ask()
    assert not registry.releases.exists()


def test_a_reason_with_a_card_number_changes_nothing(registry, three):
    card = "4111" + "1111" * 3
    promote(registry, NAME, "1", "first", NOW)
    before = history(registry, NAME)
    for ask in (promote, rollback):
        more = ("2",) if ask is promote else ()
        with pytest.raises(CardNumberRefused, match="at --reason") as caught:
            ask(registry, NAME, *more, f"customer of {card} asked", NOW)
        assert card not in str(caught.value) and caught.value.exit_code == 2
    assert history(registry, NAME) == before and alias(registry) == pointer(registry) == "1"


@pytest.fixture
def mixed(registry, trained):
    """Version 1 is blessed and live, 2 is not blessed, and nobody judged 3."""
    weak = {"blessed": "no", "reasons": "calibration error at MIT 0.141 (expected: at most 0.08)"}
    found = [register(registry, NAME, trained, tags=tags) for tags in (GOOD, weak, {})]
    promote(registry, NAME, "1", "first", NOW)
    return found


def test_only_what_was_blessed_is_promoted(registry, mixed):
    assert [v.blessed for v in list_versions(registry, NAME)] == ["unknown", "no", "yes"]
    with pytest.raises(
        NotBlessed, match=r"version 2 is not blessed: calibration error at MIT 0\.141.*volaris 2 --force --reason"
    ):
        promote(registry, NAME, "2", "it feels better", NOW)
    with pytest.raises(NotBlessed, match="version 3 was never judged"):
        promote(registry, NAME, "3", "it feels better", NOW)
    assert alias(registry) == pointer(registry) == "1" and len(history(registry, NAME)) == 1
    assert NotBlessed("a", "b", "c").exit_code == 2
    assert show(registry, NAME, "2")["blessed"] == "no" and show(registry, NAME, "1")["blessed"] == "yes"


def test_force_needs_a_reason_and_is_kept_in_the_history(registry, mixed):
    for reason in ("", "  \n"):
        with pytest.raises(NoReason):
            promote(registry, NAME, "2", reason, NOW, force=True)
    assert alias(registry) == "1"
    change = promote(registry, NAME, "2", "version 1 breaks the law in June", NOW, force=True)
    assert change.forced and alias(registry) == pointer(registry) == "2"
    assert [e.forced for e in history(registry, NAME)] == [False, True]
    assert not promote(registry, NAME, "1", "back to what is good", NOW, force=True).forced  # nothing was overridden
    with pytest.raises(UnknownVersion):
        promote(registry, NAME, "9", "why", NOW, force=True)


def test_an_earlier_champion_may_come_back_and_what_never_was_one_must_be_blessed(registry, mixed):
    promote(registry, NAME, "2", "forced once", NOW, force=True)
    assert rollback(registry, NAME, "it fell", NOW).version == "1"
    assert rollback(registry, NAME, "it was right", NOW, to="2").version == "2"
    with pytest.raises(NotBlessed, match="never judged"):
        rollback(registry, NAME, "by the back door", NOW, to="3")
    assert alias(registry) == pointer(registry) == "2"


def test_a_history_from_before_blessings_is_read(registry, mixed):
    tag = f"{promotion.HISTORY}{1:06d}"
    entry = json.loads(versions.model_of(registry, NAME).tags[tag])
    del entry["forced"]
    registry.client.set_registered_model_tag(NAME, tag, json.dumps(entry))
    assert not history(registry, NAME)[0].forced and show(registry, NAME)["version"] == "1"


def test_missing_and_corrupt_releases_never_go_live(registry, three):
    promote(registry, NAME, "1", "first", NOW)
    promote(registry, NAME, "2", "second", NOW)
    shutil.rmtree(registry.folder(NAME, "3"))
    with pytest.raises(ReleaseRefused, match="no release folder"):
        promote(registry, NAME, "3", "why", NOW)
    (registry.folder(NAME, "1") / "weights").write_text("half")
    with pytest.raises(Broken):
        rollback(registry, NAME, "why", NOW)
    shutil.rmtree(registry.folder(NAME, "1"))
    shutil.copytree(registry.folder(NAME, "2"), registry.folder(NAME, "1"))
    with pytest.raises(ReleaseRefused, match="holds"):
        rollback(registry, NAME, "why", NOW)
    assert (alias(registry), pointer(registry)) == ("2", "2") and len(history(registry, NAME)) == 2


class Died(BaseException):
    """The machine died."""


@pytest.mark.parametrize(
    ("step", "champion", "state"),
    [("alias", "1", "abandoned"), ("pointer", "2", "done"), ("record", "2", "done")],
)
@pytest.mark.parametrize("then", ["show", "promote", "rollback"])
def test_a_crash_in_between_is_mended_by_the_next_call(registry, three, monkeypatch, step, champion, state, then):
    promote(registry, NAME, "1", "first", NOW)

    def dies(*_, **__):
        raise Died

    def dies_at_done(registry, name, change, write=promotion.record):
        if change.state == "done":
            raise Died
        write(registry, name, change)

    with monkeypatch.context() as patch:
        if step == "alias":
            patch.setattr(registry.client, "set_registered_model_alias", dies)
        elif step == "pointer":
            patch.setattr(promotion, "write_pointer", dies)
        else:
            patch.setattr(promotion, "record", dies_at_done)
        with pytest.raises(Died):
            promote(registry, NAME, "2", "second", NOW)
    assert pointer(registry) in ("1", "2")  # a whole release is live at any time
    if then == "show":
        assert show(registry, NAME)["version"] == champion == pointer(registry) == alias(registry)
        assert [e.state for e in history(registry, NAME)] == ["done", state]
    elif then == "promote":
        promote(registry, NAME, "2", "second", NOW)
        assert pointer(registry) == alias(registry) == "2"
        assert [e.version for e in history(registry, NAME) if e.state == "done"] == ["1", "2"]
    elif champion == "2":
        assert rollback(registry, NAME, "back", NOW).version == "1" == pointer(registry) == alias(registry)
    else:
        with pytest.raises(NothingToRollBack):
            rollback(registry, NAME, "back", NOW)


def test_a_full_disk_leaves_the_champion_and_a_repeat_finishes(registry, three, monkeypatch):
    promote(registry, NAME, "1", "first", NOW)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(CannotWrite, match="No space"):
            promote(registry, NAME, "2", "second", NOW)
    assert pointer(registry) == "1"
    promote(registry, NAME, "2", "second", NOW)
    assert pointer(registry) == "2" == alias(registry)


def test_a_lost_or_broken_pointer_and_an_alias_moved_elsewhere(registry, three):
    promote(registry, NAME, "1", "first", NOW)
    for content in ("", "[]", "{}"):
        promotion.pointer_path(registry, NAME).write_text(content)
        assert show(registry, NAME)["version"] == "1" == pointer(registry)
    registry.client.set_registered_model_alias(NAME, "champion", "3")
    assert show(registry, NAME)["version"] == "3" == pointer(registry)
    assert promote(registry, NAME, "2", "on top", NOW).before == "3"


def test_promotions_at_once_end_consistent(registry, three):
    promote(registry, NAME, "1", "first", NOW)
    failed = []

    def work(version):
        own = replace(registry, clients=[])
        for turn in range(3):
            try:
                promote(own, NAME, version, f"turn {turn}", NOW)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=work, args=(v,)) for v in ("2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and pointer(registry) == alias(registry)
    entries = history(registry, NAME)
    assert [e.number for e in entries] == list(range(1, len(entries) + 1))
    assert all(b.before == a.version for a, b in pairwise(entries))


def test_an_unreachable_registry_says_so_without_its_password(tmp_path):
    (tmp_path / "x.db").write_text("no database")
    for url in (f"sqlite:///{tmp_path}/x.db", "postgresql+nodriver://ana:s3cret@nowhere/db"):
        with pytest.raises(RegistryUnavailable) as caught:
            list_versions(Registry(url, tmp_path, tmp_path), NAME)
        assert "s3cret" not in str(caught.value) and caught.value.exit_code == 1


@given(
    st.lists(
        st.tuples(st.text(max_size=3) | st.none(), st.booleans() | st.none(), st.floats() | st.none()), max_size=9
    ),
    st.integers(0, 9),
)
def test_the_digest_sees_content_and_nothing_else(rows, cut):
    columns = [list(c) for c in zip(*rows, strict=True)] or [[], [], []]
    types = [pa.string(), pa.bool_(), pa.float64()]
    table = pa.table({n: pa.array(c, t) for n, c, t in zip("abc", columns, types, strict=True)})
    again = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    assert dataset_digest(again) == dataset_digest(table)
    assert dataset_digest(again.set_column(0, "a", again["a"].dictionary_encode().cast(pa.string()))) == dataset_digest(
        table
    )
    assert dataset_digest(table.rename_columns(["a", "b", "d"])) != dataset_digest(table)
    if rows:
        assert dataset_digest(table.slice(1)) != dataset_digest(table)


def test_lineage_holds_no_secret_and_no_wrong_commit(tmp_path, root):
    table = pa.table({"attempted_at": pa.array([datetime(2026, 1, 2), datetime(2026, 1, 1)])})
    record = trace(table, "volaris", "snowflake://ana:s3cret@acme/PAYMENT_ML?passphrase=geheim", "3", tmp_path)
    assert record.warehouse == "snowflake://acme/PAYMENT_ML" and record.git_commit is None
    assert (record.extract_from, record.extract_until) == ("2026-01-01T00:00:00", "2026-01-02T00:00:00")
    assert without_secrets("duckdb:////srv/w.duckdb") == "duckdb:////srv/w.duckdb"
    assert git_commit(root / "nbs") == (None, False)  # a folder inside someone's checkout is not the source tree
