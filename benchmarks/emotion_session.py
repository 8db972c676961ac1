"""What the task emotion costs, on a film of 1280x720 at 30 Hz: `python -m benchmarks.emotion_session`.

The film is the RAVDESS clip (in FUSEDGE_DATA), its pictures there and back, so that nobody jumps. The
bundle is the one that `fusedge demo emotion` has exported. First its parts, each on one thread, in turn for
each decision, so that the machine's noise meets all; times are the thread's own. Then `fusedge run` in
real time, of which the processor time of all processes counts, start and end left out.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.face_front import CLIPS, RATE_HZ, frames_of
from benchmarks.figures import Figure, at_most, told
from benchmarks.figures import main as show
from fusedge.bundle.archive import Bundle
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import to_ns
from fusedge.cli.tasks import shipped_bundle
from fusedge.devices.capture.decoding import Sound
from fusedge.runtime.front.crop import aligned
from fusedge.runtime.front.face_front import FaceFront, FaceTally
from fusedge.runtime.front.faces import FaceDetector, whole
from fusedge.runtime.front.sighting import Sightings
from fusedge.runtime.front.tracking import KEEP_SCORE
from fusedge.runtime.front.voice_activity import VoiceActivity
from fusedge.runtime.onnx_part import OnnxPart
from fusedge.runtime.part_tensors import zeros

CLIP = CLIPS / "ravdess_01-01-01-01-01-01-01.mp4"
FRAMES_HZ = 30
BIT_RATE = 6_000_000
SHORT_S, LONG_S = 10, 40  # of two runs, whose difference is without start and end
Times = dict[str, list[float]]


def sound_of(clip: Path, bundle: Bundle) -> NDArray[np.float32]:
    """All of the clip's sound as the bundle takes it, float32 `[samples, 1]`."""
    with av.open(str(clip)) as film:
        stream = film.streams.audio[0]
        converter = Sound(
            bundle.manifest.modality("voice"), stream.codec_context.channels, stream.rate
        )
        blocks = (converter.block(frame, 0) for frame in film.decode(stream))
        return np.concatenate([block.data for block in blocks if block is not None])


