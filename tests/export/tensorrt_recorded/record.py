"""Records the Python API of an installed TensorRT, as far as building engines touches it.

`python tests/export/tensorrt_recorded/record.py tensorrt_rtx > rtx_1_7.json`. On a machine with TensorRT, a
record made so replaces the one that was made from documents.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

ENUMS = (
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "DeviceType",
    "HardwareCompatibilityLevel",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParserFlag",
)
CLASSES = (
    "Builder",
    "IAttention",
    "IAttentionInputLayer",
    "IBuilderConfig",
    "ILayer",
    "INetworkDefinition",
    "IOptimizationProfile",
    "ITensor",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
)


def record(flavour: str) -> dict[str, Any]:
    """Members of enumerations and public attributes of classes; what the version lacks is left out."""
    trt = importlib.import_module(flavour)
    found = {name: getattr(trt, name) for name in (*ENUMS, *CLASSES) if hasattr(trt, name)}
    return {
        "flavour": flavour,
        "version": trt.__version__,
        "sources": ["the installed package, by record.py"],
        "enums": {name: sorted(found[name].__members__) for name in ENUMS if name in found},
        "classes": {
            name: sorted(member for member in dir(found[name]) if not member.startswith("_"))
            for name in CLASSES
            if name in found
        },
    }


if __name__ == "__main__":
    print(json.dumps(record(sys.argv[1]), indent=1))
