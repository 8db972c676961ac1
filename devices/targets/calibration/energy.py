"""The energy that work takes: counters of the processor or the GPU, or the power of a Jetson, integrated.

What is measured is the whole of the device meanwhile, its idle power and other programs' share included.
Not run on a GPU or a Jetson by this project's tests: they read recorded trees and doubles of NVML.
"""

from __future__ import annotations

import importlib
import itertools
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from fusedge.devices.targets.detection.local import nvml_gpu
from fusedge.devices.targets.telemetry.rails import PowerRails
from fusedge.devices.targets.telemetry.rapl import RAPL, EnergyCounter, energy_counters
from fusedge.devices.targets.telemetry.reading import BOARD_RAILS

_SAMPLE_S = 0.02  # the INA3221 converts its three channels in about 7 ms, NVML in 20 to 100 ms


class Meter(Protocol):
    """Joules of a device. `source` says which, and by what."""

    source: str

    def during(self, work: Callable[[], object], now_ns: Callable[[], int]) -> float:
        """Do the work; joules that were used meanwhile. Raises OSError where it cannot be read."""


class NoMeter(NamedTuple):
    """Why no energy can be told."""

    reason: str


class RaplMeter:
    """Counters of Intel's and AMD's processors."""

    def __init__(self, counters: Sequence[EnergyCounter]) -> None:
        self._counters = counters
        self.source = f"RAPL: {', '.join(counter.label for counter in counters)}"

    def during(self, work: Callable[[], object], now_ns: Callable[[], int]) -> float:
        """See Meter."""
        before = self._read()
        work()
        after = self._read()
        used = 0
        for counter, old, new in zip(self._counters, before, after, strict=True):
            if (more := counter.used_uj(old, new)) is None:
                raise OSError(f"RAPL: {counter.label} began anew, and its range cannot be read")
            used += more
        return used / 1e6

    def _read(self) -> list[int]:
        found = []
        for counter in self._counters:
            if (energy_uj := counter.read_uj()) is None:
                raise OSError(counter.closed)
            found.append(energy_uj)
        return found


class CounterMeter:
    """A counter of joules that never goes back."""

    def __init__(self, source: str, read_j: Callable[[], float]) -> None:
        self.source, self._read_j = source, read_j

    def during(self, work: Callable[[], object], now_ns: Callable[[], int]) -> float:
        """See Meter."""
        before = self._read_j()
        work()
        return self._read_j() - before


class PowerMeter:
    """Power in watts, sampled in a thread of its own and integrated by trapezia."""

    def __init__(self, source: str, read_w: Callable[[], float]) -> None:
        self.source, self._read_w = source, read_w

    def during(self, work: Callable[[], object], now_ns: Callable[[], int]) -> float:
        """See Meter."""
        samples = [(now_ns(), self._read_w())]
        stop, failures = threading.Event(), list[Exception]()

        def sample() -> None:
            try:
                while not stop.wait(_SAMPLE_S):
                    samples.append((now_ns(), self._read_w()))
            except Exception as error:  # a thread's own error would be lost
                failures.append(error)

        thread = threading.Thread(target=sample, name="power", daemon=True)
        thread.start()
        try:
            work()
        finally:
            stop.set()
            thread.join()
        if failures:
            raise OSError(f"{self.source}: {failures[0]}")
        samples.append((now_ns(), self._read_w()))
        return integral_j(samples)


def integral_j(samples: list[tuple[int, float]]) -> float:
    """Joules from (ns, watts) in order of time."""
    pairs = itertools.pairwise(samples)
    return sum((t1 - t0) * (w0 + w1) / 2e9 for (t0, w0), (t1, w1) in pairs)


def find_meter(
    device: Literal["cpu", "gpu"],
    root: Path = Path("/"),
    load: Callable[[str], Any] = importlib.import_module,
) -> Meter | NoMeter:
    """What tells the energy of a device of the machine whose files are under `root`.

    A Jetson's module rail is taken for both, since its memory and its GPU have no counter of their own.
    `load` imports pynvml. The reason why there is none is one line.
    """
    module = _module(root)
    if module is not None:
        return module
    return _rapl(root) if device == "cpu" else _nvml(load)


def _rapl(root: Path) -> RaplMeter | NoMeter:
    """Packages, and memory where it is counted apart; cores lie within their package."""
    found = [each for each in energy_counters(root) if each.domain.startswith(("package", "dram"))]
    if not found:
        return NoMeter(f"no package in /{RAPL}: no such counters, or hidden from this machine")
    closed = (NoMeter(each.closed) for each in found if each.read_uj() is None)
    return next(closed, None) or RaplMeter(found)


def _module(root: Path) -> PowerMeter | None:
    """The power monitor of a Jetson, where a rail feeds the whole module."""
    rails = PowerRails(root)
    name = next((name for name in BOARD_RAILS if name in rails.read(0)), None)
    if name is None:
        return None

    def read_w() -> float:
        watts = rails.read(0).get(name)
        if watts is None:
            raise OSError(f"rail {name} cannot be read any more")
        return watts

    return PowerMeter(f"power monitor: {name}", read_w)


def _nvml(load: Callable[[str], Any]) -> CounterMeter | PowerMeter | NoMeter:
    """Total energy since Volta, else samples of power."""
    try:
        nvml = load("pynvml")
    except ImportError:
        return NoMeter("the package nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
        handle = nvml_gpu(nvml, load)
    except Exception as error:  # NVMLError, whose class is in the optional package
        return NoMeter(f"NVML: {error}")

    def ask(function: str) -> float:
        try:
            return float(getattr(nvml, function)(handle)) / 1e3
        except nvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from None

    energy, power = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"
    try:
        ask(energy)
    except OSError:
        try:
            ask(power)
        except OSError as error:
            return NoMeter(str(error))
        return PowerMeter("NVML: power", partial(ask, power))
    return CounterMeter("NVML: total energy", partial(ask, energy))
