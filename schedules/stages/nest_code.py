"""Code for one planned nest that is not a reduction, and the loops that all vectors run in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from schedules.codegen.nest import Extent, parallel_grid, repeat, sequence, split_repeat
from schedules.cuts import chunks_at_run_time, cut_nest
from schedules.ir.expression import index, substitute, uses
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import product
from schedules.ir.tir import VECTORIZED, Expr, Index, Stmt, Var, tirx
from schedules.machine import Machine
from schedules.stages.collapsed_loops import Loop
from schedules.stages.lanes import picked, ramp
from schedules.stages.plan import NestPlan
from schedules.stages.strided_loads import StridedLoads

# Of an axis of unknown length: a few hundred cycles.
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
    """Vectors along the plan's axis of each interleaved value, stored as so many vectors of all."""
    axis = plan.axis
    assert axis is not None

    def write(at: Expr, count: int, rest: Mapping[Var, Expr]) -> Stmt:
        def vector(start: Index, lanes: int) -> Stmt:
            return _interleaved(plan, axis, at + start, lanes, rest)

        return split_repeat("vector", count, plan.lanes, vector, str(axis.var.ty))

    return over_axis(plan, axis, machine, write, plan.lanes)


def _interleaved(plan: NestPlan, axis: Loop, start: Expr, lanes: int, rest: Mapping[Var, Expr]) -> Stmt:
    """`lanes` elements of each value from `start` on."""
    stores = list(plan.nest.stage.body.seq)
    first = {**rest, axis.var: start}
    if lanes == 1:
        return sequence([substitute(store, first) for store in stores])
    statements: list[Stmt] = []
    vectors = []
    for store in stores:
        held = tirx.decl_buffer([lanes], str(store.buffer.dtype), "turn", scope="local", layout=None)

        def element(lane: Expr, store: Stmt = store, held: Expr = held) -> Stmt:
            return tirx.BufferStore(held, substitute(store.value, {**rest, axis.var: start + lane}), [lane])

        statements += [tirx.AllocBuffer(held), repeat("lane", lanes, element, VECTORIZED)]
        vectors.append(tirx.BufferLoad(held, [ramp(index(0), lanes)]))
    *outer, last = [substitute(point, first) for point in stores[0].indices]
    for number in range(len(stores)):
        places = [divmod(number * lanes + lane, len(stores)) for lane in range(lanes)]
        parts = [
            (vector, {lane: at for lane, (at, turn) in enumerate(places) if turn == own})
            for own, vector in enumerate(vectors)
        ]
        value = picked([part for part in parts if part[1]], lanes)
        statements.append(tirx.BufferStore(stores[0].buffer, value, [*outer, ramp(last + number * lanes, lanes)]))
    return sequence(statements)


def _vector_store(plan: NestPlan, axis: Loop, at: Expr, count: int, rest: Mapping[Var, Expr]) -> Stmt:
    """`count` elements from `at` on, in whole vectors and a shorter one."""

    apart = StridedLoads(plan.nest, axis)
    dtype = str(axis.var.ty)

    def store(first: Index, lanes: int) -> Stmt:
        start = at + first
        statements, held = apart.read(start, lanes, rest)

        def element(lane: Expr) -> Stmt:
            return substitute(apart.placed(plan.nest.stage.body, held, lane), {**rest, axis.var: start + lane})

        return sequence([*statements, repeat("lane", lanes, element, VECTORIZED, dtype)])

    return split_repeat("vector", count, plan.lanes, store, dtype)


def plain_code(plan: NestPlan, machine: Machine) -> Stmt:
    """Plain loops, spatial ones outside: LLVM vectorizes what it can."""
    nest = plan.nest

    def body(values: list[Expr]) -> Stmt:
        mapping = {loop.var: value for loop, value in zip(nest.spatial, values, strict=True)}
        inner = substitute(nest.stage.body, mapping)
        inner = nested(nest.reduction, inner)
        init = None if nest.stage.init is None else substitute(nest.stage.init, mapping)
        return inner if init is None else sequence([init, inner])

    return parallel_grid(extents_of(nest.spatial), body, machine, parallel=plan.threads, cycles=plan.cycles)


