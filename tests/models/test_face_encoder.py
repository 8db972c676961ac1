"""The face encoder sees through the light, exports as it is, and learns; its file is whole or refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import write_whole
from fusedge.models.emotion.face_augmentation import CONDITIONS, augment, blur, changed, jpeg
from fusedge.models.emotion.face_encoder import (
    FaceConfig,
    FaceEncoder,
    Standardise,
    face_bytes,
    face_windows,
    load_face,
)
from fusedge.models.emotion.face_training import FaceRecipe, face_logits, train_face
from fusedge.models.emotion.ferplus import Faces
from fusedge.models.emotion.labels import FACE_LABELS
from fusedge.models.fusion_model import parameter_count
from fusedge.models.temperature import fitted_temperature

SMALL = FaceConfig(widths=(4, 6, 8, 10), blocks=(1, 1, 1), dropout=0.1)
RECIPE = FaceRecipe(epochs=2, batch=16, checkpoint_every=3, mixup=0.2, precision="float32")


class StopTrainingError(Exception):
    pass


def smooth_images(count: int, seed: int = 0) -> Tensor:
    """Images uint8 `[N, 48, 48]` with the slow changes of a face, from 60 to 180."""
    draws = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(draws, (48, 48), mode="bicubic").clamp(0, 1)
    return (60 + 120 * large[:, 0]).to(torch.uint8)


def made_faces(count: int = 64) -> Faces:
    """Faces of four labels that show: stripes across, down, both or none."""
    labels = np.arange(count) % 4
    images = smooth_images(count).numpy()
    stripes = np.arange(48) // 4 % 2 == 0
    for image, label in zip(images, labels, strict=True):
        if label in (0, 2):
            image[stripes] = 250
        if label in (1, 2):
            image[:, stripes] = 250
    votes = np.full((count, 8), 1, np.uint8)
    votes[np.arange(count), labels] = 9
    return Faces(images, votes, labels)


def settled(config: FaceConfig = SMALL) -> FaceEncoder:
    """An encoder whose batch normalisation has seen images, so that it is not the identity."""
    torch.manual_seed(0)
    encoder = FaceEncoder(config)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for seed in range(20):
        encoder(face_windows(smooth_images(16, seed)))
    return encoder.eval()


def fit(
    checkpoint: Path | None = None,
    recipe: FaceRecipe = RECIPE,
    stop_at: int = 0,
    start: FaceEncoder | None = None,
) -> bytes:
    def progress(step: int, steps: int, loss: float) -> None:
        if step == stop_at:
            raise StopTrainingError

    return face_bytes(train_face(SMALL, made_faces(), recipe, checkpoint, progress, start), {})


# --- the network


def test_a_face_becomes_an_embedding_and_one_logit_for_each_label() -> None:
    encoder = FaceEncoder(FaceConfig()).eval()
    window = face_windows(smooth_images(3))
    assert encoder(window).shape == (3, encoder.size)
    assert torch.equal(encoder.classifier(encoder(window)), encoder.logits(window))
    assert encoder.logits(window).shape == (3, len(FACE_LABELS))
    assert parameter_count(encoder) <= 1_000_000


@pytest.mark.parametrize(("gain", "offset"), [(0.5, 0), (1.4, 0), (1, 60), (0.4, 100)])
def test_gain_and_offset_of_the_light_hardly_count(gain: float, offset: float) -> None:
    encoder, images = settled(), smooth_images(8)
    plain = encoder(face_windows(images))
    lit = encoder(face_windows((images * gain + offset).clamp(0, 255).to(torch.uint8)))
    other = encoder(face_windows(smooth_images(8, seed=1)))
    # What is left comes of rounding, and of the least deviation where contrast is low.
    assert (lit - plain).norm() < 0.2 * (other - plain).norm()


def test_a_face_and_its_mirror_image_say_the_same() -> None:
    encoder, images = settled(), smooth_images(4)
    plain, mirrored = encoder(face_windows(images)), encoder(face_windows(images.flip(-1)))
    torch.testing.assert_close(plain, mirrored, rtol=0, atol=1e-5 * plain.abs().max().item())
    one_sided = encoder.training_logits(face_windows(images))
    other = encoder.training_logits(face_windows(images.flip(-1)))
    assert not torch.allclose(one_sided, other, rtol=0.01)
    mean = (one_sided + other) / 2
    torch.testing.assert_close(encoder.logits(face_windows(images)), mean, rtol=0, atol=1e-4)


def test_an_even_image_is_not_blown_up_to_contrast() -> None:
    noisy = 128 + torch.randint(-1, 2, (1, 1, 48, 48, 1))
    for image in (torch.zeros(1, 1, 48, 48, 1), torch.full((1, 1, 48, 48, 1), 255), noisy):
        assert Standardise()(image.to(torch.uint8)).abs().max() < 0.5
    full = Standardise()(face_windows(smooth_images(2)))
    assert full.std(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.05)


def test_the_exported_graph_says_what_the_module_says(tmp_path: Path) -> None:
    encoder = settled()
    path = tmp_path / "face.onnx"
    torch.onnx.export(
        encoder,
        (face_windows(smooth_images(2)),),
        path,
        dynamo=True,
        input_names=["window"],
        output_names=["embedding"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    # Of batch normalisation nothing is left: it is folded into the convolutions.
    assert "BatchNormalization" not in path.read_bytes().decode("latin-1")
    for count in (1, 5):
        window = face_windows(smooth_images(count, seed=count))
        (got,) = session.run(None, {"window": window.numpy()})
        wanted = encoder(window).detach().numpy()
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


# --- its file


def test_a_file_gives_back_the_encoder_and_its_notes(tmp_path: Path) -> None:
    encoder, path = settled(), tmp_path / "face.safetensors"
    write_whole(path, face_bytes(encoder, {"temperature": "1.2"}))
    loaded, notes = load_face(path)
    assert notes == {"temperature": "1.2"}
    assert loaded.config == encoder.config
    window = face_windows(smooth_images(2))
    assert torch.equal(loaded(window), encoder(window))


def test_a_file_that_is_no_face_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = face_bytes(settled(), {})
    damaged = {
        "cut": (whole[:-10], "cannot be read"),
        "text": (b"weights", "cannot be read"),
        "other": (whole.replace(b"fusedge-face-1", b"fusedge-face-9"), "is no model of the kind"),
        "size": (whole.replace(b'\\"dropout\\"', b'\\"dropped\\"'), "disagree"),
        "widths": (whole.replace(b"[4, 6, 8, 10]", b"[4, 6, 8, 12]"), "disagree"),
    }
    for name, (content, reason) in damaged.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(FusedgeError, match=reason) as caught:
            load_face(path)
        assert "\n" not in caught.value.line()
    with pytest.raises(FusedgeError, match="cannot be read"):
        load_face(tmp_path / "missing.safetensors")


# --- augmentation


def test_every_change_keeps_size_and_range_and_moves_something() -> None:
    torch.manual_seed(0)
    faces = smooth_images(8).float()
    for name, change in CONDITIONS.items():
        disturbed = change(faces.clone())
        assert disturbed.shape == faces.shape, name
        assert disturbed.isfinite().all(), name
        assert not torch.equal(disturbed, faces), name
    images = smooth_images(32)
    before = images.clone()
    assert augment(images).dtype == torch.uint8
    assert torch.equal(images, before)


def test_each_image_of_a_batch_is_changed_in_its_own_way() -> None:
    torch.manual_seed(0)
    faces = smooth_images(1).float().expand(6, -1, -1)
    for name, change in CONDITIONS.items():
        if name != "resampled":
            assert len(torch.unique(change(faces), dim=0)) == 6, name


def test_images_to_measure_by_are_the_same_every_time_and_of_many_sizes() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 48, 48), np.uint8).repeat(640, axis=0)
    before, randomness = images.copy(), torch.get_rng_state()
    for name, change in CONDITIONS.items():
        first = changed(images, change)
        assert first.dtype == np.uint8 and first.shape == images.shape
        torch.rand(1)
        assert (changed(images, change) == first).all(), name
    small = changed(images, CONDITIONS["resampled"])
    assert len(np.unique(small, axis=0)) == 4
    assert (images == before).all()
    torch.set_rng_state(randomness)
    drawn = torch.rand(1)
    torch.set_rng_state(randomness)
    changed(images, CONDITIONS["noise"])
    assert torch.rand(1) == drawn


def test_blur_keeps_the_mean_and_takes_contrast() -> None:
    torch.manual_seed(0)
    faces = torch.randint(0, 256, (16, 48, 48)).float()
    blurred = blur(faces)
    assert (blurred.mean(dim=(1, 2)) - faces.mean(dim=(1, 2))).abs().max() < 3
    assert (blurred.std(dim=(1, 2)) < faces.std(dim=(1, 2))).all()


def test_jpeg_loses_what_pillow_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    image_module = pytest.importorskip("PIL.Image")
    quality = 30
    monkeypatch.setattr(
        "fusedge.models.emotion.face_augmentation._between",
        lambda n, low, high: torch.full((n,), 30.0),
    )
    faces = smooth_images(1) + torch.randint(0, 20, (1, 48, 48), dtype=torch.uint8)
    with io.BytesIO() as buffer:
        image_module.fromarray(faces[0].numpy()).save(buffer, "JPEG", quality=quality)
        wanted = torch.from_numpy(np.array(image_module.open(buffer)))
    got = jpeg(faces.float())[0]
    # Pillow computes in whole numbers, so that a coefficient now and then rounds the other way.
    assert (got - wanted).abs().mean() < 0.6
    assert (faces[0].float() - wanted).abs().mean() > 3


# --- training


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first = fit()
    assert fit() == first
    assert fit(recipe=replace(RECIPE, seed=1)) != first


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, precision: str
) -> None:
    recipe = replace(RECIPE, precision=precision)
    with pytest.raises(StopTrainingError):
        fit(tmp_path, recipe, stop_at=4)
    assert fit(tmp_path, recipe) == fit(None, recipe)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(FusedgeError, match="another recipe"):
        fit(tmp_path, replace(RECIPE, weight_decay=0.01))


def test_training_starts_from_the_weights_that_it_is_given(tmp_path: Path) -> None:
    start = settled()
    before = face_bytes(start, {})
    path = tmp_path / "face.safetensors"
    write_whole(path, fit(recipe=replace(RECIPE, learning_rate=1e-9), start=start))
    near = load_face(path)[0].state_dict()
    for name, value in start.named_parameters():
        torch.testing.assert_close(near[name], value, rtol=0, atol=1e-6)
    assert face_bytes(start, {}) == before
    fit(tmp_path, start=start)
    with pytest.raises(FusedgeError, match="another recipe"):
        fit(tmp_path)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(FusedgeError, match="64 faces are fewer than a batch of 128"):
        fit(recipe=FaceRecipe())
    with pytest.raises(FusedgeError, match="seed cannot be -1"):
        FaceRecipe(seed=-1)


def test_training_learns() -> None:
    recipe = FaceRecipe(
        epochs=20, batch=16, average_decay=0.9, augmentation=0.5, small_share=0.3, weight_decay=0
    )
    config = FaceConfig(widths=(8, 8, 16, 24), blocks=(0, 0, 0), dropout=0.0)
    faces = made_faces()
    encoder = train_face(config, faces, recipe)
    said = face_logits(encoder, faces.images).argmax(dim=1).numpy()
    assert (said == faces.labels).mean() > 0.9


def test_the_temperature_is_the_one_that_the_logits_were_sharpened_by() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(5_000, 8)
    labels = torch.distributions.Categorical(logits=logits).sample()
    for factor in (0.5, 1.0, 2.0):
        assert fitted_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.06)
