"""Logarithms, the error function and the gamma function, with the relative precision of the type.

- The exporter emits log(1 + x) for log1p(x), which is 0 for small x, and log(sigmoid(x)) for logsigmoid(x), which is
  -inf below -88.
- The inverse error function is computed in float64: Winitzki's approximation (2008, within 0.002), and three steps of
  Halley's method on erf(x) - y. The complementary error function is the Chebyshev approximation of Numerical Recipes
  (6.2), with a relative error of 1.2e-7.
- The logarithm of the gamma function and its derivative are computed in float64: Stirling's series (Abramowitz and
  Stegun 6.1.41, 6.3.18) at x + 8, then back by the recurrences; below 1/2 by reflection (6.1.17, 6.3.7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of

_NONE, _MEAN = 0, 1  # at::Reduction


@decomposition_of("aten.log1p.default")
def log1p(values: Tensor) -> Tensor:
    """Kahan's method: divisor and logarithm have the same rounding error (Goldberg, ACM Computing Surveys 23, 1991)."""
    if not values.is_floating_point():
        return NotImplemented
    above = 1 + values
    rounded = above - 1
    found = torch.where(above == math.inf, above, torch.log(above) * (values / rounded))
    return torch.where(rounded == 0, values, found)


@decomposition_of("aten.expm1.default", "aten.special_expm1.default")
def expm1(values: Tensor) -> Tensor:
    """Kahan's method (Higham, Accuracy and Stability of Numerical Algorithms, 1.14.1)."""
    if not values.is_floating_point():
        return NotImplemented
    power = torch.exp(values)
    less = power - 1
    found = torch.where((less == -1) | torch.isinf(power), less, less * (values / torch.log(power)))
    return torch.where(less == 0, values, found)


@decomposition_of("aten.log_sigmoid.default")
def _log_sigmoid(values: Tensor) -> Tensor:
    return values.clamp(max=0) - log1p(torch.exp(-values.abs()))


@decomposition_of("aten.binary_cross_entropy_with_logits.default")
def _binary_cross_entropy(
    values: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = _MEAN,
) -> Tensor:
    positive = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    losses = (1 - target) * values - positive * _log_sigmoid(values)
    losses = losses if weight is None else losses * weight
    if reduction == _NONE:
        return losses
    return losses.mean() if reduction == _MEAN else losses.sum()


@decomposition_of("aten.logaddexp.default")
def _logaddexp(first: Tensor, second: Tensor) -> Tensor:
    largest = torch.maximum(first, second)
    found = largest + log1p(torch.exp(-(first - second).abs()))
    return torch.where(torch.isinf(largest), largest, found)


@decomposition_of("aten.logaddexp2.default")
def _logaddexp2(first: Tensor, second: Tensor) -> Tensor:
    largest = torch.maximum(first, second)
    found = largest + log1p(torch.exp2(-(first - second).abs())) / math.log(2)
    return torch.where(torch.isinf(largest), largest, found)


@decomposition_of("aten.special_xlog1py.default")
def _xlog1py(factors: Tensor, values: Tensor) -> Tensor:
    return torch.where((factors == 0) & ~values.isnan(), 0.0, factors * log1p(values))


_WINITZKI = 0.147
_HALLEY_STEPS = 3


@decomposition_of("aten.erfinv.default", "aten.special_erfinv.default")
def _erfinv(values: Tensor) -> Tensor:
    wide = values.double()
    inside = torch.where(wide.abs() < 1, wide, 0.0)
    logarithm = log1p(-inside * inside)
    term = 2 / (math.pi * _WINITZKI) + logarithm / 2
    root = torch.sign(inside) * torch.sqrt(torch.sqrt(term * term - logarithm / _WINITZKI) - term)
    for _ in range(_HALLEY_STEPS):
        step = (torch.erf(root) - inside) * torch.exp(root * root) * (math.sqrt(math.pi) / 2)
        root = root - step / (1 + root * step)
    beyond = torch.where(wide.abs() == 1, wide * math.inf, math.nan)
    return torch.where(wide.abs() < 1, root, beyond).to(_float_dtype(values))


