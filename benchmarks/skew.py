"""How far sound and picture drift apart in a day: `python -m benchmarks.skew`.

Every 10 seconds something flashes and clicks at the same moment, before a camera that stamps its frames
and a sound card that is only counted: fast by 300 ppm, slow by 300 ppm, or right. Its blocks arrive late
by up to 20 ms and are stamped then; in the middle of the day it loses 50 ms of sound. A session on the
virtual clock cuts windows of one second from both. The parts in place of the encoders look for the flash
and for the click in the window that they are given; the skew is the time between the two places.

Not counted are the first 30 s and the 30 s after the step, in which the clock is found. To make a day
short the camera gives 5 frames a second and sound is sampled at 8 kHz, in blocks of 100 ms; both come
to every window in full. The runs share the cores, a process each.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.figures import Figure, at_most, exactly, main, told
from benchmarks.live_rig import Nothing, live_bundle
from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Part
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime.clock import VirtualClock
from fusedge.runtime.journal import Cut
from fusedge.runtime.runner import run
from fusedge.runtime.session import Session
from fusedge.runtime.sinks.sink import Sink

DRIFTS_PPM = (300.0, -300.0, 0.0)
FRAME_HZ, SOUND_HZ, BLOCK = 5, 8000, 800
EVENT_EVERY_S, EVENT_AT_S = 10, 0.4  # on a frame, away from the ends of a window
STEP_NS, JITTER_NS = to_ns(0.05), to_ns(0.02)
SETTLING_S = 30.0
PIXELS = 4


def skew_bundle(path: Path) -> Bundle:
    """Windows of a second from a small camera and a microphone, and a decision a second."""
    window = {"window_s": 1.0, "hop_s": 1.0, "lateness_s": 0.2, "max_age_s": 3.0}
    changes: dict[str, dict[str, Any]] = {
        "video": {"rate_hz": FRAME_HZ, "height": PIXELS, "width": PIXELS, **window},
        "sound": {"rate_hz": SOUND_HZ, **window},
    }
    bundle = live_bundle(path, 1)
    specs = [m.model_copy(update=changes.get(m.name, {})) for m in bundle.manifest.modalities]
    bundle.manifest = bundle.manifest.model_copy(update={"modalities": tuple(specs)})
    return bundle


class Scene:
    """A camera and a sound card that see and hear the same; the card's clock is off."""

    uri = "scene:"
    modalities = ("video", "sound")
    channels: dict[str, tuple[str, ...]] = {}  # noqa: RUF012  # never written to
    units: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    warnings: tuple[str, ...] = ()
    live = False

    def __init__(self, seconds: float, drift_ppm: float) -> None:
        self._frames = int(seconds * FRAME_HZ)
        self._sample_ns = 1e9 / SOUND_HZ / (1 + drift_ppm / 1e6)
        self._step_ns = to_ns(seconds / 2)

    def _video(self, number: int) -> Sample:
        dark, flash = self._pictures
        event = number % (EVENT_EVERY_S * FRAME_HZ) == round(EVENT_AT_S * FRAME_HZ)
        time_ns = to_ns(number / FRAME_HZ)
        return Sample("video", time_ns, time_ns, flash if event else dark)

    _pictures = (
        np.full((PIXELS, PIXELS, 3), 10, np.uint8),
        np.full((PIXELS, PIXELS, 3), 250, np.uint8),
    )

    def _sound(self) -> Iterator[Sample]:
        dice = np.random.default_rng(1)
        quiet = dice.uniform(-0.01, 0.01, (BLOCK, 1)).astype(np.float32)
        first = arrived_ns = 0
        event_s = EVENT_AT_S
        while True:
            lost_ns = STEP_NS if first * self._sample_ns >= self._step_ns else 0
            captured_ns = [(first + n) * self._sample_ns + lost_ns for n in (1, BLOCK)]
            place = round((event_s * 1e9 - captured_ns[0]) / self._sample_ns)
            block = quiet
            if place < BLOCK:
                block = quiet.copy()
                if place >= 0:
                    block[place] = 1
                event_s += EVENT_EVERY_S
            arrived_ns = max(arrived_ns, round(captured_ns[1]) + int(dice.integers(JITTER_NS)))
            yield Sample("sound", arrived_ns, arrived_ns, block, "arrival")
            first += BLOCK

    def samples(self) -> Iterator[Sample]:
        sound = self._sound()
        block = next(sound)
        for number in range(self._frames):
            frame = self._video(number)
            while block.arrival_ns <= frame.arrival_ns:
                yield block
                block = next(sound)
            yield frame

    def close(self) -> None:
        pass


