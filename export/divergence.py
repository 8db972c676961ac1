"""Where a graph first differs from what it was made from, in the names of the user's modules.

Intermediate values are matched by name with those of the reference: the torch program that the graph
was traced from, or another graph. They are computed in chunks, to bound the memory. From an output
that differs the search goes back through values that differ, so it ends at a node whose own inputs
agree, on whichever branch that is, and passes by values that differ without effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.export.graph_signature import InputKind

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.inference import open_session
from fusedge.export.graph import values_read
from fusedge.export.trace import Traced

Array = NDArray[np.generic]
Reference = Traced | onnx.ModelProto

_CHUNK_BYTES = 128 << 20  # of values that are held at a time, and as many of the reference
_UNKNOWN_BYTES = 1 << 20  # where no size can be inferred
# A difference within the tolerance is followed back too, for small ones grow on the way: while it is above
# this share of the tolerance and no node makes it this many times greater at once.
_TRACE_SHARE = 0.1
_JUMP = 30.0
_REDUCED = {onnx.TensorProto.FLOAT16: ".fp16", onnx.TensorProto.BFLOAT16: ".bf16"}
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Divergence:
    """A node that differs although its inputs agree.

    `off` is the largest difference over the largest value of the reference, at least 1, and infinite
    for NaN or Inf where the reference has none; `inputs_off` is the same for what the node takes.
    `unseen` counts the nodes just before it whose values the reference does not have.
    """

    node: str
    operator: str
    off: float
    inputs_off: float
    unseen: int = 0

    def text(self) -> str:
        """`first differs at encoder.conv2/conv2d (Conv): 3.1e-02 off where its inputs agree to 2e-07`."""
        found = f"{self.off:.1e} off" if math.isfinite(self.off) else "NaN or Inf"
        before = f", or in the {self.unseen} nodes just before it" if self.unseen else ""
        return (
            f"first differs at {self.node} ({self.operator}){before}: "
            f"{found} where its inputs agree to {self.inputs_off:.0e}"
        )


def first_divergence(
    reference: Reference,
    candidate: onnx.ModelProto,
    feeds: Mapping[str, Array],
    tolerance: float,
) -> Divergence | None:
    """The node of `candidate` at which an output begins to differ by more than `tolerance`.

    None where no output differs, be it that the graph is faithful to this reference. Raises
    FusedgeError where one of the two cannot be run.
    """
    twins = _twins(reference, candidate)
    off = dict.fromkeys(feeds, 0.0)
    for names in _chunks(candidate, twins, feeds):
        wanted = _reference_values(reference, {twins[name] for name in names}, feeds)
        found = _graph_values(candidate, names, feeds)
        for name in names:
            expected = wanted.get(twins[name])
            # Where layouts differ, the same name stands for another value.
            if expected is not None and expected.shape == found[name].shape:
                off[name] = _difference(expected, found[name])
    return _walk_back(candidate.graph, off, tolerance)


def _walk_back(
    graph: onnx.GraphProto, off: Mapping[str, float], tolerance: float
) -> Divergence | None:
    producers = {name: node for node in graph.node for name in node.output if name}
    order = {name: place for place, name in enumerate(producers)}
    value = next((o.name for o in graph.output if off.get(o.name, 0.0) > tolerance), None)
    if value is None or value not in producers:
        return None
    while True:
        before, unseen = _nearest(producers, off, producers[value])
        earlier = [name for name in before if off[name] > tolerance and name in producers]
        worst = max(before, key=lambda name: off[name], default=None)
        if earlier:
            value = min(earlier, key=lambda name: order[name])
        elif worst in producers and off[worst] > max(
            _TRACE_SHARE * tolerance, off[value] / _JUMP
        ):
            value = worst
        else:
            break
    node = producers[value]
    inputs_off = off[worst] if worst is not None else 0.0
    return Divergence(node.name, node.op_type, off[value], inputs_off, unseen)


def _nearest(
    producers: Mapping[str, onnx.NodeProto], known: Mapping[str, float], node: onnx.NodeProto
) -> tuple[list[str], int]:
    """The known values that a node follows from, and the number of nodes in between."""
    found: dict[str, None] = {}
    between: set[str] = set()
    ahead = [node]
    while ahead:
        for name in values_read(ahead.pop()):
            if name in known:
                found[name] = None
            elif name in producers and producers[name].output[0] not in between:
                between.add(producers[name].output[0])
                ahead.append(producers[name])
    return list(found), len(between)


def _difference(expected: Array, actual: Array) -> float:
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if actual.dtype == np.float16:  # constants beyond it are clipped, such as a mask of -1e9
        b = np.where(np.isfinite(b), np.clip(b, -_LARGEST_HALF, _LARGEST_HALF), b)
    with np.errstate(invalid="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(same, 0.0, np.abs(a - b))
    if not np.isfinite(gap).all():
        return math.inf
    finite = np.abs(b[np.isfinite(b)])
    return float(gap.max(initial=0.0) / finite.max(initial=1.0))


def _twins(reference: Reference, candidate: onnx.ModelProto) -> dict[str, str]:
    """The reference's name of each value that a node of the candidate makes, in topological order.

    Values at a reduced precision have its name behind their own: `X.fp16`.
    """
    if isinstance(reference, Traced):
        known = dict(reference.values)
    else:
        known = {name: name for node in reference.graph.node for name in node.output if name}
    plain = {
        name: name.removesuffix(".fp16").removesuffix(".bf16")
        for node in candidate.graph.node
        for name in node.output
        if name
    }
    return {name: known[base] for name, base in plain.items() if base in known}


def _chunks(
    candidate: onnx.ModelProto, names: Mapping[str, str], feeds: Mapping[str, Array]
) -> Iterator[list[str]]:
    sizes = _sizes(candidate, feeds)
    chunk: list[str] = []
    total = 0
    for name in names:
        size = sizes.get(name, _UNKNOWN_BYTES)
        if chunk and total + size > _CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(name)
        total += size
    if chunk:
        yield chunk


def _sizes(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, int]:
    """Bytes of each value whose shape follows from the inputs' shapes, at 8 bytes a number."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim, size in zip(
            value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True
        ):
            dim.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    return {
        value.name: 8 * math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in inferred.value_info
        if all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }


