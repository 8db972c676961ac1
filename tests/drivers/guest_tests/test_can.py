"""Real SocketCAN: the virtual interface vcan0, and a controller that its driver sees on a serial line."""

from __future__ import annotations

import fcntl
import gc
import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import can
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.can_interfaces import bitrate_of, can_interfaces
from fusedge.devices.capture.source import Source, open_source
from tests.devices.slcan_adapter import Lawicel
from tests.drivers.kernel import (
    BUS_OFF,
    CONTROLLER,
    RESTARTED,
    busybox,
    can_error,
    can_link,
    can_send,
)

DBC = """VERSION ""
BU_: CAR
BO_ 180 VEHICLE_SPEED: 8 CAR
 SG_ SPEED : 47|16@0+ (0.01,0) [0|250] "km/h" CAR
BO_ 2566844672 BODY: 3 CAR
 SG_ OUTSIDE : 8|8@1- (0.5,0) [-50|80] "degC" CAR
"""
SPEED, BODY = 180, 0x18FEF100
SPEED_100 = bytes([0, 0, 0, 0, 0, 0x27, 0x10, 0])
TIOCSETD = 0x5423
N_TTY, N_SLCAN = bytes(4), (17).to_bytes(4, "little")


@pytest.fixture
def dbc(tmp_path: Path) -> Path:
    path = tmp_path / "car.dbc"
    path.write_text(DBC)
    return path


def open_(dbc: Path, channel: str = "vcan0") -> Source:
    uri = f"can:{channel}?rate=1e4&dbc={dbc}"
    uri += "&map={speed: VEHICLE_SPEED.SPEED, outside: BODY.OUTSIDE}"
    return open_source(uri, None, time.monotonic_ns)


def test_frames_are_stamped_by_the_kernel(dbc: Path) -> None:
    source = open_(dbc)
    items = source.samples()
    can_send(SPEED, SPEED_100)
    first = next(items)
    can_send(BODY, bytes([0, 0xF6, 0]))
    time.sleep(1)
    second = next(items)
    assert isinstance(first, Sample) and first.data[0] == 100 and math.isnan(first.data[1])
    assert isinstance(second, Sample) and second.stamp == "capture"
    assert second.data.tolist() == [100, -5]
    assert second.arrival_ns - second.timestamp_ns > 0.9e9, "it is not stamped when it is read"
    source.close()


def test_frames_that_are_no_measurement_are_counted(dbc: Path) -> None:
    source = open_(dbc)
    can_send(SPEED | 0x40000000, b"")  # a remote frame
    for length in (0, 7):
        can_send(SPEED, SPEED_100[:length])
    for kind in (CONTROLLER, BUS_OFF, RESTARTED):
        can_error(kind)
    can_send(SPEED, SPEED_100)
    items = source.samples()
    reasons = [
        item.reason for item in (next(items) for _ in range(6)) if isinstance(item, Rejection)
    ]
    assert reasons == [
        *("remote_frame", "truncated_frame", "truncated_frame"),
        *("error_frame", "bus_off", "error_frame"),
    ]
    assert isinstance(next(items), Sample)
    source.close()


def test_the_kernel_passes_only_frames_of_the_map(dbc: Path) -> None:
    source = open_(dbc)
    lists = Path("/proc/net/can")
    assert "  vcan0  " not in (lists / "rcvlist_all").read_text()
    filters = re.findall(r"  vcan0 +(\w+) +(\w+) ", (lists / "rcvlist_fil").read_text())
    assert sorted(filters) == [("0b4", "800007ff"), ("98fef100", "9fffffff")]
    for number in (1, 0xB5, 0x18FEF101):
        can_send(number, bytes(8))
    can_send(SPEED, SPEED_100)
    assert isinstance(next(source.samples()), Sample)
    source.close()


def test_an_interface_goes_down_and_up_ten_times(dbc: Path) -> None:
    for _ in range(10):
        source = open_(dbc)
        items = source.samples()
        can_send(SPEED, SPEED_100)
        assert isinstance(next(items), Sample)
        can_link(False)
        try:
            with pytest.raises(FusedgeError, match=r"vcan0 is down \(sudo ip link set vcan0 up\)"):
                next(items)
            source.close()
            with pytest.raises(FusedgeError, match="vcan0 is down"):
                open_(dbc)
            (device,) = (found for found in can_interfaces() if found.name == "vcan0")
            assert "is down" in device.note
        finally:
            can_link(True)


