"""The blocks of a GIF: FFmpeg plays one that was cut off as if it were whole."""

from __future__ import annotations

from typing import NamedTuple, Protocol

SIGNATURE = b"GIF8"
_EXTENSION, _IMAGE = b"\x21", b"\x2c"


class Reader(Protocol):
    """What a GIF is read from."""

    def read(self, size: int, /) -> bytes:
        """Up to so many bytes; none at the end."""


class GifBlocks(NamedTuple):
    """How many pictures begin in a GIF, and how many of them are all there."""

    pictures: int
    whole: int


def blocks_of(file: Reader) -> GifBlocks | None:
    """What is in a GIF; None for what is none. A trailer may be missing, and what follows it is left alone.

    By CompuServe's "Graphics Interchange Format, Version 89a", 1990.
    """
    blocks = _Blocks(file)
    if blocks.take(6)[:4] != SIGNATURE:
        return None
    pictures = whole = 0
    try:
        blocks.skip_table(blocks.exactly(7)[4])
        while kind := blocks.take(1):
            if kind == _IMAGE:
                pictures += 1
                blocks.skip_table(blocks.exactly(9)[8])
            elif kind != _EXTENSION:
                break
            blocks.exactly(1)  # how an extension is called, or the size of a picture's codes
            while length := blocks.exactly(1)[0]:
                blocks.exactly(length)
            whole = pictures
    except EOFError:
        return GifBlocks(pictures, whole)
    return GifBlocks(pictures, pictures)


class _Blocks:
    """Reads in large pieces what is taken in small ones."""

    def __init__(self, file: Reader) -> None:
        self._file, self._piece, self._at = file, b"", 0

    def take(self, size: int) -> bytes:
        """As many bytes; fewer at the end."""
        taken = self._piece[self._at : self._at + size]
        self._at += len(taken)
        while len(taken) < size:
            self._piece = self._file.read(1 << 16)
            if not self._piece:
                break
            self._at = size - len(taken)
            taken += self._piece[: self._at]
        return taken

    def exactly(self, size: int) -> bytes:
        """As many bytes; raises EOFError where the file ends before."""
        taken = self.take(size)
        if len(taken) < size:
            raise EOFError
        return taken

    def skip_table(self, flags: int) -> None:
        """Pass over the colours that a header's flags tell of."""
        if flags & 0x80:
            self.exactly(3 << (flags & 0x07) + 1)
