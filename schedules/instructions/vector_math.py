"""Elementary functions on float32 vectors, as LLVM functions that are inlined at the call.

LLVM turns a vector `exp` into one libm call per lane. These use only multiply-adds, selects and integer shifts.
Largest errors over the whole range against float64, in units in the last place of float32, with fused multiply-adds:

==========  =====  ==========================================================================
function    ulp    method
==========  =====  ==========================================================================
exp         1.0    as Cephes' `expf`: x = n ln 2 + r, a degree-6 polynomial in r, 2^n in two steps
sigmoid     2.5    1 / (1 + e^-x), 0 if that is below the normal range
tanh        5      odd rational approximation 13/6 as in Eigen
erf         6      odd rational approximation 11/10 as in Eigen
log         1.0    Cephes `logf`: mantissa in [sqrt(1/2), sqrt(2)), a degree-9 polynomial
pow         0.51   2^(y log2 x) in float64: Taylor series of degrees 13 and 9
round       0      half away from zero, as `roundf`
sin, cos    1.6    Cephes `sinf`; reduced by pi / 2 in two parts in float64, as FreeBSD's `sinf`
tan         2.7    Cephes `tanf`, same reduction
asin        2.5    Cephes `asinf`: a degree-11 polynomial up to 1/2, of a square root above
acos        1.2    from the same
atan        2.4    Cephes `atanf`: three ranges, a degree-9 polynomial
sinh        1.7    Cephes `sinhf`: a degree-7 polynomial up to 1, powers of e above
cosh        1.4    powers of e
asinh       3.9    Cephes `asinhf`: a degree-9 polynomial up to 1/2, a logarithm above
acosh       2.4    Cephes `acoshf`: a polynomial times a square root up to 1.5, a logarithm above
atanh       1.5    Cephes `atanhf`: a degree-11 polynomial up to 1/2, a logarithm above
==========  =====  ==========================================================================

NaN returns NaN, infinities and overflow return the limits, results below the normal range are denormals.
Vectors in which a sine's, cosine's or tangent's argument exceeds 2^28 are computed by the C library, lane by lane.

Softmax only exponentiates numbers <= 0. `exp_of_negative` is exp for these (1.0 ulp down to e^-87), 0 below the normal
range; `exp_of_negative_coarse` is the same with a maximum relative error of 8e-5, a twentieth of the error of rounding
to bfloat16.

Each function has two variants. The plain one keeps its constants in registers, best for loops that do nothing else.
The one for tiles reads them from memory at each use: next to a tile of sums there are no registers for them, and LLVM
would rather spill the sums inside the innermost loop.

In TensorIR each is an operator `tensorwright.<name>` that the vectorizer supports; TVM's last lowering turns it into a
call of the function for its number of lanes, whose text `definitions` returns for import into the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from schedules.instructions.llvm_functions import PREFIX, register_operator
from schedules.instructions.vector_writer import (
    METADATA,
    TABLE,
    TABLE_SIZE,
    WIDE_ROUNDING,
    WIDE_TABLE,
    WIDE_TABLE_SIZE,
    Tables,
    Writer,
    float_bits,
    wide_bits,
)
from schedules.ir.tir import Expr, tvm
from schedules.machine import Machine

# Vectorized hyperbolic functions of float32 and their inverses, after Cephes' `sinhf` and related functions.

_SINH = (2.03721912945e-4, 8.33028376239e-3, 1.66667160211e-1)
_ASINH = (2.0122003309e-2, -4.2699340972e-2, 7.4847586088e-2, -1.6666288134e-1)
_ACOSH = (1.7596881071e-3, -7.5272886713e-3, 2.6454905019e-2, -1.1784741703e-1, 1.4142135263)
_ATANH = (1.81740078349e-1, 8.24370301058e-2, 1.46691431730e-1, 1.99782164500e-1, 3.33337300303e-1)
_OVERFLOW = 90.0  # sinh and cosh are infinite in float32 from 89.42 on
_ROOT_IS_X = 1500.0  # from here on sqrt(x^2 +- 1) is x to float32


def _half_powers(w: Writer, size: str) -> tuple[str, str]:
    """(e^x / 2, e^-x / 2) for x >= 0; the halving comes before the step that may overflow."""
    limit = w.number(_OVERFLOW)
    polynomial, n, exponent = exp_parts(w, w.select(w.compare("ogt", size, limit), limit, size))
    power = w.scaled(w.multiply(polynomial, w.number(0.5)), n, exponent)
    return power, w.divide(w.number(0.25), power)


def _odd_polynomial(w: Writer, coefficients: tuple[float, ...], x: str, square: str) -> str:
    """x + x^3 P(x^2)."""
    return w.add(w.multiply(w.multiply(w.horner(coefficients, square), square), x), x)


def sinh(w: Writer, x: str) -> str:
    """A polynomial up to 1, where e^x - e^-x cancels."""
    size = w.intrinsic("fabs", x)
    power, inverse = _half_powers(w, size)
    near = _odd_polynomial(w, _SINH, size, w.multiply(size, size))
    value = w.select(w.compare("ogt", size, w.number(1.0)), w.subtract(power, inverse), near)
    return w.with_sign_flipped(value, w.sign_bit(x))


def cosh(w: Writer, x: str) -> str:
    power, inverse = _half_powers(w, w.intrinsic("fabs", x))
    return w.add(power, inverse)


def asinh(w: Writer, x: str) -> str:
    """log(|x| + sqrt(x^2 + 1)), a polynomial up to 1/2, log(2 |x|) where the square might overflow."""
    size = w.intrinsic("fabs", x)
    square = w.multiply(size, size)
    far = w.add(size, w.intrinsic("sqrt", w.add(square, w.number(1.0))))
    value = _log_of_sum(w, size, far)
    value = w.select(w.compare("olt", size, w.number(0.5)), _odd_polynomial(w, _ASINH, size, square), value)
    return w.with_sign_flipped(value, w.sign_bit(x))


def _log_of_sum(w: Writer, x: str, total: str) -> str:
    """log(total), or log(x) + log(2) for large x."""
    large = w.compare("ogt", x, w.number(_ROOT_IS_X))
    value = log(w, w.select(large, x, total))
    return w.add(value, w.select(large, w.number(LN2), w.number(0.0)))


def acosh(w: Writer, x: str) -> str:
    """log(x + sqrt(x^2 - 1)), and sqrt(x - 1) P(x - 1) up to 1.5; NaN below 1, like the root."""
    rest = w.subtract(x, w.number(1.0))
    far = w.add(x, w.intrinsic("sqrt", w.multiply(rest, w.add(x, w.number(1.0)))))
    near = w.multiply(w.horner(_ACOSH, rest), w.intrinsic("sqrt", rest))
    return w.select(w.compare("olt", rest, w.number(0.5)), near, _log_of_sum(w, x, far))


def atanh(w: Writer, x: str) -> str:
    """log((1 + |x|) / (1 - |x|)) / 2, a polynomial up to 1/2."""
    size, one = w.intrinsic("fabs", x), w.number(1.0)
    far = w.multiply(w.number(0.5), log(w, w.divide(w.add(one, size), w.subtract(one, size))))
    near = _odd_polynomial(w, _ATANH, size, w.multiply(size, size))
    value = w.select(w.compare("olt", size, w.number(0.5)), near, far)
    return w.with_sign_flipped(value, w.sign_bit(x))


# Up to here FreeBSD's `sinf` reduces by pi / 2 in two parts in float64: n pi / 2 is exact in the first for n < 2^28.
_LARGEST_REDUCED = 2.0**28
_REDUCTION = (1.57079631090164184570, 1.58932547735281966916e-8)  # pi / 2, the first part of 25 bits

_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_TAN = (9.38540185543e-3, 3.11992232697e-3, 2.44301354525e-2, 5.34112807005e-2, 1.33387994085e-1, 3.33331568548e-1)
_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
_ASIN = (4.2163199048e-2, 2.4181311049e-2, 4.5470025998e-2, 7.4953002686e-2, 1.6666752422e-1)
_TAN_EIGHTH, _TAN_THREE_EIGHTHS = 0.41421356237309503, 2.414213562373095  # tan(pi / 8), tan(3 pi / 8)
_HALF_PI = math.pi / 2
_HALF_PI_LOW = -4.37113883e-8  # pi / 2 minus its float32 value


def sin(w: Writer, x: str) -> str:
    """sin |x| with the sign of x applied, so -0 stays -0."""

    def value(r: str, quadrant: str) -> str:
        return _sign_changed(w, _sine_or_cosine(w, r, quadrant), w.whole("and", quadrant, w.integer(2)), x)

    return _of_reduced(w, x, "sin", value)


def cos(w: Writer, x: str) -> str:
    """The sine shifted by a quarter turn."""

    def value(r: str, quadrant: str) -> str:
        ahead = w.whole("add", quadrant, w.integer(1))
        return _sign_changed(w, _sine_or_cosine(w, r, ahead), w.whole("and", ahead, w.integer(2)))

    return _of_reduced(w, x, "cos", value)


def tan(w: Writer, x: str) -> str:
    """tan r, or -1 / tan r in odd quadrants."""

    def value(r: str, quadrant: str) -> str:
        near = _odd_polynomial(w, _TAN, r, w.multiply(r, r))
        odd = w.test_bit(quadrant)
        quotient = w.divide(w.select(odd, w.number(-1.0), near), w.select(odd, near, w.number(1.0)))
        return w.with_sign_flipped(quotient, w.sign_bit(x))

    return _of_reduced(w, x, "tan", value)


def _of_reduced(w: Writer, x: str, name: str, value: Callable[[str, str], str]) -> str:
    """`value(r, quadrant)` of |x|; if it is too large to reduce (NaN is not), the C library's function."""
    size = w.intrinsic("fabs", x)
    too_large = w.compare("ogt", size, w.number(_LARGEST_REDUCED))
    return w.unless_any(too_large, lambda: value(*_reduced(w, size)), name, x)


