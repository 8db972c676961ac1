"""Why a device file could not be opened, in a line that says what to do about it."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.address import Address


def refusal(
    address: Address, path: str, error: OSError | int, others: Iterable[str] = ()
) -> FusedgeError:
    """The error for a device at `path` that the system refused with an OSError or errno.

    `others` are the targets that exist, of which the closest is offered.
    """
    number = error if isinstance(error, int) else error.errno
    if number in (errno.EACCES, errno.EPERM):
        return address.error(f"no permission for {path}", hint=_group_hint(path))
    if number == errno.EBUSY:
        return busy(address, path)
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return missing(address, path, others)
    reason = os.strerror(number) if number else str(error)
    return address.error(f"{path} cannot be opened: {reason}")


def missing(address: Address, target: str, others: Iterable[str]) -> FusedgeError:
    """The error for a device that is not there; offers the closest of those that are."""
    known = list(others)
    close = difflib.get_close_matches(target, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(known) or 'none'}"
    if target in ("", "auto") and not known:
        return address.error("no device is there")
    return address.error(f"no device {target}", hint=hint)


def busy(address: Address, path: str) -> FusedgeError:
    """The error for a device that another program uses, which is named where that can be told."""
    holders = holders_of(path)
    by = f" by {', '.join(holders)}" if holders else ""
    return address.error(f"{path} is in use{by}", hint="close the other program")


def holders_of(path: str) -> list[str]:
    """The other processes that have the file open, as `NAME (process NUMBER)`, where that can be seen."""
    real, found = os.path.realpath(path), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            handles = [str(handle.readlink()) for handle in (folder / "fd").iterdir()]
            if real in handles and int(folder.name) != os.getpid():
                name = (folder / "comm").read_text().strip()
                found.append(f"{name} (process {folder.name})")
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return found


def _group_hint(path: str) -> str:
    try:
        group = Path(path).group()
    except (OSError, KeyError, NotImplementedError):  # the last where Python knows no groups
        return "ask whoever runs this machine"
    if group == "root":
        return "only root may; a udev rule can give it to a group"
    return f"join its group: sudo usermod -aG {group} $USER, then log in again"
