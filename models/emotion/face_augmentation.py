"""What a webcam does to a face, in batched tensor operations. Randomness is that of `torch.manual_seed`.

A change takes and gives float32 `[B, H, W]` in grey levels, 0 to 255, each image with its own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fusedge.models.one_thread import one_thread

Change = Callable[[Tensor], Tensor]


def augment(images: Tensor, strength: float = 1.0) -> Tensor:
    """Images uint8 `[B, H, W]` as a webcam may see them; scene, then optics, then electronics.

    `strength` multiplies the shares of images to which each change but `move` is made.
    """
    faces = move(images.float())
    for share, change in _SHARES:
        chosen = torch.rand(len(faces)) < share * strength
        if chosen.any():
            faces[chosen] = change(faces[chosen])
    return faces.round().clamp(0, 255).to(torch.uint8)


def move(faces: Tensor) -> Tensor:
    """Mirror half of them, turn by up to 15 degrees, scale by up to 15 %, shift by up to 8 %."""
    count = len(faces)
    angle = _between(count, -15, 15) * (math.pi / 180)
    sine, cosine = angle.sin(), angle.cos()
    across, down = _between(count, 0.85, 1.15), _between(count, 0.85, 1.15)
    across = across * torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    # The grid's units are half sides.
    shift = _between(count, -0.16, 0.16), _between(count, -0.16, 0.16)
    rows = [across * cosine, -down * sine, shift[0], across * sine, down * cosine, shift[1]]
    grid = functional.affine_grid(
        torch.stack(rows, dim=1).reshape(-1, 2, 3),
        [count, 1, *faces.shape[1:]],
        align_corners=False,
    )
    moved = functional.grid_sample(
        faces.unsqueeze(1), grid, padding_mode="border", align_corners=False
    )
    return moved.squeeze(1)


def light(faces: Tensor) -> Tensor:
    """Gamma, gain with saturation, and light from one side."""
    count, height, width = faces.shape
    gamma = _between(count, -0.6, 0.6).exp()
    gain = _between(count, -0.9, 0.3).exp()
    side, strength = _between(count, 0, 2 * math.pi), _between(count, 0, 0.8)
    y = torch.linspace(-1, 1, height).reshape(1, -1, 1)
    x = torch.linspace(-1, 1, width).reshape(1, 1, -1)
    slope = _column(strength * side.cos()) * x + _column(strength * side.sin()) * y
    lit = (faces.clamp(0, 255) / 255) ** _column(gamma) * (_column(gain) * slope.exp())
    return (lit * 255).clamp(0, 255)


def blur(faces: Tensor) -> Tensor:
    """A Gaussian of 0.3 to 1.4 px, another across than down: out of focus, or in motion."""
    count = len(faces)
    taps = torch.arange(-4, 5).float()
    blurred = functional.pad(faces.unsqueeze(0), (4, 4, 4, 4), mode="replicate")
    for shape in ((count, 1, 1, 9), (count, 1, 9, 1)):
        spread = _between(count, 0.3, 1.4).unsqueeze(1)
        kernel = (-0.5 * (taps / spread) ** 2).exp()
        kernel = kernel / kernel.sum(dim=1, keepdim=True)
        blurred = functional.conv2d(blurred, kernel.reshape(shape), groups=count)
    return blurred.squeeze(0)


def resample(faces: Tensor) -> Tensor:
    """Down to one of four sizes, 16 to 36 px, and up again: a face far from the camera."""
    side = (16, 20, 26, 36)[int(torch.randint(4, ()))]
    small = functional.interpolate(faces.unsqueeze(1), (side, side), mode="area")
    large = functional.interpolate(small, faces.shape[1:], mode="bilinear", align_corners=False)
    return large.squeeze(1)


def noise(faces: Tensor) -> Tensor:
    """White noise of 1 to 10 grey levels."""
    return faces + _column(_between(len(faces), 1, 10)) * torch.randn_like(faces)


def jpeg(faces: Tensor) -> Tensor:
    """JPEG's loss at quality 15 to 90: the cosine transform of 8x8 blocks, rounded to its steps.

    H and W are multiples of 8. Steps and their scale: ITU-T T.81, table K.1, and libjpeg.
    """
    count, height, width = faces.shape
    quality = _between(count, 15, 90)
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    steps = (_QUANTISATION * percent.reshape(-1, 1, 1, 1, 1) / 100).round().clamp(1, 255)
    blocks = (faces - 128).reshape(count, height // 8, 8, width // 8, 8).transpose(2, 3)
    rounded = ((_COSINES @ blocks @ _COSINES.T) / steps).round() * steps
    return (_COSINES.T @ rounded @ _COSINES + 128).transpose(2, 3).reshape(count, height, width)


def erase(faces: Tensor) -> Tensor:
    """A rectangle of even grey over 20 to 45 % of each side: a hand, hair, a microphone."""
    count, height, width = faces.shape
    hidden = torch.ones(1)
    for length, shape in ((height, (1, -1, 1)), (width, (1, 1, -1))):
        size = _between(count, 0.2, 0.45) * length
        start = torch.rand(count) * (length - size)
        place = torch.arange(length).reshape(shape)
        hidden = hidden * ((place >= _column(start)) & (place < _column(start + size)))
    return torch.where(hidden > 0, _column(_between(count, 0, 255)), faces)


CONDITIONS: Mapping[str, Change] = {
    "moved": move,
    "light": light,
    "blur": blur,
    "resampled": resample,
    "noise": noise,
    "jpeg": jpeg,
    "part hidden": erase,
}
"""Each alone on every image, to measure by: see `changed`."""


def changed(images: NDArray[np.uint8], change: Change) -> NDArray[np.uint8]:
    """Images uint8 `[N, H, W]` after one change, drawn from a seed that is always the same."""
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(0)
        # In small batches, for all images of one are resampled to the same size.
        batches = [change(batch.float()) for batch in torch.split(torch.from_numpy(images), 32)]
    whole: NDArray[np.uint8] = torch.cat(batches).round().clamp(0, 255).to(torch.uint8).numpy()
    return whole


_SHARES: tuple[tuple[float, Change], ...] = (
    (0.2, erase),
    (0.4, light),
    (0.2, blur),
    (0.1, resample),
    (0.2, noise),
    (0.2, jpeg),
)
"""Of how many images of a batch each change is made."""


def _between(count: int, low: float, high: float) -> Tensor:
    return torch.empty(count).uniform_(low, high)


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1)


def _cosines() -> Tensor:
    """The orthonormal cosine transform of 8 numbers."""
    frequency, place = torch.arange(8).reshape(-1, 1), torch.arange(8) + 0.5
    rows = (math.pi / 8 * frequency * place).cos() / 2
    rows[0] /= math.sqrt(2)
    return rows


_COSINES = _cosines()
_QUANTISATION = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
