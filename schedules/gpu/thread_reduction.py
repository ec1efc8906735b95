"""Short sums, one thread each: depthwise and grouped convolutions, pooling. Neighboring threads compute neighboring
results, so that their accesses are coalesced; steps after the sum run in the same thread."""

from __future__ import annotations

from typing import ClassVar

from schedules.codegen.nest import allocate, build_function, load, loops_over, sequence, store
from schedules.config import Config
from schedules.errors import NotScheduledError
from schedules.gpu.launch import launched
from schedules.gpu.machine import GpuMachine
from schedules.gpu.matmul_form import computed_in_place, is_matmul, matmul_form, stages_in_front
from schedules.gpu.rule import GpuRule, GpuWorkload, gpu_workload
from schedules.ir.expression import buffers_loaded, substitute
from schedules.ir.reduction import Reduction, reduction_of
from schedules.ir.stages import Kernel, Stage, product
from schedules.ir.tir import Expr, PrimFunc, Stmt
from schedules.machine import Machine
from schedules.rule import GpuPriority
from schedules.stages.fused_kernel import FusedKernel

SHORT = 32  # a warp
_MODERATE = 1024
_POINTS_OF_A_MULTIPROCESSOR = 1024


class GpuThreadReduction(GpuRule[GpuWorkload]):
    """One reduction of few elements, or of a moderate number if there are enough threads without sharing it."""

    name: ClassVar[str] = "gpu-thread-reduction"
    priority: ClassVar[int] = GpuPriority.SHORT_SUMS

    def match(self, kernel: Kernel, machine: Machine) -> GpuWorkload | None:
        stages = [stage for stage in kernel.simple_stages if stage.reduction]
        if not isinstance(machine, GpuMachine) or len(stages) != 1 or not kernel.is_plain:
            return None
        (stage,) = stages
        elements, points = (product(axis.extent for axis in axes) for axes in (stage.reduction, stage.spatial))
        if elements is None or reduction_of(stage) is None or _is_shared_product(kernel):
            return None
        many = points is None or points >= machine.multiprocessors * _POINTS_OF_A_MULTIPROCESSOR
        # Several reduction loops, as in windows; a single one runs over a row of memory.
        is_window = len([axis for axis in stage.reduction if axis.extent != 1]) > 1
        if elements >= SHORT and not (many and elements < _MODERATE and is_window):
            return None
        return gpu_workload(kernel, machine)

    def apply(self, kernel: Kernel, workload: GpuWorkload, config: Config, machine: Machine) -> PrimFunc:
        stage = next(each for each in kernel.simple_stages if each.reduction)
        fused = FusedKernel(kernel, [stage])
        if not fused.is_joined:
            raise NotScheduledError("a stage after the reduction is not elementwise")
        reduction = reduction_of(stage)
        assert reduction is not None
        value = computed_in_place(reduction.value, stages_in_front(kernel, stage))
        if any(kernel.is_intermediate(each.source) for each in buffers_loaded(value)):
            raise NotScheduledError("a stage before the reduction is not elementwise")
        return build_function(kernel, [_launch(stage, fused, reduction, value)], [])


def _is_shared_product(kernel: Kernel) -> bool:
    """True if the kernel is a matmul of two matrices, whose elements a block shares."""
    if not any(is_matmul(stage) for stage in kernel.simple_stages):
        return False
    try:
        form = matmul_form(kernel)
    except NotScheduledError:
        return False
    return form.a.rows.extent != 1 and form.b.rows.extent != 1


def _launch(stage: Stage, fused: FusedKernel, reduction: Reduction, value: Expr) -> Stmt:
    thread_total, allocation = allocate("own", [1], reduction.dtype, "local")
    loops = [axis for axis in stage.reduction if axis.extent != 1]
    update = store(thread_total, reduction.combiner.combine(load(thread_total, 0), value), 0)
    body = sequence(
        allocation,
        store(thread_total, reduction.start, 0),
        loops_over(loops, update),
        fused.finish(load(thread_total, 0), list(reduction.store.indices)),
    )
    return launched([axis for axis in stage.spatial if axis.extent != 1], substitute(body, stage.single))
