"""From logits to a steady label: temperature, exponential mean, hysteresis."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.manifest import Output


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Probabilities over the last axis of `logits / temperature`, float64."""
    shares: NDArray[np.float64] = np.divide(logits, temperature, dtype=np.float64)
    shares -= np.maximum.reduce(shares, axis=-1, keepdims=True)
    np.exp(shares, out=shares)
    shares /= np.add.reduce(shares, axis=-1, keepdims=True)
    return shares


class SteadyLabel:
    """Contract: the mean follows the probabilities with the time constant `smoothing_s`; the label
    changes only when another leads it in that mean by more than `hysteresis`. After `forget` both begin
    anew with the probabilities that come next.
    """

    def __init__(self, spec: Output, period_s: float) -> None:
        self._labels = spec.labels
        rate = -period_s / spec.smoothing_s if spec.smoothing_s else -math.inf
        self._rate, self._weight = rate, -math.expm1(rate)
        self._hysteresis = spec.hysteresis
        self.forget()

    def forget(self) -> None:
        """What was before says nothing about what comes."""
        self._mean: NDArray[np.float64] | None = None
        self._current: int | None = None

    def update(
        self, probabilities: NDArray[np.float64], periods: int = 1
    ) -> tuple[str, NDArray[np.float64]]:
        """Take the newest probabilities `[K]`; the steady label and the mean `[K]` it rests on.

        `periods` have passed since the last ones.
        """
        if self._mean is None:
            self._mean = probabilities.copy()
        else:
            weight = self._weight if periods == 1 else -math.expm1(self._rate * periods)
            self._mean += weight * (probabilities - self._mean)
        best = int(self._mean.argmax())
        if self._current is None or (
            self._mean[best] - self._mean[self._current] > self._hysteresis
        ):
            self._current = best
        return self._labels[self._current], self._mean
