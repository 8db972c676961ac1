"""How udev spells the name of a USB device, for names that hold where no udev runs.

As in systemd's builtin usb_id, from which the links in /dev/v4l, /dev/serial and /dev/snd are made.
"""

from __future__ import annotations

import re
from pathlib import Path

from fusedge.devices.capture.sysfs import attribute

_LONGEST = 63  # of vendor and model each, as usb_id cuts them
# What udev leaves in a name: these, an escape \x, and characters outside ASCII that are valid.
_NOT_IN_NAMES = re.compile(r"(\\x)|[^0-9A-Za-z#+\-.:=@_\x80-\U0010ffff]|[\udc80-\udcff]")


def udev_spelling(text: bytes) -> str:
    """A text of a USB device as udev writes it into names."""
    joined = b"_".join(text.split()).decode("utf-8", "surrogateescape")
    return _NOT_IN_NAMES.sub(lambda match: match[1] or "_", joined)


def usb_name(usb: Path) -> str:
    """VENDOR_MODEL_SERIAL of a USB device in sysfs, udev's ID_SERIAL; the last may be lacking."""
    vendor = attribute(usb / "manufacturer") or attribute(usb / "idVendor")
    model = attribute(usb / "product") or attribute(usb / "idProduct")
    serial = attribute(usb / "serial")
    if any(not 0x20 <= byte <= 0x7F or byte == ord(",") for byte in serial):
        serial = b""
    parts = [udev_spelling(part) for part in (vendor[:_LONGEST], model[:_LONGEST], serial) if part]
    return "_".join(part for part in parts if part)
