"""A part on ONNX Runtime: which provider runs it, and which nodes that provider left to the CPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import BundleError, FusedgeError, UnknownNameError
from fusedge.bundle.inference import CPU, onnxruntime, open_session
from fusedge.bundle.manifest import Part
from fusedge.runtime.part_tensors import (
    FoundTensor,
    check_tensors,
    rows_at_once,
    run_in_pieces,
    shapes_at,
)

Array = NDArray[np.float32]
MAX_BINDINGS = 8  # shapes for which the memory on the device is kept

_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_NO_CPU = "session.disable_cpu_ep_fallback"
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class MissingProviderError(FusedgeError):
    """An execution provider that this machine's ONNX Runtime does not have."""


class Provider(NamedTuple):
    """An execution provider: ONNX Runtime's name of it, where its tensors lie, and what it is told.

    `profile` is the prefix of its options for the range of the inputs' shapes; an engine that is built
    for another range is built again in the middle of the work, so a greater batch is run in pieces.
    """

    name: str
    device: str
    options: Mapping[str, str]
    profile: str = ""


# TensorFloat-32 rounds fp32 to 10 bits, and what is asked for is what is computed.
PROVIDERS: dict[str, Provider] = {
    "cpu": Provider(CPU, "cpu", {}),
    "cuda": Provider("CUDAExecutionProvider", "cuda", {"use_tf32": "0"}),
    "tensorrt": Provider("TensorrtExecutionProvider", "cuda", {}, "trt_profile_"),
    "tensorrt-rtx": Provider("NvTensorRTRTXExecutionProvider", "cuda", {}, "nv_profile_"),
}


class OnnxPart:
    """A part on ONNX Runtime, checked against the manifest before it runs for the first time.

    `cpu_nodes` counts by operator the nodes that the provider left to the CPU, where it is another
    one. It is None where that is so but this ONNX Runtime (before 1.24) cannot say which.

    Raises BundleError where the graph's inputs and outputs are not those of the manifest, and
    FusedgeError where the provider that was asked for does not run it: nothing falls back in silence.
    """

    def __init__(self, bundle: Bundle, part: Part, provider: str, precision: str) -> None:
        if provider not in PROVIDERS:
            raise UnknownNameError("provider", provider, PROVIDERS)
        chosen = PROVIDERS[provider]
        devices = provider_devices(provider)
        graph = part.graph(precision)
        where = f"{bundle.path}: part {part.name}"
        content = bundle.read(graph.file)
        self.provider: str = chosen.name
        self._open = functools.partial(
            open_session,
            content,
            precision,
            chosen.name,
            provider_options=provider_options(provider, part),
            devices=devices,
        )
        try:
            self._session, self.cpu_nodes = self._load()
        except Exception as error:  # ONNX Runtime raises a dozen kinds of its own
            raise BundleError(f"{graph.file} does not load: {error}", where=where) from None
        self._check(part, where)
        self._outputs = [spec.name for spec in part.outputs]
        self._max_batch = rows_at_once(part, part.dims) if chosen.profile else 0
        # A plug-in's memory is ONNX Runtime's own business: its `run` copies as well.
        bound = chosen.device != "cpu" and not devices
        self._bindings = _Bindings(self._session, self._outputs, chosen.device) if bound else None

    def run(self, feeds: Mapping[str, Any]) -> list[Array]:
        """The outputs, in the manifest's order, for inputs by name."""
        return run_in_pieces(self._run, feeds, self._max_batch)

    def _run(self, feeds: Mapping[str, Any]) -> list[Array]:
        if self._bindings is not None:
            return self._bindings.run(feeds)
        outputs: list[Array] = self._session.run(self._outputs, feeds)
        return outputs

    def _load(self) -> tuple[Any, Counter[str] | None]:
        """The session, and the nodes that are on the CPU although another provider was asked for."""
        if self.provider == CPU:
            return self._open(), Counter()
        if hasattr(onnxruntime().InferenceSession, "get_provider_graph_assignment_info"):
            session = self._open(entries={_ASSIGNMENT: "1"})
            placed = session.get_provider_graph_assignment_info()
            loaded = session.get_providers()[0] == self.provider  # a missing library: see _check
            if loaded and all(subgraph.ep_name == CPU for subgraph in placed):
                raise RuntimeError(f"{self.provider} runs no node of it")
            left = [node for s in placed if s.ep_name == CPU for node in s.get_nodes()]
            return session, Counter(node.op_type for node in left)
        try:
            return self._open(entries={_NO_CPU: "1"}), Counter()
        except Exception:  # whatever the reason is, the next attempt meets it or does without
            return self._open(), None

    def _check(self, part: Part, where: str) -> None:
        first = self._session.get_providers()[0]
        if first != self.provider:
            raise FusedgeError(
                f"asked for {self.provider}, ONNX Runtime chose {first}",
                where=where,
                hint="check the driver and libraries of the device, or --provider cpu",
            )
        for found, specs, kind in (
            (self._session.get_inputs(), part.inputs, "input"),
            (self._session.get_outputs(), part.outputs, "output"),
        ):
            tensors = [FoundTensor(n.name, _DTYPES.get(n.type, n.type), n.shape) for n in found]
            check_tensors(tensors, specs, kind, where)


