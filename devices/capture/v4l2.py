"""V4L2 cameras of this machine: what they offer, and names of theirs that stay the same.

The names of USB cameras are spelt as udev spells them (systemd's 60-persistent-v4l.rules and its builtin
usb_id), and are made from sysfs, so that they hold in a container as well. Requests and structures are
those of linux/videodev2.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from fusedge.devices.capture.access import holders_of, missing, refusal
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.inputs import InputDevice
from fusedge.devices.capture.pixels import LAYOUTS
from fusedge.devices.capture.sysfs import attribute
from fusedge.devices.capture.usb_names import usb_name

DEV, SYS = Path("/dev"), Path("/sys")
TEGRA_DRIVER = "tegra-video"  # of Jetson's CSI sensors: raw Bayer, pictures come from Argus
MAX_ENTRIES = 128  # of one list that a driver gives; a webcam has some 4 x 20 x 10

_CAPTURE = 1  # V4L2_BUF_TYPE_VIDEO_CAPTURE and V4L2_CAP_VIDEO_CAPTURE
_DEVICE_CAPS = 0x80000000
_DISCRETE = 1
_U32 = ctypes.c_uint32


class _Capability(ctypes.Structure):
    _fields_ = (
        ("driver", ctypes.c_char * 16),
        ("card", ctypes.c_char * 32),
        ("bus_info", ctypes.c_char * 32),
        ("version", _U32),
        ("capabilities", _U32),
        ("device_caps", _U32),
        ("reserved", _U32 * 3),
    )


class _FormatEntry(ctypes.Structure):
    _fields_ = (
        ("index", _U32),
        ("type", _U32),
        ("flags", _U32),
        ("description", ctypes.c_char * 32),
        ("pixelformat", _U32),
        ("reserved", _U32 * 4),
    )


class _SizeEntry(ctypes.Structure):
    # Discrete: width, height. Stepwise: least, greatest and step of the width, then of the height.
    _fields_ = (
        ("index", _U32),
        ("pixelformat", _U32),
        ("type", _U32),
        ("values", _U32 * 6),
        ("reserved", _U32 * 2),
    )


class _IntervalEntry(ctypes.Structure):
    # Fractions of a second. Discrete: one. Stepwise: shortest, longest and step.
    _fields_ = (
        ("index", _U32),
        ("pixelformat", _U32),
        ("width", _U32),
        ("height", _U32),
        ("type", _U32),
        ("values", _U32 * 6),
        ("reserved", _U32 * 2),
    )


class _Pixels(ctypes.Structure):
    _fields_ = (
        ("width", _U32),
        ("height", _U32),
        ("pixelformat", _U32),
        ("field", _U32),
        ("bytesperline", _U32),
        ("sizeimage", _U32),
    )


class _FormatUnion(ctypes.Union):
    # One of the kinds of format holds pointers, which sets the alignment.
    _fields_ = (("pix", _Pixels), ("raw", ctypes.c_uint8 * 200), ("align", ctypes.c_void_p))


class _Format(ctypes.Structure):
    _fields_ = (("type", _U32), ("fmt", _FormatUnion))


class _StreamParameters(ctypes.Structure):
    _fields_ = (
        ("type", _U32),
        ("capability", _U32),
        ("mode", _U32),
        ("numerator", _U32),
        ("denominator", _U32),
        ("rest", _U32 * 46),
    )


def _ask(fd: int, number: int, data: ctypes.Structure, writes: bool = True) -> bool:
    """Make the request; False at the end of a list, or where the driver does not know it."""
    request = (3 if writes else 2) << 30 | ctypes.sizeof(data) << 16 | ord("V") << 8 | number
    try:
        fcntl.ioctl(fd, request, data)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTTY, errno.ENODATA):
            return False
        raise
    return True


class Span(NamedTuple):
    """What a width or height may be: `least`, and on in steps to `greatest`."""

    least: int
    greatest: int
    step: int = 1

    def at_least(self, value: int) -> int | None:
        """The smallest one that is not below `value`."""
        steps = -(-max(0, value - self.least) // max(1, self.step))
        fit = self.least + steps * max(1, self.step)
        return fit if fit <= self.greatest else None


class Offer(NamedTuple):
    """A pixel format in one size, or a range of sizes, and its rates in Hz, the fastest first.

    `any_rate`: those between the two rates are offered too. No rates: the driver does not say.
    """

    format: str
    width: Span
    height: Span
    rates: tuple[float, ...] = ()
    any_rate: bool = False

    def rate(self, wanted: float) -> float:
        """The slowest rate that is not below `wanted`, else the fastest; `wanted` where none is known."""
        if self.any_rate and self.rates[-1] < wanted < self.rates[0]:
            return wanted
        enough = [rate for rate in self.rates if rate >= wanted * (1 - RATE_TOLERANCE)]
        return min(enough, default=max(self.rates, default=wanted))

    @property
    def size(self) -> str:
        """For people."""
        least = f"{self.width.least}x{self.height.least}"
        greatest = f"{self.width.greatest}x{self.height.greatest}"
        return least if least == greatest else f"{least} to {greatest}"

    def __str__(self) -> str:
        shown = [f"{rate:.4g}" for rate in self.rates]
        rates = f"{shown[-1]} to {shown[0]}" if self.any_rate else ", ".join(shown)
        return f"{self.format} {self.size}" + (f" at {rates} Hz" if rates else "")


RATE_TOLERANCE = 0.01  # 29.97 Hz is meant by 30, and the other way round


class Setting(NamedTuple):
    """How a camera is set: pixel format, size, bytes from one line to the next, rate (0: unknown)."""

    format: str
    width: int
    height: int
    line_bytes: int
    rate_hz: float


class Capability(NamedTuple):
    """Who a device is: its driver, its name, and where it is attached."""

    driver: str
    card: str
    bus_info: str
    captures: bool


def capability(fd: int) -> Capability | None:
    """What an open device says of itself; None where it is not of V4L2."""
    data = _Capability()
    if not _ask(fd, 0, data, writes=False):
        return None
    caps = data.device_caps if data.capabilities & _DEVICE_CAPS else data.capabilities
    driver, card, bus = (
        text.decode("utf-8", "replace") for text in (data.driver, data.card, data.bus_info)
    )
    return Capability(driver, card, bus, bool(caps & _CAPTURE))


def offers(fd: int) -> list[Offer]:
    """All that an open camera offers."""
    return [
        offer
        for number in islice(_formats(fd), MAX_ENTRIES)
        for offer in islice(_sizes(fd, number), MAX_ENTRIES)
    ]


def _formats(fd: int) -> Iterator[int]:
    data = _FormatEntry(type=_CAPTURE)
    while _ask(fd, 2, data):
        yield data.pixelformat
        data.index += 1


def _sizes(fd: int, number: int) -> Iterator[Offer]:
    data = _SizeEntry(pixelformat=number)
    while _ask(fd, 74, data):
        values = list(data.values)
        if data.type == _DISCRETE:
            width, height = (Span(value, value) for value in values[:2])
        else:
            width, height = Span(*values[:3]), Span(*values[3:])
        rates, any_rate = _rates(fd, number, width.greatest, height.greatest)
        yield Offer(_fourcc(number), width, height, rates, any_rate)
        if data.type != _DISCRETE:
            return
        data.index += 1


def _rates(fd: int, number: int, width: int, height: int) -> tuple[tuple[float, ...], bool]:
    data, found = _IntervalEntry(pixelformat=number, width=width, height=height), set()
    while data.index < MAX_ENTRIES and _ask(fd, 75, data):
        values = list(data.values)
        pairs = zip(values[::2], values[1::2], strict=True)
        rates = [denominator / max(1, numerator) for numerator, denominator in pairs]
        if data.type != _DISCRETE:
            return (rates[0], rates[1]), True
        found.add(rates[0])
        data.index += 1
    return tuple(sorted(found, reverse=True)), False


def setting(fd: int) -> Setting:
    """How an open camera is set now."""
    data, parameters = _Format(type=_CAPTURE), _StreamParameters(type=_CAPTURE)
    _ask(fd, 4, data)
    known = _ask(fd, 21, parameters) and parameters.numerator
    rate = parameters.denominator / parameters.numerator if known else 0.0
    pix = data.fmt.pix
    return Setting(_fourcc(pix.pixelformat), pix.width, pix.height, pix.bytesperline, rate)


def claim(fd: int, format: str, width: int, height: int) -> None:
    """Set the camera; raises OSError with EBUSY where another program streams from it."""
    data = _Format(type=_CAPTURE)
    _ask(fd, 4, data)
    pix = data.fmt.pix
    pix.width, pix.height, pix.bytesperline, pix.sizeimage = width, height, 0, 0
    pix.pixelformat = int.from_bytes(format.ljust(4).encode("latin-1"), "little")
    _ask(fd, 5, data)


def _fourcc(number: int) -> str:
    text = (number & 0x7FFFFFFF).to_bytes(4, "little").decode("latin-1").rstrip()
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


class _Node(NamedTuple):
    path: Path
    by_id: str  # empty where it is not on USB
    number: int  # among the nodes of its device
    title: str


def _nodes(dev: Path, sys: Path) -> list[_Node]:
    """The video nodes in `dev`, cameras and others, with what sysfs has of them."""
    found = [path for path in dev.glob("video*") if path.name[5:].isdecimal()]
    found.sort(key=lambda path: int(path.name[5:]))
    return [_node(path, sys / "class/video4linux" / path.name) for path in found]


def _node(path: Path, folder: Path) -> _Node:
    index = attribute(folder / "index").decode("latin-1")
    number = int(index) if index.isdecimal() else 0
    usb = _usb_name(folder)
    by_id = f"usb-{usb}-video-index{number}" if usb else ""
    return _Node(path, by_id, number, attribute(folder / "name").decode("utf-8", "replace"))


def _usb_name(folder: Path) -> str:
    """The name of the USB device that the node belongs to; empty where it is on none."""
    device = (folder / "device").resolve()
    usb = next((p for p in (device, *device.parents) if (p / "idVendor").is_file()), None)
    return usb_name(usb) if usb is not None else ""


class _Camera(NamedTuple):
    node: _Node
    seen: Capability | None  # None: it may not be opened, because of `problem`
    problem: OSError | None = None


def _cameras(dev: Path, sys: Path) -> list[_Camera]:
    """The nodes that give pictures, and those that may not be asked."""
    found = []
    for node in _nodes(dev, sys):
        try:
            with _opened(node.path) as fd:
                seen = capability(fd)
        except OSError as error:
            gone = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
            if node.number == 0 and not gone:  # a USB camera's second node is for metadata
                found.append(_Camera(node, None, error))
        else:
            if seen is not None and seen.captures:
                found.append(_Camera(node, seen))
    return found


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def _targets(cameras: list[_Camera]) -> list[str]:
    """A name for each camera: by-id if that is its own, else by-path, else its node."""
    ids = Counter(camera.node.by_id for camera in cameras)
    return [
        f"by-id/{camera.node.by_id}"
        if camera.node.by_id and ids[camera.node.by_id] == 1
        else f"by-path/{place}"
        if (place := _place(camera, cameras))
        else str(camera.node.path)
        for camera in cameras
    ]


def _place(camera: _Camera, cameras: list[_Camera]) -> str:
    """Where it is attached, with the node's index where a device has several cameras."""
    if camera.seen is None:
        return ""
    bus = camera.seen.bus_info
    shared = sum(other.seen is not None and other.seen.bus_info == bus for other in cameras) > 1
    return f"{bus}-video-index{camera.node.number}" if shared else bus


