"""A decision as a picture: the frame with the faces in it, and beside it what was decided and on what."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import printable
from fusedge.bundle.window import NANOSECONDS
from fusedge.devices.capture.pixels import opencv
from fusedge.runtime.decision import Classification, Decision, ModalityShare
from fusedge.runtime.front.sighting import SpeechHeard, View
from fusedge.runtime.sinks.problem_words import why_undecided

Picture = NDArray[np.uint8]
_Colour = tuple[int, int, int]

PANEL_SHARE, LEAST_PANEL, MOST_PANEL = 0.3, 200, 560  # of the width, and pixels
ROWS_WIDE = 12.0  # rows that the panel is wide: the longest of our labels fits beside its bar
MOST_ROW = 44.0  # pixels
CAPITAL = 0.4  # of a row: the height of its letters
LABEL_CAPITAL = 0.65  # of a row, in the decided label, which takes two
TAG_CAPITAL = 1 / 45  # of the frame's height as it is shown …
LEAST_TAG = 8.0  # … and pixels
GAP_ROWS = 0.5

_GROUND, _TROUGH = (24, 26, 30), (52, 56, 64)
_BRIGHT, _DIM = (240, 240, 240), (150, 156, 166)
_DRIVES, _OTHER = (96, 214, 120), (235, 200, 90)  # a face that drives, and one that does not
_AGAINST = (226, 96, 88)


def draw(
    width: int,
    height: int,
    decision: Decision,
    view: View | None,
    fronts: Mapping[str, str],
    title: str = "",
) -> Picture:
    """The picture, uint8 `[height, width, 3]`, RGB, of at least 32 pixels each way.

    Left is the frame of `view` as large as it fits, with a box and the number of every face; the box of
    the one that drives is thicker, and green; where it reaches over the frame it is drawn at the frame's
    edge. The panel beside it, or all of the picture where there is
    no view, has each output's label with its smoothed probability and a bar for each label, then each
    modality: its age and what it contributed (red: against the label) or that it is missing, and how
    probable it is that somebody speaks. `fronts` are the kinds of front ends by modality. What does not
    fit is made smaller.

    Raises MissingExtraError without OpenCV.
    """
    cv2 = opencv("drawing a window")
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = _GROUND
    panel = width
    if view is not None:
        panel = min(round(min(max(PANEL_SHARE * width, LEAST_PANEL), MOST_PANEL)), width // 2)
        _draw_view(cv2, canvas[:, : width - panel], view)
    said = why_undecided(decision, fronts, () if view is None else (view.seen,))
    _Panel(cv2, canvas[:, width - panel :], decision).draw(decision, said, title)
    return canvas


def _draw_view(cv2: Any, canvas: Picture, view: View) -> None:
    """The frame in the middle of the canvas, as large as it fits."""
    height, width = view.frame.shape[:2]
    scale = min(canvas.shape[1] / width, canvas.shape[0] / height)
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (canvas.shape[1] - across) // 2, (canvas.shape[0] - down) // 2
    place = canvas[top : top + down, left : left + across]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    place[:] = cv2.resize(view.frame, (across, down), interpolation=how)
    letters = max(LEAST_TAG, TAG_CAPITAL * down)
    for face in sorted(view.seen.faces, key=lambda face: face.drives):  # it lies on top
        x, y, box_width, box_height = (value * scale for value in face.box)
        colour = _DRIVES if face.drives else _OTHER
        line = max(2, round(letters / 6)) * (3 if face.drives else 1)
        corners = tuple(
            (_inside(at_x, across, line), _inside(at_y, down, line))
            for at_x, at_y in ((x, y), (x + box_width, y + box_height))
        )
        cv2.rectangle(place, *corners, colour, line)
        _tag(cv2, place, corners[0], f"{face.number}", letters, colour)


def _inside(at: float, length: int, line: int) -> int:
    """Where an edge is drawn: a near face's box reaches over the frame, its line is still to be seen."""
    half = line // 2
    return max(half, min(round(at), length - 1 - half))


def _tag(
    cv2: Any, canvas: Picture, corner: tuple[int, int], text: str, letters: float, colour: _Colour
) -> None:
    """A text on a ground of its own over a corner, or below the canvas' edge where there is no room."""
    font = _Font(cv2, letters)
    margin = round(letters / 2)
    wide, high = font.width(text) + 2 * margin, round(letters) + 2 * margin
    x = min(max(0, corner[0]), canvas.shape[1] - wide)
    y = min(max(high, corner[1]), canvas.shape[0])
    cv2.rectangle(canvas, (x, y - high), (x + wide, y), colour, cv2.FILLED)
    font.write(canvas, (x + margin, y - margin), text, _GROUND)


class _Font:
    """OpenCV's own letters; capitals are `height` pixels high."""

    def __init__(self, cv2: Any, height: float) -> None:
        self._cv2, self.height = cv2, height
        self._scale = height / _capital()
        self._line = max(1, round(height / 10))

    def width(self, text: str) -> int:
        """Of a text in pixels."""
        (width, _), _ = self._cv2.getTextSize(
            text, self._cv2.FONT_HERSHEY_SIMPLEX, self._scale, self._line
        )
        return int(width)

    def write(
        self, canvas: Picture, at: tuple[int, int], text: str, colour: _Colour, room: int = 1 << 15
    ) -> None:
        """Write from the left end of the base line on, as much as there is room for."""
        text = printable(text)
        if self.width(text) > room:
            while text and self.width(text + "..") > room:
                text = text[:-1]
            text += ".."
        how = self._cv2.FONT_HERSHEY_SIMPLEX, self._scale, colour, self._line, self._cv2.LINE_AA
        self._cv2.putText(canvas, text, at, *how)


