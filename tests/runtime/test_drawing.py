"""What a window shows: the frame and its faces beside the decision, whatever their sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fusedge.runtime.decision import NOTHING_PRESENT, Classification, Decision, ModalityShare
from fusedge.runtime.front.sighting import FaceSeen, FacesSeen, SpeechHeard, View

pytest.importorskip("cv2")

from fusedge.runtime.sinks import drawing, problem_words
from fusedge.runtime.sinks.drawing import draw

LABELS = ("neutral", "happy", "surprised")
FRONTS = {"face": "largest_face", "voice": "speech"}
GREEN, YELLOW, RED = drawing._DRIVES, drawing._OTHER, drawing._AGAINST
GREY = (90, 90, 90)  # of the frames


def decided(
    mean: tuple[float, ...] = (0.2, 0.7, 0.1),
    contributions: Mapping[str, float | None] | None = None,
    heard: float = 0.25,
) -> Decision:
    shares = np.array(mean)
    label = LABELS[int(shares.argmax())]
    given = contributions or {"face": 0.5, "voice": -0.1}
    return Decision(
        12_300_000_000,
        {"emotion": Classification(LABELS, label, shares, shares, given)},
        {
            "face": ModalityShare(True, 0.125),
            "voice": ModalityShare(True, 0.3, SpeechHeard(0, heard)),
        },
        1,
    )


def undecided(problem: str = NOTHING_PRESENT, names: tuple[str, ...] = ("face",)) -> Decision:
    nothing = Classification(LABELS, None, None, None, dict.fromkeys(names, 0.0))
    missing = {name: ModalityShare(False, None) for name in names}
    return Decision(0, {"emotion": nothing}, missing, 1, problem)


def view(height: int, width: int, *faces: FaceSeen) -> View:
    frame = np.full((height, width, 3), GREY, np.uint8)
    return View(frame, FacesSeen(0, height, width, faces))


def where(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray((picture == colour).all(axis=2))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written, as far as there is room for it."""
    written: list[str] = []
    cv2 = drawing.opencv("a test")
    put = cv2.putText

    def note(canvas: object, text: str, *rest: object) -> object:
        written.append(text)
        return put(canvas, text, *rest)

    monkeypatch.setattr(cv2, "putText", note)
    return written


@pytest.mark.parametrize(("height", "width"), [(360, 640), (480, 640), (1080, 1920), (640, 360)])
def test_a_frame_of_any_size_is_shown_whole_and_in_proportion_beside_the_panel(
    height: int, width: int
) -> None:
    picture = draw(1180, 520, decided(), view(height, width), FRONTS)
    shown = where(picture, GREY)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    down, across = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "nothing lies over it"
    assert across / down == pytest.approx(width / height, rel=0.01)
    assert down == 520 or across > 800
    bars = where(picture, GREEN).any(axis=0)
    assert columns[-1] < np.flatnonzero(bars)[0]


@pytest.mark.parametrize(("height", "width"), [(360, 640), (720, 1280), (1080, 1920)])
def test_boxes_lie_where_the_faces_are_and_the_one_that_drives_is_told_apart(
    height: int, width: int
) -> None:
    of = width / 640
    driving = FaceSeen(3, (100 * of, 120 * of, 80 * of, 90 * of), 0.9, True)
    other = FaceSeen(12, (400 * of, 60 * of, 50 * of, 60 * of), 0.9, False)
    picture = draw(1180, 520, decided(), view(height, width, driving, other), FRONTS)
    frame = picture[:, : 1180 - round(0.3 * 1180)]
    scale = frame.shape[1] / 640
    top = (520 - 360 * scale) / 2
    for colour, (x, y, box_width, box_height) in (
        (GREEN, (100, 120, 80, 90)),
        (YELLOW, (400, 60, 50, 60)),
    ):
        drawn = where(frame, colour)
        edges = np.flatnonzero(drawn[round(top + (y + box_height / 2) * scale)])
        assert edges[0] == pytest.approx(x * scale, abs=4)
        assert edges[-1] == pytest.approx((x + box_width) * scale, abs=4)
        below = np.flatnonzero(drawn[:, round((x + box_width * 0.75) * scale)])
        assert below[-1] == pytest.approx(top + (y + box_height) * scale, abs=4)
        assert not drawn[
            round(top + (y + box_height / 2) * scale), round((x + box_width / 2) * scale)
        ], "a box is no lid"
    thickness = [
        np.flatnonzero(where(frame, colour)[round(top + y * scale)]).size
        for colour, y in ((GREEN, 165), (YELLOW, 90))
    ]
    assert thickness[0] > 1.5 * thickness[1]


