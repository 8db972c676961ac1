"""What `fusedge devices` says of an input."""

from __future__ import annotations

from typing import Literal, NamedTuple

InputKind = Literal["camera", "microphone", "can", "serial", "imu"]


class InputDevice(NamedTuple):
    """An input of this machine.

    `uri` opens it and names it by what stays the same when devices are plugged in another order or
    the machine is started again; `formats` are what it can give, a line each; `note` says what stands
    in the way, or is empty.
    """

    kind: InputKind
    name: str
    uri: str
    formats: tuple[str, ...] = ()
    note: str = ""
