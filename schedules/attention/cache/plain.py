"""Attention over a cache in its plainest form: what it means, and what runs where no rule writes it anew.

Each head of each query is a task that goes through its rows once: whenever a larger score comes, what was summed so far
is scaled down (softmax in one pass).
"""

from __future__ import annotations

from schedules.attention.cache.description import KEY, LOWEST, SEQUENCES, SINKS, VALUE, CacheOperands
from schedules.codegen.nest import allocate, expression, load, parallel, repeat, sequence, store
from schedules.ir.tir import Expr, Stmt, tirx

_LARGEST, _TOTAL, _SCORE, _WEIGHT, _CORRECTION = range(5)


def plain_attention(operands: CacheOperands) -> Stmt:
    """The body of the kernel."""
    heads, queries = expression(operands.heads), expression(operands.queries)
    if SEQUENCES in operands:

        def sequence_task(number: Expr) -> Stmt:
            head, sample = tirx.floormod(number, heads), tirx.floordiv(number, heads)
            return repeat("query", operands.queries_of(sample), lambda query: _query(operands, sample, query, head))

        return parallel("task", expression(operands.batch) * heads, sequence_task)
    tasks = expression(operands.batch) * heads * queries

    def task(number: Expr) -> Stmt:
        head = tirx.floormod(number, heads)
        query = tirx.floormod(tirx.floordiv(number, heads), queries)
        return _query(operands, tirx.floordiv(number, heads * queries), query, head)

    return parallel("task", tasks, task)


def _query(operands: CacheOperands, sample: Expr, query: Expr, head: Expr) -> Stmt:
    sums, sums_made = allocate("sums", [operands.value_size], "float32", "local")
    state, state_made = allocate("state", [5], "float32", "local")
    bound: list[Stmt] = []

    def bind(name: str, value: Expr) -> Expr:
        variable = tirx.Var(name, "int64")
        bound.append(tirx.Bind(variable, value))
        return variable

    position, rows = bind("position", operands.first_position(sample)), bind("rows", operands.rows_of(sample))
    first, end = operands.range_of(position, rows, query)
    first, end = bind("first", first), bind("end", end)
    key_head = bind("key_head", tirx.floordiv(head, expression(operands.group)))
    slot = bind("slot", operands.slot_of(sample))
    zero = tirx.FloatImm("float32", 0.0)
    has_sink = SINKS in operands

    def kept(name: int) -> Expr:
        return load(state, name)

    def row(step: Expr) -> Stmt:
        at = first + step

        def product(d: Expr) -> Stmt:
            term = operands.query(sample, query, head, d) * operands.row(KEY, slot, key_head, at, d)
            return store(state, kept(_SCORE) + term, _SCORE)

        def weighed(d: Expr) -> Stmt:
            value = operands.row(VALUE, slot, key_head, at, d)
            return store(sums, load(sums, d) * kept(_CORRECTION) + kept(_WEIGHT) * value, d)

        largest = tirx.max(kept(_LARGEST), kept(_SCORE))
        return sequence(
            store(state, zero, _SCORE),
            repeat("d", operands.size, product),
            store(state, operands.score(kept(_SCORE), sample, head, query, at), _SCORE),
            store(state, tirx.exp(kept(_LARGEST) - largest), _CORRECTION),
            store(state, largest, _LARGEST),
            store(state, tirx.exp(kept(_SCORE) - kept(_LARGEST)), _WEIGHT),
            store(state, kept(_TOTAL) * kept(_CORRECTION) + kept(_WEIGHT), _TOTAL),
            repeat("d", operands.value_size, weighed),
        )

    def finished(d: Expr) -> Stmt:
        return operands.stored(quotient(load(sums, d), kept(_TOTAL)), sample, query, head, d)

    return sequence(
        bound,
        sums_made,
        state_made,
        store(state, tirx.max(operands.sink(head), LOWEST) if has_sink else LOWEST, _LARGEST),
        store(state, tirx.exp(operands.sink(head) - kept(_LARGEST)) if has_sink else zero, _TOTAL),
        repeat("d", operands.value_size, lambda d: store(sums, zero, d)),
        repeat("row", tirx.max(end - first, expression(0)), row),
        repeat("d", operands.value_size, finished),
    )


def quotient(value: Expr, total: Expr) -> Expr:
    """value / total, or 0 for a query that sees nothing."""
    zero = tirx.FloatImm("float32", 0.0)
    return tirx.Select(tirx.GT(total, zero), value / total, zero)
