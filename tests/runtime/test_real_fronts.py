"""The front ends with the detectors of the packages, on real faces and voices where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.face_front import CLIPS, FACE, VOICE, Loaded, Watch, frames_of
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Sample
from fusedge.devices.capture.address import Request, parse
from fusedge.devices.capture.file import open_file
from fusedge.devices.capture.source import SCHEMES
from fusedge.export.packaged_parts import front_parts
from fusedge.runtime.front.sighting import Sightings
from fusedge.runtime.front.speech_front import SpeechFront, SpeechTally
from fusedge.runtime.front.voice_activity import VoiceActivity
from tests.export.test_packaged_parts import installed
from tests.media_clip import write_clip

Frame = np.ndarray
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no clips in {CLIPS}")
NAMES = ("openwillis_baseline", "openwillis_not_expressive", "ravdess_01-01-01-01-01-01-01")


def loaded(spec: Modality) -> Loaded:
    try:
        return Loaded(front_parts((spec,))[0])
    except FusedgeError as error:
        pytest.skip(error.line())


@pytest.fixture(scope="module")
def face() -> Loaded:
    return loaded(FACE)


@pytest.fixture(scope="module")
def voice() -> Loaded:
    return loaded(VOICE)


def some_frames(name: str, step: int) -> Iterator[Frame]:
    for number, frame in enumerate(frames_of(CLIPS / f"{name}.mp4")):
        if number % step == 0:
            yield frame


@needs_clips
@pytest.mark.parametrize("name", NAMES)
def test_the_one_face_is_found_in_every_frame_and_stays_the_same(face: Loaded, name: str) -> None:
    watch = Watch(face)
    for number, frame in enumerate(some_frames(name, 6)):
        seen = watch.see(frame, number / 10)
        assert seen is not None and [one.number for one in seen.faces] == [1]
    assert watch.tally.given == watch.tally.frames > 10


@needs_clips
def test_light_colour_and_mirror_do_not_matter(face: Loaded) -> None:
    frame = next(some_frames(NAMES[0], 1))
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    rng = np.random.default_rng(0)
    changed = {
        "mirrored": frame[:, ::-1],
        "grey": grey[:, :, None],
        "transparent": np.dstack([frame, np.zeros_like(grey)]),
        "dark": (frame * 0.1 + rng.normal(0, 2, frame.shape)).clip(0, 255).astype(np.uint8),
        "glaring": (frame * 2.5).clip(0, 255).astype(np.uint8),
        "turned": cv2.warpAffine(frame, cv2.getRotationMatrix2D((640, 360), 30, 1), (1280, 720)),
    }
    for name, picture in changed.items():
        seen = Watch(face).see(np.ascontiguousarray(picture), 0)
        assert seen is not None and len(seen.faces) == 1, name


@needs_clips
def test_less_and_less_of_a_face_is_no_face_in_the_end_and_never_another_one(face: Loaded) -> None:
    frame = next(some_frames(NAMES[2], 1))
    whole = Watch(face).see(frame, 0)
    assert whole is not None
    left, _, width, _ = whole.faces[0].box
    watch = Watch(face)
    inside = []
    for number in range(30):
        gone = round(left + width * number / 25 - 20)
        rolled = np.ascontiguousarray(np.roll(frame, -gone, axis=1))
        rolled[:, -gone:] = 0
        seen = watch.see(rolled, number / 10)
        assert seen is not None
        inside.append(len(seen.faces))
    assert inside[0] == 1 and inside[-1] == 0 and max(inside) == 1
    assert watch.tally.faces == 1


def nearer(frame: Frame, box: Sequence[float], share: float, aspect: float) -> Frame:
    """The part of a frame around a face that is as wide as so much of its height."""
    x, y, width, height = box
    high = width / share
    left, top = x + width / 2 - aspect * high / 2, y + 0.42 * height - high / 2
    sides = [max(0, round(v)) for v in (top, top + high, left, left + aspect * high)]
    return np.ascontiguousarray(frame[sides[0] : sides[1], sides[2] : sides[3]])


@needs_clips
@pytest.mark.parametrize("aspect", [1.0, 16 / 9])
@pytest.mark.parametrize("share", [0.7, 0.8, 0.9, 1.0])
def test_a_face_that_fills_the_frame_is_found(face: Loaded, share: float, aspect: float) -> None:
    for name in NAMES:
        frame = next(some_frames(name, 1))
        whole = Watch(face).see(frame, 0)
        assert whole is not None
        picture = nearer(frame, whole.faces[0].box, share, aspect)
        watch = Watch(face)
        seen = [watch.see(picture, number / 10) for number in range(8)]
        assert all(one is not None and len(one.faces) == 1 for one in seen[1:]), name
        assert watch.tally.faces == 1 and watch.tally.given >= 7


@pytest.mark.parametrize("name", ["brick", "coffee", "coins", "grass", "gravel", "page", "rocket"])
def test_pictures_of_things_have_no_face_near_or_far(face: Loaded, name: str) -> None:
    suffix = "jpg" if name == "rocket" else "png"
    path = installed("scikit-image", f"skimage/data/{name}.{suffix}")
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    side = min(picture.shape[:2])
    for part in (picture, picture[:side, :side], picture[-side // 2 :, -side // 2 :]):
        watch = Watch(face)
        for number in range(12):
            watch.see(np.ascontiguousarray(part), number / 10)
        assert watch.tally.faces == 0


def test_noise_and_plain_colours_have_no_face(face: Loaded) -> None:
    rng = np.random.default_rng(0)
    for blur in (0, 4, 16):
        noise = rng.normal(128, 60, (360, 640, 3)).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), blur) if blur else noise
        noise = (noise - noise.min()) / (noise.max() - noise.min()) * 255
        watch = Watch(face)
        for number in range(12):
            watch.see(noise.astype(np.uint8), number / 10)
        assert watch.tally.faces == 0


def heard(path: Path, voice: Loaded) -> SpeechTally:
    tally = SpeechTally(VOICE.rate_hz)
    activity = VoiceActivity(voice.part, voice.run, VOICE.rate_hz)
    front = SpeechFront(VOICE, activity, tally, Sightings())
    source = open_file(Request(parse(f"file:{path}", SCHEMES), {"voice": VOICE}, lambda: 0))
    for item in source.samples():
        list(front.take(item))
        if isinstance(item, Sample):
            last_ns = item.arrival_ns
    list(front.end(last_ns))
    return tally


@needs_clips
def test_speech_is_heard_where_there_is_some(voice: Loaded) -> None:
    for name in NAMES[:2]:
        assert heard(CLIPS / f"{name}.mp4", voice).given == 0
    tally = heard(CLIPS / f"{NAMES[2]}.mp4", voice)
    assert 1.2 < tally.given / tally.rate_hz < 2.4 < tally.heard / tally.rate_hz


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.05])
def test_silence_and_noise_are_no_speech(voice: Loaded, level: float) -> None:
    rng = np.random.default_rng(0)
    activity = VoiceActivity(voice.part, voice.run, VOICE.rate_hz)
    chances = [
        activity.probability((level * rng.normal(size=activity.step)).astype(np.float32))
        for _ in range(300)
    ]
    assert max(chances) < 0.5


@pytest.mark.parametrize(
    ("codec", "rate_hz", "channels"),
    [("pcm_u8", 96_000, 2), ("pcm_s16le", 8000, 1), ("pcm_f32le", 44_100, 2), ("flac", 96_000, 1)],
)
def test_any_kind_of_sound_is_listened_to(
    voice: Loaded, tmp_path: Path, codec: str, rate_hz: int, channels: int
) -> None:
    path = tmp_path / ("a.flac" if codec == "flac" else "a.wav")
    write_clip(path, 2, video=None, audio=codec, rate_hz=rate_hz, channels=channels)
    tally = heard(path, voice)
    assert tally.heard / tally.rate_hz == pytest.approx(2, abs=0.05)  # a resampler keeps the end
    assert tally.given == 0  # it beeps
