"""The process that parses and builds: `python -m fusedge.export.engine_child FLAVOUR MEMORY_BYTES`.

It answers requests until its input ends. A request is a line of JSON (see `Request`), the ONNX graph and a
timing cache. An answer is a line of JSON, the engine and the new timing cache, with their sizes in
`engine_bytes` and `timing_bytes`. A graph that TensorRT refuses is an answer too: `refusal` has the fields
of one. `error` and `hint` tell of a request that this TensorRT cannot serve, whatever the graph.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.targets.tensorrt_api import EngineOptions, TensorRt, load, make_logger

_ADDR_NO_RANDOMIZE = 0x0040000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h
_HEAP_STEP_BYTES = 64 << 20
_NODE_IN_MESSAGE = (
    r"Cannot compile operation '([^']+)'",
    r"failed\. (\S+) has no runners",
    r"node \{(?:ForeignNode\[)?([^\]}]+)",
)
# NVIDIA's source positions say nothing to the user.
_NOISE = r"\[[^\]\s]*\.(?:cpp|h)[^\]]*\]\s*|\s*In \w+ at \S*_src/\S+?(?=\)|$)|\w+::\w+: |Error Code \d+: "


@dataclass(frozen=True)
class Request:
    """A graph to build. `profile` has for each input with free dims its least, usual and greatest shape.

    `values` has those of inputs that are shapes. `precisions` is the precision of each floating tensor of
    the graph, `trial` asks whether it builds, fast; then no engine is given.
    """

    capabilities: list[str]
    options: dict[str, Any]
    opset: int
    profile: dict[str, list[list[int]]]
    values: dict[str, list[list[int]]]
    precisions: dict[str, str]
    trial: bool
    graph_bytes: int
    timing_bytes: int


class _RefusedError(Exception):
    """TensorRT's reason, and the node at fault, by its name or its index, where it says so."""

    def __init__(self, **refusal: str | int) -> None:
        super().__init__(refusal["reason"])
        self.refusal = refusal


@dataclass(frozen=True)
class _Built:
    reply: dict[str, Any]
    engine: bytes
    timing: bytes


def main() -> None:
    """Answer requests."""
    _fix_memory_layout()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native libraries print; that must not get into the answers
    flavour, memory_bytes = sys.argv[1:]
    _limit_memory(int(memory_bytes))
    while line := sys.stdin.buffer.readline():
        request = Request(**json.loads(line))
        graph = sys.stdin.buffer.read(request.graph_bytes)
        timing = sys.stdin.buffer.read(request.timing_bytes)
        _answer(answers, flavour, request, graph, timing)


def _answer(answers: BinaryIO, flavour: str, request: Request, graph: bytes, timing: bytes) -> None:
    built = _Built({}, b"", b"")
    try:
        tensorrt = TensorRt(load(flavour), flavour)
        if flavour == "tensorrt_rtx" and not request.trial:
            settle_heap()
        built = build(tensorrt, request, graph, timing)
    except _RefusedError as error:
        built = _Built({"refusal": error.refusal}, b"", b"")
    except FusedgeError as error:
        built = _Built({"error": error.what, "hint": error.hint}, b"", b"")
    except MemoryError:
        built = _Built({"refusal": {"stage": "crash", "reason": "out of memory"}}, b"", b"")
    sizes = {"engine_bytes": len(built.engine), "timing_bytes": len(built.timing)}
    answers.write(json.dumps({**built.reply, **sizes}).encode() + b"\n")
    answers.write(built.engine + built.timing)
    answers.flush()


def _fix_memory_layout() -> None:
    """Start again without address randomisation, where the system lets us.

    TensorRT-RTX 1.7.1 orders the tensors of a network with a loop (GRU, LSTM) by their addresses: 8
    builds gave up to 4 different engines; with fixed addresses and hash seed, 16 of 16 were the same.
    """
    if sys.platform != "linux":
        return
    personality = ctypes.CDLL(None).personality
    current = personality(0xFFFFFFFF)
    if current < 0 or current & _ADDR_NO_RANDOMIZE:
        return
    if personality(current | _ADDR_NO_RANDOMIZE) >= 0:
        os.execv(sys.executable, sys.orig_argv)


