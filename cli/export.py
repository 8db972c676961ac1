"""`fusedge export`: a trained model to a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import PartParity
from fusedge.cli.console import console, print_json
from fusedge.cli.options import JsonOption, ModelArgument
from fusedge.cli.tasks import check_task, load_for_export
from fusedge.export.audit import AuditRow


def export(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Bundle to write: a .fusedge file, or a folder.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(help="Device to build engines for, such as rtx-4090; several times for more."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights (.safetensors) from `fusedge train`; else the shipped ones."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision of engines: fp16 or fp32.")] = "fp16",
    as_json: JsonOption = False,
) -> None:
    """Export a model: split, trace, prove, reduce precision, build engines, write one bundle.

    Parity is a gate: if a part or the whole differs from the original module by more than its
    tolerance, nothing is written. Engines for desktop RTX GPUs are built here, without a GPU;
    those for Jetson must be built on the device.

    Examples:

    - `fusedge export driving -o driving.fusedge`
    - `fusedge export driving --target rtx-4090 --target rtx-5090 -o out.fusedge`
    - `fusedge export driving --checkpoint runs/driving/weights.safetensors -o mine.fusedge`
    """
    if precision not in ("fp16", "fp32"):
        raise FusedgeError(f"precision {precision!r} is not one of fp16, fp32")
    check_task(model, "export", "exporting a model")
    from fusedge.export.pipeline import ExportOptions, export_bundle

    module, task = load_for_export(model, checkpoint)
    options = ExportOptions(
        targets=tuple(target or ()), precision="fp16" if precision == "fp16" else "fp32"
    )
    hidden = as_json or not console.is_terminal
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        row = bar.add_task("load", total=1.0)

        def show(stage: str, item: str, share: float) -> None:
            bar.update(row, description=f"{stage}: {item}", completed=share)

        exported = export_bundle(module, task, out, options, show)
    audit, bundle = exported.audit, exported.bundle
    if as_json:
        print_json(
            {
                "bundle": str(bundle.path),
                "sha256": bundle.sha256,
                "complete": audit.complete,
                "audit": [asdict(row) for row in audit.rows],
                "parity": [row.model_dump(mode="json") for row in audit.parity],
            }
        )
    else:
        console.print(_parity_table(audit.parity))
        if audit.rows:
            console.print(_audit_table(audit.rows))
        console.print(f"wrote {bundle.path}", markup=False, soft_wrap=True)
    if not audit.complete:
        raise FusedgeError(f"the bundle is written, but {audit.missing}", where=str(bundle.path))


def _parity_table(rows: tuple[PartParity, ...]) -> Table:
    table = Table(title="parity with the original module", title_justify="left")
    for column in (
        "part",
        "output",
        "precision",
        "cases",
        "largest difference",
        "tolerance",
        "same label",
    ):
        table.add_column(column)
    for row in rows:
        agreement = row.argmax_agreement
        table.add_row(
            row.part,
            row.output,
            row.precision,
            str(row.cases),
            f"{row.max_absolute:.1e} absolute, {row.max_relative:.1e} relative",
            f"{row.tolerance:.0e}",
            "" if agreement is None else f"{agreement:.2%}",
        )
    return table


def _audit_table(rows: tuple[AuditRow, ...]) -> Table:
    table = Table(title="requested against achieved", title_justify="left")
    for column in ("part", "target", "requested", "achieved", "note"):
        table.add_column(column)
    for row in rows:
        achieved = Text(row.achieved or "missing", "" if row.complete else "bold red")
        table.add_row(row.part, row.target, row.requested, achieved, row.note)
    return table
