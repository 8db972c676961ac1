"""Cameras: what is chosen of their offers, pictures out of frames, and what becomes of time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Rejection, Sample, StampKind
from fusedge.devices.capture.address import Address, Request, Wanted, parse
from fusedge.devices.capture.camera import CameraSource, csi_pipeline, open_camera, open_csi
from fusedge.devices.capture.camera_choice import Choice, achieved, choose
from fusedge.devices.capture.pixels import LAYOUTS, Developer, WrongSizeError
from fusedge.devices.capture.source import SCHEMES
from fusedge.devices.capture.v4l2 import Offer, Setting, Span
from tests.devices.modalities import by_name, image

MS = 1_000_000
Picture = NDArray[np.uint8]


def offer(format: str, width: int, height: int, *rates: float) -> Offer:
    return Offer(format, Span(width, width), Span(height, height), rates)


# As a usual webcam: pictures of any size that is larger than VGA come fast only as MJPG.
WEBCAM = [
    offer("YUYV", 640, 480, 30, 15, 5),
    offer("YUYV", 320, 240, 30, 15, 5),
    offer("YUYV", 1280, 720, 10, 5),
    offer("YUYV", 1920, 1080, 5),
    offer("MJPG", 640, 480, 30, 15),
    offer("MJPG", 1280, 720, 30, 15),
    offer("MJPG", 1920, 1080, 30, 15),
    offer("H264", 1920, 1080, 60),
]
NOW = Setting("H264", 1920, 1080, 0, 15.0)


def address(uri: str) -> Address:
    return parse(uri, SCHEMES)


def camera(height: int, width: int, rate_hz: float = 10, channels: str = "rgb") -> Modality:
    return image("camera", height, width, rate_hz, channels)


def chosen(uri: str, spec: Modality | None = None, offers: list[Offer] = WEBCAM) -> Choice:
    return choose(address(uri), offers, NOW, spec)


@pytest.mark.parametrize(
    ("options", "spec", "expected"),
    [
        # The smallest size that is large enough, the slowest rate that is fast enough.
        ("", camera(224, 224, rate_hz=10), ("YUYV", 320, 240, 15)),
        ("", camera(240, 320, rate_hz=5), ("YUYV", 320, 240, 5)),
        ("", camera(241, 320, rate_hz=5), ("YUYV", 640, 480, 5)),
        ("", camera(300, 641, rate_hz=5), ("YUYV", 1280, 720, 5)),
        # The format that is fast enough.
        ("", camera(720, 1280, rate_hz=10), ("YUYV", 1280, 720, 10)),
        ("", camera(720, 1280, rate_hz=20), ("MJPG", 1280, 720, 30)),
        ("?fps=15", camera(720, 1280, rate_hz=5), ("MJPG", 1280, 720, 15)),
        # Options come first.
        ("?format=MJPG", camera(224, 224, rate_hz=10), ("MJPG", 640, 480, 15)),
        ("?format=mjpg&width=1920", camera(224, 224), ("MJPG", 1920, 1080, 15)),
        ("?width=640&height=480&fps=30", camera(224, 224), ("YUYV", 640, 480, 30)),
        ("?height=720", camera(224, 224, rate_hz=30), ("MJPG", 1280, 720, 30)),
        # Without a modality: as the camera is set, in a format that can be read.
        ("", None, ("MJPG", 1920, 1080, 15)),
        ("?fps=5", None, ("YUYV", 1920, 1080, 5)),
        ("?width=1280", None, ("MJPG", 1280, 720, 15)),
    ],
)
def test_what_is_chosen(
    options: str, spec: Modality | None, expected: tuple[str, int, int, float]
) -> None:
    choice = chosen(f"camera:0{options}", spec)
    assert choice == (*expected, ())


def test_a_camera_that_is_too_small_or_slow_gives_its_best_and_says_so() -> None:
    choice = chosen("camera:0", camera(2000, 3000, rate_hz=60))
    assert choice[:4] == ("MJPG", 1920, 1080, 30)
    assert choice.warnings == ("camera:0: gives at most 1920x1080, enlarged to 3000x2000",)
    got = Setting("MJPG", 1920, 1080, 0, 30.0)
    spec = camera(2000, 3000, rate_hz=60)
    assert achieved(address("camera:0"), choice, got, spec).warnings == (
        *choice.warnings,
        "camera:0: gives 30 pictures a second, not 60",
    )


def test_grey_is_taken_only_where_no_colour_is_wanted() -> None:
    offers = [offer("GREY", 640, 480, 30), offer("YUYV", 640, 480, 30)]
    assert chosen("camera:0", camera(480, 640, channels="y"), offers).format == "GREY"
    assert chosen("camera:0", camera(480, 640), offers).format == "YUYV"
    assert chosen("camera:0", camera(480, 640), offers[:1]).format == "GREY"


def test_a_size_between_the_steps_of_a_range_is_rounded_up() -> None:
    offers = [Offer("YUYV", Span(48, 1920, 16), Span(32, 1080, 2), (60.0, 1.0), any_rate=True)]
    choice = chosen("camera:0", camera(225, 225, rate_hz=12.5), offers)
    assert choice[:4] == ("YUYV", 240, 226, 12.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?format=NV12", r"unknown format of camera:0\?format=NV12 'NV12' \(known: MJPG, YUYV\)"),
        ("?format=H264", "unknown format"),
        ("?width=800&height=600", r"does not offer this size \(closest: 640x480, 1280x720, "),
        ("?format=YUYV&width=1920&height=1200", r"\(closest: 1920x1080, "),
        ("?width=801", "does not offer this size"),
        ("?width=0", "width=0 is not a number from 1"),
        ("?fps=x", "fps=x is not a number"),
        ("?width=64.5", "not a whole number"),
    ],
)
def test_an_option_that_the_camera_does_not_offer_is_refused(options: str, message: str) -> None:
    with pytest.raises(FusedgeError, match=message):
        chosen(f"camera:0{options}")


def test_a_camera_of_unreadable_formats_is_refused() -> None:
    with pytest.raises(FusedgeError, match=r"gives RG10, of which none can be read \(a raw sensor"):
        chosen("camera:0", None, [offer("RG10", 640, 480, 30)])


def test_a_driver_that_does_not_do_what_it_was_told() -> None:
    choice = Choice("MJPG", 1280, 720, 30.0)
    got = Setting("YUYV", 640, 480, 1280, 15.0)
    result = achieved(address("camera:0"), choice, got, camera(400, 600, rate_hz=30))
    assert result == (
        *("YUYV", 640, 480, 15.0),
        (
            "camera:0: gives YUYV 640x480, though set to MJPG 1280x720",
            "camera:0: gives 15 pictures a second, not 30",
        ),
    )
    with pytest.raises(FusedgeError, match="gives YUYV 640x480, though set to MJPG 1280x720"):
        achieved(address("camera:0?width=1280"), choice, got, None)
    with pytest.raises(FusedgeError, match="gives H264 640x480, which cannot be read"):
        achieved(address("camera:0"), choice, got._replace(format="H264"), None)
    with pytest.raises(FusedgeError, match="gives YUYV 640x480 in lines of 1344 bytes"):
        achieved(address("camera:0"), choice, got._replace(line_bytes=1344), None)


def test_a_rate_that_was_asked_for_and_is_not_given_is_told() -> None:
    choice, got = Choice("YUYV", 640, 480, 30.0), Setting("YUYV", 640, 480, 1280, 25.0)
    for fps, warned in ((20, True), (25, False), (30, True)):
        uri = f"camera:0?fps={fps}"
        warnings = achieved(address(uri), choice, got, None).warnings
        assert warnings == ((f"{uri}: gives 25 pictures a second, not {fps}",) if warned else ())


# A picture of four colours, so that exchanged channels and turned pictures are seen.
CORNERS = np.array([[[200, 30, 40], [40, 180, 50]], [[50, 60, 210], [200, 190, 60]]], np.uint8)
SOURCE: Picture = np.kron(CORNERS, np.ones((40, 60, 1), np.uint8))  # 80 x 120, RGB


def encoded(format: str, rgb: Picture) -> Picture:
    """A frame as a camera sends it."""
    if format in ("MJPG", "JPEG"):
        good, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        assert good
        return np.asarray(data).reshape(-1)
    if format in ("RGB3", "BGR3"):
        return np.ascontiguousarray(rgb if format == "RGB3" else rgb[..., ::-1]).reshape(-1)
    if format == "GREY":
        return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)).reshape(-1)
    height, width = rgb.shape[:2]
    planes = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)).reshape(-1)
    y = planes[: height * width]
    u, v = planes[height * width :].reshape(2, -1)
    if format in ("YU12", "YV12"):
        return np.concatenate([y, u, v] if format == "YU12" else [y, v, u])
    if format in ("NV12", "NV21"):
        pairs = np.stack([u, v] if format == "NV12" else [v, u], 1)
        return np.concatenate([y, pairs.reshape(-1)])
    lines = y.reshape(height, width // 2, 2)
    u, v = (np.repeat(plane.reshape(height // 2, width // 2), 2, 0) for plane in (u, v))
    quads = {"YUYV": (0, "u", 1, "v"), "UYVY": ("u", 0, "v", 1), "YVYU": (0, "v", 1, "u")}[format]
    parts = {0: lines[..., 0], 1: lines[..., 1], "u": u, "v": v}
    return np.stack([parts[part] for part in quads], -1).reshape(-1)


class Slots:
    """What a picture is to be written into."""

    def __init__(self) -> None:
        self.given: list[Picture] = []

    def __call__(self, shape: tuple[int, ...]) -> Picture:
        self.given.append(np.full(shape, 77, np.uint8))
        return self.given[-1]


@pytest.mark.parametrize("format", LAYOUTS)
@pytest.mark.parametrize("size", [(80, 120), (20, 30), (160, 240)])
@pytest.mark.parametrize("channels", [3, 1])
def test_a_frame_becomes_a_picture_in_the_slot(
    format: str, size: tuple[int, int], channels: int
) -> None:
    slots = Slots()
    developer = Developer(format, 120, 80, (*size, channels))
    picture = developer.picture(encoded(format, SOURCE), slots)
    assert picture is slots.given[0] and len(slots.given) == 1
    colours = np.repeat(CORNERS.mean(2, keepdims=True), 3, 2) if format == "GREY" else CORNERS
    if channels == 1 or format == "GREY":
        grey = np.asarray(cv2.cvtColor(CORNERS, cv2.COLOR_RGB2GRAY))[..., None]
        colours = np.repeat(grey, channels, 2)
    rows, columns = (size[0] // 4, 3 * size[0] // 4), (size[1] // 4, 3 * size[1] // 4)
    centres = picture[np.ix_(rows, columns)].astype(int)
    # Grey of YUV is its Y, which goes from 16 to 235.
    tolerance = 12 if channels == 3 or format in ("RGB3", "BGR3", "GREY", "MJPG", "JPEG") else 20
    assert abs(centres - colours).max() <= tolerance


def test_a_picture_that_shrinks_is_averaged() -> None:
    stripes = np.zeros((80, 120, 3), np.uint8)
    stripes[:, ::2] = 200
    picture = Developer("RGB3", 120, 80, (20, 30, 3)).picture(encoded("RGB3", stripes), Slots())
    assert picture is not None and (picture == 100).all()


@pytest.mark.parametrize("format", LAYOUTS)
def test_a_torn_frame_is_no_picture_and_takes_no_slot(format: str) -> None:
    frame, slots = encoded(format, SOURCE), Slots()
    developer = Developer(format, 120, 80, (80, 120, 3))
    for torn in (frame[:0], frame[: len(frame) // 2], frame[:-2]):
        assert developer.picture(torn, slots) is None
    assert slots.given == []


def test_what_follows_a_frame_in_its_buffer_does_not_matter() -> None:
    for format in ("YUYV", "NV12", "MJPG"):
        frame = encoded(format, SOURCE)
        developer = Developer(format, 120, 80, (80, 120, 3))
        alone = developer.picture(frame, Slots())
        padded = developer.picture(np.concatenate([frame, np.zeros(500, np.uint8)]), Slots())
        assert alone is not None and padded is not None and (alone == padded).all()


def test_a_jpeg_of_another_size_is_told() -> None:
    with pytest.raises(WrongSizeError, match="120x80"):
        Developer("MJPG", 640, 480, (10, 10, 3)).picture(encoded("MJPG", SOURCE), Slots())


@given(st.binary(max_size=400), st.booleans())
def test_nonsense_for_a_jpeg_never_breaks(data: bytes, ends: bool) -> None:
    head = encoded("MJPG", SOURCE)[:200].tobytes()
    frame = np.frombuffer(head + data + (b"\xff\xd9" if ends else b""), np.uint8)
    developer = Developer("MJPG", 120, 80, (80, 120, 3))
    try:
        picture = developer.picture(frame, Slots())
    except WrongSizeError:
        return
    assert picture is None or picture.shape == (80, 120, 3)


class Script:
    """Frames that come at set times: (device's stamp, when it can be read), in ms."""

    def __init__(self, frames: list[tuple[float, float]], data: Picture | None = None) -> None:
        self.now = 0
        self.closed = 0
        self._frames = [(round(stamp * MS), round(at * MS)) for stamp, at in frames]
        self._data = encoded("GREY", SOURCE) if data is None else data

    def now_ns(self) -> int:
        return self.now

    def wait(self, timeout_ms: int) -> bool:
        end = self.now + timeout_ms * MS
        if self._frames and self._frames[0][1] <= end:
            self.now = max(self.now, self._frames[0][1])
            return True
        self.now = end
        return False

    def another(self) -> bool:
        return self.wait(1)

    def take(self) -> tuple[int, Picture]:
        return self._frames.pop(0)[0], self._data

    def place(self, device_ns: int, arrival_ns: int) -> tuple[int, StampKind]:
        return (device_ns, "capture") if device_ns >= 0 else (arrival_ns, "arrival")

    def close(self) -> None:
        self.closed += 1


def source(script: Script, rate_hz: float = 25.0) -> CameraSource:
    request = Request(address("camera:0"), None, script.now_ns)
    developer = Developer("GREY", 120, 80, (80, 120, 1))
    return CameraSource(
        request, "camera", None, script, developer, Choice("GREY", 120, 80, rate_hz)
    )


def told(script: Script) -> list[tuple[str, float, int]]:
    """What came until the script's end: reason or `picture`, stamp or arrival in ms, samples."""
    items: list[tuple[str, float, int]] = []
    with pytest.raises(FusedgeError, match="camera:0: no picture for 2 s"):
        for item in source(script).samples():
            if isinstance(item, Rejection):
                items.append((item.reason, item.arrival_ns / MS, item.samples))
            else:
                items.append(("picture", item.timestamp_ns / MS, 1))
    assert script.closed
    return items


def test_pictures_come_with_the_stamps_of_the_camera() -> None:
    times = [(40.0 * n, 40.0 * n + 5) for n in range(1, 8)]
    assert told(Script(times)) == [("picture", stamp, 1) for stamp, _ in times]


def test_what_waited_too_long_is_skipped_for_what_is_newer() -> None:
    # The reader was away until 200 ms; three frames wait, of which the last is old as well.
    script = Script([(40, 41), (80, 200), (120, 200), (160, 200), (200, 205), (240, 245)])
    assert told(script) == [
        ("picture", 40, 1),
        ("stale", 200, 1),
        ("stale", 200, 1),
        ("picture", 160, 1),
        ("picture", 200, 1),
        ("picture", 240, 1),
    ]


def test_frames_that_the_driver_lost_are_counted() -> None:
    times = [40.0 * n for n in (1, 2, 3, 4, 6, 7, 12, 13)]
    items = told(Script([(stamp, stamp + 5) for stamp in times]))
    assert [item for item in items if item[0] == "gap"] == [("gap", 245, 1), ("gap", 485, 4)]
    assert sum(item[0] == "picture" for item in items) == len(times)


def test_a_camera_that_becomes_slow_is_soon_not_taken_for_one_that_loses_frames() -> None:
    times = [40.0 * n for n in range(1, 20)] + [760 + 80.0 * n for n in range(1, 40)]
    items = told(Script([(stamp, stamp + 5) for stamp in times]))
    gaps = [arrival for reason, arrival, _ in items if reason == "gap"]
    assert 0 < len(gaps) <= 8 and max(gaps) < 760 + 80 * 9


def test_without_stamps_nothing_is_late_or_lost() -> None:
    items = told(Script([(-1, 40.0), (-1, 80.0), (-1, 300.0), (-1, 300.0)]))
    assert items == [("picture", at, 1) for at in (40, 80, 300, 300)]


def test_damaged_frames_are_counted_until_it_is_too_long() -> None:
    script = Script([(40.0 * n, 40.0 * n) for n in range(1, 100)], np.zeros(5, np.uint8))
    items = told(script)
    assert {item[0] for item in items} == {"malformed"}
    assert 48 <= len(items) <= 51  # 2 s


def test_a_silent_camera_is_given_up_after_two_seconds() -> None:
    script = Script([(40.0, 45.0)])
    assert told(script) == [("picture", 40, 1)]
    assert 2000 <= script.now / MS <= 2200


def test_a_picture_of_another_size_ends_the_source() -> None:
    script = Script([(40.0, 45.0)], encoded("MJPG", SOURCE))
    request = Request(address("camera:0"), None, script.now_ns)
    developer = Developer("MJPG", 640, 480, (480, 640, 3))
    changed = CameraSource(
        request, "camera", None, script, developer, Choice("MJPG", 640, 480, 25.0)
    )
    with pytest.raises(FusedgeError, match="camera:0: pictures are suddenly 120x80"):
        list(changed.samples())


def test_close_ends_the_iterator_and_lets_go_once_it_is_unused() -> None:
    script = Script([(40.0 * n, 40.0 * n) for n in range(1, 100)])
    opened = source(script)
    items: Iterator[Any] = opened.samples()
    assert isinstance(next(items), Sample)
    opened.close()
    assert not script.closed  # the reader still has it
    assert list(items) == []
    assert script.closed == 1
    opened.close()

    unread = Script([])
    opened = source(unread)
    opened.close()
    assert unread.closed and list(opened.samples()) == []


def refused(open_source: Callable[[Request], Any], uri: str, wanted: Wanted = None) -> str:
    with pytest.raises(FusedgeError) as caught:
        open_source(Request(address(uri), wanted, lambda: 0))
    return caught.value.line()


def test_what_cannot_be_opened_is_told_in_a_line() -> None:
    assert refused(open_camera, "camera:99").startswith("camera:99: no device 99 (")
    line = refused(open_camera, "camera:/dev/null")
    assert line.startswith("camera:/dev/null: /dev/null is no camera (there is ")
    assert "Is a directory" in refused(open_camera, "camera:/dev")
    two = camera(8, 8, channels="xy")
    assert "camera has 2 channels; a camera gives 3 (RGB) or 1" in refused(
        open_camera, "camera:/dev/null", wanted=by_name(two)
    )
    assert "may give one of left, right" in refused(
        open_camera,
        "camera:0",
        by_name(image("left", 8, 8), image("right", 8, 8)),
    )


def test_csi_is_told_what_it_needs() -> None:
    line = refused(open_csi, "csi:0")
    assert "this OpenCV has no GStreamer" in line and "JetPack" in line
    assert "'front' is no sensor's number" in refused(open_csi, "csi:front")
    assert "flip=9 is not a number from 0 to 7" in refused(open_csi, "csi:0?flip=9")


def test_the_pipeline_of_a_csi_sensor() -> None:
    assert csi_pipeline(0, 1280, 720, 30) == (
        "nvarguscamerasrc sensor-id=0 ! "
        "video/x-raw(memory:NVMM), width=1280, height=720, framerate=30/1 ! "
        "nvvidconv flip-method=0 ! video/x-raw, format=BGRx ! videoconvert ! "
        "video/x-raw, format=BGR ! appsink drop=true max-buffers=1 sync=false"
    )
    other = csi_pipeline(1, 1920, 1080, 29.97, mode=3, flip=2)
    assert "sensor-id=1 sensor-mode=3" in other and "flip-method=2" in other
    assert "framerate=2997/100" in other
    assert "framerate=30000/1001" in csi_pipeline(1, 8, 8, 30000 / 1001)


def test_opening_without_opencv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"fusedge\[camera\]"):
        open_camera(Request(address("camera:0"), None, lambda: 0))


def test_a_failed_opening_leaves_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    refused(open_camera, "camera:/dev/null")
    handles, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(200):
        refused(open_camera, "camera:/dev/null")
        refused(open_camera, "camera:99")
    assert len(os.listdir("/proc/self/fd")) == handles
    assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")
