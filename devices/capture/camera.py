"""Cameras as sources: `camera:` through V4L2, `csi:` through NVIDIA's Argus on a Jetson."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Rejection, Sample, StampKind
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture import v4l2
from fusedge.devices.capture.access import refusal
from fusedge.devices.capture.address import Address, Request
from fusedge.devices.capture.camera_choice import (
    MAX_RATE_HZ,
    MAX_SIDE,
    Choice,
    achieved,
    choose,
)
from fusedge.devices.capture.device_clock import DeviceClock, believable
from fusedge.devices.capture.pixels import Developer, Picture, WrongSizeError, opencv
from fusedge.devices.capture.wanted import COLOURS, modality_of, picture_size

MODALITY = "camera"
WAIT_MS = 100  # how soon a reader that waits sees that it is closed
SILENCE_NS = to_ns(2.0)
USUAL_RATE_HZ = 30.0  # where the driver says none
LATE = 1.5  # intervals, from which on a frame is stale, or one is missing
REMEMBERED = 15  # intervals, of which the median is the usual one
BUFFERS = 3  # one is filled, one waits, one is read; each more would only be older
SELECT_TIMEOUT = "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"  # seconds for the first frames, 10 without it
CSI_SIZE, CSI_RATE_HZ = (1280, 720), 30.0
ARGUS_PLUGIN = "libgstnvarguscamerasrc.so"
PLUGIN_FOLDERS = ("usr/lib/gstreamer-1.0", "usr/lib/*/gstreamer-1.0")


class _Frames(Protocol):
    """Where a source of pictures has its frames from."""

    def wait(self, timeout_ms: int) -> bool:
        """Whether a frame is there to be taken."""

    def take(self) -> tuple[int, Picture]:
        """The frame that was waited for: the device's stamp in ns, and the bytes."""

    def another(self) -> bool:
        """Whether a newer frame than the one taken waits already."""

    def place(self, device_ns: int, arrival_ns: int) -> tuple[int, StampKind]:
        """The capture time of a frame."""

    def close(self) -> None:
        """Let go of the camera; may be called twice."""


