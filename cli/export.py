"""`fusedge export`: a trained model to a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fusedge.bundle.built_here import cache_folder
from fusedge.bundle.errors import FusedgeError, MissingExtraError, UnknownNameError
from fusedge.bundle.manifest import BATCH, DimRange, PartParity
from fusedge.cli.console import console, print_json
from fusedge.cli.options import JsonOption
from fusedge.cli.tasks import TASKS, driving_evaluation, load_for_export
from fusedge.devices.capture.replay.uah import find_trips
from fusedge.export.audit import AuditRow

if TYPE_CHECKING:
    from fusedge.export.pipeline import Exported, WantedPrecision
    from fusedge.export.subject import Subject

MAX_EXAMPLE_BYTES = 4 << 30


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A task that comes with Fusedge (driving), or package.module:factory.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Bundle to write: a .fusedge file, or a folder.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(help="Device to build engines for, such as rtx-4090; several times for more."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights (.safetensors). Default: the shipped ones.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of engines: fp32, fp16, bf16, int8, or auto to search for it.")
    ] = "fp16",
    budget: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="POINTS",
            help="What --precision auto may lose of the metric, in percent.",
        ),
    ] = 0.5,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="FUSEDGE_DATA",
            help="Folder of recordings: int8 is calibrated, and the metric measured on them.",
        ),
    ] = None,
    calibration: Annotated[
        str, typer.Option(help="How int8 chooses its ranges: percentile or entropy.")
    ] = "percentile",
    example: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ", help="Of a plain model: an array for each input, by the name in forward."
        ),
    ] = None,
    axes: Annotated[
        list[str] | None,
        typer.Option(
            "--axes",
            metavar="INPUT=DIM,...",
            help="Names of an input's free dims: ids=batch,tokens.",
        ),
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option(
            "--dim",
            metavar="DIM=LEAST:USUAL:GREATEST",
            help="Sizes that a free dim can have, for engines: tokens=1:32:128. Default: batch=1:4:8.",
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset, 17 to 22. Default: what all targets read.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Longest time for one engine.")
    ] = 300.0,
    memory: Annotated[
        int, typer.Option(min=256, metavar="MIB", help="Most memory for the build of one engine.")
    ] = 8192,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE", help="Also write a page on the bundle, .html, and its record."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            help="Take up what an earlier export of the same has proved, built or searched."
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Export a model: split, trace, prove, reduce precision, build engines, write one bundle.

    Parity is a gate: if a part or the whole differs from the original module by more than its
    tolerance, nothing is written, and the message names the first node that differs. Engines for
    desktop RTX GPUs are built here, without a GPU; those for a Jetson by `fusedge build` on it.

    A model of your own is a function without arguments that returns an `nn.Module` (one part, with
    `--example`), or a fusion model and its `Task` (encoders and head; see examples/).

    Examples:

    - `fusedge export driving -o driving.fusedge`
    - `fusedge export driving --target rtx-4090 --target rtx-5090 -o out.fusedge --report out.html`
    - `fusedge export driving --precision auto --budget 0.5 --data DATA -o out.fusedge`
    - `fusedge export mypackage.model:make --checkpoint w.safetensors --example in.npz -o out`
    """
    if report is not None and report.suffix != ".html":
        raise FusedgeError("is no name for a page", where=str(report), hint="--report NAME.html")
    _need_torch()
    from fusedge.export.cache import Cache
    from fusedge.export.calibration import Method
    from fusedge.export.engine import BuildLimits
    from fusedge.export.pipeline import ExportOptions, WantedPrecision, export_bundle

    wanted = cast("WantedPrecision", _one_of("precision", precision, get_args(WantedPrecision)))
    method = cast("Method", _one_of("calibration", calibration, get_args(Method)))
    hidden = as_json or not console.is_terminal
    columns = (
        TextColumn("{task.description:<44}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        row = bar.add_task("load", total=1.0)

        def show(stage: str, item: str, share: float) -> None:
            bar.update(row, description=f"{stage}: {item}", completed=share)

        subject, evaluation = _subject(
            model, checkpoint, data, example, _axes(axes or ()), _dims(dim or ())
        )
        options = ExportOptions(
            targets=tuple(target or ()),
            precision=wanted,
            budget_points=budget,
            opset=opset,
            calibration=method,
            limits=BuildLimits(timeout, memory << 20),
            cache=Cache(cache_folder() if resume else None),
        )
        exported = export_bundle(subject, out, options, show, evaluation)
    if report is not None:
        _write_report(exported, budget, report)
    if as_json:
        print_json(_as_json(exported))
    else:
        _print(exported, report)
    if not exported.audit.complete:
        raise FusedgeError(
            f"the bundle is written, but {exported.audit.missing}", where=str(exported.bundle.path)
        )


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingExtraError("torch", "export", "exporting a model") from None


def _one_of(what: str, given: str, known: tuple[str, ...]) -> str:
    if given not in known:
        raise UnknownNameError(what, given, known)
    return given


def _axes(texts: list[str] | tuple[str, ...]) -> dict[str, tuple[str | int, ...]]:
    """`ids=batch,tokens` to `{"ids": ("batch", "tokens")}`."""
    axes = {}
    for text in texts:
        name, given, dims = text.partition("=")
        if not (name and given and dims):
            raise FusedgeError(f"--axes {text!r} is not INPUT=DIM,DIM,...")
        axes[name] = tuple(int(d) if d.isdecimal() else d for d in dims.split(","))
    return axes


def _dims(texts: list[str] | tuple[str, ...]) -> dict[str, DimRange]:
    """`tokens=1:32:128` to a range."""
    dims = {}
    for text in texts:
        name, _, sizes = text.partition("=")
        try:
            least, usual, greatest = (int(size) for size in sizes.split(":"))
            dims[name] = DimRange(least=least, usual=usual, greatest=greatest)
        except ValueError:
            raise FusedgeError(
                f"--dim {text!r} is not DIM=LEAST:USUAL:GREATEST with rising sizes from 1 on"
            ) from None
    return dims


def _subject(
    model: str,
    checkpoint: Path | None,
    data: Path | None,
    example: Path | None,
    axes: Mapping[str, tuple[str | int, ...]],
    dims: Mapping[str, DimRange],
) -> tuple[Subject, Any]:
    """What is to be exported, and how it is measured on recorded input, where that is given."""
    from fusedge.export.evaluation import RowsEvaluation
    from fusedge.export.factory import load_factory
    from fusedge.export.plain import plain_part
    from fusedge.export.subject import fusion_subject, plain_subject

    if model in TASKS:
        module, task = load_for_export(model, checkpoint)
        subject = fusion_subject(module, task, dims.get("batch", BATCH))
        if data is None:
            return subject, None
        find_trips(data)  # now rather than after the graphs are proved
        return subject, lambda graphs: driving_evaluation(subject.parts, task, data)
    if ":" not in model:
        raise UnknownNameError("model", model, TASKS)
    made = load_factory(model, checkpoint)
    if made.task is not None:
        if example is not None:
            raise FusedgeError("--example is for plain models; this one has a Task", where=model)
        subject = fusion_subject(cast("Any", made.module), made.task, dims.get("batch", BATCH))
        measured = made.task.evaluation
        return subject, None if measured is None else lambda graphs: measured(subject.parts)
    if example is None:
        raise FusedgeError(
            "a plain model needs --example NPZ, with an array for each input of forward",
            where=model,
            hint="a fusion model has a Task: see examples/fusion_model.py",
        )
    arrays = _arrays(example)
    part = plain_part(made.module, arrays, axes=axes, dims=dims)
    description = f"plain model of {model}"
    subject = plain_subject(part, arrays, made.name, description, made.provenance)
    return subject, lambda graphs: RowsEvaluation(part, arrays, graphs[part.name])


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; nothing in it is run."""
    try:
        if path.stat().st_size > MAX_EXAMPLE_BYTES:
            raise FusedgeError(f"more than {MAX_EXAMPLE_BYTES >> 30} GiB", where=str(path))
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise ValueError("it holds one array without a name")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise FusedgeError(
            f"cannot be read as an .npz file: {error}",
            where=str(path),
            hint="np.savez(FILE, input=array, ...)",
        ) from None


def _write_report(exported: Exported, budget: float, page: Path) -> None:
    """The page, and beside it the record that `fusedge report --record` takes."""
    from fusedge.bundle.signature import signature_state
    from fusedge.export.record import record_of
    from fusedge.export.report import make_report
    from fusedge.export.report_html import render

    record = record_of(exported, budget)
    page.with_suffix(".json").write_text(record.model_dump_json(indent=1) + "\n", "utf-8")
    with console.status("report"):
        made = make_report(exported.bundle, signature_state(exported.bundle), record)
    page.write_text(render(made), "utf-8")


def _as_json(exported: Exported) -> dict[str, Any]:
    audit = exported.audit
    return {
        "bundle": str(exported.bundle.path),
        "sha256": exported.bundle.sha256,
        "complete": audit.complete,
        "audit": [asdict(row) for row in audit.rows],
        "parity": [row.model_dump(mode="json") for row in audit.parity],
        "metric": exported.metric
        and dict(zip(("name", "fp32", "chosen"), exported.metric, strict=True)),
        "stage_s": {stage: round(seconds, 3) for stage, seconds in exported.stage_s.items()},
    }


def _print(exported: Exported, report: Path | None) -> None:
    console.print(_parity_table(exported.audit.parity))
    if exported.audit.rows:
        console.print(_audit_table(exported.audit.rows))
    if exported.metric:
        name, full, chosen = exported.metric
        console.print(f"{name}: {full:.4f} at fp32, {chosen:.4f} at the precision of the engines")
    if exported.search:
        found = exported.search
        console.print(
            f"search: {1 / found.time_ratio:.2f} times as fast as fp32 here, {found.loss_points:+.2f} "
            f"points lost; {found.evaluations} measurements now, {found.reused} from before"
        )
        for reason in found.refused:
            console.print(f"not tried: {reason}", markup=False)
    console.print(f"wrote {exported.bundle.path}", markup=False, soft_wrap=True)
    if report is not None:
        console.print(f"wrote {report}", markup=False, soft_wrap=True)


def _parity_table(rows: tuple[PartParity, ...]) -> Table:
    table = Table(title="parity with the original module", title_justify="left")
    for column in ("part", "precision", "cases", "difference", "of output", "limit", "same label"):
        table.add_column(column)
    closest = {  # of each part's outputs, the one that is closest to its limit
        (row.part, row.precision): row
        for row in sorted(rows, key=lambda row: row.max_relative / row.tolerance)
    }
    for row in sorted(closest.values(), key=rows.index):
        labels = [r for r in rows if (r.part, r.precision) == (row.part, row.precision)]
        agreement = [r.argmax_agreement for r in labels if r.argmax_agreement is not None]
        table.add_row(
            row.part,
            row.precision,
            str(row.cases),
            f"{row.max_relative:.1e}",
            row.output,
            f"{row.tolerance:.0e}",
            f"{min(agreement):.2%}" if agreement else "",
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
