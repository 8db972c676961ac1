"""Runs a pipeline over sources until they end: merges them, keeps the pace, feeds the sinks."""

from __future__ import annotations

import heapq
import resource
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, UnknownNameError, printable
from fusedge.devices.capture.source import Source, open_source
from fusedge.runtime.clock import Clock, process_cpu_ns, stopwatch_ns
from fusedge.runtime.decision import Decision
from fusedge.runtime.histogram import DurationHistogram
from fusedge.runtime.pipeline import Pipeline
from fusedge.runtime.sinks.sink import Sink


@dataclass(frozen=True)
class SessionReport:
    """What a session did. `summary` is repeatable to the bit on a virtual clock; `timing` is not.

    `ended` is `end of input` or `interrupted`. `problem` is empty, or says in a line what of the
    input could not be read or used, though the session went on without it.
    """

    ended: str
    header: dict[str, Any]
    summary: dict[str, Any]
    timing: dict[str, Any]
    problem: str


class Session:
    """A bundle, its sources and a clock, ready to run once.

    Raises FusedgeError where a source cannot be opened, two sources give one modality, or no source
    gives any modality of the bundle. A modality that nobody gives, or that `without` names, is
    missing from every decision; `warnings` says so of the former.
    """

    def __init__(
        self,
        bundle: Bundle,
        uris: Sequence[str],
        clock: Clock,
        *,
        provider: str = "cpu",
        precision: str = "fp32",
        without: Sequence[str] = (),
    ) -> None:
        known = {m.name for m in bundle.manifest.modalities}
        for name in without:
            if name not in known:
                raise UnknownNameError("modality", name, known)
        if known <= set(without):
            raise FusedgeError("every modality is left out", hint="keep one of them")
        self._clock = clock
        self.pipeline = Pipeline(bundle, clock, provider=provider, precision=precision)
        wanted = {
            m.name: tuple(channel.name for channel in m.channels)
            for m in bundle.manifest.modalities
            if m.name not in without
        }
        with ExitStack() as opened:
            self._sources: list[Source] = []
            for uri in uris:
                source = open_source(uri, wanted, clock.now_ns)
                opened.callback(source.close)
                self._sources.append(source)
            self.warnings = [
                printable(line) for source in self._sources for line in source.warnings
            ]
            self._damaged = bool(self.warnings)
            live = [source.uri for source in self._sources if source.live]
            if live:  # it would stop the clock while it is silent
                raise FusedgeError("live sources cannot be run yet", where=", ".join(live))
            self._check_modalities(list(wanted))
            targets = {e.target for part in bundle.manifest.parts for e in part.engines}
            if targets:
                self.warnings.append(
                    f"the bundle's engines ({', '.join(sorted(targets))}) are not used: "
                    "ONNX Runtime is the only backend of this version"
                )
            self._open_sources = opened.pop_all()
        self._stopping = False
        self._step_time, self._tick_to_decision = DurationHistogram(), DurationHistogram()
        self.header: dict[str, Any] = {
            "bundle": bundle.manifest.name,
            "bundle_sha256": bundle.sha256,
            "weights_licence": bundle.manifest.provenance.weights_licence,
            "sources": list(uris),
            "without": list(without),
            "clock": clock.kind,
            "parts": {
                name: {"backend": "onnxruntime", "provider": achieved, "precision": precision}
                for name, achieved in self.pipeline.providers.items()
            },
            "warnings": self.warnings,
        }

    def _check_modalities(self, wanted: list[str]) -> None:
        given: dict[str, Source] = {}
        for source in self._sources:
            for modality in source.modalities:
                if modality in given:
                    raise FusedgeError(
                        f"{modality} comes from two sources, {given[modality].uri} and {source.uri}",
                        hint="leave one of them out",
                    )
                given[modality] = source
        missing = [modality for modality in wanted if modality not in given]
        if len(missing) == len(wanted):
            raise FusedgeError(
                f"no source gives any of {', '.join(wanted)}",
                where=", ".join(source.uri for source in self._sources),
            )
        self.warnings += [f"{name}: no source gives it; decisions go without" for name in missing]

    def stop(self) -> None:
        """End `run` between two pieces of work, so that no sample is lost halfway.

        May be called from a signal handler or another thread.
        """
        self._stopping = True
        self._clock.interrupt()

    def run(self, sinks: Sequence[Sink]) -> SessionReport:
        """Run until the sources end or the user interrupts (KeyboardInterrupt ends in a report too)."""
        pipeline = self.pipeline
        started, cpu_started = stopwatch_ns(), process_cpu_ns()
        ended = "failed"

        def close(sink: Sink) -> None:
            sink.close({"ended": ended, **pipeline.statistics()})

        with self._open_sources as cleanup:
            try:
                for sink in sinks:
                    cleanup.callback(close, sink)
                    sink.open(self.header)
                self._loop(sinks)
                ended = "interrupted" if self._stopping else "end of input"
            except KeyboardInterrupt:
                ended = "interrupted"
        summary = {"ended": ended, **pipeline.statistics()}
        timing = {
            "wall_s": round((stopwatch_ns() - started) / 1e9, 3),
            "cpu_s": round((process_cpu_ns() - cpu_started) / 1e9, 3),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "step": self._step_time.summary_us(),
            "tick_to_decision": self._tick_to_decision.summary_us(),
            "parts": pipeline.compute_time(),
        }
        return SessionReport(ended, self.header, summary, timing, self._problem())

    def _problem(self) -> str:
        accounts = self.pipeline.ledger.accounts
        if not sum(account.used for account in accounts.values()):
            return "not one sample could be used"
        useless = [n for n, a in accounts.items() if a.received and not a.used + a.in_flight]
        if useless:
            return f"not one sample of {', '.join(useless)} could be used"
        reasons = ("malformed", "implausible_stamp")
        torn = sum(a.dropped.get(reason, 0) for a in accounts.values() for reason in reasons)
        if torn:
            return f"{torn} of its rows could not be read"
        return "part of the input is missing" if self._damaged else ""

    def _loop(self, sinks: Sequence[Sink]) -> None:
        pipeline, clock = self.pipeline, self._clock
        streams = [source.samples() for source in self._sources]
        for item in heapq.merge(*streams, key=lambda item: item.arrival_ns):
            self._work(item.arrival_ns - 1, sinks)
            clock.wait_until(item.arrival_ns)
            if self._stopping:
                return
            pipeline.push(item)
        self._work(clock.now_ns(), sinks)

    def _work(self, until_ns: int, sinks: Sequence[Sink]) -> None:
        """Do what is due at `until_ns` or before, each at its time."""
        pipeline = self.pipeline
        while (due_ns := pipeline.next_due_ns) is not None and due_ns <= until_ns:
            self._clock.wait_until(due_ns)
            if self._stopping:
                return
            started = stopwatch_ns()
            results = pipeline.step()
            self._step_time.add(stopwatch_ns() - started)
            for result in results:
                if isinstance(result, Decision):
                    self._tick_to_decision.add(result.latency_ns)
                for sink in sinks:
                    sink.write(result)
