"""How fast a recorded trip replays, what it costs and whether it repeats: `make bench`.

Each replay is a fresh `fusedge run` pinned to one core. The memory of the models is what a bare
process gains by loading the bundle's parts in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOAD_PARTS = """
import resource, sys
import numpy, onnxruntime
from fusedge.bundle.lookup import open_bundle
from fusedge.runtime.onnx_part import OnnxPart
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
bundle = open_bundle(sys.argv[1])
before = rss()
parts = [OnnxPart(bundle, part, "cpu", "fp32") for part in bundle.manifest.parts]
print(rss() - before)
"""


def pinned(command: list[str]) -> str:
    """Standard output of a command on the first core that this process may use."""
    core = min(os.sched_getaffinity(0))
    result = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    return result.stdout


def replay(bundle: str, source: str, out: Path) -> dict[str, Any]:
    """The report of one `fusedge run`, decisions written to `out`."""
    command = [sys.executable, "-m", "fusedge.cli", "run", bundle, "--source", source]
    report: dict[str, Any] = json.loads(pinned([*command, "--out", str(out), "--json"]))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="source URI, such as replay:TRIP or sim:?duration_s=900")
    parser.add_argument("--bundle", default="driving")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    models_mb = float(pinned([sys.executable, "-c", LOAD_PARTS, arguments.bundle]))
    walls, peaks, outputs = [], [], set()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.runs):
            out = Path(folder) / "decisions.jsonl"
            report = replay(arguments.bundle, arguments.source, out)
            outputs.add(out.read_bytes())
            walls.append(report["timing"]["wall_s"])
            peaks.append(report["timing"]["peak_rss_mb"])
    lines = next(iter(outputs)).decode().splitlines()
    decisions = [json.loads(line) for line in lines if line.startswith('{"type":"decision"')]
    span_s = decisions[-1]["t_s"] - decisions[0]["t_s"]
    wall_s = statistics.median(walls)
    print(f"recording           {span_s:.0f} s, {len(decisions)} decisions")
    print(f"replay, one core    {wall_s:.2f} s ({min(walls):.2f} to {max(walls):.2f})")
    print(f"speed               {span_s / wall_s:.0f} x real time")
    print(f"peak memory         {max(peaks):.0f} MB, of which models {models_mb:.0f} MB")
    print(f"ledger balances     {report['summary']['ledger_balanced']}")
    print(f"identical outputs   {len(outputs) == 1} ({arguments.runs} runs)")
    print(f"load average        {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
