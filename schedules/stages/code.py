"""Code for one stage: threads outside, vectors inside; a sum per lane, or one sum in the lanes of several
accumulators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from schedules.codegen.nest import Extent, parallel_grid, repeat, sequence, split_repeat
from schedules.ir.expression import expression, index, substitute, uses
from schedules.ir.numbers import ceil_div
from schedules.ir.reduction import Reduction
from schedules.ir.stages import Stage, product
from schedules.ir.tir import VECTORIZED, Expr, Index, Node, Stmt, Var, tirx
from schedules.machine import Machine
from schedules.stages.lanes import StridedLoads, picked, ramp
from schedules.stages.loops import Loop
from schedules.stages.plan import NestPlan, StagePlan, plan_stage
from schedules.stages.transpose_code import transpose_code
from schedules.task_split import chunks_at_run_time, split_nest


def stage_code(stage: Stage, machine: Machine, *, parallel: bool = True) -> Stmt:
    """The stage as a statement; `parallel=False` if it already runs inside a parallel loop."""
    return planned_code(plan_stage(stage, machine, threads=None if parallel else False), machine)


def planned_code(plan: StagePlan, machine: Machine) -> Stmt:
    """A planned stage as a statement, with new variables at each call."""

    def step(values: Sequence[Expr]) -> Stmt:
        parts = [
            planned_code(part, machine) if isinstance(part, StagePlan) else _nest_code(part, machine)
            for part in plan.parts
        ]
        return substitute(sequence(parts), {axis.var: at for axis, at in zip(plan.shared, values, strict=True)})

    extents = [Extent(axis.name, axis.extent, str(axis.var.ty)) for axis in plan.shared]
    return parallel_grid(extents, step, machine, parallel=plan.threads, cycles=plan.cycles)


def _nest_code(plan: NestPlan, machine: Machine) -> Stmt:
    if plan.transpose is not None:
        threads, cycles = plan.threads, plan.cycles
        return transpose_code(plan.nest, plan.transpose, machine, plan.lanes, threads=threads, cycles=cycles)
    if plan.axis is None:
        return plain_code(plan, machine)
    if plan.is_interleaved:
        return interleaved_code(plan, machine)
    return elementwise_code(plan, machine) if plan.reduction is None else _Reduction(plan, machine).code()


# For an axis of unknown length: a few hundred cycles.
_VECTORS_OF_A_RUN = 64
Write = Callable[[Expr, int, Mapping[Any, Expr]], Stmt]


def elementwise_code(plan: NestPlan, machine: Machine) -> Stmt:
    """Vectors along the plan's axis."""
    axis = plan.axis
    assert axis is not None
    return over_axis(
        plan, axis, machine, lambda at, count, rest: _vector_store(plan, axis, at, count, rest), plan.lanes
    )


def interleaved_code(plan: NestPlan, machine: Machine) -> Stmt:
    """Vectors along the plan's axis of each interleaved value, stored as this many vectors of all values."""
    axis = plan.axis
    assert axis is not None

    def write(at: Expr, count: int, rest: Mapping[Var, Expr]) -> Stmt:
        def vector(start: Index, lanes: int) -> Stmt:
            return _interleaved(plan, axis, at + start, lanes, rest)

        return split_repeat("vector", count, plan.lanes, vector, str(axis.var.ty))

    return over_axis(plan, axis, machine, write, plan.lanes)


def _interleaved(plan: NestPlan, axis: Loop, start: Expr, lanes: int, rest: Mapping[Var, Expr]) -> Stmt:
    """`lanes` elements of each value, starting at `start`."""
    stores = list(plan.nest.stage.body.seq)
    first = {**rest, axis.var: start}
    if lanes == 1:
        return sequence([substitute(store, first) for store in stores])
    statements: list[Stmt] = []
    vectors = []
    for store in stores:
        copy = tirx.decl_buffer([lanes], str(store.buffer.dtype), "stored", scope="local", layout=None)

        def element(lane: Expr, store: Stmt = store, copy: Expr = copy) -> Stmt:
            return tirx.BufferStore(copy, substitute(store.value, {**rest, axis.var: start + lane}), [lane])

        statements += [tirx.AllocBuffer(copy), repeat("lane", lanes, element, VECTORIZED)]
        vectors.append(tirx.BufferLoad(copy, [ramp(index(0), lanes)]))
    *outer, last = [substitute(point, first) for point in stores[0].indices]
    for number in range(len(stores)):
        positions = [divmod(number * lanes + lane, len(stores)) for lane in range(lanes)]
        parts = [
            (vector, {lane: at for lane, (at, store) in enumerate(positions) if store == own})
            for own, vector in enumerate(vectors)
        ]
        value = picked([part for part in parts if part[1]], lanes)
        statements.append(tirx.BufferStore(stores[0].buffer, value, [*outer, ramp(last + number * lanes, lanes)]))
    return sequence(statements)


