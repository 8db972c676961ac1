"""Cross-validation of the driving model as it ships: each fold's bundle, run by the runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.archive import Bundle
from fusedge.bundle.sample import Recording
from fusedge.bundle.window import NANOSECONDS
from fusedge.cli.driving_task import load_driving
from fusedge.export.kept_bundle import NOTE, exported
from fusedge.models import driving
from fusedge.models.driving_training import WEIGHTS, make_drives, train_driving
from fusedge.models.prediction import predict
from fusedge.models.protocols import Fold, Judged, Score, leaky_split, leave_one_group_out, score
from fusedge.models.training import TrainingConfig
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.decision import NOTHING_PRESENT
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.memory import MemorySink

OUTPUT = driving.STYLE.name
BUNDLE = "fold.fusedge"
LEFT = tuple(
    f"{fold}/{file}"
    for fold in ("without-*", "only-*/without-*", "motorway-only", "leaky")
    for file in ("checkpoint.safetensors", WEIGHTS, BUNDLE, BUNDLE + NOTE)
)
"""Patterns of what is left in the folder of an evaluation."""


@dataclass(frozen=True)
class Run:
    """What a bundle decided on one trip: of the window alone, and the steady label that it emits.

    `events` are the `(name, seconds)` at which its rules saw one begin.
    """

    momentary: Judged
    steady: Judged
    events: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class CrossValidation:
    """Trains and exports folds into `folder`, where a later call finds them again.

    `paths` names the folder of every trip. `say` is told what begins.
    """

    paths: Mapping[str, Path]
    folder: Path
    recipe: TrainingConfig
    say: Callable[[str], None]

    def bundle(self, recordings: Sequence[Recording], name: str) -> Bundle:
        """The exported bundle of a fold, at fp32 and through the parity gate."""
        self.say(f"train {name}: {len(recordings)} trips")
        trained = train_driving(recordings, self.folder / name, recipe=self.recipe)
        model, task = load_driving(trained.path)
        return exported(model, task, self.folder / name / BUNDLE, self.say)

    def leave_one_driver_out(self, recordings: Sequence[Recording]) -> list[Fold[Bundle]]:
        """The bundle of each fold, and the trips of the driver that it has not seen."""
        drivers = {recording.group for recording in recordings}

        def fold(rest: Sequence[Recording]) -> Bundle:
            left_out = drivers - {recording.group for recording in rest}
            return self.bundle(rest, f"without-{'-'.join(sorted(left_out))}")

        return leave_one_group_out(recordings, fold)

    def run(self, bundle: Bundle, recording: Recording, without: Sequence[str] = ()) -> Run:
        """Replay a trip through the runtime, and keep the decisions that rest on a whole window."""
        memory = MemorySink()
        uri = f"replay:{self.paths[recording.name]}"
        report = run(Session(bundle, [uri], VirtualClock(), without=without), [memory])
        if not report.summary["ledger_balanced"]:
            raise AssertionError(f"the ledger of {recording.name} does not balance")
        stamps = [s.timestamps_ns[0] for s in recording.series.values() if len(s.timestamps_ns)]
        first_ns = int(min(stamps)) + round(driving.WINDOW_S * NANOSECONDS)
        outputs = [
            d.outputs[OUTPUT]
            for d in memory.decisions
            if d.timestamp_ns >= first_ns and d.problem != NOTHING_PRESENT
        ]
        probabilities = np.array([o.probabilities for o in outputs], np.float64)
        chosen = np.eye(len(driving.LABELS))[[driving.LABELS.index(str(o.label)) for o in outputs]]
        label = driving.LABELS.index(recording.label)

        def judged(values: NDArray[np.float64]) -> Judged:
            return Judged(recording.name, recording.group, label, values)

        events = tuple(
            (e.name, e.timestamp_ns / NANOSECONDS) for e in memory.events if e.phase == "start"
        )
        return Run(judged(probabilities), judged(chosen), events)

    def leaky(self, recordings: Sequence[Recording], share: float, seed: int) -> Score:
        """The usual random split of overlapping windows, which LEAKS; by torch, in one training."""
        modalities = driving.modalities(driving.gps_latency(recordings))
        drives = make_drives(recordings, modalities)
        hidden = leaky_split([len(drive.ticks) for drive in drives], share, seed)
        self.say("train leaky: for comparison only")
        folder = self.folder / "leaky"
        trained = train_driving(recordings, folder, recipe=self.recipe, hidden=hidden)
        judged = []
        for drive, mask in zip(drives, hidden, strict=True):
            probabilities = predict(trained.model, drive, modalities)
            held_out = mask & (drive.ticks >= driving.WINDOW_S)
            judged.append(Judged(drive.name, drive.group, drive.label, probabilities[held_out]))
        return score(judged)
