"""Common parts of the rules for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schedules.gpu.machine import GpuMachine
from schedules.instructions import prefetch, rounding, vector_math
from schedules.instructions.dot_products.operation import DOT_U8S8
from schedules.instructions.llvm_functions import PREFIX
from schedules.ir.inline import call_name
from schedules.ir.stages import Kernel
from schedules.ir.tir import Call, Expr, PrimFunc, structural_map, tirx, tvm
from schedules.machine import Machine
from schedules.rule import ScheduleRule, Workload, WorkloadT

_WIDENED = frozenset({"erf", "tanh", "exp", "log", "sin", "cos", "tan", "pow", "sqrt", "rsqrt", "sigmoid", "nearbyint"})
_NARROW = ("float16", "bfloat16")


@dataclass(frozen=True)
class GpuWorkload(Workload):
    """Nothing to tune yet: only the number of stages, for reports."""

    stages: int


def gpu_workload(kernel: Kernel, machine: Machine) -> GpuWorkload | None:
    """The workload of rules without knobs; None on other machines."""
    return GpuWorkload(len(kernel.stages)) if isinstance(machine, GpuMachine) else None


class GpuRule(ScheduleRule[WorkloadT]):
    """A rule for GPUs; it matches no other machine."""

    def finish(self, function: PrimFunc, machine: Machine) -> PrimFunc:
        """Replace elementary functions written for a processor's vectors by TVM's own, and compute those of narrow
        floats in float32: CUDA has few of them, and those are less accurate."""

        def replace(call: Call) -> Expr:
            name, dtype = call_name(call), str(call.ty)
            if prefetch.is_prefetch(call):
                return tirx.IntImm("int32", 0)
            plain = name.removeprefix("tirx.").removeprefix(PREFIX).removesuffix(vector_math.IN_TILE)
            if name.startswith(PREFIX) and plain in vector_math.FUNCTIONS:
                return _plain_call(plain, dtype, call.args)
            if name == DOT_U8S8.name:
                return call.args[0] + DOT_U8S8.expression(*call.args[1:])
            if name == rounding.INTEGER:
                return tirx.Cast("int32", tirx.nearbyint(call.args[0]))
            if dtype in _NARROW and plain in _WIDENED:
                return tirx.Cast(
                    dtype, _plain_call(plain, "float32", [tirx.Cast("float32", each) for each in call.args])
                )
            return call

        return function.with_body(structural_map(function.body, (tvm.ir.Call, replace)))


def _plain_call(name: str, dtype: str, arguments: Sequence[Expr]) -> Call:
    return tirx.call_intrin(dtype, tvm.ir.Op.get(f"tirx.{name}"), *arguments)
