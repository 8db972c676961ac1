"""Keeps the stamps of one source usable when the device's clock is stepped, absurd or stands still."""

from __future__ import annotations

from typing import Literal, NamedTuple

from fusedge.bundle.window import NANOSECONDS, to_ns

Refusal = Literal["backward", "future"]

FUTURE_TOLERANCE_NS = to_ns(0.05)  # the stamp resolution of the recordings is 10 ms
# No buffer is believed to hold a sample for longer. A stall of the network or of this process seldom
# reaches it; a clock without a battery (1970), of another time zone or that wraps does.
TRANSPORT_NS = to_ns(60.0)
_STEADY_NS = to_ns(1.0)  # in which a buffer that had held samples would have handed them over
_STOPPED = 2  # repeats in a row: one may be a packet that came twice
_USUAL_SHIFT = 4  # the usual delay is a mean over the last 16 samples or so


class _Suspect(NamedTuple):
    """The newest sample that fits another offset; one that agrees opens an epoch with it."""

    offset_ns: int
    ready_ns: int  # before which such a sample must not have arrived
    stepped: bool


class EpochTracker:
    """Contract: `place` gives each stamp its time on the session's clock, or refuses it.

    An **epoch** is a time in which the device's clock is behind the session's by one `offset_ns`; the
    first has 0, and so has any in which the stamps are normal as they are. A sample is normal if it
    arrives at most `lateness_ns` after stamp + offset, and at most 50 ms before it: that sum is its
    time, in whatever order such samples come.

    A step of the device's clock by more than 50 ms that makes samples abnormal opens an epoch at the
    second sample in a row that fits the same new offset (within the lateness, at least 50 ms). That
    one is placed on its arrival less the usual delay. The first is refused as `future`, or as
    `backward` if it is more than a minute old; if less, it may only be out of order and is passed on
    with its old time, for the stream to refuse as `late`. A device whose clock never agreed with
    the session's by less than a minute is placed from its second sample on in the same way.

    A sample that is late after a pause which explains it comes from a transport that stalled. It
    and those after it are passed on with the time that their stamps tell. Only a clock that is found
    more than a minute behind after a pause, and then stays so for a second, opens an epoch.

    A stamp that comes again is passed on once, for the buffer to refuse as `duplicate`. From the third
    in a row, in separate arrivals, the samples are placed on arrival less the usual delay.

    The time given is never later than arrival + 50 ms, nor earlier than arrival - 60 s. `backward`
    and `future` in `counts` are epochs that were opened by such a step, `stopped` is samples that were
    placed on arrival because stamps stood still. No stamp raises.

    Not noticed: steps that leave a sample normal, or up to 50 ms later than usual. Not told from a
    transport that lags for good, and so `late` for ever: a clock that falls behind by less than a
    minute little by little, or while the source pauses, or before its first sample.
    """

    def __init__(self, lateness_ns: int) -> None:
        self.epoch = 0
        self.offset_ns = 0
        self.counts = {"backward": 0, "future": 0, "stopped": 0}
        self._lateness_ns = lateness_ns
        self._agreement_ns = max(FUTURE_TOLERANCE_NS, lateness_ns)
        self._usual_ns = 0
        self._seen_ns: int | None = None  # the last stamp, and when it arrived
        self._seen_arrival_ns = 0
        self._repeats = 0
        self._time_ns: int | None = None  # of the last normal sample, and when it arrived
        self._arrival_ns = 0
        self._before_ns: int | None = None  # the time of the normal sample before it
        self._suspect: _Suspect | None = None

    def place(self, stamp_ns: int, arrival_ns: int) -> int | Refusal:
        """The time of a sample on the session's clock, or why it has none; arrivals never fall."""
        time_ns = stamp_ns + self.offset_ns
        delay_ns = arrival_ns - time_ns
        if stamp_ns == self._seen_ns:
            self._repeats += arrival_ns > self._seen_arrival_ns
            self._seen_arrival_ns = arrival_ns
            if self._repeats >= _STOPPED:
                self.counts["stopped"] += 1
                return arrival_ns - self._usual_ns
        stopped = self._repeats >= _STOPPED
        if stamp_ns != self._seen_ns:
            self._seen_ns, self._seen_arrival_ns, self._repeats = stamp_ns, arrival_ns, 0
        if not -FUTURE_TOLERANCE_NS <= delay_ns <= self._lateness_ns:
            return self._judge(stamp_ns, arrival_ns, delay_ns, stopped)
        self._before_ns, self._time_ns, self._arrival_ns = self._time_ns, time_ns, arrival_ns
        self._suspect = None
        if self.offset_ns == 0:  # in other epochs the delay is what was assumed
            self._usual_ns += (delay_ns - self._usual_ns) >> _USUAL_SHIFT
        return time_ns

    def report(self) -> dict[str, object]:
        """What is worth publishing: the epoch, its offset in seconds, and the counts."""
        return {"epoch": self.epoch, "offset_s": self.offset_ns / NANOSECONDS, **self.counts}

    def _judge(self, stamp_ns: int, arrival_ns: int, delay_ns: int, stopped: bool) -> int | Refusal:
        """Of an abnormal sample; `stopped` tells that stamps stood still before it."""
        stepped = self._stepped(arrival_ns, delay_ns) or (stopped and delay_ns > 0)
        offset_ns = arrival_ns - stamp_ns - self._usual_ns
        suspect = self._suspect
        if suspect and abs(offset_ns - suspect.offset_ns) <= self._agreement_ns:
            if arrival_ns >= suspect.ready_ns:
                return self._open(stamp_ns, arrival_ns, offset_ns)
        elif stepped or (suspect and suspect.stepped):
            self._suspect = _Suspect(offset_ns, arrival_ns, True)
        elif delay_ns > TRANSPORT_NS:
            self._suspect = _Suspect(offset_ns, arrival_ns + _STEADY_NS, False)
        else:
            self._suspect = None
        if delay_ns < 0:
            return "future"
        return "backward" if delay_ns > TRANSPORT_NS else stamp_ns + self.offset_ns

    def _stepped(self, arrival_ns: int, delay_ns: int) -> bool:
        """Whether a transport cannot explain this delay."""
        if delay_ns < 0:
            return True
        if self._time_ns is None:
            return delay_ns > TRANSPORT_NS
        growth_ns = delay_ns - (self._arrival_ns - self._time_ns)
        interval_ns = 0 if self._before_ns is None else self._time_ns - self._before_ns
        # A stall keeps the sample back by the growth; after a step it comes when it is due.
        kept_ns = arrival_ns - self._arrival_ns - interval_ns
        late_ns = min(growth_ns, delay_ns - self._usual_ns)
        return late_ns > FUTURE_TOLERANCE_NS and 2 * kept_ns < growth_ns

    def _open(self, stamp_ns: int, arrival_ns: int, offset_ns: int) -> int:
        if -FUTURE_TOLERANCE_NS <= arrival_ns - stamp_ns <= self._lateness_ns:
            offset_ns = 0
        self.counts["backward" if offset_ns > self.offset_ns else "future"] += 1
        self.epoch += 1
        self.offset_ns = offset_ns
        self._suspect = None
        time_ns = stamp_ns + offset_ns
        self._before_ns, self._time_ns, self._arrival_ns = self._time_ns, time_ns, arrival_ns
        return time_ns
