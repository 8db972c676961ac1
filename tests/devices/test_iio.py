"""Reading Linux IIO, on an imitation of its files. No IIO device was at hand."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.iio import (
    BufferedDevice,
    PolledDevice,
    _Element,
    devices,
    find,
    imus,
    rate_warning,
)
from tests.devices.iio_tree import FakeImu, IioTree

ADDRESS = Address("imu:iio:0", "imu", "iio:0", {})


@pytest.fixture
def tree(tmp_path: Path) -> IioTree:
    return IioTree(tmp_path)


def open_buffer(tree: IioTree, rate_hz: float | None = None, place: int = 0) -> BufferedDevice:
    return BufferedDevice(ADDRESS, devices(tree.sysfs)[place], rate_hz, tree.sysfs, tree.dev)


@contextmanager
def writer(imu: FakeImu) -> Iterator[int]:
    """The kernel's end of the buffer."""
    fd = os.open(imu.chardev, os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_only_motion_sensors_are_listed_in_the_order_of_their_numbers(tree: IioTree) -> None:
    tree.add(10, "bmi160")
    tree.add(9, "bma180", ("accel",))
    other = tree.add(2, "adc", ())
    other.put("in_voltage0_raw", "1")
    assert [(d.number, d.name, d.quantities) for d in devices(tree.sysfs)] == [
        (9, "bma180", ("accel",)),
        (10, "bmi160", ("accel", "anglvel")),
    ]


def test_an_input_is_named_by_what_stays_the_same(tree: IioTree) -> None:
    tree.add(0, "bmi160", buffered=True, sampling_frequency_available="25 50 100")
    tree.add(1, "icm42605-gyro", ("anglvel",))
    tree.add(2, "icm42605-accel", ("accel",))
    uris = [listed.uri for listed in imus(tree.sysfs, tree.dev)]
    assert uris == ["imu:iio:bmi160", "imu:iio:icm42605-gyro+icm42605-accel"]
    tree.add(3, "bmi160")
    uris = [listed.uri for listed in imus(tree.sysfs, tree.dev)]
    assert uris == ["imu:iio:0", "imu:iio:icm42605-gyro+icm42605-accel", "imu:iio:3"]
    first = imus(tree.sysfs, tree.dev)[0]
    assert first.formats == ("accel and anglvel", "buffered, rates 25 50 100")


def test_two_chips_of_one_kind_do_not_become_one(tree: IioTree) -> None:
    tree.add(0, "lsm6dsm_accel", ("accel",))
    tree.add(1, "bmg160", ("anglvel",))
    assert [listed.name for listed in imus(tree.sysfs)] == ["lsm6dsm_accel", "bmg160"]


def test_a_machine_without_iio_has_none(tmp_path: Path) -> None:
    assert imus(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("bmi61", "imu:iio:0: no device bmi61 (did you mean bmi160?)"),
        ("5", "imu:iio:0: no device 5 (there is bmi160, twin, twin)"),
        ("twin", "imu:iio:0: twin may be number 1, 2 (say which)"),
        ("0+1", "imu:iio:0: both measure the same (name one of them)"),
        (
            "auto",
            "imu:iio:0: auto may be imu:iio:bmi160, imu:iio:1, imu:iio:2 (name one of them)",
        ),
    ],
)
def test_a_device_that_cannot_be_told_is_an_error_of_one_line(
    tree: IioTree, target: str, message: str
) -> None:
    tree.add(0, "bmi160")
    tree.add(1, "twin")
    tree.add(2, "twin")
    with pytest.raises(FusedgeError) as raised:
        find(ADDRESS, target, tree.sysfs)
    assert raised.value.line() == message


def test_auto_is_the_only_sensor(tree: IioTree) -> None:
    with pytest.raises(FusedgeError, match="no device that measures motion"):
        find(ADDRESS, "auto", tree.sysfs)
    tree.add(0, "lsm6dsm_accel", ("accel",))
    tree.add(1, "lsm6dsm_gyro", ("anglvel",))
    assert [d.number for d in find(ADDRESS, "auto", tree.sysfs)] == [0, 1]


def test_polled_numbers_become_units_with_offset_before_scale(tree: IioTree) -> None:
    imu = tree.add(0, "bmi160", in_accel_offset="100", in_anglvel_y_scale="0.5")
    (imu.folder / "in_anglvel_scale").unlink()
    imu.put("in_anglvel_x_scale", "1")
    imu.put("in_anglvel_z_scale", "2")
    imu.raw(900, -1100, 9700, 1, 2, 3)
    values = PolledDevice(ADDRESS, devices(tree.sysfs)[0]).read()
    assert values == pytest.approx(
        {
            "acceleration_x": 1.0,
            "acceleration_y": -1.0,
            "acceleration_z": 9.8,
            "angular_velocity_x": 1.0,
            "angular_velocity_y": 1.0,
            "angular_velocity_z": 6.0,
        }
    )


