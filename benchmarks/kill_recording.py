"""How much a recording loses by `kill -9`, at random moments: `python -m benchmarks.kill_recording 200`."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from statistics import median

from tests.runtime.kill_recording import killed_recording


def main(runs: int) -> None:
    dice = random.Random(1)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs):
            loss = killed_recording(Path(folder) / f"{run}.mcap", dice.uniform(0.05, 1.5))
            assert loss.in_order, f"run {run}: samples are missing in the middle"
            losses.append(loss.lost_s)
    print(
        f"{runs} x kill -9: every recording readable, without a hole; lost at the end: "
        f"median {median(losses):.3f} s, at most {max(losses):.3f} s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
