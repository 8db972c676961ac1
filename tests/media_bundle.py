"""A bundle of a series, a camera and a microphone, small enough to compute by hand.

The encoder of each: `mean` = mean of the window (of a picture in 0 to 1), `total` = sum of all means
so far (state); embedding = [mean, total]. The head is that of the tiny bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from fusedge.bundle.archive import Bundle, write_bundle
from fusedge.bundle.manifest import (
    Channel,
    EventRule,
    Graph,
    Modality,
    Part,
    StatePair,
    TensorSpec,
)
from tests.tiny_bundle import head_onnx, tiny_manifest

WEIGHTS = {"motion": (2.0, -2.0), "view": (-1.0, 1.0), "sound": (1.0, 0.5)}
PERIOD_S = 0.25
_COMMON: dict[str, Any] = {
    "latency_s": 0,
    "lateness_s": 0.1,
    "max_age_s": 1,
    "return_windows": 2,
    "min_valid": 0.5,
    "prepare": (),
}


def _channels(names: str, low: float, high: float, frozen_s: float | None) -> tuple[Channel, ...]:
    return tuple(
        Channel(name=name, unit="1", minimum=low, maximum=high, frozen_s=frozen_s) for name in names
    )


MODALITIES = (
    Modality(
        name="motion",
        kind="series",
        description="a sensor at 20 Hz",
        channels=_channels("xy", -10, 10, 2.0),
        rate_hz=20,
        window_s=0.5,
        hop_s=0.25,
        resample="hold",
        max_hold_s=0.15,
        **_COMMON,
    ),
    Modality(
        name="view",
        kind="image",
        description="a camera, two pictures a window",
        channels=_channels("rgb", 0, 255, 2.0),
        height=6,
        width=8,
        rate_hz=10,
        window_s=0.2,
        hop_s=0.2,
        resample="newest",
        max_hold_s=0.2,
        **_COMMON,
    ),
    Modality(
        name="sound",
        kind="audio",
        description="a microphone",
        channels=_channels("m", -1, 1, None),
        rate_hz=1000,
        window_s=0.25,
        hop_s=0.25,
        resample="contiguous",
        max_hold_s=0.1,
        **_COMMON,
    ),
)


def _encoder_onnx(spec: Modality) -> bytes:
    image = spec.kind == "image"
    axes = list(range(1, 1 + len(spec.window_shape)))
    nodes = [
        helper.make_node("Cast", ["window"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Add", ["state_in.total", "column"], ["state_out.total"]),
        helper.make_node("Concat", ["column", "state_out.total"], ["embedding"], axis=1),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 255 if image else 1.0]),
    ]

    def value(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, ["batch", *shape])

    kind = TensorProto.UINT8 if image else TensorProto.FLOAT
    inputs = [value("window", *spec.window_shape, kind=kind), value("state_in.total", 1)]
    if spec.kind == "series":
        inputs.append(value("valid", *spec.valid_shape))
        nodes[0] = helper.make_node("Mul", ["window", "valid"], ["number"])
    outputs = [value("embedding", 2), value("state_out.total", 1)]
    graph = helper.make_graph(nodes, "media", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _spec(name: str, role: Any, *shape: int, dtype: Any = "float32", of: str | None = None) -> Any:
    return TensorSpec(name=name, role=role, dtype=dtype, shape=("batch", *shape), modality=of)


def _graphs(file: str) -> tuple[Graph, ...]:
    return (Graph(file=file, precision="fp32", opset=18, nodes=1),)


def _encoder(spec: Modality) -> Part:
    dtype = "uint8" if spec.kind == "image" else "float32"
    valid = (_spec("valid", "valid", *spec.valid_shape),) if spec.kind == "series" else ()
    return Part(
        name=f"{spec.name}_encoder",
        kind="encoder",
        modality=spec.name,
        rate_hz=1 / spec.hop_s,
        inputs=(
            _spec("window", "window", *spec.window_shape, dtype=dtype),
            _spec("state_in.total", "state_in", 1),
            *valid,
        ),
        outputs=(_spec("embedding", "embedding", 2), _spec("state_out.total", "state_out", 1)),
        state=(StatePair(input="state_in.total", output="state_out.total", initial="zeros"),),
        graphs=_graphs(f"parts/{spec.name}.onnx"),
    )


def _head() -> Part:
    names = tuple(spec.name for spec in MODALITIES)
    return Part(
        name="head",
        kind="head",
        rate_hz=1 / PERIOD_S,
        inputs=(
            *(_spec(f"embedding.{name}", "embedding", 2, of=name) for name in names),
            _spec("presence", "presence", 3),
            _spec("age", "age", 3),
        ),
        outputs=(_spec("logits", "logits", 2),),
        graphs=_graphs("parts/head.onnx"),
    )


def write_media_bundle(
    path: Path,
    modalities: tuple[Modality, ...] = MODALITIES,
    fronts: Sequence[tuple[Part, bytes]] = (),
    **changes: Any,
) -> Bundle:
    """Write the bundle, maybe with modalities that differ in size and with the parts of front ends;
    `changes` are fields of the manifest.
    """
    files = {f"parts/{spec.name}.onnx": _encoder_onnx(spec) for spec in modalities}
    files |= {part.graphs[0].file: graph for part, graph in fronts}
    files["parts/head.onnx"] = head_onnx(tuple(spec.name for spec in modalities), WEIGHTS)
    jolt = EventRule(
        name="jolt",
        modality="motion",
        channel="x",
        direction="both",
        levels=(1.5,),
        lowpass_hz=5,
        hold_s=0.1,
        release=0.7,
    )
    fields: dict[str, Any] = {
        "name": "media",
        "decision_rate_hz": 1 / PERIOD_S,
        "parts": (*map(_encoder, modalities), *(part for part, _ in fronts), _head()),
        "events": (jolt,),
    }
    return write_bundle(path, tiny_manifest(modalities, files, **{**fields, **changes}), files)
