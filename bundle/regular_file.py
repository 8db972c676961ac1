"""Files that a user names: regular ones only, read no further than asked, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from fusedge.bundle.built_here import make_private
from fusedge.bundle.errors import FusedgeError


def is_file(path: Path) -> bool:
    """Whether it is a regular file: a pipe or a device may never end, or block."""
    # os.path answers False where Path raises: no permission, name too long
    return os.path.isfile(path)  # noqa: PTH113


def is_special(path: Path) -> bool:
    """Whether something lies there that is no regular file, such as a pipe, a device or a folder."""
    return os.path.exists(path) and not is_file(path)  # noqa: PTH110


def read_file(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes; raises FusedgeError where there is none.

    A pipe or a device is refused without being opened.
    """
    where = str(path)
    if is_special(path) and not os.path.isdir(path):  # noqa: PTH112
        raise FusedgeError("cannot be read: it is no regular file", where=where)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero in it
        reason = error.strerror if isinstance(error, OSError) else None
        raise FusedgeError(f"cannot be read: {reason or error}", where=where) from None
    if len(content) > most:
        raise FusedgeError(f"has more than {most} bytes", where=where)
    return content


def refuse_special(path: Path) -> None:
    """Refuse at once, before any work, what `write_whole` must not replace: a folder, a pipe, a device.

    Raises FusedgeError, also for a name that no file can have.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is there and no regular file")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None


def write_whole(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file, so that what lay there stays until the new content is whole and on the disk.

    A link is followed. Folders that lack are made, `private` ones for this user alone. Raises
    FusedgeError; nothing half-written is left.
    """
    refuse_special(path)
    try:
        place = path.resolve()
        partial = place.with_name(f".{secrets.token_hex(8)}.partial")  # however long its name is
        if private:
            make_private(place.parent)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if place.exists():
                partial.chmod(stat.S_IMODE(place.stat().st_mode))  # who may read it stays
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: Exception) -> FusedgeError:
    reason = error.strerror if isinstance(error, OSError) else None
    return FusedgeError(
        f"cannot be written: {reason or error}",
        where=str(path),
        hint="make room there, or choose another place",
    )
