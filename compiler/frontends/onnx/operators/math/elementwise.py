"""Elementwise functions of one tensor, and arithmetic, comparison, logic and bitwise operators on several."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature

import numpy as np
from tvm import relax, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import broadcasting, dtypes
from compiler.frontends.onnx.broadcasting import broadcast, const, elementwise, in_float32, select
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.cast import is_narrow_float
from compiler.frontends.onnx.registry import bound_attributes, converter
from compiler.support.powers import by_squaring
from schedules.ir.tvm_types import Expr

# Relax functions with the same names.
_FLOAT_FUNCTIONS = (
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log", "Round"),
    *("Sigmoid", "Sin", "Sinh", "Sqrt", "Tan", "Tanh"),
)
# TVM has no half-precision code for these, or it is inaccurate.
_WIDENED = frozenset({"Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "Tan", "Erf", "Sin", "Cos"})


def widened(context: NodeContext, function: Callable[..., relax.Expr], *tensors: relax.Expr) -> relax.Expr:
    """Compute narrower float types in float32."""
    dtype = str(tensors[0].ty.dtype)
    if not is_narrow_float(dtype):
        return function(*tensors)
    wide = [context.emit(R.astype(tensor, "float32")) for tensor in tensors]
    return R.astype(context.emit(function(*wide)), dtype)


@converter(*_FLOAT_FUNCTIONS)
def float_function(context: NodeContext) -> relax.Expr:
    """Apply a function that Relax has; integers are allowed only for Erf, and computed in float32."""
    function = getattr(R, context.operator.lower())
    data, dtype = context.input(0), context.dtype(0)
    if dtypes.is_integer(dtype):
        wide = "float64" if dtypes.bits(dtype) >= 32 else "float32"
        return R.astype(context.emit(function(context.emit(R.astype(data, wide)))), dtype)
    if context.operator in _WIDENED or dtype == "bfloat16":
        return widened(context, function, data)
    return function(data)


@converter("Abs", "Neg", "Sign")
def signed_function(context: NodeContext) -> relax.Expr:
    """Abs, Neg and Sign for all number types; unsigned values are their own magnitude."""
    data, dtype = context.input(0), context.dtype(0)
    if context.operator == "Neg":
        return R.negative(data)
    if dtypes.is_unsigned(dtype):
        return data if context.operator == "Abs" else R.astype(_is_positive(context), dtype)
    if context.operator == "Abs":
        return R.abs(data)
    return elementwise(
        context,
        "sign",
        lambda x: select(x > const(0, x), const(1, x), select(x < const(0, x), const(-1, x), x)),  # 0 or NaN
        data,
    )


def _is_positive(context: NodeContext) -> relax.Expr:
    return context.emit(R.greater(context.input(0), context.literal(0, context.dtype(0))))


@converter("Reciprocal")
def reciprocal(context: NodeContext) -> relax.Expr:
    """1 / x."""
    return R.divide(context.literal(1, context.dtype(0)), context.input(0))


@converter("Relu", since=6)
def relu(context: NodeContext) -> relax.Expr:
    """max(x, 0)."""
    return R.nn.relu(context.input(0))


def scalar(operator: str, since: int = 1) -> Callable[[Callable[..., Expr]], Callable[..., Expr]]:
    """Register a scalar kernel, which takes the node's attributes as keywords; narrow floats are computed in
    float32."""

    def register(function: Callable[..., Expr]) -> Callable[..., Expr]:
        parameters = signature(function).parameters.values()

        def convert(context: NodeContext) -> relax.Expr:
            dtype, attributes = context.dtype(0), bound_attributes(context, parameters)
            narrow = is_narrow_float(dtype)

            def kernel(x: Expr) -> Expr:
                return function(x.astype("float32") if narrow else x, **attributes)

            name = function.__name__
            return elementwise(context, name, kernel, context.input(0), dtype=dtype if narrow else None)

        converter(operator, since=since)(convert)
        return function

    return register


@converter("LeakyRelu", since=6)
def leaky_relu(context: NodeContext) -> relax.Expr:
    """x if positive, otherwise alpha x."""
    alpha = context.attribute("alpha", 0.01)
    return widened(context, lambda x: R.nn.leakyrelu(x, alpha), context.input(0))


@converter("PRelu", since=7)
def parametric_relu(context: NodeContext) -> relax.Expr:
    """x unless negative, otherwise slope x; the slope broadcasts to x."""
    return elementwise(
        context, "prelu", lambda x, slope: select(x < const(0, x), x * slope, x), context.input(0), context.input(1)
    )


@scalar("Elu", since=6)
def elu(x: Expr, *, alpha: float = 1.0) -> Expr:
    """x if positive, otherwise alpha (exp(x) - 1)."""
    return select(x < const(0, x), const(alpha, x) * _expm1(x), x)


@scalar("Selu", since=6)
def selu(x: Expr, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Expr:
    """gamma x if positive, otherwise gamma alpha (exp(x) - 1)."""
    return const(gamma, x) * select(x > const(0, x), x, const(alpha, x) * _expm1(x))


@scalar("Celu", since=12)
def celu(x: Expr, *, alpha: float = 1.0) -> Expr:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    zero = const(0, x)
    return tirx.max(zero, x) + tirx.min(zero, const(alpha, x) * _expm1(x / const(alpha, x)))


@scalar("ThresholdedRelu")
def thresholded_relu(x: Expr, *, alpha: float = 1.0) -> Expr:
    """x if x > alpha, otherwise 0."""
    return select(x > const(alpha, x), x, const(0, x))


@converter("Shrink")
def shrink(context: NodeContext) -> relax.Expr:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    bias, threshold = context.attribute("bias", 0.0), context.attribute("lambd", 0.5)
    dtype = context.dtype(0)
    wide = "float32" if dtypes.is_integer(dtype) else None

    def function(x: relax.Expr) -> relax.Expr:
        value = x.astype(wide) if wide else x
        low, high = const(-threshold, value), const(threshold, value)
        shift, zero = const(bias, value), const(0, value)
        return select(value < low, value + shift, select(value > high, value - shift, zero))

    return elementwise(context, "shrink", function, context.input(0), dtype=dtype)


@converter("HardSigmoid", since=6)
def hard_sigmoid(context: NodeContext) -> relax.Expr:
    """max(0, min(1, alpha x + beta))."""
    alpha, beta, dtype = context.attribute("alpha", 0.2), context.attribute("beta", 0.5), context.dtype(0)
    return _hard_sigmoid(context, context.input(0), alpha, beta, dtype)


def _hard_sigmoid(context: NodeContext, data: relax.Expr, alpha: float, beta: float, dtype: str) -> relax.Expr:
    scaled = context.emit(R.multiply(data, context.literal(alpha, dtype)))
    return R.clip(context.emit(R.add(scaled, context.literal(beta, dtype))), 0, 1)


@converter("HardSwish", since=14)
def hard_swish(context: NodeContext) -> relax.Expr:
    """x max(0, min(1, x / 6 + 0.5))."""
    data = context.input(0)
    gate = context.emit(_hard_sigmoid(context, data, 1 / 6, 0.5, context.dtype(0)))
    return R.multiply(data, gate)


@scalar("Softplus")
def softplus(x: Expr) -> Expr:
    """log(1 + exp(x)), without overflow or loss of small values."""
    return tirx.max(x, const(0, x)) + _log1p(tirx.exp(const(0, x) - tirx.abs(x)))


@scalar("Softsign")
def softsign(x: Expr) -> Expr:
    """x / (1 + |x|)."""
    return x / (const(1, x) + tirx.abs(x))


@scalar("Mish", since=18)
def mish(x: Expr) -> Expr:
    """x tanh(softplus(x))."""
    # tanh(log(1 + e)) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1); beyond 20 it is 1 in every float type up to 32 bits.
    e = tirx.exp(tirx.min(x, const(40, x)))
    n = e * (e + const(2, x))
    return select(x > const(40, x), x, x * n / (n + const(2, x)))


@converter("Gelu", since=20)
def gelu(context: NodeContext) -> relax.Expr:
    """x Phi(x), exact or by tanh."""
    approximate = context.choice("approximate", "none", ("none", "tanh"))
    return widened(context, R.nn.gelu_tanh if approximate == "tanh" else R.nn.gelu, context.input(0))


@converter("Swish", since=24)
def swish(context: NodeContext) -> relax.Expr:
    """x sigmoid(alpha x)."""
    alpha, data, dtype = context.attribute("alpha", 1.0), context.input(0), context.dtype(0)
    scaled = data if alpha == 1.0 else context.emit(R.multiply(data, context.literal(alpha, dtype)))
    return R.multiply(data, context.emit(R.sigmoid(scaled)))


@converter("IsNaN")
def is_nan(context: NodeContext) -> relax.Expr:
    """True for elements that are NaN."""
    return widened_predicate(context, R.isnan)


def widened_predicate(context: NodeContext, function: Callable[[relax.Expr], relax.Expr]) -> relax.Expr:
    """Apply a predicate to float values."""
    data, dtype = context.input(0), context.dtype(0)
    if is_narrow_float(dtype):
        data = context.emit(R.astype(data, "float32"))
    return function(data)


@converter("IsInf")
def is_infinite(context: NodeContext) -> relax.Expr:
    """True for infinite elements of the requested signs."""
    positive, negative = context.attribute("detect_positive", 1), context.attribute("detect_negative", 1)
    data = context.input(0)
    if is_narrow_float(context.dtype(0)):
        data = context.emit(R.astype(data, "float32"))
    infinity = context.literal(math.inf, str(data.ty.dtype))
    if positive and negative:
        return R.equal(context.emit(R.abs(data)), infinity)
    if positive:
        return R.equal(data, infinity)
    if negative:
        return R.equal(data, context.literal(-math.inf, str(data.ty.dtype)))
    return elementwise(context, "never", lambda x: tirx.const(False, "bool"), data)


@converter("Not")
def logical_not(context: NodeContext) -> relax.Expr:
    """Logical not."""
    return R.logical_not(context.input(0))


@converter("BitwiseNot", since=18)
def bitwise_not(context: NodeContext) -> relax.Expr:
    """Bitwise not."""
    return R.bitwise_not(context.input(0))


def _expm1(x: relax.Expr) -> relax.Expr:
    return tirx.exp(x) - const(1, x)


def _log1p(x: relax.Expr) -> relax.Expr:
    """log(1 + x) for x in [0, 1]: 2 artanh(s) with s = x / (2 + x) <= 1/3, by its power series.

    The omitted terms are below 2e-10 of the result in float32, below 1e-17 in float64.
    """
    s = x / (const(2, x) + x)
    square = s * s
    terms = 18 if str(x.ty.dtype) == "float64" else 10
    series = const(0, x)
    for k in range(terms - 1, -1, -1):
        series = series * square + const(1 / (2 * k + 1), x)
    return const(2, x) * s * series


Binary = Callable[[relax.Expr, relax.Expr], relax.Expr]
_MAX_SMALL_EXPONENT = 4


def operands(context: NodeContext, *indices: int) -> list[relax.Expr]:
    """Return the inputs, all of one type, broadcast to each other."""
    names = {context.dtype(i) for i in indices}
    if len(names) != 1:
        context.invalid(f"its inputs have different types: {', '.join(sorted(names))}")
    return broadcast(context, [context.input(i) for i in indices])


_BINARY: dict[str, Binary] = {"Add": R.add, "Sub": R.subtract, "Mul": R.multiply}
_BINARY |= {"And": R.logical_and, "Or": R.logical_or, "Xor": R.logical_xor}
_BINARY |= {"BitwiseAnd": R.bitwise_and, "BitwiseOr": R.bitwise_or, "BitwiseXor": R.bitwise_xor}


@converter("Add", "Sub", "Mul", "And", "Or", "Xor", since=7)
@converter("BitwiseAnd", "BitwiseOr", "BitwiseXor", since=18)
def binary(context: NodeContext) -> relax.Expr:
    """Arithmetic (integers wrap around), logical and bitwise operators."""
    return _BINARY[context.operator](*operands(context, 0, 1))


@converter("Div", since=7)
def divide(context: NodeContext) -> relax.Expr:
    """Quotient; truncated toward zero for integers."""
    a, b = operands(context, 0, 1)
    if not dtypes.is_integer(context.dtype(0)):
        return R.divide(a, b)
    divisor = context.known(1)
    if divisor is not None and not np.any((divisor == 0) | (divisor == -1)):
        return R.divide(a, b)
    return elementwise(context, "truncated_division", broadcasting.truncated_division, a, b)


@converter("Mod", since=10)
def modulo(context: NodeContext) -> relax.Expr:
    """Remainder with the sign of the divisor, or of the dividend with fmod=1."""
    a, b = operands(context, 0, 1)
    truncated, dtype = bool(context.attribute("fmod", 0)), context.dtype(0)
    if dtypes.is_integer(dtype):
        function = broadcasting.truncated_remainder if truncated else broadcasting.floored_remainder
        return elementwise(context, "remainder", function, a, b)
    wide = "float32" if dtypes.bits(dtype) < 32 else dtype

    def of_floats(x: Expr, y: Expr) -> Expr:
        x, y = x.astype(wide), y.astype(wide)
        remainder = tirx.truncmod(x, y)
        return (
            remainder if truncated else tirx.Select(broadcasting.opposite_signs(remainder, y), remainder + y, remainder)
        )

    return elementwise(context, "remainder", of_floats, a, b, dtype=dtype)


@converter("Pow", since=7)
def power(context: NodeContext) -> relax.Expr:
    """base ** exponent in the base's type; the exponent can have another type."""
    base, exponent = context.dtype(0), context.dtype(1)
    small = _small_exponent(context)
    if small is not None:
        return by_squaring(context.input(0), small, lambda a, b: context.emit(R.multiply(a, b)))
    if dtypes.is_float(base):
        wide = "float32" if dtypes.bits(base) < 32 else base
        a, b = (_as(context, i, wide) for i in (0, 1))
        result = context.emit(R.power(*broadcast(context, [a, b])))
        return result if wide == base else R.astype(result, base)
    if dtypes.is_float(exponent):
        return elementwise(
            context,
            "power",
            lambda x, y: tirx.pow(x.astype("float64"), y.astype("float64")),
            context.input(0),
            context.input(1),
            dtype=base,
        )
    return elementwise(context, "power", broadcasting.integer_power, context.input(0), context.input(1))


