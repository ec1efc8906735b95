"""TVM's own GPU schedules (dlight), each wrapped in a rule."""

from __future__ import annotations

from typing import Any, ClassVar

from schedules.config import Config
from schedules.errors import NotScheduledError
from schedules.gpu.launch import is_bound
from schedules.gpu.machine import GpuMachine
from schedules.gpu.rule import GpuRule, GpuWorkload, gpu_workload
from schedules.ir.expression import nodes
from schedules.ir.stages import Kernel, dtype_of, product, shape_of
from schedules.ir.tir import IRModule, PrimFunc, s_tir, tirx, tvm
from schedules.machine import Machine, dtype_bits
from schedules.rule import GpuPriority

dlight = s_tir.dlight.gpu


class DlightRule(GpuRule[GpuWorkload]):
    """Tries one dlight schedule; kernels that it does not support or leaves partly unbound go to the next rule."""

    may_decline: ClassVar[bool] = True
    schedule: ClassVar[Any]

    def options(self, machine: GpuMachine) -> dict[str, object]:
        """The attributes of TVM's target that this schedule sees."""
        return machine.tvm_options()

    def match(self, kernel: Kernel, machine: Machine) -> GpuWorkload | None:
        reduces = any(stage.reduction for stage in kernel.simple_stages)
        return gpu_workload(kernel, machine) if reduces and kernel.is_plain else None

    def apply(self, kernel: Kernel, workload: GpuWorkload, config: Config, machine: Machine) -> PrimFunc:
        assert isinstance(machine, GpuMachine)
        target = tvm.target.Target(self.options(machine))
        function = kernel.function.with_attr("global_symbol", "main")
        try:
            with target:
                scheduled = self.schedule().apply(function, target, False)
        except MemoryError:
            raise
        except Exception as error:  # dlight raises assertions and schedule errors for unsupported kernels
            raise NotScheduledError(f"{self.name}: {type(error).__name__}") from error
        if not isinstance(scheduled, s_tir.Schedule):
            raise NotScheduledError(f"{self.name} does not support this kernel")
        result = scheduled.mod["main"]
        if not isinstance(result, tirx.PrimFunc) or not is_bound(result.body):
            raise NotScheduledError(f"{self.name} leaves a part of the kernel unbound")
        if (taken := _shared_bytes(result)) > machine.shared_bytes:
            raise NotScheduledError(f"{self.name} uses {taken} bytes of shared memory")
        if not _can_join(scheduled.mod):
            raise NotScheduledError(f"{self.name}: TVM cannot combine the threads' partial results")
        return result.with_attr("global_symbol", "main")


def _can_join(mod: IRModule) -> bool:
    """True if TVM can lower a schedule's reductions across threads: it supports few combiners."""
    try:
        s_tir.transform.LowerCrossThreadReduction()(mod)
    except MemoryError:
        raise
    except Exception:  # TVM raises classes named by its C++ side
        return False
    return True


def _shared_bytes(function: PrimFunc) -> int:
    """Upper bound of the shared memory of a function's blocks: buffers of known size, without reuse."""
    buffers = [buffer for block in nodes(function.body, s_tir.SBlock) for buffer in block.alloc_buffers]
    shared = [each for each in buffers if str(each.ty.storage_scope) == "shared"]
    return sum((product(shape_of(each)) or 0) * dtype_bits(dtype_of(each)) // 8 for each in shared)


class GpuMatmul(DlightRule):
    """Matmuls in tiles of shared memory, without tensor cores, which `gpu-tensor-cores` handles."""

    name: ClassVar[str] = "gpu-matmul"
    priority: ClassVar[int] = GpuPriority.MATMUL
    schedule: ClassVar[Any] = dlight.Matmul

    def options(self, machine: GpuMachine) -> dict[str, object]:
        """Options of a device without tensor cores: dlight's operations for them take 25 s to import, and on a T4 they
        need
        more shared memory than it has."""
        return {**machine.tvm_options(), "arch": "sm_60"}


class GpuGemv(DlightRule):
    """Matrix-vector products."""

    name: ClassVar[str] = "gpu-gemv"
    priority: ClassVar[int] = GpuPriority.VECTOR_BY_MATRIX
    schedule: ClassVar[Any] = dlight.GEMV


class GpuReduction(DlightRule):
    """Single reductions, by all threads of a block together."""

    name: ClassVar[str] = "gpu-reduction"
    priority: ClassVar[int] = GpuPriority.REDUCTION
    schedule: ClassVar[Any] = dlight.Reduction


class GpuRows(DlightRule):
    """Softmax and norms: one block per row, which stays in shared memory."""

    name: ClassVar[str] = "gpu-rows"
    priority: ClassVar[int] = GpuPriority.ROWS
    schedule: ClassVar[Any] = dlight.GeneralReduction


DLIGHT_RULES: tuple[type[DlightRule], ...] = (GpuMatmul, GpuGemv, GpuReduction, GpuRows)
