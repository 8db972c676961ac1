"""A day in minutes: a bundle over endless input on a virtual clock, and what must not have grown."""

from __future__ import annotations

import math
import os
import resource
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import NANOSECONDS, to_ns
from fusedge.devices.capture.address import Wanted
from fusedge.devices.capture.source import Source, open_source
from fusedge.devices.capture.synthetic import SyntheticSource
from fusedge.runtime.clock import VirtualClock, stopwatch_ns
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.journal import Entry
from fusedge.runtime.session import Session, SessionReport
from fusedge.runtime.sinks.sink import Sink
from fusedge.runtime.sound_stream import SoundStream

SYNTHETIC = "synthetic:"
MAX_SLOPE_MB = 1.0  # a day
MAX_SKEW_MS = 5.0
SETTLING_NS = to_ns(30.0)  # after a start or a step, before the skew counts
_LOOKS = 720  # at memory: every two minutes of a day
_BATCHES = 12
_STUDENT = 2.228  # 97.5 % of Student's t with 10 degrees of freedom
# Without a leak memory still grows in steps: by up to 2.1 MB in the first hours, then by 0.5 MB.
_LONGEST_WARM_UP_S = 7200.0
_WARM_UP_MB = 4.0
LEAST_H = 4 * _LONGEST_WARM_UP_S / 3600
"""Of a run whose slope a day is judged: of the rest of a shorter one, warming up is a part."""
_SKEW_LOOK_NS = to_ns(1.0)
_DAY_S = 86_400.0


class Footprint(NamedTuple):
    """What the process holds."""

    rss_mb: float
    threads: int
    files: int


