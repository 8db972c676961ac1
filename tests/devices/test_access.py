"""Why a device could not be opened."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusedge.devices.capture import access
from fusedge.devices.capture.address import parse
from fusedge.devices.capture.source import SCHEMES

ADDRESS = parse("camera:0", SCHEMES)


def test_the_group_that_may_is_named(tmp_path: Path) -> None:
    device = tmp_path / "video0"
    device.touch()
    if os.geteuid() == 0:
        os.chown(device, -1, 44)  # else it has a group of the user already
    line = access.refusal(ADDRESS, str(device), errno.EACCES).line()
    assert f"no permission for {device}" in line and "usermod -aG" in line


def test_the_program_that_holds_it_is_named(tmp_path: Path) -> None:
    device = tmp_path / "video0"
    device.touch()
    code = f"import sys; f = open({str(device)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        line = access.refusal(ADDRESS, str(device), OSError(errno.EBUSY, "busy")).line()
        holder.communicate(b"")
    assert f"(process {holder.pid})" in line and "is in use by" in line
    assert "is in use (" in access.busy(ADDRESS, str(device)).line()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.ENXIO])
def test_the_closest_device_is_offered(number: int) -> None:
    error = access.refusal(ADDRESS, "/dev/vidoe0", number, ["/dev/video0", "/dev/ttyS0"])
    assert "did you mean /dev/video0?" in error.line()
    assert "there is none" in access.missing(ADDRESS, "/dev/video0", []).line()


def test_any_other_reason_is_the_systems() -> None:
    line = access.refusal(ADDRESS, "/dev/x", errno.EIO).line()
    assert line == "camera:0: /dev/x cannot be opened: Input/output error"
