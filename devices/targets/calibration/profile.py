"""The profile of a machine: what `fusedge bench` measured on it, and the rates that follow from it.

A profile is one JSON file. It is made on the device and may be carried to the desk, so it is read as what
somebody else wrote.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fusedge.bundle.built_here import cache_folder
from fusedge.bundle.errors import FusedgeError, first_problem
from fusedge.bundle.manifest import Name, Text
from fusedge.bundle.regular_file import is_file, read_file, write_whole
from fusedge.devices.targets.detection.machine import Machine
from fusedge.devices.targets.facts.table import Target
from fusedge.devices.targets.planning.rates import KindRate, Rates
from fusedge.devices.targets.work import Kind

FORMAT_VERSION = 1
MAX_BYTES = 4 << 20
MAX_NOTES = 16  # of a part
MAX_ERROR = 1e3  # a factor; rates that are off by more are none
NATIVE = "native"  # the provider's place is taken by the bundle's engines

Seconds = Annotated[float, Field(ge=0, le=1e5, allow_inf_nan=False)]
PerSecond = Annotated[float, Field(ge=1, le=1e18, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 50)]
_Short = Annotated[str, Field(max_length=40, pattern=r"^[A-Za-z0-9_.\-]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MachineIdentity(_Strict):
    """All that rates depend on. Another clock, driver or version of a library is another machine."""

    processor: Text | None
    target: Text = Field(description="as `fusedge plan --target` takes it, or `cpu`")
    power_mode: Text | None
    gpu_driver: Text | None
    onnxruntime: Text | None
    tensorrt: dict[_Short, Text] = Field(max_length=8)

    @property
    def hash(self) -> str:
        """Of the file in which its profile is kept."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class Conditions(_Strict):
    """What else went on while it was measured. `load_average` is that of one minute, at the start."""

    load_average: float | None = Field(ge=0)
    governor: Text | None = Field(description="of the CPU's clock; None where it cannot be read")
    cores: int | None = Field(ge=1)


class BatchTimes(_Strict):
    """How long runs with a number of rows took."""

    batch: int = Field(ge=1, le=1 << 16)
    runs: int = Field(ge=1)
    p50_s: Seconds
    p90_s: Seconds
    p99_s: Seconds

    @property
    def rows_per_s(self) -> float:
        """Throughput of one run after the other."""
        return self.batch / max(self.p50_s, 1e-9)


class PausedTimes(_Strict):
    """How long runs at the least batch took that each came `pause_s` after the one before."""

    pause_s: float = Field(gt=0, le=1)
    runs: int = Field(ge=1)
    p50_s: Seconds


class MeasuredPart(_Strict):
    """A part on a provider (`native`: an engine of the bundle) at a precision.

    `times` are for rising batches, the least one first. `memory_bytes` is what loading it and running
    that least batch took beyond ONNX Runtime itself, `energy_j` is of one run. What could not be read
    is None, and `notes` say why. `problem` is why the part does not run; then there are no times.
    """

    bundle: Name
    part: Name
    provider: _Short
    precision: _Short
    times: tuple[BatchTimes, ...] = Field(default=(), max_length=64)
    paused: PausedTimes | None = None
    memory_bytes: Count | None = None
    gpu_memory_bytes: Count | None = None
    energy_j: float | None = Field(default=None, gt=0)
    estimated_s: float | None = Field(
        default=None, ge=0, description="before this calibration, at the least batch"
    )
    notes: tuple[Text, ...] = Field(default=(), max_length=MAX_NOTES)
    problem: Text = ""


class KindCost(_Strict):
    """Of one kind of work: see fusedge.devices.targets.planning.rates.KindRate."""

    overhead_s: Seconds
    operations_per_s: dict[_Short, PerSecond] = Field(max_length=16)
    bytes_per_s: PerSecond
    source: Text
    fill_s: Seconds = 0.0
    fill_factor: float = Field(default=0.0, ge=0, le=1e6)


class Calibration(_Strict):
    """What estimates for a provider at a precision rest on: see `Rates` in planning/rates.py.

    `graphs` and `kernels` are how many it was fitted to.
    """

    provider: _Short
    precision: _Short
    kinds: dict[Kind, KindCost] = Field(max_length=len(get_args(Kind)))
    run_s: Seconds
    tensor_s: Seconds = Field(description="for each input and output, beside run_s")
    pause_s: Seconds = Field(
        default=0.0, description="0 with all three where no pause was measured"
    )
    pause_node_s: Seconds = 0.0
    pause_byte_s: Seconds = 0.0
    error: float = Field(ge=1, le=MAX_ERROR, description="expected error of a part, as a factor")
    graphs: int = Field(ge=1)
    kernels: int = Field(ge=1)


