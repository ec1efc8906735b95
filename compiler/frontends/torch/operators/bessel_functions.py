"""Bessel functions of orders 0 and 1, and Airy's function, computed in float64 as PyTorch does, by Cephes's methods:
rational functions and Chebyshev series near 0, asymptotic expansions beyond (Abramowitz and Stegun 9.2, 10.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps

import torch
from numpy.polynomial.chebyshev import cheb2poly
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of, float_dtype
from compiler.frontends.torch.operators import bessel_coefficients as table
from compiler.frontends.torch.operators.polynomials import polynomial, ratio

_Function = Callable[[Tensor], Tensor]


def _in_float64(*operators: str) -> Callable[[_Function], _Function]:
    """Register a function of float64 as decomposition; the result has the type of the argument, or the default one."""

    def register(function: _Function) -> _Function:
        @wraps(function)
        def decomposition(values: Tensor) -> Tensor:
            return function(values.double()).to(float_dtype(values.dtype))

        decomposition_of(*operators)(decomposition)
        return function

    return register


def _chebyshev(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Series of Chebyshev polynomials for x in [-1, 1], of which Cephes doubles the constant; as powers, which keep
    their precision here and compile faster than Clenshaw's recurrence."""
    *others, constant = coefficients
    powers = cheb2poly([constant / 2, *reversed(others)])
    return polynomial([float(each) for each in reversed(powers)], x)


_END = 5.0  # from here on the functions are damped waves
_QUARTER, _THREE_QUARTERS = math.pi / 4, 3 * math.pi / 4
_J0_ROOTS = (5.78318596294678452118, 30.4712623436620863991)  # squares of the first two
_J1_ROOTS = (14.6819706421238932572, 49.2184563216946036703)


