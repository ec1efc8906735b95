"""Code for one planned nest that sums in vectors: a sum per lane, or one sum in the lanes of several accumulators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from schedules.codegen.nest import expression, parallel_grid, repeat, sequence, split_repeat
from schedules.ir.expression import index, substitute
from schedules.ir.reduction import Reduction
from schedules.ir.tir import VECTORIZED, Expr, Index, Node, Stmt, Var, tirx
from schedules.machine import Machine
from schedules.stages.collapsed_loops import Loop
from schedules.stages.nest_code import extents_of, nested, over_axis
from schedules.stages.plan import NestPlan
from schedules.stages.strided_loads import StridedLoads

UNROLLED = tirx.ForKind.UNROLLED
# Independent sums that hide the latency of one multiply-add.
_ACCUMULATORS = 4


def reduction_code(plan: NestPlan, machine: Machine) -> Stmt:
    """Sums of a plan that has a reduction and an axis."""
    return _Writer(plan, machine).reduction()


class _Writer:
    """Writes one collapsed nest."""

    def __init__(self, plan: NestPlan, machine: Machine) -> None:
        self.plan = plan
        self.nest = plan.nest
        self.machine = machine
        self.lanes = plan.lanes

    def reduction(self) -> Stmt:
        plan, reduction, axis = self.plan, self.plan.reduction, self.plan.axis
        assert reduction is not None
        assert axis is not None
        if any(axis is loop for loop in self.nest.spatial):
            step = self.lanes * _ACCUMULATORS
            return over_axis(
                plan,
                axis,
                self.machine,
                # Of a partial reduction, how long a part is depends on its number.
                lambda at, count, rest: substitute(self._across(reduction, axis, at, count, rest), rest),
                step,
            )

        def result(values: Sequence[Expr]) -> Stmt:
            place = self._values(values)
            return substitute(self._along(reduction, axis, place), place)

        extents = extents_of(self.nest.spatial)
        return parallel_grid(extents, result, self.machine, parallel=plan.threads, cycles=plan.cycles)

    def _values(self, values: Sequence[Expr]) -> dict[Var, Expr]:
        return {loop.var: value for loop, value in zip(self.nest.spatial, values, strict=True)}

    def _across(self, reduction: Reduction, axis: Loop, at: Expr, count: int, rest: Mapping[Var, Expr]) -> Stmt:
        """`count` neighbouring results, each lane summing its own."""
        dtype = str(axis.var.ty)
        group = self.lanes * _ACCUMULATORS

        def some(start: Index, size: int) -> Stmt:
            vectors = size // self.lanes * self.lanes
            parts = [(start, vectors), (start + vectors, size - vectors)]
            return sequence([self._lane_sums(reduction, axis, at + first, n, rest) for first, n in parts if n])

        return split_repeat("group", count, group, some, dtype)

    def _lane_sums(self, reduction: Reduction, axis: Loop, at: Expr, count: int, rest: Mapping[Var, Expr]) -> Stmt:
        """At most `_ACCUMULATORS` vectors of results, held in registers while summing."""
        dtype = str(axis.var.ty)
        lanes = min(self.lanes, count)
        held = tirx.decl_buffer([count], reduction.dtype, "accumulator", scope="local", layout=None)

        def each(make: Callable[[Expr, Expr], Stmt]) -> Stmt:
            """`make(position in held, position in the axis)` for all of them."""

            def vector(u: Index) -> Stmt:
                def element(lane: Expr) -> Stmt:
                    return make(expression(u * lanes + lane, dtype), at + u * lanes + lane)

                return repeat("lane", lanes, element, VECTORIZED, dtype)

            return repeat("register", count // lanes, vector, UNROLLED, dtype)

        def at_point(expr: Node, point: Expr) -> Node:
            return substitute(expr, {**rest, axis.var: point})

        start = each(lambda i, point: tirx.BufferStore(held, at_point(reduction.start, point), [i]))
        apart = StridedLoads(self.nest, axis)

        def update(u: int) -> Stmt:
            """One register of results."""
            statements, read = apart.read(at + u * lanes, lanes, rest)

            def add(lane: Expr) -> Stmt:
                place = expression(u * lanes + lane, dtype)
                own = tirx.BufferLoad(held, [place])
                value = at_point(apart.placed(reduction.value, read, lane), at + u * lanes + lane)
                return tirx.BufferStore(held, reduction.combiner.combine(own, value), [place])

            return sequence([*statements, repeat("lane", lanes, add, VECTORIZED, dtype)])

        updates = sequence([update(u) for u in range(count // lanes)])
        write = each(
            lambda i, point: at_point(
                tirx.BufferStore(reduction.store.buffer, tirx.BufferLoad(held, [i]), list(reduction.store.indices)),
                point,
            )
        )
        return sequence([tirx.AllocBuffer(held), start, nested(self.nest.reduction, updates), write])

    def _along(self, reduction: Reduction, axis: Loop, rest: Mapping[Var, Expr]) -> Stmt:
        """One result, summed in the lanes of several accumulators that are joined at the end."""
        dtype = str(axis.var.ty)
        lanes = self.lanes
        static = isinstance(axis.extent, int)
        registers = min(_ACCUMULATORS, axis.extent // lanes) if static else _ACCUMULATORS
        group = lanes * registers
        held = tirx.decl_buffer([group], reduction.dtype, "accumulator", scope="local", layout=None)
        combine = reduction.combiner.combine

        def load(i: Expr) -> Expr:
            return tirx.BufferLoad(held, [i])

        def vector(count: int, make: Callable[[Expr], Stmt]) -> Stmt:
            return repeat("lane", count, lambda lane: make(expression(lane, dtype)), VECTORIZED, dtype)

        def accumulate(i: Expr, point: Expr) -> Stmt:
            value = substitute(reduction.value, {**rest, axis.var: point})
            return tirx.BufferStore(held, combine(load(i), value), [i])

        def in_group(at: Expr) -> Stmt:
            return repeat(
                "register",
                registers,
                lambda u: vector(lanes, lambda lane: accumulate(u * lanes + lane, at + u * lanes + lane)),
                UNROLLED,
                dtype,
            )

        whole = axis.extent // group if static else tirx.FloorDiv(axis.extent, index(group, dtype))
        parts = [repeat("group", whole, lambda g: in_group(g * group), dtype=dtype)]
        done = whole * group
        left = axis.extent - done
        parts += self._left_over(left, done, lanes, accumulate, vector, dtype)
        body = nested([loop for loop in self.nest.reduction if loop is not axis], sequence(parts))
        identity = substitute(reduction.identity(), rest)
        start = vector(group, lambda i: tirx.BufferStore(held, identity, [i]))
        joined = join(held, group, combine, dtype)
        result = load(index(0, dtype))
        if reduction.joins_start():
            result = combine(substitute(reduction.start, rest), result)
        write = substitute(tirx.BufferStore(reduction.store.buffer, result, list(reduction.store.indices)), rest)
        return sequence([tirx.AllocBuffer(held), start, body, *joined, write])

    def _left_over(
        self,
        left: Index,
        done: Index,
        lanes: int,
        accumulate: Callable[[Expr, Expr], Stmt],
        vector: Callable[[int, Callable[[Expr], Stmt]], Stmt],
        dtype: str,
    ) -> list[Stmt]:
        """Rest that does not fill a group: whole vectors, then a shorter one (or single elements when symbolic)."""
        if not isinstance(left, int):
            vectors = tirx.FloorDiv(left, index(lanes, dtype))
            parts = [
                repeat(
                    "vector",
                    vectors,
                    lambda i: vector(lanes, lambda lane: accumulate(lane, done + i * lanes + lane)),
                    dtype=dtype,
                )
            ]
            single = left - vectors * lanes
            first = done + vectors * lanes
            return [*parts, repeat("rest", single, lambda i: accumulate(index(0, dtype), first + i), dtype=dtype)]
        parts = []
        vectors, single = divmod(left, lanes)
        for i in range(vectors):
            at = done + i * lanes
            parts.append(
                vector(lanes, lambda lane, at=at: accumulate(lane, index(at, dtype) + lane))  # type: ignore[misc]
            )
        if single:
            at = done + vectors * lanes
            parts.append(vector(single, lambda lane: accumulate(lane, index(at, dtype) + lane)))
        return parts


def join(held: Expr, count: int, combine: Callable[[Expr, Expr], Expr], dtype: str) -> list[Stmt]:
    """Statements that leave the combination of all of `held` in its first element, by halves."""
    steps = []
    while count > 1:
        half = count // 2
        keep = count - half

        def join(i: Index, keep: int = keep) -> Stmt:
            first, second = expression(i, dtype), expression(i + keep, dtype)
            value = combine(tirx.BufferLoad(held, [first]), tirx.BufferLoad(held, [second]))
            return tirx.BufferStore(held, value, [first])

        steps.append(repeat("lane", half, join, VECTORIZED, dtype))
        count = keep
    return steps
