"""A module that is no fusion model becomes one part, of kind `model`, from an example of its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import BATCH, DimRange, Dtype, TensorSpec
from fusedge.export.part import ModulePart, concrete_shape

Example = Mapping[str, NDArray[Any]]
_NO_AXES: Mapping[str, Sequence[str | int]] = MappingProxyType({})
_NO_DIMS: Mapping[str, DimRange] = MappingProxyType({})
_BATCHES = (2, 3)  # at which outputs are looked at; 1 would hide a batch that is a constant


class _Plain(nn.Module):
    """The module with its inputs in order and its outputs flat."""

    def __init__(self, model: nn.Module, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, tuple(inputs)

    def named(self, *tensors: Tensor) -> list[tuple[str, Tensor]]:
        """The outputs with their names, which differ from each other and from the inputs'."""
        named: dict[str, Tensor] = {}
        outputs = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        for name, tensor in _flat("", outputs):
            if name in self.inputs:
                name = f"{name}.out"
            while name in named or name in self.inputs:
                name = f"{name}.1"
            named[name] = tensor
        return list(named.items())

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor for _, tensor in self.named(*tensors))


def plain_part(
    module: nn.Module,
    example: Example,
    name: str = "model",
    axes: Mapping[str, Sequence[str | int]] = _NO_AXES,
    dims: Mapping[str, DimRange] = _NO_DIMS,
) -> ModulePart:
    """The part of a module in evaluation mode; `example` has an array for each input by name.

    Inputs are called as `forward`'s parameters; outputs as the keys or fields of what it returns, else
    `output`, `output.1` and so on. The first dim of every input and output is the batch. The others are
    fixed at the example's sizes, unless `axes` names the dims of an input, such as
    `{"ids": ("batch", "tokens")}`, and `dims` gives the range of each name. `dims` may give that of
    `batch` too.

    Raises FusedgeError where the example does not fit the module, or what it returns cannot be the
    output of a graph.
    """
    where = f"part {name}"
    inputs = _parameters(module, example, where)
    if unknown := next((key for key in axes if key not in inputs), None):
        raise UnknownNameError("input", unknown, inputs)
    step = _Plain(module, inputs)
    part = ModulePart(
        name=name,
        kind="model",
        modality=None,
        rate_hz=None,
        module=step,
        inputs=tuple(_input(key, example[key], axes.get(key), where) for key in inputs),
        outputs=(),
    )
    part = replace(part, dims=_ranges(part.inputs, example, dims, where))
    return replace(part, outputs=_outputs(part, step, example, where))


