"""A USB device in Python: the kernel's USB/IP host (`vhci_hcd`) drives it through a socket.

So the kernel's own driver for the device's class runs, and unplugging is real.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")
Self = TypeVar("Self", bound="UsbDevice")

HOST = Path("/sys/devices/platform/vhci_hcd.0")
FULL_SPEED, HIGH_SPEED = 2, 3
PLUG_LIMIT_S = 20  # plugging in takes 0.3 to 1 s
_SUBMIT, _UNLINK, _SUBMITTED, _UNLINKED = 1, 2, 3, 4
_HEADER = struct.Struct(">5I")  # command, number, device, direction, endpoint
_SUBMIT_FIELDS = struct.Struct(">I4i8s")  # flags, length, start frame, packets, interval, setup
_RESULT_FIELDS = struct.Struct(">5i8x")  # status, length, start frame, packets, errors
_PACKET = struct.Struct(">4I")  # offset, length, actual length, status


class Transfer(NamedTuple):
    """One request of the kernel to an endpoint; `packets` are the lengths of isochronous ones."""

    number: int
    endpoint: int
    length: int
    packets: tuple[int, ...] = ()


class Setup(NamedTuple):
    """The eight bytes that begin a control transfer."""

    kind: int
    request: int
    value: int
    about: int
    length: int


class StallError(Exception):
    """The device refuses a control transfer, as it does for what it does not know."""


def descriptor(kind: int, content: bytes) -> bytes:
    """A descriptor with its length and type in front."""
    return bytes([len(content) + 2, kind]) + content


def interface(
    number: int, alternate: int, endpoints: int, usb_class: tuple[int, int, int]
) -> bytes:
    """A descriptor of an interface."""
    return descriptor(4, bytes([number, alternate, endpoints, *usb_class, 0]))


def endpoint(address: int, attributes: int, size: int, interval: int, more: bytes = b"") -> bytes:
    """A descriptor of an endpoint; bit 7 of `address` is set for one that the host reads."""
    return descriptor(5, struct.pack("<BBHB", address, attributes, size, interval) + more)


class UsbDevice:
    """A device that can be plugged into a port of the machine and pulled out again.

    `serial` may be None: cheap devices have none.
    """

    vendor = 0x1209  # pid.codes, whose product 1 is for tests
    product = 1
    device_class = (0, 0, 0)
    speed = HIGH_SPEED
    isochronous: frozenset[int] = frozenset()

    def __init__(self, name: str, serial: str | None, interfaces: bytes, count: int) -> None:
        self.name = name
        self.serial = serial
        self._interfaces = interfaces
        self._count = count
        self._strings = ["", "Fusedge", name, serial or ""]
        self._port: int | None = None
        self._socket: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        # The kernel cannot end a process with the device open once nobody answers for the device.
        atexit.register(self.unplug)
        self._changed = threading.Condition()
        self._unread: dict[int, deque[Transfer]] = {}  # for each endpoint, what nobody has taken
        self._open: set[int] = set()  # the numbers of transfers without an answer

    def plug(self, port: int = 0) -> Path:
        """Plug it in; gives its folder in sysfs, once the kernel has configured it.

        Ports are numbered from 0; the folder's name has the port plus one.
        """
        assert self._port is None, f"{self.name} is plugged in"
        ours, kernels = socket.socketpair()
        self._socket = ours
        self._port = port
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._serve, self.work)
        ]
        for thread in self._threads:
            thread.start()
        with kernels:
            attach = f"{port} {kernels.fileno()} {port + 1} {self.speed}"
            (HOST / "attach").write_text(attach, "ascii")
        return wait_for(lambda: self._folder(port), f"{self.name} in port {port}")

    def unplug(self) -> None:
        """Pull it out; returns once the kernel has let it go. Nothing if it is not plugged in."""
        if self._port is None or self._socket is None:
            return
        port, self._port = self._port, None
        (HOST / "detach").write_text(str(port), "ascii")
        # The port is free before the drivers have let go of the device.
        wait_for(
            lambda: not _in_use(port) and _present(port) is None,
            f"{self.name} to leave port {port}",
        )
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(PLUG_LIMIT_S)
            assert not thread.is_alive(), f"{self.name} does not end"
        self._socket.close()
        # Only now: what the kernel had asked for may have been read after it closed the connection, and
        # it ends the next connection at an answer to what it did not ask there.
        self._unread.clear()
        self._open.clear()

    @property
    def plugged(self) -> bool:
        """Whether it is in a port."""
        return self._port is not None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.unplug()

    def work(self) -> None:
        """What the device does by itself, in a thread of its own, while it is `plugged`."""

    def control(self, setup: Setup, data: bytes) -> bytes:
        """The answer to a control transfer of the device's class; `StallError` refuses it."""
        raise StallError

    def written(self, number: int, data: bytes) -> None:
        """The host has written to an endpoint."""

    def transfer(self, number: int, limit_s: float) -> Transfer | None:
        """The next transfer that reads from an endpoint; None if there is none in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._unread.get(number) or not self.plugged, limit_s)
            unread = self._unread.get(number)
            return unread.popleft() if unread else None

    def complete(self, transfer: Transfer, data: bytes) -> None:
        """Answer a transfer that reads; isochronous packets are filled one after the other."""
        packets = b""
        offset, left = 0, len(data)
        for length in transfer.packets:
            actual = min(length, left)
            packets += _PACKET.pack(offset, length, actual, 0)
            offset, left = offset + length, left - actual
        with self._changed:
            # The kernel ends the connection at an answer to what it has taken back.
            if transfer.number in self._open:
                self._open.remove(transfer.number)
                self._answer(transfer, len(data), data + packets)

    def _folder(self, port: int) -> Path | None:
        """Where sysfs has the device, once its drivers have seen its interfaces."""
        found = _present(port)
        drivers = list(found.glob("*:*/driver")) if found else []
        return found if len(drivers) >= self._count else None

    def _serve(self) -> None:
        """Answer the kernel until it closes the connection."""
        assert self._socket is not None
        with contextlib.suppress(OSError), self._socket.makefile("rb") as stream:
            while header := stream.read(_HEADER.size):
                command, number, _, direction, address = _HEADER.unpack(header)
                fields = stream.read(_SUBMIT_FIELDS.size)
                if command == _UNLINK:
                    self._unlink(number, int.from_bytes(fields[:4], "big"))
                    continue
                _, length, _, packets, _, setup = _SUBMIT_FIELDS.unpack(fields)
                data = b"" if direction else stream.read(length)
                iso = address in self.isochronous
                table = stream.read(_PACKET.size * packets) if iso else b""
                lengths = tuple(entry[1] for entry in _PACKET.iter_unpack(table))
                transfer = Transfer(number, address, length, lengths)
                if address == 0:
                    self._control(transfer, Setup(*struct.unpack("<BBHHH", setup)), data)
                elif direction:
                    with self._changed:
                        self._unread.setdefault(address, deque()).append(transfer)
                        self._open.add(number)
                        self._changed.notify_all()
                else:
                    self._answer(transfer, length, table)
                    self.written(address, data)

    def _control(self, transfer: Transfer, setup: Setup, data: bytes) -> None:
        try:
            of_class = setup.kind & 0x60
            answer = self.control(setup, data) if of_class else self._standard(setup)
        except StallError:
            self._answer(transfer, 0, b"", -errno.EPIPE)
        else:
            if setup.kind & 0x80:
                self._answer(transfer, len(answer[: setup.length]), answer[: setup.length])
            else:
                self._answer(transfer, len(data), b"")

    def _standard(self, setup: Setup) -> bytes:
        """The answer to a request that every device must know."""
        if setup.request == 6:  # GET_DESCRIPTOR
            return self._descriptor(setup.value >> 8, setup.value & 0xFF)
        if setup.request == 0:  # GET_STATUS
            return bytes(2)
        return b""  # the configuration, an alternate setting, a feature: agreed

    def _descriptor(self, kind: int, index: int) -> bytes:
        if kind == 1:
            fields = (0x0200, *self.device_class, 64, self.vendor, self.product, 0x0100)
            strings = (1, 2, 3 if self.serial else 0, 1)
            return descriptor(1, struct.pack("<HBBBBHHHBBBB", *fields, *strings))
        if kind == 2:
            head = struct.pack("<HBBBBB", 9 + len(self._interfaces), self._count, 1, 0, 0x80, 250)
            return descriptor(2, head) + self._interfaces
        if kind == 3 and index < len(self._strings):
            text = self._strings[index].encode("utf-16-le")
            return descriptor(3, text if index else b"\x09\x04")
        raise StallError

    def _unlink(self, number: int, wanted: int) -> None:
        """The kernel takes a transfer back; one that is answered already stays so."""
        with self._changed:
            taken_back = wanted in self._open
            self._open.discard(wanted)
            for endpoint_number, unread in self._unread.items():
                left = (transfer for transfer in unread if transfer.number != wanted)
                self._unread[endpoint_number] = deque(left)
            status = -errno.ECONNRESET if taken_back else 0
            self._send(_UNLINKED, number, struct.pack(">i24x", status))

    def _answer(self, transfer: Transfer, length: int, content: bytes, status: int = 0) -> None:
        packets = len(transfer.packets)
        fields = _RESULT_FIELDS.pack(status, length, 0, packets, 0)
        self._send(_SUBMITTED, transfer.number, fields + content)

    def _send(self, command: int, number: int, content: bytes) -> None:
        assert self._socket is not None
        # The kernel may have closed the connection; the reader will see it.
        with self._changed, contextlib.suppress(OSError):
            self._socket.sendall(_HEADER.pack(command, number, 0, 0, 0) + content)


def wait_for(condition: Callable[[], T | None], what: str, limit_s: float = PLUG_LIMIT_S) -> T:
    """What `condition` gives once that is true; an AssertionError when it takes too long."""
    end = time.monotonic() + limit_s
    while not (result := condition()):
        assert time.monotonic() < end, f"waited {limit_s:g} s for {what}"
        time.sleep(0.01)
    return result


def _in_use(port: int) -> bool:
    """Whether the kernel still holds what was in the port."""
    lines = (HOST / "status").read_text("ascii").splitlines()[1:]
    return any(int(line.split()[1]) == port and line.split()[2] != "004" for line in lines)


def _present(port: int) -> Path | None:
    """The folder of what is in the port."""
    found = (path for path in HOST.glob(f"usb*/*-{port + 1}") if ":" not in path.name)
    return next(found, None)
