"""`fusedge replay`: a recorded session once more, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, printable
from fusedge.bundle.recording_file import RecordingFile
from fusedge.cli.console import console, print_json
from fusedge.cli.options import (
    AllowEnginesOption,
    BackendOption,
    JsonOption,
    PrecisionOption,
    ProviderOption,
)
from fusedge.cli.run import finish, run_sessions
from fusedge.cli.tasks import TASKS, find_bundle, shipped_bundle
from fusedge.runtime.backend import AUTO, BackendSetting
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.replay import ReplayReport, replay_exactly
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.sink import Sink


def replay(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="An .mcap file.")],
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE",
            help="The bundle of the session; may be left out where it is a task's: driving or emotion.",
            show_default=False,
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="File for the decisions of now, as JSON Lines.")
    ] = None,
    other_bundle: Annotated[
        bool,
        typer.Option(
            "--other-bundle",
            help="Run what was received through BUNDLE, whichever it is; nothing is compared.",
        ),
    ] = False,
    backend: BackendOption = AUTO,
    provider: ProviderOption = AUTO,
    precision: PrecisionOption = AUTO,
    allow_unsigned_engines: AllowEnginesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replay a session that was recorded with `fusedge run --record`, and compare every decision.

    Arrival order, what was dropped and when each step was taken are those of the recording, so the
    decisions must be the same to the byte. Exit status 1 if one differs. Each part runs on what it ran on
    then, unless an option names something else.

    Examples:

    - `fusedge run driving --source sim: --record drive.mcap`
    - `fusedge replay drive.mcap`
    """
    sinks: list[Sink] = [] if out is None else [JsonLinesSink(out)]
    chosen = _bundle(recording, bundle)
    setting = BackendSetting(backend, provider, precision, allow_unsigned_engines)
    if other_bundle:
        session = Session(chosen, [f"replay:{recording}"], VirtualClock(), backend=setting)
        finish(run_sessions([(session, sinks)])[0], as_json)
        return
    report = replay_exactly(chosen, recording, sinks, backend=setting)
    _print(report, as_json)
    if report.difference:
        raise FusedgeError(
            f"the replay differs, first at {report.difference}",
            where=str(recording),
            hint="the same machine, backend and versions give the same bits; others may not",
        )
    if not report.decisions:
        raise FusedgeError("holds no decision to compare", where=str(recording))


def _bundle(recording: Path, name: str) -> Bundle:
    if name:
        return find_bundle(name)
    then = RecordingFile(recording).info.session.get("bundle")
    if not isinstance(then, str) or then not in TASKS:
        what = f"was made with {then[:80]}" if isinstance(then, str) else "says of no bundle"
        raise FusedgeError(what, where=str(recording), hint="name the bundle after the recording")
    return shipped_bundle(then)


def _print(report: ReplayReport, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "identical": report.identical,
                "decisions": report.decisions,
                "identical_decisions": report.identical_decisions,
                "events": report.events,
                "identical_events": report.identical_events,
                "difference": report.difference or None,
                "stopped": report.stopped or None,
                "sha256": report.sha256,
                "summary": report.summary,
            }
        )
    else:
        verdict = "[green]identical[/]" if report.identical else "[bold red]different[/]"
        console.print(
            f"{verdict}: {report.identical_decisions} of {report.decisions} decisions, "
            f"{report.identical_events} of {report.events} events; SHA-256 {report.sha256}",
            soft_wrap=True,
        )
    if report.stopped:
        console.print(
            f"note: {printable(report.stopped)}", style="yellow", markup=False, soft_wrap=True
        )
