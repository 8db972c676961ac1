"""Training of the face encoder on the votes of FER+."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fusedge.bundle.errors import FusedgeError
from fusedge.models.checkpoint import Checkpoint
from fusedge.models.emotion.face_augmentation import augment
from fusedge.models.emotion.face_encoder import FaceConfig, FaceEncoder, face_windows
from fusedge.models.emotion.ferplus import Faces
from fusedge.models.one_cycle import one_cycle
from fusedge.models.one_thread import one_thread
from fusedge.models.training import Progress
from fusedge.models.weight_average import WeightAverage


@dataclass(frozen=True)
class FaceRecipe:
    """Stochastic gradient descent over `epochs`, and an average of the weights over its last steps.

    `augmentation` is the strength of `augment`. Over the first `small_share` of the steps images are made
    `small_px` wide, which costs less (Tan & Le, arXiv 2104.00298). `mixup` is the parameter of its Beta
    distribution (Zhang et al., arXiv 1710.09412), 0 for none. In bfloat16 a step takes 0.55 of the time of
    float32 on a CPU that has it (AVX512_BF16).
    """

    seed: int = 0
    epochs: int = 40
    batch: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    average_decay: float = 0.998
    augmentation: float = 1.0
    small_share: float = 0.6
    small_px: int = 32
    mixup: float = 0.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    checkpoint_every: int = 190

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise FusedgeError(f"the seed cannot be {self.seed}", hint="a seed is 0 or above")


def train_face(
    config: FaceConfig,
    faces: Faces,
    recipe: FaceRecipe,
    checkpoint: Path | None = None,
    progress: Progress = lambda step, steps, loss: None,
    start: FaceEncoder | None = None,
) -> FaceEncoder:
    """A trained encoder in evaluation mode; the same arguments give the same weights on a machine.

    Training starts from random weights, or from a copy of those of `start`. With a folder `checkpoint` the
    state is written there now and then, and training goes on from what lies there, bit for bit. Raises
    FusedgeError where that belongs to another recipe, start or other faces, and where there are fewer faces
    than a batch has.
    """
    if len(faces) < recipe.batch:
        raise FusedgeError(f"{len(faces)} faces are fewer than a batch of {recipe.batch}")
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(recipe.seed)
        encoder = FaceEncoder(config)
        if start is not None:
            encoder.load_state_dict(start.state_dict())
        return _Run(encoder, faces, recipe, checkpoint, progress).finish()


class _Run:
    def __init__(
        self,
        encoder: FaceEncoder,
        faces: Faces,
        recipe: FaceRecipe,
        checkpoint: Path | None,
        progress: Progress,
    ) -> None:
        # A step takes a tenth less so; mypy knows this argument only beside a tensor.
        self.encoder: FaceEncoder = encoder.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe, self.progress = recipe, progress
        self.images, votes = torch.from_numpy(faces.images), torch.from_numpy(faces.votes).float()
        self.shares = votes / votes.sum(dim=1, keepdim=True)
        # Running moments of batch normalisation are averaged as weights are.
        self.state = encoder.state_dict()
        self.average = WeightAverage(self.state, recipe.average_decay)
        self.parameters = dict(encoder.named_parameters())
        self.optimizer = torch.optim.SGD(
            self.parameters.values(),
            recipe.learning_rate,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
        self.in_epoch = len(faces) // recipe.batch
        self.steps, self.step = recipe.epochs * self.in_epoch, 0
        self.store = None if checkpoint is None else Checkpoint(checkpoint, self._fingerprint())

    def _fingerprint(self) -> str:
        """Changes with anything that the weights depend on."""
        facts = {"recipe": asdict(self.recipe), "model": asdict(self.encoder.config)}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for tensor in (self.images, self.shares, *self.average.values.values()):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def finish(self) -> FaceEncoder:
        if self.store is not None:
            self._restore(self.store)
        while self.step < self.steps:
            loss = self._advance()
            self.step += 1
            if self.store is not None and (
                self.step % self.recipe.checkpoint_every == 0 or self.step == self.steps
            ):
                self._save(self.store)
            self.progress(self.step, self.steps, loss)
        self.encoder.load_state_dict(self.average.values)
        return self.encoder.eval()

    def _advance(self) -> float:
        recipe = self.recipe
        # All randomness of a step comes from its number, so that resuming needs no generator state.
        epoch, place = divmod(self.step, self.in_epoch)
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(self.images))
        random = np.random.default_rng([recipe.seed, epoch, place])
        torch.manual_seed(int(random.integers(2**62)))
        rows = torch.from_numpy(order[place * recipe.batch : (place + 1) * recipe.batch])
        windows, shares = (
            face_windows(augment(self.images[rows], recipe.augmentation)),
            self.shares[rows],
        )
        if recipe.mixup:
            share = float(random.beta(recipe.mixup, recipe.mixup))
            windows = windows.float().lerp(windows.float().flip(0), share)
            shares = shares.lerp(shares.flip(0), share)
        if self.step < recipe.small_share * self.steps:
            size = (1, recipe.small_px, recipe.small_px)
            windows = functional.adaptive_avg_pool3d(windows.squeeze(-1).float(), size).unsqueeze(
                -1
            )
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = self.encoder.training_logits(windows)
        loss = functional.cross_entropy(logits.float(), shares)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * one_cycle((self.step + 0.5) / self.steps, 0.05)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.average.update(self.step)
        return loss.item()

    def _save(self, store: Checkpoint) -> None:
        tensors = {f"model.{name}": value for name, value in self.state.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.values.items()}
        for name, value in self.parameters.items():
            tensors[f"momentum.{name}"] = self.optimizer.state[value]["momentum_buffer"]
        store.write(self.step, tensors)

    def _restore(self, store: Checkpoint) -> None:
        found = store.read()
        if found is None:
            return
        self.step, tensors = found
        with torch.no_grad():
            for name, value in self.state.items():
                value.copy_(tensors[f"model.{name}"])
                self.average.values[name].copy_(tensors[f"average.{name}"])
            for name, parameter in self.parameters.items():
                # In the parameter's own memory format, or the sums would differ by a rounding.
                moments = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
                self.optimizer.state[parameter]["momentum_buffer"] = moments


def face_logits(encoder: FaceEncoder, images: NDArray[np.uint8]) -> Tensor:
    """Logits float32 `[N, 8]` of images uint8 `[N, 48, 48]`."""
    with torch.no_grad(), one_thread():
        batches = torch.split(torch.from_numpy(images), 256)
        return torch.cat([encoder.logits(face_windows(batch)) for batch in batches])
