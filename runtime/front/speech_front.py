"""The front end `speech`: sound in, the same sound out where somebody speaks, and nothing in between."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import BundleError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Rejection, Sample, size
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.runtime.front.sighting import Sightings, SpeechHeard
from fusedge.runtime.front.voice_activity import VoiceActivity
from fusedge.runtime.sound_stream import MAX_BLOCK_S, USUAL_BLOCK_S

BEGIN, END = 0.5, 0.35  # of the probability: speech begins at the one, and ends below the other …
HANGOVER_S = 0.4  # … for so long: pauses between words
PREROLL_S = 0.1  # of sound before the step in which speech was heard: it takes a syllable's start
GAP_NS = to_ns(0.1)  # of stamps, beyond which sound does not go on from what was before


@dataclass
class SpeechTally:
    """How much sound there was in a session, and how much of it was speech."""

    rate_hz: float
    heard: int = 0
    given: int = 0

    @property
    def fruitless(self) -> bool:
        """Whether there was something to hear, and nobody spoke."""
        return self.heard > 0 and not self.given

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "heard_s": round(self.heard / self.rate_hz, 3),
            "speech_s": round(self.given / self.rate_hz, 3),
        }


class SpeechFront:
    """Contract: sound comes out as it went in, `delay_s` later. For each block (float32
    `[samples, channels]`) a block comes out that is as long, of samples that keep the times their own
    blocks' stamps gave them. It is NaN, which is "not measured", where nobody speaks: sound is placed in
    time by counting samples, so that none may be left out. Speech begins PREROLL_S before the step whose
    probability reaches BEGIN, and ends when it has been below END for HANGOVER_S.

    `delay_s` is what it looks ahead: a step, and PREROLL_S. Before a gap all that waits comes out, and the
    detector begins anew. Raises BundleError where the modality's `lateness_s` does not allow for
    `delay_s` and a usual block.
    """

    def __init__(
        self, spec: Modality, activity: VoiceActivity, tally: SpeechTally, sightings: Sightings
    ) -> None:
        self._spec, self._activity = spec, activity
        self._tally, self._sightings = tally, sightings
        step_s = activity.step / spec.rate_hz
        self._preroll = round(PREROLL_S / step_s)
        self._hangover = math.ceil(HANGOVER_S / step_s)
        self._delay = (self._preroll + 1) * activity.step  # samples
        self.delay_s = self._delay / spec.rate_hz
        if spec.lateness_s < self.delay_s + USUAL_BLOCK_S:
            raise BundleError(
                f"modality {spec.name}: lateness_s is {spec.lateness_s:g}, and what finds speech looks "
                f"{self.delay_s:.3g} s ahead in blocks of {USUAL_BLOCK_S:g} s",
                hint=f"lateness_s {self.delay_s + 5 * USUAL_BLOCK_S:.2g} leaves time for the device too",
            )
        self._max_block = round(MAX_BLOCK_S * spec.rate_hz)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._activity.reset()
        self._quiet = self._hangover  # steps below END in a row
        self._waiting: deque[Sample] = deque()  # the first without what has come out of it
        self._held = 0  # samples in them
        self._passed = 0  # samples that have come out
        self._voiced: deque[bool] = (
            deque()
        )  # of the steps from `_first` on: whether somebody speaks
        self._first = 0
        self._rest = np.zeros(0, np.float32)  # sound of the step that is not whole yet
        self._end_ns: int | None = None

    def take(self, item: Sample | Rejection) -> Iterator[Sample | Rejection]:
        """What a block of sound lets go of. Where sound was refused there is a gap."""
        whole = isinstance(item, Sample) and self._is_sound(item)
        if not whole or self._is_gap(item):
            yield from self.end(item.arrival_ns)
        if not isinstance(item, Sample) or not whole:
            yield item
            return
        self._waiting.append(item)
        self._held += size(item)
        self._end_ns = item.timestamp_ns
        self._tally.heard += size(item)
        self._listen(item)
        if self._held > self._delay:
            yield self._out(self._held - self._delay, item.arrival_ns)

    def end(self, arrival_ns: int) -> Iterator[Sample]:
        """All that waits, for no more sound will follow it."""
        known = self._first + len(self._voiced)
        steps = -(-(self._passed + self._held) // self._activity.step)
        self._voiced += [self._speaking] * (steps - known)
        while self._waiting:
            yield self._out(size(self._waiting[0]), arrival_ns)
        self._begin_anew()

    @property
    def _speaking(self) -> bool:
        return self._quiet < self._hangover

    def _is_sound(self, sample: Sample) -> bool:
        data, channels = sample.data, len(self._spec.channels)
        return (
            data.dtype == np.float32
            and data.ndim == 2
            and data.shape[1] == channels
            and 0 < len(data) <= self._max_block
        )

    def _is_gap(self, item: Sample | Rejection) -> bool:
        """Whether a block does not begin where the one before has ended."""
        if self._end_ns is None or not isinstance(item, Sample):
            return False
        length_ns = round(size(item) * NANOSECONDS / self._spec.rate_hz)
        return abs(item.timestamp_ns - length_ns - self._end_ns) > GAP_NS

    def _listen(self, block: Sample) -> None:
        """Take the steps that are whole now."""
        step = self._activity.step
        with np.errstate(all="ignore"):  # what is not finite is the detector's to leave out
            sound = np.concatenate([self._rest, block.data.mean(axis=1)], dtype=np.float32)
        whole = len(sound) - len(sound) % step
        for begin in range(0, whole, step):
            chance = self._activity.probability(sound[begin : begin + step])
            before = self._speaking
            goes_on = chance >= BEGIN or (before and chance >= END)
            self._quiet = 0 if goes_on else min(self._quiet + 1, self._hangover)
            self._voiced.append(self._speaking)
            if self._speaking and not before:
                for back in range(2, 2 + min(self._preroll, len(self._voiced) - 1)):
                    self._voiced[-back] = True
            self._sightings.add(SpeechHeard(block.arrival_ns, chance))
        self._rest = sound[whole:]

    def _out(self, count: int, arrival_ns: int) -> Sample:
        """The next `count` samples, of which it is known whether somebody speaks, as one block."""
        pieces: list[NDArray[np.float32]] = []
        missing = count
        while missing:
            block = self._waiting.popleft()
            pieces.append(block.data[:missing])
            rest = block.data[missing:]
            missing -= len(pieces[-1])
            if len(rest):
                self._waiting.appendleft(block._replace(data=rest))
        stamp_ns = block.timestamp_ns - round(len(rest) * NANOSECONDS / self._spec.rate_hz)
        data = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        spoken = self._next_spoken(count)
        self._tally.given += int(spoken.sum())
        if not spoken.all():
            data = np.where(spoken[:, None], data, np.float32(np.nan))
        return block._replace(
            timestamp_ns=stamp_ns, arrival_ns=max(arrival_ns, block.arrival_ns), data=data
        )

    def _next_spoken(self, count: int) -> NDArray[np.bool_]:
        """Whether somebody speaks in the next samples, bool `[count]`; they have come out with that."""
        step, first = self._activity.step, self._first
        begin = self._passed - first * step
        steps = list(islice(self._voiced, -(-(begin + count) // step)))
        self._held -= count
        self._passed += count
        self._first = self._passed // step
        for _ in range(self._first - first):
            self._voiced.popleft()
        return np.repeat(np.array(steps), step)[begin : begin + count]
