"""`fusedge eval driving`: drivers left out in turn, through export and runtime."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from fusedge.bundle.regular_file import write_whole
from fusedge.cli.console import console, print_json
from fusedge.cli.crossvalidation import LEFT, CrossValidation, Run
from fusedge.cli.driving_task import read_recordings
from fusedge.cli.options import forget
from fusedge.devices.capture.replay.uah import find_trips
from fusedge.models import driving, protocols
from fusedge.models.metrics import matched_events
from fusedge.models.training import TrainingConfig

if TYPE_CHECKING:
    from fusedge.bundle.sample import Recording
    from fusedge.models.protocols import Score

HIDDEN_SHARE = 0.1
EVENT_TOLERANCE_S = 2.0


def evaluate_driving(data: Path, out: Path, seed: int, fresh: bool, as_json: bool) -> None:
    """Measure all, write `eval.json` into the folder `out`, and print it. Raises FusedgeError.

    What is found there of earlier calls is not done again, unless `fresh`, which forgets it.
    """
    recordings = read_recordings(data)
    if fresh:
        forget(out, ("eval.json", *LEFT))
    names = [m.name for m in driving.modalities()]
    validation = CrossValidation(
        {path.name: path for path in find_trips(data)},
        out,
        TrainingConfig(seed=seed),
        lambda what: console.print(what, style="dim", markup=False),
    )
    figures: dict[str, dict[str, Score]] = {}
    events: dict[str, dict[str, float]] = {}

    def keep(name: str, runs: list[Run]) -> None:
        window = protocols.score([run.momentary for run in runs])
        emitted = protocols.score([run.steady for run in runs])
        figures[name] = {"window": window, "emitted": emitted}
        console.print(
            f"{name}: macro-F1 {window.macro_f1:.3f}, of emitted labels {emitted.macro_f1:.3f}",
            markup=False,
        )

    folds = validation.leave_one_driver_out(recordings)
    for shown in reversed(protocols.subsets(names)):
        without = [name for name in names if name not in shown]
        trips = [(fold.model, trip) for fold in folds for trip in fold.test]
        runs = [validation.run(bundle, trip, without) for bundle, trip in trips]
        keep(f"leave one driver out, {' + '.join(shown)}", runs)
        if not without:
            events = _event_scores(runs, [trip for _, trip in trips])
    for name in names:
        alone = CrossValidation(
            validation.paths,
            out / f"only-{name}",
            TrainingConfig(seed=seed, modalities=(name,)),
            validation.say,
        )
        single = alone.leave_one_driver_out(recordings)
        others = [other for other in names if other != name]
        keep(
            f"leave one driver out, trained on {name} alone",
            [alone.run(f.model, trip, others) for f in single for trip in f.test],
        )
    road = protocols.condition_transfer(
        recordings,
        "motorway",
        "secondary",
        lambda rest: validation.bundle(rest, "motorway-only"),
    )
    keep("motorway to secondary road", [validation.run(road.model, t) for t in road.test])
    leaky = validation.leaky(recordings, HIDDEN_SHARE, seed)
    figures["LEAKY random split of windows"] = {"window": leaky}
    style = {name: {k: asdict(s) for k, s in pair.items()} for name, pair in figures.items()}
    for pair in style.values():
        if "emitted" in pair:  # labels have no probability to be calibrated
            del pair["emitted"]["calibration_error"]
    report = {"style": style, "events": events}
    write_whole(out / "eval.json", json.dumps(report, indent=1).encode() + b"\n")
    if as_json:
        print_json(report)
    else:
        console.print(_table(figures))
        console.print(_event_table(events))
        console.print(f"wrote {out / 'eval.json'}", markup=False)


def _event_scores(runs: list[Run], trips: list[Recording]) -> dict[str, dict[str, float]]:
    """Precision and recall of each event rule against the events that the recordings' app reported."""
    scores = {}
    for name in sorted({kind for trip in trips for kind, _, _ in trip.reference_events}):
        hits = found = known = 0
        for run, trip in zip(runs, trips, strict=True):
            own = sorted(time_s for event, time_s in run.events if event == name)
            reference = sorted(time_s for kind, _, time_s in trip.reference_events if kind == name)
            hits += matched_events(own, reference, EVENT_TOLERANCE_S)
            found, known = found + len(own), known + len(reference)
        scores[name] = {
            "reported": known,
            "found": found,
            "precision": hits / max(1, found),
            "recall": hits / max(1, known),
            "f1": 2 * hits / max(1, found + known),
        }
    return scores


def _event_table(events: dict[str, dict[str, float]]) -> Table:
    table = Table(title="events, against the recordings' app", title_justify="left")
    for column in ("event", "reported", "found", "precision", "recall", "F1"):
        table.add_column(column)
    for name, row in events.items():
        shares = (f"{row[key]:.2f}" for key in ("precision", "recall", "f1"))
        table.add_row(name, f"{row['reported']:.0f}", f"{row['found']:.0f}", *shares)
    return table


def _table(figures: dict[str, dict[str, Score]]) -> Table:
    table = Table(
        title="macro-F1: of each 30 s window alone, and of the smoothed labels that are emitted",
        title_justify="left",
    )
    for column in ("protocol", "window", "emitted", "trips by vote", "ECE"):
        table.add_column(column)
    for name, pair in figures.items():
        window, emitted = pair["window"], pair.get("emitted")
        table.add_row(
            name,
            f"{window.macro_f1:.3f}",
            f"{emitted.macro_f1:.3f}" if emitted else "",
            f"{window.trips_right}/{window.trips}",
            f"{window.calibration_error:.3f}",
        )
    return table
