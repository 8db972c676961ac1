"""Which engines were built on this machine by this user.

An engine is executable code. The runtime loads an unsigned one only if its hash is listed here, in a
file of the user's own cache folder (`~/.cache/fusedge`, or `FUSEDGE_CACHE`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FILE = "engines-built-here"
VARIABLE = "FUSEDGE_CACHE"


def cache_folder() -> Path:
    """Where results of long work are kept unless the user says otherwise."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusedge"


def make_private(folder: Path) -> None:
    """Make the folder, and what lacks above it, for this user alone. Raises OSError."""
    if not folder.parent.exists():
        make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def is_ours_alone(state: os.stat_result) -> bool:
    """Whether a file or folder is this user's and nobody else may write to it; POSIX only, else true."""
    return os.name != "posix" or (state.st_uid == os.geteuid() and not state.st_mode & 0o022)


def remember_built(sha256: str, folder: Path | None = None) -> None:
    """List an engine by its hash (hexadecimal); a folder that cannot be written only costs trust."""
    place = (folder or cache_folder()) / FILE
    if built_here(sha256, folder):
        return
    with contextlib.suppress(OSError):
        make_private(place.parent)
        # One short write to the end: two builds at once cannot mix their lines.
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, f"{sha256}\n".encode())
        finally:
            os.close(handle)


def built_here(sha256: str, folder: Path | None = None) -> bool:
    """Whether an engine of this hash was built here; a list that others may write to is not believed."""
    place = (folder or cache_folder()) / FILE
    try:
        with place.open("rb") as file:
            trusted = is_ours_alone(os.fstat(file.fileno()))
            return trusted and f"{sha256}\n".encode() in file.readlines()
    except OSError:
        return False
