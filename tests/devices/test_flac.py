"""Sound of FLAC files comes whole and exact, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.flac import read_flac

av = pytest.importorskip("av")

RATE_HZ = 16_000
COUNT = 16_000  # samples: four frames, so that one of them can be lost


def write_flac(
    path: Path, rate_hz: int = RATE_HZ, layout: str = "mono", kind: str = "s16"
) -> np.ndarray[Any, Any]:
    """Noise; what was written, of the kind's type."""
    channels = 1 if layout == "mono" else 2
    scale = 1 if kind == "s16" else 1 << 16
    random = np.random.default_rng(5)
    noise = random.integers(-9000, 9000, (1, COUNT * channels)) * scale
    samples: np.ndarray[Any, Any] = noise.astype(np.int16 if kind == "s16" else np.int32)
    with av.open(path, "w", format="flac") as file:
        stream = file.add_stream("flac", rate=rate_hz)
        stream.layout, stream.format = layout, kind
        frame = av.AudioFrame.from_ndarray(samples, kind, layout)
        frame.sample_rate = rate_hz
        file.mux([*stream.encode(frame), *stream.encode(None)])
    return samples.ravel()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "voice.flac"


def refused(path: Path) -> str:
    with pytest.raises(FusedgeError) as caught:
        read_flac(path, RATE_HZ)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return caught.value.what


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_refused_without_waiting_for_it(
    path: Path, kind: Callable[[Path], None]
) -> None:
    kind(path)
    assert refused(path) == "cannot be read: it is no regular file"


def test_sound_is_read_exactly(path: Path) -> None:
    written = write_flac(path)
    wave = read_flac(path, RATE_HZ)
    assert wave.dtype == np.float32
    np.testing.assert_array_equal(wave * 32768, written)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layout": "stereo"}, "at 16000 Hz with 2 channels of 16 bits"),
        ({"rate_hz": 48_000}, "at 48000 Hz with 1 channels of 16 bits"),
        ({"kind": "s32"}, "at 16000 Hz with 1 channels of 24 bits"),
    ],
)
def test_other_sound_is_refused(path: Path, changed: dict[str, Any], said: str) -> None:
    write_flac(path, **changed)
    assert said in refused(path)


def test_what_is_no_flac_is_refused(path: Path, tmp_path: Path) -> None:
    assert "cannot be read" in refused(path)
    assert "cannot be read" in refused(tmp_path)
    write_flac(tmp_path / "other.flac")
    playlist = b"ffconcat version 1.0\nfile other.flac\n"
    for content in (b"", b"fLaC", b"no sound at all" * 100, playlist):
        path.write_bytes(content)
        assert "cannot be read" in refused(path)


def test_a_damaged_file_is_refused_and_never_heard_as_another_sound(path: Path) -> None:
    written = write_flac(path)
    whole = path.read_bytes()
    sound = whole.rindex(bytes(100)) + 100  # after the header's padding
    random = np.random.default_rng(8)
    passed = 0
    for number in range(150):
        damaged = bytearray(whole)
        place = int(random.integers(*((sound, len(whole)) if number % 2 else (0, 100))))
        if number % 3 == 0:
            del damaged[place:]
        elif number % 3 == 1:
            damaged[place] ^= 1 << int(random.integers(8))
        else:
            damaged[place : place + 100] = random.bytes(100)
        path.write_bytes(damaged)
        try:
            wave = read_flac(path, RATE_HZ)
        except FusedgeError:
            continue
        np.testing.assert_array_equal(wave * 32768, written)
        passed += number % 2  # the check sum at the end of a frame, perhaps: the sound is all there
    assert passed < 4


@pytest.mark.parametrize(
    ("begin", "end", "said"),
    [
        (21, 26, "does not tell its length"),  # of which 4 bits are left: a pipe's header
        (24, 25, "16000 of the 12416 samples"),
        (26, 42, "MD5"),
    ],
)
def test_what_the_header_says_is_compared(path: Path, begin: int, end: int, said: str) -> None:
    write_flac(path)
    content = bytearray(path.read_bytes())
    content[begin:end] = bytes([content[begin] & 0xF0]) + bytes(end - begin - 1)
    if said == "MD5":
        content[begin:end] = bytes(range(end - begin))
    path.write_bytes(content)
    assert said in refused(path)


def test_a_header_without_an_md5_is_believed_in_the_length(path: Path) -> None:
    written = write_flac(path)
    content = bytearray(path.read_bytes())
    content[26:42] = bytes(16)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_flac(path, RATE_HZ) * 32768, written)
