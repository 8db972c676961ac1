"""Changes the bundle of a running session on a tick, with nothing lost and a way back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fusedge.bundle.archive import Bundle
from fusedge.bundle.errors import FusedgeError, printable
from fusedge.bundle.window import NANOSECONDS
from fusedge.runtime.decision import NOTHING_PRESENT, Decision
from fusedge.runtime.events import Event
from fusedge.runtime.pipeline import Pipeline

SHADOW_S = 5.0
PROBATION_S = 10.0
MAX_UNPAIRED = 1000

State = Literal["loading", "shadow", "probation", "done", "refused", "returned"]
Result = Decision | Event


class Swap:
    """One change from the `old` pipeline to a new one.

    Contract: the new bundle is loaded in a thread of its own. It then runs as a shadow on the same
    samples, until `shadow_s` of its ticks have been compared with the old one's; if all of them had
    a result, and at least `least_agreement` of them the same labels, the next tick is the new one's.
    The old one goes on as the shadow for `probation_s` and takes over again at the first tick of
    the new one without a result. A tick at which either has nothing present shows nothing of the new
    one: it is not compared, and ends neither stage. Each tick is given out exactly once, whoever
    decides it. Events are those of the one that decides; their numbers begin anew with it. A bundle
    for which the open sources and sinks are not made is refused.
    """

    def __init__(
        self,
        old: Pipeline,
        load: Callable[[], Pipeline],
        *,
        shadow_s: float = SHADOW_S,
        probation_s: float = PROBATION_S,
        least_agreement: float = 0.0,
    ) -> None:
        self.old = old
        self.new: Pipeline | None = None
        self.state: State = "loading"
        self.reason = ""
        self.compared = self.agreed = 0
        self.switched_ns: int | None = None
        self._load = load
        self._shadow_s, self._probation_s = shadow_s, probation_s
        self._least_agreement = least_agreement
        self._given_ns = -(1 << 62)  # the newest tick that was given out
        self._undecided: dict[int, dict[bool, Decision]] = {}
        self._loaded: Pipeline | FusedgeError | None = None
        self._thread = threading.Thread(target=self._read, name="swap", daemon=True)

    def start(self, wait: bool) -> None:
        """Begin to load; `wait` for it where time does not go on by itself."""
        self._thread.start()
        if wait:
            self._thread.join()

    def _read(self) -> None:
        try:
            self._loaded = self._load()
        except Exception as error:  # a bundle that is no good is refused, whatever it raises
            self._loaded = FusedgeError(str(error))

    @property
    def ended(self) -> bool:
        """Whether one of the two pipelines may go."""
        return self.state in ("done", "refused", "returned")

    @property
    def active(self) -> Pipeline:
        """Whose decisions are given out."""
        new_decides = self.state in ("probation", "done") and self.new is not None
        return self.new if new_decides and self.new is not None else self.old

    @property
    def pipelines(self) -> tuple[Pipeline, ...]:
        """Those that samples go to: the active one first."""
        if self.new is None or self.ended:
            return (self.active,)
        return (self.old, self.new) if self.state == "shadow" else (self.new, self.old)

    def pick_up(self, now_ns: int) -> None:
        """Take the new pipeline when it is loaded."""
        if self.state != "loading" or self._loaded is None:
            return
        if isinstance(self._loaded, FusedgeError):
            self._end("refused", self._loaded.line())
            return
        self.new = self._loaded
        if reason := _unfit(self.old, self.new):
            self._end("refused", reason)
            return
        self.new.start(now_ns + 1)
        self.state = "shadow"

    def take(self) -> list[Result]:
        """What both have decided since the last call, as far as it is to be given out."""
        given: list[Result] = []
        for pipeline in self.pipelines:
            is_new = pipeline is self.new
            for result in pipeline.take_results():
                if isinstance(result, Event):
                    if pipeline is self.active:
                        given.append(result)
                    continue
                fails = is_new and self.state == "probation" and _failed(result)
                if pipeline is self.active and not fails and result.timestamp_ns > self._given_ns:
                    self._given_ns = result.timestamp_ns
                    given.append(result)
                if self.new is not None and not self.ended:
                    pair = self._undecided.setdefault(result.timestamp_ns, {})
                    pair[is_new] = result
                    if len(pair) == 2 or (is_new and self.state == "probation"):
                        given += self._judge(result.timestamp_ns, pair)
        while len(self._undecided) > MAX_UNPAIRED:
            del self._undecided[min(self._undecided)]
        return given

    def _judge(self, tick_ns: int, pair: dict[bool, Decision]) -> list[Result]:
        """Compare the decisions of a tick; what is to be given out where the deciding one changes."""
        new = pair[True]
        if _failed(new):
            if self.state == "shadow":
                return self._end("refused", f"no result as a shadow: {new.problem}")
            return self._end("returned", f"no result: {new.problem}")
        shows = all(decision.problem != NOTHING_PRESENT for decision in pair.values())
        if len(pair) == 2:
            del self._undecided[tick_ns]
            self.compared += shows
            self.agreed += shows and _labels(new) == _labels(pair[False])
        if not shows:
            return []
        period_ns = self.old.period_ns
        if self.state == "shadow" and self.compared * period_ns >= self._shadow_s * NANOSECONDS:
            if self.agreed < self._least_agreement * self.compared:
                return self._end(
                    "refused", f"agrees in {self.agreed} of {self.compared} ticks only"
                )
            self.state = "probation"
            self.switched_ns = tick_ns
            return self._rest(True)
        since_ns = None if self.switched_ns is None else tick_ns - self.switched_ns
        if since_ns is not None and since_ns >= self._probation_s * NANOSECONDS:
            return self._end("done", "")
        return []

    def _end(self, state: Literal["done", "refused", "returned"], reason: str) -> list[Result]:
        was_active = self.active
        self.state, self.reason = state, printable(reason)
        return [] if self.active is was_active else self._rest(False)

    def _rest(self, of_new: bool) -> list[Result]:
        """What the one that decides from now on has decided already, after the newest given tick."""
        rest = [
            pair[of_new]
            for tick_ns, pair in sorted(self._undecided.items())
            if tick_ns > self._given_ns and of_new in pair
        ]
        if rest:
            self._given_ns = rest[-1].timestamp_ns
        return list(rest)

    def report(self) -> dict[str, Any]:
        """For the summary."""
        return {
            "bundle_sha256": None if self.new is None else self.new.bundle_sha256,
            "state": self.state,
            "reason": self.reason,
            "compared": self.compared,
            "agreed": self.agreed,
            "switched_t_s": None if self.switched_ns is None else self.switched_ns / NANOSECONDS,
        }


def _unfit(old: Pipeline, new: Pipeline) -> str:
    """Why the one cannot take the other's place while sources and sinks are open; empty where it can."""
    if _input(new) != _input(old):
        return "it takes other modalities, channels or rates than the running bundle"
    if _labels_of(new) != _labels_of(old):
        return "it decides on other outputs or labels than the running bundle"
    shorter_ns, longer_ns = sorted((old.period_ns, new.period_ns))
    if longer_ns % shorter_ns:
        return "its decisions and the running bundle's do not come at the same times"
    return ""


