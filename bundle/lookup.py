"""The bundles that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import UnknownNameError

FOLDER = Path(__file__).parent / "shipped"


def shipped_bundles() -> dict[str, Path]:
    """Name to file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.fusedge"))}


def open_bundle(name_or_path: str) -> Bundle:
    """A shipped bundle by name, or one by path; `./driving` is always a path.

    Raises UnknownNameError for a name that is neither, BundleError for a path without a bundle.
    """
    known = shipped_bundles()
    path = known.get(name_or_path, Path(name_or_path))
    if "/" not in name_or_path and not path.suffix and not path.exists():
        raise UnknownNameError("bundle", name_or_path, known)
    return Bundle(path)
