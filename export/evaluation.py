"""What graphs are worth on recorded input: the task's own metric, and feeds to calibrate int8 with.

A precision is chosen by what it costs in the metric, so the parts run here as they will run: encoders
window by window with their state fed back, the head at every tick over the newest embeddings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from fusedge.bundle.inference import open_session
from fusedge.export.emulate import emulated
from fusedge.export.part import ModulePart

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Logits = Mapping[str, NDArray[np.float32]]

_ROWS = 64  # that run at once, where steps do not depend on each other
_ROUNDING = 1e-6  # of float32, in sums; relative
CALIBRATION_FEEDS = 128  # calls of a part that calibration looks at, spread over the recordings


class Evaluation(Protocol):
    """How good graphs are on recorded input, and what a part is fed with there."""

    metric_name: str
    identity: str
    """Changes with the recordings and the metric: results are kept under it."""

    def metric(self, graphs: Mapping[str, bytes]) -> float:
        """From 0 to 1, higher is better, for the ONNX graphs by part."""

    def feeds(self, graphs: Mapping[str, bytes], part: str) -> Iterator[Feeds]:
        """Inputs of a part, when these float32 graphs run."""


@dataclass(frozen=True)
class RecordedTrack:
    """All windows of one modality in order, `[N, *window_shape]`, and which one each tick rests on.

    `newest[t]` is the window whose embedding the head takes at tick t, -1 where the modality is missing,
    `age[t]` its age in seconds.
    """

    window: Array
    valid: NDArray[np.float32]
    newest: NDArray[np.int64]
    age: NDArray[np.float32]


@dataclass(frozen=True)
class RecordedSession:
    """A recording on the grid of the windows: a track for each modality, all with the same ticks."""

    tracks: Mapping[str, RecordedTrack]


class StreamEvaluation:
    """Recorded sessions of a fusion model.

    `score` gives the metric from the logits by output, float32 `[ticks, K]`, of each session in order.
    What an encoder gave is kept, so that graphs of which one changed cost one run.
    """

    def __init__(
        self,
        parts: Sequence[ModulePart],
        sessions: Sequence[RecordedSession],
        score: Callable[[Sequence[Logits]], float],
        metric_name: str,
    ) -> None:
        self._encoders = {part.name: part for part in parts[:-1]}
        self._head = parts[-1]
        self._sessions, self._score = sessions, score
        self.metric_name = metric_name
        self.identity = _identity(metric_name, sessions)
        self._embeddings: dict[str, tuple[bytes, list[Array]]] = {}

    def metric(self, graphs: Mapping[str, bytes]) -> float:
        """See `Evaluation`."""
        runner = _Runner(self._head, graphs[self._head.name])
        return self._score(runner.sequences(list(self._head_feeds(graphs))))

    def feeds(self, graphs: Mapping[str, bytes], part: str) -> Iterator[Feeds]:
        """See `Evaluation`."""
        total = sum(
            len(session.tracks[part].window)
            if part in self._encoders
            else len(next(iter(session.tracks.values())).newest)
            for session in self._sessions
        )
        every = max(1, total // CALIBRATION_FEEDS)
        module = self._encoders.get(part, self._head)
        sequences = (
            [self._encoder_feeds(module, session) for session in self._sessions]
            if part in self._encoders
            else self._head_feeds(graphs)
        )
        count = 0
        runner = _Runner(module, graphs[part])
        for sequence in sequences:
            for feeds, _ in runner.steps(sequence):
                if count % every == 0:
                    yield feeds
                count += 1

    def _head_feeds(self, graphs: Mapping[str, bytes]) -> Iterator[dict[str, Array]]:
        embedded = {
            name: self._embedded(part, graphs[name]) for name, part in self._encoders.items()
        }
        order = list(self._encoders)
        for index, session in enumerate(self._sessions):
            tracks = {name: session.tracks[str(self._encoders[name].modality)] for name in order}
            presence = np.stack([tracks[n].newest >= 0 for n in order], -1).astype(np.float32)
            age = np.stack([tracks[n].age for n in order], -1).astype(np.float32) * presence
            feeds: dict[str, Array] = {"presence": presence, "age": age}
            for column, name in enumerate(order):
                newest = embedded[name][index][np.maximum(tracks[name].newest, 0)]
                feeds[f"embedding.{self._encoders[name].modality}"] = (
                    newest * presence[:, column, None]
                )
            yield feeds

    def _embedded(self, part: ModulePart, graph: bytes) -> list[Array]:
        """The embeddings of each session, `[N, D]`."""
        kept = self._embeddings.get(part.name)
        if kept is None or kept[0] != graph:
            given = [self._encoder_feeds(part, session) for session in self._sessions]
            kept = graph, [made["embedding"] for made in _Runner(part, graph).sequences(given)]
            self._embeddings[part.name] = kept
        return kept[1]

    @staticmethod
    def _encoder_feeds(part: ModulePart, session: RecordedSession) -> dict[str, Array]:
        track = session.tracks[str(part.modality)]
        given = {"window": track.window, "valid": track.valid}
        return {spec.name: given[spec.name] for spec in part.inputs if spec.name in given}


class RowsEvaluation:
    """Rows of input of a plain model; the metric is agreement with its float32 graph, 0 to 1.

    Of a float output the least over its columns (the last dim) counts: 1 less the mean difference over the
    column's standard deviation, or over its mean size where it does not vary. For nobody has said whether
    it holds scores or a pose; where there are columns, the share of rows with the same greatest one may be
    less, and counts then. Of other outputs, the share of equal values. The least of all outputs counts.

    So int8 may cost points here where every label stays; a fusion model's `Task` has a metric of its own.
    """

    metric_name = "agreement with fp32"

    def __init__(self, part: ModulePart, rows: Feeds, graph: bytes) -> None:
        self._part, self._rows = part, rows
        self._wanted = self._run(graph)
        self.identity = hashlib.sha256(
            graph + b"".join(rows[spec.name].tobytes() for spec in part.inputs)
        ).hexdigest()

    def metric(self, graphs: Mapping[str, bytes]) -> float:
        """See `Evaluation`."""
        found = self._run(graphs[self._part.name])
        return min(_agreement(self._wanted[name], found[name]) for name in self._wanted)

    def feeds(self, graphs: Mapping[str, bytes], part: str) -> Iterator[Feeds]:
        """See `Evaluation`."""
        count = _length(self._rows)
        for row in range(0, count, max(1, count // CALIBRATION_FEEDS)):
            yield {name: values[row : row + 1] for name, values in self._rows.items()}

    def _run(self, graph: bytes) -> dict[str, Array]:
        runner = _Runner(self._part, graph)
        batch = self._part.dims["batch"].greatest
        pieces = [runner.call(rows) for rows in _pieces(self._rows, batch)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _agreement(wanted: Array, found: Array) -> float:
    if wanted.dtype.kind != "f":
        return float((wanted == found).mean())
    if not np.isfinite(found).all():
        return 0.0
    columns = wanted.shape[-1] if wanted.ndim > 1 else 1
    one, two = (values.astype(np.float64).reshape(-1, columns) for values in (wanted, found))
    size, spread = np.abs(one).mean(0), one.std(0)
    scale = np.where(spread > _ROUNDING * size, spread, size)
    # What is lost in the rounding of the largest column is no loss.
    scale = np.maximum(scale, _ROUNDING * scale.max()) if scale.any() else np.ones(columns)
    kept = max(0.0, 1.0 - float((np.abs(one - two).mean(0) / scale).max()))
    return min(kept, float((one.argmax(1) == two.argmax(1)).mean()))


class _Runner:
    """A part's graph, as a GPU would round, on ONNX Runtime; over steps with the state fed back."""

    def __init__(self, part: ModulePart, graph: bytes) -> None:
        self._part = part
        shown = emulated(onnx.load_model_from_string(graph))
        self._session = open_session(shown.SerializeToString(), "mixed")
        self._outputs = [spec.name for spec in part.outputs]

    def call(self, feeds: Feeds) -> dict[str, Array]:
        """One run, outputs by name."""
        outputs = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, outputs, strict=True))

    def steps(self, feeds: Feeds) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
        """What each step of a sequence `[N, ...]` takes, state and a batch of 1 included, and gives."""
        state = self._part.initial_state(1)
        for step in range(_length(feeds)):
            given = {name: values[step : step + 1] for name, values in feeds.items()} | state
            outputs = self.call(given)
            state = {pair.input: outputs[pair.output] for pair in self._part.state}
            yield given, outputs

    def sequences(self, given: Sequence[Feeds]) -> list[dict[str, Array]]:
        """The outputs but states of each sequence, `[N, ...]`; all of them step side by side."""
        names = [spec.name for spec in self._part.outputs if spec.role != "state_out"]
        if not self._part.state:  # steps do not depend on each other
            made = [[self.call(rows) for rows in _pieces(feeds, _ROWS)] for feeds in given]
            return [{n: np.concatenate([piece[n] for piece in own]) for n in names} for own in made]
        lengths = [_length(feeds) for feeds in given]
        state = self._part.initial_state(len(given))
        steps: dict[str, list[Array]] = {name: [] for name in names}
        for step in range(max(lengths)):
            # A sequence that has ended repeats its last step, to no effect on the others.
            places = [min(step, length - 1) for length in lengths]
            now = {
                n: np.stack([f[n][p] for f, p in zip(given, places, strict=True)]) for n in given[0]
            }
            outputs = self.call(now | state)
            state = {pair.input: outputs[pair.output] for pair in self._part.state}
            for name in names:
                steps[name].append(outputs[name])
        stacked = {name: np.stack(rows) for name, rows in steps.items()}
        return [
            {name: rows[:length, index] for name, rows in stacked.items()}
            for index, length in enumerate(lengths)
        ]


def _length(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def _pieces(feeds: Feeds, rows: int) -> Iterator[dict[str, Array]]:
    for start in range(0, _length(feeds), rows):
        yield {name: values[start : start + rows] for name, values in feeds.items()}


def _identity(metric_name: str, sessions: Sequence[RecordedSession]) -> str:
    digest = hashlib.sha256(metric_name.encode())
    for session in sessions:
        for name, track in sorted(session.tracks.items()):
            for array in (track.window, track.valid, track.newest, track.age):
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