def _vector_store(plan: NestPlan, axis: Loop, at: Expr, count: int, rest: Mapping[Var, Expr]) -> Stmt:
    """`count` elements starting at `at`, in whole vectors and a shorter one."""

    apart = StridedLoads(plan.nest, axis)
    dtype = str(axis.var.ty)

    def store(first: Index, lanes: int) -> Stmt:
        start = at + first
        statements, buffers = apart.read(start, lanes, rest)

        def element(lane: Expr) -> Stmt:
            return substitute(apart.placed(plan.nest.stage.body, buffers, lane), {**rest, axis.var: start + lane})

        return sequence([*statements, repeat("lane", lanes, element, VECTORIZED, dtype)])

    return split_repeat("vector", count, plan.lanes, store, dtype)


def plain_code(plan: NestPlan, machine: Machine) -> Stmt:
    """Plain loops, spatial ones outside: LLVM vectorizes those that it can."""
    nest = plan.nest

    def body(values: list[Expr]) -> Stmt:
        mapping = {loop.var: value for loop, value in zip(nest.spatial, values, strict=True)}
        inner = substitute(nested(nest.reduction, nest.stage.body), mapping)
        init = None if nest.stage.init is None else substitute(nest.stage.init, mapping)
        return inner if init is None else sequence([init, inner])

    return parallel_grid(extents_of(nest.spatial), body, machine, parallel=plan.threads, cycles=plan.cycles)


def over_axis(plan: NestPlan, axis: Loop, machine: Machine, write: Write, step: int) -> Stmt:
    """Call `write(start, count, values of the other spatial loops)` over all spatial loops.

    The axis is split into runs, multiples of `step`, if the others are too short to keep every thread busy.
    """
    outer = [loop for loop in plan.nest.spatial if loop is not axis]
    dtype = str(axis.var.ty)
    if not isinstance(axis.extent, int):
        return _over_symbolic(plan, axis, outer, machine, write)
    run = axis.extent
    if plan.threads is not False and product(loop.extent for loop in outer) is not None:
        found = split_nest([loop.extent for loop in outer], machine, plan.cycles, ceil_div(axis.extent, step))
        run = min(run, found.run * step)
    full_runs, remaining = divmod(axis.extent, run)

    def body(values: list[Expr]) -> Stmt:
        mapping = {loop.var: value for loop, value in zip(outer, values[: len(outer)], strict=True)}
        if run == axis.extent:
            return write(index(0, dtype), run, mapping)
        here = write(values[-1] * run, run, mapping)
        if not remaining:
            return here
        return tirx.IfThenElse(values[-1] < full_runs, here, write(index(full_runs * run, dtype), remaining, mapping))

    runs = [Extent(f"{axis.var.name}_run", full_runs + (remaining > 0), dtype)] if run < axis.extent else []
    return parallel_grid([*extents_of(outer), *runs], body, machine, parallel=plan.threads, cycles=plan.cycles)


def _over_symbolic(plan: NestPlan, axis: Loop, outer: Sequence[Loop], machine: Machine, write: Write) -> Stmt:
    """Loops over full vectors, then shorter ones, of the axis or of a run of it."""
    dtype = str(axis.var.ty)

    def stretch(start: Expr, length: Expr, mapping: Mapping[Any, Expr]) -> Stmt:
        return in_vectors_of_halves(length, plan.lanes, lambda at, count: write(start + at, count, mapping))

    def body(values: list[Expr]) -> Stmt:
        mapping = {loop.var: value for loop, value in zip(outer, values[: len(outer)], strict=True)}
        extent = substitute(axis.extent, mapping)
        if not runs:
            return stretch(index(0, dtype), extent, mapping)
        start = values[-1] * run
        return stretch(start, tirx.Min(run, extent - start), mapping)

    run = index(_VECTORS_OF_A_RUN * plan.lanes, dtype)
    runs = []
    if _needs_runs(plan, axis, outer, machine):
        count = tirx.FloorDiv(axis.extent + (run - 1), run)
        runs = [Extent(f"{axis.var.name}_run", count, dtype)]
    return parallel_grid([*extents_of(outer), *runs], body, machine, parallel=plan.threads, cycles=plan.cycles)


