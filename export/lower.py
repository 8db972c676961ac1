"""Lower a graph to an opset below the tracer's least, for devices whose TensorRT reads no newer one."""

from __future__ import annotations

import onnx
from onnx.helper import find_min_ir_version_for, make_opsetid

from fusedge.bundle.errors import FusedgeError
from fusedge.export.graph import check_graph
from fusedge.export.part import ModulePart

LOWEST = 17
_NEWER = ("num_outputs", "noop_with_empty_axes")  # attributes that the converter leaves in place
_NEEDED = (("noop_with_empty_axes", 1),)  # 0 is how older opsets behave; 1 has no older form
_HELD = "fusedge.held"  # a domain whose nodes the converter leaves alone


def lower(model: onnx.ModelProto, part: ModulePart, opset: int) -> onnx.ModelProto:
    """The graph at opset 17, from 18; `model` is left as it is.

    Raises FusedgeError where an operation has no older form.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        # onnx 1.23's converter has no way for Split, of which older opsets lack only `num_outputs` (equal
        # parts are the rule there, and the check below refuses others), and for Pad, which lacks axes.
        if node.op_type == "Split" or (node.op_type == "Pad" and len(node.input) < 4):
            node.domain = _HELD
        kept = [a for a in node.attribute if a.name not in _NEWER or (a.name, a.i) in _NEEDED]
        if len(kept) < len(node.attribute):
            others = onnx.NodeProto(attribute=kept)
            del node.attribute[:]
            node.attribute.extend(others.attribute)
    copy.opset_import.append(make_opsetid(_HELD, 1))
    try:
        lowered = onnx.version_converter.convert_version(copy, opset)
    except RuntimeError as error:
        raise FusedgeError(
            f"cannot be lowered to opset {opset}: {error}",
            where=f"part {part.name}",
            hint="replace the operation in the module, or leave out the target that needs this opset",
        ) from None
    for node in lowered.graph.node:
        if node.domain == _HELD:
            node.domain = ""
    del lowered.opset_import[:]
    lowered.opset_import.append(make_opsetid("", opset))
    lowered.ir_version = find_min_ir_version_for(list(lowered.opset_import))
    del lowered.graph.value_info[:]
    check_graph(lowered, part, f"opset {opset}")
    return lowered
