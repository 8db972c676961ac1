"""The native backend: on TensorRT-RTX as far as it goes without a driver, else on doubles."""

from __future__ import annotations

import gc
import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import BundleError, FusedgeError, MissingExtraError
from fusedge.runtime import native_part
from fusedge.runtime.cuda import Cuda, load_cuda
from fusedge.runtime.native_part import NativePart
from fusedge.runtime.onnx_part import OnnxPart
from tests.runtime.at_once import run_at_once
from tests.runtime.gpu_double import CudaApi, Tensorrt, _Context, _Engine, _Runtime, with_engines
from tests.tiny_bundle import encoder_onnx, write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("b")
    return with_engines(write_tiny_bundle(folder / "plain"), folder / "tiny.fusedge")


def native(bundle: Bundle, trt: Any, api: CudaApi) -> NativePart:
    part = bundle.manifest.encoders[0]
    engine = part.engines[0]
    where = f"{bundle.path}: {engine.file}"
    return NativePart(bundle.read(engine.file), where, part, engine, trt, Cuda(api))


def feeds(batch: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "window": random.normal(size=(batch, 5, 2)).astype(np.float32),
        "valid": np.ones((batch, 5, 2), np.float32),
        "state_in.total": random.normal(size=(batch, 1)).astype(np.float32),
    }


def test_an_engine_gives_what_onnx_runtime_gives_at_every_batch_and_run(bundle: Bundle) -> None:
    """As graphs, with a context of their own, on the shared one, and in pieces of the greatest batch."""
    api = CudaApi()
    part = native(bundle, Tensorrt(api), api)
    onnx_part = OnnxPart(bundle, bundle.manifest.encoders[0], "cpu", "fp32")
    kept = []
    for run, batch in enumerate([1, 1, 1, 2, 3, 4, 5, 6, 1, 6, 5, 3, 20, 20, 1]):
        given = feeds(batch, run)
        kept.append((onnx_part.run(given), part.run(given)))
    for wanted, got in kept:
        for a, b in zip(wanted, got, strict=True):
            np.testing.assert_array_equal(a, b)
    assert part.graph_problem == "" and part.provider == "tensorrt_rtx"


def test_threads_that_share_an_engine_get_each_their_own_outputs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = _Context._compute
    monkeypatch.setattr(_Context, "_compute", lambda self: (time.sleep(0.002), compute(self)))
    api = CudaApi()
    part = native(bundle, Tensorrt(api), api)
    onnx_part = OnnxPart(bundle, bundle.manifest.encoders[0], "cpu", "fp32")
    run_at_once(part, onnx_part, [feeds(1 + seed % 2, seed) for seed in range(12)])


def test_a_shape_that_comes_again_runs_as_a_graph_of_its_own_context(bundle: Bundle) -> None:
    api = CudaApi()
    trt = Tensorrt(api)
    part = native(bundle, trt, api)
    part.run(feeds(1))
    assert part.cuda_graphs == 0
    assert trt.contexts == [None, "eager"]  # the first one is for all other shapes
    part.run(feeds(1))
    api.log.clear()
    part.run(feeds(1))
    assert part.cuda_graphs == 1
    assert api.log == ["cudaGraphLaunch", "cudaStreamSynchronize"]


def test_graphs_and_contexts_are_bounded(bundle: Bundle) -> None:
    api = CudaApi()
    trt = Tensorrt(api)
    part = native(bundle, trt, api)
    for batch in [*range(1, 9), *range(1, 9), *range(1, 9)]:
        part.run(feeds(batch))
    assert part.cuda_graphs == native_part.MAX_GRAPHS
    assert len(trt.contexts) == 1 + native_part.MAX_GRAPHS
    assert sum(kind == "executable" for kind, _ in api.live.values()) == native_part.MAX_GRAPHS


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(bundle: Bundle) -> None:
    for failing in ("cudaStreamEndCapture", "cudaGraphInstantiate", ""):
        api = CudaApi()
        trt = Tensorrt(api)
        trt.capturable = bool(failing)
        api.failing = failing
        part = native(bundle, trt, api)
        results = [part.run(feeds(2)) for _ in range(4)]
        assert part.cuda_graphs == 0 and part.graph_problem
        for result in results[1:]:
            np.testing.assert_array_equal(result[0], results[0][0])


