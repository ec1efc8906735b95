"""Elementary functions as straight-line float32 code, so that they run in vector registers.

LLVM turns a vector `exp` into one libm call a lane. These replacements hold only multiply-adds, selects and integer
shifts. Largest errors, measured over the whole range against float64 (units in the last place of float32):

==========  =====  ==========================================================================
function    ulp    method
==========  =====  ==========================================================================
exp         1.0    Cephes `expf`: x = n ln 2 + r, a degree-7 polynomial in r, 2^n in two steps
sigmoid     2.5    1 / (1 + e^-|x|), mirrored for negative x
tanh        7      odd rational approximation 13/6 as in Eigen
erf         7      odd rational approximation 11/10 as in Eigen
log         1.0    Cephes `logf`: mantissa in [sqrt(1/2), sqrt(2)), a degree-9 polynomial
==========  =====  ==========================================================================

NaN gives NaN, infinities and overflow give the limits, results below the normal range are denormals. float16 and
bfloat16 arguments are computed in float32 and rounded once; float64 is left to libm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from schedules.tir import structural_map, tirx, tvm

Expr = Any

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693359375  # exact in float32 with 9 bits, so n * _LN2_HIGH is exact
_LN2_LOW = -2.12194440e-4
_ROUNDING = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to an integer, held in the low bits
_ROUNDING_BITS = 0x4B400000
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_EXP_LIMITS = (-104.0, 89.0)  # beyond these the result is 0 or infinity in float32

_TANH_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_TANH_LIMIT = 9.1  # from 9.02 on, float32 tanh is 1

_ERF_NUMERATOR = (
    2.123732201653183e-06,
    2.861979592125863e-04,
    3.658048342913389e-03,
    5.243302136659622e-02,
    1.874160766601562e-01,
    1.128379106521606,
)
_ERF_DENOMINATOR = (
    3.891857340931893e-05,
    1.143296016380198e-03,
    1.475208811461925e-02,
    1.129456758499146e-01,
    4.994257986545563e-01,
    1.0,
)
_ERF_LIMIT = 3.832506856900711  # where float32 erf is 1

_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def _f32(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def _i32(value: int) -> Expr:
    return tirx.IntImm("int32", value)


def _let(name: str, value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """Bind a value that is used more than once."""
    var = tirx.Var(name, value.ty)
    return tirx.Let(var, value, body(var))


def _horner(coefficients: Sequence[float], x: Expr) -> Expr:
    """The polynomial with these coefficients, highest power first."""
    result = _f32(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _f32(coefficient)
    return result


def _clamp(x: Expr, low: float, high: float) -> Expr:
    """Clamped so that NaN stays NaN; each select becomes one minimum or maximum instruction."""
    upper = tirx.Select(x > _f32(high), _f32(high), x)
    return _let("upper", upper, lambda u: tirx.Select(u < _f32(low), _f32(low), u))


def _as_bits(x: Expr) -> Expr:
    return tirx.reinterpret("int32", x)


def _from_bits(bits: Expr) -> Expr:
    return tirx.reinterpret("float32", bits)


def _power_of_two(exponent: Expr) -> Expr:
    """2^exponent for an exponent in the normal range."""
    return _from_bits((exponent + _i32(127)) << _i32(23))


def exp(x: Expr) -> Expr:
    """e^x."""

    def scaled(r: Expr, n: Expr) -> Expr:
        polynomial = _horner(_EXP, r) * (r * r) + r + _f32(1.0)
        # In two steps, since 2^n itself may lie outside the normal range where the result does not.
        return _let("half", n >> _i32(1), lambda h: polynomial * _power_of_two(h) * _power_of_two(n - h))

    def reduced(clamped: Expr, shifted: Expr) -> Expr:
        rounded = shifted - _f32(_ROUNDING)
        remainder = _let("n", rounded, lambda n: clamped - n * _f32(_LN2_HIGH) - n * _f32(_LN2_LOW))
        integer = _as_bits(shifted) - _i32(_ROUNDING_BITS)
        return _let("r", remainder, lambda r: _let("k", integer, lambda k: scaled(r, k)))

    def shifted(clamped: Expr) -> Expr:
        return _let("t", clamped * _f32(_LOG2_E) + _f32(_ROUNDING), lambda t: reduced(clamped, t))

    return _let("x", _clamp(x, *_EXP_LIMITS), shifted)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""

    def mirrored(value: Expr, power: Expr) -> Expr:
        numerator = tirx.Select(value < _f32(0.0), power, _f32(1.0))
        return numerator / (_f32(1.0) + power)

    def of(value: Expr) -> Expr:
        negative = tirx.Select(value < _f32(0.0), value, _f32(0.0) - value)
        return _let("e", exp(negative), lambda power: mirrored(value, power))

    return _let("v", x, of)


def _odd_rational(x: Expr, limit: float, numerator: Sequence[float], denominator: Sequence[float]) -> Expr:
    """x P(x^2) / Q(x^2) on the clamped argument, cut to [-1, 1]."""

    def quotient(value: Expr) -> Expr:
        return _let(
            "square",
            value * value,
            lambda square: value * (_horner(numerator, square) / _horner(denominator, square)),
        )

    return _clamp_bound(_let("x", _clamp(x, -limit, limit), quotient))


def _clamp_bound(value: Expr) -> Expr:
    return _let("y", value, lambda y: _clamp(y, -1.0, 1.0))


def tanh(x: Expr) -> Expr:
    """Hyperbolic tangent."""
    return _let("v", x, lambda v: _odd_rational(v, _TANH_LIMIT, _TANH_NUMERATOR, _TANH_DENOMINATOR))


def erf(x: Expr) -> Expr:
    """The error function."""
    return _let("v", x, lambda v: _odd_rational(v, _ERF_LIMIT, _ERF_NUMERATOR, _ERF_DENOMINATOR))


def log(x: Expr) -> Expr:
    """The natural logarithm; NaN below 0, minus infinity at 0."""
    smallest_normal, denormal_scale = 1.17549435e-38, 8388608.0

    def of_parts(value: Expr, mantissa: Expr, exponent: Expr) -> Expr:
        square = mantissa * mantissa
        tail = _horner(_LOG, mantissa) * mantissa * square
        small = tail + exponent * _f32(_LN2_LOW) - _f32(0.5) * square
        result = mantissa + small + exponent * _f32(_LN2_HIGH)
        infinite = tirx.Select(value == _f32(0.0), _f32(float("-inf")), result)
        # A comparison that NaN fails, so NaN and infinity return themselves.
        beyond = tirx.Select(value <= _f32(3.4028234e38), infinite, value)
        return tirx.Select(value < _f32(0.0), _f32(float("nan")), beyond)

    def split(value: Expr, normal: Expr, offset: Expr) -> Expr:
        def of_bits(bits: Expr) -> Expr:
            fraction = _from_bits((bits & _i32(0x007FFFFF)) | _i32(0x3F000000))  # in [0.5, 1)
            exponent = tirx.Cast("float32", (bits >> _i32(23)) - _i32(126)) - offset

            def centred(m: Expr) -> Expr:
                low = m < _f32(0.70710678118654752)
                mantissa = tirx.Select(low, m + m, m) - _f32(1.0)
                power = tirx.Select(low, exponent - _f32(1.0), exponent)
                return _let("m", mantissa, lambda a: _let("e", power, lambda e: of_parts(value, a, e)))

            return _let("fraction", fraction, centred)

        return _let("bits", _as_bits(normal), of_bits)

    def of(value: Expr) -> Expr:
        denormal = value < _f32(smallest_normal)
        normal = tirx.Select(denormal, value * _f32(denormal_scale), value)
        offset = tirx.Select(denormal, _f32(23.0), _f32(0.0))
        return split(value, normal, offset)

    return _let("v", x, of)


_REPLACEMENTS: dict[str, Callable[[Expr], Expr]] = {
    "tirx.exp": exp,
    "tirx.sigmoid": sigmoid,
    "tirx.tanh": tanh,
    "tirx.erf": erf,
    "tirx.log": log,
}
_NARROW = ("float16", "bfloat16")


def lower_intrinsics(root: Any) -> Any:
    """Replace the elementary functions of an expression or statement by straight-line code."""

    def replace(call: Any) -> Any:
        name = str(call.op.name) if isinstance(call.op, tvm.ir.Op) else ""
        make = _REPLACEMENTS.get(name)
        if make is None:
            return call
        dtype = str(call.ty)
        if dtype == "float32":
            return make(call.args[0])
        if dtype in _NARROW:
            return tirx.Cast(dtype, make(tirx.Cast("float32", call.args[0])))
        return call

    return structural_map(root, (tvm.ir.Call, replace))
