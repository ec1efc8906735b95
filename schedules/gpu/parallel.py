"""The rule that serves every kernel: each stage becomes one launch, with a thread for each point of its result, or a
block for each if there are few points and the sums are long.

For statements that are not simple stages, the iterations of their outermost parallel loop become threads, or those of
loops whose iterations are proven independent; without such loops they run on one thread: slow, but correct.

Opaque kernels are run by a block of threads together: recurrent layers, whose steps depend on each other.

All threads run the loops over time; a loop with independent iterations, over hidden units, is shared among them, and
they synchronize after it. Loops that cannot be proven independent are not served here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from schedules.codegen.nest import allocate, build_function, load, loops_over, repeat, sequence, store
from schedules.config import Config
from schedules.gpu.launch import THREADS, WARP, launch, launched, take_allocations, without_parallel_loops
from schedules.gpu.machine import GpuMachine
from schedules.gpu.rule import GpuRule, GpuWorkload, gpu_workload
from schedules.ir.expression import buffers_loaded, constant_int, expression, index, map_accesses, nodes, substitute
from schedules.ir.inline import call_name, inline_stages, written_intermediates
from schedules.ir.numbers import ceil_div
from schedules.ir.reduction import Reduction, reduction_of
from schedules.ir.stages import Axis, Kernel, Stage, product
from schedules.ir.tir import (
    VECTORIZED,
    Analyzer,
    Buffer,
    Expr,
    PrimFunc,
    Stmt,
    Var,
    s_tir,
    structural_equal,
    structural_map,
    tirx,
    tvm,
)
from schedules.machine import Machine
from schedules.matmul.form import Group
from schedules.rule import GpuPriority

MAX_THREADS = 512
_WARP = 32
# Parts of the names of functions that may access memory other than by a load or store.
_HIDDEN = ("address_of", "_ptr", "packed", "extern", "atomic")


@dataclass
class _Accesses:
    """Accesses of a loop's body: (buffer, indices) of loads and stores, its own buffers, and its vector loops."""

    loads: list[tuple[Buffer, Sequence[Expr]]]
    stores: list[tuple[Buffer, Sequence[Expr]]]
    own: list[Buffer]
    lanes: list[Stmt]
    only_in_lanes: bool


class NotIndependentError(Exception):
    """The iterations of a statement's loops cannot be proven independent."""


