"""Which backend a part gets, the reason that is told for it, and what is never done in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle import built_here as registry
from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.inference import onnxruntime
from fusedge.bundle.keys import load_private_key, new_key, trust, trust_folder
from fusedge.bundle.manifest import Part
from fusedge.bundle.recording import tracks_of
from fusedge.bundle.sample import Sample
from fusedge.bundle.signature import sign_bundle
from fusedge.devices.targets.detection.power_mode import PowerModes
from fusedge.runtime.backend import (
    AUTOMATIC,
    BackendSetting,
    Choice,
    PartLoader,
    SharedParts,
    open_part,
)
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.native_part import NativePart
from fusedge.runtime.onnx_part import PROVIDERS, OnnxPart, Provider
from fusedge.runtime.replay import replay_exactly
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.recorder import Recorder
from tests.runtime.gpu_double import CudaApi, Tensorrt, gpu, with_engines
from tests.runtime.signals import by_arrival, signal
from tests.tiny_bundle import write_tiny_bundle

ALLOWED = BackendSetting(allow_unsigned_engines=True)
NATIVE = BackendSetting(backend="native", allow_unsigned_engines=True)
CPU = "CPUExecutionProvider"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("plain") / "tiny.fusedge")


@pytest.fixture(scope="module")
def bundle(plain: Bundle) -> Bundle:
    return with_engines(plain, plain.path.parent / "engines.fusedge")


def load(bundle: Bundle, setting: BackendSetting, trt: Tensorrt | None = None) -> PartLoader:
    """All parts loaded on a machine with the double of a GPU."""
    loader = PartLoader(bundle, setting, **gpu(trt or Tensorrt(CudaApi())))
    for part in bundle.manifest.parts:
        loader(part)
    return loader


def test_an_engine_for_this_very_device_is_taken(bundle: Bundle) -> None:
    loader = load(bundle, ALLOWED)
    choice = loader.chosen["head"]
    sha256 = bundle.manifest.files["engines/head.engine"].sha256
    assert choice.as_dict() == {
        "backend": "native",
        "provider": "tensorrt_rtx",
        "precision": "fp32",
        "reason": "an engine for compute capability 8.9 (Double)",
        "engine_sha256": sha256,
    }
    assert loader.warnings() == []


def test_an_engine_has_run_with_the_batch_of_the_session_before_it_is_taken(bundle: Bundle) -> None:
    api = CudaApi()
    loader = PartLoader(bundle, ALLOWED, **gpu(Tensorrt(api)))
    loaded = loader(bundle.manifest.head)
    assert isinstance(loaded, NativePart) and loaded.cuda_graphs == 1
    api.log.clear()
    rows = 1 + len(bundle.manifest.modalities)
    names = [spec.name for spec in bundle.manifest.head.inputs]
    loaded.run({name: np.ones((rows, 2), np.float32) for name in names})
    assert api.log == ["cudaGraphLaunch", "cudaStreamSynchronize"]


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], BackendSetting, str]] = {
    "another device": (
        {},
        {"capability": "12.0"},
        ALLOWED,
        "engines are for compute capability 8.9, and Double has 12.0",
    ),
    "neither built here nor signed": (
        {},
        {},
        AUTOMATIC,
        "neither built on this machine nor signed by a key that you trust",
    ),
    "another precision": (
        {"precision_requested": "fp16"},
        {},
        BackendSetting(precision="fp32", allow_unsigned_engines=True),
        "the engine is fp16",
    ),
    "another version": (
        {"flavour": "tensorrt", "version": "10.3.0.30"},
        {},
        ALLOWED,
        "built by TensorRT 10.3.0.30, and 1.7.1.116 is installed",
    ),
    "a version that is none": (
        {"flavour": "tensorrt", "version": "ten"},
        {},
        ALLOWED,
        "built by TensorRT ten, and 1.7.1.116 is installed",
    ),
    "no memory": (
        {},
        {"memory_bytes": 10},
        ALLOWED,
        "CUDA: out of memory (cudaHostAlloc)",
    ),
    "no batch for the head": (
        {"dims": {"batch": {"least": 1, "usual": 1, "greatest": 1}}},
        {},
        ALLOWED,
        "",  # it is computed in pieces
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_without_a_fitting_engine_the_graph_runs_and_the_reason_is_told(
    tmp_path: Path, plain: Bundle, kind: str
) -> None:
    engine, device, setting, reason = REFUSALS[kind]
    bundle = with_engines(plain, tmp_path / "x.fusedge", **engine)
    loader = load(bundle, setting, Tensorrt(CudaApi(**device)))
    choice = loader.chosen["head"]
    if not reason:
        assert choice.backend == "native"
        return
    assert (choice.backend, choice.provider) == ("onnxruntime", CPU)
    assert choice.no_engine.startswith(reason) and choice.reason.startswith(reason)
    assert any("head: the bundle's engines are not used: " in w for w in loader.warnings())
    native = BackendSetting("native", "auto", setting.precision, setting.allow_unsigned_engines)
    with pytest.raises(FusedgeError) as caught:
        load(bundle, native, Tensorrt(CudaApi(**device)))
    assert f": {reason}" in caught.value.line()
    assert len(caught.value.line().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "version", "backend"),
    [
        ((), "10.3.0.30", "native"),
        ((), "10.3.0", "native"),
        ((), "10.3.0.26", "onnxruntime"),
        ((), "10.4.0", "onnxruntime"),
        ((), "", "onnxruntime"),
        (("VERSION_COMPATIBLE",), "11.4.1.1", "native"),
        (("VERSION_COMPATIBLE",), "10.3.0.31", "native"),
        (("VERSION_COMPATIBLE",), "10.3.0.26", "onnxruntime"),
        (("VERSION_COMPATIBLE",), "10.2.0.19", "onnxruntime"),
    ],
)
def test_an_engine_is_for_its_version_or_for_later_ones_too(
    tmp_path: Path, plain: Bundle, flags: tuple[str, ...], version: str, backend: str
) -> None:
    bundle = with_engines(
        plain, tmp_path / "x.fusedge", flavour="tensorrt", version="10.3.0.30", flags=flags
    )
    assert load(bundle, ALLOWED, Tensorrt(CudaApi(), version)).chosen["head"].backend == backend


def test_a_hardware_compatible_engine_is_for_later_gpus_too(tmp_path: Path, plain: Bundle) -> None:
    bundle = with_engines(plain, tmp_path / "x.fusedge", flags=("AMPERE_PLUS",))
    for capability, backend in (
        *(("12.0", "native"), ("8.0", "native"), ("7.5", "onnxruntime")),
        *(("8.7", "onnxruntime"), ("11.0", "onnxruntime")),  # Jetsons
    ):
        trt = Tensorrt(CudaApi(capability))
        assert load(bundle, ALLOWED, trt).chosen["head"].backend == backend


def test_another_power_mode_than_the_one_it_was_tuned_in_is_a_warning(
    tmp_path: Path, plain: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engines(plain, tmp_path / "x.fusedge", power_mode="15W")
    modes = PowerModes("MAXN", {0: "15W", 2: "MAXN"})
    monkeypatch.setattr("fusedge.runtime.backend.read_power_modes", lambda: modes)
    (warning,) = load(bundle, ALLOWED).warnings()
    assert warning.startswith(
        "fast_encoder, slow_encoder, head: the engine was tuned in power mode 15W, and this machine "
        "is in MAXN: fusedge build"
    )


def test_an_engine_that_fails_when_it_is_tried_out_is_not_taken(bundle: Bundle) -> None:
    api = CudaApi()
    loader = load(bundle, ALLOWED, Tensorrt(api, refusal="Error Code 1: Cuda Runtime (bad)"))
    assert loader.chosen["head"].backend == "onnxruntime"
    assert "TensorRT did not run it: Cuda Runtime (bad)" in loader.chosen["head"].reason
    assert not api.live


def test_without_a_driver_the_graph_runs_and_says_so(bundle: Bundle) -> None:
    api = CudaApi()
    api.failing = "cudaGetDeviceCount"
    loader = load(bundle, AUTOMATIC, Tensorrt(api))
    assert loader.chosen["head"].no_engine.startswith("CUDA: ")
    assert [line.partition(": CUDA")[0] for line in loader.warnings()] == [
        "fast_encoder, slow_encoder, head: the bundle's engines are not used"
    ]


def test_an_engine_is_trusted_if_built_here_or_signed_or_allowed(bundle: Bundle) -> None:
    def backends(setting: BackendSetting) -> list[str]:
        return [choice.backend for choice in load(bundle, setting).chosen.values()]

    assert backends(AUTOMATIC) == ["onnxruntime"] * 3
    assert backends(ALLOWED) == ["native"] * 3
    assert backends(BackendSetting(trusted=lambda opened: opened is bundle)) == ["native"] * 3
    registry.remember_built(bundle.manifest.files["engines/head.engine"].sha256)
    assert backends(AUTOMATIC) == ["onnxruntime", "onnxruntime", "native"]


def test_what_is_signed_by_a_key_of_the_users_runs_without_being_asked_for(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a program of one's own: `open_part`, `Session` and all that have no setting but the default."""
    pytest.importorskip("cryptography")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    public = new_key(tmp_path / "fleet", None)
    key = load_private_key(tmp_path / "fleet.key.pem", str)
    signed = sign_bundle(bundle, key, tmp_path / "signed.fusedge")
    for name, double in gpu(Tensorrt(CudaApi())).items():
        monkeypatch.setitem(PartLoader.__init__.__kwdefaults__, name, double)
    with open_part(signed, "head") as stranger:
        assert stranger.choice.no_engine.startswith("neither built on this machine nor signed")
    trust(public, "fleet")
    with open_part(signed, "head") as ours, open_part(bundle, "head") as unsigned:
        assert (ours.choice.backend, unsigned.choice.backend) == ("native", "onnxruntime")
    (trust_folder() / "other.pem").write_text("no key")
    with open_part(signed, "head") as broken:
        assert f"{trust_folder() / 'other.pem'}: holds no public key" in broken.choice.reason


