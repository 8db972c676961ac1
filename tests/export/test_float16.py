"""A float16 graph: reduced inside, float32 outside, and judged by the gate."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusedge.bundle.manifest import TensorSpec
from fusedge.export.cases import part_cases
from fusedge.export.parity import TOLERANCE, PartSession, check_part
from fusedge.export.precision import count_float16, count_kept, keep_choices, to_float16
from fusedge.export.split import ModulePart
from fusedge.export.trace import trace
from tests.export.tiny_fusion import MODALITIES


def test_every_part_passes_at_float16(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    cases = part_cases(parts, MODALITIES)
    for part in parts:
        half = to_float16(graphs[part.name], part, ())
        session = PartSession(part, half.SerializeToString(), "fp16")
        row = check_part(session, cases[part.name], TOLERANCE["fp16"])
        assert 0 < row.max_relative < 0.5 * TOLERANCE["fp16"]


def test_reduced_nodes_are_counted_without_casts(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    full = graphs["imu"]
    half = to_float16(full, parts[0], ())
    assert count_float16(full) == 0
    assert count_float16(half) == len(full.graph.node)
    assert len(half.graph.node) > len(full.graph.node)  # the casts at the inputs and outputs


def test_each_choice_keeps_more_in_float32(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    full = graphs["imu"]
    counts = [count_float16(to_float16(full, parts[0], k)) for k in keep_choices(full)]
    assert counts[0] == len(full.graph.node)
    assert counts[1] == counts[0] - 1  # LayerNormalization
    assert counts[2:] == [3, 2]  # Conv, MatMul and GRU; Conv and MatMul
    assert [counts[0] - count_kept(full, keep) for keep in keep_choices(full)] == counts


def test_the_float32_graph_is_left_as_it_is(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    before = graphs["imu"].SerializeToString(deterministic=True)
    to_float16(graphs["imu"], parts[0], ())
    assert graphs["imu"].SerializeToString(deterministic=True) == before


def test_another_process_gives_the_same_bytes(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto], tmp_path: Path
) -> None:
    """Sets of names have another order in each process; the head has inputs enough to show it."""
    full = trace(parts[-1])
    onnx.save(full, tmp_path / "head.onnx")
    program = """
        import hashlib, sys, onnx
        from tests.export.tiny_fusion import MODALITIES, TinyModel
        from fusedge.export.precision import to_float16
        from fusedge.export.simplify import simplify
        from fusedge.export.split import split
        part = split(TinyModel(), MODALITIES, 1.0)[-1]
        half = to_float16(simplify(onnx.load(sys.argv[1]), part), part, ())
        print(hashlib.sha256(half.SerializeToString(deterministic=True)).hexdigest())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "head.onnx")]
    digests = set()
    for seed in ("1", "2", "3"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


@pytest.fixture
def masked() -> tuple[onnx.ModelProto, ModulePart]:
    """What converters get wrong: an output that is used inside, an output of a kept kind, a constant
    that kept and reduced nodes share, and a mask beyond float16."""
    constants = {"mask": np.array([0, -1e9, 0, -1e9], np.float32), "two": np.array([2.0], "f4")}
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["window", "two"], ["embedding"], "scale"),
            helper.make_node("Add", ["embedding", "mask"], ["masked"], "mask"),
            helper.make_node("Softmax", ["masked"], ["share"], "share", axis=1),
            helper.make_node("Pow", ["share", "two"], ["state_out.share"], "square"),
        ],
        "graph",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])
            for name in ("embedding", "state_out.share")
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

    def spec(name: str, role: str) -> TensorSpec:
        fields = {"name": name, "role": role, "dtype": "float32", "shape": ("batch", 4)}
        return TensorSpec.model_validate(fields)

    part = ModulePart(
        "part",
        "encoder",
        "part",
        1.0,
        None,  # type: ignore[arg-type]
        (spec("window", "window"),),
        (spec("embedding", "embedding"), spec("state_out.share", "state_out")),
    )
    return model, part


def test_awkward_graphs_are_reduced_soundly(masked: tuple[onnx.ModelProto, ModulePart]) -> None:
    model, part = masked
    for keep in ((), ("Mul",), ("Softmax", "Pow"), ("Pow",)):
        session = PartSession(part, to_float16(model, part, keep).SerializeToString(), "fp16")
        feeds = {"window": np.ones((2, 4), np.float32)}
        embedding, share = session.run(feeds, "ones")
        assert embedding.dtype == share.dtype == np.float32
        assert np.array_equal(embedding, np.full((2, 4), 2, np.float32))
        assert np.allclose(share, [[0.25, 0, 0.25, 0]] * 2)