def settle_heap() -> None:
    """Let what is allocated on the heap from now on lie where it mostly lies, whatever Python did before.

    Fixed addresses alone are not enough: how long a path is shifts all that comes after it in the heap. So
    the gaps of the heap are filled, and its end moved to the next round address. That is no proof: memory
    mapped beside the heap can still lie elsewhere, and with an LD_LIBRARY_PATH of 34 lengths one build of
    the driving head differed. So the environment is fixed too (`engine._child_environment`): with 32
    pairs of folder and PATH, all were the same. Fusedge installed at another path may give another
    engine, which computes the same. For glibc; call it once a process.
    """
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(libc, "mallopt"):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
    libc.sbrk.argtypes = [ctypes.c_ssize_t]

    def allocate(size: int) -> int:
        address: int | None = libc.malloc(ctypes.c_size_t(size))
        if address is None:
            raise MemoryError
        return address

    end = libc.sbrk(0)
    for size in (*(1 << power for power in range(19, 10, -1)), *range(1032, 8, -16)):
        while allocate(size) < end:  # it was a gap
            pass
    allocate(-allocate(24) % _HEAP_STEP_BYTES)
    # As glibc has it at first; set, they do not change with what was freed before.
    libc.mallopt(_M_MMAP_MAX, 65536)
    libc.mallopt(_M_MMAP_THRESHOLD, 128 << 10)
    libc.mallopt(_M_TRIM_THRESHOLD, 128 << 10)


def _limit_memory(limit: int) -> None:
    with suppress(ImportError):  # not on Windows
        import resource

        # Not the address space: CUDA reserves far more of it than it uses.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (least, least))


def build(tensorrt: TensorRt, request: Request, graph: bytes, timing: bytes) -> _Built:
    """Parse and build; raises FusedgeError or _RefusedError where TensorRT does not."""
    options = EngineOptions(**request.options)
    tensorrt.check(options, request.opset, set(request.precisions.values()))
    logger = make_logger(tensorrt.module)
    builder = tensorrt.module.Builder(logger)
    network = tensorrt.create_network(builder, options)
    parser = tensorrt.create_parser(network, logger, options)
    if not parser.parse(graph):
        failure = tensorrt.parse_failure(parser)
        raise _RefusedError(stage="parse", **failure._asdict())
    config, flags = tensorrt.configure(builder, options, request.capabilities)
    constrained = request.precisions if tensorrt.weakly_typed(options) else None
    if constrained is not None:
        flags += tensorrt.constrain(network, config, constrained)
    if request.profile or request.values:
        config.add_optimization_profile(_profile(builder, request.profile, request.values))
    if options.timing_cache:
        tensorrt.use_timing_cache(config, timing)
    if request.trial:
        tensorrt.hurry(config)
    engine = builder.build_serialized_network(network, config)
    repairs = []
    if engine is None and (layers := tensorrt.decompose_attention(network)):
        repairs = [f"attention {name}: built of several kernels" for name in layers]
        logger.errors.clear()
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _refused_build(logger.errors)
    reply = {
        "version": tensorrt.version,
        "precision_by_node": tensorrt.achieved(network, constrained),
        "flags": flags,
        "repairs": repairs,
    }
    measured = tensorrt.timing_cache(config) if options.timing_cache else b""
    return _Built(reply, b"" if request.trial else bytes(engine), measured)


def _profile(
    builder: Any, shapes: Mapping[str, list[list[int]]], values: Mapping[str, list[list[int]]]
) -> Any:
    profile = builder.create_optimization_profile()
    for name, (least, usual, greatest) in shapes.items():
        profile.set_shape(name, tuple(least), tuple(usual), tuple(greatest))
    for name, (least, usual, greatest) in values.items():
        profile.set_shape_input(name, least, usual, greatest)
    return profile


def _refused_build(errors: list[str]) -> _RefusedError:
    reason = errors[0] if errors else "TensorRT gave no engine and no reason"
    found = (re.search(pattern, reason) for pattern in _NODE_IN_MESSAGE)
    node = next((match.group(1) for match in found if match), "")
    return _RefusedError(stage="build", reason=re.sub(_NOISE, "", reason), node=node)


if __name__ == "__main__":
    main()
