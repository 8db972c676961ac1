"""Engines for the GPU of this machine: which GPU, its power mode, free memory, and into the bundle.

There is no GPU here: machines are described as their files and drivers describe them, and the engines are
real ones of TensorRT-RTX.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.archive import Bundle, write_bundle
from fusedge.bundle.built_here import FILE, built_here
from fusedge.bundle.errors import BundleError, FusedgeError, MissingExtraError
from fusedge.bundle.keys import load_private_key, load_public_key, new_key, trust
from fusedge.bundle.signature import SignatureState, sign_bundle, signature_state
from fusedge.devices.targets.detection.local import LocalGpu, free_memory_bytes, local_gpu
from fusedge.devices.targets.detection.machine import Gpu, Jetson, Machine
from fusedge.devices.targets.detection.power_mode import (
    CONFIGURATION,
    STATUS,
    power_mode_warning,
    read_power_modes,
)
from fusedge.devices.targets.facts.table import Target
from fusedge.devices.targets.tensorrt_api import EngineOptions
from fusedge.export import build as building
from fusedge.export import engine
from fusedge.export.build import BuildOptions, BuildReport, build_bundle
from fusedge.export.cache import Cache
from tests.tiny_bundle import write_tiny_bundle

RTX_4090 = Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9")
ORIN_NANO = Jetson(
    model="NVIDIA Jetson Orin Nano Developer Kit", l4t="36.4.3", module="jetson-orin-nano-8gb"
)
PLENTY = {"memory": 1 << 40}
PARTS = ("fast_encoder", "slow_encoder", "head")


def machine(
    *gpus: Gpu,
    jetson: Jetson | None = None,
    tensorrt: tuple[str, ...] = ("tensorrt_rtx",),
) -> Machine:
    return Machine(
        processor=None,
        architecture="x86_64",
        cores=2,
        usable_cores=2,
        memory_bytes=64_000_000_000,
        os="",
        python="3",
        jetson=jetson,
        gpus=gpus,
        gpu_driver="580.1" if gpus else None,
        gpu_note="no /proc/driver/nvidia",
        onnxruntime=None,
        onnxruntime_providers=(),
        onnxruntime_note="",
        tensorrt=dict.fromkeys(tensorrt, "1"),
        torch=None,
    )


def modes(root: Path, current: str, conf: str) -> Path:
    for name, text in ((STATUS, current), (CONFIGURATION, conf)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# As NVIDIA's files look, with other comments: the same id has another name on another board.
ORIN_NANO_CONF = """
# POWER_MODEL DEFINITIONS
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""


def test_the_power_mode_is_named_by_the_machines_own_table(tmp_path: Path) -> None:
    found = read_power_modes(modes(tmp_path, "pmode:0002 fmode:fanNull\n", ORIN_NANO_CONF))
    assert found.current == "MAXN_SUPER"
    assert found.names == {0: "15W", 1: "25W", 2: "MAXN_SUPER"}


def test_without_nvpmodel_there_is_no_power_mode(tmp_path: Path) -> None:
    assert read_power_modes(tmp_path) == (None, {})
    modes(tmp_path, "pmode:0007", ORIN_NANO_CONF)
    assert read_power_modes(tmp_path).current is None


@given(st.text(), st.text())
def test_no_file_makes_the_reader_of_power_modes_fail(
    tmp_path_factory: pytest.TempPathFactory, status: str, conf: str
) -> None:
    root = tmp_path_factory.mktemp("root")
    for name, text in ((STATUS, status), (CONFIGURATION, conf)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode("utf-8", errors="surrogatepass"))
    found = read_power_modes(root)
    assert found.current is None or found.current in found.names.values()


def test_another_power_mode_than_asked_for_is_a_warning_that_says_how_to_change_it(
    tmp_path: Path,
) -> None:
    root = modes(tmp_path, "pmode:0002", ORIN_NANO_CONF)
    assert power_mode_warning("MAXN_SUPER", root) == ""
    assert "in power mode MAXN_SUPER, not 15W" in power_mode_warning("15W", root)
    assert power_mode_warning("15W", root).endswith("sudo nvpmodel -m 0")
    with pytest.raises(FusedgeError, match=r"no power mode '40W' \(it has 15W, 25W, MAXN_SUPER\)"):
        power_mode_warning("40W", root)
    with pytest.raises(FusedgeError, match="no nvpmodel"):
        power_mode_warning("15W", tmp_path / "none")


