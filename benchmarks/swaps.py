"""A hundred changes of the bundle under load, in real time: `python -m benchmarks.swaps`.

A session over a camera, a microphone and a sensor decides 20 times a second while its bundle is changed
again and again, each with a shadow and a probation of 0.1 s, which is two ticks each. By turns the new
bundle is good (another calibration of the same graphs); is no bundle at all; names its labels the other
way round, where agreement is asked; fails in the first run of its head, as a shadow; or fails in the
fourth, when it decides already.

Asked: each tick is decided exactly once and with a result, whoever decides it. At the end, when garbage
has been collected (not before: it stops all threads for 10 to 30 ms) and the session is still there, it
may hold on to no more than two pipelines.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import threading
import time
import weakref
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, at_most, exactly, main, told
from benchmarks.live_rig import TICK_NS, Arrivals, live_bundle, live_session, rsd_percent
from fusedge.bundle.archive import Bundle
from fusedge.runtime.decision import NOTHING_PRESENT
from fusedge.runtime.onnx_part import Array
from fusedge.runtime.part import Backend
from fusedge.runtime.pipeline import Pipeline
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.soak import footprint

STAGES = {"shadow_s": 0.1, "probation_s": 0.1}
LONGEST_S = 10.0
EXPECTED = {
    "good": "done",
    "no bundle": "refused",
    "disagrees": "refused",
    "fails in run 1": "refused",
    "fails in run 4": "returned",
}
KINDS = [kind for bad in list(EXPECTED)[1:] for kind in ("good", bad)]


class Failing:
    """A head that fails from its `run`-th run on."""

    provider = "failing"

    def __init__(self, head: Backend, run: int) -> None:
        self._head, self._left = head, run - 1

    def run(self, feeds: dict[str, Any]) -> list[Array]:
        if not self._left:
            raise RuntimeError("broken on purpose")
        self._left -= 1
        return self._head.run(feeds)


class Changer:
    """Changes the bundle of a session to one of a kind."""

    def __init__(self, session: Session, bundle: Bundle) -> None:
        self._session, self._bundle = session, bundle
        self._make, self._fails_in_run = session._make_pipeline, 0
        session._make_pipeline = self._pipeline  # type: ignore[method-assign,assignment]
        self.alive: weakref.WeakSet[Pipeline] = weakref.WeakSet()

    def _pipeline(self, bundle: Bundle) -> Pipeline:
        pipeline = self._make(bundle)
        self.alive.add(pipeline)
        if self._fails_in_run:
            head = pipeline.head_part
            head.backend = Failing(head.backend, self._fails_in_run)
        return pipeline

    def change(self, kind: str, number: int) -> str:
        """How it ended."""
        (output,) = self._bundle.manifest.outputs
        changes: dict[str, Any] = {"temperature": 1 + 0.01 * (number % 7)}
        if kind == "disagrees":
            changes["labels"] = output.labels[::-1]
        new = Bundle(self._bundle.path)
        outputs = (output.model_copy(update=changes),)
        new.manifest = new.manifest.model_copy(update={"outputs": outputs})
        self._fails_in_run = int(kind[-1]) if kind.startswith("fails") else 0
        swap = self._session.swap(
            new.path.with_name("missing") if kind == "no bundle" else new,
            least_agreement=0.9 if kind == "disagrees" else 0,
            **STAGES,
        )
        end = time.monotonic() + LONGEST_S
        while not swap.ended and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.02)  # until the session has let go of the other one
        return swap.state


def measure(arguments: argparse.Namespace) -> list[Figure]:
    rss_mb: list[float] = []
    ends: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = live_bundle(Path(folder) / "b.fusedge")
        session = live_session(bundle)
        changer = Changer(session, bundle)

        def change() -> None:
            time.sleep(1)
            for number in range(arguments.swaps):
                kind = KINDS[number % len(KINDS)]
                ends.append((kind, changer.change(kind, number)))
                rss_mb.append(footprint().rss_mb)
            session.stop()

        sink = Arrivals()
        thread = threading.Thread(target=change)
        thread.start()
        report = run(session, [sink], threads=2)
        thread.join()
        gc.collect()
        rss_mb.append(footprint().rss_mb)
        alive = len(changer.alive)
    ticks = [decision.timestamp_ns // TICK_NS for decision in sink.decisions]
    steps = [after - before for before, after in pairwise(ticks)]
    good = [
        swap
        for swap, (kind, _) in zip(report.summary["swaps"], ends, strict=True)
        if kind == "good"
    ]
    compared, agreed = (sum(swap[key] for swap in good) for key in ("compared", "agreed"))
    tenth = len(rss_mb) // 10
    growth_mb = rss_mb[-1] - rss_mb[tenth]
    return [
        told("changes", len(ends)),
        exactly("  that ended as they should", sum(EXPECTED[k] == s for k, s in ends), len(ends)),
        *(told(f"  {kind}: {state}", count) for (kind, state), count in Counter(ends).items()),
        told("ticks", len(ticks)),
        exactly("  lost", sum(step - 1 for step in steps if step > 1), 0),
        exactly("  given out twice or backward", sum(step < 1 for step in steps), 0),
        exactly(
            "  without a result",
            sum(d.problem not in ("", NOTHING_PRESENT) for d in sink.decisions),
            0,
        ),
        told("  tick to tick, rsd", rsd_percent(sink.times_ns[20:]), "%"),
        told("ticks compared with those of a good one", compared),
        told("  of which the labels agreed", 100 * agreed / max(1, compared), "%"),
        at_most("pipelines that are held on to at the end", alive, 2),
        told("memory a change, after the first tenth", growth_mb / (len(ends) - tenth), "MB"),
        exactly("ledger balances", str(report.summary["ledger_balanced"]), "True"),
    ]


if __name__ == "__main__":
    main(__doc__, measure, swaps=100)
