"""Reading files that a user names: regular ones only, and never more than is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from fusedge.bundle.errors import FusedgeError


def is_file(path: Path) -> bool:
    """Whether it is a regular file: a pipe or a device may never end, or block."""
    # os.path answers False where Path raises: no permission, name too long
    return os.path.isfile(path)  # noqa: PTH113


def read_file(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes; raises FusedgeError where there is none.

    A pipe or a device is refused without being opened.
    """
    where = str(path)
    if os.path.exists(path) and not os.path.isdir(path) and not is_file(path):  # noqa: PTH110, PTH112
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
