"""A window in which a session can be watched."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fusedge.bundle.errors import FusedgeError, printable
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.pixels import opencv
from fusedge.runtime.clock import stopwatch_ns
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.front.sighting import View
from fusedge.runtime.journal import Entry
from fusedge.runtime.sinks.drawing import Picture, draw
from fusedge.runtime.sinks.sink import ReaderLeftError, Sink
from fusedge.runtime.sinks.window_child import CLOSED, NO_TKINTER

REDRAW_NS = to_ns(1 / 15)
SIZE_WITH_VIEW, SIZE_WITHOUT = (1180, 520), (420, 520)  # at first, in pixels
OPEN_S = 20.0  # a small machine takes seconds to import Tk
ANSWER_S = 5.0  # for a picture to be shown, before the window counts as stuck
GRACE_S = 0.2
_CHILD = Path(__file__).with_name("window_child.py")


class WindowSink(Sink):
    """Contract: shows the newest decision over the newest frame (see `draw`), at most 15 times a second of
    the machine's time; a picture that is not shown yet is not followed by another, so that a slow
    display holds nothing up. `view` gives the frame; None: the bundle has none to show.

    The window is a process of its own, which may fail: `write` then raises OSError, and opens another
    when it is called again. q, Esc and closing the window raise ReaderLeftError, and end the session.

    `open` raises FusedgeError where there is no display or no Tk, and MissingExtraError without OpenCV.
    """

    name = "window"
    may_fail = True

    def __init__(self, view: Callable[[], View | None] | None) -> None:
        self._view = view
        self._title = ""
        self._fronts: dict[str, str] = {}
        self._window: _Window | None = None
        self._drawn_ns = 0

    def open(self, header: dict[str, Any]) -> None:
        """Open the window."""
        opencv("drawing a window")
        self._title = printable(str(header["bundle"]))
        self._fronts = header.get("fronts", {})
        self._window = self._opened()

    def _opened(self) -> _Window:
        size = SIZE_WITHOUT if self._view is None else SIZE_WITH_VIEW
        return _Window(f"{self._title} - Fusedge", size)

    def write(self, item: Decision | Event | Entry) -> None:
        """Show a decision, if it is time for a picture."""
        if not isinstance(item, Decision):
            return
        if self._window is None:
            self._window = self._opened()
        try:
            if self._window.ready() and stopwatch_ns() - self._drawn_ns >= REDRAW_NS:
                self._drawn_ns = stopwatch_ns()
                view = None if self._view is None else self._view()
                size = self._window.size
                self._window.show(draw(*size, item, view, self._fronts, self._title))
        except OSError:
            self._drop()
            raise

    def flush(self) -> None:
        """Notice that the window was closed, though nothing is decided."""
        if self._window is not None:
            self._window.ready()

    def close(self, summary: dict[str, Any]) -> None:
        """Close the window."""
        self._drop()

    def _drop(self) -> None:
        window, self._window = self._window, None
        if window is not None:
            window.close()


class _Window:
    """The process that shows pictures, see window_child.py."""

    def __init__(self, title: str, size: tuple[int, int]) -> None:
        """Wait until there is a window; raises FusedgeError where there will be none."""
        self.size = (0, 0)
        self._heard = b""
        self._failure = ""
        self._waits_since_ns: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD), title, *map(str, size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the session's to answer
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        end_ns = stopwatch_ns() + to_ns(OPEN_S)
        while self.size == (0, 0):
            left_s = (end_ns - stopwatch_ns()) / 1e9
            if self._failure or left_s <= 0 or not self._listen(left_s):
                self.close()
                raise _no_window(self._failure or "its process did not start")

    def ready(self) -> bool:
        """Whether a picture may come. Raises ReaderLeftError where the window was closed, and OSError where
        its process has failed, or has shown nothing for ANSWER_S.
        """
        if not self._listen(0):
            raise self._why_gone()
        since_ns = self._waits_since_ns
        if since_ns is not None and stopwatch_ns() - since_ns > to_ns(ANSWER_S):
            raise OSError("the window does not answer")
        return since_ns is None

    def show(self, picture: Picture) -> None:
        """Send a picture, uint8 `[height, width, 3]`, RGB, to a window that is ready; raises as `ready`."""
        height, width = picture.shape[:2]
        self._waits_since_ns = stopwatch_ns()
        for piece in (f"P6 {width} {height} 255\n".encode(), picture.data.cast("B")):
            left = memoryview(piece)
            while left:
                if not select.select([], [self._in], [], ANSWER_S)[1]:
                    raise OSError("the window does not answer")
                try:
                    left = left[os.write(self._in, left) :]
                except BrokenPipeError:  # closed since it was ready
                    raise self._why_gone() from None

    def _why_gone(self) -> Exception:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        if self._process.returncode == CLOSED:
            return ReaderLeftError()
        return OSError(f"the window has failed: status {self._process.returncode}")

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self, wait_s: float) -> bool:
        """Take what the process has said; False where it has ended."""
        while select.select([self._out], [], [], wait_s)[0]:
            new = os.read(self._out, 4096)
            if not new:
                return False
            wait_s = 0
            *lines, self._heard = (self._heard + new).split(b"\n")
            for line in lines:
                self._take(*line.decode(errors="replace").split(" ", 1))
        return True

    def _take(self, word: str, rest: str = "") -> None:
        if word == "shown":
            self._waits_since_ns = None
        elif word == "size":
            width, height = map(int, rest.split())
            self.size = (width, height)
        elif word == "failed":
            self._failure = rest


def _no_window(why: str) -> FusedgeError:
    if why == NO_TKINTER:
        hint = "apt install python3-tk, or leave out --show"
        return FusedgeError("this Python has no tkinter, which draws the window", hint=hint)
    hint = "--show needs a desktop, or ssh -X to one; all else works without"
    return FusedgeError(f"no window can be opened: {why}", hint=hint)
