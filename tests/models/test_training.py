"""Training is repeatable, resumable bit for bit, and learns."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fusedge.bundle.errors import FusedgeError
from fusedge.models import driving
from fusedge.models.dataset import Drive, make_drive
from fusedge.models.driving_training import WEIGHTS, train_driving
from fusedge.models.fusion import FUSION_KINDS, FusionKind
from fusedge.models.fusion_model import FusionModel, load_model, model_bytes, parameter_count
from fusedge.models.prediction import predict
from fusedge.models.training import TrainingConfig, train
from tests.models.synthetic import recordings

MODALITIES = driving.modalities()
RECIPE = TrainingConfig(steps=12, batch=6, crop_s=40, checkpoint_every=5)


class StopTrainingError(Exception):
    pass


@pytest.fixture(scope="module")
def drives() -> list[Drive]:
    return [make_drive(r, MODALITIES, driving.LABELS) for r in recordings()]


def fit(
    drives: list[Drive],
    recipe: TrainingConfig = RECIPE,
    checkpoint: Path | None = None,
    stop_at: int = 0,
    fusion: FusionKind = "concatenation",
) -> FusionModel:
    def progress(step: int, steps: int, loss: float) -> None:
        if step == stop_at:
            raise StopTrainingError

    return train(
        driving.model_config(fusion),
        drives,
        MODALITIES,
        driving.MIRRORED,
        recipe,
        checkpoint,
        progress,
    )


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(drives: list[Drive]) -> None:
    first = model_bytes(fit(drives))
    torch.manual_seed(99)  # what else happens in the process does not matter
    assert model_bytes(fit(drives)) == first
    assert model_bytes(fit(drives, replace(RECIPE, seed=1))) != first


@pytest.mark.parametrize("stop_at", [4, 7, 12])
def test_resumed_equals_uninterrupted(drives: list[Drive], tmp_path: Path, stop_at: int) -> None:
    with pytest.raises(StopTrainingError):
        fit(drives, checkpoint=tmp_path, stop_at=stop_at)
    assert model_bytes(fit(drives, checkpoint=tmp_path)) == model_bytes(fit(drives))


def test_a_checkpoint_of_another_recipe_or_damaged_is_refused(
    drives: list[Drive], tmp_path: Path
) -> None:
    fit(drives, checkpoint=tmp_path)
    with pytest.raises(FusedgeError, match=r"another recipe.*--fresh"):
        fit(drives, replace(RECIPE, seed=1), checkpoint=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FusedgeError, match=r"damaged.*--fresh"):
        fit(drives, checkpoint=tmp_path)


def full_disk(handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["checkpoint.safetensors", WEIGHTS])
def test_a_full_disk_is_told_in_one_line_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = replace(RECIPE, steps=2)
    monkeypatch.setattr(driving, "gps_latency", lambda recordings: 1.45)  # these do not tell it
    trained = train_driving(recordings(), tmp_path, recipe=recipe)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"checkpoint.safetensors", WEIGHTS} and trained.path.name == WEIGHTS
    if name != WEIGHTS:
        (tmp_path / name).unlink()
        before.pop(name)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(FusedgeError, match=rf"{name}: .*No space left on device \(.+\)") as error:
        train_driving(recordings(), tmp_path, recipe=recipe)
    assert "\n" not in error.value.line()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_is_told(drives: list[Drive], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FusedgeError, match=r"file.checkpoint\.safetensors: cannot be"):
        fit(drives, replace(RECIPE, steps=1), checkpoint=tmp_path / "file")


@pytest.mark.parametrize("seed", [-1, -(2**70), 2**64])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(FusedgeError, match=f"seed cannot be {seed}"):
        TrainingConfig(seed=seed)


def test_it_learns_what_shows_in_every_modality(drives: list[Drive]) -> None:
    model = fit(drives, replace(RECIPE, steps=150))
    for shown in (None, ("imu",), ("gps",), ("road",)):
        for drive in drives:
            probabilities = predict(model, drive, MODALITIES, shown)
            right = probabilities[drive.ticks >= 30].argmax(axis=1) == drive.label
            assert right.mean() > 0.8, (shown, drive.name)


def test_hidden_decisions_teach_nothing(drives: list[Drive]) -> None:
    hidden = [replace(d, hidden=np.full(len(d.ticks), d.label == 0)) for d in drives]
    model = fit(hidden, replace(RECIPE, steps=60))
    for drive in drives:
        assert not (predict(model, drive, MODALITIES)[drive.ticks >= 30].argmax(axis=1) == 0).any()


@pytest.mark.parametrize("fusion", [k for k in FUSION_KINDS if k != "late_product"])
def test_a_model_survives_its_file(drives: list[Drive], tmp_path: Path, fusion: FusionKind) -> None:
    model = fit(drives, replace(RECIPE, steps=2), fusion=fusion)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(model_bytes(model, {"licence": "non-commercial"}))
    loaded, notes = load_model(path)
    assert notes == {"licence": "non-commercial"}
    assert loaded.config == model.config
    assert parameter_count(loaded) <= 1_000_000
    expected, got = (predict(m, drives[0], MODALITIES) for m in (model, loaded))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(FusedgeError, match=r"weights\.safetensors"):
        load_model(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FusedgeError, match="cannot be read"):
        load_model(tmp_path / "none.safetensors")