def cooperative(statement: Stmt, buffers: list[Expr]) -> tuple[Stmt, list[Expr]] | None:
    """One launch for a statement of serial loops: one block of threads, or one for each iteration of a parallel loop.

    Args:
        buffers: those that the statement uses and its function allocates; each block gets its own.

    Returns:
        The launch and the buffers to allocate; None if there are no independent loops to distribute.
    """
    statement = without_pragmas(statement)
    blocks, task = 1, None
    if isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL and _is_zero(statement.min):
        if not isinstance(statement.extent, tirx.IntImm):
            return None
        blocks, task, statement = int(statement.extent.value), statement.loop_var, statement.body
    member = _BlockThreads()
    try:
        body = without_parallel_loops(member.shared_out(statement))
    except NotIndependentError:
        return None
    stored = [each.buffer for each in nodes(body, tirx.BufferStore)]
    if member.largest < 2 or any(_is_among(each, stored) for each in member.steering):
        return None  # a thread may read a condition after another has changed it
    threads = min(MAX_THREADS, -(-member.largest // _WARP) * _WARP)
    block, thread = (tirx.Var(name, tirx.IntImm("int32", 0).ty) for name in ("block", "thread"))
    values = {member.threads: tirx.IntImm("int64", threads), member.thread: tirx.Cast("int64", thread)}
    if task is not None:
        body, buffers = _of_block(body, buffers, block, blocks)
        values[task] = tirx.Cast(str(task.ty.dtype), block)
    body = substitute(body, values)
    return launch(block, blocks, thread, threads, body), buffers


def without_pragmas(statement: Stmt) -> Stmt:
    """The statement inside pragmas for the processor's code generator."""
    while isinstance(statement, tirx.AttrStmt):
        statement = statement.body
    return statement


def has_independent_iterations(loop: Stmt) -> bool:
    """True if the iterations of a serial loop from 0, whose extent is known before the kernel runs, are proven
    independent."""
    if not _is_zero(loop.min) or buffers_loaded(loop.extent) or not _is_plain(loop.body):
        return False
    found = _accesses(loop.body)
    return not found.lanes and _is_independent(found, loop.loop_var, {})


def _of_block(body: Stmt, buffers: list[Buffer], block: Expr, blocks: int) -> tuple[Stmt, list[Buffer]]:
    """The body with each block using its own part of larger buffers, and these buffers."""
    larger = [
        tirx.decl_buffer([blocks, *each.shape], str(each.dtype), name=str(each.name), scope="global")
        for each in buffers
    ]

    def moved(buffer: Buffer, indices: Sequence[Expr]) -> tuple[Buffer, list[Expr]] | None:
        new = next((new for old, new in zip(buffers, larger, strict=True) if old.same_as(buffer)), None)
        return None if new is None else (new, [block, *indices])

    return map_accesses(body, moved), larger


class _BlockThreads:
    """Rewrites a statement that all threads of a block run."""

    def __init__(self) -> None:
        wide = tirx.IntImm("int64", 0).ty
        self.thread, self.threads = tirx.Var("member", wide), tirx.Var("members", wide)
        self.largest = 0
        self.steering: list[Buffer] = []  # buffers that conditions and bounds read

    def shared_out(self, statement: Stmt) -> Stmt:
        if isinstance(statement, tirx.SeqStmt):
            return tirx.SeqStmt([self.shared_out(each) for each in statement.seq])
        if isinstance(statement, tirx.IfThenElse):
            self._steered_by(statement.condition)
            other = None if statement.else_case is None else self.shared_out(statement.else_case)
            return tirx.IfThenElse(statement.condition, self.shared_out(statement.then_case), other)
        if isinstance(statement, tirx.Evaluate) and isinstance(statement.value, tirx.IntImm):
            return statement
        if not isinstance(statement, tirx.For):
            raise NotIndependentError
        self._steered_by(statement.min)
        self._steered_by(statement.extent)
        if _is_zero(statement.min) and (found := self._of_independent(statement)) is not None:
            return found
        body = self.shared_out(statement.body)
        return tirx.For(statement.loop_var, statement.min, statement.extent, tirx.ForKind.SERIAL, body)

    def _steered_by(self, expression: Expr) -> None:
        self.steering += [load.source for load in buffers_loaded(expression)]

    def _of_independent(self, loop: Stmt) -> Stmt | None:
        """The loop with its iterations, and the lanes of the vector loops inside, distributed over threads."""
        if isinstance(loop.body, tirx.For) and loop.body.kind == tirx.ForKind.SERIAL:
            return None  # the inner loop is longer
        if not _is_plain(loop.body):
            return None
        accesses = _accesses(loop.body)
        lane = tirx.Var("lane", loop.loop_var.ty)
        width = _common_extent(accesses.lanes)
        if width is None or (width > 1 and not accesses.only_in_lanes):
            return None
        point = loop.loop_var * tirx.IntImm(_dtype(loop), width) + lane if width > 1 else loop.loop_var
        names = {each.loop_var: lane for each in accesses.lanes}
        if not _is_independent(accesses, point, names):
            return None
        body = _without_lanes(loop.body, accesses, lane, width)
        return body if body is None else self._spread(loop, body, lane, width)

    def _spread(self, loop: Stmt, body: Stmt, lane: Expr, width: int) -> Stmt:
        dtype = _dtype(loop)
        total = loop.extent * tirx.IntImm(dtype, width)
        total = tvm.sym.Analyzer().simplify(total)
        if isinstance(total, tirx.IntImm):
            self.largest = max(self.largest, int(total.value))
        turn = tirx.Var("turn", tirx.IntImm("int64", 0).ty)
        point: Expr = turn * self.threads + self.thread
        limit = total if dtype == "int64" else tirx.Cast("int64", total)
        element = point if dtype == "int64" else tirx.Cast(dtype, point)
        size = tirx.IntImm(dtype, width)
        values = {loop.loop_var: tirx.floordiv(element, size), lane: tirx.floormod(element, size)}
        guarded = tirx.IfThenElse(point < limit, substitute(body, values), None)
        turns = tirx.floordiv(limit + self.threads - tirx.IntImm("int64", 1), self.threads)
        zero = tirx.IntImm("int64", 0)
        spread = tirx.For(turn, zero, turns, tirx.ForKind.SERIAL, guarded)
        return tirx.SeqStmt([spread, tirx.Evaluate(tirx.op.tvm_storage_sync("shared"))])


def _is_plain(body: Stmt) -> bool:
    """True if a body's only effects are its loads and stores, and no vector loop contains another."""
    if nodes(body, tirx.While, s_tir.SBlockRealize, tirx.DeclBuffer, tirx.AttrStmt, tirx.AssertStmt):
        return False
    if not all(isinstance(each.value, tirx.IntImm) for each in nodes(body, tirx.Evaluate)):
        return False
    if any(word in call_name(each) for each in nodes(body, tvm.ir.Call) for word in _HIDDEN):
        return False
    return all(_is_zero(each.min) and not nodes(each.body, tirx.For) for each in _vector_loops(body))


def _vector_loops(body: Stmt) -> list[Stmt]:
    return [each for each in nodes(body, tirx.For) if each.kind == tirx.ForKind.VECTORIZED]


def _accesses(body: Stmt) -> _Accesses:
    stores, lanes = nodes(body, tirx.BufferStore), _vector_loops(body)
    return _Accesses(
        [(each.source, each.indices) for each in buffers_loaded(body)],
        [(each.buffer, each.indices) for each in stores],
        [each.buffer for each in nodes(body, tirx.AllocBuffer)],
        lanes,
        sum(len(nodes(each.body, tirx.BufferStore)) for each in lanes) == len(stores),
    )


def _common_extent(lanes: list[Stmt]) -> int | None:
    """Common number of lanes of all vector loops; 1 if there are none; None if they differ."""
    sizes = {int(each.extent.value) if isinstance(each.extent, tirx.IntImm) else 0 for each in lanes}
    if not sizes:
        return 1
    return sizes.pop() if len(sizes) == 1 and 0 not in sizes else None


def _is_independent(accesses: _Accesses, point: Expr, names: dict[Var, Expr]) -> bool:
    """True if each written buffer is accessed only where one of its indices, or its row-major position, is the point of
    the iteration."""
    analyzer = tvm.sym.Analyzer()
    for buffer, indices in accesses.stores:
        if _is_among(buffer, accesses.own):
            continue
        every = [each for other, each in (*accesses.loads, *accesses.stores) if other.same_as(buffer)]
        positions = [[substitute(index, names) for index in each] for each in every]
        one_index = any(all(structural_equal(each[d], point) for each in positions) for d in range(len(indices)))
        if not one_index and not all(_is_position(analyzer, buffer, each, point) for each in positions):
            return False
    return True


def _is_position(analyzer: Analyzer, buffer: Expr, indices: list[Expr], point: Expr) -> bool:
    """True if the indices are a row-major position."""
    flat = indices[0]
    for position, size in zip(indices[1:], buffer.shape[1:], strict=True):
        flat = flat * size + position
    return bool(analyzer.can_prove_equal(flat, point))


def _without_lanes(body: Stmt, accesses: _Accesses, lane: Expr, width: int) -> Stmt:
    """The body for one lane, with its own buffers reduced to that lane; None if lanes access each other's elements."""
    analyzer = tvm.sym.Analyzer()
    names = {each.loop_var: lane for each in accesses.lanes}
    smaller = [(each, _of_one_lane(each, width)) for each in accesses.own]
    if width > 1:
        for buffer, indices in (*accesses.loads, *accesses.stores):
            if _is_among(buffer, accesses.own) and _slot(analyzer, indices, names, lane, width) is None:
                return None

    def replaced(buffer: Expr) -> Expr | None:
        return next((new for old, new in smaller if old.same_as(buffer)), None) if width > 1 else None

    def moved(buffer: Buffer, indices: Sequence[Expr]) -> tuple[Buffer, list[Expr]] | None:
        new = replaced(buffer)
        return None if new is None else (new, [_slot(analyzer, indices, names, lane, width)])

    def allocation(node: Stmt) -> Stmt:
        new = replaced(node.buffer)
        return node if new is None else tirx.AllocBuffer(new)

    def loop(node: Stmt) -> Stmt:
        return substitute(node.body, {node.loop_var: lane}) if node.kind == VECTORIZED else node

    body = structural_map(map_accesses(body, moved), (tirx.AllocBuffer, allocation))
    return structural_map(body, (tirx.For, loop))


def _of_one_lane(buffer: Expr, width: int) -> Expr:
    """A thread's part of a buffer whose elements are stored lane by lane."""
    if width == 1 or len(buffer.shape) != 1 or not isinstance(buffer.shape[0], tirx.IntImm):
        return buffer
    size = -(-int(buffer.shape[0].value) // width)
    return tirx.decl_buffer([size], str(buffer.dtype), name=str(buffer.name), scope="local")


def _slot(analyzer: Analyzer, indices: Sequence[Expr], names: dict[Var, Expr], lane: Expr, width: int) -> Expr:
    """The multiple of lanes that is added to the lane; None if the index has another form."""
    if len(indices) != 1:
        return None
    index = substitute(indices[0], names)
    rest = analyzer.simplify(index - lane)
    if not isinstance(rest, tirx.IntImm) or int(rest.value) % width:
        return None
    return tirx.IntImm("int64", int(rest.value) // width)


def _is_among(buffer: Expr, buffers: list[Expr]) -> bool:
    return any(buffer.same_as(each) for each in buffers)


def _is_zero(value: Expr) -> bool:
    return isinstance(value, tirx.IntImm) and int(value.value) == 0


def _dtype(loop: Stmt) -> str:
    return str(loop.loop_var.ty.dtype)


class BindAnything(GpuRule[GpuWorkload]):
    """Serves any kernel."""

    name: ClassVar[str] = "gpu-parallel"
    priority: ClassVar[int] = GpuPriority.FALLBACK
    reschedules: ClassVar[bool] = True

    def match(self, kernel: Kernel, machine: Machine) -> GpuWorkload | None:
        return gpu_workload(kernel, machine)

    def apply(self, kernel: Kernel, workload: GpuWorkload, config: Config, machine: Machine) -> PrimFunc:
        assert isinstance(machine, GpuMachine)
        statements: list[Stmt] = []
        allocations: list[Buffer] = []
        stages = inline_stages(kernel)
        for stage in stages:
            if isinstance(stage, Stage) and stage.axes:
                statements.append(bound_stage(stage, machine))
            else:
                statement = stage.body if isinstance(stage, Stage) else stage.statement
                statement, shared = bound_statement(_without_checks(statement))
                statements.append(statement)
                allocations += shared
        return build_function(kernel, statements, [*written_intermediates(kernel, stages), *allocations])


def _without_checks(statement: Stmt) -> Stmt:
    """The statement without assertions, which a kernel cannot report, and without loops over nothing else."""
    if not nodes(statement, tirx.AssertStmt):
        return statement
    if isinstance(statement, tirx.AttrStmt):
        return _without_checks(statement.body)
    if isinstance(statement, tirx.SeqStmt):
        parts = [part for part in map(_without_checks, statement.seq) if nodes(part, tirx.BufferStore, tvm.ir.Call)]
        return parts[0] if len(parts) == 1 else tirx.SeqStmt(parts)
    nothing = tirx.Evaluate(tirx.IntImm("int32", 0))
    return structural_map(statement, (tirx.AssertStmt, lambda _: nothing))


def bound_stage(stage: Stage, machine: GpuMachine) -> Stmt:
    """One launch for a stage: a thread for each point of its spatial axes, or a block for a long reduction."""
    together = block_reduction(stage, machine)
    if together is not None:
        return together
    body = sequence(stage.init, loops_over(stage.reduction, stage.body))
    units = {axis.var: index(0, str(axis.var.ty)) for axis in stage.spatial if axis.extent == 1}
    return launched([axis for axis in stage.spatial if axis.extent != 1], substitute(body, units))


def bound_statement(statement: Stmt) -> tuple[Stmt, list[Expr]]:
    """Launches for a statement that is not a simple stage, and buffers that its function must allocate."""
    statement, allocations = take_allocations(without_pragmas(statement))
    is_plain_parallel = isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL and not allocations
    together = None if is_plain_parallel else cooperative(statement, allocations)
    if together is not None:
        return together
    if isinstance(statement, tirx.SeqStmt):
        return sequence([_bound_loop(each, alone=False) for each in statement.seq]), allocations
    return _bound_loop(statement, alone=not allocations), allocations


def _bound_loop(statement: Stmt, *, alone: bool) -> Stmt:
    """One launch; `alone` says that no buffer is shared by the iterations of its parallel loop."""
    if not isinstance(statement, tirx.For):
        return launched([], without_parallel_loops(statement))
    if has_independent_iterations(statement):
        threads = THREADS
    elif statement.kind == tirx.ForKind.PARALLEL and alone and _is_zero(statement.min):
        threads = WARP
    else:
        return launched([], without_parallel_loops(statement))
    axis = Axis(statement.loop_var, constant_int(statement.extent))
    return launched([axis], without_parallel_loops(statement.body), threads)


MIN_ELEMENTS = 256
_THREADS = (256, 1024)
_ELEMENTS_OF_MANY_THREADS = 8192
_POINTS_OF_A_BLOCK = 256  # points computed by a block if each thread has its own result


def block_reduction(stage: Stage, machine: GpuMachine) -> Stmt | None:
    """The launch; None if the stage is not a reduction, or has enough points for all threads."""
    reduction = reduction_of(stage)
    points, elements = (product(axis.extent for axis in axes) for axes in (stage.spatial, stage.reduction))
    if reduction is None or points is None or elements is None or elements < MIN_ELEMENTS:
        return None
    if points == 0 or points > machine.multiprocessors * _POINTS_OF_A_BLOCK:
        return None
    threads = min(_THREADS[elements > _ELEMENTS_OF_MANY_THREADS], machine.threads_per_block)
    block, thread = (tirx.Var(name, "int64") for name in ("block", "thread"))
    position = {**_values(stage.spatial, block)}
    body = _joined(_at(reduction, position), stage.reduction, elements, thread, threads)
    return launch(block, points, thread, threads, body)


def _values(axes: tuple[Axis, ...], position: Expr) -> dict[Var, Expr]:
    """The variables of nested loops at a position of their iteration space, in their types."""
    ones = {axis.var: tirx.IntImm(str(axis.var.ty), 0) for axis in axes if axis.extent == 1}
    positions = Group(tuple(axis for axis in axes if axis.extent != 1)).values(position)
    return {
        **ones,
        **{var: value if str(var.ty) == "int64" else tirx.Cast(str(var.ty), value) for var, value in positions.items()},
    }


def _at(reduction: Reduction, position: dict[Var, Expr]) -> Reduction:
    value, start, stored = (substitute(each, position) for each in (reduction.value, reduction.start, reduction.store))
    return Reduction(reduction.combiner, value, start, stored)


def _joined(reduction: Reduction, axes: tuple[Axis, ...], elements: int, thread: Expr, threads: int) -> Stmt:
    combine = reduction.combiner.combine
    thread_total, own_allocation = allocate("own", [1], reduction.dtype, "local")
    shared, shared_allocation = allocate("shared", [threads], reduction.dtype, "shared")

    def turn(number: Expr) -> Stmt:
        at = expression(number) * threads + thread
        value = substitute(reduction.value, _values(axes, at))
        taken = store(thread_total, combine(load(thread_total, 0), value), 0)
        return taken if elements % threads == 0 else tirx.IfThenElse(at < expression(elements), taken, None)

    wait = tirx.Evaluate(tirx.op.tvm_storage_sync("shared"))
    pairs = []
    step = threads // 2
    while step:
        both = combine(load(shared, thread), load(shared, thread + step))
        pairs += [tirx.IfThenElse(thread < expression(step), store(shared, both, thread), None), wait]
        step //= 2
    total = load(shared, 0)
    total = combine(reduction.start, total) if reduction.joins_start() else total
    last = tirx.BufferStore(reduction.store.buffer, total, list(reduction.store.indices))
    return sequence(
        own_allocation,
        shared_allocation,
        store(thread_total, reduction.identity(), 0),
        repeat("turn", ceil_div(elements, threads), turn),
        store(shared, load(thread_total, 0), thread),
        wait,
        pairs,
        tirx.IfThenElse(thread < expression(1), last, None),
    )
