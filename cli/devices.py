"""`fusedge devices`: what this machine computes with, and what it hears, sees and feels with."""

from __future__ import annotations

from rich.table import Table

from fusedge.bundle.errors import printable
from fusedge.cli.console import console, print_json
from fusedge.cli.options import JsonOption
from fusedge.devices.capture.listing import Inputs, list_inputs
from fusedge.devices.targets.detect import Machine, detect

GIB = 1 << 30
MAX_FORMATS = 8  # of a camera, on a screen


def devices(as_json: JsonOption = False) -> None:
    """Show what this machine has to run and build bundles with, and its inputs.

    Processor, GPU, providers, TensorRT; cameras, microphones, CAN interfaces, serial ports and IMUs, each
    with its formats and the URI for `fusedge run --source`. The URI names a device by what stays the
    same when others are plugged in. What cannot be read is shown as unknown; nothing is guessed.
    """
    machine, inputs = detect(), list_inputs()
    if as_json:
        found = [device._asdict() for device in inputs.devices]
        print_json(
            {**machine.model_dump(mode="json"), "inputs": found, "input_notes": inputs.notes}
        )
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


def _rows(machine: Machine) -> list[tuple[str, str | None]]:
    memory = machine.memory_bytes
    rows = [
        ("processor", machine.processor),
        ("architecture", machine.architecture),
        ("cores", f"{machine.cores or 'unknown'}, of which usable here {machine.usable_cores}"),
        ("memory", f"{memory / GIB:.1f} GiB" if memory else None),
        ("system", machine.os),
        ("Python", machine.python),
    ]
    if machine.jetson:
        rows.append(("Jetson", f"{machine.jetson.model}, L4T {machine.jetson.l4t or 'unknown'}"))
    for gpu in machine.gpus:
        size = f", {gpu.memory_bytes / GIB:.1f} GiB" if gpu.memory_bytes else ""
        rows.append(("GPU", f"{gpu.name}{size}, compute {gpu.compute_capability or 'unknown'}"))
    if machine.gpu_driver:
        rows.append(("GPU driver", machine.gpu_driver))
    flavours = ", ".join(f"{name} {version}" for name, version in machine.tensorrt.items())
    providers = ", ".join(machine.onnxruntime_providers)
    return [
        *rows,
        (
            "GPUs" if machine.gpus else "GPU",
            machine.gpu_note if machine.gpus else f"none: {machine.gpu_note}",
        ),
        ("ONNX Runtime", machine.onnxruntime or f"none: {machine.onnxruntime_note}"),
        ("providers", providers or "none"),
        ("TensorRT", flavours or "none installed"),
        ("torch", machine.torch or "not installed (needed for export and training only)"),
    ]
