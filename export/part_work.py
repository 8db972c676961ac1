"""What a part has to compute and to move, counted from its ONNX graph at given sizes of its named dims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import onnx

from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Part
from fusedge.devices.targets.work import NodeWork, PartWork, TensorUse
from fusedge.export.graph import inner_graphs, values_read
from fusedge.export.graph_shapes import SizedGraph, Tensor, size_graph, tensors_of
from fusedge.export.operator_work import FREE, PARTIAL_READS, Count, count_operator

_PRECISIONS: dict[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.DOUBLE: "fp64",
}
_QUANTISED: dict[int, str] = {
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
    onnx.TensorProto.FLOAT8E5M2: "fp8",
}
_MAX_TIMES = 1_000_000  # that a body runs: more than that is no network but an attack


def part_work(bundle: Bundle, part: Part, precision: str, batch: int | None = None) -> PartWork:
    """Count a part of a bundle at the usual sizes of its dims; at its least batch unless one is given.

    Raises BundleError where the bundle has no such graph or its file is damaged, FusedgeError where the
    graph cannot be counted.
    """
    sizes = {name: dim.usual for name, dim in part.dims.items()}
    if "batch" in part.dims:
        sizes["batch"] = part.dims["batch"].least if batch is None else batch
    content = bundle.read(part.graph(precision).file)
    return count_work(content, part.name, precision, sizes)


def count_work(graph: bytes, part: str, precision: str, sizes: Mapping[str, int]) -> PartWork:
    """Count a graph; `sizes` are those of its named dims, such as `{"batch": 1}`.

    A node of an unknown operator or of unknown sizes is `unknown`: its operations are None, not zero.
    `weight_bytes` are of all constants. `activation_bytes` supposes that nodes run in the graph's order,
    views take nothing and nothing is computed in place; it is None with any size unknown. An output of
    unknown size is missing from `output_bytes`.

    Raises FusedgeError, which names the part, for what is no valid graph, has weights in another file, or
    free dims that `sizes` does not give.
    """
    where = f"part {part}, {precision}"
    sized = size_graph(graph, sizes, where)
    runs = list(_node_runs(sized, where))
    nodes = tuple(_times(node, times) for node, times in runs)
    constants = [sized.tensors.get(name, Tensor()).bytes or 0 for name in sized.constants]
    return PartWork(
        part=part,
        precision=precision,
        batch=sizes.get("batch", 1),
        opset=sized.opset,
        nodes=nodes,
        weight_bytes=sum(constants),
        activation_bytes=_most_alive([node for node, _ in runs], sized),
        input_bytes=_sum_bytes(sized, sized.inputs),
        output_bytes=_sum_bytes(sized, sized.outputs),
        foreign=tuple(_foreign(sized)),
    )


def _foreign(sized: SizedGraph) -> list[str]:
    """Operators of all nodes that ONNX does not define: those of its own domain at the graph's opset."""
    names, nodes = set(), [*sized.nodes]
    while nodes:
        node = nodes.pop()
        nodes += [each for inner in inner_graphs(node) for each in inner.node]
        if node.domain in ("", "ai.onnx"):
            known = onnx.defs.has(node.op_type, sized.opset, "")
        else:
            known = onnx.defs.has(node.op_type, domain=node.domain)
        if not known:
            names.add(node.op_type)
    return sorted(names)


def _sum_bytes(sized: SizedGraph, names: list[str]) -> int:
    return sum(sized.tensors.get(name, Tensor()).bytes or 0 for name in names)


def _node_runs(sized: SizedGraph, where: str) -> Iterator[tuple[NodeWork, int]]:
    """What one run of each node takes, and how many times it runs."""
    counter = _Counter(sized.tensors, set(sized.constants), set(sized.sizes))
    for node in sized.nodes:
        body = sized.bodies.get(node.output[0]) if node.output else None
        repeated = None if body is None else _repeated(body, sized)
        if repeated is None:
            yield counter.work(node), 1
            continue
        graph, times = repeated
        inner = _Counter(
            {**sized.tensors, **tensors_of(graph, where)},
            sized.constants | {tensor.name for tensor in graph.initializer},
            set(),
        )
        for each in graph.node if times else ():
            yield inner.work(each), times
        moved = counter.work(node)
        yield replace(moved, kind="movement", operations=0.0), 1


def _repeated(node: onnx.NodeProto, sized: SizedGraph) -> tuple[onnx.GraphProto, int] | None:
    """The body that runs and how many times it does, where that is known beforehand."""
    try:
        body, times = _body(node, sized)
    except (LookupError, TypeError, ValueError):  # what no valid node has
        return None
    if not isinstance(body, onnx.GraphProto) or times > _MAX_TIMES:
        return None
    return body, max(times, 0)


def _body(node: onnx.NodeProto, sized: SizedGraph) -> tuple[onnx.GraphProto | None, int]:
    known = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "If" and node.input[0] in sized.sizes:
        branch = "then_branch" if bool(sized.sizes[node.input[0]].all()) else "else_branch"
        return known[branch], 1
    if node.op_type == "Loop" and node.input[0] in sized.sizes:
        body: onnx.GraphProto = known["body"]
        going_on = not node.input[1] or node.input[1] in sized.sizes
        if going_on and _hands_on(body, body.output[0].name, body.input[1].name):
            return body, int(sized.sizes[node.input[0]].item())
    if node.op_type == "Scan":
        scanned = node.input[len(node.input) - int(known["num_scan_inputs"])]
        axis = next(iter(known.get("scan_input_axes", [])), 0)
        shape = sized.tensors.get(scanned, Tensor()).shape
        if shape is not None:
            return known["body"], shape[axis]
    return None, 0


