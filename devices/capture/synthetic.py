"""Plausible samples for any bundle, as cheap as they can be made, with a known truth: for soak tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, repeat
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import NANOSECONDS, to_ns

CAMERA_HZ = 30.0
BLOCK_S = 0.02
DRIFT_PPM = 300.0  # the worst of sound cards in use
STEP_S = 0.05
JITTER_S = 0.02
_CHUNK_S = 10.0  # made at a time
_FRAMES, _ROWS, _BLOCKS = 16, 4093, 61  # different ones of each, used in turn
_JITTERS = 8191


class SyntheticSource:
    """A device for each of `specs`, from time 0 to `duration_s`; the same items for the same `seed`.

    - A camera gives 30 frames a second, or as many as its grid has if that is more.
    - A series comes at the rate of its grid, as noise in the middle of each channel's range.
    - Sound comes in blocks of 20 ms that are stamped on arrival, from a card that is fast by
      `drift_ppm`. It loses 50 ms of sound at `step_s`: after an eighth of the duration, or an hour.

    Samples arrive in order, late by up to 20 ms where the modality's lateness allows it.
    `sound_ns` tells the truth about the sound card's clock.
    """

    live = False
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        uri: str,
        specs: Sequence[Modality],
        duration_s: float,
        *,
        seed: int = 0,
        drift_ppm: float = DRIFT_PPM,
    ) -> None:
        self.uri = uri
        self.modalities = tuple(spec.name for spec in specs)
        self.channels: Mapping[str, tuple[str, ...]] = {
            spec.name: tuple(channel.name for channel in spec.channels) for spec in specs
        }
        self.units: Mapping[str, tuple[str, ...]] = {
            spec.name: tuple(channel.unit for channel in spec.channels)
            for spec in specs
            if spec.kind == "series"
        }
        self.duration_s = duration_s
        self.step_s = min(3600.0, duration_s / 8)
        random = np.random.default_rng(seed)
        self._devices = {spec.name: _Device(spec, random, drift_ppm, self.step_s) for spec in specs}
        self._closed = False

    def samples(self) -> Iterator[Sample]:
        """See Source."""
        coming: list[Sample] = []
        by_arrival = attrgetter("arrival_ns")
        end_s = 0.0
        while end_s < self.duration_s and not self._closed:
            end_s = min(end_s + _CHUNK_S, self.duration_s)
            for device in self._devices.values():
                coming += device.until(end_s)
            coming.sort(key=by_arrival)
            end_ns = to_ns(end_s)
            ready = [item for item in coming if item.arrival_ns < end_ns]
            del coming[: len(ready)]
            yield from ready

    def sound_ns(self, modality: str, count: int) -> int:
        """When the sample of sound before which `count` had come was captured."""
        return int(self._devices[modality].times_ns(np.array([count]))[0])

    def close(self) -> None:
        """End within the next ten seconds of samples."""
        self._closed = True


class _Device:
    """A camera, a sensor or a sound card: items of `block` samples, of which `hz` come in a second."""

    def __init__(
        self, spec: Modality, random: np.random.Generator, drift_ppm: float, step_s: float
    ) -> None:
        self._name = spec.name
        self._block = 1
        self._stamp = "capture"
        self._step_count: float = math.inf
        pool: list[NDArray[Any]]
        if spec.kind == "image":
            self._hz = max(CAMERA_HZ, spec.rate_hz)
            pool = list(random.integers(0, 256, (_FRAMES, *spec.item_shape), np.uint8))
        elif spec.kind == "series":
            self._hz = spec.rate_hz
            pool = list(_noise(spec, random, _ROWS))
        else:
            self._hz = spec.rate_hz * (1 + drift_ppm / 1e6)
            self._block = max(1, round(BLOCK_S * spec.rate_hz))
            self._stamp = "arrival"
            self._step_count = step_s * self._hz
            noise = _noise(spec, random, _BLOCKS * self._block)
            pool = list(noise.reshape(_BLOCKS, self._block, -1))
        self._data = cycle(pool)
        longest_ns = to_ns(min(JITTER_S, 0.4 * spec.lateness_s))
        self._jitter_ns = random.integers(0, longest_ns + 1, _JITTERS)
        self._latency_ns = to_ns(spec.latency_s)
        self._made = 0
        self._arrived_ns = 0

    def times_ns(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """When the samples before which `counts` had come were captured."""
        times_ns: NDArray[np.int64] = np.rint(counts * (NANOSECONDS / self._hz)).astype(np.int64)
        times_ns[counts > self._step_count] += to_ns(STEP_S)
        return times_ns

    def until(self, end_s: float) -> Iterator[Sample]:
        """The items that are captured next, up to `end_s`."""
        most = int(end_s * self._hz / self._block) + 2
        items = np.arange(self._made, most)
        times_ns = self.times_ns((items + 1) * self._block)
        stamps = times_ns[times_ns <= to_ns(end_s)] + self._latency_ns
        items = items[: len(stamps)]
        arrivals = np.maximum.accumulate(stamps + self._jitter_ns[items % _JITTERS])
        arrivals = np.maximum(arrivals, self._arrived_ns)
        if len(items):
            self._made, self._arrived_ns = int(items[-1]) + 1, int(arrivals[-1])
        if self._stamp == "arrival":
            stamps = arrivals
        return map(
            Sample._make,
            zip(
                repeat(self._name),
                stamps.tolist(),
                arrivals.tolist(),
                self._data,
                repeat(self._stamp),
                strict=False,
            ),
        )


def _noise(spec: Modality, random: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Within the middle fifth of each channel's range, float32 `[count, channels]`."""
    low = np.array([channel.minimum for channel in spec.channels])
    high = np.array([channel.maximum for channel in spec.channels])
    share = random.uniform(0.4, 0.6, (count, len(spec.channels)))
    values: NDArray[np.float32] = (low + share * (high - low)).astype(np.float32)
    return values
