from __future__ import annotations

import gc
import os
import re
import struct
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Request, Wanted, parse
from fusedge.devices.capture.file import open_file
from fusedge.devices.capture.isolated import IsolatedSource
from fusedge.devices.capture.media import MAX_FALL_NS, MAX_LEAP_NS, StreamTime, Timeline
from fusedge.devices.capture.source import SCHEMES, Source
from tests.devices.modalities import audio, by_name, image, series
from tests.media_clip import WHITE, write_clip

ROOT = Path(__file__).parents[2]
BOTH = by_name(image("camera", 24, 32), audio("microphone", 16_000))
SECOND = 1_000_000_000


def opened(path: Path | str, wanted: Wanted = None, options: str = "", **more: Any) -> Source:
    return open_file(Request(parse(f"file:{path}{options}", SCHEMES), wanted, lambda: 0, **more))


def play(path: Path | str, wanted: Wanted = None, options: str = "") -> list[Sample | Rejection]:
    source = opened(path, wanted, options)
    items = list(source.samples())
    source.close()
    arrivals = [item.arrival_ns for item in items]
    assert arrivals == sorted(arrivals)
    return items


def samples(items: list[Sample | Rejection], modality: str) -> list[Sample]:
    return [item for item in items if isinstance(item, Sample) and item.modality == modality]


def rejections(items: list[Sample | Rejection]) -> list[Rejection]:
    return [item for item in items if isinstance(item, Rejection)]


