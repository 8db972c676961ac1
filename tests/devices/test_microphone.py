"""Microphones: PortAudio and ALSA are real, the device is ALSA's plugin that gives a file.

It gives it as fast as it is asked; the injected clock sets the pace, since it is asked once a block.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import Modality
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.address import Request, parse
from fusedge.devices.capture.microphone import Block, Microphone, RateCheck, Stamps, open_microphone
from fusedge.devices.capture.source import SCHEMES
from tests.devices.modalities import audio, by_name

pytestmark = pytest.mark.real_time
try:
    import sounddevice as sd
except (ImportError, OSError) as error:
    pytest.skip(f"no PortAudio: {error}", allow_module_level=True)
if sys.platform != "linux":
    pytest.skip("ALSA is Linux's", allow_module_level=True)

# `default` keeps PortAudio 19.6 from an assertion that fails where all devices open and none has this name.
ALSA = """
pcm.null {{ type null }}
pcm.raw {{ type file, slave.pcm null, file /dev/null, infile {file}, format raw }}
pcm.tone {{ type plug, slave {{ pcm raw, format S16_LE, rate 48000, channels 2 }} }}
pcm.default {{ type plug, slave {{ pcm raw, format S16_LE, rate 48000, channels 2 }} }}
"""
LEFT_HZ, RIGHT_HZ, LEVEL = 1000, 3000, 0.5


@pytest.fixture(scope="module", autouse=True)
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """PortAudio with the devices above: a file with 60 s of another tone on either channel."""
    folder = tmp_path_factory.mktemp("alsa")
    phase = 2 * np.pi * np.arange(48_000) / 48_000
    second = LEVEL * np.stack([np.sin(LEFT_HZ * phase), np.sin(RIGHT_HZ * phase)], axis=1)
    (folder / "in.raw").write_bytes((second * 32767).astype("<i2").tobytes() * 60)
    (folder / "alsa.conf").write_text(ALSA.format(file=folder / "in.raw"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALSA_CONFIG_PATH", str(folder / "alsa.conf"))
        start_portaudio()
        yield
        sd._terminate()
    sd._initialize()


def start_portaudio() -> None:
    sd._terminate()
    sd._initialize()


class Pace:
    """A clock that goes on by a block when it is asked, 20 times as fast as the machine's at most."""

    def __init__(self, block_s: float = 0.02) -> None:
        self.block_ns, self.ns, self.asked = to_ns(block_s), 10**12, 0
        self.running = threading.Event()
        self.running.set()

    def now_ns(self) -> int:
        time.sleep(0.001)
        self.running.wait(20)
        self.asked += 1
        self.ns += self.block_ns
        return self.ns


def wanted(rate_hz: float = 16_000, channels: int = 1) -> dict[str, Modality]:
    return by_name(audio("sound", rate_hz, channels))


def opened(
    uri: str, want: dict[str, Modality] | None, now_ns: Callable[[], int] | None = None
) -> Microphone:
    return open_microphone(Request(parse(uri, SCHEMES), want, now_ns or Pace().now_ns))


def heard(source: Microphone, count: int) -> list[Sample]:
    """The first samples, from which the source is closed."""
    samples: list[Sample] = []
    for item in source.samples():
        assert isinstance(item, Sample), item
        samples.append(item)
        if len(samples) == count:
            break
    source.close()
    return samples


def tones(samples: list[Sample], rate_hz: float) -> list[tuple[float, float]]:
    """Frequency and level of the strongest tone of each channel."""
    sound = np.concatenate([sample.data for sample in samples])[round(rate_hz / 10) :]
    window = np.hanning(len(sound))
    spectra = np.abs(np.fft.rfft(sound * window[:, None], axis=0))
    peaks = spectra.argmax(axis=0)
    levels = 2 * spectra.max(axis=0) / window.sum()
    return [(p * rate_hz / len(sound), level) for p, level in zip(peaks, levels, strict=True)]