def test_a_signature_that_cannot_be_checked_is_a_reason(bundle: Bundle) -> None:
    def trusted(opened: Bundle) -> bool:
        raise FusedgeError("needs the package 'cryptography'")

    choice = load(bundle, BackendSetting(trusted=trusted)).chosen["head"]
    assert "needs the package 'cryptography'" in choice.no_engine


@pytest.mark.parametrize(
    "setting", [BackendSetting(backend="onnx"), BackendSetting(provider="cpu")]
)
def test_onnx_runtime_where_it_is_asked_for_needs_no_reason(
    bundle: Bundle, setting: BackendSetting
) -> None:
    loader = load(bundle, setting)
    assert loader.chosen["head"].backend == "onnxruntime" and loader.warnings() == []
    assert loader.chosen["head"].no_engine == ""


def test_without_engines_the_reason_names_the_providers_that_are_not_here(plain: Bundle) -> None:
    choice = load(plain, AUTOMATIC).chosen["head"]
    assert choice.provider == CPU
    assert choice.reason.startswith("the bundle has no engine; ONNX Runtime ")
    assert choice.reason.endswith(" has no tensorrt-rtx, tensorrt, cuda")


def test_what_is_named_is_never_replaced(plain: Bundle) -> None:
    with pytest.raises(FusedgeError, match="has no CUDAExecutionProvider on this machine"):
        load(plain, BackendSetting(provider="cuda"))
    with pytest.raises(FusedgeError, match="part fast_encoder: the bundle has no engine"):
        load(plain, BackendSetting(backend="native"))
    with pytest.raises(FusedgeError, match="has no fp16 graph"):
        load(plain, BackendSetting(precision="fp16"))


