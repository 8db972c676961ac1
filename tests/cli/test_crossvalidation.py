"""Folds of `fusedge eval driving`: what they leave is found again, and forgotten on request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusedge.bundle.archive import Bundle
from fusedge.cli import driving_evaluation
from fusedge.cli.app import app
from fusedge.cli.crossvalidation import CrossValidation
from fusedge.models import driving
from fusedge.models.training import TrainingConfig
from tests.models.synthetic import recordings

RECIPE = TrainingConfig(steps=2, batch=2, crop_s=30, warm_up_s=10)
OWN = ("notes.txt", "weights.safetensors", "without-A/fold.fusedge.old", "runs/a.safetensors")


def fold(folder: Path, said: list[str]) -> Bundle:
    """The bundle of the fold that leaves driver A out."""
    rest = [recording for recording in recordings() if recording.group != "A"]
    return CrossValidation({}, folder, RECIPE, said.append).bundle(rest, "without-A")


@pytest.fixture(autouse=True, scope="module")
def gps_latency() -> Iterator[None]:
    """It cannot be told of made-up drives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driving, "gps_latency", lambda recordings: 0.5)
        yield


@pytest.fixture(scope="module")
def left(gps_latency: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a fold and the leaky training have been."""
    folder = tmp_path_factory.mktemp("eval")
    said: list[str] = []
    fold(folder, said)
    assert said == ["train without-A: 3 trips", "export fold.fusedge"]
    CrossValidation({}, folder, RECIPE, said.append).leaky(recordings(), 0.1, 0)
    return folder


def test_a_fold_is_exported_once(left: Path) -> None:
    before, said = (left / "without-A" / "fold.fusedge").read_bytes(), list[str]()
    assert fold(left, said).path.read_bytes() == before
    assert said == ["train without-A: 3 trips"]


class StoppedError(Exception):
    """The command goes no further."""


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_fresh_forgets_all_that_was_left_and_nothing_else(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert {"without-A/fold.fusedge", "leaky/weights.safetensors"} < files(left)
    shutil.copytree(left, out)
    shutil.copytree(left / "without-A", out / "only-imu" / "without-A")
    for name in (*OWN, "eval.json"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")

    def stop(*given: object) -> None:
        raise StoppedError

    monkeypatch.setattr(driving_evaluation, "read_recordings", lambda data: recordings())
    monkeypatch.setattr(driving_evaluation, "find_trips", stop)
    before = files(out)
    for fresh in ([], ["--fresh"]):
        result = CliRunner().invoke(app, ["eval", "driving", "-o", str(out), *fresh])
        assert isinstance(result.exception, StoppedError)
        assert files(out) == (set(OWN) if fresh else before)
