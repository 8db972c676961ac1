"""The window on a real X server: what is seen in it, how a session ends with it and goes on without it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import to_ns
from fusedge.cli.run import default_speed
from fusedge.runtime import backoff
from fusedge.runtime.clock import LiveClock, PacedClock, VirtualClock
from fusedge.runtime.front.face_front import FaceFront, FaceTally
from fusedge.runtime.front.faces import FaceDetector
from fusedge.runtime.front.sighting import FacesSeen, Sightings, View
from fusedge.runtime.runner import run
from fusedge.runtime.session import SessionReport
from fusedge.runtime.sinks import window as windows
from fusedge.runtime.sinks.lane import SinkLane
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.sinks.sink import ReaderLeftError
from tests.runtime.front_parts import BlobDetector, face_modality, face_part

pytest.importorskip("cv2")
pytest.importorskip("tkinter")

from fusedge.runtime.sinks.window import WindowSink
from tests.runtime.test_drawing import FRONTS, decided
from tests.runtime.test_session import Begin, ListSource, begin, bundle, ten_seconds

__all__ = ["begin", "bundle"]  # fixtures
pytestmark = pytest.mark.real_time

WAIT_S = 15.0
HEADER = {"bundle": "emotion", "fronts": FRONTS}
FRAME = (10, 200, 250)


class Screen:
    """An X server's: its picture lies in a file in the format XWD."""

    def __init__(self, folder: Path, display: str) -> None:
        self._file, self.display = folder / "Xvfb_screen0", display

    def picture(self) -> NDArray[np.uint8]:
        """What is seen, uint8 `[height, width, 3]`, RGB."""
        content = self._file.read_bytes()
        header = np.frombuffer(content, ">u4", 25)
        start, width, height, line = (int(header[n]) for n in (0, 4, 5, 12))
        pixels = np.frombuffer(content, np.uint8, offset=start + 12 * int(header[19]))
        return pixels[: line * height].reshape(height, line // 4, 4)[:, :width, 2::-1]

    def shows(self, colour: tuple[int, int, int]) -> bool:
        """Whether a good part of the screen is of a colour."""
        return bool((self.picture() == colour).all(axis=2).sum() > 10_000)

    def do(self, *words: str) -> None:
        """Type, click and so on in the newest window."""
        found = subprocess.run(
            ["xdotool", "search", "--sync", "--onlyvisible", "--class", "Fusedge"],
            env={**os.environ, "DISPLAY": self.display},
            capture_output=True,
            text=True,
            check=True,
            timeout=WAIT_S,
        )
        window = found.stdout.split()[-1]
        action, *rest = words
        command = [
            "xdotool",
            action,
            *(("--window", window) if action == "key" else (window,)),
            *rest,
        ]
        if action == "key":  # to the window under the pointer, as without a window manager
            command = ["xdotool", "mousemove", "--window", window, "50", "50", "key", *rest]
        subprocess.run(
            command, env={**os.environ, "DISPLAY": self.display}, check=True, timeout=WAIT_S
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    for program in ("Xvfb", "xdotool"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install xvfb xdotool)")
    folder = tmp_path_factory.mktemp("screen")
    words = ["-displayfd", "1", "-screen", "0", "1366x768x24", "-nolisten", "tcp", "-fbdir"]
    process = subprocess.Popen(
        ["Xvfb", *words, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        yield Screen(folder, f":{process.stdout.readline().decode().strip()}")
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def screen(server: Screen, monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("DISPLAY", server.display)
    monkeypatch.setattr(backoff, "FIRST_S", 0.05)
    return server


@pytest.fixture
def sink(screen: Screen) -> Iterator[WindowSink]:
    """An open window with a frame of one colour."""
    frame = np.full((360, 640, 3), FRAME, np.uint8)
    opened = WindowSink(lambda: View(frame, FacesSeen(0, 360, 640, ())))
    opened.open(HEADER)
    yield opened
    opened.close({})


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def written(sink: WindowSink, condition: Callable[[], object]) -> None:
    """Decisions follow each other until the condition holds."""

    def write() -> object:
        sink.write(decided())
        return condition()

    until(write)


def child_of(sink: WindowSink) -> int:
    assert sink._window is not None
    return sink._window._process.pid


def test_the_frame_and_the_decision_are_seen_until_the_sink_is_closed(
    sink: WindowSink, screen: Screen
) -> None:
    written(sink, lambda: screen.shows(FRAME))
    size = windows.SIZE_WITH_VIEW
    expected = windows.draw(*size, decided(), sink._view and sink._view(), FRONTS, "emotion")
    np.testing.assert_array_equal(screen.picture()[: size[1], : size[0]], expected)
    sink.close({})
    until(lambda: not screen.shows(FRAME))


def test_the_picture_follows_the_size_of_the_window(sink: WindowSink, screen: Screen) -> None:
    written(sink, lambda: screen.shows(FRAME))
    screen.do("windowsize", "700", "500")
    written(sink, lambda: sink._window is not None and sink._window.size == (700, 500))
    expected = windows.draw(700, 500, decided(), sink._view and sink._view(), FRONTS, "emotion")
    written(sink, lambda: np.array_equal(screen.picture()[:500, :700], expected))


@pytest.mark.parametrize("how", [("key", "q"), ("key", "Escape"), ("windowclose",)], ids="/".join)
def test_q_escape_and_closing_the_window_say_that_nobody_looks_on(
    sink: WindowSink, screen: Screen, how: tuple[str, ...]
) -> None:
    written(sink, lambda: screen.shows(FRAME))
    screen.do(*how)
    with pytest.raises(ReaderLeftError):
        written(sink, lambda: False)
    with pytest.raises(ReaderLeftError):
        sink.flush()


def test_another_key_ends_nothing(sink: WindowSink, screen: Screen) -> None:
    written(sink, lambda: screen.shows(FRAME))
    screen.do("key", "x")
    screen.do("windowsize", "700", "500")  # which it does after the key
    written(sink, lambda: sink._window is not None and sink._window.size == (700, 500))


def test_a_window_that_dies_is_a_failure_and_the_next_one_shows_what_follows(
    sink: WindowSink, screen: Screen
) -> None:
    written(sink, lambda: screen.shows(FRAME))
    os.kill(child_of(sink), signal.SIGKILL)
    with pytest.raises(OSError, match="the window has failed"):
        written(sink, lambda: False)
    until(lambda: not screen.shows(FRAME))
    written(sink, lambda: screen.shows(FRAME))


def test_a_window_that_hangs_is_given_up(
    sink: WindowSink, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(sink, lambda: screen.shows(FRAME))
    monkeypatch.setattr(windows, "ANSWER_S", 0.3)
    hung = child_of(sink)
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(OSError, match="does not answer"):
        written(sink, lambda: False)
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_it_is_drawn_no_more_often_than_can_be_seen_and_waits_for_a_slow_display(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Display:
        size = (64, 64)

        def __init__(self, title: str, size: tuple[int, int]) -> None:
            self.shown, self.is_ready = 0, True

        def ready(self) -> bool:
            return self.is_ready

        def show(self, picture: NDArray[np.uint8]) -> None:
            self.shown += 1

    now_ns = [10**9]
    monkeypatch.setattr(windows, "_Window", Display)
    monkeypatch.setattr(windows, "stopwatch_ns", lambda: now_ns[0])
    sink = WindowSink(None)
    sink.open(HEADER)
    display = sink._window
    assert isinstance(display, Display)
    for _ in range(1000):
        sink.write(decided())
        now_ns[0] += to_ns(0.001)
    assert 13 <= display.shown <= 15
    display.is_ready = False
    now_ns[0] += to_ns(1)
    sink.write(decided())
    assert display.shown <= 15


@pytest.mark.parametrize("clock", [PacedClock(1), VirtualClock()], ids=["real", "virtual"])
def test_a_session_ends_well_when_its_window_is_closed(
    begin: Begin, screen: Screen, clock: PacedClock | VirtualClock
) -> None:
    class Watched(WindowSink):
        def write(self, item: object) -> None:
            if not self.closed:
                self.closed = True
                screen.do("key", "q")
                assert self._window is not None
                self._window._process.wait(WAIT_S)
            super().write(item)  # type: ignore[arg-type]

        closed = False

    memory = MemorySink()
    session = begin(ListSource(ten_seconds()), clock=clock)
    report: SessionReport = run(session, [Watched(session.view), memory])
    assert report.ended == report.summary["ended"] == "window closed" and not report.problem
    assert report.summary["decisions"] < 10 and len(memory.decisions) < 10
    told = report.summary["sinks"]["window"]
    assert told["failures"] == 0 and told["dropped"]["reader_gone"] >= 1
    assert report.summary["ledger_balanced"]


def test_a_session_whose_window_fails_goes_on_to_its_end(begin: Begin, screen: Screen) -> None:
    class Doomed(WindowSink):
        def write(self, item: object) -> None:
            if self._window is not None:
                os.kill(child_of(self), signal.SIGKILL)
            super().write(item)  # type: ignore[arg-type]

    memory = MemorySink()
    session = begin(ListSource(ten_seconds()))
    report = run(session, [Doomed(session.view), memory])
    assert report.ended == "end of input" and len(memory.decisions) == 10
    assert "sink window failed, first: the window has failed" in report.problem


def test_a_closed_window_is_noticed_though_nothing_is_decided(screen: Screen) -> None:
    sink = WindowSink(None)
    lane = SinkLane(sink, LiveClock())
    lane.open(HEADER)
    screen.do("key", "q")
    until(lambda: lane.reader_gone)
    assert isinstance(lane.reader_gone, ReaderLeftError)
    lane.end({})
    assert lane.join(WAIT_S) and lane.report()["failures"] == 0


def test_what_is_watched_runs_in_its_own_time() -> None:
    assert default_speed(["sim:", "file:drive.mp4"], show=True) == "1"
    assert default_speed(["camera:auto", "mic:auto"], show=True) == "live"


@pytest.mark.parametrize("display", ["", ":4711"])
def test_without_a_display_nothing_begins_and_one_line_says_what_to_do(
    tmp_path: Path, display: str
) -> None:
    out = tmp_path / "decisions.jsonl"
    words = ["run", "driving", "--source", "sim:?duration_s=5", "--show", "--out", str(out)]
    result = subprocess.run(
        [sys.executable, "-m", "fusedge.cli", *words],
        env={**os.environ, "DISPLAY": display},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("fusedge:")]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "no window can be opened" in line and "--show needs a desktop" in line
    assert not out.exists()


def test_without_tk_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    path = json.dumps(str(windows._CHILD))
    child.write_text(
        "import runpy, sys\nsys.modules['tkinter'] = None\n"
        f"runpy.run_path({path}, run_name='__main__')\n"
    )
    monkeypatch.setattr(windows, "_CHILD", child)
    with pytest.raises(FusedgeError, match="apt install python3-tk"):
        WindowSink(None).open(HEADER)


def test_a_frame_is_kept_only_while_somebody_looks_on_and_is_the_newest() -> None:
    sightings = Sightings()
    detector = FaceDetector(face_part(boxes=300), BlobDetector().run)
    front = FaceFront(face_modality(), detector, FaceTally(), sightings)

    def take(number: int) -> weakref.ref[NDArray[np.uint8]]:
        frame = np.full((120, 160, 3), 20, np.uint8)
        frame[30:70, 60:100, 0] = 250
        list(front.take(Sample("view", to_ns(number), to_ns(number), frame)))
        return weakref.ref(frame)

    assert take(1)() is None, "nobody has asked"
    assert sightings.view() is None
    older, newest = take(2), take(3)
    view, frame = sightings.view(), newest()
    assert older() is None and view is not None and frame is not None
    assert np.shares_memory(view.frame, frame), "it is no copy"
    assert view.seen.arrival_ns == to_ns(3) and view.seen.faces[0].drives
