"""Second stage: a part becomes an ONNX graph.

torch's dynamo exporter is used. Nothing of the machine stays in the graph (it would carry stack traces
with file paths), and nodes are named after the user's modules: `encoder.conv/conv1d`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass

import onnx
import torch
from onnx.helper import find_min_ir_version_for
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusedge.bundle.errors import FusedgeError
from fusedge.export import attention, recurrent
from fusedge.export.graph import check_graph, inner_graphs, values_read
from fusedge.export.part import ModulePart
from fusedge.export.recurrent import RecurrentAsOperations

OPSETS = (18, 19, 20, 21, 22)  # 18 is the exporter's least; above 22 attention does not build
_TRACED_SIZE = 2  # of the batch, at least of other free dims; 1 is taken for a constant
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Traced:
    """A part's graph with the torch program that it was made from.

    `values` tells which node of the program computes a value of the graph, by the value's name.
    """

    model: onnx.ModelProto
    program: torch.export.ExportedProgram
    values: Mapping[str, str]


def trace(part: ModulePart, opset: int = 18) -> onnx.ModelProto:
    """The ONNX graph of a part, self-contained, with its named dims free; the same part, the same bytes.

    Raises FusedgeError with the exporter's reason.
    """
    return trace_program(part, opset).model


def trace_program(part: ModulePart, opset: int = 18) -> Traced:
    """As `trace`, with what the graph was made from."""
    if opset not in OPSETS:
        raise FusedgeError(
            f"cannot export at opset {opset}", where="trace", hint=f"{OPSETS[0]} to {OPSETS[-1]}"
        )
    example = _example(part)
    try:
        # Fused attention has its result in another layout than the exporter gives it: a reshape of it
        # would be traced as a view, which then fails.
        with (
            _quiet(),
            RecurrentAsOperations(),
            attention.AttentionWithHeads(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            program = torch.onnx.export(
                part.module,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in part.inputs],
                output_names=[spec.name for spec in part.outputs],
                dynamic_shapes=_dynamic_shapes(part),
                custom_translation_table={**recurrent.TRANSLATIONS, **attention.TRANSLATIONS},
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
    exported = program.exported_program
    assert exported is not None
    model: onnx.ModelProto = program.model_proto
    _name_nodes(model.graph)
    interface = [spec.name for spec in (*part.inputs, *part.outputs)]
    names = _name_values(model.graph, {*interface, *part.module.state_dict()})
    _strip(model)
    model.ir_version = find_min_ir_version_for(list(model.opset_import))
    check_graph(model, part, "trace")
    # The exporter calls a value as torch calls the node that computes it.
    computed = {node.name for node in exported.graph.nodes}
    values = {new: old for old, new in names.items() if old in computed}
    returned = exported.graph_signature.user_outputs
    values |= {s.name: str(node) for s, node in zip(part.outputs, returned, strict=True)}
    return Traced(model, exported, values)


def _example(part: ModulePart) -> tuple[torch.Tensor, ...]:
    """Distinct tensors, for the exporter merges inputs that are one and the same object."""
    dims = {
        name: dim.model_copy(update={"usual": min(max(dim.usual, _TRACED_SIZE), dim.greatest)})
        for name, dim in part.dims.items()
    }
    return dataclasses.replace(part, dims=dims).zeros(_TRACED_SIZE)


def _dynamic_shapes(part: ModulePart) -> dict[str, object]:
    """The free dims of each argument of the module. Any batch will do, other dims keep their range."""
    free = {
        name: torch.export.Dim(name, min=1)
        if name == "batch"
        else torch.export.Dim(name, min=dim.least, max=dim.greatest)
        for name, dim in part.dims.items()
    }
    shapes = [
        {axis: free[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in part.inputs
    ]
    return dict(inspect.signature(part.module.forward).bind(*shapes).arguments)


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


def _name_values(graph: onnx.GraphProto, kept: Collection[str]) -> dict[str, str]:
    """Name values after their nodes, and constants by their first use; those in `kept` stay.

    The exporter numbers them anew in each process, and not always in the same way. Returns the new name
    of each renamed value.
    """
    used = dict.fromkeys(name for node in graph.node for name in values_read(node))
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
    return names


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in inner_graphs(node):
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
