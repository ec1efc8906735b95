"""Direct convolution of narrow operands: the loop nest of `conv_direct` with a dot product in place of a multiply-add.

16-bit floats are summed in float32, pairs of channels at a time; 8-bit integers in int32, four channels at a time.

Matrix instructions (Arm's `usmmla` and `smmla`) take two pixels by two filters at once: each task copies its input into
a scratch buffer, eight channels of a pixel next to each other, so that two neighboring pixels are one load; the
weights are packed the same way. A tile is pairs of pixels by blocks of four filters, with two registers of sums for
each, which become rows of a pixel at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, ClassVar

from schedules.codegen.nest import (
    allocate,
    allocate_tile,
    broadcast,
    grid,
    lanes_of,
    load,
    repeat,
    sequence,
    splat,
    split_repeat,
    static_grid,
    store,
)
from schedules.config import Config, ConfigSpace
from schedules.conv.compute import Windows
from schedules.conv.direct import DirectRule
from schedules.conv.direct_nest import DirectNest
from schedules.conv.tiling import (
    MAX_PIXELS,
    Task,
    accumulators,
    block_choices,
    divisors,
    even_blocks,
    register_tile,
    tile_for,
)
from schedules.conv.workload import ConvWorkload, DotWorkload, QuadsWorkload, TilesWorkload
from schedules.instructions.dot_products.operation import DOT_WORDS, ONES, PARTIAL_STEPS, Operation, joined, row_of
from schedules.instructions.dot_products.table import (
    matrix_instruction,
    partial_operation,
    vector_instructions,
    widens_bytes,
)
from schedules.ir.expression import minimum, number
from schedules.ir.numbers import SIGN_BITS, WORD_BYTES, ceil_div
from schedules.ir.tir import Buffer, Expr, Index, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.rule import Priority
from schedules.stages.fused_kernel import FusedKernel

_HALF = 4  # lanes of a register of sums
_OPEN_WIDTH = 56  # assumed row width if it is dynamic
CONV_DOT = "conv-dot"
CONV_MATRIX = "conv-matrix"
CONV_TILES = "conv-tiles"
# Cycles of a broadcast load next to bfloat16 dot products. Measured on Zen 4: tiles of 14 pixels x 1 block reach
# 154 GFLOP/s and 7 x 2 reach 214; with 8-bit integers both reach 420.
_BF16_LOAD_CYCLES = 1.3
_MAX_STEPS = 72  # of a partial sum: a 3 x 3 window over 16 channels; larger windows add them to the total at each tap
# Sums with 16 registers. Products of pairs need one register each before they are added: on Zen 5, with 28 pixels in a
# row, 222 billion operations a second with 7 x 1, 198 with 4 x 2, 178 with 8 x 1. Products of bytes are accumulated
# directly: with 14 pixels 480 with 5 x 2, 422 with 4 x 2, 420 with 7 x 1.
_SUMS_OF_PAIRS, _SUMS_OF_BYTES = 7, 10


def conv_dot(data: Tensor, weight: Tensor, work: DotWorkload, sizes: Sequence[Index] = ()) -> Tensor:
    """The convolution as a tensor expression, in the layouts that `DotWorkload` documents.

    It is the sum over `data + work.shift`; the caller subtracts `work.shift` times the sum of the weights.
    """
    channel = te.reduce_axis((0, work.group_channels), name="ci")
    windows = Windows(work, data, sizes)
    zero = tirx.const(0, work.dtype)
    fill = tirx.const(work.fill + work.shift, work.dtype)
    stored = work.stored_block
    group_stored = work.in_blocks if stored == work.in_block else work.group_channels // stored

    def point(n: Expr, co: Expr, *rest: Expr) -> Expr:
        block, lane = channel // work.in_block, channel % work.in_block
        source, at_lane = channel // stored, channel % stored
        if work.groups > 1:
            source = source + co // work.group_out_blocks * group_stored

        def element(at: list[Expr]) -> Expr:
            return _number(data, (n, source, *at), at_lane, work)

        value = windows.value(rest[:-1], windows.axes, element, fill)
        if work.last_group_channels != work.group_channels:
            value = tirx.if_then_else(source * stored + at_lane < work.channels, value, zero)
        panel, column = co * work.block // work.panel, co * work.block % work.panel + rest[-1]
        if work.panel == work.block:
            panel, column = co, rest[-1]
        factor = weight(panel, block, *windows.axes, lane // work.group, column * work.group + lane % work.group)
        return te.sum(value * number(factor, work.dtype), axis=[channel, *windows.axes])

    return te.compute(windows.shape, point, name="conv", attrs=work.annotation(kind_of(work)))


def kind_of(work: DotWorkload) -> str:
    """The annotation of the rule that serves a convolution."""
    if isinstance(work, TilesWorkload):
        return CONV_TILES
    return CONV_MATRIX if isinstance(work, QuadsWorkload) and work.matrix else CONV_DOT


def _number(data: Tensor, at: tuple[Expr, ...], lane: Expr, work: DotWorkload) -> Expr:
    """A stored element converted to the accumulator type."""
    if not work.words:
        return number(data(*at, lane), work.dtype) + tirx.const(work.shift, work.dtype)
    bits = 32 // work.group
    shifted = data(*at) >> tirx.Cast("int32", lane * bits)
    if work.of_halves:
        return work.operation.half(shifted & tirx.IntImm("int32", 0xFFFF), 0)
    return shifted & tirx.IntImm("int32", 0xFF)


@dataclass(frozen=True)
class Step:
    """A reduction step: the tile (`pixels` starting at `start`, output blocks starting at `block`), the input's channel
    block `source`, the tap of the window, the group of channels and the number of groups."""

    task: Task
    block: Index
    start: Sequence[Index]
    pixels: int
    source: Index
    window: Sequence[Index]
    group: Index
    channels: int


class ConvDot(DirectRule[DotWorkload]):
    """Serves the kernels of `conv_dot`; the knobs are those of the direct convolution."""

    name: ClassVar[str] = CONV_DOT
    priority: ClassVar[int] = Priority.BLOCKED_DOT

    def space(self, workload: DotWorkload, machine: Machine) -> ConfigSpace:
        return super().space(workload, _with_sums(workload, machine))

    def _register_tile(self, workload: DotWorkload, machine: Machine) -> tuple[int, int]:
        load_cycles = _BF16_LOAD_CYCLES if workload.of_halves else 0.5
        machine = _with_sums(workload, machine)
        if _in_pairs(workload, machine) and machine.register_sums == _SUMS_OF_PAIRS and workload.out_spatial[-1]:
            return register_tile(workload.out_spatial[-1], 1, machine, load_cycles)
        return tile_for(workload, machine, load_cycles)

    def nest(self, fused: FusedKernel, workload: DotWorkload, config: Config, machine: Machine) -> DotNest:
        if isinstance(workload, QuadsWorkload):
            return (QuadsNest if machine.lane_products else DotNest)(fused, workload, config)
        return (PairsNest if _in_pairs(workload, machine) else DotNest)(fused, workload, config)


def _in_pairs(work: DotWorkload, machine: Machine) -> bool:
    return not work.of_halves and widens_bytes(machine)


def _with_sums(work: DotWorkload, machine: Machine) -> Machine:
    """The machine with its accumulators limited to what its few registers allow for such dot products."""
    if work.of_halves or machine.vector_registers >= 32:
        return machine
    if not _in_pairs(work, machine) and not vector_instructions(machine, work.operand, "int8"):
        return machine
    sums = _SUMS_OF_PAIRS if _in_pairs(work, machine) else _SUMS_OF_BYTES
    return machine.model_copy(update={"register_sums": sums})


class DotNest(DirectNest):
    """The loop nest with groups of channels as its innermost step."""

    work: DotWorkload

    def __init__(self, fused: FusedKernel, work: DotWorkload, config: Config) -> None:
        super().__init__(fused, work, config)
        self.fill = word(work.fill + work.shift) if work.words else work.fill
        self.combine = work.operation
        self.partial: Operation | None = None
        self.vector = f"int32x{self.lanes}" if self.lanes > 1 else "int32"

    @staticmethod
    def has_lanes(work: ConvWorkload) -> bool:
        return not isinstance(work, DotWorkload) or not work.words

    def _read(self, point: Sequence[Index], lane: Expr) -> Expr:
        return load(self.data, *point) if self.work.words else load(self.data, *point, lane)

    def build(self, machine: Machine) -> Stmt:
        self.partial = partial_operation(machine, self.work.operation)
        return super().build(machine)

    def _tile(self, task: Task, block: Expr | int, start: Sequence[Index], pixels: int) -> Stmt:
        work, lanes = self.work, self.lanes
        vectors = self._vectors(pixels)
        sums, allocation = allocate_tile("sums", self._tile_shape(pixels), work.dtype)
        full_blocks, rest = self._input_blocks(task)
        summed, room = sums, list[Stmt]()
        if self.partial is not None:
            summed, room = allocate_tile("halves", (pixels, self.blocks, lanes), "int32")
        windows = self.partial is not None and self._window_steps <= _MAX_STEPS

        def step(source: Expr | int, window: Sequence[Index], group: Expr | int, count: int) -> list[Stmt]:
            return self._step(summed, Step(task, block, start, pixels, source, window, group, count))

        def window_loop(source: Expr | int, channels: int) -> Stmt:
            groups, single = divmod(channels, work.group)
            unroll = max(size for size in divisors(max(groups, 1)) if size <= self.unroll)

            def body(window: list[Index]) -> Stmt:
                parts = [self._weights_ahead(task, block, start, [source, *window], 1)]

                def some(i: Index) -> Stmt:
                    return sequence(*(step(source, window, i * unroll + j, work.group) for j in range(unroll)))

                parts += [repeat("ci", groups // unroll, some)] if groups else []
                if single:
                    parts.append(sequence(step(source, window, groups, single)))
                return sequence(parts) if windows else self._joined(sequence(parts), sums, summed)

            taps = self._taps(body, steps=groups // unroll + bool(single))
            return sequence(self._weights_ahead(task, block, start, [source], 1), taps)

        parts = []
        if full_blocks and not windows:
            parts.append(repeat("cb", full_blocks, lambda source: window_loop(source, work.in_block)))
        elif full_blocks:
            parts.append(self._in_parts(full_blocks, lambda source: window_loop(source, work.in_block), sums, summed))
        if rest:
            last = window_loop(full_blocks, rest)
            parts.append(self._joined(last, sums, summed) if windows else last)
        clear = [store(sums, self.zero, *at) for at in vectors]
        return sequence(allocation, room, clear, parts, self._finish_tile(sums, task, block, start, pixels))

    def _tile_shape(self, pixels: int) -> tuple[int, ...]:
        """Shape of the accumulators of a tile, by row."""
        return pixels, self.blocks, self.lanes

    def _vectors(self, pixels: int) -> list[tuple[Any, ...]]:
        """Indices of each accumulator vector of a tile."""
        return [(*at, lanes_of(0, self.lanes)) for at in static_grid(pixels, self.blocks)]

    def _input_blocks(self, task: Task) -> tuple[int, int]:
        """Number of full channel blocks of the input, and channels of a partial one."""
        return divmod(task.channels, self.work.in_block)

    @property
    def _window_steps(self) -> int:
        """Steps over a window of one block of the input."""
        return prod(self.work.kernel) * self.work.in_block // self.work.group

    def _in_parts(self, sources: int, body: Callable[[Index], Stmt], sums: list[Buffer], halves: list[Buffer]) -> Stmt:
        """Split the steps over input blocks into partial sums; several blocks each if the window is small."""
        per_part = max(1, PARTIAL_STEPS // self._window_steps)

        def part(start: Index, count: int) -> Stmt:
            return self._joined(repeat("cb", count, lambda source: body(start + source)), sums, halves)

        return split_repeat("part", sources, per_part, part)

    def _joined(self, steps: Stmt, sums: list[Buffer], halves: list[Buffer]) -> Stmt:
        """Steps whose partial sums are then added to the accumulators."""
        if self.partial is None:
            return steps
        ones, zero = splat(ONES, "int32", self.lanes), splat(0, "int32", self.lanes)
        points = self._vectors(len(sums))
        clear = [store(halves, zero, *at) for at in points]
        join = [store(sums, self.combine(load(sums, *at), load(halves, *at), ones), *at) for at in points]
        return sequence(clear, steps, join)

    def _step(self, sums: list[Buffer], at: Step) -> list[Stmt]:
        """Multiply-adds of a tile with one group of channels."""
        combine, values = self.partial or self.combine, self._values(at)
        lanes, group = self.lanes, self.work.group
        result = []
        for pixel, part in static_grid(at.pixels, self.blocks):
            stored = load(self.weight, at.block + part, at.source, *at.window, at.group, lanes_of(0, lanes * group))
            weight = tirx.reinterpret(self.vector, stored)
            here = (pixel, part, lanes_of(0, lanes))
            result.append(store(sums, combine(load(sums, *here), values[pixel], weight), *here))
        return result

    def _values(self, at: Step) -> list[Expr]:
        """The group of channels of each pixel, in every lane."""
        return [broadcast(self._group_of(at, pixel), self.lanes) for pixel in range(at.pixels)]

    def _group_of(self, at: Step, pixel: int) -> Expr:
        """A pixel's group of channels as an int32. In the last bfloat16 pair, lanes beyond the channels are cleared:
        they may hold NaN, and NaN times a zero weight is NaN."""
        if self.work.words:
            return self._input(at.task, at.source, at.start, pixel, at.window, 0)
        lane = lanes_of(at.group * self.work.group, self.work.group)
        value = tirx.reinterpret("int32", self._input(at.task, at.source, at.start, pixel, at.window, lane))
        if self.work.shift:
            value = value ^ tirx.IntImm("int32", SIGN_BITS)
        if self.work.of_halves and at.channels < self.work.group:
            value = value & tirx.IntImm("int32", 0xFFFF)
        return value


class QuadsNest(DotNest):
    """Loop nest of a `QuadsWorkload` on Arm: one load reads four neighboring pixels, and dot products index its
    lanes."""

    def _values(self, at: Step) -> list[Expr]:
        values: list[Expr] = []
        side_by_side = at.pixels // WORD_BYTES * WORD_BYTES if self.work.strides[-1] == 1 else 0
        for pixel in range(0, side_by_side, WORD_BYTES):
            stored = self._input(at.task, at.source, at.start, pixel, at.window, lanes_of(0, WORD_BYTES * WORD_BYTES))
            four = tirx.reinterpret("int32x4", stored)
            if self.work.shift:
                four = four ^ splat(SIGN_BITS, "int32", WORD_BYTES)
            values += [tirx.Shuffle([four], [tirx.IntImm("int32", lane)] * WORD_BYTES) for lane in range(WORD_BYTES)]
        return values + [broadcast(self._group_of(at, pixel), WORD_BYTES) for pixel in range(side_by_side, at.pixels)]


class PairsNest(DotNest):
    """For processors that multiply pairs of 16-bit integers but not bytes: the input and the weights of a tile's
    channels are converted to 16 bits once, in scratch buffers, as the even and the odd bytes of each group of four."""

    converts = True

    def __init__(self, fused: FusedKernel, work: DotWorkload, config: Config) -> None:
        super().__init__(fused, work, config)
        self.copies = True
        self.fill = (work.fill + work.shift) * 0x00010001
        self.scratch_dtype, self.scratch_lanes = "int32", work.in_block // 2
        self.quads = work.in_block // work.group
        self.wide: Buffer | None = None

    def _group(self, task: Task, first: Index, count: int, chunk: Index) -> Stmt:
        copied = self._fill_scratch(task)
        return sequence(copied, self._all_blocks(first, count, chunk, lambda nest, block: nest._widened(task, block)))

    def _copy(self, source: Sequence[Index], target: Sequence[Index]) -> Stmt:
        quads = self.quads
        vector = f"int32x{quads}" if quads > 1 else "int32"
        value = tirx.reinterpret(vector, self._read(source, lanes_of(0, self.work.in_block)))
        if self.work.operand == "int8" and not self.work.words:
            value = value ^ splat(SIGN_BITS, "int32", quads)
        mask = splat(0x00FF00FF, "int32", quads)
        even, odd = value & mask, (value >> splat(8, "int32", quads)) & mask
        return sequence(
            store(self.scratch, even, *target, lanes_of(0, quads)),
            store(self.scratch, odd, *target, lanes_of(quads, quads)),
        )

    def _widened(self, task: Task, block: Expr | int) -> Stmt:
        """Tiles of several output blocks, after converting their weights to 16 bits."""
        work, lanes = self.work, self.lanes
        blocks = ceil_div(task.channels, work.in_block)
        shape = (blocks, *work.kernel, self.quads, self.blocks * 2 * lanes)
        self.wide, allocation = allocate("wide", shape, "int32")
        half = splat(8, "int16", 2 * lanes)

        def widen(point: list[Index]) -> Stmt:
            parts = []
            for part in range(self.blocks):
                stored = load(self.weight, block + part, *point, lanes_of(0, lanes * work.group))
                words = tirx.reinterpret(f"int16x{2 * lanes}", stored)
                for odd, value in enumerate(((words << half) >> half, words >> half)):
                    at = lanes_of((2 * part + odd) * lanes, lanes)
                    parts.append(store(self.wide, tirx.reinterpret(self.vector, value), *point, at))
            return sequence(parts)

        names = ["wb", *(f"wk{i}" for i in range(work.rank)), "wq"]
        return sequence(allocation, grid(names, [blocks, *work.kernel, self.quads], widen), self._rows(task, block))

    def _step(self, sums: list[Buffer], at: Step) -> list[Stmt]:
        lanes = self.lanes
        result = []

        def value(pixel: int, odd: int) -> Expr:
            lane = odd * self.quads + at.group
            return broadcast(self._input(at.task, at.source, at.start, pixel, at.window, lane), lanes)

        values = [[value(pixel, odd) for odd in range(2)] for pixel in range(at.pixels)]
        for pixel, part in static_grid(at.pixels, self.blocks):
            here = (pixel, part, lanes_of(0, lanes))
            total = load(sums, *here)
            for odd in range(2):
                weight = load(self.wide, at.source, *at.window, at.group, lanes_of((2 * part + odd) * lanes, lanes))
                total = DOT_WORDS(total, values[pixel][odd], weight)
            result.append(store(sums, total, *here))
        return result


def word(byte: int) -> int:
    """Four equal bytes as an int32."""
    word = byte * 0x01010101
    return word - (1 << 32) if word >= 1 << 31 else word


class ConvMatrix(DirectRule[QuadsWorkload]):
    """Serves the `conv_dot` kernels whose workload requests it; the knobs are those of the direct convolution."""

    name: ClassVar[str] = CONV_MATRIX
    priority: ClassVar[int] = Priority.BLOCKED_MATRIX

    def serves(self, workload: QuadsWorkload, machine: Machine) -> bool:
        return matrix_instruction(machine, "uint8", "int8") is not None

    def space(self, workload: QuadsWorkload, machine: Machine) -> ConfigSpace:
        inherited = super().space(workload, machine)

        def in_registers(config: Config) -> bool:
            return _fits(ceil_div(config.integer("pixels"), 2), config.integer("blocks"), machine)

        return ConfigSpace(inherited.knobs, (*inherited.constraints, in_registers))

    def _register_tile(self, workload: QuadsWorkload, machine: Machine) -> tuple[int, int]:
        width = workload.out_spatial[-1] or _OPEN_WIDTH
        choices = [
            (_row_cost(width, pairs, blocks, machine), -pairs * blocks, min(2 * pairs, width), blocks)
            for blocks in block_choices(even_blocks(workload), machine)
            for pairs in range(1, ceil_div(min(width, MAX_PIXELS), 2) + 1)
            if _fits(pairs, blocks, machine)
        ]
        _, _, pixels, blocks = min(choices)
        return pixels, blocks

    def nest(self, fused: FusedKernel, workload: QuadsWorkload, config: Config, machine: Machine) -> MatrixNest:
        return MatrixNest(fused, workload, config)


def _fits(pairs: int, blocks: int, machine: Machine) -> bool:
    """True if the sums, the weights of a step and a pair of pixels fit in registers."""
    sums = 2 * pairs * blocks
    return sums <= accumulators(machine) and sums + 2 * blocks + 2 <= machine.vector_registers


def _row_cost(width: int, pairs: int, blocks: int, machine: Machine) -> float:
    """Cycles for eight channels of a row of `width` pixels, per block: multiplications, and loads or their latency."""

    def cost(count: int) -> float:
        arithmetic = 2 * count * blocks / machine.fma_ports
        return max(arithmetic, (count + 2 * blocks) / machine.load_ports, machine.fma_latency)

    whole, rest = divmod(width, 2 * pairs)
    total = whole * cost(pairs) + (cost(ceil_div(rest, 2)) + 2 if rest else 0)
    return total / blocks if pairs else inf


class MatrixNest(DotNest):
    """The loop nest with eight channels of two pixels as its innermost step."""

    work: QuadsWorkload

    def __init__(self, fused: FusedKernel, work: QuadsWorkload, config: Config) -> None:
        super().__init__(fused, work, config)
        self.copies, self.scratch_dtype, self.scratch_lanes = True, "int32", 2
        self.fill = word(work.fill + work.shift & 0xFF)

    def _copy(self, source: Sequence[Index], target: Sequence[Expr]) -> Stmt:
        """Copy eight channels of a pixel: two blocks of the input. Data after the last block is multiplied by zero
        weights."""
        image, block, *position = source
        blocks = ceil_div(self.work.channels, self.work.stored_block)
        parts = []
        for half in range(2):
            stored = block * 2 + half
            if half and blocks % 2:
                stored = minimum(stored, blocks - 1)
            value = tirx.reinterpret("int32", load(self.data, image, stored, *position, lanes_of(0, 4)))
            if self.work.shift:
                value = value ^ tirx.IntImm("int32", SIGN_BITS)
            parts.append(store(self.scratch, value, *target, half))
        return sequence(parts)

    def _tile_shape(self, pixels: int) -> tuple[int, ...]:
        return ceil_div(pixels, 2), self.blocks, 2 * _HALF

    def _vectors(self, pixels: int) -> list[tuple[Any, ...]]:
        halves = static_grid(ceil_div(pixels, 2), self.blocks, 2)
        return [(pair, part, lanes_of(_HALF * half, _HALF)) for pair, part, half in halves]

    def _input_blocks(self, task: Task) -> tuple[int, int]:
        return ceil_div(task.channels, self.work.in_block), 0

    def _finish_tile(
        self, sums: list[Buffer], task: Task, block: Index, start: Sequence[Index], pixels: int
    ) -> list[Stmt]:
        rows, room = allocate_tile("rows", (pixels, self.blocks, self.lanes), self.work.dtype)
        split = []
        for pixel, part in static_grid(pixels, self.blocks):
            left, right = (load(sums, pixel // 2, part, lanes_of(_HALF * half, _HALF)) for half in range(2))
            split.append(store(rows, row_of(left, right, pixel % 2), pixel, part, lanes_of(0, _HALF)))
        return [*room, *split, *super()._finish_tile(rows, task, block, start, pixels)]

    def _step(self, sums: list[Buffer], at: Step) -> list[Stmt]:
        result = []
        for pair in range(ceil_div(at.pixels, 2)):
            value = self._pair(at, 2 * pair)
            for part, half in static_grid(self.blocks, 2):
                stored = load(self.weight, at.block + part, at.source, *at.window, 0, lanes_of(16 * half, 16))
                here = (pair, part, lanes_of(_HALF * half, _HALF))
                total = self.combine(load(sums, *here), value, tirx.reinterpret("int32x4", stored))
                result.append(store(sums, total, *here))
        return result

    def _pair(self, at: Step, pixel: int) -> Expr:
        """Eight channels of two pixels; a single last pixel is duplicated."""

        def loaded(pixel: int, lanes: int) -> Expr:
            return self._input(at.task, at.source, at.start, pixel, at.window, lanes_of(0, lanes))

        if pixel + 1 == at.pixels:
            return joined(loaded(pixel, 2), loaded(pixel, 2))
        if self.work.strides[-1] == 1:
            return loaded(pixel, 4)  # the next pixel follows it in memory
        return joined(loaded(pixel, 2), loaded(pixel + 1, 2))
