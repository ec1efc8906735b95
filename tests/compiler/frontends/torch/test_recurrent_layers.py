"""Recurrent layers with dynamic length and batch, and with packed sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import compiler
from compiler.errors import UnsupportedModelError

_HIDDEN, _FEATURES = 7, 5


class _Layers(nn.Module):
    """A recurrent layer that takes and returns its state."""

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


class _Packed(nn.Module):
    """Two layers over sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(_FEATURES, _HIDDEN, bidirectional=True, batch_first=True)
        self.second = nn.GRU(2 * _HIDDEN, _HIDDEN, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        found, (_, cell) = self.first(packed)
        states, last = self.second(found)
        whole, _ = pad_packed_sequence(found, batch_first=True, padding_value=-1.0, total_length=x.shape[1])
        longest, counted = pad_packed_sequence(states, batch_first=True)
        return whole, longest.tanh(), counted, cell, last


def test_packed_sequences() -> None:
    torch.manual_seed(0)
    model = _Packed().eval()
    axes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}, {0: torch.export.Dim("batch")})
    example = (torch.randn(3, 4, _FEATURES), torch.tensor([2, 4, 1]))
    module = compiler.compile(model, example_inputs=example, dynamic_shapes=axes, records=False)
    for steps, lengths in ((4, [2, 4, 1]), (7, [3, 1, 5, 5])):
        x, counts = torch.randn(len(lengths), steps, _FEATURES), torch.tensor(lengths)
        with torch.no_grad():
            expected = model(x, counts)
        found = module.run({"x": x.numpy(), "lengths": counts.numpy()})
        for ours, theirs in zip(found.values(), expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


class _ReadsParts(nn.Module):
    """The mean over all steps of all sequences: over steps of padding where sequences are not packed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(_FEATURES, _HIDDEN)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.layer(pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False))[0].data.mean(0)


def test_models_that_read_parts_of_packed_sequences_are_refused() -> None:
    example = (torch.randn(4, 3, _FEATURES), torch.tensor([2, 4, 1]))
    with pytest.raises(UnsupportedModelError, match=r"PackedSequence.*the model reads its parts"):
        compiler.compile(_ReadsParts().eval(), example_inputs=example)
