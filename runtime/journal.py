"""What a pipeline was given and told to do, in order: enough to do it again, to the bit.

A pipeline is a state machine without a clock of its own. Its results depend only on the items that
were pushed, on the steps that it began and on how each ended, in this order. When a step is taken
depends on the machine and its load; so a recording holds the steps as well.
"""

from __future__ import annotations

from typing import NamedTuple

from fusedge.bundle.sample import Rejection, Sample


class Cut(NamedTuple):
    """Cut the next window of a modality, after `skipped` older ones that are given up for overload.

    `reason` is empty where the window goes to its encoder; else it is skipped too, for that reason.
    """

    modality: str
    end_ns: int
    skipped: int
    reason: str


class Tick(NamedTuple):
    """Decide for `tick_ns`, after `skipped` older ticks that are given up.

    `reason` is empty, or why the head does not run: then the decision is made without a result. That
    nothing is present is not told here, since it follows from what came before.
    """

    tick_ns: int
    skipped: int
    reason: str
    now_ns: int


class Finish(NamedTuple):
    """A part's run came to its end at `now_ns`; `failure` is empty, or says why it gave no result.

    It was row `row` of a batch of `rows`, which may change the last bits of what it gave.
    """

    part: str
    failure: str
    now_ns: int
    rows: int = 1
    row: int = 0


class Swapped(NamedTuple):
    """Another bundle decides from here on; it has run as a shadow before, which is not recorded."""

    bundle_sha256: str


Step = Cut | Tick
Entry = Sample | Rejection | Cut | Tick | Finish | Swapped
