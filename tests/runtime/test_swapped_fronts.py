"""Which bundles a session with front ends changes to: of exports of a small model of a voice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import FrontEnd, Manifest, TensorSpec
from fusedge.export.part import ModulePart
from fusedge.export.pipeline import ExportOptions, export_bundle
from fusedge.export.subject import fusion_subject
from fusedge.runtime.backend import AUTOMATIC, PartLoader
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.front.fronts import FrontEnds
from fusedge.runtime.session import Session
from tests.export.front_fusion import VOICE, FrontModel, front_task
from tests.runtime.test_fronted_session import Device, always

STEP, CONTEXT = 512, 64


class Loud(nn.Module):
    """The probability of speech by how loud a step is; the state counts the steps."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([[gain]]))

    def forward(self, samples: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loud = samples[:, CONTEXT:].abs().mean(dim=1, keepdim=True)
        return torch.sigmoid(loud @ self.gain), state * 0.5


def exported(path: Path, precision: Any, gain: float = 2.0) -> Bundle:
    def spec(name: str, role: Any, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=name, role=role, dtype="float32", shape=shape)

    front = ModulePart(
        name="speech_detector",
        kind="front",
        modality="voice",
        rate_hz=VOICE.rate_hz / STEP,
        module=Loud(gain).eval(),
        inputs=(
            spec("samples", "input", "batch", CONTEXT + STEP),
            spec("state", "input", 2, "batch", 3),
        ),
        outputs=(
            spec("probability", "output", "batch", 1),
            spec("new_state", "output", 2, "batch", 3),
        ),
        weights="nobody's",
    )
    subject = fusion_subject(FrontModel([VOICE]), front_task([VOICE], [front]))
    return export_bundle(subject, path, ExportOptions(precision=precision)).bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def full(folder: Path) -> Bundle:
    return exported(folder / "full.fusedge", "fp32")


@pytest.fixture(scope="module")
def half(folder: Path) -> Bundle:
    return exported(folder / "half.fusedge", "fp16")


@pytest.fixture(scope="module")
def louder(folder: Path) -> Bundle:
    return exported(folder / "louder.fusedge", "fp32", gain=3.0)


def change(running: Bundle, new: Bundle) -> tuple[str, str]:
    """What becomes of a change from the one to the other."""
    voice = Device(always, always)
    voice.modalities, voice.channels = ("voice",), {"voice": ("sound",)}  # type: ignore[assignment]
    session = Session(running, ["device:"], VirtualClock(), open_uri=lambda *_: voice)
    swap = session.swap(new)
    swap.pick_up(0)
    return swap.state, swap.reason


def test_the_same_weights_at_another_precision_are_taken(full: Bundle, half: Bundle) -> None:
    graphs = [[g.precision for g in b.manifest.parts[0].graphs] for b in (full, half)]
    assert graphs == [["fp32"], ["fp32", "fp16"]]
    for running, new in ((full, half), (half, full)):
        assert change(running, new) == ("shadow", "")


def test_other_weights_of_a_front_end_are_refused(full: Bundle, louder: Bundle) -> None:
    state, reason = change(full, louder)
    assert state == "refused" and "other front ends than the running bundle" in reason


def with_part(manifest: Manifest, **changes: Any) -> Manifest:
    front, *others = manifest.parts
    return manifest.model_copy(update={"parts": (front.model_copy(update=changes), *others)})


def with_voice(manifest: Manifest, **changes: Any) -> Manifest:
    return manifest.model_copy(update={"modalities": (VOICE.model_copy(update=changes),)})


def renamed(manifest: Manifest) -> Manifest:
    manifest = with_part(manifest, name="ear", weights="the same")
    return with_voice(manifest, front=FrontEnd(kind="speech", part="ear"))


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        (renamed, ""),
        (lambda m: with_voice(m, max_age_s=2.0, min_valid=0.7, lateness_s=0.3), ""),
        (lambda m: with_voice(m, front=None), "other front ends"),
        (lambda m: with_part(m, rate_hz=50.0), "other front ends"),
        (lambda m: with_part(m, outputs=m.parts[0].outputs[::-1]), "other front ends"),
        (lambda m: with_voice(m, lateness_s=0.1), "lateness_s is 0.1, and what finds speech looks"),
    ],
    ids=["name", "patience", "no front", "rate", "outputs", "too impatient"],
)
def test_a_front_end_goes_with_what_it_was_made_for(
    full: Bundle, changed: Callable[[Manifest], Manifest], refusal: str
) -> None:
    fronts = FrontEnds(full.manifest, PartLoader(full, AUTOMATIC))
    new = changed(full.manifest)
    if not refusal:
        fronts.check_same(new)
        return
    with pytest.raises(FusedgeError, match=refusal):
        fronts.check_same(new)
