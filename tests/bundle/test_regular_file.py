"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import refuse_special, write_whole

POSIX = pytest.mark.skipif(os.name != "posix", reason="pipes, links and modes of POSIX")


def test_a_file_is_written_with_the_folders_that_lack(tmp_path: Path) -> None:
    place = tmp_path / "new/folder/file.json"
    for content in (b"old", b"", b"new"):
        write_whole(place, content)
        assert place.read_bytes() == content
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize("name", ["a", "x" * 255, "\N{GREEK SMALL LETTER PI}" * 127, "f.partial"])
def test_any_name_that_a_file_can_have_can_be_written(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"new")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_what_lay_there_stays_where_writing_ends_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*arguments: object) -> Any:
        raise error

    place = tmp_path / "file"
    place.write_bytes(b"old")
    monkeypatch.setattr(*(Path, "replace") if step == "replace" else (os, "fsync"), fail)
    content: Any = b"new" if step != "write" else "no bytes"  # fails in the midst of it
    expected = TypeError if step == "write" else type(error)
    with pytest.raises(FusedgeError if expected is OSError else expected) as caught:
        write_whole(place, content)
    if expected is OSError:
        assert str(caught.value).startswith(f"{place}: cannot be written: No space left")
    assert place.read_bytes() == b"old" and list(tmp_path.iterdir()) == [place]


@POSIX
def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, place = tmp_path / "link", tmp_path / "there/file"
    link.symlink_to(place)
    for content in (b"one", b"two"):  # it leads nowhere at first
        write_whole(link, content)
        assert link.is_symlink() and place.read_bytes() == content
    assert list(place.parent.iterdir()) == [place]


def in_a_circle(place: Path) -> None:
    place.symlink_to(place)


def under_a_file(place: Path) -> None:
    place.parent.rmdir()
    place.parent.write_text("")


@POSIX
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, in_a_circle, under_a_file])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, make: Callable[[Path], object]) -> None:
    place = tmp_path / "folder/place"
    place.parent.mkdir()
    make(place)
    for refused in (refuse_special, lambda path: write_whole(path, b"new")):
        with pytest.raises(FusedgeError, match="cannot be written") as caught:
            refused(place)
        assert str(place) in str(caught.value)
    assert not place.is_file()


@POSIX
@pytest.mark.parametrize("place", ["", ".", "..", "/", "/dev/null", "x" * 256, "a\0b"])
def test_no_device_and_no_name_that_cannot_be_is_written(place: str) -> None:
    for refused in (refuse_special, lambda path: write_whole(path, b"new")):
        with pytest.raises(FusedgeError, match="cannot be written"):
            refused(Path(place))
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_folders_that_are_private_are_made_for_this_user_alone(tmp_path: Path) -> None:
    write_whole(tmp_path / "a/b/file", b"", private=True)
    for folder in (tmp_path / "a", tmp_path / "a/b"):
        assert folder.stat().st_mode & 0o077 == 0
