"""Results of long work, kept on disk under the hash of all that they depend on.

The folder is the user's own (`fusedge.bundle.built_here.cache_folder`), readable by nobody else: an engine
from it is executable code. What is damaged there, by a full disk or a crash, is made again; so is what
others could have written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from fusedge.bundle.built_here import is_ours_alone, make_private

_BINARY = getattr(os, "O_BINARY", 0)  # Windows translates line ends without it


def key_of(*items: bytes | str) -> str:
    """The SHA-256 of all items; where one ends and the next begins counts too."""
    digest = hashlib.sha256()
    for item in items:
        data = item.encode() if isinstance(item, str) else item
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class Cache:
    """Bytes by kind and key; `folder` None keeps nothing.

    A cache that cannot be written only costs time, so its errors are no errors of the work.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, kind: str, key: str) -> bytes | None:
        """What was kept, None where nothing was, it is damaged, or others may write to its place."""
        if self.folder is None:
            return None
        place = self.folder / kind / key
        try:
            with place.open("rb") as file:
                states = os.fstat(file.fileno()), place.parent.stat()
                if not all(is_ours_alone(state) for state in states):
                    return None
                content = file.read()
        except OSError:
            return None
        digest, data = content[:32], content[32:]
        return data if hashlib.sha256(data).digest() == digest else None

    def put(self, kind: str, key: str, data: bytes) -> None:
        """Keep it; whole or not at all."""
        if self.folder is None:
            return
        place = self.folder / kind / key
        partial = place.with_name(f".{key[:16]}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            make_private(place.parent)
            place.parent.chmod(0o700)  # what lies there already is judged file by file
            try:
                handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(data).digest() + data)
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)
