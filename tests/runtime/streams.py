"""The loop of a stream without its pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from fusedge.bundle.sample import Sample
from fusedge.runtime.stream import ModalityStream, Window

MS = 1_000_000


def run(
    stream: ModalityStream, samples: Sequence[Sample], until_ms: float, tidy: bool = True
) -> list[Window]:
    """Push by arrival and cut what is due before, with a balanced account after each step."""
    windows: list[Window] = []

    def advance(now_ns: int) -> None:
        while stream.due_ns < now_ns:
            windows.append(stream.cut())
            assert stream.account.unaccounted == 0
            if tidy:
                stream.tidy()
                assert stream.account.unaccounted == 0

    for item in sorted(samples, key=lambda s: s.arrival_ns):
        advance(item.arrival_ns)
        stream.push(item)
        assert stream.account.unaccounted == 0
    advance(round(until_ms * MS))
    return windows
