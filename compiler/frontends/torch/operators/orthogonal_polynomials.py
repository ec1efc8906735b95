"""Orthogonal polynomials, by their three-term recurrences (Abramowitz and Stegun 22.7), in float64.

Chebyshev's have closed forms besides, for large degrees and for degrees that are tensors: with x = cos t,
T_n = cos(n t), U_n = sin((n + 1) t) / sin(t), V_n = cos((n + 1/2) t) / cos(t / 2), W_n = sin((n + 1/2) t) / sin(t / 2);
beyond [-1, 1] with hyperbolic functions (DLMF 18.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of, float_dtype
from compiler.frontends.torch.operators.special_functions import expm1, log1p

_Step = Callable[[int, Tensor, Tensor, Tensor], Tensor]

_LONGEST = 8  # degree up to which the recurrence is written out
_LARGEST_DEGREE = 512
_HERMITE_LIMITS = {torch.float32: 128, torch.float64: 512}  # PyTorch returns NaN above them


def _recurrence(name: str, first: Callable[[Tensor], Tensor], step: _Step) -> None:
    """Register a family: `first` is the polynomial of degree 1, and `step(k, x, now, before)` that of degree k + 1."""
    hermite = name.startswith("hermite")

    def polynomial(x: Tensor, n: float) -> Tensor:
        degree, dtype = int(n), _dtype(x, n)
        limit = _HERMITE_LIMITS.get(dtype, 1024) if hermite else _LARGEST_DEGREE
        if degree > limit:
            return torch.full_like(x, math.nan, dtype=dtype) if hermite else NotImplemented
        return _by_steps(x.double(), degree, first, step).to(dtype)

    decomposition_of(f"aten.special_{name}.n_scalar")(polynomial)


def _by_steps(x: Tensor, degree: int, first: Callable[[Tensor], Tensor], step: _Step) -> Tensor:
    if degree < 0:
        return torch.zeros_like(x)
    before, now = torch.ones_like(x), first(x)
    if degree == 0:
        return before
    for k in range(1, degree):
        before, now = now, step(k, x, now, before)
    return now


def _dtype(*operands: Tensor | float) -> torch.dtype:
    tensors = [each for each in operands if isinstance(each, Tensor)]
    dtype = tensors[0].dtype
    for each in tensors[1:]:
        dtype = torch.promote_types(dtype, each.dtype)
    return float_dtype(dtype)


_recurrence("hermite_polynomial_h", lambda x: 2 * x, lambda k, x, now, before: 2 * x * now - 2 * k * before)
_recurrence("hermite_polynomial_he", lambda x: x, lambda k, x, now, before: x * now - k * before)
_recurrence(
    "laguerre_polynomial_l",
    lambda x: 1 - x,
    lambda k, x, now, before: ((2 * k + 1 - x) * now - k * before) / (k + 1),
)
_recurrence(
    "legendre_polynomial_p", lambda x: x, lambda k, x, now, before: ((2 * k + 1) * x * now - k * before) / (k + 1)
)


def _chebyshev(kind: str, first: Callable[[Tensor], Tensor]) -> None:
    """Register a kind of Chebyshev polynomials, and those shifted to [0, 1]."""

    def of_number(x: Tensor, n: float) -> Tensor:
        if int(n) > _LONGEST:
            return of_tensors(x, torch.full((), int(n), dtype=torch.float64)).to(_dtype(x))
        found = _by_steps(x.double(), int(n), first, lambda k, x, now, before: 2 * x * now - before)
        return found.to(_dtype(x))

    def of_tensors(x: Tensor | float, n: Tensor) -> Tensor:
        wide = x.double() if isinstance(x, Tensor) else torch.full((), x, dtype=torch.float64)
        degree = n.double().trunc()
        return torch.where(degree < 0, 0.0, _closed_form(kind, wide, degree)).to(_dtype(x, n))

    name = f"chebyshev_polynomial_{kind}"
    decomposition_of(f"aten.special_{name}.n_scalar")(of_number)
    decomposition_of(f"aten.special_{name}.default", f"aten.special_{name}.x_scalar")(of_tensors)
    shifted = f"aten.special_shifted_{name}"
    decomposition_of(f"{shifted}.n_scalar")(lambda x, n: of_number(_shifted(x), n).to(_dtype(x)))
    decomposition_of(f"{shifted}.default")(lambda x, n: of_tensors(_shifted(x), n).to(_dtype(x, n)))
    decomposition_of(f"{shifted}.x_scalar")(lambda x, n: of_tensors(2 * x - 1, n))


def _shifted(x: Tensor) -> Tensor:
    return 2 * x.double() - 1


def _closed_form(kind: str, x: Tensor, n: Tensor) -> Tensor:
    size = x.abs()
    odd = torch.where(torch.remainder(n, 2) == 1, -1.0, 1.0)  # (-1)^n
    sign = torch.where(x < 0, odd, 1.0)
    angle = torch.acos(x.clamp(-1, 1))
    above = (size - 1).clamp(min=0)
    growth = log1p(above + (above * (above + 2)).sqrt())  # acosh(|x|)
    if kind == "t":
        return torch.where(size <= 1, (n * angle).cos(), sign * _cosh(n * growth))
    if kind == "u":
        inside = _quotient(((n + 1) * angle).sin(), angle.sin(), sign * (n + 1))
        return torch.where(size < 1, inside, sign * _quotient(_sinh((n + 1) * growth), _sinh(growth), n + 1))
    half, middle = angle / 2, n + 0.5
    even = _cosh(middle * growth) / _cosh(growth / 2)
    other = _quotient(_sinh(middle * growth), _sinh(growth / 2), 2 * n + 1)
    if kind == "v":
        inside = _quotient((middle * angle).cos(), half.cos(), odd * (2 * n + 1))
        return torch.where(size < 1, inside, torch.where(x > 0, even, odd * other))
    inside = _quotient((middle * angle).sin(), half.sin(), 2 * n + 1)
    return torch.where(size < 1, inside, torch.where(x > 0, other, odd * even))


def _quotient(numerator: Tensor, divisor: Tensor, limit: Tensor) -> Tensor:
    """The limit where the divisor is 0."""
    zero = divisor == 0
    return torch.where(zero, limit, numerator / torch.where(zero, 1.0, divisor))


def _cosh(x: Tensor) -> Tensor:
    return (x.exp() + (-x).exp()) / 2


def _sinh(x: Tensor) -> Tensor:
    """Precise near 0, for x >= 0."""
    less = expm1(x)
    return torch.where(torch.isinf(less), less, (less + less / (less + 1)) / 2)


_chebyshev("t", lambda x: x)
_chebyshev("u", lambda x: 2 * x)
_chebyshev("v", lambda x: 2 * x - 1)
_chebyshev("w", lambda x: 2 * x + 1)
