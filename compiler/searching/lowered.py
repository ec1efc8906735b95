"""The kernels that a run of a model calls, before they are scheduled: equal ones have equal keys in all candidates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tvm.ir import IRModule

import targets
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import PipelineResult, run_pipeline
from compiler.tuning.tasks import kernel_calls
from schedules.ir.stages import kernels_of
from schedules.ir.tir import PrimFunc, structural_hash, structural_map, tirx


@dataclass(frozen=True, eq=False)
class LoweredModel:
    """The calls of one run.

    Attributes:
        model: what was lowered.
        mod: its kernels, which are not scheduled.
        keys: of each kernel by its name in the module.
        calls: how often a run calls each key.
    """

    model: ImportedModel
    mod: IRModule
    keys: Mapping[str, str]
    calls: Mapping[str, int]

    @property
    def count(self) -> int:
        """How many calls of kernels a run makes."""
        return sum(self.calls.values())


def lower(model: ImportedModel, target: targets.Target) -> LoweredModel:
    """Lower a model as far as its kernels. Raises UserError and InternalError of the passes."""
    mod = pipeline_of(model, target, until="schedule", without=("apply-schedules", "lift-workspaces")).mod
    keys = {str(variable.name_hint): _key(function) for variable, function in kernels_of(mod)}
    calls: Counter[str] = Counter()
    for name, count in kernel_calls(mod).counts.items():
        calls[keys[name]] += count
    return LoweredModel(model, mod, keys, dict(calls))


def _key(kernel: PrimFunc) -> str:
    """Equal for kernels that differ in floating-point constants alone, as the scales of integers: those do not change
    what a kernel takes."""
    function = kernel.without_attr("global_symbol")
    plain = structural_map(function, (tirx.FloatImm, _without_value))
    return f"{structural_hash(plain) & (1 << 64) - 1:016x}"


def _without_value(constant: Any) -> Any:
    is_simple = constant.value in (0.0, 1.0, -1.0) or not math.isfinite(constant.value)
    return constant if is_simple else tirx.FloatImm(str(constant.ty.dtype), 0.5)


def pipeline_of(
    model: ImportedModel, target: targets.Target, *, until: str | None = None, without: Collection[str] = ()
) -> PipelineResult:
    """Run the passes over a model, as `compile` does without tuning records, but for those that `without` names."""
    options = PassOptions("float32", model.checks, model.state_positions(), model.nodes)
    context = PipelineContext(target=target, machine=target.machine, options=options)
    left_out = {f"instead-of:{name}": None for name in without}
    return run_pipeline(model.mod, context, passes=left_out or None, until=until)
