"""pack-sparse-weights and the layout of sparse convolutions: zeros are neither stored nor multiplied, others are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import compiler
import targets
from compiler.compression.pruning.plan import masks, parse_pattern

TARGET = "x86-64-v4" if targets.get("x86-64-v4").fits_this_machine() else "x86-64-v3"
LANES = targets.get(TARGET).machine.lanes("float32")


def thinned(net: nn.Module, pattern: str, amount: float) -> nn.Module:
    """The net with a share of its matrices and filters set to zero."""
    for weight in net.parameters():
        if weight.ndim > 1:
            values = weight.detach().numpy()
            flat = values.reshape(*values.shape[:2], -1).swapaxes(1, 2)
            matrix = flat.reshape(len(values), -1)
            kept = masks(parse_pattern(pattern), [matrix**2], amount, "layer")[0]
            cut = (matrix * kept).reshape(flat.shape).swapaxes(1, 2)
            with torch.no_grad():
                weight.copy_(torch.from_numpy(cut.reshape(values.shape)))
    return net.eval()


def check(net: nn.Module, example: torch.Tensor) -> tuple[Counter[str], int]:
    """Number of kernels by rule and the bytes of the parameters; outputs are torch's in float64."""
    module = compiler.compile(net, target=TARGET, example_inputs=(example,), threads=1, records=False)
    got = next(iter(module.run({module.inputs[0].name: example.numpy()}).values()))
    with torch.no_grad():
        wanted = net.double()(example.double()).numpy()
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    parameters = module.manifest.parameters
    return Counter(kernel.rule for kernel in module.manifest.kernels), sum(each.nbytes for each in parameters)


@pytest.mark.parametrize(("amount", "rule"), [(0.8, "matmul-sparse"), (0.1, "matmul")])
def test_products(amount: float, rule: str) -> None:
    torch.manual_seed(0)
    net = thinned(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)), f"{LANES}x1", amount)
    rules, stored = check(net, torch.randn(12, 64))
    assert rules[rule] == 2
    assert {name for name in rules if "matmul" in name} == {rule}
    dense = 4 * 2 * 64 * 128
    assert stored < 0.3 * dense if rule == "matmul-sparse" else stored > dense


@pytest.mark.parametrize(("rows", "pattern", "rule"), [(1, "2:4", "n-of-m"), (64, "1:4", "n-of-m"), (64, "2:4", "")])
def test_n_of_m(rows: int, pattern: str, rule: str) -> None:
    torch.manual_seed(0)
    net = thinned(nn.Linear(128, 256), pattern, 1.0)
    rules, stored = check(net, torch.randn(rows, 128))
    assert rules["matmul-n-of-m" if rule else "matmul"] == 1
    assert stored < 0.6 * 4 * 128 * 256 if rule else stored > 4 * 128 * 256


@pytest.mark.parametrize(
    ("kernel", "amount", "skips"), [(1, 0.7, True), (1, 0.1, False), (3, 0.5, False), (3, 0.95, True)]
)
def test_convolutions(kernel: int, amount: float, skips: bool) -> None:
    """Winograd's method makes a 3x3 convolution fast, so sparsity pays off only with more zeros."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(32, 64, kernel, padding=kernel // 2), nn.ReLU(), nn.Conv2d(64, 40, kernel, padding=kernel // 2)
    )
    rules, stored = check(thinned(net, f"{LANES}x1", amount), torch.randn(1, 32, 28, 28))
    assert rules["conv-sparse"] == (2 if skips else 0)
    if skips:
        assert stored < 1.1 * (1.1 - amount) * 4 * kernel**2 * (32 * 64 + 64 * 48)


def test_rounded_weights_stay_dense() -> None:
    net = thinned(nn.Linear(64, 64), f"{LANES}x1", 0.8)
    module = compiler.compile(
        net, target="znver4", precision="bf16", example_inputs=(torch.randn(8, 64),), threads=1, records=False
    )
    assert not any("sparse" in kernel.rule for kernel in module.manifest.kernels)
