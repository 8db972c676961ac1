"""Serial ports: which there are, by what name each stays the same, and opening one.

The name is that of the link which udev makes in /dev/serial/by-id (60-serial.rules and the builtin
usb_id of systemd); it is computed from sysfs, so that it holds where no udev runs.
"""

from __future__ import annotations

import errno
import os
import termios
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.devices.capture.access import busy, holders_of, missing, refusal
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.inputs import InputDevice
from fusedge.devices.capture.sysfs import text_attribute
from fusedge.devices.capture.usb_names import usb_name

if TYPE_CHECKING:
    import serial

DEV = Path("/dev")
SYSFS = Path("/sys")
WRITE_TIMEOUT_S = 1.0  # a port that takes nothing, as a Bluetooth one out of reach
_NO_UART = "0"  # PORT_UNKNOWN of <linux/serial.h>: a place for a port, without one
_LOCKED = (errno.EAGAIN, errno.EACCES)


class Port(NamedTuple):
    """A serial port: its device file, what it calls itself, and its name by-id (empty: it has none)."""

    path: str
    product: str
    by_id: str


def ports(dev: Path = DEV, sysfs: Path = SYSFS) -> list[Port]:
    """The serial ports of this machine, by device file."""
    found = [_port(entry, dev) for entry in sorted((sysfs / "class/tty").glob("*"))]
    return [port for port in found if port is not None]


def serial_ports(dev: Path = DEV, sysfs: Path = SYSFS) -> list[InputDevice]:
    """The serial ports as inputs. Nobody can tell from outside whether a GPS or a car is behind one."""
    known = ports(dev, sysfs)
    named = Counter(port.by_id for port in known)
    devices = []
    for port in known:
        unique = port.by_id and named[port.by_id] == 1
        notes = []
        if port.by_id and not unique:
            notes.append("another port has the same name, so the order of plugging in decides")
        if not os.access(port.path, os.R_OK | os.W_OK):
            notes.append(f"no permission for {port.path}")
        holders = holders_of(port.path)
        if holders:
            notes.append(f"in use by {', '.join(holders)}")
        devices.append(
            InputDevice(
                "serial",
                port.product or port.path,
                f"gps:{f'by-id/{port.by_id}' if unique else port.path}",
                (f"gps: or obd: (or can: with an slcan adapter), now {port.path}",),
                "; ".join(notes),
            )
        )
    return devices


def port_path(address: Address, target: str, dev: Path = DEV, sysfs: Path = SYSFS) -> str:
    """The device file of `/dev/NAME`, `by-id/NAME`, `by-path/NAME`, or `auto` for the only port.

    Raises FusedgeError where there is no such port, or several fit.
    """
    if target.startswith("/"):
        return target
    known = ports(dev, sysfs)
    listed = [f"by-id/{port.by_id}" if port.by_id else port.path for port in known]
    if target == "auto":
        fitting = [port.path for port in known]
    # os.path answers False where Path raises: no permission, name too long
    elif os.path.islink(dev / "serial" / target):  # noqa: PTH114
        return os.path.realpath(dev / "serial" / target)
    else:
        fitting = [port.path for port in known if target == f"by-id/{port.by_id}"]
    if len(fitting) > 1:
        raise address.error(f"{target} may be {', '.join(fitting)}", hint="name one of them")
    if not fitting:
        raise missing(address, target or "without a name", listed)
    return fitting[0]


def open_serial(
    address: Address,
    target: str,
    baud: int,
    timeout_s: float,
    dev: Path = DEV,
    sysfs: Path = SYSFS,
) -> serial.Serial:
    """The port, open for us alone; a read waits for at most `timeout_s`.

    `target` is as for `port_path`. What it raises later is an OSError. Raises FusedgeError where the port
    is missing, in use or not permitted, MissingExtraError without pyserial.
    """
    try:
        import serial
    except ImportError:
        raise MissingExtraError("pyserial", address.scheme, "a serial port") from None
    path = port_path(address, target, dev, sysfs)
    try:
        return serial.Serial(
            path, baud, timeout=timeout_s, write_timeout=WRITE_TIMEOUT_S, exclusive=True
        )
    except (OSError, ValueError, termios.error) as error:
        raise _refusal(address, path, error, dev, sysfs) from None


def _refusal(address: Address, path: str, error: Exception, dev: Path, sysfs: Path) -> FusedgeError:
    if isinstance(error, ValueError):
        return address.error(f"{path} cannot be opened: {error}")
    if not isinstance(error, OSError) or error.errno is None:  # of termios
        return address.error(f"{path} is no serial port")
    if error.errno in _LOCKED and os.access(path, os.R_OK | os.W_OK):
        return busy(address, path)
    return refusal(address, path, error, [port.path for port in ports(dev, sysfs)])


def _port(entry: Path, dev: Path) -> Port | None:
    device = Path(os.path.realpath(entry / "device"))
    if entry.name.startswith("rfcomm"):  # Bluetooth
        return Port(str(dev / entry.name), "Bluetooth", "")
    if not os.path.exists(entry / "device") or text_attribute(entry / "type") == _NO_UART:  # noqa: PTH110
        return None
    # Of usb-serial the tty lies under a port of the interface, of cdc-acm under the interface.
    inside = text_attribute(device / "bInterfaceNumber")
    interface = device if inside else device.parent
    number = inside or text_attribute(interface / "bInterfaceNumber")
    if not number:
        return Port(str(dev / entry.name), "", "")
    usb = interface.parent
    index = "" if inside else text_attribute(device / "port_number")
    by_id = f"usb-{usb_name(usb)}-if{number}" + (f"-port{index}" if index else "")
    words = (text_attribute(usb / "manufacturer"), text_attribute(usb / "product"))
    return Port(str(dev / entry.name), " ".join(filter(None, words)), by_id)
