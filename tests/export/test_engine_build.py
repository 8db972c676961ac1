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
from onnx import TensorProto, helper

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.manifest import DimRange
from fusedge.devices.targets.facts.table import find_target
from fusedge.devices.targets.tensorrt_api import EngineOptions
from fusedge.export import engine
from fusedge.export import repair as repairing
from fusedge.export.engine import (
    BuildLimits,
    BuiltEngine,
    EngineRequest,
    TrialProcess,
    build_engine,
)
from tests.export.small_graphs import (
    BATCH,
    attention_graph,
    dft_graph,
    graph_of,
    mixed_graph,
    nms_graph,
    product_graph,
    quantized_graph,
    recurrent_graph,
)


def request_for(
    graph: onnx.ModelProto,
    *targets: str,
    dims: dict[str, DimRange] = BATCH,
    options: EngineOptions = EngineOptions(),  # noqa: B008  # frozen
) -> EngineRequest:
    data = graph.SerializeToString(deterministic=True)
    found = tuple(find_target(name) for name in targets or ["rtx-3090"])
    return EngineRequest("part", data, "fp32", found, dims, options)


def build(graph: onnx.ModelProto, *targets: str, **limits: float) -> BuiltEngine:
    return build_engine(request_for(graph, *targets), BuildLimits(**limits))  # type: ignore[arg-type]


@pytest.mark.usefixtures("rtx")
def test_the_same_graph_gives_the_same_engine() -> None:
    digests = {hashlib.sha256(build(recurrent_graph()).data).hexdigest() for _ in range(3)}
    if len(digests) > 1 and _randomised_anyway():
        pytest.skip("this system does not let a process fix its memory layout")
    assert len(digests) == 1


def _randomised_anyway() -> bool:
    """Whether the system refuses to switch address randomisation off."""
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(None).personality(0x40000) < 0)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode != 0


@pytest.mark.usefixtures("rtx")
def test_what_was_achieved_is_told_for_each_layer() -> None:
    assert build(product_graph()).precision_by_node == {"out/linear": "fp32"}
    mixed = build(mixed_graph())
    assert mixed.precision_by_node["out/linear"] == "fp16"
    assert mixed.precision_by_node["out/bias"] == "fp32"
    assert build(quantized_graph()).precision_by_node == {"out/linear": "int8", "out/relu": "fp32"}
    assert mixed.flavour == "tensorrt_rtx"
    assert mixed.flags == ("STRONGLY_TYPED", "NO_TF32")
    assert mixed.build_s > 0 and not mixed.cached


@pytest.mark.usefixtures("rtx")
def test_the_manifest_row_describes_the_engine() -> None:
    request = request_for(product_graph(), "rtx-5090", "rtx-3090", "rtx-3080")
    built = build_engine(request)
    entry = built.entry(request.file, request)
    assert entry.file == "engines/tensorrt_rtx-sm86-sm120/part.fp32.engine"
    assert entry.targets == ("rtx-5090", "rtx-3090", "rtx-3080")
    assert entry.bytes == len(built.data)
    assert entry.compute_capabilities == ("8.6", "12.0")
    assert entry.dims == BATCH
    assert entry.version == built.version
    assert entry.power_mode is None


@pytest.mark.usefixtures("rtx")
def test_one_engine_serves_several_generations_at_little_cost() -> None:
    one = build(product_graph(), "rtx-3090")
    all_three = build(product_graph(), "rtx-3090", "rtx-4090", "rtx-5090")
    assert len({one.data, all_three.data}) == 2
    assert len(all_three.data) < len(one.data) + 10_000


@pytest.mark.usefixtures("rtx")
def test_every_named_dim_has_its_range() -> None:
    node = helper.make_node("Gather", ["table", "ids"], ["y"], "embed")
    graph = graph_of([node], {"table": np.ones((9, 4), np.float32)})
    graph.graph.input.append(
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])
    )
    tokens = DimRange(least=1, usual=16, greatest=64)
    dims = {**BATCH, "tokens": tokens}
    request = request_for(graph, dims=dims)
    assert build_engine(request).entry("e", request).dims == dims
    with pytest.raises(FusedgeError, match="input ids has a dim tokens of unknown size"):
        build_engine(request_for(graph))


@pytest.mark.usefixtures("rtx")
def test_attention_without_a_kernel_is_built_of_several_and_the_manifest_says_so() -> None:
    assert build(attention_graph()).repairs == (
        "attention mix/attention: built of several kernels",
    )


