"""Recurrent layers whose length and batch are dynamic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compiler

_HIDDEN, _FEATURES = 7, 5


class _Layers(nn.Module):
    """A recurrent layer that gets its state, and returns it."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.layers = getattr(nn, kind)(_FEATURES, _HIDDEN, **options)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        pair = isinstance(self.layers, nn.LSTM)
        y, last = self.layers(x, (state, -state) if pair else state)
        return (y, *last) if pair else (y, last)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        ("GRU", {"bidirectional": True}),
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu", "bias": False}),
    ],
)
def test_dynamic_length_and_batch(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = _Layers(kind, **options).eval()
    first = options.get("batch_first", False)
    states = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    length, batch = torch.export.Dim("length"), torch.export.Dim("batch")

    def inputs(steps: int, samples: int) -> tuple[Tensor, Tensor]:
        sizes = (samples, steps) if first else (steps, samples)
        return torch.randn(*sizes, _FEATURES), torch.randn(states, samples, _HIDDEN)

    axes = {0: batch, 1: length} if first else {0: length, 1: batch}
    module = compiler.compile(model, example_inputs=inputs(3, 2), dynamic_shapes=(axes, {1: batch}), records=False)
    for steps, samples in ((1, 1), (6, 5)):
        x, state = inputs(steps, samples)
        with torch.no_grad():
            expected = model(x, state)
        found = module.run({"x": x.numpy(), "state": state.numpy()})
        for ours, theirs in zip(found.values(), expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)
    assert torch._VF.lstm is torch._C._VariableFunctions.lstm
