"""Winograd's convolution F(m x m, 3 x 3), with stride 1 or 2, one task at a time so that intermediates stay in the L2
cache.

A task computes some tiles of an image and some output channels: it transforms the tiles of all input channels,
multiplies each frequency by its weights (a small matmul with the register tile of `conv_direct`), and transforms back
a few channel blocks at a time, with the epilogue applied to each result. Vectors run over the lanes of a channel block.

Exact Winograd convolution F(2 x 2, 3 x 3) of 8-bit integers, for processors that multiply 16-bit pairs.

The input transform only adds and subtracts: for bytes the result fits 16 bits. 2 G has integer entries, so four times
the transformed filters fit 16 bits, too, and a quarter of the result is exact; for stride 2, G itself has integer
entries. Sums of products may wrap around: the result is correct as long as four times its value fits 32 bits. So 16
products replace 36 (25 for stride 2), two per instruction.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from schedules.codegen.nest import lanes_of, load, splat
from schedules.config import Config, ConfigSpace
from schedules.conv.compute import WINOGRAD, conv_winograd
from schedules.conv.rule import BlockedRule
from schedules.conv.tiling import accumulators, block_choices, channel_unroll, copied_scalars, divisors, row_cost
from schedules.conv.winograd_nest import FrequencyTile, WinogradNest
from schedules.conv.winograd_tiling import (
    has_window,
    max_tiles,
    relative_cycles,
    tile_counts,
    transform_cycles,
    winograd_plan,
)
from schedules.conv.winograd_transforms import edge_of, spread_weight, transforms
from schedules.conv.workload import ConvWorkload, DotWorkload, IntegerWinogradWorkload, WinogradWorkload
from schedules.estimate import Estimate, tail
from schedules.instructions.dot_products.operation import DOT_WORDS
from schedules.instructions.dot_products.table import widens_bytes
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Expr, Tensor, te, tirx
from schedules.machine import Machine
from schedules.stages.fused_kernel import FusedKernel


class Winograd(BlockedRule[WinogradWorkload]):
    """Knobs: `tiles` in a task, `pixels` x `blocks` the register tile of the matmuls, `chunks` the number of tasks that
    the output channels are split into, `unroll` the number of input channels in the innermost loop."""

    name: ClassVar[str] = WINOGRAD
    cut_knobs: ClassVar[frozenset[str]] = frozenset({"tiles", "chunks"})
    anchors: ClassVar[frozenset[int]] = frozenset({3, 4})  # four if it transforms filters
    keeps_loops: ClassVar[bool] = True

    def space(self, workload: WinogradWorkload, machine: Machine) -> ConfigSpace:
        maximum = max_tiles(workload)
        limit = accumulators(machine)
        return ConfigSpace(
            {
                "tiles": tuple(range(1, maximum + 1)),
                "pixels": tuple(range(1, limit + 1)),
                "blocks": block_choices(workload.out_blocks, machine),
                "chunks": divisors(workload.out_blocks),
                "unroll": (1, 2, 4, 8, 16),
            },
            (
                lambda config: config.integer("pixels") * config.integer("blocks") <= limit,
                lambda config: workload.out_blocks % (config.integer("chunks") * config.integer("blocks")) == 0,
            ),
        )

    def default(self, workload: WinogradWorkload, machine: Machine) -> Config:
        plan = winograd_plan(workload, machine)
        unroll = channel_unroll(workload, machine, plan.pixels, plan.blocks)
        return Config.of(tiles=plan.tiles, pixels=plan.pixels, blocks=plan.blocks, chunks=1, unroll=unroll)

    def estimate(self, workload: WinogradWorkload, config: Config, machine: Machine) -> Estimate | None:
        work = workload
        tiles, blocks, chunks = (config.integer(name) for name in ("tiles", "blocks", "chunks"))
        pixels = min(config.integer("pixels"), tiles)
        down, across = tile_counts(work)
        images, total = max(work.batch, 1), down * across
        cuts = ceil_div(total, tiles)
        edge = edge_of(work.tile, work.strides[0])
        frequencies = edge * edge
        row = row_cost(machine, tiles, pixels, blocks) + tiles * copied_scalars(work, config, machine) / blocks
        product = row * frequencies * work.channels * work.out_blocks
        spread = tiles * work.in_blocks * transform_cycles(edge, edge) * chunks
        collect = tiles * work.out_blocks * transform_cycles(edge, work.tile)
        cycles = images * total / tiles * (product + spread + collect)
        weights = frequencies * work.channels * work.out_blocks * work.block * 4
        scratch = frequencies * tiles * (work.in_blocks + blocks) * work.block * 4
        stream = weights if scratch + weights / chunks > 0.8 * machine.l2_bytes else 0.2 * weights
        moved = images * cuts * (stream + (2 * scratch * chunks if scratch > 0.75 * machine.l2_bytes else 0))
        held, code = scratch + weights / chunks, pixels * blocks * config.integer("unroll")
        return Estimate(cycles, moved, images * cuts * chunks, held, pixels * blocks, code, tail(tiles, pixels))

    def least_operations(self, workload: WinogradWorkload) -> int:
        """Operations of the matmuls only; those of the transforms depend on their implementation."""
        down, across = tile_counts(workload)
        edge = edge_of(workload.tile, workload.strides[0])
        return 2 * max(workload.batch, 1) * edge**2 * down * across * workload.channels * workload.filters

    def nest(self, fused: FusedKernel, workload: WinogradWorkload, config: Config, machine: Machine) -> WinogradNest:
        return WinogradNest(fused, workload, config)


WINOGRAD_INTEGER = "conv-winograd-integer"
TILE = 2
_GAIN = 1.22
"""Direct convolutions in pairs take 1.2 to 1.4 times their estimate, these 0.7 to 0.9 times theirs (Zen 5, AVX2)."""
_MAX_INPUT = 255 * 4  # times the sum of a filter's weights must fit an int32


def conv_winograd_integer(data: Tensor, weight: Tensor, work: DotWorkload) -> Tensor:
    """The int32 convolution of signed or unsigned bytes as a tensor expression, without an offset.

    `weight` is made by `pack_integer_filter`: (ceil(filters / block), edge^2, channel pairs, 2 * block) in int16.
    """
    transformed = work if isinstance(work, IntegerWinogradWorkload) else winograd_workload(work)
    attrs = transformed.annotation(WINOGRAD_INTEGER)

    def factor(block: Expr, frequency: Expr, channel: Expr, lane: Expr) -> Expr:
        return tirx.Cast("int32", weight(block, frequency, channel // 2, 2 * lane + channel % 2))

    sums = conv_winograd(data, factor, _as_floats(transformed), attrs=attrs, fill=work.fill)
    shift = tirx.const(2 * _doublings(work.strides[0]), "int32")
    return te.compute(sums.shape, lambda *at: sums(*at) >> shift, name="scaled", attrs=attrs)


def _doublings(stride: int) -> int:
    """Number of times that G is doubled so that its entries are integers."""
    return 1 if stride == 1 else 0


def pack_integer_filter(weight: NDArray[np.int8], lanes: int, stride: int = 1) -> NDArray[np.int16]:
    """(filters, channels, 3, 3) -> transformed filters, scaled by four for stride 1; channels in pairs, zero-padded."""
    matrix = np.array(transforms(TILE, stride).weight) * (1 << _doublings(stride))
    frequencies = edge_of(TILE, stride) ** 2
    filters, channels = weight.shape[:2]
    outer, inner = ceil_div(filters, lanes), ceil_div(channels, lanes) * lanes
    padded = np.zeros((outer * lanes, inner, frequencies), np.int16)
    padded[:filters, :channels] = spread_weight(weight, matrix).reshape(filters, channels, -1)
    pairs = padded.reshape(outer, lanes, inner // 2, 2, -1).transpose(0, 4, 2, 1, 3)
    return np.ascontiguousarray(pairs).reshape(outer, frequencies, inner // 2, 2 * lanes)


def integer_winograd_pays(work: ConvWorkload, weight: NDArray[np.int8], machine: Machine) -> bool:
    """True if the rule supports this byte convolution and is estimated to be faster than the direct one."""
    if not widens_bytes(machine) or work.is_open or not has_window(work):
        return False
    if _MAX_INPUT * int(np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)).max()) >= 1 << 31:
        return False
    halved = _in_pairs(work)
    return relative_cycles(halved, halved, machine) < _GAIN


def winograd_workload(work: DotWorkload) -> IntegerWinogradWorkload:
    """The same convolution by Winograd's method."""
    return IntegerWinogradWorkload(**vars(work), tile=TILE)


