"""`fusedge record`: sources into a file, without a bundle. And the recorders of `fusedge run`."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Event
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fusedge.bundle.errors import FusedgeError, printable
from fusedge.bundle.manifest import Manifest
from fusedge.bundle.recording import tracks_of
from fusedge.cli.console import console, print_json
from fusedge.cli.main import stop_signals
from fusedge.cli.options import JpegOption, JsonOption
from fusedge.devices.capture.address import shown
from fusedge.runtime.record import RecordProgress, RecordReport
from fusedge.runtime.record import record as record_sources
from fusedge.runtime.sinks.recorder import EventClips, Recorder
from fusedge.runtime.sinks.sink import Sink

MAX_CLIP_S = 600.0
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "min": 60.0}


def record(
    source: Annotated[
        list[str],
        typer.Option(help="Where samples come from, as a URI; may be given several times."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to record into; a new one.")],
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="Stop by itself after this time.")
    ] = None,
    jpeg: JpegOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record what sources give, without a bundle, as MCAP that Foxglove opens.

    Ctrl-C ends a recording. Whatever happens, it is readable up to a second before. Exit status 1 if
    a source failed.

    Examples:

    - `fusedge record --source sim: -o drive.mcap`
    - `fusedge run driving --source replay:drive.mcap`
    """
    stop = Event()

    with stop_signals(stop.set, once=False), console.status("recording", spinner="dots") as status:

        def show(progress: RecordProgress) -> None:
            status.update(
                f"recording: {progress.seconds:.1f} s, {progress.items} items, "
                f"{progress.bytes_written / 1e6:.1f} MB"
            )

        report = record_sources(
            source, out, stop, seconds=seconds, jpeg_quality=jpeg, progress=show
        )
    _print(report, out, as_json)
    failed = {
        uri: given["first_failure"] for uri, given in report.sources.items() if given["failures"]
    }
    for uri, first in failed.items():
        line = f"note: source {printable(uri)} failed, first: {first}"
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    if not any(account["used"] for account in report.modalities.values()):
        raise FusedgeError("not one sample came", where=", ".join(map(shown, source)))
    if failed:
        raise FusedgeError(
            f"recorded, but {'a source' if len(failed) == 1 else f'{len(failed)} sources'} failed",
            where=", ".join(failed),
            hint="see the notes above; what came is in the file",
        )


def _print(report: RecordReport, path: Path, as_json: bool) -> None:
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    if as_json:
        print_json(
            {
                "file": str(path),
                "bytes": report.bytes_written,
                "ended": report.ended,
                "seconds": round(report.seconds, 3),
                "ledger": report.modalities,
                "sources": report.sources,
            }
        )
        return
    console.print(
        f"{report.ended}: {report.seconds:.1f} s, {report.bytes_written / 1e6:.1f} MB in {path}",
        markup=False,
        soft_wrap=True,
    )
    table = Table(title="samples", title_justify="left")
    for column in ("modality", "received", "recorded", "rejected"):
        table.add_column(column, justify="left" if column in ("modality", "rejected") else "right")
    for name, account in report.modalities.items():
        rejected = ", ".join(f"{reason} {n}" for reason, n in account["dropped"].items())
        received, used = str(account["received"]), str(account["used"])
        table.add_row(
            escape(printable(name)), received, used, escape(printable(rejected)) or "none"
        )
    console.print(table)


def recorders(
    manifest: Manifest,
    record: Path | None,
    record_events: str | None,
    clips: Path,
    jpeg: int | None,
) -> list[Sink]:
    """The sinks behind `--record`, `--record-events`, `--clips` and `--jpeg` of `fusedge run`."""
    tracks = tracks_of(manifest)
    sinks: list[Sink] = []
    if record is not None:
        sinks.append(Recorder(record, tracks, jpeg_quality=jpeg))
    if record_events is not None:
        span_s = parse_duration(record_events)
        sinks.append(EventClips(clips, tracks, span_s, span_s, jpeg_quality=jpeg))
    return sinks


def parse_duration(text: str) -> float:
    """Seconds from `10s`, `500ms`, `2min` or `10`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|min|)", text.strip())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < value <= MAX_CLIP_S:
        raise FusedgeError(
            f"{text!r} is not a time up to {MAX_CLIP_S:.0f} s", hint="write 10s, 500ms or 2min"
        )
    return value
