"""The fusion model of the comparison, made with onnx.helper: a seed, no training, no data.

A frame (uint8 480x640x3, scaled in the graph to 1x3x112x112), sound 1x1x8000 and IMU 1x50x6 go
through an encoder each, of 32 values, and a head with 7 classes: about 0.3 ms in ONNX Runtime with
one thread. For Fusedge the same encoders and weights are written as the parts of a bundle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from workload import HEIGHT, WIDTH, WINDOW

SIZE, CLASSES = 32, 7
CROP = 112
SHAPES = {"video": (1, HEIGHT, WIDTH, 3), "audio": (1, 1, WINDOW["audio"]), "imu": (1, 50, 6)}


def _weights(name: str, *shape: int) -> Any:
    random = np.random.default_rng(sum(name.encode()))
    scale = float(np.prod(shape[1:])) ** -0.5
    return numpy_helper.from_array(
        (random.standard_normal(shape) * scale).astype(np.float32), f"{name}_weights"
    )


def encoder(name: str) -> tuple[list[Any], list[Any]]:
    """Nodes from the tensor `name` to `NAME_embedding` [1, 32], and their constants."""
    if name == "imu":
        weights = _weights("imu", 300, SIZE)
        flat = helper.make_node("Flatten", ["imu"], ["imu_flat"])
        gemm = helper.make_node("Gemm", ["imu_flat", "imu_weights"], ["imu_sum"])
        return [flat, gemm, helper.make_node("Tanh", ["imu_sum"], ["imu_embedding"])], [weights]
    layers = {
        "video": [((24, 3, 5, 5), 3), ((48, 24, 3, 3), 2), ((SIZE, 48, 3, 3), 2)],
        "audio": [((16, 1, 80), 20), ((24, 16, 8), 4), ((SIZE, 24, 8), 4)],
    }[name]
    nodes, constants, tensor = [], [], name
    if name == "video":  # the nearest pixels, as 0 to 1, channels first
        constants += [
            numpy_helper.from_array(np.linspace(0, HEIGHT - 1, CROP).astype(np.int64), "rows"),
            numpy_helper.from_array(np.linspace(0, WIDTH - 1, CROP).astype(np.int64), "columns"),
            numpy_helper.from_array(np.float32(1 / 255), "unit"),
        ]
        nodes += [
            helper.make_node("Gather", ["video", "rows"], ["fewer"], axis=1),
            helper.make_node("Gather", ["fewer", "columns"], ["small"], axis=2),
            helper.make_node("Transpose", ["small"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["numbers", "unit"], ["scaled"]),
        ]
        tensor = "scaled"
    for i, (shape, stride) in enumerate(layers):
        layer = f"{name}{i}"
        constants.append(_weights(layer, *shape))
        strides = [stride] * (len(shape) - 2)
        nodes += [
            helper.make_node("Conv", [tensor, f"{layer}_weights"], [layer], strides=strides),
            helper.make_node("Relu", [layer], [f"{layer}_relu"]),
        ]
        tensor = f"{layer}_relu"
    nodes += [
        helper.make_node("GlobalAveragePool", [tensor], [f"{name}_pool"]),
        helper.make_node("Flatten", [f"{name}_pool"], [f"{name}_embedding"]),
    ]
    return nodes, constants


def head_weights(name: str) -> Any:
    """The share of a modality in the logits, [32, 7]."""
    return _weights(f"head_{name}", SIZE, CLASSES)


def fusion_model() -> bytes:
    """The model as one graph: `video`, `audio`, `imu` to `probabilities` [1, 7]."""
    nodes, constants = [], []
    for name in SHAPES:
        part, weights = encoder(name)
        share = helper.make_node(
            "MatMul", [f"{name}_embedding", f"head_{name}_weights"], [f"{name}_share"]
        )
        nodes += [*part, share]
        constants += [*weights, head_weights(name)]
    nodes += [
        helper.make_node("Sum", [f"{name}_share" for name in SHAPES], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    inputs = [tensor(name, *SHAPES[name]) for name in SHAPES]
    return serialized(nodes, inputs, [tensor("probabilities", 1, CLASSES)], constants)


def tensor(name: str, *shape: int | str) -> Any:
    """An input or output: frames are uint8, all else float32."""
    frame = len(shape) > 3 and shape[-1] == 3
    return helper.make_tensor_value_info(
        name, TensorProto.UINT8 if frame else TensorProto.FLOAT, shape
    )


def serialized(nodes: Any, inputs: Any, outputs: Any, constants: Any) -> bytes:
    """A checked graph of opset 17."""
    graph = helper.make_graph(nodes, "fusion", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    data: bytes = made.SerializeToString()
    return data
