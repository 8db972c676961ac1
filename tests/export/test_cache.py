"""What the cache keeps is this user's alone: what others could have written is as if it were not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusedge.export.cache import Cache, key_of

KEY = key_of("a", b"b")
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")


def kept(folder: Path) -> Cache:
    cache = Cache(folder)
    cache.put("engine", KEY, b"one\r\n")
    assert cache.get("engine", KEY) == b"one\r\n"
    return cache


def test_what_was_kept_is_found_under_its_kind_and_key_only(tmp_path: Path) -> None:
    cache = kept(tmp_path)
    assert cache.get("timing", KEY) is None and cache.get("engine", key_of("ab")) is None
    assert key_of("a", "b") == KEY != key_of("ab", "")


def test_what_is_damaged_is_not_there(tmp_path: Path) -> None:
    cache = kept(tmp_path)
    (tmp_path / "engine" / KEY).write_bytes(b"torn")
    assert cache.get("engine", KEY) is None


def test_without_a_folder_or_where_none_can_be_made_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file", tmp_path / "file" / "below"):
        cache = Cache(folder)
        cache.put("engine", KEY, b"one")
        assert cache.get("engine", KEY) is None


@posix
def test_folders_and_files_are_for_the_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        kept(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "a").rglob("*") if path.is_dir()}
    assert modes | {(tmp_path / "a").stat().st_mode & 0o777} == {0o700}
    assert (tmp_path / "a/b/engine" / KEY).stat().st_mode & 0o777 == 0o600


@posix
@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("name", [f"engine/{KEY}", "engine"])
def test_what_others_may_write_to_is_not_taken_and_made_again(
    tmp_path: Path, name: str, mode: int
) -> None:
    cache, place = kept(tmp_path), tmp_path / name
    place.chmod(place.stat().st_mode | mode)
    assert cache.get("engine", KEY) is None
    kept(tmp_path)


@posix
def test_what_another_user_owns_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = kept(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert cache.get("engine", KEY) is None
