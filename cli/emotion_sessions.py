"""Sessions of the task `emotion` for its evaluation: faces and takes that are in memory, and clips."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.archive import Bundle
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.cli.emotion_conversation import NOTHING, label_changes, truth_of
from fusedge.devices.capture.address import Wanted
from fusedge.models.emotion.labels import LABELS
from fusedge.models.emotion.takes import RATE_HZ, Take
from fusedge.models.emotion.task import DECISION_RATE_HZ, HOP_S
from fusedge.runtime.backend import AUTOMATIC, SharedParts
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.decision import Classification, Decision
from fusedge.runtime.runner import run_all
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.memory import MemorySink

OUTPUT = "emotion"
_HOP_NS = to_ns(HOP_S)
_HOP = round(HOP_S * RATE_HZ)
_BLOCK = 800  # samples of sound: 50 ms
_TRAIL_S = 0.6  # a microphone goes on after a take, until what looks ahead has given all
_AT_ONCE = 32  # sessions that are open, each with buffers of 2 MB

Arrays = dict[str, NDArray[Any]]


class MemorySource:
    """Samples that are at hand, of those modalities that are wanted: see Source.

    What is of a modality in `prepared` goes past its front end.
    """

    live = False
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        uri: str,
        given: Mapping[str, Sequence[Sample]],
        wanted: Wanted,
        prepared: Sequence[str] = (),
    ) -> None:
        self.uri, self.prepared = uri, tuple(prepared)
        specs = wanted or {}
        self._given = {name: items for name, items in given.items() if name in specs}
        self.modalities = tuple(self._given)
        self.channels = {n: tuple(c.name for c in specs[n].channels) for n in self.modalities}
        self.units = {
            n: tuple(c.unit for c in specs[n].channels)
            for n in self.modalities
            if specs[n].kind == "series"
        }

    def samples(self) -> Iterator[Sample]:
        """See Source."""
        return heapq.merge(*self._given.values(), key=lambda sample: sample.arrival_ns)

    def close(self) -> None:
        """There is nothing to close."""


def _samples(modality: str, period_ns: int, values: Sequence[NDArray[Any]]) -> list[Sample]:
    stamps = (period_ns * (number + 1) for number in range(len(values)))
    return [Sample(modality, ns, ns, value) for ns, value in zip(stamps, values, strict=True)]


def take_samples(takes: Sequence[Take]) -> dict[str, list[Sample]]:
    """Takes, one after the other, as a microphone gives them, block by block, and their action units ten
    times a second.

    After their end nothing is measured for a while: NaN, of which nothing is used.
    """
    wave = np.concatenate([take.wave for take in takes])
    blocks = -(-(len(wave) + round(_TRAIL_S * RATE_HZ)) // _BLOCK)
    sound = np.full((blocks * _BLOCK, 1), np.nan, np.float32)
    sound[: len(wave), 0] = wave
    playing = np.searchsorted(_ends(takes), np.arange(0, len(wave), _HOP), side="right")
    return {
        "action_units": _samples("action_units", _HOP_NS, [takes[n].units for n in playing]),
        "voice": _samples("voice", to_ns(_BLOCK / RATE_HZ), np.split(sound, blocks)),
    }


def _ends(takes: Sequence[Take]) -> NDArray[np.int64]:
    """Of each take the number of samples that have been played when it ends."""
    return np.cumsum([len(take.wave) for take in takes])


class Player:
    """Plays what is in memory or in files to one bundle, whose parts are loaded once.

    Raises AssertionError where a sample or a run is not accounted for, or a part failed.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._shared = SharedParts()
        loader = self._shared.loader(bundle, AUTOMATIC)
        self._loaded = [loader(part) for part in bundle.manifest.parts]  # let go by no session

    def faces(self, images: NDArray[np.uint8]) -> Arrays:
        """Crops uint8 `[N, 48, 48]`, each alone: `probabilities` float64 `[N, K]` and `emitted` `[N]`."""
        # The last one again, so that time goes on until it is decided on.
        shown = _samples("face", _HOP_NS, [*images[..., None], images[-1][..., None]])
        (decisions,) = self._played([("faces:", {"face": shown})], (), ("face",))
        probabilities = np.full((len(images), len(LABELS)), np.nan)
        emitted = np.full(len(images), NOTHING)
        for decision in decisions:
            age_s = decision.modalities["face"].age_s
            output = decision.outputs[OUTPUT]
            if age_s is None or output.probabilities is None:
                continue
            captured_ns = decision.timestamp_ns - to_ns(age_s)
            number = round(captured_ns / _HOP_NS) - 1
            if number < len(images) and np.isnan(probabilities[number, 0]):
                probabilities[number], emitted[number] = _said(output)
        if np.isnan(probabilities).any():
            raise AssertionError("some face was not decided on")
        return {"probabilities": probabilities, "emitted": emitted}

    def takes(
        self,
        takes: Sequence[Take],
        given: Sequence[str],
        prepared: Sequence[str],
        progress: Callable[[int, int], None] = lambda done, count: None,
    ) -> Arrays:
        """What is decided last on each take: `probabilities` float64 `[N, K]`, `emitted` int64 `[N]`, and
        `whole` bool `[N]`: whether it rests on all modalities of `given`. Where no decision does, the last
        one on any counts; where there is none, probabilities are NaN and `emitted` is NOTHING.
        """
        without = self._others(given)
        verdicts: list[_Verdict] = []
        for first in range(0, len(takes), _AT_ONCE):
            group = takes[first : first + _AT_ONCE]
            played = self._played(
                [(f"take:{take.name}", take_samples([take])) for take in group], without, prepared
            )
            verdicts += [_verdict(decisions, given) for decisions in played]
            progress(len(verdicts), len(takes))
        probabilities, emitted, whole = zip(*verdicts, strict=True)
        return {
            "probabilities": np.array(probabilities, np.float64),
            "emitted": np.array(emitted, np.int64),
            "whole": np.array(whole, np.bool_),
        }

    def conversations(
        self, conversations: Sequence[Sequence[Take]], given: Sequence[str]
    ) -> Arrays:
        """Each in one session, through the front end: all their decisions, one after the other.

        `session` and, in it, `take` int64 `[T]` are counted from 0: what is played at the time; `truth` is
        its label's place in LABELS, `since_s` float64 `[T]` the time since it began. `probabilities`
        float64 `[T, K]` and `emitted` int64 `[T]` are NaN and NOTHING where a decision rests on nothing.
        """
        inputs = [
            (f"conversation:{number}", take_samples(takes))
            for number, takes in enumerate(conversations)
        ]
        played = self._played(inputs, self._others(given), ())
        told = [
            _told(number, takes, decisions)
            for number, (takes, decisions) in enumerate(zip(conversations, played, strict=True))
        ]
        return {name: np.concatenate([each[name] for each in told]) for name in told[0]}

    def _others(self, given: Sequence[str]) -> list[str]:
        known = self.bundle.manifest.require_fusion().modalities
        return [name for name in known if name not in given]

    def _played(
        self,
        inputs: Sequence[tuple[str, Mapping[str, Sequence[Sample]]]],
        without: Sequence[str],
        prepared: Sequence[str],
    ) -> list[list[Decision]]:
        """The decisions on each of the inputs, in a session of its own."""
        by_uri = dict(inputs)

        def open_uri(uri: str, wanted: Wanted, now_ns: Callable[[], int]) -> MemorySource:
            return MemorySource(uri, by_uri[uri], wanted, prepared)

        runs = []
        for uri in by_uri:
            session = Session(
                self.bundle,
                [uri],
                VirtualClock(),
                without=without,
                open_uri=open_uri,
                loaders=self._shared.loader,
            )
            runs.append((session, [MemorySink()]))
        for uri, report in zip(by_uri, run_all(runs), strict=True):
            if report.problem or not report.summary["ledger_balanced"]:
                raise AssertionError(f"{uri} {report.problem or 'its ledger does not balance'}")
        return [sink.decisions for _, (sink,) in runs]

    def clip(self, path: Path) -> dict[str, Any]:
        """A film through the real sources and front ends: what was seen, heard and decided."""
        sink = MemorySink()
        session = Session(
            self.bundle, [f"file:{path}"], VirtualClock(), loaders=self._shared.loader
        )
        (report,) = run_all([(session, [sink])])
        return _clip_figures(report, sink.decisions)


