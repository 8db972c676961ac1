"""For which device and version of TensorRT an engine of a bundle is."""

from __future__ import annotations

import re

from fusedge.bundle.manifest import Engine

# Of Jetsons: hardware compatibility is for graphics cards, and not supported with JetPack (TensorRT's
# developer guide, "Hardware Compatibility").
_JETSONS = frozenset(("8.7", "11.0"))
# Major versions that built a version-compatible engine and that load it, beside the same one. The support
# matrix of TensorRT 11.4.1 ("Engine Portability") rules out all other pairs; the guide of 10.16 had 9 too.
_ACROSS_MAJORS = frozenset(((8, 10), (10, 11)))


def version_number(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, for comparisons: (10, 3, 0) of `10.3.0.30`."""
    return _numbers(version)[:3]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d{1,9}", version)[:4])


def is_for_gpu(engine: Engine, capability: str) -> bool:
    """Whether it is for GPUs of this compute capability. A hardware-compatible engine is for Ampere (8.0)
    and all graphics cards that came after.
    """
    if capability in engine.compute_capabilities:
        return True
    cards = _JETSONS.isdisjoint((capability, *engine.compute_capabilities))
    return cards and "AMPERE_PLUS" in engine.flags and float(capability) >= 8.0


def is_for_version(engine: Engine, installed: str) -> bool:
    """Whether this version of its TensorRT loads it: the one that built it, or if it was built for them
    later ones too, of the same major version and the next.

    All four numbers count: 8.6.1.6 does not load what 8.6.1.2 built (github.com/NVIDIA/TensorRT issue
    3069). Some packages tell but three, and then these. TensorRT-RTX says itself which engines it can load.
    """
    if engine.flavour != "tensorrt":
        return True
    built, here = _numbers(engine.version), _numbers(installed)
    told = min(len(built), len(here))
    built, here = built[:told], here[:told]
    if "VERSION_COMPATIBLE" in engine.flags and here > built:
        return here[0] == built[0] or (built[0], here[0]) in _ACROSS_MAJORS
    return told > 0 and here == built


def dla_core(engine: Engine) -> int | None:
    """The DLA core that it was built to use, None where it runs on the GPU alone."""
    found = re.search(r"\bDLA=(\d)\b", " ".join(engine.flags))
    return int(found[1]) if found else None