def _as(context: NodeContext, index: int, dtype: str) -> relax.Expr:
    data = context.input(index)
    return data if context.dtype(index) == dtype else context.emit(R.astype(data, dtype))


def _small_exponent(context: NodeContext) -> int | None:
    """Return the exponent if it is one small positive integer for all elements and does not change the shape."""
    known = context.known(1)
    if known is None or known.size != 1 or known.ndim > context.rank(0):
        return None
    value = known.reshape(-1)[0].item()
    return int(value) if value in range(1, _MAX_SMALL_EXPONENT + 1) else None


@converter("Max", "Min", since=6)
def extremum(context: NodeContext) -> relax.Expr:
    """Maximum or minimum of any number of tensors; NaN wins."""
    tensors = operands(context, *range(len(context.inputs)))
    greatest = context.operator == "Max"
    if not dtypes.is_float(context.dtype(0)):
        return _chain(context, R.maximum if greatest else R.minimum, tensors)
    function = broadcasting.maximum if greatest else broadcasting.minimum
    return _chain(context, lambda a, b: elementwise(context, context.operator.lower(), function, a, b), tensors)


@converter("Sum", since=6)
def total(context: NodeContext) -> relax.Expr:
    """Sum of any number of tensors."""
    return _chain(context, R.add, operands(context, *range(len(context.inputs))))


