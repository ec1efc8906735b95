"""fuse-attention: softmax(scale * (q k) + mask) v as one kernel.

matmul(softmax(add(multiply(matmul(q, k), scale), mask)), v)
with any number of constant scales and masks that broadcast to the scores, in any order or absent, and with
`where(isnan(weights), 0, weights)` between softmax and the second matmul, as torch exports it. Transposes around it
that move heads before positions and back are folded into its reads and writes.


Scores and weights may be quantized and dequantized in between. If all operands and the weights are 8-bit integers with
one scale each, and the machine has 8-bit dot products, both matmuls are computed in integers.

Quantizations between the first matmul and softmax (`quantize`, `dequantize`) are elementwise steps on the scores:
scale, round within limits, shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.canonicalize.cancel_transposes import merge_reshapes
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.dimension_orders import Ordered, axes_of, differ_by_ones, order_of_result, ordered
from compiler.passes.rewriting.graph import RuleTable, count_uses, operator_name, rewritable_functions
from compiler.passes.rewriting.matching import array_of, is_one, same_shape, shape_of
from schedules.annotations import OPAQUE
from schedules.attention.cache.description import ATTRIBUTE, parse
from schedules.attention.compute import Orders, Rounding, attention
from schedules.instructions.dot_products.operation import DOT_BF16
from schedules.instructions.dot_products.table import halves_pay, multiplies_bytes
from schedules.ir.tvm_types import Call, Expr, Function, GlobalVar, Index, Tensor, Var

_last_rules = RuleTable()
_last_rules.on("relax.reshape")(merge_reshapes)


@graph_pass("fuse-attention", summary="Turn matmuls, softmax and masks of attention into one kernel", only="processor")
def fuse_attention(mod: IRModule, context: PipelineContext) -> IRModule:
    """Does nothing without a machine: the kernel is fast only when scheduled."""
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
    """Let attention over a cache round its operands as well."""
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
        self._within: set[Var] = set()  # matmuls inside attention, not at its end

    def rewrite(self, variable: GlobalVar, function: Function) -> None:
        old_count = self.count
        uses: dict[Var, int] = {}
        count_uses(function.body, uses, {})
        self._matcher = AttentionMatcher(relax.analysis.get_var2val(function), uses, self._in_integers)
        self._endings = self._matcher.endings()
        self._within = {each.product for each in self._endings.values()}
        updated = self.visit_expr(function)
        if self.count > old_count:
            self.builder_.update_func(variable, updated)

    def visit_call_(self, call: Call) -> Expr:
        ending = self._endings.get(call)
        if ending is not None:
            result = self._attention(ending.match)
            shape = shape_of(call)
            return (
                result if same_shape(shape_of(result), shape) else relax.op.reshape(self.builder_.emit(result), shape)
            )
        is_matmul = operator_name(call) == "relax.matmul" and call not in self._within
        found = self._matcher.match(call) if is_matmul else None
        return self.visit_expr_post_order(call) if found is None else self._attention(found)

    def _attention(self, match: AttentionMatch) -> Expr:
        self.count += 1
        integers = self._in_integers and match.is_quantized
        masks = [self.visit_expr(each) for each in match.tensors]
        query, key, value = (
            self._ordered(each.quantized if integers else each.expr, axes)
            for each, axes in ((match.query, (-1,)), (match.key, (-1, -2)), (match.value, (-1,)))
        )
        orders = Orders(query.order, key.order, value.order, match.order)
        steps, rounding = _rounding(match, integers=integers)
        operands = self._operands if rounding is None else "float32"

        def compute(query: Tensor, key: Tensor, value: Tensor, *tensors: Tensor) -> Tensor:
            def score(raw: Expr, at: tuple[Expr, ...]) -> Expr:
                number = tirx.Cast("float32", raw) if integers else raw
                return applied(steps, number, [_at(tensor, at) for tensor in tensors])

            return attention(
                query, key, value, score, guarded=match.guarded, operands=operands, orders=orders, rounding=rounding
            )

        return self.builder_.call_te(
            compute,
            *(each.source for each in (query, key, value)),
            *masks,
            primfunc_name_hint="attention",
            primfunc_attrs={"op_pattern": OPAQUE},
        )

    def _ordered(self, expr: Expr, contiguous: tuple[int, ...]) -> Ordered:
        """Return an operand before its transposes, if one of the given axes is the last one there."""
        operand = ordered(expr, self._matcher.definition)
        last = len(operand.order) - 1
        if operand.is_plain or not any(operand.order[axis] == last for axis in contiguous):
            return Ordered(self.visit_expr(expr), operand.shape, tuple(range(last + 1)))
        source = self.visit_expr(operand.source)
        if not same_shape(shape_of(source), operand.shape):
            source = self.builder_.emit(relax.op.reshape(source, list(operand.shape)))
        return Ordered(source, operand.shape, operand.order)


def _rounding(match: AttentionMatch, *, integers: bool) -> tuple[list[Step], Rounding | None]:
    """Return the steps on raw scores, and the rounding of the weights and of the result."""
    weights = match.weights
    if weights is None:
        return joined(match.steps), None
    if not integers:

        def rounded(weight: Expr) -> Expr:
            return applied(joined([*weights.quantize(), *weights.dequantize()]), weight, [])

        return joined(match.steps), Rounding(rounded)
    query, key, value = (each.quantization for each in (match.query, match.key, match.value))
    assert query is not None
    assert key is not None
    assert value is not None
    steps = joined([Scale(query.scale * key.scale), *match.steps])
    factor, result = weights.scale * value.scale, match.result

    def finished(total: Expr) -> Expr:
        number = tirx.Cast("float32", total)
        return applied([Scale(factor)], number, []) if result is None else result.integer(number, factor)

    return steps, Rounding(weights.integer, (query.zero, key.zero, weights.zero, value.zero), finished)


def _at(tensor: Tensor, at: tuple[Expr, ...]) -> Expr:
    """Return an element of a tensor that broadcasts to the scores."""
    own = at[len(at) - len(tensor.shape) :]
    zero = tirx.IntImm("int64", 0)
    is_one = [isinstance(size, tirx.IntImm) and int(size.value) == 1 for size in tensor.shape]
    return tensor[tuple(zero if one else point for one, point in zip(is_one, own, strict=True))]


_MIN_KEYS = 4
_BYTES = ("int8", "uint8")
_INTEGERS = (*_BYTES, "int16", "uint16")


@dataclass(frozen=True)
class Operand:
    """A float32 tensor, and the 8-bit integers it is dequantized from, if any."""

    expr: Expr
    quantized: Expr | None = None
    quantization: Quantization | None = None


@dataclass(frozen=True)
class AttentionMatch:
    """Attention with the quantization of its `weights` and `result`, and the dimension `order` that the result is
    transposed to."""

    query: Operand
    key: Operand
    value: Operand
    steps: tuple[Step, ...]
    guarded: bool
    weights: Quantization | None
    result: Quantization | None = None
    order: tuple[int, ...] | None = None

    @property
    def tensors(self) -> list[Expr]:
        """Return the tensors added to the scores, in order."""
        return [step.tensor for step in self.steps if isinstance(step, Add)]

    @property
    def is_quantized(self) -> bool:
        """True if all operands and the weights are bytes, with known sizes."""
        operands = self.query, self.key, self.value
        weights = self.weights is not None and self.weights.dtype in _BYTES
        return weights and all(each.quantization is not None for each in operands)


@dataclass(frozen=True)
class Ending:
    """Attention whose last matmul is `product`, and whose result is quantized, transposed or both."""

    product: Expr
    match: AttentionMatch


@dataclass(frozen=True)
class AttentionMatcher:
    """Finds attention among the `definitions` of a function's variables, given their use counts `uses`.

    `in_integers`: compute attention of quantized tensors in integers, including the quantization after it.
    """

    definitions: Mapping[Var, Expr]
    uses: Mapping[Var, int]
    in_integers: bool

    def endings(self) -> dict[Expr, Ending]:
        """Return the calls other than the second matmul that attention ends in: transposes, then quantizations."""
        result: dict[Var, Ending] = {}
        products: set[Var] = set()
        for find in (self._transposed_ending, self._quantized_ending):
            for call in self.definitions.values():
                ending = find(call)
                if ending is not None and ending.product not in products:
                    result[call] = ending
                    products.add(ending.product)
        return result

    def _transposed_ending(self, transpose: Expr) -> Ending | None:
        """Return the attention whose result only a transpose reads."""
        axes = axes_of(transpose) if operator_name(transpose) == "relax.permute_dims" else None
        if axes is None:
            return None
        inner, between = transpose.args[0], shape_of(transpose.args[0])
        reshaped = self._sole(inner, "relax.reshape")
        inner = inner if reshaped is None else reshaped.args[0]
        rounded = self._sole(inner, "relax.quantize")
        ending = self._product_ending(inner) if rounded is None else self._quantized_ending(rounded)
        shape = shape_of(inner)
        if ending is None or shape is None or between is None or not differ_by_ones(shape, between):
            return None
        order = order_of_result(axes, shape, between)
        keeps_rows = order[-1] == len(shape) - 1  # columns stay adjacent
        return Ending(ending.product, replace(ending.match, order=order)) if keeps_rows else None

    def _product_ending(self, expr: Expr) -> Ending | None:
        product = self._sole(expr, "relax.matmul")
        found = None if product is None else self.match(product)
        return None if found is None else Ending(product, found)

    def _quantized_ending(self, call: Expr) -> Ending | None:
        """Return the integer attention whose result only a quantization reads."""
        if operator_name(call) != "relax.quantize":
            return None
        quantization, ending = _quantization(call), self._product_ending(call.args[0])
        if quantization is None or ending is None or not (self.in_integers and ending.match.is_quantized):
            return None
        return Ending(ending.product, replace(ending.match, result=quantization))

    def definition(self, expr: Expr) -> Expr:
        """Return the definition of a variable."""
        return self.definitions.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def _sole(self, expr: Expr, *names: str) -> Expr | None:
        """Return the call of one of these operators that defines `expr`, if `expr` has a single reader."""
        value = self.definition(expr)
        if operator_name(value) not in names or self.uses.get(expr, 0) != 1:
            return None
        return value

    def match(self, call: Call) -> AttentionMatch | None:
        """Return the attention whose second matmul is `call`."""
        softmax, guarded, weights = self._weights(call.args[0])
        scores = shape_of(call.args[0])
        if softmax is None or scores is None or int(softmax.attrs.axis) not in (-1, len(scores) - 1):
            return None
        steps: list[Step] = []
        expr = softmax.args[0]
        while True:
            product = self._sole(expr, "relax.matmul")
            if product is not None:
                operands = self._operands(product, call, scores)
                return None if operands is None else AttentionMatch(*operands, tuple(steps), guarded, weights)
            step = self._step(expr, scores)
            if step is None:
                return None
            steps[:0], expr = step

    def _weights(self, expr: Expr) -> tuple[Expr | None, bool, Quantization | None]:
        """Return the softmax that computes the weights, True if `where(isnan(weights), 0, weights)` guards them, and
        their quantization."""
        softmax = self._sole(expr, "relax.nn.softmax")
        if softmax is not None:
            return softmax, False, None
        rounded = self._sole(expr, "relax.dequantize")
        if rounded is not None:
            return self._rounded_weights(rounded)
        choice = self._sole(expr, "relax.where")
        if choice is None or _number(choice.args[1]) != 0:
            return None, False, None
        test, weights = self._sole(choice.args[0], "relax.isnan"), choice.args[2]
        softmax = self.definition(weights)
        alone = test is not None and test.args[0].same_as(weights) and self.uses.get(weights, 0) == 2
        return (softmax, True, None) if alone and operator_name(softmax) == "relax.nn.softmax" else (None, False, None)

    def _rounded_weights(self, dequantize: Expr) -> tuple[Expr | None, bool, Quantization | None]:
        quantize = self._sole(dequantize.args[0], "relax.quantize")
        if quantize is None:
            return None, False, None
        quantization, softmax = _quantization(quantize), self._sole(quantize.args[0], "relax.nn.softmax")
        same = quantization is not None and quantization == _quantization(dequantize)
        return (softmax, False, quantization) if same else (None, False, None)

    def _step(self, expr: Expr, scores: list[Index]) -> tuple[list[Step], Expr] | None:
        """Return the steps that the call defining `expr` applies to the scores, and the scores."""
        adjusting = self._sole(expr, "relax.multiply", "relax.divide", "relax.add")
        if adjusting is not None:
            return self._adjusting(adjusting, scores)
        converting = self._sole(expr, "relax.quantize", "relax.dequantize")
        quantization = None if converting is None else _quantization(converting)
        if converting is not None and quantization is not None:
            rounds = operator_name(converting) == "relax.quantize"
            return quantization.quantize() if rounds else quantization.dequantize(), converting.args[0]
        cast = self._sole(expr, "relax.astype")
        if cast is not None and _dtype(cast) == "float32" and _dtype(cast.args[0]) in _INTEGERS:
            return [], cast.args[0]
        return None

    def _adjusting(self, call: Call, scores: list[Index]) -> tuple[list[Step], Expr] | None:
        name = operator_name(call)
        orders = [(call.args[0], call.args[1])]
        if name != "relax.divide":
            orders.append((call.args[1], call.args[0]))
        for inner, operand in orders:
            number = _number(operand)
            if number is not None and name != "relax.add":
                return [Scale(number) if name == "relax.multiply" else Divide(number)], inner
            shape = shape_of(inner)
            if name == "relax.add" and shape is not None and same_shape(shape, scores) and _broadcasts(operand, scores):
                if operator_name(self.definition(inner)) is None:
                    continue
                return [Add(operand)], inner
        return None

    def _operands(self, product: Expr, call: Call, scores: list[Index]) -> tuple[Operand, Operand, Operand] | None:
        """Return query, key and value if their shapes are those of attention."""
        query, key, value = product.args[0], product.args[1], call.args[1]
        shapes = [shape_of(each) for each in (query, key, value)]
        if any(shape is None or len(shape) != len(scores) or len(shape) < 3 for shape in shapes):
            return None
        leading = [shape[:-2] for shape in shapes if shape is not None]
        if not all(same_shape(each, leading[0]) for each in leading[1:]):
            return None
        if any(_dtype(each) != "float32" for each in (query, key, value, call)):
            return None
        if isinstance(scores[-1], int) and scores[-1] < _MIN_KEYS:
            return None
        sizes = [size for shape in shapes if shape is not None for size in shape[-2:]]
        known = all(isinstance(size, int) for size in sizes)
        return self._operand(query, known), self._operand(key, known), self._operand(value, known)

    def _operand(self, expr: Expr, known: bool) -> Operand:
        """Return the tensor, or the bytes it is dequantized from if its sizes are `known`."""
        call = self.definition(expr)
        quantization = _quantization(call) if known and operator_name(call) == "relax.dequantize" else None
        if quantization is None or quantization.dtype not in _BYTES:
            return Operand(expr)
        return Operand(expr, call.args[0], quantization)


def _quantization(call: Call) -> Quantization | None:
    """Return a float32 quantization or dequantization with one known scale and zero point."""
    scale, zero = (array_of(each) if isinstance(each, GenericConst) else None for each in call.args[1:3])
    rounds = operator_name(call) == "relax.quantize"
    dtype = _dtype(call) if rounds else _dtype(call.args[0])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or dtype not in _INTEGERS:
        return None
    if _dtype(call.args[0] if rounds else call) != "float32" or float(scale.reshape(())) <= 0:
        return None
    return Quantization(float(scale.reshape(())), int(zero.reshape(())), dtype)


def _dtype(expr: Expr) -> str:
    return str(expr.ty.dtype)


def _number(expr: Expr) -> float | None:
    """Return the value of a one-element float32 constant."""
    if not isinstance(expr, GenericConst) or str(expr.ty.dtype) != "float32":
        return None
    array = array_of(expr)
    return float(array.reshape(())) if array.size == 1 else None


def _broadcasts(operand: Expr, scores: list[Index]) -> bool:
    """True for a float32 tensor of at most the scores' rank, with each dimension 1 or equal to the scores'."""
    shape = shape_of(operand)
    if shape is None or len(shape) > len(scores) or str(operand.ty.dtype) != "float32":
        return False
    own = scores[len(scores) - len(shape) :]
    return all(is_one(size) or same_shape([size], [of]) for size, of in zip(shape, own, strict=True))


_LIMITS = {name: np.iinfo(name) for name in ("int8", "uint8", "int16", "uint16")}


@dataclass(frozen=True)
class Scale:
    """Multiplication by a number."""

    factor: float


@dataclass(frozen=True)
class Divide:
    """Division by a number."""

    divisor: float


@dataclass(frozen=True)
class Shift:
    """Addition of a number."""

    offset: float


@dataclass(frozen=True)
class Add:
    """Addition of a tensor that broadcasts to the scores."""

    tensor: Expr


@dataclass(frozen=True)
class Round:
    """Rounding to the nearest integer within limits, half to even."""

    low: int
    high: int


Step = Scale | Divide | Shift | Add | Round


@dataclass(frozen=True)
class Quantization:
    """Per-tensor quantization: integer = round(number / scale) + zero, clamped to the type's range."""

    scale: float
    zero: int
    dtype: str

    def quantize(self) -> list[Step]:
        """Return the steps from floats to integers."""
        return [Scale(1 / self.scale), self._limits, Shift(self.zero)]

    def dequantize(self) -> list[Step]:
        """Return the steps from integers to floats."""
        return [Shift(-self.zero), Scale(self.scale)]

    def integer(self, number: Expr, factor: float = 1.0) -> Expr:
        """Return the integer of `factor * number`, a float32."""
        whole = _rounded(number * _float(factor / self.scale), self._limits)
        return tirx.Cast(self.dtype, whole + tirx.IntImm("int32", self.zero))

    @property
    def _limits(self) -> Round:
        limits = _LIMITS[self.dtype]
        return Round(int(limits.min) - self.zero, int(limits.max) - self.zero)