def _input(pipeline: Pipeline) -> dict[str, tuple[object, ...]]:
    """All that the sources were opened for: series are put together from what stands for `max_hold_s`."""
    specs = [pipeline.manifest.modality(name) for name in pipeline.order]
    return {
        spec.name: (
            (spec.kind, spec.height, spec.width, spec.rate_hz),
            spec.max_hold_s if spec.kind == "series" else None,
            [(channel.name, channel.unit) for channel in spec.channels],
        )
        for spec in specs
    }


def _labels_of(pipeline: Pipeline) -> dict[str, frozenset[str]]:
    return {output.name: frozenset(output.labels) for output in pipeline.manifest.outputs}


def _failed(decision: Decision) -> bool:
    """Whether something went wrong with it: that nothing was present is no fault of the bundle."""
    return decision.problem not in ("", NOTHING_PRESENT)


def _labels(decision: Decision) -> dict[str, str | None]:
    return {name: output.label for name, output in decision.outputs.items()}


class BundleWatch:
    """Notices when another bundle lies at a path. It is looked at once a second at most."""

    PERIOD_NS = NANOSECONDS

    def __init__(self, bundle: Bundle) -> None:
        self.path = bundle.path
        self._seen = self._state()
        self._next_ns: int | None = None

    def _state(self) -> tuple[int, int, int] | None:
        manifest = self.path / "manifest.json" if self.path.is_dir() else self.path
        try:
            status = Path(manifest).stat()
        except OSError:
            return None  # between the old one and the new one
        return status.st_mtime_ns, status.st_size, status.st_ino

    def changed(self, now_ns: int) -> bool:
        """Whether it has changed since the last call that said so."""
        if self._next_ns is not None and now_ns < self._next_ns:
            return False
        self._next_ns = now_ns + self.PERIOD_NS
        state = self._state()
        if state is None or state == self._seen:
            return False
        self._seen = state
        return True
