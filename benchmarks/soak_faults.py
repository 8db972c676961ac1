"""Every kind of fault with many seeds: counts crashes, hangs, unaccounted samples and missed ticks.

    python -m benchmarks.soak_faults [--seeds 100] [--kinds stall,nan]

A run is a session of 20 s over the reference bundle with synthetic devices and faults of one kind
every 6 s at each source, part and sink; `all` is every kind together. Kinds that need time to go by
run at 10 times its pace, the others on a virtual clock. Whether all samples are accounted for is
looked at before each change of the pipeline.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.reference_bundle import write_reference_bundle
from fusedge.bundle.archive import Bundle
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.synthetic import SyntheticSource
from fusedge.runtime.chaos import KINDS, Chaos
from fusedge.runtime.clock import PacedClock, VirtualClock
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.soak import finite

SECONDS = 20.0
EVERY_S = 6.0
SPEED = 10.0
HANG_S = 60.0


class Outcome(NamedTuple):
    kind: str
    faults: int = 0
    decisions: int = 0
    crashed: str = ""
    hung: bool = False
    unaccounted: int = 0
    missed: int = 0
    """Ticks without a decision, but for those that were skipped for overload and counted."""
    skipped: int = 0
    not_finite: int = 0
    present: float = 0.0
    """Share of the modalities that were there, over all decisions."""


def one(path: str, kind: str, seed: int) -> Outcome:
    """One run in a thread, which is left behind where it hangs."""
    outcomes: list[Outcome] = []

    def work() -> None:
        try:
            outcomes.append(_session(Path(path), kind, seed))
        except BaseException:
            outcomes.append(Outcome(kind, crashed=f"{kind} {seed}: {traceback.format_exc()}"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(HANG_S)
    return outcomes[0] if outcomes else Outcome(kind, hung=True)


def _session(path: Path, kind: str, seed: int) -> Outcome:
    bundle = Bundle(path)
    real = kind != "all" and KINDS[kind].real
    clock = PacedClock(SPEED) if real else VirtualClock()
    chaos = Chaos(list(KINDS) if kind == "all" else [kind], clock, seed=seed, every_s=EVERY_S)
    session = Session(
        bundle,
        list(bundle.manifest.require_fusion().modalities),
        clock,
        open_uri=lambda uri, wanted, now_ns: SyntheticSource(
            uri, [bundle.manifest.modality(uri)], SECONDS, seed=seed
        ),
        chaos=chaos,
    )
    pipeline = session.pipeline
    unbalanced = 0

    def look(entry: Any) -> None:
        nonlocal unbalanced
        unbalanced += not pipeline.balanced

    pipeline.journal = look
    memory = MemorySink()
    with tempfile.TemporaryDirectory() as folder:
        report = run(session, [memory, *chaos.sinks([JsonLinesSink(Path(folder) / "out")])])
    summary = report.summary
    accounts = [*summary["sources"].values(), *summary["sinks"].values()]
    unbalanced += sum(
        account["received"] != account["used"] + sum(account["dropped"].values())
        for account in accounts
    )
    period_ns = to_ns(1 / bundle.manifest.require_fusion().decision_rate_hz)
    ticks = [decision.timestamp_ns for decision in memory.decisions]
    due = (ticks[-1] - ticks[0]) // period_ns + 1
    shares = [share for d in memory.decisions for share in d.modalities.values()]
    return Outcome(
        kind,
        faults=sum(summary["chaos"]["count"].values()),
        decisions=len(ticks),
        unaccounted=unbalanced,
        missed=max(0, due - len(ticks) - summary["ticks_skipped"]),
        skipped=summary["ticks_skipped"],
        not_finite=sum(not finite(decision) for decision in memory.decisions),
        present=sum(share.present for share in shares) / len(shares),
    )


def outcomes(path: str, kinds: list[str], seeds: int) -> Iterator[Outcome]:
    """Those of all runs, as they come: first in virtual, then in real time, which leaves cores idle."""
    cores = len(os.sched_getaffinity(0))
    real = [kind for kind in kinds if kind != "all" and KINDS[kind].real]
    for chosen, workers in (([k for k in kinds if k not in real], cores), (real, 3 * cores)):
        with ProcessPoolExecutor(workers) as pool:
            futures: list[Future[Outcome]] = [
                pool.submit(one, path, kind, seed) for kind in chosen for seed in range(seeds)
            ]
            for future in as_completed(futures):
                yield future.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--kinds", default=",".join([*KINDS, "all"]))
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    total = len(kinds) * arguments.seeds
    console, done, started = Console(width=120), [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = write_reference_bundle(Path(folder) / "reference.fusedge").path
        for outcome in outcomes(str(path), kinds, arguments.seeds):
            done.append(outcome)
            if len(done) % 10 == 0 or len(done) == total:
                elapsed_s = time.monotonic() - started
                print(f"\r{len(done)} of {total} runs, {elapsed_s:.0f} s ", end="", file=sys.stderr)
    print(file=sys.stderr)
    console.print(_table(kinds, done))
    bad = [o for o in done if o.crashed or o.hung or o.unaccounted or o.missed or o.not_finite]
    for outcome in bad[:5]:
        print(outcome.crashed or outcome)
    print(
        f"{len(done)} runs in {time.monotonic() - started:.0f} s: {len(bad)} failed; "
        f"load average {os.getloadavg()[0]:.2f}"
    )
    sys.exit(bool(bad))


def _table(kinds: list[str], done: list[Outcome]) -> Table:
    table = Table()
    heads = "runs faults decisions crashes hangs unaccounted missed not-finite skipped present"
    for head in ("kind", *heads.split()):
        table.add_column(head, justify="left" if head == "kind" else "right")
    for kind in (*kinds, "together"):
        own = [outcome for outcome in done if kind in (outcome.kind, "together")]
        cells = [
            len(own),
            sum(o.faults for o in own),
            sum(o.decisions for o in own),
            sum(bool(o.crashed) for o in own),
            sum(o.hung for o in own),
            sum(o.unaccounted for o in own),
            sum(o.missed for o in own),
            sum(o.not_finite for o in own),
            sum(o.skipped for o in own),
        ]
        present = sum(o.present for o in own) / len(own)
        table.add_row(kind, *map(str, cells), f"{present:.1%}")
    return table


if __name__ == "__main__":
    main()
