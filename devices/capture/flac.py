"""The sound of a FLAC file, or no sound at all: what is decoded is compared with what its header says.

FFmpeg leaves out what it cannot decode, and goes on: a damaged file would only be shorter. STREAMINFO has
the number of samples and their MD5 (RFC 9639, 8.2).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.regular_file import is_special

_BITS = 16
_HEADER = 34  # bytes of STREAMINFO
_HINT = "copy it again from where it is whole"


def read_flac(path: Path, rate_hz: int) -> NDArray[np.float32]:
    """The sound of a mono file of 16 bits at that rate, float32 `[T]` within [-1, 1].

    Raises FusedgeError where the file is missing, damaged, of another kind or does not tell its length;
    MissingExtraError.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "camera", "reading FLAC") from None
    pieces: list[NDArray[Any]] = []
    try:
        if is_special(path):  # FFmpeg would wait for a pipe
            raise FusedgeError("cannot be read: it is no regular file", where=str(path), hint=_HINT)
        # The format is given: FFmpeg would open a playlist, and with it other files, by whatever name.
        with av.open(path, format="flac", metadata_errors="replace") as file:
            (stream,) = file.streams.audio
            header = bytes(stream.codec_context.extradata or b"")
            if len(header) < _HEADER:
                raise FusedgeError(
                    "cannot be read: it has no header of FLAC", where=str(path), hint=_HINT
                )
            facts = int.from_bytes(header[10:18], "big")
            found = (facts >> 44, (facts >> 41 & 7) + 1, (facts >> 36 & 31) + 1)
            if found != (rate_hz, 1, _BITS):
                raise FusedgeError(
                    "is at {} Hz with {} channels of {} bits".format(*found)
                    + f", not at {rate_hz} Hz with 1 channel of {_BITS}",
                    where=str(path),
                    hint=f"convert it: ffmpeg -i … -ar {rate_hz} -ac 1 -sample_fmt s16",
                )
            count = facts & ((1 << 36) - 1)
            if not count:
                raise FusedgeError(
                    "has a header that does not tell its length, as of what was written into a pipe: "
                    "whether it is whole cannot be known",
                    where=str(path),
                    hint="encode it again, to a file: ffmpeg -i … whole.flac",
                )
            pieces += [frame.to_ndarray().ravel() for frame in file.decode(stream)]
    except (av.FFmpegError, OSError) as error:
        raise FusedgeError(
            f"cannot be read: {error.strerror}", where=str(path), hint=_HINT
        ) from None
    wave = np.concatenate([np.zeros(0, np.int16), *pieces])
    if len(wave) != count:
        raise FusedgeError(
            f"is damaged: {len(wave)} of the {count} samples that its header tells of can be decoded",
            where=str(path),
            hint=_HINT,
        )
    digest = header[18:_HEADER]
    if any(digest) and hashlib.md5(wave.tobytes(), usedforsecurity=False).digest() != digest:
        raise FusedgeError(
            "is damaged: its sound is not what its header has the MD5 of",
            where=str(path),
            hint=_HINT,
        )
    return np.asarray(wave / 32768, np.float32)