def _reduced(w: Writer, x: str) -> tuple[str, str]:
    """(r, n) with x = n pi / 2 + r, |r| <= pi / 4 and half a unit in the last place from exact; n as an integer."""
    wide, rounding = w.widened(x), w.wide_number(WIDE_ROUNDING)
    shifted = w.wide("fadd", w.wide("fmul", wide, w.wide_number(2 / math.pi)), rounding)
    n = w.wide("fsub", shifted, rounding)
    r = w.wide("fsub", wide, w.wide("fmul", n, w.wide_number(_REDUCTION[0])))
    r = w.wide("fsub", r, w.wide("fmul", n, w.wide_number(_REDUCTION[1])))
    return w.narrowed(r), w.low_word(shifted)


def _sine_or_cosine(w: Writer, r: str, quadrant: str) -> str:
    """sin r in even quadrants, cos r in odd ones."""
    square = w.multiply(r, r)
    sine = w.add(w.multiply(w.multiply(w.horner(_SIN, square), square), r), r)
    fourth = w.multiply(w.multiply(w.horner(_COS, square), square), square)
    cosine = w.add(w.subtract(fourth, w.multiply(w.number(0.5), square)), w.number(1.0))
    return w.select(w.test_bit(quadrant), cosine, sine)


def _sign_changed(w: Writer, value: str, second_bit: str, like: str | None = None) -> str:
    """`value` with its sign flipped where the quadrant's second bit is set, and again where `like` is negative."""
    sign = w.whole("shl", second_bit, w.integer(30))
    if like is not None:
        sign = w.whole("xor", sign, w.sign_bit(like))
    return w.with_sign_flipped(value, sign)