@pytest.mark.parametrize(
    ("found", "target", "capability", "flavour"),
    [
        (machine(RTX_4090), "rtx-4090", "8.9", "tensorrt_rtx"),
        (machine(RTX_4090, tensorrt=("tensorrt", "tensorrt_rtx")), "rtx-4090", "8.9", "tensorrt"),
        (
            machine(Gpu(name="NVIDIA H200", compute_capability="9.0"), tensorrt=("tensorrt",)),
            "h200",
            "9.0",
            "tensorrt",
        ),
        (
            machine(jetson=ORIN_NANO, tensorrt=("tensorrt",)),
            "jetson-orin-nano-8gb",
            "8.7",
            "tensorrt",
        ),
        (
            machine(
                jetson=Jetson(model="A carrier board", module="jetson-agx-orin-64gb"),
                tensorrt=("tensorrt",),
            ),
            "jetson-agx-orin-64gb",
            "8.7",
            "tensorrt",
        ),
        (
            machine(
                jetson=Jetson(
                    model="NVIDIA Jetson AGX Orin Developer Kit", compute_capability="8.7"
                ),
                tensorrt=("tensorrt",),
            ),
            "jetson-agx-orin",  # no part number: 32 or 64 GB is not guessed
            "8.7",
            "tensorrt",
        ),
    ],
)
def test_the_gpu_of_this_machine_is_a_target(
    found: Machine, target: str, capability: str, flavour: str
) -> None:
    local = local_gpu(found, Path("/nowhere"), absent)
    assert local.target.name == target
    assert (local.target.compute_capability, local.target.flavour) == (capability, flavour)


H200 = SimpleNamespace(
    name=b"NVIDIA H200\0", major=9, minor=0, totalGlobalMem=1 << 37, multiProcessorCount=132
)


def cuda(error: str = "cudaSuccess") -> Any:
    """Of cuda.bindings the two calls; no driver is here."""
    success, given = SimpleNamespace(name="cudaSuccess"), SimpleNamespace(name=error)
    status = success if error == "cudaSuccess" else given
    return SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=success),
        cudaGetDeviceProperties=lambda index: (status, H200),
        cudaDeviceGetPCIBusId=lambda length, index: (status, b"0000:41:00.0\0\0"),
    )


@pytest.mark.parametrize("listed", [(), (RTX_4090,), (RTX_4090, Gpu(name="NVIDIA H200"))])
def test_the_gpu_to_build_for_is_the_one_that_cuda_puts_first(listed: tuple[Gpu, ...]) -> None:
    """NVML, which the machine is listed by, knows no CUDA_VISIBLE_DEVICES."""
    local = local_gpu(machine(*listed, tensorrt=("tensorrt",)), load=lambda name: cuda())
    assert (local.name, local.target.compute_capability) == ("NVIDIA H200", "9.0")


def test_a_gpu_that_cuda_cannot_use_is_not_built_for() -> None:
    with pytest.raises(FusedgeError, match=r"cudaErrorNoDevice .*CUDA_VISIBLE_DEVICES"):
        local_gpu(machine(RTX_4090), load=lambda name: cuda("cudaErrorNoDevice"))


def test_without_cuda_the_first_of_different_gpus_is_not_guessed() -> None:
    assert local_gpu(machine(RTX_4090, RTX_4090), load=absent).name == RTX_4090.name
    other = Gpu(name="NVIDIA GeForce RTX 3060", compute_capability="8.6")
    with pytest.raises(FusedgeError, match=r"several kinds of GPU.*cuda-bindings"):
        local_gpu(machine(other, RTX_4090), load=absent)


