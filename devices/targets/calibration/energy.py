"""The energy that work takes: counters of the processor or the GPU, or the power of a Jetson, integrated.

What is measured is the whole of the device meanwhile, its idle power and other programs' share included.
Not run on a GPU or a Jetson by this project's tests: they read recorded trees and doubles of NVML.
"""

from __future__ import annotations

import importlib
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from fusedge.devices.targets.detection.local import nvml_gpu
from fusedge.devices.targets.telemetry.rails import PowerRails
from fusedge.devices.targets.telemetry.reading import BOARD_RAILS

RAPL = "sys/class/powercap"
_SAMPLE_S = 0.02  # the INA3221 converts its three channels in about 7 ms, NVML in 20 to 100 ms


class Meter(Protocol):
    """Joules of a device. `source` says which, and by what."""

    source: str

    def during(self, work: Callable[[], object], now_ns: Callable[[], int]) -> float:
        """Do the work; joules that were used meanwhile. Raises OSError where it cannot be read."""


class NoMeter(NamedTuple):
    """Why no energy can be told."""

    reason: str


class _Domain(NamedTuple):
    counter: Path
    range_uj: int


class RaplMeter:
    """Counters of Intel's and AMD's processors in µJ, which begin again at 0 beyond their range."""

    def __init__(self, domains: dict[str, _Domain]) -> None:
        self._domains = domains
        self.source = f"RAPL: {', '.join(domains)}"

    def during(self, work: Callable[[], object], now_ns: Callable[[], int]) -> float:
        """See Meter."""
        before = self._read()
        work()
        after = self._read()
        used = 0
        for (_, most), old, new in zip(self._domains.values(), before, after, strict=True):
            used += new - old if new >= old else new - old + most
        return used / 1e6

    def _read(self) -> list[int]:
        return [_number(domain.counter) for domain in self._domains.values()]


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
            except Exception as error:  # OSError, or NVML's, whose class is in the optional package
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
    domains: dict[str, _Domain] = {}
    zones = sorted((root / RAPL).glob("intel-rapl:*"))
    if not zones:
        return NoMeter(f"no /{RAPL}/intel-rapl:*: no such counters, or hidden from this machine")
    for zone in zones:
        try:
            name = (zone / "name").read_text("utf-8", errors="replace").strip()
            if not name.startswith(("package", "dram")):
                continue
            _number(zone / "energy_uj")  # root only on most systems
            most = _number(zone / "max_energy_range_uj")
        except PermissionError:
            path = f"/{(zone / 'energy_uj').relative_to(root)}"
            return NoMeter(f"{path} is for root only: sudo chmod a+r {path}")
        except (OSError, ValueError) as error:
            return NoMeter(f"{zone.name}: {error}")
        label = name if name not in domains else f"{name} of {zone.name}"
        domains[label] = _Domain(zone / "energy_uj", most)
    if not domains:
        return NoMeter(f"no package among /{RAPL}/intel-rapl:*")
    return RaplMeter(domains)


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
        try:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError:
            nvml.nvmlDeviceGetPowerUsage(handle)
            return PowerMeter("NVML: power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
        return CounterMeter(
            "NVML: total energy",
            lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
        )
    except Exception as error:  # NVMLError, whose class is in the optional package
        return NoMeter(f"NVML: {error}")


def _number(path: Path) -> int:
    """Raises OSError, and ValueError for what is no number."""
    return int(path.read_text("utf-8", errors="replace"))
