"""What importing the runtime costs: `python -m benchmarks.import_time`.

Each import happens in a fresh process that is otherwise empty, in turn with its baseline, numpy and
onnxruntime alone. Time is the import statement's own, without the interpreter's start. Memory is what
the process holds after it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.figures import Figure, at_most, main, told

IMPORTS = {
    "numpy, onnxruntime": "import numpy, onnxruntime",
    "runtime": "import fusedge.runtime.session, fusedge.runtime.runner",
}
PROGRAM = """
import json, sys, time
started, cpu, before = time.perf_counter(), time.process_time(), len(sys.modules)
{statement}
elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
pages = int(open("/proc/self/statm").read().split()[1]) if sys.platform == "linux" else 0
heavy = [n for n in ("torch", "onnx", "cv2", "av", "onnxruntime") if n in sys.modules]
print(json.dumps(dict(elapsed_s=elapsed_s, cpu_s=cpu_s, modules=len(sys.modules) - before,
                      rss_mb=pages * 4096 / 2**20, heavy=heavy)))
"""


def once(statement: str) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM.format(statement=statement)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def measure(arguments: argparse.Namespace) -> list[Figure]:
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in IMPORTS}
    for _ in range(arguments.rounds):
        for name, statement in IMPORTS.items():
            rounds[name].append(once(statement))
    middle = {
        (name, key): statistics.median(result[key] for result in results)
        for name, results in rounds.items()
        for key in ("elapsed_s", "cpu_s", "modules", "rss_mb")
    }
    baseline, ours = IMPORTS
    return [
        at_most("import of the runtime", middle[ours, "elapsed_s"], 0.3, "s"),
        told("  fastest of them", min(result["elapsed_s"] for result in rounds[ours]), "s"),
        told("  processor time of it", middle[ours, "cpu_s"], "s"),
        told(f"  import of {baseline}", middle[baseline, "elapsed_s"], "s"),
        told("  ratio", middle[ours, "elapsed_s"] / middle[baseline, "elapsed_s"]),
        at_most("memory after the import", middle[ours, "rss_mb"], 80, "MB"),
        told(f"  of {baseline}", middle[baseline, "rss_mb"], "MB"),
        told("modules imported", round(middle[ours, "modules"])),
        told("heavy packages among them", ", ".join(rounds[ours][0]["heavy"]) or "none"),
    ]


if __name__ == "__main__":
    main(__doc__, measure, rounds=10)
