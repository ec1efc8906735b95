"""Sizes computed from constants of a model's code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compiler


class Windows(nn.Module):
    """Sums of windows whose lengths are computed from the grids (time, rows, columns) of images, a constant or a
    buffer."""

    def __init__(self, grids: list[list[int]], *, buffer: bool) -> None:
        super().__init__()
        self.grids = grids
        self.buffer = nn.Buffer(torch.tensor(grids), persistent=False) if buffer else None

    def forward(self, x: Tensor) -> Tensor:
        grids = torch.tensor(self.grids) if self.buffer is None else self.buffer
        ends = torch.repeat_interleave(grids[:, 1] * grids[:, 2], grids[:, 0]).cumsum(0)
        lengths = torch.diff(nn.functional.pad(ends, (1, 0)))
        return torch.stack([window.exp().sum(0) for window in torch.split(x, lengths.tolist())])


@pytest.mark.parametrize("buffer", [False, True])
def test_sizes_computed_from_constants_of_several_elements(buffer: bool) -> None:
    grids = [[1, 2, 3], [2, 1, 4]]
    net, x = Windows(grids, buffer=buffer).eval(), torch.randn(14, 5)
    other = Windows([[2, 3, 1], [1, 4, 2]], buffer=buffer).eval()
    for each in (net, other):
        module = compiler.compile(each, example_inputs=(x,), threads=1)
        np.testing.assert_allclose(module.run({"x": x.numpy()})["output_0"], each(x).numpy(), rtol=1e-5)


def _set_one(lengths: Tensor, n: Tensor) -> None:
    lengths[1] = n


def _add(lengths: Tensor, n: Tensor) -> None:
    lengths.add_(n)


def _scale_view(lengths: Tensor, n: Tensor) -> None:
    lengths[1:].mul_(n)


def _replace(lengths: Tensor, n: Tensor) -> None:
    lengths.copy_(n.expand(2))


class Written(nn.Module):
    """Sums of two windows whose lengths the model writes over a constant."""

    def __init__(self, write: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.write = write

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        lengths = torch.tensor([2, 1])
        self.write(lengths, n)
        first, second = lengths.tolist()
        return torch.stack([x[:first].exp().sum(0), x[first : first + second].exp().sum(0)])


@pytest.mark.parametrize("write", [_set_one, _add, _scale_view, _replace])
def test_values_written_over_a_constant_are_those_of_the_run(write: Callable[[Tensor, Tensor], None]) -> None:
    net, x = Written(write).eval(), torch.randn(12, 5)
    module = compiler.compile(net, example_inputs=(x, torch.tensor(1)), threads=1)
    for n in (torch.tensor(1), torch.tensor(3)):
        found = module.run({"x": x.numpy(), "n": n.numpy()})["output_0"]
        np.testing.assert_allclose(found, net(x, n).numpy(), rtol=1e-5)


class Item(nn.Module):
    """The first rows, as many as a constant of one element that the model writes through a view."""

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        count = torch.tensor([2])
        count.view(1)[0] = n
        return x[: count.item()].exp().sum(0)


def test_a_constant_of_one_element_that_is_written() -> None:
    net, x = Item().eval(), torch.randn(6, 5)
    module = compiler.compile(net, example_inputs=(x, torch.tensor(2)), threads=1)
    for n in (torch.tensor(2), torch.tensor(5)):
        found = module.run({"x": x.numpy(), "n": n.numpy()})["output_0"]
        np.testing.assert_allclose(found, net(x, n).numpy(), rtol=1e-5)


def test_constants_that_are_written_with_constants_determine_sizes() -> None:
    class Constants(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.tensor([1, 2, 3])
            lengths[1] = 4
            return torch.stack([window.exp().sum(0) for window in torch.split(x, lengths.tolist())])

    net, x = Constants().eval(), torch.randn(8, 5)
    module = compiler.compile(net, example_inputs=(x,), threads=1)
    np.testing.assert_allclose(module.run({"x": x.numpy()})["output_0"], net(x).numpy(), rtol=1e-5)


class Places(nn.Module):
    """Sums of rows in an order, and in groups of lengths, that are computed from a grid."""

    def __init__(self, *, counted: bool = False) -> None:
        super().__init__()
        self.counted = counted

    def forward(self, x: Tensor) -> Tensor:
        places = (
            nn.functional.pad(torch.arange(6).reshape(2, 3), (0, 1, 0, 0), value=-1).reshape(2, 2, 2).transpose(0, 1)
        )
        lengths = (places != -1).sum((1, 2))
        if self.counted:
            marks = torch.zeros(2, dtype=torch.int64)
            marks[1] = 1
            lengths = lengths - marks + marks.flip(0)
        rows = x[places[places != -1]]
        if self.counted:
            rows = torch.cat(
                [rows, x[torch.zeros(0, 2, dtype=torch.int64).sum(1)]]
            )  # no row; a list would lose an axis
        found = torch.stack([group.exp().sum(0) for group in torch.split(rows, lengths.tolist())])
        return found if lengths.tolist()[0] > 3 else found.flip(0)  # a branch, which needs the value


@pytest.mark.parametrize("counted", [False, True])
def test_sizes_computed_from_what_the_model_creates(counted: bool) -> None:
    net, x = Places(counted=counted).eval(), torch.randn(6, 5)
    module = compiler.compile(net, example_inputs=(x,), threads=1)
    np.testing.assert_allclose(module.run({"x": x.numpy()})["output_0"], net(x).numpy(), rtol=1e-5)