class Finder(Nothing):
    """In place of an encoder: finds the brightest frame or the loudest sample of each window."""

    def __init__(self, part: Part, rate_hz: float, loud: float, windows: Windows) -> None:
        super().__init__(part)
        self._rate_hz, self._loud, self._windows = rate_hz, loud, windows
        self.found_ns: dict[int, float] = {}

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        window = feeds["window"][0]
        levels = window.reshape(len(window), -1)[:, 0]
        place = int(levels.argmax())
        if levels[place] > self._loud:
            before_end = len(levels) - 1 - place
            found_ns = self._windows.end_ns - before_end * 1e9 / self._rate_hz
            self.found_ns[self._windows.end_ns] = found_ns
        return super().run(feeds)


class Windows(Sink):
    """Knows the end of the window that is being encoded: of the journal's last cut."""

    name = "windows"
    journal = True

    def __init__(self) -> None:
        self.end_ns = 0

    def open(self, header: dict[str, Any]) -> None:
        pass

    def write(self, item: object) -> None:
        if isinstance(item, Cut):
            self.end_ns = item.end_ns

    def close(self, summary: dict[str, Any]) -> None:
        pass


class Skews(NamedTuple):
    """In ms: the largest that counts, the last, and what the card's nominal rate would give."""

    largest: float
    median: float
    events: int
    seen: int
    uncorrected: float
    found_ppm: float
    steps: int
    balanced: bool


def once(folder: str, hours: float, drift_ppm: float) -> Skews:
    bundle = skew_bundle(Path(folder) / f"{drift_ppm:g}.fusedge")
    seconds = 3600 * hours
    windows = Windows()
    finders: dict[str, Finder] = {}

    def load(part: Part) -> Nothing:
        if part.modality not in ("video", "sound"):
            return Nothing(part)
        rate_hz, loud = (FRAME_HZ, 128) if part.modality == "video" else (SOUND_HZ, 0.5)
        finders[part.modality] = Finder(part, rate_hz, loud, windows)
        return finders[part.modality]

    session = Session(
        bundle,
        ["scene:"],
        VirtualClock(),
        open_uri=lambda uri, wanted, now_ns: Scene(seconds, drift_ppm),
        load=load,
    )
    summary = run(session, [windows]).summary
    flashes, clicks = finders["video"].found_ns, finders["sound"].found_ns
    step_ns = to_ns(seconds / 2)
    counts = [
        end_ns
        for end_ns in flashes
        if end_ns > to_ns(SETTLING_S) and not 0 <= end_ns - step_ns < to_ns(SETTLING_S)
    ]
    skews_ms = [abs(clicks[end] - flashes[end]) / 1e6 for end in counts if end in clicks]
    clock = summary["modalities"]["sound"]["clock"]
    return Skews(
        largest=max(skews_ms),
        median=float(np.median(skews_ms)),
        events=len(counts),
        seen=len(skews_ms),
        uncorrected=abs(seconds * drift_ppm / 1e3 - STEP_NS / 1e6),
        found_ppm=clock["drift_ppm"],
        steps=clock["steps"],
        balanced=summary["ledger_balanced"],
    )


def measure(arguments: argparse.Namespace) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            jobs = [pool.submit(once, folder, arguments.hours, ppm) for ppm in DRIFTS_PPM]
        for drift_ppm, job in zip(DRIFTS_PPM, jobs, strict=True):
            skews = job.result()
            figures += [
                at_most(
                    f"{drift_ppm:+g} ppm, {arguments.hours:g} h: skew, largest",
                    skews.largest,
                    5,
                    "ms",
                ),
                told("  median", skews.median, "ms"),
                told("  uncorrected, at the end", skews.uncorrected, "ms"),
                told("  drift that was found", skews.found_ppm, "ppm"),
                exactly("  flashes with a click in the same window", skews.seen, skews.events),
                exactly("  steps found", skews.steps, 1),
                exactly("  ledger balances", str(skews.balanced), "True"),
            ]
    return figures


if __name__ == "__main__":
    main(__doc__, measure, hours=24.0)
