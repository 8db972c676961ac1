"""`fusedge export`: a trained model to a bundle."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args
from zipfile import ZipFile

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fusedge.bundle.built_here import cache_folder
from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import BATCH, MAX_SIZE, DimRange, PartParity
from fusedge.cli.console import console, print_json
from fusedge.cli.driving_task import driving_evaluation
from fusedge.cli.options import JsonOption, is_from_command_line
from fusedge.cli.tasks import TASKS, load_for_export, need_torch
from fusedge.devices.capture.replay.uah import find_trips
from fusedge.export.audit import AuditRow

if TYPE_CHECKING:
    from fusedge.export.pipeline import Exported, ExportOptions, WantedPrecision
    from fusedge.export.subject import Subject

MAX_EXAMPLE_BYTES = 4 << 30


def export(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A task that comes with Fusedge (driving, emotion), or package.module:factory.",
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
            help="What int8 and auto may lose of the metric, in percentage points.",
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
            metavar="PAGE.html",
            help="Also write a page on the bundle, and its record, PAGE.export.json.",
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
    if report is not None:
        _check_report(report, out)
    need_torch("export", "exporting a model")
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
    with (
        redirect_stdout(sys.stderr),  # what the user's code prints is not our output
        Progress(*columns, console=console, transient=True, disable=hidden) as bar,
    ):
        row = bar.add_task("load", total=1.0)

        def show(stage: str, item: str, share: float) -> None:
            bar.update(row, description=f"{stage}: {item}", completed=share)

        given = _Given(
            checkpoint,
            data,
            is_from_command_line(context, "data"),
            example,
            _axes(axes or ()),
            _dims(dim or ()),
        )
        subject, evaluation = _subject(model, given)
        options = ExportOptions(
            targets=tuple(target or ()),
            precision=wanted,
            budget_points=budget,
            opset=opset,
            calibration=method,
            limits=BuildLimits(timeout, memory << 20),
            cache=Cache(cache_folder() if resume else None),
        )
        speed = _speed(subject, options)
        exported = export_bundle(subject, out, options, show, evaluation, speed)
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


def _speed(subject: Subject, options: ExportOptions) -> Any:
    """What `auto` measures on: the GPU here where it is of a kind that was asked for, else the CPU."""
    from fusedge.cli.engine_speed import EngineSpeed, gpu_of
    from fusedge.export.speed import CpuSpeed

    gpu = gpu_of(options.targets) if options.precision == "auto" else None
    if gpu is None:
        return CpuSpeed
    return partial(EngineSpeed, subject.measured_parts, gpu, options.limits, options.cache)


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
                f"--dim {text!r} is not DIM=LEAST:USUAL:GREATEST with rising sizes from 1 to {MAX_SIZE}"
            ) from None
    return dims


@dataclass(frozen=True)
class _Given:
    """The options that say what a model is, of which each kind of model takes some."""

    checkpoint: Path | None
    data: Path | None
    data_asked: bool
    """`data` is from the command line and not from the environment, where it serves other commands."""
    example: Path | None
    axes: Mapping[str, tuple[str | int, ...]]
    dims: Mapping[str, DimRange]

    def batch(self, model: str) -> DimRange:
        """The only free dim of a fusion model; raises FusedgeError for what only plain models take."""
        for name, given in (("--example", self.example), ("--axes", self.axes)):
            if given:
                raise FusedgeError(
                    f"{name} is for plain models; this one's inputs follow from its modalities",
                    where=model,
                )
        if unknown := next((name for name in self.dims if name != "batch"), None):
            raise UnknownNameError("dim", unknown, ("batch",))
        return self.dims.get("batch", BATCH)

    def refuse_data(self, model: str, hint: str) -> None:
        """Raise FusedgeError for recordings that nothing would read."""
        if self.data_asked:
            raise FusedgeError("--data is for shipped tasks", where=model, hint=hint)


def _subject(model: str, given: _Given) -> tuple[Subject, Any]:
    """What is to be exported, and how it is measured on recorded input, where that is given."""
    from fusedge.export.evaluation import RowsEvaluation
    from fusedge.export.factory import TaskEvaluation, load_factory
    from fusedge.export.plain import plain_part
    from fusedge.export.subject import fusion_subject, plain_subject

    if model in TASKS:
        batch, data = given.batch(model), given.data
        module, shipped = load_for_export(model, given.checkpoint)
        subject = fusion_subject(module, shipped, batch)
        if model != "driving":
            given.refuse_data(model, "its figures are from `fusedge eval`")
            return subject, None
        if data is None:
            return subject, None
        find_trips(data)  # now rather than after the graphs are proved
        return subject, lambda graphs: driving_evaluation(subject.measured_parts, shipped, data)
    if ":" not in model:
        raise UnknownNameError("model", model, TASKS)
    made = load_factory(model, given.checkpoint)
    task = made.task
    if task is not None:
        given.refuse_data(model, "a Task has its recordings in `evaluation`")
        subject = fusion_subject(cast("Any", made.module), task, given.batch(model))
        if task.evaluation is None:
            return subject, None
        return subject, lambda graphs: TaskEvaluation(task, subject.measured_parts)
    given.refuse_data(model, "a plain model is measured on the rows of --example")
    if given.example is None:
        raise FusedgeError(
            "a plain model needs --example NPZ, with an array for each input of forward",
            where=model,
            hint="a fusion model has a Task: see examples/fusion_model.py",
        )
    arrays = _arrays(given.example)
    part = plain_part(made.module, arrays, axes=given.axes, dims=given.dims)
    description = f"plain model of {model}"
    subject = plain_subject(part, arrays, made.name, description, made.provenance)
    return subject, lambda graphs: RowsEvaluation(part, arrays, graphs[part.name])


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; nothing in it is run, and no more unpacked than the bound."""
    try:
        with ZipFile(path) as archive:  # which reads no more of a member than its entry says
            total = sum(entry.file_size for entry in archive.infolist())
        if total > MAX_EXAMPLE_BYTES:
            raise ValueError(f"it holds more than {MAX_EXAMPLE_BYTES >> 30} GiB")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # of damage, zipfile, zlib and NumPy raise what they do not document
        raise FusedgeError(
            f"cannot be read as an .npz file: {str(error) or type(error).__name__}",
            where=str(path),
            hint="np.savez(FILE, input=array, ...)",
        ) from None


