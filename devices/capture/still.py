"""Single pictures."""

from __future__ import annotations

import io
import math
import os
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import read_file
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import NANOSECONDS
from fusedge.devices.capture.address import Address, Request
from fusedge.devices.capture.decoding import MAX_PIXELS, MODALITIES, faults, pyav
from fusedge.devices.capture.gif import blocks_of
from fusedge.devices.capture.pixels import opencv
from fusedge.devices.capture.wanted import COLOURS, modality_of, picture_size

SHOWN_S = 3.0  # long enough for a modality to be present, and for its label to be steady
RATE_HZ = 10.0  # where nobody says another one
PIXEL_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"  # read when OpenCV is loaded: a bomb is not unpacked
# Of a file: beyond a telephone's 108 million; they take 400 MB until they are shrunk.
MOST_PIXELS = 1 << 27
MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|II[*+]\0|MM\0[*+]|BM....\0{4}", re.DOTALL
)
_SUBFILE_TYPE = 254  # the tag of a TIFF's page that comes first, where it is there …
_NO_PAGE = 0x05  # … and its bits: a thumbnail, a mask
MAX_FILE_BYTES = 256 << 20  # a telephone's 64 million without compression, and their transparency


def open_still(request: Request) -> Still:
    """The source `file:PICTURE`; raises FusedgeError for what is no picture."""
    return Still(request)


class Still:
    """Contract: a picture, as a camera that sees nothing else would give it, for SHOWN_S at the modality's
    rate.

    It is upright (EXIF's orientation is applied), with 8 bits a channel, in RGB, or grey where the modality
    has one channel; transparency is left out. The size is what the modality asks for (see
    `picture_size`), else its own, or MAX_PIXELS where it has more. Raises FusedgeError for what is no
    picture, has more than MOST_PIXELS, or is one of several in its file.
    """

    live = False

    def __init__(self, request: Request) -> None:
        address = request.address
        _, default, option = MODALITIES["video"]
        modality, spec = modality_of(address, request.wanted, "image", default, option)
        names = COLOURS if spec is None else tuple(channel.name for channel in spec.channels)
        if len(names) not in (1, 3):
            raise address.error(f"{modality} has {len(names)} channels, a picture 1 or 3")
        self.uri = address.uri
        self.modalities = (modality,)
        self.channels = {modality: names}
        self.units: Mapping[str, tuple[str, ...]] = {}
        self.warnings: tuple[str, ...] = ()
        self._rate_hz = RATE_HZ if spec is None else spec.rate_hz
        self._request = request
        self._closed = threading.Event()
        image = _decoded(address, grey=len(names) == 1)
        height, width = image.shape[:2]
        scale = min(1.0, math.sqrt(MAX_PIXELS / (height * width)))
        size = max(1, int(scale * height)), max(1, int(scale * width))
        if spec is not None:
            size = picture_size(spec, height, width)
        cv2 = opencv("reading a picture")
        if size != (height, width):
            shrinks = size[0] <= height and size[1] <= width
            how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, size[::-1], interpolation=how)
        if len(names) == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        self._image = image.reshape(*image.shape[:2], len(names))

    def samples(self) -> Iterator[Sample]:
        """See Source."""
        for number in range(max(1, round(SHOWN_S * self._rate_hz))):
            if self._closed.is_set():
                return
            image = self._request.allocate(self._image.shape)
            np.copyto(image, self._image)
            time_ns = round(number * NANOSECONDS / self._rate_hz)
            yield Sample(self.modalities[0], time_ns, time_ns, image)

    def close(self) -> None:
        """See Source."""
        self._closed.set()


