"""fuse-attention: softmax(scale * (q k) + mask) v becomes one kernel.

    matmul(softmax(add(multiply(matmul(q, k), scale), mask)), v)

with any number of constant scales and masks that broadcast to the scores, in any order, also without them; and with
`where(isnan(weights), 0, weights)` between softmax and the last product, as torch exports it. Transposes around it, by
which heads come before positions and behind them again, are read and written through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx
from tvm.ir import GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.cancel_transposes import merge_reshapes
from compiler.passes.context import PipelineContext
from compiler.passes.dimension_orders import Ordered, axes_of, differ_by_ones, order_of_result, ordered
from compiler.passes.graph import RuleTable, count_uses, operator_name, rewritable_functions
from compiler.passes.matching import array_of, is_one, same_shape, shape_of
from compiler.passes.registry import graph_pass
from schedules.attention_compute import Orders, attention

OPAQUE = 8  # relax's pattern kind that is fused with nothing
_LEAST_KEYS = 4
_last_rules = RuleTable()
_last_rules.on("relax.reshape")(merge_reshapes)


@graph_pass("fuse-attention", summary="Turn products, softmax and masks of attention into one kernel")
def fuse_attention(mod: IRModule, context: PipelineContext) -> IRModule:
    """Does nothing without a machine: the kernel is only fast when scheduled."""
    if context.machine is None:
        return mod
    narrow = context.machine.bf16_dot_product and context.option("precision", "float32") == "bf16"
    fuser = _Fuser(mod, "bfloat16" if narrow else "float32")
    for variable, function in rewritable_functions(mod):
        fuser.rewrite(variable, function)
    if not fuser.count:
        return mod
    return _last_rules.apply(relax.transform.DeadCodeElimination()(fuser.builder_.get()))


@dataclass(frozen=True)
class _Step:
    """One operation on the scores: `apply(score, operand)`; the operand is a number, or a tensor that broadcasts."""

    apply: Callable[[Any, Any], Any]
    number: float | None
    tensor: Any


@dataclass(frozen=True)
class _Match:
    query: Any
    key: Any
    value: Any
    steps: tuple[_Step, ...]
    guarded: bool


@dataclass(frozen=True)
class _Transposed:
    """Attention that ends in `product`, whose result is transposed to `order`."""

    product: Any
    match: _Match
    order: tuple[int, ...]


@mutator
class _Fuser(PyExprMutator):
    def __init__(self, mod: IRModule, operands: str) -> None:
        super().__init__(mod)
        self._operands = operands
        self.count = 0
        self._definitions: Any = {}
        self._uses: dict[Any, int] = {}
        self._transposed: dict[Any, _Transposed] = {}
        self._within: set[Any] = set()  # products that are part of a transposed attention

    def rewrite(self, variable: Any, function: Any) -> None:
        before = self.count
        self._definitions = relax.analysis.get_var2val(function)
        self._uses = {}
        count_uses(function.body, self._uses, {})
        found = {value: self._transposed_attention(value) for value in self._definitions.values()}
        self._transposed = {call: each for call, each in found.items() if each is not None}
        self._within = {each.product for each in self._transposed.values()}
        updated = self.visit_expr(function)
        if self.count > before:
            self.builder_.update_func(variable, updated)

    def visit_call_(self, call: Any) -> Any:
        transposed = self._transposed.get(call)
        if transposed is not None:
            result = self._attention(transposed.match, transposed.order)
            wanted = shape_of(call)
            return (
                result if same_shape(shape_of(result), wanted) else relax.op.reshape(self.builder_.emit(result), wanted)
            )
        is_product = operator_name(call) == "relax.matmul" and call not in self._within
        found = self._match(call) if is_product else None
        return self.visit_expr_post_order(call) if found is None else self._attention(found, None)

    def _transposed_attention(self, transpose: Any) -> _Transposed | None:
        """The attention whose result a transpose alone reads."""
        axes = axes_of(transpose) if operator_name(transpose) == "relax.permute_dims" else None
        if axes is None:
            return None
        inner, between = transpose.args[0], shape_of(transpose.args[0])
        reshaped = self._sole(inner, "relax.reshape")
        inner = inner if reshaped is None else reshaped.args[0]
        product = self._sole(inner, "relax.matmul")
        found = None if product is None else self._match(product)
        shape = shape_of(inner)
        if found is None or shape is None or between is None or not differ_by_ones(shape, between):
            return None
        order = order_of_result(axes, shape, between)
        keeps_rows = order[-1] == len(shape) - 1  # columns stay neighbours
        return _Transposed(product, found, order) if keeps_rows else None

    def _attention(self, found: _Match, result_order: tuple[int, ...] | None) -> Any:
        self.count += 1
        masks = [step.tensor for step in found.steps if step.tensor is not None]
        masks = [self.visit_expr(each) for each in masks]
        query, key, value = (
            self._ordered(each, axes)
            for each, axes in ((found.query, (-1,)), (found.key, (-1, -2)), (found.value, (-1,)))
        )
        orders = Orders(query.order, key.order, value.order, result_order)

        def compute(query: Any, key: Any, value: Any, *tensors: Any) -> Any:
            def score(raw: Any, at: tuple[Any, ...]) -> Any:
                rest = iter(tensors)
                for step in found.steps:
                    operand = tirx.const(step.number, "float32") if step.tensor is None else _at(next(rest), at)
                    raw = step.apply(raw, operand)
                return raw

            return attention(query, key, value, score, guarded=found.guarded, operands=self._operands, orders=orders)

        return self.builder_.call_te(
            compute,
            *(each.source for each in (query, key, value)),
            *masks,
            primfunc_name_hint="attention",
            primfunc_attrs={"op_pattern": OPAQUE},
        )

    def _ordered(self, expr: Any, contiguous: tuple[int, ...]) -> Ordered:
        """An operand before its transposes, when one of the axes given is the last one there."""
        found = ordered(expr, self._definition)
        last = len(found.order) - 1
        if found.is_plain or not any(found.order[axis] == last for axis in contiguous):
            return Ordered(self.visit_expr(expr), found.shape, tuple(range(last + 1)))
        source = self.visit_expr(found.source)
        if not same_shape(shape_of(source), found.shape):
            source = self.builder_.emit(relax.op.reshape(source, list(found.shape)))
        return Ordered(source, found.shape, found.order)

    # Matching.

    def _definition(self, expr: Any) -> Any:
        return self._definitions.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def _sole(self, expr: Any, *names: str) -> Any | None:
        """The call of one of these operators that defines `expr`, when nothing else reads it."""
        value = self._definition(expr)
        if operator_name(value) not in names or self._uses.get(expr, 0) != 1:
            return None
        return value

    def _match(self, call: Any) -> _Match | None:
        softmax, guarded = self._weights(call.args[0])
        scores = shape_of(call.args[0])
        if softmax is None or scores is None or int(softmax.attrs.axis) not in (-1, len(scores) - 1):
            return None
        steps: list[_Step] = []
        expr = softmax.args[0]
        while True:
            product = self._sole(expr, "relax.matmul")
            if product is not None:
                return self._checked(product, call, scores, tuple(reversed(steps)), guarded)
            adjusting = self._sole(expr, "relax.multiply", "relax.divide", "relax.add")
            step = None if adjusting is None else self._step(adjusting, scores)
            if step is None:
                return None
            steps.append(step[0])
            expr = step[1]

    def _weights(self, expr: Any) -> tuple[Any | None, bool]:
        """The softmax behind the weights, and whether `where(isnan(weights), 0, weights)` guards them."""
        softmax = self._sole(expr, "relax.nn.softmax")
        choice = self._sole(expr, "relax.where") if softmax is None else None
        if choice is None or _number(choice.args[1]) != 0:
            return softmax, False
        test, weights = self._sole(choice.args[0], "relax.isnan"), choice.args[2]
        softmax = self._definition(weights)
        alone = test is not None and test.args[0].same_as(weights) and self._uses.get(weights, 0) == 2
        return (softmax, True) if alone and operator_name(softmax) == "relax.nn.softmax" else (None, False)

    def _step(self, call: Any, scores: list[Any]) -> tuple[_Step, Any] | None:
        """What the call does to the scores, and the scores it does it to."""
        name = operator_name(call)
        orders = [(call.args[0], call.args[1])]
        if name != "relax.divide":
            orders.append((call.args[1], call.args[0]))
        for inner, operand in orders:
            number = _number(operand)
            if number is not None and name != "relax.add":
                apply = (lambda a, b: a * b) if name == "relax.multiply" else (lambda a, b: a / b)
                return _Step(apply, number, None), inner
            shape = shape_of(inner)
            if name == "relax.add" and shape is not None and same_shape(shape, scores) and _broadcasts(operand, scores):
                if operator_name(self._definition(inner)) is None:
                    continue
                return _Step(lambda a, b: a + b, None, operand), inner
        return None

    def _checked(
        self, product: Any, call: Any, scores: list[Any], steps: tuple[_Step, ...], guarded: bool
    ) -> _Match | None:
        query, key, value = product.args[0], product.args[1], call.args[1]
        shapes = [shape_of(each) for each in (query, key, value)]
        if any(shape is None or len(shape) != len(scores) or len(shape) < 3 for shape in shapes):
            return None
        lead = [shape[:-2] for shape in shapes if shape is not None]
        if not all(same_shape(each, lead[0]) for each in lead[1:]):
            return None
        if any(str(each.ty.dtype) != "float32" for each in (query, key, value, call)):
            return None
        keys = scores[-1]
        if isinstance(keys, int) and keys < _LEAST_KEYS:
            return None
        return _Match(query, key, value, steps, guarded)


def _number(expr: Any) -> float | None:
    """The value of a float32 constant of one element."""
    if not isinstance(expr, GenericConst) or str(expr.ty.dtype) != "float32":
        return None
    array = array_of(expr)
    return float(array.reshape(())) if array.size == 1 else None


def _broadcasts(operand: Any, scores: list[Any]) -> bool:
    """Whether a float32 tensor has the scores' rank at most, and each dimension 1 or the scores' own."""
    shape = shape_of(operand)
    if shape is None or len(shape) > len(scores) or str(operand.ty.dtype) != "float32":
        return False
    own = scores[len(scores) - len(shape) :]
    return all(is_one(size) or same_shape([size], [of]) for size, of in zip(shape, own, strict=True))


def _at(tensor: Any, at: tuple[Any, ...]) -> Any:
    """An element of a tensor that broadcasts to the scores."""
    own = at[len(at) - len(tensor.shape) :]
    zero = tirx.IntImm("int64", 0)
    is_one = [isinstance(size, tirx.IntImm) and int(size.value) == 1 for size in tensor.shape]
    return tensor[tuple(zero if one else point for one, point in zip(is_one, own, strict=True))]
