"""`fusedge devices`: what this machine computes with, and what it hears, sees and feels with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.table import Table

from fusedge.bundle.errors import FusedgeError, printable
from fusedge.cli.console import console, print_json
from fusedge.cli.devices_targets import list_targets
from fusedge.cli.devices_watch import watch_machine
from fusedge.cli.options import JsonOption
from fusedge.devices.capture.listing import Inputs, list_inputs
from fusedge.devices.targets.detection.detect import detect
from fusedge.devices.targets.detection.machine import Machine
from fusedge.devices.targets.detection.machine_target import gpu_here, machine_target

GIB = 1 << 30
MAX_FORMATS = 8  # of a camera, on a screen


def devices(
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Show temperatures, clocks, power, memory, load and throttling every second instead.",
        ),
    ] = False,
    count: Annotated[
        int, typer.Option(min=0, help="Watch, and end after so many readings; 0: at Ctrl-C.")
    ] = 0,
    targets: Annotated[
        bool,
        typer.Option(
            "--targets", help="List all devices that a bundle can be planned for instead, by name."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what this machine has to run and build bundles with, and its inputs.

    Its name as a target for `fusedge plan`, processor, GPU, power mode, providers, TensorRT; cameras,
    microphones, CAN interfaces, serial ports and IMUs, each with its formats and the URI for
    `fusedge run --source`. The URI names a device by what stays the same when others are plugged in.
    What cannot be read is shown as unknown; nothing is guessed.
    """
    if watch or count:
        watch_machine(count, as_json)
        return
    if targets:
        list_targets(as_json)
        return
    machine, inputs = detect(), list_inputs()
    if as_json:
        found = [device._asdict() for device in inputs.devices]
        told = {**machine.model_dump(mode="json"), "target": _target(machine)}
        print_json({**told, "inputs": found, "input_notes": inputs.notes})
        return
    table = Table(show_header=False)
    for name, value in _rows(machine):
        table.add_row(name, value or "unknown")
    console.print(table, markup=False)
    _print_inputs(inputs)


def _print_inputs(inputs: Inputs) -> None:
    for device in inputs.devices:
        note = f" ({device.note})" if device.note else ""
        console.print(
            f"{device.kind}: {printable(device.name)}{printable(note)}",
            markup=False,
            soft_wrap=True,
        )
        console.print(f"  {printable(device.uri)}", style="bold", markup=False, soft_wrap=True)
        for line in device.formats[:MAX_FORMATS]:
            console.print(f"  {printable(line)}", style="dim", markup=False, soft_wrap=True)
        if (more := len(device.formats) - MAX_FORMATS) > 0:
            console.print(f"  and {more} more, see --json", style="dim")
    if not inputs.devices:
        console.print("inputs: no camera, microphone, CAN interface, serial port or IMU")
    for note in inputs.notes:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


def _target(machine: Machine) -> str | None:
    """Its name for `--target`, None where several kinds of GPU leave a choice."""
    try:
        return machine_target(machine).name
    except FusedgeError:
        return None


def _rows(machine: Machine) -> list[tuple[str, str | None]]:
    return [
        ("target", _target(machine) or "one of those of its GPUs, below"),
        *_processor_rows(machine),
        ("system", machine.os),
        *([("container", machine.container)] if machine.container else []),
        ("Python", machine.python),
        *_board_rows(machine),
        *_gpu_rows(machine),
        ("ONNX Runtime", machine.onnxruntime or f"none: {machine.onnxruntime_note}"),
        ("providers", ", ".join(machine.onnxruntime_providers) or "none"),
        ("TensorRT", _tensorrt(machine)),
        ("torch", machine.torch or "not installed (needed for export and training only)"),
    ]


def _processor_rows(machine: Machine) -> Iterator[tuple[str, str | None]]:
    yield "processor", machine.processor
    for kind in machine.core_kinds:
        if kind.max_mhz:
            clock = f"at most {kind.max_mhz:.0f} MHz"
        else:
            clock = f"{kind.mhz:.0f} MHz now" if kind.mhz else "clock unknown"
        yield "cores", f"{kind.count} x {kind.processor or f'unknown kind ({kind.kind})'}, {clock}"
    quota = f", for {machine.cpu_quota:g} cores' time" if machine.cpu_quota else ""
    yield "usable cores", f"{machine.usable_cores or 'unknown'} of {machine.cores}{quota}"
    yield "extensions", ", ".join(machine.cpu_flags) or None
    yield "architecture", machine.architecture
    total, usable = machine.memory_bytes, machine.usable_memory_bytes
    limit = f", of which usable {usable / GIB:.1f} GiB" if usable and usable != total else ""
    yield "memory", f"{total / GIB:.1f} GiB{limit}" if total else None


def _board_rows(machine: Machine) -> Iterator[tuple[str, str | None]]:
    jetson = machine.jetson
    if jetson is None:
        if machine.board:
            yield "board", machine.board.model
        return
    yield "Jetson", jetson.model
    part = f"part {jetson.part}" if jetson.part else None
    unlisted = (part and f"{part}, in no table", jetson.soc)
    module = (jetson.module, part) if jetson.module else unlisted
    yield "module", ", ".join(each for each in module if each) or None
    yield "JetPack", f"{jetson.jetpack or 'unknown'}, L4T {jetson.l4t or 'unknown'}"
    others = ", ".join(jetson.power_modes)
    yield "power mode", f"{jetson.power_mode or 'unknown'}, of {others}" if others else None
    if jetson.gpu_max_mhz:
        yield "GPU clock", f"at most {jetson.gpu_max_mhz:.0f} MHz now"


def _gpu_rows(machine: Machine) -> Iterator[tuple[str, str | None]]:
    for gpu in [each for whole in machine.gpus for each in (whole, *whole.instances)]:
        size = f", {gpu.memory_bytes / GIB:.1f} GiB" if gpu.memory_bytes else ""
        split = ", split into instances (MIG)" if gpu.mig else ""
        target = "" if gpu.mig or machine.jetson else f", target {gpu_here(gpu, machine).name}"
        capability = gpu.compute_capability or "unknown"
        yield "GPU", f"{gpu.name}{size}, compute {capability}{split}{target}"
    if machine.gpu_driver:
        yield "GPU driver", machine.gpu_driver
    if machine.gpus:
        yield "GPUs", machine.gpu_note
    elif machine.jetson is None:
        yield "GPU", f"none: {machine.gpu_note}"


def _tensorrt(machine: Machine) -> str:
    """The flavours of this Python; JetPack's is for the system's own one."""
    found = [f"{name} {version}" for name, version in machine.tensorrt.items()]
    system = machine.tensorrt_system
    if system and "tensorrt" not in machine.tensorrt:
        found.append(f"the system's {system.version} {system.unseen(machine.python)}")
    return "; ".join(found) or "none installed"
