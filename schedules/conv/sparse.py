"""Convolutions with block-sparse weights: the loop nest of `conv_direct` over the nonzero blocks only.

A block is a vector of filters for one input channel and one tap of the window. Each register tile iterates over the
blocks of its filters and looks up which input they multiply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from schedules.codegen.nest import (
    ROWS_AHEAD,
    allocate_tile,
    bind,
    broadcast,
    lanes_of,
    load,
    prefetch,
    repeat,
    sequence,
    store,
)
from schedules.config import Config, ConfigSpace
from schedules.conv.compute import Windows
from schedules.conv.direct import DirectRule
from schedules.conv.direct_nest import DirectNest
from schedules.conv.tiling import Task, open_register_tile, register_tile, tile_for
from schedules.conv.winograd_tiling import relative_cycles
from schedules.conv.workload import ConvWorkload, WinogradWorkload
from schedules.ir.tir import Expr, Index, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.matmul.sparse import SparseWeight, entry, pack_blocks
from schedules.rule import Priority
from schedules.stages.fused_kernel import FusedKernel

# Cost model of sparse convolution: estimated cycles compared with those of the dense algorithms.

# Convolutions also decode a block's name, which short tiles do not hide: (pixels of a tile, cost).
_LONG_TILE, _IN_LONG_TILES, _IN_SHORT_TILES = 20, 1.15, 1.42
# Measured fraction of the estimate that a Winograd convolution takes if its weights stay in a cache.
_WINOGRAD = 0.7


def conv_pays(kept: float, work: ConvWorkload, winograd: WinogradWorkload | None, machine: Machine) -> bool:
    """True if a convolution that keeps this fraction of its blocks is faster than the dense one, which is `winograd` or
    direct."""
    pixels, _ = tile_for(work, machine)
    name = _IN_LONG_TILES if pixels >= _LONG_TILE else _IN_SHORT_TILES
    if winograd is None or work.is_open:
        return kept * name < 1
    return kept * name < _WINOGRAD * relative_cycles(winograd, work, machine)


CONV_SPARSE = "conv-sparse"


@dataclass(frozen=True)
class SparseConvWorkload(ConvWorkload):
    """Sizes of the dense convolution and the number of stored blocks: `blocks` in total, at most `longest` per filter
    block.

    Input and output are those of `ConvWorkload`, of one group, the input in blocks. Weights: see `sparse_weights`; the
    index encodes channel block, tap and lane of the input in bits (see `names`).
    """

    blocks: int = 0
    longest: int = 0

    @property
    def radices(self) -> tuple[int, ...]:
        """Radix of each tap dimension and of the lane in an index entry: powers of two."""
        return tuple(1 << (size - 1).bit_length() for size in (*self.kernel, self.in_block))

    def names(self) -> NDArray[np.int32]:
        """Index of each weight row: (channel blocks, *kernel, lanes of the input), flattened."""
        result: NDArray[np.int32] = np.arange(self.in_blocks, dtype=np.int32)
        for size, radix in zip((*self.kernel, self.in_block), self.radices, strict=True):
            result = (result[..., None] * radix + np.arange(size)).astype(np.int32)
        return result.reshape(-1)

    def decoded(self, name: Expr) -> tuple[Expr, list[Expr], Expr]:
        """(channel block, taps, lane) of an index entry."""
        digits: list[Expr] = []
        for radix in reversed(self.radices):
            digits.insert(0, tirx.floormod(name, radix))
            name = tirx.floordiv(name, radix)
        return name, digits[:-1], digits[-1]


def pack_sparse_filter(packed: np.ndarray, work: ConvWorkload) -> tuple[SparseConvWorkload, SparseWeight]:
    """A filter of `conv_direct`, (filter blocks, channel blocks, *kernel, in_block, block), without its zero blocks."""
    workload = SparseConvWorkload(**vars(work))
    weight = pack_blocks(packed.reshape(packed.shape[0], -1, packed.shape[-1]), workload.names())
    return SparseConvWorkload(**vars(work), blocks=len(weight.values), longest=weight.longest), weight


def conv_sparse(
    data: Tensor, values: Tensor, index: Tensor, work: SparseConvWorkload, sizes: Sequence[Index] = ()
) -> Tensor:
    """The convolution as a tensor expression."""
    zero = tirx.const(0, work.dtype)
    block = te.reduce_axis((0, work.longest), name="block")
    windows = Windows(work, data, sizes)

    def point(n: Expr, co: Expr, *rest: Expr) -> Expr:
        first = entry(index, co)
        source, window, lane = work.decoded(entry(index, work.out_blocks + 1 + first + block))
        value = windows.value(rest[:-1], window, lambda at: data[(n, source, *at, lane)], zero)
        product = value * values(first + block, rest[-1])
        return te.sum(tirx.if_then_else(block < entry(index, co + 1) - first, product, zero), axis=block)

    return te.compute(windows.shape, point, name="conv", attrs=work.annotation(CONV_SPARSE))


class ConvSparse(DirectRule[SparseConvWorkload]):
    """Serves the kernels of `conv_sparse`; the knobs are those of the direct convolution, tiles one block wide."""

    name: ClassVar[str] = CONV_SPARSE
    priority: ClassVar[int] = Priority.BLOCKED_DOT

    def space(self, workload: SparseConvWorkload, machine: Machine) -> ConfigSpace:
        whole = super().space(workload, machine)
        return ConfigSpace({**whole.knobs, "blocks": (1,), "unroll": (1,)}, whole.constraints)

    def _register_tile(self, workload: SparseConvWorkload, machine: Machine) -> tuple[int, int]:
        width = workload.out_spatial[-1]
        return open_register_tile(1, machine) if width == 0 else register_tile(width, 1, machine)

    def default(self, workload: SparseConvWorkload, machine: Machine) -> Config:
        return super().default(workload, machine).replace(unroll=1)

    def nest(self, fused: FusedKernel, workload: SparseConvWorkload, config: Config, machine: Machine) -> SparseNest:
        return SparseNest(fused, workload, config)


class SparseNest(DirectNest):
    """The loop nest with the stored blocks as its innermost loop."""

    work: SparseConvWorkload
    weight_rank = 2

    def __init__(self, fused: FusedKernel, work: SparseConvWorkload, config: Config) -> None:
        super().__init__(fused, work, config)
        self.index = fused.operand(fused.anchors[0], 1)

    def _tile(self, task: Task, block: Expr | int, start: Sequence[Index], pixels: int) -> Stmt:
        work, lanes = self.work, self.lanes
        sums, allocation = allocate_tile("sums", (pixels, 1, lanes), work.dtype)
        first, begin = bind("first", self._entry(block), "int64", 1)
        end, finish = bind("end", self._entry(block + 1), "int64", 1)
        every = lanes_of(0, lanes)

        def step(number: Expr | int) -> Stmt:
            slot = first + number
            name, named = bind("name", self._entry(slot + (work.out_blocks + 1)), "int64", 1)
            source, window, lane = work.decoded(name)
            result = [named, prefetch(self.weight, slot + ROWS_AHEAD, 0)]
            for pixel in range(pixels):
                value = broadcast(self._input(task, source, start, pixel, window, lane), lanes)
                total = load(sums, pixel, 0, every) + value * load(self.weight, slot, every)
                result.append(store(sums, total, pixel, 0, every))
            return sequence(result)

        clear = [store(sums, self.zero, pixel, 0, every) for pixel in range(pixels)]
        done = self._finish_tile(sums, task, block, start, pixels)
        return sequence(allocation, clear, begin, finish, repeat("block", end - first, step), done)

    def _entry(self, at: Expr | int) -> Expr:
        return tirx.Cast("int64", load(self.index, at))