_ERFC_COEFFICIENTS = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)
_SMALL = 0.5  # above it 1 - erf(x) loses precision


@decomposition_of("aten.erfc.default", "aten.special_erfc.default")
def _erfc(values: Tensor) -> Tensor:
    if values.dtype != torch.float32:
        return NotImplemented
    far = _exponential_of_complement(values, -values * values)
    return torch.where(values > _SMALL, far, 1 - torch.erf(values))


@decomposition_of("aten.special_erfcx.default")
def _erfcx(values: Tensor) -> Tensor:
    """exp(x^2) erfc(x)."""
    if values.dtype != torch.float32:
        return NotImplemented
    near = torch.exp(values * values) * (1 - torch.erf(values))
    return torch.where(values > _SMALL, _exponential_of_complement(values, torch.zeros_like(values)), near)


@decomposition_of("aten.special_log_ndtr.default")
def _log_ndtr(values: Tensor) -> Tensor:
    """Logarithm of the normal CDF."""
    if values.dtype != torch.float32:
        return NotImplemented
    scaled = -values / math.sqrt(2)
    left = torch.log(_erfcx(scaled) / 2) - scaled * scaled
    right = log1p(-_erfc(-scaled) / 2)
    found = torch.where(values < -1, left, right)
    return torch.where(values == -math.inf, values, found)


def _exponential_of_complement(values: Tensor, square: Tensor) -> Tensor:
    """erfc(x) exp(x^2 + square) for x >= 0."""
    term = 2 / (2 + values.abs())
    return term * torch.exp(square + _polynomial(_ERFC_COEFFICIENTS, term))


_LIMIT = 3.75  # boundary of |x| between two series
_I0_NEAR = (1.0, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.0360768, 0.0045813)
_I0_FAR = (
    *(0.39894228, 0.01328592, 0.00225319, -0.00157565, 0.00916281),
    *(-0.02057706, 0.02635537, -0.01647633, 0.00392377),
)


@decomposition_of("aten.i0.default", "aten.special_i0.default", "prims.bessel_i0.default")
def _bessel_i0(values: Tensor) -> Tensor:
    return (_scaled_i0(values.double()) * torch.exp(values.double().abs())).to(_float_dtype(values))


@decomposition_of("aten.special_i0e.default", "prims.bessel_i0e.default")
def _bessel_i0e(values: Tensor) -> Tensor:
    return _scaled_i0(values.double()).to(_float_dtype(values))


def _scaled_i0(wide: Tensor) -> Tensor:
    """I0(x) exp(-|x|) by Abramowitz and Stegun 9.8.1 and 9.8.2, with a relative error of 2e-7."""
    size = wide.abs()
    ratio = (size / _LIMIT).clamp(max=1)
    near = _polynomial(_I0_NEAR, ratio * ratio) * torch.exp(-size)
    above = size.clamp(min=_LIMIT)
    far = _polynomial(_I0_FAR, _LIMIT / above) / above.sqrt()
    return torch.where(size < _LIMIT, near, far)


_I1_NEAR = (0.5, 0.87890594, 0.51498869, 0.15084934, 0.02658733, 0.00301532, 0.00032411)
_I1_FAR = (
    *(0.39894228, -0.03988024, -0.00362018, 0.00163801, -0.01031555),
    *(0.02282967, -0.02895312, 0.01787654, -0.00420059),
)


@decomposition_of("aten.special_i1.default", "prims.bessel_i1.default")
def _bessel_i1(values: Tensor) -> Tensor:
    return (_scaled_i1(values.double()) * torch.exp(values.double().abs())).to(_float_dtype(values))


@decomposition_of("aten.special_i1e.default", "prims.bessel_i1e.default")
def _bessel_i1e(values: Tensor) -> Tensor:
    return _scaled_i1(values.double()).to(_float_dtype(values))


def _scaled_i1(wide: Tensor) -> Tensor:
    """I1(x) exp(-|x|) by Abramowitz and Stegun 9.8.3 and 9.8.4, with a relative error of 3e-7."""
    size = wide.abs()
    ratio = (wide / _LIMIT).clamp(-1, 1)
    near = _polynomial(_I1_NEAR, ratio * ratio) * wide * torch.exp(-size)
    above = size.clamp(min=_LIMIT)
    far = _polynomial(_I1_FAR, _LIMIT / above) / above.sqrt() * wide.sign()
    return torch.where(size < _LIMIT, near, far)