def cameras(dev: Path = DEV, sys: Path = SYS) -> list[InputDevice]:
    """The cameras of this machine, in the order of their nodes.

    Sensors at a Jetson's CSI are `csi:N`, by the same order: V4L2 has only their raw data.
    """
    found, listed, sensors = _cameras(dev, sys), [], 0
    for camera, target in zip(found, _targets(found), strict=True):
        uri, title, path = f"camera:{target}", camera.node.title, str(camera.node.path)
        if camera.seen is not None:
            title = camera.seen.card
            if camera.seen.driver == TEGRA_DRIVER:
                uri, sensors = f"csi:{sensors}", sensors + 1
        formats, problem = _formats_of(camera)
        note = ""
        if problem is not None:
            error = refusal(Address(uri, "camera", target, {}), path, problem)
            note = f"{error.what} ({error.hint})" if error.hint else error.what
        elif holders := holders_of(path):
            note = f"open in {', '.join(holders)}"
        listed.append(InputDevice("camera", title or path, uri, formats, note))
    return listed


def _formats_of(camera: _Camera) -> tuple[tuple[str, ...], OSError | None]:
    """What a camera offers and can be read; all that it offers where that is nothing."""
    if camera.problem is not None:
        return (), camera.problem
    try:
        with _opened(camera.node.path) as fd:
            offered = offers(fd)
    except OSError as error:
        return (), error
    readable = [offer for offer in offered if offer.format in LAYOUTS]
    return tuple(str(offer) for offer in readable or offered), None