def test_sound_comes_resampled_to_the_modality_in_blocks_without_a_gap() -> None:
    source = opened("mic:tone?channels=1", wanted())
    assert source.modalities == ("sound",) and source.channels == {"sound": ("channel_0",)}
    assert source.live and source.uri == "mic:tone?channels=1" and source.warnings == ()
    samples = heard(source, 60)
    for sample in samples:
        assert sample.modality == "sound" and sample.data.dtype == np.float32
        assert sample.data.shape[1] == 1 and sample.timestamp_ns <= sample.arrival_ns
    assert all(a.arrival_ns <= b.arrival_ns for a, b in pairwise(samples))
    ((frequency_hz, level),) = tones(samples, 16_000)
    assert frequency_hz == pytest.approx(LEFT_HZ, abs=1)
    assert level == pytest.approx(LEVEL, rel=0.02)


def test_everything_is_recorded_as_the_device_has_it() -> None:
    source = opened("mic:default", None)
    assert source.channels == {"microphone": ("sound",)}
    samples = heard(source, 60)
    assert {sample.data.shape for sample in samples} == {(960, 1)}  # 20 ms of its own 48 kHz
    assert tones(samples, 48_000)[0][0] == pytest.approx(LEFT_HZ, abs=1)


def test_one_channel_is_the_mean_of_two() -> None:
    samples = heard(opened("mic:tone", wanted(48_000)), 50)
    assert tones(samples, 48_000)[0][1] == pytest.approx(LEVEL / 2, rel=0.02)


@pytest.mark.parametrize(
    ("channels", "count", "expected_hz"),
    [
        ("2", 1, [RIGHT_HZ]),
        ("2,1", 2, [RIGHT_HZ, LEFT_HZ]),
        (None, 2, [LEFT_HZ, RIGHT_HZ]),
    ],
)
def test_channels_are_picked_by_number(
    channels: str | None, count: int, expected_hz: list[float]
) -> None:
    uri = "mic:tone" + (f"?channels={channels}" if channels else "")
    found = tones(heard(opened(uri, wanted(48_000, count)), 50), 48_000)
    assert [frequency_hz for frequency_hz, _ in found] == pytest.approx(expected_hz, abs=2)
    assert [level for _, level in found] == pytest.approx([LEVEL] * len(found), rel=0.02)


def test_all_picked_channels_are_recorded_under_their_numbers() -> None:
    source = opened("mic:tone?channels=1,2&modality=cabin&block_ms=10&rate=44100", None)
    assert source.channels == {"cabin": ("sound_1", "sound_2")}
    assert heard(source, 2)[0].data.shape == (441, 2)


@pytest.mark.parametrize(
    ("uri", "count", "line"),
    [
        (
            "mic:tone?channels=0",
            1,
            "channels=0 are no channels (as channels=1 or channels=1,2)",
        ),
        ("mic:tone?channels=1,", 1, "channels=1, are no channels"),
        ("mic:tone?channels=%C2%B2", 1, "channels=² are no channels"),
        ("mic:tone?channels=1,2", 3, "channels= names 2 channels, 3 are wanted"),
        ("mic:tone?channels=900", 1, "has 128 channels, and 900 are asked for"),
        ("mic:tone?rate=fast", 1, "rate=fast is not a number from 1000 to 768000"),
        ("mic:tone?rate=768000", 1, "tone does not capture at 768000 Hz (it does at 48000"),
        ("mic:tune", 1, "no device tune (did you mean tone?)"),
        ("mic:77", 1, "no device 77 (there is raw, tone, default)"),
        ("mic:" + 5000 * "9", 1, "no device 999"),
    ],
)
def test_what_cannot_be_opened_is_said_in_a_line(uri: str, count: int, line: str) -> None:
    threads = threading.active_count()
    with pytest.raises(FusedgeError, match=r"^mic:") as failure:
        opened(uri, wanted(channels=count))
    assert line in str(failure.value)
    assert threading.active_count() == threads


def test_a_modality_that_is_no_sound_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sound'"):
        opened("mic:tone?modality=sund", wanted())


def test_opening_and_closing_leaves_nothing_behind() -> None:
    def once(number: int) -> None:
        source = opened("mic:tone", wanted(), Pace().now_ns)
        if number % 3:
            heard(source, 1)
        source.close()

    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    for number in range(20):
        once(number)
    before, before_kib = held(), memory_kib()
    for number in range(200):
        once(number)
    assert held() == before
    assert memory_kib() - before_kib < 4000  # 20 KiB each


