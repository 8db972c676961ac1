"""Front ends within a session: frames and sound in, decisions with what was seen out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import BundleError
from fusedge.bundle.recording import tracks_of
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.cli.session_report import print_report
from fusedge.devices.capture.address import Wanted
from fusedge.devices.capture.source import open_source
from fusedge.runtime.backend import AUTOMATIC, PartLoader
from fusedge.runtime.chaos import KINDS, Chaos
from fusedge.runtime.clock import PacedClock, VirtualClock
from fusedge.runtime.front.fronts import FrontEnds
from fusedge.runtime.replay import replay_exactly
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.sinks.recorder import Recorder
from tests.media_bundle import MODALITIES, write_media_bundle
from tests.runtime.front_parts import (
    SOUND_HZ,
    BlobDetector,
    face_graph,
    face_modality,
    face_part,
    speech_graph,
    speech_part,
    write_fronted_bundle,
)

FACE_BOX = (60, 30, 40)  # x, y and side of the bright square in a frame of 120 x 160


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    opened: Bundle = write_fronted_bundle(tmp_path_factory.mktemp("bundle") / "fronted")
    return opened


class Device:
    """Frames at 30 Hz with a face in `faces`, and sound in which somebody speaks in `spoken`."""

    live = False
    uri = "device:"
    warnings = ()
    modalities = ("view", "sound")
    channels = {"view": ("red", "green", "blue"), "sound": ("m",)}  # noqa: RUF012
    units: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def __init__(
        self, faces: Callable[[float], bool], spoken: Callable[[float], bool], length_s: float = 8
    ) -> None:
        self.faces, self.spoken, self.length_s = faces, spoken, length_s
        self.closed = False

    def samples(self) -> Iterator[Sample | Rejection]:
        x, y, side = FACE_BOX
        for number in range(1, round(self.length_s * 60)):
            time_ns = to_ns(number / 60)
            if number % 2:
                frame = np.full((120, 160, 3), 20, np.uint8)
                if self.faces(number / 60):
                    frame[y : y + side, x : x + side, 0] = (
                        250 - number % 7
                    )  # a picture that stands still counts as frozen
                yield Sample("view", time_ns, time_ns, frame)
            elif number % 6 == 0:
                loud = 0.4 if self.spoken(number / 60) else 0.001
                sound = np.tile(np.array([[loud], [-loud]], np.float32), (SOUND_HZ // 20, 1))
                yield Sample("sound", time_ns, time_ns, sound)

    def close(self) -> None:
        self.closed = True


def always(time_s: float) -> bool:
    return True


def never(time_s: float) -> bool:
    return False


def play(
    bundle: Bundle,
    faces: Callable[[float], bool] = always,
    spoken: Callable[[float], bool] = always,
    *,
    sinks: Sequence[Any] = (),
    clock: Any = None,
    length_s: float = 8,
    **options: Any,
) -> tuple[list[dict[str, Any]], SessionReport]:
    """The decisions, as JSON, and the report."""
    sink = MemorySink()
    session = Session(
        bundle,
        ["device:"],
        clock or VirtualClock(),
        open_uri=lambda uri, wanted, now_ns: Device(faces, spoken, length_s),
        **options,
    )
    report = run(session, [sink, *sinks])
    return [decision.as_dict() for decision in sink.decisions], report


def test_the_encoders_get_crops_and_speech_and_decisions_tell_what_was_seen(bundle: Bundle) -> None:
    decisions, report = play(bundle)
    assert report.problem == "" and report.ended == "end of input"
    last = decisions[-2]["modalities"]
    assert last["view"]["present"] and last["sound"]["present"]
    (face,) = last["view"]["front"]["faces"]
    assert face["id"] == 1 and face["drives"]
    np.testing.assert_allclose(face["box"], (60 / 160, 30 / 120, 40 / 160, 40 / 120), atol=0.015)
    assert last["view"]["front"]["frame"] == [160, 120]
    assert last["sound"]["front"] == {"speech": 1.0}
    assert "front" not in last["motion"]
    fronts = report.summary["fronts"]
    assert fronts["view"]["kind"] == "largest_face" and fronts["view"]["faces"] == 1
    assert (
        fronts["view"]["frames"] == fronts["view"]["frames_with_face"] == fronts["view"]["samples"]
    )
    assert fronts["view"]["frames"] == pytest.approx(80, abs=2)
    assert fronts["sound"]["heard_s"] == fronts["sound"]["speech_s"] == pytest.approx(8, abs=0.2)
    ledger = report.summary["ledger"]["view"]
    assert ledger["dropped"]["superseded"] == pytest.approx(160, abs=3)
    assert ledger["received"] == 240 and report.summary["ledger_balanced"]
    assert report.header["fronts"] == {"view": "largest_face", "sound": "speech"}
    assert set(report.header["parts"]) == {part.name for part in bundle.manifest.parts}
    json.dumps(decisions, allow_nan=False)


def test_without_a_face_and_in_silence_nothing_is_there_and_nothing_is_wrong(
    bundle: Bundle,
) -> None:
    decisions, report = play(bundle, never, never)
    assert report.problem == ""
    for decision in decisions:
        assert not any(share["present"] for share in decision["modalities"].values())
        assert decision["problem"] == "nothing_present"
        assert decision["outputs"]["side"]["label"] is None
    assert report.summary["decisions_on_nothing"] == report.summary["decisions"] == len(decisions)
    assert decisions[-2]["modalities"]["view"]["front"]["faces"] == []
    assert decisions[-2]["modalities"]["sound"]["front"]["speech"] < 0.1
    assert report.summary["fronts"]["sound"]["speech_s"] == 0
    assert report.summary["ledger"]["view"]["used"] == 0


def test_the_report_tells_what_was_seen_and_heard(bundle: Bundle) -> None:
    def told(faces: Callable[[float], bool], spoken: Callable[[float], bool], **how: Any) -> str:
        text = StringIO()
        print_report(play(bundle, faces, spoken, **how)[1], Console(file=text, width=200))
        return text.getvalue()

    text = told(always, always)
    assert "view: a face in 80 of 80 frames looked at, tracks in all: 1; 80 crops given\n" in text
    assert "sound: speech in 7.9 of 7.9 s of sound\n" in text
    assert "31 decisions, 1 with nothing present; side: right 30" in text  # before the first window
    text = told(never, never)
    assert "view: a face in 0 of 80 frames looked at, tracks in all: 0; 0 crops given\n" in text
    assert "sound: speech in 0.0 of 7.9 s of sound\n" in text
    assert "31 decisions, 31 with nothing present; side: none" in text
    text = told(always, always, length_s=0)
    assert "view: nothing came\nsound: nothing came\n" in text
    text = told(always, always, without=["view"])
    assert "view: left out\nsound: speech in" in text


class Torn(Device):
    """Neither frames nor sound are any."""

    def samples(self) -> Iterator[Sample | Rejection]:
        for item in super().samples():
            assert isinstance(item, Sample)
            yield item._replace(data=np.zeros(3, np.int8))


def front_lines(report: SessionReport) -> list[str]:
    text = StringIO()
    print_report(report, Console(file=text, width=200))
    names = ("view: ", "sound: ")
    return [line for line in text.getvalue().splitlines() if line.startswith(names)]


def test_the_report_tells_what_is_unusable_from_what_no_source_gives(bundle: Bundle) -> None:
    class Seen(Torn):
        modalities = ("view",)

        def samples(self) -> Iterator[Sample | Rejection]:
            return (item for item in super().samples() if item.modality == "view")

    for device, expected in (
        (Torn, ["view: no usable frame came", "sound: no usable sound came"]),
        (Seen, ["view: no usable frame came", "sound: nothing came"]),
    ):
        session = Session(
            bundle,
            ["device:"],
            VirtualClock(),
            open_uri=lambda uri, wanted, now_ns, kind=device: kind(always, always),
        )
        assert front_lines(run(session, [MemorySink()])) == expected


@pytest.mark.parametrize("there", [always, never])
def test_the_report_of_a_recording_says_that_it_has_been_through_front_ends(
    bundle: Bundle, tmp_path: Path, there: Callable[[float], bool]
) -> None:
    recorder = Recorder(tmp_path / "a.mcap", tracks_of(bundle.manifest))
    play(bundle, there, there, sinks=[recorder])
    session = Session(bundle, [f"replay:{tmp_path / 'a.mcap'}"], VirtualClock())
    report = run(session, [MemorySink()])
    prepared = "already prepared in the recording"
    assert front_lines(report) == [f"view: {prepared}", f"sound: {prepared}"]


def test_who_leaves_and_is_still_is_soon_absent_and_comes_back(bundle: Bundle) -> None:
    decisions, _ = play(
        bundle,
        lambda time_s: not 4 <= time_s < 8,
        lambda time_s: not 4 <= time_s < 8,
        length_s=14,
    )
    for name, late_s in (("view", 1.6), ("sound", 2.1)):  # max_age_s, and what is still said after
        present = {d["t_s"]: d["modalities"][name]["present"] for d in decisions}
        assert all(present[t] for t in present if 2 <= t <= 4)
        assert not any(present[t] for t in present if 4 + late_s <= t <= 8)
        assert all(present[t] for t in present if 9.5 <= t <= 13)
    for decision in decisions:
        there = any(share["present"] for share in decision["modalities"].values())
        assert decision["problem"] == (None if there else "nothing_present")
        assert (decision["outputs"]["side"]["label"] is not None) == there


def test_a_session_is_the_same_every_time(bundle: Bundle) -> None:
    def faces(time_s: float) -> bool:
        return time_s % 2 < 1.3

    (first, one), (second, other) = (play(bundle, faces, faces) for _ in range(2))
    assert first == second and one.summary == other.summary


@pytest.mark.real_time
def test_in_real_time_sightings_are_those_of_their_time(bundle: Bundle) -> None:
    decisions, report = play(
        bundle, lambda time_s: time_s > 2, always, clock=PacedClock(speed=2), length_s=4
    )
    assert report.problem == ""
    seen = [
        (d["t_s"], bool(d["modalities"]["view"]["front"]["faces"]))
        for d in decisions
        if "front" in d["modalities"]["view"]
    ]
    assert len(seen) > 10
    assert not any(there for time_s, there in seen if time_s < 1.9)
    assert all(there for time_s, there in seen if time_s > 2.4)


def recorded(bundle: Bundle, path: Path) -> list[dict[str, Any]]:
    def faces(time_s: float) -> bool:
        return time_s % 5 < 2  # longer away than anything is believed

    recorder = Recorder(path, tracks_of(bundle.manifest))
    return play(bundle, faces, faces, sinks=[recorder])[0]


def test_a_recording_is_replayed_exactly(bundle: Bundle, tmp_path: Path) -> None:
    then = recorded(bundle, tmp_path / "a.mcap")
    assert {d["problem"] for d in then} == {None, "nothing_present"}
    report = replay_exactly(bundle, tmp_path / "a.mcap")
    assert report.identical, report.difference
    assert report.decisions == report.identical_decisions > 20


def without_sightings(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for decision in decisions:
        del decision["latency_ms"]
        for share in decision["modalities"].values():
            share.pop("front", None)
    return decisions


def test_a_recording_as_a_source_is_not_fronted_again(bundle: Bundle, tmp_path: Path) -> None:
    then = recorded(bundle, tmp_path / "a.mcap")
    sink = MemorySink()
    report = run(Session(bundle, [f"replay:{tmp_path / 'a.mcap'}"], VirtualClock()), [sink])
    assert report.problem == ""
    assert report.summary["fronts"]["view"]["frames"] == 0
    now = [decision.as_dict() for decision in sink.decisions]
    begin = now[0]["t_s"]
    assert (
        without_sightings(now)[:25]
        == without_sightings([d for d in then if d["t_s"] >= begin])[:25]
    )


def test_a_silent_recording_as_a_source_is_no_problem(bundle: Bundle, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.mcap", tracks_of(bundle.manifest))
    play(bundle, never, never, sinks=[recorder])
    report = run(Session(bundle, [f"replay:{tmp_path / 'a.mcap'}"], VirtualClock()), [])
    assert report.problem == ""


def test_a_picture_in_a_file_is_seen(bundle: Bundle, tmp_path: Path) -> None:
    picture = np.full((240, 320, 3), 20, np.uint8)
    picture[50:150, 100:200, 0] = 250
    Image.fromarray(picture).save(tmp_path / "a.png")
    sink = MemorySink()
    report = run(Session(bundle, [f"file:{tmp_path / 'a.png'}"], VirtualClock()), [sink])
    assert report.problem == ""
    last = sink.decisions[-1].as_dict()
    assert last["modalities"]["view"]["present"]
    np.testing.assert_allclose(
        last["modalities"]["view"]["front"]["faces"][0]["box"],
        (100 / 320, 50 / 240, 100 / 320, 100 / 240),
        atol=0.0125,
    )


@pytest.mark.parametrize("latency_s", [0.0, 0.01, 0.02, 0.05])
def test_no_crop_is_made_in_vain_whatever_latency_is_given(
    bundle: Bundle, latency_s: float
) -> None:
    """The front end and the windows must mean the same times."""

    class At14Hz(Device):
        def samples(self) -> Iterator[Sample | Rejection]:
            for number, frame in enumerate(s for s in super().samples() if s[0] == "view"):
                stamp_ns = to_ns(number / 14)
                assert isinstance(frame, Sample)
                yield frame._replace(timestamp_ns=stamp_ns, arrival_ns=stamp_ns)

    session = Session(
        bundle,
        ["device:"],
        VirtualClock(),
        open_uri=lambda *_: At14Hz(always, never),
        latency_s={"view": latency_s},
    )
    summary = run(session, [MemorySink()]).summary
    ledger, given = summary["ledger"]["view"], summary["fronts"]["view"]["samples"]
    # The last few are still on their way; a frame that is superseded is one that was not searched.
    assert given - ledger["used"] <= 6
    assert ledger["dropped"]["superseded"] == ledger["received"] - given


def test_a_detector_that_raises_is_the_source_s_failure_and_is_loaded_again(bundle: Bundle) -> None:
    loads: list[str] = []

    class Breaks(BlobDetector):
        def run(self, feeds: dict[str, Any]) -> list[Any]:
            if self.runs == 5:
                raise RuntimeError("the device is lost")
            return super().run(feeds)

    session_parts = FrontEnds(
        bundle.manifest.model_copy(
            update={
                "modalities": tuple(m for m in bundle.manifest.modalities if m.name != "sound"),
                "parts": tuple(p for p in bundle.manifest.parts if p.name != "speech_detector"),
            }
        ),
        lambda part: (loads.append(part.name), Breaks())[1],
    )
    for _ in range(2):
        source = session_parts.behind(Device(always, never))
        with pytest.raises(RuntimeError, match="the device is lost"):
            list(source.samples())
    assert loads == ["face_detector"] * 2


def test_a_session_goes_on_with_the_rest_where_a_detector_fails(bundle: Bundle) -> None:
    class Lost:
        provider = "none"

        def run(self, feeds: dict[str, Any]) -> list[Any]:
            raise RuntimeError("the device is lost")

    loader = PartLoader(bundle, AUTOMATIC)
    _, report = play(
        bundle, load=lambda part: Lost() if part.name == "face_detector" else loader(part)
    )
    assert "the device is lost" in report.problem
    assert report.header["parts"]["face_detector"] == {"backend": "given", "provider": "none"}


def test_a_part_that_does_not_fit_is_told_before_a_source_is_opened(tmp_path: Path) -> None:
    wrong = speech_part("view").model_copy(update={"name": "face_detector"})
    bundle = write_media_bundle(
        tmp_path / "wrong",
        (MODALITIES[0], face_modality(), MODALITIES[2]),
        [(wrong, speech_graph())],
    )

    def refuse(uri: str, wanted: Wanted, now_ns: Callable[[], int]) -> Any:
        raise AssertionError("opened")

    with pytest.raises(BundleError, match="is no face detector"):
        Session(bundle, ["device:"], VirtualClock(), open_uri=refuse)


def test_a_bundle_with_another_front_end_is_not_changed_to(bundle: Bundle, tmp_path: Path) -> None:
    other = write_fronted_bundle(tmp_path / "same", description="another one")
    changed = write_media_bundle(
        tmp_path / "changed",
        (MODALITIES[0], face_modality(), MODALITIES[2]),
        [(face_part(), face_graph())],
    )
    for new, refused in ((other, False), (changed, True)):
        session = Session(
            bundle, ["device:"], VirtualClock(), open_uri=lambda *_: Device(always, always)
        )
        swap = session.swap(new)
        swap.pick_up(0)
        assert (swap.state == "refused") == ("other front ends" in swap.reason) == refused


@pytest.mark.parametrize("seed", range(4))
def test_faults_behind_front_ends_harm_nothing(bundle: Bundle, seed: int) -> None:
    clock = VirtualClock()
    chaos = Chaos(tuple(KINDS), clock, seed=seed, every_s=1.0)
    decisions, report = play(bundle, clock=clock, chaos=chaos)
    assert report.problem == "" and len(decisions) > 20


def test_only_modalities_with_a_front_end_are_touched(bundle: Bundle) -> None:
    fronts = FrontEnds(bundle.manifest, PartLoader(bundle, AUTOMATIC))
    plain = open_source("sim:?duration_s=1", None, lambda: 0)
    assert fronts.behind(plain) is plain
    source = fronts.behind(Device(always, always))
    assert source.channels == {"view": ("r",), "sound": ("m",)}
    source.close()
    assert source._source.closed  # type: ignore[attr-defined]


@pytest.mark.parametrize("reason", ["stale", "gap", "overflow", "malformed"])
@pytest.mark.parametrize("modality", ["view", "sound"])
def test_that_nobody_is_there_is_no_fault_whatever_else_was_lost(
    bundle: Bundle, modality: str, reason: str
) -> None:
    class Lossy(Device):
        def samples(self) -> Iterator[Sample | Rejection]:
            for number, item in enumerate(super().samples()):
                if number == 100:
                    yield Rejection(modality, item.arrival_ns, reason, "lost on purpose")
                yield item

    session = Session(bundle, ["device:"], VirtualClock(), open_uri=lambda *_: Lossy(never, never))
    report = run(session, [MemorySink()])
    lost = (
        "1 of its rows could not be read, first: lost on purpose" if reason == "malformed" else ""
    )
    assert report.problem == lost
