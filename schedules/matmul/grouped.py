"""Matmuls of float32 data and 4-bit or 8-bit weights with one scale per group, dequantized in registers.

    C[i, j] = sum over groups g of scale[g, j] * sum over k in g of A[i, k] * (B[k, j] - zero[g, j])

The inner sum starts from -zero * (sum of A over the group) and uses the integers directly, so a weight costs a shift, a
lookup and the multiply-add (see `unpack_bits`), and a group one more multiply-add.

The layout of 4-bit and 8-bit weights with one scale per group of neighbors along the depth.

Columns are stored in panels of a few vectors. For 8 bits: int8 (panels, depth, width). For 4 bits: int32 (panels,
ceil(depth / 8), width), eight neighbors along the depth per word. The first of each pair of neighbors is in the low
half of the word, the second in the high one, so that a shift also yields the pair as two 16-bit lanes. Scales and zero
points: (panels, groups, width).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from schedules.annotations import KIND, SPEC
from schedules.codegen.nest import prefetch, repeat_symbolic, sequence, split_steps
from schedules.codegen.register_tile import RegisterTile
from schedules.instructions.unpack_bits import unpacked
from schedules.ir.expression import index, number
from schedules.ir.stages import Kernel
from schedules.ir.tir import Buffer, Expr, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.matmul.form import MatmulForm
from schedules.matmul.packed_operand import PanelRule, WriterOfParts, panel_fields, panel_form
from schedules.matmul.tiling import MatmulWorkload
from schedules.matmul.writer import Batch, MatmulWriter, Tile
from schedules.stages.fused_kernel import FusedKernel, only_anchors

PER_WORD = 8
# With this many registers, a tile of four vectors leaves room for enough rows.
_MANY_REGISTERS = 32


def panel_width(columns: int, machine: Machine) -> int:
    """Columns per panel: for a single row, the accumulators of four vectors hide the latency of an addition."""
    lanes = machine.lanes("float32")
    maximum = 4 if machine.vector_registers >= _MANY_REGISTERS else 2
    return lanes * max(1, min(maximum, -(-columns // lanes)))


def shift_of(position: int) -> int:
    """The lowest bit of neighbor `position` (0 to 7) within its word."""
    return 4 * (position // 2) + 16 * (position % 2)


def pack_words(weight: NDArray[np.int8], width: int) -> NDArray[np.int32]:
    """Pack a (depth, columns) weight with values -8 to 7 into words, zero-padded."""
    depth, columns = weight.shape
    steps, panels = -(-depth // PER_WORD), -(-columns // width)
    padded = np.zeros((steps, PER_WORD, panels, width), np.uint32)
    rows = np.zeros((steps * PER_WORD, panels * width), np.uint8)
    rows[:depth, :columns] = weight.view(np.uint8) & 15
    padded[:] = rows.reshape(steps, PER_WORD, panels, width)
    words = np.zeros((steps, panels, width), np.uint32)
    for position in range(PER_WORD):
        words |= padded[:, position] << np.uint32(shift_of(position))
    return np.ascontiguousarray(words.transpose(1, 0, 2)).view(np.int32)


MATMUL_GROUPED = "matmul-grouped"
# Prefetch distance of words, in rows of a panel: a row takes some fifty cycles.
_WORDS_AHEAD, _BYTES_AHEAD = 16, 64


def matmul_grouped(data: Tensor, packed: Tensor, scales: Tensor, *zeros: Tensor, columns: int, group: int) -> Tensor:
    """Matmul of float32 data (..., depth) and a weight in the layout of `grouped_weights`: float32 (..., columns).

    Args:
        packed: int32 words of 4-bit integers, or int8.
        scales: float32 or float16 (panels, groups, width).
        zeros: nothing, or float32 zero points of the same shape.
        group: number of neighbors along the depth that share a scale.
    """
    width, depth = int(packed.shape[2]), int(data.shape[-1])
    words = str(packed.dtype) == "int32"
    k = te.reduce_axis((tirx.IntImm("int64", 0), tirx.IntImm("int64", depth)), name="k")

    def point(*at: Expr) -> Expr:
        panel, lane = tirx.floordiv(at[-1], width), tirx.floormod(at[-1], width)
        source = data(*at[:-1], k)
        value = packed(panel, tirx.floordiv(k, PER_WORD), lane) if words else packed(panel, k, lane)
        if words:
            position = tirx.Cast("int32", tirx.floormod(k, PER_WORD))
            shift = 4 * tirx.floordiv(position, 2) + 16 * tirx.floormod(position, 2)
            value = (value << (28 - shift)) >> 28
        weight = tirx.Cast("float32", value)
        for zero in zeros:
            weight = weight - zero(panel, tirx.floordiv(k, group), lane)
        scale = number(scales(panel, tirx.floordiv(k, group), lane), "float32")
        return te.sum(source * (weight * scale), axis=k)

    attrs = {KIND: MATMUL_GROUPED, SPEC: json.dumps({"group": group, "words": words})}
    shape = [*data.shape[:-1], tirx.IntImm("int64", columns)]
    return te.compute(shape, point, name="matmul", attrs=attrs)


@dataclass(frozen=True, eq=False)
class Parts:
    """The stage of the matmul and its operands; `zeros` is None if all zero points are 0."""

    form: MatmulForm
    packed: Expr
    scales: Expr
    zeros: Buffer | None
    group: int

    @property
    def bits(self) -> int:
        return 4 if str(self.packed.dtype) == "int32" else 8


@dataclass(frozen=True)
class GroupedWorkload(MatmulWorkload):
    """A matmul with one scale per `group` neighbors along the depth; `b_dtype` determines the number of bits."""

    group: int = 0
    zeros: bool = False


class MatmulGrouped(PanelRule[GroupedWorkload, Parts]):
    """Serves the kernels of `matmul_grouped`."""

    name: ClassVar[str] = MATMUL_GROUPED

    def workload(self, parts: Parts, machine: Machine) -> GroupedWorkload:
        return GroupedWorkload(
            **panel_fields(parts.form, f"int{parts.bits}"), group=parts.group, zeros=parts.zeros is not None
        )

    def parts(self, kernel: Kernel) -> Parts | None:
        stages = only_anchors(kernel, MATMUL_GROUPED)
        if stages is None:
            return None
        stage = stages[0]
        loads = [load for load in stage.loads if not load.source.same_as(stage.body.buffer)]
        packed = next((load for load in loads if str(load.source.dtype) in ("int32", "int8")), None)
        if packed is None:
            return None
        data, *numbers = [load for load in loads if load is not packed and not load.source.same_as(packed.source)]
        spec = json.loads(str(stage.annotations[SPEC]))
        scales, zeros = numbers[-1].source, numbers[0].source if len(numbers) == 2 else None
        depth = next(axis for axis in stage.axes if axis.reduce)
        return Parts(panel_form(stage, depth, data, packed), packed.source, scales, zeros, int(spec["group"]))

    def writer(self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        return GroupedWriter(parts, fused, machine, rows=rows)


class GroupedWriter(WriterOfParts[Parts]):
    """Writes a matmul: the common loops, with its own tile."""

    def _tile(self, at: Tile) -> Stmt:
        """`rows x width` results: one group after another, each accumulated in registers."""
        totals = RegisterTile(int(at.rows), at.width, self.lanes, "float32")
        position = (at.batch, at.row, tirx.FloorDiv(at.column, index(self.form.width)))
        groups = split_steps(
            "group",
            int(self.form.depth.extent),
            self.parts.group,
            lambda group, depth: self._group(totals, position, group, depth),
        )
        return sequence([*totals.cleared(), *groups, *self._finish(totals, at)])

    def _group(self, totals: RegisterTile, at: tuple[Batch, Expr, Expr], group: Expr, depth: int) -> Stmt:
        """Multiply-adds of one group, scaled and added to the totals."""
        parts, (batch, row, panel) = self.parts, at
        first = group * parts.group
        sums = RegisterTile(totals.rows, totals.width, self.lanes, "float32")

        def a(i: int, k: Expr) -> Expr:
            return self.form.a_at(batch, row + i, first + k)

        def of_group(buffer: Buffer, lane: Expr) -> Expr:
            return number(tirx.BufferLoad(buffer, [panel, group, lane]), "float32")

        def scaled(i: int, position: Expr, lane: Expr) -> Expr:
            return totals.sum(i, position) + sums.sum(i, position) * of_group(parts.scales, lane)

        code = [*sums.allocations, *self._start(sums, a, of_group, depth)]
        code += (
            self._words(sums, a, panel, first, depth) if parts.bits == 4 else self._bytes(sums, a, panel, first, depth)
        )
        return sequence([*code, *totals.stores(scaled)])

    def _start(
        self, sums: RegisterTile, a: Callable[..., Expr], of_group: Callable[..., Expr], depth: int
    ) -> list[Stmt]:
        """Initial value of a group's sums: minus the zero point times the sum of the data."""
        zero, zeros = tirx.const(0.0, "float32"), self.parts.zeros
        if zeros is None:
            return sums.stores(lambda i, position, lane: zero)
        data = RegisterTile(sums.rows, 1, 1, "float32")

        def add(k: Expr) -> Stmt:
            return sequence(data.stores(lambda i, position, lane: data.sum(i, position) + a(i, k)))

        return [
            *data.cleared(),
            repeat_symbolic("k", depth, add),
            *sums.stores(lambda i, position, lane: zero - of_group(zeros, lane) * data.sum(i, index(0))),
        ]

    def _words(self, sums: RegisterTile, a: Callable[..., Expr], panel: Expr, first: Expr, depth: int) -> list[Stmt]:
        packed = self.parts.packed
        start = tirx.FloorDiv(first, index(PER_WORD))

        def step(word: Expr, count: int) -> Stmt:
            code = [prefetch(packed, panel, start + word + _WORDS_AHEAD, at) for at in range(0, sums.width, self.lanes)]
            for position in range(count):

                def add(i: int, at: Expr, lane: Expr, position: int = position) -> Expr:
                    value = unpacked(tirx.BufferLoad(packed, [panel, start + word, lane]), shift_of(position))
                    return sums.sum(i, at) + a(i, word * PER_WORD + position) * value

                code += sums.stores(add)
            return sequence(code)

        return split_steps("word", depth, PER_WORD, step)

    def _bytes(self, sums: RegisterTile, a: Callable[..., Expr], panel: Expr, first: Expr, depth: int) -> list[Stmt]:
        packed = self.parts.packed

        def step(k: Expr) -> Stmt:
            positions = range(0, sums.width, 64)

            def add(i: int, at: Expr, lane: Expr) -> Expr:
                value = tirx.Cast("float32", tirx.BufferLoad(packed, [panel, first + k, lane]))
                return sums.sum(i, at) + a(i, k) * value

            ahead = [prefetch(packed, panel, first + k + _BYTES_AHEAD, at) for at in positions]
            return sequence([*ahead, *sums.stores(add)])

        return [repeat_symbolic("k", depth, step)]
