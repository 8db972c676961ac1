"""Faults on purpose: what happens to a session when a device, a part or a disk fails.

A kind of fault strikes one target (a source, a part, a sink) again and again, for a while each time.
When, for how long and how depends only on the seed, on the kind and on the target's name. So on a
virtual clock the same seed gives the same decisions, to the byte.
"""

from __future__ import annotations

import errno
import heapq
import math
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError, UnknownNameError
from fusedge.bundle.manifest import Part
from fusedge.bundle.sample import Rejection, Sample, data_bytes
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.address import Wanted, shown
from fusedge.devices.capture.source import Source
from fusedge.runtime.clock import Clock
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Entry
from fusedge.runtime.onnx_part import Array
from fusedge.runtime.part import Backend
from fusedge.runtime.sinks.sink import Sink

Item = Sample | Rejection
Opener = Callable[[str, Wanted, Callable[[], int]], Source]
Loader = Callable[[Part], Backend]

EVERY_S = 30.0  # between two faults of a kind at a target, on average
SHORTEST_S, LONGEST_S = 0.2, 8.0  # beyond the 5 s after which a silent source is opened again
MAX_TOLD = 1000  # faults that the summary lists; the others are counted
_HELD_BYTES = 32 << 20  # what a device keeps while it is stalled
_HELD_ITEMS = 4096


class Fault(NamedTuple):
    """One strike, from `start_ns` to `end_ns` on the session's clock."""

    start_ns: int
    end_ns: int


class Strikes:
    """When a kind of fault strikes a target. `random` is for what it does there."""

    def __init__(
        self, kind: str, target: str, seed: int, every_s: float, tell: Callable[[Fault], None]
    ) -> None:
        self.random = random.Random(f"{seed}/{kind}/{target}")
        self._every_s = every_s
        self._tell = tell
        self._next: Fault | None = None
        self._told = False

    @property
    def begun(self) -> bool:
        """Whether the target has been used."""
        return self._next is not None

    def at(self, now_ns: int) -> Fault | None:
        """The fault that is on at a time; times never fall by much."""
        if self._next is None:
            self._plan(now_ns, 0.1)
        while self._next is not None and now_ns >= self._next.end_ns:
            self._plan(self._next.end_ns, 0.5)
        fault = self._next
        assert fault is not None
        if now_ns < fault.start_ns:
            return None
        if not self._told:
            self._told = True
            self._tell(fault)
        return fault

    def _plan(self, after_ns: int, least: float) -> None:
        start_ns = after_ns + to_ns(self._every_s * (least + self.random.random()))
        longest_s = min(LONGEST_S, self._every_s / 2)
        self._next = Fault(start_ns, start_ns + to_ns(self.random.uniform(SHORTEST_S, longest_s)))
        self._told = False


