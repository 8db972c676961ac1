"""Engines: a part's ONNX graph built for a target by TensorRT, in a child process.

A failed parse can crash the next one in the same process, and native code can hang or take all
memory: so each engine has a process of its own, with a time and a memory limit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Engine, Precision
from fusedge.devices.targets.table import Target
from fusedge.export.flavours import check_installed

CHILD = (sys.executable, "-m", "fusedge.export.engine_child")
# All that the child gets of our environment, so that the layout of its memory, on which the bytes of
# an engine can depend (see engine_child), does not change with the user's shell.
_KEPT_VARIABLES = (
    "PATH",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "TEMP",
    "SYSTEMROOT",
    "CUDA_VISIBLE_DEVICES",
)


@dataclass(frozen=True)
class BuildLimits:
    """What one build may take. `memory_bytes` bounds the child's data memory (Linux only)."""

    timeout_s: float = 300.0
    memory_bytes: int = 8 << 30


@dataclass(frozen=True)
class EngineRequest:
    """A build: the graph of a part at a precision, for a target and a range of batches."""

    part: str
    graph: bytes
    precision: Precision
    target: Target
    batch_range: tuple[int, int, int] = (1, 4, 8)


@dataclass(frozen=True)
class BuiltEngine:
    """An engine's bytes, and what the build reports about it."""

    data: bytes
    flavour: str
    version: str
    precision_by_node: dict[str, str]
    flags: tuple[str, ...]

    def entry(self, file: str, request: EngineRequest) -> Engine:
        """The manifest's row for this engine, stored as `file`."""
        return Engine.model_validate(
            {
                "file": file,
                "targets": (request.target.name,),
                "flavour": self.flavour,
                "version": self.version,
                "compute_capabilities": (request.target.compute_capability,),
                "precision_requested": request.precision,
                "precision_by_node": self.precision_by_node,
                "flags": self.flags,
                "dims": {
                    "batch": dict(
                        zip(("least", "usual", "greatest"), request.batch_range, strict=True)
                    )
                },
                "bytes": len(self.data),
            }
        )


def build_engine(request: EngineRequest, limits: BuildLimits = BuildLimits()) -> BuiltEngine:
    """Build one engine; raises FusedgeError in one line: which part and target, which node, what to try.

    The child is gone when this returns or raises, KeyboardInterrupt included.
    """
    target = request.target
    where = f"part {request.part}, target {target.name}"
    if target.flavour is None:
        raise FusedgeError("this target runs ONNX parts and has no engines", where=where)
    check_installed(target.flavour)
    header = {
        "flavour": target.flavour,
        "compute_capability": target.compute_capability,
        "batch_range": request.batch_range,
        "memory_bytes": limits.memory_bytes,
    }
    try:
        child = subprocess.run(
            CHILD,
            input=json.dumps(header).encode() + b"\n" + request.graph,
            capture_output=True,
            timeout=limits.timeout_s,
            env=_child_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FusedgeError(
            f"the build did not end within {limits.timeout_s:g} s and was stopped",
            where=where,
            hint="allow more time, or make the part smaller",
        ) from None
    if child.returncode != 0:
        raise _crash(child, where, limits)
    head, _, data = child.stdout.partition(b"\n")
    reply: dict[str, Any] = json.loads(head)
    if "error" in reply:
        node = f", node {reply['node']}" if reply["node"] else ""
        raise FusedgeError(reply["error"], where=where + node, hint=_advice(**reply))
    return BuiltEngine(
        data=data,
        flavour=target.flavour,
        version=reply["version"],
        precision_by_node=reply["precision_by_node"],
        flags=tuple(reply["flags"]),
    )


def _child_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return {**kept, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0"}


def _crash(
    child: subprocess.CompletedProcess[bytes], where: str, limits: BuildLimits
) -> FusedgeError:
    if child.returncode < 0:
        ending = f"crashed with {signal.Signals(-child.returncode).name}"
    else:
        ending = f"ended with status {child.returncode}"
    last = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
    said = f"; its last words: {last[0]}" if last else ""
    return FusedgeError(
        f"the TensorRT process {ending}{said}",
        where=where,
        hint=f"its memory limit was {limits.memory_bytes >> 20} MiB; try another precision or "
        "TensorRT version, and report the graph",
    )


def _advice(error: str, node: str) -> str:
    """What to try, for errors that we have met."""
    if "FP32 GEMM is not supported" in error:
        return "RTX 20 GPUs compute matrix products in fp16 only: export with fp16"
    if "memory" in error.lower() or "bad_alloc" in error:
        return "allow the build more memory, or make the part smaller"
    if node:
        return "TensorRT does not build this operation: replace it, or keep it outside of the part"
    return "try another precision or TensorRT version, and report the graph"