def test_a_mount_matrix_turns_the_axes(tree: IioTree) -> None:
    imu = tree.add(0, "bmi160", mount_matrix="0, 1, 0; -1, 0, 0; 0, 0, 1")
    imu.raw(1000, 2000, 3000, 4, 5, 6)
    values = PolledDevice(ADDRESS, devices(tree.sysfs)[0]).read()
    assert [round(v, 6) for v in values.values()] == [2, -1, 3, 0.005, -0.004, 0.006]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("mount_matrix", "1, 0; 0, 1", "mount_matrix is no matrix"),
        ("mount_matrix", "1,0,0;0,1,0;0,0,nan", "mount_matrix is no matrix"),
        ("in_accel_scale", "much", "holds no number"),
    ],
)
def test_nonsense_in_an_attribute_is_told(
    tree: IioTree, file: str, text: str, message: str
) -> None:
    tree.add(0, "bmi160", **{file: text})
    with pytest.raises(FusedgeError, match=message):
        PolledDevice(ADDRESS, devices(tree.sysfs)[0])


def test_without_a_scale_there_is_no_unit(tree: IioTree) -> None:
    imu = tree.add(0, "bmi160")
    (imu.folder / "in_accel_scale").unlink()
    with pytest.raises(FusedgeError, match="in_accel_scale is missing"):
        PolledDevice(ADDRESS, devices(tree.sysfs)[0])


def test_a_buffer_is_switched_on_with_our_channels_and_off_again(tree: IioTree) -> None:
    imu = tree.add(0, "bmi160", buffered=True, sampling_frequency="25")
    imu.put("scan_elements/in_temp_en", "1")
    device = open_buffer(tree, 100)
    on = [name for name in imu.names if imu.get(f"scan_elements/{name}_en") == "1"]
    assert on == imu.names and imu.get("scan_elements/in_timestamp_en") == "1"
    assert imu.get("scan_elements/in_temp_en") == "0"
    assert (imu.get("buffer/enable"), imu.get("buffer/length")) == ("1", "100")
    assert imu.get("buffer/watermark") == "2"
    assert imu.get("sampling_frequency") == "100" and device.achieved_hz == 100
    assert imu.get("current_timestamp_clock") == "monotonic" and device.monotonic
    device.close()
    device.close()
    assert imu.get("buffer/enable") == "0"


def test_rows_of_a_buffer_come_whole_however_they_are_cut(tree: IioTree) -> None:
    imu = tree.add(0, "bmi160", buffered=True)
    device = open_buffer(tree)
    rows = [(1, -2, 9807, 100, -200, 300 + k) for k in range(5)]
    data = b"".join(imu.scan(row, 10**9 + k) for k, row in enumerate(rows))
    scans = []
    with writer(imu) as fd:
        assert device.read() == []
        for start in range(0, len(data), 7):
            os.write(fd, data[start : start + 7])
            scans += device.read()
    device.close()
    assert [scan.time_ns for scan in scans] == [10**9 + k for k in range(5)]
    assert scans[0].values["acceleration_z"] == pytest.approx(9.807)
    assert scans[4].values["angular_velocity_z"] == pytest.approx(0.304)


def test_channels_of_other_sizes_lie_where_the_kernel_puts_them(tree: IioTree) -> None:
    imu = tree.add(0, "odd", ("accel",), buffered=True)
    for axis, type_ in (("x", "be:u12/16>>4"), ("y", "le:s24/32>>8"), ("z", "be:s8/8>>0")):
        imu.put(f"scan_elements/in_accel_{axis}_type", type_)
    device = open_buffer(tree)
    # x at 0, y at 4, z at 8, the stamp at 16: 24 bytes
    row = bytes([0xFF, 0xF3, 0, 0, 0x55, 0xFE, 0xFF, 0xFF, 0x80]) + bytes(7)
    with writer(imu) as fd:
        os.write(fd, row + (7).to_bytes(8, "little"))
        (scan,) = device.read()
    device.close()
    assert scan.time_ns == 7
    assert scan.values == pytest.approx(
        {"acceleration_x": 4.095, "acceleration_y": -0.002, "acceleration_z": -0.128}
    )


def test_a_buffer_without_stamps_is_read_as_well(tree: IioTree) -> None:
    imu = tree.add(0, "bare", ("accel",), buffered=True)
    for suffix in ("en", "index", "type"):
        (imu.folder / f"scan_elements/in_timestamp_{suffix}").unlink()
    device = open_buffer(tree)
    with writer(imu) as fd:
        os.write(fd, bytes([1, 0, 2, 0, 3, 0]) * 2)
        scans = device.read()
    device.close()
    assert [scan.time_ns for scan in scans] == [None, None]


