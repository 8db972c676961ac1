"""USB serial ports with the kernel's driver: names without udev, pulling out, plugging in."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.serial_ports import open_serial, ports, serial_ports
from fusedge.devices.capture.source import open_source
from tests.drivers.gadgets import UsbSerial

ADDRESS = Address("gps:X", "gps", "X", {})
NAME = "by-id/usb-Fusedge_Test_Serial_{}-if00"
ANSWERS = {"ATZ": "\r\rELM327 v1.5", "0100": "4100BE3FB813", "010D": "410D64", "010C": "410C1AF8"}


def test_a_port_is_found_by_its_name_ten_times() -> None:
    with UsbSerial("S1") as device:
        for turn in range(10):
            device.plug()
            (listed,) = (found for found in serial_ports() if "Test Serial" in found.name)
            assert listed.uri == f"gps:{NAME.format('S1')}" and listed.note == ""
            port = open_serial(ADDRESS, NAME.format("S1"), 9600, 5)
            device.send(b"$GP%d\n" % turn)
            assert port.readline() == b"$GP%d\n" % turn
            device.unplug()
            with pytest.raises(OSError):
                port.read(1)
            port.close()
            with pytest.raises(FusedgeError, match="no device by-id/usb-Fusedge_Test_Serial_S1"):
                open_serial(ADDRESS, NAME.format("S1"), 9600, 5)


def test_a_name_stays_when_the_number_changes() -> None:
    with UsbSerial("A") as first, UsbSerial("B") as second, UsbSerial(None) as third:
        first.plug(0)
        second.plug(1)
        third.plug(2)
        before = {port.by_id: port.path for port in ports() if port.by_id}
        assert set(before) == {
            "usb-Fusedge_Test_Serial_A-if00",
            "usb-Fusedge_Test_Serial_B-if00",
            "usb-Fusedge_Test_Serial-if00",
        }
        first.unplug()
        second.unplug()
        second.plug(0)
        first.plug(1)
        after = {port.by_id: port.path for port in ports() if port.by_id}
        assert after["usb-Fusedge_Test_Serial_A-if00"] == before["usb-Fusedge_Test_Serial_B-if00"]
        for name, device in (("A", first), ("B", second)):
            with open_serial(ADDRESS, NAME.format(name), 9600, 5) as port:
                device.send(name.encode())
                assert port.read(1) == name.encode()


def test_a_port_is_for_one_program() -> None:
    with UsbSerial("S1") as device:
        device.plug()
        port = open_serial(ADDRESS, NAME.format("S1"), 9600, 5)
        with pytest.raises(FusedgeError, match="is in use"):
            open_serial(ADDRESS, NAME.format("S1"), 9600, 5)
        port.close()


@contextmanager
def car(device: UsbSerial) -> Iterator[None]:
    """Answers as an OBD-II adapter does."""
    gone = threading.Event()

    def serve() -> None:
        line = b""
        while not gone.is_set():
            line += device.heard(1, 0.05)
            if line.endswith(b"\r"):
                command, line = line.decode().strip(), b""
                device.send(f"{ANSWERS.get(command, 'OK')}\r\r>".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    gone.set()
    thread.join()


def test_a_car_comes_back_each_time_the_adapter_is_plugged_in() -> None:
    # The guest is ten to thirty times slower than an adapter.
    uri = f"obd:{NAME.format('S1')}?channels=speed,rpm"
    with UsbSerial("S1") as device, car(device):
        handles = []
        for _ in range(10):
            device.plug()
            source = open_source(uri, None, lambda: time.monotonic_ns() // 4)
            items = source.samples()
            row = next(item for item in items if isinstance(item, Sample) and item.data[1] == 1726)
            assert row.data.tolist() == [100, 1726]
            device.unplug()
            with pytest.raises(FusedgeError, match="is gone"):
                assert all(isinstance(item, Sample | Rejection) for item in items)
            source.close()
            handles.append(len(os.listdir("/proc/self/fd")))
        assert handles[1:] == handles[:-1]
