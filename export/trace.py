"""Second stage: a part becomes an ONNX graph.

torch's dynamo exporter is used. Nothing of the machine stays in the graph (it would carry stack traces
with file paths), and nodes are named after the user's modules: `encoder.conv/conv1d`.
"""

from __future__ import annotations

import ast
import io
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr

import onnx
import torch
from onnx.helper import find_min_ir_version_for

from fusedge.bundle.errors import FusedgeError
from fusedge.export.graph import check_graph
from fusedge.export.part import ModulePart

OPSETS = (18, 19, 20, 21, 22)  # 18 is the exporter's least; above 22 attention does not build
_TRACED_BATCH = 2  # 1 is taken for a constant
_SCOPES = "pkg.torch.onnx.name_scopes"


def trace(part: ModulePart, opset: int = 18) -> onnx.ModelProto:
    """The ONNX graph of a part, self-contained, with a free batch; the same part gives the same bytes.

    Raises FusedgeError with the exporter's reason.
    """
    if opset not in OPSETS:
        raise FusedgeError(
            f"cannot export at opset {opset}", where="trace", hint=f"{OPSETS[0]} to {OPSETS[-1]}"
        )
    batch = torch.export.Dim("batch", min=1)
    # Distinct tensors: the exporter merges inputs that are one and the same object.
    example = part.zeros(_TRACED_BATCH)
    try:
        with _quiet():
            program = torch.onnx.export(
                part.module,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in part.inputs],
                output_names=[spec.name for spec in part.outputs],
                dynamic_shapes=(tuple({0: batch} for _ in example),),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's kinds and those of the user's module alike
        raise FusedgeError(
            f"cannot be traced: {_root_reason(error)}",
            where=f"part {part.name}",
            hint="replace what the message names by operations with a fixed control flow",
        ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _name_nodes(model.graph)
    interface = [spec.name for spec in (*part.inputs, *part.outputs)]
    _name_values(model.graph, {*interface, *part.module.state_dict()})
    _strip(model)
    model.ir_version = find_min_ir_version_for(list(model.opset_import))
    check_graph(model, part, "trace")
    return model


def _root_reason(error: BaseException) -> str:
    """The innermost cause: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name each node after the module and operation that it comes from."""
    seen: Counter[str] = Counter()
    for node in graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "[]")
        steps = [step for step in ast.literal_eval(scopes) if not step.startswith("_empty_nn")]
        name = "/".join(steps[-2:]).strip("/") or node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}.{seen[name]}"


def _name_values(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Name values after their nodes, and constants by their first use; those in `kept` stay.

    The exporter numbers them anew in each process, and not always in the same way.
    """
    used = dict.fromkeys(_inputs(graph))
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    order = [name for name in used if name in initializers]
    names = {name: f"constant.{i}" for i, name in enumerate(n for n in order if n not in kept)}
    for node in graph.node:
        for index, output in enumerate(node.output):
            if output and output not in kept:
                names[output] = f"{node.name}.out{index}"
    _rename(graph, names)
    tensors = [initializers[name] for name in order]
    for tensor in tensors:
        tensor.name = names.get(tensor.name, tensor.name)
    ordered = onnx.GraphProto(initializer=tensors)
    del graph.initializer[:]
    graph.initializer.extend(ordered.initializer)
    del graph.value_info[:]


def _inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs)


def _inputs(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for inner in _inner_graphs(node):
            yield from _inputs(inner)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in _inner_graphs(node):
            _rename(inner, names)


def _strip(model: onnx.ModelProto) -> None:
    """Drop metadata and documentation: stack traces hold paths of this machine."""
    graph = model.graph
    for item in (
        model,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.input,
        *graph.output,
        *model.functions,
        *(node for function in model.functions for node in function.node),
    ):
        del item.metadata_props[:]
        item.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: dozens of lines about its own internals, and whole graphs on an error."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
