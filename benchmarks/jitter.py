"""How evenly decisions come 20 times a second: `python -m benchmarks.jitter`.

The relative standard deviation of the time from one decision to the next, as its consumer gets them, in
real time with the parts of the reference bundle: as they are; with a camera encoder that is busy for
three of its periods (it computes, so it takes a core); and with one that waits for as long. Rounds are
interleaved, medians given. A bare timer in a process of its own runs at the same time: what it has is
the machine's own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure, at_most, exactly, main, told
from benchmarks.live_rig import (
    TICK_NS,
    Arrivals,
    SlowPart,
    bare_process,
    live_bundle,
    live_session,
    rsd_percent,
    spread,
)
from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Part
from fusedge.runtime.onnx_part import OnnxPart
from fusedge.runtime.part import Backend
from fusedge.runtime.runner import run

WARM_UP = 10
SLOW_S = 3 / 15


def load(bundle: Bundle, slow: str, part: Part) -> Backend:
    loaded = OnnxPart(bundle, part, "cpu", "fp32")
    if slow and part.modality == "video":
        return SlowPart(loaded, SLOW_S, busy=slow == "busy")
    return loaded


def once(
    bundle: Bundle, slow: str, seconds: float, bare: Callable[[float], Future[list[int]]]
) -> tuple[list[int], list[int], int]:
    """When decisions came, when the bare timer woke, and how many ticks were skipped."""
    session = live_session(bundle, load=partial(load, bundle, slow))
    sink = Arrivals()
    beside = bare(seconds)
    threading.Timer(seconds, session.stop).start()
    run(session, [sink], threads=2)
    ticks_ns = [decision.timestamp_ns for decision in sink.decisions[WARM_UP:]]
    skipped = (ticks_ns[-1] - ticks_ns[0]) // TICK_NS + 1 - len(ticks_ns)
    return sink.times_ns[WARM_UP:], beside.result(), skipped


def measure(arguments: argparse.Namespace) -> list[Figure]:
    settings = {"nominal": "", "busy encoder": "busy", "waiting encoder": "waits"}
    results: dict[str, list[tuple[list[int], list[int], int]]] = {name: [] for name in settings}
    with tempfile.TemporaryDirectory() as folder, bare_process() as bare:
        bundle = live_bundle(Path(folder) / "b.fusedge")
        for _ in range(arguments.rounds):
            for name, slow in settings.items():
                results[name].append(once(bundle, slow, arguments.seconds, bare))
    figures: list[Figure] = []
    for name, rounds in results.items():
        ours = [rsd_percent(times_ns) for times_ns, _, _ in rounds]
        machine = [rsd_percent(times_ns) for _, times_ns, _ in rounds]
        figures += [
            at_most(f"{name}: rsd", statistics.median(ours), 5, "%"),
            told("  of the bare timer", statistics.median(machine), "%"),
            at_most("  longest / shortest", statistics.median(spread(r[0]) for r in rounds), 1.5),
            told("  of the bare timer", statistics.median(spread(r[1]) for r in rounds)),
            exactly("  ticks skipped", sum(skipped for _, _, skipped in rounds), 0),
        ]
    return figures


if __name__ == "__main__":
    main(__doc__, measure, seconds=5.0, rounds=3)