def _in_pairs(work: ConvWorkload) -> WinogradWorkload:
    """A float32 convolution whose matmuls take the same number of instructions."""
    fields = {**_fields(work), "channels": ceil_div(work.channels, 2), "dtype": "float32"}
    return WinogradWorkload(**fields, tile=TILE)


def _fields(work: ConvWorkload) -> dict[str, Any]:
    """Fields common to all convolution workloads, without those of its own class."""
    return {name: getattr(work, name) for name in ConvWorkload.__dataclass_fields__}


class WinogradInteger(BlockedRule[IntegerWinogradWorkload]):
    """Knobs as in `Winograd`; a reduction step is a pair of channels."""

    name: ClassVar[str] = WINOGRAD_INTEGER
    cut_knobs: ClassVar[frozenset[str]] = Winograd.cut_knobs
    anchors: ClassVar[frozenset[int]] = frozenset({4})

    def serves(self, workload: IntegerWinogradWorkload, machine: Machine) -> bool:
        return widens_bytes(machine)

    def space(self, workload: IntegerWinogradWorkload, machine: Machine) -> ConfigSpace:
        return Winograd().space(_as_floats(workload), machine)

    def default(self, workload: IntegerWinogradWorkload, machine: Machine) -> Config:
        plan = winograd_plan(_in_pairs(workload), machine)
        return Config.of(tiles=plan.tiles, pixels=plan.pixels, blocks=plan.blocks, chunks=1, unroll=1)

    def least_operations(self, workload: IntegerWinogradWorkload) -> int:
        """Operations of the matmuls only, as in `Winograd`."""
        return Winograd().least_operations(_as_floats(workload))

    def nest(
        self, fused: FusedKernel, workload: IntegerWinogradWorkload, config: Config, machine: Machine
    ) -> IntegerWinogradNest:
        return IntegerWinogradNest(fused, _as_floats(workload), config, workload.fill)


