"""Which nodes of a graph run as one kernel: what passes between them never leaves the chip.

`gpu` is TensorRT, by what its guide says under "Types of Fusions": a convolution or product takes with it
the pointwise nodes that follow (bias, activation, residual sum, Q/DQ); chains of pointwise nodes, copies
and reductions become one kernel; two products with a softmax between them become one of attention, but in
fp32; a concatenation is written in place by those who make its pieces.

`cpu` is ONNX Runtime's CPU provider, by its page "Graph Optimizations": an activation joins the convolution
or Gemm before it, a constant sum the product; layer normalisation and GELU that an exporter wrote out as
several nodes become one; Q/DQ go into what they surround. All others run one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fusedge.devices.targets.work import Kind, NodeWork, PartWork, TensorUse

Backend = Literal["gpu", "cpu"]

# A kernel is of the first of these kinds that it holds.
_ORDER: tuple[Kind, ...] = (
    "attention",
    "convolution",
    "depthwise",
    "product",
    "recurrent",
    "pooling",
    "normalisation",
    "elementwise",
    "movement",
    "unknown",
)
_PRODUCTS = frozenset(("convolution", "depthwise", "product", "attention"))
_LIGHT = frozenset(("normalisation", "elementwise", "movement"))
_CPU_ACTIVATIONS = frozenset(["Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"])
_WRITTEN_OUT = (
    [
        "ReduceMean",
        "Sub",
        "Pow",
        "ReduceMean",
        "Add",
        "Sqrt",
        "Div",
        "Mul",
        "Add",
    ],  # layer normalisation
    ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"],
    ["Div", "Erf", "Add", "Mul", "Mul"],  # GELU
    ["Mul", "Erf", "Add", "Mul", "Mul"],
)


@dataclass(frozen=True)
class Kernel:
    """Nodes that run as one. `operations` are by precision, empty where nothing is known of them.

    Bytes are of what comes from outside, weights included, and of what others read. `steps` is how many
    times it runs in a row.
    """

    kind: Kind
    operations: Mapping[str, float]
    read_bytes: int
    written_bytes: int
    steps: int
    names: tuple[str, ...]
    operators: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read_bytes + self.written_bytes


@dataclass
class _Group:
    nodes: list[NodeWork]
    attention: bool = False

    @property
    def kind(self) -> Kind:
        kinds = {node.kind for node in self.nodes}
        return "attention" if self.attention else next(kind for kind in _ORDER if kind in kinds)


def kernels_of(work: PartWork, backend: Backend) -> list[Kernel]:
    """The kernels of a part in the order they run. Nodes of the kind `free` are in none.

    A node of which nothing is known is a kernel of its own, of the kind `unknown`.
    """
    fusion = _Fusion(_running(work.nodes))
    if backend == "gpu":
        fusion.group(_joins_on_gpu, in_place=frozenset(("Concat",)))
        fusion.join_attention()
    else:
        fusion.group(fusion.joins_on_cpu, in_place=frozenset())
        fusion.join_written_out()
    return fusion.kernels()


def _running(nodes: Iterable[NodeWork]) -> list[NodeWork]:
    """The nodes that run, reading what views look at and the quantised tensors behind DequantizeLinear."""
    read = {use.name for node in nodes for use in node.reads}
    behind: dict[str, TensorUse] = {}
    running = []
    for node in nodes:
        reads = tuple(behind.get(use.name, use) for use in node.reads)
        if node.kind == "free":
            behind.update((use.name, reads[0]) for use in node.writes if reads and not use.constant)
        elif node.operator == "DequantizeLinear" and node.writes[0].name in read:
            behind[node.writes[0].name] = reads[0]
        else:
            running.append(replace(node, reads=reads))
    return running


def _joins_on_gpu(node: NodeWork, group: _Group) -> bool:
    if node.kind == "elementwise":
        return group.kind in _PRODUCTS | _LIGHT
    return node.kind in _LIGHT and group.kind in _LIGHT


class _Fusion:
    """Groups of nodes, in an order in which each reads only from those before it."""

    def __init__(self, nodes: list[NodeWork]) -> None:
        self._nodes = nodes
        self._groups: list[_Group] = []
        self._maker: dict[str, int] = {}  # the group that makes a tensor
        self._readers = Counter(use.name for node in nodes for use in node.reads)

    def group(self, joins: Callable[[NodeWork, _Group], bool], in_place: frozenset[str]) -> None:
        """Put each node into the latest group that it reads from, where it `joins` it, or into a new one.

        Operators `in_place` cost nothing where kernels make all that they read.
        """
        for node in self._nodes:
            makers = [self._maker[use.name] for use in node.reads if use.name in self._maker]
            if node.operator in in_place and len(makers) == len(node.reads):
                continue
            index = max(makers, default=-1)
            if index < 0 or not joins(node, self._groups[index]):
                index = len(self._groups)
                self._groups.append(_Group([]))
            self._groups[index].nodes.append(node)
            self._maker.update((use.name, index) for use in node.writes)

    def joins_on_cpu(self, node: NodeWork, group: _Group) -> bool:
        """By what ends a group so far, which nobody else may read."""
        last = group.nodes[-1]
        if group.kind not in _PRODUCTS or self._readers[last.writes[0].name] != 1:
            return False
        if node.operator == "QuantizeLinear":
            return True
        if last.operator == "MatMul":
            return node.operator == "Add" and any(use.constant for use in node.reads)
        return last.operator in ("Conv", "Gemm") and node.operator in _CPU_ACTIVATIONS

    def join_attention(self) -> None:
        """Make one group of two products with a softmax between them that nobody else reads."""
        for index, group in enumerate(self._groups):
            if not any(node.operator == "Softmax" for node in group.nodes):
                continue
            before = [each for each in self._sources(index) if self._may_attend(each)]
            after = self._targets(index)
            if len(before) != 1 or len(after) != 1 or self._targets(before[0]) != {index}:
                continue
            (last,) = after
            if not self._may_attend(last):
                continue
            nodes = self._groups[before[0]].nodes + group.nodes
            self._move(nodes, last)
            self._groups[last].attention = True

    def join_written_out(self) -> None:
        """Make one group of nodes in a row that write out one operator."""
        order = {
            id(node): index for index, group in enumerate(self._groups) for node in group.nodes
        }
        for start, first in enumerate(self._nodes):
            for operators in _WRITTEN_OUT:
                row = self._nodes[start : start + len(operators)]
                if [node.operator for node in row] != operators or len(
                    self._groups[order[id(first)]].nodes
                ) != 1:
                    continue
                made = {use.name for node in row for use in node.writes}
                if all(any(use.name in made for use in node.reads) for node in row[1:]):
                    self._move(row[:-1], order[id(row[-1])])
                break

    def kernels(self) -> list[Kernel]:
        """What the groups do, those without nodes left out."""
        return [self._kernel(index) for index, group in enumerate(self._groups) if group.nodes]

    def _kernel(self, index: int) -> Kernel:
        group = self._groups[index]
        operations: Counter[str] = Counter()
        reads: dict[str, int] = {}
        inside = Counter(use.name for node in group.nodes for use in node.reads)
        written = 0
        for node in group.nodes:
            if node.operations:
                operations[node.precision] += node.operations  # type: ignore[assignment]
            for use in node.reads:
                if self._maker.get(use.name) != index:
                    reads[use.name] = max(reads.get(use.name, 0), use.bytes or 0)
            written += sum(
                use.bytes or 0
                for use in node.writes
                if self._readers[use.name] > inside[use.name] or not self._readers[use.name]
            )
        return Kernel(
            kind=group.kind,
            operations=dict(operations),
            read_bytes=sum(reads.values()),
            written_bytes=written,
            steps=max(node.steps for node in group.nodes),
            names=tuple(node.name for node in group.nodes),
            operators=tuple(node.operator for node in group.nodes),
        )

    def _sources(self, index: int) -> set[int]:
        """The groups that one reads from."""
        uses = (use.name for node in self._groups[index].nodes for use in node.reads)
        return {self._maker[name] for name in uses if name in self._maker} - {index}

    def _targets(self, index: int) -> set[int]:
        """The groups that read from one."""
        return {each for each in range(len(self._groups)) if index in self._sources(each)}

    def _may_attend(self, index: int) -> bool:
        group = self._groups[index]
        return group.kind == "product" and group.nodes[0].precision != "fp32"

    def _move(self, nodes: list[NodeWork], index: int) -> None:
        """Put nodes before those of a later group."""
        moved = {id(node) for node in nodes}
        for group in self._groups:
            group.nodes = [node for node in group.nodes if id(node) not in moved]
        self._groups[index].nodes[:0] = nodes
        self._maker.update((use.name, index) for node in nodes for use in node.writes)
