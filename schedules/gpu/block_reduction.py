"""A reduction to few results: a block of threads for each, which go through its elements side by side and then join
what each has found, pair by pair, in shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schedules.codegen.nest import allocate, expression, load, repeat, sequence, store
from schedules.gpu.binding import thread_loop
from schedules.gpu.machine import GpuMachine
from schedules.ir.expression import substitute
from schedules.ir.numbers import ceil_div
from schedules.ir.reduction import Reduction, reduction_of
from schedules.ir.stages import Axis, Stage, product
from schedules.ir.tir import tirx
from schedules.matmul.form import Group

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Stmt, Var

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
