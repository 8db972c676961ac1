"""Targets: the devices that a bundle can be built for or run on, from the tables in `data/`.

The tables are read when they are first asked for. Peaks and bandwidths follow from clocks and counts, so
that a power mode has its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from pydantic import ValidationError

from fusedge.bundle.errors import FusedgeError, UnknownNameError, first_problem
from fusedge.bundle.manifest import Flavour
from fusedge.bundle.strict_yaml import load_yaml
from fusedge.devices.targets.facts.names import nearest_names
from fusedge.devices.targets.facts.opsets import max_opset
from fusedge.devices.targets.facts.rows import (
    Computation,
    Computer,
    Configuration,
    DlaOperators,
    Generation,
    Gpu,
    JetPack,
    Jetson,
    PowerMode,
    Processor,
    Wheel,
    _Row,
)

_DATA = Path(__file__).with_name("data")
_LISTING = "see fusedge devices --targets"

RowT = TypeVar("RowT", bound=_Row)
KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True)
class Compute:
    """What a device can do at most in its power mode. What is not known is None.

    `peak` is in operations a second by precision: of the whole GPU, or of one core of a CPU, since a part
    runs on one thread there. `multiprocessors` is 0 for a CPU. `watts` is the limit of board or mode.
    """

    peak: Mapping[Computation, float | None] = field(default_factory=dict)
    bandwidth_bytes_per_s: float | None = None
    memory_bytes: float | None = None
    memory_is_shared: bool = True
    multiprocessors: int | None = None
    cores: int | None = None
    cpu_mhz: float | None = None
    watts: float | None = None


@dataclass(frozen=True)
class Target:
    """A compute device, in a power mode where it has such. Look it up with `find_target`.

    `name` is as users say it, with the power mode (`jetson-orin-nano-8gb:15W`) only where they said it.
    `flavour` is the TensorRT that its engines are for, None where parts run as ONNX only.
    `compute_capability` is like `8.9`, None without a GPU. `max_opset` is the highest ONNX opset that
    the newest TensorRT of the device is known to read whole, None where nothing limits it. `row` is what
    the table has of it, None for a device that no table has. `memory_beyond_bytes` is what this machine
    has beyond the memory that a control group (a container) lets the process take; 0 without a limit.
    """

    name: str
    flavour: Flavour | None
    compute_capability: str | None
    source: str
    max_opset: int | None = None
    compute: Compute = Compute()
    power_mode: PowerMode | None = None
    row: Jetson | Gpu | Computer | None = None
    memory_beyond_bytes: int = 0

    @property
    def device(self) -> str:
        """Its name without the power mode."""
        return self.row.name if self.row else self.name.partition(":")[0]

    @property
    def mode(self) -> str | None:
        """The name of its power mode, None where it has none."""
        return self.power_mode.name if self.power_mode else None

    @property
    def builds_anywhere(self) -> bool:
        """Whether its engine can be built on another machine: only TensorRT-RTX can do that."""
        return self.flavour == "tensorrt_rtx"


def find_target(
    name: str, configuration: Configuration | None = None, jetpack: JetPack | None = None
) -> Target:
    """The target of that name, which a power mode may follow: `jetson-orin-nano-8gb:15W`.

    Without one, a Jetson is in the mode that it starts in. A name may have capitals and spaces; a mode
    small letters, and not the MODE_ that some boards have before it, but it cannot be a number.
    `configuration` is the set of power modes of a device, None where it is not known; `jetpack` is the one
    on it, None for the newest. Raises FusedgeError, for an unknown name with the closest matches.
    """
    said, _, mode = name.partition(":")
    plain = "-".join(said.lower().split())
    if plain == "local":
        raise FusedgeError(
            "a device is wanted by its name here", where="target local", hint=_LISTING
        )
    if plain == "cpu":
        found = Target("cpu", None, None, "ONNX Runtime's CPU provider")
    elif plain in jetsons():
        return jetson_target(jetsons()[plain], mode, configuration, jetpack)
    elif plain in gpus():
        found = gpu_target(gpus()[plain])
    elif plain in computers():
        found = _computer_target(computers()[plain])
    else:
        rows: list[Gpu | Jetson | Computer]
        rows = [*gpus().values(), *jetsons().values(), *computers().values()]
        known = {row.name: row.also_called for row in rows}
        raise UnknownNameError(
            "target",
            said,
            ("local", *target_names()),
            close=nearest_names(said, {"local": (), "cpu": (), **known}),
            listing=_LISTING,
        )
    if mode:
        raise FusedgeError("has no power modes", where=plain, hint=f"say --target {plain}")
    return found


def target_names() -> tuple[str, ...]:
    """All targets, without power modes."""
    return ("cpu", *gpus(), *jetsons(), *computers())


def jetson_target(
    row: Jetson,
    mode: str = "",
    configuration: Configuration | None = None,
    jetpack: JetPack | None = None,
) -> Target:
    """A Jetson in a power mode, without `mode` in its default; see `find_target`."""
    modes = power_modes(row, configuration, jetpack)
    if mode:
        # Where the device's set is not known, the older one counts too: devices with it are in use.
        older = {} if configuration else power_modes(row, "standard", jetpack)
        chosen = _named_mode(row, mode, older | modes, jetpack)
    else:
        chosen = next(each for each in modes.values() if each.default)
    generation = generations()[row.compute_capability]
    sms = _product(chosen.tpcs, row.multiprocessors_per_tpc)
    return Target(
        name=f"{row.name}:{chosen.name}" if mode else row.name,
        flavour="tensorrt",
        compute_capability=row.compute_capability,
        source=row.source,
        max_opset=_max_opset(row),
        compute=Compute(
            peak=_peaks(generation.operations, sms, chosen.gpu_mhz),
            bandwidth_bytes_per_s=_product(chosen.emc_mhz, 2e6 / 8, row.memory_bus_bits),
            memory_bytes=row.memory_gib * 2**30,
            multiprocessors=None if sms is None else int(sms),
            cores=chosen.cpus,
            cpu_mhz=chosen.cpu_mhz,
            watts=chosen.watts,
        ),
        power_mode=chosen,
        row=row,
    )


def jetson_cpu(target: Target) -> Compute:
    """The processor of a Jetson in its power mode, which runs what its GPU does not.

    It has the cores and clock of the target, which a process can have fewer of than the mode.
    """
    row, compute = target.row, target.compute
    if not isinstance(row, Jetson):
        raise ValueError(f"{target.name} is no Jetson")
    return cpu_compute(
        processors()[row.cpu],
        cores=compute.cores,
        cpu_mhz=compute.cpu_mhz,
        memory_bytes=compute.memory_bytes,
        bandwidth_bytes_per_s=compute.bandwidth_bytes_per_s,
        watts=compute.watts,
    )


def power_modes(
    row: Jetson, configuration: Configuration | None = None, jetpack: JetPack | None = None
) -> dict[str, PowerMode]:
    """A Jetson's power modes by name, of its newest configuration unless another is asked for.

    `jetpack` leaves out what came after it. A module that has one configuration only has that one,
    whichever is asked for.
    """
    there = [mode for mode in row.modes if jetpack is None or _came_by(jetpack, row, mode)]
    found = {mode.configuration for mode in there or row.modes}
    newest: Configuration = "super" if "super" in found else "standard"
    wanted = configuration if configuration in found else newest
    return {mode.name: mode for mode in there or row.modes if mode.configuration == wanted}


def _came_by(jetpack: JetPack, row: Jetson, mode: PowerMode) -> bool:
    names = list(jetpacks())
    return names.index(_first_jetpack(row, mode)) <= names.index(jetpack.name)


def _first_jetpack(row: Jetson, mode: PowerMode) -> str:
    """The first release for the module that has the mode."""
    if mode.jetpack_first or mode.configuration == "standard":
        return mode.jetpack_first or row.jetpack_first
    return next(each.name for each in jetpacks_for(row) if each.configuration == "super")


def _named_mode(
    row: Jetson, said: str, known: Mapping[str, PowerMode], jetpack: JetPack | None
) -> PowerMode:
    name = said.upper()
    if name.isdecimal():
        raise FusedgeError(
            f"power mode {name} is a number, and the numbers of power modes differ from board to board",
            where=row.name,
            hint=f"say one by its name: {', '.join(known)}",
        )
    names = (name, f"MODE_{name}")
    if found := next((known[each] for each in names if each in known), None):
        return found
    elsewhere = next((mode for mode in row.modes if mode.name in names), None)
    if elsewhere is None:
        close = nearest_names(said, dict.fromkeys(known, ()))
        raise UnknownNameError(f"power mode of {row.name}", said, known, close=close)
    choices = f"one of {', '.join(known)}"
    if jetpack is not None and not _came_by(jetpack, row, elsewhere):
        first = _first_jetpack(row, elsewhere)
        raise FusedgeError(
            f"power mode {elsewhere.name} came with JetPack {first}, and this is {jetpack.name}",
            where=row.name,
            hint=f"--jetpack {first}, or {choices}",
        )
    raise FusedgeError(
        f"power mode {elsewhere.name} is one of the {elsewhere.configuration} modes, and the device has "
        "the others",
        where=row.name,
        hint=choices,
    )


def _max_opset(row: Jetson) -> int | None:
    """Of the newest JetPack for the module; newer modules get newer ones yet, so nothing limits them."""
    if row.jetpack_last is None:
        return None
    return max_opset(jetpacks()[row.jetpack_last].tensorrt)


def jetson_by_part(part: str) -> Jetson | None:
    """The module of a part number such as `p3767-0005`, as a device tree has it."""
    return next((row for row in jetsons().values() if part in row.parts), None)


def jetpack_of_l4t(l4t: str) -> JetPack | None:
    """The JetPack of exactly this release of Jetson Linux (`36.4.3`); None for one that is not listed."""
    return next((row for row in jetpacks().values() if l4t in row.l4t), None)


def jetpacks_for(row: Jetson) -> list[JetPack]:
    """The releases that are for a module, the newest last."""
    names = list(jetpacks())
    first = names.index(row.jetpack_first)
    last = names.index(row.jetpack_last) if row.jetpack_last else len(names) - 1
    return [
        jetpacks()[name]
        for name in names[first : last + 1]
        if row.compute_capability in jetpacks()[name].capabilities
    ]


def gpu_by_title(title: str, memory_bytes: float | None = None) -> Gpu | None:
    """The GPU that the driver calls so; of several that differ in memory, the nearest to `memory_bytes`."""
    rows = [row for row in gpus().values() if _plain(row.title) == _plain(title)]
    if memory_bytes is None:
        return rows[0] if len(rows) == 1 else None
    return min(
        rows, key=lambda row: abs((row.memory_gib or 0) * 2**30 - memory_bytes), default=None
    )


def _plain(title: str) -> str:
    """Without the maker's name, which only newer drivers put before all of them."""
    return title.lower().removeprefix("nvidia ")


