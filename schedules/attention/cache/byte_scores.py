"""Scores of queries over int8 keys by dot products of bytes: the queries are rounded to 8 bits with a scale a head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schedules.attention.cache.description import KEY, CacheOperands
from schedules.attention.cache.softmax_block import Columns
from schedules.codegen.nest import allocate, bind, broadcast, lanes_of, load, repeat, sequence, splat, store
from schedules.instructions.lane_reductions import reduced
from schedules.instructions.products.operation import DOT_S8S8, DOT_U8S8
from schedules.instructions.products.table import multiplies_bytes, sums_signed
from schedules.instructions.rounding import rounded_int32
from schedules.ir.stages import dtype_of
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.machine import Machine

_QUAD = 4  # bytes of a word
_MOST_SIZE = 512  # of a head: sums of products are integers that float32 holds
_MAGNITUDE, _MOST = 0x7FFFFFFF, 127.0
_FLIP = 0x80808080 - (1 << 32)  # makes four signed bytes unsigned, 128 more than they were
_SCALE, _OFFSET = 0, 1


@dataclass(frozen=True, eq=False)
class RoundedQueries:
    """Queries of the heads that share a head of keys: bytes (group, size), and the scale and offset of each.

    Where bytes are multiplied as unsigned by signed ones, keys are 128 more than they are; `offset` takes that away.
    """

    operands: CacheOperands
    machine: Machine
    bytes: Buffer
    numbers: Buffer

    @staticmethod
    def serve(operands: CacheOperands, machine: Machine) -> bool:
        """True if keys are bytes that the machine multiplies, and queries may be rounded."""
        size, step = operands.size, _QUAD * machine.lanes("float32")
        whole = size % step == 0 and size <= _MOST_SIZE
        return (
            whole
            and operands.description.rounds
            and dtype_of(operands.buffers[KEY]) == "int8"
            and multiplies_bytes(machine)
        )

    @classmethod
    def of(cls, operands: CacheOperands, machine: Machine) -> tuple[RoundedQueries, list[Stmt]]:
        """With the statements that allocate them."""
        bytes_, bytes_made = allocate("query_bytes", [operands.group, operands.size], "int8")
        numbers, numbers_made = allocate("query_numbers", [operands.group, 2], "float32")
        return cls(operands, machine, bytes_, numbers), [bytes_made, numbers_made]

    @property
    def lanes(self) -> int:
        """Words of a vector."""
        return self.machine.lanes("float32")

    @property
    def _signed(self) -> bool:
        return sums_signed(self.machine)

    def fill(self, query: Columns) -> Stmt:
        """Round float32 queries."""
        lanes = self.lanes
        kind = f"int32x{lanes}"

        def head(g: Index) -> Stmt:
            code: list[Stmt] = []

            def named(name: str, value: Expr, dtype: str, count: int = 1) -> Expr:
                variable, statement = bind(name, value, dtype, count)
                code.append(statement)
                return variable

            starts = range(0, self.operands.size, lanes)
            vectors = [named("x", query.load(g, lanes_of(start, lanes)), "float32", lanes) for start in starts]
            most = None
            for each in vectors:
                magnitude = tirx.reinterpret(kind, each) & splat(_MAGNITUDE, "int32", lanes)
                most = magnitude if most is None else tirx.max(most, magnitude)
            peak = named("peak", tirx.reinterpret("float32", reduced("smax", most, lanes)), "float32")
            zero = tirx.const(0.0, "float32")
            inverse = named("inverse", tirx.Select(peak > zero, tirx.const(_MOST, "float32") / peak, zero), "float32")
            total = None
            for start, each in zip(starts, vectors, strict=True):
                whole = named("whole", rounded_int32(each * broadcast(inverse, lanes)), "int32", lanes)
                code.append(store(self.bytes, tirx.Cast(f"int8x{lanes}", whole), g, lanes_of(start, lanes)))
                total = whole if total is None else total + whole
            shift = 0 if self._signed else -128
            offset = tirx.Cast("float32", reduced("add", total, lanes)) * tirx.const(float(shift), "float32")
            code.append(store(self.numbers, peak * tirx.const(1 / _MOST, "float32"), g, _SCALE))
            code.append(store(self.numbers, offset, g, _OFFSET))
            return sequence(code)

        return repeat("g", self.operands.group, head)

    def sums(self, parts: list[Expr], g: Expr, key: Callable[[int], tuple[Expr, Expr, Expr]]) -> list[Stmt]:
        """Sums of products of head `g` and as many keys as there are lanes: row j of `parts`, int32, for the key at the
        place `key(j)` (sample, key head, row) of the cache."""
        lanes, code = self.lanes, list[Stmt]()
        for first in range(0, self.operands.size, _QUAD * lanes):
            data = self._words(self.bytes, g, first)
            for j in range(lanes):
                words = self._words(self.operands.buffers[KEY], *key(j), first)
                total = load(parts, j, lanes_of(0, lanes)) if first else splat(0, "int32", lanes)
                if self._signed:
                    value = DOT_S8S8(total, data, words)
                else:
                    value = DOT_U8S8(total, words ^ splat(_FLIP, "int32", lanes), data)
                code.append(store(parts, value, j, lanes_of(0, lanes)))
        return code

    def _words(self, buffer: Buffer, *at: Index) -> Expr:
        *lead, first = at
        return tirx.reinterpret(f"int32x{self.lanes}", load(buffer, *lead, lanes_of(first, _QUAD * self.lanes)))

    def score(self, total: Expr, g: Expr, row: tuple[Expr, Expr, Expr]) -> Expr:
        """The product of a query and the key in a row, out of the sum of products of their bytes, in float32."""
        scale = load(self.numbers, g, _SCALE) * self.operands.scale(KEY, *row)
        return (total + load(self.numbers, g, _OFFSET)) * scale
