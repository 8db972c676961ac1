"""`fusedge run`: a bundle over sources."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fusedge.bundle.errors import FusedgeError
from fusedge.cli.console import console, print_json
from fusedge.cli.main import INTERRUPTED, stop_signals
from fusedge.cli.options import (
    BUNDLE_HELP,
    AllowEnginesOption,
    BackendOption,
    ChaosEveryOption,
    ChaosOption,
    ChaosSeedOption,
    ClipsOption,
    JpegOption,
    JsonOption,
    PrecisionOption,
    ProviderOption,
    RecordEventsOption,
    RecordOption,
    ShowOption,
    chaos_of,
    is_from_command_line,
)
from fusedge.cli.record import recorders
from fusedge.cli.session_report import print_report
from fusedge.cli.tasks import find_bundle
from fusedge.devices.capture.source import is_live
from fusedge.runtime.appliance import Appliance, PipelineSetting, load_appliance
from fusedge.runtime.backend import AUTO, BackendSetting, SharedParts
from fusedge.runtime.chaos import EVERY_S
from fusedge.runtime.clock import Clock, LiveClock, PacedClock, VirtualClock
from fusedge.runtime.latency import LatencyPair
from fusedge.runtime.runner import run_all
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.sinks.table import TableSink
from fusedge.runtime.sinks.timeline import TimelineSink
from fusedge.runtime.sinks.window import WindowSink


def run(
    context: typer.Context,
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE",
            help=BUNDLE_HELP + " Or a .yaml file that describes several pipelines.",
        ),
    ],
    source: Annotated[
        list[str] | None,
        typer.Option(help="Where samples come from, as a URI; may be given several times."),
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Short for --source camera:NAME; auto is the first one."),
    ] = None,
    mic: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Short for --source mic:NAME; auto is the first one."),
    ] = None,
    out: Annotated[
        str, typer.Option(help="File for the decisions as JSON Lines; - is standard output.")
    ] = "",
    picture: Annotated[
        Path | None, typer.Option(help="PNG of probabilities, contributions and events.")
    ] = None,
    speed: Annotated[
        str,
        typer.Option(
            help="max is as fast as it goes, 1 a recording's real time, 4 four times as fast, live "
            "the machine's own clock. Default: live with a device, else max, with --show 1."
        ),
    ] = "",
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
    show: ShowOption = False,
    backend: BackendOption = AUTO,
    provider: ProviderOption = AUTO,
    precision: PrecisionOption = AUTO,
    allow_unsigned_engines: AllowEnginesOption = False,
    latency: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=SECONDS",
            help="Known delay of a modality's stamps, instead of the bundle's; repeatable.",
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Change to another bundle that is put at BUNDLE, on a tick, after a shadow run.",
        ),
    ] = False,
    threads: Annotated[
        int, typer.Option(min=0, max=256, help="Of the crew that computes; 0: by the cores.")
    ] = 0,
    cores: Annotated[
        str, typer.Option(metavar="0,1,…", help="Cores to which the crew is bound.")
    ] = "",
    record: RecordOption = None,
    record_events: RecordEventsOption = None,
    clips: ClipsOption = Path("clips"),
    jpeg: JpegOption = None,
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
    - `fusedge run driving --source sim: --record drive.mcap`
    - `fusedge run driving --source sim: --chaos stall,clock-step --chaos-seed 7`
    - `fusedge run emotion --camera auto --mic auto --show`
    - `fusedge run driving --source gps:/dev/ttyACM0 --source 'imu:iio:0?mount=mount.json'`
    - `fusedge run appliance.yaml`
    """
    if bundle.endswith((".yaml", ".yml")):
        _refuse_options(context, bundle)
        run_appliance(load_appliance(Path(bundle)), as_json)
        return
    uris = [*(source or ()), *_devices("camera", camera), *_devices("mic", mic)]
    if not uris:
        raise FusedgeError(
            "no source is given",
            hint="--source sim:, --source replay:TRIP, or --camera auto; see fusedge devices",
        )
    show_table = sys.stdout.isatty() and not as_json if table is None else table
    target = out or ("" if show_table or as_json else "-")
    clock = parse_speed(speed or default_speed(uris, show))
    _check_watch(watch, clock)
    faults = chaos_of(chaos, clock, chaos_seed, chaos_every)
    opened = find_bundle(bundle)
    sinks: list[Sink] = []
    if target:
        sinks.append(JsonLinesSink(sys.stdout if target == "-" else Path(target)))
    if picture is not None:
        sinks.append(TimelineSink(picture))
    sinks += recorders(opened.manifest, record, record_events, clips, jpeg)
    if show_table:
        sinks.append(TableSink(console))
    session = Session(
        opened,
        uris,
        clock,
        backend=BackendSetting(backend, provider, precision, allow_unsigned_engines),
        without=without or (),
        latency_s=dict(_parse_latency(text) for text in latency or ()),
        watch=watch,
        chaos=faults,
    )
    if show:  # first, since without a display nothing is to be written
        sinks.insert(0, WindowSink(session.view))
    if faults is not None:
        sinks = faults.sinks(sinks)
    if not show_table:
        _warn(session)
    pinned = _parse_cores(cores)
    finish(run_sessions([(session, sinks)], threads=threads, cores=pinned)[0], as_json)


