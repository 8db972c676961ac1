"""What the runtime costs on top of the models: `make bench` prints it beside a bare thread and queue.

Three modalities (a VGA frame, 10 ms of sound, a 6-axis IMU sample) and a decision 100 times a second. The
parts are replaced by ones that compute nothing. Both are timed from the moment a tick is due until its
output is seen by the consumer's thread; both wait for that moment by the machine's timer. They run in
turn, so that the machine's noise meets both.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live_rig import Arrivals, Nothing
from benchmarks.reference_bundle import write_reference_bundle
from fusedge.bundle.archive import Bundle
from fusedge.bundle.sample import Sample
from fusedge.runtime.clock import LiveClock
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.telemetry import Telemetry

PERIOD_NS = 10_000_000
PHASE_NS = {"sensor": 2_000_000, "sound": 4_000_000, "video": 6_000_000}  # after the tick
DATA: dict[str, Any] = {
    "sensor": np.zeros(6, np.float32),
    "sound": np.zeros((160, 1), np.float32),
    "video": np.zeros((480, 640, 3), np.uint8),
}


def overhead_bundle(path: Path) -> Bundle:
    """The reference bundle at VGA, with all windows and decisions at 100 Hz; its graphs are not used."""
    bundle = write_reference_bundle(path, 100)
    period_s = PERIOD_NS / 1e9
    changes: dict[str, dict[str, Any]] = {
        "video": {"height": 480, "width": 640, "rate_hz": 100, "window_s": period_s},
        "sound": {"lateness_s": period_s},  # the last block of a window comes after its end
    }
    modalities = tuple(
        spec.model_copy(update={"hop_s": period_s, "lateness_s": 0, **changes.get(spec.name, {})})
        for spec in bundle.manifest.modalities
    )
    bundle.manifest = bundle.manifest.model_copy(update={"modalities": modalities})
    return bundle


class Ticker:
    """Waits for the moments `phase_ns` after each multiple of the period."""

    def __init__(self, phase_ns: int = 0) -> None:
        self._phase_ns = phase_ns
        self._next_ns = (time.monotonic_ns() // PERIOD_NS + 2) * PERIOD_NS + phase_ns
        self.stopped = threading.Event()

    def __iter__(self) -> Iterator[int]:
        while True:
            wait_ns = self._next_ns - time.monotonic_ns()
            if wait_ns > 0 and self.stopped.wait(wait_ns / 1e9):
                return
            if self.stopped.is_set():
                return
            yield self._next_ns
            self._next_ns += PERIOD_NS


class Source:
    """One modality at 100 Hz."""

    live = True
    warnings: tuple[str, ...] = ()

    def __init__(self, modality: str) -> None:
        self.uri = f"bench:{modality}"
        self.modalities = (modality,)
        self.channels: Mapping[str, tuple[str, ...]] = {}
        self.units: Mapping[str, tuple[str, ...]] = {}
        self._ticker = Ticker(PHASE_NS[modality])

    def samples(self) -> Iterator[Sample]:
        (modality,) = self.modalities
        data = DATA[modality]
        for _ in self._ticker:
            now_ns = time.monotonic_ns()
            yield Sample(modality, now_ns, now_ns, data)

    def close(self) -> None:
        self._ticker.stopped.set()


Result = tuple[list[float], float]
"""Delays in µs, and µs of processor time a tick."""


def bare(seconds: float) -> Result:
    """A producer thread, a bounded queue, a consumer thread."""
    line: queue.Queue[Any] = queue.Queue(8)
    delays: list[float] = []
    ticker = Ticker()

    def produce() -> None:
        for due_ns in ticker:
            line.put((due_ns, *DATA.values()))
        line.put(None)

    def consume() -> None:
        while (item := line.get()) is not None:
            delays.append((time.monotonic_ns() - item[0]) / 1e3)

    threads = [threading.Thread(target=target) for target in (produce, consume)]
    cpu_ns = time.process_time_ns()
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    ticker.stopped.set()
    for thread in threads:
        thread.join()
    return delays, (time.process_time_ns() - cpu_ns) / 1e3 / len(delays)


def fused(
    bundle: Bundle, seconds: float, telemetry: Callable[[], Telemetry] | None = Telemetry
) -> Result:
    """The same through a session."""
    session = Session(
        bundle,
        [f"bench:{name}" for name in DATA],
        LiveClock(),
        open_uri=lambda uri, wanted, now_ns: Source(uri.partition(":")[2]),
        load=Nothing,
    )
    arrivals = Arrivals()
    threading.Timer(seconds, session.stop).start()
    cpu_ns = time.process_time_ns()
    report = run(session, [arrivals], telemetry=telemetry)
    cpu_us = (time.process_time_ns() - cpu_ns) / 1e3 / len(arrivals.delays_us)
    assert report.summary["ledger_balanced"]
    present = report.summary["modalities"]
    assert all(modality["encoder_steps"] > 0.5 * seconds * 100 for modality in present.values())
    return arrivals.delays_us[10:], cpu_us


def summary(results: list[Result]) -> dict[str, float]:
    """Medians over the rounds."""
    percentiles = [np.percentile(delays, (50, 99)) for delays, _ in results]
    return {
        "p50_us": round(statistics.median(p[0] for p in percentiles), 1),
        "p99_us": round(statistics.median(p[1] for p in percentiles), 1),
        "cpu_us_per_tick": round(statistics.median(cpu for _, cpu in results), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = overhead_bundle(Path(folder) / "overhead.fusedge")
        contenders: dict[str, Callable[[], Result]] = {
            "bare thread and queue": lambda: bare(arguments.seconds),
            "fusedge": lambda: fused(bundle, arguments.seconds),
            "without telemetry": lambda: fused(bundle, arguments.seconds, None),
        }
        results: dict[str, list[Result]] = {name: [] for name in contenders}
        for _ in range(arguments.rounds):
            for name, contender in contenders.items():
                results[name].append(contender())
    rows = {name: summary(result) for name, result in results.items()}
    ratio = rows["fusedge"]["p50_us"] / rows["bare thread and queue"]["p50_us"]
    watched = rows["fusedge"]["cpu_us_per_tick"] / rows["without telemetry"]["cpu_us_per_tick"]
    report = {
        **rows,
        "ratio_p50": round(ratio, 2),
        "ratio_cpu_of_telemetry": round(watched, 3),
        "load": round(os.getloadavg()[0], 2),
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for name, row in rows.items():
        print(f"{name:24}" + "  ".join(f"{key} {value:8.1f}" for key, value in row.items()))
    print(f"ratio of p50 {ratio:.2f}, of CPU with to without telemetry {watched:.3f}")
    print(f"load average {report['load']}")


if __name__ == "__main__":
    main()
