"""`fusedge demo`: a task with nothing plugged in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import UnknownNameError
from fusedge.cli.console import console
from fusedge.cli.options import JsonOption, ShowOption
from fusedge.cli.run import finish, parse_speed, run_sessions
from fusedge.cli.tasks import TASKS, shipped_bundle
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.sinks.table import TableSink
from fusedge.runtime.sinks.timeline import TimelineSink
from fusedge.runtime.sinks.window import WindowSink

DRIVE = "sim:?seed=1&duration_s=60&script=normal:20,aggressive:20,drowsy:20&gps_outage=45:55"


def demo(
    name: Annotated[str, typer.Argument(help="Which task: driving or emotion.")] = "driving",
    out: Annotated[
        Path,
        typer.Option(help="Folder for decisions, picture and, of emotion, the film."),
    ] = Path("demo-out"),
    speed: Annotated[
        str,
        typer.Option(help="1 is real time, max as fast as it goes. Default: 4, with --show 1."),
    ] = "",
    show: ShowOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a task with nothing plugged in, and show what comes out.

    `driving`: a simulated drive of 60 s, which changes its style every 20 s and loses GPS for ten, to show
    that decisions go on. `emotion`: a film of 24 s made of a picture and of synthetic speech; the face
    moves and is lit, is gone for four seconds, and a voice speaks for seven. Its bundle is exported first,
    once, into the user's cache, since what finds faces and speech comes from packages.

    It shows how the product works, not how accurate a model is.
    """
    if name not in TASKS:
        raise UnknownNameError("demo", name, TASKS)
    clock = parse_speed(speed or ("1" if show else "4"))
    if show and name == "emotion":  # before a film is made, and perhaps a bundle
        _refuse_without_display()
    bundle, source = (shipped_bundle(name), DRIVE) if name == "driving" else _emotion(out)
    session = Session(bundle, [source], clock)
    decisions, picture = out / "decisions.jsonl", out / "timeline.png"
    sinks: list[Sink] = [JsonLinesSink(decisions), TimelineSink(picture)]
    if show:
        sinks.insert(0, WindowSink(session.view))
    if not as_json:
        sinks.append(TableSink(console))
    report = run_sessions([(session, sinks)])[0]
    if not as_json:
        console.print(f"decisions: {decisions}   picture: {picture}", markup=False)
        console.print(f"weights: {bundle.manifest.provenance.weights_licence}", markup=False)
    finish(report, as_json)


def _emotion(out: Path) -> tuple[Bundle, str]:
    """The bundle, exported where it is not yet, and the film."""
    from fusedge.cli.demo_film import write_film

    film = out / "face.mp4"
    write_film(film)
    return shipped_bundle("emotion"), f"file:{film}"


def _refuse_without_display() -> None:
    """Raise FusedgeError where no window can be opened: trying is surer than asking."""
    window = WindowSink(None)
    window.open({"bundle": "demo"})
    window.close({})
