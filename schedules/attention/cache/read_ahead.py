"""Prefetches of the rows of a cache that a core reads next: of the same head, the next head, or the next sample."""

from __future__ import annotations

from dataclasses import dataclass

from schedules.attention.cache.description import KEY, CacheOperands
from schedules.codegen.nest import expression, name_opaque, prefetch
from schedules.instructions.prefetch import prefetch_statement
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import dtype_bits

_LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class Start:
    """Start of reading: rows [first, last] of the first head of keys in entry `slot` of the cache."""

    slot: Expr
    first: Expr
    last: Expr


@dataclass(frozen=True)
class Rows:
    """The rows [first, end) of a head of keys of a sample, entry `slot` of the cache, that a part of the query's row
    sums; the query sees [begin, end_seen) of them. `following` is what the core reads after all heads."""

    sample: Expr
    slot: Expr
    key_head: Expr
    query: Expr
    first: Expr
    end: Expr
    begin: Expr
    end_seen: Expr
    following: Start


def start_of(operands: CacheOperands, sample: Expr, bound: list[Stmt]) -> Start:
    """Start of the rows of the sample behind `sample`, the last sample's own last one; appends what it binds."""
    zero = expression(0)
    following = name_opaque("next_sample", tirx.min(sample + 1, expression(operands.batch) - 1), bound)
    seen = operands.range_of(operands.first_position(following), operands.rows_of(following), zero)
    last = name_opaque("next_last", tirx.max(seen[1] - 1, zero), bound)
    first = name_opaque("next_begin", tirx.min(tirx.Select(following > sample, seen[0], last), last), bound)
    return Start(name_opaque("next_slot", operands.slot_of(following), bound), first, last)


@dataclass(frozen=True)
class ReadAhead:
    """Prefetch of a core after a block of rows: rows [first, last] of a head of keys."""

    operands: CacheOperands
    slot: Expr
    key_head: Expr
    first: Expr
    last: Expr

    @classmethod
    def after(cls, operands: CacheOperands, rows: Rows, row: Expr) -> tuple[ReadAhead, list[Stmt]]:
        """After the rows before `row`, with the statements that bind it."""
        bound: list[Stmt] = []
        goes_on, ends = row < rows.end_seen, rows.key_head + 1 >= expression(operands.key_heads)
        leaves = tirx.And(tirx.Not(goes_on), ends)
        head = tirx.Select(goes_on, rows.key_head, tirx.Select(ends, expression(0), rows.key_head + 1))
        first = tirx.Select(goes_on, row, tirx.Select(ends, rows.following.first, rows.begin))
        slot = tirx.Select(leaves, rows.following.slot, rows.slot)
        last = tirx.Select(leaves, rows.following.last, rows.end_seen - 1)
        values = {"slot": slot, "key_head": head, "first": first, "last": last}
        named = (name_opaque(f"ahead_{name}", value, bound) for name, value in values.items())
        return cls(operands, *named), bound

    def ask(self, role: str, k: Expr) -> list[Stmt]:
        """Ask for row k of keys or values from the first one on."""
        return asked(self.operands, role, (self.slot, self.key_head, tirx.min(self.first + k, self.last)))

    def ask_keys(self, g: Expr, at: Expr, lanes: int) -> list[Stmt]:
        """The share of query head `g` of the `lanes` keys from `at` on, so that requests are spread evenly."""
        share = -(-lanes // self.operands.group)
        return [
            each for t in range(share) for each in self.ask(KEY, at + tirx.min(g * share + t, expression(lanes - 1)))
        ]


def asked(own: CacheOperands, role: str, at: tuple[Expr, Expr, Expr]) -> list[Stmt]:
    """Ask for a row (slot, key head, row). For float32, which is bound by memory alone, that gained nothing."""
    if own.is_exact(role):
        return []
    step = 8 * _LINE // dtype_bits(str(own.buffers[role].dtype))
    size = own.size if role == KEY else own.value_size
    code = [prefetch(own.buffers[role], *at, d) for d in range(0, size, step)]
    return [*code, prefetch_statement(own.scale(role, *at))] if own.has_scales(role) else code
