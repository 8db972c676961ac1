"""How long parts take on this machine, run exactly as the runtime runs them, in a process of their own.

A part that crashes, hangs or takes all memory ends that process, and is a line in the result. Several
parts, batches or probes that are to be compared are measured in turns, so that what else the machine does
meanwhile falls on all of them.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, UnknownNameError, printable
from fusedge.bundle.inference import onnxruntime
from fusedge.bundle.manifest import Part
from fusedge.bundle.noise import noise
from fusedge.devices.targets.calibration.energy import NoMeter, find_meter
from fusedge.devices.targets.calibration.profile import (
    MAX_NOTES,
    NATIVE,
    BatchTimes,
    Conditions,
    PausedTimes,
)
from fusedge.devices.targets.detection.local import nvml_gpu
from fusedge.devices.targets.detection.system_files import read_text
from fusedge.runtime.backend import ONNX, BackendSetting, PartBackend, PartLoader
from fusedge.runtime.clock import stopwatch_ns
from fusedge.runtime.cuda import load_cuda
from fusedge.runtime.onnx_part import PROVIDERS, provider_devices

START_S = 120.0  # to import, and to load: TensorRT compiles kernels when it loads
BATCHES = (1, 2, 4, 8)
ROUNDS = 10  # turns
MAX_TIMES = 5_000  # that are kept of one turn
WARM_RUNS = 3  # the first allocates, the second of an engine captures a CUDA graph
# After shorter pauses caches are partly warm, after longer ones no colder.
LEAST_PAUSE_S, MOST_PAUSE_S = 0.02, 0.1
LEAST_PAUSED, MOST_PAUSED = 7, 25  # runs after a pause; as many as half of the budget allows
ENERGY_S = 0.5  # RAPL counts every ms, an INA3221 is read every 20 ms
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from fusedge.runtime.bench import main; main(sys.argv[2], int(sys.argv[3]))"
)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_MEASURE = "fusedge.runtime.bench:measure"

Clock = Callable[[], int]
"""Nanoseconds that never go back."""
Wait = Callable[[float], object]
"""Waits so many seconds."""
_WAIT = threading.Event().wait


class Item(NamedTuple):
    """What is measured: a part of a bundle, at these batches; at the first of them also after pauses of
    `pause_s`, if there is one.
    """

    bundle: str
    part: str
    batches: tuple[int, ...]
    pause_s: float | None = None


class Measured(NamedTuple):
    """Of one item: times by batch, or the `problem` for which there are none.

    Memory and energy are told where one item alone was measured. What is None, and a batch that failed
    though a smaller one ran, is explained by `notes`.
    """

    times: tuple[BatchTimes, ...] = ()
    paused: PausedTimes | None = None
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    energy_j: float | None = None
    notes: tuple[str, ...] = ()
    problem: str = ""


def batches_of(part: Part, wanted: Sequence[int] = BATCHES) -> tuple[int, ...]:
    """Those that the part takes, and its least one."""
    if "batch" not in part.dims:
        return (1,)
    bounds = part.dims["batch"]
    fit = {batch for batch in wanted if bounds.least <= batch <= bounds.greatest}
    return tuple(sorted(fit | {bounds.least}))


def pause_of(bundle: Bundle, part: Part) -> float:
    """From one run of a part to the next in a session, in seconds, within what is worth measuring."""
    period_s = MOST_PAUSE_S
    if part.kind == "encoder":
        period_s = bundle.manifest.modality(str(part.modality)).hop_s
    elif part.kind == "head":
        period_s = 1 / bundle.manifest.require_fusion().decision_rate_hz
    elif part.rate_hz is not None:
        period_s = 1 / part.rate_hz
    return min(max(period_s, LEAST_PAUSE_S), MOST_PAUSE_S)


def setting_of(provider: str, precision: str, *, allow_unsigned_engines: bool) -> BackendSetting:
    """What loads a part on one provider, `native` being the bundle's engines, at one precision."""
    if provider == NATIVE:
        return BackendSetting(
            NATIVE, precision=precision, allow_unsigned_engines=allow_unsigned_engines
        )
    return BackendSetting(ONNX, provider, precision)


