"""What every ONNX graph of a bundle must satisfy, whichever stage made it."""

from __future__ import annotations

import onnx

from fusedge.bundle.errors import FusedgeError
from fusedge.export.part import ModulePart


def check_graph(model: onnx.ModelProto, part: ModulePart, stage: str) -> None:
    """Check a graph and that its inputs and outputs are the part's, batch free, float32.

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
        found = [_described(value) for value in values]
        wanted = [(spec.name, onnx.TensorProto.FLOAT, list(spec.shape)) for spec in specs]
        if found != wanted:
            odd = next((f for f in found if f not in wanted), None)
            lost = next((w for w in wanted if w not in found), None)
            raise FusedgeError(
                f"{kind}s differ from the part: found {odd or 'another order'}, "
                f"wanted {lost or 'the given order'}",
                where=where,
                hint="an unused input is dropped, and code that depends on the batch fixes it",
            )


def _described(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    tensor = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return value.name, tensor.elem_type, shape
