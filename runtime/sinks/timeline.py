"""A picture of a session: probabilities, contributions and events over time."""

from __future__ import annotations

import importlib.util
from collections import deque
from pathlib import Path
from typing import Any

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.window import NANOSECONDS
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event

MAX_DECISIONS = 24 * 3600  # a day at one a second; the oldest go first


class TimelineSink:
    """Writes a PNG when the session ends. Needs matplotlib (extra `plot`), told at once."""

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingExtraError("matplotlib", "plot", "the timeline picture")
        self._path = path
        self._title = ""
        self._decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self._events: deque[Event] = deque(maxlen=MAX_DECISIONS)

    def open(self, header: dict[str, Any]) -> None:
        """Remember what the picture is of."""
        self._title = f"{header['bundle']} on {', '.join(header['sources'])}"

    def write(self, item: Decision | Event) -> None:
        """Keep what will be drawn."""
        if isinstance(item, Decision):
            self._decisions.append(item)
        elif item.phase == "end":
            self._events.append(item)

    def close(self, summary: dict[str, Any]) -> None:
        """Draw and save."""
        from matplotlib.figure import Figure

        first = next((d for d in self._decisions if d.outputs), None)
        if first is None:
            return
        output = next(iter(first.outputs))
        figure = Figure(figsize=(11, 7), layout="constrained")
        shares, contributions, events = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 1])
        times = [d.timestamp_ns / NANOSECONDS for d in self._decisions]
        self._draw_shares(shares, times, output)
        self._draw_contributions(contributions, times, list(first.modalities))
        self._draw_events(events)
        shares.set_title(self._title, parse_math=False, loc="left", fontsize=10)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(self._path, dpi=110, format="png")
        except OSError as error:
            raise FusedgeError(
                f"cannot write the picture: {error.strerror or error}", where=str(self._path)
            ) from None

    def _draw_shares(self, axes: Any, times: list[float], output: str) -> None:
        classifications = [d.outputs[output] for d in self._decisions]
        labels = classifications[0].labels
        gap = [float("nan")] * len(labels)
        for index, label in enumerate(labels):
            axes.plot(
                times,
                [(gap if c.mean is None else c.mean)[index] for c in classifications],
                color=f"C{index}",
                label=label,
            )
            chosen = [c.label == label for c in classifications]
            axes.fill_between(
                times, -0.06, -0.02, where=chosen, color=f"C{index}", step="post", linewidth=0
            )
        axes.set_ylim(-0.08, 1.02)
        axes.set_ylabel(f"{output}: smoothed probability\n(strip: decided label)")
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=len(labels), fontsize=9, frameon=False
        )

    def _draw_contributions(self, axes: Any, times: list[float], modalities: list[str]) -> None:
        for index, name in enumerate(modalities):
            values = [
                d.modalities[name].contribution if d.modalities[name].present else float("nan")
                for d in self._decisions
            ]
            axes.plot(times, values, color=f"C{index + 5}", label=name)
        low, high = axes.get_ylim()
        step = (high - low) * 0.06
        for index, name in enumerate(modalities):
            missing = [not d.modalities[name].present for d in self._decisions]
            level = low - step * (index + 1)
            axes.fill_between(
                times,
                level,
                level + step * 0.7,
                where=missing,
                color=f"C{index + 5}",
                step="post",
                linewidth=0,
            )
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set_ylabel("contribution to the label\n(strips: missing)")
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=len(modalities),
            fontsize=9,
            frameon=False,
        )

    def _draw_events(self, axes: Any) -> None:
        names = sorted({event.name for event in self._events})
        for row, name in enumerate(names):
            own = [event for event in self._events if event.name == name]
            starts = [e.timestamp_ns / NANOSECONDS - e.duration_s for e in own]
            axes.barh(
                [row] * len(own),
                [max(e.duration_s, 0.3) for e in own],
                left=starts,
                height=[0.25 * e.level for e in own],
                color=f"C{row}",
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, max(len(names), 1) - 0.4)
        axes.set_xlabel("time in s")
        axes.set_ylabel("events\n(thick: higher level)")