def in_vectors_of_halves(extent: Expr, lanes: int, write: Callable[[Expr, int], Stmt]) -> Stmt:
    """`write(start, count)` over an extent that is known when the kernel runs: full vectors, then at most one of half
    their length, of a quarter and so on."""
    dtype = str(extent.ty)
    full = tirx.FloorDiv(extent, index(lanes, dtype))
    parts = [repeat("vector", full, lambda i: write(i * lanes, lanes), dtype=dtype)]
    done = full * lanes
    while lanes > 1:
        lanes //= 2
        parts.append(tirx.IfThenElse(extent - done >= lanes, write(done, lanes), None))
        done = tirx.FloorDiv(extent, index(lanes, dtype)) * lanes
    return sequence(parts)


def _needs_runs(plan: NestPlan, axis: Loop, others: Sequence[Loop], machine: Machine) -> bool:
    """True if the loops around an axis of unknown length are known to be too few tasks."""
    tasks = product(loop.extent for loop in others)
    ragged = any(uses(axis.extent, loop.var) for loop in others)
    return plan.threads is not False and not ragged and tasks is not None and tasks < chunks_at_run_time(machine)


def nested(inner_loops: Sequence[Loop], body: Stmt) -> Stmt:
    """Serial loops with fresh variables, since a body may be emitted more than once."""
    for loop in reversed(inner_loops):
        fresh = tirx.Var(str(loop.var.name), str(loop.var.ty))
        dtype = str(loop.var.ty)
        extent = index(loop.extent, dtype) if isinstance(loop.extent, int) else loop.extent
        body = tirx.For(fresh, index(0, dtype), extent, tirx.ForKind.SERIAL, substitute(body, {loop.var: fresh}))
    return body


def extents_of(items: Sequence[Loop]) -> list[Extent]:
    """Loops for `parallel.loops`."""
    return [Extent(str(loop.var.name), loop.extent, str(loop.var.ty)) for loop in items]


UNROLLED = tirx.ForKind.UNROLLED
# Independent sums that hide the latency of one multiply-add.
_ACCUMULATORS = 4