def atan(w: Writer, x: str) -> str:
    """atan |x| with the sign of x: pi / 2 - atan(1 / x) above tan(3 pi / 8), pi / 4 + atan((x - 1) / (x + 1)) above
    tan(pi / 8)."""
    size, one = w.intrinsic("fabs", x), w.number(1.0)
    large = w.compare("ogt", size, w.number(_TAN_THREE_EIGHTHS))
    middle = w.compare("ogt", size, w.number(_TAN_EIGHTH))

    def chosen(of_large: str, of_middle: str, of_small: str) -> str:
        return w.select(large, of_large, w.select(middle, of_middle, of_small))

    numerator = chosen(w.number(-1.0), w.subtract(size, one), size)
    r = w.divide(numerator, chosen(size, w.add(size, one), one))
    square = w.multiply(r, r)
    near = w.add(w.multiply(w.multiply(w.horner(_ATAN, square), square), r), r)
    near = w.add(near, chosen(w.number(_HALF_PI_LOW), w.number(_HALF_PI_LOW / 2), w.number(0.0)))
    value = w.add(near, chosen(w.number(_HALF_PI), w.number(_HALF_PI / 2), w.number(0.0)))
    return w.with_sign_flipped(value, w.sign_bit(x))


def _asin_parts(w: Writer, size: str) -> tuple[str, str]:
    """(v, is |x| > 1/2): v is asin |x| up to there, and asin(sqrt((1 - |x|) / 2)) = acos(|x|) / 2 above."""
    above = w.compare("ogt", size, w.number(0.5))
    half_rest = w.multiply(w.number(0.5), w.subtract(w.number(1.0), size))
    square = w.select(above, half_rest, w.multiply(size, size))
    r = w.select(above, w.intrinsic("sqrt", half_rest), size)
    return w.add(w.multiply(w.multiply(w.horner(_ASIN, square), square), r), r), above


