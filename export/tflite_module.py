"""A network that a package ships as TensorFlow Lite, as a torch module, from which the exporter goes on.

Only what small convolutional detectors are made of is read: convolutions, pooling, bilinear resizing,
more channels, sums, and heads that are reshaped and joined; weights in float32 or float16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fusedge.bundle.errors import FusedgeError
from fusedge.export.packages import needs_extra

# Of the schema of TensorFlow Lite: Padding.SAME, ActivationFunctionType.NONE and TensorType.
_SAME, _NONE = 0, 0
_DTYPES = {0: np.float32, 1: np.float16, 2: np.int32}
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")


class _Step(NamedTuple):
    """One operation: the numbers of the tensors that it reads and writes.

    `settings` of a convolution or pool: kernel, stride, the schema's padding; of the others sizes.
    """

    operator: str
    inputs: tuple[int, ...]
    output: int
    settings: tuple[int, ...] = ()


class TfliteModule(nn.Module):
    """`module(image) -> outputs`: float32 `[B, C, H, W]` to the file's outputs, in its order, `[B, N, K]`.

    Raises FusedgeError for a file that is no such network, MissingExtraError without the package `tflite`.
    """

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__()
        with needs_extra("emotion", "reading a TensorFlow Lite network"):
            import tflite
        try:
            reader = _Reader(tflite, content)
            self.steps = tuple(reader.steps())
            for step in self.steps:
                for number in step.inputs[1:] if step.operator in _CONVOLUTIONS else ():
                    self.register_buffer(f"w{number}", reader.weights(number, step.operator))
            self.input, self.outputs = reader.interface()
        except Exception as error:  # the package unpacks what the file says, without a check
            raise FusedgeError(
                f"is no network that can be read: {type(error).__name__}: {error}", where=where
            ) from error

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        values = {self.input: image}
        for step in self.steps:
            given = [values[n] if n in values else getattr(self, f"w{n}") for n in step.inputs]
            values[step.output] = _OPERATORS[step.operator](step, *given)
        return tuple(values[number] for number in self.outputs)


class _Reader:
    """The one graph of a file."""

    def __init__(self, tflite: Any, content: bytes) -> None:
        self._tflite = tflite
        self._model = tflite.Model.GetRootAsModel(content, 0)
        if self._model.SubgraphsLength() != 1:
            raise ValueError(f"it has {self._model.SubgraphsLength()} graphs")
        self._graph = self._model.Subgraphs(0)
        self._stored: dict[int, int] = {}  # by a tensor's number, where its float16 values are

    def steps(self) -> Iterator[_Step]:
        """The operations in their order, but those that only make float32 of weights."""
        for index in range(self._graph.OperatorsLength()):
            operation = self._graph.Operators(index)
            code = self._model.OperatorCodes(operation.OpcodeIndex())
            name = self._tflite.opcode2name(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
            inputs = tuple(operation.InputsAsNumpy().tolist())
            (output,) = operation.OutputsAsNumpy().tolist()
            if name == "DEQUANTIZE":
                self._stored[output] = inputs[0]
                continue
            if name not in _OPERATORS:
                raise ValueError(f"it has the operation {name}")
            settings = self._settings(name, operation, inputs, output)
            # What PAD and RESIZE_BILINEAR are told by a second tensor is among the settings.
            given = inputs[:1] if name in ("PAD", "RESIZE_BILINEAR", "RESHAPE") else inputs
            yield _Step(name, given, output, settings)

    def _settings(
        self, name: str, operation: Any, inputs: tuple[int, ...], output: int
    ) -> tuple[int, ...]:
        if name == "RESHAPE":
            return self._shape(output)[1:]
        if name == "RESIZE_BILINEAR":
            options = self._tflite.ResizeBilinearOptions()
            table = operation.BuiltinOptions()
            options.Init(table.Bytes, table.Pos)
            before, after = (self._shape(number)[1:3] for number in (inputs[0], output))
            times = after[0] // before[0]
            if (times * before[0], times * before[1]) != after or not options.HalfPixelCenters():
                raise ValueError(f"it resizes {before} to {after} in another way")
            return (times,)
        if name == "PAD":
            pads = self._numbers(inputs[1]).tolist()
            if any(map(any, pads[:3])):
                raise ValueError("it pads another axis than that of channels")
            return tuple(pads[3])
        if name not in (*_CONVOLUTIONS, "MAX_POOL_2D", "ADD", "CONCATENATION"):
            return ()
        kinds = {
            "CONV_2D": self._tflite.Conv2DOptions,
            "DEPTHWISE_CONV_2D": self._tflite.DepthwiseConv2DOptions,
            "MAX_POOL_2D": self._tflite.Pool2DOptions,
            "ADD": self._tflite.AddOptions,
            "CONCATENATION": self._tflite.ConcatenationOptions,
        }
        options = kinds[name]()
        table = operation.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        if options.FusedActivationFunction() != _NONE:
            raise ValueError(f"a {name} has an activation")
        if name == "CONCATENATION" and options.Axis() != 1:
            raise ValueError(f"it joins axis {options.Axis()}")
        if name in ("ADD", "CONCATENATION"):
            return ()
        height, width = (
            (options.FilterHeight(), options.FilterWidth())
            if name == "MAX_POOL_2D"
            else self._shape(inputs[1])[1:3]
        )
        if height != width or options.StrideH() != options.StrideW():
            raise ValueError(f"a {name} is not square")
        if name in _CONVOLUTIONS and (options.DilationHFactor(), options.DilationWFactor()) != (
            1,
            1,
        ):
            raise ValueError(f"a {name} is dilated")
        return height, options.StrideH(), options.Padding()

    def weights(self, number: int, operator: str) -> Tensor:
        """Of a convolution as torch has them, `[out, in of a group, H, W]`; a bias as it is."""
        values = self._numbers(self._stored.get(number, number)).astype(np.float32)
        if values.ndim == 4:
            order = (3, 0, 1, 2) if operator == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
            values = np.ascontiguousarray(values.transpose(order))
        return torch.from_numpy(values)

    def interface(self) -> tuple[int, tuple[int, ...]]:
        """The numbers of the one input and of the outputs."""
        (first,) = self._graph.InputsAsNumpy().tolist()
        return first, tuple(self._graph.OutputsAsNumpy().tolist())

    def _shape(self, number: int) -> tuple[int, ...]:
        return tuple(self._graph.Tensors(number).ShapeAsNumpy().tolist())

    def _numbers(self, number: int) -> NDArray[Any]:
        tensor = self._graph.Tensors(number)
        data = self._model.Buffers(tensor.Buffer()).DataAsNumpy()
        return np.frombuffer(data.tobytes(), _DTYPES[tensor.Type()]).reshape(self._shape(number))


def _same(image: Tensor, step: _Step, fill: float = 0.0) -> Tensor:
    """Padded to `ceil(size / stride)` results, as SAME is defined: what is odd goes to the end."""
    kernel, stride, padding = step.settings
    pads: list[int] = []
    for size in (image.shape[3], image.shape[2]):  # the last axis first, as `pad` wants it
        lacking = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        pads += [lacking // 2, lacking - lacking // 2]
    return functional.pad(image, pads, value=fill) if padding == _SAME and any(pads) else image


def _convolution(step: _Step, image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups = image.shape[1] if step.operator == "DEPTHWISE_CONV_2D" else 1
    return functional.conv2d(_same(image, step), weight, bias, step.settings[1], groups=groups)


def _pool(step: _Step, image: Tensor) -> Tensor:
    kernel, stride, _ = step.settings
    return functional.max_pool2d(_same(image, step, -torch.inf), kernel, stride)


def _resized(step: _Step, image: Tensor) -> Tensor:
    return functional.interpolate(image, scale_factor=step.settings[0], mode="bilinear")


def _more_channels(step: _Step, image: Tensor) -> Tensor:
    return functional.pad(image, (0, 0, 0, 0, *step.settings))


def _reshaped(step: _Step, image: Tensor) -> Tensor:
    """The file's heads have channels last, and so the order of their numbers."""
    return image.permute(0, 2, 3, 1).reshape(-1, *step.settings)


def _sum(step: _Step, one: Tensor, other: Tensor) -> Tensor:
    return one + other


def _positive(step: _Step, image: Tensor) -> Tensor:
    return functional.relu(image)


def _joined(step: _Step, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, dim=1)


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "MAX_POOL_2D": _pool,
    "RESIZE_BILINEAR": _resized,
    "PAD": _more_channels,
    "ADD": _sum,
    "RELU": _positive,
    "RESHAPE": _reshaped,
    "CONCATENATION": _joined,
}
