"""Single pictures."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusedge.bundle.errors import printable
from fusedge.bundle.regular_file import read_file
from fusedge.bundle.sample import Sample
from fusedge.bundle.window import NANOSECONDS
from fusedge.devices.capture.address import Address, Request
from fusedge.devices.capture.decoding import MAX_PIXELS, MODALITIES
from fusedge.devices.capture.pixels import opencv
from fusedge.devices.capture.wanted import COLOURS, modality_of, picture_size

SHOWN_S = 3.0  # long enough for a modality to be present, and for its label to be steady
RATE_HZ = 10.0  # where nobody says another one
PIXEL_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"  # read when OpenCV is loaded: a bomb is not unpacked
MAX_FILE_BYTES = 256 << 20  # MAX_PIXELS without compression, and their transparency


def open_still(request: Request) -> Still:
    """The source `file:PICTURE`; raises FusedgeError for what is no picture."""
    return Still(request)


class Still:
    """Contract: a picture, as a camera that sees nothing else would give it, for SHOWN_S at the modality's
    rate.

    It is upright (EXIF's orientation is applied), with 8 bits a channel, in RGB, or grey where the modality
    has one channel; transparency is left out. The size is what the modality asks for (see
    `picture_size`), else its own.
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
        if spec is not None and (size := picture_size(spec, *image.shape[:2])) != image.shape[:2]:
            shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
            cv2 = opencv("reading a picture")
            how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, size[::-1], interpolation=how)
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
    """The picture as OpenCV's decoders have it, upright, in grey or RGB."""
    content = np.frombuffer(read_file(Path(address.target), MAX_FILE_BYTES), np.uint8)
    os.environ.setdefault(PIXEL_LIMIT, str(MAX_PIXELS))
    cv2 = opencv("reading a picture")
    try:
        flags = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR
        image = cv2.imdecode(content, flags) if len(content) else None
    except (cv2.error, MemoryError) as error:
        reason = printable(str(error)).strip()
        raise address.error(f"cannot be decoded: {reason}") from None
    if image is None:
        raise address.error(
            "is no picture that can be decoded",
            hint="it is opened by OpenCV: JPEG, PNG, WebP, TIFF, BMP",
        )
    if (
        image.shape[0] * image.shape[1] > MAX_PIXELS
    ):  # the limit is OpenCV's only if it was set first
        raise address.error(f"has {image.shape[1]}x{image.shape[0]} pixels, which is too many")
    return image if grey else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
