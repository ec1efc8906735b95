"""NaN and infinity propagate as in PyTorch: in single, fused, blocked and vectorized kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx.parser
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import compiler
from tests.compiler.frontends.onnx.operators.onnxruntime_check import run_reference

CHANNELS = 32


class Applied(nn.Module):
    def __init__(self, function: Callable[..., Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x: Tensor) -> Any:
        return self.function(x if self.layer is None else self.layer(x))


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "hardsigmoid": functional.hardsigmoid,
    "hardswish": functional.hardswish,
    "clamp": lambda x: x.clamp(min=-0.5),
    "amax": lambda x: x.amax((1, 3)),
    "max": lambda x: x.max(1),
    "min": lambda x: x.min(-1),
    "argmax": lambda x: x.argmax(-1),
    "argmin": lambda x: x.argmin(1),
    "is itself": lambda x: x == x,
    "is not itself": lambda x: x != x,
    "is at most itself": lambda x: x <= x,
    "times zero": lambda x: x * 0,
    "less itself": lambda x: x - x,
    "maximum of maps": lambda x: x.relu().amax((2, 3)),
}


def odd(shape: tuple[int, ...]) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[0, 1, 2, 3] = x[1, 2, 0, 0] = x[1, 0, 5, 9] = x[0, 0, 3, 1] = torch.nan
    x[0, 1, 2, 4] = x[1, 2, 3, 4] = torch.inf
    x[1, 1, 1, 0] = -torch.inf
    return x


def check(model: nn.Module, x: Tensor) -> None:
    module = compiler.compile(model.eval(), example_inputs=(x.nan_to_num(),), threads=1)
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(model(x))
    for one, other in zip(module.run([x]).values(), wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_functions() -> None:
    check(Applied(lambda x: [function(x) for function in FUNCTIONS.values()]), odd((2, 3, 6, 10)))


@pytest.mark.parametrize(
    ("name", "layer"),
    [("relu", "convolution"), ("relu6", "convolution"), ("hardswish", "product"), ("relu", "depthwise")],
)
def test_behind_a_layer(name: str, layer: str) -> None:
    torch.manual_seed(0)
    layers = {
        "convolution": nn.Conv2d(CHANNELS, CHANNELS, 1),  # a wider one may spread NaN over a tile of Winograd's method
        "depthwise": nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS),
        "product": nn.Linear(10, 12),
    }
    x = odd((2, CHANNELS, 6, 10))
    x[x.isinf()] = torch.nan  # whether a sum of infinities is infinite depends on its order
    check(Applied(FUNCTIONS[name], layers[layer]), x)


@pytest.mark.parametrize("window", [2, 3, None])
def test_largest_of_windows(window: int | None) -> None:
    """In the blocked layout of convolutions; NaN is not the last of its window."""
    torch.manual_seed(0)
    pool = nn.AdaptiveMaxPool2d(1) if window is None else nn.MaxPool2d(window, 2, window // 2)
    model = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), pool, nn.Conv2d(CHANNELS, CHANNELS, 1))
    x = odd((2, CHANNELS, 16, 16))
    x[x.isinf()] = torch.nan
    check(model, x)


def test_products_with_and_quotients_of_zeros() -> None:
    """With the signs of zeros, in each type."""
    values = np.array([0.0, -0.0, 1.5, -2.5, np.inf, -np.inf, np.nan], np.float32)
    types = {"float": (np.float32, 1), "float16": (np.float16, 10), "bfloat16": (ml_dtypes.bfloat16, 16)}
    lines, wanted = [], {}
    for dtype, (kind, number) in types.items():
        lines.append(f"x_{dtype} = Cast<to = {number}>(x)")
        for name, zero in (("zero", 0.0), ("negative", -0.0)):
            lines.append(f"{name}_{dtype} = Cast<to = {number}>({name})")
            with np.errstate(all="ignore"):
                for operator, result in (("Mul", values * kind(zero)), ("Div", values / kind(zero))):
                    key = f"{operator}_{name}_{dtype}"
                    lines.append(f"o_{key} = {operator}(x_{dtype}, {name}_{dtype}) {key} = Cast<to = 1>(o_{key})")
                    wanted[key] = result.astype(np.float32)
    results = ", ".join(f"float[7] {key}" for key in wanted)
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[7] x) => ({results}) <float zero = {{0.0}}, float negative = {{-0.0}}> {{ {" ".join(lines)} }}""")
    found = compiler.compile(model, threads=1).run([values])
    for key, result in wanted.items():
        np.testing.assert_array_equal(found[key], result, err_msg=key)
        number = ~np.isnan(result)
        np.testing.assert_array_equal(np.signbit(found[key][number]), np.signbit(result[number]), err_msg=key)


def test_quantized() -> None:
    """NaN becomes the smallest integer, as in ONNX Runtime; per tensor and per channel."""
    types = ("int8", "uint8", "int16", "uint16")
    zeros = ", ".join(f"{dtype}[3] z_{dtype} = {{1, 2, 3}}" for dtype in types)
    lines = [f"q_{dtype} = QuantizeLinear<axis = 1>(x, s, z_{dtype})" for dtype in types]
    lines += ["q_int4 = QuantizeLinear<axis = 1, output_dtype = 22>(x, s)"]
    lines += [f"y_{dtype} = Cast<to = 6>(q_{dtype})" for dtype in (*types, "int4")]
    results = ", ".join(f"int32[2, 3, 5] y_{dtype}" for dtype in (*types, "int4"))
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[2, 3, 5] x) => ({results}, uint8[2, 3, 5] whole)
        <float[3] s = {{0.5, 0.25, 0.125}}, float one = {{0.25}}, {zeros}, uint8 z = {{7}}>
        {{ {" ".join(lines)} whole = QuantizeLinear(x, one, z) }}""")
    x = np.random.default_rng(0).normal(0, 4, (2, 3, 5)).astype(np.float32)
    x[0, :, 1], x[1, 1], x[1, 2, 4] = np.nan, [np.inf, -np.inf, np.nan, 1e9, -1e9], -np.nan
    found = compiler.compile(model, threads=1).run([x])
    for (name, ours), theirs in zip(found.items(), run_reference(model, {"x": x}), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
