"""Attention of a few queries over a cache, at the speed at which the rows are read.

A task takes a head of keys with all query heads that share it, and a part of the rows where there are fewer heads than
would keep all cores busy. It goes through its rows by blocks that stay in the first cache. Parts are joined at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schedules.attention.cache.byte_scores import RoundedQueries
from schedules.attention.cache.description import KEY, LOWEST, SEQUENCES, SINKS, VALUE, CacheOperands
from schedules.attention.cache.plain import quotient
from schedules.attention.cache.softmax_block import RunningSoftmax
from schedules.attention.pairs import in_vectors
from schedules.codegen.nest import (
    CHUNKS_PER_CORE,
    Extent,
    allocate,
    allocate_tile,
    expression,
    load,
    parallel_grid,
    prefetch,
    repeat,
    sequence,
    store,
    vectorized,
    when,
)
from schedules.codegen.parallel import pays_off
from schedules.instructions.prefetch import prefetch_statement
from schedules.instructions.row_sums import row_sums
from schedules.instructions.vector_math import EXP_OF_NEGATIVE, call
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.ir.widening import number
from schedules.machine import Machine, dtype_bits

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Index

_LINE = 64  # bytes of a cache line
_MOST_KEYS = 64  # of a block: its rows, those asked for and what is computed of them share the first cache
# Multiply-adds of scores, in vectors, that are worth starting threads: some 10 microseconds of reading rows.
_LEAST_WORK = 12288
_MINUS_INFINITY = tirx.FloatImm("float32", float("-inf"))


@dataclass(frozen=True)
class Rows:
    """The rows [first, end) of a head of keys of a sample, entry `slot` of the cache, that a part of the query's row
    sums; the query sees [begin, end_seen) of them."""

    sample: Expr
    slot: Expr
    key_head: Expr
    query: Expr
    first: Expr
    end: Expr
    begin: Expr
    end_seen: Expr


@dataclass(frozen=True)
class _Block:
    """Keys [first, first + count) of some rows, and what is kept of them.

    What the core reads next begins at row `next_first` of `next_head`: the rest of the head, or the next head.
    """

    rows: Rows
    first: Expr
    count: Expr
    next_head: Expr
    next_first: Expr
    softmax: RunningSoftmax
    rounded: RoundedQueries | None


class DecodeWriter:
    """Writes the kernel for at most `most` queries."""

    def __init__(self, operands: CacheOperands, machine: Machine, most: int) -> None:
        self.operands, self.machine, self.most = operands, machine, most
        self.lanes = machine.lanes("float32")
        self.width = -(-operands.size // self.lanes) * self.lanes
        self.block = _block_keys(self.width, machine)
        self.splits = _splits(operands, machine)
        self.rounds = RoundedQueries.serve(operands, machine)
        batch, most = (operands.batch, most) if SEQUENCES not in operands else (1, operands.queries)
        shape = [batch, operands.key_heads, self.splits, most, operands.group, operands.value_size + 2]
        # Of each part: sums, then the largest score and the sum of powers.
        self.found = tirx.decl_buffer([expression(each) for each in shape], "float32", "parts", layout=None)

    def code(self) -> Stmt:
        """All parts, then their sums joined."""
        own = self.operands
        extents = [Extent("sample", own.batch), Extent("key_head", own.key_heads), Extent("split", self.splits)]
        rows, counted = self._all_rows()
        threads = pays_off(rows * own.heads * own.size, self.machine, _LEAST_WORK * self.lanes)
        parts = parallel_grid(extents, lambda at: self._parts(*at), self.machine, parallel=threads)

        def joined(sample: Expr) -> Stmt:
            queries = own.few_of(sample, few=True)
            heads = expression(own.heads)
            return repeat("query", queries, lambda q: repeat("head", heads, lambda h: self._joined(sample, q, h)))

        return sequence(counted, tirx.AllocBuffer(self.found), parts, repeat("sample", expression(own.batch), joined))

    def _all_rows(self) -> tuple[Expr, list[Stmt]]:
        """Rows that all queries read together, about, and what has to be computed first."""
        own = self.operands
        if SEQUENCES not in own:
            return expression(own.batch) * own.queries * own.rows_of(expression(0)), []
        total, made = allocate("all_rows", [1], "int64", "local")

        def add(sample: Expr) -> Stmt:
            return store(total, load(total, 0) + own.few_of(sample, few=True) * own.rows_of(sample), 0)

        return load(total, 0), [made, store(total, expression(0), 0), repeat("sample", own.batch, add)]

    def _parts(self, sample: Expr, key_head: Expr, split: Expr) -> Stmt:
        """One part of each query."""
        own = self.operands
        position, rows, slot = (tirx.Var(name, "int64") for name in ("position", "rows", "slot"))

        def query(i: Expr) -> Stmt:
            seen = own.range_of(position, rows, i)
            begin, count = tirx.Var("begin", "int64"), tirx.Var("count", "int64")
            # Whole vectors of keys in each part but the last.
            share = tirx.floordiv(count + (self.splits * self.lanes - 1), expression(self.splits * self.lanes))
            first, end = tirx.Var("first", "int64"), tirx.Var("end", "int64")
            return sequence(
                tirx.Bind(begin, seen[0]),
                tirx.Bind(count, tirx.max(seen[1] - begin, expression(0))),
                tirx.Bind(first, begin + tirx.min(split * share * self.lanes, count)),
                tirx.Bind(end, begin + tirx.min((split + 1) * share * self.lanes, count)),
                self._part(Rows(sample, slot, key_head, i, first, end, begin, begin + count), split),
            )

        return sequence(
            tirx.Bind(position, own.first_position(sample)),
            tirx.Bind(rows, own.rows_of(sample)),
            tirx.Bind(slot, own.slot_of(sample)),
            repeat("query", own.few_of(sample, few=True), query),
        )

    def _part(self, rows: Rows, split: Expr) -> Stmt:
        own = self.operands
        softmax, made = RunningSoftmax.of(own.group, self.block, own.value_size, self.machine, further=self.width)
        query, zero = softmax.further, tirx.FloatImm("float32", 0.0)
        rounded, rounded_made = RoundedQueries.of(own, self.machine) if self.rounds else (None, [])

        def element(g: Expr, d: Expr) -> Expr:
            return own.query(rows.sample, rows.query, rows.key_head * own.group + g, d)

        def filled(g: Expr) -> Stmt:
            rest = self.width - own.size
            return sequence(
                in_vectors("d", own.size, self.lanes, lambda d: query.store(element(g, d), g, d)),
                repeat("d", rest, lambda d: query.store(zero, g, d + own.size)) if rest else None,
            )

        def kept(g: Expr) -> Stmt:
            sample, query = own.place(rows.sample, rows.query)
            at = [sample, rows.key_head, split, query, g]
            return sequence(
                in_vectors(
                    "d", own.value_size, self.lanes, lambda d: store(self.found, softmax.sums.load(g, d), *at, d)
                ),
                store(self.found, softmax.largest.load(g), *at, own.value_size),
                store(self.found, softmax.totals.load(g), *at, own.value_size + 1),
            )

        def ahead(j: Expr) -> Stmt:
            return sequence(*(self._asked(each, rows, rows.key_head, rows.first + j) for each in (KEY, VALUE)))

        keys, keys_made = allocate("own_keys", [1 if self.rounds else self.block, self.width], "float32")
        blocks = tirx.floordiv(rows.end - rows.first + (self.block - 1), expression(self.block))
        return sequence(
            made,
            keys_made,
            repeat("ahead", tirx.min(rows.end - rows.first, expression(self.block)), ahead),
            None if self.rounds else self._cleared(keys),
            softmax.start(),
            repeat("g", own.group, filled),
            rounded_made,
            None if rounded is None else rounded.fill(query),
            repeat("block", blocks, lambda b: self._block(rows, rows.first + b * self.block, keys, softmax, rounded)),
            repeat("g", own.group, kept),
        )

    def _block(
        self, rows: Rows, start: Expr, keys: Expr, softmax: RunningSoftmax, rounded: RoundedQueries | None
    ) -> Stmt:
        """The keys from `start` on, at most `self.block`."""
        own, lanes = self.operands, self.lanes
        names = ("block_first", "block_count", "block_runs", "next_head", "next_first")
        first, count, whole, next_head, next_first = (tirx.Var(name, "int64") for name in names)
        block = _Block(rows, first, count, next_head, next_first, softmax, rounded)

        def weight(g: Index, k: Expr) -> Expr:
            return softmax.scores.load(g, k)

        def value(k: Expr, d: Expr) -> Expr:
            return own.unscaled(VALUE, rows.slot, rows.key_head, first + k, d)

        def value_scale(k: Expr) -> Expr:
            return own.scale(VALUE, rows.slot, rows.key_head, first + k)

        def copied(at: Expr, number: Expr | int) -> Stmt:
            return repeat("j", number, lambda j: self._copied(block, at + j, keys))

        direct = self.rounds or (own.is_exact(KEY) and self.width == own.size)
        runs = tirx.floordiv(count + (lanes - 1), expression(lanes))
        left = count > whole * lanes

        def run(g: Expr, at: Expr) -> Stmt:
            return self._scores(block, g, at, None if direct else keys, tail=False)

        copies = copied(expression(0), runs * lanes)
        if direct:
            copies = None if self.rounds else when(left, copied(whole * lanes, lanes))

        def ahead(k: Expr) -> list[Stmt]:
            return self._asked_next(VALUE, block, k)

        def head(g: Expr) -> Stmt:
            return sequence(
                repeat("run", whole, lambda r: run(g, r * lanes)),
                when(left, self._scores(block, g, whole * lanes, keys, tail=True)),
            )

        return sequence(
            tirx.Bind(first, start),
            tirx.Bind(count, tirx.min(rows.end - first, expression(self.block))),
            tirx.Bind(whole, tirx.floordiv(count, expression(lanes))),
            self._next_bound(block),
            copies,
            repeat("g", own.group, head),
            softmax.powers(runs),
            softmax.scaled(count, value_scale) if own.has_scales(VALUE) else None,
            softmax.weighted(count, weight, value, ahead=ahead),
        )

    def _next_bound(self, block: _Block) -> list[Stmt]:
        """Say what the core reads after a block; where nothing follows, the last row again."""
        rows, last = block.rows, block.rows.end_seen - 1
        after = block.first + block.count
        goes_on, ends = after < rows.end_seen, rows.key_head + 1 >= expression(self.operands.key_heads)
        stays = tirx.Or(goes_on, ends)
        return [
            tirx.Bind(block.next_head, tirx.Select(stays, rows.key_head, rows.key_head + 1)),
            tirx.Bind(block.next_first, tirx.Select(goes_on, after, tirx.Select(ends, last, rows.begin))),
        ]

    def _asked_next(self, role: str, block: _Block, k: Expr) -> list[Stmt]:
        """Ask for row k of what is read after a block."""
        row = tirx.min(block.next_first + k, block.rows.end_seen - 1)
        return self._asked(role, block.rows, block.next_head, row)

    def _asked(self, role: str, rows: Rows, key_head: Expr, row: Expr) -> list[Stmt]:
        """Ask for a row of keys or values. For float32, which is bound by memory alone, that gained nothing."""
        own, at = self.operands, (rows.slot, key_head, row)
        if own.is_exact(role):
            return []
        step = 8 * _LINE // dtype_bits(str(own.buffers[role].dtype))
        size = own.size if role == KEY else own.value_size
        code = [prefetch(own.buffers[role], *at, d) for d in range(0, size, step)]
        return [*code, prefetch_statement(own.scale(role, *at))] if own.has_scales(role) else code

    def _asked_keys(self, block: _Block, g: Expr, at: Expr) -> list[Stmt]:
        """The share of head `g` of the vector of keys that a run asks for, so that requests are spread evenly."""
        share = -(-self.lanes // self.operands.group)
        return [
            each
            for t in range(share)
            for each in self._asked_next(KEY, block, at + tirx.min(g * share + t, expression(self.lanes - 1)))
        ]

    def _copied(self, block: _Block, j: Expr, keys: Expr) -> Stmt:
        """Key j of a block in float32; behind the last one, that again."""
        own, rows = self.operands, block.rows
        row = tirx.min(block.first + j, rows.end - 1)
        return in_vectors(
            "d", own.size, self.lanes, lambda d: store(keys, own.row(KEY, rows.slot, rows.key_head, row, d), j, d)
        )

    def _cleared(self, keys: Expr) -> Stmt | None:
        """Zeros behind the rows of copied keys."""
        rest, size = self.width - self.operands.size, self.operands.size
        zero = tirx.FloatImm("float32", 0.0)
        if not rest:
            return None
        return repeat("j", self.block, lambda j: repeat("d", rest, lambda d: store(keys, zero, j, d + size)))

    def _scores(self, block: _Block, g: Expr, at: Expr, keys: Expr | None, *, tail: bool) -> Stmt:
        """Scores of one query head and the vector of keys of a block from `at` on, which lie in `keys` or in the cache;
        in the tail, -inf behind the last one."""
        own, lanes, rows = self.operands, self.lanes, block.rows
        query, scores = block.softmax.further, block.softmax.scores
        rounded = block.rounded
        parts, parts_made = allocate_tile("parts", [lanes, lanes], "float32" if rounded is None else "int32")
        found, found_made = allocate("found", [lanes], "float32", "local")
        head, zero = rows.key_head * own.group + g, tirx.FloatImm("float32", 0.0)

        def key(j: int, d: Expr) -> Expr:
            if keys is not None:
                return load(keys, at + j, d)
            return own.row(KEY, rows.slot, rows.key_head, block.first + at + j, d)

        def each(make: Callable[[int, Expr], Stmt]) -> list[Stmt]:
            return [vectorized("lane", lanes, lambda lane, j=j: make(j, lane)) for j in range(lanes)]  # type: ignore[misc]

        def vector(v: Index) -> Stmt:
            def add(j: int, lane: Expr) -> Stmt:
                d = v * lanes + lane
                return store(parts, load(parts, j, lane) + query.load(g, d) * key(j, d), j, lane)

            return sequence(each(add))

        def place(j: Expr | int) -> tuple[Expr, Expr, Expr]:
            row = block.first + at + j
            return rows.slot, rows.key_head, tirx.min(row, rows.end - 1) if tail else row

        def adjusted(j: Expr) -> Expr:
            raw = load(found, j) if rounded is None else rounded.score(load(found, j), g, place(j))
            return own.score(raw, rows.sample, head, rows.query, place(j)[2])

        def end(j: Expr) -> Stmt:
            value = adjusted(j)
            return scores.store(tirx.Select(at + j < block.count, value, _MINUS_INFINITY) if tail else value, g, at + j)

        if rounded is None:
            sums = [*each(lambda j, lane: store(parts, zero, j, lane)), repeat("vector", self.width // lanes, vector)]
        else:
            sums = rounded.sums(parts, g, place)

        def part(j: int, lane: Expr) -> Expr:
            return number(load(parts, j, lane), "float32")

        return sequence(
            self._asked_keys(block, g, at),
            parts_made,
            found_made,
            sums,
            vectorized("lane", lanes, lambda lane: store(found, row_sums([part(j, lane) for j in range(lanes)]), lane)),
            repeat("j", lanes, end) if tail else vectorized("lane", lanes, end),
        )

    def _joined(self, sample: Expr, query: Expr, head: Expr) -> Stmt:
        """The result of a query head, of its parts."""
        own = self.operands
        key_head = tirx.floordiv(head, expression(own.group))
        g = tirx.floormod(head, expression(own.group))
        lead, place = own.place(sample, query)
        at = [[lead, key_head, expression(split), place, g] for split in range(self.splits)]
        largest, largest_made = allocate("all_largest", [1], "float32", "local")
        total, total_made = allocate("all_total", [1], "float32", "local")
        factors, factors_made = allocate("factors", [self.splits], "float32", "local")
        most = tirx.max(own.sink(head), LOWEST) if SINKS in own else LOWEST
        for each in at:
            most = tirx.max(most, load(self.found, *each, own.value_size))
        start = (
            call(EXP_OF_NEGATIVE, own.sink(head) - load(largest, 0)) if SINKS in own else tirx.FloatImm("float32", 0.0)
        )

        def part(split: int) -> Stmt:
            factor = load(factors, split)
            return sequence(
                store(
                    factors,
                    call(EXP_OF_NEGATIVE, load(self.found, *at[split], own.value_size) - load(largest, 0)),
                    split,
                ),
                store(total, load(total, 0) + factor * load(self.found, *at[split], own.value_size + 1), 0),
            )

        def element(d: Expr) -> Stmt:
            value = load(self.found, *at[0], d) * load(factors, 0)
            for split in range(1, self.splits):
                value = value + load(self.found, *at[split], d) * load(factors, split)
            return own.stored(quotient(value, load(total, 0)), sample, query, head, d)

        return sequence(
            largest_made,
            total_made,
            factors_made,
            store(largest, most, 0),
            store(total, start, 0),
            [part(split) for split in range(self.splits)],
            in_vectors("d", own.value_size, self.lanes, element),
        )


def _block_keys(width: int, machine: Machine) -> int:
    """Keys of a block that stay in the first cache while they are multiplied."""
    lanes, keys = machine.lanes("float32"), _MOST_KEYS
    while keys > lanes and 4 * keys * width > machine.l1_bytes * 2 // 3:
        keys //= 2
    return max(keys, lanes)


def _splits(operands: CacheOperands, machine: Machine) -> int:
    """Parts of the rows that make all cores equally busy."""
    tasks = operands.key_heads * (operands.batch if isinstance(operands.batch, int) else 1)
    if tasks >= CHUNKS_PER_CORE * machine.cores:
        return 1
    return machine.cores // math.gcd(tasks, machine.cores)
