"""Single pictures as a source."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as examples
from hypothesis import strategies as st
from PIL import Image

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import FrontEnd
from fusedge.bundle.sample import Rejection, Sample
from fusedge.devices.capture.address import Request, Wanted, parse
from fusedge.devices.capture.decoding import MAX_PIXELS
from fusedge.devices.capture.file import open_file
from fusedge.devices.capture.source import SCHEMES, open_source
from fusedge.devices.capture.still import SHOWN_S
from tests.devices.modalities import audio, by_name, image

FACE = image("face", 48, 48, 10, "g").model_copy(
    update={"front": FrontEnd(kind="largest_face", part="detector")}
)
ORIENTATION = 0x0112  # of EXIF
# What a camera must have done to an upright picture for each value of it, from the standard.
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def upright() -> np.ndarray:
    """60 x 90: red above on the left, green above on the right, blue below."""
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[:30, :45, 0] = picture[:30, 45:, 1] = picture[30:, :, 2] = 255
    return picture


def shown(path: Path, wanted: Wanted = None) -> list[Sample]:
    source = open_file(Request(parse(f"file:{path}", SCHEMES), wanted, lambda: 0))
    items = list(source.samples())
    source.close()
    return [item for item in items if isinstance(item, Sample)]


def film_of(path: Path) -> list[Sample | Rejection]:
    with closing(open_file(Request(parse(f"file:{path}", SCHEMES), None, lambda: 0))) as source:
        return list(source.samples())


def test_a_picture_is_there_for_a_while_at_the_rate_that_is_wanted(tmp_path: Path) -> None:
    Image.fromarray(upright()).save(tmp_path / "a.png")
    samples = shown(tmp_path / "a.png", by_name(FACE, audio("voice")))
    assert [s.timestamp_ns for s in samples] == [
        n * 100_000_000 for n in range(round(10 * SHOWN_S))
    ]
    assert all(s.arrival_ns == s.timestamp_ns and s.modality == "face" for s in samples)
    for sample in samples:
        np.testing.assert_array_equal(sample.data, upright())


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("wanted", [None, FACE])
def test_a_turned_picture_is_turned_upright(tmp_path: Path, orientation: int, wanted: Any) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(TURNED[orientation](upright()))
    path = tmp_path / "turned.jpg"
    Image.fromarray(stored).save(path, quality=95, subsampling=0, exif=exif)
    picture = shown(path, wanted and by_name(wanted))[0].data
    assert picture.shape == (60, 90, 3)
    assert np.abs(picture.astype(int) - upright()).mean() < 5


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_whatever_its_pixels_are_it_comes_in_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        stored = Image.fromarray(np.full((60, 90), 200 * 257, np.uint16))
    else:
        stored = Image.new("RGB", (90, 60), (200, 200, 200)).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    stored.save(path)
    picture = shown(path)[0].data
    assert picture.shape == (60, 90, 3) and picture.dtype == np.uint8
    assert np.unique(picture.reshape(-1, 3), axis=0).tolist() in (
        [[200] * 3],
        [[255] * 3, [0] * 3],
    ) or (mode in ("1", "CMYK", "P") and abs(picture.mean() - 200) < 20)


def test_it_is_stretched_for_a_modality_of_a_size_and_grey_for_one_of_one_channel(
    tmp_path: Path,
) -> None:
    Image.fromarray(upright()).save(tmp_path / "a.png")
    (grey, *_) = shown(tmp_path / "a.png", by_name(image("camera", 6, 8, 10, "g")))
    assert grey.data.shape == (6, 8, 1)
    assert grey.data[0, 0, 0] == pytest.approx(76, abs=2)  # of red, by BT.601


def test_in_a_process_of_its_own_it_is_the_same(tmp_path: Path) -> None:
    large = np.tile(upright(), (30, 40, 1))
    Image.fromarray(large).save(tmp_path / "a.png")
    source = open_source(f"file:{tmp_path / 'a.png'}", by_name(FACE), lambda: 0)
    shapes = {item.data.shape for item in source.samples() if isinstance(item, Sample)}
    source.close()
    assert shapes == {(640, 1280, 3)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "no picture"),
        ("text.png", b"hello", "no picture"),
        ("torn.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "is damaged"),
        ("words.bmp", b"BMX is a way to ride", "no picture"),
        ("sound.jpg", b"RIFF\0\0\0\0WAVEfmt ", "no picture"),
        # A header of 50,000 x 50,000 pixels.
        (
            "bomb.bmp",
            b"BM" + (54).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
            + (40).to_bytes(4, "little") + (50_000).to_bytes(4, "little") * 2
            + b"\1\0\x18\0" + bytes(24),
            "larger than 134 million pixels",
        ),
        ("two.bmp", b"BM" + bytes(20), "is damaged"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_told_in_a_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FusedgeError, match=message) as caught:
        shown(tmp_path / name)
    line = caught.value.line()
    assert "\n" not in line and "opencv" not in line.lower()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "bmp", "gif"])
def test_a_picture_that_was_cut_off_is_said_to_be_damaged(
    tmp_path: Path, kind: str, share: float
) -> None:
    path = tmp_path / f"a.{kind}"
    noise = np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(path)
    assert shown(path)[0].data.shape == (90, 120, 3)
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    with pytest.raises(FusedgeError, match="is damaged") as caught:
        shown(path)
    assert "\n" not in caught.value.line()


@pytest.mark.parametrize("name", ["large.jpg", "large.png"])
def test_a_huge_picture_is_shrunk_as_any_other(tmp_path: Path, name: str) -> None:
    whole = Image.new("RGB", (8000, 6000), (200, 40, 10))
    whole.paste((10, 40, 200), (0, 3000, 8000, 6000))
    whole.save(tmp_path / name)
    uri = f"file:{tmp_path / name}"
    with closing(open_source(uri, by_name(FACE), lambda: 0)) as source:  # OpenCV is loaded anew
        picture = next(item.data for item in source.samples() if isinstance(item, Sample))
    assert picture.shape == (720, 960, 3)
    for row, colour in ((100, (200, 40, 10)), (600, (10, 40, 200))):
        np.testing.assert_allclose(picture[row, 100].astype(int), colour, atol=5)


def test_a_picture_that_nobody_wants_smaller_is_shrunk_to_what_a_film_may_have(
    tmp_path: Path,
) -> None:
    Image.new("1", (8000, 6000), 1).save(tmp_path / "a.png")
    request = Request(parse(f"file:{tmp_path / 'a.png'}", SCHEMES), None, lambda: 0)
    picture = next(iter(open_file(request).samples()))
    assert isinstance(picture, Sample) and picture.data.shape == (4988, 6651, 3)
    assert 0.999 * MAX_PIXELS < 4988 * 6651 <= MAX_PIXELS


def test_more_pixels_than_any_camera_has_are_not_unpacked(tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(FusedgeError, match="larger than 134 million pixels") as caught:
        open_source(f"file:{tmp_path / 'bomb.png'}", by_name(FACE), lambda: 0)
    assert "\n" not in caught.value.line()


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_an_animation_is_refused_and_a_still_of_its_kind_is_not(tmp_path: Path, name: str) -> None:
    pictures = [Image.new("RGB", (60, 40), (level, 0, 0)) for level in (50, 250)]
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=100)
    with pytest.raises(FusedgeError, match="is animated"):
        shown(tmp_path / name)
    extra = {"exif": Image.Exif()} if name.endswith("webp") else {}
    pictures[0].save(tmp_path / name, **extra)
    assert shown(tmp_path / name)[0].data.shape == (40, 60, 3)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_a_tiff_of_several_pages_is_refused_and_one_with_a_thumbnail_is_not(
    tmp_path: Path, count: int, big: bool
) -> None:
    path = tmp_path / "a.tiff"
    pages = [Image.new("RGB", (60, 40), (level, 0, 0)) for level in (250, 150, 50)[:count]]
    pages[0].save(path, save_all=True, append_images=pages[1:], big_tiff=big)
    with pytest.raises(FusedgeError, match="several pages"):
        shown(path)
    for page in pages[1:]:
        page.encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(path, save_all=True, append_images=pages[1:], big_tiff=big)
    assert shown(path)[0].data[0, 0].tolist() == [250, 0, 0]
    pages[0].save(path, big_tiff=big)
    assert shown(path)[0].data[0, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "RGBA"])
@pytest.mark.parametrize("wanted", [None, FACE, image("camera", 40, 60, 10, "g")])
def test_a_gif_of_one_picture_is_a_still(tmp_path: Path, mode: str, wanted: Any) -> None:
    Image.new("RGB", (60, 40), (200, 200, 200)).convert(mode).save(tmp_path / "a.gif")
    Image.open(tmp_path / "a.gif").convert("RGB").save(tmp_path / "a.png")
    stills = [shown(tmp_path / name, wanted and by_name(wanted)) for name in ("a.gif", "a.png")]
    assert len(stills[0]) == len(stills[1]) == round(10 * SHOWN_S)
    for one, other in zip(*stills, strict=True):
        assert one.timestamp_ns == other.timestamp_ns and one.data.shape == other.data.shape
        np.testing.assert_allclose(one.data.astype(int), other.data, atol=2)


def test_a_gif_that_is_called_otherwise_is_no_less_a_gif(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (60, 40), (level, 0, 0)) for level in (50, 150)]
    pictures[0].save(tmp_path / "a.jpg", format="GIF")
    assert shown(tmp_path / "a.jpg")[0].data.shape == (40, 60, 3)
    pictures[0].save(tmp_path / "a.jpg", format="GIF", save_all=True, append_images=pictures[1:])
    with pytest.raises(FusedgeError, match="animated GIF"):
        shown(tmp_path / "a.jpg")


def test_a_gif_of_more_pixels_than_any_camera_has_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gif"
    Image.new("RGB", (60, 40)).save(path)
    content = bytearray(path.read_bytes())
    content[6:10] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(FusedgeError, match="larger than 134 million pixels"):
        shown(path)


@pytest.mark.parametrize("last_s", [0.2, 3, 20, 100, 600])
def test_slides_of_a_gif_may_stay_as_long_as_they_like(tmp_path: Path, last_s: float) -> None:
    pictures = [Image.new("RGB", (60, 40), (level, 0, 0)) for level in (50, 150, 250)]
    times_ms = [round(1000 * last_s / 2), 100, round(1000 * last_s)]
    more = {"append_images": pictures[1:], "duration": times_ms}
    pictures[0].save(tmp_path / "a.gif", save_all=True, **more)
    items = film_of(tmp_path / "a.gif")
    stamps = [item.timestamp_ns for item in items if isinstance(item, Sample)]
    assert stamps == [0, times_ms[0] * 10**6, (times_ms[0] + 100) * 10**6] and len(items) == 3


@pytest.mark.parametrize("whole", [1, 2])
def test_a_gif_that_ends_within_a_later_picture_gives_those_before_it(
    tmp_path: Path, whole: int
) -> None:
    rng = np.random.default_rng(1)
    noise = [Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)) for _ in range(3)]
    noise[0].save(tmp_path / "a.gif", save_all=True, append_images=noise[1:], duration=100)
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(content[: round((whole + 0.6) / 3 * len(content))])
    items = film_of(tmp_path / "a.gif")
    assert [isinstance(item, Sample) for item in items] == [True] * whole + [False]
    assert isinstance(items[-1], Rejection) and items[-1].reason == "malformed"


@pytest.mark.parametrize("tail", [b"", b"\0", b"\n<more/>"])
def test_a_gif_without_its_trailer_or_with_more_after_it_is_whole(
    tmp_path: Path, tail: bytes
) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.gif")
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(content.removesuffix(b";") + tail)
    assert shown(tmp_path / "a.gif")
    (tmp_path / "a.gif").write_bytes(content + tail)
    assert shown(tmp_path / "a.gif")


def test_an_animated_gif_is_a_film_with_its_own_times(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (60, 40), (level, 0, 0)) for level in (50, 150, 250)]
    more = {"append_images": pictures[1:], "duration": [100, 300, 200], "loop": 0}
    pictures[0].save(tmp_path / "a.gif", save_all=True, **more)
    source = open_file(Request(parse(f"file:{tmp_path / 'a.gif'}", SCHEMES), None, lambda: 0))
    samples = [item for item in source.samples() if isinstance(item, Sample)]
    assert [sample.timestamp_ns for sample in samples] == [0, 100_000_000, 400_000_000]
    assert [round(float(s.data[20, 30, 0]), -1) for s in samples] == [50, 150, 250]


def test_a_picture_that_is_not_there_or_not_wanted_is_told(tmp_path: Path) -> None:
    with pytest.raises(FusedgeError, match="No such file"):
        shown(tmp_path / "missing.jpg")
    Image.fromarray(upright()).save(tmp_path / "a.png")
    with pytest.raises(FusedgeError, match="offers none of the wanted"):
        shown(tmp_path / "a.png", by_name(audio("voice")))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@examples(
    kind=st.sampled_from(["jpg", "gif", "tiff"]),
    cut=st.integers(0, 3000),
    spoil=st.binary(max_size=40),
    at=st.integers(0, 3000),
)
def test_a_damaged_picture_is_a_picture_or_an_error(
    tmp_path: Path, kind: str, cut: int, spoil: bytes, at: int
) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.tile(upright(), (2, 2, 1))).save(path)
    content = path.read_bytes()
    path.write_bytes((content[:at] + spoil + content[at + len(spoil) :])[: max(cut, 1)])
    try:
        samples = shown(path)
    except FusedgeError:
        return
    assert samples[0].data.ndim == 3 and samples[0].data.shape[2] == 3
