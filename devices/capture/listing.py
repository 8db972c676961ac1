"""All inputs of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.can_interfaces import can_interfaces
from fusedge.devices.capture.iio import imus
from fusedge.devices.capture.inputs import InputDevice, InputKind
from fusedge.devices.capture.serial_ports import serial_ports
from fusedge.devices.capture.sound_cards import microphones
from fusedge.devices.capture.v4l2 import cameras

LISTERS: Mapping[InputKind, Callable[[], list[InputDevice]]] = {
    "camera": cameras,
    "microphone": microphones,
    "can": can_interfaces,
    "serial": serial_ports,
    "imu": imus,
}


class Inputs(NamedTuple):
    """What was found, and a line for each kind that could not be looked for."""

    devices: tuple[InputDevice, ...]
    notes: tuple[str, ...]


def list_inputs() -> Inputs:
    """Cameras, microphones, CAN interfaces, serial ports and IMUs, with what is needed to open them."""
    devices: list[InputDevice] = []
    notes = []
    for kind, find in LISTERS.items():
        try:
            devices += find()
        except FusedgeError as error:
            notes.append(f"{kind}: {error.line()}")
    return Inputs(tuple(devices), tuple(notes))
