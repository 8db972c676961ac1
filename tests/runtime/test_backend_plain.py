"""A part for a program of one's own: a plain model, with the types and sizes that such a one has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fusedge.bundle.archive import Bundle, file_entry, write_bundle
from fusedge.bundle.errors import BundleError, FusedgeError, UnknownNameError
from fusedge.bundle.manifest import (
    FORMAT_VERSION,
    DimRange,
    Graph,
    Manifest,
    Part,
    Provenance,
    TensorSpec,
)
from fusedge.runtime.backend import BackendSetting, PartLoader, open_part
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.session import Session
from tests.runtime.gpu_double import CudaApi, Tensorrt, gpu, with_engines
from tests.tiny_bundle import write_tiny_bundle

DIMS = {
    "batch": DimRange(least=1, usual=2, greatest=4),
    "tokens": DimRange(least=2, usual=8, greatest=16),
}


def plain_onnx() -> bytes:
    """`scores`: the rows of a table by id, weighted by a uint8 mask; `ids_out`: the ids as they came."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rows", "weight"], ["scores"]),
        helper.make_node("Identity", ["ids"], ["ids_out"]),
    ]
    shape = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        "plain",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, shape),
            helper.make_tensor_value_info("mask", TensorProto.UINT8, shape),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("ids_out", TensorProto.INT64, shape),
        ],
        [helper.make_tensor("table", TensorProto.FLOAT, [5], [0.0, 0.1, 0.2, 0.3, 0.4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    def spec(name: str, role: Any, dtype: Any) -> TensorSpec:
        return TensorSpec(name=name, role=role, dtype=dtype, shape=("batch", "tokens"))

    files = {"parts/model.fp32.onnx": plain_onnx()}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name="plain",
        description="a plain model",
        parts=(
            Part(
                name="model",
                kind="model",
                inputs=(spec("ids", "input", "int64"), spec("mask", "input", "uint8")),
                outputs=(spec("scores", "output", "float32"), spec("ids_out", "output", "int64")),
                dims=DIMS,
                graphs=(Graph(file="parts/model.fp32.onnx", precision="fp32", opset=18, nodes=4),),
            ),
        ),
        provenance=Provenance(
            task="none",
            weights_sha256="0" * 64,
            training_data="none",
            weights_licence="Apache-2.0",
            attribution="none",
            tools={},
        ),
        files={name: file_entry(data) for name, data in files.items()},
    )
    path = tmp_path_factory.mktemp("plain") / "plain.fusedge"
    return write_bundle(path, manifest, files)


def feeds(batch: int, tokens: int) -> dict[str, Any]:
    ids = np.arange(batch * tokens, dtype=np.int64).reshape(batch, tokens) % 5
    return {"mask": (ids % 2).astype(np.uint8), "ids": ids}


def test_a_plain_model_gives_its_outputs_by_name(bundle: Bundle) -> None:
    with open_part(bundle) as model:
        outputs = model.run(feeds(3, 7))
    assert (model.choice.backend, model.choice.provider) == ("onnxruntime", "CPUExecutionProvider")
    given = feeds(3, 7)
    np.testing.assert_allclose(outputs["scores"], given["ids"] * given["mask"] * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(outputs["ids_out"], given["ids"])
    assert outputs["ids_out"].dtype == np.int64
    with pytest.raises(FusedgeError, match="part model: is closed"):
        model.run(given)


def test_a_plain_model_runs_on_an_engine_at_every_size(tmp_path: Path, bundle: Bundle) -> None:
    built = with_engines(bundle, tmp_path / "x.fusedge", dims=DIMS)
    part = built.manifest.parts[0]
    loader = PartLoader(
        built,
        BackendSetting(backend="native", allow_unsigned_engines=True),
        **gpu(Tensorrt(CudaApi())),
    )
    loaded = loader(part)
    with open_part(bundle) as model:
        for batch, tokens in [(1, 2), (4, 16), (2, 5), (4, 3), (1, 2), (3, 9), (2, 8)] * 2:
            wanted = model.run(feeds(batch, tokens))
            scores, ids = loaded.run(feeds(batch, tokens))
            np.testing.assert_array_equal(scores, wanted["scores"])
            np.testing.assert_array_equal(ids, wanted["ids_out"])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a batch beyond the range": (feeds(5, 4), "part model: batch is 5, it must be 1 to 4"),
    "too few tokens": (feeds(1, 1), "tokens is 1, it must be 2 to 16"),
    "two sizes of one dim": (
        {"ids": feeds(2, 4)["ids"], "mask": feeds(2, 5)["mask"]},
        "input mask has the shape [2, 5], it must be ['batch', 'tokens'] with batch 2, tokens 4",
    ),
    "a dim too few": ({**feeds(1, 4), "ids": np.zeros(4, np.int64)}, "input ids has the shape [4]"),
    "another type": (
        {**feeds(1, 4), "ids": np.zeros((1, 4), np.int32)},
        "input ids is int32 (give a numpy array of int64)",
    ),
    "no array": ({**feeds(1, 4), "ids": [[1, 2]]}, "input ids is list"),
    "one that is missing": ({"ids": feeds(1, 4)["ids"]}, "input mask is missing"),
    "one too many": ({**feeds(1, 4), "maks": 1}, "unknown input 'maks' (did you mean 'mask'?)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_the_model_is_told_in_a_line(bundle: Bundle, kind: str) -> None:
    given, reason = WRONG[kind]
    with open_part(bundle) as model, pytest.raises(FusedgeError) as caught:
        model.run(given)
    assert reason in caught.value.line() and len(caught.value.line().splitlines()) == 1


def test_a_part_of_a_fusion_model_can_be_run_by_itself_as_well(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "tiny.fusedge")
    with pytest.raises(UnknownNameError, match="unknown part 'haed'"):
        open_part(tiny, "haed")
    with pytest.raises(UnknownNameError, match="fast_encoder, head, slow_encoder"):
        open_part(tiny)
    with open_part(tiny, "head") as head:
        shapes = {spec.name: (1, 2) for spec in head.part.inputs}
        outputs = head.run({name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    np.testing.assert_allclose(outputs["logits"], [[1.25, -1.0]])


def test_a_plain_model_has_no_sessions(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has no sessions .*fusedge\.runtime\.backend"):
        Session(bundle, ["sim:"], VirtualClock())
