"""Text files of rows, plain or gzipped, read line by line in bounded memory."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

UNREADABLE = (OSError, EOFError, zlib.error)
"""What opening and reading a file, also a gzipped one, may raise."""


def open_file(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where its name ends in .gz.

    Of a gzipped file that was cut off the last 64 KiB before the cut are lost.
    """
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"), 1 << 16)
    return path.open("rb")


def bounded_lines(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """Lines of at most `limit` bytes with their end; b"" for a longer one, of any length."""
    while line := file.readline(limit):
        if len(line) < limit or line.endswith(b"\n"):
            yield line
            continue
        while len(line) == limit and not line.endswith(b"\n"):
            line = file.readline(limit)
        yield b""
