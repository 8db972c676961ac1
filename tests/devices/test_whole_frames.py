"""Frames for a front end of faces keep their shape, whatever source they come from."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from fusedge.bundle.manifest import FrontEnd, Modality
from fusedge.bundle.recording import Track
from fusedge.bundle.sample import Sample
from fusedge.devices.capture.address import Request, parse
from fusedge.devices.capture.camera_choice import choose
from fusedge.devices.capture.decoding import Pictures
from fusedge.devices.capture.file import open_file
from fusedge.devices.capture.isolated import IsolatedSource
from fusedge.devices.capture.replay.mcap import RecordingSource
from fusedge.devices.capture.source import SCHEMES
from fusedge.devices.capture.wanted import FRAME_SIZE, given, picture_size
from fusedge.runtime.sinks.recorder import Recorder
from tests.devices.modalities import audio, by_name, image
from tests.devices.test_camera import NOW, WEBCAM, offer
from tests.media_clip import write_clip

FACE = image("face", 48, 48, 10, "g").model_copy(
    update={"front": FrontEnd(kind="largest_face", part="detector")}
)


@examples(height=st.integers(1, 9000), width=st.integers(1, 9000))
def test_a_frame_keeps_its_shape_and_is_never_enlarged(height: int, width: int) -> None:
    rows, columns = picture_size(given(FACE), height, width)
    assert 1 <= rows <= height and 1 <= columns <= width
    assert max(rows, columns) <= max(FRAME_SIZE) and min(rows, columns) <= min(FRAME_SIZE)
    if min(rows, columns) > 20:
        assert rows / columns == pytest.approx(height / width, rel=0.06)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((480, 640), (480, 640)),
        ((720, 1280), (720, 1280)),
        ((1080, 1920), (720, 1280)),
        ((1920, 1080), (1280, 720)),
        ((1200, 1600), (720, 960)),
    ],
)
def test_the_usual_sizes(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert picture_size(given(FACE), *size) == wanted


def test_other_modalities_are_given_as_they_are() -> None:
    for spec in (image("camera", 24, 32), audio("voice")):
        assert given(spec) is spec
    assert picture_size(image("camera", 24, 32), 480, 640) == (24, 32)
    speech = audio("voice").model_copy(update={"front": FrontEnd(kind="speech", part="vad")})
    assert given(speech) is speech


@pytest.mark.parametrize("size", [(96, 160), (1440, 2560), (64, 48)])
def test_a_film_gives_whole_frames_in_colour(size: tuple[int, int], tmp_path: Path) -> None:
    path = write_clip(tmp_path / "film.mp4", 0.4, size=size, audio=None)
    request = Request(parse(f"file:{path}", SCHEMES), by_name(FACE), lambda: 0)
    source = open_file(request)
    assert source.channels == {"face": ("red", "green", "blue")}
    frames = [item for item in source.samples() if isinstance(item, Sample)]
    assert {frame.data.shape for frame in frames} == {(*picture_size(given(FACE), *size), 3)}
    red = frames[0].data[:, : frames[0].data.shape[1] // 5].reshape(-1, 3).mean(axis=0)
    assert red[0] > 150 > 60 > red[1]


def test_a_film_in_a_process_of_its_own_gives_whole_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "film.mp4", 1, size=(720, 1280), audio=None)
    uri = f"file:{path}"
    source = IsolatedSource(uri, parse(uri, SCHEMES), by_name(FACE))
    frames = [item for item in source.samples() if isinstance(item, Sample)]
    source.close()
    assert len(frames) == 25
    assert {frame.data.shape for frame in frames} == {(720, 1280, 3)}


def test_frames_that_change_their_size_or_turn_keep_their_own() -> None:
    pictures = Pictures(given(FACE), lambda shape: np.empty(shape, np.uint8))
    for size in ((96, 160), (48, 64), (1080, 1920), (96, 160)):
        frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 90, np.uint8), format="rgb24")
        assert pictures.image(frame).shape == (*picture_size(given(FACE), *size), 3)


def test_a_camera_is_set_to_hd_or_to_its_most_without_a_word() -> None:
    at_30_hz = given(FACE).model_copy(update={"rate_hz": 30})
    best = choose(parse("camera:0", SCHEMES), WEBCAM, NOW, at_30_hz)
    assert best == ("MJPG", 1280, 720, 30, ())
    small = [offer("YUYV", 640, 480, 30)]
    assert choose(parse("camera:0", SCHEMES), small, NOW, at_30_hz) == ("YUYV", 640, 480, 30, ())


def record(
    path: Path, data: np.ndarray, channels: tuple[str, ...], session: dict[str, object]
) -> None:
    recorder = Recorder(path, {"face": Track(channels, 10)})
    recorder.open(session)
    recorder.write(Sample("face", 5, 5, data))
    recorder.close({})


def replayed(path: Path, spec: Modality) -> tuple[frozenset[str], list[tuple[int, ...]]]:
    source = RecordingSource(parse(f"replay:{path}", SCHEMES), path, by_name(spec))
    return source.prepared, [
        item.data.shape for item in source.samples() if isinstance(item, Sample)
    ]


def test_a_recording_says_whether_its_faces_are_cut_out(tmp_path: Path) -> None:
    crops, frames = tmp_path / "crops.mcap", tmp_path / "frames.mcap"
    record(crops, np.zeros((48, 48, 1), np.uint8), ("g",), {"fronts": {"face": "largest_face"}})
    record(frames, np.zeros((72, 128, 3), np.uint8), ("red", "green", "blue"), {"fronts": "odd"})
    assert replayed(crops, FACE) == ({"face"}, [(48, 48, 1)])
    assert replayed(frames, FACE) == (frozenset(), [(72, 128, 3)])
