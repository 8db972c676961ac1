"""Takes are named and paired as RAVDESS does it; what is strange is refused before anything is heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion.labels import VOICE_LABELS
from fusedge.models.emotion.takes import (
    FOLDS,
    LEAST_S,
    MOST_S,
    RATE_HZ,
    fold_of,
    read_action_units,
    read_takes,
)
from fusedge.models.emotion.training import LAST_HOPS
from fusedge.models.emotion.voice_encoder import HOP

# Every emotion by an actor of the last fold and one of the first.
NAMES = [f"{emotion:02d}-01-02-01-{actor:02d}" for actor in (1, 2) for emotion in range(1, 9)]
WAVE = np.random.default_rng(1).uniform(-1, 1, 2 * RATE_HZ).astype(np.float32)


def sound(path: Path, rate_hz: int) -> NDArray[np.float32]:
    """In the place of what reads a file: another one for each, which the file's content says."""
    assert rate_hz == RATE_HZ
    return np.roll(WAVE, int(path.read_text()))


def not_heard(path: Path, rate_hz: int) -> NDArray[np.float32]:
    raise AssertionError("refuse first")


def add(folder: Path, name: str, actor: str = "") -> Path:
    path = folder / "ravdess-voice" / f"Actor_{actor or name[-2:]}" / f"{name}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(len(list(folder.rglob("*.flac")))))
    return path


def write_units(folder: Path, **changed: Any) -> Path:
    """Action units in another order than the voices."""
    path = folder / "ravdess-au" / "ravdess_au.npz"
    path.parent.mkdir(exist_ok=True, parents=True)
    units = np.linspace(0, 5, len(NAMES) * 35, dtype=np.float64).reshape(-1, 35)
    arrays = {"clip": np.array([f"01-01-{name}" for name in reversed(NAMES)]), "au": units}
    np.savez(path, **{key: value for key, value in (arrays | changed).items() if value is not None})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        add(tmp_path, f"03-01-{name}")
    write_units(tmp_path)
    return tmp_path


def refused(folder: Path, groups: int = 2) -> str:
    with pytest.raises(FusedgeError) as caught:
        read_takes(folder, not_heard, groups)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


def test_voice_and_action_units_are_paired_by_name(folder: Path) -> None:
    takes = read_takes(folder, sound, 2)
    assert [take.name for take in takes] == sorted(f"03-01-{name}" for name in NAMES)
    told = {take.name[6:8]: VOICE_LABELS[take.label] for take in takes}
    assert list(told.items()) == [
        ("01", "neutral"), ("02", "calm"), ("03", "happy"), ("04", "sad"),
        ("05", "angry"), ("06", "fearful"), ("07", "disgust"), ("08", "surprised"),
    ]  # fmt: skip
    by_name = {take.name: take for take in takes}
    first, last = (by_name[f"03-01-{name}"] for name in (NAMES[0], NAMES[-1]))
    assert [(take.actor, take.female) for take in (first, last)] == [(1, False), (2, True)]
    np.testing.assert_array_equal(first.wave, np.roll(WAVE, 0))
    np.testing.assert_array_equal(last.wave, np.roll(WAVE, 15))
    assert last.units[0] == 0 and first.units[-1] == 5 and first.units.dtype == np.float32


def test_files_that_are_hidden_are_none_of_the_data(folder: Path) -> None:
    expected = [take.name for take in read_takes(folder, sound, 2)]
    for name in (f"._03-01-{NAMES[0]}", ".hidden"):
        add(folder, name, NAMES[0][-2:])
    add(folder, "._Actor", "01")
    assert [take.name for take in read_takes(folder, sound, 2)] == expected


def test_folds_hold_every_actor_once() -> None:
    assert sorted(actor for fold in FOLDS for actor in fold) == list(range(1, 25))
    assert [fold_of(actor) for actor in (2, 3, 10, 8, 1)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("02-01-01-01-01-01-01", "modality 02, not 03"),
        ("03-02-01-01-01-01-01", "channel 02, not 01"),
        ("03-01-09-01-01-01-01", "emotion 09, not 01 to 08"),
        ("03-01-00-01-01-01-01", "emotion 00, not 01 to 08"),
        ("03-01-01-03-01-01-01", "intensity 03, not 01 to 02"),
        ("03-01-01-01-03-01-01", "statement 03, not 01 to 02"),
        ("03-01-01-01-01-03-01", "repetition 03, not 01 to 02"),
        ("03-01-01-01-01-01-00", "actor 00, not 01 to 24"),
        ("03-01-01-01-01-01-25", "actor 25, not 01 to 24"),
        ("03-01-01-01-01-01-99", "actor 99, not 01 to 24"),
        ("03-01-01-01-01-01-1", "actor 1, not 01 to 24"),
        ("03-01-1-01-01-01-01", "emotion 1, not 01 to 08"),
        ("03-01-\u0660\u0661-01-01-01-01", "emotion \u0660\u0661, not"),  # 01 in Arabic
        ("03-01-01-01-01-01-01-copy", "is not named by 7 numbers"),
        ("03-01-01-01-01-01", "is not named by 7 numbers"),
        ("angry", "is not named by 7 numbers"),
    ],
)
def test_a_name_that_ravdess_does_not_give_is_refused(folder: Path, name: str, said: str) -> None:
    path = add(folder, name)
    assert said in (line := refused(folder)) and str(path) in line


