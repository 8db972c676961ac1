"""A part is checked against the manifest before it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fusedge.bundle.archive import Bundle, file_entry, write_bundle
from fusedge.bundle.errors import BundleError, FusedgeError, UnknownNameError
from fusedge.runtime import backend
from fusedge.runtime.backend import OnnxPart
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
        (encoder_onnx(6), r"input window is tensor\(float\) .* the manifest says float32"),
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
    monkeypatch.setitem(backend.PROVIDERS, "cuda", "NoSuchExecutionProvider")
    with pytest.raises(FusedgeError, match="has no NoSuchExecutionProvider on this machine"):
        OnnxPart(bundle, bundle.manifest.head, "cuda", "fp32")
