"""What a part begins with: zeros, or values of a file that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusedge.bundle.archive import file_entry, write_bundle
from fusedge.bundle.errors import BundleError
from fusedge.bundle.initial_state import initial_state
from tests.tiny_bundle import write_tiny_bundle

FILE = "state/total.f32"


def begun_with(tmp_path: Path, values: bytes) -> np.ndarray:
    """The first encoder's state in a bundle whose file has these bytes."""
    bundle = write_tiny_bundle(tmp_path / "zeros")
    manifest = bundle.manifest
    part = manifest.parts[0]
    pair = part.state[0].model_copy(update={"initial": FILE})
    part = part.model_copy(update={"state": (pair,)})
    files = {name: bundle.read(name) for name in manifest.files} | {FILE: values}
    changed = manifest.model_copy(
        update={
            "parts": (part, *manifest.parts[1:]),
            "files": {name: file_entry(data) for name, data in files.items()},
        }
    )
    again = write_bundle(tmp_path / "values.fusedge", changed, files)
    return initial_state(again, again.manifest.parts[0])["state_in.total"]


def test_a_state_begins_with_zeros_unless_the_manifest_says_otherwise(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.fusedge")
    (state,) = initial_state(bundle, bundle.manifest.parts[0]).values()
    assert state.dtype == np.float32 and state.tolist() == [[0.0]]


def test_a_state_begins_with_the_values_of_its_file(tmp_path: Path) -> None:
    state = begun_with(tmp_path, np.array([2.5], "<f4").tobytes())
    assert state.dtype == np.float32 and state.tolist() == [[2.5]]


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_file_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(BundleError, match=rf"has {size} bytes, the state has 1 numbers"):
        begun_with(tmp_path, bytes(size))
