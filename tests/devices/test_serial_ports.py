"""Serial ports: their stable names, and opening one."""

from __future__ import annotations

import fcntl
import gc
import grp
import os
import stat
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.serial_ports import Port, open_serial, port_path, ports, serial_ports

ADDRESS = Address("gps:X", "gps", "X", {})


class Machine(NamedTuple):
    """A tree as sysfs has it, and a folder for /dev."""

    dev: Path
    sysfs: Path

    def usb(self, place: str, **properties: str) -> Path:
        folder = self.sysfs / "devices/usb1" / place
        folder.mkdir(parents=True)
        for name, text in properties.items():
            (folder / name).write_text(f"{text}\n")
        return folder

    def acm(self, usb: Path, name: str, interface: str = "00") -> None:
        folder = usb / f"{usb.name}:1.{int(interface, 16)}"
        (folder / "tty" / name).mkdir(parents=True)
        (folder / "bInterfaceNumber").write_text(f"{interface}\n")
        (folder / "tty" / name / "device").symlink_to(folder)
        self.known(folder / "tty" / name)

    def usb_serial(self, usb: Path, name: str, interface: str = "00", port: int = 0) -> None:
        folder = usb / f"{usb.name}:1.{int(interface, 16)}"
        (folder / name / "tty" / name).mkdir(parents=True)
        (folder / "bInterfaceNumber").write_text(f"{interface}\n")
        (folder / name / "port_number").write_text(f"{port}\n")
        (folder / name / "tty" / name / "device").symlink_to(folder / name)
        self.known(folder / name / "tty" / name)

    def uart(self, name: str, kind: str) -> None:
        folder = self.sysfs / "devices/platform/serial8250"
        (folder / "tty" / name).mkdir(parents=True)
        (folder / "tty" / name / "device").symlink_to(folder)
        (folder / "tty" / name / "type").write_text(f"{kind}\n")
        self.known(folder / "tty" / name)

    def known(self, folder: Path) -> None:
        (self.sysfs / "class/tty").mkdir(parents=True, exist_ok=True)
        (self.sysfs / "class/tty" / folder.name).symlink_to(folder)
        (self.dev / folder.name).touch()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "dev/serial/by-id").mkdir(parents=True)
    made = Machine(tmp_path / "dev", tmp_path / "sys")
    (made.sysfs / "class/tty/tty0").mkdir(parents=True)  # a console is no port
    return made


@pytest.fixture
def pty() -> Iterator[tuple[int, str]]:
    master, slave = os.openpty()
    tty.setraw(slave)
    yield master, os.ttyname(slave)
    os.close(master)
    os.close(slave)


def test_names_are_those_that_udev_gives(machine: Machine) -> None:
    gps = machine.usb(
        "1-1", manufacturer="u-blox AG - www.u-blox.com", product="u-blox GNSS receiver"
    )
    machine.acm(gps, "ttyACM0")
    cable = machine.usb(
        "1-2", manufacturer="FTDI", product="USB <-> Serial Cable", serial="AV2OEO6V"
    )
    machine.usb_serial(cable, "ttyUSB0")
    machine.usb_serial(cable, "ttyUSB1", "01", 1)
    bare = machine.usb("1-3", idVendor="1a86", idProduct="7523", serial="a,b")
    machine.usb_serial(bare, "ttyUSB2")
    machine.uart("ttyS0", "4")
    machine.uart("ttyS1", "0")  # a place where a port may be
    assert {Path(port.path).name: port.by_id for port in ports(*machine)} == {
        "ttyACM0": "usb-u-blox_AG_-_www.u-blox.com_u-blox_GNSS_receiver-if00",
        "ttyUSB0": "usb-FTDI_USB__-__Serial_Cable_AV2OEO6V-if00-port0",
        "ttyUSB1": "usb-FTDI_USB__-__Serial_Cable_AV2OEO6V-if01-port1",
        "ttyUSB2": "usb-1a86_7523-if00-port0",
        "ttyS0": "",
    }
    assert port_path(ADDRESS, "by-id/usb-1a86_7523-if00-port0", *machine).endswith("ttyUSB2")


def test_ports_are_listed_with_what_stays_the_same(machine: Machine) -> None:
    machine.acm(machine.usb("1-1", manufacturer="Maker", product="Thing", serial="7"), "ttyACM0")
    machine.uart("ttyS0", "4")
    usb, uart = serial_ports(*machine)
    assert (usb.kind, usb.name, usb.uri) == (
        *("serial", "Maker Thing"),
        "gps:by-id/usb-Maker_Thing_7-if00",
    )
    assert "obd:" in usb.formats[0] and "ttyACM0" in usb.formats[0] and usb.note == ""
    assert uart.uri == f"gps:{machine.dev}/ttyS0"


def test_two_ports_of_one_name_are_told_apart_by_nothing_else(machine: Machine) -> None:
    for number in (1, 2):
        twin = machine.usb(f"1-{number}", manufacturer="QinHeng", product="Serial")
        machine.usb_serial(twin, f"ttyUSB{number}")
    for device in serial_ports(*machine):
        assert device.uri.startswith("gps:/") and "same name" in device.note
    with pytest.raises(FusedgeError, match=r"may be .*ttyUSB1, .*ttyUSB2 \(name one of them"):
        port_path(ADDRESS, "by-id/usb-QinHeng_Serial-if00-port0", *machine)


