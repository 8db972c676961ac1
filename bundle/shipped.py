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
    """A bundle by path, or a shipped one by name.

    Raises UnknownNameError for a name that is neither, BundleError for a path without a bundle.
    """
    path = Path(name_or_path)
    plain_name = len(path.parts) == 1 and not path.suffix
    if plain_name and not path.exists():
        known = shipped_bundles()
        if name_or_path not in known:
            raise UnknownNameError("bundle", name_or_path, known)
        path = known[name_or_path]
    return Bundle(path)
