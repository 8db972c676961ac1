"""Six ways to join modalities, with one interface, safe when some are missing.

`fusion(embeddings, presence, age) -> logits`: one embedding `[B, D]` for each modality in order,
`presence` `[B, M]` of 0 and 1, `age` `[B, M]` in seconds, logits `[B, K]`; all float32. The logits do
not depend on the embedding or the age of a modality whose presence is 0, whatever they hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, cat, nn
from torch.nn import functional

from fusedge.bundle.errors import FusedgeError

FusionKind = Literal[
    "concatenation", "sum", "gated", "cross_attention", "late_average", "late_product"
]

_AGE_SCALE_S = 10.0
_MASKED = -1e4  # fits fp16


class Fusion(nn.Module):
    """Masking and ages, common to all kinds; a subclass joins the tokens `[B, M, D]`."""

    def __init__(self, modalities: int, size: int, dropout: float) -> None:
        super().__init__()
        self.modalities, self.size = modalities, size
        self.missing = nn.Parameter(torch.zeros(modalities, size))
        self.ageing = nn.Parameter(torch.zeros(modalities, size))
        self.dropout = nn.Dropout(dropout)

    def forward(self, embeddings: Sequence[Tensor], presence: Tensor, age: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        present = presence.unsqueeze(-1) > 0.5
        scaled = (age / _AGE_SCALE_S).clamp(0.0, 1.0).unsqueeze(-1)
        aged = torch.stack(tuple(embeddings), dim=1) + scaled * self.ageing
        # `where`, not a product: 0 times infinity is NaN.
        tokens = torch.where(present, aged, self.missing.expand_as(aged))
        return self.join(self.dropout(tokens), presence)

    def join(self, tokens: Tensor, presence: Tensor) -> Tensor:
        """Logits from tokens `[B, M, D]` in which absent modalities are already replaced."""
        raise NotImplementedError


class ConcatenationFusion(Fusion):
    """A perceptron over all tokens side by side."""

    def __init__(
        self, modalities: int, size: int, outputs: int, hidden: int, dropout: float
    ) -> None:
        super().__init__(modalities, size, dropout)
        self.first = nn.Linear(modalities * size, hidden)
        self.last = nn.Linear(hidden, outputs)

    def join(self, tokens: Tensor, presence: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        hidden = functional.gelu(self.first(tokens.flatten(1)))
        logits: Tensor = self.last(self.dropout(hidden))
        return logits


class SumFusion(Fusion):
    """A projection of each token; their sum through one layer."""

    def __init__(
        self, modalities: int, size: int, outputs: int, hidden: int, dropout: float
    ) -> None:
        super().__init__(modalities, size, dropout)
        self.projections = nn.ModuleList(nn.Linear(size, hidden) for _ in range(modalities))
        self.last = nn.Linear(hidden, outputs)

    def project(self, tokens: Tensor) -> Tensor:
        """Each token by its own projection, `[B, M, hidden]`."""
        projected = [layer(tokens[:, m]) for m, layer in enumerate(self.projections)]
        return functional.gelu(torch.stack(projected, dim=1))

    def join(self, tokens: Tensor, presence: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        logits: Tensor = self.last(self.dropout(self.project(tokens).sum(dim=1)))
        return logits


class GatedFusion(SumFusion):
    """Like the sum, with a gate for each modality that sees all tokens and the presence mask."""

    def __init__(
        self, modalities: int, size: int, outputs: int, hidden: int, dropout: float
    ) -> None:
        super().__init__(modalities, size, outputs, hidden, dropout)
        self.gate = nn.Linear(modalities * (size + 1), modalities * hidden)

    def join(self, tokens: Tensor, presence: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        gates = self.gate(cat([tokens.flatten(1), presence], dim=-1)).sigmoid()
        gated = self.project(tokens) * gates.unflatten(-1, (self.modalities, -1))
        logits: Tensor = self.last(self.dropout(gated.sum(dim=1)))
        return logits


class CrossAttentionFusion(Fusion):
    """Learned queries look at the tokens; absent modalities are masked, unless all are absent."""

    queries_count = 4

    def __init__(
        self, modalities: int, size: int, outputs: int, hidden: int, dropout: float
    ) -> None:
        super().__init__(modalities, size, dropout)
        self.projections = nn.ModuleList(nn.Linear(size, 2 * hidden) for _ in range(modalities))
        self.queries = nn.Parameter(torch.randn(self.queries_count, hidden))
        self.last = nn.Linear(self.queries_count * hidden, outputs)

    def join(self, tokens: Tensor, presence: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        projected = torch.stack([p(tokens[:, m]) for m, p in enumerate(self.projections)], dim=1)
        keys, values = projected.chunk(2, dim=-1)
        scores = self.queries @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])
        weights = (scores + (1 - presence).unsqueeze(1) * _MASKED).softmax(dim=-1)
        attended = functional.gelu(weights @ values).flatten(1)
        logits: Tensor = self.last(self.dropout(attended))
        return logits


class LateAverageFusion(Fusion):
    """A perceptron for each modality; the mean of the logits of those present."""

    def __init__(
        self, modalities: int, size: int, outputs: int, hidden: int, dropout: float
    ) -> None:
        super().__init__(modalities, size, dropout)
        self.classifiers = nn.ModuleList(
            nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, outputs))
            for _ in range(modalities)
        )

    def join(self, tokens: Tensor, presence: Tensor) -> Tensor:
        """Logits `[B, K]`; zeros where nothing is present."""
        logits = torch.stack([c(tokens[:, m]) for m, c in enumerate(self.classifiers)], dim=1)
        weights = presence.unsqueeze(-1)
        return (logits * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


class LateProductFusion(Fusion):
    """Fusion of posteriors: their product, over the prior for each but one. Of modalities that are
    independent given the label it is the posterior of all; one that is alone says what it says.

    Embeddings are what classifiers say, log-probabilities `[B, K]`; `prior` has those of the prior. Of
    other embeddings FusedgeError.
    """

    def __init__(
        self, modalities: int, size: int, outputs: int, hidden: int, dropout: float
    ) -> None:
        if size != outputs:
            raise FusedgeError(
                f"late_product multiplies posteriors of {outputs} labels, not embeddings of {size} numbers",
                hint="choose another kind of fusion",
            )
        super().__init__(modalities, size, dropout)
        self.prior = nn.Parameter(torch.zeros(outputs))

    def join(self, tokens: Tensor, presence: Tensor) -> Tensor:
        """Logits `[B, K]`; those of the prior where nothing is present."""
        told = tokens.log_softmax(dim=-1) - self.prior.log_softmax(dim=-1)
        return self.prior + (told * presence.unsqueeze(-1)).sum(dim=1)


_KINDS: dict[
    FusionKind,
    type[
        ConcatenationFusion
        | SumFusion
        | CrossAttentionFusion
        | LateAverageFusion
        | LateProductFusion
    ],
]
_KINDS = {
    "concatenation": ConcatenationFusion,
    "sum": SumFusion,
    "gated": GatedFusion,
    "cross_attention": CrossAttentionFusion,
    "late_average": LateAverageFusion,
    "late_product": LateProductFusion,
}
FUSION_KINDS: tuple[FusionKind, ...] = tuple(_KINDS)


def make_fusion(
    kind: FusionKind, modalities: int, size: int, outputs: int, hidden: int, dropout: float
) -> Fusion:
    """The fusion module of that kind; raises FusedgeError where it does not suit."""
    return _KINDS[kind](modalities, size, outputs, hidden, dropout)