@pytest.mark.usefixtures("rtx")
def test_a_refused_graph_is_repaired_by_trial_and_the_repair_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The repair itself is tested elsewhere; here it is one that knows this graph."""

    def repair(graph: onnx.ModelProto, trial: repairing.Trial, feeds: object) -> repairing.Repaired:
        refusal = trial(graph.SerializeToString())
        assert refusal is not None and refusal.node == "mel/dft"
        assert trial(product_graph().SerializeToString()) is None
        return repairing.Repaired(product_graph(), ("mel/dft: as a product",), None)

    monkeypatch.setattr(repairing, "repair", repair)
    built = build(dft_graph())
    assert built.repairs == ("mel/dft: as a product",)
    assert built.precision_by_node == {"out/linear": "fp32"}


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """What repairs graphs is imported anew, and does not find the package."""
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("byte_forms", "graph", "repair"):
        monkeypatch.delitem(sys.modules, f"fusedge.export.{name}")
        monkeypatch.delattr(f"fusedge.export.{name}")


@pytest.mark.usefixtures("rtx")
def test_repair_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that only builds has none."""
    without(monkeypatch, "torch")
    assert build(dft_graph()).repairs


@pytest.mark.usefixtures("rtx")
def test_without_the_packages_for_repair_the_refusal_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = dft_graph()
    without(monkeypatch, "onnx")
    with pytest.raises(FusedgeError, match=r"node mel/dft: DFT cannot be .*fusedge\[export\]"):
        build(graph)


def test_building_imports_no_torch() -> None:
    code = "import sys, fusedge.export.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("rtx")
def test_an_operation_that_the_parser_refuses_is_named() -> None:
    node = helper.make_node("Unique", ["x"], ["y"], "head/unique")
    with pytest.raises(FusedgeError, match="node head/unique: Unique cannot be parsed"):
        build(graph_of([node], {}, x=["batch"]))


@pytest.mark.usefixtures("rtx")
def test_an_operation_that_the_builder_refuses_is_named() -> None:
    with pytest.raises(FusedgeError, match="target rtx-3090, node detector/nms: ") as caught:
        build(nms_graph())
    assert "has no runners" in caught.value.what
    assert "_src" not in caught.value.line()


@pytest.mark.usefixtures("rtx")
def test_float32_for_an_rtx_20_says_what_to_do() -> None:
    with pytest.raises(FusedgeError, match=r"node out/linear: .*export with fp16"):
        build(product_graph(), "rtx-2080-ti")


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("options", "name"),
    [
        (EngineOptions(timing_cache=True), "timing caches"),
        (EngineOptions(version_compatible=True), "version-compatible engines"),
        (EngineOptions(hardware_compatible=True), "hardware-compatible engines"),
        (EngineOptions(dla_core=0), "DLA"),
    ],
)
def test_an_option_that_the_flavour_lacks_is_refused_by_name(
    options: EngineOptions, name: str
) -> None:
    with pytest.raises(FusedgeError, match=rf"tensorrt_rtx 1\.\S+ has no {name}"):
        build_engine(request_for(product_graph(), options=options))


@pytest.mark.usefixtures("rtx")
def test_a_workspace_limit_is_set() -> None:
    options = EngineOptions(workspace_bytes=1 << 28)
    assert (
        "WORKSPACE=268435456" in build_engine(request_for(product_graph(), options=options)).flags
    )


@pytest.mark.usefixtures("rtx")
def test_too_little_memory_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(FusedgeError, match="memory limit was 8 MiB"):
        build(product_graph(), memory_bytes=8 << 20)


def test_a_lower_limit_of_the_system_is_kept() -> None:
    resource = pytest.importorskip("resource")
    code = f"""
        import resource
        from fusedge.export import engine_child
        resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
        engine_child._limit_memory(8 << 30)
        assert resource.getrlimit({resource.RLIMIT_DATA}) == (4 << 30, 4 << 30)
        engine_child._limit_memory(1 << 30)
        assert resource.getrlimit({resource.RLIMIT_DATA}) == (1 << 30, 1 << 30)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == 0


def test_what_is_no_graph_is_an_error() -> None:
    request = EngineRequest("part", b"\xff", "fp32", (find_target("rtx-3090"),), BATCH)
    with pytest.raises(FusedgeError, match="part part, target rtx-3090: the graph is not ONNX"):
        build_engine(request)


def use_child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a program in the builder's place, which crashes or hangs as TensorRT cannot be made to."""
    monkeypatch.setattr(engine, "CHILD", (sys.executable, "-c", code))


