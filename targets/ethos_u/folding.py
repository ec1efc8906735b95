"""Rewrites a convolution for other shapes of the same bytes.

With channels last, neighbors in a row of an image are adjacent in memory: f columns of C channels are one column of
f * C, and one column of C channels is n columns of C / n. Which of these shapes fills the multipliers, and pads the
stream of weights least, depends on the sizes: 3 channels leave most of a multiplier's 8 idle, and weights of 56
channels are stored like those of 64. The sums are the same integers in every form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from targets.ethos_u.images import LARGEST_KERNEL, TALLEST_KERNEL, WIDEST_STRIDE, Window
from targets.ethos_u.layout import Arrangement
from targets.ethos_u.steps import Array

_DEEPEST = 64  # most channels after joining columns
_CHANNELS = 8  # channels per multiplier: channels are split into multiples of it
_DEPTH_BLOCK = 32  # channels per group of stored weights
_MAX_PLACES = 65536
_FEW_JOINED = 8  # for a kernel one column wide: writing the result takes longer than computing it
_FEW_CHANNELS = 4  # most channels of images that the processor arranges


def in_columns(shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """The shape of an image (N, H, W, C) whose columns hold this many channels."""
    batch, height, width, depth = shape
    return batch, height, width * depth // channels, channels


def column_channels(shape: tuple[int, ...]) -> list[int]:
    """Alternative numbers of channels per column for an image (N, C, H, W)."""
    if len(shape) != 4:
        return []
    _, channels, _, width = shape
    candidates = {each for each in (16, 32, 64, *(channels // parts for parts in (2, 3, 4))) if each % _CHANNELS == 0}
    return sorted(each for each in candidates - {0, channels} if width * channels % each == 0)


@dataclass(frozen=True, eq=False)
class Dense:
    """An ungrouped convolution of an image (N, H, W, C).

    Attributes:
        image: the shape as which its operand is read.
        weight: int8 (O, kh, kw, C).
        bias: int32 (O).
        scales: scales of the result, one per output channel.
        positions: rows and columns of the result.
    """

    image: tuple[int, int, int, int]
    weight: Array
    bias: Array
    scales: Array
    window: Window
    positions: tuple[int, int]

    def forms(self) -> dict[str, Dense]:
        """Other forms that compute the same bytes and that the accelerator supports, by name."""
        found = {**dict(self._joined()), **dict(self._split()), **dict(self._flat())}
        return {name: form for name, form in found.items() if form._fits()}

    def arranged(self) -> dict[str, tuple[Arrangement, Dense]]:
        """Forms over images that the processor arranges."""
        batch, height, width, channels = self.image
        top, bottom, left, _ = self.window.padding
        columns, (stride_down, stride) = self.window.kernel[1], self.window.strides
        if channels > _FEW_CHANNELS or columns == 1:
            return {}
        needed = (self.positions[1] - 1) * stride + self.window.extents[1] - left
        forms = {}
        windows = Arrangement(left, needed - width, columns, self.window.dilation[1], stride, self.positions[1])
        weight = self.weight.reshape(*self.weight.shape[:2], 1, -1)
        window = Window((weight.shape[1], 1), (stride_down, 1), (top, bottom, 0, 0), (self.window.dilation[0], 1))
        image = (batch, height, self.positions[1], columns * channels)
        forms["windows by the processor"] = windows, replace(self, image=image, weight=weight, window=window)
        for factor in range(2, _DEEPEST // channels + 1):
            padded_width = -(-(needed + left) // factor) * factor
            padded = Arrangement(left, padded_width - left - width)
            window = replace(self.window, padding=(top, bottom, 0, 0))
            dense = replace(self, image=(batch, height, padded_width, channels), window=window)
            for name, form in dense._joined():
                if name == f"join {factor} columns" and padded.right >= 0:
                    forms[f"padding by the processor, {name}"] = padded, form
        return {name: form for name, form in forms.items() if form[1]._fits()}

    def _fits(self) -> bool:
        rows, columns = self.window.extents
        return (
            rows <= TALLEST_KERNEL
            and rows * columns <= LARGEST_KERNEL
            and max(self.window.strides) <= WIDEST_STRIDE
            and max(self.image[1:]) <= _MAX_PLACES
        )

    def _joined(self) -> Iterator[tuple[str, Dense]]:
        """Forms with f columns as one, and several columns of the result computed together."""
        batch, height, width, channels = self.image
        stride = self.window.strides[1]
        deepest = _DEEPEST
        if self.window.kernel[1] == 1 == stride:  # most of the joined weights would be 0
            deepest = 2 * channels if channels <= _FEW_JOINED else 0
        if self.window.dilation[1] != 1:
            return
        for factor in range(max(2, stride), deepest // channels + 1):
            together = factor // stride
            if width % factor or factor % stride or self.positions[1] % together:
                continue
            weight, first = self._joined_weight(factor, together)
            top, bottom, _, _ = self.window.padding
            columns = self.positions[1] // together
            # Negative if the windows do not reach the end.
            right = columns - 1 + weight.shape[2] + first - width // factor
            window = Window(
                (weight.shape[1], weight.shape[2]),
                (self.window.strides[0], 1),
                (top, bottom, -first, right),
                (self.window.dilation[0], 1),
            )
            image = (batch, height, width // factor, channels * factor)
            bias, scales = (np.tile(each, together) for each in (self.bias, self.scales))
            yield f"join {factor} columns", Dense(image, weight, bias, scales, window, (self.positions[0], columns))

    def _joined_weight(self, factor: int, together: int) -> tuple[Array, int]:
        """(weights of joined columns, position of the first relative to the column of the result)"""
        filters, rows, columns, channels = self.weight.shape
        starts = [each * self.window.strides[1] - self.window.padding[2] for each in range(together)]
        first, last = starts[0] // factor, (starts[-1] + columns - 1) // factor
        wide = np.zeros((together, filters, rows, (last - first + 1) * factor, channels), np.int8)
        for index, start in enumerate(starts):
            begin = start - first * factor
            wide[index, :, :, begin : begin + columns] = self.weight
        return wide.reshape(together * filters, rows, last - first + 1, factor * channels), first

    def _split(self) -> Iterator[tuple[str, Dense]]:
        """Forms with one column as n columns of fewer channels."""
        batch, height, width, channels = self.image
        for parts in range(2, channels // _CHANNELS + 1):
            narrow = channels // parts
            if channels % parts or narrow % _CHANNELS or (narrow > _DEPTH_BLOCK and narrow % _DEPTH_BLOCK):
                continue
            weight = self.weight.reshape(*self.weight.shape[:2], -1, narrow)
            name = f"split channels in {parts}"
            if self._is_pointwise:
                new_image = (batch, height * width, parts, narrow)
                window = Window((1, parts), (1, 1), (0, 0, 0, 0))
                yield name, replace(self, image=new_image, weight=weight, window=window, positions=(height * width, 1))
            if self.window.dilation[1] == 1 and not (self._is_pointwise and width == 1):
                top, bottom, left, right = (
                    each * each_parts
                    for each, each_parts in zip(self.window.padding, (1, 1, parts, parts), strict=True)
                )
                stride = parts * self.window.strides[1]
                if self.positions[1] == 1:
                    # Negative if the window does not reach the end.
                    stride, right = 1, weight.shape[2] - left - width * parts
                window = Window(
                    (weight.shape[1], weight.shape[2]),
                    (self.window.strides[0], stride),
                    (top, bottom, left, right),
                    (self.window.dilation[0], 1),
                )
                new_image = (batch, height, width * parts, narrow)
                yield f"{name}, in rows", replace(self, image=new_image, weight=weight, window=window)

    def _flat(self) -> Iterator[tuple[str, Dense]]:
        """Forms with all positions in one row."""
        batch, height, width, channels = self.image
        if self._is_pointwise and height > 1 and width > 1:
            yield "flat", replace(self, image=(batch, 1, height * width, channels), positions=(1, height * width))

    @property
    def _is_pointwise(self) -> bool:
        return self.window == Window((1, 1), (1, 1), (0, 0, 0, 0))
