"""What sessions tell of the machine that they ran on, and that nothing of it reaches a decision."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fusedge.bundle.archive import Bundle
from fusedge.bundle.recording import tracks_of
from fusedge.cli.session_report import print_report
from fusedge.devices.targets.telemetry.reading import MAX_NAMES, Frequency, Memory, Reading
from fusedge.runtime.clock import LiveClock, PacedClock, VirtualClock
from fusedge.runtime.replay import replay_exactly
from fusedge.runtime.runner import run, run_all
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.sinks.recorder import Recorder
from fusedge.runtime.telemetry import Telemetry
from tests.runtime.live import LiveSource, RecordedSource, Stuck, write_quick_bundle
from tests.runtime.signals import by_arrival, signal

pytestmark = pytest.mark.real_time
S = 1_000_000_000
WARM = Reading(temperatures_c={"cpu": 50.0, "gpu": 48.0}, throttling=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_quick_bundle(tmp_path_factory.mktemp("b") / "quick.fusedge")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    end = time.monotonic() + 3
    while _threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert not _threads()


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "telemetry"]


class Machine:
    """Gives readings a second apart, and the last one again and again; `done` when all were read."""

    def __init__(self, *readings: Reading, fault: Callable[[], object] = lambda: None) -> None:
        self.readings, self._fault = readings or (WARM,), fault
        self.count = self.closed = self.abandoned = 0
        self.done = threading.Event()

    def read(self) -> Reading:
        self._fault()
        number = min(self.count, len(self.readings) - 1)
        self.count += 1
        if self.count > len(self.readings):
            self.done.set()
        fields = {name: getattr(self.readings[number], name) for name in Reading.__match_args__}
        return Reading(**{**fields, "time_ns": number * S})

    def abandon(self) -> None:
        self.abandoned += 1

    def close(self) -> None:
        self.closed += 1


def watched(*readings: Reading) -> tuple[dict[str, Any], list[str]]:
    """The snapshot and notices of a telemetry that has read them all."""
    machine = Machine(*readings)
    telemetry = Telemetry(machine, period_s=0.001)
    telemetry.start()
    assert machine.done.wait(10)
    telemetry.stop()
    assert telemetry.join(10) and machine.closed == 1
    return telemetry.snapshot(), telemetry.take_notices()


def session(bundle: Bundle, name: str = "") -> Session:
    return Session(
        bundle,
        ["live:fast", "live:slow"],
        LiveClock(),
        open_uri=lambda uri, wanted, now_ns: LiveSource(uri.partition(":")[2], now_ns),
        name=name,
    )


def run_for(
    sessions: Sequence[Session], seconds: float = 0.3, **options: Any
) -> list[SessionReport]:
    timer = threading.Timer(seconds, lambda: [one.stop() for one in sessions])
    timer.start()
    reports = run_all([(one, [MemorySink()]) for one in sessions], **options)
    timer.join()
    return reports


def recorded(bundle: Bundle, clock: Any, **options: Any) -> tuple[SessionReport, list[Any]]:
    """A session of 3 s over a recording."""
    items = by_arrival(signal("fast", np.sin, 0, 3), signal("slow", np.cos, 0, 3))
    sink = MemorySink()
    source = RecordedSource(items)
    one = Session(bundle, ["list:"], clock, open_uri=lambda *_: source)
    report = run(one, [sink], **options)
    return report, [decision.as_dict() for decision in sink.decisions]


def test_a_session_in_real_time_tells_what_this_machine_did(bundle: Bundle) -> None:
    pytest.importorskip("psutil")
    (report,) = run_for([session(bundle)], 0.5)
    machine = report.timing["telemetry"]
    assert machine["readings"] >= 1 and machine["period_s"] == 1
    assert machine["memory_bytes"]["process"]["min"] > 1 << 20
    assert machine["limits"]["memory_bytes"]["ram"] > machine["memory_bytes"]["ram"]["max"]
    json.dumps(report.timing, allow_nan=False)
    assert "telemetry" not in json.dumps(report.summary)
    assert report.timing["left_behind"] == []


def test_it_is_read_at_any_speed_of_real_time_and_never_on_a_virtual_clock(bundle: Bundle) -> None:
    machine = Machine()
    report, _ = recorded(bundle, PacedClock(10), telemetry=lambda: Telemetry(machine))
    assert report.timing["telemetry"]["temperature_c"]["cpu"]["last"] == 50
    assert machine.closed == 1

    def refuse() -> Telemetry:
        raise AssertionError("a virtual clock stands for no machine")

    report, _ = recorded(bundle, VirtualClock(), telemetry=refuse)
    assert "telemetry" not in report.timing


def test_without_telemetry_no_thread_runs(bundle: Bundle) -> None:
    seen: list[int] = []
    one = session(bundle)
    timer = threading.Timer(0.1, lambda: seen.append(len(_threads())))
    timer.start()
    (report,) = run_for([one], telemetry=None)
    assert seen == [0] and "telemetry" not in report.timing


def test_ranges_are_least_mean_greatest_and_newest() -> None:
    readings = [
        Reading(
            temperatures_c={"cpu": celsius},
            frequencies={"gpu": Frequency(celsius * 10, 900.0)},
            memory={"ram": Memory(int(celsius), 100)},
        )
        for celsius in (40.0, 70.0, 60.0)
    ]
    snapshot, notices = watched(*readings)
    assert snapshot["temperature_c"]["cpu"]["min"] == 40
    assert snapshot["temperature_c"]["cpu"]["max"] == 70
    assert snapshot["temperature_c"]["cpu"]["last"] == 60
    assert 50 < snapshot["frequency_mhz"]["gpu"]["mean"] / 10 <= 60
    assert snapshot["limits"] == {"frequency_mhz": {"gpu": 900}, "memory_bytes": {"ram": 100}}
    assert snapshot["throttled_s"] is None and notices == []


def test_throttling_is_told_once_when_it_begins_and_its_seconds_are_counted() -> None:
    hot = Reading(throttling=True, throttle_reasons=("heat",))
    both = Reading(throttling=True, throttle_reasons=("heat", "current"))
    snapshot, notices = watched(WARM, WARM, hot, both, WARM, hot, WARM)
    assert notices == [
        "the device throttles since 2 s after the start: heat",
        "the device throttles since 3 s after the start: current",
    ]
    assert snapshot["throttled_s"] == 3
    assert snapshot["throttle_reasons"] == {
        "heat": {"first_s": 2, "seconds": 3},
        "current": {"first_s": 3, "seconds": 1},
    }
    assert snapshot["throttling"] is False
    snapshot, (notice,) = watched(hot, WARM)
    assert notice == "the device throttles from the start: heat"
    assert watched(WARM)[0]["throttled_s"] == 0


def test_another_power_mode_is_told_each_time() -> None:
    modes = [Reading(power_mode=mode) for mode in ("15W", "15W", "MAXN", None, "MAXN", "15W")]
    snapshot, notices = watched(*modes)
    assert [notice.partition(":")[0] for notice in notices] == [
        "the power mode has changed from 15W to MAXN",
        "the power mode has changed from MAXN to 15W",
    ]
    assert snapshot["power_mode"] == "15W"


@pytest.mark.parametrize("gap", [1, 3])
def test_a_mode_that_changes_while_none_can_be_read_is_told_once(gap: int) -> None:
    modes = (None, "15W", *[None] * gap, "MAXN", None, "MAXN")
    _, notices = watched(*(Reading(power_mode=mode) for mode in modes))
    assert [notice.partition(":")[0] for notice in notices] == [
        "the power mode has changed from 15W to MAXN"
    ]


def test_memory_that_is_nearly_full_is_told_once() -> None:
    full = Reading(memory={"ram": Memory(97, 100), "gpu": Memory(10, 100)})
    _, notices = watched(Reading(memory={"ram": Memory(94, 100)}), full, Reading(), full)
    assert notices == ["the memory is nearly full: 3.0% is left"]
    _, (notice,) = watched(Reading(memory={"gpu": Memory(99, 100), "process": Memory(5)}))
    assert notice == "the memory of the GPU is nearly full: 1.0% is left"


def test_what_it_holds_does_not_grow() -> None:
    many = [Reading(power_w={f"rail {n}": 1.0}, notes=(f"note {n}",)) for n in range(500)]
    snapshot, _ = watched(*many)
    assert snapshot["readings"] >= 500
    assert len(snapshot["notes"]) == 20 and len(snapshot["power_w"]) == MAX_NAMES


def test_what_begins_is_told_while_sessions_run_once_for_all(bundle: Bundle) -> None:
    hot = Reading(throttling=True, throttle_reasons=("heat",))
    machines: list[Machine] = []

    def telemetry() -> Telemetry:
        machines.append(Machine(WARM, hot))
        return Telemetry(machines[-1], period_s=0.02)

    lines: list[str] = []
    sessions = [session(bundle, "left"), session(bundle, "right")]
    reports = run_for(sessions, 3.0, telemetry=telemetry, notice=lines.append)
    told = [line for line in lines if "throttles" in line]
    assert told == ["the device throttles since 1 s after the start: heat"]
    assert len(machines) == 1 and machines[0].closed == 1
    left, right = (report.timing["telemetry"] for report in reports)
    assert left == right and left["throttle_reasons"].keys() == {"heat"}


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    call = Stuck()
    yield call
    call.released.set()


def test_a_reading_that_hangs_is_left_behind(bundle: Bundle, stuck: Stuck) -> None:
    machine = Machine(fault=stuck)
    (report,) = run_for([session(bundle)], 1.5, telemetry=lambda: Telemetry(machine))
    assert report.timing["left_behind"] == ["telemetry"]
    assert report.summary["ledger_balanced"] and report.summary["decisions"]
    assert report.timing["telemetry"]["readings"] == 0
    assert report.timing["telemetry"]["notes"] == [
        "a reading hangs, so the telemetry was left behind"
    ]
    assert machine.abandoned == 1 and machine.closed == 0
    stuck.released.set()
    (thread,) = _threads()
    thread.join(10)
    assert machine.closed == 1


def test_a_session_that_cannot_begin_leaves_no_telemetry(bundle: Bundle) -> None:
    class Refusing(MemorySink):
        def open(self, header: dict[str, Any]) -> None:
            raise OSError("no space")

    machine = Machine()
    with pytest.raises(OSError, match="no space"):
        run(session(bundle), [Refusing()], telemetry=lambda: Telemetry(machine))
    end = time.monotonic() + 3
    while not machine.closed and time.monotonic() < end:
        time.sleep(0.01)
    assert machine.closed == 1


def test_starting_and_stopping_leaves_no_thread_and_no_file() -> None:
    machines = [Machine() for _ in range(200)]
    before = len(os.listdir("/dev/fd")), threading.active_count()
    for machine in machines:
        telemetry = Telemetry(machine)
        telemetry.start()
        telemetry.stop()
        assert telemetry.join(10)
    assert (len(os.listdir("/dev/fd")), threading.active_count()) == before
    assert all(machine.count == machine.closed == 1 for machine in machines)


def test_it_changes_no_decision_and_no_summary(bundle: Bundle) -> None:
    first, decisions = recorded(bundle, VirtualClock())
    again, others = recorded(bundle, VirtualClock(), telemetry=None)
    assert json.dumps(decisions) == json.dumps(others) and len(decisions) > 20
    assert json.dumps(first.summary) == json.dumps(again.summary)


def test_a_session_that_was_recorded_with_it_is_replayed_to_the_bit(
    tmp_path: Path, bundle: Bundle
) -> None:
    hot = Reading(throttling=True, throttle_reasons=("heat",))
    path = tmp_path / "live.mcap"
    one = session(bundle)
    timer = threading.Timer(1.0, one.stop)
    timer.start()
    recorder = Recorder(path, tracks_of(bundle.manifest))
    run(one, [recorder], telemetry=lambda: Telemetry(Machine(WARM, hot), period_s=0.02))
    timer.join()
    replayed = replay_exactly(bundle, path)
    assert replayed.identical and not replayed.stopped and replayed.decisions > 5
    assert b"throttl" not in path.read_bytes()


def test_the_report_has_a_line_on_the_machine_and_one_on_what_held_it_back(bundle: Bundle) -> None:
    reading = Reading(
        temperatures_c={"tj": 71.2, "cpu": 60.0},
        frequencies={"gpu": Frequency(612.0, 918.0)},
        power_w={"VDD_IN": 14.25},
        memory={"ram": Memory(6, 8)},
        utilisation_percent={"cpu": 35.0, "gpu": 90.0},
        throttling=True,
        throttle_reasons=("cooling by gpu-throttle-alert",),
        power_mode="25W",
    )
    report, _ = recorded(bundle, PacedClock(20), telemetry=lambda: Telemetry(Machine(reading)))
    text = StringIO()
    print_report(report, Console(file=text, width=200))
    assert (
        "machine: power mode 25W, 71 °C at most (tj), CPU 35 % busy, GPU 90 % busy, "
        "GPU 612 of 918 MHz, VDD_IN 14.2 W, memory 75% full at most\n"
        "throttled for 0 s, first at 0 s: cooling by gpu-throttle-alert\n"
    ) in text.getvalue()