@pytest.mark.usefixtures("rtx")
def test_a_crash_of_the_child_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    use_child(monkeypatch, "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(FusedgeError, match=r"part part, target rtx-3090: .*crashed with SIGSEGV"):
        build(product_graph())


@pytest.mark.real_time
@pytest.mark.usefixtures("rtx")
def test_a_child_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    use_child(monkeypatch, "import time; time.sleep(60)")
    started = time.monotonic()
    with pytest.raises(FusedgeError, match=r"did not end within 0\.2 s"):
        build(product_graph(), timeout_s=0.2)
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("rtx")
def test_an_interrupt_leaves_no_child(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    child = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = f"""
        import sys
        from fusedge.export import engine
        from fusedge.devices.targets.facts.table import find_target
        engine.CHILD = (sys.executable, "-c", {child!r})
        targets = (find_target("rtx-3090"),)
        engine.build_engine(engine.EngineRequest("part", b"", "fp32", targets, {{}}))
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stderr=subprocess.DEVNULL,
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


def test_targets_without_or_of_different_engines_are_refused() -> None:
    with pytest.raises(FusedgeError, match="target cpu: this target runs ONNX parts"):
        build(product_graph(), "cpu")
    with pytest.raises(FusedgeError, match="of one TensorRT flavour"):
        build(product_graph(), "rtx-3090", "jetson-orin-nano-8gb")


def test_an_engine_for_a_jetson_must_be_built_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "check_installed", lambda flavour: None)
    with pytest.raises(FusedgeError, match=r"built on the device itself .*--target local"):
        build(product_graph(), "jetson-orin-nano-8gb")


@pytest.mark.usefixtures("rtx")
def test_trials_tell_what_is_taken_and_what_is_refused_and_where() -> None:
    graphs = [product_graph(), dft_graph(), attention_graph(), nms_graph(), product_graph()]
    with TrialProcess() as process:
        found = [process.trial(graph.SerializeToString(), BATCH) for graph in graphs]
    told = [(r.stage, r.node, r.operator) if r else None for r in found]
    assert told == [
        None,
        ("parse", "mel/dft", "DFT"),
        None,
        ("build", "detector/nms", "NonMaxSuppression"),
        None,
    ]


@pytest.mark.usefixtures("rtx")
def test_a_trial_takes_values_of_inputs_that_are_shapes() -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape")
    graph = graph_of([node], {}, x=[2, 6])
    graph.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    data = graph.SerializeToString()
    with TrialProcess() as process:
        assert process.trial(data) is not None
        assert process.trial(data, values={"shape": [3, 4]}) is None


_LATER_CRASH = """
import json, os, sys
def read():
    sys.stdin.buffer.read(json.loads(sys.stdin.buffer.readline())["graph_bytes"])
read()
if CRASH_AT_ONCE: os.kill(os.getpid(), 11)
os.write(1, b'{"engine_bytes": 0, "timing_bytes": 0}\\n')
read()
os.kill(os.getpid(), 11)
"""


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("stays", [False, True])
def test_a_crash_after_other_graphs_is_believed_only_if_it_comes_again(
    monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    use_child(monkeypatch, _LATER_CRASH.replace("CRASH_AT_ONCE", "False"))
    data = product_graph().SerializeToString()
    with TrialProcess() as process:
        assert process.trial(data, BATCH) is None
        use_child(monkeypatch, _LATER_CRASH.replace("CRASH_AT_ONCE", str(stays)))
        refusal = process.trial(data, BATCH)
    assert (refusal.stage if refusal else None) == ("crash" if stays else None)


@pytest.mark.usefixtures("rtx")
def test_a_trial_that_hangs_is_stopped_and_the_next_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, data = engine.CHILD, product_graph().SerializeToString()
    use_child(monkeypatch, "import time; time.sleep(60)")
    limits = BuildLimits(timeout_s=5)
    with TrialProcess(limits=BuildLimits(timeout_s=0.2)) as process:
        monkeypatch.setattr(engine, "CHILD", real)
        refusal = process.trial(data, BATCH)
    assert refusal is not None and refusal.stage == "timeout"
    with TrialProcess(limits=limits) as process:
        assert process.trial(data, BATCH) is None