def asin(w: Writer, x: str) -> str:
    """Beyond 1 the root is NaN."""
    near, above = _asin_parts(w, w.intrinsic("fabs", x))
    twice = w.subtract(w.add(near, near), w.number(_HALF_PI_LOW))
    value = w.select(above, w.subtract(w.number(_HALF_PI), twice), near)
    return w.with_sign_flipped(value, w.sign_bit(x))


def acos(w: Writer, x: str) -> str:
    """pi / 2 - asin x, and acos |x| or pi - acos |x| where |x| > 1/2."""
    near, above = _asin_parts(w, w.intrinsic("fabs", x))
    negative = w.compare("olt", x, w.number(0.0))
    signed = w.with_sign_flipped(near, w.sign_bit(x))
    middle = w.subtract(w.number(_HALF_PI), w.subtract(signed, w.number(_HALF_PI_LOW)))
    twice = w.add(near, near)
    other = w.subtract(w.number(math.pi), w.subtract(twice, w.number(2 * _HALF_PI_LOW)))
    return w.select(above, w.select(negative, other, twice), middle)


_LOG2_E = 1.4426950408889634
LN2 = 0.6931471805599453
_LN2_HIGH = 0.693359375  # 9 bits, so that n * _LN2_HIGH is exact
_LN2_LOW = -2.12194440e-4
_ROUNDING = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to an integer, held in the low bits
_ROUNDING_BITS = 0x4B400000
# e^r = 1 + r + r^2 P(r) for |r| <= ln 2 / 2, P minimizes the maximum relative error, 3.1e-9 (Lawson's method).
_EXP = (1.38145406e-3, 8.36874545e-3, 4.16683890e-2, 1.66665211e-1, 4.99999940e-1, 1.0, 1.0)
# e^r for |r| <= ln 2 / 2, fitted the same way: relative error 7.6e-5.
_EXP_COARSE = (1.656631e-1, 5.0498962e-1, 1.00016594, 9.9992732e-1)
_EXP_LIMITS = (-104.0, 89.0)  # beyond these the result is 0 or infinity in float32

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

# log2((1 + s) / (1 - s)) = s P(s^2) for |s| <= 0.172, to a relative error of 2e-12: the Taylor series.
_LOG2 = tuple(2 / (math.log(2) * power) for power in (13, 11, 9, 7, 5, 3, 1))
# 2^f for |f| <= 1/2, to a relative error of 7e-12: the Taylor series.
_EXP2 = tuple(math.log(2) ** power / math.factorial(power) for power in range(9, -1, -1))
_LARGEST = 3.4028234e38


def exp(w: Writer, argument: str) -> str:
    return w.scaled(*exp_parts(w, w.clamp(argument, *_EXP_LIMITS)))


def exp_parts(w: Writer, x: str) -> tuple[str, str, Callable[[], str]]:
    """(p, n, a function that writes n as an integer) with e^x = p 2^n, p near [0.7, 1.4]."""
    shifted = w.add(w.multiply(x, w.number(_LOG2_E)), w.number(_ROUNDING))
    n = w.subtract(shifted, w.number(_ROUNDING))
    r = w.subtract(x, w.multiply(n, w.number(_LN2_HIGH)))
    r = w.subtract(r, w.multiply(n, w.number(_LN2_LOW)))
    return w.horner(_EXP, r), n, lambda: w.whole("sub", w.bits(shifted), w.integer(_ROUNDING_BITS))