def run_appliance(appliance: Appliance, as_json: bool) -> None:
    """Run all pipelines of a file at once, and report on each."""
    shared = SharedParts()
    clock = parse_speed(appliance.speed)
    _check_cores(appliance.cores)
    sessions: list[tuple[Session, Sequence[Sink]]] = []
    for setting in appliance.pipelines:
        try:
            sessions.append(_open(setting, clock if clock.real else VirtualClock(), shared))
        except FusedgeError as error:
            where = f"pipeline {setting.name}" + (f": {error.where}" if error.where else "")
            raise FusedgeError(error.what, where=where, hint=error.hint) from None
    reports = run_sessions(sessions, threads=appliance.threads, cores=appliance.cores)
    finish_all(dict(zip((s.name for s in appliance.pipelines), reports, strict=True)), as_json)


def _open(
    setting: PipelineSetting, clock: Clock, shared: SharedParts
) -> tuple[Session, Sequence[Sink]]:
    """The session and the sinks of one pipeline of an appliance."""
    bundle = find_bundle(setting.bundle)
    _check_watch(setting.watch, clock)
    faults = chaos_of(setting.chaos, clock, setting.chaos_seed, setting.chaos_every)
    session = Session(
        bundle,
        setting.sources,
        clock,
        backend=BackendSetting(
            setting.backend, setting.provider, setting.precision, setting.allow_unsigned_engines
        ),
        without=setting.without,
        latency_s=setting.latency_s,
        wait_for_sources=True,  # an appliance starts before its cameras
        latency_pairs=[
            LatencyPair(pair.speed, pair.acceleration, pair.highpass_hz)
            for pair in setting.measure_latency
        ],
        silence_s=setting.silence_s,
        hang_s=setting.hang_s,
        loaders=shared.loader,
        watch=setting.watch,
        chaos=faults,
        name=setting.name,
    )
    sinks: list[Sink] = []
    if setting.out is not None:
        sinks.append(JsonLinesSink(setting.out))
    if setting.picture is not None:
        sinks.append(TimelineSink(setting.picture))
    clips = setting.clips or Path("clips")
    sinks += recorders(bundle.manifest, setting.record, setting.record_events, clips, setting.jpeg)
    _warn(session)
    return session, sinks if faults is None else faults.sinks(sinks)


def _refuse_options(context: typer.Context, file: str) -> None:
    """A file of pipelines says everything itself, so that what is given beside it would be lost."""
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name not in ("bundle", "as_json")
        and is_from_command_line(context, str(option.name))
    ]
    if given:
        raise FusedgeError(
            f"{', '.join(given)}: settings are in the file",
            where=file,
            hint="write them there, and leave them out here",
        )


def _check_watch(watch: bool, clock: Clock) -> None:
    if watch and not clock.real:
        raise FusedgeError(
            "a bundle is watched in real time only", hint="with speed 1 or live, or without watch"
        )


def _notice(line: str) -> None:
    console.print(line, style="yellow", markup=False, soft_wrap=True)


def _warn(session: Session) -> None:
    label = f"{session.name}: " if session.name else ""
    for warning in session.warnings:
        console.print(f"{label}warning: {warning}", style="yellow", markup=False, soft_wrap=True)


def _parse_latency(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise FusedgeError(f"--latency {text!r} says no delay", hint="write gps=0.85") from None


def _parse_cores(text: str) -> list[int]:
    try:
        cores = [int(core) for core in text.split(",") if core]
    except ValueError:
        raise FusedgeError(f"--cores {text!r} names no cores", hint="write 0,1") from None
    _check_cores(cores)
    return cores


def _check_cores(cores: Sequence[int]) -> None:
    available = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if not set(cores) <= available:
        raise FusedgeError(
            f"cores {', '.join(map(str, cores))}: this process may use "
            f"{', '.join(map(str, sorted(available))) or 'any, and cannot be bound'}"
        )


def _devices(scheme: str, names: Sequence[str] | None) -> list[str]:
    return [f"{scheme}:{name}" for name in names or ()]


def default_speed(uris: Sequence[str], show: bool = False) -> str:
    """Real time if one of the sources is a device or somebody watches, else as fast as it goes."""
    return "live" if any(map(is_live, uris)) else "1" if show else "max"


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

    def stop() -> None:
        for session, _ in sessions:
            session.stop()

    with stop_signals(stop, once=True):
        return run_all(sessions, threads=threads, cores=cores, notice=_notice)


def finish(report: SessionReport, as_json: bool) -> None:
    """Print the report; status 130 where the user interrupted, 1 where something failed."""
    if as_json:
        print_json(_as_dict(report))
    _conclude({"": report}, as_json)


def finish_all(reports: Mapping[str, SessionReport], as_json: bool) -> None:
    """As `finish`, for the sessions of an appliance by name."""
    if as_json:
        print_json({name: _as_dict(report) for name, report in reports.items()})
    _conclude(reports, as_json)


def _as_dict(report: SessionReport) -> dict[str, Any]:
    return {"session": report.header, "summary": report.summary, "timing": report.timing}


def _conclude(reports: Mapping[str, SessionReport], as_json: bool) -> None:
    for name, report in reports.items():
        if not as_json:
            if name:
                console.rule(name)
            print_report(report, console)
        for remark in report.summary["remarks"]:
            console.print(f"note: {remark}", style="yellow", markup=False, soft_wrap=True)
    if any(report.ended == "interrupted" for report in reports.values()):
        raise typer.Exit(INTERRUPTED)
    for name, report in reports.items():
        if report.problem:
            sources = ", ".join(report.header["sources"])
            hints = ["see the notes above"] if report.summary["remarks"] else []
            if report.summary["decisions"]:
                hints.append("what was decided is written")
            raise FusedgeError(
                f"ran to the end, but {report.problem}",
                where=f"{name}: {sources}" if name else sources,
                hint="; ".join(hints),
            )
