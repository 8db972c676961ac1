"""`fusedge plan`: will a bundle run on a device, how fast, and at which power mode, without the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import GRAPH_PRECISIONS, Manifest
from fusedge.bundle.signature import SignatureState, signature_state
from fusedge.cli.console import console, print_json
from fusedge.cli.options import AllowEnginesOption, BundleArgument, JsonOption
from fusedge.cli.tasks import find_bundle
from fusedge.export.packages import needs_extra
from fusedge.runtime.backend import AUTO, BACKENDS

if TYPE_CHECKING:
    from fusedge.devices.targets.calibration.profile import Profile
    from fusedge.devices.targets.detection.machine import Machine
    from fusedge.export.target_plan import Device

_HERE = ("local", "cpu")


def plan(
    bundle: BundleArgument,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as rtx-4090, or jetson-orin-nano-8gb:15W with the power mode; several times for a "
            "row each. cpu is the processor here. Default: local, the GPU here, or else the processor."
        ),
    ] = None,
    jetpack: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Of a Jetson, such as 6.2; default: the newest for it."
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="What is to run the parts: native is TensorRT engines, onnx is ONNX Runtime, auto is "
            "engines where there can be any."
        ),
    ] = AUTO,
    precision: Annotated[
        str,
        typer.Option(help="fp32, fp16, bf16, int8 or mixed. auto: as build and run take it."),
    ] = AUTO,
    dla: Annotated[bool, typer.Option("--dla", help="With engines for a DLA of a Jetson.")] = False,
    streams: Annotated[
        int, typer.Option(min=1, max=64, help="Sessions at a time, as in a file of pipelines.")
    ] = 1,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Rows of a run of a plain model; default: as usual.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="What fusedge bench wrote on such a device. Default: for local and cpu, what it measured "
            "here; else efficiencies from a table."
        ),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit", help="Propose precision, rates and streams that keep to --load and --latency."
        ),
    ] = False,
    load: Annotated[
        float,
        typer.Option(min=0.1, max=100, metavar="PERCENT", help="Most of the device, for --fit."),
    ] = 60.0,
    latency: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="MS",
            help="Longest time of a decision at worst, for --fit; default: one decision period.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Picture of the fit in all power modes; means --fit."),
    ] = None,
    allow_unsigned_engines: AllowEnginesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Plan a bundle for a device that need not be here.

    Says whether it will run there, and the way out of what is against it; the memory that it takes; how
    long each part takes and why; the load of the device, the latency and the energy of a decision. All
    are estimates, with the error that is expected of them. With `--fit`, each power mode of a Jetson gets
    a row with what keeps to the limits, and the one of fewest watts is recommended.

    The exit status is 0 if the bundle will run on each target (and something fits), else 1.

    Examples:

    - `fusedge plan driving --target jetson-orin-nano-8gb:15W`
    - `fusedge plan driving --target rtx-4090 --target raspberry-pi-5-8gb`
    - `fusedge plan my.fusedge --target jetson-orin-nx-16gb --jetpack 6.2 --fit --plot plan.png`
    - `fusedge plan my.fusedge --target jetson-agx-orin-64gb --profile orin.json --fit --streams 4`
    """
    opened = find_bundle(bundle)
    manifest = opened.manifest
    _check(manifest, backend, precision, batch, plot)
    with needs_extra("plan", "counting what a bundle computes"):
        from fusedge.cli.plan_report import TargetRow, fit_as_dict, print_fit, print_row, print_rows
        from fusedge.devices.targets.calibration.profile import load_profile
        from fusedge.devices.targets.planning.fit import Limits
        from fusedge.devices.targets.planning.fit import fit as propose
        from fusedge.export.target_plan import Asked, Works, fit_modes, plan_target
    if plot is not None:
        from fusedge.cli.plan_plot import draw_fit

    trusted = allow_unsigned_engines or signature_state(opened) is SignatureState.TRUSTED
    asked = Asked(backend, precision, dla, streams, batch, trusted)
    measured = load_profile(profile) if profile else None
    devices = _devices(target or ["local"], jetpack, measured)
    works = Works(opened)
    with console.status("count what the parts compute"):
        rows = [TargetRow(manifest, plan_target(works, device, asked)) for device in devices]
        found = None
        if (fit or plot) and any(row.will_run for row in rows):
            limits = Limits(load / 100, None if latency is None else latency / 1000)
            running = [row.planned.device for row in rows if row.will_run]
            modes = [mode for device in running for mode in fit_modes(works, device, asked)]
            found = propose(manifest, modes, limits, streams=streams)
    if plot is not None and found is not None:
        title = f"{manifest.name} on {', '.join(device.target.name for device in running)}"
        draw_fit(found, title, plot)
    if as_json:
        print_json(
            {
                "bundle": str(opened.path),
                "sha256": opened.sha256,
                "targets": [row.as_dict() for row in rows],
                "fit": None if found is None else fit_as_dict(found),
            }
        )
    elif len(rows) == 1:
        print_row(rows[0])
    else:
        print_rows(rows)
    if found is not None and not as_json:
        print_fit(found)
        if plot is not None:
            console.print(f"wrote {plot}", markup=False, soft_wrap=True)
    for row in rows if fit or plot else ():
        if not row.will_run:
            name = row.planned.device.target.name
            console.print(f"{name}: no fit: it will not run", markup=False, soft_wrap=True)
    if plot is not None and found is None:
        console.print(f"no picture: {plot} is not written", markup=False, soft_wrap=True)
    if not all(row.will_run for row in rows) or (found is not None and found.recommended is None):
        raise typer.Exit(1)


