"""Trained networks in files, each under a key of all that it was made from: found again, or made anew."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import refuse_special, write_whole

_LOG = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)
Load = Callable[[Path], tuple[Network, dict[str, str]]]
Bytes = Callable[[Network, Mapping[str, str]], bytes]


def keep_model(
    path: Path,
    key: str,
    model: Network,
    to_bytes: Bytes[Network],
    notes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the network, its key, a digest of its weights, and notes of the caller's."""
    own = {"key": key, "weights": _digest(model, to_bytes)}
    write_whole(path, to_bytes(model, {**notes, **own}))


def kept_model(
    path: Path, key: str, load: Load[Network], to_bytes: Bytes[Network]
) -> Network | None:
    """The network that was kept at `path` under this key, if it is there and whole.

    Raises FusedgeError of what is no file.
    """
    refuse_special(path)
    if not path.exists():
        return None
    try:
        found, notes = load(path)
    except FusedgeError as error:
        _LOG.warning("%s: %s; it is trained again", error.where, error.what)
        return None
    if notes.get("key") != key:
        return None
    if notes.get("weights") != _digest(found, to_bytes):
        _LOG.warning("%s: the weights were altered; it is trained again", path)
        return None
    return found


def _digest(model: Network, to_bytes: Bytes[Network]) -> str:
    return hashlib.sha256(to_bytes(model, {})).hexdigest()
