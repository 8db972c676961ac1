"""A live table in the terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fusedge.bundle.errors import printable
from fusedge.bundle.window import NANOSECONDS
from fusedge.runtime.clock import stopwatch_ns
from fusedge.runtime.decision import NOTHING_PRESENT, Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Entry
from fusedge.runtime.sinks.problem_words import why_undecided
from fusedge.runtime.sinks.sink import Sink

REFRESH_NS = 100_000_000
BAR_CELLS = 24


class TableSink(Sink):
    """Shows the newest decision, and the last events of a bundle that has any, redrawn at most ten times a
    second.
    """

    name = "table"

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._title = ""
        self._fronts: dict[str, str] = {}
        self._has_events = False
        self._events: deque[Event] = deque(maxlen=4)
        self._decision: Decision | None = None
        self._drawn_ns = 0

    def open(self, header: dict[str, Any]) -> None:
        """Start the display."""
        self._title = printable(f"{header['bundle']} on {', '.join(header['sources'])}")
        self._fronts = header.get("fronts", {})
        self._has_events = bool(header["events"])
        for warning in header["warnings"]:
            self._console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def write(self, item: Decision | Event | Entry) -> None:
        """Take a decision or event."""
        if isinstance(item, Event):
            self._has_events = True  # of a bundle that was changed to
            if item.phase != "end":
                self._events.append(item)
            return
        if not isinstance(item, Decision):
            return
        self._decision = item
        now_ns = stopwatch_ns()
        if now_ns - self._drawn_ns >= REFRESH_NS:
            self._drawn_ns = now_ns
            self._draw()

    def close(self, summary: dict[str, Any]) -> None:
        """Draw the last state and leave it on the screen."""
        if self._live is not None:
            self._draw()
            self._live.stop()
            if not self._console.is_terminal:
                self._console.print()  # rich ends the last drawing without a line break there
            self._live = None

    def _draw(self) -> None:
        if self._live is not None and self._decision is not None:
            shown = _render(self._title, self._decision, self._fronts)
            if self._has_events:
                shown.renderables.extend(_recent(self._events))
            self._live.update(shown, refresh=True)


def _bar(share: float) -> Text:
    """A bar of fixed width for a value from -1 to 1; negative ones are red."""
    cells = min(BAR_CELLS, round(abs(share) * BAR_CELLS))
    return Text("█" * cells + "·" * (BAR_CELLS - cells), style="green" if share >= 0 else "red")


def _render(title: str, decision: Decision, fronts: Mapping[str, str]) -> Group:
    time_s = decision.timestamp_ns / NANOSECONDS
    heading = Text(f"{title}   t = {time_s:.1f} s", "italic")
    outputs = Table(expand=False)
    for column in ("output", "label", "probability", ""):
        outputs.add_column(column)
    for name, output in decision.outputs.items():
        if output.mean is None:
            why = why_undecided(decision, fronts)
            kind = "none" if decision.problem == NOTHING_PRESENT else "invalid"
            outputs.add_row(name, kind, "", Text(printable(why)))
            continue
        for label, share in zip(output.labels, output.mean, strict=True):
            style = "bold" if label == output.label else "dim"
            outputs.add_row(name, Text(label, style), f"{share:.2f}", _bar(float(share)))
            name = ""
    rests_on = Table(expand=False)
    for column in ("modality", "state", "age", "contribution", ""):
        rests_on.add_column(column)
    contributions = next(iter(decision.outputs.values())).contributions
    for name, share in decision.modalities.items():
        contribution = contributions.get(name) or 0.0
        state = Text("present", "green") if share.present else Text("missing", "bold red")
        age = "" if share.age_s is None else f"{share.age_s:.2f} s"
        rests_on.add_row(
            name, state, age, f"{round(contribution, 2) + 0.0:+.2f}", _bar(contribution)
        )
    return Group(heading, outputs, rests_on)


def _recent(events: Iterable[Event]) -> list[Text]:
    """The events, newest first."""
    lines = [
        Text(f"{e.timestamp_ns / NANOSECONDS:7.1f} s  {e.name} level {e.level}  peak {e.peak:+.2f}")
        for e in events
    ]
    return [Text("last events", "bold"), *(lines[::-1] or [Text("none yet")])]