class CameraSource:
    """A camera; gives always the newest picture.

    A frame that is late by more than 1.5 intervals while another waits is skipped (`stale`). Where
    stamps are more than 1.5 of the usual intervals (the median of the last 15) apart, what should have
    come between them is counted as `gap`: the driver had no buffer free, or the camera was slow; which
    of the two cannot be told, but a camera that stays slow, as in the dark, is so no longer a gap.
    A frame that is torn or empty is `malformed`. Raises FusedgeError where the camera is unplugged,
    fails, changes its size, or gives no picture for 2 s.
    """

    live = True

    def __init__(
        self,
        request: Request,
        modality: str,
        spec: Modality | None,
        frames: _Frames,
        developer: Developer,
        choice: Choice,
    ) -> None:
        names = COLOURS if spec is None else tuple(channel.name for channel in spec.channels)
        self.uri = request.address.uri
        self.modalities = (modality,)
        self.channels = {modality: names}
        self.units: Mapping[str, tuple[str, ...]] = {}
        self.warnings = choice.warnings
        self._request = request
        self._modality = modality
        self._frames = frames
        self._developer = developer
        self._intervals = deque([NANOSECONDS / (choice.rate_hz or USUAL_RATE_HZ)], REMEMBERED)
        self._closed = threading.Event()
        self._reading = threading.Lock()

    def samples(self) -> Iterator[Sample | Rejection]:
        """Pictures as they come, uint8 `[height, width, channels]`."""
        with self._reading:
            try:
                yield from self._read()
            finally:
                self._frames.close()

    def close(self) -> None:
        """End the iterator within 0.1 s."""
        self._closed.set()
        if self._reading.acquire(blocking=False):  # else the reader lets go of the camera
            self._frames.close()
            self._reading.release()

    def _read(self) -> Iterator[Sample | Rejection]:
        frames, now_ns = self._frames, self._request.now_ns
        before_ns, quiet_ns = None, 0  # only the waiting here counts, not what the reader does
        while not self._closed.is_set():
            if quiet_ns > SILENCE_NS:
                raise self._error("no picture for 2 s")
            began_ns = now_ns()
            came = frames.wait(WAIT_MS)
            arrival_ns = now_ns()
            quiet_ns += arrival_ns - began_ns
            if not came:
                continue
            device_ns, data = frames.take()
            stamp_ns, kind = frames.place(device_ns, arrival_ns)
            if kind == "capture":
                lost = self._lost(stamp_ns, before_ns)
                before_ns = stamp_ns
                if lost:
                    detail = f"{lost} frames did not come"
                    yield Rejection(self._modality, arrival_ns, "gap", detail, lost)
                late_ns = arrival_ns - stamp_ns
                if late_ns > LATE * median(self._intervals) and frames.another():
                    detail = f"{late_ns / 1e6:.0f} ms late, and a newer one waits"
                    yield Rejection(self._modality, arrival_ns, "stale", detail)
                    continue
            picture = self._picture(data)
            if picture is None:
                detail = f"{self.uri}: {data.size} bytes are no whole picture"
                yield Rejection(self._modality, arrival_ns, "malformed", detail)
                continue
            quiet_ns = 0
            yield Sample(self._modality, stamp_ns, arrival_ns, picture, kind)

    def _lost(self, stamp_ns: int, before_ns: int | None) -> int:
        """How many frames should have come since the one before."""
        if before_ns is None or stamp_ns <= before_ns:
            return 0
        interval, usual = stamp_ns - before_ns, median(self._intervals)
        self._intervals.append(interval)
        return round(interval / usual) - 1 if interval > LATE * usual else 0

    def _picture(self, data: Picture) -> Picture | None:
        try:
            return self._developer.picture(data, self._request.allocate)
        except WrongSizeError as error:
            raise self._error(f"pictures are suddenly {error}") from None

    def _error(self, what: str) -> FusedgeError:
        return FusedgeError(what, where=self.uri)


def open_camera(request: Request) -> CameraSource:
    """The source `camera:TARGET`; see `v4l2.resolve` for targets, `choose` for what it is set to.

    Pictures are RGB uint8 `[height, width, 3]`, or grey `[height, width, 1]` for a modality of one
    channel; `Developer` says how they are made to fit. The stamp is the driver's, of CLOCK_MONOTONIC.
    """
    address = request.address
    opencv("reading a camera")
    modality, spec = _pictured(request)
    path = v4l2.resolve(address)
    choice = _negotiated(address, path, spec)
    frames = _V4l2Frames(address, path, choice)
    try:
        frames.start()
        with _opened(address, path) as fd:
            choice = achieved(address, choice, v4l2.setting(fd), spec)
        if address.target == "auto":
            choice = choice._replace(warnings=(*choice.warnings, f"{address.uri}: it is {path}"))
        return _source(request, modality, spec, frames, choice)
    except BaseException:
        frames.close()
        raise


def _pictured(request: Request) -> tuple[str, Modality | None]:
    modality, spec = modality_of(request.address, request.wanted, "image", MODALITY)
    if spec is not None and len(spec.channels) not in (1, 3):
        raise request.address.error(
            f"{modality} has {len(spec.channels)} channels; a camera gives 3 (RGB) or 1 (grey)"
        )
    return modality, spec


def _source(
    request: Request,
    modality: str,
    spec: Modality | None,
    frames: _Frames,
    choice: Choice,
) -> CameraSource:
    shape = (choice.height, choice.width, len(COLOURS))
    if spec is not None:
        shape = (*picture_size(spec, choice.height, choice.width), len(spec.channels))
    developer = Developer(choice.format, choice.width, choice.height, shape)
    return CameraSource(request, modality, spec, frames, developer, choice)


