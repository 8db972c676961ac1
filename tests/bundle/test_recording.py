"""Recordings: nothing is lost in them, others can read them, and no file can do harm."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

pytest.importorskip("mcap")

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.recording import (
    DECISIONS,
    MAX_DATA_BYTES,
    Document,
    Track,
    document_message,
    read_message,
    rejection_message,
    sample_message,
)
from fusedge.bundle.recording_file import (
    MAGIC,
    Gap,
    Info,
    RecordingFile,
    RecordingWriter,
)
from fusedge.bundle.sample import Rejection, Sample

TRACKS = {
    "imu": Track(("x", "y"), 100.0),
    "gps": Track(("speed", "latitude", "longitude"), 1.0),
    "cabin": Track(("left", "right"), 16_000.0),
    "road": Track(("r", "g", "b"), 15.0),
}
int64 = st.integers(-(2**63), 2**63 - 1)
times = int64 | st.integers(0, 10**12)
words = st.binary(min_size=4, max_size=4)


def floats(count: int) -> st.SearchStrategy[np.ndarray]:
    """Any bits of float32, NaNs with payloads among them, and plain values."""
    bits = st.lists(words, min_size=count, max_size=count).map(
        lambda values: np.frombuffer(b"".join(values), np.float32)
    )
    return bits | arrays(np.float32, count)


payloads = st.one_of(
    floats(2),
    floats(3),
    st.integers(0, 5).flatmap(lambda n: floats(2 * n).map(lambda v: v.reshape(-1, 2))),
    arrays(np.int16, (6, 2)).map(lambda v: v.astype(np.float32) / 32768),
    arrays(np.uint8, st.tuples(*3 * [st.integers(0, 5)])),
    arrays(
        st.sampled_from(["<f4", ">f4", "<f8", "<i2", "|u1", "|b1", "<f2", ">i8"]),
        array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
    ),
)
samples = st.builds(
    Sample,
    st.sampled_from([*TRACKS, "unheard of"]),
    times,
    times,
    payloads,
    st.sampled_from(["capture", "arrival"]),
)
rejections = st.builds(
    Rejection, st.sampled_from([*TRACKS]), times, st.text(), st.text(), st.integers(0, 10**6)
)


def write(path: Path, items: Sequence[Any], *, flush_every: int = 1000, close: bool = True) -> None:
    info = Info(
        format_version=1,
        fusedge="test",
        exact=True,
        clip="",
        tracks=TRACKS,
        session={"bundle": "x"},
    )
    writer = RecordingWriter(path, info)
    for number, item in enumerate(items, 1):
        writer.add(message(item))
        if number % flush_every == 0:
            writer.flush()
    writer.close({"ended": "end of input"})
    if not close:
        content = path.read_bytes()
        path.write_bytes(content[: content.rindex(b"\x0f\x04\0\0\0\0\0\0\0")])


def message(item: Any) -> Any:
    if isinstance(item, Sample):
        return sample_message(item, TRACKS.get(item.modality))
    if isinstance(item, Rejection):
        return rejection_message(item)
    return document_message(DECISIONS, 5, 4, item)


def key(item: Any) -> Any:
    """All that an item is, to the bit."""
    if isinstance(item, Sample):
        return item._replace(data=(item.data.dtype, item.data.shape, item.data.tobytes()))
    return item.fields() if isinstance(item, Document) else item


def imu(number: int) -> Sample:
    return Sample("imu", number * 10**7, number * 10**7 + 5, np.array([number, 0.1], np.float32))


def mixed(count: int) -> list[Any]:
    rng = np.random.default_rng(1)
    items: list[Any] = []
    for number in range(count):
        items.append(imu(number))
        items.append({"type": "decision", "t_s": number})
        items.append(Rejection("gps", number * 10**7, "no_fix", "of 40 m"))
        sound = rng.normal(0, 0.1, (80, 2)).astype(np.float32)
        items.append(Sample("cabin", number * 10**7, number * 10**7, sound))
        frame = rng.integers(0, 256, (8, 8, 3), np.uint8)
        items.append(Sample("road", number * 10**7, number * 10**7, frame))
    return items


@given(samples)
def test_a_sample_comes_back_to_the_bit(sample: Sample) -> None:
    again = read_message(
        sample_message(sample, TRACKS.get(sample.modality)), TRACKS.get(sample.modality)
    )
    assert key(again) == key(sample)


@given(rejections)
def test_a_rejection_comes_back(rejection: Rejection) -> None:
    assert read_message(rejection_message(rejection), None) == rejection


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(items=st.lists(samples | rejections, max_size=12), every=st.integers(1, 5))
def test_a_file_holds_everything_in_order(tmp_path: Path, items: list[Any], every: int) -> None:
    path = tmp_path / "a.mcap"
    path.unlink(missing_ok=True)
    write(path, items, flush_every=every)
    file = RecordingFile(path)
    assert [key(item) for item in file.entries()] == [key(item) for item in items]
    assert file.complete
    assert not file.problem


def test_signalling_nans_and_denormals_survive() -> None:
    bits = np.array([0x7FA00001, 0xFFC12345, 0x00000001, 0x80000000], np.uint32).view(np.float32)
    track = Track(("a", "b", "c", "d"))
    again = read_message(sample_message(Sample("x", 0, 0, bits), track), track)
    assert isinstance(again, Sample)
    assert again.data.tobytes() == bits.tobytes()


def test_what_foxglove_knows_has_its_schemas(tmp_path: Path) -> None:
    """Read with the package that defines the format, index and checksums included."""
    from mcap.reader import make_reader

    path = tmp_path / "a.mcap"
    position = Sample("gps", 7, 9, np.array([1, 52.5, 13.25], np.float32))
    write(path, [*mixed(20), position])
    with path.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        summary = reader.get_summary()
        found = {
            channel.topic: (schema.name, json.loads(schema.data)["title"], message)
            for schema, channel, message in reader.iter_messages()
        }
        assert {m.name for m in reader.iter_metadata()} == {"fusedge.recording", "fusedge.summary"}
    assert summary is not None
    assert summary.statistics.message_count == 101
    names = {topic: name for topic, (name, _, _) in found.items()}
    assert names == {
        "/imu": "fusedge.Series",
        "/gps": "foxglove.LocationFix",
        "/cabin": "foxglove.RawAudio",
        "/road": "foxglove.CompressedImage",
        "/fusedge/decisions": "fusedge.Decision",
        "/fusedge/rejections": "fusedge.Rejection",
    }
    assert all(name == title for name, title, _ in found.values())
    assert all(channel.message_encoding == "json" for channel in summary.channels.values())
    assert all(schema.encoding == "jsonschema" for schema in summary.schemas.values())
    fix = found["/gps"][2]
    assert (fix.publish_time, fix.log_time) == (7, 9)
    fields = json.loads(fix.data)
    assert (fields["latitude"], fields["longitude"], fields["values"]) == (
        52.5,
        13.25,
        {"speed": 1.0},
    )
    image = json.loads(found["/road"][2].data)
    assert image["format"] == "png"
    assert {"timestamp", "frame_id", "data"} <= image.keys()
    sound = json.loads(found["/cabin"][2].data)
    assert (sound["sample_rate"], sound["number_of_channels"]) == (16_000, 2)


def test_sound_of_a_sound_card_is_what_viewers_play() -> None:
    data = (np.arange(-6, 6).reshape(-1, 2) * 1000 / 32768).astype(np.float32)
    fields = json.loads(sample_message(Sample("cabin", 0, 0, data), TRACKS["cabin"]).data)
    assert fields["format"] == "pcm-s16"


def test_jpeg_is_smaller_and_has_the_same_shape() -> None:
    pytest.importorskip("PIL")
    y, x = np.mgrid[0:64, 0:64]
    image = np.stack([x * 3, y * 3, x + y], -1).astype(np.uint8)
    sample = Sample("road", 0, 0, image)
    lossless = sample_message(sample, TRACKS["road"])
    small = sample_message(sample, TRACKS["road"], jpeg_quality=80)
    again = read_message(small, TRACKS["road"])
    assert isinstance(again, Sample)
    assert again.data.shape == image.shape
    assert np.abs(again.data.astype(int) - image).mean() < 10
    assert len(small.data) < len(lossless.data)


def test_a_sample_beyond_all_bounds_is_refused_at_once() -> None:
    huge = np.broadcast_to(np.uint8(0), (MAX_DATA_BYTES + 1,))
    with pytest.raises(FusedgeError, match="cannot be recorded"):
        sample_message(Sample("road", 0, 0, huge), None)
    with pytest.raises(FusedgeError, match="cannot be recorded"):
        sample_message(Sample("road", 0, 0, np.array([None])), None)


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    write(path, [imu(1)])
    before = path.read_bytes()
    with pytest.raises(FusedgeError, match="never replaced"):
        write(path, [])
    assert path.read_bytes() == before


def read_all(path: Path) -> list[Any] | None:
    """The items, None where the file is refused; anything but FusedgeError fails the test."""
    try:
        return [key(item) for item in RecordingFile(path).entries() if not isinstance(item, Gap)]
    except FusedgeError as error:
        assert "\n" not in error.line()
        return None


def test_cut_off_anywhere_it_reads_up_to_the_last_whole_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    items = [imu(number) for number in range(6)]
    write(path, items, flush_every=2)
    content, whole = path.read_bytes(), [key(item) for item in items]
    cut = tmp_path / "cut.mcap"
    lengths = set()
    for end in range(len(content)):
        cut.write_bytes(content[:end])
        read = read_all(cut)
        if read is not None:
            assert read == whole[: len(read)]
            assert not RecordingFile(cut).complete
            lengths.add(len(read))
    assert lengths == {0, 2, 4, 6}


def test_cut_off_in_a_larger_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    items = mixed(60)
    write(path, items, flush_every=7)
    content, whole = path.read_bytes(), [key(item) for item in items]
    cut = tmp_path / "cut.mcap"
    for end in np.random.default_rng(2).integers(2000, len(content), 60).tolist():
        cut.write_bytes(content[:end])
        read = read_all(cut)
        assert read is not None
        assert read == whole[: len(read)]
        assert len(read) >= len(items) * (end / len(content)) * 0.8 - 35  # but for index and chunk


def test_damaged_bytes_never_change_what_is_read(tmp_path: Path) -> None:
    """Every chunk has a checksum: an item that is read is one that was written, in its order."""
    path = tmp_path / "a.mcap"
    items = mixed(12)
    write(path, items, flush_every=9)
    content, whole = path.read_bytes(), [key(item) for item in items]
    rng = np.random.default_rng(3)
    hurt = tmp_path / "hurt.mcap"
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)).tolist():
            damaged[place] ^= int(rng.integers(1, 256))
        hurt.write_bytes(damaged)
        read = read_all(hurt)
        if read is not None:
            rest = iter(whole)
            assert all(item in rest for item in read)


def test_a_damaged_chunk_is_a_gap_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    write(path, [imu(number) for number in range(30)], flush_every=10)
    content = bytearray(path.read_bytes())
    starts = [i for i in range(len(content)) if content[i : i + 4] == b"\x28\xb5\x2f\xfd"]
    assert len(starts) == 3
    content[starts[1] + 20] ^= 255
    path.write_bytes(content)
    file = RecordingFile(path)
    entries = list(file.entries())
    gaps = [entry for entry in entries if isinstance(entry, Gap)]
    assert [gap.lost for gap in gaps] == [10]
    assert len(entries) == 21
    assert "damaged chunk" in file.problem


def record(code: int, content: bytes) -> bytes:
    return struct.pack("<BQ", code, len(content)) + content


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


def forged(tmp_path: Path, *records: bytes, **info: Any) -> Path:
    """A file by somebody who means no good."""
    fields = {
        "format_version": 1,
        "fusedge": "x",
        "exact": True,
        "clip": "",
        "tracks": {"imu": {"channels": ["x", "y"], "rate_hz": 1}, "road": {"channels": ["r"]}},
        "session": {},
        **info,
    }
    about = b"".join(text(name) + text(json.dumps(value)) for name, value in fields.items())
    metadata = text("fusedge.recording") + struct.pack("<I", len(about)) + about
    path = tmp_path / "forged.mcap"
    path.write_bytes(
        b"".join((MAGIC, record(1, text("") + text("")), record(12, metadata), *records))
    )
    return path


def channel(topic: str, schema: str) -> bytes:
    about = text("modality") + text(topic[1:])
    return record(
        3, struct.pack("<H", 1) + text(schema) + text("jsonschema") + text("{}")
    ) + record(
        4,
        struct.pack("<HH", 1, 1)
        + text(topic)
        + text("json")
        + struct.pack("<I", len(about))
        + about,
    )


def chunk(content: bytes, stated: int, compressed: bytes, compression: str = "zstd") -> bytes:
    head = struct.pack("<QQQI", 0, 0, stated, zlib.crc32(content)) + text(compression)
    return record(6, head + struct.pack("<Q", len(compressed)) + compressed)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("stated", [10, 1 << 20, 1 << 40])
def test_a_chunk_that_would_burst_memory_is_not_unpacked(
    tmp_path: Path, compression: str, stated: int
) -> None:
    import lz4.frame
    import zstandard

    bomb = bytes(300 << 20)
    packed = zstandard.compress(bomb) if compression == "zstd" else lz4.frame.compress(bomb)
    file = RecordingFile(forged(tmp_path, chunk(b"", stated, packed, compression)))
    assert not list(file.entries())
    assert "damaged chunk" in file.problem


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 1 << 34])
@pytest.mark.parametrize("code", [5, 6, 12, 99])
def test_a_record_that_claims_more_than_the_file_ends_it(
    tmp_path: Path, code: int, length: int
) -> None:
    file = RecordingFile(forged(tmp_path, struct.pack("<BQ", code, length) + bytes(50)))
    assert not list(file.entries())
    assert "cut off or damaged" in file.problem


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        ("fusedge.Series", "{}"),
        ("fusedge.Series", "[" * 100_000),
        ("fusedge.Series", '{"values":{"x":1}}'),
        ("fusedge.Series", '{"values":{"x":1,"y":"2"}}'),
        ("fusedge.Series", '{"values":{"x":true,"y":2}}'),
        ("fusedge.Series", '{"values":[1,2]}'),
        ("fusedge.Series", '{"values":{"x":1,"y":2},"timestamp_ns":9223372036854775808}'),
        ("fusedge.Series", '{"values":{"x":1,"y":2},"arrival_ns":1.5}'),
        ("fusedge.Series", '{"values":{"x":1,"y":' + "9" * 5000 + "}}"),
        ("fusedge.Series", '{"bits":"AAAA"}'),
        ("fusedge.Series", '{"bits":"====="}'),
        ("fusedge.Series", '{"bits":7}'),
        ("foxglove.LocationFix", '{"latitude":1,"longitude":2}'),
        ("foxglove.CompressedImage", '{"format":"png","data":"AAAA"}'),
        ("foxglove.CompressedImage", '{"format":"jpeg","data":"/9j/4AAQ"}'),
        ("foxglove.CompressedImage", '{"format":"exe","data":"AAAA"}'),
        ("foxglove.CompressedImage", '{"format":"png"}'),
        ("foxglove.RawAudio", '{"format":"pcm-s16","number_of_channels":0,"data":"AAAA"}'),
        ("foxglove.RawAudio", '{"format":"pcm-s16","number_of_channels":9,"data":"AAAA"}'),
        ("foxglove.RawAudio", '{"format":"pcm-s16","number_of_channels":1,"data":"AAA"}'),
        ("foxglove.RawAudio", '{"format":"mp3","number_of_channels":1,"data":"AAAA"}'),
        ("fusedge.Array", '{"dtype":"object","shape":[1],"data":"AAAA"}'),
        ("fusedge.Array", '{"dtype":"V3","shape":[1],"data":"AAAA"}'),
        ("fusedge.Array", '{"dtype":"|u1","shape":[-1],"data":"AAAA"}'),
        ("fusedge.Array", '{"dtype":"|u1","shape":[1000000000000],"data":"AAAA"}'),
        ("fusedge.Array", '{"dtype":"|u1","shape":[0,9223372036854775807],"data":""}'),
        ("fusedge.Array", '{"dtype":"|u1","shape":"3","data":"AAAA"}'),
        ("fusedge.Array", '{"dtype":"|u1","shape":[1,1,1,1,1,1,1,1,3],"data":"AAAA"}'),
    ],
)
def test_a_message_that_says_nonsense_is_a_gap(tmp_path: Path, schema: str, data: str) -> None:
    body = struct.pack("<HIQQ", 1, 0, 1, 2) + data.encode()
    file = RecordingFile(forged(tmp_path, channel("/imu", schema), record(5, body)))
    entries = list(file.entries())
    assert len(entries) == 1, entries
    assert isinstance(entries[0], Gap), entries
    assert entries[0].modality == "imu"


@pytest.mark.parametrize(
    "info",
    [
        {"format_version": "one"},
        {"tracks": []},
        {"tracks": {"imu": {"channels": 3}}},
        {"session": None},
        {"more": 1},
    ],
)
def test_a_recording_that_describes_itself_badly_is_refused(tmp_path: Path, info: Any) -> None:
    with pytest.raises(FusedgeError, match="cannot be understood"):
        RecordingFile(forged(tmp_path, **info))


def test_a_newer_format_is_said_to_be_newer(tmp_path: Path) -> None:
    with pytest.raises(FusedgeError, match="newer than this program"):
        RecordingFile(forged(tmp_path, format_version=2, more=1))


@pytest.mark.parametrize(
    "content", [b"", MAGIC, MAGIC * 2, b"PK\3\4" + bytes(100), MAGIC + bytes(99)]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mcap"
    path.write_bytes(content)
    with pytest.raises(FusedgeError, match="is not"):
        RecordingFile(path)
    with pytest.raises(FusedgeError, match="cannot be read"):
        RecordingFile(tmp_path)
