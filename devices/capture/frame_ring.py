"""Images in memory that two processes share: written by one, read in place by the other.

The memory is a file without a name, so that nothing is left behind however the processes end. A ring
is a stretch of it: first a byte for each slot (0: free), which the writer sets and the reader clears;
the slots follow, each on a page of its own. Larger images take a new ring behind the old one.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
MAX_SLOTS = 64  # the runtime keeps two seconds of a 30 Hz camera at the most
MAX_BYTES = 512 << 20  # of one ring: untouched slots take no memory


def slots_for(item_bytes: int) -> tuple[int, int]:
    """How many slots a ring for images of `item_bytes` has, and how long they are."""
    slot_bytes = -(-item_bytes // PAGE) * PAGE
    return max(2, min(MAX_SLOTS, MAX_BYTES // slot_bytes)), slot_bytes


class RingWriter:
    """Contract: an image is made in a free slot, the lowest, so that no more memory is touched than the
    reader keeps images. The slot is the image's until it is sent, then the reader's; one that is
    dropped instead is free again.
    """

    def __init__(self, file: int, offset: int, item_bytes: int) -> None:
        self.offset = offset
        self.slots, self.slot_bytes = slots_for(item_bytes)
        size = PAGE + self.slots * self.slot_bytes
        self.end = -(-(offset + size) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        os.ftruncate(file, self.end)
        self._memory = mmap.mmap(file, size, offset=offset)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._address: int = self._bytes.__array_interface__["data"][0]
        self._taken = self._bytes[: self.slots]
        self._unsent: set[int] = set()

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """An uninitialised image in a slot of its own; None where all are taken."""
        slot = int(self._taken.argmin())
        if self._taken[slot]:
            return None
        self._taken[slot] = 1
        self._unsent.add(slot)
        address = self._address + PAGE + slot * self.slot_bytes
        return np.asarray(_Slot(shape, address, False, partial(self._drop, slot)))

    def _drop(self, slot: int) -> None:
        if slot in self._unsent:
            self._unsent.discard(slot)
            self._taken[slot] = 0

    def send(self, image: NDArray[Any]) -> int | None:
        """Leave an image to the reader: its slot, into which it is copied where it was made elsewhere.
        None: all are taken.
        """
        place = image.__array_interface__["data"][0] - self._address - PAGE
        slot, rest = divmod(place, self.slot_bytes)
        if rest or slot not in self._unsent or not image.flags.c_contiguous:
            copy = self.allocate(image.shape)
            if copy is None:
                return None
            np.copyto(copy, image)
            return self.send(copy)
        self._unsent.discard(slot)
        return int(slot)


class RingReader:
    """The other end, of the ring that the writer has announced. `view` gives a slot's image without a copy;
    the slot is free again when the last array that looks at it is gone.
    """

    def __init__(self, file: int, offset: int, slots: int, slot_bytes: int) -> None:
        self._memory = mmap.mmap(file, PAGE + slots * slot_bytes, offset=offset)
        self._slots, self._slot_bytes = slots, slot_bytes
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._address: int = self._bytes.__array_interface__["data"][0]

    def view(self, slot: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The image uint8 `shape` in a slot that the writer gave; not to be written to."""
        count = math.prod(shape)
        if not (0 <= slot < self._slots and 0 < count <= self._slot_bytes):
            raise ValueError("an image lies outside of the shared memory")
        address = self._address + PAGE + slot * self._slot_bytes
        return np.asarray(_Slot(shape, address, True, partial(self._free, slot)))

    def _free(self, slot: int) -> None:
        self._bytes[slot] = 0


class _Slot:
    """What all arrays that look at a slot are based on; calls `gone` when the last of them goes.

    `gone` keeps the memory mapped until then.
    """

    def __init__(
        self, shape: tuple[int, ...], address: int, readonly: bool, gone: Callable[[], None]
    ) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": "|u1",
            "data": (address, readonly),
        }
        self._gone = gone

    def __del__(self) -> None:
        self._gone()


def anonymous_file() -> int:
    """A file without a name, for rings."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fusedge-frames", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
