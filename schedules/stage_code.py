"""Code for one stage: threads outside, vectors inside, whatever its form.

Elementwise stages are vectorized along the axis in which they store contiguously. Reductions are vectorized along such
an axis when there is one (every lane sums for itself), else along the axis they sum over (lanes are joined at the end).
What has no such axis runs as scalar loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from schedules.axis_splitting import split_axes
from schedules.branch import split_branches
from schedules.expression import index, substitute, uses
from schedules.index_arithmetic import with_plain_indices
from schedules.inline import IF_THEN_ELSE, call_name
from schedules.kernel import Stage, product
from schedules.loops import Loop, LoopNest, loop_nest_of
from schedules.machine import Machine
from schedules.parallel import CHUNKS_PER_CORE, Extent, loops, pays_off, repeat, work
from schedules.reduction import Reduction, reduction_of
from schedules.tir import structural_walk, tirx, tvm
from schedules.transpose_code import find_transpose, transpose_code

Expr = Any
Stmt = Any

VECTORIZED = tirx.ForKind.VECTORIZED
UNROLLED = tirx.ForKind.UNROLLED
# Independent sums that hide the latency of one multiply-add.
_ACCUMULATORS = 4


def stage_code(stage: Stage, machine: Machine, *, parallel: bool = True) -> Stmt:
    """The stage as a statement; `parallel=False` when it runs inside a parallel loop already."""
    stage = with_plain_indices(stage)
    pieces = [part for piece in split_branches(stage) for part in split_axes(with_plain_indices(piece))]
    shared = _shared_axis(stage, pieces, machine) if parallel else None
    if shared is not None:
        return _pieces_together(pieces, shared, machine)
    return in_sequence([_piece_code(piece, machine, parallel) for piece in pieces])


def _shared_axis(stage: Stage, pieces: Sequence[Stage], machine: Machine) -> int | None:
    """A loop that is whole in each of several pieces and gives every thread its share; None when there is none, or
    threads do not pay. One parallel loop then takes the place of one a piece, each with threads to wait for."""
    total = work([axis.extent for axis in stage.axes], stage.body)
    if len(pieces) < 2 or pays_off(total, machine) is not True:
        return None
    *outer, _ = stage.spatial  # vectors run along the last
    for position, axis in enumerate(stage.axes):
        enough = isinstance(axis.extent, int) and axis.extent >= CHUNKS_PER_CORE * machine.cores
        if axis in outer and enough and all(piece.axes[position] is axis for piece in pieces):
            return position
    return None


def _pieces_together(pieces: Sequence[Stage], position: int, machine: Machine) -> Stmt:
    """One parallel loop over the shared axis, all pieces inside."""
    axis = pieces[0].axes[position]

    def task(values: list[Expr]) -> Stmt:
        return in_sequence([_piece_code(piece.with_axes(position, [], values[0]), machine, False) for piece in pieces])

    return loops([Extent(axis.name, axis.extent, str(axis.var.ty))], task, machine, parallel=True)


def in_sequence(statements: Sequence[Stmt]) -> Stmt:
    """One statement of several; none at all is a statement without effect."""
    if not statements:
        return tirx.Evaluate(tirx.IntImm("int32", 0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def _piece_code(stage: Stage, machine: Machine, parallel: bool) -> Stmt:
    if any(axis.extent == 0 for axis in stage.spatial):
        return in_sequence([])
    if any(axis.extent == 0 for axis in stage.reduction):
        return (
            _piece_code(Stage(stage.name, stage.spatial, stage.init), machine, parallel)
            if stage.init
            else in_sequence([])
        )
    nest = loop_nest_of(stage)
    amount = work([axis.extent for axis in stage.axes], stage.body)
    threads = pays_off(amount, machine) if parallel else False
    writer = _Writer(nest, machine, threads)
    return writer.reduction() if stage.reduction else writer.elementwise()


class _Writer:
    """Writes one collapsed nest."""

    def __init__(self, nest: LoopNest, machine: Machine, threads: bool | Expr) -> None:
        self.nest = nest
        self.stage = nest.stage
        self.machine = machine
        self.threads = threads
        self.lanes = nest.lanes(machine)

    # Elementwise.

    def elementwise(self) -> Stmt:
        axis = self._vector_axis(self.nest.spatial)
        if axis is None:
            found = find_transpose(self.nest)
            if found is not None and not self._has_branch_on(found.target) and not self._has_branch_on(found.source):
                return transpose_code(self.nest, found, self.machine, self.lanes, threads=self.threads)
        if axis is None or self._has_branch_on(axis):
            return self._scalar()
        return self._over(axis, lambda at, count, rest: self._vector_store(axis, at, count, rest))

    def _vector_store(self, axis: Loop, at: Expr, count: int, rest: Mapping[Any, Expr]) -> Stmt:
        """`count` elements from `at` on, in whole vectors and a shorter one."""

        def store(start: Expr, lanes: int) -> Stmt:
            return repeat(
                "lane",
                lanes,
                lambda lane: substitute(self.stage.body, {**rest, axis.var: start + lane}),
                VECTORIZED,
                str(axis.var.ty),
            )

        whole, left = divmod(count, self.lanes)
        parts = []
        if whole:
            parts.append(
                repeat("vector", whole, lambda i: store(at + i * self.lanes, self.lanes), dtype=str(axis.var.ty))
            )
        if left:
            parts.append(store(at + whole * self.lanes, left))
        return in_sequence(parts)

    def _scalar(self) -> Stmt:
        """Plain loops, spatial ones outside: LLVM vectorizes what it can."""

        def body(values: list[Expr]) -> Stmt:
            mapping = {loop.var: value for loop, value in zip(self.nest.spatial, values, strict=True)}
            inner = substitute(self.stage.body, mapping)
            inner = _nested(self.nest.reduction, inner)
            init = None if self.stage.init is None else substitute(self.stage.init, mapping)
            return inner if init is None else in_sequence([init, inner])

        return loops(_extents(self.nest.spatial), body, self.machine, parallel=self.threads)

    # What both share.

    def _vector_axis(self, candidates: Sequence[Loop]) -> Loop | None:
        """The loop in which every store moves by one element and every load by one or none."""
        for loop in reversed(candidates):
            if self.nest.is_contiguous(loop) and all(loop.strides[i] == 1 for i in self.nest.stores):
                return loop if self.stage.store is not None else None
        return None

    def _has_branch_on(self, loop: Loop) -> bool:
        """A branch that differs between lanes would be taken lane by lane; LLVM may turn it into a mask instead."""
        found = False

        def visit(call: Any) -> None:
            nonlocal found
            found = found or (call_name(call) == IF_THEN_ELSE and uses(call.args[0], loop.var))

        structural_walk(self.stage.body, (tvm.ir.Call, visit))
        return found

    def _over(
        self, axis: Loop, write: Callable[[Expr, int, Mapping[Any, Expr]], Stmt], step: int | None = None
    ) -> Stmt:
        """Call `write(start, count, values of the other spatial loops)` over the whole of the spatial loops.

        The axis is cut into chunks when the others do not give every thread its share.
        """
        others = [loop for loop in self.nest.spatial if loop is not axis]
        dtype = str(axis.var.ty)
        step = step or self.lanes
        if not isinstance(axis.extent, int):
            return self._over_symbolic(axis, others, write)
        count = product(loop.extent for loop in others)
        enough = CHUNKS_PER_CORE * self.machine.cores
        chunk = axis.extent
        if self.threads is not False and count is not None and count < enough:
            pieces = max(1, min(axis.extent // step, -(-enough // max(count, 1))))
            chunk = min(axis.extent, max(step, axis.extent // pieces // step * step))
        whole, left = divmod(axis.extent, chunk)

        def body(values: list[Expr]) -> Stmt:
            mapping = {loop.var: value for loop, value in zip(others, values[: len(others)], strict=True)}
            start = values[-1] * chunk if whole > 1 else index(0, dtype)
            return write(start, chunk, mapping)

        chunks = [Extent(f"{axis.var.name}_chunk", whole, dtype)] if whole > 1 else []
        parts = [loops([*_extents(others), *chunks], body, self.machine, parallel=self.threads)]
        if left:
            parts.append(self._serial(others, lambda mapping: write(index(whole * chunk, dtype), left, mapping)))
        return in_sequence(parts)

    def _over_symbolic(
        self, axis: Loop, others: Sequence[Loop], write: Callable[[Expr, int, Mapping[Any, Expr]], Stmt]
    ) -> Stmt:
        """Whole vectors, then single elements."""
        dtype = str(axis.var.ty)
        lanes = index(self.lanes, dtype)
        whole = tirx.FloorDiv(axis.extent, lanes)

        def body(values: list[Expr]) -> Stmt:
            mapping = {loop.var: value for loop, value in zip(others, values, strict=True)}
            extent = substitute(axis.extent, mapping)
            vectors = repeat("vector", whole, lambda i: write(i * lanes, self.lanes, mapping), dtype=dtype)
            left = extent - whole * lanes
            single = repeat("rest", left, lambda i: write(whole * lanes + i, 1, mapping), dtype=dtype)
            return in_sequence([vectors, single])

        return loops(_extents(others), body, self.machine, parallel=self.threads)

    def _serial(self, others: Sequence[Loop], body: Callable[[Mapping[Any, Expr]], Stmt]) -> Stmt:
        def inner(values: list[Expr]) -> Stmt:
            return body({loop.var: value for loop, value in zip(others, values, strict=True)})

        return loops(_extents(others), inner, self.machine, parallel=False)

    # Reductions.

    def reduction(self) -> Stmt:
        reduction = reduction_of(self.stage)
        if reduction is None:
            return self._scalar()
        across = self._lane_axis(reduction)
        along = self._sum_axis(reduction)
        if across is not None and (along is None or not isinstance(across.extent, int) or across.extent >= self.lanes):
            step = self.lanes * _ACCUMULATORS
            return self._over(across, lambda at, count, rest: self._across(reduction, across, at, count, rest), step)
        if along is not None:
            return loops(
                _extents(self.nest.spatial),
                lambda values: self._along(reduction, along, self._values(values)),
                self.machine,
                parallel=self.threads,
            )
        return self._scalar()

    def _values(self, values: Sequence[Expr]) -> dict[Any, Expr]:
        return {loop.var: value for loop, value in zip(self.nest.spatial, values, strict=True)}

    def _lane_axis(self, reduction: Reduction) -> Loop | None:
        axis = self._vector_axis(self.nest.spatial)
        moves = [i for i, access in enumerate(self.nest.accesses) if not access.buffer.same_as(reduction.store.buffer)]
        if axis is None or self._has_branch_on(axis) or not any(axis.strides[i] == 1 for i in moves):
            return None
        return axis

    def _sum_axis(self, reduction: Reduction) -> Loop | None:
        """The innermost loop summed over in which the operands are contiguous, when it fills a vector."""
        for loop in reversed(self.nest.reduction):
            contiguous = set(loop.strides) <= {0, 1} and 1 in loop.strides
            long_enough = not isinstance(loop.extent, int) or loop.extent >= self.lanes
            if contiguous and long_enough and not self._has_branch_on(loop):
                return loop
        return None

    def _across(self, reduction: Reduction, axis: Loop, at: Expr, count: int, rest: Mapping[Any, Expr]) -> Stmt:
        """`count` neighbouring results, each lane summing its own."""
        dtype = str(axis.var.ty)
        group = self.lanes * _ACCUMULATORS
        whole, left = divmod(count, group)
        parts = []
        if whole:
            parts.append(
                repeat(
                    "group", whole, lambda i: self._lane_sums(reduction, axis, at + i * group, group, rest), dtype=dtype
                )
            )
        vectors, single = divmod(left, self.lanes)
        if vectors:
            start = at + whole * group
            parts.append(self._lane_sums(reduction, axis, start, vectors * self.lanes, rest))
        if single:
            parts.append(self._lane_sums(reduction, axis, at + (count - single), single, rest))
        return in_sequence(parts)

    def _lane_sums(self, reduction: Reduction, axis: Loop, at: Expr, count: int, rest: Mapping[Any, Expr]) -> Stmt:
        """At most `_ACCUMULATORS` vectors of results, held in registers while summing."""
        dtype = str(axis.var.ty)
        lanes = min(self.lanes, count)
        held = tirx.decl_buffer([count], reduction.dtype, "accumulator", scope="local", layout=None)

        def each(make: Callable[[Expr, Expr], Stmt]) -> Stmt:
            """`make(position in held, position in the axis)` for all of them."""
            return repeat(
                "register",
                count // lanes,
                lambda u: repeat(
                    "lane", lanes, lambda lane: make(u * lanes + lane, at + u * lanes + lane), VECTORIZED, dtype
                ),
                UNROLLED,
                dtype,
            )

        def at_point(expr: Any, point: Expr) -> Any:
            return substitute(expr, {**rest, axis.var: point})

        start = each(lambda i, point: tirx.BufferStore(held, at_point(reduction.start, point), [i]))
        update = each(
            lambda i, point: tirx.BufferStore(
                held,
                reduction.combiner.combine(tirx.BufferLoad(held, [i]), at_point(reduction.value, point)),
                [i],
            )
        )
        write = each(
            lambda i, point: at_point(
                tirx.BufferStore(reduction.store.buffer, tirx.BufferLoad(held, [i]), list(reduction.store.indices)),
                point,
            )
        )
        return in_sequence([tirx.AllocBuffer(held), start, _nested(self.nest.reduction, update), write])

    def _along(self, reduction: Reduction, axis: Loop, rest: Mapping[Any, Expr]) -> Stmt:
        """One result, summed in the lanes of several accumulators that are joined at the end."""
        dtype = str(axis.var.ty)
        lanes = self.lanes
        static = isinstance(axis.extent, int)
        registers = min(_ACCUMULATORS, axis.extent // lanes) if static else _ACCUMULATORS
        group = lanes * registers
        held = tirx.decl_buffer([group], reduction.dtype, "accumulator", scope="local", layout=None)
        combine = reduction.combiner.combine

        def load(i: Any) -> Expr:
            return tirx.BufferLoad(held, [i])

        def vector(count: int, make: Callable[[Expr], Stmt]) -> Stmt:
            return repeat("lane", count, make, VECTORIZED, dtype)

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
        body = _nested([loop for loop in self.nest.reduction if loop is not axis], in_sequence(parts))
        identity = substitute(reduction.identity(), rest)
        start = vector(group, lambda i: tirx.BufferStore(held, identity, [i]))
        joined = join(held, group, combine, dtype)
        result = load(index(0, dtype))
        if reduction.joins_start():
            result = combine(substitute(reduction.start, rest), result)
        write = substitute(tirx.BufferStore(reduction.store.buffer, result, list(reduction.store.indices)), rest)
        return in_sequence([tirx.AllocBuffer(held), start, body, *joined, write])

    def _left_over(
        self,
        left: Any,
        done: Any,
        lanes: int,
        accumulate: Callable[[Expr, Expr], Stmt],
        vector: Callable[[int, Callable[[Expr], Stmt]], Stmt],
        dtype: str,
    ) -> list[Stmt]:
        """What does not fill a group: whole vectors, then a shorter one (or single elements when symbolic)."""
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


def join(held: Any, count: int, combine: Callable[[Expr, Expr], Expr], dtype: str) -> list[Stmt]:
    """Statements that leave the combination of all of `held` in its first element, by halves."""
    steps = []
    while count > 1:
        half = count // 2
        keep = count - half

        def join(i: Expr, keep: int = keep) -> Stmt:
            value = combine(tirx.BufferLoad(held, [i]), tirx.BufferLoad(held, [i + keep]))
            return tirx.BufferStore(held, value, [i])

        steps.append(repeat("lane", half, join, VECTORIZED, dtype))
        count = keep
    return steps


def _nested(inner_loops: Sequence[Loop], body: Stmt) -> Stmt:
    """Serial loops, fresh variables: a body may be written more than once."""
    for loop in reversed(inner_loops):
        fresh = tirx.Var(str(loop.var.name), str(loop.var.ty))
        dtype = str(loop.var.ty)
        extent = index(loop.extent, dtype) if isinstance(loop.extent, int) else loop.extent
        body = tirx.For(fresh, index(0, dtype), extent, tirx.ForKind.SERIAL, substitute(body, {loop.var: fresh}))
    return body


def _extents(items: Sequence[Loop]) -> list[Extent]:
    return [Extent(str(loop.var.name), loop.extent, str(loop.var.ty)) for loop in items]
