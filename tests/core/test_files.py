"""Atomic writes: the old content or the new one, and nothing left lying around."""

import errno
import os
from pathlib import Path

import pytest

from smartrouter.core.files import CannotWrite, disk_errors, place_folder, write_atomically, write_folder


def test_write_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_atomically(path, "one")
    write_atomically(path, "zwei ✓")
    assert path.read_text(encoding="utf-8") == "zwei ✓"
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_content(tmp_path, monkeypatch, step):
    path = tmp_path / "b.json"
    write_atomically(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(CannotWrite, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["b.json"]


def test_place_folder_copies_once(tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("1")
    assert place_folder(source, tmp_path / "releases" / "7")
    (source / "deep" / "file").write_text("2")
    assert not place_folder(source, tmp_path / "releases" / "7")
    assert (tmp_path / "releases" / "7" / "deep" / "file").read_text() == "1"


def test_place_folder_leaves_nothing_of_a_failed_copy(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("1")

    def interrupted(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(CannotWrite, match="No space"):
        place_folder(source, tmp_path / "releases" / "7")
    assert list(Path(tmp_path / "releases").iterdir()) == []


def test_write_folder_sees_a_folder_that_came_meanwhile(tmp_path):
    def fill(part):
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "file").write_text("first")
        (part / "file").write_text("second")

    assert not write_folder(tmp_path / "7", fill)
    assert [p.name for p in tmp_path.iterdir()] == ["7"] and (tmp_path / "7" / "file").read_text() == "first"


def test_write_folder_says_where_it_may_not_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="File exists"):
        write_folder(tmp_path / "file" / "7", lambda part: None)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_library_that_met_a_full_disk_is_understood(code):
    with pytest.raises(OSError) as caught, disk_errors():
        raise RuntimeError(f"IO Error: x: {os.strerror(code)} (os)")
    assert caught.value.errno == code


@pytest.mark.parametrize("error", [ValueError("something else"), OSError(2, "No such file"), KeyboardInterrupt()])
def test_all_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, disk_errors():
        raise error
    assert caught.value is error