def providers_here(bundle: Bundle) -> list[str]:
    """What this machine has to run the bundle on: ONNX Runtime's providers, and its engines on a GPU."""
    found = []
    for provider in PROVIDERS:
        with suppress(FusedgeError):
            provider_devices(provider)
            found.append(provider)
    if any(part.engines for part in bundle.manifest.parts):
        with suppress(FusedgeError):
            load_cuda().device()
            found.append(NATIVE)
    return found


def precisions_of(part: Part, provider: str) -> list[str]:
    """Those that the bundle has the part at: as graphs, or for `native` as engines."""
    if provider == NATIVE:
        return list(dict.fromkeys(engine.precision_requested for engine in part.engines))
    return [graph.precision for graph in part.graphs]


def conditions(root: Path = Path("/")) -> Conditions:
    """What else goes on on this machine, as far as it can be read."""
    governor = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    found = printable(read_text(governor)) or None
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return Conditions(load_average=load, governor=found, cores=os.cpu_count())


def measure_apart(
    items: Sequence[Item],
    provider: str,
    precision: str,
    budget_s: float,
    *,
    allow_unsigned_engines: bool = False,
    start_s: float = START_S,
    entry: str = _MEASURE,
) -> list[Measured]:
    """Measure items in a child process, together for about `budget_s`; a `Measured` for each, in order.
    Runs after a pause take half of that in addition, or what `LEAST_PAUSED` of each need.

    `entry` (`module:function`) is what runs in the child. It is killed when this is interrupted, or when
    it takes longer than `start_s` beyond twice the budget. Raises FusedgeError for an unknown provider.
    """
    setting_of(provider, precision, allow_unsigned_engines=allow_unsigned_engines)
    task = {
        "items": [list(item) for item in items],
        "provider": provider,
        "precision": precision,
        "budget_s": budget_s,
        "allow_unsigned_engines": allow_unsigned_engines,
    }
    limit_s = start_s + 2 * budget_s + 2 * LEAST_PAUSED * sum(item.pause_s or 0 for item in items)
    try:
        answer, status = _run_child(json.dumps(task).encode(), entry, limit_s)
    except subprocess.TimeoutExpired:
        return [Measured(problem=f"did not end within {limit_s:g} s")] * len(items)
    except OSError as error:  # no memory, too many processes
        return [Measured(problem=f"its process did not start: {_line(error)}")] * len(items)
    if status != 0 or not answer:
        return [Measured(problem=_ending(status))] * len(items)
    return [_from_json(each) for each in json.loads(answer)]


def _run_child(task: bytes, entry: str, limit_s: float) -> tuple[bytes, int]:
    """What it answers, and its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-c", _START, json.dumps(sys.path), entry, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what native libraries write is no report
        start_new_session=True,  # Ctrl-C is ours to answer
    )
    with process:
        try:
            answer, _ = process.communicate(task, timeout=limit_s)
        except BaseException:
            process.kill()
            raise
    return answer, process.returncode


def _ending(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status} and no result"
    with suppress(ValueError):
        name = signal.Signals(-status).name
        memory = ": memory may be short" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    return f"its process was ended by signal {-status}"


def _from_json(raw: Mapping[str, Any]) -> Measured:
    times = tuple(BatchTimes(**each) for each in raw["times"])
    paused = raw["paused"] and PausedTimes(**raw["paused"])
    return Measured(**{**raw, "times": times, "paused": paused, "notes": tuple(raw["notes"])})


def main(entry: str, parent: int) -> None:
    """The child: a task on standard input, the results on standard output, which is theirs alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # to end with the parent
    if os.getppid() != parent:  # which ended before that
        os._exit(1)
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # native libraries write there
    task = json.loads(sys.stdin.buffer.read())
    module, _, name = entry.partition(":")
    function = getattr(importlib.import_module(module), name)
    results = function(
        [
            Item(bundle, part, tuple(batches), *rest)
            for bundle, part, batches, *rest in task.pop("items")
        ],
        **task,
    )
    rows = [
        {
            **each._asdict(),
            "times": [times.model_dump() for times in each.times],
            "paused": each.paused and each.paused.model_dump(),
        }
        for each in results
    ]
    with os.fdopen(answers, "wb") as file:
        file.write(json.dumps(rows).encode())
    os._exit(0)  # without waiting for threads of native libraries, which may hang


