"""Workloads of blocked convolution, depthwise convolution and pooling: the parameters that determine the kernel.

Blocked layout: a tensor of `channels` channels and any number of spatial dimensions is stored as
(batch, ceil(channels / block), *spatial, block). The lanes past `channels` of the last block hold arbitrary values:
every kernel writes something there, and none lets them affect a real channel.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeVar

from schedules.annotations import KIND, SPEC
from schedules.instructions.dot_products.operation import (
    DOT_S8S8,
    DOT_U8S8,
    MATRIX_S8S8,
    MATRIX_U8S8,
    OF_STORED,
    Operation,
)
from schedules.ir.numbers import WORD_BYTES, ceil_div
from schedules.ir.tir import Index
from schedules.rule import Workload

_CLASS = "class"
_CLASSES: dict[str, type[WindowWorkload]] = {}
W = TypeVar("W", bound="WindowWorkload")


@dataclasses.dataclass(frozen=True)
class WindowWorkload(Workload):
    """A window that slides over the spatial dimensions: fields common to all of these kernels.

    `batch` is 0 if symbolic, and so is each of `spatial`: such a dimension is dynamic. `block` is the number of lanes
    of the output's channel blocks. `pad` holds (before, after) for each spatial dimension; a negative `after` (input
    that no window reaches) is allowed. `same` is "upper" or "lower" if the padding of dynamic dimensions follows from
    their sizes: half of it before the input, an odd element after ("upper") or before it; `pad` is then the largest of
    both.
    """

    batch: int
    channels: int
    block: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pad: tuple[tuple[int, int], ...]
    dtype: str
    same: str = dataclasses.field(default="", kw_only=True)

    def key(self) -> str:
        """The workload key, without `same` if the padding is known."""
        return super().key().replace('"same":"",', "")

    @property
    def rank(self) -> int:
        return len(self.spatial)

    @property
    def source_dtype(self) -> str:
        """The stored dtype of the input; `dtype` is the accumulator's."""
        return self.dtype

    @property
    def is_open(self) -> bool:
        """True if some spatial dimension is symbolic."""
        return 0 in self.spatial

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """Output size of each spatial dimension, rounded down; 0 if dynamic."""
        return tuple(
            (size + before + after - (window - 1) * dilation - 1) // stride + 1 if size else 0
            for size, window, stride, dilation, (before, after) in zip(
                self.spatial, self.kernel, self.strides, self.dilations, self.pad, strict=True
            )
        )

    @property
    def height(self) -> int:
        """Rows of the output, rounded down; 1 without rows, 0 if dynamic."""
        return self.out_spatial[-2] if self.rank > 1 else 1

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.channels

    @property
    def out_blocks(self) -> int:
        """Channel blocks of the output."""
        return ceil_div(self.out_channels, self.block)

    @property
    def reaches_outside(self) -> bool:
        """True if some window reads beyond the input."""
        return any(
            before > 0 or (after > 0 if size == 0 else (out - 1) * stride + (window - 1) * dilation - before >= size)
            for size, window, stride, dilation, (before, after), out in zip(
                self.spatial, self.kernel, self.strides, self.dilations, self.pad, self.out_spatial, strict=True
            )
        )

    def annotation(self, kind: str) -> dict[str, str]:
        """Block attributes by which the rule of `kind` recognizes its stage."""
        fields = {_CLASS: type(self).__name__, **dataclasses.asdict(self)}
        return {KIND: kind, SPEC: json.dumps(fields, sort_keys=True)}

    @classmethod
    def from_annotation(cls: type[W], annotations: Mapping[str, Any]) -> W:
        """The workload in a stage's block attributes, of the class that wrote them: `cls` or a subclass."""
        fields = {name: _tuples(value) for name, value in json.loads(str(annotations[SPEC])).items()}
        found = _CLASSES[fields.pop(_CLASS)]
        assert issubclass(found, cls), f"{found.__name__} is not a {cls.__name__}"
        return found(**fields)

    def __init_subclass__(cls) -> None:
        _CLASSES[cls.__name__] = cls


