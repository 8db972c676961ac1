"""Sources in processes of their own, in a session: a camera that hangs or crashes costs itself only."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.address import Wanted, parse
from fusedge.devices.capture.isolated import IsolatedSource
from fusedge.devices.capture.source import SCHEMES, Source
from fusedge.runtime import backoff
from fusedge.runtime.clock import Clock, LiveClock, PacedClock
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.memory import MemorySink
from tests.media_bundle import MODALITIES, PERIOD_S, write_media_bundle
from tests.runtime.live import LiveSource

pytestmark = pytest.mark.real_time
MOTION, VIEW, SOUND = MODALITIES


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A camera whose pictures go through shared memory, one a window: that one is never copied."""
    view = VIEW.model_copy(update={"height": 120, "width": 160, "window_s": 0.1})
    steady = [c.model_copy(update={"frozen_s": None}) for c in MOTION.channels]
    motion = MOTION.model_copy(update={"channels": tuple(steady)})
    return write_media_bundle(tmp_path / "media.fusedge", (motion, view, SOUND))


class Camera:
    """A session over a sensor in this process and a camera in one of its own."""

    def __init__(
        self,
        bundle: Bundle,
        behaviour: str,
        away: Sequence[FusedgeError] = (),
        uris: Sequence[str] = ("live:motion", "camera:0"),
        clock: Clock | None = None,
    ) -> None:
        self.cameras: list[IsolatedSource] = []
        refusals = iter(away)

        def open_uri(uri: str, wanted: Wanted, now_ns: Callable[[], int]) -> Source:
            if uri == "live:motion":
                return LiveSource("motion", now_ns)
            for refusal in refusals:
                raise refusal
            opener = f"tests.devices.child_sources:{behaviour}"
            camera = IsolatedSource(uri, parse(uri, SCHEMES), wanted, opener=opener)
            self.cameras.append(camera)
            return camera

        self.session = Session(
            bundle,
            uris,
            clock or LiveClock(),
            open_uri=open_uri,
            silence_s=1.5,
            without=["sound"],
        )
        self.memory = MemorySink()

    def run(self, duration_s: float) -> SessionReport:
        timer = threading.Timer(duration_s, self.session.stop)
        timer.start()
        report = run(self.session, [self.memory])
        timer.join()
        assert report.summary["ledger_balanced"]
        assert all(ended(camera.process_id) for camera in self.cameras)
        return report


def ended(process_id: int, within_s: float = 1.0) -> bool:
    """Whether a process is gone, or goes: what was being opened at the end is closed by who opened it."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_pictures_from_another_process_are_used_and_leave_nothing(bundle: Bundle) -> None:
    Camera(bundle, "endless").run(0.5)  # what is opened once stays open
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    camera = Camera(bundle, "endless")
    report = camera.run(2.5)
    assert not report.problem
    assert report.summary["ledger"]["view"]["used"] > 10
    assert [d for d in camera.memory.decisions if d.modalities["view"].present]
    del camera, report
    deadline = time.monotonic() + 2
    while threading.active_count() > before[1] and time.monotonic() < deadline:
        time.sleep(0.02)
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


@pytest.mark.parametrize("behaviour", ["hanging", "crashing", "raising"])
def test_a_camera_that_fails_is_opened_again_and_decisions_go_on(
    bundle: Bundle, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.05)
    camera = Camera(bundle, behaviour)
    report = camera.run(5)
    assert len(camera.cameras) >= 2
    assert report.summary["sources"]["camera:0"]["restarts"] >= 1
    assert "camera:0" in report.problem
    times = [decision.timestamp_ns for decision in camera.memory.decisions]
    assert max(b - a for a, b in itertools.pairwise(times)) == to_ns(PERIOD_S)
    assert camera.memory.decisions[-1].modalities["motion"].present


def test_a_device_that_is_away_at_the_start_is_awaited(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.05)
    busy = FusedgeError("is in use by another", where="camera:0")
    camera = Camera(bundle, "endless", away=[busy, busy])
    report = camera.run(4)
    assert "camera:0" in report.problem and "is in use by another" in report.problem
    assert report.summary["sources"]["camera:0"]["modalities"] == ["view"]
    assert camera.memory.decisions[-1].modalities["view"].present


@pytest.mark.parametrize(
    ("error", "uris"),
    [
        (UnknownNameError("option of camera:", "widht", ["width"]), ("live:motion", "camera:0")),
        (FusedgeError("no device 9", where="camera:9"), ("camera:9",)),
    ],
)
def test_what_is_mistyped_or_alone_and_away_ends_it(
    bundle: Bundle, error: FusedgeError, uris: tuple[str, ...]
) -> None:
    with pytest.raises(type(error), match=r"did you mean 'width'|no device 9"):
        Camera(bundle, "endless", away=[error], uris=uris)


def test_a_device_does_not_run_on_a_recordings_time(bundle: Bundle) -> None:
    with pytest.raises(FusedgeError, match="a device has the machine's time"):
        Camera(bundle, "endless", clock=PacedClock(1))
