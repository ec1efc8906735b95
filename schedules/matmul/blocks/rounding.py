"""Dynamic int8 quantization of matmul inputs, with one scale for each unit of neighbors along the depth.

A unit is words of an int32 tensor (..., units, 3 + unit / 4): the scale (float32 bits), the sum of the bytes, the scale
times that sum (float32 bits), and the bytes, four a word. The scale is the maximum magnitude over 127. A NaN or an
infinity in the data becomes the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add
from typing import ClassVar

from schedules.annotations import KIND, SPEC
from schedules.codegen.nest import (
    Extent,
    allocate,
    bind,
    broadcast,
    lanes_of,
    load,
    parallel_grid,
    repeat,
    sequence,
    splat,
    store,
)
from schedules.codegen.parallel import pays_off
from schedules.config import Config
from schedules.errors import NotScheduledError
from schedules.instructions.rounding import rounded_int32
from schedules.instructions.row_sums import reduced
from schedules.ir.expression import expression, index
from schedules.ir.numbers import WORD_BYTES
from schedules.ir.stages import Kernel, Stage, product, shape_of
from schedules.ir.tir import Expr, Index, PrimFunc, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.rule import ScheduleRule, Workload
from schedules.stages.fused_kernel import FusedKernel, only_anchors

BLOCK_ROUND = "block-round"
HEADER, SCALE, SUM, SCALED_SUM = 3, 0, 1, 2
_MAX_INT8 = 127.0
_MAGNITUDE = 0x7FFFFFFF


def quantized(
    vectors: Sequence[Expr], lanes: int, put: Callable[[int, Expr], tuple[Stmt, Expr]]
) -> tuple[list[Stmt], Expr, Expr]:
    """Quantize neighbors, vectors of float32, to integers from -127 to 127 with one scale.

    Args:
        put: called with the index of a vector's first element and its integers, int32; returns the statement that
            stores them, and the vector to sum.

    Returns:
        The statements, the maximum magnitude, which is 127 times the scale, and the vector of sums.
    """
    code: list[Stmt] = []

    def named(name: str, value: Expr, dtype: str, count: int = 1) -> Expr:
        variable, statement = bind(name, value, dtype, count)
        code.append(statement)
        return variable

    bound = [named("x", each, "float32", lanes) for each in vectors]
    kind, magnitude = f"int32x{lanes}" if lanes > 1 else "int32", splat(_MAGNITUDE, "int32", lanes)
    greatest = reduce(tirx.max, (tirx.reinterpret(kind, each) & magnitude for each in bound))
    peak = named("peak", tirx.reinterpret("float32", reduced("smax", greatest, lanes)), "float32")
    zero = tirx.const(0.0, "float32")
    inverse = named("inverse", tirx.Select(peak > zero, tirx.const(_MAX_INT8, "float32") / peak, zero), "float32")
    sums = []
    for number, vector in enumerate(bound):
        whole = named("whole", rounded_int32(vector * broadcast(inverse, lanes)), "int32", lanes)
        kept, summed = put(number * lanes, whole)
        code.append(kept)
        sums.append(summed)
    return code, peak, reduce(add, sums)


def block_round(data: Tensor, units: int, unit: int) -> Tensor:
    """Quantize float32 data (..., depth) to int32 (..., units, 3 + unit / 4); zero-padded past the depth."""
    depth, leading = data.shape[-1], list(data.shape[:-1])
    attrs = {KIND: BLOCK_ROUND, SPEC: str(unit)}
    even = isinstance(depth, tirx.IntImm) and int(depth.value) == units * unit
    zero = tirx.const(0.0, "float32")

    def element(*at: Expr) -> Expr:
        """The element at index at[-1] of unit at[-2]."""
        position = at[-2] * unit + at[-1]
        return data(*at[:-2], position) if even else tirx.if_then_else(position < depth, data(*at[:-2], position), zero)

    k = te.reduce_axis((index(0), index(unit)), name="k")
    peak = te.compute(
        [*leading, index(units)],
        # Magnitudes compared as integers: NaN is the largest.
        lambda *at: te.max(tirx.reinterpret("int32", element(*at, k)) & tirx.const(_MAGNITUDE, "int32"), axis=k),
        name="peak",
        attrs=attrs,
    )

    def rounded(at: tuple[Expr, ...], position: Expr) -> Expr:
        maximum = tirx.reinterpret("float32", peak(*at))
        inverse = tirx.if_then_else(maximum > zero, tirx.const(_MAX_INT8, "float32") / maximum, zero)
        return tirx.Cast("int8", tirx.Cast("int32", tirx.nearbyint(element(*at, position) * inverse)))

    position = te.reduce_axis((index(0), index(unit)), name="place")
    total = te.compute(
        [*leading, index(units)],
        lambda *at: te.sum(tirx.Cast("int32", rounded(at, position)), axis=position),
        name="total",
        attrs=attrs,
    )

    def word(*at: Expr) -> Expr:
        of_unit, slot = at[:-1], at[-1]
        scale = tirx.reinterpret("float32", peak(*of_unit)) * tirx.const(1 / _MAX_INT8, "float32")
        first = tirx.max(slot - HEADER, index(0)) * WORD_BYTES
        value = tirx.const(0, "int32")
        for byte in range(WORD_BYTES):
            one = tirx.Cast("int32", rounded(of_unit, first + byte)) & tirx.const(0xFF, "int32")
            value = value | one << tirx.const(8 * byte, "int32")
        scaled = tirx.reinterpret("int32", scale * tirx.Cast("float32", total(*of_unit)))
        value = tirx.if_then_else(slot == SCALED_SUM, scaled, value)
        value = tirx.if_then_else(slot == SUM, total(*of_unit), value)
        return tirx.if_then_else(slot == SCALE, tirx.reinterpret("int32", scale), value)

    return te.compute([*leading, index(units), index(HEADER + unit // WORD_BYTES)], word, name="rounded", attrs=attrs)


# The kernels of `block_round`: vectorized over a unit, parallel over rows.

_WEIGHT = 4  # cost of an element relative to a vectorized multiply-add


@dataclass(frozen=True)
class RoundWorkload(Workload):
    """Rows (0 if symbolic) of `depth` elements, quantized in units."""

    rows: int
    depth: int
    unit: int


class BlockRound(ScheduleRule[RoundWorkload]):
    """Serves the kernels of `block_round`."""

    name: ClassVar[str] = BLOCK_ROUND
    priority: ClassVar[int] = 60

    def match(self, kernel: Kernel, machine: Machine) -> RoundWorkload | None:
        stages = only_anchors(kernel, BLOCK_ROUND, 3)
        if stages is None or machine.architecture not in ("x86_64", "aarch64"):
            return None
        *leading, depth = shape_of(_data(stages))
        if not isinstance(depth, int):
            return None
        return RoundWorkload(product(leading) or 0, depth, int(stages[0].annotations[SPEC]))

    def apply(self, kernel: Kernel, workload: RoundWorkload, config: Config, machine: Machine) -> PrimFunc:
        stages = only_anchors(kernel, BLOCK_ROUND, 3)
        if stages is None:
            raise NotScheduledError("the stages of the rounding are missing")
        fused = FusedKernel(kernel, stages)
        writer = _Writer(_data(stages), fused.result, workload.unit, machine)
        return fused.function(writer.statement(), machine)


def _data(stages: tuple[Stage, ...]) -> Expr:
    own = stages[0].writes[0]
    return next(load.source for load in stages[0].loads if not load.source.same_as(own))


class _Writer:
    """Writes the words of `result` from `data`."""

    def __init__(self, data: Expr, result: Expr, unit: int, machine: Machine) -> None:
        self.data, self.result, self.unit, self.machine = data, result, unit, machine
        self.lanes = min(machine.lanes("float32"), unit)

    def statement(self) -> Stmt:
        """All rows and units."""
        *leading, depth = shape_of(self.data)
        units = shape_of(self.result)[-2]
        full_units, rest = divmod(depth, self.unit)
        amount = prod((depth * _WEIGHT, *leading))

        def row(at: list[Expr]) -> Stmt:
            def direct(unit: Expr) -> Stmt:
                return self._unit(at, unit, lambda first: load(self.data, *at, lanes_of(first, self.lanes)))

            parts = [repeat("unit", full_units, direct)] if full_units else []
            parts += [self._part(at, full_units, rest)] if rest else []
            empty = full_units + (rest > 0)
            if units > empty:
                parts.append(repeat("unit", units - empty, lambda unit: self._empty(at, unit + empty)))
            return sequence(parts)

        extents = [Extent(f"row{at}", size) for at, size in enumerate(leading)]
        return parallel_grid(extents, row, self.machine, parallel=pays_off(amount, self.machine))

    def _part(self, at: list[Expr], unit: int, count: int) -> Stmt:
        """The last unit, which the data fill only partially."""
        copy, allocation = allocate("part", [self.unit], "float32", "local")
        zero = tirx.const(0.0, "float32")
        copies = [
            store(copy, load(self.data, *at, unit * self.unit + each) if each < count else zero, each)
            for each in range(self.unit)
        ]
        first = index(unit * self.unit)
        code = self._unit(at, index(unit), lambda position: load(copy, lanes_of(position - first, self.lanes)))
        return sequence([allocation, *copies, code])

    def _empty(self, at: list[Expr], unit: Expr) -> Stmt:
        zero = tirx.const(0, "int32")
        return sequence([store(self.result, zero, *at, unit, slot) for slot in range(HEADER + self.unit // WORD_BYTES)])

    def _unit(self, at: list[Expr], unit: Index, vector: Expr) -> Stmt:
        """Quantize a unit: its absolute maximum, its bytes, and their sum."""
        lanes, unit, words = self.lanes, expression(unit), self.lanes // WORD_BYTES

        def put(start: int, whole: Expr) -> tuple[Stmt, Expr]:
            narrow = tirx.Cast(f"int8x{lanes}", whole)
            bytes_ = tirx.reinterpret(f"int32x{words}" if words > 1 else "int32", narrow)
            stored = store(self.result, bytes_, *at, unit, lanes_of(HEADER + start // WORD_BYTES, words))
            # As the bytes are read back: values out of the int32 range became other numbers.
            return stored, tirx.Cast(f"int32x{lanes}" if lanes > 1 else "int32", narrow)

        vectors = [vector(unit * self.unit + start) for start in range(0, self.unit, lanes)]
        code, peak, total = quantized(vectors, lanes, put)
        amount, bound_amount = bind("total", reduced("add", total, lanes), "int32", 1)
        scale, bound_scale = bind("scale", peak * tirx.const(1 / _MAX_INT8, "float32"), "float32", 1)
        scaled = scale * tirx.Cast("float32", amount)
        return sequence(
            code,
            bound_amount,
            bound_scale,
            store(self.result, tirx.reinterpret("int32", scale), *at, unit, SCALE),
            store(self.result, amount, *at, unit, SUM),
            store(self.result, tirx.reinterpret("int32", scaled), *at, unit, SCALED_SUM),
        )
