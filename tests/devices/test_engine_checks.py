"""Whether TensorRT can run the parts on a target, each finding both ways."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusedge.bundle.manifest import DimRange, Manifest
from fusedge.devices.targets.detection.machine import SystemTensorRT
from fusedge.devices.targets.facts.engine_fit import is_for_gpu, is_for_version
from fusedge.devices.targets.facts.table import find_target, generations, jetpacks_for, jetsons
from fusedge.devices.targets.preflight import engine_checks
from fusedge.devices.targets.preflight.preflight import Preflight, preflight
from fusedge.devices.targets.preflight.software import Software, software_of
from fusedge.devices.targets.work import Kind, NodeWork
from tests.devices.preflight_cases import (
    DRIVING,
    ORIN,
    WITH_DLA,
    WORKS,
    XAVIER,
    Works,
    an_engine,
    findings_of,
    plan_for,
    software_for,
    the_one,
    with_engine,
    with_graphs,
    with_operator,
    with_parts,
)

# The GPU and its TensorRT


def test_native_without_a_gpu_is_refused() -> None:
    plan = plan_for(DRIVING, WORKS, "raspberry-pi-5-8gb", backend="native")
    assert "onnx" in the_one(plan, "compute capability", "refused", "no NVIDIA GPU").way_out
    assert not plan.will_run


def test_an_engine_of_another_gpu_is_not_for_this_one() -> None:
    other = with_engine(DRIVING, compute_capabilities=("8.9",))
    plan = plan_for(other, WORKS, ORIN, "6.2")
    assert (
        "8.9, and jetson-orin-nano-8gb has 8.7"
        in the_one(plan, "compute capability", "warning", "engine for the GPU design").sentence
    )
    assert findings_of(plan, "engine")[0].verdict == "warning"
    same = plan_for(with_engine(DRIVING), WORKS, ORIN, "6.2")
    assert not findings_of(same, "compute capability")
    assert the_one(same, "engine", "fits", "has an engine for").parts == (
        "imu",
        "gps",
        "road",
        "head",
    )


def test_a_hardware_compatible_engine_is_for_all_gpus_from_ampere_on() -> None:
    wide = with_engine(
        DRIVING,
        targets=("a100-sxm4-40gb",),
        compute_capabilities=("8.0",),
        flags=("AMPERE_PLUS",),
    )

    def sentences(name: str) -> str:
        target = replace(find_target(name), flavour="tensorrt")
        software = software_for(target, tensorrt="10.3.0.30", tensorrt_flavour="tensorrt")
        found = findings_of(preflight(wide, WORKS, target, software), "engine")
        return " ".join(finding.sentence for finding in found)

    assert "has an engine" in sentences("a100-sxm4-40gb")
    for card in ("h100-sxm", "a10", "rtx-4090"):
        assert "tuned on a100-sxm4-40gb" in sentences(card)
    # older than Ampere, or a Jetson: with JetPack there is no hardware compatibility
    for other in ("t4", "v100-sxm2-16gb", XAVIER, ORIN, "jetson-thor-t5000"):
        assert "has an engine" not in sentences(other) and "tuned" not in sentences(other)


def test_an_engine_of_a_jetson_is_for_no_graphics_card() -> None:
    engine = an_engine(flags=("AMPERE_PLUS",))
    assert is_for_gpu(engine, "8.7")
    assert not any(is_for_gpu(engine, other) for other in ("8.0", "8.9", "11.0", "12.0"))


def test_an_engine_is_for_the_kind_of_processor_that_it_was_built_beside() -> None:
    def about(name: str, *built_on: str, flags: tuple[str, ...] = ()) -> Preflight:
        changes = {"targets": built_on, "compute_capabilities": ("9.0",), "flags": flags}
        target = replace(find_target(name), flavour="tensorrt")
        software = software_for(target, tensorrt="10.3.0.30", tensorrt_flavour="tensorrt")
        return preflight(with_engine(DRIVING, **changes), WORKS, target, software)

    finding = the_one(about("gh200", "h100-sxm"), "processor", "warning", "of kind x86_64")
    assert "gh200 has aarch64" in finding.sentence and "build another" in finding.way_out
    assert the_one(about("h100-sxm", "gh200"), "processor", "warning", "has x86_64")
    assert findings_of(about("gh200", "a100-sxm4-40gb", flags=("AMPERE_PLUS",)), "processor")
    for name in ("h100-sxm", "h100-sxm:of-mine", "a-card-of-mine"):
        assert not findings_of(about("h100-sxm", name), "processor")


def test_an_engine_that_was_tuned_on_another_device_is_a_warning() -> None:
    built = with_engine(DRIVING, targets=("jetson-agx-orin-64gb:MAXN",))
    finding = the_one(
        plan_for(built, WORKS, ORIN, "6.2"), "engine", "warning", "tuned on jetson-agx"
    )
    assert f"on {ORIN} it may be slower" in finding.sentence and "build another" in finding.way_out
    for name in ("jetson-agx-orin-64gb", "jetson-agx-orin-64gb:30W"):
        assert the_one(plan_for(built, WORKS, name, "6.2"), "engine", "fits", "has an engine")
    anywhere = with_engine(
        DRIVING, flavour="tensorrt_rtx", targets=("rtx-4080",), compute_capabilities=("8.9",)
    )
    assert the_one(plan_for(anywhere, WORKS, "rtx-4090"), "engine", "fits", "has an engine")


def test_an_engine_of_the_other_flavour_is_not_for_this_target() -> None:
    other = with_engine(DRIVING, flavour="tensorrt_rtx", version="1.7.1")
    finding = the_one(plan_for(other, WORKS, ORIN, "6.2"), "tensorrt", "warning", "TensorRT-RTX")
    assert "has TensorRT." in finding.sentence


def test_an_engine_loads_in_the_version_that_built_it() -> None:
    built = with_engine(DRIVING)
    plan = plan_for(built, WORKS, ORIN, "6.0", backend="native")
    finding = the_one(plan, "tensorrt", "warning", "10.3.0.30 built")
    assert "JetPack 6.0" in finding.sentence and "build another" in finding.way_out
    assert not findings_of(plan_for(built, WORKS, ORIN, "6.2"), "tensorrt")
    rebuilt = with_engine(DRIVING, version="10.3.0.26")
    assert the_one(plan_for(rebuilt, WORKS, ORIN, "6.2"), "tensorrt", "warning", "10.3.0.26 built")
    later = with_engine(DRIVING, flags=("VERSION_COMPATIBLE",), version="8.6.2")
    assert not findings_of(plan_for(later, WORKS, ORIN, "6.2"), "tensorrt")
    assert findings_of(plan_for(later, WORKS, ORIN, "5.1.2"), "tensorrt")


@pytest.mark.parametrize(
    ("built", "loads", "refuses"),
    [
        ("8.6.1.6", ("8.6.1.6", "8.6.1.7", "8.6.2", "10.3.0.30", "10.13.3"), ("9.0.1", "11.0.0")),
        ("9.3.0.1", ("9.3.0.1", "9.4.0"), ("8.6.2", "10.3.0", "11.0.0")),
        ("10.3.0.30", ("10.3.0.30", "10.3.0.31", "11.0.0", "11.4.1.1"), ("10.3.0.26", "12.0.0")),
        ("11.0.0.1", ("11.0.0.1", "11.4.1"), ("10.13.3", "12.0.0", "")),
    ],
)
def test_a_version_compatible_engine_is_for_its_major_version_and_the_next(
    built: str, loads: tuple[str, ...], refuses: tuple[str, ...]
) -> None:
    wide, plain = an_engine(version=built, flags=("VERSION_COMPATIBLE",)), an_engine(version=built)
    for version in (*loads, *refuses):
        assert is_for_version(wide, version) == (version in loads), version
        assert is_for_version(plain, version) == (version == built), version
    rtx = an_engine(version="1.7.1", flavour="tensorrt_rtx")  # it says itself what it loads
    assert is_for_version(rtx, "1.5.0")


def test_where_the_version_on_the_device_is_not_known_it_is_said() -> None:
    built = with_engine(DRIVING, targets=("a100-sxm4-40gb",), compute_capabilities=("8.0",))
    plan = plan_for(built, WORKS, "a100-sxm4-40gb")
    assert "must be the same" in the_one(plan, "tensorrt", "unknown", "not known").sentence
    assert not [f for f in findings_of(plan, "engine") if f.verdict == "fits"]


def test_tensorrt_before_8_5_is_refused() -> None:
    target = find_target(XAVIER)
    plan = preflight(DRIVING, WORKS, target, software_of(target, "4.6.1", None), backend="native")
    finding = the_one(plan, "tensorrt", "refused", "8.5 or newer")
    assert "install JetPack 5" in finding.way_out
    newer = preflight(DRIVING, WORKS, target, software_of(target, None, None), backend="native")
    assert not findings_of(newer, "tensorrt")


def test_a_version_that_is_not_for_the_gpu_is_refused() -> None:
    target = replace(find_target("rtx-5090"), flavour="tensorrt")
    early = software_for(target, tensorrt="10.3.0", tensorrt_flavour="tensorrt")
    first = generations()["12.0"].tensorrt_first
    plan = preflight(DRIVING, WORKS, target, early, backend="native")
    finding = the_one(plan, "compute capability", "refused", f"{first} was the first")
    assert finding.way_out == f"install TensorRT {first} or newer on the device"
    late = replace(early, tensorrt="10.13.0")
    plan = preflight(DRIVING, WORKS, target, late, backend="native")
    assert not findings_of(plan, "compute capability")


def test_a_gpu_that_tensorrt_has_dropped_is_refused() -> None:
    target = find_target(XAVIER)
    late = software_for(target, tensorrt="10.3.0")
    plan = preflight(DRIVING, WORKS, target, late, backend="native")
    assert the_one(plan, "compute capability", "refused", "no more for")
    softened = preflight(DRIVING, WORKS, target, late)
    assert the_one(softened, "compute capability", "warning", "no more for")
    assert the_one(softened, "backend", "warning", "ONNX Runtime does, on the")
    assert {route.backend for route in softened.routes.values()} == {"onnx"}


def test_a_gpu_that_no_table_has_is_unknown() -> None:
    target = replace(find_target("rtx-4090"), name="rtx-9999", compute_capability="99.0", row=None)
    plan = preflight(DRIVING, WORKS, target, software_for(target))
    assert the_one(plan, "compute capability", "unknown", "99.0")
    assert plan.will_run


def test_a_generation_whose_first_version_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    orin = generations()["8.7"].model_copy(update={"tensorrt_first": None})
    monkeypatch.setattr(engine_checks, "generations", lambda: {"8.7": orin})
    plan = plan_for(DRIVING, WORKS, ORIN, "6.2")
    assert the_one(plan, "compute capability", "unknown", "first for") and plan.will_run


def test_tensorrt_rtx_is_not_for_the_gpus_of_data_centres() -> None:
    target = replace(find_target(ORIN), flavour="tensorrt_rtx")
    software = software_for(target, tensorrt_flavour="tensorrt_rtx", tensorrt="1.7.1")
    plan = preflight(DRIVING, WORKS, target, software, backend="native")
    assert the_one(plan, "compute capability", "refused", "TensorRT-RTX is not for")


def test_on_this_machine_what_is_not_installed_is_refused() -> None:
    target = find_target("rtx-4090")
    bare = Software(None, None, "tensorrt_rtx", "3.12", None, "x86_64", installed=True)
    plan = preflight(DRIVING, WORKS, target, bare)
    assert (
        the_one(plan, "tensorrt", "warning", "not installed").way_out
        == "pip install 'fusedge[rtx]'"
    )
    assert the_one(plan, "onnxruntime", "refused", "not installed")
    assert not plan.will_run
    full = replace(
        bare, tensorrt="1.7.1", onnxruntime="1.32.0", providers=("CPUExecutionProvider",)
    )
    plan = preflight(DRIVING, WORKS, target, full)
    assert plan.will_run and not findings_of(plan, "tensorrt")
    assert the_one(plan, "onnxruntime", "warning", "cannot use the GPU")
    old = replace(full, onnxruntime="1.17.0")
    assert the_one(
        preflight(DRIVING, WORKS, target, old, backend="onnx"), "onnxruntime", "refused", "1.20"
    )
    gpu = replace(full, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    plan = preflight(DRIVING, WORKS, target, gpu, backend="onnx")
    assert {route.device for route in plan.routes.values()} == {"gpu"}


def test_a_tensorrt_for_another_python_is_told() -> None:
    target = find_target(ORIN)
    system = SystemTensorRT(version="8.5.2", pythons=("3.8",))
    software = software_for(
        target, tensorrt=None, python="3.12", installed=True, system_tensorrt=system
    )
    plan = preflight(DRIVING, WORKS, target, software, backend="native")
    finding = the_one(plan, "tensorrt", "refused", "8.5.2 is for Python 3.8, and this is 3.12")
    assert finding.way_out.startswith("--backend onnx")
    newer = replace(software, system_tensorrt=SystemTensorRT(version="10.3.0", pythons=("3.10",)))
    plan = preflight(DRIVING, WORKS, target, newer, backend="native")
    way = the_one(plan, "tensorrt", "refused", "for Python 3.10").way_out
    assert way == "a virtual environment of Python 3.10 with --system-site-packages"
    alike = replace(newer, python="3.10")
    plan = preflight(DRIVING, WORKS, target, alike, backend="native")
    finding = the_one(plan, "tensorrt", "refused", "for this Python 3.10, but this environment")
    assert "and this is" not in finding.sentence and finding.way_out == way


# Opset, precision, operators


def test_an_opset_that_the_jetpack_does_not_read_is_refused() -> None:
    plan = plan_for(DRIVING, WORKS, ORIN, "5.1.2", backend="native")
    finding = the_one(plan, "opset", "refused", "opset 18")
    assert "reads 17 at most" in finding.sentence and finding.way_out == "export it with --opset 17"
    assert not findings_of(plan_for(DRIVING, WORKS, ORIN, "6.2", backend="native"), "opset")
    older = plan_for(DRIVING, _in_opset(17), ORIN, "5.1.2", backend="native")
    assert not findings_of(older, "opset")
    assert not findings_of(plan_for(DRIVING, _in_opset(30), "rtx-4090"), "opset")


def _in_opset(opset: int) -> Works:
    return {key: replace(work, opset=opset) for key, work in WORKS.items()}


def test_the_opset_is_the_one_of_the_graph_and_not_what_the_manifest_says() -> None:
    said = with_graphs(DRIVING, opset=17)
    plan = plan_for(said, WORKS, ORIN, "5.1.2", backend="native", precision="fp32")
    assert the_one(plan, "opset", "refused", "opset 18")
    uncounted = plan_for(said, {}, ORIN, "5.1.2", backend="native", precision="fp32")
    assert not findings_of(uncounted, "opset")


def test_an_engine_that_is_there_needs_no_opset() -> None:
    built = with_engine(DRIVING, version="8.5.2")
    assert not findings_of(plan_for(built, WORKS, ORIN, "5.1.2"), "opset")


def test_what_no_engine_can_run_is_left_to_onnx_runtime() -> None:
    target = find_target(ORIN)
    old = software_for(target, tensorrt="8.5.2", python="3.10")
    plan = preflight(DRIVING, WORKS, target, old)
    assert findings_of(plan, "opset")[0].verdict == "warning"
    assert the_one(plan, "backend", "warning", "Since no engine").parts == (
        "imu",
        "gps",
        "road",
        "head",
    )
    assert {(r.backend, r.precision) for r in plan.routes.values()} == {("onnx", "fp32")}


def test_a_precision_that_the_gpu_lacks_is_refused() -> None:
    bf16 = with_graphs(DRIVING, precision="bf16")
    plan = plan_for(bf16, WORKS, "rtx-2080", backend="native")
    assert the_one(plan, "precision", "refused", "do not compute in bf16")
    assert not findings_of(plan_for(bf16, WORKS, "rtx-4090", backend="native"), "precision")


def test_bf16_is_younger_than_tensorrt_8() -> None:
    bf16 = with_graphs(DRIVING, precision="bf16", opset=17)
    plan = plan_for(bf16, WORKS, ORIN, "6.0", backend="native")
    assert the_one(plan, "precision", "refused", "8.6.2")
    assert not findings_of(plan_for(bf16, WORKS, ORIN, "6.2", backend="native"), "precision")


def test_a_mixed_graph_counts_with_all_its_precisions() -> None:
    mixed = with_graphs(DRIVING, precision="mixed", precision_by_node={"a": "bf16", "b": "fp16"})
    plan = plan_for(mixed, WORKS, "rtx-2080", backend="native")
    assert the_one(plan, "precision", "refused", "bf16")


def test_a_precision_that_brings_no_speed_is_a_warning() -> None:
    target = find_target("rtx-4090")
    row = target.row.model_copy(update={"operations": {"fp32": 256.0, "fp16": 256.0}})
    slow = replace(target, row=row)
    plan = preflight(DRIVING, WORKS, slow, software_for(slow), precision="fp16")
    assert the_one(plan, "precision", "warning", "no faster than fp32")
    assert not findings_of(plan_for(DRIVING, WORKS, "rtx-4090", precision="fp16"), "precision")
    assert not findings_of(
        preflight(DRIVING, WORKS, slow, software_for(slow), precision="fp32"), "precision"
    )


def test_turing_has_no_fp32_products_in_tensorrt_rtx() -> None:
    plan = plan_for(DRIVING, WORKS, "rtx-2080", backend="native", precision="fp32")
    assert "fp16" in the_one(plan, "precision", "refused", "Turing").way_out
    assert not findings_of(plan_for(DRIVING, WORKS, "rtx-2080", backend="native"), "precision")
    assert not findings_of(
        plan_for(DRIVING, WORKS, "rtx-4090", backend="native", precision="fp32"), "precision"
    )


@pytest.mark.parametrize(
    ("kind", "precision", "builds"),
    [
        # as TensorRT-RTX 1.7.1 builds MatMul, GRU, Attention and Conv for compute capability 7.5
        *((kind, "fp32", False) for kind in ("product", "recurrent", "attention")),
        *((kind, "fp16", True) for kind in ("product", "recurrent", "attention")),
        ("product", "int8", False),
        *(("convolution", precision, True) for precision in ("fp32", "fp16", "int8")),
        *((kind, "fp32", True) for kind in ("depthwise", "normalisation", "elementwise")),
    ],
)
def test_what_turing_computes_in_tensorrt_rtx(kind: Kind, precision: str, builds: bool) -> None:
    node = NodeWork("n", "Any", kind, precision, 1, (), ())
    works = {key: replace(work, nodes=(node,)) for key, work in WORKS.items()}
    for graph in (precision, "mixed"):
        manifest = with_graphs(DRIVING, precision=graph)
        named = {(part, graph): work for (part, _), work in works.items()}
        plan = plan_for(manifest, named, "rtx-2080", backend="native", precision=graph)
        found = [f for f in findings_of(plan, "precision") if "Turing" in f.sentence]
        assert [f.verdict for f in found] == ([] if builds else ["refused"])
        assert plan.will_run == builds
        plan = plan_for(manifest, named, "rtx-4090", backend="native", precision=graph)
        assert plan.will_run


def test_int8_of_tensorrt_rtx_is_for_weights() -> None:
    int8 = with_graphs(DRIVING, precision="int8")
    assert the_one(
        plan_for(int8, WORKS, "rtx-4090"), "precision", "warning", "weights of matrix products"
    )
    assert not findings_of(plan_for(int8, WORKS, ORIN, "6.2"), "precision")


def test_a_graph_that_is_not_there_is_refused() -> None:
    for name in ("rtx-4090", "raspberry-pi-5-8gb"):
        plan = plan_for(DRIVING, WORKS, name, precision="int8")
        finding = the_one(plan, "precision", "refused", "no int8 graph")
        assert "it has fp32 and fp16." in finding.sentence
    assert not findings_of(
        plan_for(DRIVING, WORKS, "raspberry-pi-5-8gb", precision="fp32"), "precision"
    )


def test_processors_and_low_precisions() -> None:
    pi = "raspberry-pi-5-8gb"
    assert the_one(
        plan_for(DRIVING, WORKS, pi, precision="fp16"), "precision", "warning", "no faster"
    )
    bf16 = with_graphs(DRIVING, precision="bf16")
    assert the_one(plan_for(bf16, WORKS, pi, precision="bf16"), "precision", "refused", "bf16")
    int8 = with_graphs(DRIVING, precision="int8")
    assert the_one(plan_for(int8, WORKS, pi, precision="int8"), "precision", "warning", "slower")


@pytest.mark.parametrize(
    ("operator", "verdict_"),
    [("Unique", "refused"), ("NonMaxSuppression", "refused"), ("Relu", None), ("DFT", "warning")],
)
def test_operators_that_tensorrt_rtx_does_not_build(operator: str, verdict_: str | None) -> None:
    plan = plan_for(DRIVING, with_operator(WORKS, operator), "rtx-4090", backend="native")
    assert [finding.verdict for finding in findings_of(plan, "operators")] == [verdict_] * bool(
        verdict_
    )


def test_operators_came_into_tensorrt_with_its_versions() -> None:
    norm = with_operator(_in_opset(17), "LayerNormalization")
    assert the_one(
        plan_for(DRIVING, norm, ORIN, "5.1.2"), "operators", "warning", "lacks LayerNormalization"
    )
    assert not findings_of(plan_for(DRIVING, norm, ORIN, "6.2"), "operators")
    spectrum = with_operator(_in_opset(17), "STFT")
    plan = plan_for(DRIVING, spectrum, ORIN, "6.2", backend="native")
    assert the_one(plan, "operators", "refused", "does not build STFT")
    # NonMaxSuppression is TensorRT's, and not of TensorRT-RTX
    assert not findings_of(
        plan_for(DRIVING, with_operator(WORKS, "NonMaxSuppression"), ORIN, "6.2"), "operators"
    )


def test_nodes_that_nothing_is_known_of_are_told() -> None:
    strange = with_operator(WORKS, "Frobnicate", kind="unknown")
    finding = the_one(plan_for(DRIVING, strange, ORIN, "6.2"), "operators", "warning", "Frobnicate")
    assert "1 node is not counted" in finding.sentence
    assert not findings_of(plan_for(DRIVING, WORKS, ORIN, "6.2"), "operators")


def test_whether_an_operator_runs_that_is_none_of_onnx_is_unknown() -> None:
    foreign = {key: replace(work, foreign=("NoSuchOp",)) for key, work in WORKS.items()}
    for name in ("rtx-4090", "raspberry-pi-5-8gb", ORIN):
        for backend in ("auto", "onnx") if name.startswith("rasp") else ("auto", "native", "onnx"):
            plan = plan_for(DRIVING, foreign, name, backend=backend)
            assert the_one(plan, "operators", "unknown", "ONNX has no NoSuchOp").way_out


# DLA


def test_dla_is_refused_where_there_is_none() -> None:
    for name in (ORIN, "rtx-4090", "raspberry-pi-5-8gb"):
        plan = plan_for(DRIVING, WORKS, name, dla=True)
        assert the_one(plan, "dla", "refused", "has no DLA")
        assert not plan.will_run
        assert not findings_of(plan_for(DRIVING, WORKS, name), "dla")
    assert the_one(
        plan_for(DRIVING, WORKS, WITH_DLA, "6.2", dla=True, backend="onnx"),
        "dla",
        "refused",
        "asked for",
    )


def test_dla_is_refused_where_the_tensorrt_has_none() -> None:
    target = find_target(WITH_DLA)
    software = software_of(target, "6.2", None)
    assert software.jetpack is not None
    without = replace(software, jetpack=software.jetpack.model_copy(update={"dla": False}))
    plan = preflight(DRIVING, WORKS, target, without, dla=True)
    assert "leave out --dla" in the_one(plan, "dla", "refused", "does not build for DLA").way_out
    unknown = preflight(DRIVING, WORKS, target, replace(software, jetpack=None), dla=True)
    assert the_one(unknown, "dla", "unknown", "not known")


def _fixed(manifest: Manifest) -> Manifest:
    return with_parts(manifest, dims={"batch": DimRange(least=1, usual=1, greatest=1)})


def test_dla_wants_fixed_sizes_and_half_precision() -> None:
    plan = plan_for(DRIVING, WORKS, WITH_DLA, "6.2", dla=True)
    assert "--dim batch=1:1:1" in the_one(plan, "dla", "refused", "batch can change").way_out
    plan = plan_for(_fixed(DRIVING), WORKS, WITH_DLA, "6.2", dla=True, precision="fp32")
    assert the_one(plan, "dla", "refused", "fp16 and int8 only")
    plan = plan_for(_fixed(DRIVING), WORKS, WITH_DLA, "6.2", dla=True)
    assert plan.will_run
    int8 = with_graphs(_fixed(DRIVING), precision="int8")
    assert the_one(
        plan_for(int8, WORKS, WITH_DLA, "6.2", dla=True), "dla", "refused", "no int8 graph"
    )


def test_nodes_that_the_dla_leaves_to_the_gpu_are_counted() -> None:
    def node(operator: str, operations: float | None) -> NodeWork:
        return NodeWork(operator, operator, "convolution", "fp16", operations, (), ())

    def plan(*nodes: NodeWork) -> Preflight:
        same = {key: replace(work, nodes=nodes) for key, work in WORKS.items()}
        return plan_for(_fixed(DRIVING), same, WITH_DLA, "6.2", dla=True)

    half = plan(node("Conv", 75), node("Erf", 25))
    assert the_one(half, "dla", "warning", "Of 2 nodes, 1, 25% of the operations, stay on the GPU")
    assert "Erf." in findings_of(half, "dla")[0].sentence
    all_of_it = plan(node("Conv", 75), node("Relu", 25))
    assert the_one(all_of_it, "dla", "fits", "runs all operators")
    unknown = plan(node("Conv", 75), node("Erf", None))
    assert the_one(unknown, "dla", "warning", "Of 2 nodes, 1 stay on the GPU")


def test_a_dla_that_no_table_has_is_unknown() -> None:
    target = find_target(WITH_DLA)
    row = jetsons()[WITH_DLA].model_copy(update={"dla_version": None})
    software = software_of(target, "6.2", None)
    plan = preflight(_fixed(DRIVING), WORKS, replace(target, row=row), software, dla=True)
    assert the_one(plan, "dla", "unknown", "is not known")


def test_an_engine_and_the_dla() -> None:
    on_gpu = plan_for(with_engine(_fixed(DRIVING)), WORKS, WITH_DLA, "6.2", dla=True)
    assert the_one(on_gpu, "dla", "warning", "on the GPU alone")
    built = with_engine(DRIVING, flags=("DLA=0",), targets=(WITH_DLA,))
    assert the_one(plan_for(built, WORKS, WITH_DLA, "6.2"), "engine", "fits", "has an engine")
    assert not findings_of(plan_for(built, WORKS, WITH_DLA, "6.2", dla=True), "dla")
    assert the_one(plan_for(built, WORKS, ORIN, "6.2"), "dla", "warning", "does not have")


def test_an_engine_uses_a_dla_that_is_there() -> None:
    for core, name, verdict_ in (
        (0, "jetson-orin-nx-8gb", "fits"),
        (1, "jetson-orin-nx-8gb", None),
        (1, "jetson-orin-nx-16gb", "fits"),
        (2, "jetson-orin-nx-16gb", None),
    ):
        built = with_engine(DRIVING, flags=(f"DLA={core}",), targets=(name,))
        plan = plan_for(built, WORKS, name, "6.2")
        if verdict_:
            assert the_one(plan, "engine", verdict_, "has an engine")
        else:
            assert the_one(plan, "dla", "warning", f"uses DLA {core}, which {name} does not have")


def test_the_way_to_a_tensorrt_with_dla_is_told() -> None:
    """TensorRT 11.4.1 has it on AGX Orin from JetPack 7.2.2 on, and on no other module."""

    def way(name: str) -> str:
        plan = plan_for(_fixed(DRIVING), WORKS, name, "7.2.2", dla=True)
        return the_one(plan, "dla", "refused", "does not build for DLA").way_out

    last = [each.name for each in jetpacks_for(jetsons()[WITH_DLA]) if each.dla][-1]
    assert way(WITH_DLA) == f"install JetPack {last}, or leave out --dla"
    newer = (
        f"install JetPack {last}, or install TensorRT 11.4.1 on JetPack 7.2.2, or leave out --dla"
    )
    assert way("jetson-agx-orin-64gb") == way("jetson-agx-orin-32gb") == newer
    for name, installed, has in (
        ("jetson-agx-orin-64gb", "11.4.1", True),
        ("jetson-agx-orin-64gb", "11.4.0", False),
        (WITH_DLA, "11.4.1", False),
    ):
        target = find_target(name)
        software = replace(software_of(target, "7.2.2", None), tensorrt=installed)
        plan = preflight(_fixed(DRIVING), WORKS, target, software, dla=True)
        assert plan.will_run == has
