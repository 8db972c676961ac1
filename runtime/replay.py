"""Does a recorded session again, step by step, and compares what comes out with what came out then."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.recording import DECISIONS, EVENTS, JOURNAL, Document
from fusedge.bundle.recording_file import Gap, Info, RecordingFile
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS
from fusedge.runtime.backend import AUTO, AUTOMATIC, NATIVE, BackendSetting, PartLoader
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Cut, Finish, Step, Tick
from fusedge.runtime.onnx_part import PROVIDERS
from fusedge.runtime.part import Failure, Job, RunningPart
from fusedge.runtime.pipeline import Pipeline
from fusedge.runtime.sinks.sink import Sink

MAX_TIME_NS = 1 << 62
MAX_BATCH = 1024
_ENTRIES: dict[str, type[Cut | Tick | Finish]] = {"cut": Cut, "tick": Tick, "finish": Finish}
_TEXTS = ("modality", "reason", "part", "failure")


@dataclass(frozen=True)
class ReplayReport:
    """How a replay compares with its recording.

    `decisions` and `events` are those that the recording holds, `identical_…` how many of them came
    out the same to the byte of their JSON. `difference` is empty, or says where the first one lies
    and in which field. `stopped` is empty where everything was replayed, or says why the rest could
    not be. `sha256` is of all that came out, as JSON Lines.
    """

    decisions: int
    events: int
    identical_decisions: int
    identical_events: int
    difference: str
    stopped: str
    sha256: str
    summary: dict[str, Any]

    @property
    def identical(self) -> bool:
        """Whether nothing differs as far as the recording goes."""
        return not self.difference


def replay_exactly(
    bundle: Bundle,
    path: Path,
    sinks: Sequence[Sink] = (),
    *,
    backend: BackendSetting = AUTOMATIC,
) -> ReplayReport:
    """Replay a recording with the bundle that it was made with, each part on what it began with then
    unless `backend` names something else.

    Raises FusedgeError where the recording cannot be replayed to the bit: of another bundle, a clip,
    with JPEG images, or without a bundle.
    """
    file = RecordingFile(path)
    _check(file.info, bundle, path)
    loaders = {
        part.name: PartLoader(bundle, _backend(file.info, part.name, backend))
        for part in bundle.manifest.parts
        if part.kind != "front"  # what it made was recorded
    }
    pipeline = Pipeline(
        bundle, latency_s=_latency(file.info), load=lambda part: loaders[part.name](part)
    )
    header = {
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.sha256,
        "weights_licence": bundle.manifest.provenance.weights_licence,
        "sources": [f"replay:{path}"],
        "clock": "recorded",
        "parts": {name: loader.chosen[name].as_dict() for name, loader in loaders.items()},
        "events": [rule.name for rule in bundle.manifest.events],
        "warnings": [],
    }
    replay = _Replay(pipeline, sinks)
    with ExitStack() as cleanup:
        for sink in sinks:
            cleanup.callback(_close, sink, replay)
            sink.open(header)
        replay.run(file)
    return replay.report()


def _check(info: Info, bundle: Bundle, path: Path) -> None:
    as_source = f"run it as a source: fusedge run BUNDLE --source replay:{path}"
    if info.clip:
        what = f"is a clip ({info.clip}), which does not begin where its session did"
        raise FusedgeError(what, where=str(path), hint=as_source)
    if "bundle_sha256" not in info.session:
        raise FusedgeError("was recorded without a bundle", where=str(path), hint=as_source)
    if not info.exact:
        what = "holds its images as JPEG, so no replay is exact"
        raise FusedgeError(what, where=str(path), hint=as_source)
    if info.session.get("bundle_sha256") != bundle.sha256:
        name = reprlib.repr(info.session.get("bundle"))
        raise FusedgeError(
            f"was recorded with another bundle, {name} of another content",
            where=str(path),
            hint=f"give that one, or see what this one makes of it: {as_source}",
        )


def _backend(info: Info, part: str, wanted: BackendSetting) -> BackendSetting:
    """What the part ran on in the session, where `wanted` leaves it open.

    Raises FusedgeError where the recording does not say that, or says what nobody knows here.
    """
    parts = info.session.get("parts")
    found = parts.get(part) if isinstance(parts, dict) else None
    then = found if isinstance(found, dict) else {}
    precision = then.get("precision") if wanted.precision == AUTO else wanted.precision
    setting = replace(wanted, precision=precision[:20] if isinstance(precision, str) else "fp32")
    if wanted.backend != AUTO or wanted.provider != AUTO:
        return setting
    if then.get("backend") == NATIVE:
        return replace(setting, backend=NATIVE)
    for name, known in PROVIDERS.items():
        if known.name == then.get("provider"):
            return replace(setting, provider=name)
    raise FusedgeError(
        f"ran on {reprlib.repr(then.get('provider'))}, a provider that is not known here",
        where=f"part {part} of the recording",
        hint="--provider cpu replays it here, and says what differs",
    )


def _latency(info: Info) -> dict[str, float]:
    """Delays that the session was given instead of the manifest's."""
    given = info.session.get("latency_s")
    pairs = given.items() if isinstance(given, dict) else ()
    return {
        name: float(value)
        for name, value in pairs
        if type(value) is float or (type(value) is int and abs(value) < MAX_TIME_NS)
    }


