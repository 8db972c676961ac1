"""The description of a machine that `detect` gives. What could not be read is None or empty."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat

from fusedge.bundle.errors import printable
from fusedge.devices.targets.facts.rows import Configuration

# All texts come from files that anyone may have written.
Shown = Annotated[str, AfterValidator(printable)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Board(_Frozen):
    """The board, as its device tree names it: its model, and names from the most special on."""

    model: Shown | None
    compatible: tuple[Shown, ...] = ()


class Jetson(_Frozen):
    """The Jetson module or kit, its release of Jetson Linux (`36.4.3`), and what it is set to.

    Power modes are known by name only. `gpu_mhz` is the clock now, `gpu_max_mhz` the most that is allowed
    now, `emc_cap_mhz` a limit on the memory's clock. In `tpc_mask` each bit is a cluster switched off.
    """

    model: Shown
    l4t: Shown | None = None
    part: Shown | None = Field(default=None, description="of the module, such as p3767-0005")
    module: str | None = Field(
        default=None, description="its name in the table of targets, None if that lacks the part"
    )
    soc: Shown | None = Field(default=None, description="such as tegra234")
    compute_capability: str | None = None
    jetpack: str | None = Field(default=None, description="by the release of Jetson Linux")
    power_mode: Shown | None = None
    power_modes: tuple[Shown, ...] = ()
    configuration: Configuration | None = Field(default=None, description="set of power modes")
    gpu_mhz: PositiveFloat | None = None
    gpu_max_mhz: PositiveFloat | None = None
    emc_cap_mhz: PositiveFloat | None = None
    tpc_mask: NonNegativeInt | None = None


class Gpu(_Frozen):
    """An NVIDIA GPU, as its driver describes it. Clocks are the most that it can have.

    A GPU that is split (MIG) is used through its `instances` only.
    """

    name: Shown
    memory_bytes: NonNegativeInt | None = None
    compute_capability: Shown | None = None
    multiprocessors: NonNegativeInt | None = None
    gpu_mhz: PositiveFloat | None = None
    memory_mhz: PositiveFloat | None = None
    memory_bus_bits: NonNegativeInt | None = None
    watts: PositiveFloat | None = Field(default=None, description="power limit as it is set now")
    mig: bool | None = Field(default=None, description="whether it is split")
    instances: tuple[Gpu, ...] = ()


class CoreKind(_Frozen):
    """CPU cores of one kind: a machine with big and small ones has two or three.

    `kind` is implementer and part on ARM (`0x41:0xd42`), vendor, family and model on x86
    (`AuthenticAMD:25:97`), and `processor` its name in the table of processors. `max_mhz` is the most that
    the kernel allows now; `mhz` what /proc/cpuinfo says, on x86 only.
    """

    title: Shown
    kind: Shown | None = None
    processor: str | None = None
    count: int = Field(description="logical cores that are switched on")
    max_mhz: PositiveFloat | None = None
    mhz: PositiveFloat | None = None
    cache_bytes: dict[Shown, NonNegativeInt] = Field(default_factory=dict)


class SystemTensorRT(_Frozen):
    """TensorRT among the system's libraries, and the Pythons (`3.10`) that its module is installed for."""

    version: Shown
    pythons: tuple[Shown, ...]

    def unseen(self, python: str) -> str:
        """Why an environment of this Python (`3.10.12`) cannot import it, to follow its name."""
        here = ".".join(python.split(".")[:2])
        if not self.pythons:
            return "has no Python module"
        if here in self.pythons:
            return (
                f"is for this Python {here}, but this environment does not see the system's modules"
            )
        return f"is for Python {' and '.join(self.pythons)}, and this is {here}"


class Machine(_Frozen):
    """What was found; `model_dump_json()` gives it as JSON. Fields that could not be read are None."""

    processor: Shown | None
    architecture: Shown
    cores: int | None = Field(description="logical cores of the machine, those switched off too")
    usable_cores: int | None = Field(description="those that this process may use")
    memory_bytes: int | None
    os: Shown
    python: str
    jetson: Jetson | None
    gpus: tuple[Gpu, ...]
    gpu_driver: Shown | None
    gpu_note: Shown = Field(description="where the GPUs were found, or why none were")
    onnxruntime: Shown | None = Field(description="version, None where it is not installed")
    onnxruntime_providers: tuple[Shown, ...] = Field(description="those compiled in, best first")
    onnxruntime_note: Shown = Field(description="why it cannot be used, else empty")
    tensorrt: dict[str, Shown] = Field(description="installed flavour to version, of this Python")
    torch: Shown | None = Field(description="version, None where it is not installed")
    tensorrt_system: SystemTensorRT | None = None
    board: Board | None = None
    core_kinds: tuple[CoreKind, ...] = ()
    physical_cores: int | None = Field(
        default=None, description="without hyperthreads; x86 only, for others they are the cores"
    )
    cpu_flags: tuple[Shown, ...] = Field(
        default=(), description="extensions of the instruction set that speed parts up"
    )
    cpu_quota: PositiveFloat | None = Field(
        default=None, description="cores' worth of time that this process may take"
    )
    memory_limit_bytes: int | None = Field(
        default=None, description="most memory that this process may take"
    )
    container: Shown | None = Field(default=None, description="its kind, None outside of one")

    @property
    def usable_memory_bytes(self) -> int | None:
        """The memory that this process may take at most."""
        limits = [size for size in (self.memory_bytes, self.memory_limit_bytes) if size]
        return min(limits, default=None)

    @property
    def memory_beyond_bytes(self) -> int:
        """What it has beyond that: its control group's limit is for this process, not for the system."""
        total, usable = self.memory_bytes, self.usable_memory_bytes
        return total - usable if total and usable else 0