def memory_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def test_close_ends_a_wait_at_once_and_may_come_twice() -> None:
    pace = Pace()
    source = opened("mic:tone", wanted(48_000), pace.now_ns)
    items: list[object] = []
    reader = threading.Thread(target=lambda: items.extend(source.samples()))
    reader.start()
    while not items:
        time.sleep(0.01)
    pace.running.clear()
    time.sleep(0.15)  # the reader has taken all there is
    closer = threading.Thread(target=source.close)
    closer.start()
    reader.join(0.2)
    ended = not reader.is_alive()
    pace.running.set()
    closer.join(5)
    assert ended
    source.close()
    assert list(source.samples()) == []


def test_close_before_reading_ends_it() -> None:
    source = opened("mic:tone", wanted())
    source.close()
    assert list(source.samples()) == []


def test_what_finds_the_queue_full_is_counted_to_the_sample() -> None:
    pace = Pace()
    source = opened("mic:tone", wanted(24_000), pace.now_ns)
    kept = lost = 0
    lost_first: list[int] = []
    for number, item in enumerate(source.samples()):
        if isinstance(item, Rejection):
            assert (item.modality, item.reason) == ("sound", "overflow")
            lost += item.samples
            lost_first.append(number)
        else:
            kept += len(item.data)
        if number == 5:  # stand still for 180 blocks: 80 more than are kept waiting
            until = pace.asked + 180
            while pace.asked < until:
                time.sleep(0.01)
        if number > 80:
            received = (item.arrival_ns - 10**12) // pace.block_ns * 480
            break
    assert 70 * 480 < lost < 110 * 480 and len(lost_first) == 1
    assert 0 <= received - lost - kept < 1000  # what the resampler still holds


def test_a_rate_that_was_not_announced_is_said() -> None:
    source = opened("mic:tone", wanted(), Pace(960 / 44_100).now_ns)
    began_ns = 10**12
    last_ns = 0
    with pytest.raises(FusedgeError) as failure:
        for item in source.samples():
            last_ns = item.arrival_ns
    assert str(failure.value) == (
        "mic:tone: tone gives 44,100 samples a second, not 48,000 as announced "
        "(say its true rate: rate=44100)"
    )
    assert (last_ns - began_ns) / NANOSECONDS < 10


def test_a_device_that_falls_silent_raises_within_a_second() -> None:
    pace = Pace()
    source = opened("mic:tone", wanted(), pace.now_ns)
    with pytest.raises(FusedgeError, match=r"^mic:tone: tone is silent \(it may be unplugged\)$"):
        for number, _ in enumerate(source.samples()):
            if number == 3:
                pace.running.clear()
                threading.Timer(1.0, pace.running.set).start()
                began = time.monotonic()
    assert time.monotonic() - began < 1.2


def test_a_stream_that_ends_by_itself_raises() -> None:
    source = opened("mic:tone", wanted())
    with pytest.raises(FusedgeError, match="tone has ended"):
        for number, _ in enumerate(source.samples()):
            if number == 3:
                source._stream.abort()  # as PortAudio does with a card that fails


def test_no_microphone_at_all_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = tmp_path / "alsa.conf"
    empty.write_text("pcm.null { type null }\npcm.default { type hw, card 99 }")
    monkeypatch.setenv("ALSA_CONFIG_PATH", str(empty))
    start_portaudio()
    try:
        for target in ("default", "auto", "0", "headset"):
            with pytest.raises(FusedgeError, match=r"no microphone found|no permission for"):
                opened(f"mic:{target}", wanted())
    finally:
        monkeypatch.undo()
        start_portaudio()


SCRIPT = """
import sys
{before}
from fusedge.devices.capture.address import Request, parse
from fusedge.devices.capture.microphone import open_microphone
from fusedge.devices.capture.source import SCHEMES
from tests.devices.modalities import audio, by_name
try:
    open_microphone(Request(parse("mic:default", SCHEMES), None, int))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("before", "line"),
    [
        (
            "import ctypes.util; ctypes.util.find_library = lambda name: None",
            "FusedgeError PortAudio library not found (sudo apt-get install libportaudio2)",
        ),
        (
            "sys.modules['sounddevice'] = None",
            "MissingExtraError a microphone needs the package 'sounddevice', "
            "which is not installed (pip install 'fusedge[mic]')",
        ),
    ],
)
def test_a_missing_library_is_said(before: str, line: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(before=before)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.strip() == line


RATE_HZ, FRAMES = 48_000, 960
BLOCK_S = FRAMES / RATE_HZ


def blocks(
    count: int,
    *,
    begin_s: float = 1000.0,
    base_s: float = 0.0,
    delay_s: float = 0.004,
    late_s: Callable[[int], float] = lambda number: 0.0,
) -> Iterator[Block]:
    """What PortAudio gives for a device that stands `base_s` from the session's clock and calls at once."""
    data = np.zeros((FRAMES, 1), np.float32)
    for number in range(count):
        end_s = begin_s + (number + 1) * BLOCK_S
        now_s = end_s + delay_s
        arrival_ns = to_ns(now_s + late_s(number))
        yield Block(data, base_s + end_s - BLOCK_S, base_s + now_s, arrival_ns, False, 0)


