"""Programs that write to buffers and inputs: sessions equal torch step by step."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tensorwright
from compiler.errors import InputError, UnsupportedModelError


class Streaming(nn.Module):
    """A causal convolution with its last inputs, a cache of rows at a counter, a row by number, and a running sum."""

    window: Tensor
    cache: Tensor
    count: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 4, 3)
        self.register_buffer("window", torch.zeros(1, 3, 2))
        self.register_buffer("cache", torch.full((1, 8, 4), 0.25))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.ones(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        whole = torch.cat([self.window, x], 2)
        self.window.copy_(whole[:, :, -2:])
        rows = self.convolution(whole).transpose(1, 2)
        before = self.cache.sum()
        self.cache.index_copy_(1, self.count + torch.arange(x.shape[2]), rows)
        self.cache[:, 7] = before
        self.count += x.shape[2]
        self.total.mul_(0.5).add_(rows.mean((0, 1)))
        return {"rows": rows, "seen": self.cache.cumsum(1), "running": self.total}


class Cached(nn.Module):
    """Caches that are arguments: one written by index, one by a slice."""

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Tensor:
        keys[:, at] = x
        values[:, 1:3] = x * 2
        return keys.sum(1) + values.sum(1)


class Transducer(nn.Module):
    """A streaming transducer: an encoder with left context, a recurrent predictor, and the joint of both."""

    context: Tensor
    hidden: Tensor
    cell: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.joint = nn.Linear(8, 8), nn.Linear(16, 5)
        self.embedding, self.predictor = nn.Embedding(5, 8), nn.LSTM(8, 8, batch_first=True)
        for name, shape in (("context", (1, 6, 8)), ("hidden", (1, 1, 8)), ("cell", (1, 1, 8))):
            self.register_buffer(name, torch.zeros(shape))

    def encode(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        whole = torch.cat([context, x], 1)
        weights = torch.softmax(x @ whole.transpose(1, 2), -1)
        return torch.relu(self.encoder(weights @ whole)), whole[:, -6:]

    def step(self, x: Tensor, token: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits and next states, with nothing written."""
        context, hidden, cell = state
        encoded, context = self.encode(x, context)
        predicted, (hidden, cell) = self.predictor(self.embedding(token), (hidden, cell))
        joined = torch.cat([encoded, predicted.expand(1, x.shape[1], 8)], -1)
        return self.joint(joined), (context, hidden, cell)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        logits, state = self.step(x, token, (self.context, self.hidden, self.cell))
        for buffer, value in zip((self.context, self.hidden, self.cell), state, strict=True):
            buffer.copy_(value)
        return logits


def test_a_streaming_transducer_equals_its_functional_form() -> None:
    torch.manual_seed(1)
    model = Transducer().eval()
    example = (torch.randn(1, 3, 8), torch.tensor([[0]]))
    state: tuple[Tensor, ...] = (model.context.clone(), model.hidden.clone(), model.cell.clone())
    with torch.no_grad():
        session = tensorwright.compile(model, example_inputs=example, threads=1, progress=None).session()
        for number in range(5):
            x, token = torch.randn(1, 3, 8), torch.tensor([[number % 5]])
            expected, state = model.step(x, token, state)
            got = session.run({"x": x.numpy(), "token": token.numpy()})
            np.testing.assert_allclose(got["output_0"], expected, rtol=1e-4, atol=1e-5)


def test_buffers_are_states() -> None:
    torch.manual_seed(0)
    model = Streaming().eval()
    with torch.no_grad():
        module = tensorwright.compile(model, example_inputs=(torch.randn(1, 3, 2),), threads=1, progress=None)
        session = module.session()
        assert {state.name for state in module.manifest.states} == {"window", "cache", "count", "total"}
        for _ in range(3):
            x = torch.randn(1, 3, 2)
            got, expected = session.run({"x": x.numpy()}), model(x)
            for name, value in expected.items():
                np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-4, atol=1e-5)
            for name, state in session.states.items():
                np.testing.assert_allclose(state, getattr(model, name).numpy(), rtol=1e-4, atol=1e-5)
    session.run({"x": x.numpy()})
    before = session.states
    with pytest.raises(InputError, match="outside of its capacity"):
        session.run({"x": x.numpy()})
    for name, state in session.states.items():
        np.testing.assert_array_equal(state, before[name])


def test_inputs_that_are_written_to_are_states_when_named() -> None:
    example: Any = (torch.randn(1, 2, 4), torch.zeros(1, 6, 4), torch.zeros(1, 6, 4), torch.tensor([1, 4]))
    with pytest.raises(UnsupportedModelError, match="the model writes to this input while running"):
        tensorwright.compile(Cached().eval(), example_inputs=example, state=["keys"])
    module = tensorwright.compile(
        Cached().eval(), example_inputs=example, state=["keys", "values"], threads=1, progress=None
    )
    session, keys, values = module.session(), torch.zeros(1, 6, 4), torch.zeros(1, 6, 4)
    for places in ([0, 1], [-1, 2], [5, 5]):
        x = torch.randn(1, 2, 4)
        got = session.run({"x": x.numpy(), "at": np.array(places)})
        np.testing.assert_allclose(
            got["output_0"], Cached()(x, keys, values, torch.tensor(places)), rtol=1e-5, atol=1e-5
        )
        np.testing.assert_array_equal(session.states["keys"], keys)
        np.testing.assert_array_equal(session.states["values"], values)


class Counting(nn.Module):
    sums: torch.Tensor

    def __init__(self, sums: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("sums", sums)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sums.view(-1)[1:].add_(x.sum())
        return x * self.sums


def test_one_buffer_of_two_modules_is_one_state() -> None:
    shared = torch.zeros(3)
    model = nn.Sequential(Counting(shared), Counting(shared)).eval()
    example = (torch.zeros(3),)
    module = tensorwright.compile(copy.deepcopy(model), example_inputs=example, threads=1, progress=None)
    session = module.session()
    for _ in range(2):
        x = torch.randn(3)
        np.testing.assert_allclose(session.run([x.numpy()])["output_0"], model(x), rtol=1e-5)
    np.testing.assert_allclose(session.states["0.sums"], shared, rtol=1e-5)
    overlapping = nn.Sequential(Counting(shared), Counting(shared[:1])).eval()
    with pytest.raises(UnsupportedModelError, match=r"1.sums.*its memory is part of the buffer '0.sums'"):
        tensorwright.compile(overlapping, example_inputs=example, progress=None)


class WritesThroughViews(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        values = x.clone()
        values[:, 0].mul_(2)
        values.transpose(0, 1)[1].add_(1)
        values.view(-1)[3:6].zero_()
        flat = values.view(-1)
        values.relu_()
        return values + flat.reshape(values.shape)


def test_writes_through_views_of_intermediate_values() -> None:
    examples = torch.randn(4, 5), torch.randn(7, 5)
    module = tensorwright.compile(
        WritesThroughViews().eval(),
        example_inputs=examples[:1],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        threads=1,
    )
    for x in examples:
        (found,) = module.run([x]).values()
        np.testing.assert_allclose(found, WritesThroughViews()(x).numpy(), rtol=1e-6)
