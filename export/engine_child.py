"""The child process that builds one engine: `python -m fusedge.export.engine_child`.

In: a JSON line (flavour, compute_capability, batch_range, memory_bytes), then the ONNX graph. Out: a
JSON line, then the engine. A build that TensorRT refuses is an answer (`error`, `node`), with status 0.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from fusedge.bundle.errors import FusedgeError
from fusedge.export.flavours import load

_ADDR_NO_RANDOMIZE = 0x0040000
_PRECISIONS = {
    "FLOAT": "fp32",
    "HALF": "fp16",
    "BF16": "bf16",
    "INT8": "int8",
    "FP8": "fp8",
    "INT4": "int4",
    "FP4": "fp4",
}
_DATA_LAYERS = ("CONSTANT", "CAST")  # hold or convert numbers, do not compute
_NODE_IN_MESSAGE = (
    r"Cannot compile operation '([^']+)'",
    r"failed\. (\S+) has no runners",
    r"node \{(?:ForeignNode\[)?([^\]}]+)",
)


# NVIDIA's source positions say nothing to the user.
_NOISE = r"\[[^\]\s]*\.(?:cpp|h)[^\]]*\]\s*|\s*In \w+ at \S*_src/\S+?(?=\)|$)|\w+::\w+: |Error Code \d+: "


class _RefusedError(Exception):
    """TensorRT's reason, and the node at fault in the user's names where it says so."""

    def __init__(self, reason: str, node: str = "") -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node


def main() -> None:
    """Read the request, answer it."""
    _fix_memory_layout()
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native libraries print; that must not get into the answer
    header = json.loads(sys.stdin.buffer.readline())
    graph = sys.stdin.buffer.read()
    _limit_memory(header["memory_bytes"])
    engine = b""
    try:
        reply, engine = _build(header, graph)
    except _RefusedError as error:
        reply = {"error": error.reason, "node": error.node}
    except FusedgeError as error:
        reply = {"error": error.line(), "node": ""}
    except MemoryError:
        reply = {"error": "out of memory", "node": ""}
    with answer:
        answer.write(json.dumps(reply).encode() + b"\n" + engine)


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


def _limit_memory(limit: int) -> None:
    with suppress(ImportError):  # not on Windows
        import resource

        # Not the address space: CUDA reserves far more of it than it uses.
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _build(header: dict[str, Any], graph: bytes) -> tuple[dict[str, Any], bytes]:
    trt = load(header["flavour"])
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        _refuse_parse(parser)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    if header["flavour"] == "tensorrt_rtx":
        _set_capability(trt, config, header["compute_capability"])
    config.add_optimization_profile(_profile(builder, network, header["batch_range"]))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        _refuse_build(logger.errors)
    reply = {
        "version": trt.__version__,
        "precision_by_node": _precisions(network),
        "flags": ["STRONGLY_TYPED", "NO_TF32"],
    }
    return reply, bytes(engine)


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is only known at run time
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def _set_capability(trt: Any, config: Any, capability: str) -> None:
    name = f"SM{capability.replace('.', '')}"
    if not hasattr(trt.ComputeCapability, name):
        raise _RefusedError(f"{trt.__name__} {trt.__version__} cannot build for {capability}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)


def _profile(builder: Any, network: Any, batch_range: Sequence[int]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        # Only the first dim of an input is free in a part.
        profile.set_shape(
            tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in batch_range)
        )
    return profile


def _refuse_parse(parser: Any) -> NoReturn:
    error = parser.get_error(0)
    operator = error.node_operator()
    subject = f"{operator} cannot be parsed: " if operator else "the graph cannot be parsed: "
    raise _RefusedError(subject + error.desc(), error.node_name())


def _refuse_build(errors: list[str]) -> NoReturn:
    reason = errors[0] if errors else "TensorRT gave no engine and no reason"
    found = (re.search(pattern, reason) for pattern in _NODE_IN_MESSAGE)
    node = next((match.group(1) for match in found if match), "")
    raise _RefusedError(re.sub(_NOISE, "", reason), node)


def _precisions(network: Any) -> dict[str, str]:
    """Computing layers with the type of their floating outputs, as the parsed network has them.

    In a strongly typed network that is what the engine computes; its inspector needs a GPU.
    """
    layers = (network.get_layer(index) for index in range(network.num_layers))
    found = {
        layer.name: next(iter(_floating_types(layer)), "")
        for layer in layers
        if layer.type.name not in _DATA_LAYERS
    }
    return {name: precision for name, precision in sorted(found.items()) if precision}


def _floating_types(layer: Any) -> Iterator[str]:
    outputs = (layer.get_output(index) for index in range(layer.num_outputs))
    for tensor in outputs:
        if tensor is not None and tensor.dtype.name in _PRECISIONS:
            yield _PRECISIONS[tensor.dtype.name]


if __name__ == "__main__":
    main()