def _polynomial(coefficients: Sequence[float], values: Tensor) -> Tensor:
    """c0 + c1 x + c2 x^2 + ..."""
    result = torch.zeros_like(values)
    for coefficient in reversed(coefficients):
        result = coefficient + values * result
    return result


def _float_dtype(values: Tensor) -> torch.dtype:
    return values.dtype if values.is_floating_point() else torch.get_default_dtype()


_RECURRENCE_STEPS = 8
# Bernoulli numbers B2, B4, ...
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)


@decomposition_of("aten.lgamma.default", "aten.special_gammaln.default")
def _lgamma(values: Tensor) -> Tensor:
    wide, reflected, x = _reflected(values)
    product = torch.ones_like(x)
    for step in range(_RECURRENCE_STEPS):
        product = product * (x + step)
    far = x + _RECURRENCE_STEPS
    series = _series(far, [b / (2 * n * (2 * n - 1)) for n, b in enumerate(_BERNOULLI, 1)]) * far
    direct = (far - 0.5) * far.log() - far + math.log(2 * math.pi) / 2 + series
    # Large values need no steps, which would overflow.
    large = x > 1e6
    alone = (x - 0.5) * x.log() - x + math.log(2 * math.pi) / 2
    direct = torch.where(large, alone, direct - torch.where(large, 1.0, product).log())
    sine = torch.sin(math.pi * (wide - wide.round())).abs()
    result = torch.where(reflected, math.log(math.pi) - sine.log() - direct, direct)
    return torch.where(torch.isinf(wide), torch.inf, result).to(_float_dtype(values))


@decomposition_of("aten.digamma.default", "aten.special_psi.default", "aten.special_digamma.default")
def _digamma(values: Tensor) -> Tensor:
    wide, reflected, x = _reflected(values)
    recurrence = sum(1 / (x + step) for step in range(_RECURRENCE_STEPS))
    far = x + _RECURRENCE_STEPS
    series = _series(far, [b / (2 * n) for n, b in enumerate(_BERNOULLI, 1)])
    direct = far.log() - 0.5 / far - series - recurrence
    fraction = wide - wide.round()
    cotangent = math.pi * torch.cos(math.pi * fraction) / torch.sin(math.pi * fraction)
    result = torch.where(reflected, direct - cotangent, direct)
    # At 0 it tends to infinity on either side; at the other poles there is no limit.
    pole = torch.where(wide == 0, -1 / wide, torch.nan)
    return torch.where((fraction == 0) & reflected, pole, result).to(_float_dtype(values))


@decomposition_of("aten.mvlgamma.default", "aten.special_multigammaln.default")
def _mvlgamma(values: Tensor, p: int) -> Tensor:
    """Sum over j below p of lgamma(x - j / 2), plus p (p - 1) / 4 log(pi)."""
    wide = values.double()
    total = torch.full_like(wide, p * (p - 1) / 4 * math.log(math.pi))
    for step in range(p):
        total = total + _lgamma(wide - step / 2)
    return total.to(_float_dtype(values))


def _series(values: Tensor, coefficients: Sequence[float]) -> Tensor:
    """c0 / x^2 + c1 / x^4 + ..."""
    square, result = 1 / (values * values), torch.zeros_like(values)
    for coefficient in reversed(coefficients):
        result = (result + coefficient) * square
    return result


def _reflected(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (values, mask of those below 1/2, the values reflected to at least 1/2), in float64."""
    wide = values.double()
    reflected = wide < 0.5
    return wide, reflected, torch.where(reflected, 1 - wide, wide)


@decomposition_of("aten.special_spherical_bessel_j0.default")
def _spherical_bessel(values: Tensor) -> Tensor:
    """sin(x) / x, by its series near 0; 0 at infinity."""
    square = values * values
    series = 1 - square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72)))
    return torch.where(values.abs() < 0.5, series, torch.where(values.isinf(), 0.0, values.sin() / values))
