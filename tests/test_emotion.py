"""The task `emotion` as it is shipped: weights, card and licence, exported, run on a face and on none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fusedge.bundle.archive import Bundle
from fusedge.cli.app import app
from fusedge.cli.demo_film import GONE_S, SPEECH_AT_S
from fusedge.cli.tasks import WEIGHTS
from fusedge.models.emotion.labels import LABELS
from fusedge.models.emotion.model import load_emotion
from fusedge.models.fusion_model import parameter_count
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.decision import Decision
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.memory import MemorySink
from tests.conftest import EmotionExport
from tests.export.test_packaged_parts import installed

Image = pytest.importorskip("PIL.Image")


def test_the_demo_sees_a_face_come_and_go_and_hears_a_voice(
    emotion: EmotionExport, tmp_path: Path
) -> None:
    installed("scikit-image", "skimage/data/astronaut.png")
    words = ["demo", "emotion", "--out", str(tmp_path), "--speed", "max", "--json"]
    result = CliRunner().invoke(app, words, env={"FUSEDGE_CACHE": str(emotion.cache)})
    assert result.exit_code == 0, result.output
    assert "exporting emotion" in emotion.said and "exporting" not in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    made = [line for line in lines if line["type"] == "decision"]
    assert len(made) > 200
    seen = [d["t_s"] for d in made if d["modalities"]["face"]["present"]]
    heard = [d["t_s"] for d in made if d["modalities"]["voice"]["present"]]
    gone = [time_s for time_s in seen if GONE_S[0] + 1 < time_s < GONE_S[1]]
    assert len(seen) > 180 and not gone
    assert len(heard) > 40 and min(heard) > SPEECH_AT_S and max(heard) < SPEECH_AT_S + 9
    labels = [d["outputs"]["emotion"]["label"] for d in made if d["modalities"]["face"]["present"]]
    assert labels.count("happy") > 0.9 * len(labels)
    (face,) = made[50]["modalities"]["face"]["front"]["faces"]
    assert face["drives"] and face["id"] == 1
    assert (tmp_path / "timeline.png").stat().st_size > 10_000


def test_the_task_s_name_is_the_bundle_that_its_first_use_exported(
    emotion: EmotionExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["inspect", "emotion", "--json"], ["verify", "emotion", "--json"]):
        result = CliRunner().invoke(app, words, env={"FUSEDGE_CACHE": str(emotion.cache)})
        assert result.exit_code == 0 and result.stderr == "", result.output
        assert json.loads(result.stdout)["sha256"] == emotion.bundle.sha256


def decisions(bundle: Bundle, picture: Path) -> list[Decision]:
    memory = MemorySink()
    report = run(Session(bundle, [f"file:{picture}"], VirtualClock()), [memory])
    assert report.summary["ledger_balanced"]
    return memory.decisions


def test_the_bundle_says_whose_weights_it_has_and_under_which_licence(
    emotion_bundle: Bundle,
) -> None:
    manifest = emotion_bundle.manifest
    assert (
        emotion_bundle.read("LICENSE-WEIGHTS.md")
        == (WEIGHTS / "LICENSE-WEIGHTS-EMOTION.md").read_bytes()
    )
    assert emotion_bundle.read("MODEL-CARD.md") == (WEIGHTS / "emotion.md").read_bytes()
    assert "CC BY-NC-SA" in manifest.provenance.weights_licence
    measured = json.loads((WEIGHTS / "emotion.figures.json").read_text())
    assert manifest.accuracy == measured["figures"]
    card = emotion_bundle.read("MODEL-CARD.md").decode()
    assert f"`{manifest.fusion.kind}`" in card  # it tells of this head, and of no earlier one
    fronts = {part.name: part.weights for part in manifest.parts if part.kind == "front"}
    assert "Apache-2.0" in fronts["face_detector"] and "MIT" in fronts["voice_activity"]


def test_the_label_order_is_in_the_bundle(emotion_bundle: Bundle) -> None:
    (output,) = emotion_bundle.manifest.outputs
    assert output.labels == LABELS == (
        "neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised", "contempt",
    )  # fmt: skip


def test_each_network_is_small() -> None:
    model, _ = load_emotion(WEIGHTS / "emotion.safetensors")
    assert parameter_count(model.encoder("face")) <= 1_000_000
    assert parameter_count(model.encoder("voice")) <= 2_000_000


def test_a_smile_is_seen(emotion_bundle: Bundle) -> None:
    made = decisions(emotion_bundle, Path(installed("scikit-image", "skimage/data/astronaut.png")))
    shown = [d for d in made if d.modalities["face"].present]
    assert len(shown) > 20
    assert {d.outputs["emotion"].momentary_label for d in shown} == {"happy"}
    assert not any(d.modalities["voice"].present for d in made)


def test_nobody_in_the_picture_has_no_emotion(emotion_bundle: Bundle, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    made = decisions(emotion_bundle, tmp_path / "noise.png")
    assert made and not any(d.modalities["face"].present for d in made)
    assert {d.problem for d in made} == {"nothing_present"}
    assert {d.outputs["emotion"].label for d in made} == {None}
