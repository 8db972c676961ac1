"""Engines: a part's ONNX graph built for one or several GPUs by TensorRT, in a child process.

A failed parse can crash the next one in the same process, and native code can hang or take all memory. So
each engine has a process of its own, with a time and a memory limit; trials share one until it has
refused a graph. The same request gives the same engine: from the cache where it was built before.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedge.bundle.built_here import remember_built
from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.manifest import DimRange, Engine, GraphPrecision
from fusedge.devices.targets.facts.table import Target
from fusedge.devices.targets.tensorrt_api import (
    NO_OPTIONS,
    EngineOptions,
    check_installed,
    installed_version,
)
from fusedge.export.cache import Cache, key_of
from fusedge.export.engine_child import Request
from fusedge.export.packages import needs_extra
from fusedge.export.refusal import Refusal

with needs_extra("export", "building engines"):
    import onnx
    from onnx import TensorProto

if TYPE_CHECKING:
    from fusedge.export.repair import Repaired

CHILD = (sys.executable, "-m", "fusedge.export.engine_child")
# All that the child gets of our environment, so that the layout of its memory, on which the bytes of
# an engine can depend (see engine_child.settle_heap), does not change with the user's shell. Windows
# finds libraries by PATH.
_KEPT_VARIABLES = (
    *(("PATH",) if os.name == "nt" else ()),
    "LD_LIBRARY_PATH",
    "TEMP",
    "SYSTEMROOT",
    "CUDA_VISIBLE_DEVICES",
)
_PRECISIONS = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
}
_CACHE_FORMAT = "1"
_NOTHING_KEPT = Cache(None)


@dataclass(frozen=True)
class BuildLimits:
    """What one build may take. `memory_bytes` bounds the child's data memory (not on Windows)."""

    timeout_s: float = 300.0
    memory_bytes: int = 8 << 30


@dataclass(frozen=True)
class EngineRequest:
    """A build: the graph of a part at a precision, for targets of one flavour.

    `dims` has the sizes of every named dim of the inputs. An engine of `tensorrt` is tuned on the machine
    that builds it: `device` names that machine (GPU, driver, power mode), and `power_mode` its mode.
    """

    part: str
    graph: bytes
    precision: GraphPrecision
    targets: tuple[Target, ...]
    dims: Mapping[str, DimRange]
    options: EngineOptions = NO_OPTIONS
    device: str = ""
    power_mode: str | None = None

    @property
    def flavour(self) -> str:
        """The TensorRT that all targets have; raises FusedgeError where they differ or have none."""
        flavours = {target.flavour for target in self.targets}
        if len(flavours) != 1:
            raise FusedgeError(
                "one engine is for targets of one TensorRT flavour", where=self.where
            )
        flavour = flavours.pop()
        if flavour is None:
            raise FusedgeError("this target runs ONNX parts and has no engines", where=self.where)
        return flavour

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities of the targets, ascending."""
        found = {target.compute_capability or "" for target in self.targets}
        return tuple(sorted(found, key=lambda text: [int(n) for n in text.split(".") if n]))

    @property
    def where(self) -> str:
        """The part and its targets, for messages."""
        names = ", ".join(target.name for target in self.targets)
        return f"part {self.part}, target {names}"

    @property
    def file(self) -> str:
        """The engine's place in a bundle, another for each of what a bundle can have side by side."""
        place = [self.flavour, *(f"sm{c.replace('.', '')}" for c in self.capabilities)]
        place += [self.power_mode.lower()] if self.power_mode else []
        return f"engines/{'-'.join(place)}/{self.part}.{self.precision}.engine"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine's bytes, and what the build reports about it; `build_s` is of the build, cached or not."""

    data: bytes
    flavour: str
    version: str
    precision_by_node: dict[str, str]
    flags: tuple[str, ...]
    repairs: tuple[str, ...]
    build_s: float
    cached: bool
    compute_capabilities: tuple[str, ...]

    def entry(self, file: str, request: EngineRequest) -> Engine:
        """The manifest's row for this engine, stored as `file`."""
        return Engine.model_validate(
            {
                "file": file,
                "targets": tuple(target.name for target in request.targets),
                "flavour": self.flavour,
                "version": self.version,
                "compute_capabilities": self.compute_capabilities,
                "precision_requested": request.precision,
                "precision_by_node": self.precision_by_node,
                "flags": self.flags,
                "repairs": self.repairs,
                "dims": dict(request.dims),
                "power_mode": request.power_mode,
                "bytes": len(self.data),
            }
        )


