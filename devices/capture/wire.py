"""What a source in a process of its own says to the one that reads it, over a local socket.

A message is a header of fixed length, then as many bytes as it announces. Images lie in a ring of a
file that both have open; what is small, or finds no slot free, follows its header.
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.frame_ring import RingReader, RingWriter

HELLO, SAMPLE, RING, REJECTION, END, ERROR = range(6)
INLINE = 0xFFFFFFFF
MAX_INLINE = 16_384  # bytes; to copy that twice costs less than to share it
MAX_LENGTH = 1 << 28  # of what follows a header: an image of 8192 x 8192 x 3 is shorter

# kind, length of what follows, and of a sample: modality, whether its stamp is the arrival, whether it is
# uint8 (else float32), slot, shape, timestamp, arrival;
# of a RING: its offset in the file as `timestamp`, slots and bytes of a slot as `shape`.
_HEADER = struct.Struct("<BIBBBIIIIqq")


class Sender:
    """The source's end. It waits where the reader is slow: what is live then drops by itself.

    `file` is that of the rings, open in both processes.
    """

    def __init__(self, connection: socket.socket, file: int) -> None:
        self._socket = connection
        self._file = file
        self._ring: RingWriter | None = None
        self._modalities: dict[str, int] = {}

    def hello(self, fields: dict[str, Any], modalities: tuple[str, ...]) -> None:
        """Say that the source is open, and what it gives."""
        self._modalities = {name: number for number, name in enumerate(modalities)}
        self.document(HELLO, fields)

    def document(self, kind: int, fields: dict[str, Any]) -> None:
        """Send what is not a sample."""
        text = json.dumps(fields).encode()
        self._socket.sendall(_HEADER.pack(kind, len(text), *[0] * 9) + text)

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Room for the next image: in the ring, or in this process where that is full."""
        size = math.prod(shape)
        room = self._ring_for(size).allocate(shape) if size > MAX_INLINE else None
        return np.empty(shape, np.uint8) if room is None else room

    def _ring_for(self, size: int) -> RingWriter:
        ring = self._ring
        if ring is None or size > ring.slot_bytes:
            self._ring = ring = RingWriter(self._file, 0 if ring is None else ring.end, size)
            place = (ring.slots, ring.slot_bytes, 0, ring.offset, 0)
            self._socket.sendall(_HEADER.pack(RING, 0, 0, 0, 0, 0, *place))
        return ring

    def sample(self, sample: Sample) -> None:
        """Hand a sample over."""
        modality, timestamp_ns, arrival_ns, data, stamp = sample
        slot, content, shape = None, b"", data.shape
        image = data.dtype == np.uint8
        if image and data.nbytes > MAX_INLINE:
            ring = self._ring
            if ring is None or data.nbytes > ring.slot_bytes:
                ring = self._ring_for(data.nbytes)
            slot = ring.send(data)
        if slot is None:
            slot, content = INLINE, data.tobytes()
        self._socket.sendall(
            _HEADER.pack(
                SAMPLE,
                len(content),
                self._modalities[modality],
                stamp == "arrival",
                image,
                slot,
                *(shape if len(shape) == 3 else (*shape, 0, 0)[:3]),
                timestamp_ns,
                arrival_ns,
            )
            + content
        )

    def rejection(self, rejection: Rejection) -> None:
        """Hand a rejection over."""
        self.document(REJECTION, rejection._asdict())


class Receiver:
    """The reader's end, which owns `file`. Raises EOFError where the other one is gone, ValueError where
    it does not keep to the protocol.
    """

    def __init__(self, connection: socket.socket, file: int) -> None:
        self._receive = connection.recv
        self._file: int | None = file
        self._lock = threading.Lock()
        self._ring: RingReader | None = None
        self.modalities: tuple[str, ...] = ()
        """To be set from the HELLO."""

    def _take(self, count: int) -> bytes:
        data = self._receive(count, socket.MSG_WAITALL)
        while len(data) < count:
            more = self._receive(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def message(self) -> Sample | tuple[int, bytes]:
        """The next sample, or the kind and content of another message."""
        while True:
            kind, length, modality, arrived, image, slot, d0, d1, d2, time_ns, arrival_ns = (
                _HEADER.unpack(self._take(_HEADER.size))
            )
            if length > MAX_LENGTH:
                raise ValueError("a message is too long")
            if kind == SAMPLE:
                data: NDArray[Any]
                shape = (d0, d1, d2) if d2 else (d0, d1) if d1 else (d0,)
                if slot != INLINE and self._ring is not None:
                    data = self._ring.view(slot, shape)
                else:
                    dtype: Any = np.uint8 if image else np.float32
                    data = np.frombuffer(self._take(length), dtype).reshape(shape)
                return Sample(
                    self.modalities[modality],
                    time_ns,
                    arrival_ns,
                    data,
                    "arrival" if arrived else "capture",
                )
            if kind != RING:
                return kind, self._take(length)
            with self._lock:
                if self._file is None:
                    raise EOFError
                self._ring = RingReader(self._file, time_ns, d0, d1)

    def close(self) -> None:
        """Let go of the file; images that have come stay."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None


def document(content: bytes) -> dict[str, Any]:
    """The fields of a message that is no sample."""
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("a message holds no fields")
    return fields