def resolve(address: Address, dev: Path = DEV, sys: Path = SYS) -> str:
    """The device file that the target of a URI names: a number, a path, by-id/…, by-path/…, or auto.

    Raises FusedgeError where there is no such camera, or where two have the name.
    """
    kind, _, name = address.target.partition("/")
    if address.target.startswith("/"):
        found = [address.target]
    elif address.target.isdecimal():
        found = [str(dev / f"video{int(address.target)}")]
    elif kind in ("by-id", "by-path") and name and "/" not in name:
        found = _named(address, dev, sys)
    elif address.target == "auto":
        found = [str(camera.node.path) for camera in _cameras(dev, sys)][:1]
    else:
        found = []
    if len(found) > 1:
        twins = [c for c in _cameras(dev, sys) if str(c.node.path) in found]
        raise address.error(
            f"{len(found)} cameras have this name",
            hint=f"say which: {' or '.join(_targets(twins)) or ' or '.join(found)}",
        )
    if not found or not os.path.lexists(found[0]):
        raise missing(address, address.target, known(dev, sys))
    return os.path.realpath(found[0])


def _named(address: Address, dev: Path, sys: Path) -> list[str]:
    kind, _, name = address.target.partition("/")
    if kind == "by-id":
        found = [str(node.path) for node in _nodes(dev, sys) if node.by_id == name]
    else:
        cameras = _cameras(dev, sys)
        found = [str(camera.node.path) for camera in cameras if _place(camera, cameras) == name]
    link = dev / "v4l" / kind / name
    if not found and link.exists():
        found = [str(link)]
    if not found and kind == "by-path":
        for camera in cameras:
            if camera.problem is not None:  # it may be the one, but does not tell where it is
                raise refusal(address, str(camera.node.path), camera.problem)
    return found


def known(dev: Path = DEV, sys: Path = SYS) -> list[str]:
    """All targets that are cameras: their lasting names, then their device files."""
    found = _cameras(dev, sys)
    return list(dict.fromkeys([*_targets(found), *(str(camera.node.path) for camera in found)]))
