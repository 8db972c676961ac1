"""How fast parts are as engines on the GPU of this machine, for the search of a precision.

Export builds engines and the runtime runs them; the two meet here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.targets.detection.detect import detect
from fusedge.devices.targets.detection.local import LocalGpu, local_gpu
from fusedge.devices.targets.facts.table import find_target
from fusedge.devices.targets.tensorrt_api import installed_version, load
from fusedge.export.cache import Cache
from fusedge.export.engine import BuildLimits, BuiltEngine, EngineRequest, build_engine
from fusedge.export.part import ModulePart
from fusedge.export.speed import Feeds, Speed, compare_runs
from fusedge.runtime.cuda import Cuda, load_cuda
from fusedge.runtime.native_part import NativePart


def gpu_of(targets: Sequence[str]) -> LocalGpu | None:
    """The GPU of this machine where engines for one of these targets run on it."""
    try:
        found = local_gpu(detect())
    except FusedgeError:  # none, or no TensorRT for it
        return None
    wanted = {find_target(name).compute_capability for name in targets}
    return found if found.target.compute_capability in wanted else None


class EngineSpeed:
    """Speeds of parts as engines, each graph built for the GPU and run on it by the native backend.

    `graphs`: the float32 graph of each part. `feeds`: one typical input of each. A part whose float32
    graph the GPU's TensorRT refuses has no speed.
    """

    def __init__(
        self,
        parts: Sequence[ModulePart],
        gpu: LocalGpu,
        limits: BuildLimits,
        cache: Cache,
        graphs: Mapping[str, bytes],
        feeds: Mapping[str, Feeds],
        *,
        cuda: Callable[[], Cuda] = load_cuda,
        tensorrt: Callable[[str], Any] = load,
    ) -> None:
        self._parts = {part.name: part for part in parts}
        self._gpu, self._limits, self._cache = gpu, limits, cache
        self._graphs, self._feeds = graphs, feeds
        self._baselines: dict[str, tuple[EngineRequest, BuiltEngine]] = {}
        flavour = str(gpu.target.flavour)
        self._cuda, self._trt = cuda(), tensorrt(flavour)
        self.identity = f"{flavour} {installed_version(flavour)}, {gpu.identity}"

    def __call__(self, part: str, graph: bytes) -> Speed:
        """Compare a graph of a part; raises FusedgeError where it does not build or run."""
        if part not in self._baselines:
            self._baselines[part] = self._built(part, self._graphs[part])
        baseline = self._loaded(part, *self._baselines[part])
        try:
            candidate = self._loaded(part, *self._built(part, graph))
            try:
                feeds = dict(self._feeds[part])
                return compare_runs(
                    lambda: baseline.run(feeds), lambda: candidate.run(feeds), time.perf_counter
                )
            finally:
                candidate.close()
        finally:
            baseline.close()

    def _built(self, name: str, graph: bytes) -> tuple[EngineRequest, BuiltEngine]:
        gpu = self._gpu
        request = EngineRequest(
            name,
            graph,
            "mixed",
            (gpu.target,),
            self._parts[name].dims,
            device=gpu.identity,
            power_mode=gpu.power_mode,
        )
        return request, build_engine(request, self._limits, self._cache)

    def _loaded(self, name: str, request: EngineRequest, built: BuiltEngine) -> NativePart:
        entry = built.entry(request.file, request)
        return NativePart(
            built.data, request.where, self._parts[name], entry, self._trt, self._cuda
        )
