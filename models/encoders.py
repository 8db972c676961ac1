"""Encoder of a sensor series: hop by hop, from a window and explicit state to an embedding.

    window ─► terms ─► soft histogram ─► mean of 5 s ─► judgement ─► moments of 25 s ─► embedding
              `──────────── FeatureExtractor, constants ───────────'   `─ trained ─'

A histogram describes the distribution of a signal in the last seconds, as quantiles do for a
random forest, but it is a sum over samples and so runs as a stream. Its constants are measured on
the training recordings (`calibrate`), so that features are computed once per recording. What is
trained judges short spans, and the mean and deviation of its judgements make the embedding. In one
run each, averaged judgements of 5 s did better on unseen drivers than one of 30 s (0.79, 0.78).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, cat, nn
from torch.nn import functional

from fusedge.models.streaming import History, RollingMean

TermKind = Literal["value", "difference", "angle_difference", "magnitude", "product"]


@dataclass(frozen=True)
class Term:
    """A signal made from channels: `difference` over `lag` samples, `magnitude` and `product` of two.

    `angle_difference` is the sine of it, so that a wrap at pi is no step and only the rate remains.
    """

    kind: TermKind
    channels: tuple[int, ...]
    lag: int = 0


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a `SeriesEncoder`. `hop` is in samples, `short` and `long` are in hops.

    The embedding has `2 * judgements` numbers: mean and deviation of each.
    """

    channels: int
    hop: int
    terms: tuple[Term, ...]
    bins: int
    short: int
    long: int
    judgements: int

    @property
    def size(self) -> int:
        """Size of the embedding."""
        return 2 * self.judgements


_CLIP = 3.0  # training deviations; a value beyond says no more
_SHRINK = 0.02  # coverage at which half of a feature is believed: one valid sample in 50
_QUANTILES = (0.03, 0.97)  # range of the histogram's edges
_SHARPNESS = 0.6  # width of an edge in units of the distance between edges
_LEAST_DEVIATION = 0.02
_CALIBRATION_SAMPLES = 200_000  # enough for a quantile; torch.quantile refuses 16 million


