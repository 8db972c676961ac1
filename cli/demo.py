"""`fusedge demo`: a shipped bundle on a built-in drive, with nothing plugged in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedge.bundle.errors import UnknownNameError
from fusedge.bundle.lookup import open_bundle
from fusedge.cli.console import console
from fusedge.cli.options import JsonOption
from fusedge.cli.run import finish, parse_speed, run_sessions
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.sinks.table import TableSink
from fusedge.runtime.sinks.timeline import TimelineSink

DRIVES = {
    "driving": "sim:?seed=1&duration_s=60&script=normal:20,aggressive:20,drowsy:20&gps_outage=45:55"
}


def demo(
    name: Annotated[str, typer.Argument(help="Which shipped bundle: driving.")] = "driving",
    out: Annotated[Path, typer.Option(help="Folder for decisions and picture.")] = Path("demo-out"),
    speed: Annotated[str, typer.Option(help="1 is real time, max as fast as it goes.")] = "4",
    as_json: JsonOption = False,
) -> None:
    """Run a shipped bundle on a built-in simulated drive of 60 s, and show what comes out.

    The drive changes its style every 20 s and loses GPS for ten, to show that decisions go on.
    It is a simulation: it shows how the product works, not how accurate the model is.
    """
    if name not in DRIVES:
        raise UnknownNameError("demo", name, DRIVES)
    bundle = open_bundle(name)
    session = Session(bundle, [DRIVES[name]], parse_speed(speed))
    decisions, picture = out / "decisions.jsonl", out / "timeline.png"
    sinks: list[Sink] = [JsonLinesSink(decisions), TimelineSink(picture)]
    if not as_json:
        sinks.append(TableSink(console))
    report = run_sessions([(session, sinks)])[0]
    if not as_json:
        console.print(f"decisions: {decisions}   picture: {picture}", markup=False)
        console.print(f"weights: {bundle.manifest.provenance.weights_licence}", markup=False)
    finish(report, as_json)
