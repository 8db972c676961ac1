"""Signals of a CAN bus as a source: `can:CHANNEL?dbc=CAR.dbc&map=SIGNALS.yaml`.

SocketCAN stamps a frame in the kernel when the driver hands it over; an slcan adapter and
udp_multicast tell no time of their own, so their rows are stamped on arrival. A line to an slcan
adapter has no checksum: a digit that it garbles may pass, where the DBC's range does not catch it.

A controller that has left the bus (bus-off) comes back by itself only if it was brought up so, where
its driver can: `ip link set can0 up type can bitrate 500000 restart-ms 100`. Else it is brought back
with `ip link set can0 type can restart`, or by setting it down and up.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.sample import Rejection, Sample, StampKind
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.access import missing
from fusedge.devices.capture.address import Address, Request
from fusedge.devices.capture.can_interfaces import (
    bitrate_of,
    interface_names,
    is_up,
    restart_command,
    up_command,
)
from fusedge.devices.capture.can_signals import CanSignals, FrameError, load_signals
from fusedge.devices.capture.device_clock import DeviceClock
from fusedge.devices.capture.rows import RowCollector
from fusedge.devices.capture.serial_ports import open_serial, port_path
from fusedge.devices.capture.wanted import RowLayout, modality_of

if TYPE_CHECKING:
    import can

INTERFACES = ("socketcan", "slcan", "virtual", "udp_multicast")
STAMPED = ("socketcan", "virtual")  # whose stamps are of the time when the frame was on the bus
RATE_HZ = 10.0
HOLD_S = 1.0
WAIT_S = 0.05  # for a frame; `close` waits for as long
SLCAN_BITRATES = (10_000, 20_000, 50_000, 100_000, 125_000, 250_000, 500_000, 750_000, 1_000_000)
SLCAN_BITRATE = 500_000  # of the high-speed bus behind the OBD-II plug (ISO 15765-4)
SLCAN_BAUD = 115_200  # of python-can; an adapter that is a USB device itself takes any
SLCAN_START_S = 2.0  # an adapter that is an Arduino starts anew when its port is opened
SLCAN_READ_S = 0.02  # how long python-can waits for a byte at a time
MAX_FILTERS = 512  # CAN_RAW_FILTER_MAX of <linux/can/raw.h>
_BUS_OFF = 0x40
# <linux/can/error.h>
_ERROR_CLASSES = {
    0x1: "transmission timed out",
    0x2: "arbitration lost",
    0x4: "controller problem",
    0x8: "protocol violation",
    0x10: "transceiver problem",
    0x20: "no acknowledgement",
    _BUS_OFF: "bus-off",
    0x80: "bus error",
    0x100: "controller restarted",
    0x200: "error counters",
}


def open_can(request: Request) -> CanSource:
    """The source of the signals that a `can:` URI chooses.

    Raises FusedgeError where the interface or a file cannot be used, MissingExtraError without
    python-can or cantools.
    """
    address = request.address
    modality, spec = modality_of(address, request.wanted, "series", "can")
    signals = load_signals(address, spec)
    layout = RowLayout(address, modality, spec, signals.offered)
    rate_hz = address.number("rate", None, 1e-3, 1e4) or (spec.rate_hz if spec else RATE_HZ)
    collector = RowCollector(layout, rate_hz, spec.max_hold_s if spec else HOLD_S)
    chosen = signals.only(layout.used)
    return CanSource(request, layout, chosen, collector)


class CanSource:
    """Rows of the newest values of the signals; see `RowCollector` for when and `CanSignals` for what.

    Rejected are `error_frame`s, `bus_off`, `remote_frame`s of the map, `truncated_frame`s and others
    that are `undecodable_frame`. Frames that are not of the map are left in the kernel, if SocketCAN
    gives them. Raises FusedgeError when the interface goes down or vanishes.
    """

    live = True

    def __init__(
        self, request: Request, layout: RowLayout, signals: CanSignals, collector: RowCollector
    ) -> None:
        address = request.address
        self.uri = address.uri
        self.modalities = (layout.modality,)
        self.channels = {layout.modality: layout.channels}
        self.units = {layout.modality: layout.units}
        self._address = address
        self._modality = layout.modality
        self._now_ns = request.now_ns
        self._signals = signals
        self._collector = collector
        self._lock = threading.Lock()
        self._closed = False
        interface = _interface(address)
        self._clock = DeviceClock() if interface in STAMPED else None
        self.warnings = layout.warnings + _bitrate_warning(address, interface)
        self._bus: can.BusABC | None = _open_bus(address, interface, signals)

    def samples(self) -> Iterator[Sample | Rejection]:
        """Rows and rejections, in the order of arrival."""
        try:
            while True:
                with self._lock:
                    if self._closed:
                        return
                    received = self._receive()
                if received is not None:
                    yield received
        finally:
            self.close()

    def close(self) -> None:
        """Leave the bus; waits for at most `WAIT_S`."""
        self._closed = True
        with self._lock:
            bus, self._bus = self._bus, None
            if bus is not None:
                _shut_down(bus)

    def _receive(self) -> Sample | Rejection | None:
        bus = self._bus
        assert bus is not None
        try:
            frame = bus.recv(WAIT_S)
        except Exception as error:  # python-can raises whatever a malformed frame leads to
            cause = error.__cause__ or error
            if isinstance(cause, OSError):
                raise self._lost(cause) from None
            _forget(bus)
            return self._rejection("undecodable_frame", str(cause))
        return None if frame is None else self._taken(frame, self._now_ns())

    def _taken(self, frame: can.Message, now_ns: int) -> Sample | Rejection | None:
        if frame.is_error_frame:
            return self._error(frame)
        frame_id = frame.arbitration_id, frame.is_extended_id
        if frame_id not in self._signals.frames:
            return None
        if frame.is_remote_frame:
            return self._rejection("remote_frame", f"asks for 0x{frame.arbitration_id:x}")
        try:
            values = self._signals.decode(frame_id, bytes(frame.data))
        except FrameError as error:
            return self._rejection(error.reason, str(error))
        stamp: StampKind = "arrival"
        timestamp_ns = now_ns
        if self._clock is not None and frame.timestamp > 0:
            stamp = "capture"
            timestamp_ns = self._clock.place(to_ns(frame.timestamp), now_ns)
        return self._collector.add(values, timestamp_ns, now_ns, stamp)

    def _error(self, frame: can.Message) -> Rejection:
        classes = [name for bit, name in _ERROR_CLASSES.items() if frame.arbitration_id & bit]
        detail = ", ".join(classes) or "unspecified"
        if not frame.arbitration_id & _BUS_OFF:
            return self._rejection("error_frame", detail)
        hint = restart_command(self._address.target)
        return self._rejection("bus_off", f"the controller has left the bus: {hint}")

    def _rejection(self, reason: str, detail: str) -> Rejection:
        return Rejection(self._modality, self._now_ns(), reason, detail)

    def _lost(self, error: OSError) -> FusedgeError:
        name = self._address.target
        if error.errno == errno.ENETDOWN:
            return self._address.error(f"{name} is down", hint=up_command(name))
        if error.errno in (errno.ENODEV, errno.ENXIO):
            return self._address.error(f"{name} has vanished")
        return self._address.error(f"{name} cannot be read: {error.strerror or error}")


def _interface(address: Address) -> str:
    """What the URI says, or else the target's form tells."""
    target = address.target
    if "interface" in address.options:
        return address.choice("interface", INTERFACES, "")
    if target.startswith(("/", "by-id/", "by-path/")):
        return "slcan"
    if target in interface_names() or target.rstrip("0123456789") in ("can", "vcan", "slcan"):
        return "socketcan"
    raise address.error(
        f"{target or 'nothing'} may be of any interface",
        hint=f"say which: interface={'|'.join(INTERFACES)}",
    )