def _negotiated(address: Address, path: str, spec: Modality | None) -> Choice:
    """What to set the camera to; told by errors that OpenCV does not tell."""
    with _opened(address, path) as fd:
        seen = v4l2.capability(fd)
        if seen is None or not seen.captures:
            what = f"{path} is no camera" if seen is None else f"{path} gives no pictures"
            raise address.error(what, hint=f"there is {', '.join(v4l2.known()) or 'none'}")
        choice = choose(address, v4l2.offers(fd), v4l2.setting(fd), spec)
        v4l2.claim(fd, choice.format, choice.width, choice.height)
        return choice


@contextmanager
def _opened(address: Address, path: str) -> Iterator[int]:
    """The open device; what the system refuses is raised as an error of the address."""
    fd = -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        yield fd
    except OSError as error:
        raise refusal(address, path, error, v4l2.known()) from None
    finally:
        if fd >= 0:
            os.close(fd)


class _Stamps:
    """A device's stamps as capture times.

    Contract: those of CLOCK_MONOTONIC, the clock of live sessions, are taken as they are. From the first on
    that cannot be of it, all are placed on it as those of another clock. Without one: the arrival.
    """

    def __init__(self, *, monotonic: bool) -> None:
        self._clock = None if monotonic else DeviceClock()

    def place(self, device_ns: int, arrival_ns: int) -> tuple[int, StampKind]:
        if device_ns <= 0:
            return arrival_ns, "arrival"
        if self._clock is None:
            if believable(device_ns, arrival_ns):
                return device_ns, "capture"
            self._clock = DeviceClock()
        return self._clock.place(device_ns, arrival_ns), "capture"


class _OpenCvFrames:
    """What the two ways to a camera have in common."""

    def __init__(self, address: Address, capture: Any, stamps: _Stamps) -> None:
        self._address = address
        self._cv2 = opencv("reading a camera")
        self._capture = capture
        self.place = stamps.place

    def take(self) -> tuple[int, Picture]:
        _, data = self._capture.retrieve()
        stamp_us = round(self._capture.get(self._cv2.CAP_PROP_POS_MSEC) * 1000)
        return stamp_us * 1000, np.empty(0, np.uint8) if data is None else data

    def close(self) -> None:
        self._capture.release()


class _V4l2Frames(_OpenCvFrames):
    """Frames as the camera sends them: OpenCV keeps the queue, but decodes nothing."""

    def __init__(self, address: Address, path: str, choice: Choice) -> None:
        cv2 = opencv("reading a camera")
        os.environ.setdefault(SELECT_TIMEOUT, "2")
        super().__init__(address, cv2.VideoCapture(path, cv2.CAP_V4L2), _Stamps(monotonic=True))
        self._path = path
        self._waits = False
        settings = (
            (cv2.CAP_PROP_FOURCC, int.from_bytes(choice.format.encode("ascii"), "little")),
            (cv2.CAP_PROP_FRAME_WIDTH, choice.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, choice.height),
            (cv2.CAP_PROP_BUFFERSIZE, BUFFERS),
            (cv2.CAP_PROP_CONVERT_RGB, 0),
            (cv2.CAP_PROP_FPS, choice.rate_hz),  # the last one: others set it to what it was
        )
        for setting, value in settings:
            if value or setting == cv2.CAP_PROP_CONVERT_RGB:
                self._capture.set(setting, value)

    def start(self) -> None:
        """Wait for the first frame, which is often bad."""
        if not self._capture.isOpened():
            raise self._address.error("OpenCV cannot open it", hint="was it taken meanwhile?")
        if not self._capture.grab():
            raise self._address.error(
                "does not start",
                hint="two cameras may be too much for one USB bus: try format=MJPG, or less fps",
            )

    def wait(self, timeout_ms: int) -> bool:
        if not self._waits:
            try:
                self._waits, _ = self._cv2.VideoCapture.waitAny(
                    [self._capture], timeout_ms * 1_000_000
                )
            except self._cv2.error:
                gone = not os.path.exists(self._path)  # noqa: PTH110
                what = "was unplugged" if gone else "its driver reports an error"
                raise self._address.error(what) from None
        return self._waits

    def another(self) -> bool:
        return self.wait(1)

    def take(self) -> tuple[int, Picture]:
        self._waits = False
        return super().take()


