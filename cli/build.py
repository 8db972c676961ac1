"""`fusedge build`: the engines that a bundle lacks, built where it will run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fusedge.bundle.built_here import cache_folder
from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import GRAPH_PRECISIONS, GraphPrecision
from fusedge.cli.console import console, print_json
from fusedge.cli.options import BundleArgument, JsonOption
from fusedge.cli.tasks import find_bundle, is_shipped

if TYPE_CHECKING:
    from fusedge.export.build import BuildRow


def build(
    bundle: BundleArgument,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as rtx-4090; several times for more. Default: local, the GPU here."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Bundle to write; default: in place.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Which graphs to build; default: each part's last one.")
    ] = None,
    power_mode: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Warn where a Jetson is in another mode, such as 15W."),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(min=1, metavar="MIB", help="Most memory for intermediate results of a layer."),
    ] = None,
    dla: Annotated[
        int | None, typer.Option(min=0, metavar="CORE", help="Use this DLA core of a Jetson.")
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="Engines that later versions of TensorRT load too, up to the next major one.",
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Engines for all GPUs from Ampere on.")
    ] = False,
    timing_cache: Annotated[
        bool,
        typer.Option(
            "--timing-cache", help="Keep measured kernels, which makes the next build faster."
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Longest time for one engine.")
    ] = 1800.0,
    memory: Annotated[
        int, typer.Option(min=256, metavar="MIB", help="Most memory for the build of one engine.")
    ] = 8192,
    as_json: JsonOption = False,
) -> None:
    """Build the engines that a bundle lacks, and write them into it.

    On a Jetson, or any machine with an NVIDIA GPU and TensorRT, `--target local` builds for that GPU,
    in the power mode that it is in: set the one it will run in first. Engines for desktop RTX GPUs
    are built without one. An interrupted build goes on where it stopped. Engines that are damaged, or
    that `run` would refuse since nobody whom you trust vouches for them, are built anew. Where the
    bundle changes, its signature is dropped. If nothing can be built, nothing is written.

    Examples:

    - `fusedge build driving.fusedge --power-mode 15W`
    - `fusedge build driving --target rtx-4090 --target rtx-5090 -o driving-rtx.fusedge`
    """
    if out is None and is_shipped(bundle):
        raise FusedgeError("a shipped bundle is not changed", where=bundle, hint="choose a -o")
    opened = find_bundle(bundle)
    if precision is not None and precision not in GRAPH_PRECISIONS:
        raise UnknownNameError("precision", precision, GRAPH_PRECISIONS)
    from fusedge.devices.targets.tensorrt_api import EngineOptions
    from fusedge.export.build import BuildOptions, build_bundle
    from fusedge.export.cache import Cache
    from fusedge.export.engine import BuildLimits

    options = BuildOptions(
        targets=tuple(target or ["local"]),
        precision=cast("GraphPrecision | None", precision),
        power_mode=power_mode,
        engine=EngineOptions(
            timing_cache=timing_cache,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            dla_core=dla,
            workspace_bytes=None if workspace is None else workspace << 20,
        ),
        limits=BuildLimits(timeout, memory << 20),
    )
    hidden = as_json or not console.is_terminal
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        line = bar.add_task("look", total=1.0)

        def show(stage: str, item: str, share: float) -> None:
            bar.update(line, description=f"{stage}: {item}", completed=share)

        report = build_bundle(opened, out or opened.path, options, Cache(cache_folder()), show)
    written = report.bundle
    if as_json:
        print_json(
            {
                "bundle": str(written.path),
                "sha256": written.sha256,
                "complete": not report.failed,
                "engines": [asdict(row) for row in report.rows],
                "warnings": report.warnings,
            }
        )
    else:
        console.print(_table(report.rows))
        unchanged = "nothing was built for" if report.failed else "nothing to add to"
        said = unchanged if written is opened else "wrote"
        console.print(f"{said} {written.path}", markup=False, soft_wrap=True)
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    if report.failed:
        first = report.failed[0]
        more = len(report.failed) - 1
        raise FusedgeError(first.note + (f"; and {more} more could not be built" if more else ""))


def _table(rows: tuple[BuildRow, ...]) -> Table:
    table = Table(title="engines", title_justify="left")
    for column in ("part", "targets", "precision", "", "seconds", "note"):
        table.add_column(column)
    for row in rows:
        state = Text(row.state, "bold red" if row.state == "failed" else "")
        seconds = "" if row.build_s is None else f"{row.build_s:.1f}"
        table.add_row(
            row.part, ", ".join(row.targets), row.precision, state, seconds, Text(row.note)
        )
    return table