def test_providers_are_tried_in_the_order_that_is_given(plain: Bundle) -> None:
    choice = load(plain, BackendSetting(provider="cuda, cpu")).chosen["head"]
    assert choice.provider == CPU and choice.reason.endswith("has no cuda")
    with pytest.raises(FusedgeError, match="has no CUDAExecutionProvider"):
        load(plain, BackendSetting(provider="tensorrt,cuda"))


@pytest.mark.skipif(
    not hasattr(onnxruntime().InferenceSession, "get_provider_graph_assignment_info"),
    reason="this ONNX Runtime does not say which node runs where",
)
def test_a_provider_that_takes_nothing_is_passed_over_with_the_reason(
    plain: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROVIDERS, "cuda", Provider("AzureExecutionProvider", "cuda", {}))
    choice = load(plain, AUTOMATIC).chosen["head"]
    assert choice.provider == CPU
    assert "cuda: parts/head.onnx does not load: AzureExecutionProvider runs no" in choice.reason


def test_nodes_on_the_cpu_are_a_warning_for_the_parts_that_have_them(plain: Bundle) -> None:
    loader = PartLoader(plain, AUTOMATIC)
    for part, nodes in (("fast_encoder", 3), ("slow_encoder", 3), ("head", None)):
        loader.chosen[part] = Choice("onnxruntime", "X", "fp32", "asked for", cpu_nodes=nodes)
    assert loader.warnings() == [
        "fast_encoder, slow_encoder: 3 nodes run on the CPU, which X did not take",
        "head: some nodes run on the CPU, which X did not take",
    ]
    assert loader.chosen["head"].as_dict()["cpu_nodes"] is None


