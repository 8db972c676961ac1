"""A bundle small enough to compute by hand: no torch, two modalities, one of them with state.

Encoder of modality m: `mean` = mean of the window, `total` = sum of all means so far (state);
embedding = [mean, total]. Head: logits = sum over present m of `mean_m` * WEIGHTS[m] + BIAS.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from fusedge.bundle.archive import Bundle, file_entry, write_bundle
from fusedge.bundle.manifest import (
    FORMAT_VERSION,
    Channel,
    EventRule,
    Fusion,
    Graph,
    Manifest,
    Modality,
    Output,
    Part,
    Provenance,
    StatePair,
    TensorSpec,
)

LABELS = ("left", "right")
WEIGHTS = {"fast": (2.0, -2.0), "slow": (-1.0, 1.0)}
BIAS = (0.25, 0.0)
CHANNELS = 2


def modality(name: str, **changes: Any) -> Modality:
    """`fast`: 10 Hz, 0.5 s windows; `slow`: 1 Hz, 1 s windows, stamps 0.5 s late."""
    fast = name == "fast"
    fields: dict[str, Any] = {
        "name": name,
        "kind": "series",
        "description": f"a {name} test signal",
        "channels": tuple(
            Channel(name=f"c{i}", unit="1", minimum=-100, maximum=100) for i in range(CHANNELS)
        ),
        "rate_hz": 10 if fast else 1,
        "window_s": 0.5 if fast else 1,
        "hop_s": 0.5 if fast else 1,
        "resample": "hold",
        "max_hold_s": 0.25 if fast else 1.5,
        "latency_s": 0 if fast else 0.5,
        "lateness_s": 0.1,
        "max_age_s": 2 if fast else 5,
        "return_windows": 2,
        "min_valid": 0.5,
        "prepare": (),
    }
    return Modality(**{**fields, **changes})


def _save(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> bytes:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _tensor(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def encoder_onnx(samples: int, *, window_name: str = "window", poison: float = 0.0) -> bytes:
    """The encoder; `poison` is added as log(1 - poison * mean), NaN where that is negative."""
    nodes = [
        helper.make_node("Mul", [window_name, "valid"], ["masked"]),
        helper.make_node("ReduceMean", ["masked", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Mul", ["column", "poison"], ["scaled"]),
        helper.make_node("Sub", ["unit", "scaled"], ["rest"]),
        helper.make_node("Log", ["rest"], ["trap"]),
        helper.make_node("Add", ["column", "trap"], ["value"]),
        helper.make_node("Add", ["state_in.total", "value"], ["state_out.total"]),
        helper.make_node("Concat", ["value", "state_out.total"], ["embedding"], axis=1),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("poison", TensorProto.FLOAT, [1], [poison]),
        helper.make_tensor("unit", TensorProto.FLOAT, [1], [1.0]),
    ]
    inputs = [
        _tensor(window_name, samples, CHANNELS),
        _tensor("valid", samples, CHANNELS),
        _tensor("state_in.total", 1),
    ]
    return _save(nodes, inputs, [_tensor("embedding", 2), _tensor("state_out.total", 1)], constants)


def head_onnx(
    names: tuple[str, ...], weights: Mapping[str, tuple[float, float]] = WEIGHTS
) -> bytes:
    """The head, without any use of the ages but for a term of zero weight."""
    nodes = [helper.make_node("ReduceMean", ["age", "axis"], ["mean_age"], keepdims=1)]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("bias", TensorProto.FLOAT, [2], BIAS),
        helper.make_tensor("zero", TensorProto.FLOAT, [1, 2], [0.0, 0.0]),
        helper.make_tensor("first", TensorProto.INT64, [1], [0]),
    ]
    total = "unaged"
    nodes.append(helper.make_node("MatMul", ["mean_age", "zero"], [total]))
    for index, name in enumerate(names):
        constants += [
            helper.make_tensor(f"column{index}", TensorProto.INT64, [1], [index]),
            helper.make_tensor(f"weight{index}", TensorProto.FLOAT, [1, 2], weights[name]),
        ]
        nodes += [
            helper.make_node("Gather", [f"embedding.{name}", "first"], [f"mean{index}"], axis=1),
            helper.make_node("Gather", ["presence", f"column{index}"], [f"there{index}"], axis=1),
            helper.make_node("Mul", [f"mean{index}", f"there{index}"], [f"seen{index}"]),
            helper.make_node("MatMul", [f"seen{index}", f"weight{index}"], [f"vote{index}"]),
            helper.make_node("Add", [total, f"vote{index}"], [f"total{index}"]),
        ]
        total = f"total{index}"
    nodes.append(helper.make_node("Add", [total, "bias"], ["logits"]))
    count = len(names)
    inputs = [_tensor(f"embedding.{n}", 2) for n in names]
    inputs += [_tensor("presence", count), _tensor("age", count)]
    return _save(nodes, inputs, [_tensor("logits", 2)], constants)


def _spec(name: str, role: Any, *shape: int, modality: str | None = None) -> TensorSpec:
    return TensorSpec(
        name=name, role=role, dtype="float32", shape=("batch", *shape), modality=modality
    )


def _graph(file: str) -> Graph:
    return Graph(file=file, precision="fp32", opset=18, nodes=1)


def tiny_manifest(
    modalities: tuple[Modality, ...],
    files: dict[str, bytes],
    decision_rate_hz: float = 1,
    **changes: Any,
) -> Manifest:
    """The manifest of the tiny model over `files`."""
    parts = []
    for spec in modalities:
        window = (spec.window_samples, CHANNELS)
        parts.append(
            Part(
                name=f"{spec.name}_encoder",
                kind="encoder",
                modality=spec.name,
                rate_hz=1 / spec.hop_s,
                inputs=(
                    _spec("window", "window", *window),
                    _spec("valid", "valid", *window),
                    _spec("state_in.total", "state_in", 1),
                ),
                outputs=(
                    _spec("embedding", "embedding", 2),
                    _spec("state_out.total", "state_out", 1),
                ),
                state=(
                    StatePair(input="state_in.total", output="state_out.total", initial="zeros"),
                ),
                graphs=(_graph(f"parts/{spec.name}.onnx"),),
            )
        )
    names = tuple(m.name for m in modalities)
    parts.append(
        Part(
            name="head",
            kind="head",
            rate_hz=1,
            inputs=(
                *(_spec(f"embedding.{n}", "embedding", 2, modality=n) for n in names),
                _spec("presence", "presence", len(names)),
                _spec("age", "age", len(names)),
            ),
            outputs=(_spec("logits", "logits", 2),),
            graphs=(_graph("parts/head.onnx"),),
        )
    )
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": "tiny",
        "description": "a model to compute by hand",
        "modalities": modalities,
        "parts": tuple(parts),
        "fusion": Fusion(
            kind="sum", decision_rate_hz=decision_rate_hz, modalities=names, embedding_size=2
        ),
        "outputs": (
            Output(
                name="side",
                logits="logits",
                labels=LABELS,
                temperature=1,
                smoothing_s=0,
                hysteresis=0,
            ),
        ),
        "events": (
            EventRule(
                name="jolt",
                modality=names[0],
                channel="c0",
                direction="both",
                levels=(10, 20),
                lowpass_hz=50,
                hold_s=0.2,
                release=0.7,
            ),
        ),
        "provenance": Provenance(
            task="tiny",
            weights_sha256="0" * 64,
            training_data="none",
            weights_licence="Apache-2.0",
            attribution="none",
            tools={},
        ),
        "files": {name: file_entry(data) for name, data in files.items()},
    }
    return Manifest(**{**fields, **changes})


def write_tiny_bundle(
    path: Path,
    *,
    modalities: tuple[Modality, ...] | None = None,
    poison: float = 0.0,
    window_name: str = "window",
    **changes: Any,
) -> Bundle:
    """Write the tiny bundle; `changes` are fields of the manifest."""
    specs = modalities or (modality("fast"), modality("slow"))
    files = {
        f"parts/{m.name}.onnx": encoder_onnx(
            m.window_samples, poison=poison, window_name=window_name
        )
        for m in specs
    }
    files["parts/head.onnx"] = head_onnx(tuple(m.name for m in specs))
    return write_bundle(path, tiny_manifest(specs, files, **changes), files)