def _hands_on(graph: onnx.GraphProto, output: str, source: str) -> bool:
    """Whether an output is an input as it is."""
    makers = {name: node for node in graph.node for name in node.output}
    while output in makers and makers[output].op_type == "Identity":
        output = makers[output].input[0]
    return output == source


def _times(work: NodeWork, times: int) -> NodeWork:
    """A node that runs several times in a row."""

    def moved(uses: tuple[TensorUse, ...]) -> tuple[TensorUse, ...]:
        return tuple(
            replace(use, bytes=None if use.bytes is None else use.bytes * times) for use in uses
        )

    return replace(
        work,
        operations=None if work.operations is None else work.operations * times,
        reads=moved(work.reads),
        writes=moved(work.writes),
        steps=work.steps * times,
    )


class _Counter:
    """Counts the nodes of one graph in their order. `known` are computed tensors whose values are known."""

    def __init__(self, tensors: Mapping[str, Tensor], constants: set[str], known: set[str]) -> None:
        self._tensors, self._constants, self._known = tensors, constants, known
        self._before: dict[str, str] = {}  # precision of a tensor before DequantizeLinear

    def work(self, node: onnx.NodeProto) -> NodeWork:
        """What a node takes."""
        outputs = [name for name in node.output if name]
        used = [name for name in values_read(node) if name in self._tensors]
        if all(name in self._known for name in outputs) or self._is_constant(node, used):
            self._constants.update(outputs)  # computed once, when the graph is loaded
            count = Count("free", 0.0)
        else:
            count = count_operator(
                node,
                [self._of(name).shape if name else () for name in node.input],
                [self._of(name).shape for name in outputs],
            )
        self._note_quantised(node)
        return NodeWork(
            name=node.name or next(iter(outputs), node.op_type),
            operator=node.op_type,
            kind=count.kind,
            precision=self._precision(node, count),
            operations=count.operations,
            reads=tuple(self._read(node, name) for name in dict.fromkeys(used)),
            writes=tuple(self._use(name) for name in outputs),
            steps=count.steps,
        )

    def _of(self, name: str) -> Tensor:
        return self._tensors.get(name, Tensor())

    def _is_constant(self, node: onnx.NodeProto, used: list[str]) -> bool:
        """Quantised constants stay as they are: whoever computes with them dequantises them."""
        if node.op_type in ("DequantizeLinear", "QuantizeLinear") or node.op_type.startswith(
            "Random"
        ):
            return False
        return bool(used) and all(name in self._constants for name in used)

    def _note_quantised(self, node: onnx.NodeProto) -> None:
        if not node.input or not node.output:
            return
        source, result = node.input[0], node.output[0]
        if node.op_type == "DequantizeLinear":
            if source in self._constants:
                self._constants.add(result)  # nobody keeps it in this form
            stored = _QUANTISED.get(self._of(source).dtype)
            if stored:
                self._before[result] = stored
        elif node.op_type in FREE and source in self._before:
            self._before[result] = self._before[source]

    def _precision(self, node: onnx.NodeProto, count: Count) -> str:
        """Of the product of what was dequantised, the precision before that; else of its first number.

        Whole numbers and truth values count as fp32, whose units are as many.
        """
        if count.kind in ("convolution", "depthwise", "product"):
            if node.op_type.endswith("Integer"):
                return "int8"
            stored = [self._before.get(name) for name in node.input[:2]]
            if stored[0] is not None and stored == [stored[0]] * 2:
                return stored[0]
        for name in (*node.output, *node.input):
            precision = _PRECISIONS.get(self._of(name).dtype)
            if precision:
                return precision
        return "fp32"

    def _read(self, node: onnx.NodeProto, name: str) -> TensorUse:
        use = self._use(name)
        if node.op_type in PARTIAL_READS and name == node.input[0] and node.output:
            written = self._of(node.output[0]).bytes
            if use.bytes is not None and written is not None:
                return replace(use, bytes=min(use.bytes, written))
        return use

    def _use(self, name: str) -> TensorUse:
        return TensorUse(name, self._of(name).bytes, name in self._constants)


def _most_alive(nodes: list[NodeWork], sized: SizedGraph) -> int | None:
    """Bytes of inputs, outputs and what is between them, where it is the most.

    Whoever reads a dequantised tensor dequantises it, so that it takes nothing either. `nodes` are of one
    run of each, for a body's next run takes the place of the last.
    """
    root: dict[str, str] = {}
    size: dict[str, int] = {}
    last: dict[str, int] = {}
    for name in sized.inputs:
        size[name] = sized.tensors.get(name, Tensor()).bytes or 0
    for index, node in enumerate(nodes):
        for use in node.reads:
            if not use.constant:
                last[root.get(use.name, use.name)] = index
        for use in node.writes:
            if use.constant:
                continue
            if node.reads and (node.kind == "free" or node.operator == "DequantizeLinear"):
                source = node.reads[0].name
                root[use.name] = root.get(source, source)
            elif use.bytes is None:
                return None
            else:
                size[use.name] = use.bytes
                last.setdefault(use.name, index)
    for name in sized.outputs:
        last[root.get(name, name)] = len(nodes)
    ends: dict[int, int] = {}
    for name, index in last.items():
        ends[index] = ends.get(index, 0) + size.get(name, 0)
    alive = most = sum(size[name] for name in sized.inputs)
    for index, node in enumerate(nodes):
        alive += sum(size.get(use.name, 0) for use in node.writes)
        most = max(most, alive)
        alive -= ends.get(index, 0)
    return most