@pytest.mark.parametrize("base_s", [0.0, 1.7e9, -900.0])
def test_stamps_are_the_capture_on_whatever_clock_it_is_told(base_s: float) -> None:
    """Also while Python is late to look, by anything up to 30 ms."""
    stamps = Stamps(RATE_HZ)
    late_s = np.random.default_rng(1).uniform(0, 0.03, 200)
    late_s[0] = 0
    for number, block in enumerate(blocks(200, base_s=base_s, late_s=lambda n: late_s[n])):
        stamp_ns, kind, missed = stamps.place(block)
        truth_ns = to_ns(1000 + (number + 1) * BLOCK_S)
        assert kind == "capture" and missed == 0
        assert stamp_ns == pytest.approx(truth_ns, abs=1000)


@pytest.mark.parametrize(
    "broken",
    [
        lambda block, first: block._replace(adc_s=0.0),
        lambda block, first: block._replace(adc_s=0.0, now_s=0.0),
        lambda block, first: block._replace(adc_s=first.adc_s),  # stands still
        lambda block, first: block._replace(adc_s=block.now_s),  # in the future
        lambda block, first: block._replace(adc_s=block.now_s - 5),
        lambda block, first: block._replace(adc_s=float("nan")),
        lambda block, first: block._replace(adc_s=float("inf"), now_s=float("inf")),
    ],
)
def test_capture_times_that_cannot_be_are_not_believed(
    broken: Callable[[Block, Block], Block],
) -> None:
    stamps, given = Stamps(RATE_HZ), list(blocks(100))
    stamps.place(given[0])
    for block in given[1:]:
        assert stamps.place(broken(block, given[0])) == (block.arrival_ns, "arrival", 0)


def test_a_clock_that_leaps_is_followed() -> None:
    """PortAudio may take the time of day, which is set now and then."""
    stamps = Stamps(RATE_HZ)
    before = list(blocks(50))
    after = list(blocks(50, begin_s=1001, base_s=3600))
    placed = [stamps.place(block) for block in before + after]
    truths_ns = [to_ns(1000 + (number + 1) * BLOCK_S) for number in range(100)]
    for (stamp_ns, _, _), truth_ns in zip(placed, truths_ns, strict=True):
        assert 0 <= stamp_ns - truth_ns < to_ns(0.005)  # some have their arrival meanwhile
    assert placed[-1][0] == pytest.approx(truths_ns[-1], abs=1000)


def test_what_the_card_lost_is_told_by_the_time_that_is_missing() -> None:
    stamps = Stamps(RATE_HZ)
    for block in blocks(10):
        assert stamps.place(block)[2] == 0
    late = list(blocks(3, begin_s=1000.2 + 1.5))
    # PortAudio marks all that it hands over at once.
    handed = {"now_s": late[2].now_s, "arrival_ns": late[2].arrival_ns}
    marked = [block._replace(overflowed=True, **handed) for block in late]
    found = [stamps.place(block)[2] for block in marked]
    assert found[0] == pytest.approx(1.5 * RATE_HZ, abs=1) and found[1:] == [0, 0]


def test_what_the_queue_lost_is_not_counted_twice() -> None:
    stamps = Stamps(RATE_HZ)
    for block in blocks(10):
        stamps.place(block)
    late = next(blocks(1, begin_s=1000.2 + 1.5))._replace(overflowed=True, lost=10 * FRAMES)
    assert stamps.place(late)[2] == pytest.approx(1.5 * RATE_HZ - 10 * FRAMES, abs=1)


