"""Detectors that can be followed by hand: bright blobs are faces, loud sound is speech."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from fusedge.bundle.manifest import DimRange, FrontEnd, Graph, Modality, Part, TensorSpec
from tests.media_bundle import MODALITIES, write_media_bundle

SIDE = 128  # of the detector's input
# Of a face whose box is 1 wide, from its middle: eyes, nose, mouth, ears.
LANDMARKS = ((-0.2, -0.2), (0.2, -0.2), (0, 0), (0, 0.23), (-0.45, -0.1), (0.45, -0.1))
ROWS = {"batch": DimRange(least=1, usual=1, greatest=4)}
STEP, CONTEXT, SOUND_HZ = 32, 8, 1000


def _spec(name: str, role: Any, *shape: int | str, dtype: Any = "float32") -> TensorSpec:
    return TensorSpec(name=name, role=role, dtype=dtype, shape=shape)


def face_part(modality: str = "view", boxes: int = 3, rate_hz: float = 10) -> Part:
    return Part(
        name="face_detector",
        kind="front",
        modality=modality,
        rate_hz=rate_hz,
        inputs=(_spec("pixels", "input", "batch", SIDE, SIDE, 3, dtype="uint8"),),
        outputs=(
            _spec("scores", "output", "batch", boxes),
            _spec("boxes", "output", "batch", boxes, 16),
        ),
        dims=ROWS,
        graphs=(Graph(file="parts/face_detector.onnx", precision="fp32", opset=18, nodes=1),),
        weights="nobody's",
    )


def speech_part(modality: str = "sound") -> Part:
    return Part(
        name="speech_detector",
        kind="front",
        modality=modality,
        rate_hz=SOUND_HZ / STEP,
        inputs=(
            _spec("samples", "input", "batch", CONTEXT + STEP),
            _spec("state", "input", 2, "batch", 3),
        ),
        outputs=(
            _spec("new_state", "output", 2, "batch", 3),
            _spec("probability", "output", "batch", 1),
        ),
        dims=ROWS,
        graphs=(Graph(file="parts/speech_detector.onnx", precision="fp32", opset=18, nodes=1),),
        weights="nobody's",
    )


class BlobDetector:
    """Finds blobs that are brighter than 60; a face's score is its blob's greatest value over 250."""

    provider = "by hand"

    def __init__(self) -> None:
        self.runs = 0

    def run(self, feeds: dict[str, Any]) -> list[NDArray[Any]]:
        self.runs += 1
        (pixels,) = feeds.values()
        assert pixels.shape == (1, SIDE, SIDE, 3) and pixels.dtype == np.uint8
        bright = pixels[0].max(axis=2)
        count, marks, stats, _ = cv2.connectedComponentsWithStats((bright > 60).astype(np.uint8))
        scores, boxes = np.zeros((1, 300), np.float32), np.zeros((1, 300, 16), np.float32)
        for number in range(1, min(count, 300)):
            x, y, width, height, _ = stats[number]
            scores[0, number] = min(1.0, bright[marks == number].max() / 250)
            middle = np.array([x + width / 2, y + height / 2])
            points = middle + np.array(LANDMARKS) * (width, height)
            boxes[0, number] = np.concatenate([middle, (width, height), points.ravel()]) / SIDE
        return [scores, boxes]


class LoudnessDetector:
    """The probability of speech is ten times the mean size of the sound; the state counts the steps."""

    provider = "by hand"

    def __init__(self) -> None:
        self.heard: list[NDArray[np.float32]] = []

    def run(self, feeds: dict[str, Any]) -> list[NDArray[Any]]:
        samples, state = feeds["samples"], feeds["state"]
        assert samples.shape == (1, CONTEXT + STEP) and samples.dtype == np.float32
        assert state.shape == (2, 1, 3) and state.dtype == np.float32
        self.heard.append(samples[0])
        loud = np.abs(samples[:, CONTEXT:]).mean(axis=1, keepdims=True) * 10
        return [state + 1, np.minimum(loud, 1).astype(np.float32)]


def face_graph() -> bytes:
    """As BlobDetector, but for one blob in each colour, as wide as it is even."""
    grid = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    across = np.broadcast_to(grid[None, None, :, None], (1, SIDE, SIDE, 1))
    down = np.broadcast_to(grid[None, :, None, None], (1, SIDE, SIDE, 1))
    spread = np.zeros((4, 16), np.float32)  # from middle and size to all that a box has
    spread[:4, :4] = np.eye(4)
    for at, (right, low) in enumerate(LANDMARKS):
        spread[0, 4 + 2 * at] = spread[1, 5 + 2 * at] = 1
        spread[2, 4 + 2 * at], spread[3, 5 + 2 * at] = right, low
    constants = {
        "threshold": np.float32(60), "across": across, "down": down, "axes": np.array([1, 2]),
        "one": np.float32(1), "twelve": np.float32(12), "spread": spread, "last": np.array([2]),
        "brightest": np.float32(250),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["values", "threshold"], ["is_bright"]),
        helper.make_node("Cast", ["is_bright"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask", "axes"], ["sum"], keepdims=0),
        helper.make_node("Max", ["sum", "one"], ["area"]),
        helper.make_node("ReduceMax", ["values", "axes"], ["peak"], keepdims=0),
        helper.make_node("Div", ["peak", "brightest"], ["share"]),
        helper.make_node("Min", ["share", "one"], ["scores"]),
    ]
    for name in ("across", "down"):
        nodes += [
            helper.make_node("Mul", ["mask", name], [f"{name}.1"]),
            helper.make_node("ReduceSum", [f"{name}.1", "axes"], [f"{name}.2"], keepdims=0),
            helper.make_node("Div", [f"{name}.2", "area"], [f"{name}.mean"]),
            helper.make_node("Mul", [f"{name}.1", name], [f"{name}.3"]),
            helper.make_node("ReduceSum", [f"{name}.3", "axes"], [f"{name}.4"], keepdims=0),
            helper.make_node("Div", [f"{name}.4", "area"], [f"{name}.square"]),
            helper.make_node("Mul", [f"{name}.mean", f"{name}.mean"], [f"{name}.5"]),
            helper.make_node("Sub", [f"{name}.square", f"{name}.5"], [f"{name}.6"]),
            helper.make_node("Mul", [f"{name}.6", "twelve"], [f"{name}.7"]),
            helper.make_node("Abs", [f"{name}.7"], [f"{name}.8"]),
            helper.make_node("Sqrt", [f"{name}.8"], [f"{name}.size"]),
        ]
    columns = []
    for name in ("across.mean", "down.mean", "across.size", "down.size"):
        nodes.append(helper.make_node("Unsqueeze", [name, "last"], [f"{name}.column"]))
        columns.append(f"{name}.column")
    nodes += [
        helper.make_node("Concat", columns, ["middle_and_size"], axis=2),
        helper.make_node("MatMul", ["middle_and_size", "spread"], ["boxes"]),
    ]
    return _model(face_part(), nodes, constants)


def speech_graph() -> bytes:
    """As LoudnessDetector."""
    constants = {
        "from": np.array([CONTEXT]), "to": np.array([CONTEXT + STEP]), "axis": np.array([1]),
        "ten": np.float32(10), "one": np.float32(1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["samples", "from", "to", "axis"], ["new"]),
        helper.make_node("Abs", ["new"], ["size"]),
        helper.make_node("ReduceMean", ["size", "axis"], ["loudness"], keepdims=1),
        helper.make_node("Mul", ["loudness", "ten"], ["louder"]),
        helper.make_node("Min", ["louder", "one"], ["probability"]),
        helper.make_node("Add", ["state", "one"], ["new_state"]),
    ]
    return _model(speech_part(), nodes, constants)


def _model(part: Part, nodes: list[Any], constants: dict[str, Any]) -> bytes:
    kinds = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
    inputs, outputs = (
        [helper.make_tensor_value_info(s.name, kinds[s.dtype], s.shape) for s in specs]
        for specs in (part.inputs, part.outputs)
    )
    tensors = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        for name, value in constants.items()
    ]
    graph = helper.make_graph(nodes, part.name, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


MOTION, _VIEW, _SOUND = MODALITIES


def face_modality(**changes: Any) -> Modality:
    """`view` as crops of 12 x 12 grey pixels, at 10 Hz."""
    grey = _VIEW.channels[:1]
    front = FrontEnd(kind="largest_face", part="face_detector")
    fields = {"channels": grey, "height": 12, "width": 12, "front": front, **changes}
    return Modality(**{**_VIEW.model_dump(), **fields})


def speech_modality(**changes: Any) -> Modality:
    """`sound` at 1 kHz, late enough for a front end."""
    front = FrontEnd(kind="speech", part="speech_detector")
    return Modality(**{**_SOUND.model_dump(), "front": front, "lateness_s": 0.25, **changes})


def write_fronted_bundle(path: Any, **changes: Any) -> Any:
    """The media bundle, whose camera sees faces and whose microphone hears speech."""
    modalities = (MOTION, face_modality(), speech_modality())
    fronts = [(face_part(), face_graph()), (speech_part(), speech_graph())]
    return write_media_bundle(path, modalities, fronts, **changes)
