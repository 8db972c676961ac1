"""One bundle over its sources into its sinks, and the report of what happened."""

from __future__ import annotations

import resource
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, MissingExtraError, UnknownNameError, printable
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS
from fusedge.devices.capture.absent import AbsentSource
from fusedge.devices.capture.address import shown
from fusedge.devices.capture.source import Opener, Source, is_live, open_source
from fusedge.devices.capture.wanted import Damage
from fusedge.runtime.backend import AUTOMATIC, BackendSetting, PartLoader
from fusedge.runtime.clock import Clock, process_cpu_ns, stopwatch_ns
from fusedge.runtime.decision import Decision
from fusedge.runtime.feed import Feed, MergedFeed, PumpedFeed
from fusedge.runtime.front.fronts import FrontEnds
from fusedge.runtime.front.sighting import View
from fusedge.runtime.histogram import DurationHistogram
from fusedge.runtime.journal import Entry, Swapped
from fusedge.runtime.latency import LatencyPair, LatencyProbe
from fusedge.runtime.pipeline import Loader, Pipeline
from fusedge.runtime.sinks.lane import SinkLane
from fusedge.runtime.sinks.sink import ReaderLeftError, Sink
from fusedge.runtime.swap import BundleWatch, Swap
from fusedge.runtime.telemetry import Telemetry

if TYPE_CHECKING:
    from fusedge.runtime.chaos import Chaos

MAX_NOTICES = 100
SILENCE_S = 5.0
HANG_S = 2.0


@dataclass(frozen=True)
class SessionReport:
    """What a session did. `summary` is repeatable to the bit on a virtual clock; `timing` is not.

    `timing` has the machine's `telemetry` where time was real, see Telemetry.snapshot. `ended` is
    `end of input`, `interrupted` or `window closed`. `problem` is empty, or says in a line what could not
    be read, used or written, though the session went on without it.
    """

    ended: str
    header: dict[str, Any]
    summary: dict[str, Any]
    timing: dict[str, Any]
    problem: str


