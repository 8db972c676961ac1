"""`fusedge devices`: what this machine has."""

from __future__ import annotations

from rich.table import Table

from fusedge.cli.console import console, print_json
from fusedge.cli.options import JsonOption
from fusedge.devices.targets.detect import Machine, detect

GIB = 1 << 30


def devices(as_json: JsonOption = False) -> None:
    """Show what this machine has to run and build bundles with: processor, GPU, providers, TensorRT.

    What cannot be read is shown as unknown; nothing is guessed.
    """
    machine = detect()
    if as_json:
        print_json(machine.model_dump(mode="json"))
        return
    table = Table(show_header=False)
    for name, value in _rows(machine):
        table.add_row(name, value or "unknown")
    console.print(table, markup=False)


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
