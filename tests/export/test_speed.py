"""Speeds as ratios, and how sure they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.export.part import ModulePart
from fusedge.export.precision import reduce_graph, uniform_assignments
from fusedge.export.speed import MARGIN, CpuSpeed, Speed, compare
from tests.export.small_net import small_graph, small_part, windows


def seconds(ratio: float, noise: float, pairs: int = 31) -> Speed:
    random = np.random.default_rng(0)
    drift = np.linspace(1, 3, pairs)  # the machine becomes slower meanwhile
    baseline = 1e-3 * drift * random.lognormal(0, noise, pairs)
    return Speed.of_pairs(baseline, 1e-3 * ratio * drift * random.lognormal(0, noise, pairs))


def test_the_ratio_does_not_depend_on_a_drift_of_the_machine() -> None:
    speed = seconds(0.8, noise=0.01)
    assert speed.ratio == pytest.approx(0.8, rel=0.01)
    assert speed.low < 0.8 < speed.high
    assert speed.faster


def test_noise_widens_the_interval_until_nothing_is_sure() -> None:
    assert seconds(0.95, noise=0.01).faster
    assert not seconds(0.95, noise=0.2).faster
    assert not seconds(1.0, noise=0.01).faster
    assert not seconds(1.2, noise=0.01).faster
    assert not seconds(1 - MARGIN / 2, noise=0.0).faster


def test_a_few_outliers_do_not_count() -> None:
    baseline = [1.0] * 31
    candidate = [0.5] * 28 + [50.0] * 3
    speed = Speed.of_pairs(baseline, candidate)
    assert (speed.ratio, speed.low, speed.high) == (0.5, 0.5, 0.5)


def test_the_interval_misses_the_median_as_rarely_as_it_says() -> None:
    random = np.random.default_rng(1)
    misses = 0
    for _ in range(2000):
        speed = Speed.of_pairs([1.0] * 21, random.lognormal(0, 0.3, 21).tolist())
        misses += not speed.low <= 1.0 <= speed.high
    assert misses <= 0.015 * 2000


def test_a_graph_is_measured_against_its_float32_graph() -> None:
    full = small_graph().SerializeToString()
    (choice, *_) = uniform_assignments(small_graph(), "fp16")
    half = reduce_graph(small_graph(), small_part(), choice).SerializeToString()
    speed = compare(full, half, {"window": windows(1)})
    assert speed.low <= speed.ratio <= speed.high
    assert speed.baseline_s > 0


def test_attention_in_float16_is_measured(
    parts: tuple[ModulePart, ...], graphs: dict[str, onnx.ModelProto]
) -> None:
    """ONNX Runtime 1.32 crashes on it with all its optimisers."""
    head, full = parts[-1], graphs["head"]
    half = reduce_graph(full, head, uniform_assignments(full, "fp16")[0])
    feeds = {
        part_input.name: zeros.numpy()
        for part_input, zeros in zip(head.inputs, head.zeros(1), strict=True)
    }
    assert compare(full.SerializeToString(), half.SerializeToString(), feeds).ratio > 0


def test_a_graph_that_does_not_run_names_its_part() -> None:
    (choice, *_) = uniform_assignments(small_graph(), "bf16")
    graph = reduce_graph(small_graph(), small_part(), choice).SerializeToString()
    measure = CpuSpeed({"net": small_graph().SerializeToString()}, {"net": {"window": windows(1)}})
    assert measure.identity.startswith("onnxruntime ")
    with pytest.raises(FusedgeError, match=r"part net, speed: ONNX Runtime does not run the graph"):
        measure("net", graph)
