"""A picture of a session: probabilities, contributions and, where a bundle has any, events over time."""

from __future__ import annotations

import importlib.util
from collections import deque
from pathlib import Path
from typing import IO, Any

import numpy as np

from fusedge.bundle.errors import FusedgeError, MissingExtraError, printable
from fusedge.bundle.window import NANOSECONDS
from fusedge.runtime.decision import Classification, Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Entry
from fusedge.runtime.sinks.sink import Sink

TITLE = 160  # characters that fit over the picture
PNG = b"\x89PNG"
# Of modalities, as dark as no label's colour is, and told apart without colours.
MODALITY_STYLES = (
    ("#000000", "-"), ("#5b3a1e", "--"), ("#26456e", "-."), ("#4d5d1a", ":"),
    ("#6b2147", (0, (5, 1, 1, 1, 1, 1))), ("#3f3f74", (0, (1, 1))),
)  # fmt: skip
MAX_DECISIONS = 24 * 3600  # a day at one a second; the oldest go first


class TimelineSink(Sink):
    """Writes a PNG when the session ends. Needs matplotlib (extra `plot`), told at once."""

    closing_s = 60.0  # matplotlib draws a day in 20 s

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingExtraError("matplotlib", "plot", "the timeline picture")
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._stream: IO[bytes] | None = None
        self._title = ""
        self._has_events = False
        self._decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)
        self._events: dict[tuple[str, int], Event] = {}

    def open(self, header: dict[str, Any]) -> None:
        """Remember what the picture is of, and make sure that it can be written."""
        self._title = printable(f"{header['bundle']} on {', '.join(header['sources'])}")
        self._has_events = bool(header["events"])
        try:
            if self._path.exists() and not self._is_picture():
                raise FusedgeError(
                    "is there and no picture, so it is not replaced",
                    where=str(self._path),
                    hint="choose another name with --picture",
                )
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._partial.open("wb")
        except OSError as error:
            raise self._cannot_write(error) from None

    def _is_picture(self) -> bool:
        if not self._path.is_file():
            return False
        with self._path.open("rb") as stream:
            return stream.read(len(PNG)) == PNG

    def write(self, item: Decision | Event | Entry) -> None:
        """Keep what will be drawn."""
        if isinstance(item, Decision):
            self._decisions.append(item)
        elif isinstance(item, Event) and (
            len(self._events) < MAX_DECISIONS or (item.name, item.number) in self._events
        ):
            self._events[item.name, item.number] = item  # the newest record tells the whole event

    def close(self, summary: dict[str, Any]) -> None:
        """Draw and save; the picture is there whole or not at all."""
        if self._stream is None:
            return
        try:
            with self._stream as stream:
                if self._decisions:
                    self._draw(stream)
            if self._decisions:
                self._partial.replace(self._path)
        except OSError as error:
            raise self._cannot_write(error) from None
        finally:
            self._partial.unlink(missing_ok=True)

    def _cannot_write(self, error: OSError) -> FusedgeError:
        return FusedgeError(
            f"cannot write the picture: {error.strerror or error}",
            where=str(self._path),
            hint="choose another file or folder",
        )

    def _draw(self, stream: IO[bytes]) -> None:
        from matplotlib.figure import Figure

        output = next(iter(self._decisions[0].outputs))
        heights = [3.3, 2.2, 1.5] if self._has_events or self._events else [3.3, 2.2]  # inches
        figure = Figure(figsize=(11, sum(heights)), layout="constrained")
        shares, contributions, *events = figure.subplots(
            len(heights), 1, sharex=True, height_ratios=heights
        )
        times = [d.timestamp_ns / NANOSECONDS for d in self._decisions]
        self._draw_shares(shares, times, output)
        self._draw_contributions(contributions, times, output)
        for axes in events:
            self._draw_events(axes)
        figure.axes[-1].set_xlabel("time in s")
        figure.suptitle(self._title[:TITLE], x=0.01, ha="left", fontsize=10, parse_math=False)
        figure.savefig(stream, dpi=110, format="png")

    def _draw_shares(self, axes: Any, times: list[float], output: str) -> None:
        classifications = [d.outputs[output] for d in self._decisions]
        labels = classifications[0].labels
        for index, label in enumerate(labels):
            axes.plot(
                times,
                [_share(c, label) for c in classifications],
                color=f"C{index}",
                label=label,
            )
            chosen = [c.label == label for c in classifications]
            _strip(axes, times, chosen, -0.06, f"C{index}")
        axes.set_ylim(-0.08, 1.02)
        axes.set_ylabel(f"{output}: smoothed probability\n(strip: decided label)")
        _legend(axes, len(labels))

    def _draw_contributions(self, axes: Any, times: list[float], output: str) -> None:
        modalities = list(self._decisions[0].modalities)
        for index, name in enumerate(modalities):
            values = [
                d.outputs[output].contributions[name] if d.modalities[name].present else None
                for d in self._decisions
            ]
            color, line = MODALITY_STYLES[index % len(MODALITY_STYLES)]
            drawn = [float("nan") if v is None else v for v in values]
            axes.plot(times, drawn, color=color, linestyle=line, label=name)
        low, high = axes.get_ylim()
        step = (high - low) * 0.08
        for index, name in enumerate(modalities):
            missing = [not d.modalities[name].present for d in self._decisions]
            color, _ = MODALITY_STYLES[index % len(MODALITY_STYLES)]
            _strip(axes, times, missing, low - step * (index + 1), color, step / 2)
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set_ylabel("contribution to the label\n(strips: missing)")
        _legend(axes, len(modalities))

    def _draw_events(self, axes: Any) -> None:
        names = sorted({name for name, _ in self._events})
        for row, name in enumerate(names):
            own = [event for (kind, _), event in self._events.items() if kind == name]
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
        axes.set_ylabel("events\n(thick: high)")


def _share(decided: Classification, label: str) -> float:
    """The smoothed probability, NaN where there is none; a bundle that was changed to may have another
    order of labels.
    """
    if decided.mean is None:
        return float("nan")
    return float(decided.mean[decided.labels.index(label)])


def _strip(
    axes: Any,
    times: list[float],
    flags: list[bool],
    bottom: float,
    color: str,
    height: float = 0.04,
) -> None:
    """A bar over the time of every flagged decision, which lasts until the next one."""
    last = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1.0)
    edges = np.repeat([*times, last], 2)[1:-1]
    marked = np.repeat(flags, 2)
    axes.fill_between(edges, bottom, bottom + height, where=marked, color=color, linewidth=0)


def _legend(axes: Any, columns: int) -> None:
    """A row of names above the axes; a name is text, whatever signs of mathematics it has."""
    legend = axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, fontsize=9, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
