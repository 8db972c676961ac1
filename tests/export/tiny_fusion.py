"""A small fusion model with every trait that export must handle: convolutional and recurrent state,
LayerNorm, attention over a presence mask, and learned embeddings for what is missing."""

from __future__ import annotations

import torch
from torch import nn

from fusedge.bundle.manifest import Channel, Modality, Output
from fusedge.export.task import Task, provenance

SIZE = 8
HIDDEN = 12


def modality(name: str, channels: dict[str, float], rate_hz: float) -> Modality:
    """A modality with symmetric limits and windows of one second."""
    return Modality(
        name=name,
        kind="series",
        description=name,
        channels=tuple(
            Channel(name=channel, unit="1", minimum=-limit, maximum=limit)
            for channel, limit in channels.items()
        ),
        rate_hz=rate_hz,
        window_s=1.0,
        hop_s=1.0,
        resample="hold",
        max_hold_s=1.0,
        latency_s=0.0,
        lateness_s=0.1,
        max_age_s=3.0,
        return_windows=1,
        min_valid=0.5,
        prepare=(),
    )


MODALITIES = (
    modality("imu", {"ax": 20.0, "ay": 20.0, "yaw": 4.0}, 10.0),
    modality("gps", {"speed": 70.0, "course": 180.0}, 1.0),
    modality("road", {"offset": 5.0, "heading": 1.0}, 5.0),
)


class TinyEncoder(nn.Module):
    """A causal convolution (state: its tail) and a GRU (state: its hidden vector)."""

    scale: torch.Tensor

    def __init__(self, spec: Modality) -> None:
        super().__init__()
        self.grid = spec.window_samples
        self.channels = 2 * len(spec.channels)
        scale = torch.tensor([channel.maximum / 3 for channel in spec.channels])
        self.register_buffer("scale", scale)
        self.conv = nn.Conv1d(self.channels, HIDDEN, 3)
        self.gru = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.norm = nn.LayerNorm(HIDDEN)
        self.out = nn.Linear(HIDDEN, SIZE)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"tail": (self.channels, 2), "hidden": (HIDDEN,)}

    def forward(
        self, window: torch.Tensor, valid: torch.Tensor, tail: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        x = torch.cat([window / self.scale * valid, valid], dim=-1).transpose(1, 2)
        x = torch.cat([tail, x], dim=-1)
        y = torch.relu(self.conv(x)).transpose(1, 2)
        y, last = self.gru(y, hidden.unsqueeze(0))
        embedding = self.out(self.norm(y[:, self.grid - 1 :: self.grid]))
        return embedding, x[:, :, -2:], last.squeeze(0)


class TinyHead(nn.Module):
    """Attention over the modalities, a learned embedding in place of a missing one."""

    def __init__(self, count: int, labels: int) -> None:
        super().__init__()
        self.missing = nn.Parameter(torch.randn(count, SIZE))
        self.query = nn.Parameter(torch.randn(1, 1, SIZE))
        self.attention = nn.MultiheadAttention(SIZE, 2, batch_first=True)
        self.out = nn.Linear(SIZE + count, labels)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *embeddings, presence, age = tensors
        x = torch.where(presence[..., None] > 0.5, torch.stack(embeddings, dim=1), self.missing)
        query = self.query.expand(x.shape[0], -1, -1)
        y, _ = self.attention(query, x, x, need_weights=False)
        logits: torch.Tensor = self.out(torch.cat([y[:, 0], torch.exp(-age) * presence], dim=-1))
        return logits


class TinyModel(nn.Module):
    """The interface that export asks for: modalities, encoder(name), head."""

    def __init__(self, specs: tuple[Modality, ...] = MODALITIES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.modalities = tuple(spec.name for spec in specs)
        self.encoders = nn.ModuleDict({spec.name: TinyEncoder(spec) for spec in specs})
        self.head: nn.Module = TinyHead(len(specs), 3)
        self.eval()

    def encoder(self, name: str) -> nn.Module:
        return self.encoders[name]


def make_task(specs: tuple[Modality, ...] = MODALITIES) -> Task:
    return Task(
        name="tiny",
        description="A small model for tests.",
        decision_rate_hz=1.0,
        modalities=specs,
        fusion_kind="cross_attention",
        outputs=(
            Output(
                name="style",
                logits="logits",
                labels=("normal", "drowsy", "aggressive"),
                temperature=1.0,
                smoothing_s=0.0,
                hysteresis=0.0,
            ),
        ),
        provenance=provenance("Apache-2.0", "none", "Fusedge"),
        documents={"LICENSE-WEIGHTS.md": b"Apache-2.0\n"},
    )
