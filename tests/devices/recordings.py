"""Real recordings, which lie beside the project and never in it, and sources opened by URI for tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Address, Request, Wanted
from fusedge.devices.capture.source import Source
from tests.conftest import ROOT


def driving(name: str) -> Path:
    """A file or folder under `driving` of the data folder; skips where it is not there."""
    data = Path(os.environ.get("FUSEDGE_DATA") or ROOT / "../shared/data")
    path = data / "driving" / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path


def request(scheme: str, target: object, wanted: Wanted = None, **options: str) -> Request:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    uri = f"{scheme}:{target}" + (f"?{query}" if query else "")
    return Request(Address(uri, scheme, str(target), options), wanted, lambda: 0)


def samples(source: Source, modality: str = "") -> list[Sample]:
    """The samples of all modalities, or of one."""
    return [
        item
        for item in source.samples()
        if isinstance(item, Sample) and item.modality == (modality or item.modality)
    ]


def rejections(source: Source) -> list[Rejection]:
    return [item for item in source.samples() if isinstance(item, Rejection)]


def open_handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def leaked_handles(open_: Callable[[], Source], times: int = 200) -> int:
    """How many more handles are open after the source was opened, read a little and closed as often."""
    list(open_().samples())
    before = open_handles()
    for _ in range(times):
        source = open_()
        next(iter(source.samples()), None)
        source.close()
        source.close()
    return open_handles() - before
