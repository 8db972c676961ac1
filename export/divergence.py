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
# this share of the tolerance and no node makes it this many times greater at once. The node that makes it
# grow most is then to blame.
_TRACE_SHARE = 0.1
_JUMP = 30.0
_ROUNDERS = frozenset(["Cast", "QuantizeLinear", "DequantizeLinear"])
_ROUNDING = 1e-7  # of float32: what agrees better agrees fully
# What a stage that reduces precision puts behind the name of a value, see fusedge.export.precision.
_FORMS = (".exact", ".dequantised", ".fp16", ".bf16")
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
        nodes = "the node" if self.unseen == 1 else f"one of the {self.unseen} nodes"
        before = f", or {nodes} just before it" if self.unseen else ""
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

    A candidate with bfloat16 must be an emulated one (fusedge.export.emulate), for it has to run here.
    None where no output differs, be it that the graph is faithful to this reference. Raises
    FusedgeError where one of the two cannot be run.
    """
    twins = _twins(reference, candidate)
    off = dict.fromkeys(feeds, 0.0)
    for names in _chunks(candidate, twins, feeds):
        wanted = _reference_values(reference, {twins[name] for name in names}, feeds)
        found = _graph_values(candidate, names, feeds)
        for name in names:
            expected, actual = wanted.get(twins[name]), found.get(name)
            # Where layouts differ, the same name stands for another value.
            if expected is not None and actual is not None and expected.shape == actual.shape:
                off[name] = _difference(expected, actual)
    original = reference.model if isinstance(reference, Traced) else reference
    makers = {name: node for node in original.graph.node for name in node.output}
    return _walk_back(candidate.graph, makers, off, tolerance)


def _walk_back(
    graph: onnx.GraphProto,
    makers: Mapping[str, onnx.NodeProto],
    off: Mapping[str, float],
    tolerance: float,
) -> Divergence | None:
    producers = {name: node for node in graph.node for name in node.output if name}
    order = {name: place for place, name in enumerate(producers)}
    value = next((o.name for o in graph.output if off.get(o.name, 0.0) > tolerance), None)
    if value is None or value not in producers:
        return None
    blamed: list[tuple[float, Divergence]] = []  # with how many times greater the difference became
    while True:
        node = producers[value]
        before, unseen = _nearest(producers, off, node)
        worst = max((off[name] for name in before), default=0.0)
        if off[value] > tolerance:
            blamed.clear()
        found = Divergence(node.name, node.op_type, off[value], worst, unseen)
        maker = makers.get(_plain(value))
        if node.op_type in _ROUNDERS and maker is not None:  # not a node of the user's
            kind = f"{maker.op_type}, rounded"
            found = Divergence(maker.name, kind, off[value], worst)
        blamed.append((off[value] / max(worst, _ROUNDING), found))
        followed = tolerance
        if worst <= tolerance:
            followed = max(_TRACE_SHARE * tolerance, off[value] / _JUMP)
        made = [name for name in before if name in producers and off[name] > followed]
        if not made:
            return max(blamed, key=lambda pair: pair[0])[1]
        value = min(made, key=order.__getitem__)


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
    """The reference's name of each value that a node of the candidate makes, in topological order."""
    if isinstance(reference, Traced):
        known = dict(reference.values)
    else:
        known = {name: name for node in reference.graph.node for name in node.output if name}
    made = [name for node in candidate.graph.node for name in node.output if name]
    return {name: known[_plain(name)] for name in made if _plain(name) in known}


def _plain(name: str) -> str:
    for form in _FORMS:
        name = name.removesuffix(form)
    return name


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
    """Those of the named values that are tensors of numbers, by ONNX Runtime."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    outputs = {value.name for value in model.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in outputs)
    try:
        # With what is disabled for fp16: the graph may be one.
        session = open_session(exposed.SerializeToString(), "fp16")
        found: list[object] = session.run(list(names), dict(feeds))
    except Exception as error:  # ONNX Runtime has a dozen kinds
        raise FusedgeError(f"the graph's inner values cannot be computed: {error}") from None
    return {
        name: value
        for name, value in zip(names, found, strict=True)
        if isinstance(value, np.ndarray) and value.dtype != object
    }


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
    try:
        with torch.inference_mode():
            recorder.run(*arguments)
    except Exception as error:  # torch's kinds
        raise FusedgeError(f"the traced program cannot be run: {error}") from None
    return recorder.kept