@pytest.mark.parametrize("drives", [True, False])
@pytest.mark.parametrize("size", [(360, 640), (720, 1280), (640, 360)])
@pytest.mark.parametrize(
    "over", [(1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
)
def test_a_box_that_reaches_over_the_frame_is_drawn_at_its_edges(
    size: tuple[int, int], over: tuple[int, ...], drives: bool
) -> None:
    height, width = size
    left, top, right, bottom = (-0.2 if side else 0.3 for side in over)
    box = (left * width, top * height, (1 - right - left) * width, (1 - bottom - top) * height)
    picture = draw(1180, 520, decided(), view(height, width, FaceSeen(1, box, 0.9, drives)), FRONTS)
    frame = picture[:, : 1180 - round(0.3 * 1180)]
    colour = GREEN if drives else YELLOW
    shown = where(frame, GREY) | where(frame, GREEN) | where(frame, YELLOW)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    drawn = where(frame, colour)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    down, across = drawn.shape
    thick = np.count_nonzero(drawn[down // 2, : across // 2])
    assert thick >= 2
    for side, edge in zip(
        over,
        (drawn[:, :thick].all(axis=1), drawn[:thick].all(axis=0),
         drawn[:, -thick:].all(axis=1), drawn[-thick:].all(axis=0)),
        strict=True,
    ):  # fmt: skip
        assert (np.count_nonzero(edge) > 0.3 * len(edge)) == bool(side)


def test_the_numbers_of_all_faces_are_told(texts: list[str]) -> None:
    faces = [FaceSeen(n, (40.0 * n, 50, 30, 30), 0.9, n == 2) for n in range(5)]
    draw(1180, 520, decided(), view(360, 640, *faces), FRONTS)
    assert sorted(texts[:5]) == list("01234") and texts[4] == "2", "the driving one lies on top"


def test_the_label_its_probability_and_what_it_rests_on_are_told(texts: list[str]) -> None:
    draw(1180, 520, decided(), view(360, 640), FRONTS, "emotion")
    told = "\n".join(texts)
    assert "emotion 12.3 s" in told and "happy 70%" in told
    for label, share in zip(LABELS, ("20%", "70%", "10%"), strict=True):
        assert label in texts and share in texts
    assert {"face 0.12 s", "+50%", "voice 0.30 s", "-10%", "speech", "25%"} <= set(texts)


@pytest.mark.parametrize(("share", "said"), [(-0.004, "+0%"), (0.0, "+0%"), (-0.006, "-1%")])
def test_nothing_has_no_sign(texts: list[str], share: float, said: str) -> None:
    draw(1180, 520, decided(contributions={"face": share}), view(360, 640), FRONTS, "emotion")
    assert said in texts and "-0%" not in texts


def test_bars_are_as_long_as_their_shares() -> None:
    def longest(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
        rows = where(picture, colour)  # of letters, too
        return max(len(run) for row in rows for run in row.tobytes().split(b"\0"))

    lengths = {}
    for share in (0.45, 0.9):
        decision = decided((0.05, share, 0.04), {"face": -share, "voice": 0.0}, heard=share)
        picture = draw(420, 520, decision, None, FRONTS)
        lengths[share] = [longest(picture, colour) for colour in (GREEN, YELLOW, RED)]
        assert max(lengths[share]) - min(lengths[share]) <= 1
    assert lengths[0.45][0] == pytest.approx(lengths[0.9][0] / 2, abs=2)
    assert lengths[0.9][0] > 100


@pytest.mark.parametrize(
    ("fronts", "said"),
    [
        (FRONTS, "nobody is seen or heard"),
        ({"face": "largest_face"}, "nobody is seen"),
        ({"voice": "speech"}, "nobody is heard"),
    ],
)
def test_where_nobody_is_there_it_says_so_and_gives_no_figure(
    texts: list[str], fronts: dict[str, str], said: str
) -> None:
    draw(1180, 520, undecided(names=("face", "voice")), view(360, 640), fronts)
    assert said in texts and {"face missing", "voice missing"} <= set(texts)
    assert not any("%" in text for text in texts)


@pytest.mark.parametrize(
    ("faces", "heard", "said"),
    [
        (1, 0.0, problem_words.UNUSED_FACE),
        (1, 0.9, problem_words.UNUSED_FACE),
        (0, 0.9, problem_words.UNUSED_VOICE),
        (0, 0.2, "nobody is seen or heard"),
    ],
)
@pytest.mark.parametrize("in_view", [True, False])
def test_that_nobody_is_there_is_not_said_of_whom_one_sees_or_hears(
    texts: list[str], faces: int, heard: float, said: str, in_view: bool
) -> None:
    face = FaceSeen(1, (10, 10, 15, 15), 0.9, True)
    newest, earlier = (faces, 0) if in_view else (0, faces)
    decision = undecided(names=("face", "voice"))
    decision.modalities["face"] = ModalityShare(
        False, None, FacesSeen(0, 360, 640, (face,) * earlier)
    )
    decision.modalities["voice"] = ModalityShare(False, None, SpeechHeard(0, heard))
    draw(1180, 520, decision, view(360, 640, *(face,) * newest), FRONTS)
    assert said in " ".join(texts)


@pytest.mark.parametrize("problem", [NOTHING_PRESENT, "not_finite", "of a kind unheard of"])
def test_why_else_there_is_no_label_is_said_whole(texts: list[str], problem: str) -> None:
    draw(420, 520, undecided(problem, ("imu", "gps")), None, {})
    expected = problem_words.PROBLEMS.get(problem, f"no result: {problem}")
    assert expected in " ".join(texts)
    assert "imu missing" in texts and not any("%" in text for text in texts)


def test_without_a_frame_the_panel_has_all_the_room() -> None:
    picture = draw(600, 520, decided(), None, {})
    bar = np.flatnonzero(where(picture, GREEN).any(axis=0))
    assert bar[-1] - bar[0] > 200


_FACES = st.builds(
    FaceSeen,
    st.integers(1, 10**6),
    st.tuples(*[st.floats(-5000, 5000)] * 2, *[st.floats(0, 5000)] * 2),
    st.just(0.9),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 1400), st.integers(1, 900)),
    frame=st.none() | st.tuples(st.integers(1, 700), st.integers(1, 700)),
    faces=st.lists(_FACES, max_size=6),
    labels=st.lists(st.text(max_size=30), min_size=1, max_size=60, unique=True),
    modalities=st.lists(st.text(max_size=40), min_size=1, max_size=12, unique=True),
)
def test_nothing_is_too_large_or_too_many_to_be_drawn(
    size: tuple[int, int],
    frame: tuple[int, int] | None,
    faces: list[FaceSeen],
    labels: list[str],
    modalities: list[str],
) -> None:
    mean = np.full(len(labels), 1 / len(labels))
    output = Classification(tuple(labels), labels[-1], mean, mean, dict.fromkeys(modalities))
    shares = {name: ModalityShare(True, None, SpeechHeard(0, 1.0)) for name in modalities}
    decision = Decision(10**18, {"out": output, "again": output}, shares, 1)
    seen = None if frame is None else view(*frame, *faces)
    picture = draw(*size, decision, seen, {}, "title " * 50)
    assert picture.shape == (size[1], size[0], 3) and picture.dtype == np.uint8
