"""Images of recordings: lossless, read by others, and bounded before they are unpacked."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fusedge.bundle import png

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
images = shapes.flatmap(lambda shape: arrays(np.uint8, shape))


@given(images)
def test_every_image_comes_back(image: np.ndarray) -> None:
    assert png.can_encode(image)
    again = png.decode(png.encode(image), 1 << 20)
    assert again.shape == image.shape
    assert (again == image).all()


@given(images)
def test_another_program_sees_the_same_pixels(image: np.ndarray) -> None:
    module = pytest.importorskip("PIL.Image")
    seen = np.asarray(module.open(io.BytesIO(png.encode(image))))
    assert (seen.reshape(image.shape) == image).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.int8),
        np.zeros((8193, 1, 1), np.uint8),
    ],
)
def test_what_png_cannot_hold_is_known(array: np.ndarray) -> None:
    assert not png.can_encode(array)


@given(images, st.data())
def test_damage_is_a_value_error(image: np.ndarray, data: st.DataObject) -> None:
    file = bytearray(png.encode(image))
    place = data.draw(st.integers(0, len(file) - 1))
    file[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"PNG|large"):
        png.decode(bytes(file), 1 << 20)
    with pytest.raises(ValueError, match="PNG"):
        png.decode(bytes(file[:place]), 1 << 20)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def forged(width: int, height: int, content: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    with pytest.raises(ValueError, match="too large"):
        png.decode(forged(8192, 8192, b""), 1 << 20)
    with pytest.raises(ValueError, match="damaged"):  # more inside than its size says
        png.decode(forged(1, 1, bytes(50_000_000)), 1 << 20)
    with pytest.raises(ValueError, match="not a PNG of a recording"):  # another filter
        png.decode(forged(1, 1, b"\x04\x00"), 1 << 20)