def exp_of_negative(w: Writer, argument: str) -> str:
    return _exp_in_one_step(w, argument, (_LN2_HIGH, _LN2_LOW), _EXP)


def exp_of_negative_coarse(w: Writer, argument: str) -> str:
    return _exp_in_one_step(w, argument, (LN2,), _EXP_COARSE)


def _exp_in_one_step(w: Writer, argument: str, ln2: Sequence[float], polynomial: Sequence[float]) -> str:
    """e^x for x <= 0, with n >= -127, where the bits of 2^n are those of 0. Rounding n also adds the exponent bias."""
    x = w.select(w.compare("olt", argument, w.number(-88.0)), w.number(-88.0), argument)
    rounding = w.number(_ROUNDING + 127)
    shifted = w.add(w.multiply(x, w.number(_LOG2_E)), rounding)
    n = w.subtract(shifted, rounding)
    for part in ln2:
        x = w.subtract(x, w.multiply(n, w.number(part)))
    power = w.from_bits(w.whole("shl", w.bits(shifted), w.integer(23)))
    return w.multiply(w.horner(polynomial, x), power)


def sigmoid(w: Writer, x: str) -> str:
    """1 / (1 + e^-x), where e^-x becomes infinite as soon as the result is below the normal range.

    So 2^n takes one step: n = 128 yields the bits of infinity, and the upper limit keeps n at -126. Rounding n to an
    integer adds the exponent bias, too, and -r replaces r.
    """
    x = w.clamp(x, -89.0, 87.33)
    rounding = w.number(_ROUNDING + 127)
    shifted = w.add(w.multiply(x, w.number(-_LOG2_E)), rounding)
    n = w.subtract(shifted, rounding)
    minus_r = w.add(x, w.multiply(n, w.number(_LN2_HIGH)))
    minus_r = w.add(minus_r, w.multiply(n, w.number(_LN2_LOW)))
    polynomial = w.horner([entry if i % 2 == 0 else -entry for i, entry in enumerate(_EXP)], minus_r)
    power = w.from_bits(w.whole("shl", w.bits(shifted), w.integer(23)))
    return w.divide(w.number(1.0), w.add(w.multiply(polynomial, power), w.number(1.0)))


def log(w: Writer, x: str) -> str:
    mantissa, e = _mantissa_and_exponent(w, x)
    m = w.subtract(mantissa, w.number(1.0))
    square = w.multiply(m, m)
    tail = w.multiply(w.multiply(w.horner(_LOG, m), m), square)
    small = w.add(tail, w.multiply(e, w.number(_LN2_LOW)))
    small = w.subtract(small, w.multiply(w.number(0.5), square))
    result = w.add(w.add(m, small), w.multiply(e, w.number(_LN2_HIGH)))
    result = w.select(w.compare("oeq", x, w.number(0.0)), w.number(float("-inf")), result)
    # NaN fails the comparison, so NaN and infinity return themselves.
    result = w.select(w.compare("ole", x, w.number(_LARGEST)), result, x)
    return w.select(w.compare("olt", x, w.number(0.0)), w.number(math.nan), result)


def _mantissa_and_exponent(w: Writer, x: str) -> tuple[str, str]:
    """(m, e) with x = m 2^e, m in [sqrt(1/2), sqrt(2)), for finite x above 0."""
    mantissa, exponent = (w.mantissa(x), w.exponent(x)) if w.scales else _mantissa_below_1(w, x)
    low = w.compare("olt", mantissa, w.number(0.70710678118654752))
    m = w.select(low, w.add(mantissa, mantissa), mantissa)
    return m, w.select(low, exponent, w.add(exponent, w.number(1.0)))


