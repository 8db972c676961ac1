"""A thousand sessions started and stopped in one process: `python -m benchmarks.starts`.

Each opens the reference bundle's parts anew in ONNX Runtime, reads a camera, a microphone and a sensor in
real time and is stopped after 0 to 20 ms. In every 20th one a source hangs, as in native code: in its
first read or in `close`, by turns. It is let go after the stop, as a driver that comes back at last,
and then nothing may be left: no thread, no file, no shared memory.

The time to stop is from `Session.stop` until `run` has returned its report. The session looks every
50 ms whether it is to stop, and gives a source that hangs 150 ms to end. Memory is looked at after a
garbage collection (here every 10 starts), since a session refers to itself.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.figures import Figure, at_most, exactly, main, told
from benchmarks.live_rig import Arrivals, Device, device, live_bundle, live_session
from fusedge.bundle.archive import Bundle
from fusedge.runtime.runner import run
from fusedge.runtime.soak import Footprint, footprint

HANG_EVERY = 20
COLLECT_EVERY = 10
HANG_S = 30.0
ENDED_S = 5.0


class Hanging(Device):
    """Does not come back from a call before it is let go."""

    def __init__(
        self, modality: str, now_ns: Callable[[], int], *, in_close: bool, let_go: threading.Event
    ) -> None:
        super().__init__(modality, now_ns, lambda number: in_close or let_go.wait(HANG_S))
        self._in_close, self._let_go = in_close, let_go

    def close(self) -> None:
        if self._in_close:
            self._let_go.wait(HANG_S)
        super().close()


class Look(NamedTuple):
    """What the process holds, and what is in /dev/shm."""

    footprint: Footprint
    shared: set[Path]


def look() -> Look:
    gc.collect()
    folder = Path("/dev/shm")
    return Look(footprint(), set(folder.iterdir()) if folder.is_dir() else set())


def left_over(before: set[threading.Thread]) -> set[threading.Thread]:
    end = time.monotonic() + ENDED_S
    while (left := set(threading.enumerate()) - before) and time.monotonic() < end:
        time.sleep(0.001)
    return left


def once(bundle: Bundle, hang: str, after_s: float) -> tuple[float, bool]:
    """How long the stop took in ms, and whether the ledger balances."""
    let_go = threading.Event()

    def open_uri(uri: str, wanted: object, now_ns: Callable[[], int]) -> Device:
        if uri == "bench:video" and hang:
            return Hanging("video", now_ns, in_close=hang == "close", let_go=let_go)
        return device(uri, wanted, now_ns)

    session = live_session(bundle, open_uri=open_uri)
    stopped: list[float] = []

    def stop() -> None:
        stopped.append(time.perf_counter())
        session.stop()

    threading.Timer(after_s, stop).start()
    report = run(session, [Arrivals()])
    stop_ms = 1e3 * (time.perf_counter() - stopped[0])
    let_go.set()
    return stop_ms, report.summary["ledger_balanced"]


def measure(arguments: argparse.Namespace) -> list[Figure]:
    dice = np.random.default_rng(1)
    stops_ms: dict[bool, list[float]] = {False: [], True: []}
    looks: list[Look] = []
    threads = set(threading.enumerate())
    left = unbalanced = 0
    with tempfile.TemporaryDirectory() as folder:
        bundle = live_bundle(Path(folder) / "b.fusedge")
        for number in range(arguments.starts):
            hang = {0: "read", HANG_EVERY: "close"}.get(number % (2 * HANG_EVERY), "")
            stop_ms, balanced = once(bundle, hang, dice.uniform(0, 0.02))
            stops_ms[bool(hang)].append(stop_ms)
            unbalanced += not balanced
            left += len(left_over(threads))
            if number % COLLECT_EVERY == 0:
                looks.append(look())
    figures = []
    for hangs, name in ((False, "stop"), (True, "stop with a source that hangs")):
        p50, p99 = np.percentile(stops_ms[hangs], (50, 99)).tolist()
        figures += [
            told(f"{name}, times", len(stops_ms[hangs])),
            told("  p50", p50, "ms"),
            at_most("  p99", p99, 500, "ms"),
            told("  longest", max(stops_ms[hangs]), "ms"),
        ]
    first, half, last = looks[len(looks) // 10], looks[len(looks) // 2], looks[-1]
    memory = ", ".join(f"{at.footprint.rss_mb:.1f}" for at in (first, half, last))
    return [
        *figures,
        exactly("threads left", left, 0),
        exactly("threads, first to last", last.footprint.threads - first.footprint.threads, 0),
        exactly("files, first to last", last.footprint.files - first.footprint.files, 0),
        exactly("new entries of /dev/shm", len(last.shared - first.shared), 0),
        told("memory after a tenth, half and all", memory, "MB"),
        at_most("memory, second half", last.footprint.rss_mb - half.footprint.rss_mb, 1, "MB"),
        exactly("ledgers that do not balance", unbalanced, 0),
    ]


if __name__ == "__main__":
    main(__doc__, measure, starts=1000)
