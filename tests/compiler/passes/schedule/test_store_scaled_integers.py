"""Weights that are multiples of 8-bit integers are stored as such and restored bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import compiler
from compiler.compression.quantization.affine import quantize_weight
from compiler.passes.schedule.store_compressed import packed_integers


@pytest.mark.parametrize(("shape", "axes"), [((64, 8, 3, 3), (0,)), ((4, 9, 16, 16), (0, 3)), ((300, 32), (1,))])
def test_integers_and_scales_give_the_numbers_back(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    scales = generator.uniform(1e-4, 2, [size if axis in axes else 1 for axis, size in enumerate(shape)])
    integers = generator.integers(-127, 128, shape)
    view = np.moveaxis(integers, axes, range(len(axes)))
    for place in np.ndindex(*view.shape[: len(axes)]):
        filters = view[place]
        filters[(0,) * filters.ndim] = 127
    values = integers.astype(np.float32) * scales.astype(np.float32)
    packed = packed_integers(values)
    assert packed is not None
    stored, found = packed.stored
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(stored.astype(np.float32) * found, values)
    values[tuple(size - 1 for size in shape)] *= np.float32(1.001)
    assert packed_integers(values) is None


def test_convolutions_of_rounded_weights() -> None:
    """One by Winograd's method, direct ones, a depthwise one: a quarter of the bytes, the numbers of torch."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(16, 64, 5, stride=2),
        torch.nn.Conv2d(64, 64, 3),
        torch.nn.Conv2d(64, 512, 1),
        torch.nn.Conv2d(512, 512, 3, padding=1, groups=512),
        torch.nn.Conv2d(512, 32, 1),
    ).eval()
    example = torch.randn(1, 16, 16, 16)
    before = compiler.compile(net, example_inputs=(example,), threads=1)
    with torch.no_grad():
        for weight in (each for each in net.parameters() if each.ndim == 4):
            rounded = quantize_weight(weight.numpy(), 0, per_channel=True)
            weight.copy_(torch.from_numpy(rounded.dequantized()))
        wanted = net(example).numpy()
    after = compiler.compile(net, example_inputs=(example,), threads=1)
    (got,) = after.run([example.numpy()]).values()
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
    sizes = [sum(each.nbytes for each in module.manifest.parameters) for module in (before, after)]
    assert sizes[1] < 0.3 * sizes[0]
