"""The software on a target: what is installed there, or what its JetPack brings and pip would."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import Flavour
from fusedge.devices.targets.detection.machine import Machine, SystemTensorRT
from fusedge.devices.targets.facts.rows import Computer, JetPack, Jetson
from fusedge.devices.targets.facts.table import Target, jetpack_of_l4t, jetpacks, jetpacks_for

PYTHONS = ("3.10", "3.11", "3.12", "3.13")  # `requires-python` of the project
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Software:
    """What runs parts on a target. A version that is None is not installed where `installed` says that
    this is a machine that was looked at; else the newest can be had. `python` is like `3.10`, None: any.

    `providers` are those of the ONNX Runtime that is installed. `system_tensorrt` is among the system's
    libraries, be it for this Python or not.
    """

    jetpack: JetPack | None
    tensorrt: str | None
    tensorrt_flavour: Flavour | None
    python: str | None
    onnxruntime: str | None
    architecture: str
    installed: bool = False
    providers: tuple[str, ...] = ()
    system_tensorrt: SystemTensorRT | None = None

    @property
    def tensorrt_title(self) -> str:
        """For sentences: `TensorRT 10.3.0.30 of JetPack 6.2`."""
        name = "TensorRT-RTX" if self.tensorrt_flavour == "tensorrt_rtx" else "TensorRT"
        version = f" {self.tensorrt}" if self.tensorrt else ""
        return name + version + (f" of JetPack {self.jetpack.name}" if self.jetpack else "")


def software_of(target: Target, jetpack: str | None, machine: Machine | None) -> Software:
    """The software of a target: what is installed on `machine`, if the target is that machine (not None).

    A Jetson elsewhere has the JetPack of that name, by default the newest one for the module that is known
    in full; asked for by name it stands for an upgrade of `machine` too. Raises FusedgeError for a JetPack
    that does not exist, or not for this target.
    """
    if machine is not None and jetpack is None:
        return _installed(target, machine)
    row = target.row
    if not isinstance(row, Jetson):
        if jetpack is not None and machine and machine.jetson and target.flavour:
            raise FusedgeError(
                "the module of this Jetson is not in the tables, so no JetPack can be chosen for it",
                where=f"target {target.name}",
                hint="leave it out, or name a module with --target; see fusedge devices --targets",
            )
        if jetpack is not None:
            raise FusedgeError(
                f"JetPack {jetpack} is for Jetson modules only",
                where=f"target {target.name}",
                hint="leave it out",
            )
        return Software(None, None, target.flavour, None, None, _architecture(target))
    chosen = _jetpack(row, jetpack)
    return Software(chosen, chosen.tensorrt, "tensorrt", chosen.python, None, "aarch64")


def _installed(target: Target, machine: Machine) -> Software:
    l4t = machine.jetson.l4t if machine.jetson else None
    return Software(
        jetpack=jetpack_of_l4t(l4t) if l4t else None,
        tensorrt=machine.tensorrt.get(target.flavour) if target.flavour else None,
        tensorrt_flavour=target.flavour,
        python=".".join(machine.python.split(".")[:2]),
        onnxruntime=machine.onnxruntime,
        architecture=_ARCHITECTURES.get(machine.architecture.lower(), machine.architecture),
        installed=True,
        providers=machine.onnxruntime_providers,
        system_tensorrt=machine.tensorrt_system,
    )


def _jetpack(row: Jetson, name: str | None) -> JetPack:
    possible = {each.name: each for each in jetpacks_for(row)}
    if name is None:
        return next(each for each in reversed(possible.values()) if each.confirmed)
    if name not in jetpacks():
        raise UnknownNameError("JetPack", name, possible)
    if name not in possible:
        names = list(possible)
        raise FusedgeError(
            f"JetPack {name} is not for this module",
            where=f"target {row.name}",
            hint=f"it has {names[0]} to {names[-1]}",
        )
    return possible[name]


def _architecture(target: Target) -> str:
    if isinstance(target.row, Computer):
        return target.row.architecture
    if target.flavour is None:  # `cpu`: of this machine
        machine = platform.machine()
        return _ARCHITECTURES.get(machine.lower(), machine)
    # GB10, GB200, GH200: a GPU beside NVIDIA's own Arm processor
    grace = re.match(r"g[bh]\d|dgx-spark", target.name)
    return "aarch64" if grace else "x86_64"