def _record_path(page: Path) -> Path:
    return page.with_suffix(".export.json")


def _check_report(page: Path, out: Path) -> None:
    """Refuse at once, rather than after the export, a page that cannot be written."""
    where = str(page)
    if page.suffix != ".html":
        raise FusedgeError("is no name for a page", where=where, hint="--report NAME.html")
    own = {Path(os.path.realpath(place)) for place in (page, _record_path(page))}
    if Path(os.path.realpath(out)) in {above for place in own for above in (place, *place.parents)}:
        raise FusedgeError(
            "the report would be written into the bundle", where=where, hint="choose another place"
        )
    try:
        for place in own:
            if place.is_dir() or (place.exists() and not os.access(place, os.W_OK)):
                raise OSError(f"{place} cannot be written")
        with TemporaryFile(dir=page.parent):  # trying is surer than asking
            pass
    except OSError as error:
        raise _cannot_write(page, error) from None


def _cannot_write(page: Path, error: OSError) -> FusedgeError:
    return FusedgeError(
        f"cannot write the report: {error.strerror or error}",
        where=str(page),
        hint="choose another place with --report, in a folder that exists",
    )


def _write_report(exported: Exported, budget: float, page: Path) -> None:
    """The page, and beside it the record that `fusedge report --record` takes."""
    from fusedge.bundle.signature import signature_state
    from fusedge.export.record import record_of
    from fusedge.export.report import make_report
    from fusedge.export.report_html import render

    record = record_of(exported, budget)
    with console.status("report"):
        made = make_report(exported.bundle, signature_state(exported.bundle), record)
    try:
        _record_path(page).write_text(record.model_dump_json(indent=1) + "\n", "utf-8")
        page.write_text(render(made), "utf-8")
    except OSError as error:
        raise _cannot_write(page, error) from None


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
        "notes": list(exported.notes),
        "search": exported.search
        and {
            "time_ratio": exported.search.time_ratio,
            "loss_points": exported.search.loss_points,
            "measured_on": exported.search.measured_on,
        },
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
            f"search: {1 / found.time_ratio:.2f} times as fast as fp32, {found.loss_points:+.2f} "
            f"points lost; {found.evaluations} measurements now, {found.reused} from before; speed on "
            f"{found.measured_on}",
            markup=False,
        )
        for reason in found.refused:
            console.print(f"not tried: {reason}", markup=False)
    for note in exported.notes:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
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
