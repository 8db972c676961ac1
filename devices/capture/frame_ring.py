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
        self._unsent: set[int] = set()

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """An uninitialised image in a slot of its own; None where all are taken."""
        number = self._memory.find(b"\0", 0, self.slots)
        if number < 0:
            return None
        self._memory[number] = 1
        self._unsent.add(number)
        place = (self._address + PAGE + number * self.slot_bytes, False)
        return np.asarray(_Slot(shape, place, number, self._drop))

    def _drop(self, number: int) -> None:
        if number in self._unsent:
            self._unsent.discard(number)
            self._memory[number] = 0

    def send(self, image: NDArray[Any]) -> int | None:
        """Leave an image to the reader: its slot, into which it is copied where it was made elsewhere.
        None: all are taken.
        """
        slot: object = image.base
        if (
            isinstance(slot, _Slot)
            and slot.gone == self._drop  # of this ring, and not of the one before
            and slot.number in self._unsent
            and slot.__array_interface__["shape"] == image.shape
            and image.flags.c_contiguous
        ):
            self._unsent.discard(slot.number)
            return slot.number
        copy = self.allocate(image.shape)
        if copy is None:
            return None
        np.copyto(copy, image)
        return self.send(copy)


class RingReader:
    """The other end, of the ring that the writer has announced. `view` gives a slot's image without a copy;
    the slot is free again when the last array that looks at it is gone.
    """

    def __init__(self, file: int, offset: int, slots: int, slot_bytes: int) -> None:
        self._memory = mmap.mmap(file, PAGE + slots * slot_bytes, offset=offset)
        self._slots, self._slot_bytes = slots, slot_bytes
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._address: int = self._bytes.__array_interface__["data"][0]

    def view(self, number: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The image uint8 `shape` in a slot that the writer gave; not to be written to."""
        if number >= self._slots or math.prod(shape) > self._slot_bytes:
            raise ValueError("an image lies outside of the shared memory")
        place = (self._address + PAGE + number * self._slot_bytes, True)
        return np.asarray(_Slot(shape, place, number, self._free))

    def _free(self, number: int) -> None:
        self._memory[number] = 0


class _Slot:
    """What all arrays that look at a slot are based on; calls `gone` when the last of them goes.

    `place` is the address and whether it may only be read; `gone` keeps the memory mapped until then.
    """

    __slots__ = ("__array_interface__", "gone", "number")

    def __init__(
        self,
        shape: tuple[int, ...],
        place: tuple[int, bool],
        number: int,
        gone: Callable[[int], None],
    ) -> None:
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": "|u1", "data": place}
        self.gone = gone
        self.number = number

    def __del__(self) -> None:
        self.gone(self.number)


def anonymous_file() -> int:
    """A file without a name, for rings."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fusedge-frames", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