def write_film(path: Path, clip: Path, length_s: float) -> None:
    """The clip's pictures there and back at 30 Hz, and its sound from the start again and again."""
    pictures = list(frames_of(clip))
    pictures += pictures[-2:0:-1]
    with av.open(str(clip)) as source:
        stream = source.streams.audio[0]
        sound = np.concatenate([f.to_ndarray() for f in source.decode(stream)], axis=1)
        layout, rate_hz = stream.layout.name, stream.rate
    with av.open(str(path), "w") as film:
        video = film.add_stream("libx264", rate=FRAMES_HZ, options={"preset": "veryfast"})
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt, video.bit_rate = "yuv420p", BIT_RATE
        audio = film.add_stream("aac", rate=rate_hz)
        audio.layout = layout
        for number in range(round(length_s * FRAMES_HZ)):
            frame = av.VideoFrame.from_ndarray(pictures[number % len(pictures)], "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FRAMES_HZ)
            film.mux(video.encode(frame))
        for begin in range(0, round(length_s * rate_hz), 1024):
            samples = sound.take(range(begin, begin + 1024), axis=1, mode="wrap")
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
            block.sample_rate, block.pts, block.time_base = rate_hz, begin, Fraction(1, rate_hz)
            film.mux(audio.encode(block))
        film.mux(video.encode(None))
        film.mux(audio.encode(None))


class Stopwatch:
    """The thread's own time of calls, by what they do."""

    def __init__(self) -> None:
        self.times_s: Times = defaultdict(list)

    def timed(self, what: str, call: Callable[[], Any]) -> Any:
        started = thread_time()
        result = call()
        self.times_s[what].append(thread_time() - started)
        return result


def parts(bundle: Bundle, rounds: int) -> Times:
    """Each part on its own, in turn, a decision a round."""
    manifest = bundle.manifest
    by_name = {part.name: part for part in manifest.parts}
    loaded = {name: OnnxPart(bundle, part, "cpu", "fp32") for name, part in by_name.items()}
    spec, voice = manifest.modality("face"), by_name["voice"]
    side = spec.height or 0
    detector = FaceDetector(by_name["face_detector"], loaded["face_detector"].run)
    front = FaceFront(spec, detector, FaceTally(), Sightings())
    activity = VoiceActivity(by_name["voice_activity"], loaded["voice_activity"].run, 16_000)
    pictures, sound = list(frames_of(CLIP))[::3], sound_of(CLIP, bundle)[:, 0]
    hop = round(manifest.modality("voice").hop_s * 16_000)
    feeds, heard = zeros(voice, 1), [spec.name for spec in voice.outputs]
    watch = Stopwatch()
    for number in range(rounds):
        frame, region = pictures[number % len(pictures)], whole(*pictures[0].shape[:2])
        find = partial(detector.faces, frame, region, KEEP_SCORE)
        face = watch.timed("detection", find)[0]
        crop = watch.timed("crop", lambda: aligned(frame, face, side, 1))  # noqa: B023
        watch.timed("face", lambda: loaded["face"].run({"window": crop[None, None]}))  # noqa: B023
        at_ns = to_ns(number / RATE_HZ)
        item = Sample("face", at_ns, at_ns, frame)
        watch.timed("face front end", lambda: list(front.take(item)))  # noqa: B023
        begin = number * hop % (len(sound) - hop)
        feeds["window"] = sound[None, begin : begin + hop, None]
        feeds["valid"] = np.ones_like(feeds["window"])
        outputs = watch.timed("voice", lambda: loaded["voice"].run(feeds))
        for pair in voice.state:
            feeds[pair.input] = outputs[heard.index(pair.output)]
        step = sound[begin : begin + activity.step]
        watch.timed("voice activity", lambda: activity.probability(step))  # noqa: B023
        watch.timed("head", lambda: loaded["head"].run(zeros(by_name["head"], 1)))
    return watch.times_s


def processor_s(bundle: Bundle, film: Path) -> float:
    """Of all processes of a run in real time."""
    fusedge = "import sys; from fusedge.cli.main import main; sys.exit(main())"
    words = ["run", str(bundle.path), "--source", f"file:{film}", "--speed", "1", "--no-table"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", fusedge, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def session(bundle: Bundle) -> float:
    """Processor time a second of stream."""
    with tempfile.TemporaryDirectory() as folder:
        taken = {}
        for length_s in (SHORT_S, LONG_S):
            film = Path(folder) / f"{length_s}.mp4"
            write_film(film, CLIP, length_s)
            taken[length_s] = processor_s(bundle, film)
    return (taken[LONG_S] - taken[SHORT_S]) / (LONG_S - SHORT_S)


def measure(arguments: argparse.Namespace) -> list[Figure]:
    cv2.setNumThreads(1)
    bundle = shipped_bundle("emotion")
    times = parts(bundle, arguments.rounds)
    median_ms = {what: 1e3 * statistics.median(taken) for what, taken in times.items()}
    late_ms = {what: 1e3 * float(np.quantile(taken, 0.9)) for what, taken in times.items()}
    figures = []
    for what, value in median_ms.items():
        figures += [
            told(f"{what}, median", value, "ms"),
            told("  of ten, the slowest but one takes less than", late_ms[what], "ms"),
        ]
    face_ms = median_ms["detection"] + median_ms["face"]
    a_second_ms = RATE_HZ * (median_ms["face front end"] + median_ms["face"] + median_ms["head"])
    a_second_ms += RATE_HZ * median_ms["voice"] + 31.25 * median_ms["voice activity"]
    cores = session(bundle)
    return [
        *figures,
        at_most("detection and face encoder, medians", face_ms, 8, "ms"),
        at_most("  with the crop", face_ms + median_ms["crop"], 8, "ms"),
        at_most("voice encoder, a hop", median_ms["voice"], 3, "ms"),
        told("face encoder of detection", median_ms["face"] / median_ms["detection"]),
        at_most("whole session in real time, of a core", cores, 1),
        told("  of which its parts, at their rates", a_second_ms / 1e3 / cores),
    ]


if __name__ == "__main__":
    show(__doc__, measure, rounds=300)