def _bitrate_warning(address: Address, interface: str) -> tuple[str, ...]:
    bitrate = address.whole("bitrate", None, 1, 10_000_000)
    if bitrate is None or interface == "slcan":
        return ()
    if interface == "socketcan" and bitrate_of(address.target) == bitrate:
        return ()
    return (f"{address.uri}: bitrate={bitrate} is not set here but by whoever sets up the bus",)


def _open_bus(address: Address, interface: str, signals: CanSignals) -> can.BusABC:
    try:
        import can
    except ImportError:
        raise MissingExtraError("python-can", "can", "a CAN bus") from None
    log = logging.getLogger("can")
    if not log.handlers:  # what goes wrong is raised; without a handler it is printed as well
        log.addHandler(logging.NullHandler())
    channel, options = _options(address, interface, signals)
    try:
        bus = can.Bus(channel=channel, interface=interface, ignore_config=True, **options)
        if interface == "slcan":
            bus.serialPortOrig.exclusive = True  # type: ignore[attr-defined]
    except Exception as error:  # python-can raises what a driver raises
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno == errno.EAFNOSUPPORT:
            raise address.error("this kernel has no SocketCAN") from None
        reason = cause.strerror if isinstance(cause, OSError) else None
        raise address.error(f"{channel} cannot be opened: {reason or cause}") from None
    return bus


