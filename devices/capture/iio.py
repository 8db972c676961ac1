"""Motion sensors of Linux's Industrial I/O: which there are, and reading one from sysfs or its buffer.

By the kernel's Documentation/ABI/testing/sysfs-bus-iio and Documentation/iio. Tested on an imitation of
these files only: no IIO device was at hand.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.access import busy, missing, refusal
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.inputs import InputDevice
from fusedge.devices.capture.mount import ACCELERATIONS, ANGULAR_VELOCITIES

SYSFS = Path("/sys/bus/iio/devices")
DEV = Path("/dev")
QUANTITIES: Mapping[str, tuple[str, ...]] = {
    "accel": ACCELERATIONS,
    "anglvel": ANGULAR_VELOCITIES,
}
"""What IIO calls a quantity, in m/s2 and rad/s, and the channels x, y, z of it."""
AXES = "xyz"
MAX_TEXT = 4096  # sysfs gives no more than a page
MAX_READ = 1 << 16
BATCH_S = 0.02  # the kernel wakes us for this much at a time
BUFFER_S = 1.0
RATE_TOLERANCE = 0.01
_TYPE = re.compile(r"(be|le):([su])(\d{1,2})/(\d{1,3})(?:X(\d{1,2}))?>>(\d{1,2})", re.ASCII)


class IioDevice(NamedTuple):
    """A device with its folder in sysfs, and what of QUANTITIES it measures."""

    folder: Path
    name: str
    quantities: tuple[str, ...]

    @property
    def number(self) -> int:
        """N of iio:deviceN."""
        return int(self.folder.name.rpartition("device")[2])

    @property
    def buffered(self) -> bool:
        """Whether it can be read through a buffer."""
        return _elements(self.folder) is not None


def devices(sysfs: Path = SYSFS) -> list[IioDevice]:
    """The devices that measure motion, by number."""
    found = []
    for folder in sysfs.glob("iio:device*"):
        quantities = tuple(q for q in QUANTITIES if any(_axes(folder, q)))
        if quantities and folder.name.rpartition("device")[2].isdecimal():
            found.append(IioDevice(folder, _text(folder / "name"), quantities))
    return sorted(found, key=lambda device: device.number)


def imus(sysfs: Path = SYSFS, dev: Path = DEV) -> list[InputDevice]:
    """The motion sensors as inputs: one for each device, or for a chip with a device for each quantity."""
    known = devices(sysfs)
    listed = []
    for group in _chips(known):
        names = [device.name for device in known]
        target = "+".join(
            device.name if device.name and names.count(device.name) == 1 else str(device.number)
            for device in group
        )
        rates = _text(group[0].folder / "sampling_frequency_available")
        formats = [" and ".join(q for device in group for q in device.quantities)]
        formats += [f"buffered, rates {rates or 'not listed'}"] if group[0].buffered else []
        locked = [
            str(path)
            for path in (dev / device.folder.name for device in group)
            if path.exists() and not os.access(path, os.R_OK)
        ]
        note = f"no permission for {', '.join(locked)}" if locked else ""
        name = ", ".join(device.name or device.folder.name for device in group)
        listed.append(InputDevice("imu", name, f"imu:iio:{target}", tuple(formats), note))
    return listed


def find(address: Address, target: str, sysfs: Path = SYSFS) -> list[IioDevice]:
    """The devices of `N`, `NAME`, two of them with + between, or `auto` for the only sensor there is.

    Raises FusedgeError where there is none, or more than one fits.
    """
    known = devices(sysfs)
    if target == "auto":
        chips = _chips(known)
        if len(chips) == 1:
            return chips[0]
        uris = [listed.uri for listed in imus(sysfs)]
        if chips:
            raise address.error(f"auto may be {', '.join(uris)}", hint="name one of them")
        raise missing(address, "that measures motion", ())
    found = []
    for word in target.split("+"):
        fitting = [d for d in known if word in (d.name, str(d.number))]
        if len(fitting) > 1:
            numbers = ", ".join(str(device.number) for device in fitting)
            raise address.error(f"{word} may be number {numbers}", hint="say which")
        if not fitting:
            raise missing(address, word, [d.name or str(d.number) for d in known])
        found += fitting
    measured = [quantity for device in found for quantity in device.quantities]
    if len(set(measured)) < len(measured):
        raise address.error("both measure the same", hint="name one of them")
    return found


def _chips(known: list[IioDevice]) -> list[list[IioDevice]]:
    """Devices alone or, where two have one parent or one stem of their names, together."""
    chips: list[list[IioDevice]] = []
    for device in known:
        for chip in chips:
            if not set(chip[0].quantities) & set(device.quantities) and _siblings(chip[0], device):
                chip.append(device)
                break
        else:
            chips.append([device])
    return chips


def _siblings(a: IioDevice, b: IioDevice) -> bool:
    """As of drivers that register `icm42605-accel` and `icm42605-gyro`, `lsm6dsm_accel` and so on."""
    stems = [re.split(r"[-_](?=accel|gyro|anglvel)", device.name)[0] for device in (a, b)]
    return bool(stems[0]) and stems[0] == stems[1] and stems[0] not in (a.name, b.name)


class Scales:
    """Turns a device's numbers into m/s2 and rad/s, in the axes of the machine where it tells them
    (`mount_matrix`): (raw + offset) * scale.
    """

    def __init__(self, address: Address, device: IioDevice) -> None:
        self._raw: dict[str, tuple[str, float, float]] = {}
        self._matrices: list[tuple[tuple[str, ...], NDArray[np.float64]]] = []
        for quantity in device.quantities:
            for axis in _axes(device.folder, quantity):
                name = f"in_{quantity}_{axis}"
                scale = _shared_number(address, device.folder, quantity, axis, "scale")
                offset = _shared_number(address, device.folder, quantity, axis, "offset", 0.0)
                self._raw[name] = QUANTITIES[quantity][AXES.index(axis)], scale, offset
            matrix = _matrix(address, device.folder, quantity)
            if matrix is not None:
                self._matrices.append((QUANTITIES[quantity], matrix))

    @property
    def names(self) -> list[str]:
        """What IIO calls the channels: in_accel_x, …"""
        return list(self._raw)

    def values(self, raw: Mapping[str, float]) -> dict[str, float]:
        """Channels by name, of raw numbers by IIO's names."""
        values = {}
        for name, number in raw.items():
            channel, scale, offset = self._raw[name]
            values[channel] = (number + offset) * scale
        for names, matrix in self._matrices:
            turned = matrix @ [values.get(name, math.nan) for name in names]
            values.update(zip(names, turned.tolist(), strict=True))
        return values


