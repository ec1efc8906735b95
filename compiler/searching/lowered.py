"""The kernels that a run of a model calls, before they are scheduled: equal ones have equal keys in all candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import relax
from tvm.ir import IRModule

import targets
from compiler.artifact.entries import EXPAND_ENTRY
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import PipelineResult, run_pipeline
from schedules.ir.stages import kernels_of

_WITHOUT_SCHEDULES = {"instead-of:apply-schedules": None, "instead-of:lift-workspaces": None}
_KERNEL_CALLS = ("relax.call_tir", "relax.call_tir_inplace")


@dataclass(frozen=True)
class LoweredModel:
    """The calls of one run.

    Attributes:
        keys: of each kernel by its name in the module.
        calls: how often a run calls each key.
    """

    keys: Mapping[str, str]
    calls: Mapping[str, int]

    @property
    def count(self) -> int:
        """How many calls of kernels a run makes."""
        return sum(self.calls.values())


def lower(model: ImportedModel, target: targets.Target) -> LoweredModel:
    """Lower a model as far as its kernels. Raises UserError and InternalError of the passes."""
    mod = pipeline_of(model, target, until="schedule", unscheduled=True).mod
    keys = {
        str(
            variable.name_hint
        ): f"{tvm_ffi.structural_hash(function.without_attr('global_symbol')) & (1 << 64) - 1:016x}"
        for variable, function in kernels_of(mod)
    }
    calls: Counter[str] = Counter()
    for name, count in _calls(mod).items():
        calls[keys[name]] += count
    return LoweredModel(keys, dict(calls))


def pipeline_of(
    model: ImportedModel, target: targets.Target, *, until: str | None = None, unscheduled: bool = False
) -> PipelineResult:
    """Run the passes over a model, as `compile` does without tuning records."""
    options = PassOptions("float32", model.checks, model.state_positions(), model.nodes)
    context = PipelineContext(target=target, machine=target.machine, options=options)
    return run_pipeline(model.mod, context, passes=_WITHOUT_SCHEDULES if unscheduled else None, until=until)


def _calls(mod: IRModule) -> Counter[str]:
    """Calls of kernels by name, without what happens once when a module is loaded."""
    counts: Counter[str] = Counter()

    def visit(call: Any) -> None:
        if isinstance(call, relax.Call) and getattr(call.op, "name", "") in _KERNEL_CALLS:
            counts[str(call.args[0].name_hint)] += 1

    for variable, function in mod.functions_items():
        if isinstance(function, relax.Function) and variable.name_hint != EXPAND_ENTRY:
            relax.analysis.post_order_visit(function, visit)
    return counts
