"""RAVDESS speech: the voice of each take, and the mean action units of its film.

Voices are FLAC at 16 kHz, named as the data set names them: 03-01-emotion-intensity-statement-repetition-
actor. Action units are those of OpenFace for the film of the same take, named 01-01- and as before.
Source: Livingstone & Russo 2018, PLoS ONE 13(5): e0196391, CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, MissingExtraError

RATE_HZ = 16_000
ACTION_UNITS = 35
_NAME = re.compile(r"03-01-0[1-8]-0[12]-0[12]-0[12]-(?!00)\d\d")
_HINT = "lay the voices into ravdess-voice/Actor_NN/*.flac, the action units into ravdess-au"


class Clip(NamedTuple):
    """One take. `wave` is float32 `[T]` at 16 kHz within [-1, 1]; `units` are float32 `[35]`.

    `name` is the data set's. `units` holds 17 intensities of 0 to 5 and 18 presences, means over the film.
    """

    name: str
    wave: NDArray[np.float32]
    units: NDArray[np.float32]


def read_ravdess(folder: Path) -> list[Clip]:
    """All takes below a folder that holds `ravdess-voice` and `ravdess-au`, in order of their names.

    Raises FusedgeError where a file is missing, damaged, or not what its name says.
    """
    units = read_action_units(folder / "ravdess-au" / "ravdess_au.npz")
    paths = sorted((folder / "ravdess-voice").glob("Actor_*/*.flac"), key=lambda path: path.stem)
    if not paths:
        raise FusedgeError("holds no voices", where=str(folder / "ravdess-voice"), hint=_HINT)
    clips = []
    for path in paths:
        name = path.stem
        if not _NAME.fullmatch(name) or path.parent.name != f"Actor_{name[-2:]}":
            raise FusedgeError("is not named as RAVDESS names a spoken take", where=str(path))
        film = f"01{name[2:]}"
        if film not in units:
            raise FusedgeError(f"has no action units {film}", where=str(path), hint=_HINT)
        clips.append(Clip(name, read_voice(path), units[film]))
    return clips


def read_action_units(path: Path) -> Mapping[str, NDArray[np.float32]]:
    """By the film's name (01-01-...) the action units, float32 `[35]`; raises FusedgeError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            clips, units = arrays["clip"], arrays["au"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise FusedgeError(f"cannot be read: {reason}", where=str(path), hint=_HINT) from None
    if not (
        units.dtype.kind == "f"
        and units.shape == (clips.size, ACTION_UNITS)
        and np.isfinite(units).all()
    ):
        raise FusedgeError(
            f"must hold {ACTION_UNITS} finite numbers for each clip", where=str(path), hint=_HINT
        )
    return dict(zip(map(str, clips.ravel()), units.astype(np.float32), strict=True))


def read_voice(path: Path) -> NDArray[np.float32]:
    """The sound of a mono file at 16 kHz, float32 `[T]`; raises FusedgeError."""
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "camera", "reading FLAC") from None
    pieces: list[NDArray[Any]] = []
    try:
        with av.open(path) as file:
            (stream,) = file.streams.audio
            rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
            pieces += [frame.to_ndarray().ravel() for frame in file.decode(stream)]
    except (av.FFmpegError, OSError) as error:
        raise FusedgeError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError:
        raise FusedgeError("cannot be read: holds no sound", where=str(path)) from None
    if not pieces:
        raise FusedgeError("cannot be read: holds no samples", where=str(path))
    wave = np.concatenate(pieces)
    if (rate, channels) != (RATE_HZ, 1) or wave.dtype != np.int16:
        raise FusedgeError(
            f"has {channels} channels of {wave.dtype} at {rate} Hz, not 1 of int16 at {RATE_HZ}",
            where=str(path),
        )
    return np.asarray(wave / 32768, np.float32)
