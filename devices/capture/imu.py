"""Motion sensors as sources: acceleration and angular velocity, in the sensor's axes and the vehicle's.

The vehicle's channels are what a sensor feels, unfiltered. Those of UAH-DriveSet, on which the `driving`
bundle was trained, come from a phone whose filter takes slow accelerations for tilt (see
fusedge.devices.capture.replay.uah). Roll, pitch and yaw there are the phone's own; they are not offered.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator
from pathlib import Path

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample, StampKind
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.access import refusal
from fusedge.devices.capture.address import Request
from fusedge.devices.capture.device_clock import DeviceClock, believable
from fusedge.devices.capture.held_device import HeldDevice
from fusedge.devices.capture.iio import (
    DEV,
    QUANTITIES,
    SYSFS,
    BufferedDevice,
    IioDevice,
    PolledDevice,
    Scan,
    find,
    rate_warning,
)
from fusedge.devices.capture.mount import (
    ACCELERATIONS,
    ALIGNED,
    ANGULAR_VELOCITIES,
    SENSOR_CHANNELS,
    VEHICLE_CHANNELS,
    Mount,
    MountCalibration,
    load_mount,
)
from fusedge.devices.capture.remembered import Remembered
from fusedge.devices.capture.source import Source
from fusedge.devices.capture.wanted import RowLayout, modality_of

WAIT_S = 0.1  # of a read, and so the longest that close waits
POLL_HZ = 50.0
MAX_RATE_HZ = 8000.0
MAX_POLL_HZ = 1000.0
BAD_READS = 10  # in a row, and the sensor is given up
HOLD_NS = to_ns(0.1)  # of a chip's second device, for a row of its first
_found: Remembered[Mount] = Remembered()  # by sensor, with mount=auto
_GONE = (errno.ENODEV, errno.ENOENT, errno.ENXIO, errno.EBADF)


def open_imu(request: Request) -> Source:
    """The source `imu:iio:DEVICE?mount=MOUNT`.

    DEVICE is a number, a name, two with + between (a chip with a device for each quantity), or `auto`.
    MOUNT is a file of `fusedge calibrate`, `auto` (found while driving, and kept as long as this process
    runs, also where the sensor is opened again), or `none` (the sensor's axes are the vehicle's); the
    vehicle's channels need one of them.
    """
    address = request.address
    bus, _, target = address.target.partition(":")
    if bus != "iio" or not target:
        raise address.error("a motion sensor is named by its bus", hint="write imu:iio:0")
    sysfs, dev = Path(address.text("sysfs", str(SYSFS))), Path(address.text("dev", str(DEV)))
    devices = find(address, target, sysfs)
    mode = address.choice("mode", ("auto", "buffered", "polled"), "auto")
    frame = _Frame(request, devices)
    rate_hz = address.number("rate", frame.rate_hz, 0.1, MAX_RATE_HZ)
    if mode == "buffered" or (mode == "auto" and all(device.buffered for device in devices)):
        try:
            return BufferedImu(request, frame, devices, rate_hz, sysfs, dev)
        except FusedgeError as error:
            if mode == "buffered":
                raise
            frame.warnings += (f"{error.line()}; polled instead, with stamps of arrival",)
    return PolledImu(request, frame, devices, rate_hz or POLL_HZ)


class _Frame:
    """What rows of a sensor have: its own channels and, with a mount, the vehicle's."""

    def __init__(self, request: Request, devices: list[IioDevice]) -> None:
        address = request.address
        self.modality, spec = modality_of(address, request.wanted, "series", "imu")
        self.rate_hz = None if spec is None else spec.rate_hz
        measured = [q for device in devices for q in device.quantities]
        offered = {n: SENSOR_CHANNELS[n] for q in measured for n in QUANTITIES[q]}
        self._sensor = (address.target, address.text("sysfs"), *(d.name for d in devices))
        self._mount: Mount | None = None
        self._calibration: MountCalibration | None = None
        self.warnings: tuple[str, ...] = ()
        given = address.text("mount")
        asked = () if spec is None else tuple(channel.name for channel in spec.channels)
        if given == "none":
            self._mount = ALIGNED
        elif given == "auto":
            if set(measured) != set(QUANTITIES):
                raise address.error("mount=auto needs acceleration and angular velocity")
            self._mount = _found.get(self._sensor)
            if self._mount is None:
                self._calibration = MountCalibration()
                self.warnings = (
                    f"{address.uri}: the vehicle's axes are not known yet, and their channels not "
                    "measured until some rests and turns have told them",
                )
        elif given:
            self._mount = load_mount(Path(given))
        elif set(asked) & set(VEHICLE_CHANNELS):
            raise address.error(
                "how the sensor sits in the vehicle is not known",
                hint="mount=FILE of fusedge calibrate, mount=auto to find it while driving, or "
                "mount=none if x is forward, y left and z up",
            )
        if given:
            half = len(VEHICLE_CHANNELS) // 2
            names = list(VEHICLE_CHANNELS)
            for quantity, part in (("accel", names[:half]), ("anglvel", names[half:])):
                if quantity in measured:
                    offered |= {name: VEHICLE_CHANNELS[name] for name in part}
        self._layout = RowLayout(address, self.modality, spec, offered)
        self.channels, self.units = self._layout.channels, self._layout.units
        self.warnings += self._layout.warnings

    def sample(
        self, values: dict[str, float], time_ns: int, arrival_ns: int, stamp: StampKind
    ) -> Sample:
        """The row of what was measured at one time."""
        calibration = self._calibration
        if calibration is not None:
            calibration.add(
                time_ns,
                [values.get(name, float("nan")) for name in ACCELERATIONS],
                [values.get(name, float("nan")) for name in ANGULAR_VELOCITIES],
            )
            if calibration.mount is not None:
                self._mount, self._calibration = calibration.mount, None
                _found.put(self._sensor, calibration.mount)
        if self._mount is not None:
            values = values | self._mount.vehicle(values)
        return Sample(self.modality, time_ns, arrival_ns, self._layout.row(values), stamp)


