"""What a part has to compute and to move: the contract between who counts it and who plans with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What is alike in how well a device does it.
Kind = Literal[
    "convolution",
    "depthwise",  # convolutions whose groups are single channels
    "product",  # of matrices
    "recurrent",  # GRU, LSTM, RNN: one step after another
    "attention",
    "normalisation",  # means and variances, softmax, other reductions
    "pooling",
    "elementwise",
    "movement",  # transpose, concatenation, gather: no operation, only bytes
    "free",  # constants, shapes, views: nothing is computed or moved
    "unknown",  # an operator, or sizes, that nothing is known of
]


@dataclass(frozen=True)
class TensorUse:
    """A tensor that a node reads or writes. `bytes` is None where its size is not known."""

    name: str
    bytes: int | None
    constant: bool = False


@dataclass(frozen=True)
class NodeWork:
    """A node of a graph. `operations` counts a multiplication and its addition as two, None is unknown.

    `steps` is how many times a recurrent node runs in a row, 1 for others.
    """

    name: str
    operator: str
    kind: Kind
    precision: str
    operations: float | None
    reads: tuple[TensorUse, ...]
    writes: tuple[TensorUse, ...]
    steps: int = 1


@dataclass(frozen=True)
class PartWork:
    """A part's graph at one precision and at given sizes of its named dims, in the order it is computed.

    `weight_bytes` are the constants'; `activation_bytes` the most that tensors which live at the same
    time take, None where a size is not known. `input_bytes` and `output_bytes` are what goes in and out, as
    far as sizes are known. `foreign` are operators that the graph's version of ONNX does not define.
    """

    part: str
    precision: str
    batch: int
    opset: int
    nodes: tuple[NodeWork, ...]
    weight_bytes: int
    activation_bytes: int | None
    input_bytes: int
    output_bytes: int
    foreign: tuple[str, ...] = ()

    @property
    def unknown(self) -> dict[str, int]:
        """Operators of the nodes that nothing is known of, and how many they are."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            if node.kind == "unknown":
                counts[node.operator] = counts.get(node.operator, 0) + 1
        return counts
