"""Vectorized exponential and logarithm functions of float32, after Cephes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from schedules.instructions.vector_writer import WIDE_ROUNDING, Writer

_LOG2_E = 1.4426950408889634
LN2 = 0.6931471805599453
_LN2_HIGH = 0.693359375  # 9 bits, so that n * _LN2_HIGH is exact
_LN2_LOW = -2.12194440e-4
_ROUNDING = 12582912.0  # 1.5 * 2^23: adding it rounds a float32 to an integer, held in the low bits
_ROUNDING_BITS = 0x4B400000
# e^r = 1 + r + r^2 P(r) for |r| <= ln 2 / 2, P fitted for the least largest relative error, 3.1e-9 (Lawson's method).
_EXP = (1.38145406e-3, 8.36874545e-3, 4.16683890e-2, 1.66665211e-1, 4.99999940e-1, 1.0, 1.0)
# e^r for |r| <= ln 2 / 2, fitted likewise: relative error 7.6e-5.
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
    polynomial, exponent = exp_parts(w, w.clamp(argument, *_EXP_LIMITS))
    # In two steps, since 2^n itself may lie outside the normal range where the result does not.
    half = w.whole("ashr", exponent, w.integer(1))
    scaled = w.multiply(polynomial, w.power_of_two(half))
    return w.multiply(scaled, w.power_of_two(w.whole("sub", exponent, half)))


def exp_parts(w: Writer, x: str) -> tuple[str, str]:
    """(p, n) with e^x = p 2^n, p near [0.7, 1.4]."""
    shifted = w.add(w.multiply(x, w.number(_LOG2_E)), w.number(_ROUNDING))
    n = w.subtract(shifted, w.number(_ROUNDING))
    r = w.subtract(x, w.multiply(n, w.number(_LN2_HIGH)))
    r = w.subtract(r, w.multiply(n, w.number(_LN2_LOW)))
    return w.horner(_EXP, r), w.whole("sub", w.bits(shifted), w.integer(_ROUNDING_BITS))


def exp_of_negative(w: Writer, argument: str) -> str:
    return _exp_in_one_step(w, argument, (_LN2_HIGH, _LN2_LOW), _EXP)


def exp_of_negative_coarse(w: Writer, argument: str) -> str:
    return _exp_in_one_step(w, argument, (LN2,), _EXP_COARSE)


def _exp_in_one_step(w: Writer, argument: str, ln2: Sequence[float], polynomial: Sequence[float]) -> str:
    """e^x for x <= 0, n at least -127, whose bits of 2^n are those of 0. What rounds n adds the bias of exponents."""
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

    So 2^n takes one step: n = 128 gives the bits of infinity, and the upper limit keeps n at -126. What rounds n to an
    integer adds the bias of exponents too, and -r takes the place of r.
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
    denormal = w.compare("olt", x, w.number(1.17549435e-38))
    bits = w.bits(w.select(denormal, w.multiply(x, w.number(8388608.0)), x))
    offset = w.select(denormal, w.number(149.0), w.number(126.0))
    fraction = w.whole("or", w.whole("and", bits, w.integer(0x007FFFFF)), w.integer(0x3F000000))  # in [0.5, 1)
    mantissa = w.from_bits(fraction)
    exponent = w.subtract(w.to_float(w.whole("ashr", bits, w.integer(23))), offset)
    low = w.compare("olt", mantissa, w.number(0.70710678118654752))
    m = w.select(low, w.add(mantissa, mantissa), mantissa)
    return m, w.select(low, w.subtract(exponent, w.number(1.0)), exponent)


def power(w: Writer, x: str, y: str) -> str:
    """2^(y log2 |x|), the product in float64: its error counts in full however large it is; then C's special cases."""
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
    """In float64, for x >= 0: e + log2 m, by the series of log((1 + s) / (1 - s)) in s = (m - 1) / (m + 1)."""
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
    rest = w.wide("fsub", x, w.wide("fsub", shifted, rounding))
    polynomial = w.narrowed(w.wide_horner(_EXP2, rest))
    exponent = w.low_word(shifted)
    half = w.whole("ashr", exponent, w.integer(1))
    scaled = w.multiply(polynomial, w.power_of_two(half))
    return w.multiply(scaled, w.power_of_two(w.whole("sub", exponent, half)))