def measure(
    items: Sequence[Item],
    provider: str,
    precision: str,
    budget_s: float,
    allow_unsigned_engines: bool = False,
    now_ns: Clock = stopwatch_ns,
    wait: Wait = _WAIT,
) -> list[Measured]:
    """Measure items in this process, in turns, for about `budget_s` in all; a `Measured` for each.
    See `measure_apart`.
    """
    setting = setting_of(provider, precision, allow_unsigned_engines=allow_unsigned_engines)
    try:
        if provider != NATIVE:
            onnxruntime()
    except FusedgeError as error:
        return [Measured(problem=_line(error))] * len(items)
    memory = Memory(on_gpu=provider != "cpu")
    subjects = [_Subject(item, setting, now_ns, memory) for item in items]
    lanes = [lane for subject in subjects for lane in subject.lanes]
    for _ in range(ROUNDS):
        for lane in lanes:
            lane.turn(budget_s / len(lanes) / ROUNDS)
    begun = now_ns()
    for number in range(MOST_PAUSED):
        if number >= LEAST_PAUSED and now_ns() - begun > budget_s / 2 * 1e9:
            break
        for subject in subjects:
            subject.run_after_pause(wait)
    results = [subject.measured() for subject in subjects]
    if len(results) == 1 and not results[0].problem:
        energy_j, why = _energy(lanes[0], provider, min(ENERGY_S, budget_s), now_ns)
        notes = (*results[0].notes, *memory.notes, why)
        results[0] = results[0]._replace(
            memory_bytes=memory.host_bytes,
            gpu_memory_bytes=memory.gpu_bytes,
            energy_j=energy_j,
            notes=tuple(printable(note) for note in notes if note)[-MAX_NOTES:],
        )
    return results


class Memory:
    """What this process took since this was made, at the most, on the host and on the GPU in bytes.

    The GPU's is that of all programs: one that takes memory meanwhile counts too.
    """

    def __init__(
        self,
        *,
        on_gpu: bool,
        process: Path = Path("/proc/self"),
        load: Callable[[str], Any] = importlib.import_module,
    ) -> None:
        self.host_bytes: int | None = None
        self.gpu_bytes: int | None = None
        self.notes: list[str] = []
        self._process = process
        self._nvml: Any = None
        with suppress(OSError):
            (process / "clear_refs").write_text("5")  # the peak begins anew
        self._before = self._status("VmRSS")
        if on_gpu:
            try:
                self._nvml = load("pynvml")
                self._nvml.nvmlInit()
                self._gpu = nvml_gpu(self._nvml, load)
                self._gpu_before = self._gpu_used()
            except Exception as error:  # no package, or NVMLError, whose class is in it
                self.notes.append(f"GPU memory cannot be read: {error}")
                self._nvml = None

    def read(self) -> None:
        """Look how much it is by now."""
        peak = self._status("VmHWM")
        if peak is None or self._before is None:
            self.notes.append(f"memory cannot be read: no {self._process}/status")
        else:
            self.host_bytes = max(0, peak - self._before)
        if self._nvml is not None:
            try:
                self.gpu_bytes = max(0, self._gpu_used() - self._gpu_before)
            except Exception as error:  # NVMLError
                self.notes.append(f"GPU memory cannot be read: {error}")

    def _status(self, name: str) -> int | None:
        text = read_text(self._process / "status")
        found = re.search(rf"^{name}:\s*(\d+) kB", text, re.M)
        return int(found[1]) * 1024 if found else None

    def _gpu_used(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._gpu).used)


def _energy(lane: _Lane, provider: str, seconds: float, now_ns: Clock) -> tuple[float | None, str]:
    """Joules of one run, or None and why."""
    meter = find_meter("cpu" if provider == "cpu" else "gpu")
    if isinstance(meter, NoMeter):
        return None, f"energy cannot be read: {meter.reason}"
    runs = lane.runs
    try:
        used = meter.during(lambda: lane.turn(seconds), now_ns)
    except OSError as error:
        return None, f"energy cannot be read: {error}"
    if lane.problem:
        return None, f"energy cannot be read: the part failed meanwhile: {lane.problem}"
    if used <= 0:
        return None, f"energy cannot be read: {meter.source} stands still"
    return used / (lane.runs - runs), ""


