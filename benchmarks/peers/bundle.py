"""The fusion model as a Fusedge bundle: three encoders and a head, with the weights of `model.py`.

Its windows are those of the other peers: the newest frame, half a second of sound and of IMU. All
three encoders and the head run at one rate, as the others run the whole model once an output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from model import CLASSES, SIZE, encoder, head_weights, serialized, tensor
from onnx import helper, numpy_helper
from workload import HEIGHT, RATE_HZ, SOUND_HZ, WIDTH, WINDOW

from fusedge.bundle.archive import file_entry, write_bundle
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

ORDER = ("video", "audio", "imu")


def _modality(name: str, rate_hz: float) -> Modality:
    """Camera and IMU are taken as on time; a block of sound ends up to 20 ms after what it holds."""
    names = {"video": "red green blue", "audio": "mono", "imu": "ax ay az gx gy gz"}[name]
    fields: dict[str, Any] = {
        "video": {
            "kind": "image",
            "height": HEIGHT,
            "width": WIDTH,
            "rate_hz": rate_hz,
            "window_s": 1 / rate_hz,
            "resample": "hold",
            "max_hold_s": 0.1,
            "lateness_s": 0,
        },
        "audio": {
            "kind": "audio",
            "rate_hz": SOUND_HZ,
            "window_s": WINDOW["audio"] / SOUND_HZ,
            "resample": "contiguous",
            "max_hold_s": 0.1,
            "lateness_s": 1.1 / max(RATE_HZ["audio"], rate_hz),
        },
        "imu": {
            "kind": "series",
            "rate_hz": RATE_HZ["imu"],
            "window_s": WINDOW["imu"] / RATE_HZ["imu"],
            "resample": "hold",
            "max_hold_s": 0.05,
            "lateness_s": 0,
        },
    }[name]
    limit = 255 if name == "video" else 100
    return Modality(
        name=name,
        description=f"{name} of the comparison",
        channels=tuple(
            Channel(name=channel, unit="1", minimum=0 if name == "video" else -limit, maximum=limit)
            for channel in names.split()
        ),
        hop_s=1 / rate_hz,
        latency_s=0,
        max_age_s=0.5,
        return_windows=1,
        min_valid=0.5,
        prepare=(),
        **fields,
    )


def _encoder(spec: Modality) -> bytes:
    nodes, constants = encoder(spec.name)
    if spec.name == "imu":
        nodes.insert(0, helper.make_node("Mul", ["window", "valid"], ["imu"]))
    else:
        shape = [-1, HEIGHT, WIDTH, 3] if spec.name == "video" else [-1, 1, WINDOW["audio"]]
        constants.append(numpy_helper.from_array(np.array(shape), "shape"))
        nodes.insert(0, helper.make_node("Reshape", ["window", "shape"], [spec.name]))
    nodes.append(helper.make_node("Identity", [f"{spec.name}_embedding"], ["embedding"]))
    inputs = [tensor("window", "batch", *spec.window_shape)]
    if spec.name == "imu":
        inputs.append(tensor("valid", "batch", *spec.valid_shape))
    return serialized(nodes, inputs, [tensor("embedding", "batch", SIZE)], constants)


def _head() -> bytes:
    """Logits = the sum over present modalities of embedding x weights; the ages are not used."""
    nodes = [
        helper.make_node("ReduceMean", ["age"], ["mean_age"], axes=[1]),
        helper.make_node("MatMul", ["mean_age", "nothing"], ["no_share"]),
    ]
    constants = [numpy_helper.from_array(np.zeros((1, CLASSES), np.float32), "nothing")]
    for i, name in enumerate(ORDER):
        constants += [head_weights(name), numpy_helper.from_array(np.array([i]), f"column_{name}")]
        nodes += [
            helper.make_node(
                "MatMul", [f"embedding.{name}", f"head_{name}_weights"], [f"{name}_full"]
            ),
            helper.make_node("Gather", ["presence", f"column_{name}"], [f"{name}_there"], axis=1),
            helper.make_node("Mul", [f"{name}_full", f"{name}_there"], [f"{name}_share"]),
        ]
    shares = ["no_share", *(f"{name}_share" for name in ORDER)]
    nodes.append(helper.make_node("Sum", shares, ["logits"]))
    inputs = [tensor(f"embedding.{name}", "batch", SIZE) for name in ORDER]
    inputs += [tensor("presence", "batch", len(ORDER)), tensor("age", "batch", len(ORDER))]
    return serialized(nodes, inputs, [tensor("logits", "batch", CLASSES)], constants)


def _spec(name: str, role: Any, *shape: int, modality: str | None = None) -> TensorSpec:
    image = role == "window" and modality == "video"
    return TensorSpec(
        name=name,
        role=role,
        dtype="uint8" if image else "float32",
        shape=("batch", *shape),
        modality=modality if role == "embedding" else None,
    )


def write_fusion_bundle(path: Path, rate_hz: float) -> None:
    """Write the bundle with windows and decisions at this rate."""
    modalities = tuple(_modality(name, rate_hz) for name in ORDER)
    files = {f"parts/{spec.name}.onnx": _encoder(spec) for spec in modalities}
    files["parts/head.onnx"] = _head()

    def graphs(name: str) -> tuple[Graph, ...]:
        file = f"parts/{name}.onnx"
        return (Graph(file=file, precision="fp32", opset=17, nodes=1),)

    parts = []
    for spec in modalities:
        inputs = [_spec("window", "window", *spec.window_shape, modality=spec.name)]
        if spec.kind == "series":
            inputs.append(_spec("valid", "valid", *spec.valid_shape))
        part = Part(
            name=f"{spec.name}_encoder",
            kind="encoder",
            modality=spec.name,
            rate_hz=rate_hz,
            inputs=tuple(inputs),
            outputs=(_spec("embedding", "embedding", SIZE),),
            graphs=graphs(spec.name),
        )
        parts.append(part)
    head = Part(
        name="head",
        kind="head",
        rate_hz=rate_hz,
        inputs=(
            *(_spec(f"embedding.{n}", "embedding", SIZE, modality=n) for n in ORDER),
            _spec("presence", "presence", len(ORDER)),
            _spec("age", "age", len(ORDER)),
        ),
        outputs=(_spec("logits", "logits", CLASSES),),
        graphs=graphs("head"),
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name="comparison",
        description="camera, microphone and IMU with random weights, for the comparison",
        modalities=modalities,
        parts=(*parts, head),
        fusion=Fusion(kind="sum", decision_rate_hz=rate_hz, modalities=ORDER, embedding_size=SIZE),
        outputs=(
            Output(
                name="class",
                logits="logits",
                labels=tuple(f"class{i}" for i in range(CLASSES)),
                temperature=1,
                smoothing_s=0,
                hysteresis=0,
            ),
        ),
        provenance=Provenance(
            task="comparison",
            weights_sha256="0" * 64,
            training_data="none: random weights",
            weights_licence="Apache-2.0",
            attribution="none",
            tools={},
        ),
        files={name: file_entry(data) for name, data in files.items()},
    )
    write_bundle(path, manifest, files)
