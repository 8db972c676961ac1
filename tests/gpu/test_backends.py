"""Every backend that this machine's GPU has, against the CPU: `make test-gpu`.

Without a GPU all of it is skipped, and says why; with one, what cannot be tried is skipped by itself, such
as a provider that is not installed. It builds the engines that it needs. `tests/runtime/test_gpu_suite.py`
does the same on doubles.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.built_here import VARIABLE, cache_folder
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.lookup import open_bundle
from fusedge.bundle.recording import tracks_of
from fusedge.runtime.backend import BackendSetting, OpenPart, open_part
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.cuda import load_cuda
from fusedge.runtime.native_part import NativePart
from fusedge.runtime.onnx_part import provider_devices
from fusedge.runtime.part_tensors import shapes_at
from fusedge.runtime.replay import replay_exactly
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.sinks.recorder import Recorder

try:
    load_cuda().device()
    MISSING = ""
except FusedgeError as error:
    MISSING = error.line()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no GPU here: {MISSING}")

CPU = BackendSetting(provider="cpu")
WAYS = {
    "native": BackendSetting(backend="native", precision="fp32"),  # trusted, for it is built here
    "tensorrt-rtx": BackendSetting(provider="tensorrt-rtx"),
    "tensorrt": BackendSetting(provider="tensorrt"),
    "cuda": BackendSetting(provider="cuda"),
}
BATCHES = (1, 3, 8)
# Of the largest value of a row, at least 1. TensorRT and CUDA sum in another order than the CPU, and the
# TensorRT provider may use TensorFloat-32 (10 bits).
TOLERANCE = 5e-3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """See `built`; the engines are of a cache of their own."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder / "cache"))
        yield built(folder / "driving.fusedge")


def built(path: Path, **local: Any) -> Bundle:
    """The shipped driving model with engines for this GPU, where a TensorRT is installed for it.

    `local` is of `build_bundle`: which GPU that is.
    """
    from fusedge.export.build import BuildOptions, build_bundle
    from fusedge.export.cache import Cache

    shipped, options = open_bundle("driving"), BuildOptions(precision="fp32")
    try:
        # Only with a cache are they listed as built here, without which they would not be loaded.
        report = build_bundle(shipped, path, options, Cache(cache_folder()), **local)
    except FusedgeError as error:
        print(f"\nno engines are built: {error.line()}")
        return shipped
    for row in report.rows:
        print(f"\n{row.part}: {row.state} {row.note}", end="")
    return report.bundle


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, bundle: Bundle) -> str:
    """The name of a backend that can be tried; skipped with the reason where it cannot."""
    name = str(request.param)
    try:
        if name != "native":
            provider_devices(name)
        elif not all(part.engines for part in bundle.manifest.parts):
            pytest.skip("native: no engines for this GPU, see above")
    except FusedgeError as error:
        pytest.skip(f"{name}: {error.line()}")
    return name


def feeds(part: OpenPart, batch: int) -> dict[str, Any]:
    """Random windows, states and embeddings; a tenth is masked."""
    random = np.random.default_rng(batch)
    shapes = shapes_at(part.part, {"batch": batch})
    return {
        spec.name: (random.random(shapes[spec.name]) < 0.9).astype(np.float32)
        if spec.role in ("valid", "presence")
        else random.normal(size=shapes[spec.name]).astype(np.float32)
        for spec in part.part.inputs
    }


@pytest.fixture(params=["imu", "gps", "road", "head"])
def pair(request: pytest.FixtureRequest, bundle: Bundle, way: str) -> Iterator[list[OpenPart]]:
    """See `opened`."""
    with opened(bundle, str(request.param), way) as parts:
        yield parts


@contextmanager
def opened(bundle: Bundle, name: str, way: str) -> Iterator[list[OpenPart]]:
    """A part on the CPU, and on the backend that is tried."""
    with open_part(bundle, name, CPU) as on_cpu, open_part(bundle, name, WAYS[way]) as tried:
        yield [on_cpu, tried]


def test_a_part_gives_what_it_gives_on_the_cpu(way: str, pair: list[OpenPart]) -> None:
    on_cpu, on_gpu = pair
    worst = 0.0
    for batch in (*BATCHES, *BATCHES, *BATCHES):  # directly, captured, and as a graph
        given = feeds(on_cpu, batch)
        wanted, got = on_cpu.run(given), on_gpu.run(given)
        for name, value in wanted.items():
            scale = np.maximum(1, np.abs(value).reshape(batch, -1).max(axis=1))
            difference = np.abs(value - got[name]).reshape(batch, -1).max(axis=1) / scale
            worst = max(worst, float(difference.max()))
    loaded = on_gpu._loaded
    graphs = f", {loaded.cuda_graphs} CUDA graphs" if isinstance(loaded, NativePart) else ""
    choice = json.dumps(on_gpu.choice.as_dict())
    print(f"\n{way} {on_cpu.part.name}: largest difference {worst:.1e}{graphs}; {choice}", end="")
    assert worst < TOLERANCE


def test_its_latency_is_told(way: str, pair: list[OpenPart]) -> None:
    for batch in BATCHES:
        given = feeds(pair[0], batch)
        median_us = []
        for part in pair:
            took_ns = []
            for _ in range(300):
                started = time.perf_counter_ns()
                part.run(given)
                took_ns.append(time.perf_counter_ns() - started)
            median_us.append(statistics.median(took_ns[100:]) / 1000)
        name = f"{pair[0].part.name}, batch {batch}"
        print(f"\n{name}: cpu {median_us[0]:.0f} µs, {way} {median_us[1]:.0f} µs", end="")
        assert all(median_us)


def decided(bundle: Bundle, setting: BackendSetting, record: Path | None = None) -> list[Any]:
    """Labels of a minute of the simulated drive."""
    sink = MemorySink()
    recorders = [] if record is None else [Recorder(record, tracks_of(bundle.manifest))]
    session = Session(bundle, ["sim:?duration_s=60"], VirtualClock(), backend=setting)
    report = run(session, [sink, *recorders])
    assert report.summary["backends"] == report.header["parts"], "a part failed at work"
    return [tuple(o.label for o in d.outputs.values()) for d in sink.decisions]


def test_a_session_decides_as_on_the_cpu_and_is_replayed_to_the_bit(
    tmp_path: Path, bundle: Bundle, way: str
) -> None:
    path = tmp_path / "drive.mcap"
    on_cpu, on_gpu = decided(bundle, CPU), decided(bundle, WAYS[way], path)
    agree = sum(a == b for a, b in zip(on_cpu, on_gpu, strict=True)) / len(on_cpu)
    replayed = replay_exactly(bundle, path)
    same = f"{replayed.identical_decisions} of {replayed.decisions}"
    print(f"\n{way}: {agree:.1%} of decisions as on the CPU; replayed to the bit: {same}", end="")
    assert agree >= 0.95
    assert replayed.identical and replayed.decisions == len(on_gpu)
