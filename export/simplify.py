"""Third stage: fold constants and remove what does nothing, by onnxslim."""

from __future__ import annotations

import onnx
import onnxslim

from fusedge.bundle.errors import FusedgeError
from fusedge.export.graph import check_graph
from fusedge.export.part import ModulePart


def simplify(model: onnx.ModelProto, part: ModulePart) -> onnx.ModelProto:
    """A smaller graph with the same inputs and outputs; `model` is left as it is.

    Raises FusedgeError where onnxslim fails or changes the part's interface.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        slim: onnx.ModelProto = onnxslim.slim(copy)
    except Exception as error:  # onnxslim has no error kind of its own
        raise FusedgeError(
            f"onnxslim failed: {type(error).__name__}: {error}", where=f"part {part.name}, simplify"
        ) from error
    # An input that decides nothing is still one that the runtime gives, such as the age of an embedding.
    del slim.graph.input[:]
    slim.graph.input.extend(model.graph.input)
    del slim.graph.value_info[:]  # onnxslim lists tensors twice, which misleads later stages
    slim.ir_version = model.ir_version  # onnxslim raises it; an older runtime would refuse the file
    check_graph(slim, part, "simplify")
    return slim
