"""A part on TensorRT itself, of either flavour: its engine, deserialised, with memory of its own.

Not run on a GPU by this project's tests, which have none: they run TensorRT-RTX as far as it goes without
a driver, and all else that this file asks of CUDA and TensorRT on doubles.
"""

from __future__ import annotations

import math
import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Engine
from fusedge.devices.targets.facts.engine_fit import dla_core
from fusedge.devices.targets.tensorrt_api import make_logger
from fusedge.runtime.cuda import Buffer, Cuda
from fusedge.runtime.onnx_part import Array
from fusedge.runtime.part_tensors import (
    FoundTensor,
    HasTensors,
    check_shapes,
    check_tensors,
    rows_at_once,
    run_in_pieces,
    shapes_at,
)

# Shapes that get an execution context of their own, and a CUDA graph when they come again. Each takes
# the memory of the activations. The head has one shape, an encoder one for each number of sessions.
MAX_GRAPHS = 4

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
# NVIDIA's source positions say nothing to the user.
_NOISE = (
    r"\[[^\]\s]*\.(?:cpp|h)[^\]]*\]\s*|\s*In \w+ at \S*_src/[^\s)]+|\w+::\w+: |Error Code \d+: "
)


class _Tensor(NamedTuple):
    """An input or output with its memory."""

    name: str
    dtype: np.dtype[Any]
    buffer: Buffer


class _Piece(NamedTuple):
    """As much of a tensor's memory as one set of shapes takes."""

    buffer: Buffer
    view: NDArray[Any]


class _Plan:
    """One set of shapes: what is copied, and what computes it."""

    def __init__(
        self, context: Any, inputs: Sequence[_Piece], outputs: Sequence[_Piece], keep: bool
    ) -> None:
        self.context, self.inputs, self.outputs = context, inputs, outputs
        self.graph: Any = None
        self.capture = keep  # when it runs again
        self.ran = False


class _Loaded:
    """TensorRT's own objects."""

    def __init__(self) -> None:
        self.plans: dict[tuple[tuple[int, ...], ...], _Plan] = {}
        self.spare: Any = None
        self.engine: Any = None
        self.runtime: Any = None

    def drop(self) -> None:
        """Let them go, each before what it rests on."""
        self.plans.clear()
        self.spare = None
        self.engine = None
        self.runtime = None


