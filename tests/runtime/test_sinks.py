"""What people see: the live table, the picture, and lines in a file."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fusedge.bundle.errors import FusedgeError, MissingExtraError
from fusedge.bundle.window import to_ns
from fusedge.runtime.decision import Classification, Decision, ModalityShare
from fusedge.runtime.events import Event
from fusedge.runtime.sinks import jsonl, timeline
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.sinks.table import TableSink
from fusedge.runtime.sinks.timeline import TimelineSink

# A name that both rich and matplotlib would take for markup.
HEADER: dict[str, Any] = {
    "bundle": "tiny",
    "sources": ["replay:/trips/[/x] $a_{$"],
    "events": ["jolt"],
    "warnings": ["slow: [/] no source"],
}
NO_EVENTS = {**HEADER, "events": []}
LABELS = ("left", r"$\frac{$")
CONTRIBUTIONS = {"fast": -0.125, "slow": 0.0}


def decision(
    second: int,
    mean: tuple[float, float] | None = (0.25, 0.75),
    problem: str = "not_finite",
) -> Decision:
    """A decision; without a mean, one whose head had a problem."""
    values = None if mean is None else np.array(mean)
    label = None if mean is None else LABELS[int(np.argmax(mean))]
    return Decision(
        to_ns(second),
        {"side": Classification(LABELS, label, values, values, CONTRIBUTIONS)},
        {
            "fast": ModalityShare(True, 0.5),
            "slow": ModalityShare(False, None),
        },
        0,
        "" if mean else problem,
    )


def event(phase: Any, second: float) -> Event:
    return Event("jolt", 1, phase, to_ns(second), 2, -12.5, 1.0)


ITEMS: Sequence[Decision | Event] = [
    decision(1),
    event("start", 1.5),
    decision(2, None),
    event("end", 2.5),
    decision(3),
]


def feed(sink: Sink, items: Sequence[Decision | Event], header: dict[str, Any] = HEADER) -> None:
    sink.open(header)
    for item in items:
        sink.write(item)
    sink.close({})


def test_the_table_shows_the_last_decision_and_what_it_rests_on() -> None:
    text = io.StringIO()
    feed(TableSink(Console(file=text, width=120)), ITEMS)
    shown = text.getvalue()
    for part in (
        "warning: slow: [/] no source",
        "tiny on replay:/trips/[/x] $a_{$",
        "t = 3.0 s",
        LABELS[1],
        "0.75",
        "-0.12",
        "missing",
        "jolt level 2  peak -12.50",
    ):
        assert part in shown, part


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("not_finite", "the head's result is not finite"),
        ("part_failed", "the head has failed and waits to be loaded again"),
        ("hangs", "the head did not come back in time"),
        ("nothing_present", "nothing is present: nothing seen, heard or measured"),
        ("raised", "the head's run failed"),
        ("something_new [/]", "no result: something_new [/]"),
    ],
)
def test_the_table_tells_why_there_is_no_result(problem: str, said: str) -> None:
    text = io.StringIO()
    feed(TableSink(Console(file=text, width=120)), [decision(1, None, problem)])
    assert said in text.getvalue() and "none yet" in text.getvalue()
    assert ("not finite" in text.getvalue()) == (problem == "not_finite")
    assert ("invalid" in text.getvalue()) == (problem != "nothing_present")  # which is no fault


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("largest_face", "speech"), "nobody is seen or heard"),
        (("largest_face",), "nobody is seen "),
        (("speech",), "nobody is heard"),
    ],
)
def test_the_table_says_that_nobody_is_there_where_it_looks_for_people(
    kinds: tuple[str, ...], said: str
) -> None:
    fronts = {f"m{number}": kind for number, kind in enumerate(kinds)}
    for problem in ("nothing_present", "hangs"):
        text = io.StringIO()
        sink = TableSink(Console(file=text, width=120))
        sink.open({**HEADER, "fronts": fronts})
        sink.write(decision(1, None, problem))
        sink.close({})
        assert (said in text.getvalue()) == (problem == "nothing_present")


@pytest.mark.parametrize(
    ("header", "items", "said"),
    [
        (HEADER, [decision(1)], ["last events", "none yet"]),
        (NO_EVENTS, [decision(1)], []),
        (NO_EVENTS, ITEMS, ["last events", "jolt level 2"]),  # of a bundle that was changed to
    ],
)
def test_the_table_tells_of_events_where_there_may_be_any(
    header: dict[str, Any], items: Any, said: list[str]
) -> None:
    text = io.StringIO()
    feed(TableSink(Console(file=text, width=120)), items, header)
    shown = text.getvalue()
    assert [part for part in ("last events", "none yet", "jolt level 2") if part in shown] == said


def test_the_table_is_drawn_seldom_however_fast_decisions_come() -> None:
    text = io.StringIO()
    feed(TableSink(Console(file=text, width=120, force_terminal=True)), [decision(1)] * 500)
    assert text.getvalue().count("t = 1.0 s") < 50


def test_a_table_without_any_decision_ends_quietly() -> None:
    sink = TableSink(Console(file=io.StringIO()))
    sink.close({})
    feed(sink, [])


@pytest.mark.parametrize("items", [ITEMS, [decision(1)], [decision(1, None), decision(2, None)]])
@pytest.mark.parametrize("name", ["new/trip.png", "trip.picture"])
def test_the_picture_is_a_png(tmp_path: Path, items: Any, name: str) -> None:
    pytest.importorskip("matplotlib")
    feed(TimelineSink(tmp_path / name), items)
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    figure_module = pytest.importorskip("matplotlib.figure")
    figures: list[Any] = []
    save = figure_module.Figure.savefig

    def keep(self: Any, *args: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(figure_module.Figure, "savefig", keep)
    return figures


@pytest.mark.parametrize(
    ("header", "items", "has_events"),
    [
        (HEADER, ITEMS, True),
        (HEADER, [decision(1)], True),
        (NO_EVENTS, [decision(1)], False),
        (NO_EVENTS, ITEMS, True),  # of a bundle that was changed to
    ],
)
def test_the_picture_has_a_panel_of_events_where_there_may_be_any(
    tmp_path: Path, drawn: list[Any], header: dict[str, Any], items: Any, has_events: bool
) -> None:
    feed(TimelineSink(tmp_path / "trip.png"), items, header)
    labels = [axes.get_ylabel().partition("\n")[0] for axes in drawn[0].axes]
    assert labels == [
        "side: smoothed probability",
        "contribution to the label",
        *(["events"] if has_events else []),
    ]
    assert [axes.get_xlabel() for axes in drawn[0].axes] == [*[""] * (len(labels) - 1), "time in s"]


def test_the_picture_follows_a_label_through_a_change_of_their_order(
    tmp_path: Path, drawn: list[Any]
) -> None:
    later = decision(2, (0.6, 0.4))
    turned = replace(later.outputs["side"], labels=LABELS[::-1])
    feed(
        TimelineSink(tmp_path / "trip.png"),
        [decision(1, (0.3, 0.7)), replace(later, outputs={"side": turned})],
    )
    lines = [line.get_ydata() for line in drawn[0].axes[0].lines]
    np.testing.assert_allclose(lines, [[0.3, 0.4], [0.7, 0.6]])


@pytest.mark.parametrize("modalities", [1, 2, 6])
@pytest.mark.parametrize("labels", [2, 9, 10])
def test_no_modality_in_the_picture_looks_like_a_label_or_another(
    tmp_path: Path, drawn: list[Any], labels: int, modalities: int
) -> None:
    colors = pytest.importorskip("matplotlib.colors")
    shares = np.full(labels, 1 / labels)
    names = [f"modality {number}" for number in range(modalities)]
    output = Classification(
        tuple(f"label {number}" for number in range(labels)), "label 0", shares, shares,
        dict.fromkeys(names, 0.5),
    )  # fmt: skip
    there = {name: ModalityShare(True, 0.1) for name in names}
    items = [Decision(second * 10**9, {"side": output}, there, 1) for second in (1, 2)]
    feed(TimelineSink(tmp_path / "trip.png"), items, NO_EVENTS)
    of_labels, of_modalities = (
        {(colors.to_hex(line.get_color()), str(line._dash_pattern)) for line in axes.lines[:count]}
        for axes, count in zip(drawn[0].axes, (labels, modalities), strict=True)
    )
    assert len(of_labels) == labels and len(of_modalities) == modalities
    assert not {color for color, _ in of_labels} & {color for color, _ in of_modalities}
    assert len({dashes for _, dashes in of_modalities}) == modalities


@pytest.mark.parametrize("problem", ["nothing_present", "not_finite"])
def test_the_picture_has_a_gap_where_there_is_no_label(
    tmp_path: Path, drawn: list[Any], problem: str
) -> None:
    seconds = range(1, 10)
    items = [decision(s, None if 4 <= s < 7 else (0.25, 0.75), problem) for s in seconds]
    feed(TimelineSink(tmp_path / "trip.png"), items)
    shares = drawn[0].axes[0]
    for line in shares.lines:
        assert [bool(np.isnan(y)) for y in line.get_ydata()] == [4 <= s < 7 for s in seconds]
    strip = shares.collections[1]  # of the label that the others have
    spans = [path.get_extents().intervalx.tolist() for path in strip.get_paths()]
    assert spans == [[1, 4], [7, 10]]


def test_without_decisions_there_is_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    feed(TimelineSink(tmp_path / "trip.png"), [])
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FusedgeError, match="cannot write the picture: "):
        feed(TimelineSink(tmp_path / "file/trip.png"), ITEMS)


def test_a_picture_without_matplotlib_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"fusedge\[plot\]"):
        TimelineSink(tmp_path / "trip.png")


def test_the_picture_keeps_a_bounded_number_of_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    sink = TimelineSink(tmp_path / "trip.png")
    sink.open(HEADER)
    for second in range(timeline.MAX_DECISIONS + 10):
        sink.write(decision(second))
    assert len(sink._decisions) == timeline.MAX_DECISIONS


def test_a_file_goes_on_whole_when_a_full_disk_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room: list[int | None] = [None]

    class Disk(FileIO):
        def write(self, data: Any) -> int:
            if room[0] is None:
                return super().write(data)
            taken = min(room[0], len(data))
            room[0] -= taken
            if not taken:
                raise OSError(28, "No space left on device")
            return super().write(bytes(data)[:taken])

    monkeypatch.setattr(jsonl, "FileIO", Disk)
    path = tmp_path / "out.jsonl"
    sink = JsonLinesSink(path)
    sink.open(HEADER)
    sink.write(decision(1))
    room[0] = 20  # the beginning of a line
    for _ in range(3):
        with pytest.raises(FusedgeError, match="No space left"):
            sink.write(decision(2))
    room[0] = None
    sink.write(decision(3))
    sink.close({"ended": "end of input"})
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["type"] for line in lines] == ["session", "decision", "decision", "summary"]
    assert [line["t_s"] for line in lines[1:3]] == [1, 3]