def absent(name: str) -> Any:
    raise ImportError(name)


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (machine(), FusedgeError, "no NVIDIA GPU .*no /proc/driver/nvidia.*--target rtx-4090"),
        (machine(RTX_4090, tensorrt=()), MissingExtraError, r"fusedge\[rtx\]"),
        (
            machine(Gpu(name="NVIDIA H200", compute_capability="9.0")),
            MissingExtraError,
            r"fusedge\[tensorrt\]",
        ),
        (machine(jetson=ORIN_NANO), FusedgeError, "TensorRT is not installed.*python3-libnvinfer"),
        (machine(Gpu(name="NVIDIA X")), FusedgeError, "capability of NVIDIA X is unknown"),
    ],
)
def test_a_machine_that_cannot_build_says_what_it_lacks(
    found: Machine, error: type[FusedgeError], message: str
) -> None:
    with pytest.raises(error, match=message):
        local_gpu(found, load=absent)


def test_an_engine_depends_on_the_gpu_the_driver_and_the_power_mode(tmp_path: Path) -> None:
    root = modes(tmp_path, "pmode:0001", ORIN_NANO_CONF)
    local = local_gpu(machine(jetson=ORIN_NANO, tensorrt=("tensorrt",)), root)
    assert local.power_mode == "25W"
    assert all(word in local.identity for word in ("Orin Nano", "L4T 36.4.3", "25W"))


def test_free_memory_is_that_of_the_machine_and_of_its_gpu(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: {0: 5}[index],
        nvmlDeviceGetHandleByPciBusId=lambda address: {b"0000:41:00.0": 7}[address],
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(free=handle),
    )

    def without_cuda(name: str) -> Any:
        return nvml if name == "pynvml" else absent(name)

    found = free_memory_bytes(tmp_path, without_cuda)
    assert found == {"memory": 2 << 20, "GPU memory": 5}
    # of several GPUs, that of the one that CUDA puts first
    found = free_memory_bytes(tmp_path, lambda name: nvml if name == "pynvml" else cuda())
    assert found["GPU memory"] == 7
    assert free_memory_bytes(tmp_path, absent) == {"memory": 2 << 20}
    assert free_memory_bytes(tmp_path / "none", absent) == {}


