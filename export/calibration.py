"""The ranges that int8 needs, from recorded windows: how far the values of each tensor go.

Own code in place of ONNX Runtime's calibrators: those keep the width of a bin that the first window
sets, so that a silent first window makes histograms that fill the memory, and they print. Here a
histogram of magnitudes has a fixed number of bins, whose width doubles when a greater value comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.inference import open_session

Array = NDArray[np.float32]
Method = Literal["percentile", "entropy"]

PERCENTILE = 99.99  # of the magnitudes; what lies beyond saturates
_BINS = 4096
_LEVELS = 128  # magnitudes of int8
_LEAST = 2.0**-100  # so that bins by limit are no more than float32 holds
QUANTISED_KINDS = frozenset(["Conv", "Gemm", "MatMul"])


@dataclass(frozen=True)
class Calibration:
    """`limits`: by tensor of the float32 graph, the magnitude that becomes the greatest of int8."""

    method: Method
    windows: int
    limits: Mapping[str, float]


def calibrate(
    model: onnx.ModelProto,
    feeds: Iterable[Mapping[str, Array]],
    method: Method = "percentile",
) -> Calibration:
    """Run the float32 graph on the feeds, one at a time, and choose the limits of what products read and
    make.

    `percentile` takes the 99.99th of the magnitudes; `entropy` the limit whose 128 levels keep most of
    the distribution (least Kullback-Leibler divergence). The same feeds give the same limits; memory does
    not grow with their number. Raises FusedgeError where there are none, or a value is not finite.
    """
    names = _calibrated(model)
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    present = {value.name for value in (*model.graph.input, *model.graph.output)}
    observed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in present
    )
    inputs = {value.name for value in model.graph.input}
    outputs = [name for name in names if name not in inputs]
    session = open_session(observed.SerializeToString(), "fp32")
    histograms = {name: Histogram() for name in names}
    windows = 0
    for feed in feeds:
        windows += 1
        values = dict(
            zip(outputs, session.run(outputs, dict(feed)) if outputs else [], strict=True)
        )
        for name, histogram in histograms.items():
            if not histogram.add(values[name] if name in values else feed[name]):
                raise FusedgeError(
                    f"window {windows} makes NaN or Inf", where=f"calibration, tensor {name}"
                )
    if windows == 0:
        raise FusedgeError(
            "there are no windows to calibrate int8 on", hint="give recordings, or leave out int8"
        )
    choose: Callable[[Histogram], float] = (
        Histogram.percentile if method == "percentile" else Histogram.entropy
    )
    return Calibration(method, windows, {name: choose(h) for name, h in histograms.items()})


def _calibrated(model: onnx.ModelProto) -> list[str]:
    """What Conv, Gemm and MatMul read and make, without constants and biases, in the graph's order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = (
        name
        for node in model.graph.node
        if node.op_type in QUANTISED_KINDS
        for name in (*node.input[:2], node.output[0])
    )
    return [name for name in dict.fromkeys(names) if name not in constants]


class Histogram:
    """Counts of magnitudes in `_BINS` bins from 0 to a power of two."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._limit = 0.0  # the upper end of the last bin; 0 while all was zero
        self._greatest = 0.0
        self._zeros = 0  # seen before there was a limit

    def add(self, values: Array) -> bool:
        """Count all values; false, and nothing counted, where one is not finite."""
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        greatest = float(magnitudes.max(initial=0.0))
        if not math.isfinite(greatest):
            return False
        self._greatest = max(self._greatest, greatest)
        if greatest == 0.0 and self._limit == 0.0:
            self._zeros += magnitudes.size
            return True
        if self._limit == 0.0:
            self._limit = max(2.0 ** math.ceil(math.log2(greatest)), _LEAST)
            self._counts[0] = self._zeros
        while greatest > self._limit:
            self._counts[: _BINS // 2] = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts[_BINS // 2 :] = 0
            self._limit *= 2
        index = (magnitudes * (_BINS / self._limit)).astype(np.int64).clip(max=_BINS - 1)
        self._counts += np.bincount(index, minlength=_BINS)
        return True

    def percentile(self) -> float:
        """The upper end of the bin that the percentile falls into, at most the greatest value."""
        share = np.cumsum(self._counts) / max(1, self._counts.sum())
        return self._end(int(np.searchsorted(share, PERCENTILE / 100)) + 1)

    def entropy(self) -> float:
        """The limit whose levels lose least of the distribution; what lies beyond counts to the last."""
        counts = self._counts.astype(np.float64)
        # The first bin holds what is exactly zero (after a ReLU, most), which any scale keeps.
        counts[0] = counts[1]
        used = int(np.flatnonzero(self._counts).max(initial=0)) + 1
        if used <= _LEVELS:
            return self._end(used)
        ends = range(_LEVELS, used + 1, max(1, (used - _LEVELS) // 256))
        losses = [_divergence(counts, end) for end in ends]
        return self._end(ends[int(np.argmin(losses))])

    def _end(self, bins: int) -> float:
        return min(self._limit * bins / _BINS, self._greatest)


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    """Kullback-Leibler divergence of the first `end` bins from themselves in `_LEVELS` levels."""
    kept = counts[:end]
    reference = kept.copy()
    reference[-1] += counts[end:].sum()
    level = np.arange(end) * _LEVELS // end
    filled = kept > 0
    total = np.bincount(level, kept, minlength=_LEVELS)
    share = np.bincount(level, filled, minlength=_LEVELS)
    levels = np.where(filled, (total / np.maximum(share, 1))[level], 0.0)
    there = reference > 0
    if not levels.sum():
        return math.inf
    p = reference[there] / reference.sum()
    q = np.maximum(levels[there] / levels.sum(), 1e-9)  # saturated values may fall on an empty bin
    return float((p * np.log(p / q)).sum())
