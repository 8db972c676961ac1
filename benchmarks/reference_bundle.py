"""A small fusion bundle for benchmarks: camera, microphone and IMU, seven classes, random weights.

Video 1x112x112x3 uint8 at 15 Hz, sound 8000 samples at 16 kHz every 0.1 s, sensor 50x6 at 100 Hz
every 0.1 s, a decision every 0.1 s. Small enough that what is measured is the pipeline: all parts
together take 0.2 ms in a tight loop on one thread, 0.3 ms between other work. It recognises nothing.

    python -m benchmarks.reference_bundle OUT.fusedge
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusedge.bundle.archive import Bundle, file_entry, write_bundle
from fusedge.bundle.manifest import (
    FORMAT_VERSION,
    Channel,
    Fusion,
    Graph,
    Manifest,
    Modality,
    Output,
    Part,
    Provenance,
    TensorSpec,
)

EMBEDDING = 32
LABELS = tuple(f"class{index}" for index in range(7))
_COMMON: dict[str, Any] = {
    "latency_s": 0,
    "lateness_s": 0.05,
    "max_age_s": 0.5,
    "return_windows": 2,
    "min_valid": 0.5,
    "prepare": (),
}


def _channels(names: str, unit: str, minimum: float, maximum: float) -> tuple[Channel, ...]:
    return tuple(
        Channel(name=name, unit=unit, minimum=minimum, maximum=maximum) for name in names.split()
    )


MODALITIES = (
    Modality(
        name="video",
        kind="image",
        description="a camera, scaled down",
        channels=_channels("red green blue", "1", 0, 255),
        height=112,
        width=112,
        rate_hz=15,
        window_s=1 / 15,
        hop_s=1 / 15,
        resample="hold",
        max_hold_s=0.1,
        **_COMMON,
    ),
    Modality(
        name="sound",
        kind="audio",
        description="a microphone",
        channels=_channels("mono", "1", -1, 1),
        rate_hz=16_000,
        window_s=0.5,
        hop_s=0.1,
        resample="contiguous",
        max_hold_s=0.1,
        **_COMMON,
    ),
    Modality(
        name="sensor",
        kind="series",
        description="accelerometer and gyroscope",
        channels=_channels("ax ay az", "m/s^2", -80, 80) + _channels("gx gy gz", "rad/s", -40, 40),
        rate_hz=100,
        window_s=0.5,
        hop_s=0.1,
        resample="hold",
        max_hold_s=0.05,
        **_COMMON,
    ),
)


class _Builder:
    """Collects the nodes of a graph; each call gives the name of what its node gives."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def weight(self, *shape: int) -> str:
        spread = 1 / np.sqrt(np.prod(shape[1:]))
        return self.constant(self._random.normal(0, spread, shape).astype(np.float32))

    def constant(self, values: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, kind: str, *inputs: str, gives: str = "", **attributes: Any) -> str:
        name = gives or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def shape(self, *sizes: int) -> str:
        return self.constant(np.array(sizes, np.int64))

    def dense(self, value: str, inputs: int, outputs: int, gives: str = "") -> str:
        return self.node("Gemm", value, self.weight(outputs, inputs), transB=1, gives=gives)

    def model(self, inputs: list[Any], outputs: list[Any]) -> bytes:
        graph = helper.make_graph(self.nodes, "reference", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data


def _value(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def _video() -> bytes:
    b = _Builder(1)
    pixels = b.node("Reshape", "window", b.shape(-1, 112, 112, 3))
    pixels = b.node("Cast", b.node("Transpose", pixels, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    value = b.node("Mul", pixels, b.constant(np.float32(1 / 255)))
    for inputs, outputs in ((3, 48), (48, 64)):
        weight = b.weight(outputs, inputs, 4, 4)
        value = b.node("Relu", b.node("Conv", value, weight, strides=[4, 4]))
    value = b.node("Flatten", b.node("GlobalAveragePool", value))
    b.dense(value, 64, EMBEDDING, "embedding")
    window = _value("window", 1, 112, 112, 3, kind=TensorProto.UINT8)
    return b.model([window], [_value("embedding", EMBEDDING)])


def _sound() -> bytes:
    b = _Builder(2)
    value = b.node("Reshape", "window", b.shape(-1, 1, 8000))
    value = b.node("Relu", b.node("Conv", value, b.weight(64, 1, 64), strides=[16]))
    value = b.node("Flatten", b.node("GlobalAveragePool", value))
    b.dense(value, 64, EMBEDDING, "embedding")
    return b.model([_value("window", 8000, 1)], [_value("embedding", EMBEDDING)])


def _sensor() -> bytes:
    b = _Builder(3)
    value = b.node("Flatten", b.node("Mul", "window", "valid"))
    value = b.node("Relu", b.dense(value, 300, 64))
    b.dense(value, 64, EMBEDDING, "embedding")
    inputs = [_value("window", 50, 6), _value("valid", 50, 6)]
    return b.model(inputs, [_value("embedding", EMBEDDING)])


def _head() -> bytes:
    b = _Builder(4)
    names = [f"embedding.{spec.name}" for spec in MODALITIES]
    value = b.node("Relu", b.dense(b.node("Concat", *names, "presence", "age", axis=1), 102, 64))
    b.dense(value, 64, len(LABELS), "logits")
    inputs = [*(_value(name, EMBEDDING) for name in names), _value("presence", 3), _value("age", 3)]
    return b.model(inputs, [_value("logits", len(LABELS))])


def _spec(
    name: str, role: Any, *shape: int, dtype: Any = "float32", modality: str | None = None
) -> TensorSpec:
    return TensorSpec(name=name, role=role, dtype=dtype, shape=("batch", *shape), modality=modality)


def _graph(file: str) -> tuple[Graph, ...]:
    return (Graph(file=file, precision="fp32", opset=18, nodes=1),)


def _encoder(spec: Modality) -> Part:
    dtype = "uint8" if spec.kind == "image" else "float32"
    inputs = [_spec("window", "window", *spec.window_shape, dtype=dtype)]
    if spec.kind == "series":
        inputs.append(_spec("valid", "valid", *spec.valid_shape))
    return Part(
        name=f"{spec.name}_encoder",
        kind="encoder",
        modality=spec.name,
        rate_hz=1 / spec.hop_s,
        inputs=tuple(inputs),
        outputs=(_spec("embedding", "embedding", EMBEDDING),),
        graphs=_graph(f"parts/{spec.name}.onnx"),
    )


def write_reference_bundle(path: Path, decision_rate_hz: float = 10) -> Bundle:
    """Write the bundle, a folder or one `.fusedge` file; the same bytes every time."""
    files = {
        "parts/video.onnx": _video(),
        "parts/sound.onnx": _sound(),
        "parts/sensor.onnx": _sensor(),
        "parts/head.onnx": _head(),
    }
    names = tuple(spec.name for spec in MODALITIES)
    embedded = [_spec(f"embedding.{n}", "embedding", EMBEDDING, modality=n) for n in names]
    head = Part(
        name="head",
        kind="head",
        rate_hz=decision_rate_hz,
        inputs=(*embedded, _spec("presence", "presence", 3), _spec("age", "age", 3)),
        outputs=(_spec("logits", "logits", len(LABELS)),),
        graphs=_graph("parts/head.onnx"),
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name="reference",
        description="camera, microphone and IMU with random weights, for benchmarks",
        modalities=MODALITIES,
        parts=(*map(_encoder, MODALITIES), head),
        fusion=Fusion(
            kind="concatenation",
            decision_rate_hz=decision_rate_hz,
            modalities=names,
            embedding_size=EMBEDDING,
        ),
        outputs=(
            Output(
                name="class",
                logits="logits",
                labels=LABELS,
                temperature=1,
                smoothing_s=1,
                hysteresis=0.1,
            ),
        ),
        provenance=Provenance(
            task="reference",
            weights_sha256="0" * 64,
            training_data="none: random weights",
            weights_licence="Apache-2.0",
            attribution="none",
            tools={},
        ),
        files={name: file_entry(data) for name, data in files.items()},
    )
    return write_bundle(path, manifest, files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--decision-rate", type=float, default=10, help="in Hz")
    arguments = parser.parse_args()
    write_reference_bundle(arguments.out, arguments.decision_rate)


if __name__ == "__main__":
    main()
