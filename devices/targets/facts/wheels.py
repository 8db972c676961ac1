"""Which wheels of ONNX Runtime exist for a machine."""

from __future__ import annotations

from fusedge.devices.targets.facts.engine_fit import version_number
from fusedge.devices.targets.facts.rows import JetPack, Wheel
from fusedge.devices.targets.facts.table import onnxruntime_wheels


def wheels_for(
    architecture: str, python: str, *, package: str | None = None, jetpack: JetPack | None = None
) -> list[Wheel]:
    """Those for Linux on `architecture` (`x86_64`) and `python` (`3.10`), the newest last.

    On a Jetson, with its `jetpack`, these are the ones for the processor alone and those built for its
    CUDA; elsewhere, all others, whose `capabilities` say which GPUs they run on.
    """
    found = [
        wheel
        for wheel in onnxruntime_wheels()
        if wheel.architecture == architecture
        and python in wheel.pythons
        and package in (None, wheel.package)
        and _fits(wheel, jetpack)
    ]
    return sorted(found, key=lambda wheel: version_number(wheel.first))


def _fits(wheel: Wheel, jetpack: JetPack | None) -> bool:
    if jetpack is None:
        return not wheel.jetson
    return wheel.cuda is None or (wheel.jetson and wheel.cuda == jetpack.cuda)
