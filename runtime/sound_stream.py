"""Windows of sound: counted in samples, placed in time by the drift of the sound card's clock."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Sample, size
from fusedge.bundle.window import complete, to_ns
from fusedge.runtime.drift import SampleClock
from fusedge.runtime.guard import ValueGuard
from fusedge.runtime.ring import INVALID, LATE, PENDING, USED, WINDOW_REJECTED
from fusedge.runtime.stream import ModalityStream, Window

LATEST_STAMP_NS = to_ns(10)  # a stamp that is further from its arrival says nothing
MAX_BLOCK_S = 10.0  # a longer block is refused
USUAL_BLOCK_S = 0.02  # of microphones, files and most codecs: `lateness_s` allows for such a block
RECENT_BLOCKS = 64  # one of which must be as long as is waited for: 1.3 s of usual ones
MAX_OBSERVATIONS = 4096
SPARE_S = 0.1
STEP_FOUND_S = 5.0  # the latest that SampleClock finds a step: what came since is placed rightly


class SoundStream(ModalityStream):
    """See ModalityStream; the account counts samples of sound, not blocks.

    Sound cards count well and stamp badly: a block's stamp is when it was handed over, late by any
    amount. So samples are counted, and the window that ends at `e` holds the `T` samples up to the
    one that the SampleClock places at `e`. Where the clock finds a step (sound was lost, or the
    device stood still), what came before it cannot be placed any more and is dropped as `clock_step`.

    The beginning of a block comes later than its end by the block's length. So windows wait, beyond the
    modality's `lateness_s`, for as much as the longest of the last RECENT_BLOCKS blocks is longer than
    USUAL_BLOCK_S. A block for which no window could be young enough to be used is `block_too_long`.
    """

    def __init__(self, spec: Modality) -> None:
        super().__init__(spec)
        self._length = spec.window_samples
        self._capacity = round((2 * spec.kept_s + MAX_BLOCK_S) * spec.rate_hz)
        self._channels = len(spec.channels)
        self._values = np.empty((2 * self._capacity, self._channels), np.float32)
        self._status = np.empty(2 * self._capacity, np.uint8)
        self._start = self._stop = 0
        self._received = 0  # the count of the sample after the last one in the buffer
        self._kept_at_step = round(STEP_FOUND_S * spec.rate_hz)
        self._spare = round(SPARE_S * spec.rate_hz)
        self._max_block = round(MAX_BLOCK_S * spec.rate_hz)
        self._not_finite_below = 0  # samples from this count on are finite
        self._late_below = 0  # samples before this count belong to a window that was cut
        self._usual_delay_ns = self.delay_ns
        self._usual_block = round(USUAL_BLOCK_S * spec.rate_hz)
        self._longest_block = self._usual_block  # that windows wait for
        spare_s = spec.max_age_s - spec.delay_s
        self._greatest_block = self._usual_block + int(spare_s * spec.rate_hz)
        self._shorter_blocks = 0  # since there was one so long, and the longest of them
        self._longest_shorter = self._usual_block
        self._observations: deque[tuple[int, int]] = deque()  # (samples so far, stamp)
        self._steps = self.stamps_refused = 0
        self._stamp_kind: str | None = None
        self.sample_clock = SampleClock(spec.rate_hz)
        self.guard = ValueGuard(spec)

    def __len__(self) -> int:
        return self._stop - self._start

    def push(self, sample: Sample) -> None:
        """See ModalityStream."""
        account, data = self.account, sample.data
        count = size(sample)
        account.received += count
        shape = (count, self._channels)
        if data.shape != shape or data.dtype != np.float32 or count > self._max_block:
            account.drop("malformed", count)
            return
        if not self._wait_for(count):
            greatest_s = self._greatest_block / self.spec.rate_hz
            detail = (
                f"it comes in blocks too long to be used within {self.spec.max_age_s:g} s: "
                f"let its source give at most {greatest_s:.3g} s at once"
            )
            account.drop("block_too_long", count, detail)
            return
        self._stamp_kind = sample.stamp
        self._received += count
        stamp_ns = sample.timestamp_ns
        if not 0 <= sample.arrival_ns - stamp_ns <= LATEST_STAMP_NS:
            self.stamps_refused += 1
            stamp_ns = sample.arrival_ns
        self._observations.append((self._received, stamp_ns))
        if self.next_end_ns is None or len(self._observations) > MAX_OBSERVATIONS:
            self._observe(stamp_ns)
        clock = self.sample_clock
        end_ns = clock.time_ns(self._received) - self.latency_ns
        if self.next_end_ns is None:
            begin_ns = clock.time_ns(self._received - count) - self.latency_ns
            arrival_ns = sample.arrival_ns
            if not (self._await(begin_ns, arrival_ns) or self._await(end_ns, arrival_ns)):
                account.drop("late", count)
                return
        guarded = self.guard.check(data, end_ns)
        if guarded is not data:
            self._not_finite_below = self._received
        self._append(guarded)

    def _wait_for(self, count: int) -> bool:
        """Let windows wait for blocks as long as the last ones; False where one of `count` is too long."""
        if count > self._greatest_block:
            return False
        longest = self._longest_block
        if count >= longest:
            longest = count
            self._shorter_blocks, self._longest_shorter = 0, self._usual_block
        elif longest > self._usual_block:
            self._shorter_blocks += 1
            self._longest_shorter = max(self._longest_shorter, count)
            if self._shorter_blocks == RECENT_BLOCKS:
                longest = self._longest_shorter
                self._shorter_blocks, self._longest_shorter = 0, self._usual_block
        if longest != self._longest_block:
            self._longest_block = longest
            extra_s = (longest - self._usual_block) / self.spec.rate_hz
            self.delay_ns = self._usual_delay_ns + to_ns(extra_s)
            if self.next_end_ns is not None:
                self.due_ns = self.next_end_ns + self.delay_ns
        return True

    def _observe(self, until_ns: int) -> None:
        """Let the clock see the blocks that are stamped up to a time.

        At a cut only those up to the window's end: then the window does not depend on what else
        has arrived by chance.
        """
        clock, waiting = self.sample_clock, self._observations
        while waiting and waiting[0][1] <= until_ns:
            clock.observe(*waiting.popleft())
        if clock.steps != self._steps:
            self._steps = clock.steps
            self._evict(max(0, len(self) - self._kept_at_step), "clock_step")

    def _append(self, block: NDArray[np.float32]) -> None:
        count = len(block)
        excess = len(self) + count - self._capacity
        if excess > 0:
            self._evict(excess, "overflow")
        if self._stop + count > len(self._values):
            kept = len(self)
            values = np.empty_like(self._values)  # an encoder may still read windows of the old one
            values[:kept] = self._values[self._start : self._stop]
            self._values = values
            self._status[:kept] = self._status[self._start : self._stop].copy()
            self._start, self._stop = 0, kept
        self._values[self._stop : self._stop + count] = block
        self._status[self._stop : self._stop + count] = PENDING
        late = self._late_below - (self._received - count)
        if late > 0:
            self._status[self._stop : self._stop + min(late, count)] = LATE
        self._stop += count

    def _fill(self, end_ns: int) -> Window:
        self._observe(end_ns + self.latency_ns)
        stop = round(self.sample_clock.count_at(end_ns + self.latency_ns))
        self._late_below = max(self._late_below, stop)
        oldest = self._received - len(self)
        # Places in the window and in the buffer of those of its samples that are there.
        first = min(max(oldest - (stop - self._length), 0), self._length)
        last = min(max(self._received - (stop - self._length), first), self._length)
        place = self._start + stop - self._length - oldest + first
        sound = self._values[place : place + last - first]
        if last - first == self._length and stop - self._length >= self._not_finite_below:
            self._status[place : place + self._length] = USED
            return Window(end_ns, sound[None], self._all_valid, True)
        finite = np.isfinite(sound)
        valid = np.zeros_like(self._all_valid)
        valid[0, first:last] = finite
        whole = bool(complete(valid[0], self.spec.min_valid))
        self._mark(place, last - first, finite, whole)
        if not whole:
            return Window(end_ns, self._no_values, self._no_valid, False)
        values = np.zeros_like(self._all_valid)
        values[0, first:last] = np.where(finite, sound, np.float32(0))
        return Window(end_ns, values, valid, True)

    def _mark(self, place: int, count: int, finite: NDArray[np.bool_], whole: bool) -> None:
        status = self._status[place : place + count]
        fate = USED if whole else WINDOW_REJECTED
        fates = np.where(finite.any(axis=1), np.uint8(fate), np.uint8(INVALID))
        np.maximum(status, fates, out=status)

    def _forget(self, next_end_ns: int, pending_reason: str) -> None:
        stop = round(self.sample_clock.count_at(next_end_ns + self.latency_ns))
        oldest = self._received - len(self)
        # A little more is kept: the clock may yet place the next window earlier.
        count = min(max(stop - self._length - self._spare - oldest, 0), len(self))
        self._evict(count, pending_reason)

    def _evict(self, count: int, pending_reason: str) -> None:
        if count:
            gone = self._status[self._start : self._start + count]
            self._start += count
            self._settle(gone, pending_reason)

    def clock_report(self) -> dict[str, object]:
        """Drift of the sound card against the session's clock, and steps in its count."""
        clock = self.sample_clock
        return {
            "drift_ppm": round(clock.ppm, 1),
            "steps": clock.steps,
            "stamps_refused": self.stamps_refused,
            "stamp": self._stamp_kind,
        }