@pytest.mark.parametrize(("version", "shares"), [("10.3.0", True), ("8.5.2", False)])
def test_tensorrt_has_graphs_too_if_contexts_can_share_a_profile(
    bundle: Bundle, version: str, shares: bool
) -> None:
    api = CudaApi()
    trt = Tensorrt(api, version)
    trt.shares_profile = shares
    part = native(bundle, trt, api)
    results = [part.run(feeds(batch)) for batch in (2, 1, 2, 2)]
    assert part.cuda_graphs == int(shares)
    np.testing.assert_array_equal(results[3][0], results[0][0])


def test_what_an_engine_needs_of_its_runtime_is_set(tmp_path: Path, bundle: Bundle) -> None:
    flags = ("STRONGLY_TYPED", "VERSION_COMPATIBLE", "DLA=1", "GPU_FALLBACK")
    trt = Tensorrt(CudaApi())
    native(with_engines(bundle, tmp_path / "x.fusedge", flags=flags), trt, trt.api)
    assert (trt.runtime.DLA_core, trt.runtime.engine_host_code_allowed) == (1, True)
    native(bundle, trt, trt.api)
    assert (trt.runtime.DLA_core, trt.runtime.engine_host_code_allowed) == (-1, False)


def test_all_that_was_taken_is_given_back(bundle: Bundle) -> None:
    for close in (True, False):
        api = CudaApi()
        part = native(bundle, Tensorrt(api), api)
        for batch in (1, 1, 2, 2, 3):
            part.run(feeds(batch))
        assert api.live
        if close:
            part.close()
        else:
            del part
            gc.collect()
        assert not api.live


def test_what_fails_while_it_loads_gives_back_what_was_taken(bundle: Bundle) -> None:
    for memory_bytes in (0, 100, 400):
        api = CudaApi(memory_bytes=memory_bytes)
        with pytest.raises(FusedgeError, match=r"CUDA: out of memory \(cuda(HostAlloc|Malloc)\)"):
            native(bundle, Tensorrt(api), api)
        assert not api.live


def test_a_batch_beyond_the_profile_of_a_part_that_is_no_batch_of_rows_is_refused(
    tmp_path: Path, bundle: Bundle
) -> None:
    small = with_engines(
        bundle, tmp_path / "x.fusedge", dims={"batch": {"least": 2, "usual": 2, "greatest": 3}}
    )
    api = CudaApi()
    part = native(small, Tensorrt(api), api)
    with pytest.raises(FusedgeError, match="part fast_encoder: batch is 1, it must be 2 to 3"):
        part.run(feeds(1))
    with pytest.raises(FusedgeError, match=r"input valid has the shape \[2, 5, 2\]"):
        part.run({**feeds(3), "valid": feeds(2)["valid"]})
    assert len(part.run(feeds(6))[0]) == 6


def test_tensorrts_own_reason_is_told_without_its_source_positions(bundle: Bundle) -> None:
    api = CudaApi()
    trt = Tensorrt(api)
    part = native(bundle, trt, api)
    trt.refusal = "[executionContext.cpp::enqueueV3::1] Error Code 1: Cuda Runtime (no kernel)"
    with pytest.raises(FusedgeError) as caught:
        part.run(feeds(1))
    line = caught.value.line()
    assert line.endswith(
        "engines/fast_encoder.engine: TensorRT did not run it: Cuda Runtime (no kernel)"
    )


def test_a_failure_of_the_gpu_in_a_run_is_one_line(bundle: Bundle) -> None:
    api = CudaApi()
    part = native(bundle, Tensorrt(api), api)
    api.failing = "cudaStreamSynchronize"
    with pytest.raises(FusedgeError, match=r"an illegal memory access \(cudaStreamSynchronize\)"):
        part.run(feeds(1))


def test_an_engine_that_is_not_the_manifests_part_is_refused(
    tmp_path: Path, bundle: Bundle
) -> None:
    part = bundle.manifest.encoders[0]
    other = write_tiny_bundle(tmp_path / "other", window_name="window")
    head = with_engines(other, tmp_path / "x.fusedge")
    engine = head.manifest.head.engines[0]
    api = CudaApi()
    with pytest.raises(BundleError, match=r"inputs .*presence.* are not those of the manifest"):
        NativePart(head.read(engine.file), "here", part, engine, Tensorrt(api), Cuda(api))
    assert not api.live


