"""Vectorized trigonometric functions of float32 and their inverses: Cephes' polynomials after FreeBSD's range
reduction."""

from __future__ import annotations

import math

from schedules.instructions.vector_writer import WIDE_ROUNDING, Writer

# Up to here FreeBSD's `sinf` reduces by pi / 2 in two parts in float64: n pi / 2 is exact in the first for n < 2^28.
_LARGEST_REDUCED = 2.0**28
_REDUCTION = (1.57079631090164184570, 1.58932547735281966916e-8)  # pi / 2, the first part of 25 bits

_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_TAN = (
    9.38540185543e-3,
    3.11992232697e-3,
    2.44301354525e-2,
    5.34112807005e-2,
    1.33387994085e-1,
    3.33331568548e-1,
)
_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
_ASIN = (4.2163199048e-2, 2.4181311049e-2, 4.5470025998e-2, 7.4953002686e-2, 1.6666752422e-1)
_TAN_EIGHTH, _TAN_THREE_EIGHTHS = 0.41421356237309503, 2.414213562373095  # tan(pi / 8), tan(3 pi / 8)
_HALF_PI = math.pi / 2
_HALF_PI_LOW = -4.37113883e-8  # pi / 2 minus its float32 value


def sin(w: Writer, x: str) -> str:
    """sin |x| with the sign of x applied, so -0 stays -0."""
    size = w.intrinsic("fabs", x)

    def reduced() -> str:
        r, quadrant = _reduced(w, size)
        return _sign_changed(w, _sine_or_cosine(w, r, quadrant), w.whole("and", quadrant, w.integer(2)), x)

    return w.unless_any(_too_large(w, size), reduced, "sin", x)


def cos(w: Writer, x: str) -> str:
    """The sine shifted by a quarter turn."""
    size = w.intrinsic("fabs", x)

    def reduced() -> str:
        r, quadrant = _reduced(w, size)
        ahead = w.whole("add", quadrant, w.integer(1))
        return _sign_changed(w, _sine_or_cosine(w, r, ahead), w.whole("and", ahead, w.integer(2)))

    return w.unless_any(_too_large(w, size), reduced, "cos", x)


def tan(w: Writer, x: str) -> str:
    """tan r, or -1 / tan r in odd quadrants."""
    size = w.intrinsic("fabs", x)

    def reduced() -> str:
        r, quadrant = _reduced(w, size)
        square = w.multiply(r, r)
        near = w.add(w.multiply(w.multiply(w.horner(_TAN, square), square), r), r)
        odd = w.test_bit(quadrant)
        value = w.divide(w.select(odd, w.number(-1.0), near), w.select(odd, near, w.number(1.0)))
        return w.with_sign_flipped(value, w.sign_bit(x))

    return w.unless_any(_too_large(w, size), reduced, "tan", x)


def _too_large(w: Writer, size: str) -> str:
    """NaN is not: the reduction passes it on."""
    return w.compare("ogt", size, w.number(_LARGEST_REDUCED))


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
