"""Python and ONNX Runtime on a target: what Fusedge needs to run there at all, and to run ONNX graphs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from fusedge.devices.targets.facts.engine_fit import version_number
from fusedge.devices.targets.facts.rows import Jetson, Wheel
from fusedge.devices.targets.facts.table import Target, jetpacks_for
from fusedge.devices.targets.facts.wheels import wheels_for
from fusedge.devices.targets.preflight.findings import Finding
from fusedge.devices.targets.preflight.software import PYTHONS, Software

# The extras of the project.
_LEAST_ONNXRUNTIME = (1, 20)
# As wheels and ONNX Runtime name them, of those that fusedge.runtime.onnx_part asks for.
_GPU_PROVIDERS = frozenset(
    (
        *("cuda", "tensorrt", "tensorrt-rtx"),
        *("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"),
    )
)


def python_findings(target: Target, software: Software, backend: str) -> Iterator[Finding]:
    """Whether Fusedge runs on the target's Python."""
    python = software.python
    if python is None:
        return
    if python in PYTHONS:
        yield Finding("python", "fits", f"Fusedge runs on Python {python}.")
        return
    if version_number(python) > version_number(PYTHONS[-1]):
        sentence = f"Fusedge is not for Python {python} yet: {PYTHONS[-1]} is the newest."
        way = f"install Python {PYTHONS[-1]} beside it"
        yield Finding("python", "refused", sentence, way)
        return
    owner = f"JetPack {software.jetpack.name} has" if software.jetpack else "This machine has"
    sentence = f"{owner} Python {python}, and Fusedge needs {PYTHONS[0]} or newer."
    other = (
        f"install Python {PYTHONS[0]} to {PYTHONS[-1]} beside it, which runs the parts on the "
        "processor with --backend onnx, for JetPack's GPU packages are for its own Python"
    )
    newer = _newer_jetpack(target)
    way = f"install JetPack {newer} on the device; or {other}" if newer else other
    # With another Python it does run: then it is no longer JetPack's that counts.
    refused = software.installed or backend != "onnx"
    yield Finding("python", "refused" if refused else "warning", sentence, way)


def _newer_jetpack(target: Target) -> str | None:
    if not isinstance(target.row, Jetson):
        return None
    names = [each.name for each in jetpacks_for(target.row) if each.python in PYTHONS]
    return names[-1] if names else None


def onnxruntime_findings(target: Target, software: Software, backend: str) -> Iterator[Finding]:
    """Whether there is an ONNX Runtime for the target, and for its GPU."""
    if software.installed:
        yield from _installed(target, software)
        return
    python = software.python if software.python in PYTHONS else None
    wheels = [
        wheel
        for version in ([python] if python else PYTHONS)
        for wheel in _wheels(target, software, version)
    ]
    pythons = f"Python {python}" if python else f"Python {PYTHONS[0]} to {PYTHONS[-1]}"
    if not wheels:
        sentence = (
            f"There is no ready-made package (wheel) of ONNX Runtime, which runs ONNX graphs, for "
            f"{pythons} on {software.architecture} that is known."
        )
        way = "install another Python, or build ONNX Runtime from its source on the device"
        yield Finding("onnxruntime", "refused", sentence, way)
        return
    yield from _newest(wheels, pythons, software)
    if target.compute_capability is not None:
        yield from _for_gpu(wheels, target, software, pythons)


def _newest(wheels: Collection[Wheel], pythons: str, software: Software) -> Iterator[Finding]:
    on_processor = [wheel for wheel in wheels if wheel.package == "onnxruntime"] or list(wheels)
    where = f"for {pythons} on {software.architecture}"
    if any(wheel.last is None for wheel in on_processor):
        sentence = f"ONNX Runtime has ready-made packages (wheels) {where}."
        yield Finding("onnxruntime", "fits", sentence)
        return
    last = max((wheel.last or "0" for wheel in on_processor), key=version_number)
    sentence = f"ONNX Runtime {last} is the last with a ready-made package (wheel) {where}."
    yield Finding("onnxruntime", "warning", sentence, _at_most("onnxruntime", last))


def _at_most(package: str, last: str) -> str:
    major, minor = version_number(f"{last}.0")[:2]
    return f"pip install '{package}<{major}.{minor + 1}'"