def gpu_target(row: Gpu) -> Target:
    """A graphics card."""
    operations = {**generations()[row.compute_capability].operations, **row.operations}
    fp32: dict[Computation, float | None] = {"fp32": operations.get("fp32")}
    return Target(
        name=row.name,
        flavour=row.flavour,
        compute_capability=row.compute_capability,
        source=row.source,
        compute=Compute(
            peak=MappingProxyType(
                {
                    **_peaks(operations, row.multiprocessors, row.tensor_mhz or row.boost_mhz),
                    **_peaks(fp32, row.multiprocessors, row.boost_mhz),
                }
            ),
            bandwidth_bytes_per_s=_product(row.bandwidth_gb_s, 1e9),
            memory_bytes=_product(row.memory_gib, 2**30),
            memory_is_shared=row.memory_is_shared,
            multiprocessors=row.multiprocessors,
            watts=row.watts,
        ),
        row=row,
    )


def _computer_target(row: Computer) -> Target:
    return Target(
        name=row.name,
        flavour=None,
        compute_capability=None,
        source=row.source,
        compute=cpu_compute(
            processors()[row.cpu],
            cores=row.cores,
            cpu_mhz=row.cpu_mhz,
            memory_bytes=_product(row.memory_gib, 2**30),
            bandwidth_bytes_per_s=_product(row.bandwidth_gb_s, 1e9),
            watts=row.watts,
        ),
        row=row,
    )


