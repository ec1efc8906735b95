"""Code for one stage: threads outside, vectors inside; a sum per lane, or one sum in the lanes of several
accumulators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from schedules.codegen.nest import Extent, loop, parallel_grid, repeat, sequence, split_repeat
from schedules.instructions.masks import is_valid, masked_accesses
from schedules.ir.expression import expression, index, nodes, substitute, uses
from schedules.ir.inline import EXPENSIVE_CALLS, call_name, has_branch
from schedules.ir.numbers import ceil_div
from schedules.ir.reduction import Reduction
from schedules.ir.stages import Stage, product
from schedules.ir.tir import VECTORIZED, Buffer, Expr, Index, Node, Stmt, Var, structural_map, tirx, tvm
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
Write = Callable[[Expr, int, Mapping[Any, Expr], "Expr | None"], Stmt]
"""Code for `count` elements from a start, at a position of the other loops; of the last, only some are valid if given.
"""


def elementwise_code(plan: NestPlan, machine: Machine) -> Stmt:
    """Vectors along the plan's axis."""
    axis = plan.axis
    assert axis is not None
    values, body = _hoisted_calls(plan.nest.stage.body, axis.var)
    return over_axis(plan, axis, machine, partial(_vector_store, plan, axis, body), plan.lanes, values)


def _hoisted_calls(body: Stmt, var: Var) -> tuple[dict[Var, Expr], Stmt]:
    """The elementary functions of a body that are the same along `var`, by new variables, and the body with these.

    LLVM would not hoist them: their constants are in memory, which the body might store to.
    """
    values: dict[Var, Expr] = {}
    inside = [var, *(let.var for let in nodes(body, tirx.Let))]

    def hoisted(call: Expr) -> Expr:
        if call_name(call) not in EXPENSIVE_CALLS or any(uses(call, each) for each in inside):
            return call
        value = tirx.Var("invariant", str(call.ty))
        values[value] = call
        return value

    return values, body if has_branch(body) else structural_map(body, (tvm.ir.Call, hoisted))


def interleaved_code(plan: NestPlan, machine: Machine) -> Stmt:
    """Vectors along the plan's axis of each interleaved value, stored as this many vectors of all values."""
    axis = plan.axis
    assert axis is not None

    def write(at: Expr, count: int, rest: Mapping[Var, Expr], _valid: None) -> Stmt:
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


def _vector_store(
    plan: NestPlan,
    axis: Loop,
    body: Stmt,
    at: Expr,
    count: int,
    rest: Mapping[Var, Expr],
    valid: Expr | None,
) -> Stmt:
    """`count` elements starting at `at`, in whole vectors and a shorter or masked one."""
    apart = StridedLoads(plan.nest, axis)
    dtype = str(axis.var.ty)

    def store(first: Index, lanes: int) -> Stmt:
        start = at + first
        lanes, few = end_of_axis(plan, lanes, valid, dtype)
        statements, buffers = apart.read(start, lanes, rest)

        def element(lane: Expr) -> Stmt:
            placed = masked_end(plan, axis, apart.placed(body, buffers, lane), lane, few)
            return substitute(placed, {**rest, axis.var: start + lane})

        return sequence([*statements, repeat("lane", lanes, element, VECTORIZED, dtype)])

    return split_repeat("vector", count, plan.lanes, store, dtype)


def end_of_axis(plan: NestPlan, count: int, valid: Expr | None, dtype: str) -> tuple[int, Expr | None]:
    """(elements, valid ones) of a vector of `count`: a masked one, if the count is known and not a power of 2."""
    if plan.masked and count < plan.lanes and count & (count - 1):
        return plan.lanes, index(count, dtype)
    return count, valid


def masked_end(plan: NestPlan, axis: Loop, root: Node, lane: Expr, valid: Expr | None) -> Node:
    """A lane of a nest's expression or statement; with masked accesses if only some lanes are valid."""
    return root if valid is None else masked_accesses(root, axis.var, is_valid(lane, valid), plan.whole)


def plain_code(plan: NestPlan, machine: Machine) -> Stmt:
    """Plain loops, spatial ones outside: LLVM vectorizes those that it can."""
    nest = plan.nest

    def body(values: list[Expr]) -> Stmt:
        mapping = {loop.var: value for loop, value in zip(nest.spatial, values, strict=True)}
        inner = substitute(nested(nest.reduction, nest.stage.body), mapping)
        init = None if nest.stage.init is None else substitute(nest.stage.init, mapping)
        return inner if init is None else sequence([init, inner])

    return parallel_grid(extents_of(nest.spatial), body, machine, parallel=plan.threads, cycles=plan.cycles)


