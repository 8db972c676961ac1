"""Arrays of an .npz file are read whole, or refused in a line that says which file."""

from __future__ import annotations

import zipfile
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
    for content in (b"", b"images", b"PK\x03\x04 and then nothing"):
        path.write_bytes(content)
        assert "cannot be read" in refused(path)
    with path.open("wb") as file:
        np.save(file, VALUES)
    assert "it is one array" in refused(path)
    np.savez(path, words=np.array(["a"]))
    assert "it has no array values" in refused(path)
    np.savez(path, words=np.array(["a"]), values=np.array([{}], object))
    assert "cannot be read" in refused(path)


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
