"""`fusedge demo`: a task with nothing plugged in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from fusedge.bundle.archive import Bundle
from fusedge.bundle.built_here import cache_folder, make_private
from fusedge.bundle.errors import BundleError, UnknownNameError
from fusedge.bundle.lookup import open_bundle
from fusedge.cli.console import console
from fusedge.cli.options import JsonOption, ShowOption
from fusedge.cli.run import finish, parse_speed, run_sessions
from fusedge.cli.tasks import WEIGHTS, load_for_export, need_torch
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.sinks.table import TableSink
from fusedge.runtime.sinks.timeline import TimelineSink
from fusedge.runtime.sinks.window import WindowSink

DEMOS = ("driving", "emotion")
DRIVE = "sim:?seed=1&duration_s=60&script=normal:20,aggressive:20,drowsy:20&gps_outage=45:55"


def demo(
    name: Annotated[str, typer.Argument(help="Which task: driving or emotion.")] = "driving",
    out: Annotated[Path, typer.Option(help="Folder for decisions and picture.")] = Path("demo-out"),
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
    once, since what finds faces and speech comes from packages.

    It shows how the product works, not how accurate a model is.
    """
    if name not in DEMOS:
        raise UnknownNameError("demo", name, DEMOS)
    bundle, source = (open_bundle(name), DRIVE) if name == "driving" else _emotion(out)
    session = Session(bundle, [source], parse_speed(speed or ("1" if show else "4")))
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
    return _exported("emotion"), f"file:{film}"


def _exported(task: str) -> Bundle:
    """The bundle of a task's shipped weights, kept in the user's cache."""
    weights = WEIGHTS / f"{task}.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    path = cache_folder() / "bundles" / f"{task}-{digest[:16]}.fusedge"
    if path.is_file():
        try:
            return Bundle(path)
        except BundleError as error:
            console.print(f"{error}; it is exported again", style="yellow", markup=False)
            path.unlink()
    need_torch("export", f"exporting {task}")
    from fusedge.export.pipeline import ExportOptions, export_bundle
    from fusedge.export.subject import fusion_subject

    console.print(f"exporting {task} to {path}, once", markup=False)
    make_private(path.parent)
    subject = fusion_subject(*load_for_export(task, None))
    return export_bundle(subject, path, ExportOptions(precision="fp32")).bundle