_CLASSES[WindowWorkload.__name__] = WindowWorkload


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class ConvWorkload(WindowWorkload):
    """A dense or grouped convolution.

    `channels` and `filters` are the input's and the output's channels, over all `groups`. With several groups, each has
    `channels_each` and `filters_each`, whole numbers of blocks; the last one may have fewer. `in_block` is the number
    of lanes of the input's channel blocks; 1 means the plain layout (batch, channels, *spatial).
    Input: (batch, ceil(channels / in_block), *spatial, in_block). Weights: (ceil(filters / block),
    ceil(channels / groups / in_block), *kernel, in_block, block). Output: (batch, ceil(filters / block), *out_spatial,
    block).
    """

    filters: int
    groups: int
    in_block: int
    channels_each: int = 0
    filters_each: int = 0

    @property
    def out_channels(self) -> int:
        return self.filters

    @property
    def group_channels(self) -> int:
        """Input channels that one output channel sums over (possibly fewer in the last group)."""
        return self.channels_each or self.channels // self.groups

    @property
    def last_group_channels(self) -> int:
        """Input channels of the last group."""
        return self.channels - (self.groups - 1) * self.group_channels

    @property
    def in_blocks(self) -> int:
        """Input channel blocks of one group."""
        return ceil_div(self.group_channels, self.in_block)

    @property
    def group_out_blocks(self) -> int:
        """Output channel blocks of one group."""
        return ceil_div(self.filters_each or self.filters // self.groups, self.block)

    @property
    def last_group_out_blocks(self) -> int:
        """Output channel blocks of the last group."""
        return self.out_blocks - (self.groups - 1) * self.group_out_blocks

    def reach(self, parts: Sequence[Index]) -> list[Index]:
        """Input extent read for a number of outputs, along each dimension."""
        return [
            (part - 1) * stride + (window - 1) * dilation + 1
            for part, window, stride, dilation in zip(parts, self.kernel, self.strides, self.dilations, strict=True)
        ]

    @property
    def flops(self) -> int:
        """Multiplications and additions for one image."""
        return 2 * self.filters * self.group_channels * prod((*self.kernel, *self.out_spatial))


@dataclasses.dataclass(frozen=True)
class WinogradWorkload(ConvWorkload):
    """A convolution, and the output tile size (`tile` x `tile`) of the Winograd algorithm.

    Weights: transformed, (ceil(filters / block), edge^2, channels, block); or the filters themselves, which each task
    transforms (`transforms_filters`): (ceil(filters / block), channels, 9, block).
    """

    tile: int = 4
    transforms_filters: bool = False

    def key(self) -> str:
        """The key, without `transforms_filters` if the filters are transformed beforehand."""
        return super().key().replace(',"transforms_filters":false', "")


@dataclasses.dataclass(frozen=True)
class DotWorkload(ConvWorkload):
    """A convolution of narrow operands, summed by dot-product instructions in groups of neighboring channels.

    `operand` is the input type: "uint16" (the bits of a bfloat16) or "float16" (the weights too, `dtype` is float32),
    "uint8" or "int8" (the weights are int8, `dtype` is int32). `fill` is the padding value. Instructions need unsigned
    input: 128 is added to every element of int8 input as it is read, padding included.
    Input: as for any convolution, or, if `in_block` is `group`, words: int32 (batch, ceil(channels / group), *spatial),
    each with a group of channels, the first in the lowest bits, int8 already converted to unsigned.
    Weights: (ceil(filters / block), ceil(channels / groups / in_block), *kernel, in_block / group, block * group), the
    `group` channels of one filter next to each other.
    """

    operand: str = "uint16"
    fill: int = 0

    @property
    def source_dtype(self) -> str:
        return "int32" if self.words else self.operand

    @property
    def words(self) -> bool:
        """True if the input is stored as words of a group of channels."""
        return self.in_block == self.group

    @property
    def group(self) -> int:
        """Channels that one instruction sums over."""
        return self.operation.group

    @property
    def of_halves(self) -> bool:
        """True if operands are 16-bit floats."""
        return self.operand in OF_STORED

    @property
    def operation(self) -> Operation:
        """The operation that accumulates products of the input, with `shift` added."""
        return OF_STORED.get(self.operand, DOT_U8S8)

    @property
    def shift(self) -> int:
        """Offset added to every element of the input before it is multiplied."""
        return 128 if self.operand == "int8" else 0

    @property
    def stored_block(self) -> int:
        """Lanes of the channel blocks that the input is stored in."""
        return self.in_block

    @property
    def panel(self) -> int:
        """Number of filters whose weights are stored next to each other."""
        return self.block


@dataclasses.dataclass(frozen=True)
class TilesWorkload(DotWorkload):
    """A convolution of narrow operands by instructions with tile accumulators: a tile row is 64 bytes of a pixel's
    channels.

    Input: in blocks of `block` channels, unchanged. Weights: (ceil(filters / panel), ceil(channels / in_block),
    *kernel,
    in_block / group, panel * group), where `in_block` channels are 64 bytes.
    """

    @property
    def words(self) -> bool:
        return False

    @property
    def shift(self) -> int:
        return 0

    @property
    def stored_block(self) -> int:
        return self.block

    @property
    def panel(self) -> int:
        if self.groups > 1:  # panels do not span groups
            return self.block * (1 + (self.group_out_blocks % 2 == 0))
        return self.block * min(2, self.out_blocks)

    @property
    def operation(self) -> Operation:
        return DOT_S8S8 if self.operand == "int8" else super().operation


@dataclasses.dataclass(frozen=True)
class QuadsWorkload(DotWorkload):
    """A convolution of 8-bit integers for vectors of four int32: the input is in blocks of four channels, one word
    each.

    Input: uint8 or int8 (batch, ceil(channels / 4), *spatial, 4). With `signed`, numbers are signed: 128 is subtracted
    from uint8 input; otherwise it is added to int8. `matrix` sums eight channels at a time, by an instruction that
    multiplies matrices: `in_block` and `group` are then 8, for the weights only.
    """

    signed: bool = False
    matrix: bool = False

    @property
    def words(self) -> bool:
        return False

    @property
    def operation(self) -> Operation:
        if self.matrix:
            return MATRIX_S8S8 if self.signed else MATRIX_U8S8
        return DOT_S8S8 if self.signed else DOT_U8S8

    @property
    def shift(self) -> int:
        return self.operation.shift(self.operand)

    @property
    def stored_block(self) -> int:
        return WORD_BYTES


@dataclasses.dataclass(frozen=True)
class IntegerWinogradWorkload(DotWorkload):
    """A convolution of bytes, and the output tile size (`tile` x `tile`) of the Winograd algorithm; `in_block` is
    `block`."""

    tile: int = 2


@dataclasses.dataclass(frozen=True)
class DepthwiseDotWorkload(WindowWorkload):
    """A depthwise convolution of 8-bit integers minus `fill`, with int16 weights, accumulated in int32 (`dtype`).

    `operand` is the input type. `fill` is the padding value of the original convolution; padding minus `fill` is zero,
    so taps outside the input add nothing.
    """

    operand: str = "uint8"
    fill: int = 0

    @property
    def source_dtype(self) -> str:
        return self.operand


@dataclasses.dataclass(frozen=True)
class PoolWorkload(WindowWorkload):
    """Max or average pooling over a window, each channel separately.

    `mode` is "max" or "average"; `count_pad` says whether an average counts padding elements.
    """

    mode: str
    count_pad: bool
