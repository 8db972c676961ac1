"""A build that was done is not done again, and the machine remembers which engines it built."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from fusedge.bundle.built_here import FILE, built_here, remember_built
from fusedge.bundle.lookup import open_bundle
from fusedge.bundle.manifest import DimRange
from fusedge.devices.targets.facts.table import find_target
from fusedge.devices.targets.tensorrt_api import NO_OPTIONS, EngineOptions
from fusedge.export import engine
from fusedge.export.cache import Cache
from fusedge.export.engine import EngineRequest, build_engine
from tests.export.small_graphs import BATCH, attention_graph, mixed_graph, product_graph

SHA = hashlib.sha256(b"engine").hexdigest()


def request_for(
    graph: onnx.ModelProto,
    *targets: str,
    dims: dict[str, DimRange] = BATCH,
    options: EngineOptions = NO_OPTIONS,
) -> EngineRequest:
    found = tuple(find_target(name) for name in targets or ["rtx-4090"])
    return EngineRequest("part", graph.SerializeToString(), "fp32", found, dims, options)


@pytest.mark.usefixtures("rtx")
def test_the_second_build_comes_whole_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, request = Cache(tmp_path / "cache"), request_for(attention_graph())
    first = build_engine(request, cache=cache)
    monkeypatch.setattr(engine, "CHILD", ("/bin/false",))  # nothing can be built any more
    second = build_engine(request, cache=cache)
    assert (first.cached, second.cached) == (False, True)
    assert second.repairs and second.precision_by_node and second.flags
    assert second.entry(request.file, request) == first.entry(request.file, request)
    assert (second.data, second.build_s) == (first.data, first.build_s)


def test_another_request_is_another_key() -> None:
    wide = {"batch": DimRange(least=1, usual=4, greatest=9)}
    small = EngineOptions(workspace_bytes=1 << 20)
    plain = request_for(product_graph())
    others = [
        request_for(mixed_graph()),
        request_for(product_graph(), "rtx-5090"),
        request_for(product_graph(), "rtx-4090", "rtx-5090"),
        request_for(product_graph(), dims=wide),
        request_for(product_graph(), options=small),
        EngineRequest("part", plain.graph, "fp32", plain.targets, BATCH, device="GPU; mode 15W"),
    ]
    keys = {engine._cache_key(request) for request in (plain, *others)}
    assert len(keys) == 1 + len(others)
    # the GPUs of one generation share engines
    assert engine._cache_key(request_for(product_graph(), "rtx-4080")) == engine._cache_key(plain)


@pytest.mark.usefixtures("rtx")
def test_a_damaged_entry_is_built_again(tmp_path: Path) -> None:
    cache, request = Cache(tmp_path), request_for(product_graph())
    first = build_engine(request, cache=cache)
    (entry,) = (tmp_path / "engine").iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    again = build_engine(request, cache=cache)
    assert not again.cached and again.data == first.data


@pytest.mark.usefixtures("rtx")
def test_what_was_built_here_is_remembered(tmp_path: Path) -> None:
    built = build_engine(request_for(product_graph()), cache=Cache(tmp_path))
    assert built_here(hashlib.sha256(built.data).hexdigest(), tmp_path)
    assert not built_here(SHA, tmp_path)


def test_engines_built_here_are_listed_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDGE_CACHE", str(tmp_path / "mine"))
    assert not built_here(SHA)
    remember_built(SHA)
    remember_built(SHA)
    place = tmp_path / "mine" / FILE
    assert built_here(SHA) and place.read_text() == f"{SHA}\n"
    assert place.stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("FUSEDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not built_here(SHA)


@pytest.mark.parametrize("content", [SHA, f"x{SHA}\n", SHA[1:] + "\n", "", "\0\xff"])
def test_a_torn_or_foreign_line_is_no_engine(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    (tmp_path / FILE).chmod(0o600)
    assert not built_here(SHA, tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_list_that_others_can_write_to_is_not_believed(tmp_path: Path) -> None:
    remember_built(SHA, tmp_path)
    (tmp_path / FILE).chmod(0o622)
    assert not built_here(SHA, tmp_path)


def test_a_folder_that_cannot_be_written_costs_trust_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remember_built(SHA, tmp_path / "file")
    assert not built_here(SHA, tmp_path / "file")


@pytest.mark.usefixtures("rtx")
@pytest.mark.skipif(sys.platform != "linux", reason="address randomisation is a matter of Linux")
def test_the_engine_is_the_same_wherever_and_however_the_program_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX orders some layers by address: in the driving head's float32 engine it shows."""
    if subprocess.run(
        [sys.executable, "-c", "import ctypes; exit(ctypes.CDLL(None).personality(0x40000) < 0)"],
        check=False,
    ).returncode:
        pytest.skip("this system does not let a process fix its memory layout")
    bundle = open_bundle("driving")
    head = bundle.manifest.head
    targets = (find_target("rtx-4090"), find_target("rtx-5090"))
    graph = bundle.read(head.graph("fp32").file)
    request = EngineRequest("head", graph, "fp32", targets, head.dims)
    monkeypatch.setattr(sys, "path", [*sys.path, "", "__editable__.fusedge.finder.__path_hook__"])
    folder, digests = tmp_path, set()
    for depth in range(8):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PATH", os.environ["PATH"] + "/usr/x:" * 90 * depth)
        digests.add(hashlib.sha256(build_engine(request).data).hexdigest())
        folder = folder / f"folder{depth}" / ("x" * 20 * depth)
        folder.mkdir(parents=True)
    assert len(digests) == 1


@pytest.mark.usefixtures("rtx")
def test_a_folder_of_the_users_own_is_where_the_building_process_looks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert str(tmp_path) in engine._child_environment()["PYTHONPATH"].split(os.pathsep)


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    "content",
    [
        b"no JSON",
        b"{}\n",
        b"[]\nengine",
        b'{"version": "1", "precision_by_node": {}, "flags": 1, "repairs": [], "build_s": 1}\ne',
        b'{"version": 1, "precision_by_node": {}, "flags": [], "repairs": [], "build_s": 1}\ne',
    ],
)
def test_an_entry_of_another_version_of_fusedge_is_built_again(
    tmp_path: Path, content: bytes
) -> None:
    cache, request = Cache(tmp_path), request_for(product_graph())
    cache.put("engine", engine._cache_key(request), content)
    assert not build_engine(request, cache=cache).cached
    assert build_engine(request, cache=cache).cached