class Chaos:
    """Faults of the given kinds for one session.

    `opener`, `loader` and `sinks` give what they are given, with faults. Kinds that need time to go
    by are left out on a virtual clock, and named in `left_out`. Raises FusedgeError where none is left.
    """

    def __init__(
        self, kinds: Sequence[str], clock: Clock, *, seed: int = 0, every_s: float = EVERY_S
    ) -> None:
        self._clock = clock
        self._seed, self._every_s = seed, every_s
        self.left_out = [kind for kind in kinds if KINDS[kind].real and not clock.real]
        self.kinds = [kind for kind in KINDS if kind in kinds and kind not in self.left_out]
        if not self.kinds:
            raise FusedgeError(
                f"{', '.join(self.left_out) or 'no kind of chaos'}: strikes in real time only",
                hint="with --speed 1",
            )
        self._strikes: dict[tuple[str, str], Strikes] = {}
        self._faults: list[dict[str, Any]] = []
        self._counts = dict.fromkeys(self.kinds, 0)
        self._lock = threading.Lock()

    def strikes(self, kind: str, target: str, key: str = "") -> Strikes:
        """Those of one kind at one target; the same ones when a source is opened again.

        The seed goes with `key`, which is the target's name if it is left out.
        """

        def tell(fault: Fault) -> None:
            with self._lock:
                self._counts[kind] += 1
                if len(self._faults) < MAX_TOLD:
                    self._faults.append(
                        {
                            "kind": kind,
                            "target": target,
                            "start_s": round(fault.start_ns / NANOSECONDS, 3),
                            "end_s": round(fault.end_ns / NANOSECONDS, 3),
                        }
                    )

        with self._lock:
            if (kind, target) not in self._strikes:
                self._strikes[kind, target] = Strikes(
                    kind, key or target, self._seed, self._every_s, tell
                )
            return self._strikes[kind, target]

    def of(
        self, target: Literal["source", "part", "sink"], name: str, key: str = ""
    ) -> dict[str, Strikes]:
        """The strikes at one target by kind, in the order of KINDS."""
        return {k: self.strikes(k, name, key) for k in self.kinds if KINDS[k].target == target}

    def opener(self, open_uri: Opener) -> Opener:
        """As `open_uri`, but the sources fail now and then."""

        def open_chaotic(uri: str, wanted: Wanted, now_ns: Callable[[], int]) -> Source:
            strikes = self.of("source", shown(uri))
            flap = strikes.get("flap")
            if flap is not None and flap.begun and self._clock.real and flap.at(now_ns()):
                raise FusedgeError("no such device (chaos: flap)", where=shown(uri))
            return ChaoticSource(open_uri(uri, wanted, now_ns), strikes, self._clock)

        return open_chaotic

    def loader(self, load: Loader) -> Loader:
        """As `load`, but the parts fail now and then, and do not load while they do."""

        def load_chaotic(part: Part) -> Backend:
            strikes = self.of("part", part.name)
            crash = strikes.get("part-crash")
            if crash is not None and crash.begun and crash.at(self._clock.now_ns()):
                raise RuntimeError("chaos: part-crash")
            return _ChaoticPart(load(part), strikes, self._clock)

        return load_chaotic

    def sinks(self, sinks: Sequence[Sink]) -> list[Sink]:
        """As `sinks`, but they fail now and then, which does not end a session on a virtual clock."""
        return [
            (_ChaoticRecorder if sink.journal else _ChaoticSink)(
                sink, self.of("sink", sink.name, f"sink {index}"), self._clock
            )
            for index, sink in enumerate(sinks)  # not by name, which may be that of a file
        ]

    def header(self) -> dict[str, Any]:
        """For the session's header."""
        return {"seed": self._seed, "kinds": self.kinds, "every_s": self._every_s}

    def report(self) -> dict[str, Any]:
        """For the summary: the faults in the order of their beginning, the first `MAX_TOLD` of them."""
        with self._lock:
            faults = sorted(self._faults, key=lambda fault: fault["start_s"])
            return {"count": dict(self._counts), "faults": faults}


class ChaoticSource:
    """A source with faults."""

    def __init__(self, source: Source, strikes: Mapping[str, Strikes], clock: Clock) -> None:
        self._source, self._strikes, self._clock = source, strikes, clock
        self.uri, self.modalities = source.uri, source.modalities
        self.channels, self.units = source.channels, source.units
        self.live, self.warnings = source.live, source.warnings

    def samples(self) -> Iterator[Item]:
        """See Source; raises where the device is said to be gone."""
        items: Iterator[Item] = self._source.samples()
        for kind, strikes in self._strikes.items():
            if kind == "flap":
                items = _flap(strikes, items, self.live)
            elif kind == "source-hang":
                items = _hang(strikes, items, self._clock)
            else:
                items = _SOURCE_FAULTS[kind](strikes, items)
        return items

    def close(self) -> None:
        """See Source."""
        self._source.close()


def _waiting_for(clock: Clock, time_ns: int) -> None:
    threading.Event().wait(clock.seconds_until(time_ns))


