"""Input that is nothing, next to nothing or odd, through the shipped emotion bundle.

What the front ends do with such input by themselves, for an hour where it has to be, is in test_face_front,
test_speech_front and test_real_fronts.
"""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.cli.demo_film import SPEECH
from fusedge.devices.capture.source import Source, open_source
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.decision import Decision
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.memory import MemorySink
from tests.devices.test_still import ORIENTATION, TURNED
from tests.export.test_packaged_parts import installed

Image = pytest.importorskip("PIL.Image")
Frame = np.ndarray[Any, np.dtype[np.uint8]]
RATE_HZ, SOUND_HZ, BLOCK = 10, 16_000, 1600
FACE_BOX = (153, 48, 144)  # x, y and side in the astronaut's picture, from the hair to the chin
FACE_WIDTH = 105  # of what the detector calls the face in it


class Device:
    """A camera at 10 Hz and a microphone, of what each gives by its number; None: there is none."""

    live = False
    uri = "device:"
    warnings = ()
    units: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def __init__(
        self,
        length_s: float,
        frame: Callable[[int], Frame] | None = None,
        sound: Callable[[int], np.ndarray[Any, Any]] | None = None,
    ) -> None:
        self.length_s, self.frame, self.sound = length_s, frame, sound
        all_channels = {"face": ("red", "green", "blue"), "voice": ("sound",)}
        given = {"face": frame, "voice": sound}
        self.channels = {n: c for n, c in all_channels.items() if given[n] is not None}
        self.modalities = tuple(self.channels)

    def samples(self) -> Iterator[Sample | Rejection]:
        for number in range(round(self.length_s * RATE_HZ)):
            time_ns = to_ns(number / RATE_HZ)
            if self.frame is not None:
                yield Sample("face", time_ns, time_ns, self.frame(number))
            if self.sound is not None:
                yield Sample("voice", time_ns, time_ns, self.sound(number))

    def close(self) -> None:
        pass


class Played:
    """A session that came to its end, `problem` or not, and in whose account nothing is missing."""

    def __init__(self, bundle: Bundle, source: Source | Path, problem: str = "") -> None:
        def opened(uri: str, *more: Any) -> Source:
            return open_source(uri, *more) if isinstance(source, Path) else source

        sink = MemorySink()
        uri = f"file:{source}" if isinstance(source, Path) else "device:"
        session = Session(bundle, [uri], VirtualClock(), open_uri=opened)
        self.report: SessionReport = run(session, [sink])
        assert (self.report.ended, self.report.problem) == ("end of input", problem)
        assert self.report.summary["ledger_balanced"]
        self.decisions: list[Decision] = sink.decisions
        self.fronts: dict[str, Any] = self.report.summary["fronts"]

    def present(self, modality: str) -> list[Decision]:
        return [d for d in self.decisions if d.modalities[modality].present]

    def shows_nothing(self, length_s: float) -> None:
        assert len(self.decisions) == pytest.approx(length_s * RATE_HZ, abs=4)
        assert {d.problem for d in self.decisions} == {"nothing_present"}
        assert {d.outputs["emotion"].label for d in self.decisions} == {None}
        assert self.fronts["face"]["faces"] == 0
        assert self.fronts["voice"]["speech_s"] == 0


def astronaut() -> Frame:
    with Image.open(installed("scikit-image", "skimage/data/astronaut.png")) as picture:
        return np.asarray(picture.convert("RGB"))


def face_of(width: int) -> Frame:
    """The astronaut's face, with a little around it, as the detector calls it `width` wide."""
    x, y, side = FACE_BOX
    face = astronaut()[y - 18 : y + side + 18, x - 18 : x + side + 18]
    scale = width / FACE_WIDTH
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(face, None, fx=scale, fy=scale, interpolation=how), np.uint8)


def wall(number: int) -> Frame:
    """A small picture of nothing, with a camera's noise."""
    rng = np.random.default_rng(number % 16)
    return rng.integers(105, 116, (120, 160, 3), np.uint8)


def noise(number: int) -> Frame:
    """Coarser from frame to frame, up to blots as large as a face."""
    rng = np.random.default_rng(number)
    sigma = (0, 1, 3, 8, 20, 40)[number % 6]
    field: Any = rng.normal(size=(480, 640, 3)).astype(np.float32)
    field = cv2.GaussianBlur(field, (0, 0), sigma) if sigma else field
    return np.asarray((field - field.min()) / np.ptp(field) * 255, np.uint8)


def unsteady(scene: Frame) -> Callable[[int], Frame]:
    """The scene, of which each other frame is a shade darker: what stands still to the bit is frozen."""
    return lambda number: np.asarray(np.maximum(scene, 1) - np.uint8(number % 2), np.uint8)


def hiss(number: int) -> np.ndarray[Any, Any]:
    """Of a microphone in a quiet room, 60 dB below its loudest."""
    rng = np.random.default_rng(number % 64)
    return (1e-3 * rng.normal(size=(BLOCK, 1))).astype(np.float32)


def muted(number: int) -> np.ndarray[Any, Any]:
    return np.zeros((BLOCK, 1), np.float32)


def test_nobody_in_a_quiet_room_has_no_emotion(emotion_bundle: Bundle) -> None:
    Played(emotion_bundle, Device(60, wall, hiss)).shows_nothing(60)


def test_a_muted_microphone_says_nothing(emotion_bundle: Bundle) -> None:
    Played(emotion_bundle, Device(180, sound=muted)).shows_nothing(180)