def _reference_values(
    reference: Reference, names: set[str], feeds: Mapping[str, Array]
) -> Mapping[str, Array]:
    if isinstance(reference, Traced):
        return _program_values(reference, names, feeds)
    return _graph_values(reference, sorted(names), feeds)


def _graph_values(
    model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """Values that nodes of a graph make, by ONNX Runtime; bfloat16, which numpy lacks, as float32."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    outputs = {value.name for value in model.graph.output}
    shown = {}
    for name in names:
        shown[name] = name
        if types.get(name) == onnx.TensorProto.BFLOAT16:
            shown[name] = f"{name}.shown"
            exposed.graph.node.append(
                onnx.helper.make_node(
                    "Cast", [name], [shown[name]], name=shown[name], to=onnx.TensorProto.FLOAT
                )
            )
        if shown[name] not in outputs:
            exposed.graph.output.append(onnx.ValueInfoProto(name=shown[name]))
    try:
        # With what is disabled for fp16: the graph may be one.
        session = open_session(exposed.SerializeToString(), "fp16")
        found: list[Array] = session.run(list(shown.values()), dict(feeds))
    except Exception as error:  # ONNX Runtime has a dozen kinds
        raise FusedgeError(f"the graph's inner values cannot be computed: {error}") from None
    return dict(zip(shown, found, strict=True))


class _Recorder(torch.fx.Interpreter):
    """Runs a program and keeps the values of some nodes."""

    def __init__(self, module: torch.fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self.names = names
        self.kept: dict[str, Array] = {}

    def run_node(self, n: torch.fx.Node) -> object:
        result: object = super().run_node(n)
        if n.name in self.names and isinstance(result, torch.Tensor):
            self.kept[n.name] = result.numpy()
        return result


def _program_values(
    traced: Traced, names: set[str], feeds: Mapping[str, Array]
) -> Mapping[str, Array]:
    program = traced.program
    given = iter([torch.from_numpy(feeds[value.name]) for value in traced.model.graph.input])
    constants = {**program.state_dict, **program.constants}
    arguments = [
        next(given) if spec.kind is InputKind.USER_INPUT else constants[str(spec.target)]
        for spec in program.graph_signature.input_specs
    ]
    recorder = _Recorder(program.graph_module, names)
    with torch.inference_mode():
        recorder.run(*arguments)
    return recorder.kept