def build_engine(
    request: EngineRequest,
    limits: BuildLimits = BuildLimits(),
    cache: Cache = _NOTHING_KEPT,
    before_build: Callable[[], None] = lambda: None,
) -> BuiltEngine:
    """Build one engine, or take it from the cache; a graph that TensorRT refuses is repaired if it can be.

    Raises FusedgeError in one line: which part and targets, which node, what to try; `before_build` may
    do so too, and is not asked where the cache has the engine. No child is left when this returns or
    raises, KeyboardInterrupt included. With a cache on disk, the engine is listed as built here
    (fusedge.bundle.built_here).
    """
    flavour = request.flavour
    check_installed(flavour)
    if flavour == "tensorrt" and not request.device:
        raise FusedgeError(
            "its engines are built on the device itself",
            where=request.where,
            hint="fusedge build BUNDLE --target local, on the device",
        )
    built = _kept(request, cache)
    if built is None:
        before_build()
        built = _build(request, limits, cache)
        cache.put("engine", _cache_key(request), _to_cache(built))
    if cache.folder is not None:
        remember_built(hashlib.sha256(built.data).hexdigest(), cache.folder)
    return built


def _kept(request: EngineRequest, cache: Cache) -> BuiltEngine | None:
    """The engine from the cache; None where it is not there, or another version of Fusedge wrote it."""
    content = cache.get("engine", _cache_key(request))
    if content is None:
        return None
    head, _, data = content.partition(b"\n")
    try:
        built = _built(request, json.loads(head), data, cached=True)
        built.entry(request.file, request)
    except (ValueError, KeyError, TypeError):
        return None
    return built


def _cache_key(request: EngineRequest) -> str:
    dims = {name: dim.model_dump() for name, dim in sorted(request.dims.items())}
    return key_of(
        _CACHE_FORMAT,
        request.flavour,
        installed_version(request.flavour),
        " ".join(request.capabilities),
        json.dumps(dims),
        json.dumps(asdict(request.options)),
        request.device,
        request.graph,
    )


def _to_cache(built: BuiltEngine) -> bytes:
    report = {
        "version": built.version,
        "precision_by_node": built.precision_by_node,
        "flags": built.flags,
        "repairs": built.repairs,
        "build_s": built.build_s,
    }
    return json.dumps(report).encode() + b"\n" + built.data


def _built(
    request: EngineRequest, report: Mapping[str, Any], data: bytes, *, cached: bool
) -> BuiltEngine:
    return BuiltEngine(
        data=data,
        flavour=request.flavour,
        version=report["version"],
        precision_by_node=report["precision_by_node"],
        flags=tuple(report["flags"]),
        repairs=tuple(report["repairs"]),
        build_s=float(report["build_s"]),
        cached=cached,
        compute_capabilities=request.capabilities,
    )


def _build(request: EngineRequest, limits: BuildLimits, cache: Cache) -> BuiltEngine:
    started = time.monotonic()
    model = _read(request.graph, request.where)
    answer, repairs = _build_once(request, model, limits, cache), list[str]()
    if isinstance(answer, Refusal) and answer.stage in ("parse", "build"):
        found = _repaired(request, model, answer, limits)
        repairs = list(found.repairs)
        answer = found.refusal or _build_once(request, found.graph, limits, cache)
    if isinstance(answer, Refusal):
        raise _error(answer, request.where, limits)
    report = {
        **answer.report,
        "repairs": [*repairs, *answer.report["repairs"]],
        "build_s": round(time.monotonic() - started, 3),
    }
    return _built(request, report, answer.engine, cached=False)


def _repaired(
    request: EngineRequest, model: onnx.ModelProto, refusal: Refusal, limits: BuildLimits
) -> Repaired:
    """The graph as TensorRT takes it; raises FusedgeError where the packages for it are not installed."""
    try:
        # Here, for it needs what a device that only builds need not have.
        with needs_extra("export", "repairing the graph"):
            from fusedge.export.repair import random_feeds, repair
    except MissingExtraError as error:
        raise _error(refusal, request.where, limits, error.line()) from None
    flavour, capabilities = request.flavour, request.capabilities
    with TrialProcess(flavour, capabilities, request.options, limits) as process:
        # Compared at sizes that the graph is made for.
        feeds = random_feeds(model, {name: dim.usual for name, dim in request.dims.items()})
        return repair(model, lambda graph: process.trial(graph, request.dims), feeds)


def _build_once(
    request: EngineRequest, model: onnx.ModelProto, limits: BuildLimits, cache: Cache
) -> _Answer | Refusal:
    graph = model.SerializeToString(deterministic=True)
    asked = _question(
        model,
        graph,
        request.flavour,
        request.capabilities,
        request.options,
        request.dims,
        request.where,
    )
    kept, place = request.options.timing_cache, key_of(request.flavour, request.device)
    timing = (cache.get("timing", place) or b"") if kept else b""
    with _Child(request.flavour, limits, request.where) as child:
        answer = child.ask(asked, graph, timing)
    if kept and isinstance(answer, _Answer):
        cache.put("timing", place, answer.timing)
    return _named(answer, model)


