"""Convolution of narrow operands by matrix instructions with tile accumulators (AMX): rows of a tile are pixels.

Each task copies its input, with the zeros of the padding, into a scratch buffer: 64 bytes of a pixel's channels next to
each other, in consecutive planes; each depth step of a window is a plane, too. A tile then reads neighboring pixels
directly, for each tap of the window. Without strides lines are joined: a block continues over the padding into the
next line, and the sums of padded columns are discarded, so that small images fill tiles, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import ClassVar

from schedules.codegen.nest import (
    allocate,
    grid,
    lanes_of,
    load,
    sequence,
    splat,
    split_repeat,
    store,
    vectorized,
    when,
)
from schedules.codegen.register_tile import Taps, block_sums
from schedules.config import Config, ConfigSpace
from schedules.conv.direct_nest import CHANNELS, GROUPS, IMAGES, dimension, group_steps
from schedules.conv.dot import CONV_TILES, DotNest
from schedules.conv.rule import BlockedRule
from schedules.conv.tiling import Task, divisors
from schedules.conv.workload import ConvWorkload, TilesWorkload
from schedules.instructions.dot_products.amx import COLUMNS, ROW_BYTES, ROWS
from schedules.instructions.dot_products.operation import Instruction
from schedules.instructions.dot_products.table import tile_instruction, vector_instructions
from schedules.ir.expression import minimum
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.machine import Machine, dtype_bits
from schedules.rule import Priority
from schedules.stages.fused_kernel import FusedKernel
from schedules.task_split import SplitAxis, TaskSplit, Work, split_tasks

_RUN_ROWS = 256  # per block: its accumulators need 32 KiB, most of the L1 cache
# Cycles: per multiplication of tiles, per byte of input copied, per vector of results finished, per task started.
_TILE, _BYTE, _VECTOR, _TASK = 16.0, 0.06, 4.0, 1000.0


def tiles_workload(work: ConvWorkload, operand: str, machine: Machine, fill: int = 0) -> TilesWorkload | None:
    """The convolution in tiles; None if the machine has none for the operand, if vectors are as fast (with few
    channels, a row of a tile is mostly empty), or if tiles do not support it: plain input, unknown sizes, dilated
    depth, or a smaller last group."""
    even = work.last_group_channels == work.group_channels and work.last_group_out_blocks == work.group_out_blocks
    in_depth = work.rank <= 2 or (work.rank == 3 and work.dilations[0] == 1)
    if not (even and in_depth and work.in_block == work.block == COLUMNS) or work.is_open:
        return None
    in_block = ROW_BYTES * 8 // dtype_bits(operand)
    tiles = TilesWorkload(**{**vars(work), "in_block": in_block}, operand=operand, fill=fill)
    tiles = replace(tiles, dtype=tiles.operation.total)
    instruction = tile_instruction(machine, tiles.operation)
    if instruction is None:
        return None
    used = work.group_channels / (tiles.in_blocks * in_block)
    in_vectors = max(
        [1.0, *(each.rate_on(machine) for each in vector_instructions(machine, tiles.operation.a, tiles.operation.b))]
    )
    return tiles if instruction.convolution_rate_on(machine) * used > in_vectors else None


class ConvTiles(BlockedRule[TilesWorkload]):
    """Serves the `conv_dot` kernels of a `TilesWorkload`. Knobs: a task has at most `rows` of the output, and at least
    `chunks` tasks share its channels."""

    name: ClassVar[str] = CONV_TILES
    priority: ClassVar[int] = Priority.BLOCKED_MATRIX

    def serves(self, workload: TilesWorkload, machine: Machine) -> bool:
        return tile_instruction(machine, workload.operation) is not None

    def space(self, workload: TilesWorkload, machine: Machine) -> ConfigSpace:
        panels, uneven = divmod(workload.group_out_blocks, workload.panel // workload.block)
        chunks = (1,) if uneven else divisors(panels)
        return ConfigSpace({"rows": tuple(range(1, workload.height + 1)), "chunks": chunks})

    def default(self, workload: TilesWorkload, machine: Machine) -> Config:
        found = _split(workload, workload.height, 1, machine)
        return Config.of(rows=found.sizes[dimension(workload.rank - 2)] if workload.rank > 1 else 1, chunks=1)

    def nest(self, fused: FusedKernel, workload: TilesWorkload, config: Config, machine: Machine) -> TilesNest:
        instruction = tile_instruction(machine, workload.operation)
        assert instruction is not None
        return TilesNest(fused, workload, config, instruction)


def _line(work: ConvWorkload) -> int:
    """Pixels per line of the scratch buffer."""
    return int(work.reach(work.out_spatial)[-1])


def _run_lines(work: ConvWorkload, rows: int) -> int:
    """Lines per block: several if the output's lines have the same pitch as the input's."""
    return max(1, min(rows, _RUN_ROWS // _line(work))) if set(work.strides[-2:]) == {1} else 1


def _split(work: TilesWorkload, rows: int, chunks: int, machine: Machine) -> TaskSplit:
    """Split into tasks of at most `rows` rows, and at least `chunks` parts of the filters. Lines are not split, and a
    task has one step of the depth."""
    images, height, width = max(work.batch, 1), work.height, work.out_spatial[-1]
    depths, lines = [dimension(dim) for dim in range(work.rank - 2)], dimension(work.rank - 2)
    groups, panels = work.groups, group_steps(work, work.panel // work.block)
    reach = [int(each) for each in work.reach(work.out_spatial)][-2:]
    halo = (reach[0] / work.strides[-2] - height) if work.rank > 1 else 0.0
    planes, steps = work.in_blocks * prod(work.kernel[:-2]), prod(work.out_spatial[:-2])
    read, line = planes * ROW_BYTES * prod(reach), planes * ROW_BYTES * reach[-1] * work.strides[-min(2, work.rank)]
    sizes = range(1, rows + 1)
    copies = [each + halo for each in sizes]  # twice the cost if they exceed half of the L2 cache
    copies = [each * (2 if each * line > machine.l2_bytes // 2 else 1) * height / (height + halo) for each in copies]
    taps = planes * prod(work.kernel[-2:])
    axes = [SplitAxis(IMAGES, images, max_steps=1), SplitAxis(GROUPS, groups)]
    axes.append(SplitAxis(CHANNELS, panels, max_steps=ceil_div(panels, chunks)))
    axes += [SplitAxis(name, size, max_steps=1) for name, size in zip(depths, work.out_spatial, strict=False)]
    if work.rank > 1:
        axes.append(SplitAxis(lines, height, max_steps=rows))
    inputs = {IMAGES: 0.0, GROUPS: 0.0, **dict.fromkeys(depths, 0.0)}
    every = {**inputs, CHANNELS: 0.0, lines: 0.0}
    tiles = images * groups * steps * height * panels * (work.panel // COLUMNS)
    vectors = images * groups * steps * height * width * panels * work.panel / machine.lanes("float32")
    works = [
        Work({**every, lines: [_row_tiles(work, each) for each in sizes]}, cycles=tiles * taps * _TILE),
        Work(every, cycles=vectors * _VECTOR),
        Work({**inputs, lines: copies}, cycles=images * groups * steps * read * _BYTE),
        Work({GROUPS: 0.0, CHANNELS: 0.0}, bytes=float(groups * panels * work.panel * taps * ROW_BYTES)),
        Work({}, cycles=_TASK),
    ]
    return split_tasks([*axes, SplitAxis(dimension(work.rank - 1), 1)], works, machine)


def _row_tiles(work: TilesWorkload, rows: int) -> int:
    """Number of row tiles for a number of output lines."""
    lines = _run_lines(work, rows)
    return ceil_div(rows, lines) * ceil_div((lines - 1) * _line(work) + work.out_spatial[-1], ROWS)


class TilesNest(DotNest):
    """The loop nest whose innermost step is a block of pixels by a panel of filters."""

    work: TilesWorkload

    def __init__(self, fused: FusedKernel, work: TilesWorkload, config: Config, instruction: Instruction) -> None:
        width = work.out_spatial[-1]
        blocks = work.panel // work.block
        knobs = {"pixels": 1, "blocks": blocks, "columns": width, "unroll": 1}
        super().__init__(fused, work, Config.of(rows=config.integer("rows"), chunks=config.integer("chunks"), **knobs))
        self.instruction = instruction

        self.copies = True

    def _split_known(self, machine: Machine) -> bool | Expr:
        split = _split(self.work, self.room[-2] if self.work.rank > 1 else 1, self.config.integer("chunks"), machine)
        if self.work.rank > 1:
            self.room[-2] = split.sizes[dimension(self.work.rank - 2)]
        self.split = list(self.room)
        self.axes = {**split.parts, IMAGES: self._images}
        self.groups_each, self.steps_each = split.sizes[GROUPS], split.sizes[CHANNELS]
        return split.shared(self._images, machine)

    def _scratch_shape(self, blocks: int) -> tuple[int, ...]:
        """Shape of the scratch buffer: depth steps are planes, each followed by extra lines for pixels that the last
        tile reads past its end."""
        *leading, line = (int(each) for each in self.work.reach(self.room))
        behind = (ROWS - 1) * self.work.strides[-1]
        if not leading:
            return blocks, line + behind, self.scratch_lanes
        return blocks, *leading[:-1], leading[-1] + ceil_div(behind, line), line, self.scratch_lanes

    def _copy(self, source: Sequence[Index], target: Sequence[Index]) -> Stmt:
        """Copy the channels of a pixel: input blocks side by side. Elements after the last channel are cleared: they
        may be NaN, and NaN times a zero weight is NaN."""
        work, lanes = self.work, self.work.stored_block
        image, number, *position = source
        parts, stored = work.in_block // lanes, ceil_div(work.group_channels, lanes)
        channel_block = number if work.groups == 1 else number % work.in_blocks
        group = 0 if work.groups == 1 else number // work.in_blocks * stored
        result = []
        for part in range(parts):
            block = channel_block * parts + part
            here = minimum(block, stored - 1) if stored % parts else block
            value = load(self.data, image, group + here, *position, lanes_of(0, lanes))
            if work.group_channels % work.in_block and work.group_channels % work.in_block < (part + 1) * lanes:
                number_of = lanes_of(block * lanes, lanes)
                inside = number_of < splat(work.group_channels, "int64", lanes)
                value = tirx.Select(inside, value, splat(0, self.scratch_dtype, lanes))
            result.append(store(self.scratch, value, *target, lanes_of(part * lanes, lanes)))
        return sequence(result)

    def _rows(self, task: Task, block: Index) -> Stmt:
        rows = self.room[-2] if self.work.rank > 1 else 1
        lines = _run_lines(self.work, rows)
        return split_repeat("run", rows, lines, lambda first, count: self._run(task, block, first, count))

    def _run(self, task: Task, block: Index, first: Index, lines: int) -> Stmt:
        """Lines of a task's output, starting at `first`."""
        work, line, width = self.work, _line(self.work), self.room[-1]
        count = (lines - 1) * line + width
        sums, allocation = allocate("tile", [ceil_div(count, ROWS) * ROWS, work.panel], work.dtype)
        stride, is_plane = work.strides[-1], work.rank > 1
        corner = [*(0 for _ in work.kernel[:-2]), first * work.strides[-2]] if is_plane else []

        def pixel(row: Expr) -> Expr:
            return load(self.scratch, 0, *corner, row * stride, 0)

        planes = work.in_blocks * prod(work.kernel[:-2])
        plane = prod(self._scratch_shape(1)) // prod(work.kernel[:-2]) * dtype_bits(self.scratch_dtype) // 8
        counts = (planes, *((1,) if not is_plane else ()), *work.kernel[-2:])
        down = work.dilations[-2] * line * ROW_BYTES if is_plane else 0
        taps = Taps(counts, (plane, down, work.dilations[-1] * ROW_BYTES))
        weights = load(self.weight, _divided(block, work.panel // work.block), *(0,) * (work.rank + 3))
        return sequence(
            allocation,
            block_sums(self.instruction, pixel, stride * ROW_BYTES, taps, weights, sums, count),
            grid(["y", "x"], [lines, width], lambda at: self._finish_pixel(sums, task, block, first + at[0], at)),
        )

    def _finish_pixel(self, sums: Buffer, task: Task, block: Index, row: Index, at: Sequence[Index]) -> Stmt:
        """Apply the epilogue to the pixel at line and column `at` of a block, in row `row` of the task."""
        work, (line, column) = self.work, at
        coordinates = [task.corner[-1] + column]
        if work.rank > 1:
            coordinates = [*task.corner[:-2], task.corner[-2] + row, *coordinates]

        def element(part: int, lane: Expr) -> Stmt:
            value = load(sums, line * _line(work) + column, part * self.lanes + lane)
            return self.fused.finish(value, [task.image, block + part, *coordinates, lane])

        done = sequence(
            [vectorized("lane", self.lanes, lambda lane, part=part: element(part, lane)) for part in range(self.blocks)]  # type: ignore[misc]
        )
        uneven = work.rank > 1 and work.out_spatial[-2] % self.room[-2]
        return sequence(when(coordinates[-2] < work.out_spatial[-2], done)) if uneven else done


def _divided(block: Index, count: int) -> Index:
    return block // count if isinstance(block, int) else tirx.FloorDiv(block, tirx.IntImm("int64", count))