def cpu_compute(
    processor: Processor | None,
    *,
    cores: int | None,
    cpu_mhz: float | None,
    memory_bytes: float | None,
    bandwidth_bytes_per_s: float | None = None,
    watts: float | None = None,
) -> Compute:
    """What one core of a CPU can do; `processor` is None for a kind that no table has."""
    return Compute(
        peak=_peaks(processor.operations, 1, cpu_mhz) if processor else {},
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        memory_bytes=memory_bytes,
        multiprocessors=0,
        cores=cores,
        cpu_mhz=cpu_mhz,
        watts=watts,
    )


def _peaks(
    operations: Mapping[Computation, float | None], count: float | None, mhz: float | None
) -> Mapping[Computation, float | None]:
    return MappingProxyType(
        {name: _product(each, count, mhz, 1e6) for name, each in operations.items()}
    )


def _product(*factors: float | None) -> float | None:
    product = 1.0
    for factor in factors:
        if factor is None:
            return None
        product *= factor
    return product


def _table(kind: type[RowT], file: str, key: Callable[[RowT], KeyT]) -> Mapping[KeyT, RowT]:
    """The rows of a table by their keys, of which each is there once."""
    rows: dict[KeyT, RowT] = {}
    for row in _rows(kind, file):
        if key(row) in rows:
            raise FusedgeError(f"has two rows of {key(row)}", where=f"table {file}")
        rows[key(row)] = row
    return MappingProxyType(rows)