def _parameters(module: nn.Module, example: Example, where: str) -> list[str]:
    """The inputs that the example has, in the order of `forward`."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [p for p in parameters if p.kind in kinds]
    if unknown := next((key for key in example if key not in [p.name for p in known]), None):
        raise UnknownNameError("input of the example", unknown, [p.name for p in known])
    for parameter in known:
        if parameter.default is inspect.Parameter.empty and parameter.name not in example:
            raise FusedgeError(
                f"the example has no array {parameter.name!r}, which forward takes",
                where=where,
                hint=f"np.savez(FILE, {', '.join(f'{p.name}=...' for p in known)})",
            )
    if not example:
        raise FusedgeError("the example has no arrays", where=where)
    return [p.name for p in known if p.name in example]


def _input(
    name: str, values: NDArray[Any], axes: Sequence[str | int] | None, where: str
) -> TensorSpec:
    where = f"{where}, input {name}"
    dtype = _dtype(str(values.dtype), where, f"convert the example: {name}.astype(np.float32)")
    if values.ndim == 0 or 0 in values.shape:
        raise FusedgeError(
            f"the example has shape {list(values.shape)}",
            where=where,
            hint="the first dim is the batch, and each dim has at least 1",
        )
    shape = tuple(axes) if axes else ("batch", *values.shape[1:])
    fits = len(shape) == values.ndim and shape[0] == "batch" and "batch" not in shape[1:]
    if not fits or any(
        isinstance(dim, int) and dim != size for dim, size in zip(shape, values.shape, strict=True)
    ):
        raise FusedgeError(
            f"the axes {', '.join(map(str, shape))} do not fit the example's shape "
            f"{list(values.shape)}",
            where=where,
            hint="a name or the example's size for each dim, `batch` for the first",
        )
    return _spec(name, "input", dtype, shape, where)


def _dtype(found: str, where: str, hint: str) -> Dtype:
    for dtype in get_args(Dtype):
        if found == dtype:
            return dtype  # type: ignore[no-any-return]  # get_args knows no types
    raise FusedgeError(
        f"{found} is not one of {', '.join(get_args(Dtype))}", where=where, hint=hint
    )


def _spec(name: str, role: Any, dtype: Dtype, shape: Sequence[str | int], where: str) -> TensorSpec:
    try:
        return TensorSpec(name=name, role=role, dtype=dtype, shape=tuple(shape))
    except ValidationError as error:
        raise FusedgeError(f"{name!r}: {error.errors()[0]['msg']}", where=where) from None


def _ranges(
    inputs: Sequence[TensorSpec], example: Example, dims: Mapping[str, DimRange], where: str
) -> dict[str, DimRange]:
    """The range of each named dim, within which the example must lie."""
    used = list(dict.fromkeys(dim for spec in inputs for dim in spec.shape if isinstance(dim, str)))
    if unknown := next((name for name in dims if name not in used), None):
        raise UnknownNameError("dim", unknown, used)
    ranges = {"batch": BATCH, **dims}
    sizes: dict[str, int] = {}
    for spec in inputs:
        for dim, size in zip(spec.shape, example[spec.name].shape, strict=True):
            if not isinstance(dim, str):
                continue
            if dim not in ranges:
                raise FusedgeError(
                    f"the dim {dim} of {spec.name} has no range",
                    where=where,
                    hint=f"give its least, usual and greatest size: --dim {dim}=1:{size}:{size}",
                )
            bounds = ranges[dim]
            if dim != "batch" and bounds.least == bounds.greatest:
                raise FusedgeError(
                    f"the dim {dim} of {spec.name} has one size only, {bounds.least}, so it is not free",
                    where=where,
                    hint=f"leave it out: --axes {spec.name}=... with {size} in place of {dim}",
                )
            if sizes.setdefault(dim, size) != size:
                raise FusedgeError(
                    f"the example's inputs have {sizes[dim]} and {size} for the dim {dim}",
                    where=f"{where}, input {spec.name}",
                )
            if dim != "batch" and not bounds.least <= size <= bounds.greatest:
                raise FusedgeError(
                    f"the example's {size} is not within {bounds.least} to {bounds.greatest}, the "
                    f"range of the dim {dim}",
                    where=f"{where}, input {spec.name}",
                )
    return {dim: ranges[dim] for dim in used}


def _outputs(
    part: ModulePart, step: _Plain, example: Example, where: str
) -> tuple[TensorSpec, ...]:
    """Specs of the outputs, from how their shapes follow the sizes of the named dims."""
    usual = {name: dim.usual for name, dim in part.dims.items()} | {"batch": _BATCHES[0]}
    base = _run(part, step, example, usual, where)
    shapes: list[list[str | int]] = [list(tensor.shape) for _, tensor in base]
    for dim, bounds in part.dims.items():
        other = _BATCHES[1] if dim == "batch" else bounds.least
        if dim != "batch" and other == usual[dim]:
            other = bounds.greatest
        moved = _run(part, step, example, usual | {dim: other}, where)
        for shape, (name, one), (_, two) in zip(shapes, base, moved, strict=True):
            for axis, (was, now) in enumerate(zip(one.shape, two.shape, strict=True)):
                if was != now:
                    same = (was, now) == (usual[dim], other)
                    # A size that only follows from a named dim is free under a name of its own.
                    shape[axis] = dim if same else f"{name}.{axis}"
    specs = []
    for (name, tensor), shape in zip(base, shapes, strict=True):
        place = f"{where}, output {name}"
        if shape[:1] != ["batch"]:
            raise FusedgeError(
                f"has the shape {list(tensor.shape)} for a batch of {_BATCHES[0]}, without the batch "
                "as its first dim",
                where=place,
                hint="wrap the module in one that returns only what is used",
            )
        dtype = _dtype(
            str(tensor.dtype).removeprefix("torch."),
            place,
            "wrap the module in one that converts it",
        )
        specs.append(_spec(name, "output", dtype, shape, place))
    return tuple(specs)


def _run(
    part: ModulePart, step: _Plain, example: Example, sizes: Mapping[str, int], where: str
) -> list[tuple[str, Tensor]]:
    """The named outputs for the example, repeated or cut to these sizes."""
    tensors = []
    for spec in part.inputs:
        values = example[spec.name]
        for axis, size in enumerate(concrete_shape(spec, sizes)):
            values = np.take(values, np.arange(size) % values.shape[axis], axis)
        tensors.append(torch.from_numpy(np.ascontiguousarray(values)))
    shapes = ", ".join(
        f"{s.name} {list(t.shape)}" for s, t in zip(part.inputs, tensors, strict=True)
    )
    try:
        with torch.no_grad():
            outputs = step.named(*tensors)
    except FusedgeError as error:
        raise FusedgeError(error.what, where=where, hint=error.hint) from None
    except Exception as error:  # the user's own code
        raise FusedgeError(
            f"the module fails on {shapes}: {type(error).__name__}: {error}", where=where
        ) from error
    if not outputs:
        raise FusedgeError("the module returns no tensor", where=where)
    return outputs


def _flat(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors of what a module returns, in order, with their names."""
    if isinstance(value, Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), item)
    elif is_dataclass(value):
        for entry in fields(value):
            yield from _flat(
                f"{name}.{entry.name}" if name else entry.name, getattr(value, entry.name)
            )
    elif isinstance(value, tuple | list):
        keys = getattr(value, "_fields", None)
        for index, item in enumerate(value):
            if keys:
                yield from _flat(f"{name}.{keys[index]}" if name else keys[index], item)
            else:
                yield from _flat(f"{name or 'output'}.{index}" if index else name or "output", item)
    elif value is not None:
        raise FusedgeError(
            f"the module returns a {type(value).__name__}{' as ' + name if name else ''}",
            hint="wrap it in a module that returns tensors only",
        )
