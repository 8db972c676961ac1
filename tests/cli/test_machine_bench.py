"""The rates that `fusedge bench` finds, where the times that were measured are odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusedge.bundle.archive import Bundle
from fusedge.cli import machine_bench
from fusedge.cli.machine_bench import Benched, Wanted, bench_machine
from fusedge.devices.targets.calibration.profile import BatchTimes, keep_profile
from fusedge.export import probes
from fusedge.runtime.bench import Item, Measured
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDGE_CACHE", str(tmp_path))


def bench_with(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, part_s: float, probe_s: float
) -> Benched:
    """As if parts and probes all took so long."""

    def times(items: Sequence[Item], *arguments: Any, **options: Any) -> list[Measured]:
        found = []
        for item in items:
            seconds = part_s if item.bundle == str(bundle.path) else probe_s
            row = BatchTimes(batch=1, runs=9, p50_s=seconds, p90_s=seconds, p99_s=seconds)
            found.append(Measured((row,)))
        return found

    some = probes.probes("fp32")[::20]
    monkeypatch.setattr(probes, "probes", lambda precision: some)
    monkeypatch.setattr(machine_bench, "measure_apart", times)
    return bench_machine(bundle, Wanted(["cpu"], batches=(1,)), "today", lambda what, share: None)


@pytest.mark.parametrize(("part_s", "probe_s"), [(1e4, 1e-6), (1e-8, 1e4)])
def test_rates_that_are_off_by_a_thousand_are_none(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, part_s: float, probe_s: float
) -> None:
    found = bench_with(monkeypatch, tiny, part_s, probe_s)
    assert found.profile.calibrations == () and len(found.profile.parts) == 3
    (note,) = found.notes
    assert note == "no rates for cpu, fp32: they would be off by more than a factor of 1000"


def test_parts_with_nodes_that_nobody_can_count_are_said(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = machine_bench._works

    def uncounted(*arguments: Any) -> list[Any]:
        return [
            replace(work, nodes=tuple(replace(node, kind="unknown") for node in work.nodes))
            for work in works(*arguments)
        ]

    monkeypatch.setattr(machine_bench, "_works", uncounted)
    found = bench_with(monkeypatch, tiny, 1e-4, 1e-5)
    assert found.profile.calibrations == ()
    assert len(found.notes) == 3 and all("nothing is known" in note for note in found.notes)


def test_a_kept_profile_of_absurd_rates_is_an_absurd_estimate_and_no_crash(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench_with(monkeypatch, tiny, 1e-4, 1e-5).profile
    (rates,) = first.calibrations
    slow = {kind: cost.model_copy(update={"overhead_s": 1e5}) for kind, cost in rates.kinds.items()}
    absurd = rates.model_copy(update={"kinds": slow, "run_s": 1e5})
    keep_profile(first.model_copy(update={"calibrations": (absurd,)}))
    again = bench_with(monkeypatch, tiny, 1e-4, 1e-5).profile
    for part in again.parts:
        assert part.estimated_s is not None and part.estimated_s > 1e5
