"""Small graphs of one kind of node each, from which `fusedge bench` learns how fast a machine does it.

Sizes are those of encoders on the edge, from a few numbers to what no cache holds. A probe repeats its
node, so that the start of a run does not hide it, and is a bundle of its own, measured as any part is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fusedge.bundle.archive import Bundle, file_entry, write_bundle
from fusedge.bundle.manifest import (
    FORMAT_VERSION,
    Dtype,
    Graph,
    Manifest,
    Part,
    Provenance,
    TensorSpec,
)
from fusedge.export.packages import needs_extra

with needs_extra("plan", "calibrating"):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

ProbePrecision = Literal["fp32", "fp16"]
PART = "probe"
_FILE = "probe.onnx"
_ELEMENTS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
_INPUTS = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}


class Probe(NamedTuple):
    """A graph, and the kind of work that most of it is."""

    kind: str
    name: str
    graph: bytes
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class _Builder:
    """Collects the nodes of a probe, which computes in one precision and has float32 at its ends."""

    def __init__(self, precision: ProbePrecision) -> None:
        self._random = np.random.default_rng(0)
        self._precision = precision
        self._dtype = np.float32 if precision == "fp32" else np.float16
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[TensorSpec] = []

    def input(self, *shape: int, dtype: Dtype = "float32") -> str:
        """Add an input; the name of its values in the probe's precision."""
        name = f"input{len(self._inputs)}"
        self._inputs.append(TensorSpec(name=name, role="input", dtype=dtype, shape=shape))
        return name if dtype == "float32" and self._precision == "fp32" else self.cast(name)

    def numbers(self, *shape: int) -> str:
        """Constants of a size that keeps sums of their products near one."""
        spread = 1 / np.sqrt(max(1.0, float(np.prod(shape[1:]))))
        return self._constant(self._random.normal(0, spread, shape).astype(self._dtype))

    def number(self, value: float) -> str:
        """A constant without dims."""
        return self._constant(np.array(value, self._dtype))

    def whole(self, *values: int) -> str:
        """A constant vector of indices or sizes."""
        return self._constant(np.array(values, np.int64))

    def cast(self, value: str) -> str:
        """To what the probe computes in."""
        return self.node("Cast", value, to=_ELEMENTS[self._precision])

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        name = f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def probe(self, kind: str, name: str, *values: str, opset: int = 18) -> Probe:
        """The graph that gives these values."""
        names = [f"output{index}" for index in range(len(values))]
        for value, output in zip(values, names, strict=True):
            self._nodes.append(helper.make_node("Cast", [value], [output], to=TensorProto.FLOAT))
        graph = helper.make_graph(
            self._nodes,
            PART,
            [
                helper.make_tensor_value_info(spec.name, _INPUTS[spec.dtype], spec.shape)
                for spec in self._inputs
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
            self._constants,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
        )
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        outputs = tuple(
            TensorSpec(
                name=value.name,
                role="output",
                dtype="float32",
                shape=tuple(size.dim_value for size in value.type.tensor_type.shape.dim),
            )
            for value in model.graph.output
        )
        return Probe(kind, name, model.SerializeToString(), opset, tuple(self._inputs), outputs)

    def _constant(self, values: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        return name


_New = Callable[[], _Builder]


def probes(precision: ProbePrecision) -> list[Probe]:
    """All of them."""
    makers = (
        *(_convolutions, _depthwise, _products, _recurrent, _attention, _normalisations),
        *(_poolings, _elementwise, _movements, _small),
    )
    return [probe for maker in makers for probe in maker(lambda: _Builder(precision))]


def _convolutions(new: _New) -> Iterator[Probe]:
    for inputs, outputs, kernel, size, stride, count in (
        (3, 32, 3, 96, 2, 1),
        (3, 16, 7, 96, 2, 1),
        (16, 16, 3, 48, 1, 6),
        (48, 48, 3, 24, 1, 4),
        (128, 128, 3, 12, 1, 3),
        (256, 256, 3, 6, 1, 2),
        (32, 32, 1, 48, 1, 8),
        (96, 96, 1, 24, 1, 6),
        (384, 384, 1, 8, 1, 4),
        (8, 8, 3, 8, 1, 6),
        (16, 16, 3, 8, 1, 12),
        (64, 64, 1, 4, 1, 12),
    ):
        b = new()
        value = b.input(1, inputs, size, size)
        for _ in range(count):
            weights = b.numbers(outputs, inputs, kernel, kernel), b.numbers(outputs)
            value = b.node("Conv", value, *weights, strides=[stride] * 2, pads=[kernel // 2] * 4)
            value = b.node("Relu", value)
        name = f"{inputs} to {outputs}, {kernel}x{kernel} on {size}x{size}"
        yield b.probe("convolution", name, value)
    for inputs, outputs, kernel, size, stride in (
        (1, 32, 320, 8000, 160),
        (1, 256, 512, 12_000, 128),
        (48, 48, 3, 80, 1),
        (160, 160, 5, 50, 1),
    ):
        b = new()
        weights = b.numbers(outputs, inputs, kernel), b.numbers(outputs)
        value = b.node("Conv", b.input(1, inputs, size), *weights, strides=[stride])
        yield b.probe("convolution", f"{inputs} to {outputs}, {kernel} on {size}", value)


def _depthwise(new: _New) -> Iterator[Probe]:
    for channels, kernel, size, stride, count in (
        (16, 3, 48, 1, 8),
        (48, 3, 24, 1, 8),
        (96, 3, 24, 2, 1),
        (160, 3, 12, 1, 8),
        (320, 3, 6, 1, 12),
        (96, 5, 12, 1, 8),
    ):
        b = new()
        value = b.input(1, channels, size, size)
        for _ in range(count):
            weights = b.numbers(channels, 1, kernel, kernel), b.numbers(channels)
            value = b.node(
                "Conv",
                value,
                *weights,
                group=channels,
                strides=[stride] * 2,
                pads=[kernel // 2] * 4,
            )
            value = b.node("Relu", value)
        yield b.probe("depthwise", f"{channels}, {kernel}x{kernel} on {size}x{size}", value)


def _products(new: _New) -> Iterator[Probe]:
    for rows, size, count in (
        (1, 32, 12),
        (1, 128, 8),
        (1, 384, 6),
        (1, 1024, 3),
        (16, 96, 6),
        (48, 192, 4),
        (96, 384, 2),
        (32, 768, 1),
    ):
        b = new()
        value = b.input(1, rows, size)
        for _ in range(count):
            value = b.node("Add", b.node("MatMul", value, b.numbers(size, size)), b.numbers(size))
        yield b.probe("product", f"MatMul {rows}x{size}", value)
    for rows, size in ((1, 48), (1, 512), (64, 256)):
        b = new()
        value = b.input(rows, size)
        for _ in range(6):
            value = b.node("Gemm", value, b.numbers(size, size), b.numbers(size), transB=1)
        yield b.probe("product", f"Gemm {rows}x{size}", value)
    for heads, steps, width in ((4, 24, 24), (4, 48, 48), (6, 96, 32)):
        b = new()
        value = b.input(1, heads, steps, width)
        turned = b.node("Transpose", value, perm=[0, 1, 3, 2])
        for _ in range(3):
            value = b.node("MatMul", b.node("MatMul", value, turned), value)
        yield b.probe("product", f"{heads} heads of {steps}x{width}", value)


def _recurrent(new: _New) -> Iterator[Probe]:
    for operator, gates in (("GRU", 3), ("LSTM", 4)):
        for steps, inputs, hidden in (
            (1, 48, 48),
            (8, 16, 24),
            (24, 32, 64),
            (48, 96, 96),
            (32, 128, 192),
        ):
            b = new()
            rows = gates * hidden
            weights = b.numbers(1, rows, inputs), b.numbers(1, rows, hidden), b.numbers(1, 2 * rows)
            extra = {"linear_before_reset": 1} if operator == "GRU" else {}  # as PyTorch's
            value = b.node(
                operator, b.input(steps, 1, inputs), *weights, hidden_size=hidden, **extra
            )
            yield b.probe("recurrent", f"{operator} {steps} steps {inputs} to {hidden}", value)


def _attention(new: _New) -> Iterator[Probe]:
    for steps, width in ((24, 96), (80, 192)):
        b = new()
        value = b.input(1, steps, width)
        for _ in range(3):
            value = b.node("Attention", value, value, value, q_num_heads=4, kv_num_heads=4)
        yield b.probe("attention", f"4 heads {steps}x{width}", value, opset=23)


def _normalisations(new: _New) -> Iterator[Probe]:
    for rows, width in ((4, 48), (96, 96), (256, 384)):
        b = new()
        value = b.input(1, rows, width)
        for _ in range(4):
            value = b.node("Softmax", value, axis=-1)
        yield b.probe("normalisation", f"Softmax {rows}x{width}", value)
        b = new()
        value = b.input(1, rows, width)
        for _ in range(4):
            gain = b.numbers(width), b.numbers(width)
            value = b.node("LayerNormalization", value, *gain, axis=-1)
        yield b.probe("normalisation", f"LayerNormalization {rows}x{width}", value)
        b = new()
        value = b.input(1, rows, width)
        mean = b.node("ReduceMean", value, b.whole(1), keepdims=0)
        top = b.node("ReduceMax", value, b.whole(-1), keepdims=0)
        yield b.probe("normalisation", f"reductions of {rows}x{width}", mean, top)


def _poolings(new: _New) -> Iterator[Probe]:
    for channels, size in ((8, 12), (32, 48), (96, 24)):
        for operator in ("MaxPool", "AveragePool"):
            b = new()
            value = b.input(1, channels, size, size)
            for _ in range(3):
                value = b.node(operator, value, kernel_shape=[3, 3], pads=[1] * 4)
            yield b.probe("pooling", f"{operator} {channels} on {size}x{size}", value)
    for channels, size in ((32, 4), (160, 12)):
        b = new()
        value = b.node("GlobalAveragePool", b.input(1, channels, size, size))
        yield b.probe("pooling", f"GlobalAveragePool {channels} on {size}x{size}", value)


def _elementwise(new: _New) -> Iterator[Probe]:
    for size in (1500, 24_000, 400_000):
        b = new()
        value = b.input(1, size)
        other = b.node("Sub", value, b.numbers(1))
        for _ in range(2):
            value = b.node("Add", b.node("Mul", value, other), other)
            value = b.node("Div", value, b.number(2.5))
            value = b.node("Clip", value, b.number(-4), b.number(4))
        yield b.probe("elementwise", f"arithmetic {size}", value)
        b = new()
        value = b.input(1, size)
        for operator in ("Sigmoid", "Tanh", "Exp", "Sqrt", "Erf", "Sin"):
            value = b.node(operator, value)
        yield b.probe("elementwise", f"functions {size}", value)
    for rows, width in ((40, 8), (600, 8), (300, 64)):
        b = new()
        value, column = b.input(rows, width), b.input(rows, 1)
        for _ in range(2):
            value = b.node("Mul", b.node("Sub", value, b.numbers(width)), column)
        yield b.probe("elementwise", f"broadcast {rows}x{width}", value)
    for size in (24, 96, 192):
        b = new()
        value = b.node("Div", b.input(1, size, size, 3, dtype="uint8"), b.number(255))
        yield b.probe("elementwise", f"uint8 {size}x{size}", value)


def _movements(new: _New) -> Iterator[Probe]:
    for rows, width in ((16, 24), (48, 64), (192, 256)):
        half = width // 2
        b = new()
        value = b.input(1, rows, width)
        for _ in range(2):
            left = b.node("Slice", value, b.whole(0), b.whole(half), b.whole(2))
            right = b.node("Slice", value, b.whole(half), b.whole(width), b.whole(2))
            value = b.node("Concat", right, left, axis=2)
            value = b.node("Gather", value, b.whole(*reversed(range(rows))), axis=1)
        yield b.probe("movement", f"pieces of {rows}x{width}", value)
        b = new()
        value = b.node("Reshape", b.input(1, rows, width), b.whole(1, rows, 4, width // 4))
        for _ in range(2):  # heads apart and together again
            value = b.node("Transpose", value, perm=[0, 2, 1, 3])
        value = b.node("Transpose", value, perm=[0, 2, 3, 1])
        yield b.probe("movement", f"turns of {rows}x{width}", value)


def _small(new: _New) -> Iterator[Probe]:
    """What counts where tensors have a few numbers: starts of nodes, views, inputs and outputs.

    Nodes of all kinds follow each other as in a model: one kind over and over starts in two thirds of
    the time. Views are of inputs and of what others read too: ONNX Runtime copies for such a one.
    """
    for times, looks, tensors in (
        (1, 0, 0),
        (3, 0, 0),
        (6, 0, 0),
        (2, 4, 0),
        (4, 4, 0),
        (2, 0, 5),
        (1, 2, 8),
    ):
        b = new()
        values = [b.input(1, 5, 12) for _ in range(2)]
        past = [b.input(5, 12) for _ in range(tensors)]
        for _ in range(times):
            values = [_little_of_all(b, values[0], values[1], looks), values[0]]
        futures = [b.node("Mul", values[0], b.node("Unsqueeze", each, b.whole(0))) for each in past]
        name = f"{times} times, {looks} views, {tensors} tensors"
        yield b.probe("mixture", name, *values, *futures)


def _little_of_all(b: _Builder, one: str, two: str, looks: int) -> str:
    """Two tensors [1, 5, 12] to one, through twenty nodes and `looks` pairs of views."""
    joined = b.node("Concat", one, two, axis=2)
    picked = b.node("Gather", joined, b.whole(*range(0, 24, 4)), axis=2)
    wave = b.node("Mul", b.node("Sin", picked), b.node("Cos", picked))
    for operator in ("Neg", "Abs", "Tanh", "Exp")[:looks]:
        apart = b.node("Unsqueeze", wave, b.whole(3))
        turned = b.node("Squeeze", b.node(operator, apart), b.whole(3))
        wave = b.node("Add", wave, turned)
    size = b.node("Sqrt", b.node("Add", b.node("Mul", wave, wave), b.number(1)))
    apart = b.node("Unsqueeze", b.node("Sub", size, b.numbers(6)), b.whole(3))
    steps = b.node("Sigmoid", b.node("Mul", apart, b.numbers(6, 2)))
    kept = b.node("Clip", steps, b.number(0), b.number(1))
    rows = b.node("Reshape", kept, b.whole(1, 5, 12))
    late = b.node("Slice", rows, b.whole(1), b.whole(4), b.whole(1))
    mean = b.node("ReduceMean", late, b.whole(1), keepdims=1)
    turned = b.node("Transpose", rows, perm=[0, 2, 1])
    most = b.node("ReduceMax", turned, b.whole(2), keepdims=0)
    dense = b.node("Div", b.node("MatMul", mean, b.numbers(12, 12)), most)
    spread = b.node("Expand", dense, b.whole(1, 5, 12))
    return b.node("Where", b.node("Greater", spread, b.number(0)), rows, spread)


def write_probe(probe: Probe, precision: ProbePrecision, path: Path) -> Bundle:
    """A probe as a bundle of its own."""
    part = Part(
        name=PART,
        kind="model",
        inputs=probe.inputs,
        outputs=probe.outputs,
        dims={},
        graphs=(Graph(file=_FILE, precision=precision, opset=probe.opset, nodes=1),),
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=PART,
        description=f"{probe.kind}: {probe.name}",
        parts=(part,),
        provenance=Provenance(
            task=PART,
            weights_sha256="0" * 64,
            training_data="none: random weights",
            weights_licence="Apache-2.0",
            attribution="none",
            tools={},
        ),
        files={_FILE: file_entry(probe.graph)},
    )
    return write_bundle(path, manifest, {_FILE: probe.graph})
