"""The rows of the tables in `data/`: facts of devices and of the software on them, each with its source.

A number that is not known is written `unknown`, and is None here. A table that breaks its schema, or
contradicts itself, is refused when it is read.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fusedge.bundle.manifest import Flavour

Computation = Literal["fp32", "fp16", "bf16", "int8", "fp8", "fp4"]
# Jetson Linux has two sets of power modes for Orin Nano and Orin NX: since JetPack 6.2, the "super" ones.
Configuration = Literal["standard", "super"]


def _known(value: object) -> object:
    return None if value == "unknown" else value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MaybePositive = Annotated[Positive | None, BeforeValidator(_known)]
MaybeCount = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_known)]
MaybeText = Annotated[str | None, BeforeValidator(_known)]
Source = Annotated[str, Field(min_length=8)]
Capability = Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")]
TargetName = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)*$")]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    source: Source


class Generation(_Row):
    """GPUs of one compute capability.

    `operations` are dense operations a clock and multiprocessor, where a multiplication with its addition
    is two: on tensor cores where there are such for the precision, with sums in fp16 for fp16 where those
    are faster. A precision that is not listed cannot be computed in.
    """

    compute_capability: Capability
    architecture: str
    operations: dict[Computation, MaybePositive]
    tensorrt_first: Annotated[Version | None, BeforeValidator(_known)]
    tensorrt_last: Annotated[Version | None, BeforeValidator(_known)] = Field(
        default=None, description="the last version that builds for it; left out: none is known"
    )
    tensorrt_rtx: bool


class Gpu(_Row):
    """A graphics card or a GPU of a data centre; a laptop's GPU of the same name is slower.

    `tflops` are the maker's own figures where he gives them, dense, to check the others against.
    """

    name: TargetName
    title: str = Field(description="as the driver calls it")
    also_called: tuple[TargetName, ...] = Field(
        default=(), description="what users call it too, to be answered with its name"
    )
    compute_capability: Capability
    flavour: Flavour = Field(description="the TensorRT that its engines are built with by default")
    multiprocessors: MaybeCount
    boost_mhz: MaybePositive
    tensor_mhz: MaybePositive = Field(
        default=None, description="of the tensor cores, where they never reach the boost clock"
    )
    memory_gib: MaybePositive
    memory_is_shared: bool = Field(default=False, description="with the computer's processor")
    bandwidth_gb_s: MaybePositive
    watts: MaybePositive = Field(description="of the whole board")
    operations: dict[Computation, MaybePositive] = Field(
        default_factory=dict, description="as its generation has them, where this chip differs"
    )
    tflops: dict[Computation, Positive] = Field(default_factory=dict)


class PowerMode(BaseModel):
    """A power mode of a Jetson, by the name that nvpmodel gives it.

    Clocks are the most that the mode allows, `dla_mhz` that of the first DLA. Bandwidth follows from
    `emc_mhz`. Of MAXN, which has no budget, `watts` is the module's limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[A-Z0-9][A-Z0-9_]*$")
    configuration: Configuration = "standard"
    default: bool = False
    cpus: MaybeCount
    cpu_mhz: MaybePositive
    tpcs: MaybeCount = Field(description="clusters of multiprocessors that are switched on")
    gpu_mhz: MaybePositive
    emc_mhz: MaybePositive
    dla_mhz: MaybePositive = None
    watts: MaybePositive
    jetpack_first: Version | None = Field(
        default=None,
        description="the first release that has it; left out: all of the configuration",
    )


