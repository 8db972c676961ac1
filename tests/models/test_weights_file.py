"""Weights that cannot be read are refused in a line that says why once, and without waiting for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.export.factory import load_factory
from fusedge.models.weights_file import load_weights


def load_kind(path: Path) -> object:
    return load_weights("fusedge-model-1", path, nn.Identity)


def load_own(path: Path) -> object:
    return load_factory("tests.export.small_net:SmallNet", path)


PUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "No such file or directory"),
    "a pipe": (os.mkfifo, "it is no regular file"),
    "a folder": (os.mkdir, "it is no regular file"),
}


@pytest.mark.parametrize("load", [load_kind, load_own])
@pytest.mark.parametrize("what", PUT)
def test_what_is_no_file_is_refused(
    tmp_path: Path, what: str, load: Callable[[Path], object]
) -> None:
    path = tmp_path / "nope.safetensors"
    put, reason = PUT[what]
    put(path)
    with pytest.raises(FusedgeError) as caught:
        load(path)
    assert caught.value.where == str(path) and caught.value.what == f"cannot be read: {reason}"