class _Verdict(NamedTuple):
    probabilities: NDArray[np.float64]
    emitted: int
    whole: bool


def _said(output: Classification) -> tuple[NDArray[np.float64], int]:
    """Probabilities by `LABELS`, and the emitted label's place: by name, whatever the bundle's order."""
    assert output.probabilities is not None
    order = [output.labels.index(label) for label in LABELS]
    return output.probabilities[order], LABELS.index(str(output.label))


def _verdict(decisions: Sequence[Decision], given: Sequence[str]) -> _Verdict:
    def rests_on(decision: Decision) -> set[str]:
        return {name for name in given if decision.modalities[name].present}

    made = [d for d in decisions if rests_on(d) and d.outputs[OUTPUT].label is not None]
    whole = [d for d in made if rests_on(d) == set(given)]
    if not made:
        return _Verdict(np.full(len(LABELS), np.nan), NOTHING, False)
    return _Verdict(*_said((whole or made)[-1].outputs[OUTPUT]), bool(whole))


def _told(session: int, takes: Sequence[Take], decisions: Sequence[Decision]) -> Arrays:
    """See Player.conversations. What is played after the last take's end is still the last take."""
    ends = _ends(takes)
    times_s = np.array([decision.timestamp_ns for decision in decisions]) / NANOSECONDS
    take = np.searchsorted(ends[:-1], np.round(times_s * RATE_HZ))
    probabilities = np.full((len(decisions), len(LABELS)), np.nan)
    emitted = np.full(len(decisions), NOTHING)
    for number, decision in enumerate(decisions):
        output = decision.outputs[OUTPUT]
        if output.label is not None:
            probabilities[number], emitted[number] = _said(output)
    return {
        "session": np.full(len(decisions), session),
        "take": take,
        "since_s": times_s - (ends - [len(each.wave) for each in takes])[take] / RATE_HZ,
        "truth": truth_of(takes)[take],
        "probabilities": probabilities,
        "emitted": emitted,
    }


def _clip_figures(report: SessionReport, decisions: Sequence[Decision]) -> dict[str, Any]:
    outputs = [decision.outputs[OUTPUT] for decision in decisions]
    emitted = [output.label for output in outputs]
    counts = Counter(label for label in emitted if label is not None)
    present = [name for d in decisions for name, share in d.modalities.items() if share.present]
    return {
        "fronts": report.summary["fronts"],
        "decisions": len(decisions),
        "decisions_on": Counter(present),
        "decisions_on_nothing": emitted.count(None),
        "label": max(counts, key=counts.__getitem__, default=None),
        "shares": {label: count / counts.total() for label, count in counts.items()},
        "changes_per_minute": _changes_per_minute(emitted),
        "momentary_changes_per_minute": _changes_per_minute(
            [output.momentary_label for output in outputs]
        ),
        "problem": report.problem,
        "ledger_balanced": report.summary["ledger_balanced"],
    }


def _changes_per_minute(labels: Sequence[str | None]) -> float:
    """How often a label follows another one over all the time of a session, pauses left out."""
    numbers = np.array([NOTHING if label is None else LABELS.index(label) for label in labels])
    return label_changes(numbers) * DECISION_RATE_HZ * 60 / max(1, len(labels))