def _check(
    manifest: Manifest, backend: str, precision: str, batch: int | None, plot: Path | None
) -> None:
    """Raises FusedgeError for options that are wrong by themselves."""
    known = (AUTO, *GRAPH_PRECISIONS)
    if precision not in known:
        raise UnknownNameError("precision", precision, known)
    if backend not in BACKENDS:
        raise UnknownNameError("backend", backend, BACKENDS)
    if batch is not None:
        if manifest.fusion is not None:
            raise FusedgeError(
                "the batch of a fusion model follows from its streams", hint="--streams N"
            )
        bounds = manifest.parts[0].dims.get("batch")
        if bounds is None or not bounds.least <= batch <= bounds.greatest:
            allowed = f"takes {bounds.least} to {bounds.greatest}" if bounds else "has no batch"
            raise FusedgeError(f"a batch of {batch} cannot be: the model {allowed}")
    if plot is not None and plot.suffix != ".png":
        raise FusedgeError("is no name for the picture", where=str(plot), hint="--plot NAME.png")


def _devices(names: list[str], jetpack: str | None, measured: Profile | None) -> list[Device]:
    """The targets with the software on them, and what was measured there."""
    from fusedge.devices.targets.detection.detect import detect
    from fusedge.devices.targets.detection.local import resolve_target
    from fusedge.devices.targets.detection.machine_target import local_cpu
    from fusedge.devices.targets.facts.table import find_target, jetpacks
    from fusedge.devices.targets.preflight.software import software_of
    from fusedge.export.target_plan import Device, check_profile, kept_profile, own_modes

    machine: Machine | None = None
    devices = []
    for name in dict.fromkeys(names):
        if name.partition(":")[0] in _HERE:
            machine = machine or detect()
            target = resolve_target(name, machine)
            target = replace(target, name=target.device)  # a fit is for all of its power modes
            software = software_of(target, jetpack, machine)
            modes = {} if jetpack else own_modes(machine, target)  # another JetPack brings its own
            processor, kept = local_cpu(machine).compute, None
            try:
                kept = kept_profile(machine)
            except FusedgeError as error:
                console.print(f"warning: {error}; it is not used", style="yellow", markup=False)
            device = Device(target, software, kept, processor, modes)
        else:
            release = jetpacks().get(jetpack or "")
            target = find_target(name, jetpack=release)
            device = Device(target, software_of(target, jetpack, None))
        if measured is not None:
            check_profile(measured, target)
            device = replace(device, profile=measured)
        devices.append(device)
    return devices
