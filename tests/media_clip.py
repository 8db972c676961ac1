"""Sound and picture files, made where they are needed: a flash and a beep at each whole second."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

WHITE, DARK = 235, 30
BEEP_HZ = 1000
NUMBERS = {"u8": "u1", "s16": "i2", "s32": "i4", "flt": "f4", "dbl": "f8"}


def picture(number: int, fps: int, height: int = 48, width: int = 64) -> Any:
    """Frame `number`: white for the first tenth of each second, else dark, red at the left edge."""
    level = WHITE if number % fps < fps / 10 else DARK
    image = np.full((height, width, 3), level, np.uint8)
    image[:, : width // 4] = (200, 0, 0)
    return av.VideoFrame.from_ndarray(image, format="rgb24")


def tone(rate_hz: int, seconds: float, channels: int = 1) -> np.ndarray[Any, Any]:
    """Sound float32 `[channels, N]` that beeps for the first tenth of each second."""
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    beep = 0.5 * np.sin(2 * np.pi * BEEP_HZ * time_s) * (time_s % 1 < 0.1)
    return np.tile(beep.astype(np.float32), (channels, 1))


def write_clip(
    path: Path,
    seconds: float = 3,
    *,
    fps: int = 25,
    video: str | None = "libx264",
    audio: str | None = "aac",
    rate_hz: int = 48_000,
    channels: int = 1,
    options: dict[str, str] | None = None,
    stamps: list[int] | None = None,
    size: tuple[int, int] = (48, 64),
    container_options: dict[str, str] | None = None,
    sound_s: float | None = None,
) -> Path:
    """A clip; `stamps` are the pictures' times in ms, where they do not come evenly, and `sound_s` is how
    long the sound is, where it ends before them.
    """
    with av.open(str(path), "w", container_options=container_options or {}) as file:
        pictures: Any = file.add_stream(video, rate=fps) if video else None
        sound: Any = file.add_stream(audio, rate=rate_hz) if audio else None
        if pictures:
            pictures.height, pictures.width = size
            pictures.pix_fmt = "yuvj420p" if video == "mjpeg" else "yuv420p"
            pictures.options = options or {}
            if stamps:
                pictures.codec_context.time_base = Fraction(1, 1000)
        if sound:
            sound.layout = {1: "mono", 2: "stereo", 8: "7.1"}[channels]
        frames = len(stamps) if stamps else round(seconds * fps)
        times_s = [stamps[n] / 1000 if stamps else n / fps for n in range(frames)]
        audio_at, samples = 0, tone(rate_hz, sound_s or seconds, channels)
        for number in range(frames if pictures else 0):
            frame = picture(number, fps, *size)
            frame.pts = stamps[number] if stamps else number
            frame.time_base = Fraction(1, 1000) if stamps else Fraction(1, fps)
            file.mux(pictures.encode(frame))
            if sound:
                audio_at = _encode_until(file, sound, samples, audio_at, times_s[number])
        if sound:
            _encode_until(file, sound, samples, audio_at, seconds)
            file.mux(sound.encode(None))
        if pictures:
            file.mux(pictures.encode(None))
    return path


def _encode_until(
    file: Any, stream: Any, samples: np.ndarray[Any, Any], at: int, until_s: float
) -> int:
    rate_hz = stream.rate
    while at < samples.shape[1] and at <= until_s * rate_hz:
        block = samples[:, at : at + 1024]
        data = block if stream.format.is_planar else block.T.reshape(1, -1)
        kind = stream.format.name.removesuffix("p")
        if kind == "u8":
            data = np.round(data * 127 + 128)
        elif kind.startswith("s"):
            data = np.round(data * 32767) * (65536 if kind == "s32" else 1)
        data = np.ascontiguousarray(data, NUMBERS[kind])
        frame = av.AudioFrame.from_ndarray(
            data, format=stream.format.name, layout=stream.layout.name
        )
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, at, Fraction(1, rate_hz)
        file.mux(stream.encode(frame))
        at += block.shape[1]
    return at
