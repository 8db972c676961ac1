"""A GPU that is none: CUDA over the host's memory, and a TensorRT whose engines are ONNX graphs.

What is copied, launched and given back is done and written down, so that the native backend can be tried
without a GPU. Names and arguments are those of cuda-python and TensorRT: `test_backend_native.py`
compares them with the real packages.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np

from fusedge.bundle.archive import Bundle, file_entry, write_bundle
from fusedge.bundle.inference import open_session
from fusedge.bundle.manifest import Engine
from fusedge.runtime.cuda import Cuda

OK, NO_MEMORY, INVALIDATED = 0, 2, 901


class CudaApi:
    """As `cuda.bindings.runtime`: a function returns its error first. `live` is what was not given back."""

    cudaStreamNonBlocking = 1  # noqa: N815  # CUDA's own names, here and below
    cudaHostAllocDefault = 0  # noqa: N815
    cudaDeviceAttr = SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor="major", cudaDevAttrComputeCapabilityMinor="minor"
    )
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, capability: str = "8.9", memory_bytes: int = 1 << 30) -> None:
        self.capability, self.memory_bytes = capability, memory_bytes
        self.live: dict[Any, Any] = {}
        self.log: list[str] = []
        self.calls: dict[str, tuple[Any, ...]] = {}
        """The newest arguments of each function."""
        self.failing: str = ""
        self._captured: list[Callable[[], None]] | None = None
        self._next = 1

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not (name.startswith("cuda") and isinstance(found, MethodType)):
            return found

        def called(*arguments: Any) -> Any:
            self.log.append(name)
            self.calls[name] = arguments
            return (700, None) if name == self.failing else found(*arguments)

        return called

    def put(self, work: Callable[[], None]) -> None:
        """Do it, or write it down where the stream is captured."""
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return OK, 1

    def cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return OK, 13000

    def cudaGetErrorString(self, error: int) -> Any:  # noqa: N802
        return OK, {NO_MEMORY: b"out of memory"}.get(error, b"an illegal memory access")

    def cudaDeviceGetAttribute(self, attribute: str, device: int) -> Any:  # noqa: N802
        major, minor = self.capability.split(".")
        is_major = attribute == self.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        return OK, int(major if is_major else minor)

    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        return OK, SimpleNamespace(name=b"Double\0")

    def _new(self, kind: str, value: Any = None) -> int:
        self._next += 1
        self.live[self._next] = (kind, value)
        return self._next

    def _drop(self, handle: int) -> Any:
        del self.live[handle]
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        return OK, self._new("stream")

    def _allocate(self, kind: str, size: int) -> Any:
        self.memory_bytes -= size
        if self.memory_bytes < 0:
            return NO_MEMORY, None
        memory = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(memory)
        self.live[address] = (kind, memory)
        return OK, address

    def cudaHostAlloc(self, size: int, flags: int) -> Any:  # noqa: N802
        return self._allocate("host", size)

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        return self._allocate("device", size)

    def cudaMemcpyAsync(self, to: int, since: int, size: int, kind: int, stream: int) -> Any:  # noqa: N802
        assert self.live[to][0] == ("device" if kind == 1 else "host")
        assert self.live[since][0] == ("host" if kind == 1 else "device")
        self.put(lambda: ctypes.memmove(to, since, size) and None)
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> Any:  # noqa: N802
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:  # noqa: N802
        self._captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        captured, self._captured = self._captured, None
        return OK, self._new("graph", captured)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:  # noqa: N802
        return OK, self._new("executable", self.live[graph][1])

    def cudaGraphLaunch(self, executable: int, stream: int) -> Any:  # noqa: N802
        for work in self.live[executable][1]:
            work()
        return (OK,)

    cudaStreamDestroy = cudaFreeHost = cudaFree = _drop  # noqa: N815
    cudaGraphDestroy = cudaGraphExecDestroy = _drop  # noqa: N815


class _Kind(Enum):
    INPUT = 1
    OUTPUT = 2
    DEVICE = 3
    HOST = 4


class _Logger:
    Severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal")


_TYPES = {"tensor(float)": "FLOAT", "tensor(uint8)": "UINT8", "tensor(int64)": "INT64"}
_NUMPY = {"FLOAT": np.float32, "UINT8": np.uint8, "INT64": np.int64}


class Tensorrt:
    """As the module `tensorrt_rtx`. `refusal` is what a run logs before it fails, `graphs` has for a real
    engine the graph that it was built of, which is what runs.
    """

    ILogger = _Logger
    TensorIOMode = _Kind
    TensorLocation = _Kind

    def __init__(
        self, api: CudaApi, version: str = "1.7.1.116", greatest: int = 8, refusal: str = ""
    ) -> None:
        self.graphs: dict[bytes, bytes] = {}
        self.api, self.greatest, self.refusal = api, greatest, refusal
        self.__version__ = version
        self.contexts: list[Any] = []
        """Of each one that was made, the strategy for kernels."""
        self.capturable = self.shares_profile = True
        if version.startswith("1."):
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        """As the class of that name; `runtime` is the newest of it."""
        self.runtime = _Runtime(self, logger)
        return self.runtime


class _Runtime:
    def __init__(self, trt: Tensorrt, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.DLA_core, self.engine_host_code_allowed = -1, False

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        try:
            return _Engine(
                self.trt, self.logger, open_session(self.trt.graphs.get(data, data), "fp32")
            )
        except Exception as error:
            self.logger.log("error", f"[x.cpp::f::1] Error Code 1: Serialization ({error})")
            return None


class _Engine:
    def __init__(self, trt: Tensorrt, logger: Any, session: Any) -> None:
        self.trt, self.logger, self.session = trt, logger, session
        self.tensors = {n.name: n for n in (*session.get_inputs(), *session.get_outputs())}
        self.inputs = [node.name for node in session.get_inputs()]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> _Kind:
        return _Kind.INPUT if name in self.inputs else _Kind.OUTPUT

    def get_tensor_location(self, name: str) -> _Kind:
        return _Kind.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_TYPES[self.tensors[name].type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(s if isinstance(s, int) else -1 for s in self.tensors[name].shape)

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(dynamic_shapes_kernel_specialization_strategy="lazy")

    def create_execution_context(self, config: Any = None) -> Any:
        strategy = config and config.dynamic_shapes_kernel_specialization_strategy
        self.trt.contexts.append(strategy)
        return _Context(self, len(self.trt.contexts) - 1)


class _Context:
    def __init__(self, engine: _Engine, number: int) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.active_optimization_profile = 0 if number == 0 else -1

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self.shapes[name] = tuple(shape)
        return shape[0] <= self.engine.trt.greatest

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return self.engine.trt.shares_profile

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        tensors = self.engine.tensors
        sizes = {
            dim: size
            for given, shape in self.shapes.items()
            for dim, size in zip(tensors[given].shape, shape, strict=True)
        }
        return tuple(sizes.get(dim, dim) for dim in tensors[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.trt.capturable

    def execute_async_v3(self, stream: int) -> bool:
        trt = self.engine.trt
        if trt.refusal:
            self.engine.logger.log("error", trt.refusal)
            return False
        trt.api.put(self._compute)
        return True

    def _memory(self, name: str) -> Any:
        kind, memory = self.engine.trt.api.live[self.addresses[name]]
        assert kind == "device"
        dtype = np.dtype(_NUMPY[self.engine.get_tensor_dtype(name).name])
        shape = self.get_tensor_shape(name)
        size = math.prod(shape) * dtype.itemsize
        return np.ctypeslib.as_array(memory)[:size].view(dtype).reshape(shape)

    def _compute(self) -> None:
        names = [node.name for node in self.engine.session.get_outputs()]
        feeds = {name: self._memory(name) for name in self.engine.inputs}
        for name, result in zip(names, self.engine.session.run(names, feeds), strict=True):
            self._memory(name)[...] = result


def gpu(trt: Tensorrt) -> dict[str, Any]:
    """Arguments of PartLoader, so that it takes this machine for one with that GPU."""
    return {"cuda": lambda: Cuda(trt.api), "tensorrt": lambda flavour: trt}


def with_engines(bundle: Bundle, path: Any, **changes: Any) -> Bundle:
    """The bundle with an "engine" for each part, which the double runs; `changes` are of their entries."""
    files: dict[str, bytes] = {name: bundle.read(name) for name in bundle.manifest.files}
    parts = []
    for part in bundle.manifest.parts:
        data = files[part.graphs[0].file] + b"\x32\x00"  # an empty field of ONNX: another hash
        file = f"engines/{part.name}.engine"
        files[file] = data
        fields: dict[str, Any] = {
            "file": file,
            "targets": ("rtx-4090",),
            "flavour": "tensorrt_rtx",
            "version": "1.7.1.116",
            "compute_capabilities": ("8.9",),
            "precision_requested": "fp32",
            "precision_by_node": {},
            "flags": (),
            "dims": part.dims,
            "bytes": len(data),
        }
        engine = Engine.model_validate({**fields, **changes})
        parts.append(part.model_copy(update={"engines": (engine,)}))
    entries: Mapping[str, Any] = {name: file_entry(data) for name, data in files.items()}
    update = {"parts": tuple(parts), "files": entries}
    return write_bundle(path, bundle.manifest.model_copy(update=update), files)
