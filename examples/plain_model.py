"""A plain model: any `nn.Module`, exported as one part.

Write its weights and an example of its inputs, then export it:

    python -m examples.plain_model .
    fusedge export examples.plain_model:make --checkpoint weights.safetensors \
        --example inputs.npz -o digits.fusedge

The example has an array for each argument of `forward`, by name, and says dtypes and shapes; the first
dim is the batch, which stays free.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SIZE = 32  # pixels


class DigitNet(nn.Module):
    """A picture of a digit to its class and to the vector that it was judged by."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classify = nn.Linear(16, 10)

    def forward(self, picture: Tensor) -> dict[str, Tensor]:
        """`picture` uint8 `[B, 32, 32]`; `scores` float32 `[B, 10]`, `features` `[B, 16]`."""
        features = self.features(picture[:, None].float() / 255)
        return {"scores": self.classify(features), "features": features}


def make() -> nn.Module:
    """What `fusedge export` calls; the weights come from the checkpoint."""
    return DigitNet()


def main(folder: Path) -> None:
    """Write `weights.safetensors` and `inputs.npz`. Training would go here; these weights are random."""
    torch.manual_seed(0)
    save_file(DigitNet().state_dict(), folder / "weights.safetensors")
    pictures = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE), dtype=np.uint8)
    np.savez(folder / "inputs.npz", picture=pictures)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
