"""Schedule rules for GPUs: thin rules around TVM's dlight, and one that binds any kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schedules.rule import AnyRule


def gpu_rules() -> tuple[AnyRule, ...]:
    """The rules for GPUs, by descending priority."""
    from schedules.gpu.dlight import DLIGHT_RULES
    from schedules.gpu.parallel import BindAnything
    from schedules.gpu.simt_matmul import GpuProducts, GpuVectorProducts
    from schedules.gpu.tensor_cores import GpuTensorCores
    from schedules.gpu.thread_reduction import GpuThreadReduction

    own = (GpuTensorCores(), GpuProducts(), GpuVectorProducts(), GpuThreadReduction(), BindAnything())
    rules: list[AnyRule] = [*own, *(rule() for rule in DLIGHT_RULES)]
    return tuple(sorted(rules, key=lambda rule: (-rule.priority, rule.name)))
