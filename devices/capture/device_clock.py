"""A device's own stamps, placed on the clock of the session."""

from __future__ import annotations

from collections import deque

from fusedge.bundle.window import NANOSECONDS, to_ns

MEMORY_NS = to_ns(10)  # 100 ppm of drift make 1 ms in it
BUCKET_NS = to_ns(1)
STEP_NS = to_ns(2)  # further off than this is another clock, if it stays so
STEP_PROOF = 5


class DeviceClock:
    """The device's stamps and the arrivals differ by an offset and a delay, which is never negative.

    Contract: the offset is taken from the quickest delivery of the last 10 s, so that a late one moves
    nothing, and drift is followed. Stamps that agree with another offset by more than 2 s begin anew:
    at once where they are ahead, for nothing comes before it was measured, else at the fifth in a row;
    a smaller step back cannot be told from late deliveries, and is followed after 10 s.
    A constant delay cannot be seen, and is the manifest's `latency_s`.
    """

    def __init__(self) -> None:
        self.steps = 0
        """How often the device's clock has leapt."""
        self._least: deque[tuple[int, int]] = deque()  # (arrival of the bucket, least difference)
        self._offset_ns: int | None = None
        self._odd = 0

    def place(self, device_ns: int, arrival_ns: int) -> int:
        """The capture time, by the session's clock and not after `arrival_ns`, of a device's stamp."""
        difference = arrival_ns - device_ns
        offset_ns = self._offset_ns
        if offset_ns is not None and abs(difference - offset_ns) > STEP_NS:
            self._odd += 1
            if difference > offset_ns and self._odd < STEP_PROOF:
                return arrival_ns
            self.steps += 1
            self._least.clear()
        self._odd = 0
        self._note(arrival_ns, difference)
        self._offset_ns = min(least for _, least in self._least)
        return min(device_ns + self._offset_ns, arrival_ns)

    def _note(self, arrival_ns: int, difference: int) -> None:
        least = self._least
        if least and arrival_ns - least[-1][0] < BUCKET_NS:
            least[-1] = (least[-1][0], min(least[-1][1], difference))
        else:
            least.append((arrival_ns, difference))
        while arrival_ns - least[0][0] > MEMORY_NS:
            least.popleft()


MAX_CAPTURE_AGE_NS = 10 * NANOSECONDS


def believable(timestamp_ns: int, arrival_ns: int) -> bool:
    """Whether a driver's stamp can be of the session's clock: neither ahead nor 10 s old."""
    return 0 <= arrival_ns - timestamp_ns <= MAX_CAPTURE_AGE_NS
