"""Sound from a microphone, `mic:NAME`, through PortAudio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample, StampKind
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.access import busy
from fusedge.devices.capture.address import Address, Request
from fusedge.devices.capture.device_clock import DeviceClock, believable
from fusedge.devices.capture.resampling import Resampler
from fusedge.devices.capture.sound_cards import (
    USUAL_RATES_HZ,
    capture_of,
    card_rate_hz,
    offered_rates,
    portaudio,
    resolve,
)
from fusedge.devices.capture.wanted import modality_of

BLOCK_MS = 20.0
LATENCY_S = 0.1  # of the card's buffer: for so long the process may be kept from the processor
QUEUE_S = 2.0
POLL_S = 0.1
SILENT_POLLS = 8  # PortAudio holds a card for active that was pulled out; its blocks just end
START_POLLS = 50  # a sound server may have to wake a wireless microphone first
CLOSE_POLL_S, CLOSE_POLLS = 0.005, 100
MAX_DELAY_S = 2.0  # of a sound server
RATE_WINDOW_S = 3.0
RATE_WINDOWS = 3  # the lateness of a block spoils two at most, one each way
RATE_OFF = 0.02  # no crystal is so far off, and SampleClock follows 1 %
DEVICE_UNAVAILABLE, INVALID_RATE, INVALID_CHANNELS = -9985, -9997, -9998  # of portaudio.h


_ARRIVAL: StampKind = "arrival"
_CAPTURE: StampKind = "capture"


class Block(NamedTuple):
    """What PortAudio handed over at once; times in seconds are by a clock of its own choice."""

    data: NDArray[np.float32]
    adc_s: float
    now_s: float
    arrival_ns: int
    overflowed: bool
    lost: int
    """Samples before it that found the queue full."""


def open_microphone(request: Request) -> Microphone:
    """The source `mic:NAME`; raises FusedgeError where it cannot be opened as it is asked for.

    Options: `rate` at which the device is to capture (its own default), `channels`, the numbers of the
    device's channels that are taken, as `2` or `1,3` (the first ones), and `block_ms`. Where one channel
    is wanted it is the mean of those taken, which are then the first two.
    """
    address, wanted = request.address, request.wanted
    name, spec = modality_of(address, wanted, "audio", "microphone")
    picked = _picked(address)
    sd = portaudio()
    device = sd.query_devices(resolve(address, sd))
    if spec is not None:
        channels: tuple[str, ...] = tuple(channel.name for channel in spec.channels)
    elif len(picked) > 1:
        channels = tuple(f"sound_{number + 1}" for number in picked)
    else:
        channels = ("sound",)
    use = _Use(
        sd,
        device,
        address.number("rate", None, 1000, 768_000) or device["default_samplerate"],
        (address.number("block_ms", BLOCK_MS, 1, 200) or BLOCK_MS) / 1000,
        _Mix(address, picked, len(channels), device["max_input_channels"]),
    )
    return Microphone(request, name, channels, use, use.rate_hz if spec is None else spec.rate_hz)


class _Use(NamedTuple):
    """How a device, as the module `sd` tells of it, is to be used."""

    sd: Any
    device: Mapping[str, Any]
    rate_hz: float
    block_s: float
    mix: _Mix


class Microphone:
    """The sound of one device, as one modality. Contract:

    - The device captures at a rate that it has, and the sound is resampled here to the modality's.
      Where ALSA resamples all the same, `warnings` says so.
    - A stamp is the capture time of a block's last sample as the card's driver tells it, where that can
      be believed, and else the arrival. Sound comes up to 30 ms after it was captured, and up to
      50 ms where it is resampled (a USB microphone at 48 kHz, made 16 kHz).
    - Sound that was lost, in the card's buffer or in the queue of 2 s, is a rejection, and the
      stamps after it are right.
    - A device that gives nothing for 0.8 s, or whose rate is more than 2 % off for 9 s, raises.
    """

    live = True

    def __init__(
        self,
        request: Request,
        modality: str,
        channels: tuple[str, ...],
        use: _Use,
        wanted_hz: float,
    ) -> None:
        self.uri = request.address.uri
        self.modalities = (modality,)
        self.channels: Mapping[str, tuple[str, ...]] = {modality: channels}
        self.units: Mapping[str, tuple[str, ...]] = {}
        self.warnings: tuple[str, ...] = ()
        if request.address.target == "auto":
            self.warnings = (f"{self.uri}: it is {use.device['name']}",)
        self._address, self._now_ns, self._use = request.address, request.now_ns, use
        self._name: str = use.device["name"]
        self._resampler = Resampler(use.rate_hz, wanted_hz, len(channels))
        self._scale = wanted_hz / use.rate_hz
        self._queue: SimpleQueue[Block | None] = SimpleQueue()  # None: PortAudio has ended
        self._most_queued = round(QUEUE_S / use.block_s)
        self._silent_polls = SILENT_POLLS + round(2 * use.block_s / POLL_S)
        self._overflowed, self._lost = False, 0  # since the last block that was queued
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._stream = _opened(request.address, use, self._take, self._finish)
        card_hz = card_rate_hz()
        if card_hz is not None and card_hz != round(use.rate_hz):
            self.warnings += (
                f"{self.uri}: ALSA resamples from {card_hz} to {use.rate_hz:g} Hz, "
                f"which costs quality (rate={card_hz} avoids it)",
            )

    def _take(self, data: NDArray[np.float32], _frames: int, time: Any, status: Any) -> None:
        """PortAudio calls this in a thread of its own."""
        arrival_ns = self._now_ns()
        if self._closing.is_set():
            raise self._use.sd.CallbackAbort
        self._overflowed |= bool(status.input_overflow)
        if self._queue.qsize() >= self._most_queued:
            self._lost += len(data)
            return
        adc_s, now_s = time.inputBufferAdcTime, time.currentTime
        self._queue.put(Block(data.copy(), adc_s, now_s, arrival_ns, self._overflowed, self._lost))
        self._overflowed, self._lost = False, 0

    def _finish(self) -> None:
        self._queue.put(None)

    def samples(self) -> Iterator[Sample | Rejection]:
        """See Source."""
        try:
            with self._lock:
                if self._stream is None:
                    return
                try:
                    self._stream.start()
                except self._use.sd.PortAudioError as error:
                    raise self._address.error(f"{self._name} does not start: {error}") from None
            yield from self._read()
        finally:
            self.close()

    def _read(self) -> Iterator[Sample | Rejection]:
        stamps, rate = Stamps(self._use.rate_hz), RateCheck(self._use.rate_hz)
        modality, resampler = self.modalities[0], self._resampler
        polls = START_POLLS
        while (block := self._next(polls)) is not None:
            polls = self._silent_polls
            arrival_ns, frames = block.arrival_ns, len(block.data)
            stamp_ns, kind, missed = stamps.place(block)
            if block.lost:
                yield self._rejection("overflow", block.lost, arrival_ns)
            if missed:
                yield self._rejection("overflow_in_driver", missed, arrival_ns)
                rate.restart()
            found_hz = rate.add(frames + block.lost, arrival_ns)
            if found_hz is not None:
                raise self._misannounced(found_hz)
            sound = resampler.process(self._use.mix(block.data))
            if len(sound):
                stamp_ns -= to_ns(resampler.lag_s)
                yield Sample(modality, stamp_ns, arrival_ns, sound, kind)

    def _misannounced(self, found_hz: float) -> FusedgeError:
        near_hz = min(USUAL_RATES_HZ, key=lambda usual_hz: abs(usual_hz - found_hz))
        return self._address.error(
            f"{self._name} gives {found_hz:,.0f} samples a second, "
            f"not {self._use.rate_hz:,.0f} as announced",
            hint=f"say its true rate: rate={near_hz}" if near_hz != self._use.rate_hz else "",
        )

    def _rejection(self, reason: str, lost: int, arrival_ns: int) -> Rejection:
        count = max(1, round(lost * self._scale))
        return Rejection(self.modalities[0], arrival_ns, reason, f"{lost} samples lost", count)

    def _next(self, polls: int) -> Block | None:
        """The next block; None once this is closed. A process that was stopped loses one poll by that."""
        for _ in range(polls):
            try:
                block = self._queue.get(timeout=POLL_S)
            except Empty:
                continue
            if self._closing.is_set():
                return None
            if block is None:
                raise self._address.error(f"{self._name} has ended", hint="it may be unplugged")
            return block
        raise self._address.error(f"{self._name} is silent", hint="it may be unplugged")

    def close(self) -> None:
        """See Source."""
        self._closing.set()
        self._queue.put(None)
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is None:
            return
        # PortAudio would cancel its thread wherever it is, and keep Python's lock for ever if it is
        # in Python: the thread is to end by itself, and only one that is stuck is cancelled.
        pause = threading.Event()
        for _ in range(CLOSE_POLLS):
            if not stream.active:
                break
            pause.wait(CLOSE_POLL_S)
        stream.close(ignore_errors=True)


class _Mix:
    """Makes the modality's channels from the device's; `openings` are numbers of channels to try."""

    def __init__(self, address: Address, picked: list[int], count: int, most: int) -> None:
        needed = max(picked) + 1 if picked else count
        if picked and count not in (1, len(picked)):
            raise address.error(f"channels= names {len(picked)} channels, {count} are wanted")
        if needed > most:
            raise address.error(f"has {most} channels, and {needed} are asked for")
        self._picked, self._count = picked, count
        # ALSA's plugins would make one channel of all that there are. A device may refuse a number of
        # channels below its most: a loopback whose other end is in use has just one number.
        self.openings = tuple(dict.fromkeys([min(most, max(2, needed)), needed, most]))

    def __call__(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """From `[N, opened]` to `[N, count]`."""
        taken = data[:, self._picked] if self._picked else data[:, : max(2, self._count)]
        if self._count == taken.shape[1]:
            return taken
        if self._count > 1:
            return taken[:, : self._count]
        mean: NDArray[np.float32] = taken.mean(axis=1, keepdims=True)
        return mean


class Stamps:
    """When blocks were captured. Contract: PortAudio's two times count as one measurement, of how long ago
    a block's first sample was captured; on which clock they are does not matter. It is not believed
    where it stands still, is 0, lies in the future or 10 s back: then the stamp is the arrival.
    """

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._clock = DeviceClock()
        self._adc_s = self._now_s = 0.0
        self._end_ns: int | None = None  # of the block before, if it was believed

    def place(self, block: Block) -> tuple[int, StampKind, int]:
        """The time of the block's last sample, where it is from, and how many samples were lost before it.

        Where the number cannot be told it is 1.
        """
        arrival_ns, length_s = block.arrival_ns, len(block.data) / self._rate_hz
        # An overflow marks all blocks that are handed over at once.
        again = block.now_s == self._now_s
        advanced = block.adc_s > self._adc_s
        self._adc_s, self._now_s = block.adc_s, block.now_s
        before_ns, self._end_ns = self._end_ns, None
        stamp_ns, kind = arrival_ns, _ARRIVAL
        age_s = block.now_s - block.adc_s - length_s
        if advanced and abs(age_s) < MAX_DELAY_S:
            called_ns = self._clock.place(to_ns(block.now_s), arrival_ns)
            captured_ns = called_ns - to_ns(age_s)
            if believable(captured_ns, arrival_ns):
                self._end_ns = stamp_ns = captured_ns
                kind = _CAPTURE
        missed = 0
        if block.overflowed and not again:
            missed = 1
            if self._end_ns is not None and before_ns is not None:
                gap_s = (self._end_ns - before_ns) / NANOSECONDS - length_s
                missed = max(1, round(gap_s * self._rate_hz) - block.lost)
        return stamp_ns, kind, missed


class RateCheck:
    """Contract: after three spans of 3 s in a row, all of which had more than 2 % too many samples or all
    too few, the rate at which they really came; till then None. Lateness and gaps do not count as that.
    """

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self.restart()

    def restart(self) -> None:
        """Forget all, since an unknown number was lost."""
        self._begin_ns: int | None = None
        self._count = 0
        self._odd: list[float] = []

    def add(self, count: int, arrival_ns: int) -> float | None:
        """`count` samples have come, or are known to have been lost, up to `arrival_ns`."""
        if self._begin_ns is None:
            self._begin_ns = arrival_ns
            return None
        self._count += count
        passed_ns = arrival_ns - self._begin_ns
        if passed_ns < to_ns(RATE_WINDOW_S):
            return None
        found_hz = self._count * NANOSECONDS / passed_ns
        self._begin_ns, self._count = arrival_ns, 0
        off = found_hz / self._rate_hz - 1
        if self._odd and (self._odd[-1] > self._rate_hz) != (off > 0):
            self._odd = []
        self._odd = [*self._odd, found_hz] if abs(off) > RATE_OFF else []
        return sum(self._odd) / RATE_WINDOWS if len(self._odd) == RATE_WINDOWS else None


def _picked(address: Address) -> list[int]:
    """The channels that the URI names, from 0."""
    text = address.options.get("channels")
    if text is None:
        return []
    numbers = text.split(",")
    if not all(n.isascii() and n.isdecimal() and 0 < len(n) < 4 and int(n) for n in numbers):
        raise address.error(
            f"channels={text} are no channels", hint="as channels=1 or channels=1,2"
        )
    return [int(number) - 1 for number in numbers]


def _opened(
    address: Address, use: _Use, take: Callable[..., None], finish: Callable[[], None]
) -> Any:
    """The stream, with the first number of channels that the device takes."""
    sd, device, rate_hz = use.sd, use.device, use.rate_hz
    failure: Any = None
    for channels in use.mix.openings:
        try:
            return sd.InputStream(
                device=device["index"],
                samplerate=rate_hz,
                blocksize=max(1, round(rate_hz * use.block_s)),
                channels=channels,
                dtype="float32",
                latency=LATENCY_S,
                callback=take,
                finished_callback=finish,
            )
        except sd.PortAudioError as error:
            failure = error
            if error.args[1] != INVALID_CHANNELS:
                break
    name, (text, code) = device["name"], failure.args[:2]
    capture = capture_of(name)
    if code == DEVICE_UNAVAILABLE and capture is not None:
        raise busy(address, capture.path)
    if code == INVALID_RATE:
        rates = ", ".join(map(str, offered_rates(sd, device))) or "no usual rate"
        raise address.error(
            f"{name} does not capture at {rate_hz:g} Hz", hint=f"it does at {rates}"
        )
    raise address.error(f"PortAudio cannot open {name}: {text}")
