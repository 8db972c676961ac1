"""All figures of the streaming runtime: `python -m benchmarks.streaming OUT.json`.

Runs the benchmarks one after another, each in a process of its own, writes what they measured to a file and
prints it as a table in Markdown. Names after the file choose a few: `… OUT.json rates jitter`.
The exit status is 1 where one of them failed, and 0 where a figure was merely missed: a busy machine
misses some.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure

BENCHMARKS = (
    "import_time",
    "rates",
    "jitter",
    "overload",
    "starts",
    "swaps",
    "shuffled",
    "skew",
)


def run(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        return {"failed": result.returncode}
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def rows(name: str, report: dict[str, Any]) -> list[str]:
    if "failed" in report:
        return [f"| **{name}** | failed with status {report['failed']} | | |"]
    lines = [f"| **{name}** | load average {report['load_average']} | | |"]
    for fields in report["figures"]:
        figure = Figure(**fields)
        title = figure.name.replace("  ", "… ")
        lines.append(f"| {title} | {figure.value} | {figure.asked} | {figure.verdict} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="file for the figures as JSON")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    reports: dict[str, Any] = {}
    print("| figure | measured | asked | |\n| --- | --- | --- | --- |", flush=True)
    for name in arguments.names or BENCHMARKS:
        reports[name] = run(name)
        print("\n".join(rows(name, reports[name])), flush=True)
    about = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**about, "benchmarks": reports}, indent=1) + "\n")
    sys.exit(any("failed" in report for report in reports.values()))


if __name__ == "__main__":
    main()
