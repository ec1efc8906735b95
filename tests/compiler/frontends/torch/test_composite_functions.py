"""Functions that torch captures for one size only, compared with torch at several sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torchvision.ops import batched_nms

import compiler
from compiler.errors import UnsupportedModelError


class Transformed(nn.Module):
    """A filter in the frequency domain, of frames that reach beyond the signal and of ones that do not."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(48))

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def spectrum(normalized: bool = False) -> Tensor:
            found = torch.stft(signal, 64, 16, 48, self.window, normalized=normalized, return_complex=True)
            return found * torch.linspace(1, 0, 33)[:, None]

        whole = torch.istft(spectrum(), 64, 16, 48, self.window, length=signal.shape[-1])
        shorter = torch.istft(spectrum(normalized=True), 64, 16, 48, self.window, normalized=True)
        single = torch.istft(spectrum()[0], 64, 16, 48, self.window, length=100)
        return whole, shorter, single


class Statistics(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        running = first.new_zeros(5), first.new_ones(5)
        normalized = torch.native_batch_norm(first, None, None, *running, True, 0.1, 1e-5)
        return (
            torch.cov(first),
            torch.corrcoef(first),
            first[:1].cov(correction=0),
            torch.cdist(first, second),
            *normalized,
        )


def check(net: nn.Module, axes: tuple[dict[int, object], ...], *examples: tuple[Tensor, ...]) -> None:
    module = compiler.compile(net.eval(), example_inputs=examples[0], dynamic_shapes=axes, threads=1)
    for given in examples:
        for ours, theirs in zip(module.run(list(given)).values(), net(*given), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_inverse_short_time_fourier_transform_of_dynamic_length() -> None:
    check(Transformed(), ({1: Dim.DYNAMIC},), (torch.randn(2, 320),), (torch.randn(2, 407),))


def test_covariances_and_distances_of_dynamic_sizes() -> None:
    """More than 25 rows, for which torch uses another method to compute distances."""
    sizes = [(4, 6, 5), (9, 31, 5)]
    examples = [(torch.randn(a, width), torch.randn(b, width)) for a, b, width in sizes]
    check(Statistics(), ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}), *examples)


class Divisors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.gcd(x, x + 2)


def test_a_refusal_names_the_operator_and_its_node() -> None:
    with pytest.raises(UnsupportedModelError, match=r"prims.gcd \(node 'gcd'\): PyTorch's ONNX exporter"):
        compiler.compile(Divisors().eval(), example_inputs=(torch.arange(4),), threads=1)


class Detector(nn.Module):
    """As detectors do: boxes above a score, then those of each class that overlap no better one."""

    def forward(self, corners: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
        boxes = torch.cat([corners, corners + 20], 1)
        kept = scores > 0.3
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
        best = batched_nms(boxes, scores, classes, 0.4)[:7]
        return boxes[best], scores[best], classes[best]


def test_suppression_of_computed_numbers_of_boxes() -> None:
    def drawn(count: int) -> tuple[Tensor, ...]:
        return torch.rand(count, 2) * 50, torch.rand(count), torch.randint(0, 3, (count,))

    shapes = ({0: Dim.DYNAMIC},) * 3
    module = compiler.compile(Detector().eval(), example_inputs=drawn(20), dynamic_shapes=shapes, threads=1)
    for given in (drawn(20), drawn(1500), tuple(each * 0 for each in drawn(6))):
        for found, wanted in zip(module.run(given).values(), Detector()(*given), strict=True):
            np.testing.assert_array_equal(found, wanted)
