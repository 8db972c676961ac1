"""The fastest precision of each group of nodes whose loss on the task's own metric stays within a budget.

1. Each precision for the whole model, and for each part the one that runs fastest there. Where that mix
   stays within the budget, these parts are done.
2. Sensitivity: the loss when one group alone is reduced, at each precision that pays in its part.
3. Greedy with bisection: moves (a group to a precision) sorted by loss for the time that they save; the
   longest beginning of the list that stays within the budget is taken, the move after it is left out,
   and so on with the rest, a few times.
4. Of all that was measured within the budget the fastest is measured once more, its loss and its speed:
   the best of many measurements is also the luckiest. Only then it is chosen.

That is at most `groups x precisions + rounds x log2(moves)` evaluations of the metric, and a few. Speed
is measured, never assumed: a part that does not surely run faster reduced than in float32 stays in float32.
It is measured where the search runs; on another device the order of precisions may differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import onnx

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Precision
from fusedge.export.cache import key_of
from fusedge.export.calibration import Calibration
from fusedge.export.node_groups import node_groups
from fusedge.export.packages import tool_versions
from fusedge.export.part import ModulePart
from fusedge.export.precision import Assignment, reduce_graph, reducible
from fusedge.export.progress import Progress
from fusedge.export.search_ledger import SearchLedger
from fusedge.export.speed import Speed

GroupPrecisions = Mapping[str, Mapping[str, Precision]]
"""By part and group; what is not named stays float32."""

_ROUNDS = 4


@dataclass(frozen=True)
class SearchProblem:
    """What to search. `graphs` (float32) and `calibrations` go by part.

    `metric` gives the task's metric, 0 to 1, higher is better, for ONNX graphs by part, and emulates what
    it cannot run (fusedge.export.emulate); `metric_identity` changes with what it computes and on which
    data, as far as that can be told; the metric of the float32 graphs, which is always measured anew, is
    added to it. `speed` measures a graph of a part where it will run, and raises FusedgeError where it
    does not run; `speed_identity` changes with the machine. `precisions`: those that the targets have;
    int8 needs a calibration. `budget_points`: what the metric may lose, in hundredths.
    """

    parts: Sequence[ModulePart]
    graphs: Mapping[str, onnx.ModelProto]
    calibrations: Mapping[str, Calibration]
    metric: Callable[[Mapping[str, bytes]], float]
    metric_identity: str
    speed: Callable[[str, bytes], Speed]
    speed_identity: str
    precisions: tuple[Precision, ...]
    budget_points: float


@dataclass(frozen=True)
class SearchPoint:
    """A measured assignment. `time_ratio`: time of all parts at their rates, over that in float32."""

    kind: str
    groups: GroupPrecisions
    loss_points: float
    time_ratio: float
    within_budget: bool
    chosen: bool


@dataclass(frozen=True)
class SearchResult:
    """What was chosen, and all that was measured on the way.

    `assignment`: for each part its nodes below float32. `refused`: why graphs could not be made or run,
    once for each part and precision. `evaluations` of the metric were made now, `reused` came from the
    ledger. `speeds` and `time_ratio` are those of the second measurement, on `measured_on`.
    """

    assignment: Mapping[str, Assignment]
    groups: GroupPrecisions
    metric_fp32: float
    metric: float
    loss_points: float
    time_ratio: float
    speeds: Mapping[str, Speed]
    measured_on: str
    points: tuple[SearchPoint, ...]
    refused: tuple[str, ...]
    evaluations: int
    reused: int
    damaged_lines: int


def search(
    problem: SearchProblem,
    ledger: SearchLedger,
    progress: Progress = lambda stage, item, share: None,
) -> SearchResult:
    """Search; the loss of what is returned was measured and is within the budget.

    It is float32 throughout where nothing else is faster within the budget. Can be interrupted at any
    moment, and resumed with the same ledger. Raises FusedgeError where the metric of the float32 graphs
    is no number.
    """
    if not problem.budget_points >= 0:
        raise FusedgeError(
            f"a budget of {problem.budget_points} points is not possible", hint="0 or more"
        )
    return _Search(problem, ledger, progress).run()


@dataclass(frozen=True)
class _Move:
    """A group of a part at a precision; `saved_s`: time that it saves a second, estimated."""

    part: str
    group: str
    precision: Precision
    loss_points: float = 0.0
    saved_s: float = 0.0

    @property
    def groups(self) -> GroupPrecisions:
        return {self.part: {self.group: self.precision}}

    @property
    def price(self) -> tuple[float, float]:
        """Loss for the time saved; of equal ones, those that save most come first."""
        return max(0.0, self.loss_points) / self.saved_s, -self.saved_s


@dataclass(frozen=True)
class _Found:
    """The measured loss of an assignment."""

    kind: str
    groups: GroupPrecisions
    loss_points: float


@dataclass
class _Search:
    problem: SearchProblem
    ledger: SearchLedger
    progress: Progress
    found: dict[str, _Found] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # the first reason for each kind of graph
    evaluations: int = 0
    reused: int = 0
    planned: int = 1

    def __post_init__(self) -> None:
        problem = self.problem
        self.parts = {part.name: part for part in problem.parts}
        self.groups = {name: node_groups(problem.graphs[name]) for name in self.parts}
        self.able = {
            (name, precision): frozenset(reducible(problem.graphs[name], precision))
            for name in self.parts
            for precision in problem.precisions
            if precision != "int8" or name in problem.calibrations
        }
        self.tools = "\n".join(f"{k} {v}" for k, v in sorted(tool_versions().items()))
        self.full = {name: _bytes(problem.graphs[name]) for name in self.parts}
        self.speeds: dict[str, Speed | None] = {}
        self.baseline_s: dict[str, float] = {}

    def run(self) -> SearchResult:
        moves = [
            _Move(part, group.name, precision)
            for (part, precision), able in self.able.items()
            for group in self.groups[part]
            if not able.isdisjoint(group.nodes)
        ]
        rounds = _ROUNDS * math.ceil(math.log2(len(moves) + 1))
        self.planned = 3 + len(self.problem.precisions) + len(moves) + rounds
        self._tell("metric, float32", "whole model")
        self.fp32 = float(self.problem.metric(self.full))
        self.evaluations += 1
        if not math.isfinite(self.fp32):
            raise FusedgeError("the metric of the float32 graphs is no number", where="search")
        self._consider("float32", {})
        fastest = self._fastest_uniform(moves)
        base = fastest if self._within(self._consider("fastest", fastest)) else {}
        measured = (self._measured(move) for move in moves if move.part not in base)
        self._greedy(base, [move for move in measured if move is not None])
        return self._chosen()

    def _fastest_uniform(self, moves: Sequence[_Move]) -> GroupPrecisions:
        """Each precision for all groups; then for each part the fastest, where it beats float32."""
        fastest: dict[str, tuple[float, Mapping[str, Precision]]] = {}
        for precision in self.problem.precisions:
            groups = _together([move for move in moves if move.precision == precision])
            for part, chosen in groups.items():
                speed = self._speed(part, chosen)
                if speed and speed.faster and speed.ratio < fastest.get(part, (1.0, {}))[0]:
                    fastest[part] = speed.ratio, chosen
            self._consider(f"all {precision}", groups)
        return {part: chosen for part, (_, chosen) in fastest.items()}

    def _measured(self, move: _Move) -> _Move | None:
        """The move with its loss and the time it saves; None where it saves none, or loses too much."""
        able = self.able[move.part, move.precision]
        whole = {
            group.name: move.precision
            for group in self.groups[move.part]
            if not able.isdisjoint(group.nodes)
        }
        if self._speed(move.part, {move.group: move.precision}) is None:
            return None
        saved = self._saved_s(move.part, {move.group: move.precision})
        if saved <= 0:
            # Alone its casts cost more than it saves. Among others they fall away: an equal share counts.
            saved = self._saved_s(move.part, whole) / len(whole)
        if saved <= 0:
            return None
        found = self._consider("one group", move.groups, prune=False)
        if not self._within(found):
            return None
        return _Move(move.part, move.group, move.precision, found.loss_points, saved)

    def _greedy(self, base: GroupPrecisions, moves: Sequence[_Move]) -> None:
        accepted: list[_Move] = []
        rest = sorted(moves, key=lambda move: move.price)
        for _ in range(_ROUNDS):
            low, high = 0, len(rest)  # so many moves are surely within, at most so many can be
            while low < high:
                count = (low + high + 1) // 2
                taken = {**base, **_together([*accepted, *rest[:count]])}
                if self._within(self._consider("greedy", taken)):
                    low = count
                else:
                    high = count - 1
            accepted += rest[:low]
            rest = rest[low + 1 :]

    def _consider(self, kind: str, groups: GroupPrecisions, prune: bool = True) -> _Found:
        """Measure the loss of an assignment, less the parts that it does not make faster."""
        kept = {
            part: chosen
            for part, chosen in groups.items()
            if (speed := self._speed(part, chosen)) is not None and (speed.faster or not prune)
        }
        key = json.dumps(kept, sort_keys=True)
        if key not in self.found:
            loss = self._loss(self._score(kind, kept)) if kept else 0.0
            self.found[key] = _Found(kind, kept, loss)
        return self.found[key]

    def _within(self, found: _Found) -> bool:
        return found.loss_points <= self.problem.budget_points

    def _chosen(self) -> SearchResult:
        """The fastest of what was found that holds when it is measured anew; float32 always does."""
        able = [
            found
            for found in self.found.values()
            if self._within(found) and all(self._faster(p, c) for p, c in found.groups.items())
        ]
        for found in sorted(able, key=lambda found: self._time_ratio(found.groups)):
            if not found.groups:
                return self._result({}, self.fp32)
            if not all(self._faster(p, chosen, again=True) for p, chosen in found.groups.items()):
                continue
            score = self._score("verify", found.groups, again=True)
            if self._loss(score) <= self.problem.budget_points:
                return self._result(found.groups, score)
        raise AssertionError("float32 loses nothing")

    def _result(self, groups: GroupPrecisions, score: float) -> SearchResult:
        speeds = {part: self._speed(part, chosen, again=True) for part, chosen in groups.items()}
        self.progress("done", "precision search", 1.0)
        return SearchResult(
            assignment={part: self._assignment(part, chosen) for part, chosen in groups.items()},
            groups=groups,
            metric_fp32=self.fp32,
            metric=score,
            loss_points=self._loss(score),
            time_ratio=self._time_ratio(groups, again=True),
            speeds={part: speed for part, speed in speeds.items() if speed is not None},
            measured_on=self.problem.speed_identity,
            points=tuple(
                SearchPoint(
                    found.kind,
                    found.groups,
                    found.loss_points,
                    self._time_ratio(found.groups),
                    self._within(found),
                    found.groups == groups,
                )
                for found in self.found.values()
            ),
            refused=tuple(dict.fromkeys(self.refused.values())),
            evaluations=self.evaluations,
            reused=self.reused,
            damaged_lines=self.ledger.damaged,
        )

    def _loss(self, score: float) -> float:
        """Points; a score that is no number loses everything."""
        return (self.fp32 - score) * 100 if math.isfinite(score) else math.inf

    def _assignment(self, part: str, chosen: Mapping[str, Precision]) -> Assignment:
        return {
            node: chosen[group.name]
            for group in self.groups[part]
            if group.name in chosen
            for node in group.nodes
            if node in self.able[part, chosen[group.name]]
        }

    def _graph(self, part: str, chosen: Mapping[str, Precision]) -> onnx.ModelProto:
        return reduce_graph(
            self.problem.graphs[part],
            self.parts[part],
            self._assignment(part, chosen),
            self.problem.calibrations.get(part),
        )

    def _tell(self, stage: str, item: str) -> None:
        self.progress(stage, item, min(1.0, (self.evaluations + self.reused) / self.planned))

    def _score(self, kind: str, groups: GroupPrecisions, again: bool = False) -> float:
        """The metric, from the ledger where it is there; `again` is another measurement of the same."""
        graphs = self.full | {
            part: _bytes(self._graph(part, chosen)) for part, chosen in groups.items()
        }
        reduced = ", ".join(f"{part}: {len(chosen)} groups" for part, chosen in groups.items())
        self._tell(f"metric, {kind}", reduced or "whole model")
        ordered = (item for part in sorted(graphs) for item in (part, graphs[part]))
        asked = f"metric {again} {self.fp32!r}"
        key = key_of(asked, self.problem.metric_identity, self.tools, *ordered)
        record = self.ledger.get(key)
        if record is not None:
            self.reused += 1
            return math.nan if record["score"] is None else float(record["score"])
        score = float(self.problem.metric(graphs))
        self.evaluations += 1
        kept = score if math.isfinite(score) else None
        self.ledger.put(key, {"kind": "metric", "score": kept, "groups": groups})
        return score

    def _speed(
        self, part: str, chosen: Mapping[str, Precision], again: bool = False
    ) -> Speed | None:
        """The speed of a part against its float32 graph; None where it cannot be made or run."""
        memory = json.dumps([part, chosen, again], sort_keys=True)
        if memory not in self.speeds:
            try:
                self.speeds[memory] = self._measured_speed(part, chosen, again)
            except FusedgeError as error:
                self.refused.setdefault(f"{part} {sorted(set(chosen.values()))}", error.line())
                self.speeds[memory] = None
        return self.speeds[memory]

    def _measured_speed(self, part: str, chosen: Mapping[str, Precision], again: bool) -> Speed:
        graph = _bytes(self._graph(part, chosen))
        full = self.full[part]
        key = key_of(f"speed {again}", self.problem.speed_identity, self.tools, part, full, graph)
        record = self.ledger.get(key)
        if record is None:
            self._tell("speed", part)
            speed = asdict(self.problem.speed(part, graph))
            record = {"kind": "speed", "part": part, "speed": speed, "groups": chosen}
            self.ledger.put(key, record)
        found = Speed(**record["speed"])
        self.baseline_s.setdefault(part, found.baseline_s)
        return found

    def _faster(self, part: str, chosen: Mapping[str, Precision], again: bool = False) -> bool:
        speed = self._speed(part, chosen, again)
        return speed is not None and speed.faster

    def _load(self, part: str) -> float:
        """Seconds of the float32 part in a second of operation, or in a run of a model without a rate."""
        return self.baseline_s.get(part, 0.0) * (self.parts[part].rate_hz or 1.0)

    def _saved_s(self, part: str, chosen: Mapping[str, Precision]) -> float:
        speed = self._speed(part, chosen)
        return self._load(part) * (1 - speed.ratio) if speed is not None and speed.faster else 0.0

    def _time_ratio(self, groups: GroupPrecisions, again: bool = False) -> float:
        total = sum(self._load(part) for part in self.parts)
        reduced = 0.0
        for part in self.parts:
            speed = self._speed(part, groups[part], again) if part in groups else None
            reduced += self._load(part) * (speed.ratio if speed is not None else 1.0)
        return reduced / total if total else 1.0


def _together(moves: Sequence[_Move]) -> GroupPrecisions:
    """All moves at once; of two of one group the one that saves more."""
    best: dict[tuple[str, str], _Move] = {}
    for move in moves:
        key = move.part, move.group
        if key not in best or move.saved_s > best[key].saved_s:
            best[key] = move
    groups: dict[str, dict[str, Precision]] = {}
    for (part, group), move in sorted(best.items()):
        groups.setdefault(part, {})[group] = move.precision
    return groups


def _bytes(graph: onnx.ModelProto) -> bytes:
    data: bytes = graph.SerializeToString(deterministic=True)
    return data
