"""Cameras with real drivers: two of `vivid`, and USB cameras of `uvcvideo`."""

from __future__ import annotations

import grp  # noqa: F401  # a child without rights may not be able to load it
import os
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Request, Wanted, parse
from fusedge.devices.capture.camera import CameraSource, open_camera
from fusedge.devices.capture.source import SCHEMES, open_source
from fusedge.devices.capture.v4l2 import cameras, resolve
from tests.devices.modalities import by_name, image
from tests.drivers.gadgets import UsbCamera
from tests.drivers.kernel import bus_info, reload_vivid, set_control, stamp_at_start
from tests.drivers.usbip import Transfer, descriptor

FIRST, SECOND = "camera:by-path/platform:vivid-000", "camera:by-path/platform:vivid-001"
SMALL = "width=320&height=180"


def opened(uri: str, wanted: Wanted = None) -> CameraSource:
    return open_camera(Request(parse(uri, SCHEMES), wanted, time.monotonic_ns))


@contextmanager
def items(source: CameraSource) -> Iterator[Iterator[Sample | Rejection]]:
    stream = source.samples()
    try:
        yield stream
    finally:
        source.close()
        stream.close()  # type: ignore[attr-defined]


def pictures(source: CameraSource, count: int) -> list[Sample]:
    """Some pictures of a camera, which is closed then."""
    with items(source) as stream:
        found = (item for item in stream if isinstance(item, Sample))
        return [next(found) for _ in range(count)]


def refused(uri: str, wanted: Wanted = None) -> str:
    with pytest.raises(FusedgeError) as caught:
        opened(uri, wanted).close()
    line = caught.value.line()
    assert "\n" not in line
    return line


def mean(uri: str) -> float:
    return float(pictures(opened(uri), 2)[-1].data.mean())


def left_open() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def test_cameras_are_listed_with_lasting_names_and_what_they_give() -> None:
    with UsbCamera("A 7", name="Front Camera") as usb:
        usb.plug()
        found = {camera.uri: camera for camera in cameras()}
    assert set(found) == {FIRST, SECOND, "camera:by-id/usb-Fusedge_Front_Camera_A_7-video-index0"}
    front = found["camera:by-id/usb-Fusedge_Front_Camera_A_7-video-index0"]
    assert (front.kind, front.name, front.note) == ("camera", "Front Camera", "")
    assert front.formats == ("YUYV 320x240 at 10 Hz",)
    assert found[FIRST].name == "vivid"
    rates = "60, 50, 40, 30, 25, 15, 12.5, 10, 5, 4, 2, 1"
    assert f"YUYV 320x180 at {rates} Hz" in found[FIRST].formats


@pytest.mark.parametrize("uri", [FIRST, SECOND])
def test_a_camera_streams_with_the_driver_s_stamps(uri: str) -> None:
    start_ns = time.monotonic_ns()
    source = opened(f"{uri}?{SMALL}&fps=10")
    assert source.warnings == () and source.channels == {"camera": ("red", "green", "blue")}
    got = pictures(source, 30)
    stamps = [sample.timestamp_ns for sample in got]
    intervals = np.diff(stamps)
    assert (intervals > 0).all()
    assert all(start_ns < s.timestamp_ns <= s.arrival_ns for s in got)
    assert all(s.stamp == "capture" and s.data.shape == (180, 320, 3) for s in got)
    assert np.median(intervals) == pytest.approx(1e8, rel=0.2)


def test_the_modality_decides_size_rate_and_channels() -> None:
    slots: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        slots.append(np.empty(shape, np.uint8))
        return slots[-1]

    wanted = by_name(image("front", 100, 120, rate_hz=4, channels="y"))
    request = Request(
        parse(f"{FIRST}?modality=front", SCHEMES), wanted, time.monotonic_ns, allocate
    )
    source = open_camera(request)
    assert source.modalities == ("front",) and source.warnings == ()
    got = pictures(source, 3)
    assert all(sample.data.shape == (100, 120, 1) for sample in got)
    assert all(any(sample.data is slot for slot in slots) for sample in got)
    interval_ns = got[2].timestamp_ns - got[1].timestamp_ns
    assert interval_ns == pytest.approx(2.5e8, rel=0.2)  # 4 Hz is offered, and is the slowest


@pytest.mark.parametrize(
    "format", ["YUYV", "UYVY", "YVYU", "NV12", "NV21", "YU12", "YV12", "RGB3", "BGR3"]
)
def test_every_format_gives_the_same_colours(format: str) -> None:
    set_control(resolve(parse(FIRST, SCHEMES)), "Test Pattern", 1)  # bars, white on the left
    set_control(resolve(parse(FIRST, SCHEMES)), "OSD Text Mode", 2)
    picture = pictures(opened(f"{FIRST}?{SMALL}&format={format}"), 2)[-1].data
    bars = [picture[90, 20 + 40 * bar].astype(int) for bar in range(8)]
    expected = [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1)]
    for bar, colour in zip(bars, expected, strict=False):
        assert [channel > 128 for channel in bar] == [bool(part) for part in colour], (format, bars)


