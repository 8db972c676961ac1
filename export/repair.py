"""Rewrite a graph that TensorRT refuses, without changing what it computes.

Rewrites are tried on what the trial refuses, and kept where they bring the trial further. The parity gate
judges the result once more.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxscript.optimizer
from numpy.typing import NDArray
from onnx import TensorProto, defs, helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from fusedge.bundle.inference import open_session
from fusedge.export.byte_forms import bytes_as_floats
from fusedge.export.operator_forms import GraphFacts, other_form
from fusedge.export.refusal import Refusal

Array = NDArray[Any]

MOST_TRIALS = 32
_BODIES = "fusedge.repair"  # the domain of function bodies on their way into the graph
_OPEN_DIM = 2  # the size of a named dim in a comparison
# Sums in another order round differently: by at most 7e-7 over the 420 outputs of repaired node tests,
# whose sums are short.
_TOLERANCE = 1e-4
_HALF_TOLERANCE = 2e-2
_UINT8 = TensorProto.UINT8
# As TensorRT-RTX 1.7.1 reads them; a version that reads fewer gives its own reason.
_KNOWN_KINDS = frozenset(
    TensorProto.DataType.Value(name)
    for name in (
        *("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT4E2M1"),
        *("INT8", "INT32", "INT64", "UINT8", "BOOL", "INT4"),
    )
)
_BEYOND_NUMPY = frozenset(
    kind
    for kind in TensorProto.DataType.values()
    if kind not in (TensorProto.UNDEFINED, TensorProto.STRING)
    and helper.tensor_dtype_to_np_dtype(kind).kind == "V"
)
_HALF_KINDS = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


Trial = Callable[[bytes], Refusal | None]


@dataclass(frozen=True)
class Repaired:
    """A graph that TensorRT takes and what was rewritten in it; or the graph as it was and the refusal."""

    graph: onnx.ModelProto
    repairs: tuple[str, ...]
    refusal: Refusal | None


def repair(
    graph: onnx.ModelProto, trial: Trial, feeds: Mapping[str, Array] | None = None
) -> Repaired:
    """Rewrite what the trial refuses until it takes the graph; `graph` is left as it is.

    A rewrite counts only if the graph gives the same results on `feeds` (random ones if None, named dims
    at 2) in ONNX Runtime, or in onnx's reference where ONNX Runtime cannot run it. At most 32 trials.
    Where no rewrites lead to a graph that is taken, the refusal that got furthest is reported. A build that
    takes too long is not tried again.
    """
    refusal = trial(graph.SerializeToString())
    if refusal is None or refusal.stage == "timeout":
        return Repaired(graph, (), refusal)
    search = _Search(trial, _Original(graph, feeds), furthest=refusal)
    found = search.go(graph, refusal, ())
    return found or Repaired(graph, (), _explained(graph, search.furthest))


def _explained(graph: onnx.ModelProto, refusal: Refusal) -> Refusal:
    """A refusal in clear words, where TensorRT's own are an assertion of its source."""
    if not refusal.operator and (node := _named(graph, refusal.node)) is not None:
        refusal = replace(refusal, node=node_name(node), operator=node.op_type)
    if refusal.operator and re.search(r"^false$|creator|[Pp]lugin", refusal.reason):
        return replace(refusal, reason=f"this TensorRT has no operator {refusal.operator}")
    if refusal.node or refusal.operator or not re.search("[tT]ype", refusal.reason):
        return refusal
    values = (*graph.graph.input, *graph.graph.output)
    kinds = [(value.name, value.type.tensor_type.elem_type) for value in values]
    kinds += [(tensor.name, tensor.data_type) for tensor in graph.graph.initializer]
    for name, kind in kinds:
        if kind not in _KNOWN_KINDS:
            words = TensorProto.DataType.Name(kind).lower() if kind else "no tensor"
            return replace(refusal, reason=f"{name} is {words}, which this TensorRT does not have")
    return refusal


@dataclass
class _Search:
    """Depth first over rewrites; a refusal that was met before is a dead end."""

    trial: Trial
    original: _Original
    furthest: Refusal
    met: set[Refusal] = field(default_factory=set)
    trials: int = 0
    depth: int = 0

    def go(
        self, graph: onnx.ModelProto, refusal: Refusal, done: tuple[str, ...]
    ) -> Repaired | None:
        self.met.add(refusal)
        if len(done) > self.depth and not _inside(refusal.node, self.furthest.node):
            self.depth, self.furthest = len(done), refusal
        for text, candidate in _candidates(graph, refusal):
            if self.trials == MOST_TRIALS:
                return None
            self.trials += 1
            answer = self.trial(candidate.SerializeToString())
            if answer in self.met or (answer is not None and answer.stage == "timeout"):
                continue
            if not self.original.equals(candidate):
                continue
            steps = (*done, text)
            if answer is None:
                return Repaired(candidate, steps, None)
            if found := self.go(candidate, answer, steps):
                return found
        return None


