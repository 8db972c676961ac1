"""GRU and LSTM are one operation while a module is traced, with the same results."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from fusedge.bundle.inference import open_session
from fusedge.export.recurrent import TRANSLATIONS, RecurrentAsOperations

OPTIONS = {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}


class Outputs(nn.Module):
    """All that a layer returns, batch first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, last = self.layer(x)
        states = last if isinstance(last, tuple) else (last,)
        return (y, *(state.transpose(0, 1) for state in states))


@pytest.mark.parametrize(
    ("layer", "operation"),
    [(nn.GRU(3, 4, **OPTIONS), "fusedge.gru"), (nn.LSTM(3, 4, **OPTIONS), "fusedge.lstm")],  # type: ignore[arg-type]
)
def test_a_layer_is_one_operation_however_long_the_sequence(
    layer: nn.Module, operation: str
) -> None:
    module, x = Outputs(layer).eval(), torch.randn(2, 300, 3)
    batch = torch.export.Dim("batch", min=1)
    with RecurrentAsOperations():
        program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},), strict=False)
        with torch.no_grad():
            again = module(x)
    assert Counter(str(node.target) for node in program.graph.nodes)[f"{operation}.default"] == 1
    graph = torch.onnx.export(
        program, dynamo=True, custom_translation_table=TRANSLATIONS, verbose=False
    )
    assert graph is not None
    session = open_session(graph.model_proto.SerializeToString(), "fp32")
    x = torch.randn(5, 300, 3)
    with torch.no_grad():
        expected = module(x)
        for same, found in zip(program.module()(x), expected, strict=True):
            torch.testing.assert_close(same, found)
    for found, wanted in zip(again, module(torch.zeros(2, 300, 3)), strict=True):
        assert found.shape == wanted.shape
    for got, wanted in zip(session.run(None, {"x": x.numpy()}), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_the_operations_keep_to_torchs_rules() -> None:
    for layer in (nn.GRU(3, 4), nn.LSTM(3, 4)):
        x, h = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
        weights = [weight.detach() for weight in layer._flat_weights]
        states = (h,) if isinstance(layer, nn.GRU) else (h, h.clone())
        name = "gru" if isinstance(layer, nn.GRU) else "lstm"
        operation = getattr(torch.ops.fusedge, name).default
        torch.library.opcheck(operation, (x, *states, weights, True, 1, False, False))
