"""What a source in a process of its own says to the one that reads it, over a local socket.

A message is a header of fixed length, then as many bytes as it announces. Images lie in a FrameRing,
whose file goes over the socket; what is small, or finds no slot free, follows its header.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.frame_ring import RingReader, RingWriter

HELLO, SAMPLE, RING, REJECTION, END, ERROR = range(6)
INLINE = 0xFFFFFFFF
MAX_INLINE = 16_384  # bytes; to copy that twice costs less than to share it
MAX_LENGTH = 1 << 28  # of a message: an image of 8192 x 8192 x 3 is shorter
_HEADER = struct.Struct("<BBBBIqqIIII")
_STAMPS = ("capture", "arrival")
_DTYPES: tuple[np.dtype[Any], ...] = (np.dtype(np.float32), np.dtype(np.uint8))


class Header(NamedTuple):
    """The start of a message; what is not said is 0. `length` is that of what follows."""

    kind: int
    modality: int = 0
    stamp: int = 0
    dtype: int = 0
    slot: int = INLINE
    timestamp_ns: int = 0
    arrival_ns: int = 0
    shape: tuple[int, ...] = ()
    length: int = 0

    def packed(self) -> bytes:
        """As it goes over the socket."""
        shape = (*self.shape, 0, 0, 0)[:3]
        return _HEADER.pack(*self[:7], *shape, self.length)


class Sender:
    """The source's end. It waits where the reader is slow: what is live then drops by itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._ring: RingWriter | None = None
        self._modalities: dict[str, int] = {}

    def hello(self, fields: dict[str, Any], modalities: tuple[str, ...]) -> None:
        """Say that the source is open, and what it gives."""
        self._modalities = {name: number for number, name in enumerate(modalities)}
        self.document(HELLO, fields)

    def document(self, kind: int, fields: dict[str, Any]) -> None:
        """Send what is not a sample."""
        text = json.dumps(fields).encode()
        self._socket.sendall(Header(kind, length=len(text)).packed() + text)

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Room for the next image: in the ring, or in this process where that is full."""
        size = int(np.prod(shape))
        room = self._ring_for(size).allocate(shape) if size > MAX_INLINE else None
        return np.empty(shape, np.uint8) if room is None else room

    def _ring_for(self, size: int) -> RingWriter:
        ring = self._ring
        if ring is None or size > ring.slot_bytes:
            self._ring = ring = RingWriter(size)
            header = Header(RING, shape=(ring.slots, ring.slot_bytes))
            socket.send_fds(self._socket, [header.packed()], [ring.handle])
            ring.close()
        return ring

    def sample(self, sample: Sample) -> None:
        """Hand a sample over."""
        data = sample.data
        image = data.dtype == np.uint8 and data.nbytes > MAX_INLINE
        slot = self._ring_for(data.nbytes).send(data) if image else None
        header = Header(
            SAMPLE,
            self._modalities[sample.modality],
            _STAMPS.index(sample.stamp),
            _DTYPES.index(data.dtype),
            INLINE if slot is None else slot,
            sample.timestamp_ns,
            sample.arrival_ns,
            data.shape,
            data.nbytes if slot is None else 0,
        )
        self._socket.sendall(header.packed() + (data.tobytes() if slot is None else b""))

    def rejection(self, rejection: Rejection) -> None:
        """Hand a rejection over."""
        self.document(REJECTION, rejection._asdict())


class Receiver:
    """The reader's end. Raises ValueError where the other end does not keep to the contract, EOFError
    where it is gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._handles: deque[int] = deque()
        self._ring: RingReader | None = None

    def _fill(self, count: int) -> None:
        while len(self._buffer) < count:
            data, handles, _, _ = socket.recv_fds(self._socket, max(65_536, count), 4)
            self._handles.extend(handles)
            if not data:
                raise EOFError
            self._buffer += data

    def _take(self, count: int) -> bytes:
        self._fill(count)
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def message(self) -> tuple[Header, bytes]:
        """The next message other than RING, with what follows its header."""
        while True:
            *fields, d0, d1, d2, length = _HEADER.unpack(self._take(_HEADER.size))
            if length > MAX_LENGTH:
                raise ValueError("a message is too long")
            shape = tuple(d for d in (d0, d1, d2) if d)
            header = Header(*fields, shape, length)
            if header.kind != RING:
                return header, self._take(length)
            self._ring = RingReader(self._handles.popleft(), d0, d1)

    def sample(self, header: Header, content: bytes, modality: str) -> Sample:
        """The sample that a message holds."""
        data: NDArray[Any]
        if header.slot != INLINE and self._ring is not None:
            data = self._ring.view(header.slot, header.shape)
        else:
            data = np.frombuffer(content, _DTYPES[header.dtype]).reshape(header.shape)
        stamp: Any = _STAMPS[header.stamp]
        return Sample(modality, header.timestamp_ns, header.arrival_ns, data, stamp)

    def close(self) -> None:
        """Let go what was sent and not taken."""
        while self._handles:
            os.close(self._handles.popleft())


def document(content: bytes) -> dict[str, Any]:
    """The fields of a message that is no sample."""
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("a message holds no fields")
    return fields
