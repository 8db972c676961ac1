"""The examples of a user's own models do what their texts say."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples import fusion_model, plain_model
from fusedge.bundle.inference import open_session
from fusedge.export.factory import load_factory
from fusedge.export.part import ModulePart
from fusedge.export.plain import plain_part
from fusedge.export.split import split
from fusedge.export.task import Task
from fusedge.export.trace import trace

STEPS, BATCH = 6, 2


@pytest.fixture(autouse=True)
def _from_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])


def test_the_plain_model_is_one_part(tmp_path: Path) -> None:
    plain_model.main(tmp_path)
    example = dict(np.load(tmp_path / "inputs.npz"))
    loaded = load_factory("examples.plain_model:make", tmp_path / "weights.safetensors")
    assert loaded.task is None
    part = plain_part(loaded.module, example, loaded.name)
    assert [(s.name, s.dtype, s.shape) for s in (*part.inputs, *part.outputs)] == [
        ("picture", "uint8", ("batch", 32, 32)),
        ("scores", "float32", ("batch", 10)),
        ("features", "float32", ("batch", 16)),
    ]
    got = open_session(trace(part).SerializeToString(), "fp32").run(None, example)
    with torch.no_grad():
        expected = loaded.module(torch.from_numpy(example["picture"]))
    for name, value in zip(("scores", "features"), got, strict=True):
        np.testing.assert_allclose(value, expected[name], atol=1e-6)


@pytest.fixture(scope="module")
def room() -> tuple[fusion_model.RoomModel, Task]:
    torch.manual_seed(0)
    model, task = fusion_model.make(pixels=16)
    return model.eval(), task


@pytest.fixture(scope="module")
def parts(room: tuple[fusion_model.RoomModel, Task]) -> tuple[ModulePart, ...]:
    model, task = room
    return split(model, task.modalities, task.decision_rate_hz)


def test_the_fusion_model_is_loaded_with_its_task(tmp_path: Path) -> None:
    fusion_model.main(tmp_path)
    loaded = load_factory("examples.fusion_model:make", tmp_path / "weights.safetensors")
    assert loaded.task is not None and loaded.task.name == "room"
    assert loaded.provenance.training_data == "none: random weights"


def test_what_the_fusion_model_remembers_becomes_states(parts: tuple[ModulePart, ...]) -> None:
    states = {p.name: [s.name for s in p.inputs if s.role == "state_in"] for p in parts}
    assert states == {
        "camera": [],
        "microphone": ["state_in.pad", "state_in.smooth.0", "state_in.gru"],
        "motion": ["state_in.lstm.h", "state_in.lstm.c"],
        "head": ["state_in.gru"],
    }
    assert parts[-1].initial["state_in.gru"].any()
    assert {p.name: p.rate_hz for p in parts} == {
        "camera": 10,
        "microphone": 5,
        "motion": 5,
        "head": 5,
    }


def _random_inputs(task: Task) -> tuple[dict[str, Any], dict[str, Any], Any, Any]:
    random = np.random.default_rng(0)
    windows, valid = {}, {}
    for modality in task.modalities:
        shape = (BATCH, STEPS, *modality.window_shape)
        valid[modality.name] = np.ones((BATCH, STEPS, *modality.valid_shape), np.float32)
        windows[modality.name] = (
            random.integers(0, 256, shape, dtype=np.uint8)
            if modality.kind == "image"
            else random.normal(0, 0.3, shape).astype(np.float32)
        )
    subsets = np.array(list(product((0, 1), repeat=3)), np.float32)
    presence = subsets[random.integers(0, len(subsets), (BATCH, STEPS))]
    age = (random.random(presence.shape) * presence).astype(np.float32)
    return windows, valid, presence, age


def test_the_parts_step_by_step_are_the_whole_fusion_model(
    room: tuple[fusion_model.RoomModel, Task], parts: tuple[ModulePart, ...]
) -> None:
    model, task = room
    windows, valid, presence, age = _random_inputs(task)
    with torch.no_grad():
        expected = model(
            {name: torch.from_numpy(array) for name, array in windows.items()},
            {name: torch.from_numpy(array) for name, array in valid.items()},
            torch.from_numpy(presence),
            torch.from_numpy(age),
        ).numpy()
    sessions = [open_session(trace(part).SerializeToString(), "fp32") for part in parts]
    states = [part.initial_state(BATCH) for part in parts]
    for step in range(STEPS):
        given = {"presence": presence[:, step], "age": age[:, step]}
        for index, (part, session) in enumerate(zip(parts, sessions, strict=True)):
            if part.kind == "encoder":
                window = {"window": windows[part.name], "valid": valid[part.name]}
                feeds = {s.name: window[s.name][:, step] for s in part.inputs if s.name in window}
            else:
                feeds = given
            names = [spec.name for spec in part.outputs]
            got = dict(zip(names, session.run(names, feeds | states[index]), strict=True))
            states[index] = {pair.input: got[pair.output] for pair in part.state}
            if part.kind == "encoder":
                given[f"embedding.{part.name}"] = got["embedding"]
        np.testing.assert_allclose(got["logits"], expected[:, step], atol=1e-5)
