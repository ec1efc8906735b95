"""Verification of passes by running their output module against the original module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.sym import Analyzer
from tvm_ffi import structural_equal

from compiler.codegen.kernel_lowering import PIPELINE
from compiler.errors import OptionError, VerificationError
from compiler.passes.context import PipelineContext
from compiler.passes.registry import GraphPass
from schedules.instructions.llvm_options import plain_cpu
from schedules.ir.tvm_types import Expr, RuntimeTensor, Var

Array = np.ndarray

# Passes may change the order of additions and move factors into weights, so results differ by rounding. A result
# near 0 that is a difference of large numbers carries their error, so errors are measured against the largest
# magnitude of the output. Each bound is about sqrt(depth * terms) = 2**11 roundings of the data type, less for
# the short formats, whose sums are carried in float32.
TOLERANCE = {"float64": 1e-12, "float32": 2.5e-4, "float16": 2e-2, "bfloat16": 1.6e-1}

# Many small steps, most of them TVM's: compared at the end of the phase, individually only on a mismatch.
_LOWERING = ("fuse", "plan-memory", "lower")


class PassVerifier:
    """Runs the module after each pass and compares its outputs with those of the original module.

    The reference is lowered by the required passes only: no fusion, no schedule and no other pass of ours.

    Raises:
        OptionError: the module does not run on the inputs, or this machine cannot run the target.
        VerificationError: a pass changed an output beyond `TOLERANCE`; names the pass.
    """

    def __init__(
        self, mod: IRModule, phases: Sequence[Any], context: PipelineContext, example_inputs: Sequence[Array] | None
    ) -> None:
        self._order = [(phase.name, i, each) for phase in phases for i, each in enumerate(phase.passes)]
        self._context = context
        self._last = mod
        self._pending: list[tuple[str, int, GraphPass, IRModule]] = []
        self._inputs = list(example_inputs) if example_inputs is not None else random_inputs(mod)
        if context.target is not None and not context.target.fits_this_machine():
            raise OptionError(
                f"verify=True runs the module, but this machine cannot run {context.target.name}",
                "verify with target='host', then compile for the other target",
            )
        try:
            self._expected = self._run(mod, self._order)
        except Exception as error:
            raise OptionError(
                f"verify=True: the module does not run on the inputs: {error}",
                "give inputs that fit the model: compile(..., verify=True, example_inputs=...)",
            ) from error

    def after_pass(self, phase: str, position: int, each: GraphPass, mod: IRModule) -> None:
        """Compare `mod` with the reference unless the pass changed nothing; in lowering phases, only record it."""
        if structural_equal(mod, self._last):
            return
        self._last = mod
        self._pending.append((phase, position, each, mod))
        if phase not in _LOWERING:
            self.after_phase()

    def after_phase(self) -> None:
        """Compare the last module not yet compared; on a mismatch, find the first pass that caused it."""
        pending, self._pending = self._pending, []
        if pending and self._problem(*pending[-1]) is not None:
            for candidate in pending:
                problem = self._problem(*candidate)
                if problem is not None:
                    raise VerificationError(problem)

    def _problem(self, phase: str, position: int, graph_pass: GraphPass, mod: IRModule) -> str | None:
        """Describe the mismatch of `mod` after the pass."""
        done = next(i for i, (name, at, _) in enumerate(self._order) if (name, at) == (phase, position))
        where = f"pass {graph_pass.name!r} (phase {phase!r})"
        try:
            outputs = self._run(mod, self._order[done + 1 :])
        except Exception as error:
            return f"after {where} the module does not run: {error}"
        for index, (got, expected) in enumerate(zip(outputs, self._expected, strict=True)):
            difference = compare(got, expected)
            if difference is not None:
                return f"{where} changed output {index}: {difference}"
        return None

    def _run(self, mod: IRModule, rest: Sequence[tuple[str, int, GraphPass]]) -> list[Array]:
        """Lower `mod` by the required passes of `rest`, build it and run it."""
        for _, _, graph_pass in rest:
            if graph_pass.required:
                mod = graph_pass(mod, self._context)
        target = self._context.target
        tvm_target = tvm.target.Target(plain_cpu()) if target is None else target.tvm_target()
        executable = relax.build(mod, tvm_target, relax_pipeline=None, tir_pipeline=PIPELINE)
        machine = relax.VirtualMachine(executable, tvm.cpu())
        count = len(mod["main"].params) - len(self._inputs)
        parameters = list(self._context.parameters.values()) if count else []
        return flatten(machine["main"](*(tvm.runtime.tensor(each) for each in [*self._inputs, *parameters])))


def flatten(value: RuntimeTensor | Sequence[RuntimeTensor]) -> list[Array]:
    """Return the tensors of a result as arrays, nested tuples in order."""
    if hasattr(value, "numpy"):
        return [value.numpy()]
    return [array for item in value for array in flatten(item)]


def compare(got: Array, expected: Array) -> str | None:
    """Describe the difference, or return None if `got` agrees with `expected` within `TOLERANCE`."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"{got.dtype}{got.shape} where {expected.dtype}{expected.shape} was expected"
    tolerance = TOLERANCE.get(str(expected.dtype))
    if tolerance is None:
        wrong = int((got != expected).sum())
        return f"{wrong} of {got.size} elements differ" if wrong else None
    left, right = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return "NaN or infinity at other indices"
    error = np.abs(left[finite] - right[finite])
    if not error.size:
        return None
    limit = tolerance * max(float(np.abs(right[finite]).max()), 1e-30)
    worst = float(error.max())
    if worst <= limit:
        return None
    return f"by {worst:.3g}, where {limit:.3g} is allowed ({tolerance:g} of the largest magnitude)"


def random_inputs(mod: IRModule, seed: int = 0) -> list[Array]:
    """Return inputs for `main`: normal numbers, integers 0 and 1 (they may be indices), and sizes 2, 3, ... for
    symbols. Raises OptionError if an input is not a tensor of known rank."""
    generator = np.random.default_rng(seed)
    sizes: dict[Var, int] = {}
    return [_random_input(parameter, sizes, generator) for parameter in mod["main"].params]


def _random_input(parameter: Expr, sizes: dict[Var, int], generator: np.random.Generator) -> Array:
    ty = parameter.ty
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        raise OptionError(
            f"verify=True cannot generate a value for the input {parameter.name}: {ty}", "give example_inputs=..."
        )
    analyzer = Analyzer()
    for value in ty.shape.values:
        if isinstance(value, tvm.ir.Var):
            sizes.setdefault(value, 2 + len(sizes))
    for variable, size in sizes.items():
        analyzer.bind(variable, tvm.tirx.IntImm("int64", size))
    shape = [int(analyzer.simplify(value)) for value in ty.shape.values]
    dtype = str(ty.dtype)
    if "float" in dtype:
        return generator.standard_normal(shape).astype(_numpy_dtype(dtype))
    return generator.integers(0, 2, shape).astype(_numpy_dtype(dtype))


def _numpy_dtype(dtype: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, dtype, dtype))
