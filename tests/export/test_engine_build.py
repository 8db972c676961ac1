"""Engines are real, repeatable, and built where a crash, a hang or a greedy build does no harm."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.devices.targets.table import find_target
from fusedge.export import engine
from fusedge.export.engine import BuildLimits, BuiltEngine, EngineRequest, build_engine
from fusedge.export.precision import to_float16
from fusedge.export.split import ModulePart

RTX_3090 = find_target("rtx-3090")


def build(graph: onnx.ModelProto, target: str = "rtx-3090", **limits: float) -> BuiltEngine:
    data = graph.SerializeToString(deterministic=True)
    request = EngineRequest("part", data, "fp32", find_target(target))
    return build_engine(request, BuildLimits(**limits))  # type: ignore[arg-type]


def graph_of(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], **inputs: list[str | int]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def product_graph() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "out/linear")
    return graph_of([node], {"w": np.ones((4, 4), np.float32)}, x=["batch", 4])


@pytest.mark.usefixtures("rtx")
def test_the_same_graph_gives_the_same_engine(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    half = to_float16(graphs["imu"], parts[0], ())  # a GRU: the case that differs on its own
    digests = {hashlib.sha256(build(half).data).hexdigest() for _ in range(3)}
    if len(digests) > 1 and _randomised_anyway():
        pytest.skip("this system does not let a process fix its memory layout")
    assert len(digests) == 1


def _randomised_anyway() -> bool:
    """Whether the system refuses to switch address randomisation off."""
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(None).personality(0x40000) < 0)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode != 0


@pytest.mark.usefixtures("rtx")
def test_what_was_achieved_is_counted(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    full = build(graphs["head"])
    assert set(full.layers_by_precision) == {"fp32"}
    half = build(to_float16(graphs["head"], parts[-1], ("Softmax",)))
    assert half.layers_by_precision["fp16"] > half.layers_by_precision["fp32"] > 0
    assert full.flavour == "tensorrt_rtx"
    assert full.flags == ("STRONGLY_TYPED", "NO_TF32")


@pytest.mark.usefixtures("rtx")
def test_the_manifest_row_describes_the_engine(graphs: dict[str, onnx.ModelProto]) -> None:
    request = EngineRequest("head", graphs["head"].SerializeToString(), "fp32", RTX_3090)
    built = build_engine(request)
    entry = built.entry("engines/rtx-3090/head.engine", request)
    assert entry.bytes == len(built.data)
    assert entry.compute_capabilities == ("8.6",)
    assert entry.batch_range == (1, 4, 8)
    assert entry.version == built.version


@pytest.mark.usefixtures("rtx")
def test_each_generation_gets_its_own_engine() -> None:
    engines = {build(product_graph(), name).data for name in ("rtx-3090", "rtx-4090", "rtx-5090")}
    assert len(engines) == 3


@pytest.mark.usefixtures("rtx")
def test_an_operation_that_the_parser_refuses_is_named() -> None:
    dft = helper.make_node("DFT", ["x"], ["y"], "mel/dft", axis=1)
    with pytest.raises(FusedgeError, match="node mel/dft: DFT cannot be parsed"):
        build(graph_of([dft], {}, x=["batch", 16, 1]))


@pytest.mark.usefixtures("rtx")
def test_an_operation_that_the_builder_refuses_is_named() -> None:
    nodes = [
        helper.make_node("NonMaxSuppression", ["b", "s", "n"], ["i"], "detector/nms"),
        helper.make_node("Cast", ["i"], ["y"], "detector/cast", to=TensorProto.FLOAT),
    ]
    graph = graph_of(nodes, {"n": np.array([3])}, b=["batch", 9, 4], s=["batch", 1, 9])
    with pytest.raises(FusedgeError, match="target rtx-3090, node detector/nms") as caught:
        build(graph)
    assert "has no runners" in caught.value.what
    assert "_src" not in caught.value.line()


@pytest.mark.usefixtures("rtx")
def test_float32_for_an_rtx_20_says_what_to_do() -> None:
    with pytest.raises(FusedgeError, match=r"node out/linear: .*export with fp16"):
        build(product_graph(), "rtx-2080-ti")


@pytest.mark.usefixtures("rtx")
def test_too_little_memory_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(FusedgeError, match="memory limit was 8 MiB"):
        build(product_graph(), memory_bytes=8 << 20)


def use_child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(engine, "CHILD", (sys.executable, "-c", code))
    monkeypatch.setattr(engine, "check_installed", lambda flavour: None)


def test_a_crash_of_the_child_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    use_child(monkeypatch, "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(FusedgeError, match=r"part part, target rtx-3090: .*crashed with SIGSEGV"):
        build(product_graph())


def test_a_child_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    use_child(monkeypatch, "import time; time.sleep(60)")
    started = time.monotonic()
    with pytest.raises(FusedgeError, match=r"did not end within 0\.2 s"):
        build(product_graph(), timeout_s=0.2)
    assert time.monotonic() - started < 10


def test_an_interrupt_leaves_no_child(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    child = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = f"""
        import sys
        from fusedge.devices.targets.table import find_target
        from fusedge.export import engine
        engine.CHILD = (sys.executable, "-c", {child!r})
        engine.check_installed = lambda flavour: None
        engine.build_engine(engine.EngineRequest("p", b"", "fp32", find_target("rtx-3090")))
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGINT)
    assert parent.wait(20) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fusedge\[rtx\]'"):
        build(product_graph())


def test_a_target_without_a_gpu_has_no_engine() -> None:
    with pytest.raises(FusedgeError, match="target cpu: this target runs ONNX parts"):
        build(product_graph(), "cpu")
