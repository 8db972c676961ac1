"""A sample of onnx's own node models and the real builder: built after repair, or refused by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusedge.bundle.manifest import DimRange
from fusedge.export.engine import TrialProcess
from fusedge.export.refusal import Refusal
from fusedge.export.repair import close, repair, run

pytestmark = pytest.mark.usefixtures("rtx")

_MODULES = (
    *("add", "attention", "dft", "layernormalization", "maxpool", "mod", "nonmaxsuppression"),
    *("quantizelinear", "relu", "softmax_cross_entropy_loss", "rmsnormalization", "unique"),
)
BATCH = {"batch": DimRange(least=1, usual=2, greatest=4)}


@pytest.fixture(scope="module")
def node_tests() -> Mapping[str, Any]:
    """The tests of some operators. (onnx's public function makes all 1,884 of them, in 6 s.)"""
    from onnx.backend.test.case import node

    for module in _MODULES:
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    return {test.name: test for test in node._NodeTestCases}


@pytest.fixture(scope="module")
def process(rtx: None) -> Iterator[TrialProcess]:
    with TrialProcess() as trials:
        yield trials


@pytest.mark.parametrize(
    ("name", "repairs"),
    [
        ("relu", ()),
        ("attention_4d_with_past_and_present", ("Attention by its function body",)),
        ("layer_normalization_2d_axis1", ("LayerNormalization by its function body",)),
        (
            "sce_mean_weight_ii",
            (
                "SoftmaxCrossEntropyLoss by its function body",
                "NegativeLogLikelihoodLoss by its function body",
            ),
        ),
        ("dft_opset19", ("DFT in other operators",)),
        ("maxpool_2d_dilations", ("MaxPool in other operators",)),
        ("rms_normalization_2d_axis0_expanded", ("constants folded",)),
        ("quantizelinear", ("uint8 in float32",)),
        ("mod_mixed_sign_int8", ("int8 and uint8 in float32",)),
    ],
)
def test_a_node_model_is_built(
    name: str, repairs: tuple[str, ...], node_tests: Mapping[str, Any], process: TrialProcess
) -> None:
    test = node_tests[f"test_{name}"]
    inputs, wanted = test.data_sets[0]
    names = (value.name for value in test.model.graph.input)
    feeds = {n: np.asarray(v) for n, v in zip(names, inputs, strict=True)}
    repaired = repair(test.model, process.trial, feeds)
    assert repaired.refusal is None
    assert repaired.repairs == repairs
    found = run(repaired.graph, feeds)
    assert found is not None
    for a, b in zip(wanted, found, strict=True):
        assert close(a, b, 1e-4)


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("unique_sorted_without_axis", ("parse", "this TensorRT has no operator Unique", "Unique")),
        ("add_uint16", ("parse", "x is uint16, which this TensorRT does not have", None)),
    ],
)
def test_a_node_model_is_refused_by_name(
    name: str,
    refusal: tuple[str, str, str | None],
    node_tests: Mapping[str, Any],
    process: TrialProcess,
) -> None:
    found = repair(node_tests[f"test_{name}"].model, process.trial).refusal
    assert found is not None
    assert (found.stage, found.reason, found.operator) == refusal


def test_a_build_that_fails_names_the_operator(
    node_tests: Mapping[str, Any], process: TrialProcess
) -> None:
    found = repair(node_tests["test_nonmaxsuppression_two_batches"].model, process.trial).refusal
    assert found is not None
    assert (found.stage, found.operator) == ("build", "NonMaxSuppression")


def test_a_picture_with_its_colours_swapped_is_built(process: TrialProcess) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "window/permute", perm=[0, 3, 1, 2]),
        helper.make_node("Gather", ["t", "bgr"], ["g"], "window/index", axis=1),
        helper.make_node("Cast", ["g"], ["f"], "window/to", to=TensorProto.FLOAT),
        helper.make_node("MaxPool", ["f"], ["y", "at"], "pool", kernel_shape=[2, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 4, 6, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([2, 1, 0]), "bgr")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    refusals: list[Refusal | None] = []

    def trial(data: bytes) -> Refusal | None:
        refusals.append(process.trial(data, BATCH))
        return refusals[-1]

    repaired = repair(model, trial)
    assert repaired.refusal is None
    assert repaired.repairs == ("uint8 in float32", "MaxPool unused outputs dropped")
    assert refusals[0] is not None and refusals[0].node == "window/permute"
    assert refusals[1] is not None and refusals[1].node == "pool"


def test_a_function_of_the_model_is_inlined_only_if_refused(process: TrialProcess) -> None:
    body = [helper.make_node("LayerNormalization", ["a", "w"], ["b", "mean"], "norm")]
    opsets = [helper.make_opsetid("", 20)]
    function = helper.make_function("user", "Norm", ["a", "w"], ["b", "mean"], body, opsets)
    call = helper.make_node("Norm", ["x", "w"], ["y", "m"], "call", domain="user")
    graph = helper.make_graph(
        [call],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("m", TensorProto.FLOAT, ["batch", 1]),
        ],
        [numpy_helper.from_array(np.ones(4, np.float32), "w")],
    )
    model = helper.make_model(
        graph, functions=[function], opset_imports=[*opsets, helper.make_opsetid("user", 1)]
    )
    model.ir_version = 9
    repaired = repair(model, lambda data: process.trial(data, BATCH))
    assert repaired.refusal is None
    assert repaired.repairs[0] == "functions inlined"
    assert "LayerNormalization by its function body" in repaired.repairs
    onnx.checker.check_model(repaired.graph)
