"""spell-sizes: tensors with differently written equal sizes are fused in one kernel, with two dynamic dimensions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

import compiler

SIZES = ((12, 20), (16, 16), (28, 8))


class _Branches(nn.Module):
    """Two ways to halve an image, joined before a convolution."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.last = first, second, nn.Conv2d(16, 8, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined: torch.Tensor = self.last(torch.cat([self.first(x), self.second(x)], 1))
        return joined


class _Prefixed(nn.Module):
    """Patches after tokens without rotary embedding, as in DINOv3."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.prefix = nn.Conv2d(8, 16, 4, 4), nn.Parameter(torch.randn(1, 5, 16))
        self.query = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2] // 4, x.shape[3] // 4
        tokens = torch.cat([self.prefix, self.patches(x).flatten(2).transpose(1, 2)], 1)
        rows = torch.arange(height)[:, None].expand(height, width).reshape(-1, 1) / height
        angle = rows.repeat(1, 16)
        query = self.query(tokens)
        prefix, rest = query.split((query.shape[1] - angle.shape[0], angle.shape[0]), 1)
        turned = rest * angle.cos() + torch.cat([-rest[..., 8:], rest[..., :8]], -1) * angle.sin()
        return torch.cat([prefix, turned], 1) + tokens


class _Windows(nn.Module):
    """Windows of four by four, and back, as in Swin."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        parts = x.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
        parts = parts.reshape(-1, 16, channels)
        mixed = torch.softmax(parts @ parts.transpose(1, 2), -1) @ parts
        back = mixed.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 5, 1, 3, 2, 4)
        return back.reshape(batch, channels, height, width) + x


class _Pyramid(nn.Module):
    """Features of three scales, upsampled and concatenated, followed by a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 2, 2)])
        self.last = nn.Sequential(nn.Conv2d(24, 16, 1), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = self.down[0](x)
        quarter = self.down[1](half)
        large = [nn.functional.interpolate(each, scale_factor=scale) for each, scale in ((half, 2.0), (quarter, 4.0))]
        result: torch.Tensor = self.last(torch.cat([x, *large], 1))
        return result


NETS: dict[str, Callable[[], nn.Module]] = {
    "max and average": lambda: _Branches(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1)),
    "even and odd windows": lambda: _Branches(nn.MaxPool2d(2, 2), nn.Conv2d(8, 8, 4, 2, 1)),
    "dilated and strided": lambda: _Branches(
        nn.Conv2d(8, 8, 3, 2, 2, 2), nn.Sequential(nn.Conv2d(8, 8, 1), nn.AvgPool2d(1, 2))
    ),
    "prefix tokens": _Prefixed,
    "windows": _Windows,
    "pyramid": _Pyramid,
}


@pytest.mark.parametrize("name", NETS)
def test_sizes_that_are_equal_by_different_ways_compile_at_two_dynamic_dimensions(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    dims = {2: 4 * Dim("height", min=2, max=64), 3: 4 * Dim("width", min=2, max=64)}
    module = compiler.compile(net, example_inputs=(torch.randn(1, 8, 16, 24),), dynamic_shapes=(dims,), threads=1)
    for size in SIZES:
        x = torch.randn(1, 8, *size)
        with torch.no_grad():
            expected = net(x).numpy()
        np.testing.assert_allclose(module.run({"x": x.numpy()})["output_0"], expected, atol=2e-5)


def test_one_size_that_a_kernel_names_twice() -> None:
    """Batch and length are one symbol; the kernel that interleaves phases reads both from its operand and its result's
    formula."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 18]>
        graph (float[k,6,k] x) => (float[?,?,?] y)
        {
            doubled = Mean (x, x)
            halved = Conv <auto_pad = "SAME_UPPER", strides = [2]> (doubled, filters, bias)
            y = ConvTranspose <strides = [1]> (halved, taps)
        }
    """)
    generator = np.random.default_rng(0)
    for value, shape in (("filters", (5, 6, 1)), ("bias", (5,)), ("taps", (5, 2, 2))):
        numbers = generator.standard_normal(shape).astype("float32")
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, value))
    module = compiler.compile(model, progress=None)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for size in (1, 4, 9):
        x = generator.standard_normal((size, 6, size)).astype("float32")
        np.testing.assert_allclose(module.run({"x": x})["y"], session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_kernels_of_a_size_that_later_passes_compute_from_others() -> None:
    """The importer names the length of the slice; its formula replaces the name, but not in the kernel of Resize."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 18]>
        graph (float[1,1,m] x, float[n,n] square) => (float[?,?,?] y, float[?,?,?] z)
        <int64[1] far = {1099511627776}, int64[1] start = {-3}, int64[1] two = {2}, int64 zero = {0},
         float[3] scales = {1, 1, 2}>
        {
            last = Slice (x, start, far, two, two)
            filtered = Conv <strides = [2]> (last, filters, bias)
            y = Resize <coordinate_transformation_mode = "asymmetric", mode = "nearest", nearest_mode = "floor">
                (filtered, "", scales)
            sizes = Shape (square)
            count = Gather <axis = 0> (sizes, zero)
            z = Loop (count, "", last) <body = step (int64 i, bool go, float[?,?,?] s) => (bool on, float[?,?,?] next) {
                on = Identity (go)
                one = Sub (s, last)
                less = Sub (one, last)
                bent = Tanh (less)
                next = Tanh (bent)
            }>
        }
    """)
    generator = np.random.default_rng(0)
    for value, shape in (("filters", (8, 1, 2)), ("bias", (8,))):
        numbers = generator.standard_normal(shape).astype("float32")
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, value))
    module = compiler.compile(model, progress=None)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for size, count in ((3, 2), (9, 3)):
        feeds = {"x": generator.standard_normal((1, 1, size)), "square": np.zeros((count, count))}
        feeds = {name: value.astype("float32") for name, value in feeds.items()}
        found, expected = module.run(feeds), session.run(None, feeds)
        np.testing.assert_allclose(found["y"], expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["z"], expected[1], rtol=1e-4, atol=1e-5)