class Session:
    """A bundle, its sources and a clock, ready to run once: see fusedge.runtime.runner.

    Raises FusedgeError where a source cannot be opened, two sources give one modality, or no source
    gives any modality of the bundle. A device that cannot be opened yet is tried again, though, if another
    source can, or with `wait_for_sources`. A modality that nobody gives, or that `without` names, is
    missing from every decision; `warnings` says so of the former. A live source that is silent for
    `silence_s` is opened again; a part that computes for longer than `hang_s` is given up and
    loaded again. With `watch`, another bundle that comes to lie at the bundle's path is changed to
    (real time only). `latency_s` are known delays of stamps that replace the manifest's, by modality;
    `latency_pairs` are channels by which such a delay is measured. `backend` says what the parts are to run
    on; the choice and its reason are in the header, and as it is at the end in the summary. `open_uri`
    opens the sources, behind which the bundle's front ends stand, and `load` loads the parts; `loaders`
    gives, for a bundle and the setting of its backend, what loads them, also when the bundle changes.
    `chaos` lets all of them fail.
    """

    def __init__(
        self,
        bundle: Bundle,
        uris: Sequence[str],
        clock: Clock,
        *,
        backend: BackendSetting = AUTOMATIC,
        without: Sequence[str] = (),
        latency_s: Mapping[str, float] | None = None,
        latency_pairs: Sequence[LatencyPair] = (),
        silence_s: float = SILENCE_S,
        hang_s: float = HANG_S,
        open_uri: Opener = open_source,
        load: Loader | None = None,
        loaders: Callable[[Bundle, BackendSetting], PartLoader] = PartLoader,
        chaos: Chaos | None = None,
        watch: bool = False,
        wait_for_sources: bool = False,
        name: str = "",
    ) -> None:
        known = set(bundle.manifest.require_fusion().modalities)
        self._latency_s = dict(latency_s or {})
        for modality in (*without, *self._latency_s):
            if modality not in known:
                raise UnknownNameError("modality", modality, known)
        self._probes = [LatencyProbe(pair, bundle.manifest) for pair in latency_pairs]
        if known <= set(without):
            raise FusedgeError("every modality is left out", hint="keep one of them")
        self.name = name
        self.clock = clock
        self.hang_s = hang_s
        self.chaos = chaos
        self.telemetry: Telemetry | None = None
        """What watches the machine meanwhile, for all sessions that run together."""
        self._backend, self._loaders = backend, loaders
        self._loader_of: WeakKeyDictionary[Pipeline, PartLoader] = WeakKeyDictionary()
        self.notices: deque[str] = deque(maxlen=MAX_NOTICES)
        """What has failed, a line each, to be shown and taken out by whoever runs the session."""
        self.pipeline = self._make_pipeline(bundle, load)
        self._front_loader = self._loader_of.get(self.pipeline)
        load_front = load or self._front_loader
        assert load_front is not None
        self._fronts = FrontEnds(bundle.manifest, load_front, self._latency_s)
        self._warn_of_parts(self.pipeline)
        fronted = self._fronts.opener(open_uri)
        self._open_uri = fronted if chaos is None else chaos.opener(fronted)
        self._swap: Swap | None = None
        self._swaps: list[Swap | dict[str, Any]] = []  # of those that are over, the reports
        self._retired: list[Pipeline] = []
        self._retired_statistics: list[dict[str, Any]] = []
        if watch and not (clock.real and bundle.path.is_file()):
            raise FusedgeError(
                "only a .fusedge file can be watched, and only in real time",
                where=str(bundle.path),
                hint="a folder changes under the session that runs it; for real time --speed 1 or live",
            )
        self._watch = BundleWatch(bundle) if watch else None
        self._wanted = {m.name: m for m in bundle.manifest.modalities if m.name not in without}
        devices = [shown(uri) for uri in uris if is_live(uri)]
        if devices and clock.kind != "live":
            raise FusedgeError(
                "a device has the machine's time", where=", ".join(devices), hint="speed live"
            )
        with ExitStack() as opened:
            sources: list[Source] = []
            for uri in uris:
                source = self._open_or_await(uri)
                opened.callback(source.close)
                sources.append(source)
            absent = [source.error for source in sources if isinstance(source, AbsentSource)]
            if len(absent) == len(sources) and absent and not wait_for_sources:
                raise absent[0]
            self.warnings = [printable(line) for source in sources for line in source.warnings]
            self._damaged = any(
                isinstance(line, Damage) for source in sources for line in source.warnings
            )
            live = [source.uri for source in sources if source.live]
            if live and not clock.real:
                raise FusedgeError(
                    "a live source cannot be run faster than it is",
                    where=", ".join(live),
                    hint="speed live",
                )
            recorded = [source.uri for source in sources if not source.live]
            if recorded and clock.kind == "live":
                raise FusedgeError(
                    "has a time of its own, not the machine's",
                    where=", ".join(recorded),
                    hint="leave it out beside a device" if live else "speed 1, or max",
                )
            self._check_modalities(sources)
            if chaos is not None and chaos.left_out:
                self.warnings.append(f"chaos: only in real time: {', '.join(chaos.left_out)}")
            self.warnings += self._take_notices()
            opened.pop_all()
        self.feed: Feed
        if clock.real:
            pairs = [
                (source, lambda uri=uri: self._open_source(uri))
                for source, uri in zip(sources, uris, strict=True)
            ]
            self.feed = PumpedFeed(pairs, clock, silence_s)
        else:
            self.feed = MergedFeed(sources)
        self.lanes: list[SinkLane] = []
        self._journal_lanes: list[SinkLane] = []
        self.stopping = False
        self.reader_gone: BrokenPipeError | ReaderLeftError | None = None
        """What it was stopped for, where nobody reads or watches any more."""
        self._summary: dict[str, Any] = {}
        self._sink_errors: list[Exception] = []
        self._said: set[str] = set()
        self._started_ns, self._cpu_started_ns = stopwatch_ns(), process_cpu_ns()
        self.step_time, self._tick_to_decision = DurationHistogram(), DurationHistogram()
        self.header: dict[str, Any] = {
            "bundle": bundle.manifest.name,
            "bundle_sha256": bundle.sha256,
            "weights_licence": bundle.manifest.provenance.weights_licence,
            "sources": [shown(uri) for uri in uris],
            "without": list(without),
            "latency_s": self._latency_s,
            "clock": clock.kind,
            "parts": self._backends(),
            "events": [rule.name for rule in bundle.manifest.events],
            "warnings": self.warnings,
        }
        if self._fronts.kinds:
            self.header["fronts"] = self._fronts.kinds
        if chaos is not None:
            self.header["chaos"] = chaos.header()

    def _make_pipeline(self, bundle: Bundle, load: Loader | None = None) -> Pipeline:
        loader = self._loaders(bundle, self._backend) if load is None else None
        load = load or loader
        assert load is not None
        pipeline = Pipeline(
            bundle,
            concurrent=self.clock.real,
            latency_s=self._latency_s,
            load=load if self.chaos is None else self.chaos.loader(load),
        )
        if loader is not None:
            self._loader_of[pipeline] = loader
        return pipeline

    def _warn_of_parts(self, pipeline: Pipeline) -> None:
        loader = self._loader_of.get(pipeline)
        if loader is not None:
            self.notices.extend(loader.warnings())

    def _take_notices(self) -> list[str]:
        taken = list(self.notices)
        self.notices.clear()
        return taken

    def _backends(self) -> dict[str, dict[str, Any]]:
        """What each part runs on now, and why."""
        loader = self._loader_of.get(self.pipeline)
        if loader is None:  # whoever made the session has loaded the parts
            providers = {**self.pipeline.providers, **self._fronts.providers}
            return {
                part: {"backend": "given", "provider": name} for part, name in providers.items()
            }
        chosen = {part.name: loader.chosen[part.name] for part in self.pipeline.parts}
        if self._front_loader is not None:
            chosen |= {
                part.name: self._front_loader.chosen[part.name] for part in self._fronts.parts
            }
        return {name: choice.as_dict() for name, choice in chosen.items()}

    @property
    def pipelines(self) -> tuple[Pipeline, ...]:
        """Those that samples go to: the one that decides, and its shadow while the bundle changes."""
        return (self.pipeline,) if self._swap is None else self._swap.pipelines

    def swap(self, bundle: Bundle | Path, **options: Any) -> Swap:
        """Change to another bundle, opened or at a path: see Swap, also for the options.

        Raises FusedgeError where a change is under way.
        """
        if self._swap is not None:
            raise FusedgeError(
                "the bundle is being changed already", hint="wait for the end of that"
            )

        def load() -> Pipeline:
            opened = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
            self._fronts.check_same(opened.manifest)
            pipeline = self._make_pipeline(opened)
            self._warn_of_parts(pipeline)
            return pipeline

        swap = Swap(self.pipeline, load, **options)
        swap.start(wait=not self.clock.real)
        self._swap = swap
        self._swaps.append(swap)
        return swap

    def _open_source(self, uri: str) -> Source:
        return self._open_uri(uri, self._wanted, self.clock.now_ns)

    def _open_or_await(self, uri: str) -> Source:
        """A device that is away may come; a name that nobody knows is mistyped."""
        try:
            return self._open_source(uri)
        except (UnknownNameError, MissingExtraError):
            raise
        except FusedgeError as error:
            if self.clock.kind != "live" or not is_live(uri):
                raise
            return AbsentSource(uri, error)

    def _check_modalities(self, sources: list[Source]) -> None:
        given: dict[str, Source] = {}
        for source in sources:
            for modality in source.modalities:
                if modality in given:
                    raise FusedgeError(
                        f"{modality} comes from two sources, {given[modality].uri} and {source.uri}",
                        hint="leave one of them out",
                    )
                given[modality] = source
        missing = [modality for modality in self._wanted if modality not in given]
        if len(missing) == len(self._wanted) and not any(
            isinstance(source, AbsentSource) for source in sources
        ):
            raise FusedgeError(
                f"no source gives any of {', '.join(self._wanted)}",
                where=", ".join(source.uri for source in sources),
            )
        self.warnings += [f"{name}: no source gives it; decisions go without" for name in missing]

    def stop(self) -> None:
        """End the run between two pieces of work, so that no sample is lost halfway.

        May be called from a signal handler or another thread.
        """
        self.stopping = True
        if not self.clock.real:  # the loop may wait for a source that hangs
            threading.Thread(target=self.feed.stop, name="stop", daemon=True).start()

    def open(self, sinks: Sequence[Sink]) -> None:
        """Open the sinks and begin to read; raises what a sink raises, with the others closed."""
        self._started_ns, self._cpu_started_ns = stopwatch_ns(), process_cpu_ns()
        for number, sink in enumerate(sinks):
            lane = SinkLane(sink, self.clock, number)
            self.lanes.append(lane)
            lane.open(self.header)
        self.notices.extend(self._choices())
        self._journal_lanes = [lane for lane in self.lanes if lane.sink.journal]
        if self._journal_lanes:
            self.pipeline.journal = self._note
        now_ns = self.feed.start()
        self.clock.begin(now_ns)
        if not self.feed.ended or self.clock.real:
            self.pipeline.start(now_ns)

    def _choices(self) -> list[str]:
        """What the parts run on and why, a line for those that have it alike."""
        parts: dict[str, list[str]] = {}
        for name, choice in self.header["parts"].items():
            if "reason" in choice:  # whoever has loaded the parts themselves knows it
                line = f"{choice['provider']}, {choice['precision']}: {choice['reason']}"
                parts.setdefault(line, []).append(name)
        return [f"{', '.join(names)} on {line}" for line, names in parts.items()]

    def push(self, items: Sequence[Sample | Rejection]) -> None:
        """Give what has arrived to all who want it."""
        for pipeline in self.pipelines:
            for item in items:
                pipeline.push(item)
        for probe in self._probes:
            probe.observe(items)

    def _note(self, entry: Entry) -> None:
        for lane in self._journal_lanes:
            lane.put(entry)

    def emit(self) -> None:
        """Give what has been decided to the sinks."""
        swap = self._swap
        if swap is None:
            results = self.pipeline.take_results()
        else:
            swap.pick_up(self.clock.now_ns())
            results = swap.take()
            self._follow(swap)
        for result in results:
            if isinstance(result, Decision):
                self._tick_to_decision.add(result.latency_ns)
                result = self._with_sightings(result)
            for lane in self.lanes:
                lane.put(result)
            self._heed_readers()

    def _heed_readers(self) -> None:
        """End with those for whom it was made."""
        for lane in self.lanes:
            if lane.reader_gone is not None:
                self.reader_gone, self.stopping = lane.reader_gone, True

    @property
    def ended(self) -> str:
        """How it ends: see SessionReport."""
        if isinstance(self.reader_gone, ReaderLeftError):
            return "window closed"
        return "interrupted" if self.stopping else "end of input"

    @property
    def view(self) -> Callable[[], View | None] | None:
        """What gives the newest frame in which faces were looked for, once it has been called a first time;
        None where the bundle looks for none.
        """
        return self._fronts.view

    def _with_sightings(self, decision: Decision) -> Decision:
        """The decision with what the front ends had seen by its time."""
        seen = self._fronts.at(decision.timestamp_ns)
        if not seen:
            return decision
        shares = {
            name: share._replace(front=seen.get(name))
            for name, share in decision.modalities.items()
        }
        return replace(decision, modalities=shares)

    def _follow(self, swap: Swap) -> None:
        """Let the pipeline that decides now have the journal, and the other one go when it is over."""
        active, old = swap.active, self.pipeline
        if active is not old:
            self.pipeline = active
            if self._journal_lanes:
                old.journal, active.journal = None, self._note
                self._note(Swapped(active.bundle_sha256))
        if swap.ended:
            self._swap = None
            self._swaps[-1] = swap.report()  # the pipelines are large
            self._retired += [p for p in (swap.old, swap.new) if p is not None and p is not active]

    def supervise(self, now_ns: int) -> None:
        """Look after what may fail: to be called every now and then while time is real."""
        self.feed.supervise(now_ns)
        self._say_failures()
        for lane in self.lanes:
            lane.supervise()
        self._heed_readers()
        for pipeline in (*self.pipelines, *self._retired):
            pipeline.abandon_overdue(now_ns, self.hang_s)
        if self._retired:
            self._retire(at_once=False)
        if self._watch is not None and self._swap is None and self._watch.changed(now_ns):
            self.swap(self._watch.path)
        self.emit()

    def _say_failures(self) -> None:
        """Each source, part, sink and change of bundle that has failed, once."""
        for pipeline in self.pipelines:
            loader = self._loader_of.get(pipeline)
            while loader is not None and loader.changes:
                self.notices.append(loader.changes.pop(0))
        failed = {f"source {uri}": first for uri, first in self.feed.first_failures().items()}
        for pipeline in self.pipelines:
            failed |= {f"part {part.name}": part.first_failure for part in pipeline.parts}
            for name, account in pipeline.ledger.accounts.items():
                failed[f"modality {name}"] = account.first_dropped.get("block_too_long", "")
        failed |= {f"sink {lane.sink.name}": lane.first_failure for lane in self.lanes}
        for what, first in failed.items():
            if first and what not in self._said:
                self._said.add(what)
                self.notices.append(f"{what}: {first}; going on without, and trying again")
        for number, swap in enumerate(self._swap_reports(), start=1):
            what = f"change {number} of the bundle"
            if swap["reason"] and what not in self._said:
                self._said.add(what)
                self.notices.append(f"{what}: {swap['state']}, {swap['reason']}")

    @property
    def finished(self) -> bool:
        """Whether the input has ended and all that was due with it is done."""
        if not self.feed.ended or any(pipeline.computing for pipeline in self.pipelines):
            return False
        due_ns = self.next_due_ns
        return due_ns is None or due_ns > self.feed.last_ns

    @property
    def steps_until_ns(self) -> int:
        """Up to when steps are taken: the present, or the last arrival once the input has ended, so that
        ticks that are slower than the clock do not follow each other for ever.
        """
        now_ns = self.clock.now_ns()
        return min(now_ns, self.feed.last_ns) if self.feed.ended else now_ns

    @property
    def next_due_ns(self) -> int | None:
        """The time of the next step that need not wait for a job; None where there is none."""
        return self.next_due(True)

    def next_due(self, heavy: bool) -> int | None:
        """As `next_due_ns`; without `heavy`, the windows of heavy encoders wait."""
        if self._swap is None:
            return self.pipeline.next_due(heavy)
        due = [pipeline.next_due(heavy) for pipeline in self.pipelines]
        return min((due_ns for due_ns in due if due_ns is not None), default=None)

    def end(self, ended: str) -> None:
        """Let the sinks write what waits and close, however they are. What a sink raises on a virtual clock
        is raised by `report`.
        """
        self._say_failures()
        self._summary = {
            "ended": ended,
            **self.pipeline.statistics(),
            "sources": self.feed.report(),
            "backends": self._backends(),
        }
        if self._fronts.kinds:
            self._summary["fronts"] = self._fronts.report()
        if self._probes:
            self._summary["latency_estimates"] = [probe.report() for probe in self._probes]
        if self._swaps:
            self._retire()
            self._summary["swaps"] = self._swap_reports()
            self._summary["retired"] = self._retired_statistics
            self._summary["ledger_balanced"] &= all(
                statistics["ledger_balanced"] for statistics in self._retired_statistics
            )
        if self.chaos is not None:
            self._summary["chaos"] = self.chaos.report()
        for lane in self.lanes:
            try:
                lane.end(self._summary)
            except Exception as error:  # the others are closed all the same
                self._sink_errors.append(error)

    def report(self, end_ns: int) -> SessionReport:
        """Wait for sources and sinks to end, until `end_ns` by the machine's stopwatch, and report."""

        def left_s() -> float:
            return max(0, end_ns - stopwatch_ns()) / NANOSECONDS

        left = [f"source {uri}" for uri in self.feed.join(left_s())]
        left += [f"sink {lane.sink.name}" for lane in self.lanes if not lane.join(left_s())]
        if self.telemetry is not None and not self.telemetry.join(left_s()):
            left.append("telemetry")
        if self._sink_errors:
            raise self._sink_errors[0]
        summary = {
            **self._summary,
            "sinks": {lane.sink.name: lane.report() for lane in self.lanes},
        }
        timing = {
            "wall_s": round((stopwatch_ns() - self._started_ns) / 1e9, 3),
            "cpu_s": round((process_cpu_ns() - self._cpu_started_ns) / 1e9, 3),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "step": self.step_time.summary_us(),
            "tick_to_decision": self._tick_to_decision.summary_us(),
            "parts": self.pipeline.compute_time(),
            "left_behind": left,
        }
        if self.telemetry is not None:
            timing["telemetry"] = self.telemetry.snapshot()
        return SessionReport(summary["ended"], self.header, summary, timing, self._problem(summary))

    def _swap_reports(self) -> list[dict[str, Any]]:
        return [swap.report() if isinstance(swap, Swap) else swap for swap in self._swaps]

    def _retire(self, at_once: bool = True) -> None:
        """Keep no more than the statistics of pipelines that had to go, once they compute nothing."""
        for pipeline in list(self._retired):
            if at_once or not pipeline.computing:
                self._retired.remove(pipeline)
                statistics = pipeline.statistics()
                self._retired_statistics.append(
                    {"bundle_sha256": pipeline.bundle_sha256, **statistics}
                )

    def _problem(self, summary: dict[str, Any]) -> str:
        if self.chaos is not None:  # what fails was meant to
            return "" if summary["ledger_balanced"] else "the ledger does not balance"
        for swap in summary.get("swaps", ()):
            if swap["state"] in ("refused", "returned"):
                return f"a change of bundle was {swap['state']}: {swap['reason']}"
        for kind in ("sources", "sinks"):
            for name, report in summary[kind].items():
                if report["failures"]:
                    return f"{kind[:-1]} {name} failed, first: {report['first_failure']}"
        accounts = self.pipeline.ledger.accounts
        unused = [
            name for name, account in accounts.items() if account.received and not account.used
        ]
        # That there was no face, and nobody spoke, is no fault.
        quiet = [n for n in unused if self._fronts.saw_nobody(n, accounts[n].dropped)]
        if not quiet and not sum(account.used for account in accounts.values()):
            return "not one sample could be used"
        for name, account in accounts.items():
            if account.dropped.get("block_too_long", 0) > account.used:
                return f"modality {name}: {account.first_dropped['block_too_long']}"
        useless = [n for n in unused if n not in quiet and not accounts[n].in_flight]
        if useless:
            return f"not one sample of {', '.join(useless)} could be used"
        failed = [part.name for part in self.pipeline.parts if part.failures]
        if failed:
            return f"part {', '.join(failed)} failed"
        reasons = ("malformed", "implausible_stamp")
        torn = sum(a.dropped.get(reason, 0) for a in accounts.values() for reason in reasons)
        if torn:
            firsts = [a.first_dropped.get(reason) for a in accounts.values() for reason in reasons]
            first = next(filter(None, firsts), "")
            return f"{torn} of its rows could not be read" + (f", first: {first}" if first else "")
        return "part of the input is missing" if self._damaged else ""