def _inside(name: str | None, outer: str | None) -> bool:
    """Whether a node is part of what another was rewritten to: the user knows the other."""
    return bool(outer and name and name.startswith(f"{outer}/"))


def _candidates(graph: onnx.ModelProto, refusal: Refusal) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Rewrites that may help, most specific first, each with the words for the report."""
    if graph.functions:
        yield "functions inlined", inline_local_functions(graph, convert_version=True)
        return  # nothing else looks into functions
    facts = GraphFacts(graph)
    refused = _refused(graph, refusal)
    kinds = "/".join(dict.fromkeys(graph.graph.node[i].op_type for i in refused))
    for words, rewrite in (
        ("unused outputs dropped", _drop_unused),
        ("in other operators", _with_other_forms),
        ("by its function body", _with_bodies),
    ):
        if (candidate := rewrite(graph, refused, facts)) is not None:
            yield f"{kinds} {words}", candidate
    if (candidate := _folded(graph)) is not None:
        yield "constants folded", candidate
    for words, bytes_ in (("uint8", (_UINT8,)), ("int8 and uint8", (_UINT8, TensorProto.INT8))):
        if (candidate := bytes_as_floats(graph, bytes_)) is not None:
            yield f"{words} in float32", candidate


def node_name(node: onnx.NodeProto) -> str:
    """The name of a node; for one without a name, what TensorRT's parser calls it."""
    return node.name or f"node_of_{next(iter(node.output), '')}"


def _refused(graph: onnx.ModelProto, refusal: Refusal) -> list[int]:
    """Which nodes to rewrite: the refused one and those that are built alike, by index.

    A refusal that names no node may name its kind.
    """
    nodes = list(graph.graph.node)
    if (named := _named(graph, refusal.node)) is not None:
        like = _signature(named)
        return [i for i, node in enumerate(nodes) if _signature(node) == like]
    if refusal.operator:
        return [i for i, node in enumerate(nodes) if node.op_type == refusal.operator]
    said = set(re.findall(r"\w+", f"{refusal.reason} {refusal.node or ''}"))
    return [i for i, n in enumerate(nodes) if n.op_type in said or not said.isdisjoint(n.output)]


def _named(graph: onnx.ModelProto, name: str | None) -> onnx.NodeProto | None:
    """The node of this name; TensorRT calls its layers after their node, with `_` and more behind it."""
    found = [n for n in graph.graph.node if f"{name}_".startswith(f"{node_name(n)}_")]
    return max(found, key=lambda node: len(node_name(node)), default=None)


def _signature(node: onnx.NodeProto) -> tuple[object, ...]:
    """What nodes have in common that TensorRT takes or refuses alike."""
    settings = sorted((a.name, a.SerializeToString()) for a in node.attribute if a.type != a.TENSOR)
    return (
        *(node.domain, node.op_type, tuple(settings)),
        *(tuple(map(bool, node.input)), tuple(map(bool, node.output))),
    )


def _drop_unused(
    graph: onnx.ModelProto, refused: Sequence[int], facts: GraphFacts
) -> onnx.ModelProto | None:
    """Without the optional outputs that nobody reads."""
    used = set(_read_names(graph.graph))
    copy = _copy(graph)
    changed = False
    for index in refused:
        node = copy.graph.node[index]
        while len(node.output) > 1 and node.output[-1] not in used:
            del node.output[-1]
            changed = True
    return copy if changed else None


def _read_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _read_names(inner)


def _with_other_forms(
    graph: onnx.ModelProto, refused: Sequence[int], facts: GraphFacts
) -> onnx.ModelProto | None:
    """The refused nodes in operators that TensorRT has."""
    forms = {
        i: other_form(graph.graph.node[i], node_name(graph.graph.node[i]), facts) for i in refused
    }
    if not any(forms.values()):
        return None
    copy = _copy(graph)
    del copy.graph.node[:]
    for index, node in enumerate(graph.graph.node):
        form = forms.get(index)
        copy.graph.node.extend(form.nodes if form else [node])
        copy.graph.initializer.extend(form.constants if form else [])
    return copy


