"""An encoder at its own rate: windows in, a cached embedding with an age out."""

from __future__ import annotations

import numpy as np

from fusedge.bundle.manifest import Modality, Part
from fusedge.bundle.window import to_ns
from fusedge.runtime.backend import Array, OnnxPart
from fusedge.runtime.clock import stopwatch_ns
from fusedge.runtime.histogram import DurationHistogram
from fusedge.runtime.stream import Window


class PartState:
    """What a part carries from step to step: zeros at first and after a reset."""

    def __init__(self, part: Part) -> None:
        shapes = {spec.name: spec.shape for spec in part.inputs if spec.role == "state_in"}
        self._zeros: dict[str, Array] = {
            name: np.zeros([1 if isinstance(d, str) else d for d in shape], np.float32)
            for name, shape in shapes.items()
        }
        outputs = [spec.name for spec in part.outputs]
        self._next = [(pair.input, outputs.index(pair.output)) for pair in part.state]
        self.current: dict[str, Array] = dict(self._zeros)

    def reset(self) -> None:
        """Forget everything."""
        self.current = dict(self._zeros)

    def advance(self, outputs: list[Array]) -> None:
        """Take the next state from the part's outputs (row 0 of a batch)."""
        for name, index in self._next:
            self.current[name] = outputs[index][:1]


class Encoder:
    """Contract: `present` is true while the newest embedding is at most `max_age_s` old and, after an
    absence, only from the `return_windows`-th complete window in a row on. An embedding that is
    not finite is never given on: the encoder's memory is reset and the window counts as missing.
    """

    def __init__(self, spec: Modality, part: Part, backend: OnnxPart) -> None:
        self._backend = backend
        self._names = {
            spec_.role: spec_.name for spec_ in part.inputs if spec_.role in ("window", "valid")
        }
        self._embedding = next(i for i, s in enumerate(part.outputs) if s.role == "embedding")
        self._state = PartState(part)
        self._max_age_ns = to_ns(spec.max_age_s)
        self._return_windows = spec.return_windows
        self._in_a_row = 0
        self._returned = True  # nothing was lost before the first embedding
        self.end_ns: int | None = None
        self.embedding: Array | None = None
        self.resets = self.not_finite = 0
        self.step_time = DurationHistogram()

    def step(self, window: Window | None) -> None:
        """Run one window; None is one that came too late, which breaks the memory's time."""
        if window is None:
            self._lose()
            return
        if self.end_ns is not None and window.end_ns - self.end_ns > self._max_age_ns:
            self._lose()
        if not window.complete and self.end_ns is None:
            return
        started = stopwatch_ns()
        state = self._state.current
        outputs = self._backend.run(
            {self._names["window"]: window.values, self._names["valid"]: window.valid, **state}
        )
        self.step_time.add(stopwatch_ns() - started)
        embedding = outputs[self._embedding]
        if not np.isfinite(embedding).all():
            self.not_finite += 1
            self._lose()
            return
        self._state.advance(outputs)
        if not window.complete:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._returned = self._returned or self._in_a_row >= self._return_windows
        self.embedding, self.end_ns = embedding, window.end_ns

    def age_ns(self, now_ns: int) -> int | None:
        """Age of the newest embedding where the modality is present, else None."""
        if self.end_ns is None or not self._returned:
            return None
        age = now_ns - self.end_ns
        if age > self._max_age_ns:
            self._lose()
            return None
        return age

    def _lose(self) -> None:
        """The modality is gone: forget it, and ask for `return_windows` before it is back."""
        self._state.reset()
        self.resets += self.end_ns is not None
        self.end_ns, self.embedding = None, None
        self._in_a_row, self._returned = 0, False
