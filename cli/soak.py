"""`fusedge soak`: a day of input in minutes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fusedge.bundle.errors import FusedgeError
from fusedge.cli.console import console, print_json
from fusedge.cli.main import INTERRUPTED
from fusedge.cli.options import (
    AllowEnginesOption,
    BackendOption,
    BundleArgument,
    ChaosEveryOption,
    ChaosOption,
    ChaosSeedOption,
    JsonOption,
    PrecisionOption,
    ProviderOption,
    chaos_of,
)
from fusedge.cli.run import run_sessions
from fusedge.cli.tasks import find_bundle
from fusedge.runtime.backend import AUTO, BackendSetting
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.soak import LEAST_H, MAX_SKEW_MS, MAX_SLOPE_MB, Soak, SoakReport


def soak(
    bundle: BundleArgument,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="A source as a URI, played again and again; may be given several times. "
            "Without one, each modality gets a synthetic device."
        ),
    ] = None,
    hours: Annotated[float, typer.Option(min=0.001, help="Simulated time.")] = 24.0,
    seed: Annotated[int, typer.Option(help="Of the synthetic devices.")] = 0,
    backend: BackendOption = AUTO,
    provider: ProviderOption = AUTO,
    precision: PrecisionOption = AUTO,
    allow_unsigned_engines: AllowEnginesOption = False,
    chaos: ChaosOption = "",
    chaos_seed: ChaosSeedOption = 0,
    chaos_every: ChaosEveryOption = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Run a bundle over a day of input in minutes, and see whether anything grows or drifts.

    Time is virtual, so it goes as fast as the machine does. Exit status 1 where a sample is
    unaccounted for, memory grows by more than 1 MB a day (in less than 8 hours: by more than 4 MB and
    steadily), threads or open files grow, or sound is placed more than 5 ms from where the synthetic
    devices know it to be (not judged with --chaos).

    Examples:

    - `fusedge soak driving --hours 1`
    - `fusedge soak driving --source sim:?duration_s=600 --hours 2 --chaos all`
    """
    clock = VirtualClock()
    faults = chaos_of(chaos, clock, chaos_seed, chaos_every)
    opened = find_bundle(bundle)
    columns = (
        TextColumn("soak"),
        BarColumn(),
        TextColumn("{task.completed:.2f} of {task.total:g} h"),
        TextColumn("{task.fields[speed]:.0f} x real time"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=as_json, transient=True) as progress:
        task = progress.add_task("", total=hours, speed=0.0)

        def show(simulated_s: float, wall_s: float) -> None:
            speed = simulated_s / wall_s if wall_s else 0.0
            progress.update(task, completed=simulated_s / 3600, speed=speed)

        run = Soak(
            opened,
            source or (),
            clock,
            hours=hours,
            seed=seed,
            chaos=faults,
            progress=show,
            backend=BackendSetting(backend, provider, precision, allow_unsigned_engines),
        )
        report = run.judge(run_sessions([(run.session, run.sinks)])[0])
    if as_json:
        print_json(report.as_dict())
    else:
        console.print(_table(report))
    if report.ended == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if report.missed:
        raise FusedgeError("; ".join(report.missed), where=f"soak of {bundle}")


def _table(report: SoakReport) -> Table:
    table = Table(show_header=False, title_justify="left", title="soak")
    start, warm, end = report.start, report.warm, report.end
    speed = report.simulated_h * 3600 / max(report.wall_s, 1e-9)
    rows = {
        "simulated": f"{report.simulated_h:g} h in {report.wall_s:.0f} s, {speed:.0f} x real time",
        "decisions": f"{report.decisions}, {report.ticks_skipped} ticks skipped",
        "ledger": f"{report.samples} samples, "
        + ("exact" if report.ledger_exact else "NOT exact: please report this"),
        "memory": f"{start.rss_mb:.1f} MB at the start, {warm.rss_mb:.1f} when warm, "
        f"{end.rss_mb:.1f} at the end",
        "threads": f"{start.threads} at the start, {end.threads} at the end",
        "open files": f"{start.files} at the start, {end.files} at the end",
    }
    rows["slope of memory"] = f"too short to judge: that takes {LEAST_H:g} h"
    if report.slope is not None:
        rows["slope of memory"] = (
            f"{report.slope.mb_per_day:.2f} MB a day, 95 % of {report.slope.low:.2f} to "
            f"{report.slope.high:.2f} (at most {MAX_SLOPE_MB:g})"
        )
    if report.skew_ms is not None:
        rows["sound off by"] = f"{report.skew_ms:.2f} ms at most (at most {MAX_SKEW_MS:g})"
    for name, ppm in report.drift_ppm.items():
        rows[f"drift of {name}"] = f"{ppm:.1f} ppm"
    if report.chaos is not None:
        rows["faults"] = ", ".join(f"{kind} {n}" for kind, n in report.chaos["count"].items())
    for name, text in rows.items():
        table.add_row(name, text)
    return table
