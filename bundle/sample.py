"""What flows into a pipeline: samples with a capture time, rejections, and whole recordings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

StampKind = Literal["capture", "arrival"]


class Sample(NamedTuple):
    """One measurement of one modality.

    `timestamp_ns` is when it was measured, `arrival_ns` when the software could first see it, both on
    the clock of the session. `stamp` says whether `timestamp_ns` came from the device (`capture`) or
    had to be taken on `arrival`. `data` is not written to by anyone after; it is

    - of a series float32 `[channels]`, where NaN marks a channel that was not measured;
    - of an image uint8 `[height, width, channels]`;
    - of audio float32 `[samples, channels]`, a block that follows the one before without a gap;
      the stamp is that of the block's last sample.
    """

    modality: str
    timestamp_ns: int
    arrival_ns: int
    data: NDArray[Any]
    stamp: StampKind = "capture"


class Rejection(NamedTuple):
    """Input that a source received but could not turn into a sample; the ledger counts it by reason.

    It stands for `samples` samples of the modality's account.
    """

    modality: str
    arrival_ns: int
    reason: str
    detail: str
    samples: int = 1


def data_bytes(item: object) -> int:
    """The memory that a sample's data takes; of anything else 0."""
    return item.data.nbytes if isinstance(item, Sample) else 0


def size(item: Sample | Rejection) -> int:
    """How many samples of the account an item is, at least one: a block of sound has many."""
    if isinstance(item, Rejection):
        return item.samples
    return max(1, len(item.data)) if item.data.ndim == 2 else 1


@dataclass(frozen=True)
class Series:
    """All samples of one modality in capture order: `timestamps_ns` int64 `[N]`, `values` float32 `[N, C]`.

    NaN marks a channel that was not measured.
    """

    timestamps_ns: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """A labelled trip, clip or session as arrays, for training and evaluation.

    `group` is what a split must not divide (driver, speaker, trip) and `condition` a second axis
    that a protocol may hold out (road type). `reference_events` are human- or rule-made
    `(kind, level, time_s)` rows where the data set has them.
    """

    name: str
    label: str
    group: str
    condition: str
    series: Mapping[str, Series]
    reference_events: tuple[tuple[str, int, float], ...] = ()
