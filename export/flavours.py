"""The two TensorRT flavours behind one door: which one is here, and is it one that we can drive.

`tensorrt` (JetPack, data centre, desktop) builds for the GPU of the machine, `tensorrt_rtx` for any
desktop RTX GPU without having one. Their Python interfaces are the same in all that we use.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, NamedTuple

from fusedge.bundle.errors import FusedgeError, MissingExtraError


class _Flavour(NamedTuple):
    package: str
    extra: str
    least_version: tuple[int, int]


# Strong typing, on which we rely, came with TensorRT 8.6; its ONNX parser is whole from 10 on.
_FLAVOURS = {
    "tensorrt": _Flavour("tensorrt", "tensorrt", (10, 0)),
    "tensorrt_rtx": _Flavour("tensorrt-rtx", "rtx", (1, 0)),
}


def check_installed(flavour: str) -> None:
    """Raise MissingExtraError unless the flavour's package is installed; imports nothing."""
    if importlib.util.find_spec(flavour) is None:
        raise MissingExtraError(
            _FLAVOURS[flavour].package, _FLAVOURS[flavour].extra, "building engines"
        )


def load(flavour: str) -> Any:
    """The imported TensorRT module of a flavour; raises FusedgeError where it is missing or too old."""
    check_installed(flavour)
    trt = importlib.import_module(flavour)
    major, minor = (int(number) for number in trt.__version__.split(".")[:2])
    least = _FLAVOURS[flavour].least_version
    if (major, minor) < least:
        raise FusedgeError(
            f"{flavour} {trt.__version__} is too old",
            hint=f"version {least[0]}.{least[1]} or newer is needed",
        )
    return trt
