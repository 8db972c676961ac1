"""The tests for a machine with a GPU (`make test-gpu`), done on its doubles, so that they do not rot.

The engines are real ones of TensorRT-RTX, listed as built here; the double runs the graphs they are of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.built_here import VARIABLE
from fusedge.devices.targets.detection.local import LocalGpu
from fusedge.devices.targets.facts.table import find_target
from fusedge.runtime.backend import PartLoader
from fusedge.runtime.native_part import NativePart
from tests.gpu import test_backends as suite
from tests.runtime.gpu_double import CudaApi, Tensorrt, gpu

RTX_4090 = LocalGpu(find_target("rtx-4090"), "NVIDIA GeForce RTX 4090", "580.1", None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """That of the suite, on a machine that PartLoader takes for one with that GPU."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("gpu")
    trt = Tensorrt(CudaApi())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder / "cache"))
        for name, double in gpu(trt).items():
            patch.setitem(PartLoader.__init__.__kwdefaults__, name, double)
        built = suite.built(folder / "driving.fusedge", local=lambda: RTX_4090)
        for part in built.manifest.parts:
            (engine,) = part.engines
            trt.graphs[built.read(engine.file)] = built.read(part.graph("fp32").file)
        yield built


@pytest.mark.parametrize("part", ["imu", "gps", "road", "head"])
def test_an_engine_that_was_built_here_is_loaded_and_compared(bundle: Bundle, part: str) -> None:
    with suite.opened(bundle, part, "native") as pair:
        assert isinstance(pair[1]._loaded, NativePart)
        suite.test_a_part_gives_what_it_gives_on_the_cpu("native", pair)
        suite.test_its_latency_is_told("native", pair)


def test_a_session_on_it_is_compared_and_replayed(tmp_path: Path, bundle: Bundle) -> None:
    suite.test_a_session_decides_as_on_the_cpu_and_is_replayed_to_the_bit(
        tmp_path, bundle, "native"
    )