def _close(sink: Sink, replay: _Replay) -> None:
    sink.close(replay.summary())


class _StopError(Exception):
    """Why the rest of a recording cannot be replayed."""


class _Replay:
    """A pipeline under the journal of another."""

    def __init__(self, pipeline: Pipeline, sinks: Sequence[Sink]) -> None:
        self._pipeline = pipeline
        self._sinks = sinks
        self._parts: dict[str, RunningPart] = {part.name: part for part in pipeline.parts}
        self._jobs: dict[str, Job] = {}
        self._made: deque[tuple[Decision | Event, bytes]] = deque()
        self._counts = {DECISIONS: [0, 0], EVENTS: [0, 0]}  # recorded, identical
        self._difference = self._stopped = ""
        self._hash = hashlib.sha256()

    def run(self, file: RecordingFile) -> None:
        """Follow the file to its end, or to the first gap."""
        for entry in file.entries():
            if isinstance(entry, Gap):
                place = f"{entry.log_ns / NANOSECONDS:.3f} s"
                self._stopped = f"exact up to a gap in the recording at {place}: {entry.reason}"
                return
            try:
                self._follow(entry)
            except _StopError as stop:
                self._stopped = str(stop)
                return
            except (ValueError, OverflowError) as error:
                self._stopped = f"the journal makes no sense: {error}"
                return
        if file.problem:
            self._stopped = f"the recording {file.problem}"
        elif file.complete and self._made:
            self._differ(self._made[0][0].timestamp_ns, "comes out, but is not in the recording")

    def _follow(self, entry: Sample | Rejection | Document) -> None:
        if not isinstance(entry, Document):
            self._pipeline.push(entry)
        elif entry.channel == JOURNAL:
            fields = entry.fields()
            if fields.get("type") == "swapped":
                raise _StopError(
                    "exact up to a change of the bundle, whose shadow run is not recorded"
                )
            step = _entry(fields)
            if isinstance(step, Finish):
                self._finish(step)
            else:
                self._begin(step, entry.log_ns)
            self._collect()
            self._pipeline.tidy()
        elif entry.channel in self._counts:
            self._compare(entry)

    def _begin(self, step: Step, now_ns: int) -> None:
        pipeline = self._pipeline
        if isinstance(step, Cut):
            lane = pipeline.lanes.get(step.modality)
            if lane is None or lane.stream.next_end_ns is None:
                raise ValueError(f"a window of {step.modality!r} that has no samples")
            part = lane.part
            due_ns = lane.stream.next_end_ns + step.skipped * lane.stream.hop_ns
            in_order = due_ns == step.end_ns
        else:
            part = pipeline.head_part
            in_order = pipeline.next_tick_ns is None or step.tick_ns >= pipeline.next_tick_ns
        if not in_order or step.skipped < 0 or part.job is not None:
            raise ValueError(f"{type(step).__name__.lower()} out of order")
        if part.down and not step.reason:
            part.reserve()
            part.reload()(now_ns)  # as it was then, at some time before
        job = pipeline.begin(step, now_ns)
        if job is not None:
            self._jobs[part.name] = job

    def _finish(self, finish: Finish) -> None:
        job = self._jobs.pop(finish.part, None)
        if job is None:
            raise ValueError(f"{finish.part!r} ends without having begun")
        outcome: Any
        if not 0 <= finish.row < finish.rows <= MAX_BATCH:
            raise ValueError(f"row {finish.row} of {finish.rows}")
        job.rows, job.row = finish.rows, finish.row
        if finish.failure and finish.failure != "not_finite":
            outcome = Failure(finish.failure)
        else:
            try:
                outcome = job.run()
            except Exception as error:  # a backend raises what it likes
                self._differ(finish.now_ns, f"part {finish.part} fails: {error}")
                outcome = Failure("failed", str(error))
            else:
                if finish.failure and all(np.isfinite(output).all() for output in outcome):
                    outcome = Failure(finish.failure)  # it was something else that gave NaN then
        self._pipeline.finish(job, outcome, finish.now_ns)

    def _collect(self) -> None:
        for result in self._pipeline.take_results():
            line = json.dumps(result.as_dict(), separators=(",", ":"), allow_nan=False).encode()
            self._hash.update(line + b"\n")
            self._made.append((result, line))
            for sink in self._sinks:
                sink.write(result)

    def _compare(self, recorded: Document) -> None:
        counts = self._counts[recorded.channel]
        counts[0] += 1
        if not self._made:
            self._differ(recorded.publish_ns, "is in the recording, but does not come out")
            return
        result, line = self._made.popleft()
        if line == recorded.data:
            counts[1] += 1
            return
        then = _without_sightings(recorded.fields())
        if line == json.dumps(then, separators=(",", ":")).encode():
            counts[1] += 1
        elif not self._difference:
            self._differ(result.timestamp_ns, _first_difference(then, json.loads(line)))

    def _differ(self, time_ns: int, what: str) -> None:
        self._difference = self._difference or f"{time_ns / NANOSECONDS:.3f} s: {what}"

    def summary(self) -> dict[str, Any]:
        """For sinks."""
        return {"ended": self._stopped or "end of input", **self._pipeline.statistics()}

    def report(self) -> ReplayReport:
        """What came of it."""
        (decisions, same_decisions), (events, same_events) = self._counts.values()
        return ReplayReport(
            decisions=decisions,
            events=events,
            identical_decisions=same_decisions,
            identical_events=same_events,
            difference=self._difference,
            stopped=self._stopped,
            sha256=self._hash.hexdigest(),
            summary=self.summary(),
        )