class FeatureExtractor(nn.Module):
    """Terms, soft histograms and moments of the last seconds; all constants, nothing is trained.

    `(window, valid [B, N*hop, C], history, recent) -> (features [B, N, F], seen [B, N, 1], states)`.
    """

    edges: Tensor
    slopes: Tensor
    centre: Tensor
    spread: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        terms, bins = len(config.terms), config.bins
        per_term = bins + 2
        # A difference spans `lag` samples, so the history must hold the greatest lag.
        self.history = History(2 * config.channels, max(1, *(term.lag for term in config.terms)))
        self.recent = RollingMean(terms * (per_term + 1), config.short)
        # Terms of one kind and lag are computed together: a small graph is a fast one.
        keys = [(term.kind, term.lag) for term in config.terms]
        # Plain values come first, so that their coverage is a slice.
        self.groups = tuple(dict.fromkeys(sorted(keys, key=lambda key: key[0] != "value")))
        self.lags = tuple(lag for _, lag in self.groups)
        for index, key in enumerate(self.groups):
            members = [term for term in config.terms if (term.kind, term.lag) == key]
            for operand, channel in (("first", 0), ("second", -1)):
                columns = [term.channels[channel] for term in members]
                columns += [config.channels + column for column in columns]
                self.register_buffer(f"{operand}{index}", torch.tensor(columns), persistent=False)
        self.plain = sum(term.kind == "value" for term in config.terms)
        self.features = terms * per_term + self.plain
        self.register_buffer("edges", torch.linspace(-2, 2, bins).repeat(terms, 1))
        self.register_buffer("slopes", torch.full((terms, bins), 2.0))
        self.register_buffer("centre", torch.zeros(terms))
        self.register_buffer("spread", torch.ones(terms))
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("deviation", torch.ones(self.features))

    def forward(
        self, window: Tensor, valid: Tensor, history: Tensor, recent: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features `[B, N, F]` in training deviations, whether anything was measured, the states."""
        terms, measured, history = self._terms(window, valid, history)
        moments, coverage, recent = self._moments(terms, measured, recent)
        plain = coverage[..., : self.plain]
        raw = cat([moments, plain], dim=-1)
        # Measured shares shrink towards the training mean, which is 0 after normalisation.
        trust = coverage / (coverage + _SHRINK)
        trust = trust.unsqueeze(-1).expand(-1, -1, -1, self.config.bins + 2).flatten(2)
        trust = cat([trust, torch.ones_like(plain)], dim=-1)
        features = (raw - self.mean) / self.deviation * trust
        seen = (coverage.amax(dim=-1, keepdim=True) * 10).clamp(max=1.0)
        return features.clamp(-_CLIP, _CLIP) * seen, seen, history, recent

    def _terms(self, window: Tensor, valid: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each term and its validity, `[B, T, K]`."""
        joined, state = self.history(cat([window, valid], dim=-1), state)
        length, steps = self.history.length, window.shape[1]
        spans = {lag: joined[:, length - lag : length - lag + steps] for lag in (0, *self.lags)}
        values, masks = [], []
        for (kind, lag), (first, second) in zip(self.groups, self._columns(), strict=True):
            value, mask = spans[0].index_select(-1, first).chunk(2, dim=-1)
            other, other_mask = spans[lag].index_select(-1, second).chunk(2, dim=-1)
            if kind == "difference":
                value = value - other
            elif kind == "angle_difference":
                value = value.sin() * other.cos() - value.cos() * other.sin()
            elif kind == "magnitude":
                value = (value * value + other * other).sqrt()
            elif kind == "product":
                value = value * other
            values.append(value)
            masks.append(mask if kind == "value" else mask * other_mask)
        return cat(values, dim=-1), cat(masks, dim=-1), state

    def _columns(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each group, the columns of both operands: values, then validities."""
        for index in range(len(self.groups)):
            yield getattr(self, f"first{index}"), getattr(self, f"second{index}")

    def _moments(
        self, terms: Tensor, measured: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Histogram, mean and deviation of each term over `short` hops, and its coverage."""
        config = self.config
        batch, steps, count = terms.shape
        hops = (batch, steps // config.hop, config.hop, -1)
        scaled = ((terms - self.centre) * self.spread).clamp(-_CLIP, _CLIP)
        above = ((terms.unsqueeze(-1) - self.edges) * self.slopes).sigmoid()
        sums = cat([above, scaled.unsqueeze(-1), (scaled * scaled).unsqueeze(-1)], dim=-1)
        sums = (sums * measured.unsqueeze(-1)).flatten(2)
        by_hop = cat([sums, measured], dim=-1).reshape(hops).mean(dim=2)
        pooled, state = self.recent(by_hop, state)
        coverage = pooled[..., -count:]
        means = pooled[..., :-count].unflatten(-1, (count, config.bins + 2))
        means = means / coverage.clamp(min=1e-3).unsqueeze(-1)
        bins, first, second = means.split([config.bins, 1, 1], dim=-1)
        deviation = ((second - first * first).clamp(min=0.0) + 1e-3).sqrt()
        return cat([bins, first, deviation], dim=-1).flatten(2), coverage, state

    @torch.no_grad()
    def calibrate(self, sequences: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Set the constants from whole recordings: `(window, valid)` float32 `[T, C]` each."""
        collected = [self._terms(w[None], v[None], self._zeros(self.history)) for w, v in sequences]
        quantiles = torch.linspace(*_QUANTILES, self.config.bins)
        for index in range(len(self.config.terms)):
            values = cat([terms[..., index][mask[..., index] > 0] for terms, mask, _ in collected])
            if not len(values):
                continue
            values = values[:: 1 + len(values) // _CALIBRATION_SAMPLES]
            edges = values.quantile(quantiles)
            span = (edges[-1] - edges[0]).clamp(min=1e-3)
            gaps = torch.gradient(edges)[0].clamp(min=0.15 * float(span) / self.config.bins)
            self.edges[index] = edges
            self.slopes[index] = 1 / (_SHARPNESS * gaps)
            self.centre[index] = edges.mean()
            self.spread[index] = 1 / span
        self.mean.zero_()
        self.deviation.fill_(1.0)
        moments, covered = [], []
        for window, valid in sequences:
            terms, mask, _ = self._terms(window[None], valid[None], self._zeros(self.history))
            means, coverage, _ = self._moments(terms, mask, self._zeros(self.recent))
            moments.append(cat([means, coverage[..., : self.plain]], dim=-1)[0])
            share = coverage[0].unsqueeze(-1).expand(-1, -1, self.config.bins + 2).flatten(1)
            covered.append(cat([share, torch.ones(len(share), self.plain)], dim=-1))
        raw, weight = cat(moments).double(), cat(covered).double()
        total = weight.sum(0).clamp(min=1.0)
        mean = (raw * weight).sum(0) / total
        variance = ((raw - mean) ** 2 * weight).sum(0) / total
        self.mean.copy_(mean)
        self.deviation.copy_(variance.sqrt().clamp(min=_LEAST_DEVIATION))

    @staticmethod
    def _zeros(layer: History | RollingMean) -> Tensor:
        return torch.zeros(1, *layer.state_shape)


class SeriesEncoder(nn.Module):
    """`(window, valid [B, N*hop, C], *states) -> (embedding [B, N, D], *new_states)`.

    Invalid values are 0 in `window`. Memory: the greatest lag, `short` and `long` hops; zero states
    mean that nothing was seen yet.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.extractor = FeatureExtractor(config)
        self.judge = nn.Linear(self.extractor.features, config.judgements)
        self.average = RollingMean(config.size + 1, config.long)

    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each state without the batch, in the order of the arguments."""
        return {
            "history": self.extractor.history.state_shape,
            "recent": self.extractor.recent.state_shape,
            "average": self.average.state_shape,
        }

    def zero_states(self, batch: int) -> tuple[Tensor, ...]:
        """The states before anything was seen."""
        return tuple(torch.zeros(batch, *shape) for shape in self.state_shapes().values())

    def forward(
        self, window: Tensor, valid: Tensor, history: Tensor, recent: Tensor, average: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run N hops from the given states."""
        features, seen, history, recent = self.extractor(window, valid, history, recent)
        embedding, average = self.embed(features, seen, average)
        return embedding, history, recent, average

    def embed(self, features: Tensor, seen: Tensor, average: Tensor) -> tuple[Tensor, Tensor]:
        """The trained half: features `[B, N, F]` to the embedding `[B, N, D]`."""
        judged = functional.gelu(self.judge(features))
        moments = cat([judged, judged * judged, torch.ones_like(seen)], dim=-1) * seen
        pooled, average = self.average(moments, average)
        pooled = pooled[..., :-1] / pooled[..., -1:].clamp(min=1e-2)
        mean, square = pooled.chunk(2, dim=-1)
        deviation = ((square - mean * mean).clamp(min=0.0) + 1e-3).sqrt()
        # Side by side, so that a slice of the embedding holds both of the same judgement.
        return torch.stack([mean, deviation], dim=-1).flatten(-2), average