class _Reduction:
    """Writes the sums of a plan that has a reduction and an axis."""

    def __init__(self, plan: NestPlan, machine: Machine) -> None:
        self.plan = plan
        self.nest = plan.nest
        self.machine = machine
        self.lanes = plan.lanes

    def code(self) -> Stmt:
        plan, reduction, axis = self.plan, self.plan.reduction, self.plan.axis
        assert reduction is not None
        assert axis is not None
        if any(axis is loop for loop in self.nest.spatial):
            step = self.lanes * _ACCUMULATORS
            return over_axis(
                plan,
                axis,
                self.machine,
                # In a partial reduction, the length of a part depends on its number.
                lambda at, count, rest: substitute(self._across(reduction, axis, at, count, rest), rest),
                step,
            )

        def result(values: Sequence[Expr]) -> Stmt:
            position = {loop.var: value for loop, value in zip(self.nest.spatial, values, strict=True)}
            return substitute(self._along(reduction, axis, position), position)

        extents = extents_of(self.nest.spatial)
        return parallel_grid(extents, result, self.machine, parallel=plan.threads, cycles=plan.cycles)

    def _across(self, reduction: Reduction, axis: Loop, at: Expr, count: int, rest: Mapping[Var, Expr]) -> Stmt:
        """`count` neighboring results, one per lane."""
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
        totals = tirx.decl_buffer([count], reduction.dtype, "accumulator", scope="local", layout=None)

        def each(make: Callable[[Expr, Expr], Stmt]) -> Stmt:
            """`make(position in held, position in the axis)` for all of them."""

            def vector(u: Index) -> Stmt:
                def element(lane: Expr) -> Stmt:
                    return make(expression(u * lanes + lane, dtype), at + u * lanes + lane)

                return repeat("lane", lanes, element, VECTORIZED, dtype)

            return repeat("register", count // lanes, vector, UNROLLED, dtype)

        def at_point(expr: Node, point: Expr) -> Node:
            return substitute(expr, {**rest, axis.var: point})

        start = each(lambda i, point: tirx.BufferStore(totals, at_point(reduction.start, point), [i]))
        apart = StridedLoads(self.nest, axis)

        def update(u: int) -> Stmt:
            """One register of results."""
            statements, read = apart.read(at + u * lanes, lanes, rest)

            def add(lane: Expr) -> Stmt:
                position = expression(u * lanes + lane, dtype)
                total = tirx.BufferLoad(totals, [position])
                value = at_point(apart.placed(reduction.value, read, lane), at + u * lanes + lane)
                return tirx.BufferStore(totals, reduction.combiner.combine(total, value), [position])

            return sequence([*statements, repeat("lane", lanes, add, VECTORIZED, dtype)])

        updates = sequence([update(u) for u in range(count // lanes)])
        write = each(
            lambda i, point: at_point(
                tirx.BufferStore(reduction.store.buffer, tirx.BufferLoad(totals, [i]), list(reduction.store.indices)),
                point,
            )
        )
        return sequence([tirx.AllocBuffer(totals), start, nested(self.nest.reduction, updates), write])

    def _along(self, reduction: Reduction, axis: Loop, rest: Mapping[Var, Expr]) -> Stmt:
        """One result, summed in the lanes of several accumulators that are joined at the end."""
        dtype = str(axis.var.ty)
        lanes = self.lanes
        static = isinstance(axis.extent, int)
        registers = min(_ACCUMULATORS, axis.extent // lanes) if static else _ACCUMULATORS
        group = lanes * registers
        totals = tirx.decl_buffer([group], reduction.dtype, "accumulator", scope="local", layout=None)
        combine = reduction.combiner.combine

        def load(i: Expr) -> Expr:
            return tirx.BufferLoad(totals, [i])

        def vector(count: int, make: Callable[[Expr], Stmt]) -> Stmt:
            return repeat("lane", count, lambda lane: make(expression(lane, dtype)), VECTORIZED, dtype)

        def accumulate(i: Expr, point: Expr) -> Stmt:
            value = substitute(reduction.value, {**rest, axis.var: point})
            return tirx.BufferStore(totals, combine(load(i), value), [i])

        def in_group(at: Expr) -> Stmt:
            return repeat(
                "register",
                registers,
                lambda u: vector(lanes, lambda lane: accumulate(u * lanes + lane, at + u * lanes + lane)),
                UNROLLED,
                dtype,
            )

        groups = axis.extent // group if static else tirx.FloorDiv(axis.extent, index(group, dtype))
        parts = [repeat("group", groups, lambda g: in_group(g * group), dtype=dtype)]
        done = groups * group
        remaining = axis.extent - done

        def lanes_at(at: Index, count: int) -> Stmt:
            """A vector, or a shorter one, of the remainder of a group."""
            return vector(count, lambda lane: accumulate(lane, expression(done + at, dtype) + lane))

        if static:
            parts += [lanes_at(at, min(lanes, remaining - at)) for at in range(0, remaining, lanes)]
        else:
            parts.append(in_vectors_of_halves(remaining, lanes, lanes_at))
        body = nested([loop for loop in self.nest.reduction if loop is not axis], sequence(parts))
        identity = substitute(reduction.identity(), rest)
        start = vector(group, lambda i: tirx.BufferStore(totals, identity, [i]))
        joined = join(totals, group, combine, dtype)
        result = load(index(0, dtype))
        if reduction.joins_start():
            result = combine(substitute(reduction.start, rest), result)
        write = substitute(tirx.BufferStore(reduction.store.buffer, result, list(reduction.store.indices)), rest)
        return sequence([tirx.AllocBuffer(totals), start, body, *joined, write])


def join(held: Expr, count: int, combine: Callable[[Expr, Expr], Expr], dtype: str) -> list[Stmt]:
    """Statements that combine all of `held` into its first element, by halves."""
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
