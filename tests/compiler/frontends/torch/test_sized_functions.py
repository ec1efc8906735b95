"""Functions that read a size as a number, compared with torch at several sizes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import compiler


class OfMatrices(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows, columns = x.shape
        return (
            x * torch.hann_window(columns) + torch.bartlett_window(columns, periodic=False),
            x * torch.hamming_window(columns, True, 0.6, beta=0.3) + torch.blackman_window(columns),
            torch.linspace(0.5, columns - 0.5, columns),
            torch.linspace(-1, 1, rows),
            torch.as_tensor([rows, 2], dtype=torch.float32),
            x * torch.as_tensor(rows),
            torch.kron(x, torch.arange(6.0).view(2, 3)),
            torch.take_along_dim(x, x.argsort(1), 1),
            torch.fft.fftfreq(rows, 0.1),
            torch.fft.rfftfreq(columns),
            x / math.sqrt(columns),
            x.roll((rows // 2, -columns - 1), (0, 1)),
            torch.fft.fftshift(x),
            torch.fft.ifftshift(x, 1),
            torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho"), s=(rows, columns), norm="ortho"),
            x % columns,
            x / x.new_tensor([columns * 1.0, rows // 2]).sum(),
            torch.zeros(-(-rows // 2), round(columns * 0.7)) + (3 - columns) // 4,
            *self.powers(x.abs() + 0.5),
            *self.triangles(x @ x.mT),
            *self.written(x),
            *self.place(x),
        )

    def powers(self, x: Tensor) -> tuple[Tensor, ...]:
        rows, columns = x.shape
        return x**rows, torch.pow(x, columns), x.pow(columns / 2), torch.arange(3) ** rows, 0.9 ** torch.arange(rows)

    def triangles(self, x: Tensor) -> tuple[Tensor, ...]:
        """Both triangles of a square, with and without the diagonal."""
        side = x.shape[0]
        upper, lower = torch.triu_indices(side, side, 1), torch.tril_indices(side, side)
        return upper, lower, x[upper[0], upper[1]], x[lower[0], lower[1]], torch.tril_indices(side, side, -1)

    def written(self, x: Tensor) -> tuple[Tensor, ...]:
        """Slices that start at a computed offset from the end, and are written."""
        rows, columns = x.shape
        first, second = torch.zeros(rows + columns), torch.zeros(rows + columns)
        first[:rows] = x[:, 0]
        first[-columns:] = x[0]
        second[rows - 1 : -1] += 2
        second[-rows:] -= 1
        return first, second

    def place(self, x: Tensor) -> tuple[Tensor, ...]:
        """Row and column of the largest value."""
        found = x.flatten().argmax(0)
        columns = x.shape[1]
        return found // columns, found % columns, (found - 7) % columns, columns % (found + 1)


class OfImages(nn.Module):
    def forward(self, x: Tensor, theta: Tensor, filters: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        batch, channels, height, width = x.shape
        styled = functional.conv2d(
            x.reshape(1, -1, height, width),
            filters.reshape(-1, channels, 3, 3),
            bias.reshape(-1),
            padding=1,
            stride=(2, 1),
            groups=batch,
        )
        larger = functional.conv_transpose2d(
            x.reshape(1, -1, height, width),
            filters.transpose(1, 2).flatten(0, 1),
            bias.reshape(-1),
            stride=2,
            padding=(1, 0),
            output_padding=1,
            groups=batch,
            dilation=(2, 1),
        )
        return (
            larger.reshape(batch, -1, larger.shape[2], larger.shape[3]),
            x[:, :1].squeeze(),
            functional.avg_pool2d(x, x.shape[2:]),
            functional.max_pool2d(x, kernel_size=(height, 1)),
            functional.avg_pool2d(x, (2, width)),
            functional.max_pool2d(x, x.size()[2:], stride=1),
            functional.affine_grid(theta, list(x.shape), align_corners=False),
            functional.affine_grid(theta, list(x.shape), align_corners=True),
            functional.max_pool1d(x[:, 0].mT, height),
            functional.avg_pool1d(x[:, 0], width, 1),
            functional.max_pool1d(x[:, 0], 3, 2, 1, ceil_mode=True),
            *functional.max_pool1d(x[0, 0], 2, return_indices=True),
            functional.avg_pool3d(x.unsqueeze(1), (2, height, width)),
            functional.lp_pool2d(x, 2, (height, width)),
            nn.AdaptiveMaxPool2d((1, None))(x),
            nn.AdaptiveMaxPool2d((None, 3))(x),
            x * torch.logspace(0, 1, width),
            styled.view(batch, -1, (height + 1) // 2, width),
        )


class WithFiltersOfSamples(nn.Module):
    """Convolutions of signals and images, one filter for each sample."""

    def forward(self, x: Tensor, taps: Tensor) -> tuple[Tensor, ...]:
        batch = x.shape[0]
        rows, images, window = x.unsqueeze(0), x.reshape(1, batch, 4, -1), taps.reshape(batch, 1, 2, 2)
        return (
            functional.conv1d(rows, taps, padding=2, stride=2, dilation=2, groups=batch),
            functional.conv1d(rows, taps, x[:, 0], groups=batch),
            functional.conv1d(x, taps[..., :2], padding="same", groups=batch),
            functional.conv_transpose1d(rows, taps, x[:, 0], stride=2, padding=1, output_padding=1, groups=batch),
            functional.conv2d(images, window, padding="same", dilation=(1, 3), groups=batch),
            functional.conv2d(images[0], window, padding="valid", groups=batch),
        )


class OfWindows(nn.Module):
    """Windows of 4 x 3 of images that are padded to a multiple of them, and cut to the image again."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, height, width, channels = x.shape
        below, right = (4 - height % 4) % 4, -width % 3
        padded = functional.pad(x, (0, 0, 0, right, 0, below))
        rows, columns = (height + below) // 4, (width + right) // 3
        windows = padded.view(batch, rows, 4, columns, 3, channels).transpose(2, 3).reshape(-1, 12, channels)
        mixed = windows - windows.mean(1, keepdim=True)
        joined = mixed.view(batch, rows, columns, 4, 3, channels).transpose(2, 3).reshape(padded.shape)
        found = joined[:, :height, :width].contiguous().view(batch, height * width, channels)
        return (found + (x * (height % 4)).reshape(found.shape),)