def over_axis(
    plan: NestPlan, axis: Loop, machine: Machine, write: Write, step: int, values: Mapping[Var, Expr] | None = None
) -> Stmt:
    """Call `write(start, count, values of the other spatial loops, None)` over all spatial loops.

    The axis is split into runs, multiples of `step`, if the others are too short to keep every thread busy. `values`
    are computed before the axis.
    """
    outer = [loop for loop in plan.nest.spatial if loop is not axis]
    dtype = str(axis.var.ty)
    if not isinstance(axis.extent, int):
        return _over_symbolic(plan, axis, outer, machine, write, values or {})
    run = axis.extent
    if plan.threads is not False and product(loop.extent for loop in outer) is not None:
        found = split_nest([loop.extent for loop in outer], machine, plan.cycles, ceil_div(axis.extent, step))
        run = min(run, found.run * step)
    full_runs, remaining = divmod(axis.extent, run)

    def body(at: list[Expr]) -> Stmt:
        mapping = {loop.var: value for loop, value in zip(outer, at[: len(outer)], strict=True)}
        computed = _computed(values or {}, mapping)
        if run == axis.extent:
            return sequence([*computed, write(index(0, dtype), run, mapping, None)])
        here = write(at[-1] * run, run, mapping, None)
        if not remaining:
            return sequence([*computed, here])
        last = write(index(full_runs * run, dtype), remaining, mapping, None)
        return sequence([*computed, tirx.IfThenElse(at[-1] < full_runs, here, last)])

    runs = [Extent(f"{axis.var.name}_run", full_runs + (remaining > 0), dtype)] if run < axis.extent else []
    return parallel_grid([*extents_of(outer), *runs], body, machine, parallel=plan.threads, cycles=plan.cycles)


def _computed(values: Mapping[Var, Expr], mapping: Mapping[Var, Expr]) -> list[Stmt]:
    return [tirx.Bind(var, substitute(value, mapping)) for var, value in values.items()]


def _over_symbolic(
    plan: NestPlan, axis: Loop, outer: Sequence[Loop], machine: Machine, write: Write, values: Mapping[Var, Expr]
) -> Stmt:
    """Loops over full vectors, then a masked one or shorter ones, of the axis or of a run of it."""
    dtype = str(axis.var.ty)
    in_vectors = in_masked_vectors if plan.masked else in_vectors_of_halves

    def stretch(start: Expr, length: Expr, mapping: Mapping[Any, Expr]) -> Stmt:
        return in_vectors(length, plan.lanes, lambda at, count, valid: write(start + at, count, mapping, valid))

    def body(at: list[Expr]) -> Stmt:
        mapping = {loop.var: value for loop, value in zip(outer, at[: len(outer)], strict=True)}
        extent = substitute(axis.extent, mapping)
        start = at[-1] * run if runs else index(0, dtype)
        code = stretch(start, tirx.Min(run, extent - start) if runs else extent, mapping)
        return tirx.IfThenElse(extent > 0, sequence(_computed(values, mapping), code), None) if values else code

    run = index(_VECTORS_OF_A_RUN * plan.lanes, dtype)
    runs = []
    if _needs_runs(plan, axis, outer, machine):
        count = tirx.FloorDiv(axis.extent + (run - 1), run)
        runs = [Extent(f"{axis.var.name}_run", count, dtype)]
    return parallel_grid([*extents_of(outer), *runs], body, machine, parallel=plan.threads, cycles=plan.cycles)


WritePart = Callable[[Expr, int, "Expr | None"], Stmt]


def in_masked_vectors(extent: Expr, lanes: int, write: WritePart) -> Stmt:
    """`write(start, count, valid)` over an extent that is known when the kernel runs: full vectors, then one of which
    some lanes are valid."""
    full, done = _full_vectors(extent, lanes, write)
    return sequence([full, tirx.IfThenElse(extent - done > 0, write(done, lanes, extent - done), None)])