@pytest.mark.parametrize("type_", ["", "le:s16/12>>0", "me:s16/16>>0", "le:s0/16>>0"])
def test_a_type_that_is_none_is_refused_and_nothing_stays_open(tree: IioTree, type_: str) -> None:
    imu = tree.add(0, "bmi160", buffered=True)
    imu.put("scan_elements/in_accel_x_type", type_)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FusedgeError, match="in_accel_x has the unknown type"):
        open_buffer(tree)
    assert len(os.listdir("/proc/self/fd")) <= before  # an earlier test's may have gone
    assert imu.get("buffer/enable") == "0"


def test_a_device_keeps_to_the_nearest_rate_that_it_knows(tree: IioTree) -> None:
    imu = tree.add(0, "bmi160", buffered=True, sampling_frequency="25")
    imu.put("sampling_frequency_available", "25 50 104 208")
    device = open_buffer(tree, 100)
    device.close()
    assert imu.get("sampling_frequency") == "104"
    (line,) = rate_warning(ADDRESS, 100, device.achieved_hz)
    assert line == "imu:iio:0: runs at 104 Hz, not 100"
    assert rate_warning(ADDRESS, 104, 104.2) == []
    imu.put("sampling_frequency_available", "[1 1 60]")
    device = open_buffer(tree, 100)
    device.close()
    assert device.achieved_hz == 60


def test_the_devices_own_trigger_is_taken(tree: IioTree) -> None:
    imu = tree.add(0, "mpu6050", buffered=True)
    (tree.sysfs / "trigger0").mkdir()
    (tree.sysfs / "trigger0/name").write_text("mpu6050-dev0\n")
    imu.put("trigger/current_trigger", "")
    open_buffer(tree).close()
    assert imu.get("trigger/current_trigger") == "mpu6050-dev0"


def refuse(monkeypatch: pytest.MonkeyPatch, path: Path, text: str, number: int) -> None:
    """Let the kernel refuse a write, which files in a folder cannot."""
    write = Path.write_text

    def write_text(self: Path, data: str) -> int:
        if self == path and data == text:
            raise OSError(number, os.strerror(number), str(path))
        return write(self, data)

    monkeypatch.setattr(Path, "write_text", write_text)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EINVAL, "needs a trigger (write its name to"),
        (errno.EBUSY, "is in use"),
        (errno.EACCES, "no permission for"),
    ],
)
def test_why_a_buffer_cannot_be_had(
    tree: IioTree, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    imu = tree.add(0, "bmi160", buffered=True)
    imu.put("trigger/current_trigger", "")
    refuse(monkeypatch, imu.folder / "buffer/enable", "1", number)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FusedgeError) as raised:
        open_buffer(tree)
    assert message in raised.value.line()
    assert len(os.listdir("/proc/self/fd")) <= before  # an earlier test's may have gone


def test_a_clock_that_cannot_be_chosen_is_no_fault(
    tree: IioTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    imu = tree.add(0, "bmi160", buffered=True)
    refuse(monkeypatch, imu.folder / "current_timestamp_clock", "monotonic", errno.EINVAL)
    device = open_buffer(tree)
    device.close()
    assert not device.monotonic


def test_a_buffer_whose_device_is_away_says_so(tree: IioTree) -> None:
    imu = tree.add(0, "bmi160", buffered=True)
    imu.chardev.unlink()
    with pytest.raises(FusedgeError, match=r"no device .*iio:device0"):
        open_buffer(tree)


@given(
    st.integers(1, 64).flatmap(lambda bits: st.tuples(st.just(bits), st.integers(bits, 64))),
    st.booleans(),
    st.sampled_from(["little", "big"]),
    st.data(),
)
def test_any_number_survives_its_form(
    form: tuple[int, int], signed: bool, order: str, data: st.DataObject
) -> None:
    bits, room = form
    storage = next(s for s in (8, 16, 32, 64) if s >= room)
    shift = data.draw(st.integers(0, storage - bits))
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    value = data.draw(st.integers(least, most))
    noise = data.draw(st.integers(0, (1 << storage) - 1))  # in the bits that are not ours
    mask = ((1 << bits) - 1) << shift
    word = (noise & ~mask) | ((value << shift) & mask)
    element = _Element("x", 0, storage // 8, order, signed, bits, shift)  # type: ignore[arg-type]
    assert element.number(word.to_bytes(storage // 8, order)) == value  # type: ignore[arg-type]


def test_a_value_that_is_gone_raises(tree: IioTree) -> None:
    imu = tree.add(0, "bmi160")
    device = PolledDevice(ADDRESS, devices(tree.sysfs)[0])
    (imu.folder / "in_accel_y_raw").unlink()
    with pytest.raises(FileNotFoundError):
        device.read()
