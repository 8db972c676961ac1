"""Measuring parts: as the runtime runs them, apart from this process, whatever they do there."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import MAX_TEXT, DimRange, Part
from fusedge.devices.targets.calibration import energy
from fusedge.devices.targets.calibration.profile import BatchTimes, MeasuredPart
from fusedge.runtime import bench
from fusedge.runtime.bench import (
    Item,
    Measured,
    Memory,
    batches_of,
    conditions,
    measure,
    measure_apart,
    pause_of,
    precisions_of,
    providers_here,
)
from tests.tiny_bundle import write_tiny_bundle

HERE = "tests.runtime.test_bench"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bench") / "tiny")


def item(bundle: Bundle, *batches: int) -> Item:
    return Item(str(bundle.path), bundle.manifest.parts[0].name, batches or (1,))


def ticks(step_ns: int) -> Callable[[], int]:
    """A clock that goes on by as much each time it is asked."""
    count = itertools.count(0, step_ns)
    return lambda: next(count)


# What the child runs in these tests, by name.


def crash(items: list[Item], **task: Any) -> list[Measured]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return []


def hang(items: list[Item], **task: Any) -> list[Measured]:
    time.sleep(600)
    return []


def shout(items: list[Item], **task: Any) -> list[Measured]:
    os.write(1, b"[I] a native library says hello\n")
    sys.stdout.write("so do we")
    times = BatchTimes(batch=2, runs=3, p50_s=1e-3, p90_s=2e-3, p99_s=3e-3)
    return [Measured((times,), notes=(task["provider"],)) for _ in items]


def fail(items: list[Item], **task: Any) -> list[Measured]:
    raise ValueError("no")


def test_a_part_is_measured_at_each_batch_in_a_process_of_its_own(tiny: Bundle) -> None:
    (found,) = measure_apart([item(tiny, 1, 4)], "cpu", "fp32", 0.1)
    assert not found.problem
    assert [each.batch for each in found.times] == [1, 4]
    for each in found.times:
        assert each.runs >= bench.ROUNDS and 0 < each.p50_s <= each.p90_s <= each.p99_s
    assert found.memory_bytes is not None and found.memory_bytes > 0
    assert found.energy_j is not None or any("energy cannot be read" in n for n in found.notes)


def test_times_are_those_of_the_clock_that_is_given(tiny: Bundle) -> None:
    # It is asked before and after each run, and once at the start of a turn.
    (found,) = measure([item(tiny)], "cpu", "fp32", 0.1, now_ns=ticks(1_000_000))
    (times,) = found.times
    assert times.p50_s == times.p99_s == pytest.approx(1e-3)
    assert times.runs < 1000
    assert times.rows_per_s == pytest.approx(1000)


def test_a_budget_of_nothing_still_measures(tiny: Bundle) -> None:
    (found,) = measure([item(tiny)], "cpu", "fp32", 1e-9, now_ns=ticks(1_000_000))
    assert found.times[0].runs >= bench.ROUNDS


def test_runs_after_a_pause_wait_for_it_and_are_no_others(tiny: Bundle) -> None:
    waits: list[float] = []
    rested = item(tiny)._replace(pause_s=0.05)
    found = measure(
        [rested, item(tiny)], "cpu", "fp32", 0.1, now_ns=ticks(1_000_000), wait=waits.append
    )
    paused = found[0].paused
    assert paused is not None and paused.pause_s == 0.05
    assert paused.p50_s == pytest.approx(1e-3)
    assert bench.LEAST_PAUSED <= paused.runs <= bench.MOST_PAUSED
    assert waits == [0.05] * paused.runs
    assert found[1].paused is None
    # One more run of both is in neither's percentiles.
    assert found[0].times[0].p99_s == found[1].times[0].p99_s


def test_pauses_take_half_of_the_budget_more(tiny: Bundle) -> None:
    now = itertools.count(0, 1_000_000)
    slept = 0

    def clock() -> int:
        return next(now) + slept

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += round(seconds * 1e9)

    rested = item(tiny)._replace(pause_s=0.1)
    (found,) = measure([rested], "cpu", "fp32", 2.0, now_ns=clock, wait=sleep)
    assert found.paused is not None and found.paused.runs in (9, 10)


def test_a_pause_is_measured_in_a_process_of_its_own_too(tiny: Bundle) -> None:
    (found,) = measure_apart([item(tiny)._replace(pause_s=0.02)], "cpu", "fp32", 0.05)
    assert found.paused is not None and found.paused.p50_s > 0


def test_the_pause_is_that_from_one_run_to_the_next(tiny: Bundle) -> None:
    fast, slow, head = tiny.manifest.parts
    assert pause_of(tiny, fast) == pause_of(tiny, slow) == bench.MOST_PAUSE_S
    assert pause_of(tiny, head) == bench.MOST_PAUSE_S
    assert pause_of(tiny, head.model_copy(update={"kind": "model"})) == bench.MOST_PAUSE_S


def test_several_parts_are_measured_in_turns(tiny: Bundle) -> None:
    one, two = (Item(str(tiny.path), part.name, (1,)) for part in tiny.manifest.parts[:2])
    found = measure([one, two], "cpu", "fp32", 0.2, now_ns=ticks(1_000_000))
    assert found[0].times[0].runs == found[1].times[0].runs
    assert found[0].memory_bytes is None and found[0].energy_j is None


@pytest.mark.parametrize(
    ("entry", "words"),
    [("crash", "SIGSEGV"), ("fail", "status 1"), ("hang", "did not end within 2 s")],
)
def test_what_a_part_does_to_its_process_is_a_line(tiny: Bundle, entry: str, words: str) -> None:
    start_s = 1.8 if entry == "hang" else 60
    found = measure_apart(
        [item(tiny)] * 2, "cpu", "fp32", 0.1, start_s=start_s, entry=f"{HERE}:{entry}"
    )
    assert len(found) == 2
    assert all(words in each.problem and not each.times for each in found)


def test_what_native_libraries_write_is_no_result(tiny: Bundle) -> None:
    (found,) = measure_apart([item(tiny)], "cpu", "fp32", 0.1, entry=f"{HERE}:shout")
    assert found.times[0].p90_s == 2e-3 and found.notes == ("cpu",)


def test_an_interrupt_ends_the_child(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def communicate(self, *arguments: Any, **options: Any) -> Any:
            started.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_apart([item(tiny)], "cpu", "fp32", 0.1, entry=f"{HERE}:hang")
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("part", "precision", "words"),
    [("nothing", "fp32", "unknown part 'nothing'"), ("", "fp16", "has no fp16 graph")],
)
def test_what_cannot_be_loaded_is_a_problem_of_its_own(
    tiny: Bundle, part: str, precision: str, words: str
) -> None:
    good = item(tiny)
    found = measure([good._replace(part=part or good.part), good], "cpu", precision, 0.01)
    assert words in found[0].problem
    assert bool(found[1].problem) == (precision == "fp16")


class Failing:
    """A loaded part that fails at a number of rows from a run on."""

    def __init__(self, rows: int, runs: int, error: Exception) -> None:
        self.rows, self.left, self.error = rows, runs, error

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        if len(next(iter(feeds.values()))) == self.rows:
            self.left -= 1
            if self.left < 0:
                raise self.error
        return {}


@pytest.mark.parametrize("runs", [0, bench.WARM_RUNS + 2])
@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory\nat 7"), MemoryError(), ValueError("x" * 5000)]
)
def test_a_batch_that_fails_leaves_the_smaller_ones(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, runs: int, error: Exception
) -> None:
    loaded = Failing(4, runs, error)
    monkeypatch.setattr(bench, "PartLoader", lambda bundle, setting: lambda part: loaded)
    (found,) = measure([item(tiny, 1, 2, 4)], "cpu", "fp32", 0.01, now_ns=ticks(1_000_000))
    assert not found.problem and [each.batch for each in found.times] == [1, 2]
    (note,) = [note for note in found.notes if "batch 4" in note]
    assert note.isprintable() and len(note) <= MAX_TEXT
    assert note.startswith("part fast_encoder fails at batch 4: ")
    assert any(words in note for words in ("out of memory at 7", "MemoryError", "xxx"))


@pytest.mark.parametrize("runs", [0, 1, bench.WARM_RUNS, bench.WARM_RUNS + 2])
@pytest.mark.parametrize(
    "error", [AssertionError(), ValueError("\x1b[2J"), FusedgeError("w" * 999, where="p" * 999)]
)
def test_a_part_that_fails_always_has_a_problem_that_a_profile_takes(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, runs: int, error: Exception
) -> None:
    loaded = Failing(1, runs, error)
    monkeypatch.setattr(bench, "PartLoader", lambda bundle, setting: lambda part: loaded)
    (found,) = measure([item(tiny, 1, 2)], "cpu", "fp32", 0.01, now_ns=ticks(1_000_000))
    assert found.problem and not found.times
    row = MeasuredPart(
        bundle="b", part="p", provider="cpu", precision="fp32", problem=found.problem
    )
    assert row.problem == found.problem


def test_a_part_that_fails_while_energy_is_measured_has_its_times(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Failing(1, 10**9, RuntimeError("hot"))

    class Meter(energy.CounterMeter):
        def during(self, work: Callable[[], object], now_ns: Callable[[], int]) -> float:
            loaded.left = 0
            work()
            return 7.0

    monkeypatch.setattr(bench, "PartLoader", lambda bundle, setting: lambda part: loaded)
    monkeypatch.setattr(bench, "find_meter", lambda device: Meter("a counter", lambda: 0.0))
    (found,) = measure([item(tiny)], "cpu", "fp32", 0.01, now_ns=ticks(1_000_000))
    assert found.times and not found.problem and found.energy_j is None
    assert "the part failed meanwhile: hot" in found.notes[-1]


def test_a_child_that_cannot_be_started_is_a_problem(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    (found,) = measure_apart([item(tiny)], "cpu", "fp32", 0.1)
    assert "did not start" in found.problem and "temporarily unavailable" in found.problem


def test_an_input_without_bounds_is_refused_before_it_is_made(tiny: Bundle) -> None:
    (found,) = measure([item(tiny, 1 << 40)], "cpu", "fp32", 0.01)
    assert "its inputs have" in found.problem


def test_a_provider_that_nobody_knows_is_an_error(tiny: Bundle) -> None:
    with pytest.raises(FusedgeError, match="provider"):
        measure_apart([item(tiny)], "gpu", "fp32", 0.1)


def test_a_provider_that_is_not_here_is_a_problem(tiny: Bundle) -> None:
    (found,) = measure([item(tiny)], "cuda", "fp32", 0.01)
    assert "CUDAExecutionProvider" in found.problem


def test_batches_are_those_that_the_part_takes(tiny: Bundle) -> None:
    part = tiny.manifest.parts[0]
    assert batches_of(part) == (1, 2, 4, 8)
    assert batches_of(part, [64]) == (1,)
    narrow = part.model_copy(update={"dims": {"batch": DimRange(least=3, usual=4, greatest=5)}})
    assert batches_of(narrow) == (3, 4)
    assert batches_of(Part.model_construct(dims={})) == (1,)


def test_this_machine_has_the_cpu_provider_and_no_engines(tiny: Bundle) -> None:
    here = providers_here(tiny)
    assert "cpu" in here and "native" not in here
    assert precisions_of(tiny.manifest.parts[0], "cpu") == ["fp32"]
    assert precisions_of(tiny.manifest.parts[0], "native") == []


def test_energy_is_that_of_one_run(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    used = itertools.count(0.0, 50.0)
    meter = energy.CounterMeter("a counter", lambda: next(used))
    monkeypatch.setattr(bench, "find_meter", lambda device: meter)
    (found,) = measure([item(tiny)], "cpu", "fp32", 0.1, now_ns=ticks(1_000_000))
    # 0.1 s by a clock that takes 2 ms a run: once to begin with, then until it is over.
    assert found.energy_j == pytest.approx(50 / 50, rel=0.05)
    assert found.notes == ()


def test_a_counter_that_stands_still_is_no_energy(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = energy.CounterMeter("a counter", lambda: 7.0)
    monkeypatch.setattr(bench, "find_meter", lambda device: meter)
    (found,) = measure([item(tiny)], "cpu", "fp32", 0.01, now_ns=ticks(1_000_000))
    assert found.energy_j is None and "a counter stands still" in found.notes[0]


def status(folder: Path, resident_kb: int, peak_kb: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "status").write_text(f"Name:\tx\nVmHWM:\t{peak_kb} kB\nVmRSS:\t{resident_kb} kB\n")


def test_memory_is_the_peak_over_what_there_was(tmp_path: Path) -> None:
    status(tmp_path / "self", 1000, 4000)
    memory = Memory(on_gpu=False, process=tmp_path / "self")
    assert (tmp_path / "self/clear_refs").read_text() == "5"
    status(tmp_path / "self", 1500, 3000)
    memory.read()
    assert (memory.host_bytes, memory.gpu_bytes, memory.notes) == (2000 * 1024, None, [])


def test_memory_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    def load(name: str) -> Any:
        raise ImportError("no pynvml")

    memory = Memory(on_gpu=True, process=tmp_path / "none", load=load)
    memory.read()
    assert memory.host_bytes is None and memory.gpu_bytes is None
    assert [note.partition(" cannot")[0] for note in memory.notes] == ["GPU memory", "memory"]


def test_memory_of_the_gpu_is_what_came_since(tmp_path: Path) -> None:
    used = iter([100, 350])
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=next(used)),
    )

    def load(name: str) -> object:
        if name != "pynvml":
            raise ImportError(name)
        return nvml

    memory = Memory(on_gpu=True, process=tmp_path, load=load)
    memory.read()
    assert memory.gpu_bytes == 250


def test_conditions_tell_load_and_governor(tmp_path: Path) -> None:
    assert conditions(tmp_path).governor is None
    folder = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_governor").write_text("powersave\n")
    found = conditions(tmp_path)
    assert found.governor == "powersave"
    assert found.load_average is not None and found.load_average >= 0