def _rows(kind: type[RowT], file: str) -> list[RowT]:
    where = f"table {file}"
    content = load_yaml((_DATA / file).read_bytes(), where)
    if not isinstance(content, list):
        raise FusedgeError("is no list of rows", where=where)
    rows = []
    for number, raw in enumerate(content, 1):
        try:
            rows.append(kind.model_validate(raw))
        except ValidationError as error:
            name = raw.get("name", number) if isinstance(raw, dict) else number
            raise FusedgeError(f"row {name}: {first_problem(error)}", where=where) from None
    return rows


@functools.cache
def generations() -> Mapping[str, Generation]:
    """GPU generations by compute capability."""
    return _table(Generation, "generations.yaml", lambda row: row.compute_capability)


@functools.cache
def gpus() -> Mapping[str, Gpu]:
    """Graphics cards by name."""
    return _table(Gpu, "gpus.yaml", lambda row: row.name)


@functools.cache
def jetsons() -> Mapping[str, Jetson]:
    """Jetson modules by name."""
    return _table(Jetson, "jetsons.yaml", lambda row: row.name)


@functools.cache
def jetpacks() -> Mapping[str, JetPack]:
    """Releases of JetPack by name, the oldest first."""
    return _table(JetPack, "jetpacks.yaml", lambda row: row.name)


@functools.cache
def processors() -> Mapping[str, Processor]:
    """Kinds of CPU core by name."""
    return _table(Processor, "processors.yaml", lambda row: row.name)


@functools.cache
def computers() -> Mapping[str, Computer]:
    """Computers without an NVIDIA GPU by name."""
    return _table(Computer, "computers.yaml", lambda row: row.name)


@functools.cache
def onnxruntime_wheels() -> tuple[Wheel, ...]:
    """Wheels of ONNX Runtime."""
    return tuple(_rows(Wheel, "onnxruntime_wheels.yaml"))


@functools.cache
def dla_operators() -> Mapping[int, DlaOperators]:
    """What the DLA runs, by its version."""
    return _table(DlaOperators, "dla_operators.yaml", lambda row: row.dla_version)
