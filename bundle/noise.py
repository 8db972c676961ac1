"""What a part is fed with to see how long it takes: seeded noise that fits the role of each input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Part, TensorSpec

MAX_INPUT_BYTES = 256 << 20  # a bundle from elsewhere may claim any window


def noise(part: Part, batch: int) -> dict[str, NDArray[Any]]:
    """The inputs by name, the other named dims at their usual sizes; the same each time.

    Raises FusedgeError where they would take more than MAX_INPUT_BYTES.
    """
    sizes = {name: dim.usual for name, dim in part.dims.items()} | {"batch": batch}
    shapes = {spec.name: _shape(spec, sizes) for spec in part.inputs}
    size = sum(math.prod(shapes[spec.name]) * np.dtype(spec.dtype).itemsize for spec in part.inputs)
    if size > MAX_INPUT_BYTES:
        raise FusedgeError(f"not run: its inputs have {size} bytes", where=f"part {part.name}")
    generator = np.random.default_rng(0)
    return {spec.name: _values(spec, shapes[spec.name], generator) for spec in part.inputs}


def least_batch(part: Part) -> int:
    """The least number of rows that the part takes."""
    return part.dims["batch"].least if "batch" in part.dims else 1


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)


def _values(
    spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator
) -> NDArray[Any]:
    """All there, nothing aged, indices that any table has."""
    dtype = np.dtype(spec.dtype)
    if spec.role in ("valid", "presence"):
        return np.ones(shape, dtype)
    if spec.role in ("age", "state_in") or spec.dtype in ("int32", "int64"):
        return np.zeros(shape, dtype)
    if spec.dtype == "float32":
        return generator.standard_normal(shape, np.float32)
    return generator.integers(0, 2 if spec.dtype == "bool" else 256, shape).astype(dtype)