class _Lane:
    """A loaded part at one batch, and the times of its runs in ns."""

    def __init__(
        self, loaded: PartBackend, feeds: dict[str, NDArray[Any]], batch: int, now_ns: Clock
    ) -> None:
        self.loaded, self.feeds, self.batch = loaded, feeds, batch
        self.times: list[int] = []
        self.runs = 0
        self.problem = ""
        self._now_ns = now_ns
        for _ in range(WARM_RUNS):
            loaded.run(feeds)

    def turn(self, seconds: float) -> None:
        """Run for so long, and at least once."""
        now_ns, run, feeds, times = self._now_ns, self.loaded.run, self.feeds, self.times
        end, most = now_ns() + round(seconds * 1e9), len(times) + MAX_TIMES
        while not self.problem:
            start = now_ns()
            try:
                run(feeds)
            except Exception as error:  # ONNX Runtime and TensorRT raise dozens of kinds
                self.problem = _line(error)
                return
            done = now_ns()
            self.runs += 1
            if len(times) < most:
                times.append(done - start)
            if done >= end:
                return

    def run_once_s(self) -> float | None:
        """Seconds of a run, None where it fails."""
        before = len(self.times)
        self.turn(0)
        return self.times.pop() / 1e9 if len(self.times) > before else None

    def result(self) -> BatchTimes:
        """Percentiles."""
        p50, p90, p99 = np.percentile(self.times, (50, 90, 99)) / 1e9
        return BatchTimes(
            batch=self.batch,
            runs=self.runs,
            p50_s=float(p50),
            p90_s=float(p90),
            p99_s=float(p99),
        )


class _Subject:
    """An item, loaded; a lane for each batch up to the first that fails."""

    def __init__(self, item: Item, setting: BackendSetting, now_ns: Clock, memory: Memory) -> None:
        self.lanes: list[_Lane] = []
        self._item, self._paused_s = item, list[float]()
        self._problems: dict[int, str] = {}  # by batch
        try:
            bundle = Bundle(Path(item.bundle))
            part = _part(bundle, item.part)
            loaded = PartLoader(bundle, setting)(part)
            for batch in item.batches:
                self.lanes.append(_Lane(loaded, noise(part, batch), batch, now_ns))
                if len(self.lanes) == 1:
                    memory.read()
        except Exception as error:  # ONNX Runtime and TensorRT raise dozens of kinds
            failed = min(len(self.lanes), len(item.batches) - 1)
            self._problems[item.batches[failed]] = _line(error)

    def run_after_pause(self, wait: Wait) -> None:
        """Run once at the first batch, where that is wanted."""
        pause_s = self._item.pause_s
        if pause_s is None or not self.lanes or self.lanes[0].problem:
            return
        wait(pause_s)
        seconds = self.lanes[0].run_once_s()
        if seconds is not None:
            self._paused_s.append(seconds)

    def measured(self) -> Measured:
        """What came of it."""
        problems = self._problems | {
            lane.batch: lane.problem for lane in self.lanes if lane.problem
        }
        if problem := problems.get(self._item.batches[0]):
            return Measured(problem=problem)
        paused = None
        if self._item.pause_s is not None:
            paused = PausedTimes(
                pause_s=self._item.pause_s,
                runs=len(self._paused_s),
                p50_s=float(np.median(self._paused_s)),
            )
        return Measured(
            tuple(lane.result() for lane in self.lanes if not lane.problem),
            paused,
            notes=tuple(
                f"part {self._item.part} fails at batch {batch}: {problem}"
                for batch, problem in sorted(problems.items())
            ),
        )


def _part(bundle: Bundle, name: str) -> Part:
    parts = {part.name: part for part in bundle.manifest.parts}
    if name not in parts:
        raise UnknownNameError("part", name, parts)
    return parts[name]


def _line(error: Exception) -> str:
    """Never empty, and no longer than a profile's text."""
    return printable(str(error)) or type(error).__name__
