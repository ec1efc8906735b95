"""Results of attention of a few queries, where the rows of a query may be summed in several parts."""

from __future__ import annotations

from schedules.attention.cache.description import LOWEST, SEQUENCES, SINKS, CacheOperands
from schedules.attention.cache.plain import quotient
from schedules.attention.cache.softmax_block import RunningSoftmax
from schedules.attention.pairs import in_vectors
from schedules.codegen.nest import allocate, expression, load, repeat, sequence, store
from schedules.instructions.vector_math import EXP_OF_NEGATIVE, call
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import Machine

_ZERO = tirx.FloatImm("float32", 0.0)


class PartialResults:
    """Partial results of `splits` parts of the rows of a query: sums, the largest score, and the sum of powers."""

    def __init__(self, operands: CacheOperands, machine: Machine, splits: int, most: int) -> None:
        self.operands, self.splits, self.lanes = operands, splits, machine.lanes("float32")
        batch, queries = (operands.batch, most) if SEQUENCES not in operands else (1, operands.queries)
        shape = [batch, operands.key_heads, splits, queries, operands.group, operands.value_size + 2]
        self.found = tirx.decl_buffer([expression(each) for each in shape], "float32", "parts", layout=None)

    def allocated(self) -> Stmt | None:
        """The statement that allocates them; None where rows are never split."""
        return tirx.AllocBuffer(self.found) if self.splits > 1 else None

    def kept(self, softmax: RunningSoftmax, sample: Expr, key_head: Expr, query: Expr, split: Expr) -> Stmt:
        """Keep what a part of the rows found, for `joined`."""
        own = self.operands
        lead, place = own.place(sample, query)

        def head(g: Expr) -> Stmt:
            at = [lead, key_head, split, place, g]
            return sequence(
                in_vectors(
                    "d", own.value_size, self.lanes, lambda d: store(self.found, softmax.sums.load(g, d), *at, d)
                ),
                store(self.found, softmax.largest.load(g), *at, own.value_size),
                store(self.found, softmax.totals.load(g), *at, own.value_size + 1),
            )

        return repeat("g", own.group, head)

    def stored(self, softmax: RunningSoftmax, sample: Expr, key_head: Expr, query: Expr) -> Stmt:
        """The results of a query whose rows were not split."""
        own = self.operands
        total, total_made = allocate("all_total", [1], "float32", "local")
        factor, factor_made = allocate("factor", [1], "float32", "local")

        def head(g: Expr) -> Stmt:
            at = key_head * own.group + g
            largest, sum_of_powers = softmax.largest.load(g), softmax.totals.load(g)
            if SINKS in own:
                most = tirx.max(largest, own.sink(at))
                scale = store(factor, call(EXP_OF_NEGATIVE, largest - most), 0)
                sink = call(EXP_OF_NEGATIVE, own.sink(at) - most)
                ready = [scale, store(total, sum_of_powers * load(factor, 0) + sink, 0)]
            else:
                ready = [store(total, sum_of_powers, 0)]

            def element(d: Expr) -> Stmt:
                value = softmax.sums.load(g, d)
                value = value * load(factor, 0) if SINKS in own else value
                return own.stored(quotient(value, load(total, 0)), sample, query, at, d)

            return sequence(ready, in_vectors("d", own.value_size, self.lanes, element))

        return sequence(total_made, factor_made if SINKS in own else None, repeat("g", own.group, head))

    def joined(self, sample: Expr, key_head: Expr, query: Expr) -> Stmt:
        """The results of a query, of all its parts."""
        return repeat("g", self.operands.group, lambda g: self._joined(sample, key_head, query, g))

    def _joined(self, sample: Expr, key_head: Expr, query: Expr, g: Expr) -> Stmt:
        own = self.operands
        head = key_head * own.group + g
        lead, place = own.place(sample, query)
        at = [[lead, key_head, expression(split), place, g] for split in range(self.splits)]
        largest, largest_made = allocate("all_largest", [1], "float32", "local")
        total, total_made = allocate("all_total", [1], "float32", "local")
        factors, factors_made = allocate("factors", [self.splits], "float32", "local")
        most = tirx.max(own.sink(head), LOWEST) if SINKS in own else LOWEST
        for each in at:
            most = tirx.max(most, load(self.found, *each, own.value_size))
        start = call(EXP_OF_NEGATIVE, own.sink(head) - load(largest, 0)) if SINKS in own else _ZERO

        def part(split: int) -> Stmt:
            score, powers = (load(self.found, *at[split], own.value_size + k) for k in range(2))
            return sequence(
                store(factors, call(EXP_OF_NEGATIVE, score - load(largest, 0)), split),
                store(total, load(total, 0) + load(factors, split) * powers, 0),
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
