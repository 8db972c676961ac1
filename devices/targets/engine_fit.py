"""For which device and version of TensorRT an engine of a bundle is."""

from __future__ import annotations

import re

from fusedge.bundle.manifest import Engine


def version_number(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, for comparisons: (10, 3, 0) of `10.3.0.30`."""
    return tuple(int(number) for number in re.findall(r"\d{1,9}", version)[:3])


def is_for_gpu(engine: Engine, capability: str) -> bool:
    """Whether it is for GPUs of this compute capability. A hardware-compatible engine is for Ampere (8.0)
    and all that came after.
    """
    later = "AMPERE_PLUS" in engine.flags and float(capability) >= 8.0
    return later or capability in engine.compute_capabilities


def is_for_version(engine: Engine, installed: str) -> bool:
    """Whether this version of its TensorRT loads it: the one that built it, or all later ones too.

    TensorRT-RTX says itself which engines it can load.
    """
    if engine.flavour != "tensorrt":
        return True
    built, here = version_number(engine.version), version_number(installed)
    return here >= built if "VERSION_COMPATIBLE" in engine.flags else here == built


def dla_core(engine: Engine) -> int | None:
    """The DLA core that it was built to use, None where it runs on the GPU alone."""
    found = re.search(r"\bDLA=(\d)\b", " ".join(engine.flags))
    return int(found[1]) if found else None
