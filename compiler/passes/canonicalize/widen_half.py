"""widen-half: compute float16 operators other than convolutions in float32 on CPUs.

Convolution kernels and the operators between them are scheduled for float32, which CPUs multiply as fast or faster.
Each value then exists in both types, and the unused one is removed; inputs, results and the operands of unlisted
operators stay float16. Intermediate rounding is skipped, as in ONNX Runtime. Weights are exact in 16 bits and stored
in them (`expand-at-load`).
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import bindings_of, operator_name, rewritable_functions
from compiler.passes.rewriting.matching import array_of, as_constant, dtype_of
from schedules.ir.tvm_types import BindingBlock, Call, Expr, Type, Var

_CONVOLUTIONS = tuple(
    f"relax.nn.conv{rank}d{suffix}"
    for rank, suffix in ((1, ""), (2, ""), (3, ""), (1, "_transpose"), (2, "_transpose"))
)
_SUMS = (*_CONVOLUTIONS, "relax.matmul")
# Their result has the type of their operands, which no attribute names.
_ELEMENTWISE = (
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "negative", "abs", "square", "sqrt"),
    *("rsqrt", "exp", "log", "sigmoid", "tanh", "erf", "clip", "where"),
    *("nn.relu", "nn.leakyrelu", "nn.prelu", "nn.gelu", "nn.gelu_tanh", "nn.silu"),
)
_POOLING = tuple(f"nn.{kind}{rank}d" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool") for rank in (1, 2, 3))
_NORMALIZATION = (
    *("nn.softmax", "nn.log_softmax", "nn.batch_norm", "nn.layer_norm"),
    *("nn.group_norm", "nn.instance_norm", "nn.rms_norm"),
)
_MOVEMENT = (
    *("reshape", "permute_dims", "concat", "split", "strided_slice", "squeeze", "expand_dims", "flatten"),
    *("broadcast_to", "tile", "repeat", "take", "nn.pad"),
)
_REDUCTIONS = ("mean", "sum", "max", "min")
_OPERATORS = frozenset(
    f"relax.{name}" for name in (*_ELEMENTWISE, *_POOLING, *_NORMALIZATION, *_MOVEMENT, *_REDUCTIONS)
)


@graph_pass(
    "widen-half", summary="Compute float16 functions with convolutions in float32, on processors", only="processor"
)
def widen_half(mod: IRModule, context: PipelineContext) -> IRModule:
    """Functions without a float16 convolution are unchanged, as is every function if there is no machine."""
    if context.machine is None:
        return mod
    changed = False
    copy = mod.clone()
    for variable, function in rewritable_functions(mod):
        if any(_is_half_convolution(binding.value) for binding in bindings_of(function.body)):
            copy.update_func(variable, _Widener(mod).visit_expr(function))
            changed = True
    return relax.transform.DeadCodeElimination(["main"])(copy) if changed else mod


def multiplies_halves(mod: IRModule) -> bool:
    """True if the model has convolutions or matmuls, all with float16 operands."""
    values = [binding.value for _, function in rewritable_functions(mod) for binding in bindings_of(function.body)]
    types = {dtype_of(each.args[0]) for each in values if operator_name(each) in _SUMS}
    return types == {"float16"}


def _is_half_convolution(value: Expr) -> bool:
    """True if the operands are float16; the accumulator may be float32."""
    return operator_name(value) in _CONVOLUTIONS and dtype_of(value.args[0]) == "float16"


def _is_half_tuple(ty: Type) -> bool:
    return isinstance(ty, relax.TupleType) and all(
        isinstance(each, relax.TensorType) and str(each.dtype) == "float16" for each in ty.fields
    )


@mutator
class _Widener(PyExprMutator):
    """Binds each result of a listed operator in float32, and its rounding in float16."""

    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        self._wide: dict[Var, Expr] = {}

    def visit_dataflow_block_(self, block: BindingBlock) -> BindingBlock:
        outside = dict(self._wide)
        result = super().visit_dataflow_block_(block)
        self._wide = outside  # a block's variables are visible only inside it
        return result

    def visit_call_(self, call: Call) -> Expr:
        call = self.visit_expr_post_order(call)
        name = operator_name(call)
        if name in _OPERATORS and _is_half_tuple(call.ty):
            return self._tuple(call)
        if name == "relax.astype":
            return self._cast(call)
        if name in _SUMS and dtype_of(call) == "float32" and dtype_of(call.args[0]) == "float16":
            return self._sum(call)
        if name is None or dtype_of(call) != "float16":
            return call
        if name in _SUMS:
            return self._rounded(self.builder_.emit(self._sum(call)))
        if name in _OPERATORS:
            wide = relax.Call(call.op, [self._widened(each) for each in call.args], call.attrs, call.ty_args)
            return self._rounded(self.builder_.emit(self.builder_.normalize(wide)))
        return call

    def _sum(self, call: Call) -> Expr:
        """Return the convolution or matmul in float32."""
        operands = [self._widened(each) for each in call.args]
        if operator_name(call) == "relax.matmul":
            return self.builder_.normalize(relax.op.matmul(*operands, out_dtype="float32"))
        return self.builder_.normalize(_wide_convolution(call, operands))

    def _cast(self, call: Call) -> Expr:
        """Drop casts between the two types."""
        source, target = dtype_of(call.args[0]), dtype_of(call)
        if (source, target) == ("float16", "float32"):
            return self._widened(call.args[0])
        if (source, target) == ("float32", "float16"):
            return self._rounded(call.args[0])
        return call

    def visit_tuple_getitem_(self, item: Expr) -> Expr:
        item = self.visit_expr_post_order(item)
        fields = self._source(item.tuple_value)
        if isinstance(fields, relax.Var):
            fields = self.lookup_binding(fields)
        return fields.fields[item.index] if isinstance(fields, relax.Tuple) else item

    def _tuple(self, call: Call) -> Expr:
        """Convert the results of an operator with several."""
        wide = relax.Call(call.op, [self._widened(each) for each in call.args], call.attrs, call.ty_args)
        variable = self.builder_.emit(self.builder_.normalize(wide))
        items = [self.builder_.emit(relax.TupleGetItem(variable, index)) for index in range(len(call.ty.fields))]
        return relax.Tuple([self._rounded(item) for item in items])

    def _rounded(self, wide: Expr) -> Expr:
        """Round a value to float16, recording its float32 source."""
        narrow = self.builder_.emit(relax.op.astype(wide, "float16"))
        self._wide[narrow] = self._source(wide)
        return narrow

    def _widened(self, operand: Expr) -> Expr:
        """Return the operand in float32 if it is float16."""
        if isinstance(operand, relax.Tuple):
            return relax.Tuple([self._widened(each) for each in operand.fields])
        if dtype_of(operand) != "float16":
            return operand
        operand = self._source(operand)
        if operand not in self._wide:
            if isinstance(operand, GenericConst):
                self._wide[operand] = as_constant(array_of(operand).astype(np.float32))
            else:
                self._wide[operand] = self.builder_.emit(relax.op.astype(operand, "float32"))
        return self._wide[operand]

    def _source(self, operand: Expr) -> Expr:
        """Follow a variable bound to another variable to its value."""
        while isinstance(operand, relax.Var) and operand not in self._wide:
            value = self.lookup_binding(operand)
            if not isinstance(value, relax.Var):
                break
            operand = value
        return operand


def _wide_convolution(call: Call, operands: list[Expr]) -> Expr:
    operator = getattr(relax.op.nn, str(call.op.name).rpartition(".")[2])
    attrs = call.attrs
    options = {
        name: getattr(attrs, name)
        for name in ("strides", "padding", "output_padding", "groups", "data_layout", "kernel_layout", "out_layout")
        if hasattr(attrs, name)
    }
    return operator(*operands, dilation=attrs.dilation, out_dtype="float32", **options)