def flashes(items: list[Sample | Rejection]) -> list[float]:
    """When the picture turns white, s."""
    pictures = samples(items, "camera")
    bright = [p.data[:, p.data.shape[1] // 2 :].mean() > 120 for p in pictures]
    return [
        p.timestamp_ns / SECOND
        for p, now, before in zip(pictures, bright, [False, *bright], strict=False)
        if now and not before
    ]


def beeps(items: list[Sample | Rejection], rate_hz: int) -> list[float]:
    """When a tone begins after silence, s."""
    found: list[float] = []
    last_s = -1.0
    for block in samples(items, "microphone"):
        count = len(block.data)
        for place in np.flatnonzero(np.abs(block.data[:, 0]) > 0.1):
            time_s = block.timestamp_ns / SECOND - (count - 1 - place) / rate_hz
            if time_s - last_s > 0.5:
                found.append(time_s)
            last_s = time_s
    return found


def refusal(path: Path | str, wanted: Wanted = None, options: str = "") -> str:
    with pytest.raises(FusedgeError) as caught:
        opened(path, wanted, options)
    line = caught.value.line()
    assert "\n" not in line
    return line


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "drive.mp4", options={"bf": "2", "g": "25"}, channels=2)
    write_clip(folder / "drive.ts")
    write_clip(folder / "drive.mkv", stamps=[0, 40, 100, 300, 333, 900, 2000, 2900])
    write_clip(folder / "drive.avi", video="mjpeg", audio="pcm_s16le")
    write_clip(folder / "talk.wav", video=None, audio="pcm_s16le")
    write_clip(folder / "mute.mov", 1, video="mjpeg", audio=None)
    write_clip(folder / "web.webm", 1, video="libvpx-vp9", audio="libopus")
    return folder


@pytest.mark.parametrize("name", ["drive.mp4", "talk.wav", "drive.ts"])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
def test_sound_comes_in_short_pieces_however_long_the_packets_are(
    clips: Path, name: str, rate_hz: int
) -> None:
    sound = samples(play(clips / name, by_name(audio("microphone", rate_hz))), "microphone")
    assert max(len(piece.data) for piece in sound) <= 0.02 * rate_hz
    for before, piece in pairwise(sound):
        length_s = (piece.timestamp_ns - before.timestamp_ns) / SECOND
        assert length_s == pytest.approx(len(piece.data) / rate_hz, abs=1.5e-3)
        assert piece.arrival_ns >= piece.timestamp_ns


def test_pictures_and_sound_come_on_one_clock_from_zero(clips: Path) -> None:
    items = play(clips / "drive.mp4")
    assert not rejections(items)
    pictures, sound = samples(items, "camera"), samples(items, "microphone")
    assert [p.timestamp_ns for p in pictures] == [n * SECOND // 25 for n in range(75)]
    assert {p.data.shape for p in pictures} == {(48, 64, 3)}
    assert all(item.arrival_ns == item.timestamp_ns for item in pictures + sound)
    assert sum(len(block.data) for block in sound) == pytest.approx(3 * 48_000, abs=1024)
    assert {block.data.shape[1] for block in sound} == {2}
    assert flashes(items) == [0, 1, 2]
    assert beeps(items, 48_000) == pytest.approx([0, 1, 2], abs=0.003)


def test_red_green_and_blue_are_in_this_order(clips: Path) -> None:
    picture = samples(play(clips / "drive.mp4"), "camera")[10].data
    red, green, blue = picture[24, 8]
    assert red > 170
    assert green < 40
    assert blue < 40


def test_items_are_the_same_every_time(clips: Path) -> None:
    first, second = play(clips / "drive.mp4", BOTH), play(clips / "drive.mp4", BOTH)
    assert len(first) == len(second) > 150
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, Sample) and isinstance(other, Sample)
        assert one[:3] == other[:3]
        assert np.array_equal(one.data, other.data)


def test_items_are_the_same_out_of_a_process_of_its_own(clips: Path) -> None:
    uri = f"file:{clips / 'drive.mp4'}"
    opener = "fusedge.devices.capture.file:open_file"
    source = IsolatedSource(uri, parse(uri, SCHEMES), BOTH, opener=opener)
    for one, other in zip(play(clips / "drive.mp4", BOTH), source.samples(), strict=True):
        assert isinstance(one, Sample) and isinstance(other, Sample)
        assert one[:3] == other[:3]
        assert np.array_equal(one.data, other.data)
    source.close()


def test_what_comes_has_the_size_rate_and_channels_that_are_wanted(clips: Path) -> None:
    items = play(clips / "drive.mp4", BOTH)
    assert {p.data.shape for p in samples(items, "camera")} == {(24, 32, 3)}
    sound = samples(items, "microphone")
    assert {block.data.shape[1] for block in sound} == {1}
    assert sum(len(block.data) for block in sound) == pytest.approx(3 * 16_000, rel=0.03)
    assert flashes(items) == [0, 1, 2]
    assert beeps(items, 16_000) == pytest.approx([0, 1, 2], abs=0.003)


def test_a_picture_of_one_channel_is_grey_from_black_to_white(clips: Path) -> None:
    items = play(clips / "drive.avi", by_name(image("camera", 24, 32, channels="y")))
    pictures = samples(items, "camera")
    assert {p.data.shape for p in pictures} == {(24, 32, 1)}
    assert pictures[0].data[:, 20:].mean() == pytest.approx(WHITE, abs=3)
    assert pictures[10].data[:, 20:].mean() == pytest.approx(30, abs=3)


def test_pictures_are_made_in_the_memory_that_is_given(clips: Path) -> None:
    given_out: list[Any] = []

    def allocate(shape: tuple[int, ...]) -> Any:
        given_out.append(np.empty(shape, np.uint8))
        return given_out[-1]

    source = opened(clips / "drive.mp4", BOTH, allocate=allocate)
    pictures = samples(list(source.samples()), "camera")
    assert [id(p.data) for p in pictures] == [id(array) for array in given_out]


@pytest.mark.parametrize("wanted", ["camera", "microphone"])
def test_only_what_is_wanted_comes(clips: Path, wanted: str) -> None:
    source = opened(clips / "drive.mp4", {wanted: BOTH[wanted]})
    assert source.modalities == (wanted,)
    assert {item.modality for item in source.samples()} == {wanted}
    assert not source.live
    assert not source.warnings


def test_options_name_the_modalities(clips: Path) -> None:
    source = opened(clips / "drive.mp4", None, "?modality=road&sound=cabin")
    assert source.modalities == ("road", "cabin")
    assert source.channels["road"] == ("red", "green", "blue")
    assert source.channels["cabin"] == ("sound_1", "sound_2")
    source.close()


def test_what_the_file_lacks_is_a_warning_and_all_of_it_an_error(clips: Path) -> None:
    source = opened(clips / "talk.wav", BOTH)
    assert source.modalities == ("microphone",)
    assert "no camera, for it has no video stream" in source.warnings[0]
    source.close()
    assert "no video stream" in refusal(clips / "talk.wav", by_name(image("camera", 2, 2)))
    assert "none of the wanted" in refusal(clips / "talk.wav", by_name(series("imu", {"x": "1"})))
    five = by_name(audio("microphone", channels=5))
    assert "2 channels of sound, microphone 5" in refusal(clips / "drive.mp4", five)
    two = by_name(image("camera", 2, 2, channels="ab"))
    assert "2 channels, a picture 1 or 3" in refusal(clips / "drive.mp4", two)
    several = by_name(image("left", 2, 2), image("right", 2, 2))
    assert "modality=left" in refusal(clips / "drive.mp4", several)


def test_pictures_that_come_unevenly_keep_their_times(clips: Path) -> None:
    pictures = samples(play(clips / "drive.mkv"), "camera")
    times_ms = [p.timestamp_ns / 1e6 for p in pictures]
    assert times_ms == [0, 40, 100, 300, 333, 900, 2000, 2900]


def test_sound_of_eight_channels_is_read(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "room.mkv", video=None, audio="libopus", channels=8)
    (first, *_), mono = samples(play(path), "microphone"), play(path, BOTH)
    assert first.data.shape[1] == 8
    assert beeps(mono, 16_000) == pytest.approx([0, 1, 2], abs=0.003)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_sound_has_its_level_in_every_kind_of_number(tmp_path: Path, codec: str) -> None:
    path = write_clip(tmp_path / "tone.mov", 0.2, video=None, audio=codec)
    sound = np.concatenate([block.data for block in samples(play(path), "microphone")])
    assert sound.dtype == np.float32
    assert np.abs(sound[:4800]).max() == pytest.approx(0.5, abs=0.01)
    assert np.abs(sound[5500:]).max() < 0.01


def test_a_clock_that_wraps_goes_on(tmp_path: Path) -> None:
    start_s = (1 << 33) / 90_000 - 1.5  # MPEG-TS counts 33 bits of 90 kHz
    path = write_clip(
        tmp_path / "wrap.ts", container_options={"output_ts_offset": f"{start_s:.3f}"}
    )
    items = play(path)
    times_s = [p.timestamp_ns / SECOND for p in samples(items, "camera")]
    assert len(times_s) == 75
    assert np.diff(times_s) == pytest.approx([0.04] * 74, abs=1e-3)
    assert not rejections(items)


@pytest.mark.parametrize("offset_s", [0, 5000], ids=["back", "ahead"])
def test_stamps_that_leap_are_counted_and_time_goes_on_for_both(
    tmp_path: Path, offset_s: int
) -> None:
    first = write_clip(tmp_path / "1.ts", container_options={"output_ts_offset": "1000"})
    second = write_clip(
        tmp_path / "2.ts", container_options={"output_ts_offset": str(offset_s or 100)}
    )
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    items = play(joined)
    leaps = [r for r in rejections(items) if r.reason == "implausible_stamp"]
    assert len(leaps) == 1
    assert "stamps leap by" in leaps[0].detail
    assert items[-1].arrival_ns / SECOND == pytest.approx(6, abs=0.3)
    assert len(samples(items, "camera")) == pytest.approx(150, abs=3)
    seen, heard = flashes(items), beeps(items, 48_000)
    assert len(seen) == len(heard) == 6
    assert seen == pytest.approx(heard, abs=0.05)


def test_pictures_without_stamps_follow_at_their_rate_and_say_so(tmp_path: Path) -> None:
    data = bytearray(write_clip(tmp_path / "clip.ts", 1, options={"bf": "0"}).read_bytes())
    heads = [at for at in range(len(data)) if data[at : at + 4] == b"\0\0\1\xe0"]
    assert len(heads) == 25
    for at in heads[5:]:
        data[at + 7] &= 0x3F  # ISO 13818-1: PTS_DTS_flags
    path = tmp_path / "bare.ts"
    path.write_bytes(data)
    items = play(path)
    pictures = samples(items, "camera")
    assert [p.stamp for p in pictures] == ["capture"] * 5 + ["arrival"] * 20
    assert np.diff([p.timestamp_ns / SECOND for p in pictures]) == pytest.approx([0.04] * 24)
    (told,) = rejections(items)
    assert told.reason == "implausible_stamp"
    assert "stamps are missing" in told.detail


def test_a_stream_that_begins_later_harms_nothing(tmp_path: Path) -> None:
    mute = write_clip(tmp_path / "1.ts", audio=None)
    spoken = write_clip(tmp_path / "2.ts", container_options={"output_ts_offset": "3"})
    joined = tmp_path / "joined.ts"
    joined.write_bytes(mute.read_bytes() + spoken.read_bytes())
    for wanted in (None, BOTH):
        items = play(joined, wanted)
        assert not rejections(items)
        assert len(samples(items, "camera")) == 150


def test_sound_whose_rate_changes_is_followed(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "1.aac", video=None)
    second = write_clip(tmp_path / "2.aac", video=None, rate_hz=16_000)
    joined = tmp_path / "joined.aac"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    blocks = samples(play(joined, by_name(audio("microphone", 8_000))), "microphone")
    assert sum(len(block.data) for block in blocks) == pytest.approx(6 * 8_000, rel=0.1)


def test_a_file_that_ends_within_a_frame_ends_with_what_was_whole(
    clips: Path, tmp_path: Path
) -> None:
    whole = (clips / "drive.avi").read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: len(whole) // 2])
    pictures = samples(play(cut), "camera")
    expected = samples(play(clips / "drive.avi"), "camera")
    assert 30 < len(pictures) < 45
    for got, full in zip(pictures, expected, strict=False):
        assert got.timestamp_ns == full.timestamp_ns
        assert np.array_equal(got.data, full.data)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi", "ts"])
def test_sound_that_ends_before_the_pictures_is_told_and_no_fault(
    tmp_path: Path, suffix: str
) -> None:
    path = write_clip(tmp_path / f"a.{suffix}", 6, sound_s=2)
    for wanted in (BOTH, by_name(audio("microphone", 16_000))):
        items = play(path, wanted)
        assert not rejections(items)
        assert sum(len(one.data) for one in samples(items, "microphone")) > 1.9 * 16_000
    source = opened(path, BOTH)
    (warning,) = source.warnings
    source.close()
    assert re.search(r"microphone ends at 2\.\d s of 6\.\d s", warning)


@pytest.mark.parametrize("suffix", ["mkv", "mov"])  # of an AVI, FFmpeg guesses anew what it holds
def test_a_file_that_was_cut_off_says_where_each_stream_ends(tmp_path: Path, suffix: str) -> None:
    options = {"movflags": "faststart"} if suffix == "mov" else {}
    whole = write_clip(tmp_path / f"whole.{suffix}", 8, container_options=options)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    lost = {one.modality: one.detail for one in rejections(play(cut, BOTH))}
    assert set(lost) == {"camera", "microphone"}
    for detail in lost.values():
        assert re.search(r"ends at [2-5]\.\d+ s, where the file says 8\.\d+ s", detail)


def write_sound(path: Path, codec: str, bits: tuple[int, ...], **options: str) -> Path:
    """Sound of 6 s at each of some bits a second, one after the other."""
    path.write_bytes(b"")
    for place, bit_rate in enumerate(bits):
        part = path.with_name(f"{place}-{path.name}")
        with av.open(
            str(part), "w", format=path.suffix[1:].replace("aac", "adts"), options=options
        ) as file:
            stream = file.add_stream(codec, rate=48_000, layout="mono")
            stream.bit_rate = bit_rate
            noise = np.random.default_rng(1).normal(0, 0.1, (1, 6 * 48_000)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(noise, format="flt", layout="mono")
            frame.sample_rate = 48_000
            file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        path.write_bytes(path.read_bytes() + part.read_bytes())
    return path


PLAIN = {"write_xing": "0", "id3v2_version": "0"}


@pytest.mark.parametrize("bits", [(16_000, 192_000), (192_000, 16_000)])
@pytest.mark.parametrize(
    ("suffix", "codec", "options"), [("aac", "aac", {}), ("mp3", "libmp3lame", PLAIN)]
)
def test_a_length_that_is_a_guess_of_ffmpegs_is_none_that_the_file_says(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], bits: tuple[int, int]
) -> None:
    path = write_sound(tmp_path / f"a.{suffix}", codec, bits, **options)
    with av.open(str(path)) as file:
        assert file.duration is not None and not 10 < file.duration / 1e6 < 15, "it is wrong"
    items = play(path, by_name(audio("microphone", 16_000)))
    assert not rejections(items)
    assert sum(len(one.data) for one in samples(items, "microphone")) > 11.5 * 16_000


@pytest.mark.parametrize("suffix", ["ts", "flac", "ogg", "wav"])
def test_sound_that_is_whole_is_not_said_to_be_cut_off(tmp_path: Path, suffix: str) -> None:
    codec = {"ts": "aac", "ogg": "libopus", "wav": "pcm_s16le"}.get(suffix, suffix)
    path = write_clip(tmp_path / f"a.{suffix}", 6, video=None, audio=codec)
    assert not rejections(play(path))


def test_an_mp3_that_says_its_length_and_was_cut_off_is_told(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.mp3", "libmp3lame", (64_000,))
    assert not rejections(play(path))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert re.search(
        r"ends at [23]\.\d+ s, where the file says 6", rejections(play(path))[-1].detail
    )


def test_a_damaged_picture_is_malformed_and_the_rest_comes(clips: Path, tmp_path: Path) -> None:
    data = bytearray((clips / "drive.mp4").read_bytes())
    keys = [at for at in range(len(data)) if data[at : at + 2] == b"\x65\x88"]  # key pictures
    data[keys[1] : keys[1] + 40] = bytes(40)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    items = play(path)
    malformed = [r for r in rejections(items) if r.reason == "malformed"]
    assert malformed and all(r.modality == "camera" for r in malformed)
    assert "after " in malformed[0].detail
    assert max(p.timestamp_ns for p in samples(items, "camera")) == 74 * SECOND // 25
    assert len(samples(items, "microphone")) == len(
        samples(play(clips / "drive.mp4"), "microphone")
    )


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_file_is_refused_or_gives_valid_items(
    clips: Path, tmp_path: Path, seed: int
) -> None:
    original = sorted(clips.iterdir())[seed % 7]
    random = np.random.default_rng(seed)
    data = bytearray(original.read_bytes())
    reach = len(data) if seed % 2 else 2000
    for place in random.integers(0, reach, random.choice([1, 10, 100])):
        data[place] = random.integers(256)
    path = tmp_path / original.name
    path.write_bytes(data)
    try:
        source = opened(path, BOTH)
    except FusedgeError:
        return
    items = list(source.samples())
    source.close()
    last_ns = 0
    for item in items:
        assert item.arrival_ns >= last_ns
        last_ns = item.arrival_ns
        if isinstance(item, Rejection):
            assert item.reason in ("malformed", "implausible_stamp") and item.samples >= 1
        elif item.modality == "camera":
            assert item.data.shape == (24, 32, 3) and item.data.dtype == np.uint8
        else:
            assert item.data.shape[1:] == (1,) and item.data.dtype == np.float32 and len(item.data)
    assert last_ns <= len(items) * MAX_LEAP_NS


def test_other_files_are_not_opened(clips: Path, tmp_path: Path) -> None:
    lists = {
        "list.ffconcat": f"ffconcat version 1.0\nfile '{clips / 'drive.mp4'}'\n",
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n"
        f"{clips / 'drive.ts'}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"ffconcat version 1.0\nfile '{clips / 'drive.mp4'}'\n",
        "call.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }
    for name, text in lists.items():
        path = tmp_path / name
        path.write_text(text)
        assert "cannot be read as sound or pictures" in refusal(path)
    for target in (f"concat:{clips / 'drive.mp4'}", "http://127.0.0.1:9/a.mp4", "pipe:0"):
        assert "no such file" in refusal(target)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "is not a file" in refusal(tmp_path / "pipe.mp4")
    assert "is not a file" in refusal(tmp_path)
    assert "is not a file" in refusal("/dev/zero")
    (tmp_path / "empty.mp4").touch()
    assert "cannot be read as sound or pictures" in refusal(tmp_path / "empty.mp4")
    assert "did you mean empty.mp4?" in refusal(tmp_path / "emtpy.mp4")
    locked = tmp_path / "empty.mp4" / "below.mp4"
    assert "cannot be opened: Not a directory" in refusal(locked)


def test_a_picture_of_absurd_size_is_refused(clips: Path, tmp_path: Path) -> None:
    raw = bytearray(write_clip(tmp_path / "raw.avi", 1, video="rawvideo", audio=None).read_bytes())
    header = raw.index(b"strf") + 12  # BITMAPINFOHEADER: size, then width and height
    assert struct.unpack_from("<ii", raw, header) == (64, 48)
    struct.pack_into("<ii", raw, header, 12_000, 12_000)
    path = tmp_path / "huge.avi"
    path.write_bytes(raw)
    assert "cannot be decoded, or are too large" in refusal(path)

    data = bytearray((clips / "mute.mov").read_bytes())
    frames = [at for at in range(len(data)) if data[at : at + 4] == b"\xff\xc0\0\x11"]
    assert len(frames) == 25
    for at in frames:
        assert struct.unpack_from(">HH", data, at + 5) == (48, 64)
        struct.pack_into(">HH", data, at + 5, 12_000, 12_000)
    path = tmp_path / "huge.mov"
    struct.pack_into(">HH", data, frames[0] + 5, 48, 64)  # only the first one is as announced
    path.write_bytes(data)
    items = play(path)
    assert len(samples(items, "camera")) == 1
    assert sum(r.reason == "malformed" for r in rejections(items)) == 24


@pytest.mark.parametrize(
    ("degrees", "matrix"),
    [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))],  # clockwise
)
def test_pictures_of_a_turned_camera_are_turned_upright(
    clips: Path, tmp_path: Path, degrees: int, matrix: tuple[int, ...]
) -> None:
    data = bytearray((clips / "mute.mov").read_bytes())
    place = data.index(b"tkhd") + 44  # ISO 14496-12: 40 bytes of version 0 before the matrix
    assert struct.unpack_from(">i", data, place) == (0x10000,)
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path = tmp_path / "turned.mov"
    path.write_bytes(data)
    first = samples(play(path), "camera")[0].data
    plain = samples(play(clips / "mute.mov"), "camera")[0].data
    assert np.array_equal(first, np.rot90(plain, -degrees // 90))  # counterclockwise
    small = samples(play(path, BOTH), "camera")[0].data
    assert small.shape == (24, 32, 3)
    red = small[..., 0].astype(int) - small[..., 1] > 100
    side = {90: red[0], 180: red[:, -1], 270: red[-1]}[degrees]
    assert side.all()


def test_a_text_that_is_not_in_utf8_is_no_hindrance(clips: Path, tmp_path: Path) -> None:
    path = tmp_path / "latin.mp4"
    path.write_bytes(
        (clips / "drive.mp4").read_bytes().replace(b"VideoHandler", b"Vid\xe9oHandler")
    )
    assert len(samples(play(path), "camera")) == 75


def test_a_cover_picture_is_no_camera(clips: Path, tmp_path: Path) -> None:
    import av
    from av.stream import Disposition

    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as file, av.open(str(clips / "talk.wav")) as wav:
        sound: Any = file.add_stream("aac", rate=48_000)
        cover: Any = file.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.VideoFrame(64, 48, "yuvj420p")
        file.mux(cover.encode(frame) + cover.encode(None))
        for block in wav.decode(audio=0):
            file.mux(sound.encode(block))
        file.mux(sound.encode(None))
    assert {item.modality for item in play(path)} == {"microphone"}


def test_a_decoder_that_is_not_there_is_an_error_and_auto_says_which_it_took(clips: Path) -> None:
    path = clips / "drive.mp4"
    assert "unknown decoder" in refusal(path, None, "?decoder=gpu")
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine may have the decoder that is to be missing")
    assert "decoder=cuda does not work here" in refusal(path, None, "?decoder=cuda")
    source = opened(path, None, "?decoder=auto")
    assert any("camera is decoded by " in warning for warning in source.warnings)
    assert sum(item.modality == "camera" for item in source.samples()) == 75


def test_close_ends_the_items_from_another_thread(clips: Path) -> None:
    source = opened(clips / "drive.mp4", BOTH)
    items = source.samples()
    next(items)
    threading.Thread(target=source.close).start()
    assert sum(1 for _ in items) < 200
    source.close()
    assert list(opened_and_closed(clips / "drive.mp4").samples()) == []


def opened_and_closed(path: Path) -> Source:
    source = opened(path)
    source.close()
    source.close()
    return source


def resident_kib() -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1])


def test_nothing_is_left_of_files_that_were_opened(clips: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((clips / "drive.mp4").read_bytes()[:500])

    def use(number: int) -> None:
        opened_and_closed(clips / "drive.mp4")
        source = opened(clips / "web.webm", BOTH)
        items = source.samples()
        for _ in range(number % 5):
            next(items)
        source.close()
        del items
        refusal(broken)

    for number in range(50):
        use(number)
    gc.collect()
    handles, threads, memory = (
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        resident_kib(),
    )
    for number in range(100):
        use(number)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == handles
    assert threading.active_count() == threads
    assert resident_kib() - memory < 8192


stamps = st.one_of(st.none(), st.integers(-(1 << 62), 1 << 62), st.integers(0, 60 * SECOND))


@given(st.lists(st.tuples(stamps, st.integers(0, SECOND)), max_size=50))
def test_the_length_of_a_replay_is_bounded_by_its_items(
    items: list[tuple[int | None, int]],
) -> None:
    time = StreamTime(Timeline())
    for number, (stamp_ns, length_ns) in enumerate(items):
        before_ns = time.end_ns
        begin_ns, trouble = time.place(stamp_ns, length_ns)
        assert -MAX_FALL_NS <= begin_ns - before_ns <= MAX_LEAP_NS
        assert time.end_ns >= before_ns
        assert time.end_ns <= (number + 1) * (MAX_LEAP_NS + SECOND)
        if trouble:
            assert begin_ns == before_ns


def test_one_broken_stamp_moves_one_item_only() -> None:
    time = StreamTime(Timeline())
    stamps_s = [0, 1, 2, 5000, 4, 5]
    placed = [time.place(stamp * SECOND, SECOND) for stamp in stamps_s]
    assert [begin // SECOND for begin, _ in placed] == [0, 1, 2, 3, 4, 5]
    assert [bool(trouble) for _, trouble in placed] == [False, False, False, True, False, False]


def test_items_without_stamps_follow_one_another_and_the_first_is_told() -> None:
    time = StreamTime(Timeline())
    placed = [time.place(stamp, SECOND) for stamp in (0, None, None, 3 * SECOND, None)]
    assert [begin // SECOND for begin, _ in placed] == [0, 1, 2, 3, 4]
    assert [bool(trouble) for _, trouble in placed] == [False, True, False, False, True]


def data(name: str) -> Path:
    path = Path(os.environ.get("FUSEDGE_DATA") or ROOT / "../shared/data") / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


def test_a_real_drive_is_read_to_its_end() -> None:
    items = play(data("driving/udacity-lanelines/solidWhiteRight.mp4"), BOTH)
    assert not rejections(items)
    assert len(samples(items, "camera")) == 221
    assert samples(items, "camera")[-1].timestamp_ns == 8_800_000_000
    assert items[-1].arrival_ns / SECOND == pytest.approx(8.84, abs=0.05)


def test_a_picture_that_is_made_up_in_part_is_no_sample(tmp_path: Path) -> None:
    drive = data("driving/udacity-lanelines/solidWhiteRight.mp4").read_bytes()
    damaged = bytearray(drive)
    for at in range(300_000, len(drive) - 300_000, 300_000):
        damaged[at : at + 40] = bytes(range(40))
    path = tmp_path / "damaged.mp4"
    path.write_bytes(damaged)
    items = play(path, by_name(image("camera", 24, 32)))
    assert any("a picture is damaged" in r.detail for r in rejections(items))
    assert len(items) == 221
    assert 200 < len(samples(items, "camera")) < 221


def test_a_real_clip_of_a_face_has_pictures_and_sound() -> None:
    items = play(data("emotion/clips/ravdess_01-01-01-01-01-01-01.mp4"), BOTH)
    assert not rejections(items)
    assert len(samples(items, "camera")) == 98
    assert sum(len(b.data) for b in samples(items, "microphone")) / 16_000 > 3.2


def test_a_film_of_an_action_camera_gives_its_telemetry_too() -> None:
    path = data("driving/gopro-gpmf/karma.mp4")
    imu = series("imu", {"acceleration_x": "m/s2", "angular_velocity_z": "rad/s"})
    items = play(path, {**BOTH, "imu": imu})
    counts = Counter(item.modality for item in items if isinstance(item, Sample))
    assert counts["camera"] == 362
    assert counts["imu"] > 2000
    assert not rejections(items)
    assert opened_and_closed(path).modalities == ("camera", "microphone", "imu")
    assert {item.modality for item in play(path, {"imu": imu})} == {"imu"}