def _mantissa_below_1(w: Writer, x: str) -> tuple[str, str]:
    """(m, e) with x = m 2^(e + 1), m in [1/2, 1), for finite x above 0."""
    denormal = w.compare("olt", x, w.number(1.17549435e-38))
    bits = w.bits(w.select(denormal, w.multiply(x, w.number(8388608.0)), x))
    offset = w.select(denormal, w.number(150.0), w.number(127.0))
    fraction = w.whole("or", w.whole("and", bits, w.integer(0x007FFFFF)), w.integer(0x3F000000))
    mantissa = w.from_bits(fraction)
    return mantissa, w.subtract(w.to_float(w.whole("ashr", bits, w.integer(23))), offset)


def power(w: Writer, x: str, y: str) -> str:
    """2^(y log2 |x|) in float64, since its error is amplified by the size of the product; then C's special cases."""
    one, half = w.number(1.0), w.multiply(y, w.number(0.5))
    value = _exp2(w, w.wide("fmul", w.widened(y), _log2(w, w.intrinsic("fabs", x))))
    is_integer = w.compare("oeq", w.intrinsic("trunc", y), y)
    is_even = w.compare("oeq", w.intrinsic("trunc", half), half)
    of_integer = w.select(is_even, value, w.with_sign_flipped(value, w.sign_bit(x)))
    infinite = w.compare("oeq", x, w.number(-math.inf))
    of_negative = w.select(infinite, value, w.number(math.nan))
    other = w.select(w.compare("olt", x, w.number(0.0)), of_negative, value)
    result = w.select(is_integer, of_integer, other)
    size = w.intrinsic("fabs", y)
    at_minus_one = w.select(w.compare("oeq", size, w.number(math.inf)), one, result)
    result = w.select(w.compare("oeq", x, w.number(-1.0)), at_minus_one, result)
    result = w.select(w.compare("oeq", x, one), one, result)
    return w.select(w.compare("oeq", y, w.number(0.0)), one, result)


def _log2(w: Writer, x: str) -> str:
    """log2 x in float64, for x >= 0: e + log2 m, by the series of log((1 + s) / (1 - s)) in s = (m - 1) / (m + 1)."""
    mantissa, e = _mantissa_and_exponent(w, x)
    e = w.select(w.compare("oeq", x, w.number(0.0)), w.number(-math.inf), e)
    e = w.select(w.compare("ole", x, w.number(_LARGEST)), e, x)
    m, one = w.widened(mantissa), w.wide_number(1.0)
    s = w.wide("fdiv", w.wide("fsub", m, one), w.wide("fadd", m, one))
    square = w.wide("fmul", s, s)
    return w.wide("fadd", w.wide("fmul", w.wide_horner(_LOG2, square), s), w.widened(e))


def _exp2(w: Writer, argument: str) -> str:
    """2^x computed in float64 and rounded to float32, so integer powers of integers are exact."""
    x, rounding = w.wide_clamp(argument, -160.0, 130.0), w.wide_number(WIDE_ROUNDING)
    shifted = w.wide("fadd", x, rounding)
    n = w.wide("fsub", shifted, rounding)
    rest = w.wide("fsub", x, n)
    polynomial = w.narrowed(w.wide_horner(_EXP2, rest))
    return w.scaled(polynomial, w.narrowed(n) if w.scales else n, lambda: w.low_word(shifted))


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
_ERF_LIMIT = 3.832506856900711  # float32 erf is 1 from here on

IN_TILE = "_in_tile"
LIMIT = "limit"
EXP_OF_NEGATIVE, EXP_OF_NEGATIVE_COARSE = "exp_of_negative", "exp_of_negative_coarse"


def _odd_rational(
    w: Writer, argument: str, limit: float, numerator: Sequence[float], denominator: Sequence[float]
) -> str:
    """x P(x^2) / Q(x^2) on the clamped argument, clamped to [-1, 1]."""
    x = w.clamp(argument, -limit, limit)
    square = w.multiply(x, x)
    quotient = w.divide(w.horner(numerator, square), w.horner(denominator, square))
    return w.clamp(w.multiply(x, quotient), -1.0, 1.0)


def _limit(w: Writer, x: str, low: str, high: str) -> str:
    """min(max(x, low), high), and NaN for NaN: each select becomes one minimum or maximum instruction."""
    above = w.select(w.compare("olt", x, low), low, x)
    return w.select(w.compare("ogt", above, high), high, above)