def _flap(strikes: Strikes, items: Iterator[Item], live: bool) -> Iterator[Item]:
    for item in items:
        fault = strikes.at(item.arrival_ns)
        if fault and live:
            raise OSError(errno.ENODEV, "chaos: flap")
        away = fault and (item.arrival_ns - fault.start_ns) // _FLAP_NS % 2 == 0
        if not away:
            yield item


def _hang(strikes: Strikes, items: Iterator[Item], clock: Clock) -> Iterator[Item]:
    for item in items:
        fault = strikes.at(item.arrival_ns)
        if fault:
            _waiting_for(clock, fault.end_ns)
        yield item


def _silence(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
    return (item for item in items if not strikes.at(item.arrival_ns))


def _stall(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
    held: list[Item] = []
    held_bytes = arrival_ns = 0
    for item in items:
        arrival_ns = item.arrival_ns
        if strikes.at(arrival_ns):
            held_bytes += data_bytes(item)
            if len(held) < _HELD_ITEMS and held_bytes < _HELD_BYTES:  # beyond, the device loses it
                held.append(item)
            continue
        yield from (one._replace(arrival_ns=arrival_ns) for one in held)
        held, held_bytes = [], 0
        yield item
    yield from (one._replace(arrival_ns=arrival_ns) for one in held)


def _lost(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
    for item in items:
        if not (strikes.at(item.arrival_ns) and strikes.random.random() < 0.3):
            yield item


def _reorder(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
    held: list[tuple[int, int, Item]] = []
    number = arrival_ns = 0
    for item in items:
        arrival_ns = item.arrival_ns
        while held and held[0][0] <= arrival_ns:
            late_ns, _, late = heapq.heappop(held)
            yield late._replace(arrival_ns=late_ns)
        if strikes.at(arrival_ns) and len(held) < _HELD_ITEMS:
            number += 1
            delay_s = math.exp(strikes.random.uniform(*_DELAYS))
            heapq.heappush(held, (arrival_ns + to_ns(delay_s), number, item))
        else:
            yield item
    yield from (late._replace(arrival_ns=arrival_ns) for _, _, late in sorted(held))


def _duplicate(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
    for item in items:
        yield item
        if strikes.at(item.arrival_ns):
            yield from (item for _ in range(strikes.random.choice((0, 1, 1, 5))))


def _overflow(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
    for item in items:
        yield item
        if isinstance(item, Sample) and strikes.at(item.arrival_ns):
            for number in range(1, strikes.random.choice((1, 10, 100))):
                yield item._replace(timestamp_ns=item.timestamp_ns + number)


def _changed(change: Callable[[Strikes, Fault, Sample], Item]) -> SourceFault:
    """A fault that changes samples one by one."""

    def strike(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            fault = strikes.at(item.arrival_ns)
            yield change(strikes, fault, item) if fault and isinstance(item, Sample) else item

    return strike


def _nan(strikes: Strikes, fault: Fault, sample: Sample) -> Sample:
    if sample.data.dtype.kind != "f":  # an image has no NaN: it comes black or white
        return sample._replace(data=np.full_like(sample.data, strikes.random.choice((0, 255))))
    data = sample.data.copy()
    channel = strikes.random.choice((slice(None), strikes.random.randrange(data.shape[-1])))
    data[..., channel] = strikes.random.choice((math.nan, math.inf, -math.inf, 3e38, -1e9))
    return sample._replace(data=data)


def _malformed(strikes: Strikes, fault: Fault, sample: Sample) -> Item:
    data = sample.data
    if strikes.random.random() < 0.2:
        return Rejection(sample.modality, sample.arrival_ns, "malformed", "chaos: malformed")
    return sample._replace(data=strikes.random.choice(_SHAPES)(data))


_SHAPES: Sequence[Callable[[NDArray[Any]], NDArray[Any]]] = (
    lambda data: data.astype(np.float64),
    lambda data: data != 0,
    lambda data: data[..., :0],
    lambda data: data[:0],
    lambda data: data[None],
    lambda data: data.T[..., None],
    lambda data: np.concatenate([data, data], axis=-1),
    lambda data: np.zeros((), np.float32),
)


def _frozen(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
    since: Fault | None = None
    stuck: dict[str, NDArray[Any]] = {}
    for item in items:
        fault = strikes.at(item.arrival_ns)
        if fault != since:
            since, stuck = fault, {}
        if fault and isinstance(item, Sample):
            item = item._replace(data=stuck.setdefault(item.modality, item.data))
        yield item


def _clock_step(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
    since: Fault | None = None
    offset_ns = 0
    for item in items:
        fault = strikes.at(item.arrival_ns)
        if fault and fault != since:
            size_s = math.exp(strikes.random.uniform(*_STEPS))
            offset_ns += strikes.random.choice((-1, 1)) * to_ns(size_s)
            since = fault
        if offset_ns and isinstance(item, Sample):
            item = item._replace(timestamp_ns=item.timestamp_ns + offset_ns)
        yield item


def _stamp_stop(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
    since: Fault | None = None
    stuck: dict[str, int] = {}
    for item in items:
        fault = strikes.at(item.arrival_ns)
        if fault != since:
            since, stuck = fault, {}
        if fault and isinstance(item, Sample):
            stamp_ns = stuck.setdefault(item.modality, item.timestamp_ns)
            item = item._replace(timestamp_ns=stamp_ns)
        yield item


def _drift(strikes: Strikes, items: Iterator[Item]) -> Iterator[Item]:
    since: Fault | None = None
    rate = samples = 0.0
    for item in items:
        fault = strikes.at(item.arrival_ns)
        if fault != since:
            since, samples = fault, 0.0
            rate = strikes.random.choice((-1, 1)) * strikes.random.choice((300e-6, 0.03))
        if fault and isinstance(item, Sample):
            if item.data.ndim == 2:  # sound: a fast card gives more samples in the same time
                samples += rate * len(item.data)
                extra = math.trunc(samples)
                samples -= extra
                picked = np.minimum(np.arange(len(item.data) + extra), len(item.data) - 1)
                item = item._replace(data=item.data[picked])
            else:
                early_ns = round(rate * (item.arrival_ns - fault.start_ns))
                item = item._replace(timestamp_ns=item.timestamp_ns + early_ns)
        yield item


class _ChaoticPart:
    """What computes a part, with faults."""

    def __init__(self, backend: Backend, strikes: Mapping[str, Strikes], clock: Clock) -> None:
        self._backend, self._strikes, self._clock = backend, strikes, clock
        self.provider = backend.provider

    def _on(self, kind: str) -> Fault | None:
        strikes = self._strikes.get(kind)
        return None if strikes is None else strikes.at(self._clock.now_ns())

    def run(self, feeds: dict[str, Any]) -> list[Array]:
        """See Backend."""
        fault = self._on("part-hang")
        if fault:
            _waiting_for(self._clock, fault.end_ns)
        if self._on("part-slow"):
            slow_s = self._strikes["part-slow"].random.uniform(0.01, 0.3)
            _waiting_for(self._clock, self._clock.now_ns() + to_ns(slow_s))
        if self._on("part-crash"):
            raise RuntimeError("chaos: part-crash")
        outputs = self._backend.run(feeds)
        if self._on("part-nan"):
            value = self._strikes["part-nan"].random.choice((math.nan, math.inf))
            return [np.full_like(output, value) for output in outputs]
        return outputs


class _ChaoticSink(Sink):
    """A sink with faults."""

    may_fail = True

    def __init__(self, sink: Sink, strikes: Mapping[str, Strikes], clock: Clock) -> None:
        self._sink, self._strikes, self._clock = sink, strikes, clock
        self.name, self.closing_s = sink.name, sink.closing_s

    def open(self, header: dict[str, Any]) -> None:
        """See Sink."""
        self._sink.open(header)

    def write(self, item: Decision | Event | Entry) -> None:
        """See Sink."""
        now_ns = self._clock.now_ns()
        struck = {kind: fault for kind, s in self._strikes.items() if (fault := s.at(now_ns))}
        if "slow-sink" in struck:
            _waiting_for(self._clock, struck["slow-sink"].end_ns)
        if "sink-crash" in struck:
            raise RuntimeError("chaos: sink-crash")
        if "disk-full" in struck:
            raise OSError(errno.ENOSPC, "No space left on device (chaos: disk-full)")
        self._sink.write(item)

    def lost(self, count: int) -> None:
        """See Sink."""
        self._sink.lost(count)

    def flush(self) -> None:
        """See Sink."""
        self._sink.flush()

    def close(self, summary: dict[str, Any]) -> None:
        """See Sink."""
        self._sink.close(summary)


class _ChaoticRecorder(_ChaoticSink):
    journal: ClassVar[bool] = True


SourceFault = Callable[[Strikes, Iterator[Item]], Iterator[Item]]


class Kind(NamedTuple):
    """A kind of fault: what it strikes, what happens, and whether time must go by for it."""

    target: Literal["source", "part", "sink"]
    what: str
    real: bool = False


_FLAP_NS = to_ns(0.4)
_DELAYS = (math.log(0.001), math.log(2.0))  # within the lateness of any modality, and beyond it
_STEPS = (math.log(0.01), math.log(4000.0))

# In the order in which they are applied to what a source gives.
KINDS: Mapping[str, Kind] = {
    "source-hang": Kind("source", "reading does not return for seconds", real=True),
    "flap": Kind("source", "raises and is away; a recorded one goes dark on and off"),
    "silence": Kind("source", "gives nothing for seconds, and that is lost"),
    "lost": Kind("source", "three of ten samples or blocks of sound are lost"),
    "frozen": Kind("source", "values and pictures stand still"),
    "nan": Kind("source", "NaN, Inf and huge values; pictures are black or white"),
    "drift": Kind("source", "its clock or sound card is fast or slow by 300 ppm or 3 %"),
    "clock-step": Kind("source", "its clock jumps by 10 ms to an hour, for good"),
    "stamp-stop": Kind("source", "its stamps stand still"),
    "duplicate": Kind("source", "samples come twice or six times"),
    "overflow": Kind("source", "bursts of up to 100 times the rate"),
    "reorder": Kind("source", "samples come late by 1 ms to 2 s, in any order"),
    "stall": Kind("source", "gives nothing for seconds, and then all at once"),
    "malformed": Kind("source", "wrong shape or type, or nothing that could be read"),
    "part-crash": Kind("part", "a run raises, and so does loading it again"),
    "part-nan": Kind("part", "gives NaN or Inf"),
    "part-slow": Kind("part", "takes 10 to 300 ms longer", real=True),
    "part-hang": Kind("part", "a run does not return for seconds", real=True),
    "sink-crash": Kind("sink", "raises"),
    "disk-full": Kind("sink", "raises OSError: no space left on device"),
    "slow-sink": Kind("sink", "takes seconds for an item", real=True),
}

_SOURCE_FAULTS: Mapping[str, SourceFault] = {
    "silence": _silence,
    "lost": _lost,
    "frozen": _frozen,
    "nan": _changed(_nan),
    "drift": _drift,
    "clock-step": _clock_step,
    "stamp-stop": _stamp_stop,
    "duplicate": _duplicate,
    "overflow": _overflow,
    "reorder": _reorder,
    "stall": _stall,
    "malformed": _changed(_malformed),
}


def parse_kinds(text: str) -> list[str]:
    """The kinds of `text`: `all`, or names with commas between them. Raises UnknownNameError."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in KINDS and name != "all":
            raise UnknownNameError("kind of chaos", name, [*KINDS, "all"])
    return list(KINDS) if "all" in names else names
