"""The rule that serves every kernel: each stage becomes one launch, a thread for each point of its result, or a block
for each where the points are few and the sums long.

Statements that are not simple stages run their outermost parallel loop as threads, or loops whose iterations are shown
to
be independent, and on one thread where there is none: slow, and right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from schedules.codegen.nest import allocate, build_function, expression, load, loops_over, repeat, sequence, store
from schedules.config import Config
from schedules.gpu.cooperative import cooperative, has_independent_iterations, without_pragmas
from schedules.gpu.launch import THREADS, WARP, launched, take_allocations, thread_loop, without_parallel_loops
from schedules.gpu.machine import GpuMachine
from schedules.gpu.rule import GpuRule, GpuWorkload, gpu_workload
from schedules.ir.expression import nodes, substitute
from schedules.ir.inline import inline_stages
from schedules.ir.numbers import ceil_div
from schedules.ir.reduction import Reduction, reduction_of
from schedules.ir.stages import Axis, Kernel, Stage, product
from schedules.ir.tir import Buffer, Expr, Index, PrimFunc, Stmt, Var, structural_map, tirx, tvm
from schedules.machine import Machine
from schedules.matmul.form import Group
from schedules.rule import GpuPriority


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
                statement, taken = bound_statement(_without_checks(statement))
                statements.append(statement)
                allocations += taken
        needed = [each for each in kernel.intermediates if _is_used(each, stages)]
        return build_function(kernel, statements, [*needed, *allocations])


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


def _is_used(buffer: Expr, stages: Sequence[object]) -> bool:
    return any(not isinstance(stage, Stage) or any(buffer.same_as(each) for each in stage.writes) for stage in stages)


def bound_stage(stage: Stage, machine: GpuMachine) -> Stmt:
    """One launch for a stage: a thread for each point of its spatial axes, or a block for a long reduction."""
    together = block_reduction(stage, machine)
    if together is not None:
        return together
    points = [axis for axis in stage.spatial if axis.extent != 1]
    body = loops_over(stage.reduction, stage.body)
    if stage.init is not None:
        body = sequence([stage.init, body])
    units = [axis for axis in stage.spatial if axis.extent == 1]
    body = substitute(body, {axis.var: tirx.IntImm(str(axis.var.ty.dtype), 0) for axis in units})
    return launched(points, body)


def bound_statement(statement: Stmt) -> tuple[Stmt, list[Expr]]:
    """Launches for a statement that is not a simple stage, and buffers that its function is to allocate."""
    statement, taken = take_allocations(without_pragmas(statement))
    is_plain_parallel = isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL and not taken
    together = None if is_plain_parallel else cooperative(statement, taken)
    if together is not None:
        return together
    if isinstance(statement, tirx.SeqStmt):
        return sequence([_bound_loop(each, alone=False) for each in statement.seq]), taken
    return _bound_loop(statement, alone=not taken), taken


def _bound_loop(statement: Stmt, *, alone: bool) -> Stmt:
    """One launch; `alone` says that no buffer is shared by the iterations of its parallel loop."""
    if not isinstance(statement, tirx.For):
        return launched([], without_parallel_loops(statement))
    if has_independent_iterations(statement):
        threads = THREADS
    elif statement.kind == tirx.ForKind.PARALLEL and alone and _starts_at_zero(statement):
        threads = WARP
    else:
        return launched([], without_parallel_loops(statement))
    axis = Axis(statement.loop_var, _extent(statement.extent))
    return launched([axis], without_parallel_loops(statement.body), threads)


def _starts_at_zero(loop: Stmt) -> bool:
    return isinstance(loop.min, tirx.IntImm) and int(loop.min.value) == 0


def _extent(extent: Expr) -> Index:
    return int(extent.value) if isinstance(extent, tirx.IntImm) else extent


LEAST_ELEMENTS = 256
_THREADS = (256, 1024)
_ELEMENTS_OF_MANY_THREADS = 8192
_POINTS_OF_A_BLOCK = 256  # what a block computes where each thread has a result of its own


def block_reduction(stage: Stage, machine: GpuMachine) -> Stmt | None:
    """The launch; None where the stage is not a reduction, or gives work to all threads without this."""
    reduction = reduction_of(stage)
    points, elements = (product(axis.extent for axis in axes) for axes in (stage.spatial, stage.reduction))
    if reduction is None or points is None or elements is None or elements < LEAST_ELEMENTS:
        return None
    if points == 0 or points > machine.multiprocessors * _POINTS_OF_A_BLOCK:
        return None
    threads = min(_THREADS[elements > _ELEMENTS_OF_MANY_THREADS], machine.threads_per_block)
    block, thread = (tirx.Var(name, "int64") for name in ("block", "thread"))
    place = {**_values(stage.spatial, block)}
    body = _joined(_at(reduction, place), stage.reduction, elements, thread, threads)
    return thread_loop("blockIdx.x", block, points, thread_loop("threadIdx.x", thread, threads, body))


def _values(axes: tuple[Axis, ...], position: Expr) -> dict[Var, Expr]:
    """The variables of nested loops at a position of their whole walk, in the types they have."""
    ones = {axis.var: tirx.IntImm(str(axis.var.ty), 0) for axis in axes if axis.extent == 1}
    found = Group(tuple(axis for axis in axes if axis.extent != 1)).values(position)
    return {
        **ones,
        **{var: value if str(var.ty) == "int64" else tirx.Cast(str(var.ty), value) for var, value in found.items()},
    }


def _at(reduction: Reduction, place: dict[Var, Expr]) -> Reduction:
    value, start, stored = (substitute(each, place) for each in (reduction.value, reduction.start, reduction.store))
    return Reduction(reduction.combiner, value, start, stored)


def _joined(reduction: Reduction, axes: tuple[Axis, ...], elements: int, thread: Expr, threads: int) -> Stmt:
    combine = reduction.combiner.combine
    own, own_allocation = allocate("own", [1], reduction.dtype, "local")
    shared, shared_allocation = allocate("shared", [threads], reduction.dtype, "shared")

    def turn(number: Expr) -> Stmt:
        at = expression(number) * threads + thread
        value = substitute(reduction.value, _values(axes, at))
        taken = store(own, combine(load(own, 0), value), 0)
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
        store(own, reduction.identity(), 0),
        repeat("turn", ceil_div(elements, threads), turn),
        store(shared, load(own, 0), thread),
        wait,
        pairs,
        tirx.IfThenElse(thread < expression(1), last, None),
    )