def test_a_loss_of_unknown_length_counts_as_one() -> None:
    stamps = Stamps(RATE_HZ)
    for block in blocks(3):
        assert stamps.place(block._replace(adc_s=0.0, overflowed=True))[2] == 1


class Fed:
    """A source whose callback is called as PortAudio does it, at times that no device here has."""

    def __init__(self, rate_hz: float) -> None:
        self.ns = 0
        self.source = opened("mic:tone", wanted(rate_hz), lambda: self.ns)

    def __enter__(self) -> Fed:
        return self

    def __exit__(self, *error: object) -> None:
        self.source.close()

    def feed(self, *given: Block) -> None:
        for block in given:
            self.ns = block.arrival_ns
            status = SimpleNamespace(input_overflow=block.overflowed)
            times = SimpleNamespace(inputBufferAdcTime=block.adc_s, currentTime=block.now_s)
            self.source._take(np.zeros((FRAMES, 2), np.float32), FRAMES, times, status)

    def items(self) -> list[Sample | Rejection]:
        self.source._finish()
        items: list[Sample | Rejection] = []
        with pytest.raises(FusedgeError, match="has ended"):
            items.extend(self.source._read())
        return items


def test_an_overflow_is_a_rejection_and_the_stamps_after_it_are_right() -> None:
    with Fed(48_000) as fed:
        fed.feed(*blocks(10), next(blocks(1, begin_s=1001))._replace(overflowed=True))
        items = fed.items()
    assert items[-2] == Rejection(
        "sound", fed.ns, "overflow_in_driver", "38400 samples lost", round(0.8 * RATE_HZ)
    )
    stamps_ns = [item.timestamp_ns for item in items if isinstance(item, Sample)]
    assert len(stamps_ns) == 11
    assert stamps_ns[0] == pytest.approx(to_ns(1000.02), abs=1000)
    assert stamps_ns[-1] == pytest.approx(to_ns(1001.02), abs=1000)


def test_stamps_allow_for_what_the_resampler_holds_back() -> None:
    with Fed(16_000) as fed:
        fed.feed(*blocks(60))
        items = fed.items()
    count = 0
    for item in items:
        assert isinstance(item, Sample)
        count += len(item.data)
        assert item.timestamp_ns == pytest.approx(to_ns(1000 + count / 16_000), abs=1000)
    assert count / 16_000 > 60 * BLOCK_S - 0.05


@pytest.mark.parametrize("where", ["the queue", "the card"])
def test_sound_that_is_lost_all_the_time_is_no_wrong_rate(where: str) -> None:
    with Fed(48_000) as fed:
        items = iter(fed.source._read())
        reasons = set()
        for turn in range(12):
            given = list(blocks(130, begin_s=1000 + 130 * BLOCK_S * turn))  # the queue takes 100
            if where == "the card":
                given = [given[30]._replace(overflowed=True), *given[31:]]
            fed.feed(*given)
            while not fed.source._queue.empty():
                item = next(items)
                if isinstance(item, Rejection):
                    reasons.add(item.reason)
    assert reasons == {"overflow" if where == "the queue" else "overflow_in_driver"}


@pytest.mark.parametrize("off", [0.03, -0.03, 1.0])
def test_a_wrong_rate_is_found_within_ten_seconds(off: float) -> None:
    check = RateCheck(RATE_HZ)
    for number in range(1000):
        true_hz = RATE_HZ * (1 + off)
        found_hz = check.add(FRAMES, to_ns(number * FRAMES / true_hz))
        if found_hz is not None:
            assert found_hz == pytest.approx(true_hz, rel=0.005)
            assert number * FRAMES / true_hz < 10
            return
    pytest.fail("not found")


@pytest.mark.parametrize("off", [0.0, 0.01, -0.01])
def test_a_stall_and_late_blocks_are_no_wrong_rate(off: float) -> None:
    check = RateCheck(RATE_HZ)
    late_s = np.random.default_rng(2).uniform(0, 0.05, 20_000)
    for number in range(20_000):
        time_s = number * BLOCK_S / (1 + off)
        stalled_s = max(time_s, 35.0) if 33 < time_s < 35 else time_s  # all at once after 2 s
        assert check.add(FRAMES, to_ns(stalled_s + late_s[number])) is None
