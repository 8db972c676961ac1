"""Silero VAD for sound at 16 kHz, with the weights of the package's ONNX file.

That file has branches on ranks and sizes, which TensorRT does not build; on sound of one size they always
go the same way, which is what is written here. A test holds the two against each other. The package's
safetensors file has the weights of an earlier version.
"""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from fusedge.bundle.errors import FusedgeError

SAMPLE_RATE_HZ = 16_000
NEW = 512  # samples of a step
CONTEXT = 64  # samples from before them
STATE = 128  # numbers of each of the two states
_SPECTRUM = 129  # frequencies, of which the first convolution gives real and imaginary parts
_NAMES = {  # in the file
    "stft.weight": "model.stft.forward_basis_buffer",
    **{
        f"encoder.{i}.{kind}": f"model.encoder.{i}.reparam_conv.{kind}"
        for i in range(4)
        for kind in ("weight", "bias")
    },
    **{
        f"cell.{name}": f"model.decoder.rnn.{name}"
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
    **{f"last.{kind}": f"model.decoder.decoder.2.{kind}" for kind in ("weight", "bias")},
}


class SpeechDetector(nn.Module):
    """`detector(samples, state) -> (probability, new state)` that somebody speaks in a step of 32 ms.

    - `samples` float32 `[B, 576]` from -1 to 1: the last 64 of the step before, then 512 new ones
    - `state` and new state float32 `[2, B, 128]`; zeros before the first step
    - `probability` float32 `[B, 1]`

    Raises FusedgeError for a file that is another one.
    """

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__()
        self.stft = nn.Conv1d(1, 2 * _SPECTRUM, 256, stride=128, bias=False)
        self.encoder = nn.ModuleList(
            nn.Conv1d(taken, given, 3, stride, padding=1)
            for taken, given, stride in (
                (_SPECTRUM, 128, 1),
                (128, 64, 2),
                (64, 64, 2),
                (64, 128, 1),
            )
        )
        self.cell = nn.LSTMCell(128, STATE)
        self.last = nn.Conv1d(STATE, 1, 1)
        try:
            constants = {
                tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
                for tensor in onnx.load_model_from_string(content).graph.initializer
            }
            self.load_state_dict({own: constants[name] for own, name in _NAMES.items()})
        except Exception as error:  # protobuf's kinds differ between its implementations
            reason = next(iter(str(error).splitlines()), "")
            raise FusedgeError(f"has no weights of Silero VAD: {reason}", where=where) from error

    def forward(self, samples: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        padded = functional.pad(samples.unsqueeze(1), (0, 64), mode="reflect")
        parts = self.stft(padded)
        hidden = (parts[:, :_SPECTRUM].square() + parts[:, _SPECTRUM:].square()).sqrt()
        for convolution in self.encoder:
            hidden = functional.relu(convolution(hidden))
        h, c = self.cell(hidden.squeeze(2), (state[0], state[1]))
        logit = self.last(functional.relu(h).unsqueeze(2)).squeeze(2)
        return torch.sigmoid(logit), torch.stack([h, c])
