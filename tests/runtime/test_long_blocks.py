"""Sound is used whole, however long the blocks in which a microphone hands it over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.microphone import Block, Stamps
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.memory import MemorySink
from fusedge.runtime.sound_stream import RECENT_BLOCKS, USUAL_BLOCK_S, SoundStream
from tests.media_bundle import write_media_bundle
from tests.runtime.front_parts import SOUND_HZ, write_fronted_bundle
from tests.runtime.streams import MS
from tests.runtime.streams import run as run_stream
from tests.runtime.test_sound_stream import block, skew_ms, sound

LENGTH_S = 20.0
LATE_MS = 30  # of a block after its capture, at most: that of a microphone, see Microphone


@pytest.fixture(scope="module", params=["plain", "speech"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / request.param
    opened: Bundle = (
        write_media_bundle(path) if request.param == "plain" else write_fronted_bundle(path)
    )
    return opened


class SlowMicrophone:
    """Loud sound in blocks of `block_ms`, stamped as a microphone's are, by a card that is 100 ppm fast."""

    live = False
    uri = "device:"
    warnings = ()
    modalities = ("sound",)
    channels = {"sound": ("m",)}  # noqa: RUF012
    units: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def __init__(self, block_ms: int, begin_ms: float) -> None:
        self._count = block_ms * SOUND_HZ // 1000
        self._begin_s = 50 + begin_ms / 1000

    def samples(self) -> Iterator[Sample | Rejection]:
        random, stamps, now_s = np.random.default_rng(0), Stamps(SOUND_HZ), 0.0
        data = np.tile(np.array([[0.4], [-0.4]], np.float32), (self._count // 2, 1))
        for number in range(round(LENGTH_S * SOUND_HZ) // self._count):
            end_s = self._begin_s + (number + 1) * self._count / SOUND_HZ / 1.0001
            now_s = max(now_s, end_s + random.uniform(0.002, LATE_MS / 1000))
            adc_s = end_s - self._count / SOUND_HZ
            item = Block(data, adc_s, now_s, to_ns(now_s), False, 0)
            stamp_ns, kind, _ = stamps.place(item)
            yield Sample("sound", stamp_ns, item.arrival_ns, data, kind)

    def close(self) -> None:
        pass


def hear(
    bundle: Bundle, block_ms: int, begin_ms: float = 0
) -> tuple[list[Any], SessionReport, list[str]]:
    """The decisions, the report, and what was said meanwhile."""
    sink, notices = MemorySink(), list[str]()
    session = Session(
        bundle,
        ["device:"],
        VirtualClock(),
        open_uri=lambda *_: SlowMicrophone(block_ms, begin_ms),
    )
    report = run(session, [sink], notice=notices.append)
    return sink.decisions, report, notices


@pytest.mark.parametrize("begin_ms", [0, 37, 130])
@pytest.mark.parametrize("block_ms", [10, 20, 50, 100, 150, 200, 320])
def test_no_sound_is_lost(bundle: Bundle, block_ms: int, begin_ms: float) -> None:
    decisions, report, _ = hear(bundle, block_ms, begin_ms)
    ledger = report.summary["ledger"]["sound"]
    window = bundle.manifest.modality("sound").window_samples
    # Of the first window and the last one; how long blocks are is not known before the first whole one.
    assert set(ledger["dropped"]) <= {"incomplete_window", "superseded", "late"}
    assert sum(ledger["dropped"].values()) < window
    assert ledger["used"] > ledger["received"] - window - ledger["in_flight"]
    assert ledger["in_flight"] < SOUND_HZ and report.summary["ledger_balanced"]
    assert not report.problem
    present = [decision.modalities["sound"].present for decision in decisions]
    assert all(present[present.index(True) :]) and present.index(True) < 8


def test_decisions_on_short_blocks_wait_for_no_longer_than_the_manifest_says(
    bundle: Bundle,
) -> None:
    for block_ms in (10, 20):
        decisions, _, _ = hear(bundle, block_ms)
        ages = {decision.modalities["sound"].age_s for decision in decisions[8:]}
        assert ages == {0.25}  # the windows of a tick's time are due 0.1 or 0.25 s after it


def test_blocks_too_long_to_be_used_in_time_are_told_of(bundle: Bundle) -> None:
    _, report, notices = hear(bundle, 1000)
    assert set(report.summary["ledger"]["sound"]["dropped"]) == {"block_too_long"}
    assert report.summary["ledger_balanced"] and "not one sample" in report.problem
    (said,) = [line for line in notices if line.startswith("modality sound")]
    most = re.search(r"blocks too long to be used within 1 s: .* at most (0\.\d+) s at once", said)
    assert most is not None and "\n" not in said
    # Even if some of it can be used, what a front end gives first, the session says that the rest cannot.
    longest_ms = int(1000 * float(most[1]))
    assert not hear(bundle, longest_ms - 10)[1].problem
    _, report, _ = hear(bundle, longest_ms + 10)
    assert "blocks too long" in report.problem or "not one sample" in report.problem


def test_windows_wait_for_long_blocks_only_while_there_are_such() -> None:
    stream = SoundStream(sound())
    usual_ns = stream.delay_ns
    end_ms = 0

    def push(count: int, times: int) -> None:
        nonlocal end_ms
        for _ in range(times):
            end_ms += count
            stream.push(block(end_ms, np.ones(count)))

    push(20, 3)
    assert stream.delay_ns == usual_ns and stream.due_ns == usual_ns
    push(200, 1)
    assert stream.delay_ns == stream.due_ns == usual_ns + to_ns(0.2 - USUAL_BLOCK_S)
    push(20, RECENT_BLOCKS - 1)
    assert stream.delay_ns == usual_ns + to_ns(0.2 - USUAL_BLOCK_S)
    push(20, 1)
    assert stream.delay_ns == stream.due_ns == usual_ns


@pytest.mark.parametrize("block_ms", [20, 200])
def test_long_blocks_are_placed_in_time_as_short_ones(block_ms: int) -> None:
    random = np.random.default_rng(3)
    times_ms = np.arange(1, 40_001) / (1 + 200e-6)
    blocks = [
        block(times_ms[end - 1] + random.uniform(0, 8), times_ms[end - block_ms : end])
        for end in range(block_ms, len(times_ms) + 1, block_ms)
    ]
    windows = run_stream(SoundStream(sound()), blocks, 39_000)
    late = np.abs(skew_ms([w for w in windows if w.end_ns > 20_000 * MS]))
    assert np.nanmax(late) < 2 and not np.isnan(late).any()
