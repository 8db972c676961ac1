"""What every ONNX graph of a bundle must satisfy, whichever stage made it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import onnx

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import TensorSpec

if TYPE_CHECKING:
    from fusedge.export.part import ModulePart  # takes torch, which counting a graph does not need

_DTYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "uint8": onnx.TensorProto.UINT8,
    "int32": onnx.TensorProto.INT32,
    "int64": onnx.TensorProto.INT64,
    "bool": onnx.TensorProto.BOOL,
}


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a loop or branch."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def values_read(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node and its bodies take as inputs, those made inside of the bodies among them."""
    yield from node.input
    for graph in inner_graphs(node):
        for inner in graph.node:
            yield from values_read(inner)
        yield from (value.name for value in graph.output)


def check_graph(model: onnx.ModelProto, part: ModulePart, stage: str) -> None:
    """Check a graph and that its inputs and outputs are the part's, with the same dims free.

    An output may have free dims of its own, that follow from those of the inputs.

    Raises FusedgeError that names the part, the stage and the first tensor at fault.
    """
    where = f"part {part.name}, {stage}"
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise FusedgeError(f"the graph is not valid ONNX: {error}", where=where) from None
    for kind, values, specs in (
        ("input", model.graph.input, part.inputs),
        ("output", model.graph.output, part.outputs),
    ):
        found = [_described(value, part) for value in values]
        wanted = [_wanted(spec, part) for spec in specs]
        if found != wanted:
            odd = next((f for f in found if f not in wanted), None)
            lost = next((w for w in wanted if w not in found), None)
            raise FusedgeError(
                f"{kind}s differ from the part: found {odd or 'another order'}, "
                f"wanted {lost or 'the given order'}",
                where=where,
                hint="an unused input is dropped, and code that depends on a free dim fixes it: "
                "use x.shape[0], not len(x)",
            )


def _described(value: onnx.ValueInfoProto, part: ModulePart) -> tuple[str, str, list[int | str]]:
    tensor = value.type.tensor_type
    dtype = next((name for name, number in _DTYPES.items() if number == tensor.elem_type), "other")
    dims = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim
    ]
    return value.name, dtype, _known(dims, part)


def _wanted(spec: TensorSpec, part: ModulePart) -> tuple[str, str, list[int | str]]:
    return spec.name, spec.dtype, _known(spec.shape, part)


def _known(dims: Iterable[int | str], part: ModulePart) -> list[int | str]:
    """Dims that the part does not name are only free."""
    return ["free" if isinstance(dim, str) and dim not in part.dims else dim for dim in dims]