def _waves(order: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """J and Y of an order for x >= 5: sqrt(2 / (pi x)) times (P cos - Q sin, P sin + Q cos) of a shifted x."""
    x = x.clamp(min=_END)
    square = (_END / x) * (_END / x)
    if order == 0:
        cosine = ratio(table.FAR_0_COSINE, table.FAR_0_COSINE_DIVISOR, square)
        sine = ratio(table.FAR_0_SINE, table.FAR_0_SINE_DIVISOR, square) * (_END / x)
    else:
        cosine = ratio(table.FAR_1_COSINE, table.FAR_1_COSINE_DIVISOR, square)
        sine = ratio(table.FAR_1_SINE, table.FAR_1_SINE_DIVISOR, square) * (_END / x)
    angle = x - (_THREE_QUARTERS if order else _QUARTER)
    scale = math.sqrt(2 / math.pi) / x.sqrt()
    return scale * (cosine * angle.cos() - sine * angle.sin()), scale * (cosine * angle.sin() + sine * angle.cos())


@_in_float64("aten.special_bessel_j0.default", "prims.bessel_j0.default")
def _j0(x: Tensor) -> Tensor:
    size = x.abs()
    square = size.clamp(max=_END) * size.clamp(max=_END)
    near = ratio(table.J0_NEAR, table.J0_NEAR_DIVISOR, square) * (square - _J0_ROOTS[0]) * (square - _J0_ROOTS[1])
    return torch.where(size <= _END, near, _waves(0, size)[0])


@_in_float64("aten.special_bessel_j1.default", "prims.bessel_j1.default")
def _j1(x: Tensor) -> Tensor:
    size, inside = x.abs(), x.clamp(-_END, _END)
    square = inside * inside
    factor = ratio(table.J1_NEAR, table.J1_NEAR_DIVISOR, square)
    near = factor * inside * (square - _J1_ROOTS[0]) * (square - _J1_ROOTS[1])
    return torch.where(size <= _END, near, _waves(1, size)[0] * x.sign())


@_in_float64("aten.special_bessel_y0.default")
def _y0(x: Tensor) -> Tensor:
    inside = x.clamp(max=_END)
    near = ratio(table.Y0_NEAR, table.Y0_NEAR_DIVISOR, inside * inside) + 2 / math.pi * inside.log() * _j0(inside)
    found = torch.where(x <= _END, near, _waves(0, x)[1])
    return torch.where(x == 0, -math.inf, found)


@_in_float64("aten.special_bessel_y1.default")
def _y1(x: Tensor) -> Tensor:
    inside = x.clamp(max=_END)
    factor = ratio(table.Y1_NEAR, table.Y1_NEAR_DIVISOR, inside * inside)
    near = inside * factor + 2 / math.pi * (_j1(inside) * inside.log() - 1 / inside)
    found = torch.where(x <= _END, near, _waves(1, x)[1])
    return torch.where(x == 0, -math.inf, found)


_I_END, _K_END = 8.0, 2.0


def _scaled_i0(x: Tensor) -> Tensor:
    """I0(x) exp(-|x|)."""
    size = x.abs()
    far = size.clamp(min=_I_END)
    beyond = _chebyshev(table.I0_FAR, 16 / far - 1) / far.sqrt()
    return torch.where(size <= _I_END, _chebyshev(table.I0_NEAR, size.clamp(max=_I_END) / 4 - 1), beyond)


def _scaled_i1(x: Tensor) -> Tensor:
    """I1(x) exp(-|x|)."""
    size = x.abs()
    far = size.clamp(min=_I_END)
    beyond = _chebyshev(table.I1_FAR, 16 / far - 1) / far.sqrt() * x.sign()
    return torch.where(size <= _I_END, _chebyshev(table.I1_NEAR, size.clamp(max=_I_END) / 4 - 1) * x, beyond)


@_in_float64(
    "aten.i0.default", "aten.special_i0.default", "prims.bessel_i0.default", "aten.special_modified_bessel_i0.default"
)
def _i0(x: Tensor) -> Tensor:
    return _scaled_i0(x) * x.abs().exp()


@_in_float64("aten.special_i1.default", "prims.bessel_i1.default", "aten.special_modified_bessel_i1.default")
def _i1(x: Tensor) -> Tensor:
    return _scaled_i1(x) * x.abs().exp()


_in_float64("aten.special_i0e.default", "prims.bessel_i0e.default")(_scaled_i0)
_in_float64("aten.special_i1e.default", "prims.bessel_i1e.default")(_scaled_i1)


@_in_float64("aten.special_scaled_modified_bessel_k0.default")
def _scaled_k0(x: Tensor) -> Tensor:
    """K0(x) exp(x)."""
    near, far = x.clamp(max=_K_END), x.clamp(min=_K_END)
    inside = (_chebyshev(table.K0_NEAR, near * near / 2 - 1) - (near / 2).log() * _i0(near)) * near.exp()
    found = torch.where(x <= _K_END, inside, _chebyshev(table.K0_FAR, 4 / far - 1) / far.sqrt())
    return torch.where(x == 0, math.inf, found)


@_in_float64("aten.special_scaled_modified_bessel_k1.default")
def _scaled_k1(x: Tensor) -> Tensor:
    """K1(x) exp(x)."""
    near, far = x.clamp(max=_K_END), x.clamp(min=_K_END)
    inside = ((near / 2).log() * _i1(near) + _chebyshev(table.K1_NEAR, near * near / 2 - 1) / near) * near.exp()
    found = torch.where(x <= _K_END, inside, _chebyshev(table.K1_FAR, 4 / far - 1) / far.sqrt())
    return torch.where(x == 0, math.inf, found)


@_in_float64("aten.special_modified_bessel_k0.default")
def _k0(x: Tensor) -> Tensor:
    return _scaled_k0(x) * (-x).exp()


@_in_float64("aten.special_modified_bessel_k1.default")
def _k1(x: Tensor) -> Tensor:
    return _scaled_k1(x) * (-x).exp()


_AIRY_END, _AIRY_ZERO, _AIRY_TERMS = 2.09, 103.892, 16
_AIRY_VALUE, _AIRY_SLOPE = 0.355028053887817239260, 0.258819403792806798405  # Ai(0), -Ai'(0)


@_in_float64("aten.special_airy_ai.default")
def _airy(x: Tensor) -> Tensor:
    """Airy's function Ai; NaN at infinity, as in PyTorch."""
    found = torch.where(x < -_AIRY_END, _airy_wave(x), torch.where(x >= _AIRY_END, _airy_decay(x), _airy_series(x)))
    return torch.where(x.isinf(), math.nan, torch.where(x > _AIRY_ZERO, 0.0, found))


def _airy_series(x: Tensor) -> Tensor:
    """Maclaurin series of the two solutions (Abramowitz and Stegun 10.4.2, 10.4.3)."""
    x = x.clamp(-_AIRY_END, _AIRY_END)
    cube = x * x * x
    first, second = torch.ones_like(x), torch.ones_like(x)
    for term in range(_AIRY_TERMS, 0, -1):
        first = 1 + first * cube / ((3 * term - 1) * (3 * term))
        second = 1 + second * cube / ((3 * term) * (3 * term + 1))
    return _AIRY_VALUE * first - _AIRY_SLOPE * x * second


def _airy_decay(x: Tensor) -> Tensor:
    x = x.clamp(min=_AIRY_END)
    zeta = 2 * x * x.sqrt() / 3
    factor = ratio(table.AIRY_DECAY, table.AIRY_DECAY_DIVISOR, 1 / zeta)
    return factor / math.sqrt(math.pi) / (2 * x.sqrt().sqrt() * zeta.exp())


def _airy_wave(x: Tensor) -> Tensor:
    size = -x.clamp(max=-_AIRY_END)
    zeta = 2 * size * size.sqrt() / 3
    step = 1 / zeta
    square = step * step
    cosine = step * ratio(table.AIRY_SINE, table.AIRY_SINE_DIVISOR, square)
    sine = 1 + square * ratio(table.AIRY_COSINE, table.AIRY_COSINE_DIVISOR, square)
    angle = zeta + math.pi / 4
    return (angle.sin() * sine - angle.cos() * cosine) / (math.sqrt(math.pi) * size.sqrt().sqrt())
