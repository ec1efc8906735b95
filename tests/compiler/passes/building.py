"""Building and running small Relax modules for the tests of graph passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import IRModule, Op

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.codegen.kernel_lowering import PIPELINE
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.passes.registry import get_pass
from compiler.passes.rewriting.matching import as_constant
from compiler.passes.verify import flatten
from tests.unoptimized import unoptimized_machine

Array = NDArray[Any]


class Build:
    """A module with one function `main` over one dataflow block, built a call at a time."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.builder = relax.BlockBuilder()
        self._inputs: list[Any] = []
        self._bindings: list[Any] = []
        self._symbols: dict[str, Any] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: str = "float32") -> Any:
        """An input; sizes that are strings are symbols."""
        sizes = [self._symbol(size) if isinstance(size, str) else size for size in shape]
        self._inputs.append(relax.Var(name, relax.TensorType(sizes, dtype)))
        return self._inputs[-1]

    def _symbol(self, name: str) -> Any:
        return self._symbols.setdefault(name, tvm.tirx.Var(name, "int64"))

    def constant(self, shape: Sequence[int], dtype: str = "float32") -> Any:
        """A constant of normal numbers."""
        return as_constant(self.random.standard_normal(tuple(shape)).astype(dtype))

    def emit(self, value: Any) -> Any:
        """Bind `value` to a variable."""
        value = self.builder.normalize(value)
        variable = relax.DataflowVar(f"lv{len(self._bindings)}", value.ty)
        self._bindings.append(relax.VarBinding(variable, value))
        return variable

    def match(self, value: Any, ty: Any) -> Any:
        """Check at run time that `value` has the type `ty`, and bind it to a variable of that type."""
        variable = relax.DataflowVar(f"lv{len(self._bindings)}", ty)
        self._bindings.append(relax.MatchCast(variable, value, ty))
        return variable

    def module(self, *outputs: Any) -> IRModule:
        """The module that returns `outputs` as a tuple."""
        value = self.builder.normalize(relax.Tuple(outputs))
        result = relax.Var("result", value.ty)
        block = relax.DataflowBlock([*self._bindings, relax.VarBinding(result, value)])
        function = relax.Function(self._inputs, relax.SeqExpr([block], result), value.ty)
        mod = IRModule({"main": function.with_attr("global_symbol", "main")})
        mod = relax.transform.Normalize()(mod)
        relax.analysis.well_formed(mod)
        return mod


def run_module(mod: IRModule, *inputs: Array) -> list[Array]:
    """Outputs of `main`, built by TVM's own pipeline."""
    return flatten(unoptimized_machine(mod)["main"](*map(tvm.runtime.tensor, inputs)))


def apply(name: str, mod: IRModule) -> IRModule:
    """Apply the pass `name` and check that the module is well formed."""
    result = get_pass(name)(mod)
    relax.analysis.well_formed(result)
    return result


def operators(mod: IRModule) -> list[str]:
    """Names of the operators called in all functions, in order, without the "relax." in front."""
    names: list[str] = []

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Call) and isinstance(expr.op, Op):
            names.append(str(expr.op.name).removeprefix("relax."))

    for _, function in mod.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return names


def kernel_names(mod: IRModule) -> list[str]:
    """Names of the kernels that `main` calls, in order, without the numbers behind them."""
    bindings = [binding for block in mod["main"].body.blocks for binding in block.bindings]
    calls = [each.value for each in bindings if isinstance(each.value, relax.Call)]
    return [each.args[0].name_hint.rstrip("0123456789") for each in calls if each.op.name == "relax.call_tir"]


def run_scheduled(mod: IRModule, context: PipelineContext, arrays: Sequence[Array]) -> Array:
    """The first output of `main` after the whole pipeline, on this machine."""
    result = run_pipeline(mod, context)
    machine = unoptimized_machine(result.mod, own_processor=True, relax_pipeline=None, tir_pipeline=PIPELINE)
    weights = [tvm.runtime.tensor(np.asarray(value)) for value in result.parameters.values()]
    output: Array = machine["main"](*(tvm.runtime.tensor(array) for array in arrays), *weights)[0].numpy()
    return output