def _for_gpu(
    wheels: Sequence[Wheel], target: Target, software: Software, pythons: str
) -> Iterator[Finding]:
    for_gpu = [wheel for wheel in wheels if _GPU_PROVIDERS & set(wheel.providers)]
    if not for_gpu:
        sentence = (
            f"No ready-made package (wheel) of ONNX Runtime is known for the GPU of {target.name} and "
            f"{pythons}, so ONNX Runtime uses the processor there."
        )
        way = "build engines, which need no ONNX Runtime, or build it from its source"
        if software.python is not None and software.python not in PYTHONS:
            way = ""  # what JetPack has for the GPU is for another Python
        yield Finding("onnxruntime", "warning", sentence, way)
        return
    package, index, last = for_gpu[-1].package, for_gpu[-1].index, for_gpu[-1].last
    if index == "PyPI" and last is not None:
        sentence = (
            f"For the GPU of {target.name} and {pythons}, {package} {last} is the last ready-made package "
            "(wheel) of ONNX Runtime."
        )
        yield Finding("onnxruntime", "warning", sentence, _at_most(package, last))
        return
    sentence = f"ONNX Runtime for the GPU of {target.name} is the package {package} of {index}."
    way = ""
    if index != "PyPI":
        url = index if index.startswith("https://") else f"https://{index}"
        way = f"let pip take {package} from the index {url}: PyPI's is not for this GPU"
    yield Finding("onnxruntime", "fits", sentence, way)


def _installed(target: Target, software: Software) -> Iterator[Finding]:
    version = software.onnxruntime
    if version is None:
        sentence = "ONNX Runtime, which runs ONNX graphs, is not installed on this machine."
        yield Finding("onnxruntime", "refused", sentence, "pip install 'fusedge[cpu]'")
        return
    if version_number(version) < _LEAST_ONNXRUNTIME:
        sentence = f"ONNX Runtime {version} is installed, and Fusedge needs 1.20 or newer."
        yield Finding("onnxruntime", "refused", sentence, "pip install --upgrade onnxruntime")
        return
    yield Finding("onnxruntime", "fits", f"ONNX Runtime {version} is installed.")
    if target.compute_capability is not None and not runs_on_gpu(target, software):
        sentence = f"ONNX Runtime {version} as it is installed cannot use the GPU."
        way = "pip install 'fusedge[gpu]' in place of it, or build engines"
        yield Finding("onnxruntime", "warning", sentence, way)


def runs_on_gpu(target: Target, software: Software) -> bool:
    """Whether ONNX Runtime is expected to use the target's GPU: what is installed can, or a wheel does."""
    if target.compute_capability is None:
        return False
    if software.installed:
        return bool(_GPU_PROVIDERS & set(software.providers))
    pythons = [software.python] if software.python else list(PYTHONS)
    return any(
        _GPU_PROVIDERS & set(wheel.providers)
        for python in pythons
        for wheel in _wheels(target, software, python)
    )


def _wheels(target: Target, software: Software, python: str) -> list[Wheel]:
    """Those that Fusedge can use, for the target's GPU or for none."""
    return [
        wheel
        for wheel in wheels_for(software.architecture, python, jetpack=software.jetpack)
        if (wheel.last is None or version_number(wheel.last) >= _LEAST_ONNXRUNTIME)
        and (not wheel.capabilities or target.compute_capability in wheel.capabilities)
    ]


def processor_findings(precisions: Collection[str], names: tuple[str, ...]) -> Iterator[Finding]:
    """What ONNX Runtime's CPU provider makes of a graph's precisions; seen with 1.32 on x86-64."""
    fp32 = "--precision fp32, or the default"
    if "bf16" in precisions:
        sentence = "ONNX Runtime cannot compute bf16 on a processor."
        yield Finding("precision", "refused", sentence, fp32, names)
    if "fp16" in precisions:
        sentence = "On most processors, ONNX Runtime computes fp16 no faster than fp32."
        yield Finding("precision", "warning", sentence, fp32, names)
    if "int8" in precisions:
        sentence = "On a processor, an int8 graph can be slower than the fp32 one."
        yield Finding("precision", "warning", sentence, "measure it: fusedge bench BUNDLE", names)
