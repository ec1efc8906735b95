"""The engine's own schedules for graphics processors (dlight), each as a rule of ours."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from schedules.config import Config
from schedules.errors import NotScheduledError
from schedules.gpu import intrinsics
from schedules.gpu.binding import is_bound
from schedules.gpu.machine import GpuMachine
from schedules.gpu.rule import GpuRule, GpuWorkload
from schedules.machine import Machine
from schedules.tir import s_tir, structural_map, tirx, tvm

dlight = s_tir.dlight.gpu
_STAGES, _ORDER = "software_pipeline_stage", "software_pipeline_order"


class DlightRule(GpuRule):
    """Tries one schedule of dlight; what it can not do, or leaves unbound in part, the next rule takes."""

    schedule: ClassVar[Any]

    def prepared(self, machine: GpuMachine) -> AbstractContextManager[None]:
        """What holds while dlight's schedule is applied."""
        return nullcontext()

    def match(self, kernel: Any, machine: Machine) -> GpuWorkload | None:
        reduces = any(stage.reduction for stage in kernel.simple_stages)
        return super().match(kernel, machine) if reduces and kernel.is_plain else None

    def mended(self, function: Any) -> Any:
        """The scheduled function without dlight's mistakes."""
        return function

    def apply(self, schedule: Any, workload: GpuWorkload, config: Config, machine: Machine) -> Any:
        assert isinstance(machine, GpuMachine)
        target = tvm.target.Target(machine.engine_options())
        function = schedule.kernel.function.with_attr("global_symbol", "main")
        try:
            with target, self.prepared(machine):
                made = self.schedule().apply(function, target, False)
        except Exception as error:  # dlight raises assertions and schedule errors on what it does not know
            raise NotScheduledError(f"{self.name}: {type(error).__name__}") from error
        if not isinstance(made, s_tir.Schedule):
            raise NotScheduledError(f"{self.name} does not know this kernel")
        result = made.mod["main"]
        if not isinstance(result, tirx.PrimFunc) or not is_bound(result):
            raise NotScheduledError(f"{self.name} leaves a part of the kernel unbound")
        return self.mended(result).with_attr("global_symbol", "main")


class GpuMatmul(DlightRule):
    """Matrix products in tiles of shared memory; on tensor cores where the operands are float16, bfloat16 or int8."""

    name: ClassVar[str] = "gpu-matmul"
    priority: ClassVar[int] = 90
    schedule: ClassVar[Any] = dlight.Matmul

    def prepared(self, machine: GpuMachine) -> AbstractContextManager[None]:
        return intrinsics.offered(machine.compute_capability)

    def mended(self, function: Any) -> Any:
        """Its schedule of int8 asks that a loop of one iteration is pipelined, which the engine can not lower. That
        loop becomes plain, and the pipeline around it one of five parts: loads to registers and stores to shared
        memory of both operands, and the product of the iteration before in between."""
        once = False

        def plain(loop: Any) -> Any:
            nonlocal once
            if _STAGES not in loop.annotations or not _is_one(loop.extent):
                return loop
            once = True
            return _annotated(loop, {})

        def shorter(loop: Any) -> Any:
            if len(loop.annotations.get(_STAGES, ())) != 7:
                return loop
            return _annotated(loop, {_STAGES: [0, 0, 0, 0, 1], _ORDER: [0, 3, 1, 4, 2]})

        body = structural_map(function.body, (tirx.For, plain))
        return function.with_body(structural_map(body, (tirx.For, shorter)) if once else body)


def _annotated(loop: Any, annotations: dict[str, Any]) -> Any:
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, loop.body, loop.thread_binding, annotations)


def _is_one(extent: Any) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent.value) == 1


class GpuGemv(DlightRule):
    """A matrix by a vector."""

    name: ClassVar[str] = "gpu-gemv"
    priority: ClassVar[int] = 80
    schedule: ClassVar[Any] = dlight.GEMV


class GpuReduction(DlightRule):
    """One reduction, the threads of a block together."""

    name: ClassVar[str] = "gpu-reduction"
    priority: ClassVar[int] = 70
    schedule: ClassVar[Any] = dlight.Reduction


class GpuRows(DlightRule):
    """Softmax and norms: a block for a row, which stays in shared memory."""

    name: ClassVar[str] = "gpu-rows"
    priority: ClassVar[int] = 60
    schedule: ClassVar[Any] = dlight.GeneralReduction


DLIGHT_RULES: tuple[type[DlightRule], ...] = (GpuMatmul, GpuGemv, GpuReduction, GpuRows)
