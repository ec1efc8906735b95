"""Helpers of the schedule tests: lower an operator, schedule it for a described machine, run it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

import targets
from compiler.codegen.kernel_lowering import PIPELINE
from schedules.ir.tir import tvm
from schedules.selection.apply import ScheduleReport, apply_schedules
from targets.target import Target
from tests.conftest import OPTIMIZE
from tests.unoptimized import loaded

Array = NDArray[Any]
Build = Callable[..., Any]

AVX2, AVX512 = "x86-64-v3", "x86-64-v4"
MACHINES = (AVX2, AVX512)


@cache
def target_of(name: str) -> Target:
    """The target, for two cores whatever this machine has; tests that run code need `runnable(name)`."""
    return targets.get(name, cores=2)


def runnable() -> list[str]:
    """The described machines whose code runs here."""
    return [name for name in MACHINES if target_of(name).fits_this_machine()]


def presets_with(*features: str) -> list[str]:
    """The presets whose code runs here and may use these extensions."""
    names = ("znver4", "cooperlake", "alderlake")
    having = [name for name in names if target_of(name).machine.has(*features)]
    return [name for name in having if target_of(name).fits_this_machine()]


def lowered(build: Build, inputs: Sequence[tuple[Sequence[Any], str]], target: str) -> Any:
    """The module of `build(builder, *inputs)`, lowered and fused like in the pipeline."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"x{i}", relax.TensorType(list(shape), dtype)) for i, (shape, dtype) in enumerate(inputs)]
    with builder.function("main", variables):
        with builder.dataflow():
            output = builder.emit_output(build(builder, *variables))
        builder.emit_func_output(output)
    steps = relax.transform
    with target_of(target).tvm_target():
        return tvm.transform.Sequential(
            [
                steps.LegalizeOps(),
                steps.AnnotateTIROpPattern(),
                steps.FoldConstant(),
                steps.FuseOps(),
                steps.FuseTIR(),
            ]
        )(builder.get())


def scheduled(build: Build, inputs: Sequence[tuple[Sequence[Any], str]], target: str) -> tuple[Any, ScheduleReport]:
    """The scheduled module and its report; no rule may have failed."""
    mod, report = apply_schedules(lowered(build, inputs, target), target_of(target).machine)
    assert not report.failures, report.failures
    return mod, report


def built(build: Callable[..., Any], mod: Any, options: Mapping[str, Any]) -> Any:
    """Build a module by `relax.build` or `tvm.compile`, its kernels lowered as the compiler lowers them; without LLVM's
    optimizations, which take most of the time, unless all tests have them."""
    if os.environ.get(OPTIMIZE):
        return build(mod, target=tvm.target.Target(dict(options)), tir_pipeline=PIPELINE)
    return loaded(build(mod, target=tvm.target.Target({**options, "opt-level": 0}), tir_pipeline=PIPELINE))


def virtual_machine(mod: Any, target: str) -> relax.VirtualMachine:
    """Build a module for a target."""
    return relax.VirtualMachine(built(relax.build, mod, target_of(target).tvm_options()), tvm.cpu())


def run(mod: Any, target: str, arrays: Sequence[Array]) -> Array:
    """Run the module's main."""
    machine = virtual_machine(mod, target)
    result = machine["main"](*[tvm.runtime.tensor(array) for array in arrays])
    return np.asarray(result.numpy())


def evaluate(build: Build, arrays: Sequence[Array], target: str, rule: str | None = None) -> Array:
    """Schedule and run; `rule` names the rule that some kernel must have got."""
    inputs = [(array.shape, str(array.dtype)) for array in arrays]
    mod, report = scheduled(build, inputs, target)
    if rule is not None:
        assert any(kernel.rule == rule for kernel in report.kernels), report.kernels
    return run(mod, target, arrays)


def assembly(mod: Any, target: str) -> str:
    """The assembly of a module's kernels."""
    kernels = {var: function for var, function in mod.functions_items() if not isinstance(function, relax.Function)}
    public = {var.name_hint: function.with_attr("global_symbol", var.name_hint) for var, function in kernels.items()}
    return str(tvm.compile(tvm.IRModule(public), target=target_of(target).tvm_target()).mod.inspect_source("asm"))


def normal(shape: Sequence[int], seed: int = 0) -> Array:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype("float32")