def _as_floats(work: IntegerWinogradWorkload) -> WinogradWorkload:
    return WinogradWorkload(**_fields(work), tile=TILE)


class IntegerWinogradNest(WinogradNest):
    """Transforms in 16 bits, and dot products of two channels at a time in 32 bits."""

    def __init__(self, fused: FusedKernel, work: WinogradWorkload, config: Config, fill: int) -> None:
        super().__init__(fused, work, config)
        self.fill = fill
        self.spread_dtype, self.steps = "int16", self.lanes // 2

    def _kept(self, value: Expr) -> Expr:
        return tirx.reinterpret(f"int32x{self.steps}", value)

    def _whole_and_rest(self) -> tuple[int, int]:
        return self.work.in_blocks, 0  # weights are zero after the last channel

    def _plus_product(self, total: Expr, value: Expr, tile: FrequencyTile, part: int, row: Expr) -> Expr:
        pair = load(tile.weights.buffer, tile.weights.block + part, tile.frequency, row, lanes_of(0, 2 * self.lanes))
        return DOT_WORDS(total, value, tirx.reinterpret(f"int32x{self.lanes}", pair))

    def _scaled(self, value: Expr) -> Expr:
        shift = 2 * _doublings(self.work.strides[0])
        return value >> splat(shift, "int32", self.lanes) if shift else value
