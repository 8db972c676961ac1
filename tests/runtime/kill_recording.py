"""Kills a recording process and measures what its file has lost."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from fusedge.bundle.recording_file import RecordingFile
from fusedge.bundle.sample import Sample

ROOT = Path(__file__).parents[2]


class Loss(NamedTuple):
    """`lost_s` lies between the newest sample in the file and the moment of the kill."""

    lost_s: float
    samples: int
    in_order: bool


def killed_recording(path: Path, after_s: float) -> Loss:
    """Record into a new file, `kill -9` after some time of recording, and read the file."""
    command = [sys.executable, "-m", "tests.runtime.paced_recording", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        began_ns = int(child.stdout.readline())
        time.sleep(after_s)
        killed_ns = time.monotonic_ns()
        child.kill()
        child.wait()
    stamps = [
        (entry.timestamp_ns, float(entry.data[0]))
        for entry in RecordingFile(path).entries()
        if isinstance(entry, Sample) and entry.modality == "imu"
    ]
    in_order = [number for _, number in stamps] == list(range(len(stamps)))
    newest_ns = stamps[-1][0] if stamps else began_ns
    return Loss((killed_ns - newest_ns) / 1e9, len(stamps), in_order)