class OfRegions(nn.Module):
    """Numbers of the regions of shifted windows of 4, as Swin's masks; an image of one window has no first region."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        regions = torch.zeros(1, *x.shape, 1)
        parts = slice(0, -4), slice(-4, -2), slice(-2, None)
        for number, (rows, columns) in enumerate(itertools.product(parts, parts)):
            regions[:, rows, columns, :] = number
        return (x + regions.view(x.shape),)


class OfSkips(nn.Module):
    """Halved and doubled again to the size before, which is odd or even."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 3, 3, 2, 1), nn.ConvTranspose2d(3, 2, 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x + self.up(self.down(x), output_size=x.shape[2:]),)


def check(net: nn.Module, axes: list[dict[int, object]], *examples: tuple[Tensor, ...]) -> None:
    module = compiler.compile(net.eval(), example_inputs=examples[0], dynamic_shapes=tuple(axes), threads=1)
    for given in examples:
        for number, (ours, theirs) in enumerate(zip(module.run(list(given)).values(), net(*given), strict=True)):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=str(number))


class OfDoubledBatches(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        doubled = torch.cat([x, x * 2])
        first, second = doubled.chunk(2)
        third, fourth = torch.split(doubled, split_size_or_sections=x.shape[0])
        fifth, sixth = doubled.split(doubled.shape[0] // 2, 0)  # type: ignore[no-untyped-call]
        *_, last = torch.chunk(x.repeat(1, 3), 3, dim=-1)
        return first * second, third - fourth, fifth / (sixth.abs() + 1), last


def test_parts_of_doubled_batches() -> None:
    """PyTorch's own compare the number of parts: `Dim("n")` was refused, and 1 excluded."""
    examples = ((torch.randn(*shape),) for shape in ((4, 5), (1, 5), (9, 5)))
    check(OfDoubledBatches(), [{0: Dim("n", min=1, max=64)}], *examples)


def test_of_matrices() -> None:
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    check(OfMatrices(), [sizes], *((torch.randn(*shape),) for shape in ((4, 5), (7, 2), (1, 8))))


def test_of_images() -> None:
    batch = {0: Dim.DYNAMIC}
    axes = [{**batch, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, batch, batch, batch]
    examples = (
        (torch.randn(n, 4, h, w), torch.randn(n, 2, 3), torch.randn(n, 5, 4, 3, 3), torch.randn(n, 5))
        for n, h, w in ((2, 6, 7), (3, 4, 9))
    )
    check(OfImages(), axes, *examples)


def test_filters_of_samples() -> None:
    axes: list[dict[int, object]] = [{0: Dim.DYNAMIC, 1: 4 * Dim("quarter")}, {0: Dim.DYNAMIC}]
    examples = ((torch.randn(n, length), torch.randn(n, 1, 4)) for n, length in ((3, 12), (2, 20)))
    check(WithFiltersOfSamples(), axes, *examples)


def test_of_padded_windows() -> None:
    axes: dict[int, object] = dict.fromkeys((0, 1, 2), Dim.DYNAMIC)
    shapes = ((2, 9, 7, 5), (3, 8, 9, 5), (1, 5, 3, 5))
    check(OfWindows(), [axes], *((torch.randn(*shape),) for shape in shapes))


def test_regions_that_are_empty_at_some_sizes() -> None:
    axes: dict[int, object] = dict.fromkeys((0, 1), Dim.DYNAMIC)
    check(OfRegions(), [axes], *((torch.randn(*shape),) for shape in ((8, 12), (4, 6), (5, 4))))


def test_transposed_convolutions_to_the_size_of_another_tensor() -> None:
    axes: dict[int, object] = dict.fromkeys((0, 2, 3), Dim.DYNAMIC)
    check(OfSkips(), [axes], *((torch.randn(*shape),) for shape in ((2, 2, 9, 8), (1, 2, 6, 6), (3, 2, 7, 11))))
