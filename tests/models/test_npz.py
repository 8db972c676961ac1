"""Arrays of an .npz file are read whole, or refused in a line that says which file."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion.npz import read_arrays

VALUES = np.arange(400, dtype=np.float32)


def whole(path: Path) -> bytes:
    np.savez_compressed(path, words=np.array(["a", "b"]), values=VALUES)
    return path.read_bytes()


def refused(path: Path) -> str:
    with pytest.raises(FusedgeError) as caught:
        read_arrays(path, ("words", "values"), "give another one")
    assert str(path) in str(caught.value) and "give another one" in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.what


def test_arrays_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    whole(tmp_path / "a.npz")
    values, words = read_arrays(tmp_path / "a.npz", ("values", "words"), "")
    assert values.tolist() == VALUES.tolist() and words.tolist() == ["a", "b"]


def test_what_is_no_such_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert refused(path) == "is missing"
    assert "cannot be read" in refused(tmp_path)
    path.write_bytes(b"PK\x03\x04 and then nothing")
    assert "cannot be read" in refused(path)
    with path.open("wb") as file:
        np.save(file, VALUES)
    one_array = path.read_bytes()
    for content in (b"", b"P", b"images", b"PKZIP", b"\x80\x04N.", bytes(100), one_array):
        path.write_bytes(content)
        assert refused(path).startswith("cannot be read: it is no .npz file")
    np.savez(path, words=np.array(["a"]))
    assert "it has no array values" in refused(path)
    np.savez(path, words=np.array(["a"]), values=np.array([{}], object))
    assert "cannot be read" in refused(path)


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_refused_without_waiting_for_it(
    tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    kind(tmp_path / "a.npz")
    assert refused(tmp_path / "a.npz") == "cannot be read: it is no regular file"


def test_why_a_file_cannot_be_opened_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *given: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    whole(tmp_path / "a.npz")
    monkeypatch.setattr(Path, "open", refuse)
    assert refused(tmp_path / "a.npz") == "cannot be read: Permission denied"


def member(header: str) -> bytes:
    """A member of an archive that is nothing but this header."""
    text = header.encode().ljust(117) + b"\n"
    return np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text


def of_shape(shape: str) -> bytes:
    return member(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape},)}}")


MEMBERS = {
    "no array": ("values", b"1 2 3"),
    "no array, though its name says so": ("values.npy", b"1 2 3"),
    "an array without its name's end": ("values", b""),
    "a shape beyond any integer": ("values.npy", of_shape("1" + "0" * 30)),
    "a shape whose product is": ("values.npy", of_shape(f"{2**31}, {2**31}, 4")),
    "a negative shape": ("values.npy", of_shape("-3")),
    "a key that is no key": ("values.npy", member("{[]: 1}")),
    "keys of several kinds": ("values.npy", member("{1: 2, 'a': 3}")),
    "brackets": ("values.npy", member("(" * 3000)),
    "a zero": ("values.npy", member("\0")),
    "a type that is none": (
        "values.npy",
        member("{'descr': [('a', 'b', 'c', 'd')], 'fortran_order': False, 'shape': (1,)}"),
    ),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_that_is_no_array_is_refused_whatever_it_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, words=np.array(["a", "b"]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(*MEMBERS[name])
    assert "cannot be read: " in refused(path) and not refused(path).endswith(": ")


def test_more_than_there_is_memory_for_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    header: dict[str, Any] = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("values.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(FusedgeError, match="cannot be read"):
        read_arrays(path, ("values",), "")


def test_a_damaged_one_is_refused_and_never_read_as_another(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    content, random = whole(path), np.random.default_rng(3)
    for number in range(400):
        damaged = bytearray(content)
        place = int(random.integers(len(content)))
        if number % 2:
            damaged[place] ^= 1 << int(random.integers(8))
        else:
            del damaged[place:]
        path.write_bytes(damaged)
        try:
            values, words = read_arrays(path, ("values", "words"), "")
        except FusedgeError:
            continue
        assert values.tolist() == VALUES.tolist() and words.tolist() == ["a", "b"]
