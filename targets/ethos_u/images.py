"""Windows that slide over images (N, H, W, C) on the accelerator; a sequence is an image of one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from schedules.ir.tvm_types import Attrs
from targets.ethos_u.steps import Array, Emitter, Unsupported, Value
from targets.ethos_u.tosa import Tensor, TosaGraph

LARGEST_KERNEL = 4096
TALLEST_KERNEL = 64
WIDEST_STRIDE = 3


@dataclass(frozen=True)
class Window:
    """Rows and columns of a kernel, its strides and dilations, and the padding (top, bottom, left, right)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, attributes: Attrs, kernel: Sequence[int]) -> Window:
        """Window from the attributes of an operator of the model, on images or sequences."""
        sides = [int(each) for each in attributes.padding]
        count = len(sides) // 2
        pads_before, pads_after = _pair(sides[:count], 0), _pair(sides[count:], 0)
        strides, dilation = (_pair([int(each) for each in v], 1) for v in (attributes.strides, attributes.dilation))
        return cls(_pair(kernel, 1), strides, (pads_before[0], pads_after[0], pads_before[1], pads_after[1]), dilation)

    @property
    def extents(self) -> tuple[int, int]:
        """Rows and columns that the kernel covers."""
        height, width = ((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilation, strict=True))
        return height, width

    def results(self, positions: Sequence[int]) -> tuple[int, int]:
        """Number of result positions for an operand of these sizes."""
        pads_before, pads_after = self.padding[::2], self.padding[1::2]
        height, width = (
            (size + start + end - extent) // stride + 1
            for size, start, end, extent, stride in zip(
                positions, pads_before, pads_after, self.extents, self.strides, strict=True
            )
        )
        return height, width

    def single(self, positions: Sequence[int], sizes: Sequence[int]) -> Window:
        """The same for an operand and a result of these sizes: a wide stride on an axis with one position becomes 1."""
        strides, padding = list(self.strides), list(self.padding)
        for axis, (position, size) in enumerate(zip(_pair(positions, 1), _pair(sizes, 1), strict=True)):
            if size == 1 and strides[axis] > WIDEST_STRIDE:
                strides[axis] = 1
                # Negative if the window does not reach the end.
                padding[2 * axis + 1] = self.extents[axis] - padding[2 * axis] - position
        return replace(self, strides=(strides[0], strides[1]), padding=(padding[0], padding[1], padding[2], padding[3]))


def _pair(values: Sequence[int], filling: int) -> tuple[int, int]:
    if len(values) > 2:
        raise Unsupported(f"it has {len(values)} spatial axes, and the accelerator supports two")
    whole = (filling,) * (2 - len(values)) + tuple(int(each) for each in values)
    return whole[0], whole[1]


def check_kernel(extents: tuple[int, int]) -> None:
    """Raise Unsupported if the kernel, including its dilation, is too large."""
    height, width = extents
    if height > TALLEST_KERNEL or height * width > LARGEST_KERNEL:
        raise Unsupported(
            f"its kernel covers {height}x{width}, and the accelerator takes {LARGEST_KERNEL} elements in up to"
            f" {TALLEST_KERNEL} rows"
        )


def check_strides(strides: Sequence[int]) -> None:
    """Raise Unsupported for strides larger than the hardware supports."""
    if max(strides) > WIDEST_STRIDE:
        raise Unsupported(f"its strides are {list(strides)}, and the accelerator takes up to {WIDEST_STRIDE}")


def check_layout(layout: object) -> None:
    """Raise Unsupported if channels are not the second axis."""
    if not str(layout).startswith("NC"):
        raise Unsupported(f"its layout is {layout}")


def image(emitter: Emitter, value: Value) -> Tensor:
    """A tensor with channels last; a sequence becomes an image of one row."""
    x = emitter.last(value)
    return x if len(x.shape) == 4 else emitter.graph.reshape(x, (x.shape[0], 1, *x.shape[1:]))


def from_image(emitter: Emitter, x: Tensor, rank: int) -> Value:
    """An image converted to a tensor of the model's rank."""
    return emitter.made(x if rank == 4 else emitter.graph.reshape(x, (x.shape[0], *x.shape[2:])))


@dataclass(frozen=True)
class Patches:
    """A strided window rewritten with stride 1 over patches: skipped positions become channels."""

    window: Window
    sizes: tuple[int, int]

    @property
    def _kernel(self) -> list[int]:
        return [-(-size // stride) for size, stride in zip(self.window.kernel, self.window.strides, strict=True)]

    def apply(self, graph: TosaGraph, x: Tensor, zero: int) -> Tensor:
        """Images (N, H, W, C) as (N, patches down, patches across, rows * columns of a patch * C)."""
        batch, *positions, channels = x.shape
        counts = [size + extent - 1 for size, extent in zip(self.sizes, self._kernel, strict=True)]
        around, sizes = [], []
        for axis, (size, count, stride) in enumerate(zip(positions, counts, self.window.strides, strict=True)):
            pad_before = self.window.padding[2 * axis]
            sizes.append(min(size, count * stride - pad_before))
            around += [pad_before, count * stride - pad_before - sizes[-1]]
        x = graph.slice(x, [0] * 4, (batch, *sizes, channels))
        x = graph.pad(x, [0, 0, *around, 0, 0], zero)
        (down, across), (rows, columns) = counts, self.window.strides
        x = graph.transpose(graph.reshape(x, (batch, down, rows, across, columns, channels)), (0, 1, 3, 2, 4, 5))
        return graph.reshape(x, (batch, down, across, rows * columns * channels))

    def weight(self, weight: Array) -> Array:
        """Weights (O, kh, kw, C) rewritten for the patches."""
        filters, height, width, channels = weight.shape
        (rows, columns), (down, across) = self.window.strides, self._kernel
        around = ((0, 0), (0, down * rows - height), (0, across * columns - width), (0, 0))
        parts = np.pad(weight, around).reshape(filters, down, rows, across, columns, channels)
        return parts.transpose(0, 1, 3, 2, 4, 5).reshape(filters, down, across, rows * columns * channels)
