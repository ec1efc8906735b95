"""Pooling of windows and regions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import along_axis, decomposition_of, is_dynamic

_MOST_SLICES = {2: 49, 3: 8}  # by rank: slices are faster than gathered windows, but many of them compile for minutes


@decomposition_of("aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def _adaptive_max_pool(values: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the largest element of each window and its position in the image."""
    rank = len(output_size)
    sizes = _sizes(values)[-rank:]
    if is_dynamic(sizes):
        return _largest_by_axis(values, output_size, _largest_of_masked)
    if math.prod(output_size) > _MOST_SLICES[rank]:
        return _largest_by_axis(values, output_size, _largest_of_gathered)
    maxima, positions = [], []
    for window in itertools.product(*map(_windows, sizes, output_size)):
        inside: Any = (..., *(slice(*each) for each in window))
        largest, index = values[inside].flatten(-rank).max(-1)
        maxima.append(largest)
        positions.append(_position_in_image(index, window, sizes))
    shape = (*values.shape[:-rank], *output_size)
    return torch.stack(maxima, -1).reshape(shape), torch.stack(positions, -1).reshape(shape)


def _position_in_image(index: Tensor, window: Sequence[tuple[int, int]], sizes: Sequence[int]) -> Tensor:
    """Convert a flat position in a window to one in the image."""
    position, stride = torch.zeros_like(index), 1
    for (start, end), size in zip(reversed(window), reversed(sizes), strict=True):
        position = position + (index % (end - start) + start) * stride
        index, stride = index // (end - start), stride * size
    return position


