"""Windows of a modality whose samples have a stamp each: series and images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Sample, size
from fusedge.bundle.window import NANOSECONDS, complete, gather, to_ns
from fusedge.runtime.alignment import alignment
from fusedge.runtime.epoch import EpochTracker
from fusedge.runtime.guard import ValueGuard
from fusedge.runtime.ring import INVALID, USED, WINDOW_REJECTED, SampleRing
from fusedge.runtime.stream import IMAGE_RATE_MARGIN, NEVER_NS, RATE_MARGIN, ModalityStream, Window


def _stamp(sample: Sample) -> str:
    stamp_s, arrival_s = sample.timestamp_ns / NANOSECONDS, sample.arrival_ns / NANOSECONDS
    return f"stamp {stamp_s:.3f} s, arrived at {arrival_s:.3f} s"


class SampleStream(ModalityStream):
    """See ModalityStream. Stamps are judged by an EpochTracker, values by a ValueGuard, and the
    manifest's way to resample says which sample each grid point takes.
    """

    def __init__(self, spec: Modality) -> None:
        super().__init__(spec)
        self._images = spec.kind == "image"
        self._alignment = alignment(spec)
        least, margin = (8, IMAGE_RATE_MARGIN) if self._images else (64, RATE_MARGIN)
        capacity = max(least, round(margin * spec.kept_s * spec.rate_hz))
        self._ring = SampleRing(capacity, None if self._images else len(spec.channels))
        self._item_shape = spec.item_shape
        self._holds = spec.resample == "hold"
        self._dtype = np.dtype(np.uint8 if self._images else np.float32)
        self.epochs = EpochTracker(to_ns(spec.lateness_s))
        self.guard = ValueGuard(spec)
        self._stamp_kind: str | None = None
        self._not_finite_ns = -NEVER_NS  # samples that were captured later are finite

    def __len__(self) -> int:
        return len(self._ring)

    def push(self, sample: Sample) -> None:
        """See ModalityStream."""
        account, data = self.account, sample.data
        if data.shape != self._item_shape or data.dtype != self._dtype:
            account.received += size(sample)
            account.drop("malformed", size(sample))
            return
        account.received += 1
        self._stamp_kind = sample.stamp
        placed = self.epochs.place(sample.timestamp_ns, sample.arrival_ns)
        if isinstance(placed, str):
            account.drop(placed, detail=_stamp(sample))
            return
        time_ns = placed - self.latency_ns
        if not self._await(time_ns, sample.arrival_ns):
            account.drop("late", detail=_stamp(sample))
            return
        guarded = (
            self.guard.check_image(data, time_ns)
            if self._images
            else self.guard.check(data, time_ns)
        )
        if guarded is None:
            account.drop("invalid")
            return
        if guarded is not data:
            self._not_finite_ns = max(self._not_finite_ns, time_ns)
        self.tidy()  # so that it makes no difference to the account when else that is called
        ring = self._ring
        if len(ring) == ring.capacity:
            self._settle(ring.thin(), "overflow")  # the oldest alone would leave no window any
        if not ring.insert(time_ns, guarded):
            account.drop("duplicate", detail=_stamp(sample))

    def _fill(self, end_ns: int) -> Window:
        ring = self._ring
        picked = self._alignment.pick(ring.timestamps_ns, end_ns)
        if len(ring) and np.minimum.reduce(picked) >= 0:
            if self._images:
                ring.status[picked] = USED
                return Window(end_ns, self._stack(picked), self._all_valid, True)
            if self._not_finite_ns < end_ns + self._alignment.first_ns - self._alignment.reach_ns:
                ring.status[picked] = USED
                return Window(end_ns, ring.values[picked][None], self._all_valid, True)
        return self._fill_in_part(end_ns, picked)

    def _fill_in_part(self, end_ns: int, picked: NDArray[np.int64]) -> Window:
        """A window in which something is missing."""
        if self._images:
            valid = (picked >= 0).astype(np.float32)
            whole = bool(complete(valid[:, None], self.spec.min_valid))
            values = self._stack(picked) if whole else self._no_values
        else:
            values, valid = gather(self._ring.values, picked)
            whole = bool(complete(valid, self.spec.min_valid))
            values = values[None]
        self._mark(picked, valid, whole)
        if not whole:
            return Window(end_ns, self._no_values, self._no_valid, False)
        return Window(end_ns, values, valid[None], True)

    def _stack(self, picked: NDArray[np.int64]) -> NDArray[Any]:
        """The picked images `[1, T, H, W, C]`; a single one is not copied."""
        images = self._ring.values
        if len(picked) == 1:
            image: NDArray[Any] = images[int(picked[0])]
            return image[None, None]
        window = np.zeros_like(self._no_values, np.uint8)
        for place, index in enumerate(picked.tolist()):
            if index >= 0:
                window[0, place] = images[index]
        return window

    def _mark(self, picked: NDArray[np.int64], valid: NDArray[np.float32], whole: bool) -> None:
        taken = picked >= 0
        indices = picked[taken]
        seen = valid[taken] > 0 if valid.ndim == 1 else valid[taken].any(axis=1)
        fates = np.where(seen, USED if whole else WINDOW_REJECTED, INVALID).astype(np.uint8)
        # Statuses are ordered: a sample that some window used stays used.
        np.maximum.at(self._ring.status, indices, fates)

    def _forget(self, next_end_ns: int, pending_reason: str) -> None:
        # Only the newest sample before the next window's first grid point can be taken by it, and
        # that only for as long as the policy reaches back.
        first_ns = next_end_ns + self._alignment.first_ns
        oldest_ns = first_ns - self._alignment.reach_ns
        times = self._ring.timestamps_ns
        if self._holds:
            count = int(times.searchsorted(first_ns, side="right")) - 1
            count += count >= 0 and int(times[count]) < oldest_ns
        else:
            count = int(times.searchsorted(oldest_ns))
        if count > 0:
            self._settle(self._ring.evict(count), pending_reason)

    def clock_report(self) -> dict[str, object]:
        """Epochs: what the source's stamps did against the session's clock."""
        epochs = self.epochs
        return {
            "epoch": epochs.epoch,
            "offset_s": round(epochs.offset_ns / NANOSECONDS, 3),
            "steps": {kind: count for kind, count in epochs.counts.items() if count},
            "stamp": self._stamp_kind,
        }
