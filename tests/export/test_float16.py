"""A float16 graph: reduced inside, float32 outside, and close to the float32 one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fusedge.bundle.inference import open_session
from fusedge.bundle.manifest import TensorSpec
from fusedge.export.part import ModulePart
from fusedge.export.precision import (
    node_key,
    reduce_graph,
    reduced_nodes,
    reducible,
    uniform_assignments,
)
from tests.export.small_net import awkward_graph, run, small_graph, small_part, spec, windows


def kinds_of(graph: onnx.ModelProto, names: object) -> set[str]:
    return {node.op_type for node in graph.graph.node if node_key(node) in set(names)}  # type: ignore[call-overload]


def test_every_part_of_a_fusion_model_is_close_at_float16(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    random = np.random.default_rng(0)
    for part in parts:
        full = graphs[part.name]
        (first, *_) = uniform_assignments(full, "fp16")
        half = reduce_graph(full, part, first)
        feeds = {
            spec.name: random.uniform(size=(2, *spec.shape[1:])).astype(np.float32)  # type: ignore[arg-type]
            for spec in part.inputs
        }
        wanted, got = (
            open_session(graph.SerializeToString(), "fp16").run(None, feeds)
            for graph in (full, half)
        )
        assert reduced_nodes(half) == first
        assert any((a != b).any() for a, b in zip(wanted, got, strict=True)), "nothing is rounded"
        for a, b in zip(wanted, got, strict=True):
            assert b.dtype == np.float32
            assert np.allclose(a, b, atol=5e-3)


def test_each_uniform_assignment_keeps_more_in_float32() -> None:
    full = small_graph()
    choices = uniform_assignments(full, "fp16")
    assert [set(choice) for choice in choices] == sorted(
        (set(choice) for choice in choices), key=len, reverse=True
    )
    assert kinds_of(full, choices[0]) == {node.op_type for node in full.graph.node}
    assert kinds_of(full, choices[0].keys() - choices[1].keys()) == {
        "LayerNormalization",
        "ReduceMean",
        "Softmax",
    }
    assert kinds_of(full, choices[-1]) == {"Conv", "Gemm", "MatMul"}
    for choice in choices:
        assert reduced_nodes(reduce_graph(full, small_part(), choice)) == choice


def test_a_recurrence_is_reduced_until_only_products_are(
    graphs: dict[str, onnx.ModelProto],
) -> None:
    full = graphs["imu"]
    kinds = [kinds_of(full, choice) for choice in uniform_assignments(full, "fp16")]
    assert kinds[-2:] == [{"Conv", "GRU", "MatMul"}, {"Conv", "MatMul"}]


def test_the_float32_graph_is_left_as_it_is() -> None:
    full = small_graph()
    before = full.SerializeToString(deterministic=True)
    reduce_graph(full, small_part(), uniform_assignments(full, "fp16")[0])
    assert full.SerializeToString(deterministic=True) == before
    assert reduced_nodes(full) == {}


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    """Sets of names have another order in each process."""
    onnx.save(small_graph(), tmp_path / "net.onnx")
    program = """
        import hashlib, sys, onnx
        from tests.export.small_net import small_part
        from fusedge.export.precision import reduce_graph, uniform_assignments
        full = onnx.load(sys.argv[1])
        half = reduce_graph(full, small_part(), uniform_assignments(full, "fp16")[0])
        print(hashlib.sha256(half.SerializeToString(deterministic=True)).hexdigest())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "net.onnx")]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    half = reduce_graph(small_graph(), small_part(), uniform_assignments(small_graph(), "fp16")[0])
    here = hashlib.sha256(half.SerializeToString(deterministic=True)).hexdigest()
    assert done.stdout.strip() == here


@pytest.mark.parametrize("kept", [(), ("scale",), ("share", "square"), ("square",), ("mask",)])
def test_awkward_graphs_are_reduced_soundly(kept: tuple[str, ...]) -> None:
    model, part = awkward_graph()
    names = set(reducible(model, "fp16"))
    assert names == {"scale", "mask", "share", "square"}, "an If never is"
    half = reduce_graph(model, part, dict.fromkeys(names - set(kept), "fp16"))
    assert set(reduced_nodes(half)) == names - set(kept)
    feeds = {"window": np.ones((2, 4), np.float32)}
    outputs = open_session(half.SerializeToString(), "fp16").run(None, feeds)
    assert all(output.dtype == np.float32 for output in outputs)
    embedding, share, total = outputs
    assert np.array_equal(embedding, np.full((2, 4), 2, np.float32))
    assert np.allclose(share, [[0.25, 0, 0.25, 0]] * 2)
    assert np.allclose(total, [[2.5, 2, 2.5, 2]] * 2)


def test_nodes_without_a_name_go_by_their_first_output() -> None:
    model, part = awkward_graph()
    for node in model.graph.node:
        node.name = ""
    names = reducible(model, "fp16")
    assert names == ("embedding", "masked", "share", "state_out.share")
    half = reduce_graph(model, part, {"masked": "fp16"})
    assert half.graph.node[2].output[0] == "masked.fp16"
    assert len(half.graph.node) == len(model.graph.node) + 2  # a cast before it, and one after


def test_a_kind_that_onnx_does_not_allow_in_float16_stays_float32() -> None:
    model, _ = awkward_graph()
    model.graph.node[0].op_type = "NotAnOperator"
    assert "scale" not in reducible(model, "fp16")


def test_products_alone_lose_less_than_all_nodes() -> None:
    full, batch = small_graph(), windows(64)
    wanted = run(full, batch)
    choices = uniform_assignments(full, "fp16")
    losses = [
        float(np.abs(run(reduce_graph(full, small_part(), choice), batch) - wanted).mean())
        for choice in (choices[0], choices[-1], {})
    ]
    assert losses[0] > losses[1] > losses[2] == 0.0


def test_reading_the_shape_of_a_reduced_tensor_needs_no_cast() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> graph (float[batch, 4] window)
        => (float[batch, 4] embedding, int64[2] dims) {
            [a] small = Neg (window)
            [b] dims = Shape (small)
            [c] embedding = Neg (small)
        }"""
    )
    part = replace(
        awkward_graph()[1],
        outputs=(
            spec("embedding", "embedding", 4),
            TensorSpec(name="dims", role="output", dtype="int64", shape=(2,)),
        ),
    )
    half = reduce_graph(model, part, {"a": "fp16", "c": "fp16"})
    assert [n.op_type for n in half.graph.node] == ["Cast", "Neg", "Shape", "Neg", "Cast"]
    assert set(reduced_nodes(half)) == {"a", "c"}