def _largest_by_axis(
    values: Tensor, output_size: Sequence[int], along: Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Axis by axis from the last, so that ties go to the first element in row-major order.

    Args:
        along: maps values, an axis and a number of windows to the largest element of each, and its position.
    """
    positions: Tensor | None = None
    stride = 1
    for axis, parts in reversed([*enumerate(output_size, values.ndim - len(output_size))]):
        size = _sizes(values)[axis]
        values, index = along(values, axis, parts)
        before = 0 if positions is None else positions.gather(axis, index)
        positions, stride = before + index * stride, stride * size
    assert positions is not None
    return values, positions


def _largest_of_gathered(values: Tensor, axis: int, parts: int) -> tuple[Tensor, Tensor]:
    """For a static size: windows are gathered, and a shorter one repeats its last element."""
    size = values.shape[axis]
    length = max(end - start for start, end in _windows(size, parts))
    part = torch.arange(parts)
    starts = part * size // parts
    if size % parts:
        ends = ((part + 1) * size + parts - 1) // parts
        places = torch.minimum(starts.unsqueeze(-1) + torch.arange(length), ends.unsqueeze(-1) - 1)
        values = values.index_select(axis, places.flatten())
    largest, step = values.reshape([*values.shape[:axis], parts, length, *values.shape[axis + 1 :]]).max(axis + 1)
    return largest, along_axis(starts, values.ndim, axis) + step


def _largest_of_masked(values: Tensor, axis: int, parts: int) -> tuple[Tensor, Tensor]:
    """For a dynamic size: each window is the whole axis with other elements masked."""
    least = -math.inf if values.is_floating_point() else torch.iinfo(values.dtype).min
    spread = values.movedim(axis, -1).unsqueeze(-2)
    inside = _inside(_sizes(values)[axis], parts)
    largest = torch.where(inside, spread, torch.full((), least, dtype=values.dtype)).max(-1)
    return largest.values.movedim(-1, axis), largest.indices.movedim(-1, axis)


@decomposition_of("aten.adaptive_max_pool1d.default")
def _adaptive_max_pool1d(values: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    found, positions = _adaptive_max_pool(values.unsqueeze(-2), [1, *output_size])
    return found.squeeze(-2), positions.squeeze(-2)


def _windows(size: int, parts: int) -> list[tuple[int, int]]:
    return [(part * size // parts, -((part + 1) * size // -parts)) for part in range(parts)]


def _has_a_divisor(node: torch.fx.Node) -> bool:
    return (node.args[6] if len(node.args) > 6 else node.kwargs.get("divisor_override")) is not None


@decomposition_of("aten.avg_pool2d.default", "aten.avg_pool3d.default", condition=_has_a_divisor)
def _average_pool(
    values: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Window sums divided by a given divisor: means of whole windows of the padded values, times a factor."""
    if divisor_override is None:
        return NotImplemented
    rank = len(kernel_size) if len(kernel_size) > 1 else values.ndim - 2
    kernel, strides, pads = (_of_rank(each, rank) for each in (kernel_size, stride or kernel_size, padding))
    sizes = _sizes(values)[-rank:]
    counts = [_windows_of(*each, ceil_mode) for each in zip(sizes, kernel, strides, pads, strict=True)]
    margins = [(pad, pad + step - 1 if ceil_mode else pad) for pad, step in zip(pads, strides, strict=True)]
    flat = [amount for pair in reversed(margins) for amount in pair]
    pool = torch.nn.functional.avg_pool2d if rank == 2 else torch.nn.functional.avg_pool3d
    result: Tensor = pool(torch.nn.functional.pad(values, flat), kernel, strides)
    for axis, count in enumerate(counts, -rank):
        result = result.narrow(axis, 0, count) if ceil_mode else result
    return result * (math.prod(kernel) / divisor_override)


def _of_rank(sizes: Sequence[int], rank: int) -> list[int]:
    return list(sizes) * rank if len(sizes) == 1 else list(sizes)


def _windows_of(size: Any, kernel: int, stride: int, pad: int, ceil_mode: bool) -> Any:
    """Return the number of windows along an axis; with `ceil_mode`, none starts beyond the values and their left
    padding."""
    rest = size + 2 * pad - kernel
    if not ceil_mode:
        return rest // stride + 1
    return torch.sym_min((rest + stride - 1) // stride + 1, (size + pad - 1) // stride + 1)  # type: ignore[no-untyped-call]


def _pools_dynamic_sizes(node: torch.fx.Node) -> bool:
    """True for several windows along axes of dynamic size."""
    values, output_size = cast("tuple[torch.fx.Node, list[int]]", node.args)
    return is_dynamic(values.meta["val"].shape[-len(output_size) :]) and any(size != 1 for size in output_size)


@decomposition_of(
    "aten.adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d.default", condition=_pools_dynamic_sizes
)
def _adaptive_average_pool2d(values: Tensor, output_size: Sequence[int]) -> Tensor:
    """Adaptive average pooling of images of dynamic size: matmuls with the weight of each input position in each
    window."""
    height, width = _sizes(values)[-2:]
    if not is_dynamic((height, width)) or list(output_size) == [1, 1]:
        return NotImplemented
    across = values @ _shares(width, output_size[1], values.dtype).mT
    return _shares(height, output_size[0], values.dtype) @ across


@decomposition_of("aten.adaptive_avg_pool1d.default", condition=_pools_dynamic_sizes)
def _adaptive_average_pool1d(values: Tensor, output_size: Sequence[int]) -> Tensor:
    size = _sizes(values)[-1]
    if isinstance(size, int) or list(output_size) == [1]:
        return NotImplemented
    return values @ _shares(size, output_size[0], values.dtype).mT


@decomposition_of("aten.adaptive_avg_pool3d.default", "aten._adaptive_avg_pool3d.default")
def _adaptive_average_pool3d(values: Tensor, output_size: Sequence[int]) -> Tensor:
    """Pool axis by axis; the exporter has no conversion, not even for fixed sizes."""
    if all(size == 1 for size in output_size):
        return values.mean((-3, -2, -1), keepdim=True)
    depth, height, width = _sizes(values)[-3:]
    result = values @ _shares(width, output_size[2], values.dtype).mT
    result = _shares(height, output_size[1], values.dtype) @ result
    result = _shares(depth, output_size[0], values.dtype) @ result.flatten(-2)
    return result.reshape(*result.shape[:-1], *output_size[1:])


def _sizes(values: Tensor) -> Sequence[Any]:
    """Return the sizes: ints, or symbols if dynamic."""
    return values.shape


def _shares(size: Any, parts: int, dtype: torch.dtype) -> Tensor:
    """(parts, size): 1 / (number of positions) at each position of a window, 0 elsewhere."""
    inside = _inside(size, parts)
    return inside.to(dtype) / inside.sum(-1, keepdim=True).to(dtype)


def _inside(size: Any, parts: int) -> Tensor:
    """(parts, size): True at the positions of each window."""
    part, position = torch.arange(parts).unsqueeze(-1), torch.arange(size)
    first, behind = part * size // parts, ((part + 1) * size + parts - 1) // parts
    return (position >= first) & (position < behind)


@decomposition_of("torchvision.ps_roi_align.default")
def _ps_roi_align(
    values: Tensor, regions: Tensor, scale: float, height: int, width: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Pool each part of a region from its own channels: the diagonal of RoiAlign's result."""
    aligned = torch.ops.torchvision.roi_align(values, regions, scale, height, width, sampling_ratio, True)
    channels = values.shape[1] // (height * width)
    parts = aligned.reshape(regions.shape[0], channels, height, width, height, width)
    selected = parts.diagonal(0, 2, 4).diagonal(0, 2, 3)
    sources = torch.arange(values.shape[1], dtype=torch.int32).reshape(1, channels, height, width)
    return selected.contiguous(), sources.expand(selected.shape)
