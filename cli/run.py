"""`fusedge run`: a bundle over sources."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.lookup import open_bundle
from fusedge.cli.console import console, print_json
from fusedge.cli.main import INTERRUPTED, STOP_SIGNALS
from fusedge.cli.options import (
    BundleArgument,
    ChaosEveryOption,
    ChaosOption,
    ChaosSeedOption,
    JsonOption,
    PrecisionOption,
    ProviderOption,
    chaos_of,
)
from fusedge.cli.report import print_report
from fusedge.runtime.chaos import EVERY_S
from fusedge.runtime.clock import Clock, LiveClock, PacedClock, VirtualClock
from fusedge.runtime.runner import run_all
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.sinks.table import TableSink
from fusedge.runtime.sinks.timeline import TimelineSink


def run(
    bundle: BundleArgument,
    source: Annotated[
        list[str],
        typer.Option(help="Where samples come from, as a URI; may be given several times."),
    ],
    out: Annotated[
        str, typer.Option(help="File for the decisions as JSON Lines; - is standard output.")
    ] = "",
    picture: Annotated[
        Path | None, typer.Option(help="PNG of probabilities, contributions and events.")
    ] = None,
    speed: Annotated[
        str,
        typer.Option(help="1 is real time, 4 is four times as fast, max as fast as it goes."),
    ] = "max",
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave a modality out, to see what decisions are worth without it; repeatable."
        ),
    ] = None,
    table: Annotated[
        bool | None,
        typer.Option("--table/--no-table", help="Live table; the default in a terminal."),
    ] = None,
    provider: ProviderOption = "cpu",
    precision: PrecisionOption = "fp32",
    chaos: ChaosOption = "",
    chaos_seed: ChaosSeedOption = 0,
    chaos_every: ChaosEveryOption = EVERY_S,
    as_json: JsonOption = False,
) -> None:
    """Run a bundle over sources and emit decisions.

    Decisions go to standard output as JSON Lines, unless a live table or --json has it.

    Examples:

    - `fusedge run driving --source sim:`
    - `fusedge run out.fusedge --source replay:TRIP --out decisions.jsonl --picture trip.png`
    - `fusedge run driving --source sim:?duration_s=600 --speed 1 --table`
    - `fusedge run driving --source sim: --chaos stall,clock-step --chaos-seed 7`
    """
    show_table = sys.stdout.isatty() and not as_json if table is None else table
    target = out or ("" if show_table or as_json else "-")
    sinks: list[Sink] = []
    if target:
        sinks.append(JsonLinesSink(sys.stdout if target == "-" else Path(target)))
    if picture is not None:
        sinks.append(TimelineSink(picture))
    if show_table:
        sinks.append(TableSink(console))
    clock = parse_speed(speed)
    faults = chaos_of(chaos, clock, chaos_seed, chaos_every)
    session = Session(
        open_bundle(bundle),
        source,
        clock,
        provider=provider,
        precision=precision,
        without=without or (),
        chaos=faults,
    )
    if faults is not None:
        sinks = faults.sinks(sinks)
    if not show_table:
        for warning in session.warnings:
            console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    finish(run_sessions([(session, sinks)])[0], as_json)


def parse_speed(text: str) -> Clock:
    """The clock for a speed: `max`, `live` or a positive number."""
    if text == "max":
        return VirtualClock()
    if text == "live":
        return LiveClock()
    try:
        speed = float(text)
    except ValueError:
        speed = 0
    if not 0 < speed < float("inf"):
        raise FusedgeError(f"speed {text!r} is not a speed", hint="a number above 0, max, or live")
    return PacedClock(speed)


def run_sessions(
    sessions: Sequence[tuple[Session, Sequence[Sink]]],
    *,
    threads: int = 0,
    cores: Sequence[int] = (),
) -> list[SessionReport]:
    """Run; Ctrl-C, SIGTERM and SIGHUP end it between two pieces of work, a second one at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        for session, _ in sessions:
            session.stop()

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        return run_all(sessions, threads=threads, cores=cores)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(report: SessionReport, as_json: bool) -> None:
    """Print the report; status 130 where the user interrupted, 1 where input was not usable."""
    if as_json:
        print_json({"session": report.header, "summary": report.summary, "timing": report.timing})
    else:
        print_report(report, console)
    for remark in report.summary["remarks"]:
        console.print(f"note: {remark}", style="yellow", markup=False, soft_wrap=True)
    if report.ended == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if report.problem:
        raise FusedgeError(
            f"ran to the end, but {report.problem}",
            where=", ".join(report.header["sources"]),
            hint="see the notes above; what was decided is written",
        )
