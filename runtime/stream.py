"""The windows of one modality, in time, and the account of its samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime.guard import ValueGuard
from fusedge.runtime.ledger import Account
from fusedge.runtime.ring import INVALID, LATE, PENDING, USED, WINDOW_REJECTED

# A source may deliver faster than the grid (a 25 Hz camera on a 10 Hz grid); beyond this the oldest go.
RATE_MARGIN = 8
NEVER_NS = 1 << 62
_ALL_USED = bytes([USED])
IMAGE_RATE_MARGIN = 2  # images are large: a 30 Hz camera on a 15 Hz grid


class Window(NamedTuple):
    """What an encoder takes: `values` `[1, T, …]`, `valid`, and the capture time at which it ends.

    Values are float32, for images uint8; `valid` is float32 `[1, T, C]`, for images `[1, T]`. An
    incomplete window is all zeros and invalid, so that an encoder's memory keeps its time.
    """

    end_ns: int
    values: NDArray[Any]
    valid: NDArray[np.float32]
    complete: bool


class ModalityStream(ABC):
    """Contract: the window that ends at `e`, a whole multiple of the hop, is due when the clock passes
    `e + latency + lateness`. It then holds exactly the samples with a capture time up to `e`
    that have arrived, whatever their order of arrival. A sample that arrives after its window was
    due is `late`, also where nothing came before it, so that no stamp makes work in the past.

    Every sample ends in exactly one place of `account`:

    - `used`: some window that went to the encoder holds it;
    - `superseded`: a newer sample took its place on the grid, or no grid point came in `max_hold_s`;
    - `incomplete_window`: its window had too few valid grid points to be encoded;
    - `invalid`: nothing in it was finite, within its range and alive;
    - `malformed`: it has not the shape or type of the modality;
    - `late`, `duplicate`, `backward`, `future`: refused by its stamp;
    - `overload`: its window was given up; `overflow`: the buffer was full, and every second one went;
    - the name of another reason for which its window was given up, such as `part_failed`.
    """

    guard: ValueGuard

    def __init__(self, spec: Modality) -> None:
        self.spec = spec
        self.hop_ns = to_ns(spec.hop_s)
        self.latency_ns = to_ns(spec.latency_s)
        self.delay_ns = self.latency_ns + to_ns(spec.lateness_s)
        self.next_end_ns: int | None = None
        self.due_ns = NEVER_NS
        """When the next window may be cut: `NEVER_NS` before the first sample."""
        self._cut_any = self._untidy = False
        dtype: type[np.uint8 | np.float32] = np.uint8 if spec.kind == "image" else np.float32
        self._no_values = np.zeros((1, *spec.window_shape), dtype)
        self._no_valid = np.zeros((1, *spec.valid_shape), np.float32)
        self._all_valid = np.ones((1, *spec.valid_shape), np.float32)
        self.account = Account(lambda: len(self))

    @abstractmethod
    def __len__(self) -> int:
        """Samples whose fate is open."""

    @abstractmethod
    def push(self, sample: Sample) -> None:
        """Take one sample; its capture time is its stamp less the known latency."""

    @abstractmethod
    def _fill(self, end_ns: int) -> Window:
        """The window that ends at `end_ns`, its samples marked."""

    @abstractmethod
    def _forget(self, next_end_ns: int, pending_reason: str) -> None:
        """Settle what no window from `next_end_ns` on can hold."""

    @abstractmethod
    def clock_report(self) -> dict[str, object]:
        """What is known of the source's clock, for the summary."""

    def due(self, now_ns: int) -> int:
        """How many windows wait to be cut."""
        return max(0, (now_ns - self.due_ns) // self.hop_ns + 1)

    def cut(self) -> Window:
        """Cut the next window. What it leaves behind is settled by `tidy`, when there is time."""
        assert self.next_end_ns is not None, "nothing is due before the first sample"
        self.tidy()
        window = self._fill(self.next_end_ns)
        self._pass(1)
        self._untidy = True
        return window

    def tidy(self) -> None:
        """Settle what no window can hold any more, after a cut; costs next to nothing after that."""
        if self._untidy and self.next_end_ns is not None:
            self._untidy = False
            self._forget(self.next_end_ns, "superseded")

    def skip(self, count: int, reason: str) -> None:
        """Give up the next `count` windows."""
        if count:
            assert self.next_end_ns is not None, "nothing is due before the first sample"
            self._forget(self.next_end_ns, "superseded")
            self._pass(count)
            self._forget(self.due_ns - self.delay_ns, reason)

    def _pass(self, count: int) -> None:
        assert self.next_end_ns is not None
        self.next_end_ns += count * self.hop_ns
        self.due_ns = self.next_end_ns + self.delay_ns
        self._cut_any = True

    def _await(self, time_ns: int, arrival_ns: int) -> bool:
        """Open the window that a sample belongs to; False where it has been cut, or was due."""
        end_ns = -(-time_ns // self.hop_ns) * self.hop_ns
        passed = self.next_end_ns is not None and self._cut_any and end_ns < self.next_end_ns
        if passed or end_ns + self.delay_ns < arrival_ns:
            return False
        if self.next_end_ns is None or end_ns < self.next_end_ns:
            self.next_end_ns = end_ns  # the first samples may arrive out of order too
            self.due_ns = end_ns + self.delay_ns
        return True

    def _settle(self, fates: NDArray[np.uint8], pending_reason: str) -> None:
        """Write samples that leave the buffer into the account."""
        account = self.account
        used = fates.tobytes().count(_ALL_USED)
        if used == len(fates):
            account.used += used
            return
        counts = np.bincount(fates, minlength=5).tolist()
        account.used += used
        account.drop(pending_reason, counts[PENDING])
        account.drop("late", counts[LATE])
        account.drop("incomplete_window", counts[WINDOW_REJECTED])
        account.drop("invalid", counts[INVALID])
