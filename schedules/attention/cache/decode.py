"""Attention of a few queries over a cache, at the speed at which the rows are read.

A task takes a head of keys with all query heads that share it, and a part of the rows where there are fewer heads than
would keep all cores busy. It goes through its rows by blocks that stay in the first cache. Where samples and heads
keep all cores busy, a task sums all parts of a query, so that it joins them too; else they are joined at the end.

A query's parts depend on how many rows it sees alone: its numbers are the same whatever shares the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schedules.attention.cache.byte_scores import RoundedQueries
from schedules.attention.cache.description import KEY, SEQUENCES, VALUE, CacheOperands
from schedules.attention.cache.partial_results import PartialResults
from schedules.attention.cache.read_ahead import ReadAhead, Rows, asked, start_of
from schedules.attention.cache.softmax_block import RunningSoftmax
from schedules.attention.pairs import in_vectors
from schedules.codegen.nest import (
    Extent,
    allocate,
    allocate_tile,
    expression,
    load,
    name_opaque,
    parallel_grid,
    repeat,
    sequence,
    store,
    vectorized,
    when,
)
from schedules.codegen.parallel import pays_off
from schedules.cuts import balancing_parts, keep_busy
from schedules.instructions.row_sums import row_sums
from schedules.ir.tir import Expr, Index, Stmt, tirx
from schedules.ir.widening import number
from schedules.machine import Machine

_MOST_KEYS = 64  # of a block: its rows, those asked for and what is computed of them share the first cache
_LEAST_BLOCKS = 2  # of a query whose rows are split
# Multiply-adds of scores, in vectors, that are worth starting threads: some 10 microseconds of reading rows.
_LEAST_WORK = 12288
_MINUS_INFINITY = tirx.FloatImm("float32", float("-inf"))


@dataclass(frozen=True)
class _Block:
    """Keys [first, first + count) of some rows, what is kept of them, and what is read next."""

    rows: Rows
    first: Expr
    count: Expr
    ahead: ReadAhead
    softmax: RunningSoftmax
    rounded: RoundedQueries | None


@dataclass(frozen=True)
class _Seen:
    """The rows [begin, begin + count) that a query sees, and in how many parts they are summed."""

    query: Expr
    begin: Expr
    count: Expr
    parts: Expr


class DecodeWriter:
    """Writes the kernel for at most `most` queries."""

    def __init__(self, operands: CacheOperands, machine: Machine, most: int) -> None:
        self.operands, self.machine, self.most = operands, machine, most
        self.lanes = machine.lanes("float32")
        self.width = -(-operands.size // self.lanes) * self.lanes
        self.block = _block_keys(self.width, machine)
        self.splits = _splits(operands, machine)
        self.rounds = RoundedQueries.serve(operands, machine)
        self.results = PartialResults(operands, machine, self.splits, most)

    def code(self) -> Stmt:
        """All parts, and the results of them."""
        own = self.operands
        rows, counted = self._all_rows()
        threads = pays_off(rows * own.heads * own.size, self.machine, _LEAST_WORK * self.lanes)
        tasks = name_opaque("tasks", self._tasks(), counted)
        extents = [Extent("sample", own.batch), Extent("key_head", own.key_heads), Extent("task", tasks)]
        parts = parallel_grid(extents, lambda at: self._parts(at, tasks), self.machine, parallel=threads)

        def joined(sample: Expr) -> Stmt:
            heads = expression(own.key_heads)

            def query(seen: _Seen) -> Stmt:
                whole = repeat("key_head", heads, lambda head: self.results.joined(sample, head, seen.query))
                return when(seen.parts > 1, whole)

            return self._queries(sample, query)

        end = when(tasks > 1, repeat("sample", expression(own.batch), joined)) if self.splits > 1 else None
        return sequence(self.results.allocated(), counted, parts, end)

    def _all_rows(self) -> tuple[Expr, list[Stmt]]:
        """Rows that all queries read together, about, and what has to be computed first."""
        own = self.operands
        if SEQUENCES not in own:
            return expression(own.batch) * own.queries * own.rows_of(expression(0)), []
        total, made = allocate("all_rows", [1], "int64", "local")

        def add(sample: Expr) -> Stmt:
            return store(total, load(total, 0) + own.few_of(sample, few=True) * own.rows_of(sample), 0)

        return load(total, 0), [made, store(total, expression(0), 0), repeat("sample", own.batch, add)]

    def _tasks(self) -> Index:
        """Number of tasks that share the parts of a query: one where samples and heads alone keep all cores busy."""
        if self.splits == 1:
            return 1
        heads = expression(self.operands.batch) * self.operands.key_heads
        return tirx.Select(keep_busy(heads, self.machine), expression(1), expression(self.splits))

    def _queries(self, sample: Expr, body: Callable[[_Seen], Stmt]) -> Stmt:
        """A body for each query of a sample, with the rows that it sees."""
        own = self.operands
        position, rows = (tirx.Var(name, "int64") for name in ("position", "rows"))

        def query(i: Expr) -> Stmt:
            begin_seen, end_seen = own.range_of(position, rows, i)
            bound: list[Stmt] = []
            begin = name_opaque("begin", begin_seen, bound)
            count = name_opaque("count", tirx.max(end_seen - begin, expression(0)), bound)
            is_long = count >= _LEAST_BLOCKS * self.block
            parts = tirx.Select(is_long, expression(self.splits), expression(1)) if self.splits > 1 else expression(1)
            seen = _Seen(i, begin, count, name_opaque("number_of_parts", parts, bound))
            return sequence(bound, body(seen))

        return sequence(
            tirx.Bind(position, own.first_position(sample)),
            tirx.Bind(rows, own.rows_of(sample)),
            repeat("query", own.few_of(sample, few=True), query),
        )

    def _parts(self, at: list[Expr], tasks: Index) -> Stmt:
        """The parts of each query that are computed by the task at (sample, key head, task of the head)."""
        sample, key_head, task = at
        own, bound = self.operands, list[Stmt]()
        slot = name_opaque("slot", own.slot_of(sample), bound)
        following = start_of(own, sample, bound)

        def query(seen: _Seen) -> Stmt:
            # Whole vectors of keys in each part but the last.
            share = tirx.floordiv(seen.count + (seen.parts * self.lanes - 1), seen.parts * self.lanes) * self.lanes

            def part(p: Expr) -> Stmt:
                own_bound: list[Stmt] = []
                split = name_opaque("split", expression(task + p * tasks), own_bound)
                first = name_opaque("first", seen.begin + tirx.min(split * share, seen.count), own_bound)
                end = name_opaque("end", seen.begin + tirx.min((split + 1) * share, seen.count), own_bound)
                last = seen.begin + seen.count
                rows = Rows(sample, slot, key_head, seen.query, first, end, seen.begin, last, following)
                return sequence(own_bound, when(split < seen.parts, self._part(rows, split, seen.parts)))

            if self.splits == 1:
                return part(expression(0))
            joins = tirx.And(tirx.EQ(expression(tasks), expression(1)), seen.parts > 1)
            own_parts = tirx.floordiv(expression(self.splits), expression(tasks))
            joined = when(joins, self.results.joined(sample, key_head, seen.query))
            return sequence(repeat("part", own_parts, part), joined)

        return sequence(bound, self._queries(sample, query))

    def _part(self, rows: Rows, split: Expr, parts: Expr) -> Stmt:
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

        def ahead(j: Expr) -> Stmt:
            return sequence(*(asked(own, each, (rows.slot, rows.key_head, rows.first + j)) for each in (KEY, VALUE)))

        place = rows.sample, rows.key_head, rows.query
        kept, stored = self.results.kept(softmax, *place, split), self.results.stored(softmax, *place)
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
            when(parts > 1, kept, stored) if self.splits > 1 else stored,
        )

    def _block(
        self, rows: Rows, start: Expr, keys: Expr, softmax: RunningSoftmax, rounded: RoundedQueries | None
    ) -> Stmt:
        """The keys from `start` on, at most `self.block`."""
        own, lanes = self.operands, self.lanes
        first, count, whole = (tirx.Var(name, "int64") for name in ("block_first", "block_count", "block_runs"))
        ahead, ahead_bound = ReadAhead.after(own, rows, first + count)
        block = _Block(rows, first, count, ahead, softmax, rounded)

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

        def head(g: Expr) -> Stmt:
            return sequence(
                repeat("run", whole, lambda r: run(g, r * lanes)),
                when(left, self._scores(block, g, whole * lanes, keys, tail=True)),
            )

        return sequence(
            tirx.Bind(first, start),
            tirx.Bind(count, tirx.min(rows.end - first, expression(self.block))),
            tirx.Bind(whole, tirx.floordiv(count, expression(lanes))),
            ahead_bound,
            copies,
            repeat("g", own.group, head),
            softmax.powers(runs),
            softmax.scaled(count, value_scale) if own.has_scales(VALUE) else None,
            softmax.weighted(count, weight, value, ahead=lambda k: ahead.ask(VALUE, k)),
        )

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
            block.ahead.ask_keys(g, at, lanes),
            parts_made,
            found_made,
            sums,
            vectorized("lane", lanes, lambda lane: store(found, row_sums([part(j, lane) for j in range(lanes)]), lane)),
            repeat("j", lanes, end) if tail else vectorized("lane", lanes, end),
        )


def _block_keys(width: int, machine: Machine) -> int:
    """Keys of a block that stay in the first cache while they are multiplied."""
    lanes, keys = machine.lanes("float32"), _MOST_KEYS
    while keys > lanes and 4 * keys * width > machine.l1_bytes * 2 // 3:
        keys //= 2
    return max(keys, lanes)


def _splits(operands: CacheOperands, machine: Machine) -> int:
    """Parts of the rows that make all cores equally busy."""
    return balancing_parts(operands.key_heads * (operands.batch if isinstance(operands.batch, int) else 1), machine)