def in_vectors_of_halves(extent: Expr, lanes: int, write: WritePart) -> Stmt:
    """`write(start, count, None)` over an extent that is known when the kernel runs: full vectors, then at most one of
    half their length, of a quarter and so on."""
    full, done = _full_vectors(extent, lanes, write)
    parts = [full]
    while lanes > 1:
        lanes //= 2
        parts.append(tirx.IfThenElse(extent - done >= lanes, write(done, lanes, None), None))
        done = tirx.FloorDiv(extent, index(lanes, str(extent.ty))) * lanes
    return sequence(parts)


def _full_vectors(extent: Expr, lanes: int, write: WritePart) -> tuple[Stmt, Expr]:
    """The loop over full vectors, and where it ends."""
    dtype = str(extent.ty)
    full = tirx.FloorDiv(extent, index(lanes, dtype))
    return repeat("vector", full, lambda i: write(i * lanes, lanes, None), dtype=dtype), full * lanes


def _needs_runs(plan: NestPlan, axis: Loop, others: Sequence[Loop], machine: Machine) -> bool:
    """True if the loops around an axis of unknown length are known to be too few tasks."""
    tasks = product(loop.extent for loop in others)
    ragged = any(uses(axis.extent, loop.var) for loop in others)
    return plan.threads is not False and not ragged and tasks is not None and tasks < chunks_at_run_time(machine)