@lru_cache
def _capital() -> int:
    """Pixels of a capital at scale 1: OpenCV 4 and 5 have different ones."""
    cv2 = opencv("drawing a window")
    canvas = np.zeros((64, 64), np.uint8)
    cv2.putText(canvas, "H", (8, 56), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 1)
    return int(canvas.any(axis=1).sum())


class _Panel:
    """Rows of text and bars, from the top to the bottom."""

    def __init__(self, cv2: Any, canvas: Picture, decision: Decision) -> None:
        self._canvas = canvas
        height, width = canvas.shape[:2]
        self._row = min(width / ROWS_WIDE, height / _rows(decision), MOST_ROW)
        self._font = _Font(cv2, CAPITAL * self._row)
        self._large = _Font(cv2, LABEL_CAPITAL * self._row)
        self._left = round(self._row / 2)
        self._wide = width - 2 * self._left
        self._y = self._row / 2

    def draw(self, decision: Decision, said: str, title: str) -> None:
        """All of it."""
        self._line(f"{title}  {decision.timestamp_ns / NANOSECONDS:.1f} s", _DIM)
        for name, output in decision.outputs.items():
            self._y += GAP_ROWS * self._row
            if len(decision.outputs) > 1:
                self._line(name, _DIM)
            self._output(output, said)
        self._y += GAP_ROWS * self._row
        self._line("contributions to the label", _DIM)
        contributions = next(iter(decision.outputs.values())).contributions  # as in the table
        for name, share in decision.modalities.items():
            self._modality(name, share, contributions.get(name))

    def _output(self, output: Classification, said: str) -> None:
        if output.label is None or output.mean is None:
            lines = textwrap.wrap(said, max(1, self._wide // self._font.width("n")), max_lines=2)
            self._y += (2 - len(lines)) / 2 * self._row
            for line in lines:
                self._line(line, _BRIGHT)
            self._y += (2 - len(lines)) / 2 * self._row
        else:
            decided = output.mean[output.labels.index(output.label)]
            self._line(f"{output.label} {decided:.0%}", _DRIVES, self._large, rows=2)
        for place, label in enumerate(output.labels):
            share = None if output.mean is None else float(output.mean[place])
            ink, fill = (_BRIGHT, _DRIVES) if label == output.label else (_DIM, _DIM)
            self._bar(label, share, ink, fill)

    def _modality(self, name: str, share: ModalityShare, contribution: float | None) -> None:
        if share.present:
            age = "" if share.age_s is None else f" {share.age_s:.2f} s"
            against = contribution is not None and contribution < 0
            self._bar(name + age, contribution, _BRIGHT, _AGAINST if against else _DRIVES, "+")
        else:
            self._line(f"{name} missing", _AGAINST)
        if isinstance(share.front, SpeechHeard):
            self._bar("speech", share.front.probability, _DIM, _OTHER)

    def _line(
        self, text: str, colour: _Colour, font: _Font | None = None, rows: float = 1.0
    ) -> None:
        font = font or self._font
        base = round(self._y + (rows * self._row + font.height) / 2)
        font.write(self._canvas, (self._left, base), text, colour, self._wide)
        self._y += rows * self._row

    def _bar(
        self, name: str, share: float | None, ink: _Colour, fill: _Colour, sign: str = ""
    ) -> None:
        """A name, a bar for the magnitude of a share, and the share in per cent; None: nothing is known."""
        begin = self._left + round(0.42 * self._wide)
        end = self._left + self._wide - self._font.width(" +100%")
        top, bottom = round(self._y + 0.25 * self._row), round(self._y + 0.75 * self._row)
        self._canvas[top:bottom, begin:end] = _TROUGH
        base = round(self._y + (self._row + self._font.height) / 2)
        room = begin - self._left - round(self._row / 4)
        if share is not None:
            filled = begin + round(min(1.0, abs(share)) * (end - begin))
            self._canvas[top:bottom, begin:filled] = fill
            text = f"{round(share, 2) + 0.0:{sign}.0%}"  # no -0 %
            x = self._left + self._wide - self._font.width(text)
            self._font.write(self._canvas, (x, base), text, ink)
        self._font.write(self._canvas, (self._left, base), name, ink, room)
        self._y += self._row


def _rows(decision: Decision) -> float:
    """How many rows the panel has, with a half above and below."""
    outputs, modalities = decision.outputs.values(), decision.modalities.values()
    names = len(outputs) if len(outputs) > 1 else 0
    return (
        (1 + 1 + names)
        + sum(GAP_ROWS + 2 + len(output.labels) for output in outputs)
        + (GAP_ROWS + 1 + len(modalities))
        + sum(isinstance(share.front, SpeechHeard) for share in modalities)
    )
