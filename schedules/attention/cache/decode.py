"""Attention of a few queries over a cache, bound by the speed of reading the rows.

A task computes one key head with all query heads that share it, and only part of its rows if there are too few heads
to keep all cores busy. It reads its rows in blocks that stay in the L1 cache. If samples and heads are enough to keep
all cores busy, a task sums all parts of a query and joins them itself; otherwise they are joined at the end.

The split of a query depends only on how many rows it sees: its result is the same whatever else is in the call.

Scores of queries over int8 keys use byte dot products: the queries are rounded to 8 bits with one scale per head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schedules.attention.cache.description import KEY, LOWEST, SEQUENCES, SINKS, VALUE, CacheOperands
from schedules.attention.cache.prompt import Columns, RunningSoftmax
from schedules.attention.compute import guarded_quotient
from schedules.codegen.nest import (
    Extent,
    allocate,
    allocate_tile,
    in_vectors,
    lanes_of,
    load,
    name_opaque,
    parallel_grid,
    prefetch,
    repeat,
    sequence,
    splat,
    store,
    vectorized,
    when,
)
from schedules.codegen.parallel import pays_off
from schedules.instructions.dot_products.operation import DOT_S8S8, DOT_U8S8
from schedules.instructions.dot_products.table import multiplies_bytes, sums_signed
from schedules.instructions.prefetch import prefetch_statement
from schedules.instructions.row_sums import reduced, row_sums
from schedules.instructions.vector_math import EXP_OF_NEGATIVE, call
from schedules.ir.expression import expression, number
from schedules.ir.numbers import SIGN_BITS, WORD_BYTES
from schedules.ir.stages import dtype_of
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.machine import Machine, dtype_bits
from schedules.matmul.blocks.rounding import quantized
from schedules.task_split import balancing_parts, keep_busy

# Prefetches of the cache rows that a core reads next: of the same head, the next head, or the next sample.

_LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class Start:
    """Start of reading: rows [first, last] of the first head of keys in entry `slot` of the cache."""

    slot: Expr
    first: Expr
    last: Expr


@dataclass(frozen=True)
class Rows:
    """The rows [first, end) of a key head of a sample, entry `slot` of the cache, that one part of the query sums; the
    query sees [begin, end_seen) of them. `following` is what the core reads after all heads."""

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
    """Start of the rows of the next sample (for the last one, its own); appends the bindings it needs."""
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
        """The prefetch after the rows before `row`, with the statements that bind it."""
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

    def prefetched(self, role: str, k: Expr) -> list[Stmt]:
        """Prefetch row k of keys or values, counted from the first one."""
        return prefetches(self.operands, role, (self.slot, self.key_head, tirx.min(self.first + k, self.last)))

    def prefetch_keys(self, g: Expr, at: Expr, lanes: int) -> list[Stmt]:
        """Prefetch query head `g`'s share of the `lanes` keys from `at` on, so that requests are spread evenly."""
        share = -(-lanes // self.operands.group)
        return [
            each
            for t in range(share)
            for each in self.prefetched(KEY, at + tirx.min(g * share + t, expression(lanes - 1)))
        ]


def prefetches(own: CacheOperands, role: str, at: tuple[Expr, Expr, Expr]) -> list[Stmt]:
    """Prefetch a row (slot, key head, row). For float32, which is bound by memory only, that gained nothing."""
    if own.is_exact(role):
        return []
    step = 8 * _LINE // dtype_bits(str(own.buffers[role].dtype))
    size = own.size if role == KEY else own.value_size
    code = [prefetch(own.buffers[role], *at, d) for d in range(0, size, step)]
    return [*code, prefetch_statement(own.scale(role, *at))] if own.has_scales(role) else code


_MAX_SIZE = 512  # head size: up to here float32 holds the integer sums of products exactly
_MAX_INT8 = 127.0
_SCALE, _OFFSET = 0, 1


@dataclass(frozen=True, eq=False)
class RoundedQueries:
    """Queries of the heads that share a key head: bytes (group, size), and the scale and offset of each head.

    Where the dot product takes unsigned times signed bytes, keys are stored plus 128; `offset` subtracts that again.
    """

    operands: CacheOperands
    machine: Machine
    bytes: Buffer
    numbers: Buffer

    @staticmethod
    def serve(operands: CacheOperands, machine: Machine) -> bool:
        """True if keys are bytes that the machine can multiply, and queries may be rounded."""
        size, step = operands.size, WORD_BYTES * machine.lanes("float32")
        fits = size % step == 0 and size <= _MAX_SIZE
        return (
            fits
            and operands.description.rounds
            and dtype_of(operands.buffers[KEY]) == "int8"
            and multiplies_bytes(machine)
        )

    @classmethod
    def of(cls, operands: CacheOperands, machine: Machine) -> tuple[RoundedQueries, list[Stmt]]:
        """Create the buffers, with the statements that allocate them."""
        bytes_, bytes_made = allocate("query_bytes", [operands.group, operands.size], "int8")
        numbers, numbers_made = allocate("query_numbers", [operands.group, 2], "float32")
        return cls(operands, machine, bytes_, numbers), [bytes_made, numbers_made]

    @property
    def lanes(self) -> int:
        """Number of 32-bit words in a vector."""
        return self.machine.lanes("float32")

    @property
    def _signed(self) -> bool:
        return sums_signed(self.machine)

    def fill(self, query: Columns) -> Stmt:
        """Round float32 queries to bytes."""
        lanes = self.lanes

        def head(g: Index) -> Stmt:
            def put(start: int, whole: Expr) -> tuple[Stmt, Expr]:
                return store(self.bytes, tirx.Cast(f"int8x{lanes}", whole), g, lanes_of(start, lanes)), whole

            vectors = [query.load(g, lanes_of(start, lanes)) for start in range(0, self.operands.size, lanes)]
            code, peak, total = quantized(vectors, lanes, put)
            shift = 0 if self._signed else -128
            offset = tirx.Cast("float32", reduced("add", total, lanes)) * tirx.const(float(shift), "float32")
            scale = store(self.numbers, peak * tirx.const(1 / _MAX_INT8, "float32"), g, _SCALE)
            return sequence(code, scale, store(self.numbers, offset, g, _OFFSET))

        return repeat("g", self.operands.group, head)

    def sums(self, parts: list[Expr], g: Expr, key: Callable[[int], tuple[Expr, Expr, Expr]]) -> list[Stmt]:
        """Dot products of head `g` with one key per lane: row j of `parts`, int32, for the key at the position `key(j)`
        (sample, key head, row) of the cache."""
        lanes, code = self.lanes, list[Stmt]()
        for first in range(0, self.operands.size, WORD_BYTES * lanes):
            data = self._words(self.bytes, g, first)
            for j in range(lanes):
                words = self._words(self.operands.buffers[KEY], *key(j), first)
                total = load(parts, j, lanes_of(0, lanes)) if first else splat(0, "int32", lanes)
                if self._signed:
                    value = DOT_S8S8(total, data, words)
                else:
                    value = DOT_U8S8(total, words ^ splat(SIGN_BITS, "int32", lanes), data)
                code.append(store(parts, value, j, lanes_of(0, lanes)))
        return code

    def _words(self, buffer: Buffer, *at: Index) -> Expr:
        *leading, first = at
        return tirx.reinterpret(f"int32x{self.lanes}", load(buffer, *leading, lanes_of(first, WORD_BYTES * self.lanes)))

    def score(self, total: Expr, g: Expr, row: tuple[Expr, Expr, Expr]) -> Expr:
        """The float32 product of a query and the key in a row, computed from the dot product of their bytes."""
        scale = load(self.numbers, g, _SCALE) * self.operands.scale(KEY, *row)
        return (total + load(self.numbers, g, _OFFSET)) * scale


# Results of attention of a few queries, whose rows may be summed in several parts.

_ZERO = tirx.FloatImm("float32", 0.0)


class PartialResults:
    """Partial results of `splits` parts of a query's rows: sums, the largest score, and the sum of exponentials."""

    def __init__(self, operands: CacheOperands, machine: Machine, splits: int, maximum: int) -> None:
        self.operands, self.splits, self.lanes = operands, splits, machine.lanes("float32")
        batch, queries = (operands.batch, maximum) if SEQUENCES not in operands else (1, operands.queries)
        shape = [batch, operands.key_heads, splits, queries, operands.group, operands.value_size + 2]
        self.found = tirx.decl_buffer([expression(each) for each in shape], "float32", "parts", layout=None)

    def allocated(self) -> Stmt | None:
        """The statement that allocates them; None if rows are never split."""
        return tirx.AllocBuffer(self.found) if self.splits > 1 else None

    def kept(self, softmax: RunningSoftmax, sample: Expr, key_head: Expr, query: Expr, split: Expr) -> Stmt:
        """Store the result of one part of the rows, for `joined`."""
        operands = self.operands
        leading, position = operands.position(sample, query)

        def head(g: Expr) -> Stmt:
            at = [leading, key_head, split, position, g]
            return sequence(
                in_vectors(
                    "d", operands.value_size, self.lanes, lambda d: store(self.found, softmax.sums.load(g, d), *at, d)
                ),
                store(self.found, softmax.largest.load(g), *at, operands.value_size),
                store(self.found, softmax.totals.load(g), *at, operands.value_size + 1),
            )

        return repeat("g", operands.group, head)

    def stored(self, softmax: RunningSoftmax, sample: Expr, key_head: Expr, query: Expr) -> Stmt:
        """Store the result of a query whose rows were not split."""
        operands = self.operands
        total, total_made = allocate("all_total", [1], "float32", "local")
        factor, factor_made = allocate("factor", [1], "float32", "local")

        def head(g: Expr) -> Stmt:
            at = key_head * operands.group + g
            largest, sum_of_powers = softmax.largest.load(g), softmax.totals.load(g)
            if SINKS in operands:
                maximum = tirx.max(largest, operands.sink(at))
                scale = store(factor, call(EXP_OF_NEGATIVE, largest - maximum), 0)
                sink = call(EXP_OF_NEGATIVE, operands.sink(at) - maximum)
                ready = [scale, store(total, sum_of_powers * load(factor, 0) + sink, 0)]
            else:
                ready = [store(total, sum_of_powers, 0)]

            def element(d: Expr) -> Stmt:
                value = softmax.sums.load(g, d)
                value = value * load(factor, 0) if SINKS in operands else value
                return operands.stored(guarded_quotient(value, load(total, 0)), sample, query, at, d)

            return sequence(ready, in_vectors("d", operands.value_size, self.lanes, element))

        return sequence(total_made, factor_made if SINKS in operands else None, repeat("g", operands.group, head))

    def joined(self, sample: Expr, key_head: Expr, query: Expr) -> Stmt:
        """Store the result of a query, joined from all its parts."""
        return repeat("g", self.operands.group, lambda g: self._joined(sample, key_head, query, g))

    def _joined(self, sample: Expr, key_head: Expr, query: Expr, g: Expr) -> Stmt:
        operands = self.operands
        head = key_head * operands.group + g
        leading, position = operands.position(sample, query)
        at = [[leading, key_head, expression(split), position, g] for split in range(self.splits)]
        largest, largest_made = allocate("all_largest", [1], "float32", "local")
        total, total_made = allocate("all_total", [1], "float32", "local")
        factors, factors_made = allocate("factors", [self.splits], "float32", "local")
        maximum = tirx.max(operands.sink(head), LOWEST) if SINKS in operands else LOWEST
        for each in at:
            maximum = tirx.max(maximum, load(self.found, *each, operands.value_size))
        start = call(EXP_OF_NEGATIVE, operands.sink(head) - load(largest, 0)) if SINKS in operands else _ZERO

        def part(split: int) -> Stmt:
            score, powers = (load(self.found, *at[split], operands.value_size + k) for k in range(2))
            return sequence(
                store(factors, call(EXP_OF_NEGATIVE, score - load(largest, 0)), split),
                store(total, load(total, 0) + load(factors, split) * powers, 0),
            )

        def element(d: Expr) -> Stmt:
            value = load(self.found, *at[0], d) * load(factors, 0)
            for split in range(1, self.splits):
                value = value + load(self.found, *at[split], d) * load(factors, split)
            return operands.stored(guarded_quotient(value, load(total, 0)), sample, query, head, d)

        return sequence(
            largest_made,
            total_made,
            factors_made,
            store(largest, maximum, 0),
            store(total, start, 0),
            [part(split) for split in range(self.splits)],
            in_vectors("d", operands.value_size, self.lanes, element),
        )


_MAX_KEYS = 64  # per block: its rows, the prefetched ones and intermediate results share the L1 cache
_MIN_BLOCKS = 2  # per query whose rows are split
# Multiply-adds of scores, in vectors, from which starting threads pays off: some 10 microseconds of reading rows.
_MIN_WORK = 12288
_MINUS_INFINITY = tirx.FloatImm("float32", float("-inf"))


@dataclass(frozen=True)
class _Block:
    """Keys [first, first + count) of some rows, the running results, and what is read next."""

    rows: Rows
    first: Expr
    count: Expr
    ahead: ReadAhead
    softmax: RunningSoftmax
    rounded: RoundedQueries | None


@dataclass(frozen=True)
class _Seen:
    """The rows [begin, begin + count) that a query sees, and the number of parts they are summed in."""

    query: Expr
    begin: Expr
    count: Expr
    parts: Expr


class DecodeWriter:
    """Writes the kernel for at most `maximum` queries."""

    def __init__(self, operands: CacheOperands, machine: Machine, maximum: int) -> None:
        self.operands, self.machine, self.maximum = operands, machine, maximum
        self.lanes = machine.lanes("float32")
        self.width = -(-operands.size // self.lanes) * self.lanes
        # Keys of a block stay in the L1 cache while they are multiplied.
        halves = (_MAX_KEYS >> shift for shift in range(_MAX_KEYS.bit_length()))
        self.block = next(n for n in halves if n <= self.lanes or 4 * n * self.width <= machine.l1_bytes * 2 // 3)
        # Parts of the rows make all cores equally busy.
        batch = operands.batch if isinstance(operands.batch, int) else 1
        self.splits = balancing_parts(operands.key_heads * batch, machine)
        self.rounds = RoundedQueries.serve(operands, machine)
        self.results = PartialResults(operands, machine, self.splits, maximum)

    def code(self) -> Stmt:
        """All parts and their results."""
        operands = self.operands
        rows, counted = self._all_rows()
        threads = pays_off(rows * operands.heads * operands.size, self.machine, _MIN_WORK * self.lanes)
        tasks = name_opaque("tasks", self._tasks(), counted)
        extents = [Extent("sample", operands.batch), Extent("key_head", operands.key_heads), Extent("task", tasks)]
        parts = parallel_grid(extents, lambda at: self._parts(at, tasks), self.machine, parallel=threads)

        def joined(sample: Expr) -> Stmt:
            heads = expression(operands.key_heads)

            def query(seen: _Seen) -> Stmt:
                whole = repeat("key_head", heads, lambda head: self.results.joined(sample, head, seen.query))
                return when(seen.parts > 1, whole)

            return self._queries(sample, query)

        end = when(tasks > 1, repeat("sample", expression(operands.batch), joined)) if self.splits > 1 else None
        return sequence(self.results.allocated(), counted, parts, end)

    def _all_rows(self) -> tuple[Expr, list[Stmt]]:
        """Approximate number of rows that all queries read together, and the statements it needs first."""
        operands = self.operands
        if SEQUENCES not in operands:
            return expression(operands.batch) * operands.queries * operands.rows_of(expression(0)), []
        total, allocation = allocate("all_rows", [1], "int64", "local")

        def add(sample: Expr) -> Stmt:
            return store(total, load(total, 0) + operands.few_of(sample, few=True) * operands.rows_of(sample), 0)

        return load(total, 0), [allocation, store(total, expression(0), 0), repeat("sample", operands.batch, add)]

    def _tasks(self) -> Index:
        """Number of tasks that share the parts of a query: one if samples and heads keep all cores busy."""
        if self.splits == 1:
            return 1
        heads = expression(self.operands.batch) * self.operands.key_heads
        return tirx.Select(keep_busy(heads, self.machine), expression(1), expression(self.splits))

    def _queries(self, sample: Expr, body: Callable[[_Seen], Stmt]) -> Stmt:
        """Run `body` for each query of a sample, with the rows that it sees."""
        operands = self.operands
        position, rows = (tirx.Var(name, "int64") for name in ("position", "rows"))

        def query(i: Expr) -> Stmt:
            begin_seen, end_seen = operands.range_of(position, rows, i)
            bound: list[Stmt] = []
            begin = name_opaque("begin", begin_seen, bound)
            count = name_opaque("count", tirx.max(end_seen - begin, expression(0)), bound)
            is_long = count >= _MIN_BLOCKS * self.block
            parts = tirx.Select(is_long, expression(self.splits), expression(1)) if self.splits > 1 else expression(1)
            seen = _Seen(i, begin, count, name_opaque("number_of_parts", parts, bound))
            return sequence(bound, body(seen))

        return sequence(
            tirx.Bind(position, operands.first_position(sample)),
            tirx.Bind(rows, operands.rows_of(sample)),
            repeat("query", operands.few_of(sample, few=True), query),
        )

    def _parts(self, at: list[Expr], tasks: Index) -> Stmt:
        """The parts of each query computed by the task at (sample, key head, task of the head)."""
        sample, key_head, task = at
        operands, bound = self.operands, list[Stmt]()
        slot = name_opaque("slot", operands.slot_of(sample), bound)
        following = start_of(operands, sample, bound)

        def query(seen: _Seen) -> Stmt:
            # Whole vectors of keys in each part except the last.
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
        operands = self.operands
        softmax, allocations = RunningSoftmax.of(
            operands.group, self.block, operands.value_size, self.machine, further=self.width
        )
        query = softmax.further
        rounded, rounded_made = RoundedQueries.of(operands, self.machine) if self.rounds else (None, [])

        def element(g: Expr, d: Expr) -> Expr:
            return operands.query(rows.sample, rows.query, rows.key_head * operands.group + g, d)

        def filled(g: Expr) -> Stmt:
            rest = self.width - operands.size
            return sequence(
                in_vectors("d", operands.size, self.lanes, lambda d: query.store(element(g, d), g, d)),
                repeat("d", rest, lambda d: query.store(_ZERO, g, d + operands.size)) if rest else None,
            )

        def ahead(j: Expr) -> Stmt:
            return sequence(
                *(prefetches(operands, each, (rows.slot, rows.key_head, rows.first + j)) for each in (KEY, VALUE))
            )

        position = rows.sample, rows.key_head, rows.query
        partial_result, stored = self.results.kept(softmax, *position, split), self.results.stored(softmax, *position)
        keys, keys_made = allocate("own_keys", [1 if self.rounds else self.block, self.width], "float32")
        blocks = tirx.floordiv(rows.end - rows.first + (self.block - 1), expression(self.block))
        return sequence(
            allocations,
            keys_made,
            repeat("ahead", tirx.min(rows.end - rows.first, expression(self.block)), ahead),
            None if self.rounds else self._cleared(keys),
            softmax.start(),
            repeat("g", operands.group, filled),
            rounded_made,
            None if rounded is None else rounded.fill(query),
            repeat("block", blocks, lambda b: self._block(rows, rows.first + b * self.block, keys, softmax, rounded)),
            when(parts > 1, partial_result, stored) if self.splits > 1 else stored,
        )

    def _block(
        self, rows: Rows, start: Expr, keys: Expr, softmax: RunningSoftmax, rounded: RoundedQueries | None
    ) -> Stmt:
        """Process the keys from `start` on, at most `self.block`."""
        operands, lanes = self.operands, self.lanes
        first, count, full_runs = (tirx.Var(name, "int64") for name in ("block_first", "block_count", "block_runs"))
        ahead, ahead_bound = ReadAhead.after(operands, rows, first + count)
        block = _Block(rows, first, count, ahead, softmax, rounded)

        def weight(g: Index, k: Expr) -> Expr:
            return softmax.scores.load(g, k)

        def value(k: Expr, d: Expr) -> Expr:
            return operands.unscaled(VALUE, rows.slot, rows.key_head, first + k, d)

        def value_scale(k: Expr) -> Expr:
            return operands.scale(VALUE, rows.slot, rows.key_head, first + k)

        def copied(at: Expr, number: Expr | int) -> Stmt:
            return repeat("j", number, lambda j: self._copied(block, at + j, keys))

        direct = self.rounds or (operands.is_exact(KEY) and self.width == operands.size)
        runs = tirx.floordiv(count + (lanes - 1), expression(lanes))
        has_rest = count > full_runs * lanes

        def run(g: Expr, at: Expr) -> Stmt:
            return self._scores(block, g, at, None if direct else keys, tail=False)

        copies = copied(expression(0), runs * lanes)
        if direct:
            copies = None if self.rounds else when(has_rest, copied(full_runs * lanes, lanes))

        def head(g: Expr) -> Stmt:
            return sequence(
                repeat("run", full_runs, lambda r: run(g, r * lanes)),
                when(has_rest, self._scores(block, g, full_runs * lanes, keys, tail=True)),
            )

        return sequence(
            tirx.Bind(first, start),
            tirx.Bind(count, tirx.min(rows.end - first, expression(self.block))),
            tirx.Bind(full_runs, tirx.floordiv(count, expression(lanes))),
            ahead_bound,
            copies,
            repeat("g", operands.group, head),
            softmax.powers(runs),
            softmax.scaled(count, value_scale) if operands.has_scales(VALUE) else None,
            softmax.weighted(count, weight, value, ahead=lambda k: ahead.prefetched(VALUE, k)),
        )

    def _copied(self, block: _Block, j: Expr, keys: Expr) -> Stmt:
        """Key j of a block in float32; past the last one, the last one again."""
        operands, rows = self.operands, block.rows
        row = tirx.min(block.first + j, rows.end - 1)
        return in_vectors(
            "d",
            operands.size,
            self.lanes,
            lambda d: store(keys, operands.row(KEY, rows.slot, rows.key_head, row, d), j, d),
        )

    def _cleared(self, keys: Expr) -> Stmt | None:
        """Store zeros past the rows of copied keys."""
        rest, size = self.width - self.operands.size, self.operands.size
        if not rest:
            return None
        return repeat("j", self.block, lambda j: repeat("d", rest, lambda d: store(keys, _ZERO, j, d + size)))

    def _scores(self, block: _Block, g: Expr, at: Expr, keys: Expr | None, *, tail: bool) -> Stmt:
        """Scores of one query head for the vector of keys of a block from `at` on, which are in `keys` or in the cache;
        in the tail, -inf past the last one."""
        operands, lanes, rows = self.operands, self.lanes, block.rows
        query, scores = block.softmax.further, block.softmax.scores
        rounded = block.rounded
        parts, parts_made = allocate_tile("parts", [lanes, lanes], "float32" if rounded is None else "int32")
        products, found_made = allocate("found", [lanes], "float32", "local")
        head = rows.key_head * operands.group + g

        def key(j: int, d: Expr) -> Expr:
            if keys is not None:
                return load(keys, at + j, d)
            return operands.row(KEY, rows.slot, rows.key_head, block.first + at + j, d)

        def each(make: Callable[[int, Expr], Stmt]) -> list[Stmt]:
            return [vectorized("lane", lanes, lambda lane, j=j: make(j, lane)) for j in range(lanes)]  # type: ignore[misc]

        def vector(v: Index) -> Stmt:
            def add(j: int, lane: Expr) -> Stmt:
                d = v * lanes + lane
                return store(parts, load(parts, j, lane) + query.load(g, d) * key(j, d), j, lane)

            return sequence(each(add))

        def position(j: Expr | int) -> tuple[Expr, Expr, Expr]:
            row = block.first + at + j
            return rows.slot, rows.key_head, tirx.min(row, rows.end - 1) if tail else row

        def adjusted(j: Expr) -> Expr:
            raw = load(products, j) if rounded is None else rounded.score(load(products, j), g, position(j))
            return operands.score(raw, rows.sample, head, rows.query, position(j)[2])

        def end(j: Expr) -> Stmt:
            value = adjusted(j)
            return scores.store(tirx.Select(at + j < block.count, value, _MINUS_INFINITY) if tail else value, g, at + j)

        if rounded is None:
            sums = [*each(lambda j, lane: store(parts, _ZERO, j, lane)), repeat("vector", self.width // lanes, vector)]
        else:
            sums = rounded.sums(parts, g, position)

        def part(j: int, lane: Expr) -> Expr:
            return number(load(parts, j, lane), "float32")

        return sequence(
            block.ahead.prefetch_keys(g, at, lanes),
            parts_made,
            found_made,
            sums,
            vectorized(
                "lane", lanes, lambda lane: store(products, row_sums([part(j, lane) for j in range(lanes)]), lane)
            ),
            repeat("j", lanes, end) if tail else vectorized("lane", lanes, end),
        )
