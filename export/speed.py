"""How fast a graph is where it runs, as a ratio to its float32 graph within one run.

Seconds of two runs do not compare: other work, clocks and temperature differ. So both graphs run in turns,
which of them first changes each time, and each pair gives one ratio. Time is that of the thread, which does
all the work: while others have the processor it stands still.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.inference import onnxruntime, open_session

Feeds = Mapping[str, NDArray[Any]]

# Less is no gain: 24 comparisons of equal graphs, of 54 us and 4.3 ms, gave medians from 0.992 to 1.002 on
# an idle machine, since where a session's memory lies matters however long one measures.
MARGIN = 0.02
_SAMPLE_S = 2e-3  # a sample repeats short runs until it lasts as long
_TIME_S = 2.0  # that a comparison may take, within the bounds of the pairs
_PAIRS = (15, 61)
_ERROR = 0.01  # how often the interval may miss the true median


@dataclass(frozen=True)
class Speed:
    """Time of a graph over the time of its float32 graph: the median of the pairs, and its 99 % interval.

    `baseline_s`: seconds of the float32 graph in the same run, the median.
    """

    ratio: float
    low: float
    high: float
    baseline_s: float

    @property
    def faster(self) -> bool:
        """Whether it surely is: the whole interval lies below 1, by more than equal graphs differ."""
        return self.high < 1 - MARGIN

    @classmethod
    def of_pairs(cls, baseline_s: Sequence[float], candidate_s: Sequence[float]) -> Speed:
        """From seconds measured in turns.

        The interval is that of the sign test: it needs no assumption on how the noise is distributed.
        """
        ratios = np.sort(np.asarray(candidate_s) / np.asarray(baseline_s))
        outside = _sign_test_rank(len(ratios))
        return cls(
            ratio=float(np.median(ratios)),
            low=float(ratios[outside]),
            high=float(ratios[-1 - outside]),
            baseline_s=float(np.median(baseline_s)),
        )


class SpeedMeter(Protocol):
    """Measures a part's graph against its float32 one, on what `identity` names."""

    identity: str

    def __call__(self, part: str, graph: bytes) -> Speed:
        """Compare; raises FusedgeError where the graph does not run there."""


class CpuSpeed:
    """Speeds of parts on ONNX Runtime's CPU provider, one thread, as the runtime runs them.

    `graphs`: the float32 graph of each part. `feeds`: one typical input of each.
    """

    def __init__(self, graphs: Mapping[str, bytes], feeds: Mapping[str, Feeds]) -> None:
        self._graphs, self._feeds = graphs, feeds
        self.identity = f"onnxruntime {onnxruntime().__version__} cpu, {_processor()}"

    def __call__(self, part: str, graph: bytes) -> Speed:
        """Compare a graph of a part; raises FusedgeError where ONNX Runtime does not run it."""
        try:
            return compare(self._graphs[part], graph, self._feeds[part])
        except Exception as error:  # ONNX Runtime has a dozen kinds
            raise FusedgeError(
                f"ONNX Runtime does not run the graph: {error}", where=f"part {part}, speed"
            ) from None


def compare(baseline: bytes, candidate: bytes, feeds: Feeds) -> Speed:
    """The speed of `candidate` against `baseline`, two graphs with the same inputs, on the CPU."""
    # The candidate as float16 is opened, whatever it holds: with the optimisers that are safe for it.
    first, second = open_session(baseline, "fp32"), open_session(candidate, "fp16")
    given = dict(feeds)
    return compare_runs(
        lambda: first.run(None, given), lambda: second.run(None, given), time.thread_time
    )


def compare_runs(
    baseline: Callable[[], object], candidate: Callable[[], object], clock: Callable[[], float]
) -> Speed:
    """The speed of one call against another, in turns; `clock` gives seconds."""
    runs = baseline, candidate

    def sample(which: int, repeats: int) -> float:
        run = runs[which]
        start = clock()
        for _ in range(repeats):
            run()
        return (clock() - start) / repeats

    for which in (0, 1):
        sample(which, 3)  # the first runs allocate memory
    repeats = [max(1, math.ceil(_SAMPLE_S / sample(which, 3))) for which in (0, 1)]
    pair_s = sum(sample(which, count) * count for which, count in enumerate(repeats))
    pairs = min(max(int(_TIME_S / pair_s), _PAIRS[0]), _PAIRS[1])
    seconds: tuple[list[float], list[float]] = [], []
    for index in range(pairs):
        for which in (0, 1) if index % 2 else (1, 0):
            seconds[which].append(sample(which, repeats[which]))
    return Speed.of_pairs(*seconds)


def _sign_test_rank(count: int) -> int:
    """How many of `count` sorted values lie outside the median's interval, on each side."""
    tail, rank = 0.0, 0
    while rank < count // 2:
        tail += math.comb(count, rank) / 2**count
        if tail > _ERROR / 2:
            break
        rank += 1
    return max(0, rank - 1)


def _processor() -> str:
    """What the machine computes with; results of another one do not hold here."""
    lines = Path("/proc/cpuinfo")
    if lines.exists():
        for line in lines.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
