"""Faults on purpose: a session survives every kind, and its accounts balance at every moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.sample import Sample, size
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.synthetic import SyntheticSource
from fusedge.runtime.chaos import KINDS, MAX_TOLD, Chaos, parse_kinds
from fusedge.runtime.clock import Clock, PacedClock, VirtualClock
from fusedge.runtime.feed import PumpedFeed
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.jsonl import JsonLinesSink
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.soak import finite
from tests.media_bundle import MODALITIES, PERIOD_S, write_media_bundle

VIRTUAL = [kind for kind in KINDS if not KINDS[kind].real]
REAL = [kind for kind in KINDS if KINDS[kind].real]
MAX_WAITING = {"motion": 1000, "view": 200, "sound": 50_000}  # samples, beyond any of the buffers


class Chaotic:
    """A session of the media bundle with faults, watched at every step."""

    def __init__(
        self, bundle: Bundle, kinds: list[str], seed: int, clock: Clock, seconds: float = 20
    ) -> None:
        self.memory = MemorySink()
        self.chaos = Chaos(kinds, clock, seed=seed, every_s=6)
        self.pushed: dict[str, int] = {}

        def open_uri(uri: str, wanted: Any, now_ns: Any) -> SyntheticSource:
            spec = bundle.manifest.modality(uri)
            return SyntheticSource(uri, [spec], seconds, seed=seed)

        names = [spec.name for spec in MODALITIES]
        self.session = Session(bundle, names, clock, open_uri=open_uri, chaos=self.chaos)
        self.pipeline = self.session.pipeline

    def run(self, *sinks: Sink) -> SessionReport:
        """Run it, with `sinks` at the mercy of chaos, and check what must hold at the end."""
        watched = _Watch(self)
        report = run(self.session, [self.memory, watched, *self.chaos.sinks(sinks)])
        self.check_step()
        self._check_end(report)
        return report

    def check_step(self) -> None:
        assert self.pipeline.balanced, self.pipeline.statistics()
        for name, account in self.pipeline.ledger.accounts.items():
            assert account.in_flight <= MAX_WAITING[name]

    def _check_end(self, report: SessionReport) -> None:
        summary = report.summary
        assert report.ended == "end of input"
        assert summary["ledger_balanced"] and not report.problem
        ticks = [decision.timestamp_ns for decision in self.memory.decisions]
        period_ns = to_ns(PERIOD_S)
        steps = np.diff(ticks)
        assert len(ticks) > 4 and (steps > 0).all() and not (steps % period_ns).any()
        assert int((steps // period_ns - 1).sum()) <= summary["ticks_skipped"]
        assert summary["decisions"] == len(ticks)
        assert all(finite(decision) for decision in self.memory.decisions)
        for source in summary["sources"].values():
            assert source["received"] == source["used"] + sum(source["dropped"].values())
        for name, sink in summary["sinks"].items():
            assert sink["received"] == sink["used"] + sum(sink["dropped"].values()), name
        for fault in summary["chaos"]["faults"]:
            assert fault["kind"] in self.chaos.kinds and fault["start_s"] < fault["end_s"]


class _Watch(Sink):
    """Is told of every step, and looks whether all is accounted for."""

    name = "watch"
    journal = True

    def __init__(self, chaotic: Chaotic) -> None:
        self._chaotic = chaotic

    def open(self, header: dict[str, Any]) -> None:
        """Nothing to prepare."""

    def write(self, item: Any) -> None:
        if not self._chaotic.session.clock.real:  # else the pipeline is at work meanwhile
            self._chaotic.check_step()

    def close(self, summary: dict[str, Any]) -> None:
        """Nothing to end."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_media_bundle(tmp_path_factory.mktemp("b") / "media.fusedge")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", VIRTUAL)
def test_every_sample_is_accounted_for_at_every_step(
    bundle: Bundle, tmp_path: Path, kind: str, seed: int
) -> None:
    report = Chaotic(bundle, [kind], seed, VirtualClock()).run(JsonLinesSink(tmp_path / "out"))
    assert report.summary["chaos"]["count"][kind] >= 1


@pytest.mark.parametrize("seed", range(6))
def test_all_kinds_together(bundle: Bundle, tmp_path: Path, seed: int) -> None:
    Chaotic(bundle, list(KINDS), seed, VirtualClock(), 60).run(JsonLinesSink(tmp_path / "out"))