def test_a_camera_is_unplugged_and_plugged_in_ten_times() -> None:
    uri = "camera:by-id/usb-Fusedge_Test_Camera_A-video-index0"
    with UsbCamera("A", grey=90) as usb:
        usb.plug()
        assert mean(uri) == pytest.approx(90, abs=20)
        usb.unplug()
        before = left_open()
        for _ in range(10):
            usb.plug()
            with items(opened(uri)) as stream:
                next(stream)
                usb.unplug()
                end = time.monotonic() + 3
                with pytest.raises(FusedgeError, match=r"was unplugged|reports an error"):
                    while time.monotonic() < end:
                        next(stream)
            assert "no device by-id/usb-Fusedge_Test_Camera_A-video-index0" in refused(uri)
            assert left_open() == before


def test_one_of_two_cameras_is_lost_without_the_other() -> None:
    with items(opened(f"{FIRST}?{SMALL}")) as lost, items(opened(f"{SECOND}?{SMALL}")) as other:
        next(lost), next(other)
        set_control(resolve(parse(FIRST, SCHEMES)), "Disconnect", 1)
        with pytest.raises(FusedgeError, match="its driver reports an error"):
            for _ in range(10):
                next(lost)
        assert [next(other) for _ in range(3)]
    assert pictures(opened(f"{FIRST}?{SMALL}"), 2)


def test_names_stay_with_their_cameras_when_the_nodes_are_exchanged() -> None:
    try:
        for order in ((1, 0), (0, 1)):
            reload_vivid(*order)
            for number, (uri, pattern) in enumerate(((FIRST, 5), (SECOND, 6))):
                node = f"/dev/video{order[number]}"
                assert bus_info(node) == f"platform:vivid-00{number}"
                assert resolve(parse(uri, SCHEMES)) == node
                set_control(node, "Test Pattern", pattern)  # all black, all white
                set_control(node, "OSD Text Mode", 2)
            assert mean(f"{FIRST}?{SMALL}") < 40 and mean(f"{SECOND}?{SMALL}") > 200
    finally:
        reload_vivid(0, 1)


def test_usb_cameras_are_known_by_their_serials_in_whatever_order_they_come() -> None:
    name = "camera:by-id/usb-Fusedge_Test_Camera_{}-video-index0"
    with UsbCamera("A", grey=60) as first, UsbCamera("B", grey=200) as second:
        for order in ([first, second], [second, first]):
            for port, usb in enumerate(order):
                usb.plug(port)
            assert mean(name.format("A")) == pytest.approx(60, abs=20)
            assert mean(name.format("B")) == pytest.approx(200, abs=20)
            first.unplug()
            second.unplug()


@pytest.mark.parametrize("serial", [None, "0001"])
def test_equal_cameras_are_known_by_their_ports(serial: str | None) -> None:
    with UsbCamera(serial, grey=60) as first, UsbCamera(serial, grey=200) as second:
        second.plug(1)
        first.plug(0)
        found = [camera.uri for camera in cameras() if camera.name == "Test Camera"]
        assert found == [
            "camera:by-path/usb-vhci_hcd.0-2",
            "camera:by-path/usb-vhci_hcd.0-1",
        ]
        assert [mean(uri) for uri in found] == pytest.approx([200, 60], abs=20)
        parts = ["Fusedge", "Test_Camera", *([serial] if serial else [])]
        line = refused(f"camera:by-id/usb-{'_'.join(parts)}-video-index0")
        assert "2 cameras have this name (say which: by-path/usb-vhci_hcd.0-2 or by-path/" in line


