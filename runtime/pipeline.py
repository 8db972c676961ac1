"""The core: samples in, decisions and events out. No threads, no input or output of its own, and no
clock, so that live, replay and soak run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fusedge.bundle.archive import Bundle
from fusedge.bundle.initial_state import initial_state
from fusedge.bundle.manifest import Manifest, Output, Part
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.runtime.backend import AUTOMATIC, PartLoader
from fusedge.runtime.clock import stopwatch_ns
from fusedge.runtime.decision import NOTHING_PRESENT, Classification, Decision, ModalityShare
from fusedge.runtime.encoder import Encoder
from fusedge.runtime.events import Event, EventDetector
from fusedge.runtime.guard import all_finite
from fusedge.runtime.head import FusionHead
from fusedge.runtime.journal import Cut, Entry, Finish, Step, Tick
from fusedge.runtime.label import SteadyLabel, softmax
from fusedge.runtime.ledger import Ledger
from fusedge.runtime.onnx_part import Array
from fusedge.runtime.part import PART_FAILED, Backend, Failure, Job, RunningPart
from fusedge.runtime.sample_stream import SampleStream
from fusedge.runtime.sound_stream import SoundStream
from fusedge.runtime.stream import NEVER_NS, ModalityStream, Window

LIGHT_NS = 1_000_000  # a run that is expected to be shorter is awaited by the tick of its time
WAIT_NS = 3_000_000  # but no longer than this

Loader = Callable[[Part], Backend]


class Lane(NamedTuple):
    """All that belongs to one modality."""

    stream: ModalityStream
    part: RunningPart
    encoder: Encoder
    detectors: tuple[EventDetector, ...]


class _Pending(NamedTuple):
    """What a decision rests on, while the head computes."""

    tick: Tick
    ages_ns: list[int | None]


class Pipeline:
    """Contract: a state machine. `push` items in the order of arrival; `choose` says which step is due,
    `begin` takes it and gives a job, and the job's outputs come back with `finish`. Jobs may run in
    other threads, one at a time a part; everything else is called by one thread at a time. Results
    depend only on what was pushed, begun and finished, in that order, which `journal` is told.

    Work is due at fixed times of the session's clock: a window at its end plus latency plus
    lateness, a decision at every whole multiple of the decision period. Windows go before a
    decision of the same time, unless their encoder is known to take long. A decision that could rest
    on no modality is made without the head and has no label; the head's state and the smoothing
    begin anew after it. What cannot be done in time is given up, oldest first, and counted:

    - windows that wait are made up for in order where that takes less than a hop, so that an
      encoder's memory survives a delay; else the newest goes first;
    - a tick whose successor is due as well is skipped. The newest one then goes before the windows
      that wait, and in turn with them, so that neither starves.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        concurrent: bool = False,
        latency_s: Mapping[str, float] | None = None,
        load: Loader | None = None,
        journal: Callable[[Entry], None] | None = None,
    ) -> None:
        manifest = bundle.manifest
        self.manifest: Manifest = manifest
        self.bundle_sha256 = bundle.sha256
        self._concurrent = concurrent
        self.journal = journal

        fusion = manifest.require_fusion()
        load_part = load or PartLoader(bundle, AUTOMATIC)

        def running(part: Part) -> RunningPart:
            return RunningPart(part, lambda: load_part(part))

        self.order = fusion.modalities
        self.lanes: dict[str, Lane] = {}
        for part in manifest.encoders:
            spec = manifest.modality(str(part.modality))
            if latency_s and spec.name in latency_s:
                spec = spec.with_latency(latency_s[spec.name])
            self.lanes[spec.name] = Lane(
                (SoundStream if spec.kind == "audio" else SampleStream)(spec),
                running(part),
                Encoder(spec, part, initial_state(bundle, part)),
                tuple(EventDetector(r, spec) for r in manifest.events if r.modality == spec.name),
            )
        self._lanes = list(self.lanes.values())
        self.head = FusionHead(manifest, initial_state(bundle, manifest.head))
        self.head_part = running(manifest.head)
        self.parts = [*(lane.part for lane in self._lanes), self.head_part]
        self.period_ns = to_ns(1 / fusion.decision_rate_hz)
        period_s = self.period_ns / NANOSECONDS
        self._labels = {output.name: dict.fromkeys(output.labels, 0) for output in manifest.outputs}
        self._steady = {output.name: SteadyLabel(output, period_s) for output in manifest.outputs}
        self.ledger = Ledger({name: lane.stream.account for name, lane in self.lanes.items()})
        self.work = Ledger({part.name: part.account for part in self.parts})
        self.next_tick_ns: int | None = None
        self._jumped = False  # the last step was a decision that went before older windows
        self._periods = 0  # since the last decision
        self._results: list[Decision | Event] = []

    def start(self, now_ns: int) -> None:
        """Decide from the next whole multiple of the period on, whatever comes in."""
        if self.next_tick_ns is None:
            self.next_tick_ns = -(-now_ns // self.period_ns) * self.period_ns

    def push(self, item: Sample | Rejection) -> None:
        """Take a sample, or the account of one that its source had to refuse."""
        if self.journal is not None:
            self.journal(item)
        lane = self.lanes.get(item.modality)
        if isinstance(item, Sample):
            if lane is not None:
                lane.stream.push(item)
                return
            account = self.ledger.account(item.modality)
            account.received += 1
            account.drop("not_in_bundle")
            return
        account = self.ledger.account(item.modality)
        account.received += item.samples
        account.drop(item.reason, item.samples, detail=item.detail)

    @property
    def next_due_ns(self) -> int | None:
        """The time of the next step that need not wait for a job; None where there is none."""
        return self.next_due(True)

    def next_due(self, heavy: bool) -> int | None:
        """As `next_due_ns`; without `heavy`, the windows of heavy encoders wait."""
        due = self.next_tick_ns if self.head_part.job is None else None
        earliest = NEVER_NS if due is None else due
        for lane in self._lanes:
            free = lane.part.job is None and (heavy or not self._heavy(lane))
            if free and lane.stream.due_ns < earliest:
                due = earliest = lane.stream.due_ns
        return due

    def choose(self, now_ns: int, heavy: bool = True) -> Step | None:
        """The step to take at `now_ns`; None where nothing is due, or all that is waits for a job.

        Without `heavy`, the windows of heavy encoders wait.
        """
        first: Lane | None = None
        awaited = False
        for lane in self._lanes:
            job = lane.part.job
            if job is not None:
                awaited |= not self._heavy(lane) and now_ns - job.begun_ns < WAIT_NS
            elif (
                lane.stream.due_ns <= now_ns
                and (heavy or not self._heavy(lane))
                and (first is None or self._order(lane) < self._order(first))
            ):
                first = lane
        tick_ns = self.next_tick_ns
        if tick_ns is None or now_ns < tick_ns or self.head_part.job is not None:
            return None if first is None else self._cut(first, now_ns)
        skipped = (now_ns - tick_ns) // self.period_ns
        if first is not None:
            long, due_ns = self._order(first)
            in_time = not long and due_ns <= tick_ns
            if self._jumped if skipped else in_time or awaited:
                return self._cut(first, now_ns)
        elif awaited and not skipped:
            return None
        reason = PART_FAILED if self.head_part.down else ""
        return Tick(tick_ns + skipped * self.period_ns, skipped, reason, now_ns)

    def _heavy(self, lane: Lane) -> bool:
        """Whether the decision of the same time had better not wait for it."""
        return self._concurrent and lane.part.cost_ns >= LIGHT_NS

    def _order(self, lane: Lane) -> tuple[bool, int]:
        return self._heavy(lane), lane.stream.due_ns

    def _cut(self, lane: Lane, now_ns: int) -> Cut:
        stream = lane.stream
        assert stream.next_end_ns is not None
        if now_ns < stream.due_ns + stream.hop_ns and not lane.part.down:
            return Cut(stream.spec.name, stream.next_end_ns, 0, "")
        waiting = stream.due(now_ns)
        reason = PART_FAILED if lane.part.down else ""
        in_time = waiting * lane.part.cost_ns <= stream.hop_ns
        skipped = 0 if in_time and not reason else waiting - 1
        return Cut(stream.spec.name, stream.next_end_ns + skipped * stream.hop_ns, skipped, reason)

    def begin(self, step: Step, now_ns: int = 0) -> Job | None:
        """Take a step; the job that it asks for, or None where nothing has to be computed."""
        if self.journal is not None:
            self.journal(step)
        if isinstance(step, Tick):
            return self._begin_tick(step, now_ns)
        self._jumped = False
        lane = self.lanes[step.modality]
        account = lane.part.account
        account.received += step.skipped + 1
        if step.skipped:
            lane.stream.skip(step.skipped, step.reason or "overload")
            account.drop(step.reason or "overload", step.skipped)
        if step.reason:
            lane.stream.skip(1, step.reason)
            account.drop(step.reason)
            return None
        window = lane.stream.cut()
        for detector in lane.detectors:
            self._results += detector.update(window)
        feeds = lane.encoder.feeds(window)
        if feeds is None:
            account.drop("incomplete_window")
            return None
        return lane.part.begin(step, feeds, window, now_ns)

    def _begin_tick(self, tick: Tick, now_ns: int) -> Job | None:
        self._jumped = tick.skipped > 0
        self._periods += tick.skipped + 1
        self.next_tick_ns = tick.tick_ns + self.period_ns
        account = self.head_part.account
        account.received += tick.skipped + 1
        account.drop("overload", tick.skipped)
        encoders = [self.lanes[name].encoder for name in self.order]
        ages_ns = [encoder.age_ns(tick.tick_ns) for encoder in encoders]
        pending = _Pending(tick, ages_ns)
        reason = tick.reason
        if ages_ns.count(None) == len(ages_ns):
            reason = reason or NOTHING_PRESENT
            self.head.forget()
            for steady in self._steady.values():
                steady.forget()
        if reason:
            account.drop(reason)
            self._decide(pending, None, reason, tick.now_ns)
            return None
        feeds = self.head.feeds(
            [
                None if age is None else encoder.embedding
                for age, encoder in zip(ages_ns, encoders, strict=True)
            ],
            [0.0 if age is None else age / NANOSECONDS for age in ages_ns],
        )
        return self.head_part.begin(tick, feeds, pending, now_ns)

    def finish(self, job: Job, outcome: list[Array] | Failure, now_ns: int) -> None:
        """Take what came of a job. What comes of an abandoned one is dropped."""
        if job.abandoned:
            return
        part = job.part
        failure = outcome if isinstance(outcome, Failure) else None
        if isinstance(job.context, Window):
            encoder = self.lanes[str(part.part.modality)].encoder
            if isinstance(outcome, Failure):
                encoder.lose()
            elif not encoder.take(job.context, outcome):
                failure = Failure("not_finite")
        elif isinstance(outcome, Failure):
            self.head.lose()
            self._decide(job.context, None, outcome.reason, now_ns)
        else:
            logits, finite = self.head.take(outcome)
            if not finite:
                failure = Failure("not_finite")
            self._decide(job.context, logits, failure.reason if failure else "", now_ns)
        if self.journal is not None:
            reason = failure.reason if failure else ""
            self.journal(Finish(part.name, reason, now_ns, job.rows, job.row))
        part.end(failure, now_ns)

    @property
    def computing(self) -> bool:
        """Whether a job is out."""
        return any(part.job is not None for part in self.parts)

    def abandon_overdue(self, now_ns: int, hang_s: float) -> None:
        """Give up the jobs that have been out for longer than `hang_s` of the machine's time, and for
        much longer than usual.
        """
        for part in self.parts:
            job = part.job
            if job is not None and stopwatch_ns() - job.started_ns > part.allowance_ns(hang_s):
                self.abandon(job, now_ns)

    def abandon(self, job: Job, now_ns: int) -> None:
        """The job takes too long: go on without it."""
        self.finish(
            job,
            Failure("hangs", f"no result after {(stopwatch_ns() - job.started_ns) / 1e9:.1f} s"),
            now_ns,
        )
        job.abandoned = True
        job.part.stuck += 1

    def tidy(self) -> None:
        """Settle what the last windows left behind: work that no decision waits for."""
        for lane in self._lanes:
            lane.stream.tidy()

    def take_results(self) -> list[Decision | Event]:
        """What was decided and detected since the last call, in order."""
        results, self._results = self._results, []
        return results

    def _decide(
        self, pending: _Pending, logits: dict[str, Array] | None, problem: str, now_ns: int
    ) -> None:
        tick, ages_ns = pending
        outputs = {
            spec.name: self._classify(spec, None if logits is None else logits[spec.logits])
            for spec in self.manifest.outputs
        }
        self._periods = 0
        shares = {
            name: ModalityShare(age is not None, None if age is None else age / NANOSECONDS)
            for name, age in zip(self.order, ages_ns, strict=True)
        }
        latency_ns = max(0, now_ns - tick.tick_ns)
        self._results.append(Decision(tick.tick_ns, outputs, shares, latency_ns, problem))

    def _classify(self, spec: Output, logits: Array | None) -> Classification:
        """One output from its logits `[1 + M, K]`."""
        if logits is None or not all_finite(logits[0]):
            return Classification(spec.labels, None, None, None, dict.fromkeys(self.order))
        rows = softmax(logits, spec.temperature)
        label, mean = self._steady[spec.name].update(rows[0], self._periods)
        self._labels[spec.name][label] += 1
        column = rows[:, spec.labels.index(label)].tolist()
        contributions = {
            name: column[0] - without if without == without else None  # NaN differs from itself
            for name, without in zip(self.order, column[1:], strict=True)
        }
        return Classification(spec.labels, label, rows[0], mean.copy(), contributions)

    @property
    def providers(self) -> dict[str, str]:
        """What runs each part."""
        return {part.name: part.backend.provider for part in self.parts}

    @property
    def balanced(self) -> bool:
        """Whether every sample and every run is accounted for."""
        return self.ledger.balanced and self.work.balanced

    def statistics(self) -> dict[str, Any]:
        """Counts that do not depend on the speed of the machine, for the summary."""
        self.tidy()
        head = self.head_part.account
        return {
            "decisions": head.received - head.dropped.get("overload", 0) - head.in_flight,
            "ticks_skipped": head.dropped.get("overload", 0),
            "decisions_on_nothing": head.dropped.get(NOTHING_PRESENT, 0),
            "decisions_not_finite": head.dropped.get("not_finite", 0),
            "labels": self._labels,
            "modalities": {
                name: {
                    "encoder_steps": lane.part.account.used,
                    "state_resets": lane.encoder.resets,
                    "embeddings_not_finite": lane.part.account.dropped.get("not_finite", 0),
                    "implausible_values": _counted(lane.stream.guard.implausible),
                    "frozen_values": _counted(lane.stream.guard.frozen),
                    "clock": lane.stream.clock_report(),
                }
                for name, lane in self.lanes.items()
            },
            "parts": {part.name: part.report() for part in self.parts},
            "remarks": [*self.ledger.remarks(), *self._part_remarks()],
            "ledger": self.ledger.as_dict(),
            "ledger_balanced": self.balanced,
        }

    def _part_remarks(self) -> list[str]:
        return [
            f"part {part.name}: failed {sum(part.failures.values())} times, first {part.first_failure}; "
            f"loaded again {part.restarts} times"
            for part in self.parts
            if part.failures
        ]

    def compute_time(self) -> dict[str, Any]:
        """What each part's runs cost on this machine, in microseconds."""
        return {part.name: part.run_time.summary_us() for part in self.parts}


def _counted(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}
