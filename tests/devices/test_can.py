"""A CAN bus as a source: in this process, over the network, and through a serial adapter."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import can
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture import can as can_source
from fusedge.devices.capture.can_interfaces import can_interfaces
from fusedge.devices.capture.source import Source, open_source
from tests.devices.slcan_adapter import Lawicel
from tests.devices.test_can_signals import BODY, DBC, MAP
from tests.devices.test_obd import modality as described

pytestmark = pytest.mark.real_time
ROOT = Path(__file__).parents[2]
SPEED_100 = bytes([0, 0, 0, 0, 0, 0x27, 0x10, 0])
ENGINE = bytes([0x1A, 0xF8, 100, 0])


@pytest.fixture
def dbc(tmp_path: Path) -> Path:
    path = tmp_path / "car.dbc"
    path.write_text(DBC)
    return path


@pytest.fixture
def bus() -> Iterator[can.BusABC]:
    made = can.Bus(channel="test", interface="virtual", ignore_config=True)
    yield made
    made.shutdown()


@pytest.fixture(autouse=True)
def _adapters_do_not_start_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(can_source, "SLCAN_START_S", 0.0)


def open_(
    dbc: Path, options: str = "", wanted: Modality | None = None, target: str = "test"
) -> Source:
    interface = "" if target.startswith("/") or "interface" in options else "&interface=virtual"
    uri = f"can:{target}?dbc={dbc}{interface}&map={MAP}{options}"
    return open_source(uri, None if wanted is None else {"obd": wanted}, time.monotonic_ns)


def message(data: bytes, number: int = 180, **fields: object) -> can.Message:
    return can.Message(
        arbitration_id=number,
        data=data,
        **({"is_extended_id": False} | fields),  # type: ignore[arg-type]
    )


def taken(source: Source, count: int) -> list[Sample | Rejection]:
    items = source.samples()
    return [next(items) for _ in range(count)]


def test_rows_have_the_newest_value_of_each_signal(dbc: Path, bus: can.BusABC) -> None:
    source = open_(dbc, "&rate=1000")
    assert source.live and source.modalities == ("can",) and source.warnings == ()
    assert source.channels == {"can": ("speed", "rpm", "pedal")}
    items = source.samples()
    before = time.monotonic_ns()
    bus.send(message(SPEED_100))
    first = next(items)
    assert isinstance(first, Sample) and first.stamp == "capture"
    assert first.data[0] == 100 and math.isnan(first.data[1]) and math.isnan(first.data[2])
    assert before <= first.timestamp_ns <= first.arrival_ns
    time.sleep(0.01)
    bus.send(message(ENGINE, 452))
    second = next(items)
    assert isinstance(second, Sample) and second.data.tolist() == [100, 1726, 50]
    assert 9e6 < second.timestamp_ns - first.timestamp_ns < 1e9
    source.close()
    assert list(items) == []


def test_channels_come_in_the_units_and_at_the_rate_of_the_modality(
    dbc: Path, bus: can.BusABC
) -> None:
    wanted = described(("rpm", "rpm"), ("speed", "m/s"), ("lane", "m"), rate_hz=20.0)
    source = open_(dbc, "&modality=obd", wanted)
    assert "comes without lane" in source.warnings[0]
    done = threading.Event()

    def drive() -> None:
        for _ in range(60):
            bus.send(message(SPEED_100))
            bus.send(message(ENGINE, 452))
            done.wait(0.01)
        source.close()

    thread = threading.Thread(target=drive)
    thread.start()
    rows = [item for item in source.samples() if isinstance(item, Sample)]
    thread.join()
    assert 5 <= len(rows) <= 14, "0.6 s of 100 frames a second are 12 rows at 20 Hz"
    assert rows[-1].data[:2].tolist() == pytest.approx([1726, 100 / 3.6])
    assert math.isnan(rows[-1].data[2])


def test_frames_that_are_no_measurement_are_counted(dbc: Path, bus: can.BusABC) -> None:
    source = open_(dbc)
    for sent in (
        message(SPEED_100, 999),  # of nobody
        message(SPEED_100, is_extended_id=True),  # another frame of that number
        message(b"", is_remote_frame=True, dlc=8),
        message(SPEED_100[:5]),
        message(b"", 0x40, is_error_frame=True),
        message(b"", 0x88, is_error_frame=True),
        message(b"", 0, is_error_frame=True),
        message(SPEED_100),
    ):
        bus.send(sent)
    items = taken(source, 6)
    assert [item.reason for item in items if isinstance(item, Rejection)] == [
        *("remote_frame", "truncated_frame", "bus_off", "error_frame", "error_frame")
    ]
    details = [item.detail for item in items if isinstance(item, Rejection)]
    assert details[1] == "VEHICLE_SPEED has 5 instead of 8 bytes"
    assert "sudo ip link set test type can restart" in details[2]
    assert details[3:] == ["protocol violation, bus error", "unspecified"]
    assert isinstance(items[-1], Sample)
    source.close()


def test_extended_and_multiplexed_and_long_frames(dbc: Path, bus: can.BusABC) -> None:
    uri = f"can:test?interface=virtual&rate=1e4&dbc={dbc}&map="
    uri += "{out: BODY.OUTSIDE, volt: BODY.BATTERY, speed: VEHICLE_SPEED.SPEED}"
    source = open_source(uri, None, time.monotonic_ns)
    items, received = source.samples(), []
    for sent in (
        message(bytes([0, 0xF6, 0]), BODY, is_extended_id=True),
        message(bytes([1, 0xE0, 0x2E]), BODY, is_extended_id=True),
        message(bytes([9, 0, 0]), BODY, is_extended_id=True),
        message(SPEED_100 + bytes(56), is_fd=True),
    ):
        bus.send(sent)
        received.append(next(items))
        time.sleep(0.002)
    first, second, third, fourth = received
    assert isinstance(first, Sample) and first.data[0] == -5 and math.isnan(first.data[1])
    assert isinstance(second, Sample) and second.data[:2].tolist() == [-5, 12]
    assert isinstance(third, Rejection) and third.reason == "undecodable_frame"
    assert isinstance(fourth, Sample) and fourth.data.tolist() == [-5, 12, 100]
    source.close()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("can:vcan9?dbc=DBC", "vcan9"),
        ("can:test?dbc=DBC", "say which: interface=socketcan|slcan|virtual|udp_multicast"),
        ("can:?dbc=DBC", "nothing may be of any interface"),
        ("can:test", "add dbc=CAR.dbc"),
        ("can:test?dbc=DBC&interface=socketkan", "did you mean 'socketcan'?"),
        ("can:test?dbc=DBC&interface=virtual&rate=0", "rate=0 is not a number"),
        ("can:/dev/ttyNONE?dbc=DBC", "no device /dev/ttyNONE"),
        ("can:/etc/hostname?dbc=DBC", "is no serial port"),
        ("can:socket://localhost:1?dbc=DBC&interface=slcan", "no device socket:"),
        ("can:/dev/ttyS0?dbc=DBC&bitrate=123", "slcan has no bitrate=123"),
        ("can:example?dbc=DBC&interface=udp_multicast", "no multicast address"),
        ("can:10.0.0.1?dbc=DBC&interface=udp_multicast", "no multicast address"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(
    dbc: Path, uri: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FusedgeError) as error:
        open_source(uri.replace("DBC", str(dbc)), None, time.monotonic_ns)
    assert message in error.value.line() and "\n" not in error.value.line()
    assert capfd.readouterr() == ("", ""), "python-can adds nothing to it"


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("can", "a CAN bus needs the package 'python-can', which is not installed"),
        ("cantools", "reading a DBC file needs the package 'cantools', which is not installed"),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    dbc: Path, monkeypatch: pytest.MonkeyPatch, package: str, line: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as error:
        open_(dbc)
    assert error.value.line() == f"{line} (pip install 'fusedge[can]')"


def test_a_bit_rate_that_is_not_set_here_is_a_warning(dbc: Path) -> None:
    source = open_(dbc, "&bitrate=250000")
    assert "bitrate=250000 is not set here" in source.warnings[0]
    source.close()


def test_closing_ends_the_iterator_at_once(dbc: Path) -> None:
    source = open_(dbc)
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (list(source.samples()), ended.set()))
    thread.start()
    time.sleep(0.1)
    started = time.monotonic()
    source.close()
    source.close()
    assert ended.wait(2) and time.monotonic() - started < 0.2
    thread.join()
    assert list(source.samples()) == []


def test_interfaces_of_this_machine_are_listed(tmp_path: Path) -> None:
    usb = tmp_path / "devices/usb1/1-1"
    (usb / "1-1:1.0").mkdir(parents=True)
    for name, text in {
        "manufacturer": "bytewerk",
        "product": "candleLight",
        "serial": "00AB",
    }.items():
        (usb / name).write_text(f"{text}\n")
    for name, kind, flags in (
        ("can0", "280", "0x40080"),
        ("vcan0", "280", "0x400c1"),
        ("lo", "772", "0x9"),
    ):
        folder = tmp_path / "class/net" / name
        folder.mkdir(parents=True)
        (folder / "type").write_text(f"{kind}\n")
        (folder / "flags").write_text(f"{flags}\n")
    (tmp_path / "class/net/can0/device").symlink_to(usb / "1-1:1.0")
    found, virtual = can_interfaces(tmp_path)
    assert found.kind == "can" and found.name == "bytewerk candleLight"
    assert found.uri == "can:can0?dbc=…"
    assert "00AB" in found.formats[0] and "down" in found.formats[0]
    assert "sudo ip link set can0 up type can bitrate 500000" in found.note
    assert virtual.name == "vcan0" and virtual.note == "" and "up" in virtual.formats[0]
    assert all(device.kind == "can" for device in can_interfaces())


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[Lawicel]:
    made = Lawicel(tmp_path)
    yield made
    if made.path.exists():
        made.unplug()


def test_a_serial_adapter_is_opened_at_the_bit_rate_and_closed(dbc: Path, adapter: Lawicel) -> None:
    source = open_(dbc, "&bitrate=250000", target=str(adapter.path))
    assert adapter.heard()[-4:] == ["S5", "", "O", "O"]
    adapter.frame(SPEED_100)
    adapter.say(b"\r\rz\r")  # acknowledgements
    items = source.samples()
    row = next(items)
    assert isinstance(row, Sample) and row.stamp == "arrival" and row.data[0] == 100
    with pytest.raises(FusedgeError, match="is in use"):
        open_(dbc, target=str(adapter.path))
    source.close()
    assert adapter.heard()[-1] == "C"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"t0B4800000000002710\r", "truncated_frame"),  # a byte is lost
        (b"t0B48\r", "truncated_frame"),
        (b"t0B4\r", "undecodable_frame"),
        (b"tXYZ8\r", "undecodable_frame"),
        (b"t0B48000000000027100G\r", "undecodable_frame"),
        (b"\xff\xfe\x80\r", "undecodable_frame"),
        (b"d0B4Z\r", "undecodable_frame"),
        (b"r0B48\r", "remote_frame"),
    ],
)
def test_garbage_of_a_serial_adapter_is_counted(
    dbc: Path, adapter: Lawicel, said: bytes, reason: str
) -> None:
    source = open_(dbc, "&rate=1e4", target=str(adapter.path))
    items = source.samples()
    adapter.say(said)
    rejected = next(items)
    assert isinstance(rejected, Rejection) and rejected.reason == reason
    adapter.frame(SPEED_100)
    row = next(items)
    assert isinstance(row, Sample) and row.data[0] == 100
    source.close()


def test_a_serial_adapter_that_is_pulled_out_raises(dbc: Path, adapter: Lawicel) -> None:
    source = open_(dbc, target=str(adapter.path))
    items = source.samples()
    adapter.frame(SPEED_100)
    next(items)
    adapter.unplug()
    with pytest.raises(FusedgeError, match="cannot be read") as error:
        list(items)
    assert "\n" not in error.value.line()
    source.close()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from(
                [b"t0B48", b"0000000000271000", b"\r", b"\a", b"T", b"d0B4F", b"00", b"t1C44"]
            ),
        )
    ).map(b"".join)
)
def test_no_bytes_of_a_serial_adapter_break_the_source(
    dbc: Path, tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    adapter = Lawicel(tmp_path_factory.mktemp("adapter"))
    source = open_(dbc, "&rate=1e4", target=str(adapter.path))
    adapter.say(noise + b"\r")
    time.sleep(0.01)
    adapter.frame(SPEED_100)
    for item in source.samples():
        if isinstance(item, Sample) and item.data[0] == 100:
            break
        assert isinstance(item, Rejection) or not item.data[0] > 250
        adapter.frame(SPEED_100)  # what came with the garbage is dropped with it
    source.close()
    adapter.unplug()


def handles() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def test_nothing_is_left_behind(dbc: Path, adapter: Lawicel, bus: can.BusABC) -> None:
    def virtual(turn: int) -> None:
        source = open_(dbc)
        if turn % 2:
            bus.send(message(SPEED_100))
            taken(source, 1)
        source.close()

    def serial(turn: int) -> None:
        source = open_(dbc, target=str(adapter.path))
        if turn % 2:
            adapter.frame(SPEED_100)
            taken(source, 1)
        source.close()
        adapter.heard(0)

    def refused(turn: int) -> None:
        for uri in (f"can:{adapter.path}?dbc={dbc}&bitrate=1", f"can:can7?dbc={dbc}"):
            with pytest.raises(FusedgeError):
                open_source(uri, None, time.monotonic_ns)

    def pulled_out(turn: int) -> None:
        folder = dbc.parent / str(turn)
        folder.mkdir()
        stick = Lawicel(folder)
        source = open_(dbc, target=str(stick.path))
        stick.unplug()
        source.close()

    for use, times in ((virtual, 100), (serial, 40), (refused, 40), (pulled_out, 10)):
        use(1000)
        before = handles()
        for turn in range(times):
            use(turn)
        assert handles() == before, use


def in_its_own_network(script: str) -> list[str]:
    """What a script prints in a namespace of its own, whose multicast never leaves this machine."""
    setup = "ip link set lo up multicast on && ip route add 239.0.0.0/8 dev lo"
    command = [
        "unshare",
        "-Urn",
        "sh",
        "-c",
        f'{setup} && exec "$0" -c "$1"',
        sys.executable,
        script,
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / '.types'}:{ROOT}"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    if "unshare" in done.stderr and done.returncode:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


UDP = """
import json, socket, time
import can
from fusedge.bundle.sample import Sample
from fusedge.devices.capture.source import open_source
uri = "can:239.74.163.2?interface=udp_multicast&rate=1e4&dbc={dbc}&map={map}"
source = open_source(uri, None, time.monotonic_ns)
bus = can.Bus(channel="239.74.163.2", interface="udp_multicast", ignore_config=True)
items = source.samples()
for number in range(200):
    data = bytes(5) + number.to_bytes(2, "big") + bytes(57)
    bus.send(can.Message(arbitration_id=180, data=data, is_fd=True, is_extended_id=False))
    row = next(items)
    print(json.dumps([row.stamp, float(row.data[0])]))
    time.sleep(0.0002)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"not of us", ("239.74.163.2", 43113))
print(json.dumps(next(items).reason))
source.close()
bus.shutdown()
"""


def test_a_bus_over_the_network(dbc: Path) -> None:
    *rows, rejected = in_its_own_network(UDP.replace("{dbc}", str(dbc)).replace("{map}", MAP))
    assert [json.loads(row) for row in rows] == [
        ["arrival", pytest.approx(number / 100)] for number in range(200)
    ]
    assert json.loads(rejected) == "undecodable_frame"
