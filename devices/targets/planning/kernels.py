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

from collections import defaultdict
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
    """Indices of nodes, in the order they are computed."""

    kind: Kind
    nodes: list[int]

    def add(self, index: int, kind: Kind) -> None:
        self.nodes.append(index)
        self.kind = min(self.kind, kind, key=_ORDER.index)


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
        self._group_of: dict[int, int] = {}  # node to group
        self._maker: dict[str, int] = {}  # tensor to node
        self._readers: defaultdict[str, list[int]] = defaultdict(list)  # tensor to nodes
        for index, node in enumerate(nodes):
            for name in dict.fromkeys(use.name for use in node.reads):
                self._readers[name].append(index)

    def group(self, joins: Callable[[NodeWork, _Group], bool], in_place: frozenset[str]) -> None:
        """Put each node into the latest group that it reads from, where it `joins` it, or into a new one.

        Operators `in_place` cost nothing where kernels make all that they read.
        """
        for index, node in enumerate(self._nodes):
            made = [self._maker[use.name] for use in node.reads if use.name in self._maker]
            if node.operator in in_place and len(made) == len(node.reads):
                continue
            latest = max((self._group_of[each] for each in made), default=-1)
            if latest >= 0 and joins(node, self._groups[latest]):
                self._groups[latest].add(index, node.kind)
            else:
                latest = len(self._groups)
                self._groups.append(_Group(node.kind, [index]))
            self._group_of[index] = latest
            self._maker.update((use.name, index) for use in node.writes)

    def joins_on_cpu(self, node: NodeWork, group: _Group) -> bool:
        """By what ends a group so far, which nobody else may read."""
        last = self._nodes[group.nodes[-1]]
        if group.kind not in _PRODUCTS or len(self._readers[last.writes[0].name]) != 1:
            return False
        if node.operator == "QuantizeLinear":
            return True
        if last.operator == "MatMul":
            return node.operator == "Add" and any(use.constant for use in node.reads)
        return last.operator in ("Conv", "Gemm") and node.operator in _CPU_ACTIVATIONS

    def join_attention(self) -> None:
        """Make one group of two products with a softmax between them that nobody else reads."""
        for softmax, node in enumerate(self._nodes):
            if node.operator != "Softmax":
                continue
            middle = self._group_of[softmax]
            first = [each for each in self._sources(middle) if self._may_attend(each)]
            if len(first) != 1 or self._targets(first[0]) != {middle}:
                continue
            last = self._targets(middle)
            if len(last) == 1 and (target := last.pop()) is not None and self._may_attend(target):
                self._move([*self._groups[first[0]].nodes, *self._groups[middle].nodes], target)
                self._groups[target].kind = "attention"

    def join_written_out(self) -> None:
        """Make one group of nodes in a row that write out one operator."""
        for start in range(len(self._nodes)):
            for operators in _WRITTEN_OUT:
                row = range(start, start + len(operators))
                nodes = self._nodes[start : row.stop]
                if [node.operator for node in nodes] != operators:
                    continue
                made = {use.name for node in nodes for use in node.writes}
                linked = all(any(use.name in made for use in node.reads) for node in nodes[1:])
                alone = all(len(self._groups[self._group_of[index]].nodes) == 1 for index in row)
                if linked and alone:
                    self._move(list(row[:-1]), self._group_of[row[-1]])

    def kernels(self) -> list[Kernel]:
        """What the groups do, those without nodes left out."""
        return [self._kernel(group) for group in self._groups if group.nodes]

    def _kernel(self, group: _Group) -> Kernel:
        own = set(group.nodes)
        nodes = [self._nodes[index] for index in group.nodes]
        operations: defaultdict[str, float] = defaultdict(float)
        reads: dict[str, int] = {}
        written = 0
        for node in nodes:
            if node.operations:
                operations[node.precision] += node.operations
            for use in node.reads:
                if self._maker.get(use.name) not in own:
                    reads[use.name] = max(reads.get(use.name, 0), use.bytes or 0)
            for use in node.writes:
                readers = self._readers[use.name]
                if not readers or any(reader not in own for reader in readers):
                    written += use.bytes or 0
        return Kernel(
            kind=group.kind,
            operations=dict(operations),
            read_bytes=sum(reads.values()),
            written_bytes=written,
            steps=max(node.steps for node in nodes),
            names=tuple(node.name for node in nodes),
            operators=tuple(node.operator for node in nodes),
        )

    def _sources(self, group: int) -> set[int]:
        """The groups that one reads from."""
        nodes = (self._nodes[index] for index in self._groups[group].nodes)
        made = (self._maker.get(use.name) for node in nodes for use in node.reads)
        return {self._group_of[each] for each in made if each is not None} - {group}

    def _targets(self, group: int) -> set[int | None]:
        """The groups that read from one; None stands for whoever takes an output or reads in place."""
        found: set[int | None] = set()
        for index in self._groups[group].nodes:
            for use in self._nodes[index].writes:
                readers = self._readers[use.name]
                found |= {self._group_of.get(reader) for reader in readers} or {None}
        return found - {group}

    def _may_attend(self, group: int) -> bool:
        found = self._groups[group]
        return found.kind == "product" and self._nodes[found.nodes[0]].precision != "fp32"

    def _move(self, indices: list[int], target: int) -> None:
        """Put nodes before those of a later group."""
        for index in indices:
            self._groups[self._group_of[index]].nodes.remove(index)
            self._group_of[index] = target
        self._groups[target].nodes[:0] = indices
        kinds = (self._nodes[index].kind for index in self._groups[target].nodes)
        self._groups[target].kind = min(kinds, key=_ORDER.index)
