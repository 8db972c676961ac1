"""Well-known networks as ONNX graphs that have sizes and no values: enough to count their work.

Written from the papers' tables of layers. Weights have dims and no data, so that a graph takes kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
_DTYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.FLOAT16}


class Net:
    """A graph under construction; `int8` puts Q/DQ pairs around convolutions and products."""

    def __init__(self, precision: str, shape: tuple[int, ...]) -> None:
        self.dtype, self._int8 = _DTYPES[precision], precision == "int8"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels = {"x": shape[-3] if len(shape) > 2 else shape[-1]}
        self._shape = ("batch", *shape)
        self._quantised: dict[str, str] = {}
        if self._int8:
            self._constant("scale", np.float16(0.1))
            self._constant("zero", np.int8(0))

    def _constant(self, name: str, value: np.generic | np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, operator: str, inputs: list[str], channels: int, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, inputs, [name], f"{operator}_{name}", **attributes)
        )
        self.channels[name] = channels
        return name

    def weight(self, *dims: int) -> str:
        name = f"w{len(self.constants)}"
        dtype = TensorProto.INT8 if self._int8 else self.dtype
        self.constants.append(TensorProto(name=name, dims=dims, data_type=dtype))
        if self._int8:
            return self.op("DequantizeLinear", [name, "scale", "zero"], 0)
        return name

    def quantise(self, x: str) -> str:
        if not self._int8:
            return x
        if x not in self._quantised:
            held = self.op("QuantizeLinear", [x, "scale", "zero"], self.channels[x])
            self._quantised[x] = self.op(
                "DequantizeLinear", [held, "scale", "zero"], self.channels[x]
            )
        return self._quantised[x]

    def conv(
        self, x: str, to: int, kernel: int, stride: int = 1, *, groups: int = 1, act: str = "Relu"
    ) -> str:
        pad = (kernel - 1) // 2
        y = self.op(
            "Conv",
            [self.quantise(x), self.weight(to, self.channels[x] // groups, kernel, kernel)],
            to,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=groups,
        )
        return self.act(y, act)

    def act(self, x: str, act: str) -> str:
        if act == "SiLU":
            return self.op("Mul", [x, self.op("Sigmoid", [x], self.channels[x])], self.channels[x])
        return self.op(act, [x], self.channels[x]) if act else x

    def add(self, x: str, y: str, act: str = "") -> str:
        return self.act(self.op("Add", [x, y], self.channels[x]), act)

    def concat(self, *pieces: str) -> str:
        return self.op("Concat", list(pieces), sum(self.channels[p] for p in pieces), axis=1)

    def pool(self, x: str, kernel: int, stride: int, pad: int = 0, kind: str = "MaxPool") -> str:
        return self.op(
            kind,
            [x],
            self.channels[x],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
        )

    def linear(self, x: str, inputs: int, to: int, act: str = "") -> str:
        return self.act(self.op("MatMul", [self.quantise(x), self.weight(inputs, to)], to), act)

    def classify(self, x: str, classes: int = 1000) -> str:
        pooled = self.op("GlobalAveragePool", [x], self.channels[x])
        return self.linear(
            self.op("Flatten", [pooled], self.channels[x]), self.channels[x], classes
        )

    def reshape(self, x: str, *shape: int) -> str:
        name = self._constant(f"s{len(self.constants)}", np.array(shape, np.int64))
        return self.op("Reshape", [x, name], shape[-1])

    def bytes(self, *outputs: str) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", self.dtype, self._shape)],
            [helper.make_tensor_value_info(name, self.dtype, None) for name in outputs],
            self.constants,
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset]).SerializeToString()


def resnet(precision: str, depth: int, size: int = 224) -> bytes:
    blocks = {
        18: (2, 2, 2, 2),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }
    net = Net(precision, (3, size, size))
    x = net.pool(net.conv("x", 64, 7, 2), 3, 2, 1)
    for stage, count in enumerate(blocks[depth]):
        width = 64 << stage
        for index in range(count):
            stride = 2 if stage and not index else 1
            to = width if depth < 50 else 4 * width
            skip = (
                x if net.channels[x] == to and stride == 1 else net.conv(x, to, 1, stride, act="")
            )
            if depth < 50:
                y = net.conv(net.conv(x, width, 3, stride), to, 3, act="")
            else:
                y = net.conv(net.conv(net.conv(x, width, 1), width, 3, stride), to, 1, act="")
            x = net.add(y, skip, "Relu")
    return net.bytes(net.classify(x))


def vgg(precision: str, depth: int) -> bytes:
    counts = {11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}[depth]
    net = Net(precision, (3, 224, 224))
    x = "x"
    for count, width in zip(counts, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            x = net.conv(x, width, 3)
        x = net.pool(x, 2, 2)
    x = net.op("Flatten", [x], 512 * 49)
    x = net.linear(net.linear(x, 512 * 49, 4096, "Relu"), 4096, 4096, "Relu")
    return net.bytes(net.linear(x, 4096, 1000))


def alexnet(precision: str) -> bytes:
    net = Net(precision, (3, 227, 227))
    x = net.op(
        "Conv",
        [net.quantise("x"), net.weight(64, 3, 11, 11)],
        64,
        kernel_shape=[11, 11],
        strides=[4, 4],
    )
    x = net.pool(net.act(x, "Relu"), 3, 2)
    x = net.pool(net.conv(x, 192, 5), 3, 2)
    x = net.pool(net.conv(net.conv(net.conv(x, 384, 3), 256, 3), 256, 3), 3, 2)
    x = net.op("Flatten", [x], 256 * 36)
    x = net.linear(net.linear(x, 256 * 36, 4096, "Relu"), 4096, 4096, "Relu")
    return net.bytes(net.linear(x, 4096, 1000))


def squeezenet(precision: str, version: str) -> bytes:
    net = Net(precision, (3, 224, 224))
    x = net.conv("x", 96, 7, 2) if version == "1.0" else net.conv("x", 64, 3, 2)
    pools = {"1.0": (0, 3, 7), "1.1": (0, 2, 4)}[version]
    x = net.pool(x, 3, 2)
    for index, width in enumerate((16, 16, 32, 32, 48, 48, 64, 64), 1):
        squeezed = net.conv(x, width, 1)
        x = net.concat(net.conv(squeezed, 4 * width, 1), net.conv(squeezed, 4 * width, 3))
        if index in pools:
            x = net.pool(x, 3, 2)
    return net.bytes(net.op("GlobalAveragePool", [net.conv(x, 1000, 1)], 1000))


def densenet121(precision: str) -> bytes:
    net = Net(precision, (3, 224, 224))
    x = net.pool(net.conv("x", 64, 7, 2), 3, 2, 1)
    for stage, count in enumerate((6, 12, 24, 16)):
        for _ in range(count):
            y = net.conv(net.conv(net.act(x, "Relu"), 128, 1), 32, 3, act="")
            x = net.concat(x, y)
        if stage < 3:
            x = net.conv(net.act(x, "Relu"), net.channels[x] // 2, 1, act="")
            x = net.pool(x, 2, 2, kind="AveragePool")
    return net.bytes(net.classify(net.act(x, "Relu")))


def mobilenet_v1(precision: str) -> bytes:
    net = Net(precision, (3, 224, 224))
    x = net.conv("x", 32, 3, 2)
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    for to, stride in [*plan, *[(512, 1)] * 5, (1024, 2), (1024, 1)]:
        width = net.channels[x]
        x = net.conv(net.conv(x, width, 3, stride, groups=width), to, 1)
    return net.bytes(net.classify(x))


def mobilenet_v2(precision: str) -> bytes:
    net = Net(precision, (3, 224, 224))
    x = net.conv("x", 32, 3, 2)
    plan = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
    ]
    for expand, to, count, first in [*plan, (6, 320, 1, 1)]:
        for index in range(count):
            stride = first if index == 0 else 1
            width = expand * net.channels[x]
            y = net.conv(x, width, 1) if expand > 1 else x
            y = net.conv(net.conv(y, width, 3, stride, groups=width), to, 1, act="")
            x = net.add(x, y) if stride == 1 and net.channels[x] == to else y
    return net.bytes(net.classify(net.conv(x, 1280, 1)))


def bert(precision: str, hidden: int, layers: int, length: int) -> bytes:
    """The encoder, without embeddings. `qkv` is one product, as TensorRT makes it."""
    net = Net(precision, (length, hidden))
    heads, x = hidden // 64, "x"
    gain = net._constant("gain", np.zeros(hidden, np.float16 if net.dtype == 10 else np.float32))
    for _ in range(layers):
        qkv = net.linear(x, hidden, 3 * hidden)
        qkv = net.op(
            "Transpose", [net.reshape(qkv, 0, length, 3, heads, 64)], 64, perm=[2, 0, 3, 1, 4]
        )
        index = [net._constant(f"i{i}.{len(net.nodes)}", np.int64(i)) for i in range(3)]
        q, k, v = (net.op("Gather", [qkv, each], 64, axis=0) for each in index)
        k = net.op("Transpose", [k], length, perm=[0, 1, 3, 2])
        scores = net.op("MatMul", [net.quantise(q), net.quantise(k)], length)
        weights = net.op("Softmax", [scores], length, axis=-1)
        mixed = net.op("MatMul", [net.quantise(weights), net.quantise(v)], 64)
        mixed = net.op("Transpose", [mixed], 64, perm=[0, 2, 1, 3])
        y = net.linear(net.reshape(mixed, 0, length, hidden), hidden, hidden)
        x = net.op("LayerNormalization", [net.add(x, y), gain, gain], hidden)
        y = net.linear(net.linear(x, hidden, 4 * hidden, "Gelu"), 4 * hidden, hidden)
        x = net.op("LayerNormalization", [net.add(x, y), gain, gain], hidden)
    return net.bytes(x)


def yolov8(precision: str, depth: float, width: float, most: int, size: int = 640) -> bytes:
    """Backbone, neck and head up to the raw boxes: decoding and suppression are left out."""
    net = Net(precision, (3, size, size))

    def c(channels: int) -> int:
        return int(-(-min(channels, most) * width // 8) * 8)

    def conv(x: str, to: int, kernel: int = 1, stride: int = 1) -> str:
        return net.conv(x, to, kernel, stride, act="SiLU")

    def stage(x: str, to: int, count: int, shortcut: bool = False) -> str:
        half = to // 2
        both = conv(x, to)
        pieces = [net.op("Identity", [both], half)]
        bounds = [net._constant(f"b{i}.{len(net.nodes)}", np.array([i * half])) for i in range(3)]
        axis = net._constant(f"a{len(net.nodes)}", np.array([1]))
        pieces = [net.op("Slice", [both, bounds[i], bounds[i + 1], axis], half) for i in range(2)]
        for _ in range(max(round(count * depth), 1)):
            y = conv(conv(pieces[-1], half, 3), half, 3)
            pieces.append(net.add(pieces[-1], y) if shortcut else y)
        return conv(net.concat(*pieces), to)

    def twice(x: str) -> str:
        scales = net._constant(f"u{len(net.nodes)}", np.array([1, 1, 2, 2], np.float32))
        return net.op("Resize", [x, "", scales], net.channels[x], mode="nearest")

    x = conv(conv("x", c(64), 3, 2), c(128), 3, 2)
    x = stage(x, c(128), 3, True)
    p3 = stage(conv(x, c(256), 3, 2), c(256), 6, True)
    p4 = stage(conv(p3, c(512), 3, 2), c(512), 6, True)
    x = conv(stage(conv(p4, c(1024), 3, 2), c(1024), 3, True), c(1024) // 2)
    pools = [x]
    for _ in range(3):
        pools.append(net.pool(pools[-1], 5, 1, 2))
    p5 = conv(net.concat(*pools), c(1024))
    n4 = stage(net.concat(twice(p5), p4), c(512), 3)
    n3 = stage(net.concat(twice(n4), p3), c(256), 3)
    n4 = stage(net.concat(conv(n3, c(256), 3, 2), n4), c(512), 3)
    n5 = stage(net.concat(conv(n4, c(512), 3, 2), p5), c(1024), 3)
    outputs = []
    box, label = max(16, c(256) // 4, 64), max(c(256), 80)
    for x in (n3, n4, n5):
        for middle, to in ((box, 64), (label, 80)):
            y = conv(conv(x, middle, 3), middle, 3)
            outputs.append(net.conv(y, to, 1, act=""))
    return net.bytes(*outputs)


NETWORKS: dict[str, Callable[[str], bytes]] = {
    **{f"resnet{depth}": lambda p, d=depth: resnet(p, d) for depth in (18, 34, 50, 101, 152)},
    **{f"resnet{depth}-256": lambda p, d=depth: resnet(p, d, 256) for depth in (18, 34, 50)},
    **{f"vgg{depth}": lambda p, d=depth: vgg(p, d) for depth in (11, 13, 16, 19)},
    "alexnet": alexnet,
    "squeezenet1.0": lambda p: squeezenet(p, "1.0"),
    "squeezenet1.1": lambda p: squeezenet(p, "1.1"),
    "densenet121": densenet121,
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    **{f"bert-base-{n}": lambda p, n=n: bert(p, 768, 12, n) for n in (128, 384)},
    **{f"bert-large-{n}": lambda p, n=n: bert(p, 1024, 24, n) for n in (128, 384)},
    **{
        f"yolov8{name}": lambda p, a=(depth, width, most): yolov8(p, *a)
        for name, depth, width, most in (
            ("n", 0.33, 0.25, 1024),
            ("s", 0.33, 0.5, 1024),
            ("m", 0.67, 0.75, 768),
            ("l", 1.0, 1.0, 512),
            ("x", 1.0, 1.25, 512),
        )
    },
}
