"""Recordings as tensors on the windows' grid, cut by the rules of the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Recording
from fusedge.bundle.window import NANOSECONDS, complete, grid_ns, hold, mask_implausible, to_ns

TICK_S = 1


@dataclass(frozen=True)
class Track:
    """All windows of one modality, side by side: `window` and `valid` float32 `[hops * n, C]`.

    `newest[t]` is the hop whose embedding the head takes at tick t, -1 where the modality is
    missing, and `age[t]` its age in seconds.
    """

    window: Tensor
    valid: Tensor
    newest: NDArray[np.int64]
    age: NDArray[np.float32]


@dataclass(frozen=True)
class Drive:
    """A recording on the grid. `ticks` are the times of decisions in s since its first sample.

    `hidden` marks decisions that training must not learn from; none where it is None.
    """

    name: str
    label: int
    group: str
    condition: str
    tracks: Mapping[str, Track]
    ticks: NDArray[np.float64]
    hidden: NDArray[np.bool_] | None = None


def make_drive(
    recording: Recording, modalities: Sequence[Modality], labels: Sequence[str]
) -> Drive:
    """Cut the windows of a recording and say which of them each tick rests on.

    Raises FusedgeError where it holds no samples.
    """
    stamps = {m.name: recording.series[m.name].timestamps_ns for m in modalities}
    measured = [times for times in stamps.values() if len(times)]
    if not measured:
        raise FusedgeError("nothing was measured", where=recording.name)
    first_ns = min(int(times[0]) for times in measured)
    last_ns = max(int(times[-1]) for times in measured)
    tick_ns = TICK_S * NANOSECONDS
    # One tick of margin before: a latency moves samples back in time.
    start_ns = (first_ns // tick_ns - 1) * tick_ns
    start_ns -= max(to_ns(m.latency_s) for m in modalities) // tick_ns * tick_ns
    tick_times = np.arange(start_ns + tick_ns, last_ns + 1, tick_ns, dtype=np.int64)
    tracks = {m.name: _make_track(recording, m, start_ns, tick_times) for m in modalities}
    return Drive(
        recording.name,
        list(labels).index(recording.label),
        recording.group,
        recording.condition,
        tracks,
        (tick_times - first_ns) / NANOSECONDS,
    )


def _make_track(
    recording: Recording, modality: Modality, start_ns: int, tick_times: NDArray[np.int64]
) -> Track:
    series = recording.series[modality.name]
    hop_ns, size = to_ns(modality.hop_s), modality.window_samples
    # As in the runtime, windows end at whole multiples of the hop.
    ends = np.arange(start_ns // hop_ns + 1, tick_times[-1] // hop_ns + 1, dtype=np.int64) * hop_ns
    minimum = np.array([c.minimum for c in modality.channels], np.float32)
    maximum = np.array([c.maximum for c in modality.channels], np.float32)
    window, valid, _ = hold(
        series.timestamps_ns - to_ns(modality.latency_s),
        mask_implausible(series.values, minimum, maximum),
        (ends[:, None] + grid_ns(0, size, modality.rate_hz)).ravel(),
        to_ns(modality.max_hold_s),
    )
    usable = complete(valid.reshape(len(ends), size, -1), modality.min_valid)
    kept = np.repeat(usable, size)[:, None].astype(np.float32)
    newest, age = _newest(ends, usable, modality, tick_times)
    return Track(torch.from_numpy(window * kept), torch.from_numpy(valid * kept), newest, age)


def _newest(
    ends: NDArray[np.int64],
    usable: NDArray[np.bool_],
    modality: Modality,
    tick_times: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The newest usable window that is due at each tick, and its age."""
    delay_ns = to_ns(modality.latency_s) + to_ns(modality.lateness_s)
    newest_usable = np.maximum.accumulate(np.where(usable, np.arange(len(ends)), -1))
    due = ends.searchsorted(tick_times - delay_ns, side="right") - 1
    newest = np.where(due >= 0, newest_usable[np.maximum(due, 0)], -1)
    age = (tick_times - ends[np.maximum(newest, 0)]) / NANOSECONDS
    newest[age > modality.max_age_s] = -1
    return newest.astype(np.int64), np.where(newest >= 0, age, 0).astype(np.float32)
