"""An encoder at its own rate: windows in, a cached embedding with an age out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusedge.bundle.manifest import Modality, Part
from fusedge.bundle.window import to_ns
from fusedge.runtime.guard import all_finite
from fusedge.runtime.onnx_part import Array
from fusedge.runtime.stream import Window


class PartState:
    """What a part carries from step to step; `initial` (by input, `[1, ...]`) at first and after resets."""

    def __init__(self, part: Part, initial: Mapping[str, Array]) -> None:
        self._initial = initial
        outputs = [spec.name for spec in part.outputs]
        self._next = [(pair.input, outputs.index(pair.output)) for pair in part.state]
        self.current: dict[str, Array] = dict(initial)

    def reset(self) -> None:
        """Forget everything."""
        self.current = dict(self._initial)

    def advance(self, outputs: list[Array]) -> None:
        """Take the next state from the part's outputs (row 0 of a batch)."""
        for name, index in self._next:
            self.current[name] = outputs[index][:1]


class Encoder:
    """Contract: a modality is present while its newest embedding is at most `max_age_s` old and, after an
    absence, only from the `return_windows`-th complete window in a row on. The memory is kept over
    windows that were given up as long as the embedding is; it is reset where the modality is lost,
    and where an embedding is not finite, which is never given on.
    """

    def __init__(self, spec: Modality, part: Part, initial: Mapping[str, Array]) -> None:
        names = {s.role: s.name for s in part.inputs if s.role in ("window", "valid")}
        self._window, self._valid = names["window"], names.get("valid")
        self._embedding = next(i for i, s in enumerate(part.outputs) if s.role == "embedding")
        self._state = PartState(part, initial)
        self._max_age_ns = to_ns(spec.max_age_s)
        self._return_windows = spec.return_windows
        self._in_a_row = 0
        self._returned = True  # nothing was lost before the first embedding
        self.end_ns: int | None = None
        self.embedding: Array | None = None
        self.resets = 0

    def feeds(self, window: Window) -> dict[str, Any] | None:
        """What the part takes for a window; None where it need not run."""
        if self.end_ns is not None and window.end_ns - self.end_ns > self._max_age_ns:
            self.lose()
        if not window.complete and self.end_ns is None:
            return None
        feeds: dict[str, Any] = {self._window: window.values, **self._state.current}
        if self._valid is not None:
            feeds[self._valid] = window.valid
        return feeds

    def take(self, window: Window, outputs: list[Array]) -> bool:
        """Take what the part made of a window; False where that is not finite."""
        embedding = outputs[self._embedding]
        if not all_finite(embedding):
            self.lose()
            return False
        self._state.advance(outputs)
        if not window.complete:
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        self._returned = self._returned or self._in_a_row >= self._return_windows
        self.embedding, self.end_ns = embedding, window.end_ns
        return True

    def age_ns(self, now_ns: int) -> int | None:
        """Age of the newest embedding where the modality is present, else None."""
        if self.end_ns is None or not self._returned:
            return None
        age = now_ns - self.end_ns
        if age > self._max_age_ns:
            self.lose()
            return None
        return age

    def lose(self) -> None:
        """The modality is gone: forget it, and ask for `return_windows` before it is back."""
        self._state.reset()
        self.resets += self.end_ns is not None
        self.end_ns, self.embedding = None, None
        self._in_a_row, self._returned = 0, False