class _Bindings:
    """Runs with the inputs in memory on the device that is kept for each set of shapes, one at a time."""

    def __init__(self, session: Any, outputs: Sequence[str], device: str) -> None:
        self._session, self._outputs, self._device = session, outputs, device
        self._kept: dict[tuple[tuple[int, ...], ...], tuple[Any, dict[str, Any]]] = {}
        self._running = threading.Lock()

    def run(self, feeds: Mapping[str, Any]) -> list[Array]:
        """As OnnxPart.run."""
        with self._running:
            return self._run(feeds)

    def _run(self, feeds: Mapping[str, Any]) -> list[Array]:
        key = tuple(feed.shape for feed in feeds.values())
        if key not in self._kept:
            if len(self._kept) == MAX_BINDINGS:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = self._bind(feeds)
        binding, inputs = self._kept[key]
        for name, feed in feeds.items():
            inputs[name].update_inplace(np.ascontiguousarray(feed))
        self._session.run_with_iobinding(binding)
        # The next run writes into the same memory.
        return [value.numpy().copy() for value in binding.get_outputs()]

    def _bind(self, feeds: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        value = onnxruntime().OrtValue
        binding = self._session.io_binding()
        inputs = {
            name: value.ortvalue_from_shape_and_type(feed.shape, feed.dtype.type, self._device)
            for name, feed in feeds.items()
        }
        for name, tensor in inputs.items():
            binding.bind_ortvalue_input(name, tensor)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        return binding, inputs


def provider_devices(provider: str) -> list[Any]:
    """A provider that comes as a plug-in has devices; one that is compiled in has none.

    Raises FusedgeError where this machine's ONNX Runtime has it in neither way.
    """
    module, name = onnxruntime(), PROVIDERS[provider].name
    if name in module.get_available_providers():
        return []
    reason = f"ONNX Runtime {module.__version__} has no {name} on this machine"
    if provider != "tensorrt-rtx" or importlib.util.find_spec(_PLUGIN) is None:
        raise MissingProviderError(reason, hint="--provider cpu, or install 'fusedge[gpu]'")
    if problem := _register_plugin():
        raise FusedgeError(f"{reason}: its plug-in {problem}", hint="check the driver of the GPU")
    devices: list[Any] = [d for d in module.get_ep_devices() if d.ep_name == name]
    if not devices:
        raise FusedgeError(f"{reason}: its plug-in finds no GPU", hint="it needs an RTX GPU")
    return devices[:1]


@functools.cache
def _register_plugin() -> str:
    """Register NVIDIA's plug-in for TensorRT-RTX, once a process; why that cannot be, or nothing."""
    module = onnxruntime()
    if not hasattr(module, "register_execution_provider_library"):
        return "needs ONNX Runtime 1.23"
    try:
        plugin = importlib.import_module(_PLUGIN)
        module.register_execution_provider_library(_PLUGIN, plugin.get_library_path())
    except Exception as error:  # a missing driver, a library, another version
        return f"does not load: {error}"
    return ""


def provider_options(name: str, part: Part) -> dict[str, str]:
    """What the provider is told, with the range of the inputs' shapes."""
    provider = PROVIDERS[name]
    options = dict(provider.options)
    if provider.profile and part.dims:
        for suffix, attribute in (("min", "least"), ("opt", "usual"), ("max", "greatest")):
            sizes = {name: getattr(dim, attribute) for name, dim in part.dims.items()}
            shapes = shapes_at(part, sizes)
            options[f"{provider.profile}{suffix}_shapes"] = ",".join(
                f"{spec.name}:{'x'.join(map(str, shapes[spec.name]))}"
                for spec in part.inputs
                if any(isinstance(dim, str) for dim in spec.shape)
            )
    return options