class Profile(_Strict):
    """Measured on one machine, in one power mode."""

    format_version: int = Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)
    machine: MachineIdentity
    date: Text
    conditions: Conditions
    parts: tuple[MeasuredPart, ...] = Field(max_length=10_000)
    calibrations: tuple[Calibration, ...] = Field(max_length=100)

    @field_validator("date")
    @classmethod
    def _is_date(cls, text: str) -> str:
        if len(text) > 40:
            raise ValueError("a date has at most 40 characters")
        return text

    @model_validator(mode="after")
    def _once(self) -> Profile:
        keys = [(each.provider, each.precision) for each in self.calibrations]
        if len(set(keys)) != len(keys):
            raise ValueError("a provider and precision is calibrated twice")
        return self


def identity_of(machine: Machine, target: Target) -> MachineIdentity:
    """Of the machine that was detected, and what it is as a target."""
    return MachineIdentity(
        processor=machine.processor,
        target=target.device,
        power_mode=target.mode,
        gpu_driver=machine.gpu_driver,
        onnxruntime=machine.onnxruntime,
        tensorrt=dict(sorted(machine.tensorrt.items())),
    )


def load_profile(path: Path) -> Profile:
    """Read a profile; raises FusedgeError in one line where it is none, or of another version."""
    content = read_file(path, MAX_BYTES)
    try:
        return Profile.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise FusedgeError(
            f"is no profile: {first_problem(error)}",
            where=str(path),
            hint="make one on the device: fusedge bench BUNDLE -o FILE",
        ) from None


def profile_path(machine: MachineIdentity, folder: Path | None = None) -> Path:
    """Where the profile of a machine is kept; `folder` instead of the user's cache."""
    return (folder or cache_folder()) / "profiles" / f"{machine.hash}.json"


def profile_for(
    machine: MachineIdentity, provider: str, folder: Path | None = None
) -> Profile | None:
    """The kept profile of this very machine, None where there is none with rates of the provider.

    A kept file that cannot be read is as none: `fusedge bench` writes it again.
    """
    found = _kept(machine, folder)
    fits = found is not None and provider in {c.provider for c in found.calibrations}
    return found if fits else None


def _kept(machine: MachineIdentity, folder: Path | None) -> Profile | None:
    path = profile_path(machine, folder)
    if not is_file(path):
        return None
    try:
        found = load_profile(path)
    except FusedgeError:
        return None
    return found if found.machine == machine else None


def rates_of(profile: Profile, provider: str, precision: str) -> Rates | None:
    """What an estimate multiplies by; None where the profile says nothing of the provider and precision.

    `provider` is `cpu`, `cuda`, `tensorrt`, `tensorrt-rtx` or `native`.
    """
    for found in profile.calibrations:
        if (found.provider, found.precision) == (provider, precision):
            return Rates(
                kinds={kind: KindRate(**dict(cost)) for kind, cost in found.kinds.items()},
                run_s=found.run_s,
                tensor_s=found.tensor_s,
                pause_s=found.pause_s,
                pause_node_s=found.pause_node_s,
                pause_byte_s=found.pause_byte_s,
                error=found.error,
                measured=True,
                source=f"measured on {profile.machine.target}, {profile.date}",
            )
    return None


def with_earlier(new: Profile, folder: Path | None = None) -> Profile:
    """With the rates that an earlier run on this machine found for other providers and precisions."""
    old = _kept(new.machine, folder)
    if old is None:
        return new
    known = {(each.provider, each.precision) for each in new.calibrations}
    kept = [each for each in old.calibrations if (each.provider, each.precision) not in known]
    return new.model_copy(update={"calibrations": (*new.calibrations, *kept)})


def keep_profile(profile: Profile, folder: Path | None = None) -> Path:
    """Keep it where `profile_for` finds it, and with it what an earlier run found; the path.

    Raises FusedgeError where it cannot be written.
    """
    path = profile_path(profile.machine, folder)
    write_profile(with_earlier(profile, folder), path, private=True)
    return path


def write_profile(profile: Profile, path: Path, *, private: bool = False) -> None:
    """Write it whole or not at all, see `write_whole`; raises FusedgeError where it cannot be written."""
    write_whole(path, profile.model_dump_json(indent=1).encode() + b"\n", private=private)
