"""A session: sources in, sinks out, and everything closed whatever happens."""

from __future__ import annotations

import io
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.runtime.clock import PacedClock, VirtualClock
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.guard import ValueGuard
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.sinks.sink import Sink
from tests.runtime.signals import Played, by_arrival, signal
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.real_time
Items = Sequence[Sample | Rejection]


class ListSource:
    """A source that gives what it was made with, then fails if it was told to."""

    live = False

    def __init__(
        self,
        items: Items,
        modalities: tuple[str, ...] = ("fast", "slow"),
        *,
        failure: BaseException | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.items, self.modalities, self.warnings = items, modalities, warnings
        self.uri = "list:" + "+".join(modalities)
        self.failure = failure
        self.closed = 0

    def samples(self) -> Iterator[Sample | Rejection]:
        yield from self.items
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self.closed += 1


class NotingSink(Sink):
    """Notes what is called, and fails where it was told to."""

    name = "notes"

    def __init__(self, failing: str = "", failure: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.summary: dict[str, Any] = {}
        self._failing, self._failure = failing, failure

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self._failing and self._failure is not None:
            raise self._failure

    def open(self, header: dict[str, Any]) -> None:
        self._note("open")

    def write(self, item: Decision | Event) -> None:
        self._note("write")

    def close(self, summary: dict[str, Any]) -> None:
        self.summary = summary
        self._note("close")


Begin = Callable[..., Session]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny.fusedge")


@pytest.fixture
def begin(bundle: Bundle) -> Begin:
    """A session over the given sources instead of those that URIs name."""

    def make(*sources: ListSource, clock: VirtualClock | PacedClock | None = None) -> Session:
        by_uri = {source.uri: source for source in sources}
        return Session(
            bundle,
            [source.uri for source in sources],
            clock or VirtualClock(),
            open_uri=lambda uri, wanted, now_ns: by_uri[uri],
        )

    return make


def ten_seconds() -> list[Sample]:
    return by_arrival(signal("fast", 0.4, 0, 10), signal("slow", 0.5, 0, 10))


def test_a_session_gives_what_its_pipeline_decides(begin: Begin, bundle: Bundle) -> None:
    memory = MemorySink()
    report = run(begin(ListSource(ten_seconds())), [memory])
    played = Played(bundle, ten_seconds())
    assert [d.as_dict() for d in memory.decisions] == [d.as_dict() for d in played.decisions]
    assert report.ended == "end of input"
    assert report.summary["ended"] == "end of input"
    assert played.pipeline.statistics().items() <= report.summary.items()
    assert report.summary["decisions"] == len(memory.decisions) == 10
    assert report.summary["ledger_balanced"] is True


def test_two_sources_are_merged_by_arrival(begin: Begin) -> None:
    one, two = MemorySink(), MemorySink()
    run(begin(ListSource(ten_seconds())), [one])
    fast = ListSource(signal("fast", 0.4, 0, 10), ("fast",))
    slow = ListSource(signal("slow", 0.5, 0, 10), ("slow",))
    run(begin(slow, fast), [two])
    assert [d.as_dict() for d in one.decisions] == [d.as_dict() for d in two.decisions]
    assert fast.closed and slow.closed


def test_two_sources_of_one_modality_are_refused(begin: Begin) -> None:
    with pytest.raises(FusedgeError, match="fast comes from two sources, list:fast and list:fast"):
        begin(ListSource([], ("fast",)), ListSource([], ("fast", "slow")))


def test_sources_that_give_nothing_of_the_bundle_are_refused(begin: Begin) -> None:
    with pytest.raises(FusedgeError, match="list:lidar: no source gives any of fast, slow"):
        begin(ListSource([], ("lidar",)))


def test_what_is_missing_is_warned_of_and_decisions_go_on(begin: Begin) -> None:
    source = ListSource(signal("fast", 0.4, 0, 5), ("fast",), warnings=("file: torn line",))
    one = begin(source)
    assert one.warnings == ["file: torn line", "slow: no source gives it; decisions go without"]
    memory = MemorySink()
    report = run(one, [memory])
    assert report.header["warnings"] == one.warnings
    assert [d.timestamp_ns for d in memory.decisions] == [s * NANOSECONDS for s in range(1, 6)]
    assert not any(d.modalities["slow"].present for d in memory.decisions)


def test_sinks_are_opened_only_when_bundle_and_sources_are_ready(
    bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "decisions.jsonl"
    with pytest.raises(FusedgeError):
        run(
            Session(bundle, ["replay:" + str(tmp_path / "absent")], VirtualClock()),
            [JsonLinesSink(out)],
        )
    assert not out.exists()


def test_a_sink_is_opened_once_written_in_order_and_closed_once(begin: Begin) -> None:
    sinks = [NotingSink(), NotingSink()]
    run(begin(ListSource(ten_seconds())), sinks)
    for sink in sinks:
        assert sink.calls == ["open", *["write"] * 10, "close"]
        assert sink.summary["ended"] == "end of input"


@pytest.mark.parametrize("failing", ["open", "write"])
def test_all_sinks_are_closed_after_one_failed(begin: Begin, failing: str) -> None:
    source, first = ListSource(ten_seconds()), NotingSink()
    second = NotingSink(failing, FusedgeError("disk full"))
    with pytest.raises(FusedgeError, match="disk full"):
        run(begin(source), [first, second])
    for sink in (first, second):
        assert sink.calls[-1] == "close" and sink.calls.count("close") == 1
        assert sink.summary["ended"] == "failed"
    assert source.closed


def test_a_source_that_fails_ends_there_and_is_named(begin: Begin) -> None:
    sink, source = NotingSink(), ListSource(ten_seconds(), failure=FusedgeError("unplugged"))
    report = run(begin(source), [sink])
    assert "source list:fast+slow failed, first: unplugged" in report.problem
    assert sink.calls == ["open", *["write"] * 10, "close"]
    assert sink.summary["decisions"] == 10 and sink.summary["ended"] == "end of input"
    assert source.closed


def test_the_other_sources_go_on_after_one_failed(begin: Begin) -> None:
    memory = MemorySink()
    fast = ListSource(signal("fast", 0.4, 0, 3), ("fast",), failure=ValueError("unplugged"))
    slow = ListSource(signal("slow", 0.5, 0, 10), ("slow",))
    report = run(begin(slow, fast), [memory])
    assert [d.timestamp_ns for d in memory.decisions] == [to_ns(t) for t in range(1, 11)]
    assert [d.modalities["fast"].present for d in memory.decisions] == [True] * 5 + [False] * 5
    assert report.summary["sources"]["list:fast"]["first_failure"] == "ValueError: unplugged"
    assert "list:fast failed" in report.problem


@pytest.mark.parametrize("where", ["source", "write"])
def test_an_interrupt_ends_in_a_report_and_a_summary(
    begin: Begin, tmp_path: Path, where: str
) -> None:
    out = tmp_path / "decisions.jsonl"
    interrupt = KeyboardInterrupt()
    source = ListSource(ten_seconds(), failure=interrupt if where == "source" else None)
    sinks = [JsonLinesSink(out), NotingSink(where, interrupt)]
    report = run(begin(source), sinks)
    assert report.ended == "interrupted" and source.closed
    kinds = [record["type"] for record in read_lines(out)]
    assert kinds[0] == "session" and kinds[-1] == "summary"
    assert kinds.count("decision") == (10 if where == "source" else 1)
    assert read_lines(out)[-1]["ended"] == "interrupted"


def test_a_sink_that_cannot_close_does_not_keep_the_others_from_it(begin: Begin) -> None:
    sinks = [NotingSink("close", FusedgeError("disk full")), NotingSink()]
    with pytest.raises(FusedgeError, match="disk full"):
        run(begin(ListSource(ten_seconds())), sinks)
    assert sinks[1].calls[-1] == "close"


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


def read_lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_every_line_of_json_lines_parses_and_the_summary_is_last(
    begin: Begin, tmp_path: Path
) -> None:
    def hard(time_s: float) -> float:
        return math.nan if 4 < time_s < 5 else 60.0 if time_s > 7 else 0.4

    out = tmp_path / "new/folder/decisions.jsonl"
    items = by_arrival(signal("fast", hard, 0, 10), signal("slow", math.inf, 0, 10))
    report = run(begin(ListSource(items)), [JsonLinesSink(out)])
    lines = read_lines(out)
    kinds = [line["type"] for line in lines]
    assert kinds[0] == "session" and kinds[-1] == "summary" and kinds.count("summary") == 1
    assert kinds.count("decision") == 10 and kinds.count("event") >= 1
    assert lines[0]["bundle"] == "tiny" and lines[0]["clock"] == "virtual"
    assert report.summary.pop("sinks")[str(out)]["used"] == len(lines) - 2
    assert lines[-1] == {"type": "summary", **report.summary}


def test_two_runs_write_the_same_bytes(begin: Begin, tmp_path: Path) -> None:
    for name in "ab":
        run(begin(ListSource(ten_seconds())), [JsonLinesSink(tmp_path / name)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_was_decided_is_on_disk_before_the_end(begin: Begin, tmp_path: Path) -> None:
    out = tmp_path / "decisions.jsonl"
    seen: list[int] = []

    class Reader(NotingSink):
        def write(self, item: Decision | Event) -> None:
            seen.append(len(read_lines(out)))

    run(begin(ListSource(ten_seconds())), [JsonLinesSink(out), Reader()])
    assert seen == list(range(2, 12))


@pytest.mark.parametrize("target", ["folder", "file/below.jsonl"])
def test_a_path_that_cannot_be_written_is_one_line(
    begin: Begin, tmp_path: Path, target: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FusedgeError) as caught:
        run(begin(ListSource(ten_seconds())), [JsonLinesSink(tmp_path / target)])
    assert "cannot write decisions: " in caught.value.line()
    assert (tmp_path / "file").read_text() == "kept"


class FullStream(io.StringIO):
    """A stream whose disk fills up after a few lines, or whose reader goes away."""

    def __init__(self, failure: OSError) -> None:
        super().__init__()
        self._failure, self._left = failure, 3

    def write(self, text: str) -> int:
        self._left -= 1
        if self._left < 0:
            raise self._failure
        return super().write(text)


def test_a_full_disk_is_told_once_and_the_others_get_their_summary(begin: Begin) -> None:
    stream, other = FullStream(OSError(28, "No space left on device")), NotingSink()
    with pytest.raises(FusedgeError, match="standard output: cannot write decisions: No space"):
        run(begin(ListSource(ten_seconds())), [JsonLinesSink(stream), other])
    assert other.calls[-1] == "close"
    assert len(stream.getvalue().splitlines()) == 3


def test_a_reader_that_went_away_is_no_error_of_ours(begin: Begin) -> None:
    other = NotingSink()
    with pytest.raises(BrokenPipeError):
        run(begin(ListSource(ten_seconds())), [JsonLinesSink(FullStream(BrokenPipeError())), other])
    assert other.calls[-1] == "close"


def test_a_paced_session_decides_as_a_fast_one_does(begin: Begin) -> None:
    memory = MemorySink()
    report = run(begin(ListSource(ten_seconds()), clock=PacedClock(10)), [memory])
    times = [d.timestamp_ns for d in memory.decisions]
    assert times == sorted(set(times)) and set(times) <= {to_ns(t) for t in range(1, 11)}
    skipped = report.summary["ticks_skipped"]  # by a busy machine
    assert len(times) + skipped == 10 and skipped <= 3
    assert 0.8 < report.timing["wall_s"] < 5
    assert report.timing["parts"]["head"]["count"] == len(times)


def test_a_virtual_clock_never_goes_back() -> None:
    clock = VirtualClock()
    clock.advance(5)
    clock.advance(3)
    assert clock.now_ns() == 5


def test_a_paced_clock_begins_once_and_moves_at_its_speed() -> None:
    clock = PacedClock(100)
    clock.begin(to_ns(1000))
    clock.begin(to_ns(5000))
    time.sleep(clock.seconds_until(to_ns(1001)))
    assert 1001 <= clock.now_ns() / 1e9 < 1050
    assert clock.seconds_until(to_ns(1000)) == 0


def test_a_session_counts_what_is_not_in_the_bundle(begin: Begin) -> None:
    strange = [Sample("lidar", to_ns(1), to_ns(1), np.zeros(3, np.float32))]
    report = run(begin(ListSource(by_arrival(strange, ten_seconds()))), [])
    assert report.summary["ledger"]["lidar"]["dropped"] == {"not_in_bundle": 1}


def test_stopping_in_the_middle_of_a_push_loses_no_sample(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = begin(ListSource(ten_seconds()))
    check = ValueGuard.check
    pushed = 0

    def stop_within(self: ValueGuard, data: Any, time_ns: int) -> Any:
        nonlocal pushed
        pushed += 1
        if pushed == 40:
            one.stop()
        return check(self, data, time_ns)

    monkeypatch.setattr(ValueGuard, "check", stop_within)
    report = run(one, [])
    assert report.ended == "interrupted"
    assert report.summary["ledger_balanced"]
    assert sum(a["received"] for a in report.summary["ledger"].values()) >= 40
    assert report.summary["decisions"] < 10


def test_a_recorded_source_that_hangs_does_not_hold_up_the_end(bundle: Bundle) -> None:
    closed = threading.Event()

    class Hanging(ListSource):
        def samples(self) -> Iterator[Sample | Rejection]:
            yield from islice(super().samples(), 20)
            closed.wait(20)

        def close(self) -> None:
            closed.set()

    source = Hanging(ten_seconds())
    session = Session(bundle, [source.uri], VirtualClock(), open_uri=lambda *_: source)
    timer = threading.Timer(0.2, session.stop)
    timer.start()
    started = time.monotonic()
    report = run(session, [])
    timer.join()
    assert report.ended == "interrupted" and time.monotonic() - started < 5