def _build(graph: bytes) -> bytes:
    """A real engine, by TensorRT-RTX itself, for the default GPUs."""
    trt = importlib.import_module("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(graph)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *((n, *tuple(tensor.shape)[1:]) for n in (1, 4, 8)))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


@pytest.fixture(scope="module")
def real_engine() -> bytes:
    pytest.importorskip("tensorrt_rtx")
    return _build(encoder_onnx(5))


def _no_driver() -> bool:
    try:
        load_cuda().device()
    except MissingExtraError:
        pytest.skip("cuda-bindings is not installed")
    except FusedgeError:
        return True
    return False


def test_without_a_driver_cuda_says_so() -> None:
    if not _no_driver():
        pytest.skip("this machine has a GPU: see tests/gpu")
    with pytest.raises(FusedgeError, match="no NVIDIA driver is installed"):
        load_cuda().device()


@pytest.mark.parametrize("damage", ["whole", "truncated", "noise", "empty"])
def test_a_real_engine_without_a_driver_is_refused_in_one_line(
    bundle: Bundle, real_engine: bytes, damage: str
) -> None:
    """TensorRT-RTX reads it; only the memory and the stream are doubles."""
    if not _no_driver():
        pytest.skip("this machine has a GPU: see tests/gpu")
    data = {
        "whole": real_engine,
        "truncated": real_engine[:-100],
        "noise": b"noise" * 1000,
        "empty": b"",
    }[damage]

    class Holding(Bundle):
        def read(self, name: str) -> bytes:
            return data

    api = CudaApi()
    with pytest.raises(FusedgeError) as caught:
        native(Holding(bundle.path), importlib.import_module("tensorrt_rtx"), api)
    line = caught.value.line()
    assert "engines/fast_encoder.engine: the engine " in line and "_src/" not in line
    assert len(line.splitlines()) == 1 and not api.live


def test_the_real_cuda_python_takes_every_argument_that_it_is_given(bundle: Bundle) -> None:
    """Without a driver each call is refused by CUDA, but not for its arguments."""
    if not _no_driver():
        pytest.skip("this machine has a GPU: see tests/gpu")
    real = importlib.import_module("cuda.bindings.runtime")
    api = CudaApi()
    for name in ("cudaDeviceAttr", "cudaMemcpyKind", "cudaStreamCaptureMode"):
        setattr(api, name, getattr(real, name))
    Cuda(api).device()
    part = native(bundle, Tensorrt(api), api)
    for _ in range(3):
        part.run(feeds(2))
    part.close()
    ours = {
        name for name in vars(CudaApi) if name.startswith("cuda") and callable(vars(CudaApi)[name])
    }
    api.calls |= {"cudaGetErrorString": (real.cudaError_t(2),), "cudaDriverGetVersion": ()}
    assert set(api.calls) == ours
    for name, arguments in api.calls.items():
        error, *_ = getattr(real, name)(*arguments)
        assert isinstance(error, real.cudaError_t), name


def test_the_doubles_have_only_what_the_real_packages_have() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    own = {"trt", "logger", "session", "tensors", "inputs", "engine", "shapes", "addresses"}
    pairs = {_Runtime: trt.Runtime, _Engine: trt.ICudaEngine, _Context: trt.IExecutionContext}
    for double, real in pairs.items():
        names = {name for name in vars(double) if not name.startswith("_")} - own
        assert {name for name in names if not hasattr(real, name)} == set()
    names = {name for name in vars(CudaApi) if name.startswith("cuda")}
    assert {name for name in names if not hasattr(runtime, name)} == set()
    for group, members in (
        ("cudaDeviceAttr", 2),
        ("cudaMemcpyKind", 2),
        ("cudaStreamCaptureMode", 1),
    ):
        used = vars(getattr(CudaApi, group))
        assert len(used) == members
        assert all(hasattr(getattr(runtime, group), member) for member in used)
    assert trt.TensorIOMode.INPUT and trt.TensorLocation.DEVICE and trt.EngineValidity.INVALID
    assert int(trt.EngineInvalidityDiagnostics.CUDA_ERROR)
    assert hasattr(trt.Runtime, "DLA_core") and hasattr(trt.Runtime, "engine_host_code_allowed")
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER
