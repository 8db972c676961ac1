"""TensorRT behind one door: both flavours, and everything that differs between their versions.

`tensorrt` (JetPack, data centre, desktop) builds for the GPU of the machine; `tensorrt_rtx` builds for
desktop RTX GPUs, on machines without one too. Nothing else in Fusedge asks for a version of TensorRT.

| | 8.5, 8.6 | 10 | 11 | RTX 1 |
| --- | --- | --- | --- | --- |
| batch | a flag makes it explicit | explicit | explicit | explicit |
| precision | flags, constraints | the graph's types | the graph's types | the graph's types |
| bf16 | no | yes | yes | yes |
| DLA | yes | to 10.7, by flags | from 11.4, by types | no |
| version compatible | from 8.6 | yes | yes | no |
| timing cache | yes | yes | yes | no effect |

Only TensorRT-RTX 1.7 has been run by the tests of Fusedge. The others are tested against records of their
Python API (tests/export/tensorrt_recorded, with sources): that the calls exist, not that they work.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.devices.targets.facts.opsets import max_opset

# What brings each flavour; a wheel is named for its CUDA, a JetPack package is not.
DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
# What to do where it is not seen on one.
ON_A_JETSON = (
    "it comes with JetPack: apt install python3-libnvinfer, and a virtual environment of the system's "
    "Python with --system-site-packages"
)


class _Package(NamedTuple):
    name: str
    extra: str
    least_version: tuple[int, int]


# It names inputs and outputs at run time (execute_async_v3), on which the runtime relies.
LEAST_TENSORRT = (8, 5)
BF16_TENSORRT = (9, 0)  # the first with bf16
DLA_INT8_TENSORRT = (11, 0)  # the first that builds Q/DQ graphs for the DLA
_PACKAGES: Mapping[str, _Package] = {
    "tensorrt": _Package("tensorrt", "tensorrt", LEAST_TENSORRT),
    "tensorrt_rtx": _Package("tensorrt-rtx", "rtx", (1, 0)),
}
_DATA_TYPES = {
    "fp32": "FLOAT",
    "fp16": "HALF",
    "bf16": "BF16",
    "int8": "INT8",
    "fp8": "FP8",
    "int4": "INT4",
    "fp4": "FP4",
}
_PRECISIONS = {data_type: precision for precision, data_type in _DATA_TYPES.items()}
# These hold, convert or describe numbers, but do not compute with them.
_DATA_LAYERS = ("CONSTANT", "CAST", "IDENTITY", "QUANTIZE", "DEQUANTIZE", "SHAPE")
_PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")


@dataclass(frozen=True)
class EngineOptions:
    """What a build can be asked for beside its precision. What a version lacks is refused by name.

    `timing_cache` keeps measured kernels from build to build; `hardware_compatible` is for all GPUs from
    Ampere on; `dla_core` puts what it can on a Jetson's accelerator; `workspace_bytes` is the most that
    layers may use for intermediate results (TensorRT's default: all of the GPU's memory).
    """

    timing_cache: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla_core: int | None = None
    workspace_bytes: int | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """What is set for them, as an engine's row in the manifest tells it."""
        flags = {
            f"WORKSPACE={self.workspace_bytes}": self.workspace_bytes is not None,
            "VERSION_COMPATIBLE": self.version_compatible,
            "AMPERE_PLUS": self.hardware_compatible,
            f"DLA={self.dla_core}": self.dla_core is not None,
            "GPU_FALLBACK": self.dla_core is not None,
        }
        return tuple(flag for flag, is_set in flags.items() if is_set)


NO_OPTIONS = EngineOptions()


class ParseFailure(NamedTuple):
    """The parser's first complaint; the node as its name, or else as its place in the graph."""

    reason: str
    operator: str
    node: str
    position: int


def check_installed(flavour: str) -> None:
    """Raise MissingExtraError unless the flavour's package is installed; imports nothing."""
    if importlib.util.find_spec(flavour) is None:
        package = _PACKAGES[flavour]
        raise MissingExtraError(package.name, package.extra, "TensorRT engines")


def load(flavour: str) -> Any:
    """The imported TensorRT module of a flavour; raises FusedgeError where it is missing or too old."""
    check_installed(flavour)
    trt = importlib.import_module(flavour)
    least = _PACKAGES[flavour].least_version
    if _number(trt.__version__) < least:
        raise FusedgeError(
            f"{flavour} {trt.__version__} is too old",
            hint=f"version {least[0]}.{least[1]} or newer is needed",
        )
    return trt