def nested(inner_loops: Sequence[Loop], body: Stmt) -> Stmt:
    """Serial loops with fresh variables, since a body may be emitted more than once."""
    for each in reversed(inner_loops):
        fresh = tirx.Var(str(each.var.name), str(each.var.ty))
        body = loop(fresh, each.extent, substitute(body, {each.var: fresh}))
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
                lambda at, count, rest, valid: substitute(self._across(reduction, axis, at, count, rest, valid), rest),
                step,
            )

        def result(values: Sequence[Expr]) -> Stmt:
            position = {loop.var: value for loop, value in zip(self.nest.spatial, values, strict=True)}
            return substitute(self._along(reduction, axis, position), position)

        extents = extents_of(self.nest.spatial)
        return parallel_grid(extents, result, self.machine, parallel=plan.threads, cycles=plan.cycles)

    def _across(
        self, reduction: Reduction, axis: Loop, at: Expr, count: int, rest: Mapping[Var, Expr], valid: Expr | None
    ) -> Stmt:
        """`count` neighboring results, one per lane."""
        dtype = str(axis.var.ty)
        group = self.lanes * _ACCUMULATORS

        def some(start: Index, size: int) -> Stmt:
            vectors = size // self.lanes * self.lanes
            parts = [(start, vectors), (start + vectors, size - vectors)]
            return sequence([self._lane_sums(reduction, axis, at + first, n, rest, valid) for first, n in parts if n])

        return split_repeat("group", count, group, some, dtype)

    def _lane_sums(
        self, reduction: Reduction, axis: Loop, at: Expr, count: int, rest: Mapping[Var, Expr], valid: Expr | None
    ) -> Stmt:
        """At most `_ACCUMULATORS` vectors of results, held in registers while summing."""
        dtype = str(axis.var.ty)
        count, valid = end_of_axis(self.plan, count, valid, dtype)
        lanes = min(self.lanes, count)
        totals = tirx.decl_buffer([count], reduction.dtype, "accumulator", scope="local", layout=None)

        masked = partial(masked_end, self.plan, axis, valid=valid)

        def each(make: Callable[[Expr], Stmt]) -> Stmt:
            """`make(position in held)`, at the position in the axis, for all of them."""

            def vector(u: Index) -> Stmt:
                def element(lane: Expr) -> Stmt:
                    store = masked(make(expression(u * lanes + lane, dtype)), lane=lane)
                    return substitute(store, {**rest, axis.var: at + u * lanes + lane})

                return repeat("lane", lanes, element, VECTORIZED, dtype)

            return repeat("register", count // lanes, vector, UNROLLED, dtype)

        start = each(lambda i: tirx.BufferStore(totals, reduction.start, [i]))
        apart = StridedLoads(self.nest, axis)

        def update(u: int) -> Stmt:
            """One register of results."""
            statements, read = apart.read(at + u * lanes, lanes, rest)

            def add(lane: Expr) -> Stmt:
                position = expression(u * lanes + lane, dtype)
                total = tirx.BufferLoad(totals, [position])
                value = masked(apart.placed(reduction.value, read, lane), lane=lane)
                value = substitute(value, {**rest, axis.var: at + u * lanes + lane})
                return tirx.BufferStore(totals, reduction.combiner.combine(total, value), [position])

            return sequence([*statements, repeat("lane", lanes, add, VECTORIZED, dtype)])

        updates = sequence([update(u) for u in range(count // lanes)])
        write = each(
            lambda i: tirx.BufferStore(
                reduction.store.buffer, tirx.BufferLoad(totals, [i]), list(reduction.store.indices)
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
        outer = [loop for loop in self.nest.reduction if loop is not axis]
        # A sum of unknown length, which may be short, has a single accumulator beside those of whole groups.
        single = not static and not outer
        groups = tirx.decl_buffer([group], reduction.dtype, "accumulator", scope="local", layout=None)
        totals = tirx.decl_buffer([lanes], reduction.dtype, "total", scope="local", layout=None) if single else groups
        combine = reduction.combiner.combine
        identity = substitute(reduction.identity(), rest)

        def vector(count: int, make: Callable[[Expr], Stmt]) -> Stmt:
            return repeat("lane", count, lambda lane: make(expression(lane, dtype)), VECTORIZED, dtype)

        def started(buffer: Buffer, count: int) -> Stmt:
            return vector(count, lambda lane: tirx.BufferStore(buffer, identity, [lane]))

        def accumulate(buffer: Buffer, i: Expr, point: Expr, valid: Expr | None = None) -> Stmt:
            total = tirx.BufferLoad(buffer, [i])
            value = masked_end(self.plan, axis, reduction.value, i, valid)
            value = combine(total, substitute(value, {**rest, axis.var: point}))
            value = value if valid is None else tirx.Select(is_valid(i, valid), value, total)
            return tirx.BufferStore(buffer, value, [i])

        def in_group(at: Expr) -> Stmt:
            return repeat(
                "register",
                registers,
                lambda u: vector(lanes, lambda lane: accumulate(groups, u * lanes + lane, at + u * lanes + lane)),
                UNROLLED,
                dtype,
            )

        count = axis.extent // group if static else tirx.FloorDiv(axis.extent, index(group, dtype))
        whole = repeat("group", count, lambda g: in_group(g * group), dtype=dtype)
        if single:
            moved = vector(lanes, lambda lane: tirx.BufferStore(totals, tirx.BufferLoad(groups, [lane]), [lane]))
            joined = join(groups, group, combine, dtype, least=lanes)
            grouped = sequence([tirx.AllocBuffer(groups), started(groups, group), whole, *joined, moved])
            whole = tirx.IfThenElse(count > 0, grouped, started(totals, lanes))
        done = count * group
        remaining = axis.extent - done

        def lanes_at(at: Index, count: int, valid: Expr | None) -> Stmt:
            """A vector, or a shorter or masked one, of the remainder of a group."""
            start = expression(done + at, dtype)
            count, valid = end_of_axis(self.plan, count, valid, dtype)
            return vector(count, lambda lane: accumulate(totals, lane, start + lane, valid))

        if static:
            end = sequence([lanes_at(at, min(lanes, remaining - at), None) for at in range(0, remaining, lanes)])
        else:
            end = (in_masked_vectors if self.plan.masked else in_vectors_of_halves)(remaining, lanes, lanes_at)
        body = nested(outer, sequence([whole, end]))
        first = None if single else started(totals, group)
        joins = join(totals, lanes if single else group, combine, dtype)
        result = tirx.BufferLoad(totals, [index(0, dtype)])
        if reduction.joins_start():
            result = combine(substitute(reduction.start, rest), result)
        write = substitute(tirx.BufferStore(reduction.store.buffer, result, list(reduction.store.indices)), rest)
        return sequence(tirx.AllocBuffer(totals), first, body, joins, write)


def join(held: Expr, count: int, combine: Callable[[Expr, Expr], Expr], dtype: str, least: int = 1) -> list[Stmt]:
    """Statements that combine the first `count` elements of `held` into the first `least`, by halves."""
    steps = []
    while count > least:
        half = count // 2
        keep = count - half

        def join(i: Index, keep: int = keep) -> Stmt:
            first, second = expression(i, dtype), expression(i + keep, dtype)
            value = combine(tirx.BufferLoad(held, [first]), tirx.BufferLoad(held, [second]))
            return tirx.BufferStore(held, value, [first])

        steps.append(repeat("lane", half, join, VECTORIZED, dtype))
        count = keep
    return steps
