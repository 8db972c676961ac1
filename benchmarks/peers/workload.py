"""What every peer is given and how every peer is measured.

It runs in the environment of each peer, so it needs only numpy and ONNX Runtime.

Times are `time.monotonic_ns`, which on Linux all processes share. A sample is *captured* when its
device would deliver it; its age is counted from there, whatever stamp it carries and however late
the peer accepts it. The **hand-over** of a fused output is the time from the moment at which the
newest input that it needed was handed to the peer (or at which its tick was due) until the output
reached the user's callback, less the time inside the model. Making the windows of sound and IMU is
inside (most peers leave it to the user); scaling the frame is in the model's graph.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MODALITIES = ("imu", "audio", "video")  # also the order at equal times
RATE_HZ = {"imu": 100, "audio": 50, "video": 30}
SOUND_HZ = 16_000
WINDOW = {"imu": 50, "audio": 8_000}  # half a second of each
HEIGHT, WIDTH = 480, 640
PERIOD_S = 1 / RATE_HZ["video"]
GRACE_S = 0.3  # from the last sample until the peer is told to stop

SCENARIOS = {
    "handover": "no model: 300 ticks at 100 Hz, a VGA frame, 10 ms of sound and an IMU row each",
    "nominal": "real time",
    "overload": "the model takes three frame periods",
    "imu-silent": "the IMU stops halfway",
    "video-stall": "the camera stalls for half of the time, then resumes",
    "backward": "one frame carries a stamp 1 s in the past",
    "nan": "the IMU gives NaN for 0.5 s",
    "drift": "the sound card's clock is 300 ppm fast, for four times as long",
    "exception": "the model raises once",
    "sink-block": "the sink blocks once, for a fifth of the time",
    "cycles": "start, one fused output, stop, again and again",
}


def length_s(scenario: str, seconds: float) -> float:
    """How long a scenario is: a drift shows after 15 s at the soonest."""
    return {"handover": 3.0, "drift": 4 * seconds}.get(scenario, seconds)


class Event(NamedTuple):
    """A sample: captured `due_s` after the start; the device says that it was at `stamp_s`."""

    due_s: float
    modality: str
    index: int
    stamp_s: float
    data: Any


def schedule(scenario: str, seconds: float) -> list[Event]:
    """All samples of a run in the order of capture, the same in every process."""
    random = np.random.default_rng(7)
    picture = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    paired = scenario in ("handover", "cycles")
    ticks = {"handover": 300, "cycles": 100}.get(scenario)
    frames = [np.roll(picture, 8 * i, axis=1) for i in range(1 if scenario == "cycles" else 30)]
    stall = seconds / 4, seconds * 3 / 4
    events = []
    for modality in MODALITIES:
        rate_hz = 100 if paired else RATE_HZ[modality]
        for i in range(ticks or round(seconds * rate_hz)):
            stamp_s = due_s = (i + 1) / rate_hz
            if modality == "video":
                data = frames[i % len(frames)]
            elif modality == "audio":
                data = random.standard_normal(SOUND_HZ // rate_hz).astype(np.float32)
            else:
                data = random.standard_normal(6).astype(np.float32)
            if scenario == "imu-silent" and modality == "imu" and due_s >= seconds / 2:
                continue
            if scenario == "video-stall" and modality == "video" and stall[0] <= due_s < stall[1]:
                continue
            if scenario == "backward" and modality == "video" and i == round(seconds * rate_hz / 2):
                stamp_s -= 1.005
            if scenario == "nan" and modality == "imu" and 0 <= due_s - seconds / 2 < 0.5:
                data = np.full_like(data, np.nan)
            if scenario == "drift" and modality == "audio":
                due_s /= 1 + 300e-6
            events.append(Event(due_s, modality, i, stamp_s, data))
    return sorted(events, key=lambda event: (event.due_s, MODALITIES.index(event.modality)))


class Model:
    """The fusion model in ONNX Runtime with one thread."""

    def __init__(self, run: Run) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            run.spec["model"], options, providers=["CPUExecutionProvider"]
        )
        self._run = run

    def __call__(self, inputs: dict[str, Any]) -> tuple[Any, int]:
        """Probabilities, and the nanoseconds that they took."""
        started = time.monotonic_ns()
        self._run.strike_model()
        (probabilities,) = self._session.run(None, inputs)
        return probabilities, time.monotonic_ns() - started


class Output(NamedTuple):
    """A fused output. Ages of the newest samples that it rests on are in ns, at its emission; NaN
    where the peer says that it does not rest on any, and `said` counts those.
    """

    emitted_ns: int
    handed_ns: int
    model_ns: int
    video_age_ns: float
    audio_age_ns: float
    imu_age_ns: float
    finite: bool
    said: int


class Run:
    """One peer in one scenario: the clock, the feed, the user's own code, and the record."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.scenario: str = spec["scenario"]
        self.seconds = length_s(self.scenario, spec["seconds"])
        self.paired = self.scenario in ("handover", "cycles")
        self.middle = round(self.seconds * RATE_HZ["video"] / 2)
        self.events = schedule(self.scenario, self.seconds)
        self.put_ns: dict[str, dict[int, int]] = {name: {} for name in MODALITIES}
        self.arrived = dict.fromkeys(MODALITIES, 0)
        self.outputs: list[Output] = []
        self.errors: list[str] = []
        self.told: dict[str, Any] = {}
        self.usage: dict[str, Any] = {}
        self._rss_mb: list[float] = []
        self.epoch_ns = self._asked_ns = 0
        self.foreign = (
            False  # the work is done by child processes, the driver itself does not count
        )
        self._begun = threading.Event()
        self.first = threading.Event()
        self._lock = threading.Lock()
        self._due_ns = {(e.modality, e.index): round(e.due_s * 1e9) for e in self.events}
        self._windows: dict[str, deque[Any]] = {
            "imu": deque(maxlen=WINDOW["imu"]),
            "audio": deque(maxlen=WINDOW["audio"] * RATE_HZ["audio"] // SOUND_HZ),
            "video": deque(maxlen=1),
        }
        self._newest = dict.fromkeys(MODALITIES, -1)
        self._calls = 0
        self._model = None if self.scenario == "handover" else Model(self)

    # The clock and the feed.

    def begin(self) -> None:
        """Fix the start, for the first who asks; the processor time counts from there."""
        in_s = 0.0 if self.scenario == "cycles" else 0.05
        with self._lock:
            if not self._begun.is_set():
                self.epoch_ns = self.spec.get("epoch_ns") or time.monotonic_ns() + int(in_s * 1e9)
                self._cpu_s = cpu_s(self.foreign)
                self._begun.set()
                if self.scenario != "cycles":
                    threading.Thread(target=self._watch_memory, daemon=True).start()

    def _watch_memory(self) -> None:
        while not self.over():
            self._rss_mb.append(round(rss_mb(self.foreign), 2))
            time.sleep(1)

    def wait_s(self, event: Event) -> float:
        """Seconds until the sample is captured, 0 where that is past."""
        return max(0.0, event.due_s - (time.monotonic_ns() - self.epoch_ns) / 1e9)

    def over(self) -> bool:
        """Whether it is time to stop: after the first output, or when the time is up."""
        if self.scenario == "cycles":
            return self.first.is_set() or self._since_s() > 10
        return self._since_s() > self.seconds + GRACE_S

    def _since_s(self) -> float:
        return (time.monotonic_ns() - self.epoch_ns) / 1e9

    def put(self, event: Event) -> None:
        """Note that a sample is now handed to the peer."""
        self.put_ns[event.modality][event.index] = time.monotonic_ns()

    def pace(self, *modalities: str) -> Iterator[Event]:
        """The samples of these modalities that are still to come, each when it is captured."""
        self.begin()
        for event in self.events:
            if event.modality in modalities and event.index not in self.put_ns[event.modality]:
                time.sleep(self.wait_s(event))
                if self.over():
                    return
                self.put(event)
                yield event

    def feed(self, push: Callable[[Event], Any], *modalities: str) -> None:
        """Push the samples; what the peer refuses is noted, as a device would not stop either."""
        for event in self.pace(*modalities or MODALITIES):
            try:
                push(event)
            except Exception as error:
                self.errors.append(f"{event.modality} {event.index}: {error}")

    def wait_for_end(self) -> None:
        """Sleep until it is time to stop; then close the account of processor time and memory."""
        self._begun.wait()
        while not self.over():
            time.sleep(0.001 if self.scenario == "cycles" else 0.02)
        self.usage = {
            "cpu_s": cpu_s(self.foreign) - self._cpu_s,
            "rss_mb": rss_mb(self.foreign),
            "rss_mb_each_second": self._rss_mb,
        }
        self._asked_ns = time.monotonic_ns()

    def stopped(self) -> float:
        """Seconds since the peer was told to stop, which is when `wait_for_end` returned."""
        return (time.monotonic_ns() - self._asked_ns) / 1e9

    # The user's code, the same with every peer.

    def take(self, modality: str, index: int, data: Any) -> bool:
        """Take a sample from the peer; whether an output is due now.

        In real time a frame is what asks for one; where all three come at once, the last of them.
        """
        with self._lock:
            self.arrived[modality] += 1
            self._newest[modality] = index
            self._windows[modality].append(data)
            if self.paired:
                return all(newest == index for newest in self._newest.values())
        return modality == "video"

    def fuse(self) -> tuple[dict[str, int], int, bool]:
        """Run the model on the newest windows: the newest samples, its time, whether it is finite."""
        with self._lock:
            newest = dict(self._newest)
            frame = self._windows["video"][-1]
            sound, motion = list(self._windows["audio"]), list(self._windows["imu"])
        if self._model is None:
            return newest, 0, True
        probabilities, model_ns = self._model(
            {"video": frame[None], "audio": audio(sound), "imu": imu(motion)}
        )
        return newest, model_ns, bool(np.isfinite(probabilities).all())

    def emit(self, newest: dict[str, int], model_ns: int, finite: bool, said: int = 0) -> None:
        """The user's callback for an output: record it; block, where the scenario says so."""
        trigger = MODALITIES if self.paired else ("video",)
        handed_ns = max(self.put_ns[name][newest[name]] for name in trigger)
        captured_ns = {n: self.epoch_ns + self._due_ns.get((n, i), 0) for n, i in newest.items()}
        self.record(handed_ns, captured_ns, model_ns, finite, said)

    def record(
        self,
        handed_ns: int,
        captured_ns: dict[str, float],
        model_ns: int,
        finite: bool,
        said: int = 0,
    ) -> None:
        """Write down an output that reaches the user now, unless the peer was told to stop."""
        if self._asked_ns:
            return
        now_ns = time.monotonic_ns()
        ages = (now_ns - captured_ns[name] for name in ("video", "audio", "imu"))
        self.outputs.append(Output(now_ns, handed_ns, model_ns, *ages, finite, said))
        self.first.set()
        if self.scenario == "sink-block" and len(self.outputs) == self.middle:
            time.sleep(self.seconds / 5)

    def strike_model(self) -> None:
        """What the scenario does to the model, in each of its runs."""
        self._calls += 1
        if self.scenario == "exception" and self._calls == self.middle:
            self.save("the process ended with the exception")  # in case that it does
            raise RuntimeError("the model fails once, as the scenario says")
        if self.scenario == "overload":
            time.sleep(3 * PERIOD_S)

    def handle(self, modality: str, index: int, data: Any) -> None:
        """Take a sample, and where that makes an output due, fuse and emit."""
        if self.take(modality, index, data):
            self.emit(*self.fuse())

    def save(self, error: str = "", **more: Any) -> None:
        """Write the record as JSON; times of outputs from the start."""
        outputs = [
            (o[0] - self.epoch_ns, o[1] - self.epoch_ns, *(None if x != x else x for x in o[2:]))
            for o in self.outputs
        ]
        record = {
            "scheduled": {m: sum(e.modality == m for e in self.events) for m in MODALITIES},
            "fed": {name: len(put) for name, put in self.put_ns.items()},
            "arrived": self.arrived,
            "told": self.told,
            "refused": len(self.errors),
            "first_refusal": self.errors[0] if self.errors else "",
            "error": error,
            **self.usage,
            **more,
            "outputs": outputs,
        }
        Path(self.spec["out"]).write_text(json.dumps(record))


def audio(blocks: list[Any]) -> Any:
    """The newest blocks to float32 [1, 1, 8000], silence before the first."""
    window = np.zeros((1, 1, WINDOW["audio"]), dtype=np.float32)
    if blocks:
        sound = np.concatenate(blocks)
        window[0, 0, -len(sound) :] = sound
    return window


def imu(rows: list[Any]) -> Any:
    """The newest rows to float32 [1, 50, 6], rest before the first."""
    window = np.zeros((1, WINDOW["imu"], 6), dtype=np.float32)
    if rows:
        window[0, -len(rows) :] = rows
    return window


def children() -> list[int]:
    """All processes below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
            except OSError:  # it has just ended
                continue
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_s(foreign: bool) -> float:
    """Processor time of this process; or of those below it, in steps of 10 ms for each."""
    if not foreign:
        return time.process_time()
    ticks = 0
    for pid in children():
        try:
            ticks += sum(map(int, _stat(pid)[11:13]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_mb(foreign: bool) -> float:
    """Resident memory of this process; or of those below it, a page that two share counted twice."""
    pages = 0
    for pid in children() if foreign else [os.getpid()]:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