def test_names_that_nobody_knows_and_contradictions_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'native'"):
        BackendSetting(backend="nativ")
    with pytest.raises(UnknownNameError, match="did you mean 'cuda'"):
        BackendSetting(provider="cpu,cudaa")
    with pytest.raises(FusedgeError, match="provider auto is an order by itself"):
        BackendSetting(provider="auto,cpu")
    with pytest.raises(FusedgeError, match="the native backend has none"):
        BackendSetting(backend="native", provider="cpu")


def test_a_part_that_is_loaded_again_without_its_gpu_says_what_it_runs_on(bundle: Bundle) -> None:
    trt = Tensorrt(CudaApi())
    loader = load(bundle, ALLOWED, trt)
    trt.api.failing = "cudaMalloc"  # as all calls do after a fault of the GPU
    assert isinstance(loader(bundle.manifest.head), OnnxPart)
    (line,) = loader.changes
    assert line.startswith(f"part head now runs on {CPU}: CUDA: ")


def test_sessions_that_share_a_part_load_it_once_and_let_it_go(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedParts()
    part = bundle.manifest.head
    one = shared.loader(bundle, BackendSetting(trusted=lambda b: False))
    two = shared.loader(bundle, BackendSetting(trusted=lambda b: b is None))
    first = one(part)
    assert two(part) is first and two.chosen == one.chosen
    other = shared.loader(bundle, BackendSetting(provider="cpu"))(part)
    assert other is not first
    again = one(part)  # it has failed: a new one, of its own
    assert again is not first and shared.loader(bundle, AUTOMATIC)(part) is first
    key = (bundle.sha256, part.name, AUTOMATIC)
    assert shared.get(key) is not None
    del first, again
    assert shared.get(key) is None


class Source:
    """20 s of two sines."""

    uri, modalities, live, warnings = "sines:", ("fast", "slow"), False, ()

    def samples(self) -> Iterator[Sample]:
        yield from by_arrival(signal("fast", np.sin, 0, 20), signal("slow", np.cos, 0, 20))

    def close(self) -> None:
        pass


def session(bundle: Bundle, setting: BackendSetting, trt: Tensorrt) -> Session:
    return Session(
        bundle,
        ["sines:"],
        VirtualClock(),
        open_uri=lambda uri, wanted, now_ns: Source(),
        backend=setting,
        loaders=lambda opened, wanted: PartLoader(opened, wanted, **gpu(trt)),
    )


def test_a_session_says_what_its_parts_run_on_at_the_start_and_at_the_end(
    bundle: Bundle,
) -> None:
    trt = Tensorrt(CudaApi())
    one = session(bundle, ALLOWED, trt)
    report = run(one, [])
    assert report.header["parts"]["head"]["backend"] == "native"
    assert report.summary["backends"] == report.header["parts"]
    refused = session(bundle, AUTOMATIC, trt)
    (warning,) = [line for line in refused.warnings if "engines" in line]
    assert warning.startswith("fast_encoder, slow_encoder, head: the bundle's engines are not used")
    assert refused.header["warnings"] == refused.warnings


def test_an_engine_that_fails_at_work_is_replaced_and_the_change_is_told(
    bundle: Bundle,
) -> None:
    trt = Tensorrt(CudaApi())
    one = session(bundle, ALLOWED, trt)
    trt.api.failing = "cudaGraphLaunch"
    told: list[str] = []
    report = run(one, [], notice=told.append)
    assert report.header["parts"]["head"]["backend"] == "native"
    assert report.summary["backends"]["head"]["provider"] == CPU
    assert report.summary["parts"]["head"]["restarts"] == 1
    assert report.summary["decisions"] and report.summary["ledger_balanced"]
    assert any(line.startswith("part head now runs on") for line in told)


def test_a_replay_runs_each_part_on_what_it_ran_on(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = Tensorrt(CudaApi())
    asked: list[tuple[str, BackendSetting]] = []

    def loader(opened: Bundle, setting: BackendSetting) -> PartLoader:
        asked.append((opened.manifest.name, setting))
        return PartLoader(opened, setting, **gpu(trt))

    monkeypatch.setattr("fusedge.runtime.replay.PartLoader", loader)
    path = tmp_path / "native.mcap"
    live = session(bundle, ALLOWED, trt)
    run(live, [Recorder(path, tracks_of(bundle.manifest))])
    report = replay_exactly(bundle, path, backend=ALLOWED)
    assert report.identical and report.decisions
    assert {setting.backend for _, setting in asked} == {"native"}
    asked.clear()
    assert replay_exactly(bundle, path, backend=BackendSetting(provider="cpu")).decisions
    assert {(s.backend, s.provider) for _, s in asked} == {("auto", "cpu")}
    with pytest.raises(FusedgeError, match="neither built on this machine nor signed"):
        replay_exactly(bundle, path)


def test_a_part_of_a_session_on_another_backend_than_the_others_is_replayed_there(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.remember_built(bundle.manifest.files["engines/head.engine"].sha256)
    trt = Tensorrt(CudaApi())
    loaded: dict[str, type] = {}

    class Noted(PartLoader):
        def __init__(self, opened: Bundle, setting: BackendSetting) -> None:
            super().__init__(opened, setting, **gpu(trt))

        def __call__(self, part: Part) -> Any:
            result = super().__call__(part)
            loaded[part.name] = type(result)
            return result

    monkeypatch.setattr("fusedge.runtime.replay.PartLoader", Noted)
    path = tmp_path / "mixed.mcap"
    run(session(bundle, AUTOMATIC, trt), [Recorder(path, tracks_of(bundle.manifest))])
    assert replay_exactly(bundle, path).identical
    assert loaded == {"fast_encoder": OnnxPart, "slow_encoder": OnnxPart, "head": NativePart}