class NativePart:
    """A part's engine on the GPU: page-locked memory, one stream, a CUDA graph for shapes that come again.

    A batch beyond the one that the engine was built for is computed in several runs. Threads that run it
    at once wait for each other, for they share its memory and its stream.

    `data` is the engine, `where` its place for messages, `engine` what the manifest says of it.
    `cuda_graphs` counts the shapes that run as a graph, `graph_problem` says why one does not.

    An engine is code: whoever makes this has seen to it that it may run. Raises FusedgeError in one line
    where TensorRT or CUDA refuses: an engine of another device or version, no memory. All that it holds is
    given back by `close`, not during a run, or when nobody has it any more.
    """

    def __init__(
        self, data: bytes, where: str, part: HasTensors, engine: Engine, trt: Any, cuda: Cuda
    ) -> None:
        self.provider: str = engine.flavour
        self.cuda_graphs = 0
        self.graph_problem = ""
        self._part, self._dims, self._trt, self._cuda = part, engine.dims, trt, cuda
        self._where = where
        self._logger = make_logger(trt)
        self._max_batch = rows_at_once(part, engine.dims)
        self._running = threading.Lock()
        self._memory, self._graphs, self._loaded = ExitStack(), ExitStack(), _Loaded()
        self._finalizer = weakref.finalize(
            self, _give_back, self._graphs, self._loaded, self._memory
        )
        self._finalizer.atexit = False  # a thread may be in TensorRT; the driver frees it all
        try:
            self._load(data, engine)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give everything back; it cannot run any more."""
        self._finalizer()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Array]:
        """The outputs, in the manifest's order, for inputs by name."""
        with self._running:
            return run_in_pieces(self._run, feeds, self._max_batch)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Array]:
        inputs = [feeds[spec.name] for spec in self._part.inputs]
        key = tuple(feed.shape for feed in inputs)
        plan = self._loaded.plans.get(key) or self._plan(key)
        for piece, feed in zip(plan.inputs, inputs, strict=True):
            np.copyto(piece.view, feed, casting="no")
        if plan.capture and plan.ran:
            self._capture(plan)
        if plan.graph is None:
            self._enqueue(plan)
        else:
            self._cuda.launch(plan.graph, self._stream)
        self._cuda.wait(self._stream)
        plan.ran = True
        return [piece.view.copy() for piece in plan.outputs]

    def _load(self, data: bytes, engine: Engine) -> None:
        loaded = self._loaded
        self._stream = self._cuda.stream(self._memory)
        loaded.runtime = self._trt.Runtime(self._logger)
        if "VERSION_COMPATIBLE" in engine.flags:  # it brings the runtime of its own version
            loaded.runtime.engine_host_code_allowed = True
        core = dla_core(engine)
        if core is not None:
            loaded.runtime.DLA_core = core
        self._refuse_invalid(data)
        loaded.engine = self._require(
            loaded.runtime.deserialize_cuda_engine(data), "the engine does not load"
        )
        self._check()
        loaded.spare = self._require(
            loaded.engine.create_execution_context(),
            "no execution context, GPU memory may be short",
        )
        greatest = shapes_at(self._part, {n: dim.greatest for n, dim in self._dims.items()})
        self._set_shapes(loaded.spare, greatest)
        self._inputs = [self._allocate(spec.name, loaded.spare) for spec in self._part.inputs]
        self._outputs = [self._allocate(spec.name, loaded.spare) for spec in self._part.outputs]

    def _refuse_invalid(self, data: bytes) -> None:
        """TensorRT-RTX tells what is wrong with an engine without loading it."""
        trt, runtime = self._trt, self._loaded.runtime
        if not hasattr(runtime, "get_engine_validity"):
            return
        validity, bits = runtime.get_engine_validity(data)
        if validity == trt.EngineValidity.INVALID:
            kinds = trt.EngineInvalidityDiagnostics.__members__.items()
            names = [name.lower().replace("_", " ") for name, kind in kinds if bits & int(kind)]
            self._require(None, ", ".join(["the engine is not valid here", *names]))

    def _check(self) -> None:
        trt, engine = self._trt, self._loaded.engine
        found: dict[bool, list[FoundTensor]] = {True: [], False: []}
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise FusedgeError(
                    f"{name} is a shape that the engine wants on the host", where=self._where
                )
            dtype = engine.get_tensor_dtype(name).name
            shape = ["?" if size < 0 else size for size in engine.get_tensor_shape(name)]
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            found[is_input].append(FoundTensor(name, _DTYPES.get(dtype, dtype), shape))
        check_tensors(found[True], self._part.inputs, "input", self._where)
        check_tensors(found[False], self._part.outputs, "output", self._where)

    def _allocate(self, name: str, context: Any) -> _Tensor:
        """Memory for a tensor at the context's shapes."""
        dtype = np.dtype(_DTYPES[self._loaded.engine.get_tensor_dtype(name).name])
        size = math.prod(self._shape(context, name)) * dtype.itemsize
        return _Tensor(name, dtype, self._cuda.buffer(size, self._memory))

    def _shape(self, context: Any, name: str) -> tuple[int, ...]:
        shape = tuple(context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise FusedgeError(f"the shape of {name} depends on the data", where=self._where)
        return shape

    def _plan(self, key: tuple[tuple[int, ...], ...]) -> _Plan:
        shapes = dict(zip((spec.name for spec in self._part.inputs), key, strict=True))
        check_shapes(self._part, shapes, self._dims)
        own = self._own_context() if len(self._loaded.plans) < MAX_GRAPHS else None
        context = self._loaded.spare if own is None else own
        self._set_shapes(context, shapes)
        for tensor in (*self._inputs, *self._outputs):
            if not context.set_tensor_address(tensor.name, tensor.buffer.device_address):
                self._require(None, f"no address for {tensor.name}")
        inputs, outputs = (
            [_piece(tensor, self._shape(context, tensor.name)) for tensor in tensors]
            for tensors in (self._inputs, self._outputs)
        )
        plan = _Plan(context, inputs, outputs, keep=own is not None)
        if own is not None:
            self._loaded.plans[key] = plan
        return plan

    def _own_context(self) -> Any:
        """A context that nobody else changes; None where it cannot have one, and shares the spare one.

        Before TensorRT 8.6 two contexts cannot have one profile.
        """
        if not self._dims:
            return self._loaded.spare
        context = self._create_context()
        if context is None or context.active_optimization_profile == 0:
            return context
        return context if context.set_optimization_profile_async(0, self._stream) else None

    def _create_context(self) -> Any:
        """TensorRT-RTX would compile kernels for the shapes while it runs, and a graph never get them."""
        trt, engine = self._trt, self._loaded.engine
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return engine.create_execution_context()
        config = engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        return engine.create_execution_context(config)

    def _set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                self._require(None, f"input {name} cannot have the shape {list(shape)}")

    def _enqueue(self, plan: _Plan) -> None:
        for piece in plan.inputs:
            self._cuda.to_device(piece.buffer, piece.view.nbytes, self._stream)
        self._logger.errors.clear()
        if not plan.context.execute_async_v3(self._stream):
            self._require(None, "TensorRT did not run it")
        for piece in plan.outputs:
            self._cuda.to_host(piece.buffer, piece.view.nbytes, self._stream)

    def _capture(self, plan: _Plan) -> None:
        """From now on as a graph, if that can be: loops, for one, cannot."""
        plan.capture = False
        capturable = getattr(plan.context, "is_stream_capturable", lambda stream: True)
        if not capturable(self._stream):
            self.graph_problem = "TensorRT cannot be captured yet"
            return
        try:
            plan.graph = self._cuda.capture(lambda: self._enqueue(plan), self._stream, self._graphs)
        except FusedgeError as error:
            self.graph_problem = error.what
            self._logger.errors.clear()
        else:
            self.cuda_graphs += 1

    def _require(self, made: Any, what: str) -> Any:
        """What TensorRT made; raises FusedgeError with its own reason where that is nothing."""
        if made is None:
            reasons = [re.sub(_NOISE, "", line).strip() for line in self._logger.errors[:1]]
            self._logger.errors.clear()
            raise FusedgeError(": ".join([what, *reasons]), where=self._where)
        return made


def _give_back(graphs: ExitStack, loaded: _Loaded, memory: ExitStack) -> None:
    graphs.close()
    loaded.drop()
    memory.close()


def _piece(tensor: _Tensor, shape: tuple[int, ...]) -> _Piece:
    size = math.prod(shape) * tensor.dtype.itemsize
    return _Piece(tensor.buffer, tensor.buffer.host[:size].view(tensor.dtype).reshape(shape))
