"""PyTorch models: modules, exported programs and .pt2 files, against torch itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compiler
from compiler.errors import InputError, InvalidModelError, OptionError


class Block(nn.Module):
    """A minimal residual block with normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.normalization = nn.BatchNorm2d(8)
        self.projection = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.normalization(self.convolution(image)))
        return self.projection(features.mean(dim=(2, 3)))


def expected(model: nn.Module, *arguments: torch.Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(model(*arguments))


@pytest.fixture
def block() -> nn.Module:
    torch.manual_seed(0)
    return Block().eval()


def test_module_with_example_inputs(block: nn.Module) -> None:
    image = torch.randn(2, 3, 9, 7)
    module = compiler.compile(block, example_inputs=(image,))
    assert [tensor.name for tensor in module.inputs] == ["image"]
    outputs = module.run({"image": image})
    assert list(outputs) == ["output_0"]
    np.testing.assert_allclose(outputs["output_0"], expected(block, image), rtol=1e-4, atol=1e-5)


def test_exported_program_with_dynamic_batch(block: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(block, (torch.randn(2, 3, 8, 8),), dynamic_shapes={"image": {0: batch}})
    module = compiler.compile(program)
    for size in (1, 2, 5):
        image = torch.randn(size, 3, 8, 8)
        np.testing.assert_allclose(module.run([image])["output_0"], expected(block, image), rtol=1e-4, atol=1e-5)


class Side(nn.Module):
    """Both tensors side by side."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, y], 1)


def test_dynamic_sizes_have_the_names_of_their_dims() -> None:
    rows, columns, quarter = (torch.export.Dim(name, max=64) for name in ("rows", "columns", "quarter"))
    given = (torch.ones(2, 3), torch.ones(2, 8))
    named = ({0: rows, 1: columns}, {0: rows, 1: 4 * quarter})
    side = Side().eval()
    module = compiler.compile(side, example_inputs=given, dynamic_shapes=named)
    assert [each.shape for each in module.inputs] == [("rows", "columns"), ("rows", "4*quarter")]
    assert module.run([np.ones((3, 2), np.float32), np.ones((3, 4), np.float32)])["output_0"].shape == (3, 6)
    with pytest.raises(InputError):
        module.run([np.ones((3, 2), np.float32), np.ones((3, 5), np.float32)])
    program = torch.export.export(side, given, dynamic_shapes=({0: rows, 1: columns}, {0: rows, 1: quarter}))
    module = compiler.compile(program)  # which stores no names
    assert [each.shape for each in module.inputs] == [("x_dim0", "x_dim1"), ("x_dim0", "y_dim1")]


def test_values_that_share_a_shape_of_dynamic_sizes() -> None:
    net, dynamic = nn.SiLU(), torch.export.Dim.DYNAMIC  # onnx_ir 1.1 freezes the shape that its values share
    module = compiler.compile(net.eval(), example_inputs=(torch.randn(2, 5),), dynamic_shapes=({0: dynamic},))
    for size in (1, 4):
        x = torch.randn(size, 5)
        np.testing.assert_allclose(module.run([x])["output_0"], expected(net, x), rtol=1e-6, atol=1e-6)


def test_net_in_bfloat16(block: nn.Module) -> None:
    """Convolutions and normalizations in bfloat16, which older ONNX opsets do not support."""
    image = torch.randn(2, 3, 9, 7)
    wanted = expected(block, image)
    module = compiler.compile(block.to(torch.bfloat16), example_inputs=(image.to(torch.bfloat16),))
    found = module.run([image.to(torch.bfloat16)])["output_0"]
    assert str(found.dtype) == "bfloat16"
    np.testing.assert_allclose(found.astype(np.float32), wanted, atol=0.02 * np.abs(wanted).max())


def test_saved_program(block: nn.Module, tmp_path: Path) -> None:
    image = torch.randn(1, 3, 8, 8)
    torch.export.save(torch.export.export(block, (image,)), tmp_path / "block.pt2")
    module = compiler.compile(tmp_path / "block.pt2")
    np.testing.assert_allclose(module.run([image])["output_0"], expected(block, image), rtol=1e-4, atol=1e-5)


class Dictionary(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"double": x * 2, "sum": x.sum(dim=-1)}


def test_dictionary_outputs_keep_their_names() -> None:
    x = torch.randn(3, 4)
    outputs = compiler.compile(Dictionary().eval(), example_inputs=(x,)).run({"x": x})
    np.testing.assert_allclose(outputs["double"], x * 2)
    np.testing.assert_allclose(outputs["sum"], x.sum(dim=-1), rtol=1e-6)


class Projected(nn.Module):
    """An LSTM with a projection, between LSTMs without one."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = nn.LSTM(5, 6)
        self.second = nn.LSTM(6, 7, proj_size=3, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, (hidden, cell) = self.second(self.first(x)[0])
        return torch.cat([y.flatten(), hidden.flatten(), cell.flatten()])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bias": False}, {"bidirectional": True}])
def test_lstm_with_projection(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Projected(**options).eval(), torch.randn(4, 2, 5)
    outputs = compiler.compile(model, example_inputs=(x,)).run([x])
    np.testing.assert_allclose(outputs["output_0"], expected(model, x), rtol=1e-4, atol=1e-6)


def test_training_mode_is_refused(block: nn.Module) -> None:
    with pytest.raises(OptionError, match=r"training mode(?s:.*)model\.eval\(\)"):
        compiler.compile(block.train(), example_inputs=(torch.randn(1, 3, 8, 8),))


def test_missing_example_inputs(block: nn.Module) -> None:
    with pytest.raises(OptionError, match="example_inputs"):
        compiler.compile(block)


def test_example_inputs_that_do_not_fit(block: nn.Module) -> None:
    with pytest.raises((InputError, InvalidModelError)):
        compiler.compile(block, example_inputs=(torch.randn(1, 4, 8, 8),))


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if bool(x.sum() > 0) else x - 1


def test_control_flow_that_export_can_not_capture() -> None:
    with pytest.raises(InvalidModelError, match=r"torch\.export cannot capture"):
        compiler.compile(DataDependent().eval(), example_inputs=(torch.randn(3),))


def test_pickled_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"anything")
    with pytest.raises(InvalidModelError, match="pickled"):
        compiler.compile(tmp_path / "model.pth")


def test_broken_pt2_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"anything")
    with pytest.raises(InvalidModelError, match=r"model\.pt2"):
        compiler.compile(tmp_path / "model.pt2")


class _SplitHeads(torch.nn.Module):
    """Attention as T5 writes it: without a scale, its result joined by a view after a transpose."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.view(1, 9, 4, 16).transpose(1, 2)
        attended = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, scale=1.0)
        return attended.transpose(1, 2).reshape(1, 9, -1).contiguous()


def test_a_view_of_attention_is_exported_whatever_its_strides() -> None:
    net, x = _SplitHeads().eval(), torch.randn(1, 9, 64)
    module = compiler.compile(net, example_inputs=(x,), threads=1)
    (found,) = module.run([x.numpy()]).values()
    np.testing.assert_allclose(found, net(x).numpy(), rtol=1e-5, atol=1e-5)


def test_the_caller_s_program_is_left_as_it_is() -> None:
    program = torch.export.export(_SplitHeads().eval(), (torch.randn(1, 9, 64),))
    before = str(program.graph)
    compiler.compile(program, threads=1)
    assert str(program.graph) == before


class NearIdentity(nn.Module):
    """Constants that the exporter's optimizer mistakes for 0 and 1."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = x.abs().sum(1, keepdim=True)
        return x / (total + 1e-8), x / (total + 1e-15), (x + 3e-9) * 1e9, (x * 1.000008 - x) * 1e5


def test_constants_near_those_of_an_identity_are_kept() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    module = compiler.compile(NearIdentity().eval(), example_inputs=(x,), threads=1)
    for found, wanted in zip(module.run([x]).values(), NearIdentity()(x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


class UpsampledTwice(nn.Module):
    """Halved and doubled sizes, equal if the image is a multiple of 4, which TVM cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up, self.doubled = nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.normalized = nn.InstanceNorm2d(8, affine=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        half = self.first(x)
        quarter = self.second(half)
        up, nearest = self.up(quarter), nn.functional.interpolate(quarter, scale_factor=2.0)
        total = half + up
        joined = torch.cat([total, nearest], 1).mean((2, 3))
        padded = self.normalized(nn.functional.pad(self.doubled(half), (0, 0, 0, 0), "replicate"))
        return total.flatten(2), joined, torch.maximum(nearest, up).reshape(x.shape[0], 2, -1), padded


class SkipsAddedInPlace(nn.Module):
    """Sizes are halved, rounded up, and doubled again: shapes of the sums agree only for multiples of four."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.up, self.last = nn.ConvTranspose2d(4, 4, 2, 2), nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = self.first(x)
        total = self.up(self.second(half))
        total += half
        whole: torch.Tensor = self.last(total)
        whole += x
        return whole


def test_sizes_of_skips_that_are_added_in_place() -> None:
    torch.manual_seed(0)
    model, dynamic = SkipsAddedInPlace().eval(), torch.export.Dim.DYNAMIC
    module = compiler.compile(
        model, example_inputs=(torch.randn(2, 2, 16, 16),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    for shape in ((1, 2, 12, 40), (3, 2, 28, 8)):
        x = torch.randn(shape)
        with torch.no_grad():
            np.testing.assert_allclose(module.run([x])["output_0"], model(x), atol=1e-5)
    with pytest.raises(InputError, match="14"):
        module.run([torch.randn(1, 2, 14, 16)])


def test_sizes_that_are_equal_for_multiples_alone() -> None:
    torch.manual_seed(0)
    model, batch, height, width = (
        UpsampledTwice().eval(),
        *(torch.export.Dim(name, min=1, max=64) for name in ("batch", "height", "width")),
    )
    module = compiler.compile(
        model,
        example_inputs=(torch.randn(2, 3, 64, 96),),
        dynamic_shapes=({0: batch, 2: 32 * height, 3: 32 * width},),
        threads=1,
    )
    for shape in ((2, 3, 64, 96), (3, 3, 32, 128)):
        x = torch.randn(shape)
        with torch.no_grad():
            wanted = model(x)
        for found, theirs in zip(module.run([x]).values(), wanted, strict=True):
            np.testing.assert_allclose(found, theirs, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_of_volumes_without_a_bias(dtype: torch.dtype) -> None:
    net = torch.nn.Conv3d(2, 4, 2, stride=(2, 1, 2), padding=(0, 1, 0), groups=2, bias=False).eval().to(dtype)
    volumes = torch.randn(1, 2, 4, 3, 5).to(dtype)
    for values in (volumes, volumes[0]):
        found = compiler.compile(net, example_inputs=(values,), threads=1)(values)
        with torch.no_grad():
            expected = net(values).float().numpy()
        np.testing.assert_allclose(
            np.asarray(found, np.float32), expected, rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-5
        )
