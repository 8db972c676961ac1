"""The GPU that CUDA puts first, by NVIDIA's management library."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fusedge.devices.targets.telemetry.reading import Frequency, Memory, Reading

# Bits of nvmlDeviceGetCurrentClocksEventReasons in nvml.h, under whichever of its two names. The others
# are no throttling: idle, clocks that the user has set, boosts that are kept in step, a display.
_REASONS = {
    0x04: "power limit of the GPU",
    0x08: "hardware slowdown of the GPU",
    0x20: "thermal limit of the GPU",
    0x40: "hardware thermal slowdown of the GPU",
    0x80: "power brake of the GPU",
}
_TEMPERATURE_GPU = 0
_CLOCKS = {"gpu": 1, "gpu memory": 2}  # NVML_CLOCK_SM, NVML_CLOCK_MEM


class NvmlSource:
    """`load` imports pynvml, and cuda.bindings where there are several GPUs. NVML may take seconds to
    begin, and may hang where the driver does.
    """

    def __init__(self, load: Callable[[str], Any]) -> None:
        self._nvml: Any = None
        self._note = ""
        try:
            nvml = load("pynvml")
        except ImportError:
            self._note = "nvidia-ml-py is not installed: pip install 'fusedge[telemetry]'"
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self._note = f"NVML: {error}"
            return
        self._nvml = nvml
        try:
            self._gpu = _first_gpu(nvml, load)
        except nvml.NVMLError as error:
            self._note = f"NVML: {error}"
            self.close()

    def read(self, now_ns: int) -> Reading:
        """What this GPU can tell; a Jetson's cannot tell all."""
        if self._nvml is None:
            return Reading(notes=(self._note,))
        nvml, gpu = self._nvml, self._gpu
        temperature = self._ask("nvmlDeviceGetTemperature", gpu, _TEMPERATURE_GPU)
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", gpu)
        load = self._ask("nvmlDeviceGetUtilizationRates", gpu)
        frequencies = {}
        for name, clock in _CLOCKS.items():
            if (mhz := self._ask("nvmlDeviceGetClockInfo", gpu, clock)) is not None:
                limit = self._ask("nvmlDeviceGetMaxClockInfo", gpu, clock)
                frequencies[name] = Frequency(float(mhz), limit and float(limit))
        # nvidia-ml-py from 12.535 on has the first name, older ones the second.
        renamed = "nvmlDeviceGetCurrentClocksEventReasons"
        bits = self._ask(
            renamed if hasattr(nvml, renamed) else "nvmlDeviceGetCurrentClocksThrottleReasons", gpu
        )
        reading = Reading(
            temperatures_c={} if temperature is None else {"gpu": float(temperature)},
            frequencies=frequencies,
            power_w={} if milliwatts is None else {"gpu": milliwatts / 1e3},
            memory=self._memory(),
            utilisation_percent={} if load is None else {"gpu": float(load.gpu)},
            throttling=None if bits is None else any(bits & bit for bit in _REASONS),
            throttle_reasons=tuple(why for bit, why in _REASONS.items() if (bits or 0) & bit),
        )
        return reading if reading != Reading() else Reading(notes=(f"NVML: {self._note}",))

    def _memory(self) -> dict[str, Memory]:
        memory = {}
        if (found := self._ask("nvmlDeviceGetMemoryInfo", self._gpu)) is not None:
            memory["gpu"] = Memory(found.used, found.total)
        for process in self._ask("nvmlDeviceGetComputeRunningProcesses", self._gpu) or ():
            # In a container NVML has other process ids; some drivers know no figure.
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                memory["gpu process"] = Memory(process.usedGpuMemory)
        return memory

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What a function of NVML says; None where this GPU or driver does not have it."""
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError as error:
            self._note = str(error)
            return None

    def close(self) -> None:
        """Let the library go."""
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):  # of a driver that has gone
                self._nvml.nvmlShutdown()
            self._nvml = None


def _first_gpu(nvml: Any, load: Callable[[str], Any]) -> Any:
    if nvml.nvmlDeviceGetCount() == 1:
        return nvml.nvmlDeviceGetHandleByIndex(0)
    # Knows the tables of targets, and asks CUDA: only where there is a choice.
    from fusedge.devices.targets.detection.local import nvml_gpu

    return nvml_gpu(nvml, load)