def joined(steps: Sequence[Step]) -> list[Step]:
    """Combine adjacent factors and offsets if any step rounds: only one multiplication then remains between two
    roundings, as in operators on quantized tensors."""
    if not any(isinstance(step, Round) for step in steps):
        return list(steps)
    result: list[Step] = []
    for step in steps:
        last = result[-1] if result else None
        if isinstance(step, Scale) and isinstance(last, Scale):
            result[-1] = Scale(last.factor * step.factor)
        elif isinstance(step, Shift) and isinstance(last, Shift):
            result[-1] = Shift(last.offset + step.offset)
        else:
            result.append(step)
        if result[-1] in (Scale(1.0), Shift(0)):
            result.pop()
    return result


def applied(steps: Sequence[Step], number: Expr, tensors: Sequence[Expr]) -> Expr:
    """Apply the steps to a float32; `tensors` are the elements that steps add, in order."""
    elements = iter(tensors)
    for step in steps:
        if isinstance(step, Scale):
            number = number * _float(step.factor)
        elif isinstance(step, Divide):
            number = number / _float(step.divisor)
        elif isinstance(step, Shift):
            number = number + _float(step.offset)
        elif isinstance(step, Add):
            number = number + next(elements)
        else:
            number = tirx.Cast("float32", _rounded(number, step))
    return number


def _rounded(number: Expr, step: Round) -> Expr:
    """Round to int32, clamping first, since vector instructions round only values within int32."""
    limited = te.min(te.max(number, _float(step.low)), _float(step.high))
    return tirx.Cast("int32", tirx.nearbyint(limited))


def _float(number: float) -> Expr:
    return tirx.FloatImm("float32", float(np.float32(number)))
