"""The inputs of the parity gate for a plain model, made from one example."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import TensorSpec
from fusedge.export.cases import (
    SAME,
    Array,
    Case,
    Feeds,
    answers,
    batches,
    floors_of,
    gap,
    non_finite,
)
from fusedge.export.part import ModulePart, concrete_shape

KINDS = ("example", "zero", "constant", "denormal", "large")
BEYOND_LIMITS = frozenset(["large"])
_LARGE = 10  # times the example
_DENORMAL = 1e-42


def plain_cases(part: ModulePart, example: Feeds) -> list[Case]:
    """The example and its edges, at each batch; the example also at the ends of each named dim.

    Rows and sizes beyond the example's repeat it, floats at another scale in each row and integers moved
    along. Whole numbers stay within the example's least and greatest, for they may be indices. An edge
    on which the model itself fails, is not finite, or is far off its own float64 (as some are on constant
    input, which cancels in a variance) is left out; on the example the first two are a FusedgeError.
    """
    usual = {name: dim.usual for name, dim in part.dims.items()}
    numbers = sum(math.prod(concrete_shape(s, usual | {"batch": 1})) for s in part.inputs)
    tried = batches(part, numbers)
    cases: list[Case] = []
    for batch, every in tried:
        for kind in KINDS if every else KINDS[:1]:
            cases += _cases(part, example, kind, usual | {"batch": batch}, cases)
    for name, dim in part.dims.items():
        for size in sorted({dim.least, dim.greatest} - {dim.usual}):
            if name != "batch":
                sizes = usual | {"batch": tried[1][0], name: size}
                cases += _cases(part, example, "example", sizes, cases)
    return cases


def _cases(
    part: ModulePart, example: Feeds, kind: str, sizes: Mapping[str, int], before: Sequence[Case]
) -> Sequence[Case]:
    """The case of this kind and size, or none; the first before it is the example."""
    told = ", ".join(f"{name} {size}" for name, size in sizes.items())
    name = f"{told}, {kind} input"
    draw = partial(_feeds, part, example, kind, sizes)
    try:
        expected = answers(part, list(draw().values()), name)
    except FusedgeError as error:
        if kind != "example":
            return ()
        for spec in part.inputs:
            if not np.isfinite(example[spec.name]).all():
                raise FusedgeError(
                    f"the example has {non_finite(example[spec.name])}, with which {error.what}",
                    where=f"part {part.name}, input {spec.name}",
                    hint="give numbers that the model gets in use",
                ) from None
        raise
    if kind != "example" and not _stable(part, draw(), expected, before[0].expected):
        return ()
    return (Case(name, draw, expected, within_limits=kind not in BEYOND_LIMITS),)


def _stable(
    part: ModulePart, feeds: Feeds, expected: Sequence[Array], usual: Sequence[Array]
) -> bool:
    """Whether the module in float64 gives the same; where it cannot run so, it is believed.

    `usual` is what it gives for the example, which a difference is measured by.
    """
    inputs = [
        torch.from_numpy(feed.astype(np.float64) if feed.dtype == np.float32 else feed)
        for feed in feeds.values()
    ]
    try:
        with torch.inference_mode():
            exact = copy.deepcopy(part.module).double()(*inputs)
    except Exception:  # the user's code may name a dtype
        return True
    floors = floors_of(part.outputs, [usual, expected])
    return all(
        gap(wanted, found.detach().numpy(), floors[spec.name]) <= SAME
        for spec, wanted, found in zip(part.outputs, expected, exact, strict=True)
    )


def _feeds(part: ModulePart, example: Feeds, kind: str, sizes: Mapping[str, int]) -> Feeds:
    return {spec.name: _input(example[spec.name], kind, spec, sizes) for spec in part.inputs}


def _input(given: Array, kind: str, spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    values = given
    for axis, size in enumerate(concrete_shape(spec, sizes)):
        values = np.take(values, np.arange(size) % values.shape[axis], axis)
    if not np.issubdtype(values.dtype, np.floating):
        edge = {"zero": given.min(), "constant": given.max(), "large": given.max()}.get(kind)
        if edge is not None:
            return np.full_like(values, edge)
        moved = [
            np.roll(row, i // len(given), -1) if row.ndim else row for i, row in enumerate(values)
        ]
        return np.stack(moved)
    if kind in ("example", "large"):
        rows = np.arange(len(values)) // len(given)
        scale = 0.9**rows * (_LARGE if kind == "large" else 1)
        scaled = values.astype(np.float64) * scale.reshape(-1, *[1] * (values.ndim - 1))
        return scaled.astype(values.dtype)
    level = {"zero": 0.0, "constant": float(given.mean()), "denormal": _DENORMAL}[kind]
    return np.full_like(values, level)
