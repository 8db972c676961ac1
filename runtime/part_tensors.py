"""The tensors of a part: whether what was loaded has those of the manifest, and what may be fed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import BundleError, FusedgeError, UnknownNameError
from fusedge.bundle.manifest import DimRange, Part, TensorSpec


class FoundTensor(NamedTuple):
    """An input or output of a loaded part; a free dim is no number."""

    name: str
    dtype: str
    shape: Sequence[Any]


class HasTensors(Protocol):
    """A part of a manifest, or one on its way there."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, in order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives, in order."""


def check_tensors(
    found: Sequence[FoundTensor], specs: Sequence[TensorSpec], kind: str, where: str
) -> None:
    """Raise BundleError where the loaded inputs or outputs (`kind`) are not those of the manifest."""
    wanted = {spec.name: spec for spec in specs}
    if {tensor.name for tensor in found} != set(wanted):
        raise BundleError(
            f"the graph's {kind}s ({', '.join(sorted(t.name for t in found))}) are not those of "
            f"the manifest ({', '.join(sorted(wanted))})",
            where=where,
        )
    for tensor in found:
        spec = wanted[tensor.name]
        fits = len(tensor.shape) == len(spec.shape) and all(
            a == b if isinstance(b, int) else not isinstance(a, int)  # a free dim must be free
            for a, b in zip(tensor.shape, spec.shape, strict=True)
        )
        if tensor.dtype != spec.dtype or not fits:
            raise BundleError(
                f"{kind} {tensor.name} is {tensor.dtype} {list(tensor.shape)}, "
                f"the manifest says {spec.dtype} {list(spec.shape)}",
                where=where,
            )


def check_feeds(part: Part, feeds: Mapping[str, NDArray[Any]]) -> None:
    """Raise FusedgeError where what is fed is not what the part takes: names, dtypes, shapes, sizes."""
    where = f"part {part.name}"
    specs = {spec.name: spec for spec in part.inputs}
    for name in feeds:
        if name not in specs:
            raise UnknownNameError("input", name, specs)
    for name, spec in specs.items():
        if name not in feeds:
            raise FusedgeError(f"input {name} is missing", where=where)
        feed = feeds[name]
        if not isinstance(feed, np.ndarray) or feed.dtype != spec.dtype:
            kind = feed.dtype if isinstance(feed, np.ndarray) else type(feed).__name__
            raise FusedgeError(
                f"input {name} is {kind}", where=where, hint=f"give a numpy array of {spec.dtype}"
            )
    check_shapes(part, {name: feed.shape for name, feed in feeds.items()}, part.dims)


def check_shapes(
    part: HasTensors, shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, DimRange]
) -> None:
    """Raise FusedgeError where shapes are not the part's, with sizes of the named dims in range."""
    where = f"part {part.name}"
    sizes: dict[str, int] = {}
    for spec in part.inputs:
        shape = shapes[spec.name]
        fits = len(shape) == len(spec.shape) and all(
            (sizes.setdefault(dim, size) if isinstance(dim, str) else dim) == size
            for dim, size in zip(spec.shape, shape, strict=True)
        )
        if not fits:
            names = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise FusedgeError(
                f"input {spec.name} has the shape {list(shape)}, it must be {list(spec.shape)}"
                + (f" with {names}" if names else ""),
                where=where,
            )
    for name, size in sizes.items():
        if not dims[name].least <= size <= dims[name].greatest:
            raise FusedgeError(
                f"{name} is {size}, it must be {dims[name].least} to {dims[name].greatest}",
                where=where,
                hint="give another size, or export the part with a wider range",
            )


def shapes_at(part: HasTensors, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The inputs' shapes at these sizes of the named dims."""
    return {
        spec.name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)
        for spec in part.inputs
    }


def rows_at_once(part: HasTensors, dims: Mapping[str, DimRange]) -> int:
    """The greatest batch in these ranges where rows can be computed apart from each other; else 0."""
    tensors = (*part.inputs, *part.outputs)
    by_rows = "batch" in dims and all(spec.shape[:1] == ("batch",) for spec in tensors)
    return dims["batch"].greatest if by_rows else 0


def run_in_pieces(
    run: Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]],
    feeds: Mapping[str, NDArray[Any]],
    greatest: int,
) -> list[NDArray[Any]]:
    """The outputs of `run`, which gets at most `greatest` rows at a time; all at once where that is 0."""
    rows = len(next(iter(feeds.values()))) if greatest else 0
    if rows <= greatest:
        return run(feeds)
    pieces = [
        run({name: feed[at : at + greatest] for name, feed in feeds.items()})
        for at in range(0, rows, greatest)
    ]
    return [np.concatenate(outputs) for outputs in zip(*pieces, strict=True)]


def zeros(part: Part, batch: int) -> dict[str, NDArray[Any]]:
    """Feeds of zeros; named dims but the batch have their usual size, and that its least at least."""
    sizes = {name: dim.usual for name, dim in part.dims.items()}
    if "batch" in sizes:
        sizes["batch"] = max(batch, part.dims["batch"].least)
    shapes = shapes_at(part, sizes)
    return {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in part.inputs}