def test_frames_of_noise_show_nobody(emotion_bundle: Bundle) -> None:
    Played(emotion_bundle, Device(6, noise, muted)).shows_nothing(6)


def test_a_face_of_10_pixels_has_no_emotion(emotion_bundle: Bundle) -> None:
    scene = np.full((480, 640, 3), 110, np.uint8)
    face = face_of(10)
    scene[200 : 200 + len(face), 300 : 300 + len(face)] = face
    played = Played(emotion_bundle, Device(5, unsteady(scene)))
    assert not played.present("face") and played.fronts["face"]["faces"] <= 1
    assert {d.outputs["emotion"].label for d in played.decisions} == {None}


def test_of_20_faces_each_is_seen_once_and_one_drives(emotion_bundle: Bundle) -> None:
    scene = np.tile(face_of(100), (4, 5, 1))
    played = Played(emotion_bundle, Device(4, unsteady(scene)))
    shown = played.present("face")
    assert len(shown) > 30 and played.fronts["face"]["faces"] == 20
    for decision in shown[5:]:
        seen = decision.as_dict()["modalities"]["face"]["front"]["faces"]
        assert sorted(one["id"] for one in seen) == list(range(1, 21))
        assert sum(one["drives"] for one in seen) == 1
    assert {d.outputs["emotion"].momentary_label for d in shown} == {"happy"}


UNREAD = "of its rows could not be read, first:"


@pytest.mark.parametrize(
    ("announced", "problem"),
    [
        (1, ""),
        (29, ""),
        (31, ""),
        (3000, f"1 {UNREAD} ends at 3.000 s, where the file says 300.000 s"),
    ],
)
def test_a_film_whose_header_counts_other_frames_is_seen_to_its_end(
    emotion_bundle: Bundle, tmp_path: Path, announced: int, problem: str
) -> None:
    path, frames = tmp_path / "film.avi", 30
    with av.open(str(path), "w") as film:
        video = film.add_stream("mjpeg", rate=RATE_HZ)
        video.height, video.width, video.pix_fmt = 512, 512, "yuvj420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(astronaut(), number, axis=1), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE_HZ)
            film.mux(video.encode(frame))
        film.mux(video.encode(None))
    content = bytearray(path.read_bytes())
    for chunk, field in ((b"avih", 16), (b"strh", 32)):  # dwTotalFrames and dwLength of AVI 1.0
        place = content.index(chunk) + 8 + field
        assert struct.unpack_from("<I", content, place) == (frames,)
        struct.pack_into("<I", content, place, announced)
    path.write_bytes(content)
    with av.open(str(path)) as film:
        assert film.streams.video[0].frames == announced
    played = Played(emotion_bundle, path, problem)
    assert played.fronts["face"]["frames"] == played.fronts["face"]["samples"] == frames
    assert played.fronts["face"]["faces"] == 1


@pytest.mark.parametrize(
    ("codec", "rate_hz", "layout"),
    [
        ("pcm_s16le", 16_000, "mono"),
        ("pcm_u8", 16_000, "mono"),
        ("pcm_s16le", 44_100, "stereo"),
        ("pcm_s16le", 96_000, "mono"),
        ("pcm_u8", 96_000, "stereo"),
    ],
)
def test_speech_is_heard_in_any_kind_of_sound_file(
    emotion_bundle: Bundle, tmp_path: Path, codec: str, rate_hz: int, layout: str
) -> None:
    path = tmp_path / "speech.wav"
    with av.open(str(SPEECH)) as spoken, av.open(str(path), "w") as sound:
        stream = sound.add_stream(codec, rate=rate_hz)
        stream.layout = layout
        resampler = av.AudioResampler(stream.format, layout, rate_hz)
        for frame in [*spoken.decode(audio=0), None]:
            for block in resampler.resample(frame):
                sound.mux(stream.encode(block))
        sound.mux(stream.encode(None))
    played = Played(emotion_bundle, path)
    heard = played.fronts["voice"]
    assert heard["heard_s"] == pytest.approx(7, abs=1.5)
    assert heard["speech_s"] > 0.7 * heard["heard_s"]
    assert len(played.present("voice")) > 30 and not played.present("face")


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 96_000])
def test_silence_in_a_file_of_any_rate_says_nothing(
    emotion_bundle: Bundle, tmp_path: Path, rate_hz: int
) -> None:
    path = tmp_path / "silence.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(bytes(2 * 6 * rate_hz))
    played = Played(emotion_bundle, path)
    assert {d.problem for d in played.decisions} == {"nothing_present"}
    assert "late" not in played.report.summary["ledger"]["voice"]["dropped"]


@pytest.mark.parametrize("orientation", TURNED)
def test_a_face_in_a_turned_picture_is_upright(
    emotion_bundle: Bundle, tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(TURNED[orientation](astronaut()))
    path = tmp_path / "turned.jpg"
    Image.fromarray(stored).save(path, quality=95, exif=exif)
    played = Played(emotion_bundle, path)
    shown = played.present("face")
    assert len(shown) > 20 and played.fronts["face"]["faces"] == 1
    assert {d.outputs["emotion"].momentary_label for d in shown} == {"happy"}
    (face,) = shown[-1].as_dict()["modalities"]["face"]["front"]["faces"]
    assert face["box"] == pytest.approx([173 / 512, 62 / 512, 105 / 512, 105 / 512], abs=8 / 512)