def _round(w: Writer, x: str) -> str:
    below_half = 0.49999997  # the largest float32 below 0.5: 0.5 itself would round 0.49999997 up
    return w.intrinsic("trunc", w.add(x, w.intrinsic("copysign", w.number(below_half), x)))


FUNCTIONS: dict[str, Callable[..., str]] = {
    "exp": exp,
    EXP_OF_NEGATIVE: exp_of_negative,
    EXP_OF_NEGATIVE_COARSE: exp_of_negative_coarse,
    "sigmoid": sigmoid,
    "tanh": lambda w, x: _odd_rational(w, x, _TANH_LIMIT, _TANH_NUMERATOR, _TANH_DENOMINATOR),
    "erf": lambda w, x: _odd_rational(w, x, _ERF_LIMIT, _ERF_NUMERATOR, _ERF_DENOMINATOR),
    "log": log,
    "round": _round,
    LIMIT: _limit,
    **{each.__name__: each for each in (sin, cos, tan, asin, acos, atan, sinh, cosh, asinh, acosh, atanh)},
    "pow": power,
}
_PARAMETERS = {LIMIT: ("%x", "%low", "%high"), "pow": ("%x", "%y")}  # all others have one, %x


def _constants() -> Tables:
    """The tables of all functions' constants, in a fixed order."""
    tables = Tables()
    for name in FUNCTIONS:
        FUNCTIONS[name](Writer(2, tables), *_PARAMETERS.get(name, ("%x",)))
    assert len(tables.narrow) <= TABLE_SIZE
    assert len(tables.wide) <= WIDE_TABLE_SIZE
    return tables


def _symbol(name: str, lanes: int) -> str:
    return f"tensorwright_{name}_f32x{lanes}"


@cache
def _function_text(name: str, lanes: int, scales: bool) -> tuple[str, frozenset[str]]:
    """(the definition, the declarations it needs)."""
    plain = name.removesuffix(IN_TILE)
    writer = Writer(lanes, None if plain == name else _constants(), scales=scales)
    parameters = _PARAMETERS.get(plain, ("%x",))
    result = FUNCTIONS[plain](writer, *parameters)
    typed = ", ".join(f"{writer.float} {parameter}" for parameter in parameters)
    head = f"define {writer.float} @{_symbol(name, lanes)}({typed}) alwaysinline nounwind {{"
    return "\n".join([head, *writer.lines, f"  ret {writer.float} {result}", "}"]), frozenset(writer.declared)


@cache
def _table_text() -> str:
    tables = _constants()
    narrow = [f"float {float_bits(value)}" for value in tables.narrow]
    wide = [f"double {wide_bits(value)}" for value in tables.wide]
    narrow += ["float 0.0"] * (TABLE_SIZE - len(narrow))
    wide += ["double 0.0"] * (WIDE_TABLE_SIZE - len(wide))
    return (
        f"@{TABLE} = linkonce_odr global [{TABLE_SIZE} x float] [{', '.join(narrow)}]\n"
        f"@{WIDE_TABLE} = linkonce_odr global [{WIDE_TABLE_SIZE} x double] [{', '.join(wide)}]"
    )


def definitions(names: Iterable[str], lanes: Iterable[int], machine: Machine) -> str:
    """LLVM IR that defines the functions (with `IN_TILE` appended: that variant) for these numbers of lanes."""
    used = sorted(set(names))
    scales = machine.executes("avx512f", "avx512vl")
    texts = [_function_text(name, count, scales) for name in used for count in sorted(set(lanes))]
    declared = sorted({line for _, lines in texts for line in lines})
    table = [_table_text()] if any(name.endswith(IN_TILE) for name in used) else []
    bodies = "\n".join(text for text, _ in texts)
    return "\n".join([*table, *declared, bodies, *([METADATA] if "!prof" in bodies else []), ""])


def call(name: str, x: Expr, *others: Expr) -> Expr:
    """The TensorIR expression of a function of float32 expressions."""
    return tvm.ir.Call(tvm.ir.Op.get(PREFIX + name), [x, *others], ret_ty=x.ty)


for _name in FUNCTIONS:
    for _variant in (_name, _name + IN_TILE):
        register_operator(PREFIX + _variant, "of float32 in vectors", _symbol)
