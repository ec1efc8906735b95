"""Convolution of 8-bit integers by matrix instructions (Arm's `usmmla` and `smmla`): two pixels by two filters at once.

Each task copies its input into a scratch buffer, eight channels of a pixel next to each other, so that two neighbouring
pixels are one load; the weights are packed alike. A tile is pairs of pixels by blocks of four filters, two registers of
sums for each, which become rows of a pixel at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, ClassVar

from schedules.codegen.nest import allocate_tile, lanes_of, load, sequence, static_grid, store
from schedules.config import Config, ConfigSpace
from schedules.conv.defaults import even_blocks
from schedules.conv.direct import DirectRule
from schedules.conv.dot import CONV_MATRIX, SIGN_BITS, DotNest, Step, word
from schedules.conv.dynamic_sizes import least
from schedules.conv.tiling import MAX_PIXELS, Place, accumulators, block_choices
from schedules.conv.workload import QuadsWorkload
from schedules.instructions.products.operation import joined, row_of
from schedules.instructions.products.table import matrix_product
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.rule import Priority
from schedules.stages.fused_kernel import FusedKernel

_HALF = 4  # lanes of a register of sums
_OPEN_WIDTH = 56  # pixels of a row whose number is not known


class ConvMatrix(DirectRule[QuadsWorkload]):
    """Serves the `conv_dot` kernels whose workload requests it; the knobs are those of the direct convolution."""

    name: ClassVar[str] = CONV_MATRIX
    priority: ClassVar[int] = Priority.BLOCKED_MATRIX

    def serves(self, workload: QuadsWorkload, machine: Machine) -> bool:
        return matrix_product(machine, "uint8", "int8") is not None

    def space(self, workload: QuadsWorkload, machine: Machine) -> ConfigSpace:
        found = super().space(workload, machine)

        def in_registers(config: Config) -> bool:
            return _fits(ceil_div(config.integer("pixels"), 2), config.integer("blocks"), machine)

        return ConfigSpace(found.knobs, (*found.constraints, in_registers))

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
    """True if the sums, the weights of a step and a pair of pixels fit the registers."""
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
        quads = ceil_div(self.work.channels, self.work.stored_block)
        parts = []
        for half in range(2):
            quad = block * 2 + half
            if half and quads % 2:
                quad = least(quad, quads - 1)
            value = tirx.reinterpret("int32", load(self.data, image, quad, *position, lanes_of(0, 4)))
            if self.work.shift:
                value = value ^ tirx.IntImm("int32", SIGN_BITS)
            parts.append(store(self.scratch, value, *target, half))
        return sequence(parts)

    def _tile_shape(self, pixels: int) -> tuple[int, ...]:
        return ceil_div(pixels, 2), self.blocks, 2 * _HALF

    def _vectors(self, pixels: int) -> list[tuple[Any, ...]]:
        halves = static_grid(ceil_div(pixels, 2), self.blocks, 2)
        return [(pair, part, lanes_of(_HALF * half, _HALF)) for pair, part, half in halves]

    def _input_blocks(self, place: Place) -> tuple[int, int]:
        return ceil_div(place.channels, self.work.in_block), 0

    def _finish_tile(
        self, sums: list[Buffer], place: Place, block: Index, start: Sequence[Index], pixels: int
    ) -> list[Stmt]:
        rows, room = allocate_tile("rows", (pixels, self.blocks, self.lanes), self.work.dtype)
        split = [store(rows, self._row(sums, *at), *at, lanes_of(0, _HALF)) for at in static_grid(pixels, self.blocks)]
        return [*room, *split, *super()._finish_tile(rows, place, block, start, pixels)]

    @staticmethod
    def _row(sums: list[Buffer], pixel: int, part: int) -> Expr:
        left, right = (load(sums, pixel // 2, part, lanes_of(_HALF * half, _HALF)) for half in range(2))
        return row_of(left, right, pixel % 2)

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
            return self._input(at.place, at.source, at.start, pixel, at.window, lanes_of(0, lanes))

        if pixel + 1 == at.pixels:
            return joined(loaded(pixel, 2), loaded(pixel, 2))
        if self.work.strides[-1] == 1:
            return loaded(pixel, 4)  # the next pixel lies behind it
        return joined(loaded(pixel, 2), loaded(pixel + 1, 2))
