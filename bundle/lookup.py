"""The bundles that come with the package, by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import BundleError, UnknownNameError

FOLDER = Path(__file__).parent / "shipped"
_NONE: Mapping[str, Callable[[], Bundle]] = MappingProxyType({})


def shipped_bundles() -> dict[str, Path]:
    """Name to file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.fusedge"))}


def is_name(name_or_path: str) -> bool:
    """Whether it is no path: what lies in the working directory under that name is one."""
    if "/" in name_or_path or Path(name_or_path).suffix:
        return False
    # os.path answers False where Path raises: a name too long
    return not os.path.exists(name_or_path)  # noqa: PTH110


def open_bundle(name_or_path: str, makers: Mapping[str, Callable[[], Bundle]] = _NONE) -> Bundle:
    """A bundle by path, a shipped one by name, or what one of `makers` gives by its name.

    `./driving` is always a path. Raises UnknownNameError for a name that is neither, BundleError for a
    path without a bundle.
    """
    shipped = shipped_bundles()
    names = {*shipped, *makers}
    if not is_name(name_or_path):
        try:
            return Bundle(Path(name_or_path))
        except BundleError as error:
            if name_or_path not in names:
                raise
            hint = f"it lies in this folder; in another one {name_or_path} is the shipped bundle"
            raise BundleError(error.what, where=error.where, hint=hint) from None
    if name_or_path not in names:
        raise UnknownNameError("bundle", name_or_path, names)
    if name_or_path in shipped:
        return Bundle(shipped[name_or_path])
    return makers[name_or_path]()