@converter("Mean", since=6)
def mean(context: NodeContext) -> relax.Expr:
    """Mean of any number of tensors."""
    count = len(context.inputs)
    summed = context.emit(_chain(context, R.add, operands(context, *range(count))))
    return R.divide(summed, context.literal(count, context.dtype(0)))


def _chain(context: NodeContext, function: Binary, tensors: list[relax.Expr]) -> relax.Expr:
    result = tensors[0]
    for tensor in tensors[1:]:
        result = context.emit(function(result, tensor))
    return result


_COMPARISONS: dict[str, Binary] = {
    "Equal": R.equal,
    "Greater": R.greater,
    "GreaterOrEqual": R.greater_equal,
    "Less": R.less,
    "LessOrEqual": R.less_equal,
}


@converter(*_COMPARISONS, since=7)
def comparison(context: NodeContext) -> relax.Expr:
    """Elementwise comparison."""
    a, b = operands(context, 0, 1)
    if context.dtype(0) == "bool":
        # TVM's code generator has no comparisons of booleans.
        a, b = (context.emit(R.astype(tensor, "int8")) for tensor in (a, b))
    return _COMPARISONS[context.operator](a, b)


@converter("BitShift", since=11)
def bit_shift(context: NodeContext) -> relax.Expr:
    """Shift by any number of bits; beyond the width, only the sign remains."""
    shifts_left = context.required_attribute("direction") == "LEFT"
    dtype = context.dtype(0)
    width = dtypes.bits(dtype)

    def shift(x: Expr, y: Expr) -> Expr:
        count = y.astype("int64")
        inside = tirx.all(count >= 0, count < width)
        amount = tirx.Select(inside, count, tirx.const(width - 1, "int64")).astype(dtype)
        shifted = x << amount if shifts_left else x >> amount
        if not shifts_left and not dtypes.is_unsigned(dtype):
            return shifted
        return tirx.Select(inside, shifted, const(0, x))

    return elementwise(context, "bit_shift", shift, *operands(context, 0, 1))


