"""The sizes of all tensors of an ONNX graph once its named dims are given; no tensor is ever computed with.

ONNX's own inference finds shapes. What it cannot follow are sizes that are themselves computed (Shape,
Gather, Div, Where, Concat, Reshape chains): these small whole-number tensors are evaluated by ONNX's
reference implementation, and inference starts again from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from fusedge.bundle.errors import FusedgeError
from fusedge.export.graph import inner_graphs, values_read

MAX_NODES = 20_000  # the largest encoders have some thousands
MAX_NUMBERS = 1 << 40  # of one tensor: more than any device's memory holds
_SMALL = 4096  # numbers of a tensor that may describe sizes
_MAX_FOLDED = 1_000_000  # numbers of all tensors that are evaluated; those of sizes are a few each
_CARRIED = frozenset(
    schema.name
    for schema in onnx.defs.get_all_schemas()
    if schema.has_data_propagation_function or schema.name == "Constant"
)
_MAX_ROUNDS = 100
_MAX_CALLS = 100  # of functions by each other
_MAX_OPSET = 1000  # ONNX has come to some 30
# fmt: off
_FOLDED = frozenset((
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div",
    "Equal", "Expand", "Floor", "Gather", "GatherElements", "Greater", "GreaterOrEqual",
    "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
    "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round",
    "ScatterElements", "ScatterND", "Sign", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile",
    "Transpose", "Unsqueeze", "Where",
))
# fmt: on


@dataclass(frozen=True)
class Tensor:
    """`dtype` is ONNX's number of the type, 0 where unknown."""

    dtype: int = 0
    shape: tuple[int, ...] | None = None

    @property
    def bytes(self) -> int | None:
        """None where type or shape is unknown, or the items have no fixed size."""
        bits = _bits(self.dtype)
        if self.shape is None or bits is None:
            return None
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclass
class SizedGraph:
    """A graph's nodes in order, without calls of functions, and what is known of their tensors.

    `constants` are tensors that come with the graph, `sizes` those of them and of the computed ones whose
    values describe sizes, which are known. `bodies` has the nodes with bodies once more, by their first
    output, with what was inferred inside of them.
    """

    opset: int
    nodes: list[onnx.NodeProto]
    inputs: list[str]
    outputs: list[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    sizes: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    bodies: dict[str, onnx.NodeProto] = field(default_factory=dict)
    folded: int = 0  # numbers of all computed tensors in `sizes`


def size_graph(content: bytes, sizes: Mapping[str, int], where: str) -> SizedGraph:
    """Read a graph and find the sizes of its tensors; those that depend on data stay unknown.

    Raises FusedgeError for what is no valid ONNX graph, has weights outside of the file, or an input whose
    size `sizes` does not give.
    """
    model = _load(content, where)
    opset = _opset(model, where)
    model = _inline(model, where)
    graph = model.graph
    _check_order(graph, where)
    _move_constants(graph)
    constants = _take_weights(graph, where)
    names = [value.name for value in graph.input if value.name not in constants]
    _give_sizes(graph, names, sizes, where)
    found = SizedGraph(
        opset=opset,
        nodes=list(graph.node),
        inputs=names,
        outputs=[value.name for value in graph.output],
        constants=constants,
    )
    for _ in range(_MAX_ROUNDS):
        model = _infer(model, where)
        found.tensors = tensors_of(model.graph, where)
        if not _fold(model, found):
            break
    for node in model.graph.node:
        if node.output and any(inner_graphs(node)):
            found.bodies[node.output[0]] = node
    return found


def _load(content: bytes, where: str) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's kinds differ between its implementations
        raise FusedgeError(f"is no ONNX graph: {error}", where=where) from None
    if not model.graph.node:
        raise FusedgeError("is no ONNX graph: it has no nodes", where=where)
    tops = (model.graph, *(onnx.GraphProto(node=each.node) for each in model.functions))
    for graph in (each for top in tops for each in _all_graphs(top)):
        for tensor in _stored(graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise FusedgeError(
                    f"the weights {tensor.name!r} are in another file",
                    where=where,
                    hint="save the graph with its weights inside",
                )
            _check_data(tensor, where)
    return model


def _stored(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All tensors whose numbers are in the graph itself."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t,) if attribute.HasField("t") else ()
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _check_data(tensor: onnx.TensorProto, where: str) -> None:
    """As many numbers as its sizes say; a graph may also come without any, for only sizes are counted."""
    _check_dims(tensor.name, tensor.dims, where)
    if any(field.name.endswith("_data") for field, _ in tensor.ListFields()):
        try:
            onnx.checker.check_tensor(tensor)
        except onnx.checker.ValidationError as error:
            reason = str(error).partition("\n")[0]
            raise FusedgeError(
                f"the weights {tensor.name!r} are damaged: {reason}", where=where
            ) from None


def _all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _all_graphs(inner)


def _opset(model: onnx.ModelProto, where: str) -> int:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            if not 1 <= entry.version <= _MAX_OPSET:
                raise FusedgeError(
                    f"is no ONNX graph: there is no opset {entry.version}", where=where
                )
            return int(entry.version)
    raise FusedgeError("is no ONNX graph: it names no opset", where=where)


def _inline(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """Without calls of the model's own functions, which must not call each other in a circle."""
    bodies = {(f.domain, f.name): f.node for f in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Iterator[onnx.NodeProto], path: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            total += 1
            for inner in inner_graphs(node):
                total += count(iter(inner.node), path)
            if key in bodies:
                if key in path:
                    raise FusedgeError(f"the function {node.op_type} calls itself", where=where)
                if len(path) == _MAX_CALLS:
                    raise FusedgeError(
                        f"its functions call each other more than {_MAX_CALLS} deep", where=where
                    )
                if key not in counts:
                    counts[key] = count(iter(bodies[key]), (*path, key))
                total += counts[key]
            if total > MAX_NODES:
                raise FusedgeError(f"has more than {MAX_NODES} nodes", where=where)
        return total

    count(iter(model.graph.node), ())
    if not bodies:
        return model
    try:
        inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    except Exception as error:  # the inliner has no error kind of its own
        raise FusedgeError(f"its functions cannot be inlined: {error}", where=where) from None
    return inlined


def _check_order(graph: onnx.GraphProto, where: str) -> None:
    """Each node reads what was made before it, and makes what nobody made before."""
    made = {value.name for value in graph.input} | {each.name for each in graph.initializer}
    made |= {each.values.name for each in graph.sparse_initializer}
    for node in graph.node:
        own = {name for inner in inner_graphs(node) for name in _made_within(inner)}
        for name in values_read(node):
            if name and name not in made and name not in own:
                raise FusedgeError(
                    f"node {node.name or node.op_type!r} reads {name!r}, which nothing before it makes",
                    where=where,
                )
        for name in node.output:
            if name and name in made:
                raise FusedgeError(f"{name!r} is made twice", where=where)
            made.add(name)
    for value in graph.output:
        if value.name not in made:
            raise FusedgeError(f"nothing makes the output {value.name!r}", where=where)


def _made_within(graph: onnx.GraphProto) -> Iterator[str]:
    for inner in _all_graphs(graph):
        yield from (value.name for value in inner.input)
        yield from (tensor.name for tensor in inner.initializer)
        for node in inner.node:
            yield from node.output


def _move_constants(graph: onnx.GraphProto) -> None:
    """Constant nodes become initializers, so that there is one kind of constant."""
    others = []
    for node in graph.node:
        tensor = _constant_value(node) if node.op_type == "Constant" and node.output else None
        if tensor is None:
            others.append(node)
        else:
            graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(others)


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(attribute.t)
            tensor.name = node.output[0]
            return tensor
        if attribute.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
            values = np.array(onnx.helper.get_attribute_value(attribute), np.int64)
            return numpy_helper.from_array(values, node.output[0])
        if attribute.type in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS):
            numbers = np.array(onnx.helper.get_attribute_value(attribute), np.float32)
            return numpy_helper.from_array(numbers, node.output[0])
    return None


def _take_weights(graph: onnx.GraphProto, where: str) -> set[str]:
    """Names of all constants. The large ones are made inputs without values: only sizes matter."""
    names = {tensor.name for tensor in graph.initializer}
    names |= {each.values.name for each in graph.sparse_initializer}
    declared = {value.name for value in graph.input}
    kept = []
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            kept.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    small = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(small)
    return names


def _check_dims(name: str, dims: Iterable[int], where: str) -> None:
    shape = [int(dim) for dim in dims]
    if any(dim < 0 for dim in shape) or math.prod(shape) > MAX_NUMBERS:
        raise FusedgeError(f"{name!r} claims the impossible size {shape}", where=where)


def _give_sizes(
    graph: onnx.GraphProto, inputs: list[str], sizes: Mapping[str, int], where: str
) -> None:
    """Put sizes in place of the names of dims."""
    for each in _all_graphs(graph):
        for value in (*each.input, *each.output, *each.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in sizes:
                    dim.dim_value = sizes[dim.dim_param]
    for value in graph.input:
        tensor = value.type.tensor_type
        if value.name in inputs and not value.type.HasField("tensor_type"):
            raise FusedgeError(f"the input {value.name!r} is no tensor", where=where)
        if not tensor.HasField("shape"):
            raise FusedgeError(f"the input {value.name!r} has no shape", where=where)
        for index, dim in enumerate(tensor.shape.dim):
            if not dim.HasField("dim_value"):
                named = f"dim {dim.dim_param!r}" if dim.dim_param else f"dim {index}"
                raise FusedgeError(
                    f"the size of {named} of the input {value.name!r} is not given", where=where
                )
        _check_dims(value.name, [dim.dim_value for dim in tensor.shape.dim], where)


def _infer(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    try:
        inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(
            model, data_prop=_carried(model.graph) <= _MAX_FOLDED
        )
    except Exception as error:  # of several kinds, from C++
        raise FusedgeError(f"its shapes contradict each other: {error}", where=where) from None
    return inferred


def _whole_numbers(tensor: onnx.TensorProto) -> int:
    whole = tensor.data_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    return math.prod(tensor.dims) if whole else 0


def _carried(graph: onnx.GraphProto) -> int:
    """No more numbers than this does inference carry along as values; it has no bound of its own."""
    numbers: dict[str, int] = {}
    total = 0
    for each in _all_graphs(graph):
        numbers |= {tensor.name: _whole_numbers(tensor) for tensor in each.initializer}
        for node in each.node:
            if node.op_type not in _CARRIED:
                continue
            sizes = [numbers.get(name, 0) for name in node.input]
            sizes += [_whole_numbers(a.t) + len(a.ints) for a in node.attribute]
            size = sum(sizes) if node.op_type == "Concat" else max(sizes, default=0)
            total += size
            numbers |= dict.fromkeys(node.output, size)
    return total


def tensors_of(graph: onnx.GraphProto, where: str) -> dict[str, Tensor]:
    """What is known of the tensors of one graph, without those of bodies in it.

    Raises FusedgeError for sizes that no tensor can have.
    """
    found = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        shape = None
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shape = tuple(int(dim.dim_value) for dim in tensor.shape.dim)
            _check_dims(value.name, shape, where)
        if value.name not in found or shape is not None:
            found[value.name] = Tensor(tensor.elem_type, shape)
    for constant in graph.initializer:
        found[constant.name] = Tensor(constant.data_type, tuple(constant.dims))
    for sparse in graph.sparse_initializer:
        found[sparse.values.name] = Tensor(sparse.values.data_type, tuple(sparse.dims))
    return found


def _fold(model: onnx.ModelProto, found: SizedGraph) -> bool:
    """Evaluate what is known of sizes, and put it into the graph as constants. Whether there was any."""
    graph = model.graph
    if not found.sizes:
        for tensor in graph.initializer:
            with suppress(Exception):  # one without its data says nothing of sizes
                found.sizes[tensor.name] = numpy_helper.to_array(tensor)
    left, changed = [], False
    for node in graph.node:
        values = _evaluate(node, found) if found.folded < _MAX_FOLDED else None
        if values is None:
            left.append(node)
            continue
        changed = True
        for name, value in values.items():
            found.sizes[name] = value
            found.folded += value.size
            graph.initializer.append(numpy_helper.from_array(value, name))
    if changed:
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in left]
        del graph.node[:]
        graph.node.extend(nodes)
        made = found.sizes.keys()
        infos = [value for value in graph.value_info if value.name not in made]
        del graph.value_info[:]
        graph.value_info.extend(infos)
    return changed


def _evaluate(node: onnx.NodeProto, found: SizedGraph) -> dict[str, NDArray[np.generic]] | None:
    """The values of a node's outputs, None where they are not known or not small."""
    if node.domain not in ("", "ai.onnx") or not node.input or not node.output:
        return None
    if node.op_type in ("Shape", "Size"):
        shape = found.tensors.get(node.input[0], Tensor()).shape
        if node.input[0] in found.sizes:
            shape = found.sizes[node.input[0]].shape
        if shape is None:
            return None
        if node.op_type == "Size":
            return {node.output[0]: np.array(math.prod(shape), np.int64)}
        start = next((a.i for a in node.attribute if a.name == "start"), 0)
        end = next((a.i for a in node.attribute if a.name == "end"), len(shape))
        return {node.output[0]: np.array(shape[start:end], np.int64)}
    if node.op_type not in _FOLDED:
        return None
    if any(name and name not in found.sizes for name in node.input):
        return None
    feeds = {name: found.sizes[name] for name in node.input if name}
    try:
        if _size_bound(node.op_type, [feeds[name] for name in node.input if name]) > _SMALL:
            return None
        with np.errstate(all="ignore"):
            results = _reference(node, feeds, found.opset).run(None, feeds)
        named = zip(node.output, results, strict=True)
        return {name: np.asarray(each) for name, each in named if name}
    except Exception:  # a node that fails at run time: its sizes stay unknown, which is told
        return None


def _size_bound(operator: str, values: list[NDArray[np.generic]]) -> int:
    """No result has more numbers than this; a hostile graph may ask for any."""
    shapes = [value.shape for value in values]
    if operator == "ConstantOfShape":
        return math.prod(int(each) for each in values[0].flat)
    if operator == "Expand":
        return math.prod(int(max(each, 1)) for each in values[1].flat) * values[0].size
    if operator == "Tile":
        return values[0].size * math.prod(int(each) for each in values[1].flat)
    if operator == "Range":
        start, limit, delta = (float(each) for each in values)
        return math.ceil(abs((limit - start) / delta))
    if operator == "Gather":
        return values[0].size * max(values[1].size, 1)
    if operator in ("Concat", "Slice", "Split", "GatherElements", "ScatterElements", "ScatterND"):
        return sum(value.size for value in values)
    if operator in ("Reshape", "Squeeze", "Unsqueeze", "ReduceProd", "ReduceSum", "Clip"):
        return values[0].size
    return math.prod(np.broadcast_shapes(*shapes))


def _reference(
    node: onnx.NodeProto, feeds: Mapping[str, NDArray[np.generic]], opset: int
) -> ReferenceEvaluator:
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in feeds.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model)


def _bits(dtype: int) -> int | None:
    """Bits of one number of an ONNX type, None where that is not fixed or the type is unknown."""
    name = next((n for n, v in onnx.TensorProto.DataType.items() if v == dtype), "UNDEFINED")
    if name in ("UNDEFINED", "STRING"):
        return None
    if name == "BOOL":
        return 8
    digits = name.partition("E")[0] if name.startswith("FLOAT") else name
    return int("".join(c for c in digits if c.isdigit()) or 32)
