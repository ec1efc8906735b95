"""fuse-attention: softmax(scale * (q k) + mask) v becomes one kernel.

matmul(softmax(add(multiply(matmul(q, k), scale), mask)), v)

with any number of constant scales and masks that broadcast to the scores, in any order, also without them; and with
`where(isnan(weights), 0, weights)` between softmax and the last product, as torch exports it. Transposes around it, by
which heads come before positions and behind them again, are read and written through.

Scores and weights may be quantized and dequantized on the way. Where all operands and the weights are 8-bit integers of
one scale each, and the machine multiplies bytes, both products are sums of integers.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.canonicalize.cancel_transposes import merge_reshapes
from compiler.passes.context import PipelineContext
from compiler.passes.layout.attention_match import (
    AttentionMatch,
    AttentionMatcher,
    Ending,
    Scale,
    Step,
    applied,
    joined,
)
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.dimension_orders import Ordered, ordered
from compiler.passes.rewriting.graph import RuleTable, count_uses, operator_name, rewritable_functions
from compiler.passes.rewriting.matching import same_shape, shape_of
from schedules.attention.cache.description import ATTRIBUTE, parse
from schedules.attention.compute import Orders, Rounding, attention
from schedules.instructions.products.operation import DOT_BF16
from schedules.instructions.products.table import halves_pay, multiplies_bytes
from schedules.ir.tvm_types import Call, Expr, Function, GlobalVar, Tensor, Var

OPAQUE = 8  # relax's pattern kind that is fused with nothing
_last_rules = RuleTable()
_last_rules.on("relax.reshape")(merge_reshapes)


@graph_pass("fuse-attention", summary="Turn products, softmax and masks of attention into one kernel", only="processor")
def fuse_attention(mod: IRModule, context: PipelineContext) -> IRModule:
    """Does nothing without a machine: the kernel is only fast when scheduled."""
    if context.machine is None:
        return mod
    narrow = context.options.precision == "bf16" and halves_pay(context.machine, DOT_BF16)
    mod = _with_rounded_products(mod) if narrow else mod
    fuser = _Fuser(mod, "bfloat16" if narrow else "float32", in_integers=multiplies_bytes(context.machine))
    for variable, function in rewritable_functions(mod):
        fuser.rewrite(variable, function)
    if not fuser.count:
        return mod
    return _last_rules.apply(relax.transform.DeadCodeElimination()(fuser.builder_.get()))


def _with_rounded_products(mod: IRModule) -> IRModule:
    """Attention over a cache may round operands as well."""
    changed = mod.clone()
    for variable, function in mod.functions_items():
        text = (function.attrs or {}).get(ATTRIBUTE)
        if text is not None:
            rounded = replace(parse(str(text)), rounds=True)
            changed.update_func(variable, function.with_attr(ATTRIBUTE, rounded.text()))
    return changed


@mutator
class _Fuser(PyExprMutator):
    def __init__(self, mod: IRModule, operands: str, *, in_integers: bool) -> None:
        super().__init__(mod)
        self._operands = operands
        self._in_integers = in_integers
        self.count = 0
        self._matcher = AttentionMatcher({}, {}, in_integers)
        self._endings: dict[Var, Ending] = {}
        self._within: set[Var] = set()  # products that attention does not end in

    def rewrite(self, variable: GlobalVar, function: Function) -> None:
        before = self.count
        uses: dict[Var, int] = {}
        count_uses(function.body, uses, {})
        self._matcher = AttentionMatcher(relax.analysis.get_var2val(function), uses, self._in_integers)
        self._endings = self._matcher.endings()
        self._within = {each.product for each in self._endings.values()}
        updated = self.visit_expr(function)
        if self.count > before:
            self.builder_.update_func(variable, updated)

    def visit_call_(self, call: Call) -> Expr:
        ending = self._endings.get(call)
        if ending is not None:
            result = self._attention(ending.match)
            wanted = shape_of(call)
            return (
                result if same_shape(shape_of(result), wanted) else relax.op.reshape(self.builder_.emit(result), wanted)
            )
        is_product = operator_name(call) == "relax.matmul" and call not in self._within
        found = self._matcher.match(call) if is_product else None
        return self.visit_expr_post_order(call) if found is None else self._attention(found)

    def _attention(self, found: AttentionMatch) -> Expr:
        self.count += 1
        integers = self._in_integers and found.is_quantized
        masks = [self.visit_expr(each) for each in found.tensors]
        query, key, value = (
            self._ordered(each.quantized if integers else each.expr, axes)
            for each, axes in ((found.query, (-1,)), (found.key, (-1, -2)), (found.value, (-1,)))
        )
        orders = Orders(query.order, key.order, value.order, found.order)
        steps, rounding = _rounding(found, integers=integers)
        operands = self._operands if rounding is None else "float32"

        def compute(query: Tensor, key: Tensor, value: Tensor, *tensors: Tensor) -> Tensor:
            def score(raw: Expr, at: tuple[Expr, ...]) -> Expr:
                number = tirx.Cast("float32", raw) if integers else raw
                return applied(steps, number, [_at(tensor, at) for tensor in tensors])

            return attention(
                query, key, value, score, guarded=found.guarded, operands=operands, orders=orders, rounding=rounding
            )

        return self.builder_.call_te(
            compute,
            *(each.source for each in (query, key, value)),
            *masks,
            primfunc_name_hint="attention",
            primfunc_attrs={"op_pattern": OPAQUE},
        )

    def _ordered(self, expr: Expr, contiguous: tuple[int, ...]) -> Ordered:
        """An operand before its transposes, when one of the axes given is the last one there."""
        found = ordered(expr, self._matcher.definition)
        last = len(found.order) - 1
        if found.is_plain or not any(found.order[axis] == last for axis in contiguous):
            return Ordered(self.visit_expr(expr), found.shape, tuple(range(last + 1)))
        source = self.visit_expr(found.source)
        if not same_shape(shape_of(source), found.shape):
            source = self.builder_.emit(relax.op.reshape(source, list(found.shape)))
        return Ordered(source, found.shape, found.order)


def _rounding(found: AttentionMatch, *, integers: bool) -> tuple[list[Step], Rounding | None]:
    """The steps on raw scores, and what happens to weights and to what comes out."""
    weights = found.weights
    if weights is None:
        return joined(found.steps), None
    if not integers:

        def rounded(weight: Expr) -> Expr:
            return applied(joined([*weights.quantize(), *weights.dequantize()]), weight, [])

        return joined(found.steps), Rounding(rounded)
    query, key, value = (each.quantization for each in (found.query, found.key, found.value))
    assert query is not None
    assert key is not None
    assert value is not None
    steps = joined([Scale(query.scale * key.scale), *found.steps])
    factor, result = weights.scale * value.scale, found.result

    def finished(total: Expr) -> Expr:
        number = tirx.Cast("float32", total)
        return applied([Scale(factor)], number, []) if result is None else result.integer(number, factor)

    return steps, Rounding(weights.integer, (query.zero, key.zero, weights.zero, value.zero), finished)


def _at(tensor: Tensor, at: tuple[Expr, ...]) -> Expr:
    """An element of a tensor that broadcasts to the scores."""
    own = at[len(at) - len(tensor.shape) :]
    zero = tirx.IntImm("int64", 0)
    is_one = [isinstance(size, tirx.IntImm) and int(size.value) == 1 for size in tensor.shape]
    return tensor[tuple(zero if one else point for one, point in zip(is_one, own, strict=True))]