def test_a_link_of_udev_goes_first(machine: Machine) -> None:
    (machine.dev / "serial/by-id/mine").symlink_to("../../ttyACM7")
    assert port_path(ADDRESS, "by-id/mine", *machine) == str(machine.dev / "ttyACM7")


def test_auto_is_the_only_port(machine: Machine) -> None:
    with pytest.raises(FusedgeError, match="no device is there"):
        port_path(ADDRESS, "auto", *machine)
    machine.acm(machine.usb("1-1", product="A"), "ttyACM0")
    assert port_path(ADDRESS, "auto", *machine).endswith("ttyACM0")
    machine.acm(machine.usb("1-2", product="B"), "ttyACM1")
    with pytest.raises(FusedgeError, match="auto may be"):
        port_path(ADDRESS, "auto", *machine)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("by-id/usb-Maker_Thing_8-if00", "did you mean by-id/usb-Maker_Thing_7-if00?"),
        ("/dev/ttyACM9", "no device /dev/ttyACM9"),
        ("", "no device without a name"),
        ("/etc/hostname", "is no serial port"),
        ("/", "cannot be opened"),
        ("by-id/" + "x" * 5000, "no device"),
        ("/dev/\0", "cannot be opened"),
    ],
)
def test_a_port_that_cannot_be_opened_is_refused_in_one_line(
    machine: Machine, target: str, message: str
) -> None:
    machine.acm(machine.usb("1-1", manufacturer="Maker", product="Thing", serial="7"), "ttyACM0")
    with pytest.raises(FusedgeError) as error:
        open_serial(ADDRESS, target, 9600, 0.1, *machine)
    assert message in error.value.line() and "\n" not in error.value.line()


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(MissingExtraError, match=r"'pyserial'.*fusedge\[gps\]"):
        open_serial(ADDRESS, "/dev/ttyS0", 9600, 0.1)


def test_a_baud_rate_that_no_port_has_is_refused(pty: tuple[int, str]) -> None:
    with pytest.raises(FusedgeError, match="cannot be opened"):
        open_serial(ADDRESS, pty[1], -1, 0.1)


def test_a_port_reads_and_writes_and_is_ours_alone(pty: tuple[int, str]) -> None:
    master, path = pty
    port = open_serial(ADDRESS, path, 38400, 0.05)
    os.write(master, b"$GP")
    assert port.read(3) == b"$GP" and port.read(1) == b""
    port.write(b"x")
    assert os.read(master, 9) == b"x"
    assert termios.tcgetattr(port.fd)[4] == termios.B38400
    with pytest.raises(FusedgeError, match="is in use"):
        open_serial(ADDRESS, path, 38400, 0.05)
    port.close()
    open_serial(ADDRESS, path, 38400, 0.05).close()


def test_a_port_in_use_names_the_program(pty: tuple[int, str]) -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:  # another process that has the port
        held = os.open(pty[1], os.O_RDWR | os.O_NOCTTY)
        fcntl.flock(held, fcntl.LOCK_EX)
        os.write(tell, b"x")
        os.read(os.pipe()[0], 1)
    try:
        os.read(ready, 1)
        with pytest.raises(FusedgeError, match=rf"in use by .*\(process {child}\)"):
            open_serial(ADDRESS, pty[1], 9600, 0.1)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)


@pytest.mark.skipif(os.geteuid() != 0, reason="root gives the permissions away")
def test_no_permission_says_which_group(tmp_path: Path) -> None:
    path = tmp_path / "ttyUSB0"
    path.touch(mode=0o660)
    group = grp.getgrgid(20).gr_name  # also: the child may not be allowed to read Python's files
    os.chown(path, 0, 20)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:  # of which a worker of pytest-xdist has one more
        parent.chmod(stat.S_IMODE(parent.stat().st_mode) | 0o005)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # somebody else
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            open_serial(ADDRESS, str(path), 9600, 0.1)
        except FusedgeError as error:
            os.write(writing, error.line().encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    said = os.read(reading, 2000).decode()
    os.close(reading)
    assert f"no permission for {path}" in said and f"usermod -aG {group}" in said


def test_nothing_is_left_behind(pty: tuple[int, str], machine: Machine) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        open_serial(ADDRESS, pty[1], 9600, 0.1).close()
        for target in ("/etc/hostname", "/dev/null", "/dev/nothing"):
            with pytest.raises(FusedgeError):
                open_serial(ADDRESS, target, 9600, 0.1, *machine)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_device_that_vanishes_while_it_is_looked_at_is_no_port(machine: Machine) -> None:
    usb = machine.usb("1-1", product="A")
    machine.acm(usb, "ttyACM0")
    (usb / "product").unlink()
    (usb / "1-1:1.0/bInterfaceNumber").unlink()
    assert ports(*machine) == [Port(str(machine.dev / "ttyACM0"), "", "")]
    (machine.sysfs / "class/tty/ttyACM0").unlink()
    (machine.sysfs / "class/tty/ttyACM0").symlink_to("nowhere")
    assert ports(*machine) == []


def test_this_machine_can_be_listed() -> None:
    assert all(device.kind == "serial" for device in serial_ports()), sys.platform
