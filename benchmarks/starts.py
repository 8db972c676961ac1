"""A thousand sessions started and stopped in one process: `python -m benchmarks.starts`.

Each opens the reference bundle's parts anew in ONNX Runtime, reads a camera, a microphone and a sensor in
real time and is stopped after 0 to 20 ms. In every fifth one a source hangs, as in native code: in its
first read or in `close`, by turns. It is let go after the stop, as a driver that comes back at last,
and then nothing may be left: no thread, no file, no shared memory.

The time to stop is from `Session.stop` until `run` has returned its report. The session looks every
50 ms whether it is to stop, and gives a source that hangs 150 ms to end.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, at_most, exactly, main, told
from benchmarks.live_rig import Arrivals, Device, live_bundle, live_session
from fusedge.runtime.runner import run
from fusedge.runtime.soak import Footprint, footprint

HANG_EVERY = 5
ENDED_S = 5.0
WARM_UP = 20  # starts before the footprint is taken the first time


class Hanging(Device):
    """Does not come back from a call before it is let go."""

    def __init__(self, *arguments: Any, in_close: bool, let_go: threading.Event) -> None:
        self._hang = lambda: let_go.wait(30)
        super().__init__(*arguments, fault=lambda number: None if in_close else self._hang())
        self._in_close = in_close

    def close(self) -> None:
        if self._in_close:
            self._hang()
        super().close()


def shared_memory() -> int:
    folder = Path("/dev/shm")
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def left_over(before: set[threading.Thread]) -> set[threading.Thread]:
    end = time.monotonic() + ENDED_S
    while (left := set(threading.enumerate()) - before) and time.monotonic() < end:
        time.sleep(0.001)
    return left


def measure(arguments: argparse.Namespace) -> list[Figure]:
    dice = np.random.default_rng(1)
    stops_ms: dict[bool, list[float]] = {False: [], True: []}
    looks: list[tuple[Footprint, int]] = []
    threads = set(threading.enumerate())
    left = unbalanced = 0
    with tempfile.TemporaryDirectory() as folder:
        bundle = live_bundle(Path(folder) / "b.fusedge")
        for number in range(arguments.starts + WARM_UP):
            hangs, let_go = number % HANG_EVERY == 0, threading.Event()

            def camera(uri: str, wanted: object, now_ns: Any) -> Device:
                name = uri.partition(":")[2]
                if name != "video" or not hangs:  # noqa: B023  # called in this turn only
                    return Device(name, now_ns)
                in_close = number % (2 * HANG_EVERY) == 0  # noqa: B023
                return Hanging(name, now_ns, in_close=in_close, let_go=let_go)  # noqa: B023

            session = live_session(bundle, open_uri=camera)
            stopped: list[float] = []

            def stop() -> None:
                stopped.append(time.perf_counter())  # noqa: B023
                session.stop()  # noqa: B023

            timer = threading.Timer(dice.uniform(0, 0.02), stop)
            timer.start()
            report = run(session, [Arrivals()])
            stops_ms[hangs].append(1e3 * (time.perf_counter() - stopped[0]))
            let_go.set()
            unbalanced += not report.summary["ledger_balanced"]
            left += len(left_over(threads))
            del session, report, timer, stop
            if number >= WARM_UP:
                looks.append((footprint(), shared_memory()))
    (first, shm_first), (last, shm_last) = looks[0], looks[-1]
    figures = [told("starts, of which with a source that hangs",
                    f"{len(looks)}, {len(stops_ms[True])}")]  # fmt: skip
    for hangs, name in ((False, "stop"), (True, "stop with a source that hangs")):
        figures += [
            told(f"{name}, p50", float(np.percentile(stops_ms[hangs], 50)), "ms"),
            at_most(f"{name}, p99", float(np.percentile(stops_ms[hangs], 99)), 500, "ms"),
            told(f"{name}, longest", max(stops_ms[hangs]), "ms"),
        ]
    half = looks[len(looks) // 2][0]
    return [
        *figures,
        exactly("threads left", left, 0),
        exactly("threads, first to last", last.threads - first.threads, 0),
        exactly("files, first to last", last.files - first.files, 0),
        exactly("entries of /dev/shm, first to last", shm_last - shm_first, 0),
        told(
            "memory after the first, half and all",
            f"{first.rss_mb:.1f}, {half.rss_mb:.1f}, {last.rss_mb:.1f}",
            "MB",
        ),  # fmt: skip
        at_most("memory, second half", last.rss_mb - half.rss_mb, 1, "MB"),
        exactly("ledgers that do not balance", unbalanced, 0),
    ]


if __name__ == "__main__":
    main(__doc__, measure, starts=1000)