def _read(graph: bytes, where: str) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(graph)
    except Exception as error:  # protobuf's DecodeError, which is in no public place
        raise FusedgeError(f"the graph is not ONNX: {error}", where=where) from None


def _question(
    model: onnx.ModelProto,
    graph: bytes,
    flavour: str,
    capabilities: Sequence[str],
    options: EngineOptions,
    dims: Mapping[str, DimRange],
    where: str,
    values: Mapping[str, Sequence[int]] | None = None,
    *,
    trial: bool = False,
) -> Request:
    return Request(
        capabilities=list(capabilities),
        options=asdict(options),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1),
        profile=_shapes(model, dims, where),
        values={name: [list(value)] * 3 for name, value in (values or {}).items()},
        # TensorRT-RTX takes precision from the graph itself.
        precisions={} if flavour == "tensorrt_rtx" else _precisions(model),
        trial=trial,
        graph_bytes=len(graph),
        timing_bytes=0,
    )


def _shapes(
    model: onnx.ModelProto, dims: Mapping[str, DimRange], where: str
) -> dict[str, list[list[int]]]:
    """Least, usual and greatest shape of each input that has a named dim."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        shape = value.type.tensor_type.shape.dim
        if value.name in constants or all(dim.HasField("dim_value") for dim in shape):
            continue
        unknown = next(
            (d.dim_param for d in shape if not d.HasField("dim_value") and d.dim_param not in dims),
            None,
        )
        if unknown is not None:
            raise FusedgeError(
                f"input {value.name} has a dim {unknown or 'without a name'} of unknown size",
                where=where,
            )
        ranges = [
            [dim.dim_value] * 3
            if dim.HasField("dim_value")
            else [getattr(dims[dim.dim_param], size) for size in ("least", "usual", "greatest")]
            for dim in shape
        ]
        found[value.name] = [list(sizes) for sizes in zip(*ranges, strict=True)]
    return found


def _precisions(model: onnx.ModelProto) -> dict[str, str]:
    """The precision of each floating or int8 tensor of the graph."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    typed = {value.name: value.type.tensor_type.elem_type for value in values}
    typed |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: _PRECISIONS[kind] for name, kind in typed.items() if kind in _PRECISIONS}


class TrialProcess:
    """Tells which graphs TensorRT takes, in one process for many graphs; use it in a `with` block.

    A process that has refused a graph is replaced, for the next graph could crash in it. Where one
    crashes that has taken others before, the graph is tried once more in a new one.
    """

    def __init__(
        self,
        flavour: str = "tensorrt_rtx",
        capabilities: Sequence[str] = ("8.9",),
        options: EngineOptions = NO_OPTIONS,
        limits: BuildLimits = BuildLimits(),
    ) -> None:
        check_installed(flavour)
        self._flavour, self._capabilities = flavour, capabilities
        self._options, self._limits = options, limits
        self._child = _Child(flavour, limits, "trial")

    def __enter__(self) -> TrialProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()

    def trial(
        self,
        graph: bytes,
        dims: Mapping[str, DimRange] | None = None,
        values: Mapping[str, Sequence[int]] | None = None,
    ) -> Refusal | None:
        """Parse and build `graph`; None where TensorRT takes it.

        `dims` are the sizes of named dims, `values` those of inputs that are shapes. Raises FusedgeError
        for bytes that are no ONNX graph, and for a dim without sizes.
        """
        model = _read(graph, "trial")
        asked = _question(
            model,
            graph,
            self._flavour,
            self._capabilities,
            self._options,
            dims or {},
            "trial",
            values,
            trial=True,
        )
        fresh = not self._child.used
        answer = self._child.ask(asked, graph)
        if isinstance(answer, Refusal):
            self._restart()
            if answer.stage == "crash" and not fresh:
                answer = self._child.ask(asked, graph)
                self._restart()
        named = _named(answer, model)
        return named if isinstance(named, Refusal) else None

    def _restart(self) -> None:
        """Start a new process at once: it loads TensorRT while the caller decides what to try next."""
        self._child.close()
        self._child = _Child(self._flavour, self._limits, "trial")


@dataclass(frozen=True)
class _Answer:
    report: dict[str, Any]
    engine: bytes
    timing: bytes


@dataclass(frozen=True)
class _Unnamed(Refusal):
    """A refusal that names its node by its place in the graph."""

    position: int = -1