@converter("Where", since=9)
def where(context: NodeContext) -> relax.Expr:
    """Select the second input if the condition holds, otherwise the third."""
    if context.dtype(1) != context.dtype(2):
        context.invalid(f"it chooses between {context.dtype(1)} and {context.dtype(2)}")
    return R.where(*broadcast(context, [context.input(i) for i in range(3)]))


@converter("Clip", since=6)
def clip_by_attributes(context: NodeContext) -> relax.Expr:
    """Clip to limits given as attributes."""
    dtype = context.dtype(0)
    limits = np.finfo(dtypes.numpy_dtype(dtype))
    low, high = context.attribute("min", float(limits.min)), context.attribute("max", float(limits.max))
    return _clip(context, context.literal(low, dtype), context.literal(high, dtype))


@converter("Clip", since=11)
def clip(context: NodeContext) -> relax.Expr:
    """Clip to limits given as inputs, each of them optional; the upper one wins if they cross."""
    low = context.input(1) if context.has_input(1) else None
    high = context.input(2) if context.has_input(2) else None
    return _clip(context, low, high)


def _clip(context: NodeContext, low: relax.Expr | None, high: relax.Expr | None) -> relax.Expr:
    data = context.input(0)
    is_float = dtypes.is_float(context.dtype(0))
    for index in range(1, len(context.inputs) if context.opset >= 11 else 1):
        if context.has_input(index) and context.rank(index) and context.shape(index) != (1,):
            context.invalid(f"its limit has shape {context.shape(index)}; it must be a scalar")
    low, high = (context.reshape(v, ()) if v is not None and v.ty.ndim else v for v in (low, high))
    bounds = [limit for limit in (low, high) if limit is not None]
    if not bounds:
        return data

    def function(x: Expr, *limits: Expr) -> Expr:
        result = x
        if low is not None:
            result = tirx.max(result, limits[0])
        if high is not None:
            result = tirx.min(result, limits[-1])
        return tirx.Select(broadcasting.is_nan(x), x, result) if is_float else result

    return in_float32(context, lambda *wide: elementwise(context, "clip", function, *wide), data, *bounds)
