"""Preprocessing inside the graph: as ONNX at both opsets, as engines, and what float16 does to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fusedge.bundle.inference import open_session
from fusedge.devices.targets.facts.table import find_target
from fusedge.export.engine import EngineRequest, build_engine
from fusedge.export.lower import lower
from fusedge.export.part import ModulePart
from fusedge.export.plain import plain_part
from fusedge.export.precision import reduce_graph, reduced_nodes, uniform_assignments
from fusedge.export.simplify import simplify
from fusedge.export.trace import trace
from fusedge.models.log_mel import LogMel, LogMelConfig, StreamingLogMel
from fusedge.models.preprocessing import ImageInput, Normalise
from fusedge.models.rolling import RollingStatistics

Array = np.ndarray[Any, Any]
SOUND = LogMelConfig(16000, n_mels=20, n_fft=256, win_length=200, hop_length=80, log="db")


def noise(*shape: int, scale: float = 1.0) -> Array:
    values = np.random.default_rng(len(shape)).standard_normal((2, *shape)) * scale
    return values.astype(np.float32)


def valid(*shape: int) -> Array:
    return (noise(*shape) > 0).astype(np.float32)


FRAMES = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 24, 3), dtype=np.uint8)
MODULES: dict[str, tuple[Callable[[], nn.Module], dict[str, Array]]] = {
    "image": (lambda: ImageInput((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), {"frames": FRAMES}),
    "bgr image": (
        lambda: ImageInput((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), order="bgr"),
        {"frames": FRAMES},
    ),
    "sensors": (
        lambda: Normalise((1.0, 101_325.0), (2.0, 100.0)),
        {"x": noise(20, 2), "valid": valid(20, 2)},
    ),
    "sound": (lambda: LogMel(SOUND), {"waveform": noise(1600, scale=0.1)}),
    "centred sound": (lambda: LogMel(SOUND, center=True), {"waveform": noise(1600, 1, scale=0.1)}),
    "sound stream": (
        lambda: StreamingLogMel(SOUND),
        {"waveform": noise(800, 1, scale=0.1), "state": noise(120, 1, scale=0.1)},
    ),
    "rolling statistics": (
        lambda: RollingStatistics(3, 50, 10, rate_hz=50.0),
        {"x": noise(20, 3), "valid": valid(20, 3), "state": valid(40, 6)},
    ),
}


def graph_of(module: nn.Module, example: dict[str, Array]) -> tuple[ModulePart, onnx.ModelProto]:
    part = plain_part(module.eval(), example)
    return part, simplify(trace(part), part)


def run(graph: onnx.ModelProto, feeds: dict[str, Array], precision: str = "fp32") -> list[Array]:
    outputs: list[Array] = open_session(graph.SerializeToString(), precision).run(None, feeds)
    return outputs


@pytest.fixture(scope="module")
def exported() -> dict[str, tuple[ModulePart, onnx.ModelProto]]:
    return {name: graph_of(make(), example) for name, (make, example) in MODULES.items()}


@pytest.mark.parametrize("opset", [18, 17])
@pytest.mark.parametrize("name", MODULES)
def test_graphs_give_what_the_modules_give(
    exported: dict[str, tuple[ModulePart, onnx.ModelProto]], name: str, opset: int
) -> None:
    part, graph = exported[name]
    if opset == 17:
        graph = lower(graph, part, 17)
    feeds = {k: np.concatenate([v, v[:1]]) for k, v in MODULES[name][1].items()}  # another batch
    with torch.inference_mode():
        wanted = part.module(*(torch.from_numpy(values) for values in feeds.values()))
    for got, expected in zip(run(graph, feeds), wanted, strict=True):
        # Seen: up to 2e-5 dB of sound, 4e-7 of statistics, exactly the same images.
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("name", MODULES)
def test_engines_are_built_without_repair_for_old_and_new_gpus(
    exported: dict[str, tuple[ModulePart, onnx.ModelProto]], name: str
) -> None:
    part, graph = exported[name]
    data = graph.SerializeToString(deterministic=True)
    targets = find_target("rtx-2080-ti"), find_target("rtx-4090")
    assert build_engine(EngineRequest(part.name, data, "fp32", targets, part.dims)).repairs == ()


def test_invalid_numbers_do_not_pass_the_graph(
    exported: dict[str, tuple[ModulePart, onnx.ModelProto]],
) -> None:
    x, mask = noise(20, 2), valid(20, 2)
    x[mask == 0] = np.nan
    assert np.isfinite(run(exported["sensors"][1], {"x": x, "valid": mask})[0]).all()
    x, mask = noise(20, 3), valid(20, 3)
    x[mask == 0] = np.inf
    feeds = {"x": x, "valid": mask, "state": np.zeros((2, 40, 6), np.float32)}
    assert all(
        np.isfinite(output).all() for output in run(exported["rolling statistics"][1], feeds)
    )


# --- float16


class Voice(nn.Module):
    """An encoder behind log-mel, which the float16 of the rest must not touch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.log_mel = LogMel(LogMelConfig(16000, 20, n_fft=1024, win_length=1024, hop_length=256))
        self.linear = nn.Linear(20, 8)

    def forward(self, waveform: Tensor) -> Tensor:
        features: Tensor = self.linear(self.log_mel(waveform) / 10)
        return features


def test_float16_log_mel_loses_silence_and_loud_sound() -> None:
    layer = Voice().log_mel.half()
    assert torch.isneginf(layer(torch.zeros(1, 2048, dtype=torch.float16))).all()
    loud = torch.sin(torch.arange(2048) * (2 * np.pi / 16))[None]
    assert layer(loud.half()).isposinf().any()


def test_the_rest_is_float16_and_log_mel_stays_float32() -> None:
    module = Voice()
    part, graph = graph_of(module, {"waveform": noise(4096, scale=0.1)})
    half = reduce_graph(graph, part, uniform_assignments(graph, "fp16")[0])
    kept = {n.op_type for n in graph.graph.node if "log_mel.bands/" in n.name}
    assert kept >= {"Conv", "Log", "Clip"}
    reduced = reduced_nodes(half)
    assert reduced and not any("log_mel.bands" in name for name in reduced)
    for level in (0.0, 1e-4, 1.0):
        feeds = {"waveform": noise(4096) * np.float32(level)}
        wanted = run(graph, feeds)[0]
        np.testing.assert_allclose(run(half, feeds, "fp16")[0], wanted, atol=5e-3, rtol=0)
