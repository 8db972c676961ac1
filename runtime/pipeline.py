"""The core: samples in, decisions and events out, driven by an injected time. No threads, no input
or output of its own, so that live, replay and soak run the same code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Output
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.runtime.backend import Array, OnnxPart
from fusedge.runtime.clock import Clock
from fusedge.runtime.decision import Classification, Decision, ModalityShare
from fusedge.runtime.encoder import Encoder
from fusedge.runtime.events import Event, EventDetector
from fusedge.runtime.head import FusionHead
from fusedge.runtime.label import SteadyLabel, softmax
from fusedge.runtime.ledger import Ledger
from fusedge.runtime.stream import ModalityStream


class Pipeline:
    """Contract: `push` samples in order of arrival; whenever `next_due_ns` is reached, `step`.

    Work is due at fixed times of the session's clock: a window at its end plus latency plus
    lateness, a decision at every whole multiple of the decision period. Windows go before a
    decision of the same time. A tick whose successor is due as well is skipped and counted. The
    newest one then goes before the windows that wait, on what embeddings there are, and in turn
    with them, so that overload neither delays a decision by more than a period nor starves
    decisions or encoders.
    """

    def __init__(
        self, bundle: Bundle, clock: Clock, *, provider: str = "cpu", precision: str = "fp32"
    ) -> None:
        manifest = bundle.manifest
        self.manifest = manifest
        self._clock = clock
        backends = {
            part.name: OnnxPart(bundle, part, provider, precision) for part in manifest.parts
        }
        self.providers = {name: backend.provider for name, backend in backends.items()}
        self.order = manifest.fusion.modalities
        specs = {name: manifest.modality(name) for name in self.order}
        self.streams = {name: ModalityStream(spec) for name, spec in specs.items()}
        self.encoders = {
            part.modality: Encoder(specs[part.modality], part, backends[part.name])
            for part in manifest.encoders
            if part.modality is not None
        }
        self.head = FusionHead(manifest, backends[manifest.head.name])
        self._detectors: dict[str, list[EventDetector]] = {name: [] for name in self.order}
        for rule in manifest.events:
            self._detectors[rule.modality].append(EventDetector(rule, specs[rule.modality]))
        self._period_ns = to_ns(1 / manifest.decision_rate_hz)
        period_s = self._period_ns / NANOSECONDS
        self._labels = {output.name: dict.fromkeys(output.labels, 0) for output in manifest.outputs}
        self._steady = {output.name: SteadyLabel(output, period_s) for output in manifest.outputs}
        self.ledger = Ledger({name: stream.account for name, stream in self.streams.items()})
        self.next_tick_ns: int | None = None
        self._jumped = False  # the last step was a decision that went before older windows
        self.ticks = self.ticks_skipped = self.ticks_not_finite = 0

    def push(self, item: Sample | Rejection) -> None:
        """Take a sample, or the account of one that its source had to refuse."""
        if self.next_tick_ns is None:
            self.next_tick_ns = -(-item.arrival_ns // self._period_ns) * self._period_ns
        stream = self.streams.get(item.modality)
        if isinstance(item, Sample) and stream is not None:
            stream.push(item)
            return
        account = self.ledger.account(item.modality)
        account.received += 1
        if isinstance(item, Rejection):
            account.drop(item.reason, detail=item.detail)
        else:
            account.drop("not_in_bundle")

    @property
    def next_due_ns(self) -> int | None:
        """The time of the next `step`; None before the first sample."""
        due = self.next_tick_ns
        for stream in self.streams.values():
            window_due = stream.next_due_ns
            if window_due is not None and (due is None or window_due <= due):
                due = window_due
        return due

    def step(self) -> list[Decision | Event]:
        """Do all the work that is due at `next_due_ns`, and return what came of it."""
        due_ns, tick_ns = self.next_due_ns, self.next_tick_ns
        assert due_ns is not None and tick_ns is not None, "nothing is due before the first sample"
        now_ns = max(self._clock.now_ns(), due_ns)
        skipped = max(0, (now_ns - tick_ns) // self._period_ns)
        if skipped:
            self.ticks_skipped += skipped
            self.next_tick_ns = tick_ns = tick_ns + skipped * self._period_ns
            if not self._jumped:
                self._jumped = True
                self.next_tick_ns += self._period_ns
                return [self._decide(tick_ns)]
            due_ns = self.next_due_ns
        self._jumped = False
        results: list[Decision | Event] = []
        for name, stream in self.streams.items():
            if stream.next_due_ns == due_ns:
                window = stream.cut(now_ns)
                self.encoders[name].step(window)
                if window is not None:
                    for detector in self._detectors[name]:
                        results += detector.update(window)
        if tick_ns == due_ns:
            self.next_tick_ns = tick_ns + self._period_ns
            results.append(self._decide(tick_ns))
        return results

    def _decide(self, tick_ns: int) -> Decision:
        self.ticks += 1
        encoders = [self.encoders[name] for name in self.order]
        ages_ns = [encoder.age_ns(tick_ns) for encoder in encoders]
        logits = self.head.fuse(
            [
                None if age is None else encoder.embedding
                for age, encoder in zip(ages_ns, encoders, strict=True)
            ],
            [0.0 if age is None else age / NANOSECONDS for age in ages_ns],
        )
        outputs = {
            spec.name: self._classify(spec, logits[spec.logits]) for spec in self.manifest.outputs
        }
        self.ticks_not_finite += any(output.label is None for output in outputs.values())
        shares = {
            name: ModalityShare(age is not None, None if age is None else age / NANOSECONDS)
            for name, age in zip(self.order, ages_ns, strict=True)
        }
        latency_ns = max(0, self._clock.now_ns() - tick_ns)
        return Decision(tick_ns, outputs, shares, latency_ns)

    def _classify(self, spec: Output, logits: Array) -> Classification:
        """One output from its logits `[1 + M, K]`."""
        if not np.isfinite(logits[0]).all():
            return Classification(spec.labels, None, None, None, dict.fromkeys(self.order))
        rows = softmax(logits, spec.temperature)
        label, mean = self._steady[spec.name].update(rows[0])
        self._labels[spec.name][label] += 1
        column = rows[:, spec.labels.index(label)]
        contributions = {
            name: float(column[0] - without) if np.isfinite(without) else None
            for name, without in zip(self.order, column[1:], strict=True)
        }
        return Classification(spec.labels, label, rows[0], mean.copy(), contributions)

    def statistics(self) -> dict[str, Any]:
        """Counts that do not depend on the speed of the machine, for the summary."""
        return {
            "decisions": self.ticks,
            "ticks_skipped": self.ticks_skipped,
            "decisions_not_finite": self.ticks_not_finite,
            "labels": self._labels,
            "modalities": {
                name: {
                    "encoder_steps": encoder.step_time.count,
                    "state_resets": encoder.resets,
                    "embeddings_not_finite": encoder.not_finite,
                    "implausible_values": {
                        channel: count
                        for channel, count in self.streams[name].implausible.items()
                        if count
                    },
                }
                for name, encoder in self.encoders.items()
            },
            "remarks": self.ledger.remarks(),
            "ledger": self.ledger.as_dict(),
            "ledger_balanced": self.ledger.balanced,
        }

    def compute_time(self) -> dict[str, Any]:
        """What each part's runs cost on this machine, in microseconds."""
        timings = {name: encoder.step_time.summary_us() for name, encoder in self.encoders.items()}
        return {**timings, self.manifest.head.name: self.head.step_time.summary_us()}