def test_a_take_in_another_actors_folder_is_refused(folder: Path) -> None:
    add(folder, "03-01-01-01-01-02-01", actor="09")
    assert "lies in Actor_09, but is named with the actor 01" in refused(folder)


def test_a_take_without_action_units_is_refused(folder: Path) -> None:
    add(folder, "03-01-02-01-01-01-01")
    assert "has no action units 01-01-02-01-01-01-01" in refused(folder)


def test_no_voices_are_refused(tmp_path: Path) -> None:
    write_units(tmp_path)
    assert "holds no voices" in refused(tmp_path)


def test_what_does_not_suffice_is_refused(folder: Path) -> None:
    assert "takes of 2 groups of actors are too few, 3 are needed" in refused(folder, groups=3)
    for path in folder.rglob("*-08-*.flac"):
        path.unlink()
    assert "holds no take that is surprised" in refused(folder)
    for path in folder.rglob("*-02.flac"):
        path.unlink()
    assert "takes of 1 groups of actors are too few, 2 are needed" in refused(folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"au": None}, "it has no array au"),
        ({"clip": None}, "it has no array clip"),
        ({"clip": np.array([f"01-01-{NAMES[0]}"] * 16)}, f"row 1: 01-01-{NAMES[0]} is there twice"),
        ({"clip": np.array("one")}, "clip must be text [N], not <U3 []"),
        ({"clip": np.array([["one"]] * 16)}, "clip must be text [N]"),
        ({"clip": np.array([b"one"] * 16)}, "clip must be text [N], not |S3 [16]"),
        ({"au": np.zeros((16, 34), np.float32)}, "au must be floating-point [16, 35]"),
        ({"au": np.zeros((17, 35), np.float32)}, "au must be floating-point [16, 35]"),
        ({"au": np.zeros(35, np.float32)}, "au must be floating-point [16, 35]"),
        ({"au": np.float32(1)}, "au must be floating-point [16, 35]"),
        ({"au": np.full((16, 35), "high")}, "au must be floating-point [16, 35]"),
        ({"au": np.zeros((16, 35), np.complex64)}, "au must be floating-point [16, 35]"),
        *(
            ({"au": np.where(np.eye(16, 35, k=4), wrong, 1.0)},
             f"row 0 (01-01-{NAMES[-1]}): action unit 4 is {wrong}, not 0 to 5")
            for wrong in (np.nan, np.inf, -0.5, 5.5, 1e300)
        ),
    ],
)  # fmt: skip
def test_wrong_action_units_are_refused(folder: Path, changed: dict[str, Any], said: str) -> None:
    path = write_units(folder, **changed)
    with pytest.raises(FusedgeError) as caught:
        read_action_units(path)
    assert said in str(caught.value) and str(path) in str(caught.value)
    assert refused(folder) == str(caught.value)


@pytest.mark.parametrize(
    ("wave", "said"),
    [
        (WAVE[: round(LEAST_S * RATE_HZ) - 1], "lasts 0.80 s, not 0.8 to 30.0 s"),
        (WAVE[:0], "lasts 0.00 s"),
        (np.resize(WAVE, round(MOST_S * RATE_HZ) + 9000), "lasts 30.56 s"),
        (np.zeros_like(WAVE), "is silent"),
        (np.full_like(WAVE, -0.2), "is silent"),
    ],
)
def test_a_voice_that_is_no_take_is_refused(
    folder: Path, wave: NDArray[np.float32], said: str
) -> None:
    with pytest.raises(FusedgeError, match=said) as caught:
        read_takes(folder, lambda path, rate_hz: wave, 2)
    assert f"03-01-{NAMES[0]}.flac" in str(caught.value)


def test_the_shortest_take_has_as_many_hops_as_the_head_is_shown() -> None:
    assert round(LEAST_S * RATE_HZ) == LAST_HOPS * HOP