def _entry(fields: dict[str, Any]) -> Cut | Tick | Finish:
    """A step of the journal; raises ValueError where it is none."""
    name = fields.pop("type", None)
    kind = _ENTRIES.get(name) if isinstance(name, str) else None
    if kind is None or set(fields) != set(kind._fields):
        raise ValueError("an entry of no kind")
    for name, value in fields.items():
        right = (
            isinstance(value, str)
            if name in _TEXTS
            else type(value) is int and abs(value) < MAX_TIME_NS
        )
        if not right:
            raise ValueError(f"{name} is {reprlib.repr(value)}")
    return kind(**fields)


def _without_sightings(decision: dict[str, Any]) -> dict[str, Any]:
    """What a decision rests on; of what front ends saw, a recording has what they made of it."""
    shares = decision.get("modalities")
    for share in shares.values() if isinstance(shares, dict) else ():
        if isinstance(share, dict):
            share.pop("front", None)
    return decision


def _first_difference(then: object, now: object, place: str = "") -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        for name in [*then, *(name for name in now if name not in then)]:
            if then.get(name) != now.get(name) or (name in then) != (name in now):
                inner = f"{place}.{name}" if place else str(name)
                return _first_difference(then.get(name), now.get(name), inner)
        return f"{place or 'the order of its fields'} differs"
    return f"{place} was {reprlib.repr(then)}, is {reprlib.repr(now)}"