@pytest.fixture
def vcan1() -> Iterator[str]:
    busybox("ip", "link", "add", "vcan1", "type", "vcan")
    yield "vcan1"
    if Path("/sys/class/net/vcan1").exists():
        busybox("ip", "link", "del", "vcan1")


def test_an_interface_vanishes(dbc: Path, vcan1: str) -> None:
    can_link(True, vcan1)
    source = open_(dbc, vcan1)
    busybox("ip", "link", "del", vcan1)
    with pytest.raises(FusedgeError, match=r"vcan1 (is down|has vanished)"):
        list(source.samples())
    with pytest.raises(FusedgeError, match=r"no device vcan1 \(did you mean vcan0\?\)"):
        open_(dbc, vcan1)


def test_frames_of_can_fd(dbc: Path, vcan1: str) -> None:
    busybox("ip", "link", "set", vcan1, "mtu", "72")
    can_link(True, vcan1)
    source = open_(dbc, vcan1)
    with can.Bus(vcan1, "socketcan", fd=True) as bus:
        data = SPEED_100 + bytes(56)
        bus.send(can.Message(arbitration_id=SPEED, data=data, is_fd=True, is_extended_id=False))
    row = next(source.samples())
    assert isinstance(row, Sample) and row.data[0] == 100
    source.close()


def test_closing_ends_who_waits_and_leaves_nothing(dbc: Path) -> None:
    open_(dbc).close()
    gc.collect()  # a test before this one may have failed
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        source = open_(dbc)
        thread = threading.Thread(target=list, args=(source.samples(),))
        thread.start()
        source.close()
        thread.join(5)
        assert not thread.is_alive()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[Lawicel]:
    """A serial adapter that takes commands; the kernel waits until it has read them."""
    made, gone = Lawicel(tmp_path), threading.Event()

    def serve() -> None:
        while not gone.is_set():
            made.heard()

    thread = threading.Thread(target=serve)
    thread.start()
    yield made
    gone.set()
    thread.join()
    made.unplug()


def test_a_controller_leaves_the_bus_and_comes_back(dbc: Path, adapter: Lawicel) -> None:
    """The kernel's driver for serial adapters makes a controller of what a pseudo-terminal says."""
    line = os.open(adapter.path, os.O_RDWR | os.O_NOCTTY)
    known = set(os.listdir("/sys/class/net"))
    fcntl.ioctl(line, TIOCSETD, N_SLCAN)
    (channel,) = set(os.listdir("/sys/class/net")) - known
    subprocess.run(["ip", "link", "set", channel, "type", "can", "bitrate", "250000"], check=True)
    with pytest.raises(FusedgeError, match=f"sudo ip link set {channel} up type can bitrate"):
        open_(dbc, channel)
    can_link(True, channel)
    assert bitrate_of(channel) == 250000
    source = open_(dbc, channel)
    items = source.samples()
    adapter.frame(SPEED_100)
    assert isinstance(next(items), Sample)
    adapter.say(b"sw096000\r")  # the error counters reach the warning level
    warned = next(items)
    assert isinstance(warned, Rejection) and warned.reason == "error_frame"
    adapter.say(b"sb000000\r")
    off = next(items)
    assert isinstance(off, Rejection) and off.reason == "bus_off"
    assert f"sudo ip link set {channel} type can restart" in off.detail
    (device,) = (found for found in can_interfaces() if f"can:{channel}?" in found.uri)
    assert "250000 bit/s" in device.formats[0] and "bus-off" in device.note
    can_link(False, channel)  # this driver has no restart-ms
    with pytest.raises(FusedgeError, match="is down"):
        list(items)
    can_link(True, channel)
    source = open_(dbc, channel)
    items = source.samples()
    adapter.frame(SPEED_100)
    assert isinstance(next(items), Sample)
    fcntl.ioctl(line, TIOCSETD, N_TTY)  # the driver lets go, as when it is pulled out
    os.close(line)
    with pytest.raises(FusedgeError, match=r"is down|has vanished"):
        next(items)
    with pytest.raises(FusedgeError, match=f"no device {channel}"):
        open_(dbc, channel)
