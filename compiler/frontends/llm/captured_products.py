"""Stores the weights of captured models in another precision, like those of models built here.

torch captures a model in float32. The weights of its matmuls, embedding and head become block weights; mixture
routers, convolutions, norms and position tables are unchanged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.ir import GenericConst, IRModule
from tvm.relax import op as R
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.frontends.llm.blocks import packed
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.weights import Array, Matrix
from compiler.passes.rewriting.block_weights import BlockWeight, block_product, block_rows
from compiler.passes.rewriting.expert_products import expert_product
from compiler.passes.rewriting.graph import bindings_of, operands, operator_name, remove_unused
from compiler.passes.rewriting.matching import array_of, dtype_of, shape_of
from schedules.ir.tvm_types import Call, Expr, Function, Var

# Operators allowed between a router's matmul and the choice of experts.
_ROUTING = frozenset(
    f"relax.{name}"
    for name in ("add", "astype", "divide", "multiply", "nn.softmax", "permute_dims", "reshape", "sigmoid", "subtract")
)
_CHOICE, _EXPERTS = "top_k", "expert_matmul"


def with_precision(mod: IRModule, options: LanguageModelOptions, entries: int | None) -> IRModule:
    """Convert a captured model's weights to the precision of the options; float32 and None change nothing. `entries`:
    rows of the embedding and columns of the head, which get 8 bits if others get 4; None if the model has neither."""
    if options.precision in (None, "float32"):
        return mod
    main = mod["main"]
    rewriter = _Rewriter(mod, main, options, entries)
    variable = mod.get_global_var("main")
    rewriter.builder_.update_func(variable, rewriter.visit_expr(main))
    return remove_unused(rewriter.builder_.get())


@mutator
class _Rewriter(PyExprMutator):
    """Replaces matmuls with constant matrices, and embedding look-ups, by those with block weights."""

    def __init__(self, mod: IRModule, main: Function, options: LanguageModelOptions, entries: int | None) -> None:
        super().__init__(mod)
        self._options, self._entries = options, entries
        self._values = {binding.var: binding.value for binding in bindings_of(main.body)}
        self._routers = _routers(main)
        self._packed: list[tuple[Array, BlockWeight]] = []
        self._var: Var | None = None

    def visit_var_binding_(self, binding: Any) -> None:
        """Record the variable that the current call is bound to."""
        self._var = binding.var
        super().visit_var_binding_(binding)

    def visit_call_(self, call: Call) -> Expr:
        """Return a call or its replacement."""
        replacement = None
        if operator_name(call) == "relax.matmul" and self._var not in self._routers:
            replacement = self._product(call)
        elif operator_name(call) == "relax.take":
            replacement = self._rows(call)
        elif _calls(call, _EXPERTS):
            replacement = self._experts(call)
        return super().visit_call_(call) if replacement is None else replacement

    def _product(self, call: Call) -> Expr | None:
        weights = self._matrix(call.args[1])
        if weights is None or dtype_of(call.args[0]) != "float32":
            return None
        if weights.ndim == 3 and not _is_for_experts(call.args[0], len(weights)):
            return None
        data = self.visit_expr(call.args[0])
        if weights.ndim == 2:
            return self._multiplied(data, weights.T)
        # A matmul per expert of a mixture, with data per expert or shared by all.
        shape = shape_of(data) or []
        has_batch = len(shape) == 3 and shape[0] == len(weights)
        parts = []
        for index, weight in enumerate(weights):
            part = data
            if has_batch:
                sliced = R.strided_slice(data, axes=[0], begin=[index], end=[index + 1], assume_inbound=True)
                part = self.builder_.emit(sliced)
            product = self._multiplied(part, weight.T)
            parts.append(product if len(shape) == 3 else self.builder_.emit(R.expand_dims(product, 0)))
        return R.concat(parts, axis=0)

    def _multiplied(self, data: Expr, weights: Array) -> Expr:
        """Return the matmul with weights (columns, depth)."""
        weight = self._block_weight(weights, is_table=len(weights) == self._entries)
        activations = self._options.activations
        if activations == "int8" and weight.layout.numbers == "bfloat16":
            activations = "bfloat16"
        return block_product(self.builder_, data, weight, activations)

    def _experts(self, call: Call) -> Expr | None:
        """Return the matmuls of rows with their experts' weights, float32 (panels, depth, columns)."""
        data, chosen, stored = call.args[1].fields[:3]  # sizes may follow
        if dtype_of(data) != "float32":
            return None
        panels = array_of(stored).view(np.float32)
        values = panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])[:, : int(data.ty.shape[-1])]
        weight = packed(Matrix("F32", values, values.shape[1]), self._options.precision)
        columns, experts = int(call.ty.shape[-1]), self.visit_expr(chosen)
        return expert_product(self.builder_, self.visit_expr(data), weight, columns, experts, self._options.activations)

    def _rows(self, call: Call) -> Expr | None:
        table, axis = self._constant(call.args[0]), call.attrs.axis
        if table is None or table.ndim != 2 or len(table) != self._entries or axis is None or int(axis) != 0:
            return None
        weight = self._block_weight(table, is_table=True)
        return block_rows(self.builder_, self.visit_expr(call.args[1]), weight)

    def _matrix(self, expr: Expr) -> Array | None:
        """Return the constant weights (depth, columns), or (experts, depth, columns)."""
        matrix = self._constant(expr)
        if matrix is None:
            value = self._value(expr)
            if operator_name(value) != "relax.permute_dims":
                return None
            matrix = self._constant(value.args[0])
            if matrix is None:
                return None
            axes = value.attrs.axes
            matrix = matrix.transpose(None if axes is None else [int(axis) for axis in axes])
        return matrix if matrix.ndim in (2, 3) else None

    def _constant(self, expr: Expr) -> Array | None:
        value = self._value(expr)
        is_float = isinstance(value, GenericConst) and dtype_of(value) == "float32"
        return array_of(value) if is_float else None

    def _value(self, expr: Expr) -> Expr:
        while expr in self._values:
            expr = self._values[expr]
        return expr

    def _block_weight(self, values: Array, *, is_table: bool) -> BlockWeight:
        """Pack weights (columns, depth), once per distinct weight."""
        for known, weight in self._packed:
            if known.shape == values.shape and (
                (known.ctypes.data == values.ctypes.data and known.strides == values.strides)
                or (is_table and np.array_equal(known, values))
            ):
                return weight
        precision = self._options.precision
        if is_table and precision == "int4":
            precision = "int8"
        weight = packed(Matrix("F32", values, values.shape[1]), precision)
        self._packed.append((values, weight))
        return weight


def _is_for_experts(data: Expr, count: int) -> bool:
    """True if its shape is (rows, depth), (1, rows, depth) or (experts, rows, depth)."""
    shape = shape_of(data)
    return shape is not None and (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, count)))


def _routers(function: Function) -> set[Var]:
    """Return matmuls whose results choose experts: rounding them would change the choice."""
    bindings = list(bindings_of(function.body))
    chosen: set[Var] = set()
    for binding in reversed(bindings):
        if _calls(binding.value, _CHOICE) or (binding.var in chosen and operator_name(binding.value) in _ROUTING):
            chosen.update(operands(binding.value))
    return {each.var for each in bindings if each.var in chosen and operator_name(each.value) == "relax.matmul"}


def _calls(value: Expr, kernel: str) -> bool:
    """True for a call of a kernel with this name prefix."""
    return operator_name(value) == "relax.call_tir" and str(value.args[0].name_hint).startswith(kernel)
