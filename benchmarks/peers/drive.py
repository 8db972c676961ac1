"""Runs one peer through one scenario, in that peer's own environment: `drive.py SPEC [ROLE]`.

SPEC is a JSON file: driver, variant, package (MODULE or MODULE:NAME), distributions, scenario,
seconds, model, cycles, budget_s, out. The record is written to `out`. A driver is `drivers/NAME.py`
with `stream(run)`, which starts the peer, feeds it from `run`, and stops it; for a peer of several
processes also `node(run, role)`; and `CANNOT`, the scenarios that cannot be expressed with it and
why.

The import time is that of the peer's package in a fresh interpreter, before numpy is loaded.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def load_driver(name: str) -> Any:
    """The driver, under a name that does not hide the peer's package."""
    spec = importlib.util.spec_from_file_location(f"driver_{name}", HERE / "drivers" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def cycles(driver: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """Start and stop again and again, until the number or the time is reached.

    Memory, threads and file descriptors are compared from the fifth cycle, when what is loaded once
    is loaded, to the last.
    """
    from workload import Run, rss_mb

    done: list[tuple[float, float, int]] = []
    marks = []
    started = time.monotonic()
    while len(done) < spec["cycles"] and time.monotonic() - started < spec["budget_s"]:
        run, begun = Run(spec), time.monotonic()
        driver.stream(run)
        done.append((time.monotonic() - begun, run.stopped(), len(run.outputs)))
        if len(done) == 5 or (len(done) > 5 and len(done) % 10 == 0):
            gc.collect()
            descriptors = len(list(Path("/proc/self/fd").iterdir()))
            marks.append((len(done), rss_mb(False), threading.active_count(), descriptors))
    return {"cycles": done, "marks": marks}


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    started = time.perf_counter()
    module, _, name = spec["package"].partition(":")
    getattr(importlib.import_module(module), name or "__name__")
    imported = {"import_s": time.perf_counter() - started}
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    imported["import_mb"] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    sys.path.insert(0, str(HERE))
    from workload import Run

    driver = load_driver(spec["driver"])
    if len(sys.argv) > 2:
        driver.node(Run(spec), sys.argv[2])
        return
    record: dict[str, Any] = {"cannot": getattr(driver, "CANNOT", {}).get(spec["scenario"], "")}
    run = Run(spec)
    try:
        if record["cannot"]:
            pass
        elif spec["scenario"] == "cycles":
            record.update(cycles(driver, spec))
        else:
            driver.stream(run)
            record["stop_s"] = run.stopped()
    except BaseException as error:
        record["error"] = f"{type(error).__name__}: {error}"
    versions = {name: importlib.metadata.version(name) for name in spec["distributions"]}
    threads_left = threading.active_count() - 1
    run.save(**record, **imported, versions=versions, threads_left=threads_left)
    sys.stderr.flush()
    os._exit(0)  # a peer's thread that does not end must not hold up the others


if __name__ == "__main__":
    main()
