"""A process that records paced data until it is killed: `python -m tests.runtime.paced_recording FILE`.

Stamps are of the monotonic clock, so that whoever kills it knows how old the newest one is. It says
when it begins.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from fusedge.bundle.recording import Track
from fusedge.bundle.sample import Sample
from fusedge.runtime.sinks.recorder import Recorder

RATE_HZ = 200
FRAME_EVERY = 10
TRACKS = {"imu": Track(("x", "y"), RATE_HZ), "road": Track(("r", "g", "b"), RATE_HZ / FRAME_EVERY)}


def main(path: Path) -> None:
    recorder = Recorder(path, TRACKS)
    recorder.open({"sources": ["paced"]})
    rng = np.random.default_rng(1)
    frame = rng.integers(0, 256, (120, 160, 3), np.uint8)
    number = 0
    print(time.monotonic_ns(), flush=True)
    while True:
        now_ns = time.monotonic_ns()
        recorder.write(Sample("imu", now_ns, now_ns, np.array([number, 1], np.float32)))
        if number % FRAME_EVERY == 0:
            recorder.write(Sample("road", now_ns, now_ns, frame))
        number += 1
        time.sleep(1 / RATE_HZ)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
