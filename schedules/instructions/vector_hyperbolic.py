"""Vectorized hyperbolic functions of float32 and their inverses, after Cephes' `sinhf` and related functions."""

from __future__ import annotations

from schedules.instructions.vector_exponentials import LN2, exp_parts, log
from schedules.instructions.vector_writer import Writer

_SINH = (2.03721912945e-4, 8.33028376239e-3, 1.66667160211e-1)
_ASINH = (2.0122003309e-2, -4.2699340972e-2, 7.4847586088e-2, -1.6666288134e-1)
_ACOSH = (1.7596881071e-3, -7.5272886713e-3, 2.6454905019e-2, -1.1784741703e-1, 1.4142135263)
_ATANH = (1.81740078349e-1, 8.24370301058e-2, 1.46691431730e-1, 1.99782164500e-1, 3.33337300303e-1)
_OVERFLOW = 90.0  # sinh and cosh are infinite in float32 from 89.42 on
_ROOT_IS_X = 1500.0  # from here on sqrt(x^2 +- 1) is x to float32


def _half_powers(w: Writer, size: str) -> tuple[str, str]:
    """(e^x / 2, e^-x / 2) for x >= 0; the halving comes before the step that may overflow."""
    limit = w.number(_OVERFLOW)
    polynomial, exponent = exp_parts(w, w.select(w.compare("ogt", size, limit), limit, size))
    exponent = w.whole("sub", exponent, w.integer(1))
    half = w.whole("ashr", exponent, w.integer(1))
    scaled = w.multiply(polynomial, w.power_of_two(half))
    power = w.multiply(scaled, w.power_of_two(w.whole("sub", exponent, half)))
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
    """log(x + sqrt(x^2 - 1)), and sqrt(x - 1) P(x - 1) up to 1.5; NaN below 1, as the root."""
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
