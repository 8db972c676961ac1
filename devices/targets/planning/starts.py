"""What a run starts beside its kernels. On a GPU it costs nothing, in ONNX Runtime it adds up."""

from __future__ import annotations

from fusedge.devices.targets.work import PartWork


def view_count(work: PartWork) -> int:
    """Nodes that look at a tensor or its shape: no work, but ONNX Runtime runs them one by one too."""
    return sum(node.kind == "free" and node.operator != "Constant" for node in work.nodes)


def tensor_count(work: PartWork) -> int:
    """Inputs and outputs of a graph. An output that the graph reads itself is not seen as one."""
    written = {use.name for node in work.nodes for use in node.writes if not use.constant}
    read = {use.name for node in work.nodes for use in node.reads if not use.constant}
    return len(read ^ written)
