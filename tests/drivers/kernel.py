"""What the kernel's test drivers can be told: the virtual cameras of `vivid`, the virtual CAN."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
from pathlib import Path

SYSTEM = Path(os.environ.get("FUSEDGE_GUEST", "/nonexistent"))
"""The folder with busybox and the modules, in the guest."""
VIVID = Path("/sys/bus/platform/drivers/vivid")
CAN_ERROR = 0x20000000
BUS_OFF, CONTROLLER, RESTARTED = 0x40, 0x04, 0x100  # classes of error frames, of linux/can/error.h


def busybox(*arguments: str) -> None:
    """Run one of its commands; `insmod` and `ip` are among them."""
    subprocess.run([str(SYSTEM / "busybox"), *arguments], check=True, timeout=60)


def reload_vivid(*numbers: int) -> None:
    """Load the virtual cameras anew: camera n becomes `/dev/video<numbers[n]>`.

    `bus_info` stays (`platform:vivid-000` is the first). Nobody may have one open: see `unbind_vivid`.
    """
    busybox("rmmod", "vivid")
    options = ["node_types=0x1,0x1", "num_inputs=1,1", "input_types=0,0"]
    chosen = ",".join(map(str, numbers))
    busybox(
        "insmod",
        str(SYSTEM / "vivid.ko"),
        f"n_devs={len(numbers)}",
        f"vid_cap_nr={chosen}",
        *options,
    )
    for number in numbers:
        stamp_at_start(f"/dev/video{number}")


def unbind_vivid() -> None:
    """Pull out all virtual cameras at once, even open ones."""
    (VIVID / "unbind").write_text("vivid.0", "ascii")


def bind_vivid() -> None:
    """Plug the virtual cameras in again, at the first free numbers."""
    (VIVID / "bind").write_text("vivid.0", "ascii")
    for path in Path("/sys/devices/platform/vivid.0/video4linux").iterdir():
        stamp_at_start(f"/dev/{path.name}")


def stamp_at_start(device: str) -> None:
    """Have a virtual camera stamp the start of a frame.

    Without this it adds 90 % of the interval, and the stamp lies in the future of who reads it.
    """
    set_control(device, "Timestamp Source", 1)


def set_control(device: str, name: str, value: int) -> None:
    """Set a control of a camera by its name.

    Those of `vivid` can break it: "Disconnect" (until all have closed it), "Percentage of Dropped
    Buffers", "Inject V4L2_BUF_FLAG_ERROR" and more.
    """
    query = struct.Struct("=2I32s4iI8x")
    with open(device, "rb+", buffering=0) as file:
        identifier = 0
        while True:
            asked = bytearray(query.pack(identifier | 1 << 31, 0, b"", 0, 0, 0, 0, 0))
            try:
                fcntl.ioctl(file, _request(36, len(asked)), asked)
            except OSError:
                raise KeyError(f"{device} has no control {name}") from None
            identifier, _, found, *_ = query.unpack(asked)
            if found.rstrip(b"\0").decode() == name:
                fcntl.ioctl(file, _request(28, 8), struct.pack("=Ii", identifier, value))
                return


def bus_info(device: str) -> str:
    """Where a camera is, as its driver says: `platform:vivid-000`, `usb-vhci_hcd.0-1`."""
    with open(device, "rb", buffering=0) as file:
        asked = bytearray(104)
        fcntl.ioctl(file, 0x80685600, asked)  # VIDIOC_QUERYCAP
        return asked[48:80].rstrip(b"\0").decode()


def _request(number: int, size: int) -> int:
    """A V4L2 request that reads and writes."""
    return 3 << 30 | size << 16 | ord("V") << 8 | number


def can_link(up: bool, channel: str = "vcan0") -> None:
    """Switch a CAN interface on or off; who reads it meanwhile sees ENETDOWN."""
    busybox("ip", "link", "set", channel, "up" if up else "down")


def can_send(identifier: int, data: bytes, channel: str = "vcan0") -> None:
    """Send one frame; an identifier of more than 11 bits is an extended one."""
    if 0x7FF < identifier < CAN_ERROR:
        identifier |= 0x80000000
    with socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as sender:
        sender.bind((channel,))
        sender.send(struct.pack("=IB3x8s", identifier, len(data), data))


def can_error(kind: int, data: bytes = bytes(8), channel: str = "vcan0") -> None:
    """Send an error frame, as a controller's driver does: `BUS_OFF`, `RESTARTED` and so on."""
    can_send(CAN_ERROR | kind, data, channel)