def _decoded(address: Address, grey: bool) -> Any:
    """The picture as OpenCV's decoders have it, or FFmpeg's of a GIF, upright, in grey or BGR."""
    content = read_file(Path(address.target), MAX_FILE_BYTES)
    if _moves(content):
        raise address.error(
            "is animated: WebP and PNG are shown only where they stand still",
            hint="make it a GIF or a film, which are played",
        )
    if _has_pages(content):
        raise address.error(
            "has several pages, of which only the first would be shown",
            hint="save the one that is meant as a file of its own",
        )
    gif = blocks_of(io.BytesIO(content))
    if gif is not None:
        if gif.pictures > 1:
            raise address.error("is an animated GIF", hint="name it .gif, and it is played")
        if not gif.whole:
            raise _damaged(address)
        return _of_gif(address, content, grey)
    os.environ.setdefault(PIXEL_LIMIT, str(MOST_PIXELS))
    cv2 = opencv("reading a picture")
    flags = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except (cv2.error, MemoryError) as error:
        # What OpenCV says is of its own source; its limit holds where it was set before it was loaded.
        no_room = ("CV_IO_MAX_IMAGE", "Insufficient memory")
        if isinstance(error, MemoryError) or any(words in str(error) for words in no_room):
            raise _too_large(address) from None
        raise _damaged(address) from None
    if image is None:
        if MAGIC.match(content):
            raise _damaged(address)
        raise address.error(
            "is no picture that can be decoded",
            hint="pictures are JPEG, PNG, WebP, TIFF, BMP and GIF",
        )
    if image.shape[0] * image.shape[1] > MOST_PIXELS:
        raise _too_large(address)
    return image


def _of_gif(address: Address, content: bytes, grey: bool) -> Any:
    """The only picture of a GIF."""
    width, height = struct.unpack_from("<HH", content, 6)
    if width * height > MOST_PIXELS:
        raise _too_large(address)
    try:
        options = {"max_pixels": str(MOST_PIXELS)}
        with pyav().open(io.BytesIO(content), "r", format="gif", options=options) as container:
            frame = next(container.decode(video=0), None)
    except faults():
        raise _damaged(address) from None
    if frame is None:
        raise _damaged(address)
    return frame.to_ndarray(format="gray" if grey else "bgr24")


def _damaged(address: Address) -> FusedgeError:
    return address.error(
        "cannot be decoded as a picture: it is damaged",
        hint="copy it again, or save it with 8 bits a channel",
    )


def _too_large(address: Address) -> FusedgeError:
    most = f"{MOST_PIXELS / 1e6:.0f} million pixels"
    return address.error(f"is larger than {most}, or than the memory", hint="shrink it first")


def _has_pages(content: bytes) -> bool:
    """Whether it is a TIFF with several pictures, of which OpenCV gives the first. A thumbnail is none.

    By Adobe's "TIFF, Revision 6.0", 1992; BigTIFF has 64 bits for 32.
    """
    if content[:4] not in (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+"):
        return False
    order = "<" if content[:2] == b"II" else ">"
    big = b"+" in content[2:4]
    try:
        count_of, link, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
        (at,) = struct.unpack_from(order + link, content, 8 if big else 4)
        pages, seen = 0, set()
        while at and at not in seen and pages < 2:
            seen.add(at)
            (count,) = struct.unpack_from(order + count_of, content, at)
            first = at + struct.calcsize(count_of)
            (tag,) = struct.unpack_from(f"{order}H", content, first)
            (kind,) = struct.unpack_from(f"{order}I", content, first + (12 if big else 8))
            pages += not (tag == _SUBFILE_TYPE and kind & _NO_PAGE)
            (at,) = struct.unpack_from(order + link, content, first + count * entry)
    except (struct.error, OverflowError):  # it is damaged, which its decoder says
        return False
    return pages > 1


def _moves(content: bytes) -> bool:
    """Whether it is a WebP or PNG with several pictures, of which OpenCV would give the first.

    VP8X with its flag (developers.google.com/speed/webp/docs/riff_container), and acTL before the first
    IDAT (W3C, PNG, third edition).
    """
    if content[:4] == b"RIFF" and content[8:16] == b"WEBPVP8X":
        return bool(content[20:21] and content[20] & 0x02)
    return content[:8] == b"\x89PNG\r\n\x1a\n" and b"acTL" in content.partition(b"IDAT")[0]
