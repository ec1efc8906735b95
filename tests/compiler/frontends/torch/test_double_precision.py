"""Numbers in float64 programs, which ONNX and PyTorch's exporter round to float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import compiler


def causal_attention(x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x + 0.1,
    "where": lambda x: torch.where(x > 0, 0.1, x),
    "power": lambda x: x.abs() ** 0.3,
    "angle": lambda x: torch.atan2(x, -x),
    "logarithms": lambda x: x.abs().log2() + x.abs().log10(),
    "sinc": torch.sinc,
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.1),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.exp(), value=0.1),
    "addmm": lambda x: torch.addmm(x, x, x, beta=0.3, alpha=0.1),
    "addmv": lambda x: torch.addmv(x[0], x, x[1], beta=0.3, alpha=0.1),
    "addbmm": lambda x: torch.addbmm(x, x[None], x[None], beta=0, alpha=0.1),
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.1),
    "rrelu": functional.rrelu,
    "elu": lambda x: functional.elu(x, 0.1),
    "celu": lambda x: functional.celu(x, 0.3),
    "selu": functional.selu,
    "hardsigmoid": functional.hardsigmoid,
    "hardtanh": lambda x: functional.hardtanh(x, -0.1, 0.1),
    "softplus": lambda x: functional.softplus(x, 0.7, 0.9),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, 0.7, -1),
    "attention": lambda x: causal_attention(x[None, None]),
}
RANK_4: dict[str, Callable[[Tensor], Tensor]] = {
    "layer_norm": nn.LayerNorm([3, 3], eps=0.013).double(),
    "group_norm": nn.GroupNorm(2, 4, eps=0.013).double(),
    "instance_norm": nn.InstanceNorm2d(4, eps=0.013, affine=True).double(),
    "batch_norm": nn.BatchNorm2d(4, eps=0.013).double().eval(),
}


class Applied(nn.Module):
    def __init__(self, functions: dict[str, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.functions = functions
        self.layers = nn.ModuleList(each for each in functions.values() if isinstance(each, nn.Module))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: function(x) for name, function in self.functions.items()}


@pytest.mark.parametrize(("functions", "shape"), [(FUNCTIONS, (4, 4)), (RANK_4, (2, 4, 3, 3))])
def test_numbers_keep_the_precision_of_float64(
    functions: dict[str, Callable[[Tensor], Tensor]], shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Applied(functions).eval()
    found = compiler.compile(model, example_inputs=(x,), threads=1).run([x])
    with torch.no_grad():
        for name, wanted in model(x).items():
            np.testing.assert_allclose(found[name], wanted.numpy(), rtol=1e-13, atol=1e-14, err_msg=name)
