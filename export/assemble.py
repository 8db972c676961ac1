"""The manifest of a bundle and the files that it lists, from all that an export has made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from pydantic import ValidationError

from fusedge.bundle.archive import file_entry
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import FORMAT_VERSION, Engine, Graph, Manifest, Part
from fusedge.export.engines import Engines
from fusedge.export.graphs import Proved
from fusedge.export.packages import tool_versions
from fusedge.export.part import ModulePart
from fusedge.export.precision import reduced_nodes
from fusedge.export.subject import Subject


def assemble(
    subject: Subject, proved: Sequence[Proved], engines: Engines
) -> tuple[Manifest, dict[str, bytes]]:
    """`proved` begins with the float32 graphs; a graph that is the same at another precision is one file.

    Raises FusedgeError where the subject's facts do not fit its parts.
    """
    files: dict[str, bytes] = {**engines.files, **subject.documents}
    parts = []
    for part in subject.parts:
        graphs = []
        for made in proved:
            content = made.graphs[part.name]
            same = content == proved[0].graphs[part.name]
            file = f"parts/{part.name}.{proved[0].precision if same else made.precision}.onnx"
            files[file] = content
            graphs.append(_graph(file, made, content))
        initial = {name: f"state/{part.name}.{name}.f32" for name in part.initial}
        files |= {initial[n]: v.astype("<f4").tobytes() for n, v in part.initial.items()}
        parts.append(_part(part, tuple(graphs), engines.entries.get(part.name, ()), initial))
    tools = {**subject.provenance.tools, **tool_versions()}
    tools |= {e.flavour: e.version for row in engines.entries.values() for e in row}
    try:
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=subject.name,
            description=subject.description,
            modalities=subject.modalities,
            parts=tuple(parts),
            fusion=subject.fusion,
            outputs=subject.outputs,
            events=subject.events,
            provenance=subject.provenance.model_copy(update={"tools": tools}),
            parity=tuple(row for made in proved for row in made.parity),
            accuracy=dict(subject.accuracy),
            files={name: file_entry(files[name]) for name in sorted(files)},
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise FusedgeError(
            f"the task's description does not fit the model: {first['msg']}",
            where=".".join(str(step) for step in first["loc"]) or subject.name,
        ) from None
    return manifest, files


def _graph(file: str, made: Proved, content: bytes) -> Graph:
    model = onnx.load_model_from_string(content)
    return Graph(
        file=file,
        precision=made.precision,
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        nodes=len(model.graph.node),
        precision_by_node=reduced_nodes(model),
    )


def _part(
    part: ModulePart,
    graphs: tuple[Graph, ...],
    engines: tuple[Engine, ...],
    initial: Mapping[str, str],
) -> Part:
    return Part(
        name=part.name,
        kind=part.kind,
        modality=part.modality,
        rate_hz=part.rate_hz,
        inputs=part.inputs,
        outputs=part.outputs,
        state=tuple(
            pair.model_copy(update={"initial": initial.get(pair.input, pair.initial)})
            for pair in part.state
        ),
        dims=dict(part.dims),
        graphs=graphs,
        engines=engines,
        weights=part.weights,
    )