def _options(address: Address, interface: str, signals: CanSignals) -> tuple[str, dict[str, Any]]:
    """The channel as python-can names it, and what else it needs; an error that it would not tell."""
    target = address.target
    if interface == "socketcan":
        names = interface_names()
        if target not in names:
            raise missing(address, target, names)
        if not is_up(target):
            bitrate = address.whole("bitrate", None, 1, 10_000_000)
            raise address.error(f"{target} is down", hint=up_command(target, bitrate))
        filters = [
            {"can_id": number, "can_mask": 0x1FFFFFFF if extended else 0x7FF, "extended": extended}
            for number, extended in sorted(signals.frames)
        ]
        return target, {"fd": True} | (
            {"can_filters": filters} if len(filters) <= MAX_FILTERS else {}
        )
    if interface == "slcan":
        bitrate = address.whole("bitrate", SLCAN_BITRATE, 1, 10_000_000)
        if bitrate not in SLCAN_BITRATES:
            known = ", ".join(map(str, SLCAN_BITRATES))
            raise address.error(f"slcan has no bitrate={bitrate}", hint=f"it has {known}")
        # python-can would not say why a port does not open, nor mind another program that uses it
        open_serial(address, target, SLCAN_BAUD, WAIT_S).close()
        return port_path(address, target), {
            "tty_baudrate": SLCAN_BAUD,
            "bitrate": bitrate,
            "sleep_after_open": SLCAN_START_S,
            "timeout": SLCAN_READ_S,
        }
    if interface == "udp_multicast":
        try:
            multicast = ipaddress.ip_address(target).is_multicast
        except ValueError:
            multicast = False
        if not multicast:
            raise address.error(
                f"{target} is no multicast address", hint="for example 239.74.163.2"
            )
    return target, {}


def _forget(bus: can.BusABC) -> None:
    """Drop the part of a line that an slcan adapter has sent; python-can would keep it for ever."""
    flush = getattr(bus, "flush", None)
    if flush is not None:
        with contextlib.suppress(Exception):  # that an adapter is gone the next read tells
            flush()


def _shut_down(bus: can.BusABC) -> None:
    """Close everything, also where the adapter that is to be told is gone."""
    try:
        bus.shutdown()
    except Exception:  # of an adapter that is gone; its port stays open
        port = getattr(bus, "serialPortOrig", None)
        if port is not None:
            port.close()
