"""Cuts the samples of one modality into windows by capture time, and keeps their account."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import NANOSECONDS, complete, grid_ns, hold, mask_implausible, to_ns
from fusedge.runtime.ledger import Account
from fusedge.runtime.ring import INVALID, PENDING, USED, WINDOW_REJECTED, SampleRing

FUTURE_TOLERANCE_NS = to_ns(0.05)  # the stamp resolution of the recordings is 10 ms
# A source may deliver faster than the grid (a 25 Hz camera on a 10 Hz grid); beyond this the oldest go.
RATE_MARGIN = 8


class Window(NamedTuple):
    """What an encoder takes: float32 `[1, T, C]` twice, and the capture time at which it ends.

    An incomplete window is all zeros and invalid, so that an encoder's memory keeps its time.
    """

    end_ns: int
    values: NDArray[np.float32]
    valid: NDArray[np.float32]
    complete: bool


def _stamp(sample: Sample) -> str:
    stamp_s, arrival_s = sample.timestamp_ns / NANOSECONDS, sample.arrival_ns / NANOSECONDS
    return f"stamp {stamp_s:.3f} s, arrived at {arrival_s:.3f} s"


class ModalityStream:
    """Contract: the window that ends at `e`, a whole multiple of the hop, is cut when the clock passes
    `e + latency + lateness`. It then holds exactly the samples with a capture time up to `e`
    that have arrived, whatever their order of arrival. A sample that arrives after its window was
    due is `late`, also where nothing came before it, so that no stamp makes work in the past.

    Every sample ends in exactly one place of `account`:

    - `used`: some encoded window holds it;
    - `superseded`: a newer sample took its place on the grid, or no grid point came in `max_hold_s`;
    - `incomplete_window`: its window had too few valid grid points to be encoded;
    - `invalid`: no channel was finite and within its range;
    - `malformed`: it has not the channels of the modality;
    - `late`, `duplicate`, `future`: refused by its stamp;
    - `overload`: its window was skipped; `overflow`: the buffer was full.

    A delay is made up for window by window, so that an encoder's memory survives it. Once a window
    is older than `max_age_s` when its turn comes, it and all older than the newest due one are
    skipped: to skip one at a time would leave every window at the edge of its age.
    """

    def __init__(self, spec: Modality) -> None:
        self.spec = spec
        self.hop_ns = to_ns(spec.hop_s)
        self._hold_ns = to_ns(spec.max_hold_s)
        self.latency_ns = to_ns(spec.latency_s)
        self.delay_ns = self.latency_ns + to_ns(spec.lateness_s)
        self.max_age_ns = to_ns(spec.max_age_s)
        self._grid = grid_ns(0, spec.window_samples, spec.rate_hz)
        self._minimum = np.array([c.minimum for c in spec.channels], np.float32)
        self._maximum = np.array([c.maximum for c in spec.channels], np.float32)
        span_s = spec.window_s + spec.latency_s + spec.lateness_s + spec.max_age_s + spec.max_hold_s
        capacity = max(64, round(RATE_MARGIN * span_s * spec.rate_hz))
        self._ring = SampleRing(capacity, len(spec.channels))
        self._empty = np.zeros((1, spec.window_samples, len(spec.channels)), np.float32)
        self._cut_any = False
        self._resume_ns = -(1 << 63)  # windows that end before it are skipped
        self.account = Account(lambda: len(self._ring))
        self.implausible = dict.fromkeys((c.name for c in spec.channels), 0)
        self.next_end_ns: int | None = None

    @property
    def next_due_ns(self) -> int | None:
        """When the next window must be cut; None before the first sample."""
        return None if self.next_end_ns is None else self.next_end_ns + self.delay_ns

    def push(self, sample: Sample) -> None:
        """Take one sample; its capture time is its stamp less the known latency."""
        account = self.account
        account.received += 1
        time_ns = sample.timestamp_ns - self.latency_ns
        if sample.timestamp_ns > sample.arrival_ns + FUTURE_TOLERANCE_NS:
            account.drop("future", detail=_stamp(sample))
            return
        if sample.data.shape != self._minimum.shape:
            account.drop("malformed")
            return
        end_ns = -(-time_ns // self.hop_ns) * self.hop_ns
        passed = self.next_end_ns is not None and self._cut_any and end_ns < self.next_end_ns
        if passed or end_ns + self.delay_ns < sample.arrival_ns:
            account.drop("late", detail=_stamp(sample))
            return
        if self.next_end_ns is None or end_ns < self.next_end_ns:
            self.next_end_ns = end_ns  # the first samples may arrive out of order too
        if len(self._ring) == self._ring.capacity:
            self._settle(1, "overflow")
        if not self._ring.insert(time_ns, self._guard(sample.data)):
            account.drop("duplicate", detail=_stamp(sample))

    def _guard(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """The data with what is outside its channel's range made NaN, and counted."""
        guarded = mask_implausible(data, self._minimum, self._maximum)
        outside = np.isnan(guarded) & ~np.isnan(data)
        if outside.any():
            for index in np.flatnonzero(outside):
                self.implausible[self.spec.channels[index].name] += 1
        return guarded

    def cut(self, now_ns: int) -> Window | None:
        """Cut the next window; None where it is skipped."""
        assert self.next_end_ns is not None, "nothing is due before the first sample"
        end_ns = self.next_end_ns
        self.next_end_ns, self._cut_any = end_ns + self.hop_ns, True
        grid = self._grid + end_ns
        ring = self._ring
        window: Window | None = None
        reason = "superseded"
        too_old = now_ns - end_ns > self.max_age_ns
        if too_old:
            self._resume_ns = (now_ns - self.delay_ns) // self.hop_ns * self.hop_ns
        if too_old or end_ns < self._resume_ns:
            reason = "overload"
        else:
            values, valid, picked = hold(ring.timestamps_ns, ring.values, grid, self._hold_ns)
            whole = bool(complete(valid, self.spec.min_valid))
            self._mark(picked, valid, whole)
            window = (
                Window(end_ns, values[None], valid[None], True)
                if whole
                else Window(end_ns, self._empty, self._empty, False)
            )
        # Only the newest sample before the next window's first grid point can be held into it, and
        # that only for `max_hold_s`.
        first_ns = int(grid[0]) + self.hop_ns
        times = ring.timestamps_ns
        passed = int(times.searchsorted(first_ns, side="right")) - 1
        expired = int(times.searchsorted(first_ns - self._hold_ns))
        self._settle(max(passed, expired), reason)
        return window

    def _mark(self, picked: NDArray[np.int64], valid: NDArray[np.float32], whole: bool) -> None:
        taken = picked >= 0
        indices = picked[taken]
        seen = valid[taken].any(axis=1)
        status = self._ring.status
        fates = np.where(seen, USED if whole else WINDOW_REJECTED, INVALID).astype(np.uint8)
        # Statuses are ordered: a sample that some window used stays used.
        np.maximum.at(status, indices, fates)

    def _settle(self, count: int, pending_reason: str) -> None:
        """Evict the `count` oldest samples into the account."""
        if not count:
            return
        fates = np.bincount(self._ring.evict(count), minlength=4)
        self.account.used += int(fates[USED])
        self.account.drop(pending_reason, int(fates[PENDING]))
        self.account.drop("incomplete_window", int(fates[WINDOW_REJECTED]))
        self.account.drop("invalid", int(fates[INVALID]))
