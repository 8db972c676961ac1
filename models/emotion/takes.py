"""Spoken takes of RAVDESS: voice and mean action units, and the folds in which their actors are held out.

Voices are FLAC, named as the data set names them: 03-01-emotion-intensity-statement-repetition-actor.
Action units are those of OpenFace for the film of the same take, named 01-01- and as before.
Source: Livingstone & Russo 2018, PLoS ONE 13(5): e0196391, CC BY-NC-SA 4.0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.models.emotion.labels import RAVDESS, VOICE_LABELS
from fusedge.models.emotion.npz import read_arrays

RATE_HZ = 16_000
# 17 intensities of 0 to 5, 18 presences of 0 or 1 (OpenFace 2.0, Baltrusaitis et al. 2018).
ACTION_UNITS = 35
_MOST_UNIT = 5
# RAVDESS has 2.9 to 5.3 s; training needs the last 8 hops of 0.1 s of each.
LEAST_S, MOST_S = 0.8, 30.0
FOLDS: tuple[tuple[int, ...], ...] = (
    (2, 5, 14, 15, 16),
    (3, 6, 7, 13, 18),
    (10, 11, 12, 19, 20),
    (8, 17, 21, 23, 24),
    (1, 4, 9, 22),
)
"""Actors of each of the five folds of Luna-Jimenez et al. 2021, Sensors 21:7665."""
# Numbers of two digits in a name: voice alone (03) and speech (01), then what varies.
_NAME = {
    "modality": (3, 3),
    "channel": (1, 1),
    "emotion": (1, len(RAVDESS)),
    "intensity": (1, 2),
    "statement": (1, 2),
    "repetition": (1, 2),
    "actor": (1, sum(map(len, FOLDS))),
}
_HINT = "lay the voices into ravdess-voice/Actor_NN/*.flac, the action units into ravdess-au"
ReadSound = Callable[[Path, int], NDArray[np.float32]]
"""The sound of a file that is at a rate in Hz, float32 `[T]`; raises FusedgeError."""


@dataclass(frozen=True)
class Take:
    """One clip. `wave` is float32 `[T]` at 16 kHz within [-1, 1]; `units` are float32 `[35]`.

    `label` is the place in `VOICE_LABELS`. `units` are the means of the film's action units.
    """

    name: str
    label: int
    actor: int
    wave: NDArray[np.float32]
    units: NDArray[np.float32]

    @property
    def female(self) -> bool:
        """Actors of even number are women."""
        return self.actor % 2 == 0


def fold_of(actor: int) -> int:
    """The number of the fold that the actor is in."""
    return next(number for number, actors in enumerate(FOLDS) if actor in actors)


def refuse_few_groups(groups: Collection[int], least: int, where: str = "") -> None:
    """Raise FusedgeError where there are fewer than `least` groups of actors, which are folds."""
    count = len(set(groups))
    if count < least:
        folds = ", ".join("/".join(map(str, fold)) for fold in FOLDS)
        raise FusedgeError(
            f"takes of {count} groups of actors are too few, {least} are needed",
            where=where,
            hint=f"give takes of actors of {least} of these groups: {folds}",
        )


def read_takes(folder: Path, read_sound: ReadSound, groups: int) -> list[Take]:
    """All takes below a folder that holds `ravdess-voice` and `ravdess-au`, in order of their names.

    Actors of at least so many `groups` (folds) and every emotion have to be among them. Raises FusedgeError
    where they are not, and where a file is missing, damaged, or not what its name says.
    """
    voices = folder / "ravdess-voice"
    # macOS puts a file ._NAME beside each one on a disk of another system.
    paths = [path for path in voices.glob("Actor_*/*.flac") if not path.name.startswith(".")]
    paths.sort(key=lambda path: path.stem)
    if not paths:
        raise FusedgeError("holds no voices", where=str(voices), hint=_HINT)
    units = read_action_units(folder / "ravdess-au" / "ravdess_au.npz")
    numbers = [_numbers(path) for path in paths]
    for path in paths:
        if _film(path) not in units:
            raise FusedgeError(f"has no action units {_film(path)}", where=str(path), hint=_HINT)
    refuse_few_groups([fold_of(of_name["actor"]) for of_name in numbers], groups, str(voices))
    labels = [
        VOICE_LABELS.index(tuple(RAVDESS.values())[of_name["emotion"] - 1]) for of_name in numbers
    ]
    lacking = [label for place, label in enumerate(VOICE_LABELS) if place not in labels]
    if lacking:
        raise FusedgeError(
            f"holds no take that is {' and none that is '.join(lacking)}",
            where=str(voices),
            hint="a voice can only learn what it has heard: give takes of every emotion",
        )
    return [
        Take(path.stem, label, of_name["actor"], _wave(path, read_sound), units[_film(path)])
        for path, label, of_name in zip(paths, labels, numbers, strict=True)
    ]


def _film(voice: Path) -> str:
    return f"01{voice.stem[2:]}"


def _numbers(path: Path) -> dict[str, int]:
    """What the name of a voice says, by `_NAME`."""
    found = path.stem.split("-")
    fault = ""
    if len(found) != len(_NAME):
        fault = f"is not named by {len(_NAME)} numbers"
    for (what, (first, last)), number in zip(_NAME.items(), found, strict=False):
        if not fault and number not in {f"{n:02d}" for n in range(first, last + 1)}:
            fault = f"is named with the {what} {number}, not {first:02d}"
            fault += f" to {last:02d}" if last > first else ""
    if not fault and path.parent.name != f"Actor_{found[-1]}":
        fault = f"lies in {path.parent.name}, but is named with the actor {found[-1]}"
    if fault:
        hint = (
            "spoken takes of RAVDESS are Actor_12/03-01-05-01-02-01-12.flac; take away what is none"
        )
        raise FusedgeError(fault, where=str(path), hint=hint)
    return dict(zip(_NAME, map(int, found), strict=True))


def _wave(path: Path, read_sound: ReadSound) -> NDArray[np.float32]:
    wave = read_sound(path, RATE_HZ)
    fault = ""
    if not LEAST_S <= len(wave) / RATE_HZ <= MOST_S:
        fault = f"lasts {len(wave) / RATE_HZ:.2f} s, not {LEAST_S} to {MOST_S} s"
    elif np.ptp(wave) == 0:
        fault = "is silent from beginning to end"
    if fault:
        raise FusedgeError(fault, where=str(path), hint="copy it again, or take it away")
    return wave


def read_action_units(path: Path) -> dict[str, NDArray[np.float32]]:
    """By the film's name (01-01-...) the action units, float32 `[35]`; raises FusedgeError.

    The file has `clip`, text `[N]`, and `au`, floating-point `[N, 35]`, of 0 to 5.
    """
    clips, units = read_arrays(path, ("clip", "au"), _HINT)

    def refuse(fault: str) -> None:
        raise FusedgeError(fault, where=str(path), hint="make it again from OpenFace's means")

    if clips.dtype.kind != "U" or clips.ndim != 1:
        refuse(f"clip must be text [N], not {clips.dtype} {list(clips.shape)}")
    if units.dtype.kind != "f" or units.shape != (len(clips), ACTION_UNITS):
        refuse(
            f"au must be floating-point [{len(clips)}, {ACTION_UNITS}], "
            f"not {units.dtype} {list(units.shape)}"
        )
    for row, unit in np.argwhere(~((units >= 0) & (units <= _MOST_UNIT))):  # NaN as well
        refuse(
            f"row {row} ({clips[row]}): action unit {unit} is {units[row, unit]}, "
            f"not 0 to {_MOST_UNIT}"
        )
    by_clip: dict[str, NDArray[np.float32]] = {}
    for row, (clip, own) in enumerate(zip(clips.tolist(), units.astype(np.float32), strict=True)):
        if clip in by_clip:
            refuse(f"row {row}: {clip} is there twice")
        by_clip[clip] = own
    return by_clip
