"""The fusion head over cached embeddings, with the contribution of each modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusedge.bundle.manifest import Manifest
from fusedge.runtime.encoder import PartState
from fusedge.runtime.guard import all_finite
from fusedge.runtime.onnx_part import Array


class FusionHead:
    """Contract: one run a tick, in a batch of 1 + M rows. Absent modalities have presence 0, age 0
    and an embedding of zeros; row 1 + m differs from row 0 in having modality m absent.
    """

    def __init__(self, manifest: Manifest, initial: Mapping[str, Array]) -> None:
        head, fusion = manifest.head, manifest.require_fusion()
        self._specs = [spec for spec in head.inputs if spec.role != "state_in"]
        self._count = len(fusion.modalities)
        self._rows = 1 + self._count
        self._size = fusion.embedding_size
        self._outputs = {spec.name: i for i, spec in enumerate(head.outputs)}
        self._logits = [output.logits for output in manifest.outputs]
        self._others = np.ones((self._rows, self._count), np.float32)  # 0 where a row masks one
        self._others[1:] -= np.eye(self._count, dtype=np.float32)
        self._state = PartState(head, initial)
        self._make_buffers()

    def _make_buffers(self) -> None:
        self._embeddings = [
            np.zeros((self._rows, self._size), np.float32) for _ in range(self._count)
        ]
        self._there = [False] * self._count
        self._presence = np.zeros((self._rows, self._count), np.float32)
        self._age = np.zeros((self._rows, self._count), np.float32)
        by_role = {"presence": self._presence, "age": self._age}
        embeddings = iter(self._embeddings)
        self._feeds: dict[str, Any] = {
            spec.name: next(embeddings) if spec.role == "embedding" else by_role[spec.role]
            for spec in self._specs
        }

    def feeds(self, embeddings: list[Array | None], ages_s: list[float]) -> dict[str, Any]:
        """What the head takes: embeddings `[1, D]` (None where absent) and their ages in seconds.

        The arrays are used again for the next tick.
        """
        there = [embedding is not None for embedding in embeddings]
        if there != self._there:
            self._there = there
            np.multiply(self._others, np.array(there, np.float32), out=self._presence)
        np.multiply(self._presence, np.array(ages_s, np.float32), out=self._age)
        for buffer, embedding in zip(self._embeddings, embeddings, strict=True):
            buffer[:] = 0 if embedding is None else embedding
        feeds = dict(self._feeds)
        for name, state in self._state.current.items():
            feeds[name] = np.repeat(state, self._rows, axis=0)
        return feeds

    def take(self, outputs: list[Array]) -> tuple[dict[str, Array], bool]:
        """Logits by name, float32 `[1 + M, K]`, and whether row 0 is finite.

        Row 0 is as things are, row 1 + m without modality m. The head's memory is reset where row 0
        is not finite.
        """
        logits = {name: outputs[self._outputs[name]] for name in self._logits}
        finite = all(all_finite(value[0]) for value in logits.values())
        if finite:
            self._state.advance(outputs)
        else:
            self._state.reset()
        return logits, finite

    def forget(self) -> None:
        """Nothing is present: what comes after is another sequence, as after any gap."""
        self._state.reset()

    def lose(self) -> None:
        """A run failed: forget, and leave the arrays to it, since it may still be reading them."""
        self._state.reset()
        self._make_buffers()