class PolledDevice:
    """Reads a device's files in sysfs, one value each. Needs no more than the right to read."""

    def __init__(self, address: Address, device: IioDevice) -> None:
        self._folder = device.folder
        self._scales = Scales(address, device)

    def read(self) -> dict[str, float]:
        """Channels by name. Raises OSError where a file cannot be read, ValueError for no number."""
        raw = {
            name: float(_read(self._folder / f"{name}_raw").strip()) for name in self._scales.names
        }
        return self._scales.values(raw)


class Scan(NamedTuple):
    """One row of a buffer; `time_ns` is the driver's stamp, if it gives one."""

    time_ns: int | None
    values: dict[str, float]


class BufferedDevice:
    """A device's buffer, switched on until it is closed.

    `rate_hz` None leaves the rate as it is; `achieved_hz` is what the device says of it (None: nothing).
    `monotonic` tells whether stamps are on the monotonic clock. Raises FusedgeError where the buffer cannot
    be had, and leaves nothing switched on then.
    """

    def __init__(
        self,
        address: Address,
        device: IioDevice,
        rate_hz: float | None,
        sysfs: Path = SYSFS,
        dev: Path = DEV,
    ) -> None:
        self._address, self._folder, self._sysfs = address, device.folder, sysfs
        self._scales = Scales(address, device)
        elements = _elements(device.folder)
        if elements is None:
            raise address.error(f"{device.name or device.folder.name} has no buffer")
        self._elements = elements
        self._switch = _first_of(device.folder / "buffer", device.folder / "buffer0")
        path = dev / device.folder.name
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            others = [p.name for p in dev.glob("iio:device*")]
            raise refusal(address, str(path), error, others) from None
        self._left = b""
        try:
            self._write(self._switch / "enable", "0")
            self._choose()
            self.achieved_hz = self._set_rate(rate_hz)
            self._set_up(self.achieved_hz or rate_hz)
            self._layout, self._size = _layout(address, elements, self._scales.names)
            self._enable(str(path))
        except BaseException:
            self.close()
            raise

    def read(self) -> list[Scan]:
        """What has come, maybe nothing; never waits. Raises OSError where the device is gone."""
        try:
            data = os.read(self.fd, MAX_READ)
        except BlockingIOError:
            return []
        if not data:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        data = self._left + data
        whole = len(data) // self._size * self._size
        self._left = data[whole:]
        return [self._scan(data[k : k + self._size]) for k in range(0, whole, self._size)]

    def close(self) -> None:
        """Switch the buffer off and close it; may be called twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):  # it is gone, or was never ours
                (self._switch / "enable").write_text("0")
            os.close(fd)

    def _scan(self, data: bytes) -> Scan:
        time_ns, raw = None, {}
        for element in self._layout:
            number = element.number(data)
            if element.name == "in_timestamp":
                time_ns = number
            else:
                raw[element.name] = number
        return Scan(time_ns, self._scales.values(raw))

    def _choose(self) -> None:
        """Enable our channels and the stamp, and nothing else, so that a row is what we think."""
        wanted = {*self._scales.names, "in_timestamp"}
        for file in sorted(self._elements.glob("in_*_en")):
            self._write(file, str(int(file.name.removesuffix("_en") in wanted)))

    def _set_rate(self, rate_hz: float | None) -> float | None:
        files = [
            file
            for name in ("", "in_accel_", "in_anglvel_")
            if (file := self._folder / f"{name}sampling_frequency").exists()
        ]
        if not files:
            return None
        if rate_hz is not None:
            for file in files:
                self._write(file, f"{_nearest_rate(file, rate_hz):g}")
        return _number(_text(files[0]))

    def _set_up(self, rate_hz: float | None) -> None:
        trigger = self._folder / "trigger" / "current_trigger"
        own = [name for name in _triggers(self._sysfs) if self._is_own(name)]
        if trigger.exists() and not _text(trigger) and len(own) == 1:
            self._write(trigger, own[0])
        clock = self._folder / "current_timestamp_clock"
        if clock.exists():
            with suppress(OSError):  # DeviceClock then places the stamps
                clock.write_text("monotonic")
        self.monotonic = _text(clock) == "monotonic"
        rows = rate_hz or 1 / BATCH_S
        self._write(self._switch / "length", str(max(16, math.ceil(rows * BUFFER_S))))
        watermark = self._switch / "watermark"
        if watermark.exists():
            self._write(watermark, str(max(1, int(rows * BATCH_S))))

    def _is_own(self, trigger: str) -> bool:
        """Drivers call their trigger `NAME-devN` or `NAME-trigger`."""
        name = _text(self._folder / "name")
        return bool(name) and trigger.startswith(name)

    def _enable(self, path: str) -> None:
        try:
            (self._switch / "enable").write_text("1")
        except OSError as error:
            trigger = self._folder / "trigger" / "current_trigger"
            if error.errno == errno.EBUSY:
                raise busy(self._address, path) from None
            if error.errno == errno.EINVAL and trigger.exists() and not _text(trigger):
                known = (
                    ", ".join(_triggers(self._sysfs)) or "none: make one, as with iio-trig-hrtimer"
                )
                raise self._address.error(
                    "needs a trigger", hint=f"write its name to {trigger}; there is {known}"
                ) from None
            raise refusal(self._address, str(self._switch / "enable"), error) from None

    def _write(self, file: Path, text: str) -> None:
        if _text(file) == text:
            return
        try:
            file.write_text(text)
        except OSError as error:
            raise _write_refusal(self._address, file, text, error) from None


class _Element(NamedTuple):
    """A number in a row of a buffer."""

    name: str
    start: int
    length: int
    order: Literal["little", "big"]
    signed: bool
    bits: int
    shift: int

    def number(self, data: bytes) -> int:
        word = int.from_bytes(data[self.start : self.start + self.length], self.order)
        word = word >> self.shift & (1 << self.bits) - 1
        return word - (1 << self.bits) if self.signed and word >> self.bits - 1 else word


def _layout(address: Address, elements: Path, wanted: Iterable[str]) -> tuple[list[_Element], int]:
    """Where in a row the wanted channels and the stamp are, and how long it is.

    Channels lie by their index, each at a multiple of its size, and the row ends at a multiple of
    the largest (iio_compute_scan_bytes in the kernel).
    """
    names, layout, end, largest = {*wanted, "in_timestamp"}, [], 0, 1
    enabled = [
        file.name.removesuffix("_en") for file in elements.glob("in_*_en") if _text(file) == "1"
    ]
    for name in sorted(enabled, key=lambda n: _number(_text(elements / f"{n}_index")) or 0):
        text = _text(elements / f"{name}_type")
        match = _TYPE.fullmatch(text)
        bits, storage, repeat, shift = (
            (int(match[3]), int(match[4]), int(match[5] or 1), int(match[6])) if match else (0,) * 4
        )
        if match is None or storage % 8 or not 0 < bits <= storage or repeat < 1:
            raise address.error(f"{name} has the unknown type {text[:40]!r}")
        length = storage // 8 * repeat
        start = -(-end // length) * length
        end, largest = start + length, max(largest, length)
        if name in names:
            order: Literal["little", "big"] = "little" if match[1] == "le" else "big"
            layout.append(_Element(name, start, storage // 8, order, match[2] == "s", bits, shift))
    if not layout:
        raise address.error("its buffer has none of its channels")
    return layout, -(-end // largest) * largest


def rate_warning(address: Address, asked_hz: float | None, achieved_hz: float | None) -> list[str]:
    """A line where a device keeps to another rate than it was asked for."""
    if asked_hz is None or achieved_hz is None:
        return []
    if abs(achieved_hz - asked_hz) <= RATE_TOLERANCE * asked_hz:
        return []
    return [f"{address.uri}: runs at {achieved_hz:g} Hz, not {asked_hz:g}"]


def _nearest_rate(file: Path, rate_hz: float) -> float:
    """The least rate that the device lists and that is enough, else its greatest; unlisted: the same."""
    text = _text(file.with_name(f"{file.name}_available"))
    listed = [n for n in map(_number, text.strip("[]").split()) if n is not None]
    if not listed:
        return rate_hz
    if text.startswith("["):  # [least step greatest]
        return min(max(rate_hz, listed[0]), listed[-1])
    return min((n for n in listed if n >= rate_hz * (1 - RATE_TOLERANCE)), default=max(listed))


def _write_refusal(address: Address, file: Path, text: str, error: OSError) -> FusedgeError:
    if error.errno == errno.EINVAL:
        known = _text(file.with_name(f"{file.name}_available"))
        hint = f"it takes {known}" if known else ""
        return address.error(f"{file.name} does not take {text}", hint=hint)
    return refusal(address, str(file), error)


def _matrix(address: Address, folder: Path, quantity: str) -> NDArray[np.float64] | None:
    """From the sensor's axes to the machine's; None where they are the same."""
    names = (f"in_{quantity}_mount_matrix", "in_mount_matrix", "mount_matrix")
    text = next(filter(None, (_text(folder / name) for name in names)), "")
    if not text:
        return None
    rows = [[_number(cell) for cell in row.split(",")] for row in text.split(";")]
    if [len(row) for row in rows] != [3, 3, 3] or any(cell is None for row in rows for cell in row):
        raise address.error(f"mount_matrix is no matrix: {text[:80]}")
    matrix = np.array(rows, np.float64)
    return None if np.array_equal(matrix, np.eye(3)) else matrix


def _shared_number(
    address: Address,
    folder: Path,
    quantity: str,
    axis: str,
    what: str,
    default: float | None = None,
) -> float:
    """An attribute of one axis, or of all. Raises FusedgeError where there must be one, and is not."""
    for name in (f"in_{quantity}_{axis}_{what}", f"in_{quantity}_{what}"):
        if (folder / name).exists():
            value = _number(_text(folder / name))
            if value is None:
                raise address.error(f"{folder / name} holds no number")
            return value
    if default is None:
        raise address.error(f"{folder / f'in_{quantity}_{what}'} is missing")
    return default


def _axes(folder: Path, quantity: str) -> Iterator[str]:
    return (axis for axis in AXES if (folder / f"in_{quantity}_{axis}_raw").exists())


def _elements(folder: Path) -> Path | None:
    found = _first_of(folder / "scan_elements", folder / "buffer0")
    return found if found.is_dir() else None


def _first_of(usual: Path, other: Path) -> Path:
    return usual if usual.is_dir() else other


def _triggers(sysfs: Path) -> list[str]:
    return sorted(filter(None, (_text(folder / "name") for folder in sysfs.glob("trigger*"))))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _text(path: Path) -> str:
    """What an attribute holds; empty where there is none."""
    try:
        return _read(path).strip()
    except OSError:
        return ""


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_TEXT).decode("ascii", "replace")