def over_axis(plan: NestPlan, axis: Loop, machine: Machine, write: Write, step: int) -> Stmt:
    """Call `write(start, count, values of the other spatial loops)` over the whole of the spatial loops.

    The axis is cut into runs, multiples of `step`, when the others do not give every thread its share.
    """
    others = [loop for loop in plan.nest.spatial if loop is not axis]
    dtype = str(axis.var.ty)
    if not isinstance(axis.extent, int):
        return _over_symbolic(plan, axis, others, machine, write)
    run = axis.extent
    if plan.threads is not False and product(loop.extent for loop in others) is not None:
        found = cut_nest([loop.extent for loop in others], machine, plan.cycles, ceil_div(axis.extent, step))
        run = min(run, found.run * step)
    whole, left = divmod(axis.extent, run)

    def body(values: list[Expr]) -> Stmt:
        mapping = {loop.var: value for loop, value in zip(others, values[: len(others)], strict=True)}
        if run == axis.extent:
            return write(index(0, dtype), run, mapping)
        here = write(values[-1] * run, run, mapping)
        if not left:
            return here
        return tirx.IfThenElse(values[-1] < whole, here, write(index(whole * run, dtype), left, mapping))

    runs = [Extent(f"{axis.var.name}_run", whole + (left > 0), dtype)] if run < axis.extent else []
    return parallel_grid([*extents_of(others), *runs], body, machine, parallel=plan.threads, cycles=plan.cycles)


def _over_symbolic(plan: NestPlan, axis: Loop, others: Sequence[Loop], machine: Machine, write: Write) -> Stmt:
    """Loops over full vectors, then single elements, of the axis or of a run of it."""
    dtype = str(axis.var.ty)
    lanes = index(plan.lanes, dtype)

    def stretch(start: Expr, length: Expr, mapping: Mapping[Any, Expr]) -> Stmt:
        whole = tirx.FloorDiv(length, lanes)
        vectors = repeat("vector", whole, lambda i: write(start + i * lanes, plan.lanes, mapping), dtype=dtype)
        left = length - whole * lanes
        single = repeat("rest", left, lambda i: write(start + whole * lanes + i, 1, mapping), dtype=dtype)
        return sequence([vectors, single])

    def body(values: list[Expr]) -> Stmt:
        mapping = {loop.var: value for loop, value in zip(others, values[: len(others)], strict=True)}
        extent = substitute(axis.extent, mapping)
        if not runs:
            return stretch(index(0, dtype), extent, mapping)
        start = values[-1] * run
        return stretch(start, tirx.Min(run, extent - start), mapping)

    run = index(_VECTORS_OF_A_RUN * plan.lanes, dtype)
    runs = []
    if _needs_runs(plan, axis, others, machine):
        count = tirx.FloorDiv(axis.extent + (run - 1), run)
        runs = [Extent(f"{axis.var.name}_run", count, dtype)]
    return parallel_grid([*extents_of(others), *runs], body, machine, parallel=plan.threads, cycles=plan.cycles)


def _needs_runs(plan: NestPlan, axis: Loop, others: Sequence[Loop], machine: Machine) -> bool:
    """True if the loops around an axis of unknown length are known to be too few tasks."""
    tasks = product(loop.extent for loop in others)
    ragged = any(uses(axis.extent, loop.var) for loop in others)
    return plan.threads is not False and not ragged and tasks is not None and tasks < chunks_at_run_time(machine)


def nested(inner_loops: Sequence[Loop], body: Stmt) -> Stmt:
    """Serial loops, fresh variables: a body may be written more than once."""
    for loop in reversed(inner_loops):
        fresh = tirx.Var(str(loop.var.name), str(loop.var.ty))
        dtype = str(loop.var.ty)
        extent = index(loop.extent, dtype) if isinstance(loop.extent, int) else loop.extent
        body = tirx.For(fresh, index(0, dtype), extent, tirx.ForKind.SERIAL, substitute(body, {loop.var: fresh}))
    return body


def extents_of(items: Sequence[Loop]) -> list[Extent]:
    """Loops for `parallel.loops`."""
    return [Extent(str(loop.var.name), loop.extent, str(loop.var.ty)) for loop in items]