def test_a_camera_in_use_is_named_with_who_uses_it() -> None:
    # It asks the driver for buffers, as every program does that streams.
    hold = (
        "import fcntl, struct, sys; f = open('/dev/video0', 'r+b', buffering=0); "
        "fcntl.ioctl(f, 0xc0145608, struct.pack('=5I', 2, 1, 1, 0, 0)); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        line = refused(f"{FIRST}?{SMALL}")
        assert f"/dev/video0 is in use by python (process {holder.pid})" in line
        note = next(camera.note for camera in cameras() if camera.uri == FIRST)
        assert note.startswith("open in python") and str(holder.pid) in note
        holder.communicate()
    assert pictures(opened(f"{FIRST}?{SMALL}"), 1)


@pytest.mark.parametrize("uri", [FIRST, "camera:0", "camera:auto"])
def test_a_user_without_permission_is_told_so(uri: str) -> None:
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.setuid(65534)
        try:
            opened(uri)
        except FusedgeError as error:
            os.write(writing, error.line().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read() == (
            f"{uri}: no permission for /dev/video0 "
            "(only root may; a udev rule can give it to a group)"
        )
    os.waitpid(child, 0)


def test_what_a_camera_does_not_offer_is_refused_with_what_it_does() -> None:
    assert "unknown format" in (line := refused(f"{FIRST}?format=MJPG")) and "YUYV" in line
    assert "does not offer this size (closest: 320x180" in refused(f"{FIRST}?width=300&height=200")
    assert "(did you mean by-path/platform:vivid-00" in refused("camera:by-path/platform:vivid-00")
    with UsbCamera("A") as usb:
        usb.plug()
        assert "/dev/video3 gives no pictures (there is by-path/" in refused("camera:3")


def test_a_rate_that_the_camera_lacks_is_warned_about() -> None:
    source = opened(f"{FIRST}?width=640&height=480&fps=60")
    source.close()
    assert source.warnings == (f"{source.uri}: gives 25 pictures a second, not 60",)


def test_a_camera_that_falls_silent_is_given_up() -> None:
    with UsbCamera("A") as usb:
        usb.plug()
        with items(opened("camera:2")) as stream:
            next(stream)
            usb.frozen = True
            with pytest.raises(FusedgeError, match="camera:2: no picture for 2 s"):
                for _ in range(30):
                    next(stream)
        assert "does not start" in refused("camera:2")


def test_close_ends_a_reader_that_waits() -> None:
    with UsbCamera("A") as usb:
        usb.plug()
        source = opened("camera:2")
        usb.frozen = True
        reader = threading.Thread(target=lambda: list(source.samples()))
        reader.start()
        time.sleep(0.5)
        source.close()
        reader.join(1)
        assert not reader.is_alive()
        source.close()


def test_a_reader_that_was_away_gets_the_newest_picture_and_the_account() -> None:
    with items(opened(f"{FIRST}?{SMALL}&fps=25")) as stream:
        for _ in range(10):
            next(stream)
        time.sleep(1)
        counts: Counter[str] = Counter()
        newest = None
        while newest is None or time.monotonic_ns() - newest.timestamp_ns > 300e6:
            item = next(stream)
            if isinstance(item, Rejection):
                counts[item.reason] += item.samples
            else:
                newest = item
    assert counts["stale"] >= 1 and counts["gap"] >= 10, counts


def test_stamps_of_the_future_are_placed_on_the_session_s_clock() -> None:
    node = resolve(parse(FIRST, SCHEMES))
    set_control(node, "Timestamp Source", 0)  # the end of the frame, foretold
    try:
        got = pictures(opened(f"{FIRST}?{SMALL}&fps=10"), 10)
    finally:
        stamp_at_start(node)
    assert all(0 <= s.arrival_ns - s.timestamp_ns < 1e9 and s.stamp == "capture" for s in got)


def test_a_camera_is_opened_and_closed_thirty_times() -> None:
    uri = f"{FIRST}?{SMALL}&fps=60"
    for _ in range(15):  # until the allocator has an arena for each thread that reads
        pictures(opened(uri), 1)
    before, memory = left_open(), resident()
    for turn in range(30):
        source = opened(uri)
        if turn % 2:
            pictures(source, 1)
        source.close()
    assert left_open() == before
    assert resident() - memory < 4 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class JpegCamera(UsbCamera):
    """A camera that gives MJPG; `torn` cuts its pictures short."""

    torn = False

    def _describe(self) -> bytes:
        described = super()._describe()
        head = described.index(b"\x24\x01\x01", described.index(b"\x0e\x02\x00")) - 1
        (total,) = struct.unpack_from("<H", described, head + 4)
        end = head + total
        # After the header comes the format in 27 bytes, and the frame.
        frame = described[head + 14 + 27 : end]
        jpeg = (
            descriptor(0x24, bytes([6, 1, 1, 0, 1, 0, 0, 0, 0])) + frame[:2] + b"\x07" + frame[3:]
        )
        size = struct.pack("<H", 14 + len(jpeg))
        changed = described[head : head + 4] + size + described[head + 6 : head + 14] + jpeg
        return described[:head] + changed + described[end:]

    def _send_frame(self, transfer: Transfer | None, parity: int) -> None:
        picture = np.full((self.HEIGHT, self.WIDTH, 3), self.grey, np.uint8)
        data = cv2.imencode(".jpg", picture)[1].tobytes()
        if transfer is not None:
            data = data[: len(data) // 2] if self.torn else data
            self.complete(transfer, bytes([2, 0x82 | parity]) + data)


def test_a_camera_of_jpegs_is_read_and_its_torn_pictures_are_counted() -> None:
    with JpegCamera("J", grey=90) as usb:
        usb.plug()
        assert [c.formats for c in cameras() if c.name == "Test Camera"] == [
            ("MJPG 320x240 at 10 Hz",)
        ]
        with items(opened("camera:2")) as stream:
            first = next(stream)
            assert isinstance(first, Sample) and first.data.mean() == pytest.approx(90, abs=3)
            usb.torn = True
            assert any(
                isinstance(item, Rejection) and item.reason == "malformed"
                for item in (next(stream) for _ in range(5))
            )
            usb.torn = False
            assert any(isinstance(next(stream), Sample) for _ in range(5))


def test_a_camera_is_read_in_a_process_of_its_own() -> None:
    source = open_source(f"{FIRST}?{SMALL}", by_name(image("camera", 90, 160)), time.monotonic_ns)
    stream = source.samples()
    got = [item for item in (next(stream) for _ in range(5)) if isinstance(item, Sample)]
    source.close()
    assert got and all(sample.data.shape == (90, 160, 3) for sample in got)
    assert all(0 <= sample.arrival_ns - sample.timestamp_ns < 2e9 for sample in got)
