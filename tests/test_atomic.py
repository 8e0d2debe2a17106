"""Whole files or none: after errors, across suffixes and permissions, and on disk before they are named."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from stdetr.atomic import replacing, write_text


def test_the_file_appears_at_the_end_of_the_block_in_a_folder_that_was_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "picture.png"
    with replacing(path) as draft:
        assert (draft.parent, draft.suffix) == (path.parent, ".png")
        assert draft.name.startswith(".")
        draft.write_bytes(b"1")
        assert not path.exists()
    assert path.read_bytes() == b"1"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as outer:
        write_text(path, "inner")
        outer.write_text("outer")
    assert path.read_text() == "outer"


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = write_text(tmp_path / "a.txt", "")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_the_content_is_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, order = tmp_path / "a.txt", []

    def sync(descriptor: int) -> None:
        order.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    write_text(path, "content")
    assert order == [(False, False), (True, True)]  # the draft, unnamed; then the folder, with the name in it
