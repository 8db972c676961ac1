"""Whether a recording gives the same decisions every time: `python -m benchmarks.shuffled`.

A session in real time over a camera, a microphone and a sensor is recorded as MCAP. Then

- `fusedge replay` does it again step by step, in a fresh process each time;
- its samples run through a session on the virtual clock again and again, each time arriving in another
  order: later than captured by any time within the modality's lateness. Blocks of sound are late in
  the same way, less their length, and keep their order, since they are counted. The first sample
  and the last keep their places, for a session decides from the one to the other.

Asked of either: one SHA-256 of all decisions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, exactly, main, told
from benchmarks.live_rig import RATES_HZ, Arrivals, live_bundle, live_session
from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Modality
from fusedge.bundle.recording import tracks_of
from fusedge.bundle.recording_file import RecordingFile
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.recorder import Recorder

SHARE = 0.9  # of the lateness that is made use of
SHUFFLED = {
    "video and sensor": ("video", "sensor"),
    "sound too": ("video", "sensor", "sound"),
}


class Shuffled:
    """Samples that arrive in another order for each seed."""

    live = False
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        samples: Sequence[Sample],
        specs: Sequence[Modality],
        seed: int,
        shuffled: Collection[str],
    ) -> None:
        self.uri = "shuffled:"
        self.modalities = tuple(RATES_HZ)
        self.channels: Mapping[str, tuple[str, ...]] = {}
        self.units: Mapping[str, tuple[str, ...]] = {}
        dice = np.random.default_rng(seed)
        lateness_ns = {spec.name: to_ns(SHARE * spec.lateness_s) for spec in specs}
        sound_ns = 0
        items: list[Sample] = []
        for sample in samples[1:-1]:
            arrival_ns = sample.timestamp_ns
            if sample.modality in shuffled:
                spare_ns = lateness_ns[sample.modality]
                if sample.modality == "sound":  # stamped at its end: its first sample is older
                    spare_ns -= to_ns(1 / RATES_HZ["sound"])
                arrival_ns += int(dice.integers(max(1, spare_ns)))
            if sample.modality == "sound":
                arrival_ns = sound_ns = max(sound_ns, arrival_ns)
            items.append(sample._replace(arrival_ns=arrival_ns))
        items.sort(key=lambda item: item.arrival_ns)
        first, last = samples[0], samples[-1]
        begin_ns = min(first.timestamp_ns, items[0].arrival_ns)
        end_ns = last.timestamp_ns + max(lateness_ns.values())
        self._items = [
            first._replace(arrival_ns=begin_ns),
            *items,
            last._replace(arrival_ns=end_ns),
        ]

    def samples(self) -> Iterator[Sample]:
        yield from self._items

    def close(self) -> None:
        pass


def record(bundle: Bundle, path: Path, seconds: float) -> None:
    session = live_session(bundle)
    threading.Timer(seconds, session.stop).start()
    report = run(session, [Recorder(path, tracks_of(bundle.manifest))])
    assert report.summary["ledger_balanced"] and not report.problem, report.problem


def reordered(
    bundle: Bundle, samples: Sequence[Sample], seed: int, shuffled: Collection[str]
) -> tuple[str, int, int]:
    """The hash of all decisions, how many there are, and how many samples came too late."""
    source = Shuffled(samples, bundle.manifest.modalities, seed, shuffled)
    session = Session(
        bundle, ["shuffled:"], VirtualClock(), open_uri=lambda uri, wanted, now_ns: source
    )
    sink = Arrivals()
    summary = run(session, [sink]).summary
    lines = [json.dumps(decision.as_dict()) for decision in sink.decisions]
    late = sum(account["dropped"].get("late", 0) for account in summary["ledger"].values())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest(), len(lines), late


def replayed(bundle: Bundle, recording: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "fusedge.cli", "replay", str(recording), str(bundle.path)]
    output = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(output.stdout)
    return report


def measure(arguments: argparse.Namespace) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = live_bundle(Path(folder) / "b.fusedge")
        recording = Path(folder) / "live.mcap"
        record(bundle, recording, arguments.seconds)
        samples = [e for e in RecordingFile(recording).entries() if isinstance(e, Sample)]
        replays = [replayed(bundle, recording) for _ in range(arguments.runs)]
        orders = {
            name: [reordered(bundle, samples, seed, names) for seed in range(arguments.runs)]
            for name, names in SHUFFLED.items()
        }
    identical = sum(replay["identical_decisions"] for replay in replays)
    decisions = sum(replay["decisions"] for replay in replays)
    figures = [
        told("recorded", arguments.seconds, "s"),
        told("  samples", len(samples)),
        told("fusedge replay, times", len(replays)),
        exactly("  different SHA-256", len({replay["sha256"] for replay in replays}), 1),
        exactly("  decisions identical to those of then", identical, decisions),
    ]
    for name, results in orders.items():
        digests, counts, late = zip(*results, strict=True)
        figures += [
            told(f"orders of arrival, {name}", len(results)),
            exactly("  different SHA-256", len(set(digests)), 1),
            told("  decisions each", max(counts)),
            told("  samples that came too late, at most", max(late)),
        ]
    return figures


if __name__ == "__main__":
    main(__doc__, measure, runs=20, seconds=10.0)