def _named(answer: _Answer | Refusal, model: onnx.ModelProto) -> _Answer | Refusal:
    """A refusal with the name and the kind of the graph's node; layers are named after nodes, and more."""
    if not isinstance(answer, _Unnamed):
        return answer
    name, operator = answer.node or "", answer.operator
    if not operator:
        nodes = model.graph.node
        alike = [node for node in nodes if node.name and name.startswith(node.name)]
        placed = nodes[answer.position : answer.position + 1] if answer.position >= 0 else ()
        found = max(alike, key=lambda node: len(node.name), default=next(iter(placed), None))
        if found is not None:
            name, operator = found.name, found.op_type
    return Refusal(answer.stage, answer.reason, name or None, operator or None)


class _Child:
    """A process that builds (see engine_child). `used`: it has had a request. `where` is for messages."""

    def __init__(self, flavour: str, limits: BuildLimits, where: str) -> None:
        self.used = False
        self._where = where
        self._limits = limits
        # A pipe would fill up, and stop a long-lived child.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
        self._process = subprocess.Popen(
            (*CHILD, flavour, str(limits.memory_bytes)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=_child_environment(),
            cwd=Path(sys.executable).anchor,
        )

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            with suppress(BrokenPipeError):  # what was not sent to one that is gone
                pipe.close()  # type: ignore[union-attr]  # both are pipes
        self._process.wait()

    def ask(self, asked: Request, graph: bytes, timing: bytes = b"") -> _Answer | Refusal:
        """The answer to one request, in time; a process that crashed or was too slow is a refusal too."""
        self.used = True
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self._limits.timeout_s, stop)
        timer.daemon = True
        timer.start()
        try:
            head = json.dumps({**asdict(asked), "timing_bytes": len(timing)}).encode()
            with suppress(BrokenPipeError):  # it has ended: how, is seen below
                for data in (head + b"\n", graph, timing):
                    self._process.stdin.write(data)
                self._process.stdin.flush()
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                return self._ending(late.is_set())
            reply: dict[str, Any] = json.loads(line)
            if "error" in reply:
                raise FusedgeError(reply["error"], where=self._where, hint=reply["hint"])
            sizes = [reply.pop("engine_bytes"), reply.pop("timing_bytes")]
            blobs = [self._process.stdout.read(size) for size in sizes]
            if [len(blob) for blob in blobs] != sizes:
                return self._ending(late.is_set())
        finally:
            timer.cancel()
        return _Unnamed(**reply["refusal"]) if "refusal" in reply else _Answer(reply, *blobs)

    def _ending(self, late: bool) -> Refusal:
        if late:
            limit = f"{self._limits.timeout_s:g} s"
            return Refusal("timeout", f"the build did not end within {limit} and was stopped")
        status = self._process.wait()
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        if status < 0:
            ending = f"crashed with {signal.Signals(-status).name}"
        else:
            ending = f"ended with status {status}"
        words = f"; its last words: {last[0]}" if last else ""
        return Refusal("crash", f"the TensorRT process {ending}{words}")


def _child_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    found = [entry for entry in sys.path if Path(entry).is_absolute() and Path(entry).exists()]
    path = os.pathsep.join(entry for entry in found if not _in_installation(Path(entry)))
    fixed = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0"}
    return {"PATH": os.defpath, **kept, **fixed}


def _in_installation(entry: Path) -> bool:
    """Whether a Python of ours searches this folder anyway, or it is that of the program that we are."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    folders = [sysconfig.get_path(kind) for kind in kinds] + site.getsitepackages()
    return any(entry.is_relative_to(folder) for folder in folders)


def _error(refusal: Refusal, where: str, limits: BuildLimits, hint: str = "") -> FusedgeError:
    node = f", node {refusal.node}" if refusal.node else ""
    subject = f"{refusal.operator or 'the graph'} cannot be parsed: " * (refusal.stage == "parse")
    return FusedgeError(
        subject + refusal.reason, where=where + node, hint=hint or _advice(refusal, limits)
    )


def _advice(refusal: Refusal, limits: BuildLimits) -> str:
    """What to try, for refusals that we have met."""
    reason = refusal.reason
    if refusal.stage == "timeout":
        return "allow more time, or make the part smaller"
    if refusal.stage == "crash":
        return (
            f"its memory limit was {limits.memory_bytes >> 20} MiB; try another precision or "
            "TensorRT version, and report the graph"
        )
    if "FP32 GEMM is not supported" in reason:
        return "RTX 20 GPUs compute matrix products in fp16 only: export with fp16"
    if "memory" in reason.lower() or "bad_alloc" in reason:
        return "allow the build more memory, or make the part smaller"
    if refusal.node or refusal.operator:
        return "TensorRT does not build this operation: replace it, or keep it outside of the part"
    return "try another precision or TensorRT version, and report the graph"