def _with_bodies(
    graph: onnx.ModelProto, refused: Sequence[int], facts: GraphFacts
) -> onnx.ModelProto | None:
    """The refused nodes by the bodies that ONNX's standard gives for their operators."""
    copy = _copy(graph)
    for index in refused:
        node = copy.graph.node[index]
        function = _body(node, facts)
        if function is None:
            continue
        name = node_name(node)
        for number, inner in enumerate(function.node):
            inner.name = f"{name}/{inner.op_type}.{number}"
        function.domain, function.name = _BODIES, f"{node.op_type}.{index}"
        del function.opset_import[:]
        function.opset_import.extend(graph.opset_import)
        copy.functions.append(function)
        given = {attribute.name for attribute in node.attribute}
        schema = defs.get_schema(node.op_type, facts.versions[node.domain], node.domain)
        defaults = (attribute.default_value for attribute in schema.attributes.values())
        node.attribute.extend(a for a in defaults if a.name and a.name not in given)
        node.domain, node.op_type = _BODIES, function.name
    if not copy.functions:
        return None
    copy.opset_import.append(helper.make_opsetid(_BODIES, 1))
    inlined = inline_local_functions(copy)
    kept = [entry for entry in inlined.opset_import if entry.domain != _BODIES]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def _body(node: onnx.NodeProto, facts: GraphFacts) -> onnx.FunctionProto | None:
    version = facts.versions.get(node.domain, 1)
    if not defs.has(node.op_type, version, node.domain):
        return None
    schema: Any = defs.get_schema(node.op_type, version, node.domain)
    plain = [v for v in schema.function_opset_versions if v <= version]
    dependent = [v for v in schema.context_dependent_function_opset_versions if v <= version]
    if plain:
        data = schema.get_function_with_opset_version(max(plain))
    elif dependent:
        types = [facts.types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
        data = schema.get_context_dependent_function_with_opset_version(
            max(dependent), node.SerializeToString(), types
        )
    else:
        return None
    return onnx.FunctionProto.FromString(data) if data else None


def _folded(graph: onnx.ModelProto) -> onnx.ModelProto | None:
    """With all that depends on constants and known shapes computed."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)  # it warns of what it leaves as it is
    try:
        folded: onnx.ModelProto = onnxscript.optimizer.optimize(_copy(graph))
    except Exception:  # it has no error kind of its own; this rewrite is one of several
        return None
    finally:
        logging.disable(level)
    return folded if _kinds(folded) != _kinds(graph) else None


def _kinds(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node if node.op_type != "Constant"]


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


class _Original:
    """A graph's results, to compare those of its rewritten forms with."""

    def __init__(self, graph: onnx.ModelProto, feeds: Mapping[str, Array] | None) -> None:
        self._graph = graph
        self._feeds = random_feeds(graph) if feeds is None else feeds
        self._results: list[Array] | None = None

    def equals(self, other: onnx.ModelProto) -> bool:
        """Whether another graph gives the same; True if this one runs nowhere: nothing to compare with."""
        if self._results is None:
            self._results = run(self._graph, self._feeds) or []
        if not self._results:
            return True
        found = run(other, self._feeds)
        tolerance = _HALF_TOLERANCE if _has_half(self._graph) else _TOLERANCE
        return found is not None and all(
            close(a, b, tolerance) for a, b in zip(self._results, found, strict=True)
        )


def _has_half(graph: onnx.ModelProto) -> bool:
    facts = GraphFacts(graph)
    return any(facts.kind(name) in _HALF_KINDS for name in facts.types)


def close(wanted: object, found: object, tolerance: float) -> bool:
    """Whether two results are equal but for `tolerance` times the greatest magnitude (at least 1)."""
    if isinstance(wanted, list) or isinstance(found, list):  # a sequence of tensors
        return (
            isinstance(wanted, list)
            and isinstance(found, list)
            and len(wanted) == len(found)
            and all(close(a, b, tolerance) for a, b in zip(wanted, found, strict=True))
        )
    a, b = np.asarray(wanted), np.asarray(found)
    if a.shape != b.shape:
        return False
    if a.dtype.kind not in "fV":
        return bool(np.array_equal(a, b))
    wide, other = a.astype(np.float64), b.astype(np.float64)
    scale = max(1.0, float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0)))
    return bool(np.allclose(other, wide, rtol=0, atol=tolerance * scale, equal_nan=True))


def run(graph: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array] | None:
    """A graph's outputs by ONNX Runtime, or onnx's reference; None where neither can run it."""
    wanted = [value.name for value in graph.graph.input]
    given = {name: feeds[name] for name in wanted if name in feeds}
    starts: list[Callable[[], Any]] = [
        lambda: open_session(graph.SerializeToString(), "fp16"),  # whatever the nodes compute in
        lambda: ReferenceEvaluator(graph),
    ]
    values = (*graph.graph.input, *graph.graph.output)
    if any(value.type.tensor_type.elem_type in _BEYOND_NUMPY for value in values):
        del starts[0]  # ONNX Runtime's Python interface has no arrays of them
    for start in starts:
        try:
            results: list[Array] = start().run(None, given)
        except Exception as error:  # each has many kinds, all of which mean that it cannot
            logging.getLogger(__name__).debug("a graph cannot be run: %s", error)
        else:
            return results
    return None


def random_feeds(
    graph: onnx.ModelProto, sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Inputs of a graph: normal numbers, whole numbers of 0 and 1; named dims as given, or 2."""
    known = sizes or {}
    generator = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in graph.graph.input:
        tensor = value.type.tensor_type
        if tensor.elem_type == TensorProto.UNDEFINED:  # a sequence or an optional value
            continue
        shape = [
            dim.dim_value if dim.HasField("dim_value") else known.get(dim.dim_param, _OPEN_DIM)
            for dim in tensor.shape.dim
        ]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        floating = tensor.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE, *_HALF_KINDS)
        values = generator.standard_normal(shape) if floating else generator.integers(0, 2, shape)
        feeds[value.name] = np.asarray(values).astype(dtype)
    return feeds
