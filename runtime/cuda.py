"""The GPU as far as the native backend needs it: memory, streams and graphs, by cuda-python.

An error of CUDA is a FusedgeError. What is taken is given back when the stack is closed that it was
taken with.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, MissingExtraError


class Device(NamedTuple):
    """The GPU that this process uses: the first that CUDA_VISIBLE_DEVICES lets it see."""

    name: str
    compute_capability: str


class Buffer(NamedTuple):
    """A tensor's page-locked memory on the host, as bytes, and its address on the device."""

    host: NDArray[np.uint8]
    host_address: int
    device_address: int


class Cuda:
    """CUDA's runtime; `api` is cuda-python's module `cuda.bindings.runtime`."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def device(self) -> Device:
        """The GPU; raises FusedgeError where there is none, or no driver for it."""
        self._call("cudaGetDeviceCount")
        attributes = self._api.cudaDeviceAttr
        major = self._call(
            "cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, 0
        )
        minor = self._call(
            "cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, 0
        )
        name = self._call("cudaGetDeviceProperties", 0).name
        return Device(name.decode(errors="replace").rstrip("\0"), f"{major}.{minor}")

    def stream(self, held: ExitStack) -> int:
        """A new stream that waits for no other, as the number that TensorRT takes."""
        stream = self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)
        held.callback(self._give_back, "cudaStreamDestroy", stream)
        return int(stream)

    def buffer(self, size: int, held: ExitStack) -> Buffer:
        """Memory for a tensor of at most `size` bytes, on both sides."""
        size = max(size, 1)
        host = int(self._call("cudaHostAlloc", size, self._api.cudaHostAllocDefault))
        held.callback(self._give_back, "cudaFreeHost", host)
        device = int(self._call("cudaMalloc", size))
        held.callback(self._give_back, "cudaFree", device)
        memory = (ctypes.c_uint8 * size).from_address(host)
        return Buffer(np.ctypeslib.as_array(memory), host, device)

    def to_device(self, buffer: Buffer, size: int, stream: int) -> None:
        """Copy, in the stream's turn."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(
            "cudaMemcpyAsync", buffer.device_address, buffer.host_address, size, kind, stream
        )

    def to_host(self, buffer: Buffer, size: int, stream: int) -> None:
        """Copy back, in the stream's turn."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(
            "cudaMemcpyAsync", buffer.host_address, buffer.device_address, size, kind, stream
        )

    def wait(self, stream: int) -> None:
        """Until all that was put into the stream is done; its errors come here."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, enqueue: Callable[[], None], stream: int, held: ExitStack) -> Any:
        """What `enqueue` puts into the stream as a graph that can be launched, instead of doing it."""
        with self._captured(stream) as graphs:
            enqueue()
        (graph,) = graphs
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._give_back("cudaGraphDestroy", graph)
        held.callback(self._give_back, "cudaGraphExecDestroy", executable)
        return executable

    def launch(self, executable: Any, stream: int) -> None:
        """Put a captured graph into the stream."""
        self._call("cudaGraphLaunch", executable, stream)

    @contextmanager
    def _captured(self, stream: int) -> Iterator[list[Any]]:
        # Other threads go on to take memory and to run their parts meanwhile.
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        graphs: list[Any] = []
        try:
            yield graphs
        except BaseException:
            self._give_back("cudaStreamEndCapture", stream)
            raise
        graphs.append(self._call("cudaStreamEndCapture", stream))

    def _give_back(self, name: str, handle: Any) -> None:
        """A device that has failed cannot; whatever failed was said when it did."""
        getattr(self._api, name)(handle)

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._api, name)(*arguments)
        if int(error) != 0:
            _, text = self._api.cudaGetErrorString(error)
            _, driver = self._api.cudaDriverGetVersion()
            raise FusedgeError(
                "no NVIDIA driver is installed"
                if not driver
                else f"CUDA: {text.decode()} ({name})",
                hint="check the driver with nvidia-smi",
            )
        return values[0] if values else None


@functools.cache
def load_cuda() -> Cuda:
    """CUDA by cuda-python; raises MissingExtraError where that is not installed."""
    try:
        return Cuda(importlib.import_module("cuda.bindings.runtime"))
    except ModuleNotFoundError:
        raise MissingExtraError("cuda-bindings", "rtx", "running engines") from None