def footprint() -> Footprint:
    """That of this process now. Where there is no /proc, its memory is the most that it has ever had."""
    if Path("/proc/self/statm").exists():
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        threads, files = _entries("/proc/self/task"), _entries("/proc/self/fd")
        return Footprint(pages * resource.getpagesize() / 2**20, threads, files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Footprint(peak, threading.active_count(), _entries("/dev/fd"))


def _entries(folder: str) -> int:
    with os.scandir(folder) as entries:
        return sum(1 for _ in entries)


class Slope(NamedTuple):
    """A trend in MB a day, with its 95 % confidence interval."""

    mb_per_day: float
    low: float
    high: float


def slope(times_s: NDArray[np.float64], rss_mb: NDArray[np.float64]) -> Slope:
    """The least-squares line through the means of `_BATCHES` stretches of at least as many points.

    Memory grows in steps, so that points near to each other are not independent; such means nearly are.
    """
    x = np.array([part.mean() for part in np.array_split(times_s, _BATCHES)]) / _DAY_S
    y = np.array([part.mean() for part in np.array_split(rss_mb, _BATCHES)])
    x -= x.mean()
    y -= y.mean()
    spread = float(x @ x)
    middle = float(x @ y) / spread
    error = math.sqrt(float(np.square(y - middle * x).sum()) / (_BATCHES - 2) / spread)
    return Slope(middle, middle - _STUDENT * error, middle + _STUDENT * error)


@dataclass(frozen=True)
class SoakReport:
    """What a soak found. `missed` has a line for each bar that was missed; none: it passed."""

    missed: list[str]
    ended: str
    simulated_h: float
    wall_s: float
    decisions: int
    ticks_skipped: int
    samples: int
    ledger_exact: bool
    start: Footprint
    warm: Footprint
    end: Footprint
    slope: Slope | None
    """None where the run was too short for one: see LEAST_H."""
    skew_ms: float | None
    """Largest distance of sound from the true time; None where the truth is not known."""
    drift_ppm: dict[str, float]
    chaos: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        record = asdict(self)
        for name in ("start", "warm", "end", "slope"):
            value = getattr(self, name)
            record[name] = None if value is None else value._asdict()
        return record


class Soak:
    """A session over `hours` of the session's time, ready to be run once, and the judge of it.

    Without `uris` every modality of the bundle gets a synthetic device. A recorded source that ends
    before is played again and again. `progress` is called with the simulated and the real time in
    seconds every now and then; `options` are those of Session. Run `session` with `sinks`, and give
    its report to `judge`.
    """

    def __init__(
        self,
        bundle: Bundle,
        uris: Sequence[str] = (),
        clock: VirtualClock | None = None,
        *,
        hours: float,
        seed: int = 0,
        sinks: Sequence[Sink] = (),
        progress: Callable[[float, float], None] = lambda simulated_s, wall_s: None,
        **options: Any,
    ) -> None:
        self._duration_s = hours * 3600
        self._synthetic: SyntheticSource | None = None

        def open_uri(uri: str, wanted: Wanted, now_ns: Callable[[], int]) -> Source:
            if uri != SYNTHETIC:
                return Repeated(lambda: open_source(uri, wanted, now_ns), to_ns(self._duration_s))
            self._synthetic = SyntheticSource(
                uri, bundle.manifest.modalities, self._duration_s, seed=seed
            )
            return self._synthetic

        self.session = Session(
            bundle, list(uris) or [SYNTHETIC], clock or VirtualClock(), open_uri=open_uri, **options
        )
        self._probe = _Probe(self.session, self._duration_s, self._skew_ns, progress)
        self.sinks: list[Sink] = [*sinks, self._probe]

    def _skew_ns(self, now_ns: int) -> int:
        """How far the newest sample of sound is from where it was captured."""
        source = self._synthetic
        if source is None or self.session.chaos is not None:
            return 0
        since_step_ns = now_ns - to_ns(source.step_s)
        if now_ns < SETTLING_NS or 0 <= since_step_ns < SETTLING_NS:
            return 0
        worst = 0
        for name, stream in self._sound.items():
            count = stream.account.received
            placed_ns = stream.sample_clock.time_ns(count) - stream.latency_ns
            worst = max(worst, abs(placed_ns - source.sound_ns(name, count)))
        return worst

    @property
    def _sound(self) -> Mapping[str, SoundStream]:
        lanes = self.session.pipeline.lanes
        streams = {name: lane.stream for name, lane in lanes.items()}
        return {n: stream for n, stream in streams.items() if isinstance(stream, SoundStream)}

    def judge(self, report: SessionReport) -> SoakReport:
        """What the session's report and what was seen meanwhile say."""
        probe, summary, sound = self._probe, report.summary, self._sound
        looks = probe.looks
        if not summary["decisions"]:
            raise FusedgeError(
                "the soak made no decision", where=", ".join(report.header["sources"])
            )
        known = bool(sound) and self._synthetic is not None and self.session.chaos is None
        warm = looks[looks[:, 0] >= probe.warm_up_s]
        trend = slope(warm[:, 0], warm[:, 1]) if len(warm) >= _BATCHES else None
        long = round(probe.simulated_s / 3600, 1) >= LEAST_H  # the last decision is before the end
        result = SoakReport(
            missed=[],
            ended=report.ended,
            simulated_h=round(probe.simulated_s / 3600, 3),
            wall_s=report.timing["wall_s"],
            decisions=summary["decisions"],
            ticks_skipped=summary["ticks_skipped"],
            samples=sum(account["received"] for account in summary["ledger"].values()),
            ledger_exact=summary["ledger_balanced"] and probe.always_balanced,
            start=_footprint(looks[0]),
            warm=_footprint(warm[0] if len(warm) else looks[-1]),
            end=_footprint(looks[-1]),
            slope=trend if long else None,
            skew_ms=round(probe.worst_skew_ns / 1e6, 3) if known else None,
            drift_ppm={name: round(stream.sample_clock.ppm, 2) for name, stream in sound.items()},
            chaos=summary.get("chaos"),
        )
        result.missed.extend(_missed(result, probe, trend))
        return result


def _footprint(look: NDArray[np.float64]) -> Footprint:
    return Footprint(round(float(look[1]), 2), int(look[2]), int(look[3]))


def _missed(report: SoakReport, probe: _Probe, trend: Slope | None) -> Iterator[str]:
    if not report.ledger_exact:
        yield "the ledger does not balance"
    if report.ticks_skipped:
        yield f"{report.ticks_skipped} ticks were skipped"
    if probe.not_finite:
        yield f"{probe.not_finite} decisions hold a value that is not finite"
    grown_mb = report.end.rss_mb - report.warm.rss_mb
    told = report.slope
    allowed_mb = _WARM_UP_MB if told is None else MAX_SLOPE_MB
    if trend is not None and trend.low > MAX_SLOPE_MB and grown_mb > allowed_mb:
        rate = f": {told.mb_per_day:.1f} MB a day, at least {told.low:.1f}" if told else ""
        yield f"memory grew by {grown_mb:.1f} MB in {report.simulated_h:g} h{rate}"
    if report.skew_ms is not None and report.skew_ms > MAX_SKEW_MS:
        yield f"sound was {report.skew_ms:.1f} ms off"
    for what in ("threads", "files"):
        before, after = getattr(report.start, what), getattr(report.end, what)
        if after > before:
            yield f"{what} grew from {before} to {after}"


class _Probe(Sink):
    """Looks at the process and the pipeline every now and then, from inside the session."""

    name = "soak"

    def __init__(
        self,
        session: Session,
        duration_s: float,
        skew_ns: Callable[[int], int],
        progress: Callable[[float, float], None],
    ) -> None:
        self._session, self._skew_ns, self._progress = session, skew_ns, progress
        self._every_ns = to_ns(duration_s / _LOOKS)
        self.warm_up_s = min(_LONGEST_WARM_UP_S, duration_s / 4)
        # Laid out before, so that looking takes no memory: time in s and the footprint.
        self._looks = np.full((_LOOKS + 8, 4), np.nan)
        self._looked = 0
        self.always_balanced = True
        self.not_finite = self.worst_skew_ns = 0
        self._started_ns = stopwatch_ns()
        self._begin_ns = self._now_ns = 0
        self._next_ns = self._next_skew_ns = 0

    @property
    def simulated_s(self) -> float:
        """How much of the session's time has gone by."""
        return (self._now_ns - self._begin_ns) / NANOSECONDS

    @property
    def looks(self) -> NDArray[np.float64]:
        """Time in s, memory in MB, threads and files, float64 `[N, 4]`."""
        return self._looks[: self._looked]

    def open(self, header: dict[str, Any]) -> None:
        """See Sink."""

    def write(self, item: Decision | Event | Entry) -> None:
        """See Sink."""
        if not isinstance(item, Decision):
            return
        now_ns = self._now_ns = item.timestamp_ns
        self.not_finite += not finite(item)
        if not self._looked:
            self._begin_ns = now_ns
        if now_ns >= self._next_skew_ns:
            self._next_skew_ns = now_ns + _SKEW_LOOK_NS
            self.worst_skew_ns = max(self.worst_skew_ns, self._skew_ns(now_ns))
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + self._every_ns
            self._look()

    def _look(self) -> None:
        self._looks[self._looked] = (self.simulated_s, *footprint())
        self._looked += 1
        self.always_balanced = self.always_balanced and self._session.pipeline.balanced
        self._progress(self.simulated_s, (stopwatch_ns() - self._started_ns) / NANOSECONDS)

    def close(self, summary: dict[str, Any]) -> None:
        """See Sink."""
        self._look()


def finite(decision: Decision) -> bool:
    """Whether every number of a decision is finite, or is None and the decision says why."""
    for output in decision.outputs.values():
        if output.probabilities is None or output.mean is None:
            if not decision.problem or output.label is not None:
                return False
        elif not (np.isfinite(output.probabilities).all() and np.isfinite(output.mean).all()):
            return False
    return True


class Repeated:
    """A recorded source that begins again when it ends, with its times moved on, up to `until_ns`."""

    live = False

    def __init__(self, reopen: Callable[[], Source], until_ns: int) -> None:
        self._reopen, self._until_ns = reopen, until_ns
        self._source = reopen()
        self._closed = False
        self.uri, self.modalities = self._source.uri, self._source.modalities
        self.channels, self.units = self._source.channels, self._source.units
        self.warnings = self._source.warnings

    def samples(self) -> Iterator[Sample | Rejection]:
        """See Source."""
        begin_ns: int | None = None
        shift_ns = last_ns = 0
        while not self._closed:
            first_ns: int | None = None
            for item in self._source.samples():
                if begin_ns is None:
                    begin_ns = item.arrival_ns
                if first_ns is None:
                    first_ns = item.arrival_ns
                last_ns = item.arrival_ns + shift_ns
                if last_ns - begin_ns > self._until_ns:
                    return
                if not shift_ns:
                    yield item
                elif isinstance(item, Sample):
                    stamp_ns = item.timestamp_ns + shift_ns
                    yield item._replace(timestamp_ns=stamp_ns, arrival_ns=last_ns)
                else:
                    yield item._replace(arrival_ns=last_ns)
            if first_ns is None or last_ns == first_ns + shift_ns:
                return  # nothing in it that could go on for ever
            self._source.close()
            shift_ns = last_ns + to_ns(1.0) - first_ns
            self._source = self._reopen()

    def close(self) -> None:
        """See Source."""
        self._closed = True
        self._source.close()
