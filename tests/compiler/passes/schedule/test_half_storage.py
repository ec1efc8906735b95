"""Constants that are exact in 16 bits are stored in 16 bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import compiler
from compiler.passes.rewriting.expansion import MIN_ELEMENTS, exact_half

KINDS = (np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_numbers_are_halved_and_others_are_not(kind: type) -> None:
    values = np.random.default_rng(0).standard_normal(MIN_ELEMENTS).astype(np.float32)
    assert exact_half(values) is None
    rounded = values.astype(kind).astype(np.float32)
    half = exact_half(rounded)
    assert half is not None
    assert half.itemsize == 2
    rounded[-2] += 1e-7  # not among those that are looked at first
    assert exact_half(rounded) is None


@pytest.mark.parametrize("kind", KINDS)
def test_nets_of_rounded_weights(kind: type) -> None:
    """A convolution by Winograd's method, a direct one and a matrix product, their results as they were."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(16, 64, 5), torch.nn.Conv2d(64, 64, 3), torch.nn.Flatten(), torch.nn.Linear(64 * 36, 96)
    ).eval()
    example = torch.randn(1, 16, 12, 12)
    before = compiler.compile(net, example_inputs=(example,), threads=1)
    with torch.no_grad():
        for parameter in net.parameters():
            rounded = parameter.numpy().astype(kind).astype(np.float32)
            parameter.copy_(torch.from_numpy(rounded))
        wanted = net(example).numpy()
    after = compiler.compile(net, example_inputs=(example,), threads=1)
    got = next(iter(after.run({name.name: example.numpy() for name in after.manifest.inputs}).values()))
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
    sizes = [sum(each.nbytes for each in module.manifest.parameters) for module in (before, after)]
    assert sizes[1] < 0.52 * sizes[0]
