"""Makes pictures of the frames that a camera sends: decoded, in RGB or grey, of the wanted size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import MissingExtraError

Picture = NDArray[np.uint8]


class Layout(NamedTuple):
    """How a frame lies in memory, and OpenCV's codes that make a picture of it (empty: it is one).

    `planes` is the height of the array in heights of the picture.
    """

    channels: int
    planes: Fraction
    to_rgb: str
    to_grey: str
    compressed: bool = False


_WHOLE, _PLANAR = Fraction(1), Fraction(3, 2)
# By FourCC. What costs the least to read comes first.
LAYOUTS: Mapping[str, Layout] = {
    "YUYV": Layout(2, _WHOLE, "COLOR_YUV2RGB_YUYV", "COLOR_YUV2GRAY_YUYV"),
    "UYVY": Layout(2, _WHOLE, "COLOR_YUV2RGB_UYVY", "COLOR_YUV2GRAY_UYVY"),
    "YVYU": Layout(2, _WHOLE, "COLOR_YUV2RGB_YVYU", "COLOR_YUV2GRAY_YVYU"),
    "NV12": Layout(1, _PLANAR, "COLOR_YUV2RGB_NV12", "COLOR_YUV2GRAY_NV12"),
    "NV21": Layout(1, _PLANAR, "COLOR_YUV2RGB_NV21", "COLOR_YUV2GRAY_NV21"),
    "YU12": Layout(1, _PLANAR, "COLOR_YUV2RGB_I420", "COLOR_YUV2GRAY_I420"),
    "YV12": Layout(1, _PLANAR, "COLOR_YUV2RGB_YV12", "COLOR_YUV2GRAY_YV12"),
    "RGB3": Layout(3, _WHOLE, "", "COLOR_RGB2GRAY"),
    "BGR3": Layout(3, _WHOLE, "COLOR_BGR2RGB", "COLOR_BGR2GRAY"),
    "MJPG": Layout(3, _WHOLE, "COLOR_BGR2RGB", "", compressed=True),
    "JPEG": Layout(3, _WHOLE, "COLOR_BGR2RGB", "", compressed=True),
    "GREY": Layout(1, _WHOLE, "COLOR_GRAY2RGB", ""),
}
_JPEG_END = b"\xff\xd9"


def opencv(purpose: str) -> ModuleType:
    """OpenCV, kept from writing to the terminal; raises MissingExtraError where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("opencv-python-headless", "camera", purpose) from None
    # Where it is depends on the version; it is the same function.
    silence = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    silence(0)
    return cv2


class WrongSizeError(Exception):
    """A picture is sound, but not of the size that was agreed on."""


class Developer:
    """Makes pictures uint8 `[height, width, channels]` of frames in one of `LAYOUTS`.

    Contract: the whole picture is stretched to the wanted `shape`, whatever becomes of its aspect
    ratio, averaging over areas where it shrinks on both sides. `shape` with 3 channels is RGB, with 1
    grey. The result is written straight into what `allocate` gives for the shape.
    """

    def __init__(self, format: str, width: int, height: int, shape: tuple[int, int, int]) -> None:
        self._cv2 = opencv("reading a camera")
        self._layout = LAYOUTS[format]
        self._size = (height, width)
        self.shape = shape
        code = self._layout.to_grey if shape[2] == 1 else self._layout.to_rgb
        self._code: int | None = getattr(self._cv2, code) if code else None
        shrinks = shape[0] <= height and shape[1] <= width
        self._interpolation = self._cv2.INTER_AREA if shrinks else self._cv2.INTER_LINEAR

    def picture(
        self, frame: Picture, allocate: Callable[[tuple[int, ...]], Picture]
    ) -> Picture | None:
        """The picture in the bytes of a frame; None, and nothing is allocated, where they are damaged.

        Raises WrongSizeError.
        """
        pixels = self._decoded(frame) if self._layout.compressed else self._shaped(frame)
        if pixels is None:
            return None
        out = allocate(self.shape)
        if self._size == self.shape[:2]:
            self._coloured(pixels, out)
        else:
            size = (self.shape[1], self.shape[0])
            image = self._coloured(pixels, None)
            self._cv2.resize(image, size, dst=out, interpolation=self._interpolation)
        return out

    def _shaped(self, frame: Picture) -> Picture | None:
        height, width = self._size
        rows, channels = int(height * self._layout.planes), self._layout.channels
        needed = rows * width * channels
        # Some drivers count the unused end of their buffer as well.
        if frame.size < needed:
            return None
        return frame.reshape(-1)[:needed].reshape(rows, width, channels)

    def _decoded(self, frame: Picture) -> Picture | None:
        cv2, data = self._cv2, frame.reshape(-1)
        # A decoder may take a torn frame and fill it up with grey.
        if _JPEG_END not in data[-(data.size // 2) :].tobytes():
            return None
        flags = cv2.IMREAD_GRAYSCALE if self.shape[2] == 1 else cv2.IMREAD_COLOR
        image: Picture | None = cv2.imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is not None and image.shape[:2] != self._size:
            raise WrongSizeError(f"{image.shape[1]}x{image.shape[0]}")
        return image

    def _coloured(self, pixels: Picture, out: Picture | None) -> Picture:
        if self._code is not None:
            image: Picture = self._cv2.cvtColor(pixels, self._code, dst=out)
            return image
        if out is not None:
            np.copyto(out, pixels.reshape(out.shape))
        return pixels
