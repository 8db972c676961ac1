"""The states of a part before its first step, as the manifest and the bundle's files say."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import BundleError
from fusedge.bundle.manifest import Part

ZEROS = "zeros"


def initial_state(bundle: Bundle, part: Part) -> dict[str, NDArray[np.float32]]:
    """By input, float32 `[1, ...]`; raises BundleError where a file does not have the state's size."""
    shapes = {spec.name: spec.shape for spec in part.inputs if spec.role == "state_in"}
    states = {}
    for pair in part.state:
        shape = [1 if isinstance(dim, str) else dim for dim in shapes[pair.input]]
        if pair.initial == ZEROS:
            states[pair.input] = np.zeros(shape, np.float32)
            continue
        values = bundle.read(pair.initial)
        if len(values) != 4 * math.prod(shape):
            raise BundleError(
                f"{pair.initial} has {len(values)} bytes, the state has {math.prod(shape)} numbers",
                where=f"{bundle.path}: part {part.name}, {pair.input}",
            )
        states[pair.input] = np.frombuffer(values, "<f4").astype(np.float32).reshape(shape)
    return states
