"""Sound of one rate turned into sound of another, block by block, and where the outcome lies in time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, MissingExtraError

MAX_RATIO = 100  # beyond it soxr holds back seconds of sound, and then all of it


class Resampler:
    """Contract: blocks float32 `[N, channels]` in, blocks float32 `[M, channels]` out, without a gap
    between them, however they are cut. `M` may be 0: sound is held back until there is enough to filter
    (7 to 40 ms at the usual rates, 115 ms from 8 kHz up). What the new rate cannot carry is filtered out.

    `lag_s` says, after each block, how far the end of what has come out lies before the end of what has
    gone in; it is counted, so it neither drifts nor jitters. Equal rates pass through without delay.
    Raises FusedgeError for rates that are too far apart.
    """

    def __init__(self, rate_in_hz: float, rate_out_hz: float, channels: int) -> None:
        self._rate_in_hz, self._rate_out_hz = rate_in_hz, rate_out_hz
        self._in = self._out = 0
        self._stream: Any = None
        if rate_in_hz != rate_out_hz:
            try:
                import soxr
            except ImportError:
                raise MissingExtraError("soxr", "mic", "sound at another rate") from None
            if not 1 / MAX_RATIO <= rate_out_hz / rate_in_hz <= MAX_RATIO:
                raise FusedgeError(f"{rate_in_hz:g} Hz cannot be resampled to {rate_out_hz:g} Hz")
            self._stream = soxr.ResampleStream(
                rate_in_hz, rate_out_hz, channels, dtype="float32", quality="HQ"
            )

    def process(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sound that comes out once `block` has gone in."""
        if self._stream is None:
            return block
        resampled: NDArray[np.float32] = self._stream.resample_chunk(block)
        self._in += len(block)
        self._out += len(resampled)
        return resampled

    @property
    def lag_s(self) -> float:
        """See above; after a block that gave sound, it is that sound's."""
        return self._in / self._rate_in_hz - self._out / self._rate_out_hz