def build(
    bundle: Bundle,
    cache: Path,
    *targets: str,
    out: Path | None = None,
    found: Machine | None = None,
    free: dict[str, int] = PLENTY,
    **options: Any,
) -> BuildReport:
    return build_bundle(
        bundle,
        out or bundle.path,
        BuildOptions(targets=targets or ("local",), **options),
        Cache(cache),
        local=lambda: local_gpu(found or machine(RTX_4090), Path("/nowhere"), absent),
        root=Path("/nowhere"),
        free=lambda: free,
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny.fusedge")


@pytest.mark.usefixtures("rtx")
def test_the_engines_that_a_bundle_lacks_are_built_into_it_once(
    bundle: Bundle, tmp_path: Path
) -> None:
    stages: list[tuple[str, str]] = []
    report = build_bundle(
        bundle,
        bundle.path,
        BuildOptions(targets=("rtx-4090", "rtx-5090")),
        Cache(tmp_path / "cache"),
        lambda stage, item, share: stages.append((stage, item)),
        free=lambda: PLENTY,
    )
    assert [(row.part, row.state) for row in report.rows] == [(p, "built") for p in PARTS]
    assert [item for _, item in stages] == [*PARTS, "tiny.fusedge"]
    written = Bundle(bundle.path)
    assert written.verify() == len(bundle.manifest.files) + 3
    for part in written.manifest.parts:
        (row,) = part.engines
        assert row.file == f"engines/tensorrt_rtx-sm89-sm120/{part.name}.fp32.engine"
        assert row.targets == ("rtx-4090", "rtx-5090")
        assert row.compute_capabilities == ("8.9", "12.0")
        assert set(row.precision_by_node.values()) == {"fp32"}
        assert row.dims == part.dims and row.bytes == len(written.read(row.file))
    assert written.manifest.provenance.tools["tensorrt_rtx"] == row.version

    again = build(written, tmp_path / "cache", "rtx-4090", "rtx-5090")
    assert {row.state for row in again.rows} == {"present"}
    assert again.bundle.sha256 == written.sha256


@pytest.mark.usefixtures("rtx")
def test_an_engine_with_another_option_is_another_engine(bundle: Bundle, tmp_path: Path) -> None:
    built = build(bundle, tmp_path / "cache", "rtx-4090").bundle
    options = EngineOptions(workspace_bytes=1 << 30)
    report = build(built, tmp_path / "cache", "rtx-4090", engine=options)
    assert {row.state for row in report.rows} == {"built"}
    assert [len(part.engines) for part in report.bundle.manifest.parts] == [1, 1, 1]
    again = build(report.bundle, tmp_path / "cache", "rtx-4090", engine=options)
    assert {row.state for row in again.rows} == {"present"}


@pytest.mark.usefixtures("rtx")
def test_an_engine_that_serves_another_gpu_too_is_only_named_for_it(
    bundle: Bundle, tmp_path: Path
) -> None:
    built = build(bundle, tmp_path / "cache", "rtx-4090").bundle
    report = build(built, tmp_path / "cache", "rtx-4080")
    assert {row.state for row in report.rows} == {"present"}
    assert report.bundle.manifest.head.engines[0].targets == ("rtx-4090", "rtx-4080")
    assert report.bundle.manifest.files == built.manifest.files


@pytest.mark.usefixtures("rtx")
def test_the_gpu_here_gets_engines_too(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = build(bundle, tmp_path / "cache", out=out)
    assert {row.state for row in report.rows} == {"built"}
    assert Bundle(out).manifest.head.engines[0].targets == ("rtx-4090",)
    assert not Bundle(bundle.path).manifest.head.engines  # the other place is as it was


@pytest.mark.usefixtures("rtx")
def test_an_interrupted_build_goes_on_where_it_stopped(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = building.build_engine

    def interrupted(request: engine.EngineRequest, *rest: Any) -> engine.BuiltEngine:
        if request.part == "head":
            raise KeyboardInterrupt
        return real(request, *rest)

    monkeypatch.setattr(building, "build_engine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(bundle, tmp_path / "cache")
    assert Bundle(bundle.path).sha256 == bundle.sha256
    monkeypatch.setattr(building, "build_engine", real)
    states = [row.state for row in build(bundle, tmp_path / "cache").rows]
    assert states == ["cached", "cached", "built"]


@pytest.mark.usefixtures("rtx")
def test_a_part_that_cannot_be_built_does_not_keep_the_others_out(
    bundle: Bundle, tmp_path: Path
) -> None:
    """An RTX 20 computes products in fp16 only; the encoders have none."""
    report = build(bundle, tmp_path / "cache", "rtx-2080-ti")
    assert [row.state for row in report.rows] == ["built", "built", "failed"]
    (failed,) = report.failed
    assert "part head, target rtx-2080-ti" in failed.note and "export with fp16" in failed.note
    assert [len(part.engines) for part in Bundle(bundle.path).manifest.parts] == [1, 1, 0]


@pytest.mark.usefixtures("rtx")
def test_too_little_free_memory_is_said_before_the_build(bundle: Bundle, tmp_path: Path) -> None:
    report = build(bundle, tmp_path / "cache", free={"memory": 1 << 40, "GPU memory": 100 << 20})
    assert len(report.failed) == 3
    assert "100 MiB of GPU memory are free (stop other programs" in report.failed[0].note
    # what is in the cache needs none
    build(bundle, tmp_path / "cache", out=tmp_path / "out")
    assert not build(bundle, tmp_path / "cache", free={"memory": 0}).failed


@pytest.mark.usefixtures("rtx")
def test_where_nothing_can_be_built_another_bundle_stays_as_it_is(
    bundle: Bundle, tmp_path: Path
) -> None:
    good = build(bundle, tmp_path / "cache", "rtx-4090", out=tmp_path / "good.fusedge").bundle
    out = good.path
    report = build(bundle, tmp_path / "none", "rtx-4090", out=out, free={"memory": 0})
    assert len(report.failed) == 3 and report.bundle is bundle
    assert Bundle(out).sha256 == good.sha256


def foreign(bundle: Bundle, tmp_path: Path) -> Bundle:
    """With engines from another machine."""
    return build(bundle, tmp_path / "other", "rtx-4090", out=tmp_path / "foreign").bundle


@pytest.mark.usefixtures("rtx")
def test_engines_that_nobody_vouches_for_are_built_anew(bundle: Bundle, tmp_path: Path) -> None:
    others = foreign(bundle, tmp_path)
    report = build(others, tmp_path / "cache", "rtx-4090")
    assert {row.state for row in report.rows} == {"built"}
    assert [len(part.engines) for part in report.bundle.manifest.parts] == [1, 1, 1]
    for part in report.bundle.manifest.parts:
        assert built_here(
            report.bundle.manifest.files[part.engines[0].file].sha256, tmp_path / "cache"
        )


@pytest.mark.usefixtures("rtx")
def test_a_damaged_engine_is_built_anew_also_under_another_name(
    bundle: Bundle, tmp_path: Path
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "folder"
    built = build(bundle, cache, "rtx-4090", "rtx-5090", out=out).bundle
    (out / built.manifest.head.engines[0].file).write_bytes(b"damaged")
    report = build(Bundle(out), cache, "rtx-4090")
    assert [row.state for row in report.rows] == ["present", "present", "built"]
    (row,) = report.bundle.manifest.head.engines
    assert row.compute_capabilities == ("8.9",)
    report.bundle.verify()


@pytest.mark.usefixtures("rtx")
def test_what_is_trusted_by_its_signature_is_present_and_a_copy_keeps_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    others = foreign(bundle, tmp_path)
    new_key(Path("fleet"), None)
    signed = sign_bundle(others, load_private_key(Path("fleet.key.pem"), str), others.path)
    trust(load_public_key(Path("fleet.pub.pem")), "fleet")
    report = build(signed, tmp_path / "cache", "rtx-4090", out=tmp_path / "copy.fusedge")
    assert {row.state for row in report.rows} == {"present"} and report.warnings == ()
    assert report.bundle.sha256 == signed.sha256
    assert signature_state(Bundle(tmp_path / "copy.fusedge")) is SignatureState.TRUSTED


@pytest.mark.usefixtures("rtx")
def test_a_cached_engine_is_listed_as_built_here_again(bundle: Bundle, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build(bundle, cache, "rtx-4090", out=tmp_path / "first")
    (cache / FILE).unlink()
    report = build(bundle, cache, "rtx-4090", out=tmp_path / "second")
    assert {row.state for row in report.rows} == {"cached"} and report.warnings == ()
    assert len((cache / FILE).read_text().splitlines()) == 3


@pytest.mark.usefixtures("rtx")
def test_engines_that_cannot_be_listed_are_a_warning(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cache" / FILE).mkdir(parents=True)
    (warning,) = build(bundle, tmp_path / "cache", "rtx-4090").warnings
    assert f"`fusedge run` refuses them until they are signed: {tmp_path}" in warning


@pytest.mark.usefixtures("rtx")
def test_a_bundle_that_another_build_changed_meanwhile_is_left_alone(
    bundle: Bundle, tmp_path: Path
) -> None:
    stale = Bundle(bundle.path)
    other = build(bundle, tmp_path / "cache", "rtx-4090").bundle
    with pytest.raises(FusedgeError, match=r"changed by another program meanwhile .*again"):
        build(stale, tmp_path / "cache", "rtx-5090")
    assert Bundle(bundle.path).sha256 == other.sha256
    assert not build(Bundle(bundle.path), tmp_path / "cache", "rtx-5090").failed
    assert [len(part.engines) for part in Bundle(bundle.path).manifest.parts] == [2, 2, 2]


def test_a_target_without_engines_says_so(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(FusedgeError, match="target cpu: there are no engines for it"):
        build(bundle, tmp_path / "cache", "cpu")


@pytest.mark.usefixtures("rtx")
def test_a_signature_is_dropped_with_a_warning(bundle: Bundle, tmp_path: Path) -> None:
    signed = bundle.manifest.model_copy(update={"signature": "signature"})
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    folder = write_bundle(tmp_path / "folder", bundle.manifest, files).path
    (folder / "manifest.json").write_text(signed.model_dump_json())
    (folder / "signature").write_bytes(b"bytes")
    report = build(Bundle(folder), tmp_path / "cache")
    assert report.warnings == ("the bundle's signature is dropped, for it changed: sign it again",)
    assert report.bundle.manifest.signature is None
    assert not (folder / "signature").exists()


def test_engines_of_a_jetson_are_not_built_elsewhere(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(FusedgeError, match=r"jetson-orin-nano-8gb: .*on the device itself"):
        build(bundle, tmp_path / "cache", "jetson-orin-nano-8gb")


def test_a_precision_that_the_bundle_lacks_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="part fast_encoder has no int8 graph"):
        build(bundle, tmp_path / "cache", "rtx-4090", precision="int8")


def jetson_engine(mode: str | None) -> engine.EngineRequest:
    target = Target("jetson-orin-nano-8gb", "tensorrt", "8.7", "")
    local = LocalGpu(target, "Orin Nano", "L4T 36.4.3", mode)
    group = building._Group((target,), local)
    bundle = SimpleNamespace(read=lambda file: b"graph")
    part = SimpleNamespace(name="gps", dims={})
    graph = SimpleNamespace(file="g", precision="fp16")
    return building._request(bundle, part, graph, group, BuildOptions())  # type: ignore[arg-type]


def test_an_engine_of_a_jetson_is_kept_by_the_power_mode_it_was_tuned_in() -> None:
    request = jetson_engine("15W")
    assert request.power_mode == "15W" and "15W" in request.device
    assert request.file == "engines/tensorrt-sm87-15w/gps.fp16.engine"
    assert jetson_engine("25W").device != request.device


# The building process, with a record of TensorRT in the place of the package.
_JETSON_CHILD = """
from fusedge.export import engine_child
from tests.export.tensorrt_double import ModuleDouble, read_record
engine_child.load = lambda flavour: ModuleDouble(read_record("tensorrt_10_3"))
engine_child.main()
"""


@pytest.fixture
def jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if JetPack 6 were here: what is built is no engine, all else is real."""
    monkeypatch.setattr(engine, "CHILD", (sys.executable, "-c", _JETSON_CHILD))
    monkeypatch.setattr(engine, "check_installed", lambda flavour: None)
    for module in (engine, building):
        monkeypatch.setattr(module, "installed_version", lambda flavour: "10.3.0.30")
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


@pytest.mark.usefixtures("jetpack")
def test_a_jetson_gets_engines_for_each_power_mode_it_is_put_in(
    bundle: Bundle, tmp_path: Path
) -> None:
    found = machine(jetson=ORIN_NANO, tensorrt=("tensorrt",))
    root, cache = tmp_path / "root", Cache(tmp_path / "cache")

    def build_in(mode: str) -> BuildReport:
        options = BuildOptions(engine=EngineOptions(timing_cache=True))
        modes(root, mode, ORIN_NANO_CONF)
        return build_bundle(
            Bundle(bundle.path),
            bundle.path,
            options,
            cache,
            local=lambda: local_gpu(found, root, absent),
            root=root,
            free=lambda: PLENTY,
        )

    first = build_in("pmode:0000")
    assert {row.state for row in first.rows} == {"built"}
    assert {row.state for row in build_in("pmode:0000").rows} == {"present"}
    assert {row.state for row in build_in("pmode:0001").rows} == {"built"}
    engines = Bundle(bundle.path).manifest.head.engines
    assert [(e.power_mode, e.version, e.targets) for e in engines] == [
        ("15W", "10.3.0.30", ("jetson-orin-nano-8gb",)),
        ("25W", "10.3.0.30", ("jetson-orin-nano-8gb",)),
    ]
    assert engines[0].flags == ("STRONGLY_TYPED", "NO_TF32")
    # the measurements of each mode are kept apart
    kept = [path.read_bytes()[32:] for path in (tmp_path / "cache/timing").iterdir()]
    assert kept == [b"measured", b"measured"]
