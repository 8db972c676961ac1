"""A part is checked against the manifest before it runs."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from fusedge.bundle.archive import Bundle, file_entry, write_bundle
from fusedge.bundle.errors import BundleError, FusedgeError, UnknownNameError
from fusedge.bundle.inference import onnxruntime
from fusedge.runtime import onnx_part
from fusedge.runtime.onnx_part import (
    PROVIDERS,
    OnnxPart,
    Provider,
    provider_devices,
    provider_options,
)
from tests.runtime.at_once import run_at_once
from tests.tiny_bundle import encoder_onnx, write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny.fusedge")


def with_graph(bundle: Bundle, path: Path, graph: bytes) -> Bundle:
    """The bundle with another graph as its first encoder."""
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    files["parts/fast.onnx"] = graph
    entries = {name: file_entry(data) for name, data in files.items()}
    return write_bundle(path, bundle.manifest.model_copy(update={"files": entries}), files)


def test_a_part_gives_its_outputs_in_the_order_of_the_manifest(bundle: Bundle) -> None:
    part = OnnxPart(bundle, bundle.manifest.encoders[0], "cpu", "fp32")
    ones = np.ones((3, 5, 2), np.float32)
    embedding, state = part.run(
        {"state_in.total": np.float32([[1], [2], [3]]), "valid": ones, "window": 2 * ones}
    )
    np.testing.assert_allclose(embedding, [[2, 3], [2, 4], [2, 5]])
    np.testing.assert_allclose(state, [[3], [4], [5]])
    assert part.provider == "CPUExecutionProvider"


def fixed_batch() -> bytes:
    model = onnx.load_from_string(encoder_onnx(5))
    for tensor in model.graph.input:
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (encoder_onnx(5, window_name="images"), "the graph's inputs .*images.* are not those"),
        (encoder_onnx(6), r"input window is float32 .* the manifest says float32"),
        (fixed_batch(), "input .* the manifest says float32"),
        (encoder_onnx(5)[:-20], "does not load"),
        (b"no graph", "does not load"),
        (b"", "does not load"),
    ],
    ids=["name", "shape", "fixed batch", "truncated", "noise", "empty"],
)
def test_a_graph_that_is_not_the_manifests_is_refused(
    bundle: Bundle, tmp_path: Path, graph: bytes, reason: str
) -> None:
    other = with_graph(bundle, tmp_path / "x.fusedge", graph)
    with pytest.raises(BundleError, match=reason) as caught:
        OnnxPart(other, other.manifest.encoders[0], "cpu", "fp32")
    assert "x.fusedge: part fast_encoder" in caught.value.line()


def test_an_unknown_provider_gets_a_hint(bundle: Bundle) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cuda'"):
        OnnxPart(bundle, bundle.manifest.head, "cudaa", "fp32")


def test_a_provider_that_this_machine_lacks_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROVIDERS, "cuda", Provider("NoSuchExecutionProvider", "cuda", {}))
    with pytest.raises(FusedgeError, match="has no NoSuchExecutionProvider on this machine"):
        OnnxPart(bundle, bundle.manifest.head, "cuda", "fp32")


@pytest.mark.skipif(
    not hasattr(onnxruntime().InferenceSession, "get_provider_graph_assignment_info"),
    reason="this ONNX Runtime does not say which node runs where",
)
def test_a_provider_that_takes_no_node_is_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's own build for the CPU has this one, and lists it first in its session."""
    monkeypatch.setitem(PROVIDERS, "cuda", Provider("AzureExecutionProvider", "cuda", {}))
    with pytest.raises(BundleError, match="AzureExecutionProvider runs no node of it"):
        OnnxPart(bundle, bundle.manifest.head, "cuda", "fp32")


def on_azure(monkeypatch: pytest.MonkeyPatch, nodes: dict[str, list[str]]) -> None:
    """Place operators on providers, as a provider that takes some of the nodes would."""
    monkeypatch.setitem(PROVIDERS, "cuda", Provider("AzureExecutionProvider", "cpu", {}))
    placed = [
        SimpleNamespace(
            ep_name=name, get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=k) for k in kinds]
        )
        for name, kinds in nodes.items()
    ]
    session = onnxruntime().InferenceSession
    monkeypatch.setattr(
        session, "get_provider_graph_assignment_info", lambda self: placed, raising=False
    )


