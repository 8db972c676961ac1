"""The fusion head over cached embeddings, with the contribution of each modality."""

from __future__ import annotations

import numpy as np

from fusedge.bundle.manifest import Manifest
from fusedge.runtime.backend import Array, OnnxPart
from fusedge.runtime.clock import stopwatch_ns
from fusedge.runtime.encoder import PartState
from fusedge.runtime.histogram import DurationHistogram


class FusionHead:
    """Contract: one run a tick, in a batch of 1 + M rows. Absent modalities have presence 0, age 0
    and an embedding of zeros; row 1 + m differs from row 0 in having modality m absent.
    """

    def __init__(self, manifest: Manifest, backend: OnnxPart) -> None:
        head, fusion = manifest.head, manifest.fusion
        count = len(fusion.modalities)
        rows = 1 + count
        self._backend = backend
        self._outputs = {spec.name: i for i, spec in enumerate(head.outputs)}
        self._logits = [output.logits for output in manifest.outputs]
        self._embeddings = [
            np.zeros((rows, fusion.embedding_size), np.float32) for _ in range(count)
        ]
        self._presence = np.zeros((rows, count), np.float32)
        self._age = np.zeros((rows, count), np.float32)
        self._others = np.ones((rows, count), np.float32)  # 0 where a row masks a modality
        self._others[1:] -= np.eye(count, dtype=np.float32)
        self._state = PartState(head)
        by_role = {"presence": self._presence, "age": self._age}
        embeddings = iter(self._embeddings)
        self._feeds: dict[str, Array] = {
            spec.name: next(embeddings) if spec.role == "embedding" else by_role[spec.role]
            for spec in head.inputs
            if spec.role != "state_in"
        }
        self.step_time = DurationHistogram()

    def fuse(self, embeddings: list[Array | None], ages_s: list[float]) -> dict[str, Array]:
        """Run the head on embeddings `[1, D]` (None where absent) and their ages in seconds.

        Logits by name, float32 `[1 + M, K]`: row 0 as things are, row 1+m without modality m. They
        may be not finite; the head's memory is reset where row 0 is not.
        """
        for column, embedding in enumerate(embeddings):
            present = self._others[:, column] if embedding is not None else np.float32(0)
            self._presence[:, column] = present
            self._age[:, column] = ages_s[column] * present
            self._embeddings[column][:] = 0 if embedding is None else embedding
        started = stopwatch_ns()
        rows = len(self._presence)
        states = {name: np.repeat(s, rows, axis=0) for name, s in self._state.current.items()}
        outputs = self._backend.run({**self._feeds, **states})
        self.step_time.add(stopwatch_ns() - started)
        logits = {name: outputs[self._outputs[name]] for name in self._logits}
        if all(np.isfinite(value[0]).all() for value in logits.values()):
            self._state.advance(outputs)
        else:
            self._state.reset()
        return logits
