"""What a GPU computes in float16 and bfloat16, on a CPU: float32 with each result rounded.

ONNX Runtime 1.32 has bfloat16 kernels on the CPU for little but what moves data, so that such a graph does
not even load. float16 nodes in a row it computes in float32, without rounding between them: an overflow
there, which a GPU would turn into Inf, passes unseen.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def emulated(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float32; one without float16 and bfloat16 comes back as it is.

    Inputs, constants and results of reduced nodes are rounded to nearest even, as on a GPU; within a node
    float32 is used throughout. So a sum is not rounded on the way (GPUs also add up in float32), and
    neither are the inner steps of a GRU, LSTM, Softmax or LayerNormalization, where a GPU's results
    differ in their last bits. It judges accuracy, and says nothing of speed.
    """
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    narrow = {name: element for name, element in types.items() if element in _NARROW}
    if not narrow:
        return graph
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        made = [name for name in node.output if name in narrow]
        if node.op_type == "Cast" and made:
            node.attribute[0].i = TensorProto.FLOAT
        node.output[:] = [f"{name}.exact" if name in made else name for name in node.output]
        nodes.append(node)
        for name in made:
            rounded = f"{name}.rounded"
            nodes.append(_cast(f"{name}.exact", rounded, narrow[name]))
            nodes.append(_cast(rounded, name, TensorProto.FLOAT))
    constants = [
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
        if tensor.data_type in _NARROW
        else tensor
        for tensor in copy.graph.initializer
    ]
    rebuilt = onnx.GraphProto(node=nodes, initializer=constants)
    del copy.graph.node[:], copy.graph.initializer[:], copy.graph.value_info[:]
    copy.graph.node.extend(rebuilt.node)
    copy.graph.initializer.extend(rebuilt.initializer)
    return copy


def _cast(source: str, result: str, element: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], f"{result}.rounding", to=element)