def test_nodes_that_a_provider_leaves_to_the_cpu_are_counted(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = {"AzureExecutionProvider": ["Mul"], "CPUExecutionProvider": ["Gather", "Add", "Add"]}
    on_azure(monkeypatch, nodes)
    part = OnnxPart(bundle, bundle.manifest.head, "cuda", "fp32")
    assert part.cpu_nodes == {"Gather": 1, "Add": 2}


def test_before_onnx_runtime_tells_the_nodes_it_is_known_that_there_are_some(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROVIDERS, "cuda", Provider("AzureExecutionProvider", "cpu", {}))
    base = onnxruntime().InferenceSession.__base__
    monkeypatch.delattr(base, "get_provider_graph_assignment_info", raising=False)
    assert OnnxPart(bundle, bundle.manifest.head, "cuda", "fp32").cpu_nodes is None
    assert OnnxPart(bundle, bundle.manifest.head, "cpu", "fp32").cpu_nodes == {}


@pytest.fixture
def bound(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> OnnxPart:
    """An encoder as a GPU's provider runs it, with the memory on the CPU."""
    monkeypatch.setitem(PROVIDERS, "cpu", Provider("CPUExecutionProvider", "cuda", {}))
    monkeypatch.setattr(onnx_part, "MAX_BINDINGS", 2)
    value = onnxruntime().OrtValue
    allocate = value.ortvalue_from_shape_and_type
    monkeypatch.setattr(
        value, "ortvalue_from_shape_and_type", lambda shape, kind, device: allocate(shape, kind)
    )
    return OnnxPart(bundle, bundle.manifest.encoders[0], "cpu", "fp32")


@pytest.fixture
def plain(bundle: Bundle) -> OnnxPart:
    """The same one without bound memory."""
    return OnnxPart(bundle, bundle.manifest.encoders[0], "cpu", "fp32")


def test_bound_memory_gives_the_same_results_at_every_batch(
    plain: OnnxPart, bound: OnnxPart
) -> None:
    """More shapes than are kept."""
    random = np.random.default_rng(1)
    kept: list[tuple[list[Any], list[Any]]] = []
    for batch in (1, 3, 1, 2, 3, 1):
        feeds = {
            "window": random.normal(size=(batch, 5, 2)).astype(np.float32),
            "valid": np.ones((2, 5, batch), np.float32).T,  # not contiguous
            "state_in.total": random.normal(size=(batch, 1)).astype(np.float32),
        }
        kept.append((plain.run(feeds), bound.run(feeds)))
    for wanted, got in kept:  # and no run has written into the results of another
        for a, b in zip(wanted, got, strict=True):
            np.testing.assert_array_equal(a, b)


def test_threads_that_share_bound_memory_get_each_their_own_outputs(
    plain: OnnxPart, bound: OnnxPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = onnxruntime().InferenceSession
    compute = session.run_with_iobinding
    monkeypatch.setattr(
        session,
        "run_with_iobinding",
        lambda self, binding: (time.sleep(0.002), compute(self, binding)),
    )
    given = [
        {
            "window": np.full((1, 5, 2), number, np.float32),
            "valid": np.ones((1, 5, 2), np.float32),
            "state_in.total": np.full((1, 1), number, np.float32),
        }
        for number in range(12)
    ]
    run_at_once(bound, plain, given)


@pytest.mark.parametrize(("profile", "runs"), [("nv_profile_", [8, 8, 4]), ("", [20])])
def test_a_batch_beyond_a_providers_profile_is_run_in_pieces(
    bundle: Bundle,
    plain: OnnxPart,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    runs: list[int],
) -> None:
    ran: list[int] = []

    class Counted(OnnxPart):
        def _run(self, feeds: Any) -> list[Any]:
            ran.append(len(feeds["window"]))
            return super()._run(feeds)

    monkeypatch.setitem(PROVIDERS, "cpu", Provider("CPUExecutionProvider", "cpu", {}, profile))
    monkeypatch.setattr(onnx_part, "provider_options", lambda name, part: {})
    random = np.random.default_rng(1)
    given = {
        "window": random.normal(size=(20, 5, 2)).astype(np.float32),
        "valid": np.ones((20, 5, 2), np.float32),
        "state_in.total": random.normal(size=(20, 1)).astype(np.float32),
    }
    got = Counted(bundle, bundle.manifest.encoders[0], "cpu", "fp32").run(given)
    assert ran == runs
    for a, b in zip(plain.run(given), got, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_range_of_shapes_is_told_to_tensorrt(bundle: Bundle) -> None:
    encoder = bundle.manifest.encoders[0]
    options = provider_options("tensorrt-rtx", encoder)
    assert options["nv_profile_min_shapes"] == "window:1x5x2,valid:1x5x2,state_in.total:1x1"
    assert options["nv_profile_max_shapes"] == "window:8x5x2,valid:8x5x2,state_in.total:8x1"
    assert provider_options("cuda", encoder) == {"use_tf32": "0"}


def test_the_plug_in_for_tensorrt_rtx_is_registered_and_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, gpu = onnxruntime(), SimpleNamespace(ep_name="NvTensorRTRTXExecutionProvider")
    registered: list[str] = []
    monkeypatch.setattr(onnx_part.importlib.util, "find_spec", lambda name: True)
    plugin = SimpleNamespace(get_library_path=lambda: "/lib/provider.so")
    monkeypatch.setattr(onnx_part.importlib, "import_module", lambda name: plugin)
    monkeypatch.setattr(
        module, "register_execution_provider_library", lambda name, path: registered.append(path)
    )
    monkeypatch.setattr(module, "get_ep_devices", lambda: [SimpleNamespace(ep_name="CPU"), gpu])
    onnx_part._register_plugin.cache_clear()
    try:
        assert provider_devices("tensorrt-rtx") == [gpu] == provider_devices("tensorrt-rtx")
        monkeypatch.setattr(module, "get_ep_devices", list)
        with pytest.raises(FusedgeError, match="its plug-in finds no GPU"):
            provider_devices("tensorrt-rtx")
    finally:
        onnx_part._register_plugin.cache_clear()
    assert registered == ["/lib/provider.so"]


def test_a_plug_in_that_does_not_load_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "no-library.so"
    library.write_bytes(b"none")
    monkeypatch.setattr(onnx_part.importlib.util, "find_spec", lambda name: True)
    plugin = SimpleNamespace(get_library_path=lambda: str(library))
    monkeypatch.setattr(onnx_part.importlib, "import_module", lambda name: plugin)
    onnx_part._register_plugin.cache_clear()
    try:
        with pytest.raises(FusedgeError, match=r"its plug-in does not load: .*no-library\.so"):
            provider_devices("tensorrt-rtx")
    finally:
        onnx_part._register_plugin.cache_clear()