def make_logger(trt: Any) -> Any:
    """A logger of a loaded TensorRT that keeps its errors, in `errors`, and says nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is only known at run time
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def installed_version(flavour: str) -> str:
    """The version of an installed flavour, without importing it where its package tells."""
    for name in DISTRIBUTIONS[flavour]:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    version: str = load(flavour).__version__
    return version


def _number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


class TensorRt:
    """The builder's side of a TensorRT module, the same for every version. `module` is from `load`."""

    def __init__(self, module: Any, flavour: str) -> None:
        self.module, self.flavour = module, flavour
        self.version: str = module.__version__
        self._number = _number(module.__version__)
        self._rtx = flavour == "tensorrt_rtx"

    def check(self, options: EngineOptions, opset: int, precisions: Collection[str]) -> None:
        """Raise FusedgeError for the first option, opset or precision that this version lacks."""
        number, rtx = self._number, self._rtx
        dla = options.dla_core is not None
        for asked, lacking, name in (
            (options.timing_cache, rtx, "timing caches"),
            (options.version_compatible, rtx or number < (8, 6), "version-compatible engines"),
            (options.hardware_compatible, rtx or number < (8, 6), "hardware-compatible engines"),
            # DLA: 10.7 was the last before 11.4.1, docs.nvidia.com, "Working with DLA"
            (dla, rtx or (10, 7) < number < (11, 4), "DLA"),
            (dla and "int8" in precisions, number < DLA_INT8_TENSORRT, "Q/DQ graphs on DLA"),
            ("bf16" in precisions, not rtx and number < BF16_TENSORRT, "bf16"),
        ):
            if asked and lacking:
                raise FusedgeError(f"{self.flavour} {self.version} has no {name}")
        greatest = None if rtx else max_opset(self.version)
        if greatest is not None and opset > greatest:
            raise FusedgeError(
                f"{self.flavour} {self.version} reads opset {greatest} at most, the graph has {opset}",
                hint=f"export the bundle with --opset {greatest}",
            )

    def weakly_typed(self, options: EngineOptions) -> bool:
        """Whether precision is asked for by flags and constraints, not by the types of the graph.

        Strong typing came after 8.6 and, on DLA, with 11.
        """
        number = self._number
        return not self._rtx and (
            number < (9, 0) or (options.dla_core is not None and number < (11, 0))
        )

    def create_network(self, builder: Any, options: EngineOptions) -> Any:
        """An empty network with an explicit batch."""
        flags = self.module.NetworkDefinitionCreationFlag
        if not self.weakly_typed(options):
            return builder.create_network(1 << int(flags.STRONGLY_TYPED))
        explicit = 1 << int(flags.EXPLICIT_BATCH) if self._number < (10, 0) else 0
        return builder.create_network(explicit)

    def create_parser(self, network: Any, logger: Any, options: EngineOptions) -> Any:
        """An ONNX parser; such a one that a version-compatible engine needs."""
        parser = self.module.OnnxParser(network, logger)
        if options.version_compatible or options.hardware_compatible:
            # else InstanceNormalization becomes a plugin, which the other version may not have
            parser.set_flag(self.module.OnnxParserFlag.NATIVE_INSTANCENORM)
        return parser

    def parse_failure(self, parser: Any) -> ParseFailure:
        """Why parsing failed. Before 10, the node is known by its index only."""
        if parser.num_errors == 0:
            return ParseFailure("the parser gave no reason", "", "", -1)
        error = parser.get_error(0)
        if self._rtx or self._number >= (10, 0):
            return ParseFailure(
                error.desc(), error.node_operator(), error.node_name(), error.node()
            )
        return ParseFailure(error.desc(), "", "", error.node())

    def configure(
        self, builder: Any, options: EngineOptions, capabilities: Collection[str]
    ) -> tuple[Any, list[str]]:
        """A configuration, and what was set in it, in TensorRT's words.

        `capabilities` are those of the GPUs to build for; `tensorrt` builds for the one that is here.
        """
        trt = self.module
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
        said = ["NO_TF32"]
        if not self.weakly_typed(options):
            said.insert(0, "STRONGLY_TYPED")
        if self._rtx:
            self._set_capabilities(config, capabilities)
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.dla_core is not None:
            if options.dla_core >= builder.num_DLA_cores:
                raise FusedgeError(
                    f"there is no DLA core {options.dla_core}, this machine has "
                    f"{builder.num_DLA_cores}"
                )
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = options.dla_core
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        return config, [*said, *options.flags]

    def _set_capabilities(self, config: Any, capabilities: Collection[str]) -> None:
        known = self.module.ComputeCapability
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            name = f"SM{capability.replace('.', '')}"
            if not hasattr(known, name):
                raise FusedgeError(
                    f"{self.flavour} {self.version} cannot build for compute capability {capability}"
                )
            config.set_compute_capability(getattr(known, name), index)

    def hurry(self, config: Any) -> None:
        """For a trial, whose engine is thrown away: no search for the fastest kernels (from 8.6 on)."""
        if not self._rtx and self._number >= (8, 6):
            config.builder_optimization_level = 0

    def use_timing_cache(self, config: Any, data: bytes) -> None:
        """Start from the measurements of earlier builds, empty bytes where there are none."""
        cache = config.create_timing_cache(data)
        # one of another GPU or version is no error: it is as good as none
        if not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def timing_cache(self, config: Any) -> bytes:
        """The measurements after a build, for the next."""
        return bytes(config.get_timing_cache().serialize())

    def constrain(self, network: Any, config: Any, precisions: Mapping[str, str]) -> list[str]:
        """Hold a weakly typed network to the precision of its graph; what was set, in TensorRT's words.

        `precisions` has the precision of each floating tensor of the graph: a weakly typed network calls
        them FLOAT. A layer that reads what came out of DequantizeLinear is left to TensorRT, which fuses
        it to int8. The build fails where it cannot obey.
        """
        trt = self.module
        flags = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8"}
        said = [flags[name] for name in sorted(set(precisions.values())) if name in flags]
        said.append("OBEY_PRECISION_CONSTRAINTS")
        for name in said:
            config.set_flag(getattr(trt.BuilderFlag, name))
        quantized = _dequantized(network)
        for layer in _layers(network):
            named = list(_typed_outputs(layer, precisions))
            if not named or layer.type.name in _DATA_LAYERS or any(_read(layer, quantized)):
                continue
            layer.precision = getattr(trt.DataType, _DATA_TYPES[named[0][1]])
            for index, precision in named:
                layer.set_output_type(index, getattr(trt.DataType, _DATA_TYPES[precision]))
        return said

    def decompose_attention(self, network: Any) -> list[str]:
        """Let attention be built of several kernels where no single one fits; names of those changed."""
        trt, changed = self.module, []
        kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)  # from 10.14, and in RTX
        for layer in _layers(network):
            if kind is not None and layer.type == kind:
                layer.__class__ = trt.IAttentionInputLayer  # the bindings give the base class
                if not layer.attention.decomposable:
                    layer.attention.decomposable = True
                    changed.append(layer.name.removesuffix("_AttentionInput"))
        return changed

    def achieved(self, network: Any, precisions: Mapping[str, str] | None) -> dict[str, str]:
        """Computing layers and their precision, as the network holds it.

        (The engine's own inspector needs a GPU.) That is the type of what a layer gives. A product is
        `int8` where both factors came out of DequantizeLinear, `fp16, int8 weights` or the like where only
        its weights did. `precisions` is what a weakly typed network was constrained to, None for others.
        """
        quantized = _dequantized(network)
        found = {}
        for layer in _layers(network):
            types = [precision for _, precision in _typed_outputs(layer, precisions)]
            if layer.type.name in _DATA_LAYERS or not types:
                continue
            precision = types[0]
            factors = _read(layer, quantized)[:2] if layer.type.name in _PRODUCTS else []
            if factors == [True, True]:
                precision = "int8"
            elif any(factors):
                precision = f"{precision}, int8 weights"
            found[layer.name] = precision
        return dict(sorted(found.items()))


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def _read(layer: Any, names: Collection[str]) -> list[bool]:
    """For each input of a layer, whether it is one of these tensors."""
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor is not None and tensor.name in names for tensor in tensors]


def _dequantized(network: Any) -> set[str]:
    """Names of the tensors that DequantizeLinear gives."""
    return {
        layer.get_output(0).name for layer in _layers(network) if layer.type.name == "DEQUANTIZE"
    }


def _typed_outputs(layer: Any, precisions: Mapping[str, str] | None) -> Iterator[tuple[int, str]]:
    """Index and precision of a layer's floating outputs, by `precisions` where given, else by type."""
    for index in range(layer.num_outputs):
        tensor = layer.get_output(index)
        if tensor is None:
            continue
        known = (
            _PRECISIONS.get(tensor.dtype.name)
            if precisions is None
            else precisions.get(tensor.name)
        )
        if known is not None:
            yield index, known