class Jetson(_Row):
    """A Jetson module. `parts` are the numbers of module and variant in its device tree."""

    name: TargetName
    title: str
    also_called: tuple[TargetName, ...] = Field(
        default=(), description="what users call it too, to be answered with its name"
    )
    parts: tuple[Annotated[str, Field(pattern=r"^p\d{4}-\d{4}$")], ...]
    compute_capability: Capability
    multiprocessors_per_tpc: MaybeCount
    memory_gib: Positive
    memory_bus_bits: MaybeCount
    cpu: str = Field(description="its name in the table of processors")
    dlas: int = Field(ge=0, le=2)
    dla_version: MaybeCount = None
    dla_int8_operations: MaybePositive = Field(
        default=None, description="dense, a clock and DLA; fp16 is half of it on version 1"
    )
    jetpack_first: Version
    jetpack_last: Annotated[Version | None, BeforeValidator(_known)] = Field(
        default=None, description="left out: the newest one is for it"
    )
    modes: tuple[PowerMode, ...] = Field(min_length=1)
    modes_source: Source

    @model_validator(mode="after")
    def _one_default(self) -> Jetson:
        for configuration in {mode.configuration for mode in self.modes}:
            modes = [mode for mode in self.modes if mode.configuration == configuration]
            names = [mode.name for mode in modes]
            if len(set(names)) != len(names):
                raise ValueError(f"{self.name}: a power mode is there twice")
            if sum(mode.default for mode in modes) != 1:
                raise ValueError(f"{self.name}: one {configuration} mode must be the default")
        return self


class JetPack(_Row):
    """A release of JetPack, and what comes with it. `capabilities` are those of the devices it is for."""

    name: Version
    l4t: tuple[Version, ...] = Field(description="empty where it is not known")
    cuda: MaybeText
    cudnn: MaybeText
    tensorrt: Version
    python: Version
    ubuntu: MaybeText
    capabilities: tuple[Capability, ...] = Field(min_length=1)
    dla: bool = Field(description="whether its TensorRT builds for the DLA where there is one")
    tensorrt_optional: Version | None = Field(
        default=None, description="a newer one to install on AGX Orin, with its DLA, and on Thor"
    )
    configuration: Configuration = Field(
        default="standard", description="the newest that it has; the older one can be flashed too"
    )

    @property
    def confirmed(self) -> bool:
        """Whether all that comes with it is known."""
        return bool(self.l4t and self.cuda and self.cudnn and self.ubuntu)


class Processor(_Row):
    """A kind of CPU core. It is known by `parts`, as /proc/cpuinfo has them on ARM (`0x41:0xd42`), or by
    `families`, which are family and model on x86 (`AuthenticAMD:25:97`).

    `operations` are a clock and core, where a multiplication with its addition is two.
    """

    name: TargetName
    title: str
    parts: tuple[Annotated[str, Field(pattern=r"^0x[0-9a-f]{2}:0x[0-9a-f]{3}$")], ...] = ()
    families: tuple[Annotated[str, Field(pattern=r"^\w+:\d+:\d+$")], ...] = ()
    operations: dict[Computation, MaybePositive]


class Computer(_Row):
    """A machine whose CPU runs the parts: a single-board computer, a small PC."""

    name: TargetName
    title: str
    also_called: tuple[TargetName, ...] = Field(
        default=(), description="what users call it too, to be answered with its name"
    )
    models: tuple[str, ...] = Field(
        default=(), description="how its device tree or /proc/cpuinfo begins to name it"
    )
    architecture: Literal["x86_64", "aarch64"]
    cpu: str
    cores: int = Field(ge=1)
    cpu_mhz: MaybePositive
    memory_gib: MaybePositive
    bandwidth_gb_s: MaybePositive
    watts: MaybePositive


class Wheel(_Row):
    """Wheels of ONNX Runtime that exist: versions, Pythons, machines, and providers compiled in."""

    package: str
    first: Version
    last: Annotated[Version | None, BeforeValidator(_known)] = None
    pythons: tuple[Version, ...] = Field(min_length=1)
    architecture: Literal["x86_64", "aarch64"]
    capabilities: tuple[Capability, ...] = Field(
        default=(), description="of the GPUs that it is built for; empty: any that CUDA runs on"
    )
    cuda: MaybeText = None
    jetson: bool = Field(default=False, description="for JetPack's CUDA")
    providers: tuple[str, ...] = Field(min_length=1)
    index: str = Field(default="PyPI", description="where it is to be had")


class DlaOperators(_Row):
    """ONNX operators that one version of the DLA runs; all others stay on the GPU."""

    dla_version: int
    operators: tuple[str, ...] = Field(min_length=1)
    limits: tuple[str, ...]
