"""The CAN interfaces of this machine (SocketCAN)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusedge.devices.capture.inputs import InputDevice
from fusedge.devices.capture.sysfs import text_attribute

SYSFS = Path("/sys")
_CAN = "280"  # ARPHRD_CAN of <linux/if_arp.h>
_UP = 1  # IFF_UP of <linux/if.h>
IP_TIMEOUT_S = 2.0


def interface_names(sysfs: Path = SYSFS) -> list[str]:
    """The names of the interfaces, up or down."""
    entries = sorted((sysfs / "class/net").glob("*"))
    return [entry.name for entry in entries if text_attribute(entry / "type") == _CAN]


def is_up(name: str, sysfs: Path = SYSFS) -> bool:
    """Whether the interface is up."""
    flags = text_attribute(sysfs / "class/net" / name / "flags")
    return bool(flags) and bool(int(flags, 16) & _UP)


def up_command(name: str, bitrate: int | None = None) -> str:
    """The command that brings an interface up."""
    if name.startswith("vcan"):
        return f"sudo ip link set {name} up"
    return f"sudo ip link set {name} up type can bitrate {bitrate or 500_000}"


def restart_command(name: str) -> str:
    """The command that brings a controller back which has left the bus."""
    return f"sudo ip link set {name} type can restart (or bring it up with restart-ms 100)"


def bitrate_of(name: str) -> int | None:
    """The interface's bit rate, None where it has none or it cannot be told."""
    return _bitrate(_settings(name))


def can_interfaces(sysfs: Path = SYSFS) -> list[InputDevice]:
    """The interfaces as inputs."""
    devices = []
    for name in interface_names(sysfs):
        settings, up = _settings(name), is_up(name, sysfs)
        rate = _bitrate(settings)
        formats = [f"{rate} bit/s" if rate else "bit rate unknown", "up" if up else "down"]
        notes = [] if up else [f"is down: {up_command(name)}"]
        if settings.get("state") == "BUS-OFF":
            notes.append(f"has left the bus (bus-off): {restart_command(name)}")
        usb = Path(os.path.realpath(sysfs / "class/net" / name / "device")).parent
        serial_number = text_attribute(usb / "serial")
        if serial_number:
            formats.append(f"USB adapter {serial_number}")
            notes.append(
                f"the name {name} depends on the order of plugging in; a udev rule on the serial "
                "number keeps it"
            )
        title = " ".join(
            filter(None, (text_attribute(usb / "manufacturer"), text_attribute(usb / "product")))
        )
        devices.append(
            InputDevice(
                "can", title or name, f"can:{name}?dbc=…", (", ".join(formats),), "; ".join(notes)
            )
        )
    return devices


def _bitrate(settings: Mapping[str, Any]) -> int | None:
    timing = settings.get("bittiming")  # of a controller with any rate, else it has a few
    rate = timing.get("bitrate") if isinstance(timing, dict) else settings.get("bittiming_bitrate")
    return rate if isinstance(rate, int) else None


def _settings(name: str) -> dict[str, Any]:
    """What `ip` of iproute2 says of the controller; empty where it says nothing."""
    try:
        said = subprocess.run(
            ["ip", "-details", "-json", "link", "show", "dev", name],
            capture_output=True,
            timeout=IP_TIMEOUT_S,
            check=True,
        ).stdout
        link = json.loads(said)[0]
        settings = link.get("linkinfo", {}).get("info_data", {})
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, AttributeError):
        return {}
    return settings if isinstance(settings, dict) else {}
