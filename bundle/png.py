"""PNG as recordings need it: lossless, and fast enough for a camera on one core.

Every row has the filter Sub, and deflate codes by Huffman alone: 6.5 ms and 413 KiB for a VGA frame
with noise of 2 levels, where Pillow's fastest level takes 25 ms and 496 KiB (one core of an EPYC).
Any viewer reads the result; `decode` reads what `encode` wrote, and its cost is bounded beforehand.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 8192  # as in the manifest
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels: grey, grey and alpha, RGB, RGBA
_CHANNELS = {colour: channels for channels, colour in _COLOUR_TYPES.items()}
_SUB = 1
_HEADER = struct.Struct(">IIBBBBB")


def can_encode(image: NDArray[np.generic]) -> bool:
    """Whether PNG can hold the array: uint8 `[height, width, 1 to 4]`, not empty, not too large."""
    return (
        image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] in _COLOUR_TYPES
        and all(1 <= side <= MAX_SIDE for side in image.shape[:2])
    )


def encode(image: NDArray[np.uint8]) -> bytes:
    """The file of an image that `can_encode` accepts."""
    height, width, channels = image.shape
    rows = image.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = _SUB
    filtered[:, 1 : 1 + channels] = rows[:, :channels]
    np.subtract(rows[:, channels:], rows[:, :-channels], out=filtered[:, 1 + channels :])
    deflate = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    data = deflate.compress(filtered.data) + deflate.flush()
    header = _HEADER.pack(width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return b"".join(
        (_SIGNATURE, _chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", crc)))


def decode(file: bytes, max_bytes: int) -> NDArray[np.uint8]:
    """The image `[height, width, channels]` of a file by `encode`.

    Raises ValueError for any other input, also for one that would unpack to more than `max_bytes`.
    """
    try:
        (length,) = struct.unpack_from(">I", file, 33)
        width, height, *rest = _HEADER.unpack_from(file, 16)
        data = file[41 : 41 + length]
        depth, colour = rest[:2]
        channels = _CHANNELS[colour]
    except (struct.error, KeyError):
        raise ValueError("not a PNG of a recording") from None
    same = b"".join(
        (_SIGNATURE, _chunk(b"IHDR", file[16:29]), _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    )
    sides = 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE
    if same != file or depth != 8 or any(rest[2:]) or not sides:
        raise ValueError("not a PNG of a recording")
    size = height * (1 + width * channels)
    if size > max_bytes:
        raise ValueError(f"an image of {width} x {height} is too large")
    inflate = zlib.decompressobj()
    try:
        rows = np.frombuffer(inflate.decompress(data, size + 1), np.uint8)
    except zlib.error:
        raise ValueError("damaged PNG") from None
    if len(rows) != size or not inflate.eof or inflate.unused_data:
        raise ValueError("damaged PNG")
    rows = rows.reshape(height, 1 + width * channels)
    if (rows[:, 0] != _SUB).any():
        raise ValueError("not a PNG of a recording")
    pixels = rows[:, 1:].reshape(height, width, channels)
    return np.add.accumulate(pixels, axis=1, dtype=np.uint8)
