"""Reading takes: made-up voices and action units, and files that are not what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.replay.ravdess import (
    RATE_HZ,
    read_action_units,
    read_ravdess,
    read_voice,
)
from fusedge.models.emotion.labels import VOICE_LABELS
from fusedge.models.emotion.takes import FOLDS, take_of

av = pytest.importorskip("av")

NAMES = ("01-01-01-01-01", "05-02-02-01-02")  # emotion, intensity, statement, repetition, actor


def write_voice(path: Path, rate_hz: int = RATE_HZ, layout: str = "mono") -> np.ndarray[Any, Any]:
    """A second of noise as FLAC; what was written, int16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = 1 if layout == "mono" else 2
    samples = np.random.default_rng(5).integers(-9000, 9000, (1, rate_hz * channels), np.int16)
    with av.open(path, "w", format="flac") as file:
        stream = file.add_stream("flac", rate=rate_hz)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(samples, "s16", layout)
        frame.sample_rate = rate_hz
        file.mux([*stream.encode(frame), *stream.encode(None)])
    return samples[0]


def voice(folder: Path, name: str) -> Path:
    return folder / "ravdess-voice" / f"Actor_{name[-2:]}" / f"03-01-{name}.flac"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        write_voice(voice(tmp_path, name))
    write_units(tmp_path)
    return tmp_path


def write_units(folder: Path, **changed: Any) -> Path:
    """Action units in another order than the voices."""
    path = folder / "ravdess-au" / "ravdess_au.npz"
    path.parent.mkdir(exist_ok=True, parents=True)
    units = np.arange(2 * 35, dtype=np.float32).reshape(2, 35)
    arrays = {"clip": np.array([f"01-01-{name}" for name in reversed(NAMES)]), "au": units}
    np.savez(path, **{key: value for key, value in (arrays | changed).items() if value is not None})
    return path


def test_voice_and_action_units_are_paired_by_name(folder: Path) -> None:
    first, second = (take_of(*clip) for clip in read_ravdess(folder))
    assert (first.name, second.name) == tuple(f"03-01-{name}" for name in NAMES)
    assert [VOICE_LABELS[take.label] for take in (first, second)] == ["neutral", "angry"]
    assert [(take.actor, take.female) for take in (first, second)] == [(1, False), (2, True)]
    assert first.units[0] == 35 and second.units[0] == 0


def test_sound_is_read_exactly(tmp_path: Path) -> None:
    written = write_voice(tmp_path / "voice.flac")
    wave = read_voice(tmp_path / "voice.flac")
    assert wave.dtype == np.float32
    np.testing.assert_array_equal(wave * 32768, written)


def test_folds_hold_every_actor_once() -> None:
    assert sorted(actor for fold in FOLDS for actor in fold) == list(range(1, 25))


@pytest.mark.parametrize(
    ("rate_hz", "layout", "message"),
    [
        (RATE_HZ, "stereo", "2 channels of int16 at 16000 Hz"),
        (48_000, "mono", "1 channels of int16 at 48000 Hz"),
    ],
)
def test_other_sound_is_refused(tmp_path: Path, rate_hz: int, layout: str, message: str) -> None:
    write_voice(tmp_path / "voice.flac", rate_hz, layout)
    with pytest.raises(FusedgeError, match=message):
        read_voice(tmp_path / "voice.flac")


@pytest.mark.parametrize("content", [b"", b"fLaC", b"no sound at all" * 100], ids=len)
def test_what_is_no_flac_is_refused_in_a_line(folder: Path, content: bytes) -> None:
    path = voice(folder, NAMES[0])
    path.write_bytes(content)
    with pytest.raises(FusedgeError, match="cannot be read") as caught:
        read_ravdess(folder)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["09-01-01-01-01", "01-01-01-01-00", "01-01-01-03-01", "01-01-01-01-01-copy"]
)
def test_a_name_that_ravdess_does_not_give_is_refused(folder: Path, name: str) -> None:
    write_voice(voice(folder, name).parent.parent / "Actor_01" / f"03-01-{name}.flac")
    with pytest.raises(FusedgeError, match="is not named"):
        read_ravdess(folder)


def test_a_take_in_another_actors_folder_is_refused(folder: Path) -> None:
    path = voice(folder, NAMES[0])
    (folder / "ravdess-voice" / "Actor_09").mkdir()
    path.rename(folder / "ravdess-voice" / "Actor_09" / path.name)
    with pytest.raises(FusedgeError, match="is not named"):
        read_ravdess(folder)


def test_a_take_without_action_units_is_refused(folder: Path) -> None:
    write_voice(voice(folder, "02-01-01-01-01"))
    with pytest.raises(FusedgeError, match="no action units 01-01-02-01-01-01-01"):
        read_ravdess(folder)


def test_no_voices_are_refused(tmp_path: Path) -> None:
    write_units(tmp_path)
    with pytest.raises(FusedgeError, match="holds no voices"):
        read_ravdess(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"au": None}, "cannot be read"),
        ({"clip": None}, "cannot be read"),
        ({"clip": np.array([{}, {}], object)}, "cannot be read"),
        ({"au": np.zeros((2, 34), np.float32)}, "35 finite numbers"),
        ({"au": np.zeros((3, 35), np.float32)}, "35 finite numbers"),
        ({"au": np.full((2, 35), np.nan, np.float32)}, "35 finite numbers"),
        ({"au": np.full((2, 35), "high")}, "35 finite numbers"),
        ({"clip": np.array("one")}, "35 finite numbers"),
    ],
)
def test_wrong_action_units_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(FusedgeError, match=message):
        read_action_units(write_units(tmp_path, **changed))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and then nothing"], ids=repr)
def test_missing_and_torn_action_units_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ravdess_au.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FusedgeError, match="cannot be read"):
        read_action_units(path)
