"""A fusion model that is not ours: camera, microphone and motion sensors, in torch alone.

Write its weights, then export it:

    python -m examples.fusion_model .
    fusedge export examples.fusion_model:make --checkpoint weights.safetensors -o room.fusedge

Three encoders and a head become four parts, each with its own rate. The modules are written as for
training, over whole sequences from an empty memory; what the convolution, the GRUs and the LSTM remember
becomes inputs and outputs of the parts, and single steps are proved equal to `RoomModel.forward`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from fusedge.bundle.manifest import Channel, Modality, Output
from fusedge.export.task import Task, provenance

SIZE = 32  # of an embedding
SOUND_HZ = 16_000
FRAME = 160  # samples of sound for each step of the GRU: 10 ms


class CameraEncoder(nn.Module):
    """One picture to an embedding; every window starts anew, so it answers `[B, D]`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * 16, SIZE),
        )

    def forward(self, window: Tensor) -> Tensor:
        """`window` uint8 `[B, 1, H, W, 3]`."""
        picture = window[:, 0].permute(0, 3, 1, 2).float() / 255
        embedding: Tensor = self.features(picture)
        return embedding


class MicrophoneEncoder(nn.Module):
    """Frames by a causal convolution, then a GRU over them; it goes on from window to window."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames  # in a window
        self.filters = nn.Conv1d(1, 24, 400, stride=FRAME)
        self.smooth = nn.Sequential(nn.ZeroPad1d((2, 0)), nn.Conv1d(24, 24, 3), nn.ReLU())
        self.gru = nn.GRU(24, 32, batch_first=True)
        self.out = nn.Linear(32, SIZE)

    def forward(self, window: Tensor) -> Tensor:
        """`window` float32 `[B, N*n, 1]` for N windows in a row; an embedding at the end of each."""
        sound = functional.pad(window.transpose(1, 2), (400 - FRAME, 0))
        frames = self.smooth(self.filters(sound).abs().add(1e-3).log())
        y, _ = self.gru(frames.transpose(1, 2))
        embedding: Tensor = self.out(y[:, self.frames - 1 :: self.frames])
        return embedding


class MotionEncoder(nn.Module):
    """An LSTM over samples and whether they were measured."""

    def __init__(self, channels: int, samples: int) -> None:
        super().__init__()
        self.samples = samples  # in a window
        self.lstm = nn.LSTM(2 * channels, 32, batch_first=True)
        self.out = nn.Linear(32, SIZE)

    def forward(self, window: Tensor, valid: Tensor) -> Tensor:
        """Both float32 `[B, N*n, C]`; values that are not valid are 0."""
        y, _ = self.lstm(torch.cat([window, valid], dim=-1))
        embedding: Tensor = self.out(y[:, self.samples - 1 :: self.samples])
        return embedding


class Head(nn.Module):
    """Joins what is there and remembers earlier decisions.

    Nothing of an absent modality reaches the answer: a learned embedding stands in for it.
    """

    def __init__(self, modalities: int, labels: int) -> None:
        super().__init__()
        self.missing = nn.Parameter(torch.randn(modalities, SIZE))
        self.gru = nn.GRU(modalities * (SIZE + 1), 32, batch_first=True)
        self.first = nn.Parameter(torch.randn(1, 1, 32))
        self.out = nn.Linear(32, labels)

    def forward(
        self, camera: Tensor, microphone: Tensor, motion: Tensor, presence: Tensor, age: Tensor
    ) -> Tensor:
        """Embeddings `[B, N, D]`, `presence` and `age` `[B, N, M]` for N decisions in a row."""
        there = presence[..., None] > 0.5
        tokens = torch.where(there, torch.stack([camera, microphone, motion], dim=2), self.missing)
        fresh = presence * torch.exp(-age)
        # A batch is `x.shape[0]` here: `len(x)` would become a constant of the graph.
        first = self.first.expand(-1, presence.shape[0], -1).contiguous()
        y, _ = self.gru(torch.cat([tokens.flatten(2), fresh], dim=-1), first)
        logits: Tensor = self.out(y)
        return logits


def _channels(names: str, unit: str, limit: float) -> tuple[Channel, ...]:
    low = 0 if unit == "level" else -limit
    return tuple(Channel(name=n, unit=unit, minimum=low, maximum=limit) for n in names.split())


def make_task(pixels: int) -> Task:
    """The facts that the manifest needs: what the model is fed with, how often, and what it says."""
    camera = Modality(
        name="camera",
        kind="image",
        description="a camera that looks into the room",
        channels=_channels("red green blue", "level", 255),
        height=pixels,
        width=pixels,
        rate_hz=10,
        window_s=0.1,
        hop_s=0.1,
        resample="newest",
        max_hold_s=0.1,
        latency_s=0.05,
        lateness_s=0.05,
        max_age_s=1,
        return_windows=2,
        min_valid=1,
        prepare=("resize to the size of the input",),
    )
    microphone = Modality(
        name="microphone",
        kind="audio",
        description="a microphone in the room",
        channels=_channels("sound", "full scale", 1),
        rate_hz=SOUND_HZ,
        window_s=0.2,
        hop_s=0.2,
        resample="contiguous",
        max_hold_s=0.2,
        latency_s=0.0,
        lateness_s=0.1,
        max_age_s=1,
        return_windows=2,
        min_valid=0.9,
        prepare=(),
    )
    motion = Modality(
        name="motion",
        kind="series",
        description="an inertial sensor on the door",
        channels=(*_channels("ax ay az", "m/s2", 40), *_channels("gx gy gz", "rad/s", 10)),
        rate_hz=50,
        window_s=0.2,
        hop_s=0.2,
        resample="hold",
        max_hold_s=0.1,
        latency_s=0.0,
        lateness_s=0.05,
        max_age_s=1,
        return_windows=2,
        min_valid=0.5,
        prepare=(),
    )
    return Task(
        name="room",
        description="What happens in a room, by camera, microphone and a sensor on the door.",
        decision_rate_hz=5,
        modalities=(camera, microphone, motion),
        fusion_kind="recurrent",
        outputs=(
            Output(
                name="activity",
                logits="logits",
                labels=("empty", "quiet", "talk", "alarm"),
                temperature=1,
                smoothing_s=0.5,
                hysteresis=0.1,
            ),
        ),
        provenance=provenance(licence="Apache-2.0", training_data="none: random weights"),
    )


class RoomModel(nn.Module):
    """What export asks for: `modalities`, `encoder(name)` and `head`."""

    modalities = ("camera", "microphone", "motion")

    def __init__(self, task: Task) -> None:
        super().__init__()
        _, microphone, motion = task.modalities
        self.encoders = nn.ModuleDict(
            {
                "camera": CameraEncoder(),
                "microphone": MicrophoneEncoder(microphone.window_samples // FRAME),
                "motion": MotionEncoder(len(motion.channels), motion.window_samples),
            }
        )
        self.head = Head(len(self.modalities), len(task.outputs[0].labels))

    def encoder(self, name: str) -> nn.Module:
        """The encoder of a modality."""
        return self.encoders[name]

    def forward(
        self,
        windows: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        presence: Tensor,
        age: Tensor,
    ) -> Tensor:
        """The whole model over N steps, as in training; export proves that its parts do the same.

        `windows` and `valid` by modality, `[B, N, n, ...]`; `presence` and `age` `[B, N, M]`.
        """
        pictures = windows["camera"]
        camera = self.encoders["camera"](pictures.flatten(0, 1)).reshape(*pictures.shape[:2], -1)
        microphone = self.encoders["microphone"](windows["microphone"].flatten(1, 2))
        motion = self.encoders["motion"](
            windows["motion"].flatten(1, 2), valid["motion"].flatten(1, 2)
        )
        logits: Tensor = self.head(camera, microphone, motion, presence, age)
        return logits


def make(pixels: int = 96) -> tuple[RoomModel, Task]:
    """What `fusedge export` calls; the weights come from the checkpoint."""
    task = make_task(pixels)
    return RoomModel(task), task


def main(folder: Path) -> None:
    """Write `weights.safetensors`. Training would go here; these weights are random."""
    torch.manual_seed(0)
    model, _ = make()
    save_file(model.state_dict(), folder / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
