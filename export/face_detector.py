"""BlazeFace, full range (V. Bazarevsky et al., arXiv 1907.05047), with the boxes decoded in the graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusedge.export.tflite_module import TfliteModule

_SIZE = 192  # pixels of the square that it was trained on
_STRIDE = 4  # pixels from one place of its heads to the next; one box each
_POINTS = 8  # centre, width and height, six landmarks


class FaceDetector(nn.Module):
    """`detector(image) -> (boxes, scores)` of a whole frame, fitted into a square with its aspect kept.

    - `image` uint8 `[B, 192, 192, 3]`, RGB
    - `boxes` float32 `[B, 2304, 16]`: x and y of the centre, width, height, then x and y of the person's
      right eye, left eye, nose tip, mouth, right ear and left ear, as shares of the square
    - `scores` float32 `[B, 2304]`, from 0 to 1

    One face has several boxes: keep those that score, and join those that overlap.
    """

    offsets: Tensor

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__()
        self.network = TfliteModule(content, where)
        self.size = _SIZE
        places = _SIZE // _STRIDE
        self.anchors = places**2
        # A point is given from its anchor, in pixels; a width and a height stand for themselves.
        centres = (torch.arange(places) + 0.5) / places
        anchor = torch.stack([centres.repeat(places), centres.repeat_interleave(places)], dim=1)
        offsets = anchor.repeat(1, _POINTS)
        offsets[:, 2:4] = 0
        self.register_buffer("offsets", offsets)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        scaled = image.permute(0, 3, 1, 2).float() * (2 / 255) - 1
        points, raw = self.network(scaled)
        return points * (1 / _SIZE) + self.offsets, torch.sigmoid(raw.squeeze(2))