class _Imu(HeldDevice):
    """What the two ways of reading have in common: see Source."""

    def __init__(self, request: Request, frame: _Frame) -> None:
        super().__init__()
        self.uri = request.address.uri
        self._address, self._now_ns, self._frame = request.address, request.now_ns, frame
        self.modalities = (frame.modality,)
        self.channels = {frame.modality: frame.channels}
        self.units = {frame.modality: frame.units}
        self.warnings = frame.warnings

    def _release(self) -> None:
        """Nothing is held between two readings."""

    def _gone(self, error: OSError) -> FusedgeError:
        return self._address.error(f"the sensor is gone: {error.strerror or error}")


class PolledImu(_Imu):
    """Reads the sensor's values one by one, at a rate of our own. Stamps are the middle of the reading."""

    def __init__(
        self, request: Request, frame: _Frame, devices: list[IioDevice], rate_hz: float
    ) -> None:
        super().__init__(request, frame)
        if rate_hz > MAX_POLL_HZ:
            raise self._address.error(
                f"{rate_hz:g} Hz cannot be polled",
                hint=f"at most {MAX_POLL_HZ:g}; or mode=buffered",
            )
        self._period_ns = to_ns(1 / rate_hz)
        self._devices = [PolledDevice(self._address, device) for device in devices]
        for device in self._devices:
            try:
                device.read()
            except OSError as error:
                path = error.filename or str(devices[0].folder)
                raise refusal(self._address, str(path), error) from None
            except ValueError as error:
                raise self._address.error(f"it gives no numbers: {error}") from None

    def _items(self) -> Iterator[Sample | Rejection]:
        due_ns, bad = self._now_ns(), 0
        while not self._closed.is_set():
            before_ns = self._now_ns()
            values: dict[str, float] = {}
            try:
                for device in self._devices:
                    values |= device.read()
            except (OSError, ValueError) as error:
                bad += 1
                if isinstance(error, OSError) and (error.errno in _GONE or bad >= BAD_READS):
                    raise self._gone(error) from None
                reason = "malformed" if isinstance(error, ValueError) else "read_error"
                yield Rejection(self._frame.modality, self._now_ns(), reason, str(error))
            else:
                bad, arrival_ns = 0, self._now_ns()
                middle_ns = (before_ns + arrival_ns) // 2
                yield self._frame.sample(values, middle_ns, arrival_ns, "arrival")
            # a reading that comes late moves the next ones, rather than have them come in a burst
            due_ns = max(due_ns + self._period_ns, self._now_ns())
            self._closed.wait(max(0, due_ns - self._now_ns()) / 1e9)


class BufferedImu(_Imu):
    """Reads the sensor's buffer. Stamps are the driver's, where it gives them."""

    def __init__(
        self,
        request: Request,
        frame: _Frame,
        devices: list[IioDevice],
        rate_hz: float | None,
        sysfs: Path,
        dev: Path,
    ) -> None:
        super().__init__(request, frame)
        self._devices: list[BufferedDevice] = []
        try:
            for device in devices:
                self._devices.append(BufferedDevice(self._address, device, rate_hz, sysfs, dev))
        except BaseException:
            self._release()
            raise
        self._clocks = [DeviceClock() for _ in devices]
        self._held: dict[int, tuple[int, dict[str, float]]] = {}
        first = self._devices[0]
        self.warnings += tuple(rate_warning(self._address, rate_hz, first.achieved_hz))
        self._period_ns = to_ns(1 / (first.achieved_hz or rate_hz or POLL_HZ))

    def _items(self) -> Iterator[Sample | Rejection]:
        fds = [device.fd for device in self._devices]
        while not self._closed.is_set():
            ready, _, _ = select.select(fds, [], [], WAIT_S)
            for place, device in reversed([*enumerate(self._devices)]):  # the first makes the rows
                if device.fd in ready:
                    try:
                        scans = device.read()
                    except OSError as error:
                        raise self._gone(error) from None
                    yield from self._rows(place, scans)

    def _rows(self, place: int, scans: list[Scan]) -> Iterator[Sample]:
        arrival_ns = self._now_ns()
        for number, scan in enumerate(scans, 1):
            stamp: StampKind = "capture"
            if scan.time_ns is None:
                stamp, time_ns = "arrival", arrival_ns - (len(scans) - number) * self._period_ns
            elif self._devices[place].monotonic and believable(scan.time_ns, arrival_ns):
                time_ns = scan.time_ns
            else:
                time_ns = self._clocks[place].place(scan.time_ns, arrival_ns)
            if place:
                self._held[place] = time_ns, scan.values
                continue
            values = scan.values
            for held_ns, held in self._held.values():
                if abs(time_ns - held_ns) <= HOLD_NS:
                    values = values | held
            yield self._frame.sample(values, time_ns, arrival_ns, stamp)

    def _release(self) -> None:
        for device in self._devices:
            device.close()
