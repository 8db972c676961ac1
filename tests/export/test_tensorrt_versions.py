"""Each version of TensorRT gets the calls that it has: real TensorRT-RTX, and records of the others."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.devices.targets import tensorrt_api
from fusedge.devices.targets.tensorrt_api import EngineOptions, TensorRt
from fusedge.export import engine, engine_child
from fusedge.export.refusal import Refusal
from tests.export.small_graphs import (
    BATCH,
    attention_graph,
    dft_graph,
    graph_of,
    mixed_graph,
    product_graph,
    quantized_graph,
)
from tests.export.tensorrt_double import FOLDER, ModuleDouble, read_record

WEAK = ("tensorrt_8_5", "tensorrt_8_6")
STRONG = ("tensorrt_10_3", "tensorrt_10_13", "tensorrt_11_4", "rtx_1_7")
ALL = (*WEAK, *STRONG)
PLAIN = EngineOptions()


def flavour_of(name: str) -> str:
    return "tensorrt_rtx" if name.startswith("rtx") else "tensorrt"


def build(
    name: str,
    model: onnx.ModelProto,
    options: EngineOptions = PLAIN,
    *,
    trial: bool = False,
    fails: tuple[str, ...] = (),
) -> tuple[dict[str, Any], ModuleDouble, bytes]:
    """What the building process would answer under that version, and the calls that it made."""
    double, data = ModuleDouble(read_record(name), fails), model.SerializeToString()
    asked = engine._question(
        model, data, flavour_of(name), ["8.9"], options, BATCH, "here", trial=trial
    )
    built = engine_child.build(TensorRt(double, flavour_of(name)), asked, data, b"earlier")
    return built.reply, double, built.timing


def flags_set(double: ModuleDouble) -> list[str]:
    return [flag.name for (flag,) in double.called("set_flag")]


@pytest.mark.usefixtures("rtx")
def test_the_record_of_rtx_is_the_real_package() -> None:
    program = FOLDER / "record.py"
    told = subprocess.run(
        [sys.executable, str(program), "tensorrt_rtx"], capture_output=True, check=True
    )
    assert json.loads(told.stdout) == read_record("rtx_1_7")


@pytest.mark.parametrize("name", ALL)
def test_every_record_says_what_it_rests_on(name: str) -> None:
    record = read_record(name)
    assert record["flavour"] == flavour_of(name) and record["sources"]
    assert name.split("_", 1)[1].replace("_", ".") in record["version"]


def test_a_double_has_only_what_its_version_has() -> None:
    double = ModuleDouble(read_record("tensorrt_11_4"))
    config = double.Builder(double.ILogger()).create_builder_config()
    with pytest.raises(AttributeError, match=r"IBuilderConfig of 11\.4\S* has no int8_calibrator"):
        config.int8_calibrator  # noqa: B018
    assert not hasattr(double.BuilderFlag, "FP16")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ALL)
def test_a_plain_graph_is_built_by_every_version(name: str) -> None:
    reply, double, _ = build(name, product_graph())
    assert reply["precision_by_node"] == {"out/linear": "fp32"}
    assert reply["flags"][:1] == (["NO_TF32"] if name in WEAK else ["STRONGLY_TYPED"])
    (profile,) = double.called("set_shape")
    assert profile == ("x", (1, 4), (4, 4), (8, 4))
    ((flags,),) = double.called("create_network")
    members = double.NetworkDefinitionCreationFlag  # type: ignore[attr-defined]
    assert flags == 1 << (members.EXPLICIT_BATCH if name in WEAK else members.STRONGLY_TYPED)


@pytest.mark.parametrize("name", ALL)
def test_fp32_is_never_tf32(name: str) -> None:
    _, double, _ = build(name, product_graph())
    assert [flag.name for (flag,) in double.called("clear_flag")] == ["TF32"]


def test_only_rtx_is_told_which_gpus_to_build_for() -> None:
    _, double, _ = build("rtx_1_7", product_graph())
    assert [flag.name for flag, _ in double.called("set_compute_capability")] == ["SM89"]
    assert double.called("num_compute_capabilities") == [(1,)]


@pytest.mark.parametrize("name", WEAK)
def test_without_strong_typing_every_layer_is_held_to_its_precision(name: str) -> None:
    reply, double, _ = build(name, mixed_graph())
    assert flags_set(double) == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    assert [value.name for (value,) in double.called("precision")] == ["HALF", "FLOAT"]
    assert [kind.name for _, kind in double.called("set_output_type")][-2:] == ["HALF", "FLOAT"]
    achieved = reply["precision_by_node"]
    assert (achieved["out/linear"], achieved["out/bias"]) == ("fp16", "fp32")


@pytest.mark.parametrize("name", STRONG)
def test_with_strong_typing_the_graph_alone_says_the_precision(name: str) -> None:
    reply, double, _ = build(name, mixed_graph())
    assert flags_set(double) == []
    assert reply["precision_by_node"] == {"out/bias": "fp32", "out/linear": "fp16"}


@pytest.mark.parametrize("name", ALL)
def test_a_quantized_product_is_int8(name: str) -> None:
    reply, double, _ = build(name, quantized_graph())
    assert reply["precision_by_node"] == {"out/linear": "int8", "out/relu": "fp32"}
    assert ("INT8" in flags_set(double)) == (name in WEAK)
    # what reads dequantized numbers is left to be fused
    assert len(double.called("precision")) == (1 if name in WEAK else 0)


def bf16_graph() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], "down", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["c"], ["y"], "up", to=TensorProto.FLOAT),
    ]
    return graph_of(nodes, {}, x=["batch", 4])


@pytest.mark.parametrize(
    ("name", "options", "model", "lacks"),
    [
        ("tensorrt_8_5", PLAIN, bf16_graph, "bf16"),
        ("tensorrt_8_6", PLAIN, bf16_graph, "bf16"),
        ("tensorrt_8_5", EngineOptions(version_compatible=True), mixed_graph, "version-compatible"),
        ("tensorrt_8_5", EngineOptions(hardware_compatible=True), mixed_graph, "hardware-compat"),
        ("tensorrt_8_5", EngineOptions(dla_core=0), quantized_graph, "Q/DQ graphs on DLA"),
        ("tensorrt_10_13", EngineOptions(dla_core=0), mixed_graph, "DLA"),
        ("rtx_1_7", EngineOptions(dla_core=0), mixed_graph, "DLA"),
        ("rtx_1_7", EngineOptions(timing_cache=True), mixed_graph, "timing caches"),
        ("rtx_1_7", EngineOptions(version_compatible=True), mixed_graph, "version-compatible"),
    ],
)
def test_what_a_version_lacks_is_refused_by_name(
    name: str, options: EngineOptions, model: Callable[[], onnx.ModelProto], lacks: str
) -> None:
    with pytest.raises(FusedgeError, match=rf"{flavour_of(name)} [\d.]+ has no {lacks}"):
        build(name, model(), options)


@pytest.mark.parametrize(
    ("name", "opset", "greatest"), [("tensorrt_8_5", 18, 17), ("tensorrt_10_3", 21, 20)]
)
def test_an_opset_that_the_parser_does_not_know_is_refused(
    name: str, opset: int, greatest: int
) -> None:
    model = product_graph()
    model.opset_import[0].version = opset
    with pytest.raises(
        FusedgeError, match=f"reads opset {greatest} at most, the graph has {opset}"
    ):
        build(name, model)
    model.opset_import[0].version = greatest
    build(name, model)


@pytest.mark.parametrize("name", ["tensorrt_8_6", "tensorrt_10_3", "tensorrt_11_4"])
def test_an_engine_can_be_for_other_versions_and_gpus(name: str) -> None:
    options = EngineOptions(version_compatible=True, hardware_compatible=True)
    reply, double, _ = build(name, product_graph(), options)
    assert reply["flags"][-2 if name in STRONG else -3 :][:2] == [
        "VERSION_COMPATIBLE",
        "AMPERE_PLUS",
    ]
    assert flags_set(double)[:2] == ["NATIVE_INSTANCENORM", "VERSION_COMPATIBLE"]
    assert [v.name for (v,) in double.called("hardware_compatibility_level")] == ["AMPERE_PLUS"]


@pytest.mark.parametrize("name", ["tensorrt_8_5", "tensorrt_10_3", "tensorrt_11_4"])
def test_dla_takes_what_it_can(name: str) -> None:
    reply, double, _ = build(name, mixed_graph(), EngineOptions(dla_core=1))
    assert double.called("DLA_core") == [(1,)]
    assert [kind.name for (kind,) in double.called("default_device_type")] == ["DLA"]
    assert {"DLA=1", "GPU_FALLBACK"} <= set(reply["flags"])
    # strong typing on DLA came with 11
    assert ("STRONGLY_TYPED" in reply["flags"]) == (name == "tensorrt_11_4")
    assert ("FP16" in flags_set(double)) == (name != "tensorrt_11_4")
    with pytest.raises(FusedgeError, match="no DLA core 2, this machine has 2"):
        build(name, mixed_graph(), EngineOptions(dla_core=2))


@pytest.mark.parametrize("name", [n for n in ALL if n != "rtx_1_7"])
def test_measured_kernels_are_kept_for_the_next_build(name: str) -> None:
    _, double, timing = build(name, product_graph(), EngineOptions(timing_cache=True))
    assert double.called("create_timing_cache") == [(b"earlier",)]
    assert timing == b"measured"


@pytest.mark.parametrize("name", ALL)
def test_the_workspace_is_bounded_by_the_memory_pool(name: str) -> None:
    _, double, _ = build(name, product_graph(), EngineOptions(workspace_bytes=1 << 20))
    ((pool, size),) = double.called("set_memory_pool_limit")
    assert (pool.name, size) == ("WORKSPACE", 1 << 20)


@pytest.mark.parametrize("name", ALL)
def test_a_trial_does_not_search_for_fast_kernels(name: str) -> None:
    _, double, _ = build(name, product_graph(), trial=True)
    hurried = name not in ("tensorrt_8_5", "rtx_1_7")
    assert double.called("builder_optimization_level") == ([(0,)] if hurried else [])


@pytest.mark.parametrize("name", ["tensorrt_11_4", "rtx_1_7"])
def test_attention_that_fails_is_built_of_several_kernels(name: str) -> None:
    reply, double, _ = build(name, attention_graph(), fails=("no kernel for attention",))
    assert reply["repairs"] == ["attention mix/attention: built of several kernels"]
    assert double.called("decomposable") == [(True,)]


@pytest.mark.parametrize("name", ALL)
def test_a_failed_build_tells_its_reason_and_node(name: str) -> None:
    reason = "In f at /_src/a.cpp:1: node {out/linear} has no implementation"
    with pytest.raises(engine_child._RefusedError, match="has no implementation") as caught:
        build(name, product_graph(), fails=(reason,))
    assert caught.value.refusal["node"] == "out/linear"


@pytest.mark.parametrize("name", ALL)
def test_a_failed_parse_tells_the_node_by_name_or_by_place(name: str) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "first"),
        helper.make_node("Unique", ["r"], ["y"], "head/unique"),
    ]
    model = graph_of(nodes, {}, x=["batch"])
    with pytest.raises(engine_child._RefusedError) as caught:
        build(name, model)
    refusal = engine._named(engine._Unnamed(**caught.value.refusal), model)  # type: ignore[arg-type]
    assert isinstance(refusal, Refusal)
    assert (refusal.stage, refusal.node, refusal.operator) == ("parse", "head/unique", "Unique")


def test_a_version_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleDouble({"version": "8.4.1", "enums": {}, "classes": {}})
    monkeypatch.setattr(tensorrt_api, "check_installed", lambda flavour: None)
    monkeypatch.setattr(tensorrt_api.importlib, "import_module", lambda name: old)
    with pytest.raises(FusedgeError, match=r"tensorrt 8\.4\.1 is too old \(version 8\.5 or newer"):
        tensorrt_api.load("tensorrt")


def test_a_missing_flavour_names_its_extra() -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed")
    with pytest.raises(MissingExtraError, match=r"pip install 'fusedge\[tensorrt\]'"):
        tensorrt_api.load("tensorrt")


@pytest.mark.usefixtures("rtx")
def test_the_version_is_known_without_importing() -> None:
    assert tensorrt_api.installed_version("tensorrt_rtx") == read_record("rtx_1_7")["version"]


def test_options_travel_to_the_building_process() -> None:
    options = EngineOptions(True, True, True, 1, 5)
    asked = engine._question(dft_graph(), b"", "tensorrt", ["8.7"], options, BATCH, "here")
    assert EngineOptions(**json.loads(json.dumps(asdict(asked)))["options"]) == options
