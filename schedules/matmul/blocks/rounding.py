"""Dynamic int8 quantization of matmul inputs, with a scale for each unit of neighbours along the depth.

A unit is words of an int32 tensor (..., units, 3 + unit / 4): the scale (float32 bits), the sum of the bytes, the scale
times that sum (float32 bits), and the bytes, four a word. The scale is the greatest magnitude over 127. A NaN in the
data, or an infinity, becomes the scale's.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from schedules.ir.expression import index
from schedules.ir.stages import Kernel, Stage, shape_of
from schedules.ir.tir import Expr, Index, PrimFunc, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.rule import ScheduleRule, Workload
from schedules.stages.fused_kernel import FusedKernel, anchor_stages

BLOCK_ROUND = "block-round"
HEADER, SCALE, SUM, SCALED_SUM = 3, 0, 1, 2
QUAD = 4
_MOST = 127.0
_MAGNITUDE = 0x7FFFFFFF


def _number(value: int) -> Expr:
    return tirx.const(value, "int64")


def block_round(data: Tensor, units: int, unit: int) -> Tensor:
    """Quantize float32 data (..., depth) to int32 (..., units, 3 + unit / 4); zero-padded beyond the depth."""
    depth, lead = data.shape[-1], list(data.shape[:-1])
    attrs = {KIND: BLOCK_ROUND, SPEC: str(unit)}
    whole = isinstance(depth, tirx.IntImm) and int(depth.value) == units * unit
    zero = tirx.const(0.0, "float32")

    def element(*at: Expr) -> Expr:
        """The element at index at[-1] of unit at[-2]."""
        place = at[-2] * unit + at[-1]
        return data(*at[:-2], place) if whole else tirx.if_then_else(place < depth, data(*at[:-2], place), zero)

    k = te.reduce_axis((_number(0), _number(unit)), name="k")
    peak = te.compute(
        [*lead, _number(units)],
        # Of magnitudes as integers: NaN is the greatest.
        lambda *at: te.max(tirx.reinterpret("int32", element(*at, k)) & tirx.const(_MAGNITUDE, "int32"), axis=k),
        name="peak",
        attrs=attrs,
    )

    def rounded(at: tuple[Expr, ...], place: Expr) -> Expr:
        most = tirx.reinterpret("float32", peak(*at))
        inverse = tirx.if_then_else(most > zero, tirx.const(_MOST, "float32") / most, zero)
        return tirx.Cast("int8", tirx.Cast("int32", tirx.nearbyint(element(*at, place) * inverse)))

    place = te.reduce_axis((_number(0), _number(unit)), name="place")
    total = te.compute(
        [*lead, _number(units)],
        lambda *at: te.sum(tirx.Cast("int32", rounded(at, place)), axis=place),
        name="total",
        attrs=attrs,
    )

    def word(*at: Expr) -> Expr:
        of_unit, slot = at[:-1], at[-1]
        scale = tirx.reinterpret("float32", peak(*of_unit)) * tirx.const(1 / _MOST, "float32")
        first = tirx.max(slot - HEADER, _number(0)) * QUAD
        value = tirx.const(0, "int32")
        for byte in range(QUAD):
            one = tirx.Cast("int32", rounded(of_unit, first + byte)) & tirx.const(0xFF, "int32")
            value = value | one << tirx.const(8 * byte, "int32")
        scaled = tirx.reinterpret("int32", scale * tirx.Cast("float32", total(*of_unit)))
        value = tirx.if_then_else(slot == SCALED_SUM, scaled, value)
        value = tirx.if_then_else(slot == SUM, total(*of_unit), value)
        return tirx.if_then_else(slot == SCALE, tirx.reinterpret("int32", scale), value)

    return te.compute([*lead, _number(units), _number(HEADER + unit // QUAD)], word, name="rounded", attrs=attrs)


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
        stages = _stages(kernel)
        if stages is None or machine.architecture not in ("x86_64", "aarch64"):
            return None
        *lead, depth = shape_of(_data(stages))
        if not isinstance(depth, int):
            return None
        rows = 1
        for size in lead:
            rows = rows * size if isinstance(size, int) else 0
        return RoundWorkload(rows, depth, int(stages[0].annotations[SPEC]))

    def apply(self, kernel: Kernel, workload: RoundWorkload, config: Config, machine: Machine) -> PrimFunc:
        stages = _stages(kernel)
        if stages is None:
            raise NotScheduledError("the stages of the rounding are missing")
        fused = FusedKernel(kernel, stages)
        writer = _Writer(_data(stages), fused.result, workload.unit, machine)
        return fused.function(writer.statement(), machine)


def _stages(kernel: Kernel) -> tuple[Stage, ...] | None:
    stages = anchor_stages(kernel, BLOCK_ROUND)
    return stages if len(stages) == 3 and kernel.is_plain else None


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
        *lead, depth = shape_of(self.data)
        units = shape_of(self.result)[-2]
        whole, rest = divmod(depth, self.unit)
        amount: Index = depth * _WEIGHT
        for size in lead:
            amount = amount * size

        def row(at: list[Expr]) -> Stmt:
            def direct(unit: Expr) -> Stmt:
                return self._unit(at, unit, lambda first: load(self.data, *at, lanes_of(first, self.lanes)))

            parts = [repeat("unit", whole, direct)] if whole else []
            parts += [self._part(at, whole, rest)] if rest else []
            empty = whole + (rest > 0)
            if units > empty:
                parts.append(repeat("unit", units - empty, lambda unit: self._empty(at, unit + empty)))
            return sequence(parts)

        extents = [Extent(f"row{at}", size) for at, size in enumerate(lead)]
        return parallel_grid(extents, row, self.machine, parallel=pays_off(amount, self.machine))

    def _part(self, at: list[Expr], unit: int, count: int) -> Stmt:
        """The last unit, which the data fill partially."""
        copy, allocation = allocate("part", [self.unit], "float32", "local")
        zero = tirx.const(0.0, "float32")
        copies = [
            store(copy, load(self.data, *at, unit * self.unit + each) if each < count else zero, each)
            for each in range(self.unit)
        ]
        first = index(unit * self.unit)
        code = self._unit(at, index(unit), lambda place: load(copy, lanes_of(place - first, self.lanes)))
        return sequence([allocation, *copies, code])

    def _empty(self, at: list[Expr], unit: Expr) -> Stmt:
        zero = tirx.const(0, "int32")
        return sequence([store(self.result, zero, *at, unit, slot) for slot in range(HEADER + self.unit // QUAD)])

    def _unit(self, at: list[Expr], unit: Index, vector: Expr) -> Stmt:
        """Quantize a unit: its absolute maximum, its bytes, and their sum."""
        lanes, unit = self.lanes, unit if not isinstance(unit, int) else index(unit)
        code: list[Stmt] = []

        def named(name: str, value: Expr, dtype: str, count: int = 1) -> Expr:
            variable, statement = bind(name, value, dtype, count)
            code.append(statement)
            return variable

        starts = range(0, self.unit, lanes)
        vectors = [named("x", vector(unit * self.unit + start), "float32", lanes) for start in starts]
        magnitude = splat(_MAGNITUDE, "int32", lanes)
        kind = f"int32x{lanes}" if lanes > 1 else "int32"
        most = None
        for each in vectors:
            bits = tirx.reinterpret(kind, each) & magnitude
            most = bits if most is None else tirx.max(most, bits)
        assert most is not None
        peak = named("peak", tirx.reinterpret("float32", reduced("smax", most, lanes)), "float32")
        zero = tirx.const(0.0, "float32")
        inverse = named("inverse", tirx.Select(peak > zero, tirx.const(_MOST, "float32") / peak, zero), "float32")
        total = None
        for start, each in zip(starts, vectors, strict=True):
            rounded = named("rounded", rounded_int32(each * broadcast(inverse, lanes)), "int32", lanes)
            narrow = tirx.Cast(f"int8x{lanes}", rounded)
            words = lanes // QUAD
            bytes_ = tirx.reinterpret(f"int32x{words}" if words > 1 else "int32", narrow)
            code.append(store(self.result, bytes_, *at, unit, lanes_of(HEADER + start // QUAD, words)))
            # As the bytes are read: what no int32 holds became another number.
            wide = tirx.Cast(kind, narrow)
            total = wide if total is None else total + wide
        assert total is not None
        amount = named("total", reduced("add", total, lanes), "int32")
        scale = named("scale", peak * tirx.const(1 / _MOST, "float32"), "float32")
        scaled = scale * tirx.Cast("float32", amount)
        code += [
            store(self.result, tirx.reinterpret("int32", scale), *at, unit, SCALE),
            store(self.result, amount, *at, unit, SUM),
            store(self.result, tirx.reinterpret("int32", scaled), *at, unit, SCALED_SUM),
        ]
        return sequence(code)