def csi_pipeline(
    sensor: int, width: int, height: int, rate_hz: float, mode: int | None = None, flip: int = 0
) -> str:
    """The GStreamer pipeline that gives a CSI sensor's pictures in BGR, always the newest one."""
    rate = Fraction(rate_hz).limit_denominator(1001)
    chosen = "" if mode is None else f" sensor-mode={mode}"
    size = f"width={width}, height={height}, framerate={rate.numerator}/{rate.denominator}"
    return " ! ".join(
        (
            f"nvarguscamerasrc sensor-id={sensor}{chosen}",
            f"video/x-raw(memory:NVMM), {size}",
            f"nvvidconv flip-method={flip}",
            "video/x-raw, format=BGRx",
            "videoconvert",
            "video/x-raw, format=BGR",
            "appsink drop=true max-buffers=1 sync=false",
        )
    )


def open_csi(request: Request) -> CameraSource:
    """The source `csi:N`, a Jetson's CSI sensor N; 1280x720 at 30 Hz without options.

    Argus scales to any size and takes the sensor's mode that is nearest, or the option `mode`; `flip`
    is nvvidconv's flip-method. The stamps are the pipeline's, placed on the session's clock, so that the
    constant part of the delay is not seen. No such device was at hand: what is tested is the
    pipeline's text and what is said where it cannot run.
    """
    address = request.address
    cv2 = opencv("reading a camera")
    modality, spec = _pictured(request)
    if not address.target.isdecimal():
        raise address.error(f"{address.target!r} is no sensor's number", hint="csi:0 is the first")
    width = address.whole("width", CSI_SIZE[0], 1, MAX_SIDE) or 0
    height = address.whole("height", CSI_SIZE[1], 1, MAX_SIDE) or 0
    rate_hz = address.number("fps", CSI_RATE_HZ, 0.1, MAX_RATE_HZ) or 0.0
    mode, flip = address.whole("mode", None, 0, 99), address.whole("flip", 0, 0, 7)
    if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        raise address.error(
            "this OpenCV has no GStreamer, as those of PyPI",
            hint="pip uninstall opencv-python opencv-python-headless, and use JetPack's "
            "(apt install libopencv-python), with --system-site-packages in an environment",
        )
    text = csi_pipeline(int(address.target), width, height, rate_hz, mode, flip or 0)
    frames = _CsiFrames(address, cv2.VideoCapture(text, cv2.CAP_GSTREAMER))
    try:
        choice = frames.start(Choice("BGR3", width, height, rate_hz))
        return _source(request, modality, spec, frames, choice)
    except BaseException:
        frames.close()
        raise


class _CsiFrames(_OpenCvFrames):
    """Pictures of a pipeline; where Argus hangs, so does `wait`, and the source's process is ended."""

    def __init__(self, address: Address, capture: Any) -> None:
        super().__init__(address, capture, _Stamps(monotonic=False))

    def start(self, choice: Choice) -> Choice:
        """See to it that the pipeline runs; what it gives."""
        if not self._capture.isOpened():
            plugins = [p for folder in PLUGIN_FOLDERS for p in Path("/").glob(folder)]
            there = any((folder / ARGUS_PLUGIN).exists() for folder in plugins)
            what = "gives no pictures" if there else "nvarguscamerasrc is not installed"
            hint = (
                "is the sensor attached, free, and in the device tree? see nvargus-daemon's log"
                if there
                else "it is part of JetPack (nvidia-l4t-gstreamer), and runs on a Jetson only"
            )
            raise self._address.error(what, hint=hint)
        sides = (self._cv2.CAP_PROP_FRAME_WIDTH, self._cv2.CAP_PROP_FRAME_HEIGHT)
        width, height = (int(self._capture.get(side)) for side in sides)
        return choice._replace(width=width or choice.width, height=height or choice.height)

    def wait(self, timeout_ms: int) -> bool:
        if not self._capture.grab():
            raise self._address.error("its pipeline ended")
        return True

    def another(self) -> bool:
        return False  # the pipeline keeps only the newest
