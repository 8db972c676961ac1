"""Whole frames in, the aligned crop of one face out."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fusedge.bundle.errors import BundleError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime.front.crop import aligned
from fusedge.runtime.front.face_front import LEAST_WIDTH, FaceFront, FaceTally
from fusedge.runtime.front.faces import Face, FaceDetector, Region, merged, whole
from fusedge.runtime.front.sighting import FacesSeen, Sightings
from fusedge.runtime.sample_stream import SampleStream
from tests.runtime.front_parts import SIDE, BlobDetector, face_modality, face_part

Frame = NDArray[np.uint8]


def frame_with(*faces: tuple[float, float, float], size: tuple[int, int] = (360, 640)) -> Frame:
    """Blobs as (x, y, width) on black."""
    frame = np.zeros((*size, 3), np.uint8)
    for x, y, width in faces:
        half = width / 2
        cv2.ellipse(frame, ((x, y), (2 * half, 2 * half), 0), (250, 240, 230), -1)
    return frame


class Bench:
    """A front end over a detector that finds blobs, and what it has seen."""

    def __init__(self, **changes: Any) -> None:
        self.tally, self.sightings, self.backend = FaceTally(), Sightings(), BlobDetector()
        self.detector = FaceDetector(face_part(boxes=300), self.backend.run)
        self.front = FaceFront(face_modality(**changes), self.detector, self.tally, self.sightings)
        self.at_ns = -to_ns(0.1)

    def give(self, frame: NDArray[Any], time_ns: int | None = None) -> Sample | Rejection:
        """What becomes of a frame, by default of one 0.1 s after the last."""
        self.at_ns = self.at_ns + to_ns(0.1) if time_ns is None else time_ns
        (item,) = self.front.take(Sample("view", self.at_ns, self.at_ns + 7, frame))
        assert (item.modality, item.arrival_ns) == ("view", self.at_ns + 7)
        return item

    def outcome(self, frame: NDArray[Any]) -> str:
        item = self.give(frame)
        return item.reason if isinstance(item, Rejection) else "crop"

    @property
    def seen(self) -> FacesSeen:
        """The newest sighting."""
        sighting = self.sightings.at(self.at_ns + 7, 0)
        assert isinstance(sighting, FacesSeen)
        return sighting


def test_a_frame_becomes_the_crop_of_its_face_with_its_stamps() -> None:
    bench = Bench()
    item = bench.give(frame_with((200, 150, 90)))
    assert isinstance(item, Sample)
    assert item.data.shape == (12, 12, 1) and item.data.dtype == np.uint8
    assert (item.timestamp_ns, item.arrival_ns) == (0, 7)
    assert item.data[6, 6, 0] > 200
    seen = bench.seen
    assert (seen.height, seen.width) == (360, 640)
    (found,) = seen.faces
    assert found.drives and found.number == 1 and found.score == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(found.box, (155, 105, 90, 90), atol=5)
    told = seen.as_dict()
    assert told["frame"] == [640, 360] and told["faces"][0]["id"] == 1
    box = told["faces"][0]["box"]
    np.testing.assert_allclose(box, (155 / 640, 105 / 360, 90 / 640, 90 / 360), atol=0.015)


def test_a_frame_without_a_face_is_none() -> None:
    bench = Bench()
    assert bench.outcome(frame_with()) == "no_face"
    assert bench.seen.faces == ()
    assert bench.tally.as_dict() == {
        "frames": 1, "frames_with_face": 0, "faces": 0, "samples": 0,
    }  # fmt: skip


def test_frames_between_those_that_the_rate_asks_for_are_not_searched() -> None:
    bench = Bench()
    frame = frame_with((200, 150, 90))
    items = [bench.give(frame, to_ns(number / 30)) for number in range(90)]
    reasons = Counter(i.reason if isinstance(i, Rejection) else "crop" for i in items)
    assert reasons == {"crop": 31, "superseded": 59}  # the first window ends at 0
    assert bench.tally.frames == 31


ONE_PICTURE = {"window_s": 0.1, "hop_s": 0.1, "max_hold_s": 0.1}  # a window, as of `emotion`


@pytest.mark.parametrize("jitter_s", [0, 0.01])
@pytest.mark.parametrize("fps", [5, 7.5, 9.5, 10, 12, 12.5, 14, 15, 20, 24, 25, 29.97, 30, 50, 60])
def test_each_window_that_can_have_a_new_crop_has_one_and_none_is_made_in_vain(
    fps: float, jitter_s: float
) -> None:
    rng = np.random.default_rng(1)
    frame = frame_with((60, 60, 40), size=(120, 120))
    for phase_s in (0, 0.013, 0.05, 0.099):
        bench = Bench(**ONE_PICTURE)
        stream = SampleStream(face_modality(**ONE_PICTURE))
        times_s = 5 + phase_s + np.arange(round(6 * fps)) / fps
        stamps = np.sort(times_s + rng.uniform(-jitter_s, jitter_s, len(times_s)))
        for stamp_ns in (to_ns(stamp) for stamp in stamps):
            while stream.due(stamp_ns):
                stream.cut()
            item = bench.give(frame, stamp_ns)
            if isinstance(item, Sample):
                noise = rng.integers(
                    0, 255, item.data.shape, np.uint8
                )  # no camera that stands still
                stream.push(item._replace(data=noise))
        while stream.due(bench.at_ns + to_ns(1)):
            stream.cut()
        stream.tidy()
        windows = {-(-to_ns(stamp) // to_ns(0.1)) for stamp in stamps}
        assert bench.tally.given == bench.tally.frames == len(windows)
        assert stream.account.used == len(windows) and not stream.account.dropped


@pytest.mark.parametrize("rate_hz", [10, 15, 30])
def test_windows_are_those_of_true_capture_times_however_late_in_an_epoch(rate_hz: int) -> None:
    latency_s, begin = 0.03, 1_800_000_000 * rate_hz  # points since 1970
    bench = Bench(rate_hz=rate_hz, window_s=2 / rate_hz, hop_s=1 / rate_hz, latency_s=latency_s)
    frame = frame_with()
    for number in range(3):
        point_ns = (begin + number) * 1_000_000_000 // rate_hz + to_ns(latency_s)
        for after_ns in (-5_000_000, -10, 10):  # the last belongs to the window after that
            bench.give(frame, point_ns + after_ns)
    assert bench.tally.frames == 4


def test_a_stamp_that_steps_back_by_a_frame_makes_nobody_new() -> None:
    bench = Bench()
    frame = frame_with((200, 150, 90))
    for number in range(60):
        for stamp in (number, number - 1):
            bench.give(frame, to_ns(stamp / 30))
    assert bench.tally.as_dict()["faces"] == 1
    assert bench.tally.frames == 21


@pytest.mark.parametrize("fps", [2, 5, 7, 10, 30])
def test_stamps_that_repeat_make_nobody_new(fps: int) -> None:
    bench = Bench()
    frame = frame_with((200, 150, 90))
    for number in range(6 * fps):
        for _ in range(2):
            bench.give(frame, to_ns(number / fps))
    assert bench.tally.as_dict()["faces"] == 1


def test_stamps_that_leap_stop_nothing() -> None:
    bench = Bench()
    frame = frame_with((200, 150, 90))
    for time_s in (100, 5, 1e6, 0, 0.1, 0.2):
        assert isinstance(bench.give(frame, to_ns(time_s)), Sample)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_frames_and_transparent_ones_are_frames(channels: int) -> None:
    frame = frame_with((200, 150, 90))
    extra = np.zeros((*frame.shape[:2], 1), np.uint8)
    shaped = {1: frame[:, :, :1], 3: frame, 4: np.concatenate([frame, extra], axis=2)}[channels]
    assert Bench().outcome(shaped) == "crop"


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_what_is_no_frame_is_malformed(frame: NDArray[Any]) -> None:
    assert Bench().outcome(frame) == "malformed"


def test_frames_may_change_their_size() -> None:
    bench = Bench()
    sizes = [(360, 640), (720, 1280), (1280, 720), (48, 64), (1, 1), (1, 500), (360, 640)]
    outcomes = [
        bench.outcome(frame_with((w / 2, h / 2, min(h, w) / 2), size=(h, w))) for h, w in sizes
    ]
    assert outcomes[:4] == ["crop"] * 4 and outcomes[-1] == "crop"
    assert set(outcomes[4:6]) <= {"no_face", "face_too_small"}


def test_of_20_faces_all_are_reported_and_the_largest_drives() -> None:
    faces = [(60.0 + 120 * x, 80.0 + 160 * y, 40.0 + x + y) for x in range(5) for y in range(4)]
    bench = Bench()
    frame = frame_with(*faces, size=(720, 720))
    assert [bench.outcome(frame) for _ in range(5)] == ["crop"] * 5
    assert len(bench.seen.faces) == 20
    assert {face.number for face in bench.seen.faces} == set(range(1, 21))
    (driving,) = (face for face in bench.seen.faces if face.drives)
    assert driving.box[2] >= 0.9 * max(face.box[2] for face in bench.seen.faces)
    assert bench.tally.faces == 20


def test_a_face_of_10_pixels_is_reported_but_does_not_drive() -> None:
    bench = Bench()
    frame = frame_with((200, 150, 10))
    outcomes = {bench.outcome(frame) for _ in range(20)}
    assert outcomes <= {"no_face", "face_too_small"} and "face_too_small" in outcomes
    assert bench.seen.faces[0].box[2] == pytest.approx(10, abs=2)
    assert Bench().outcome(frame_with((200, 150, 1.5 * LEAST_WIDTH))) == "crop"


@pytest.mark.parametrize(("left", "outcome"), [(-20, "crop"), (-35, "crop"), (-45, "face_cut_off")])
def test_a_face_of_which_much_is_out_of_the_frame_does_not_drive(left: float, outcome: str) -> None:
    bench = Bench()
    _, face = upright_face()
    box = np.array([left, 100, 100, 100], np.float32)
    bench.detector.faces = lambda *_: [face._replace(box=box)]  # type: ignore[method-assign]
    assert bench.outcome(frame_with()) == outcome
    assert len(bench.seen.faces) == 1


def test_a_small_face_that_the_whole_frame_hides_is_found_by_tiles_and_then_kept() -> None:
    bench = Bench()
    frame = frame_with((1100, 600, 30), size=(720, 1280))
    frame[frame > 0] = 250

    def only_large(feeds: dict[str, Any]) -> list[NDArray[Any]]:
        scores, boxes = bench.backend.run(feeds)
        scores[boxes[..., 2] * SIDE < 8] = 0  # a real detector sees none that are smaller
        return [scores, boxes]

    bench.detector._run = only_large
    outcomes = [bench.outcome(frame) for _ in range(40)]
    assert "crop" in outcomes
    assert set(outcomes[outcomes.index("crop") :]) == {"crop"}
    assert len(bench.seen.faces) == 1 and bench.seen.faces[0].number == 1


def test_a_face_that_is_not_sure_is_looked_at_more_closely_before_it_counts() -> None:
    bench = Bench()
    frame = frame_with((300, 150, 60))
    seen: list[float] = []

    def wavering(feeds: dict[str, Any]) -> list[NDArray[Any]]:
        scores, boxes = bench.backend.run(feeds)
        width = boxes[0, 1, 2] * SIDE
        seen.append(width)
        scores[0, 1] = 0.95 if width > 30 else 0.6
        return [scores, boxes]

    bench.detector._run = wavering
    assert bench.outcome(frame) == "crop"
    assert max(seen) > 30 > min(seen)
    noise = Bench()
    noise.detector._run = lambda feeds: (
        [s * 0.6 for s in noise.backend.run(feeds)[:1]] + (noise.backend.run(feeds)[1:])
    )
    assert {noise.outcome(frame) for _ in range(30)} == {"no_face"}
    assert noise.tally.faces == 0


def test_a_frame_in_which_the_driving_face_is_missed_gives_nothing_of_another() -> None:
    bench = Bench()
    both = frame_with((100, 150, 80), (400, 150, 50))
    assert bench.outcome(both) == "crop"
    assert bench.outcome(frame_with((400, 150, 50))) == "no_face"
    assert bench.outcome(both) == "crop"
    assert [face.number for face in bench.seen.faces if face.drives] == [1]


def short_sighted(bench: Bench, widest: float = 0.6) -> None:
    """As a real detector, find no face from now on that is wider than so much of what is looked at."""

    def run(feeds: dict[str, Any]) -> list[NDArray[Any]]:
        scores, boxes = bench.backend.run(feeds)
        scores[boxes[..., 2] > widest] = 0
        return [scores, boxes]

    bench.detector._run = run


@pytest.mark.parametrize("size", [(300, 300), (720, 720), (720, 1280), (1280, 720)])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 1.0])
def test_a_face_that_fills_the_frame_is_found_in_the_second_one_at_the_latest_and_kept(
    size: tuple[int, int], share: float
) -> None:
    bench = Bench()
    short_sighted(bench)
    frame = frame_with((size[1] / 2, size[0] / 2, share * min(size)), size=size)
    outcomes = [bench.outcome(frame) for _ in range(20)]
    assert outcomes[0] in ("no_face", "crop") and set(outcomes[1:]) == {"crop"}
    (face,) = bench.seen.faces
    assert face.number == 1 and face.drives
    assert face.box[2] == pytest.approx(share * min(size), rel=0.1)


def test_who_comes_near_and_goes_away_again_stays_the_same() -> None:
    bench = Bench()
    short_sighted(bench)
    shares = np.concatenate([np.linspace(0.1, 1, 40), np.linspace(1, 0.1, 40)])
    for share in shares:
        assert bench.outcome(frame_with((200, 200, share * 400), size=(400, 400))) == "crop"
    assert bench.tally.faces == 1


def test_who_is_near_all_at_once_is_soon_found_again() -> None:
    bench = Bench()
    short_sighted(bench)
    for share in (0.2, 0.95, 0.2, 0.95):
        frame = frame_with((200, 200, share * 400), size=(400, 400))
        outcomes = [bench.outcome(frame) for _ in range(20)]
        assert set(outcomes[12:]) == {"crop"}, share


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_look_costs_one_run_of_the_detector(share: float) -> None:
    bench = Bench()
    short_sighted(bench)
    for number in range(1, 21):
        bench.give(frame_with((150, 150, share * 300), size=(300, 300)))
        assert bench.backend.runs == number


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200), st.sampled_from([1, 3, 4])),
    seed=st.integers(0, 2**32 - 1),
    outputs=st.sampled_from(["noise", "nan", "inf", "negative", "huge"]),
)
def test_no_frame_and_nothing_that_the_detector_says_raises(
    size: tuple[int, int, int], seed: int, outputs: str
) -> None:
    rng = np.random.default_rng(seed)
    bench = Bench()

    def wild(feeds: dict[str, Any]) -> list[NDArray[Any]]:
        scores = rng.uniform(0, 1, (1, 300)).astype(np.float32)
        boxes = rng.normal(0.5, 0.5, (1, 300, 16)).astype(np.float32)
        spoil: dict[str, float] = {"nan": np.nan, "inf": np.inf, "huge": 1e30, "negative": -1}
        if outputs in spoil:
            boxes[0, ::3] = spoil[outputs]
            scores[0, ::5] = spoil[outputs]
        return [scores, boxes]

    bench.detector._run = wild
    for _ in range(3):
        item = bench.give(rng.integers(0, 256, size, dtype=np.uint8))
        assert isinstance(item, Rejection) or item.data.shape == (12, 12, 1)
    assert all(len(s.faces) <= 32 for s in bench.sightings._kept if isinstance(s, FacesSeen))


def test_an_hour_without_a_face_needs_no_more_memory_than_a_minute() -> None:
    bench = Bench()
    nothing = [np.zeros((1, 300), np.float32), np.zeros((1, 300, 16), np.float32)]
    bench.detector._run = lambda feeds: nothing
    frame = frame_with(size=(48, 64))
    for _ in range(32_000):
        bench.give(frame)
    tracemalloc.start()
    for _ in range(500):
        bench.give(frame)
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(3_500):
        bench.give(frame)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 20_000
    assert bench.tally.as_dict() == {
        "frames": 36_000, "frames_with_face": 0, "faces": 0, "samples": 0,
    }  # fmt: skip


def upright_face(side: int = 400, roll_degrees: float = 0.0) -> tuple[Frame, Face]:
    """A face drawn as FER+ frames one, in the middle of a frame: dark eyes and mouth on grey."""
    frame = np.full((2 * side, 2 * side, 3), 128, np.uint8)
    middle = np.array([0.494, 0.579])  # of eyes and mouth in the crop
    points = {
        "right": middle - np.array([0.178, 0.1925]),
        "left": middle + np.array([0.178, -0.1925]),
        "nose": middle,
        "mouth": middle + np.array([0, 0.1925]),
    }
    turn = np.radians(roll_degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    drawn = {n: (rotation @ (p - 0.5)) * side * 1.035 + side for n, p in points.items()}
    for name in ("right", "left", "mouth"):
        x, y = drawn[name]
        cv2.circle(frame, (round(x), round(y)), side // 20, (0, 0, 0), -1)
    landmarks = np.array([drawn[n] for n in ("right", "left", "nose", "mouth", "right", "left")])
    box = np.array([side - 0.4 * side, side - 0.4 * side, 0.8 * side, 0.8 * side], np.float32)
    return frame, Face(box, 0.9, landmarks.astype(np.float32))


def dark_spots(crop: Frame) -> NDArray[np.float64]:
    """Middles (x, y) of what is dark, as shares of the side, left eye first, mouth last."""
    _, _, _, middles = cv2.connectedComponentsWithStats((crop[:, :, 0] < 90).astype(np.uint8))
    spots = (middles[1:] + 0.5) / crop.shape[0]
    return spots[np.lexsort((spots[:, 0], spots[:, 1] > 0.6))]


@pytest.mark.parametrize("roll_degrees", [-40, -15, 0, 10, 30, 90])
@pytest.mark.parametrize("side", [60, 400, 1500])
def test_eyes_come_to_lie_level_and_where_they_are_in_the_training_pictures(
    side: int, roll_degrees: float
) -> None:
    crop = aligned(*upright_face(side, roll_degrees), 48, 1)
    wanted = [(0.316, 0.3865), (0.672, 0.3865), (0.494, 0.7715)]
    np.testing.assert_allclose(dark_spots(crop), wanted, atol=0.03)


def test_a_turned_head_is_not_cut_closer() -> None:
    frame, face = upright_face()
    profile = face.landmarks.copy()
    profile[0], profile[1] = profile[:2].mean(axis=0) + 3, profile[:2].mean(axis=0) - 3
    crop = aligned(frame, face._replace(landmarks=profile), 48, 1)
    assert dark_spots(crop)[2] == pytest.approx((0.494, 0.7715), abs=0.04)


def test_a_crop_is_a_mean_of_what_lies_under_it_and_no_sieve() -> None:
    frame = np.zeros((800, 800, 3), np.uint8)
    frame[::2, ::2] = 255
    _, face = upright_face()
    crop = aligned(frame, face, 48, 3)
    assert crop.shape == (48, 48, 3)
    assert abs(crop.astype(float).mean() - 255 / 4) < 4 and crop.std() < 12


def test_the_edge_goes_on_where_the_frame_ends() -> None:
    frame, face = upright_face()
    part = np.ascontiguousarray(frame[:, 400:])  # the right half of the face
    moved = face._replace(
        box=face.box - np.array([400, 0, 0, 0], np.float32),
        landmarks=face.landmarks - np.array([400, 0], np.float32),
    )
    whole_crop, half_crop = aligned(frame, face, 48, 1), aligned(part, moved, 48, 1)
    np.testing.assert_array_equal(half_crop[:, 26:], whole_crop[:, 26:])
    assert (half_crop[:, 0] == half_crop[:, 20]).all()


def test_boxes_of_one_face_become_their_weighted_mean() -> None:
    corner = np.array([[0, 0], [100, 100], [50, 50]], np.float32)
    boxes = np.stack(
        [corner, corner + np.array([[10, 0], [0, 0], [10, 0]]), corner + np.array([[500, 0]] * 3)]
    )
    faces = merged(boxes.astype(np.float32), np.array([0.9, 0.6, 0.7], np.float32))
    assert [face.score for face in faces] == pytest.approx([0.9, 0.7])
    np.testing.assert_allclose(faces[0].box, [4, 0, 100, 100], atol=1e-3)
    np.testing.assert_allclose(faces[0].landmarks, [[54, 50]], atol=1e-3)


def test_a_region_over_the_edge_is_black_there_and_places_are_right() -> None:
    detector = FaceDetector(face_part(boxes=300), BlobDetector().run)
    frame = frame_with((20, 20, 30))
    for region in (
        whole(360, 640),
        Region(-30, -30, 100),
        Region(-5.5, 3.2, 61),
        Region(0, 0, 360),
    ):
        (face,) = detector.faces(frame, region, 0.5)
        np.testing.assert_allclose(face.centre, (20, 20), atol=6)
    assert detector.faces(frame, Region(5000, 5000, 100), 0.5) == []


@pytest.mark.parametrize("size", [(720, 1280), (719, 1279), (717, 1273), (475, 635), (1271, 713)])
@pytest.mark.parametrize("corner", ["whole", "near", "far"])
def test_a_face_is_where_it_is_whatever_the_length_of_what_is_shrunk(
    size: tuple[int, int], corner: str
) -> None:
    height, width = size
    detector = FaceDetector(face_part(boxes=300), BlobDetector().run)
    x, y = (70.0, 70.0) if corner == "near" else (width - 70.0, height - 70.0)
    side = min(size) - 6.0
    region = {
        "whole": whole(height, width),
        "near": Region(0, 0, side),
        "far": Region(width - side, height - side, side),
    }[corner]
    (face,) = detector.faces(frame_with((x, y, 90), size=size), region, 0.5)
    pixel = region.side / SIDE
    np.testing.assert_allclose(face.centre, (x, y), atol=0.8 * pixel)
    assert face.width == pytest.approx(90, abs=1.6 * pixel)


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": face_part().inputs * 2},
        {"inputs": (face_part().inputs[0].model_copy(update={"dtype": "float32"}),)},
        {"inputs": (face_part().inputs[0].model_copy(update={"shape": ("batch", 9, 8, 3)}),)},
        {"outputs": face_part().outputs[:1]},
        {"outputs": (face_part().outputs[0], face_part(boxes=4).outputs[1])},
    ],
)
def test_a_part_that_is_no_face_detector_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="is no face detector"):
        FaceDetector(face_part().model_copy(update=changes), BlobDetector().run)


def test_a_face_that_is_not_square_is_refused() -> None:
    with pytest.raises(BundleError, match="a face is square"):
        Bench(height=10)
