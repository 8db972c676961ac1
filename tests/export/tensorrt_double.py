"""A TensorRT made from a record of its Python API: what the version lacks is not there, calls are logged.

It takes an ONNX graph apart as the parser does, a layer a node, and builds nothing. It stands in for the
versions that cannot be installed here, and shows which calls we make of them.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

FOLDER = Path(__file__).parent / "tensorrt_recorded"
_LAYERS = {
    "MatMul": "MATRIX_MULTIPLY",
    "Relu": "ACTIVATION",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "Attention": "ATTENTION_INPUT",
}
_TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "INT8",
}


def read_record(name: str) -> dict[str, Any]:
    """A record of tests/export/tensorrt_recorded, such as `tensorrt_8_5`."""
    record: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return record


class ModuleDouble:
    """Stands for the module. `calls` has (class, name, arguments) of each call and each setting.

    `fails` are the results of builds that fail, in order: the reasons that are logged.
    """

    def __init__(self, record: dict[str, Any], fails: tuple[str, ...] = ()) -> None:
        self.record, self.fails = record, list(fails)
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.__version__: str = record["version"]
        for name, members in record["enums"].items():
            setattr(self, name, enum.IntEnum(name, {m: i for i, m in enumerate(members)}))
        for kind in record["classes"]:
            if kind not in ("Builder", "OnnxParser"):
                setattr(self, kind, kind)
        self.ILogger = _Logger

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call, or the values of each setting, of that name."""
        return [arguments for _, called, arguments in self.calls if called == name]

    def Builder(self, logger: _Logger) -> Recorded:  # noqa: N802  # TensorRT's name
        """Builds nothing."""

        def build(network: Recorded, config: Recorded) -> bytes | None:
            if self.fails:
                logger.log(_Logger.Severity.ERROR, self.fails.pop(0))
                return None
            return b"engine"

        return Recorded(
            self,
            "Builder",
            num_DLA_cores=2,
            create_network=lambda flags: Recorded(
                self, "INetworkDefinition", layers=[], strong=self._strong(flags)
            ),
            create_builder_config=lambda: Recorded(
                self,
                "IBuilderConfig",
                create_timing_cache=lambda data: Recorded(
                    self, "ITimingCache", serialize=lambda: data + b"+"
                ),
                set_timing_cache=lambda cache, ignore: True,
                get_timing_cache=lambda: Recorded(
                    self, "ITimingCache", serialize=lambda: b"measured"
                ),
            ),
            create_optimization_profile=lambda: Recorded(self, "IOptimizationProfile"),
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Recorded, logger: _Logger) -> Recorded:  # noqa: N802
        """Makes a layer of each node; refuses `Unique`."""
        errors: list[Recorded] = []

        def parse(data: bytes) -> bool:
            model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
            types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
            types |= {v.name: v.type.tensor_type.elem_type for v in model.graph.output}
            for index, node in enumerate(model.graph.node):
                if node.op_type == "Unique":
                    told = {"desc": "no", "node": index, "node_name": node.name}
                    told["node_operator"] = node.op_type
                    values = {k: (lambda v=v: v) for k, v in told.items()}
                    errors.append(Recorded(self, "ParserError", **values))
                network._values["layers"].append(
                    self._layer(node, types, network._values["strong"])
                )
            return not errors

        return Recorded(
            self,
            "OnnxParser",
            parse=parse,
            num_errors=property(lambda: len(errors)),
            get_error=lambda index: errors[index],
        )

    def _strong(self, flags: int) -> bool:
        flag = getattr(self.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return flag is not None and bool(flags & 1 << int(flag))

    def _layer(self, node: onnx.NodeProto, types: dict[str, int], strong: bool) -> Recorded:
        kinds, data_types = self.LayerType, self.DataType  # type: ignore[attr-defined]
        cast = "CAST" if "CAST" in kinds.__members__ else "IDENTITY"
        kind = cast if node.op_type == "Cast" else _LAYERS.get(node.op_type, "ELEMENTWISE")

        def tensor(name: str, typed: bool) -> Recorded:
            known = _TYPES.get(types.get(name, TensorProto.FLOAT), "FLOAT") if typed else "FLOAT"
            return Recorded(self, "ITensor", name=name, dtype=data_types[known])

        inputs = [tensor(name, False) for name in node.input]
        outputs = [tensor(name, strong) for name in node.output]
        return Recorded(
            self,
            "ILayer",
            name=node.name + ("_AttentionInput" if kind == "ATTENTION_INPUT" else ""),
            type=kinds[kind],
            num_inputs=len(inputs),
            num_outputs=len(outputs),
            get_input=lambda index: inputs[index],
            get_output=lambda index: outputs[index],
            attention=Recorded(self, "IAttention", decomposable=False)
            if "IAttention" in self.record["classes"]
            else None,
        )


class Recorded:
    """An object of a recorded class: what its version lacks raises AttributeError, and all is logged."""

    _owner: ModuleDouble
    _kind: str
    _values: dict[str, Any]

    def __init__(self, owner: ModuleDouble, kind: str, **values: Any) -> None:
        self.__dict__.update(_owner=owner, _kind=kind, _values=values)

    def _require(self, name: str) -> None:
        if name not in self._owner.record["classes"][self._kind]:
            version = self._owner.record["version"]
            raise AttributeError(f"{self._kind} of {version} has no {name}")

    def __getattr__(self, name: str) -> Any:
        self._require(name)
        layers = self._values.get("layers", [])
        value = self._values.get(name)
        if self._kind == "INetworkDefinition" and name in ("num_layers", "get_layer"):
            return len(layers) if name == "num_layers" else layers.__getitem__
        if isinstance(value, property):
            assert value.fget is not None
            return value.fget()
        if name in self._values and not callable(value):
            return value

        def call(*arguments: Any) -> Any:
            self._owner.calls.append((self._kind, name, arguments))
            return value(*arguments) if callable(value) else None

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":  # as a layer is cast to its own class
            self.__dict__["_kind"] = value
            return
        self._require(name)
        self._values[name] = value
        self._owner.calls.append((self._kind, name, (value,)))


class _Logger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def log(self, severity: Any, message: str) -> None:
        """Overridden by whoever listens."""
        raise NotImplementedError
