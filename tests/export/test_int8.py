"""int8: ranges from recorded windows, and explicit Q/DQ where both kinds of backend want them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper, numpy_helper
from torch import nn

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.targets.facts.table import find_target
from fusedge.export.calibration import PERCENTILE, Calibration, Histogram, calibrate
from fusedge.export.engine import EngineRequest, build_engine
from fusedge.export.part import ModulePart
from fusedge.export.precision import reduce_graph, reduced_nodes, reducible, uniform_assignments
from tests.export.small_net import run, small_graph, small_part, spec, windows


def calibrated(count: int = 16) -> Calibration:
    return calibrate(small_graph(), ({"window": w[None]} for w in windows(count)))


def reduced(calibration: Calibration) -> onnx.ModelProto:
    (first, *_) = uniform_assignments(small_graph(), "int8")
    return reduce_graph(small_graph(), small_part(), first, calibration)


def test_products_and_nothing_else_compute_in_int8() -> None:
    full = small_graph()
    graph = reduced(calibrated())
    products = [n.name for n in full.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert reducible(full, "int8") == tuple(products)
    assert reduced_nodes(graph) == dict.fromkeys(products, "int8")
    without_attention = {"matmul", "matmul_1"}
    second = uniform_assignments(full, "int8")[1]
    assert set(second) == set(products) - without_attention


def test_constants_are_int8_only_before_a_dequantise_node() -> None:
    """TensorRT refuses others, non-zero zero points, and int32 biases."""
    graph = reduced(calibrated()).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    read_by = [(name, node) for node in graph.node for name in node.input if name in constants]
    for name, node in read_by:
        values = numpy_helper.to_array(constants[name])
        if values.dtype == np.int8:
            assert node.op_type in ("QuantizeLinear", "DequantizeLinear")
        assert values.dtype != np.int32
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not numpy_helper.to_array(constants[node.input[2]]).any()


def test_weights_have_a_scale_for_each_output_channel() -> None:
    graph = reduced(calibrated()).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    full = {t.name: numpy_helper.to_array(t) for t in small_graph().graph.initializer}
    for name, axis in (("first.weight", 0), ("classify.weight", 0)):
        scale = constants[f"{name}.axis{axis}.scale"]
        assert scale.shape == (full[name].shape[axis],)
        held = constants[f"{name}.axis{axis}.int8"]
        step = scale.reshape(-1, *[1] * (held.ndim - 1))
        assert np.abs(held * step - full[name]).max() <= scale.max() / 2 * 1.0001
        assert np.abs(held).max() == 127


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_int8_is_close_on_windows_like_those_it_was_calibrated_on(method: str) -> None:
    calibration = calibrate(small_graph(), [{"window": windows(32)}], method)  # type: ignore[arg-type]
    batch = windows(64, seed=5)
    wanted, got = run(small_graph(), batch), run(reduced(calibration), batch)
    assert 0 < np.abs(wanted - got).mean() < 0.1 * np.abs(wanted).mean()
    assert (wanted.argmax(1) == got.argmax(1)).mean() > 0.9


def test_the_same_windows_give_the_same_ranges() -> None:
    assert calibrated() == calibrated()
    assert calibrated().windows == 16
    assert calibrated() != calibrated(15)


def test_a_silent_first_window_costs_neither_memory_nor_precision() -> None:
    """The width of a bin that the first window sets would give 1e9 bins here."""
    loud = calibrate(small_graph(), [{"window": windows(8)}])
    quiet = [{"window": scale * windows(8)} for scale in (0.0, 1e-9, 1.0)]
    after = calibrate(small_graph(), quiet)  # type: ignore[arg-type]
    for name, limit in loud.limits.items():
        assert after.limits[name] == pytest.approx(limit, rel=0.25), name


def test_no_windows_and_windows_with_nan_are_refused() -> None:
    with pytest.raises(FusedgeError, match="no windows to calibrate"):
        calibrate(small_graph(), [])
    broken = windows(1)
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(FusedgeError, match="window 2 makes NaN or Inf"):
        calibrate(small_graph(), [{"window": windows(1)}, {"window": broken}])


def test_int8_without_ranges_names_the_tensor() -> None:
    (first, *_) = uniform_assignments(small_graph(), "int8")
    with pytest.raises(FusedgeError, match="int8 needs the range of window"):
        reduce_graph(small_graph(), small_part(), first)


@given(
    arrays.arrays(
        np.float32,
        st.integers(1, 400),
        elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=True),
    ),
    st.integers(1, 5),
)
def test_a_histogram_counts_all_and_its_limits_lie_within_the_values(
    values: np.ndarray, pieces: int
) -> None:
    histogram = Histogram()
    for piece in np.array_split(values, pieces):
        assert histogram.add(piece)
    greatest = float(np.abs(values).max())
    assert 0 <= histogram.entropy() <= greatest
    limit = histogram.percentile()
    assert limit <= greatest
    # At most the percentile's share and one bin's width lie beyond.
    beyond = (np.abs(values) > limit + greatest / 2048).sum()
    assert beyond <= len(values) * (1 - PERCENTILE / 100)


def test_outliers_saturate_by_percentile_and_by_entropy() -> None:
    random = np.random.default_rng(0)
    histogram = Histogram()
    values = random.normal(size=100_000).astype(np.float32)
    values[:5] = 100.0
    assert histogram.add(values)
    assert 3.0 < histogram.percentile() < 5.0
    assert 2.5 < histogram.entropy() < 10.0


def test_channels_and_tensors_of_zeros_are_quantised_soundly() -> None:
    """A scale of 0 would divide by it."""
    weight = np.eye(4, dtype=np.float32)
    weight[:, 2] = 0
    nodes = [
        helper.make_node("MatMul", ["window", "weight"], ["product"], "a/product"),
        helper.make_node("MatMul", ["product", "none"], ["embedding"], "b/product"),
    ]
    values = [helper.make_tensor_value_info(n, 1, ["batch", 4]) for n in ("window", "embedding")]
    constants = {"weight": weight, "none": np.zeros((4, 4), np.float32)}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    inputs, outputs = (spec("window", "window", 4),), (spec("embedding", "embedding", 4),)
    part = ModulePart("part", "encoder", "part", 1.0, nn.Identity(), inputs, outputs)
    silent = np.zeros((2, 4), np.float32)
    calibration = calibrate(model, [{"window": silent}])
    int8 = reduce_graph(model, part, {"a/product": "int8", "b/product": "int8"}, calibration)
    for batch in (silent, silent + 1):
        assert np.array_equal(run(int8, batch), silent)


@pytest.mark.usefixtures("rtx")
def test_tensorrt_builds_int8_and_computes_the_products_in_it() -> None:
    graph = reduced(calibrated())
    data = graph.SerializeToString(deterministic=True)
    target = find_target("rtx-4090")
    request = EngineRequest("net", data, "int8", (target,), small_part().dims)
    achieved = build_engine(request).precision_by_node
    assert achieved["first/conv2d"] == achieved["classify/linear_2"] == "int8"
