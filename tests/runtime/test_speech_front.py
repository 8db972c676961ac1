"""Sound comes out as it went in where somebody speaks, and as not measured elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fusedge.bundle.errors import BundleError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.runtime.front.sighting import KEPT, Sightings, SpeechHeard
from fusedge.runtime.front.speech_front import HANGOVER_S, PREROLL_S, SpeechFront, SpeechTally
from fusedge.runtime.front.voice_activity import VoiceActivity
from fusedge.runtime.sound_stream import SoundStream
from tests.runtime.front_parts import (
    CONTEXT,
    SOUND_HZ,
    STEP,
    LoudnessDetector,
    speech_modality,
    speech_part,
)
from tests.runtime.streams import run

Items = list[Sample | Rejection]


class Bench:
    """A front end over a detector that takes loud sound for speech, and what it has heard."""

    def __init__(self, **changes: Any) -> None:
        self.tally, self.sightings = SpeechTally(SOUND_HZ), Sightings()
        self.backend = LoudnessDetector()
        activity = VoiceActivity(speech_part(), self.backend.run, SOUND_HZ)
        self.front = SpeechFront(speech_modality(**changes), activity, self.tally, self.sightings)

    def give(self, items: Sequence[Sample | Rejection], *, end: bool = True) -> Items:
        """All that comes out."""
        out = [made for item in items for made in self.front.take(item)]
        if end:
            out += self.front.end(items[-1].arrival_ns)
        arrivals = [item.arrival_ns for item in out]
        assert arrivals == sorted(arrivals)
        return out


def blocks(
    sound: NDArray[np.float32], lengths: Sequence[int] = (20,), begin_s: float = 0.0
) -> list[Sample]:
    """Sound `[N, C]` in blocks of these lengths in turn, stamped with their last sample, 10 ms late."""
    made: list[Sample] = []
    at = 0
    while at < len(sound):
        block = sound[at : at + lengths[len(made) % len(lengths)]]
        at += len(block)
        stamp_ns = to_ns(begin_s + at / SOUND_HZ)
        made.append(Sample("sound", stamp_ns, stamp_ns + to_ns(0.01), block))
    return made


def spoken(*spans_s: tuple[float, float], length_s: float = 6.0) -> NDArray[np.float32]:
    """Sound that is loud in the spans, and else nearly still."""
    time_s = np.arange(round(length_s * SOUND_HZ)) / SOUND_HZ
    loud = np.zeros(len(time_s), bool)
    for begin_s, end_s in spans_s:
        loud |= (time_s >= begin_s) & (time_s < end_s)
    sign = np.where(np.arange(len(time_s)) % 2, 1, -1)
    return (sign * np.where(loud, 0.3, 0.001)).astype(np.float32)[:, None]


def joined(items: Items) -> NDArray[np.float32]:
    return np.concatenate([item.data for item in items if isinstance(item, Sample)])


def spans_s(out: NDArray[np.float32]) -> list[tuple[float, float]]:
    """Where sound came out."""
    there = np.isfinite(out[:, 0]).astype(int)
    edges = np.flatnonzero(np.diff(there, prepend=0, append=0))
    return [(a / SOUND_HZ, b / SOUND_HZ) for a, b in edges.reshape(-1, 2).tolist()]


def test_what_is_said_comes_out_with_a_little_before_and_after_it() -> None:
    sound = spoken((1.0, 2.0), (4.0, 4.5))
    out = joined(Bench().give(blocks(sound)))
    assert len(out) == len(sound)
    step_s = STEP / SOUND_HZ
    for (begin_s, end_s), (said_s, silent_s) in zip(
        spans_s(out), [(1.0, 2.0), (4.0, 4.5)], strict=True
    ):
        assert said_s - PREROLL_S - step_s <= begin_s <= said_s - PREROLL_S + step_s
        assert silent_s + HANGOVER_S - step_s <= end_s <= silent_s + HANGOVER_S + step_s
    heard = np.isfinite(out)
    np.testing.assert_array_equal(out[heard], sound[heard])


def test_a_pause_within_a_sentence_is_part_of_it() -> None:
    out = joined(Bench().give(blocks(spoken((1.0, 1.5), (1.8, 2.3)))))
    assert len(spans_s(out)) == 1


def test_samples_keep_their_times_and_come_out_in_blocks_as_long_as_they_went_in() -> None:
    lengths = (7, 50, 333, 1)
    given_blocks = blocks(spoken((1.0, 2.0)), lengths)
    bench = Bench()
    delay = round(bench.front.delay_s * SOUND_HZ)
    came = 0
    for item in given_blocks:
        came += len(item.data)
        out = [made for made in bench.front.take(item) if isinstance(made, Sample)]
        if came - len(item.data) >= delay:
            assert [len(made.data) for made in out] == [len(item.data)]
        assert [made.timestamp_ns for made in out] == [to_ns((came - delay) / SOUND_HZ)] * len(out)
    rest = list(bench.front.end(item.arrival_ns))
    assert sum(len(made.data) for made in rest) == delay
    assert max(len(made.data) for made in rest) <= max(lengths)
    assert rest[-1].timestamp_ns == given_blocks[-1].timestamp_ns
    assert {made.stamp for made in rest} == {"capture"}


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    spans=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=4),
)
def test_how_sound_is_cut_into_blocks_does_not_matter(
    lengths: list[int], spans: list[tuple[int, int]]
) -> None:
    sound = spoken(*((a / 10, (a + n) / 10) for a, n in spans), length_s=4.0)
    bench, other = Bench(), Bench()
    np.testing.assert_array_equal(
        joined(bench.give(blocks(sound, lengths))), joined(other.give(blocks(sound, (STEP,))))
    )
    assert bench.tally == other.tally


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    begin_s=st.floats(0.2, 2.0),
)
def test_no_sample_waits_longer_than_it_is_said(lengths: list[int], begin_s: float) -> None:
    bench = Bench()
    came = gone = 0
    for item in blocks(spoken((begin_s, begin_s + 0.7), length_s=3.0), lengths):
        came += len(item.data)
        for out in bench.front.take(item):
            assert isinstance(out, Sample) and out.arrival_ns == item.arrival_ns
            gone += len(out.data)
        assert came - gone <= bench.front.delay_s * SOUND_HZ


def test_a_modality_that_does_not_wait_for_what_is_looked_ahead_is_refused() -> None:
    Bench(lateness_s=0.148)
    with pytest.raises(
        BundleError, match=r"lateness_s is 0\.147, and what finds speech looks 0\.128 s"
    ):
        Bench(lateness_s=0.147)


def test_the_detector_hears_all_without_a_gap_and_a_little_of_what_was_before() -> None:
    bench = Bench()
    sound = spoken((1.0, 2.0))
    bench.give(blocks(sound, (7, 50)))
    heard = bench.backend.heard
    assert len(heard) == len(sound) // STEP
    new = np.concatenate([step[CONTEXT:] for step in heard])
    np.testing.assert_array_equal(new, sound[: len(new), 0])
    for before, after in pairwise(heard):
        np.testing.assert_array_equal(after[:CONTEXT], before[-CONTEXT:])


def test_a_gap_lets_all_that_waits_out_and_begins_anew() -> None:
    bench = Bench()
    first, later = (
        blocks(spoken((0.0, 2.0), length_s=0.99)),
        blocks(spoken(length_s=1.0), begin_s=5.0),
    )
    out = bench.give([*first, *later])
    before: Items = [i for i in out if isinstance(i, Sample) and i.timestamp_ns < to_ns(5)]
    assert spans_s(joined(before)) == [(0.0, 0.99)]
    assert len(joined(before)) == 990 and before[-1].timestamp_ns == first[-1].timestamp_ns  # type: ignore[union-attr]
    assert spans_s(joined(out[len(before) :])) == []
    resets = [step for step in bench.backend.heard if not step[:CONTEXT].any()]
    assert len(resets) == 2


def test_sound_that_was_refused_is_a_gap_and_stays_in_the_account() -> None:
    bench = Bench()
    first, later = blocks(spoken((0.0, 2.0), length_s=0.99)), blocks(spoken(length_s=1), begin_s=1)
    lost = Rejection("sound", first[-1].arrival_ns, "overflow", "", 10)
    out = bench.give([*first, lost, *later])
    at = out.index(lost)
    assert len(joined(out[:at])) == 990 and len(joined(out[at:])) == 1000


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((0, 1), np.float32),
        np.zeros((5, 2), np.float32),
        np.zeros(5, np.float32),
        np.zeros((5, 1), np.float64),
        np.zeros((20_000, 1), np.float32),
    ],
)
def test_what_is_no_sound_passes_to_be_counted(data: NDArray[Any]) -> None:
    odd = Sample("sound", to_ns(3), to_ns(3), data)
    out = Bench().give([*blocks(spoken(length_s=1.0)), odd])
    assert out[-1] is odd


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 5.0])
def test_sound_that_is_no_number_does_not_deafen_for_ever(value: float) -> None:
    sound = spoken((3.0, 4.0))
    sound[1000:1100] = value
    out = joined(Bench().give(blocks(sound)))
    assert any(begin_s < 3.0 < 4.0 < end_s for begin_s, end_s in spans_s(out))


def test_a_detector_that_gives_nan_once_goes_on() -> None:
    bench = Bench()

    def failing(feeds: dict[str, Any]) -> list[NDArray[Any]]:
        assert np.isfinite(feeds["state"]).all()
        state, chance = LoudnessDetector().run(feeds)
        bad = np.float32(np.nan) if 10 < len(bench.backend.heard) < 15 else np.float32(0)
        bench.backend.heard.append(feeds["samples"][0])
        return [state + bad, chance + bad]

    bench.front._activity._run = failing
    assert spans_s(joined(bench.give(blocks(spoken((3.0, 4.0))))))[0][1] > 4.0


def test_several_channels_are_heard_as_their_mean_and_stay_apart() -> None:
    channels = speech_modality().channels
    two = (channels[0], channels[0].model_copy(update={"name": "right"}))
    sound = spoken((1.0, 2.0))
    stereo = np.concatenate([sound, 0.5 * sound], axis=1)
    out = joined(Bench(channels=two).give(blocks(stereo)))
    assert out.shape == stereo.shape
    heard = np.isfinite(out)
    assert heard.any() and (heard[:, 0] == heard[:, 1]).all()
    np.testing.assert_array_equal(out[heard], stereo[heard])


def test_an_hour_of_silence_gives_nothing_and_keeps_nothing() -> None:
    bench = Bench()
    still = np.zeros((200, 1), np.float32)
    came = 0
    bench.front._activity._run = lambda feeds: [feeds["state"], np.zeros((1, 1), np.float32)]
    for number in range(1, 5 * 3600 + 1):
        stamp_ns = number * NANOSECONDS // 5
        for item in bench.front.take(Sample("sound", stamp_ns, stamp_ns, still)):
            assert isinstance(item, Sample) and np.isnan(item.data).all()
            came += len(item.data)
    assert 3_600_000 - came <= 400
    assert len(bench.front._waiting) <= 2 and len(bench.front._voiced) <= 20
    assert len(bench.sightings._kept) == KEPT
    assert bench.tally.as_dict() == {"heard_s": 3600.0, "speech_s": 0.0}


def test_what_was_heard_can_be_asked_for() -> None:
    bench = Bench()
    bench.give(blocks(spoken((1.0, 2.0))))
    heard = bench.sightings.at(to_ns(1.5), to_ns(0.1))
    assert isinstance(heard, SpeechHeard) and heard.as_dict() == {"speech": 1.0}
    quiet = bench.sightings.at(to_ns(4), to_ns(0.1))
    assert isinstance(quiet, SpeechHeard) and quiet.probability < 0.1
    assert bench.sightings.at(to_ns(60), to_ns(1)) is None


def test_the_voice_lies_where_it_was_in_the_windows_also_after_long_silence() -> None:
    spec = speech_modality()
    sound = spoken((10.0, 11.0), (40.0, 41.0), length_s=45.0)
    items = [i for i in Bench().give(blocks(sound)) if isinstance(i, Sample)]
    whole = [w.end_ns / NANOSECONDS for w in run(SoundStream(spec), items, 44_000) if w.complete]
    for begin_s, end_s in ((10.0, 11.0), (40.0, 41.0)):
        near = [time_s for time_s in whole if begin_s - 1 < time_s < end_s + 2]
        assert begin_s <= near[0] <= begin_s + 0.25
        assert end_s + HANGOVER_S - 0.25 <= near[-1] <= end_s + HANGOVER_S + 0.25
    assert len(whole) <= 14


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": speech_part().inputs[1:]},
        {"inputs": speech_part().inputs[:1] * 2},
        {"outputs": speech_part().outputs[:1]},
        {"rate_hz": 10.0},
    ],
)
def test_a_part_that_hears_no_speech_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="tells no speech"):
        VoiceActivity(speech_part().model_copy(update=changes), LoudnessDetector().run, SOUND_HZ)
