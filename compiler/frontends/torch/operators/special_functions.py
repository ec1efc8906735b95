"""Logarithms, the error function and the gamma function, with the relative precision of the type.

- The exporter emits log(1 + x) for log1p(x), which is 0 for small x, and log(sigmoid(x)) for logsigmoid(x), which is
  -inf below -88.
- The inverse error function is computed in float64: Winitzki's approximation (2008, within 0.002), and three steps of
  Halley's method on erf(x) - y. The complementary error function is the Chebyshev approximation of Numerical Recipes
  (6.2), with a relative error of 1.2e-7; of float64, it is Cephes's.
- The logarithm of the gamma function and its derivative are computed in float64: Stirling's series (Abramowitz and
  Stegun 6.1.41, 6.3.18) at x + 8, then back by the recurrences; below 1/2 by reflection (6.1.17, 6.3.7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of, float_dtype
from compiler.frontends.torch.operators.polynomials import polynomial, ratio


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
def log_sigmoid(values: Tensor) -> Tensor:
    """Precise for large negative values, too."""
    return values.clamp(max=0) - log1p(torch.exp(-values.abs()))


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
    return torch.where(wide.abs() < 1, root, beyond).to(float_dtype(values.dtype))


_ERFC_COEFFICIENTS = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)
_SMALL = 0.5  # above it 1 - erf(x) loses precision


@decomposition_of("aten.erfc.default", "aten.special_erfc.default")
def _erfc(values: Tensor) -> Tensor:
    if values.dtype != torch.float32:
        wide = values.double()
        positive = torch.exp(-wide * wide) * _wide_erfcx(wide.abs())
        return torch.where(wide < 0, 2 - positive, positive).to(float_dtype(values.dtype))
    far = _exponential_of_complement(values, -values * values)
    return torch.where(values > _SMALL, far, 1 - torch.erf(values))


@decomposition_of("aten.special_erfcx.default")
def _erfcx(values: Tensor) -> Tensor:
    """exp(x^2) erfc(x)."""
    if values.dtype != torch.float32:
        return _wide_erfcx(values.double()).to(float_dtype(values.dtype))
    near = torch.exp(values * values) * (1 - torch.erf(values))
    return torch.where(values > _SMALL, _exponential_of_complement(values, torch.zeros_like(values)), near)


@decomposition_of("aten.special_log_ndtr.default")
def _log_ndtr(values: Tensor) -> Tensor:
    """Logarithm of the normal CDF."""
    scaled = -values / math.sqrt(2)
    left = torch.log(_erfcx(scaled) / 2) - scaled * scaled
    right = log1p(-_erfc(-scaled) / 2)
    found = torch.where(values < -1, left, right)
    return torch.where(values == -math.inf, values, found)


def _exponential_of_complement(values: Tensor, square: Tensor) -> Tensor:
    """erfc(x) exp(x^2 + square) for x >= 0."""
    term = 2 / (2 + values.abs())
    return term * torch.exp(square + polynomial(_ERFC_COEFFICIENTS[::-1], term))


# Cephes's erfc, highest powers first (copyright (c) 2018, Steven Moshier; BSD license).
_ERFC_MIDDLE = (
    *(2.46196981473530512524e-10, 5.64189564831068821977e-1, 7.46321056442269912687, 48.6371970985681366614),
    *(196.520832956077098242, 526.445194995477358631, 934.528527171957607540, 1027.55188689515710272),
    557.535335369399327526,
)
_ERFC_MIDDLE_DIVISOR = (
    *(1.0, 13.2281951154744992508, 86.7072140885989742329, 354.937778887819891062, 975.708501743205489753),
    *(1823.90916687909736289, 2246.33760818710981792, 1656.66309194161350182, 557.535340817727675546),
)
_ERFC_FAR = (
    *(5.64189583547755073984e-1, 1.27536670759978104416, 5.01905042251180477414),
    *(6.16021097993053585195, 7.40974269950448939160, 2.97886665372100240670),
)
_ERFC_FAR_DIVISOR = (
    *(1.0, 2.26052863220117276590, 9.39603524938001434673, 12.0489539808096656605),
    *(17.0814450747565897222, 9.60896809063285878198, 3.36907645100081516050),
)
_ERF_NEAR = (
    *(9.60497373987051638749, 90.0260197203842689217, 2232.00534594684319226),
    *(7003.32514112805075473, 55592.3013010394962768),
)
_ERF_NEAR_DIVISOR = (
    *(1.0, 33.5617141647503099647, 521.357949780152679795, 4594.32382970980127987),
    *(22629.0000613890934246, 49267.3942608635921086),
)
_FAR = 8.0


def _wide_erfcx(values: Tensor) -> Tensor:
    """exp(x^2) erfc(x) of float64: 1 - erf(x) near 0, otherwise rational functions of |x| (Cephes's ndtr.c)."""
    size, inside = values.abs(), values.clamp(-1, 1)
    square = inside * inside
    near = (1 - inside * ratio(_ERF_NEAR, _ERF_NEAR_DIVISOR, square)) * torch.exp(square)
    middle, inverse = size.clamp(1, _FAR), 1 / size.clamp(min=_FAR)
    # In powers of the inverse, so that large values do not overflow.
    far = inverse * ratio(_ERFC_FAR[::-1], _ERFC_FAR_DIVISOR[::-1], inverse)
    beyond = torch.where(size < _FAR, ratio(_ERFC_MIDDLE, _ERFC_MIDDLE_DIVISOR, middle), far)
    reflected = torch.where(values < 0, 2 * torch.exp(values * values) - beyond, beyond)
    return torch.where(size < 1, near, torch.where(values.isnan(), values, reflected))


# Cephes's ndtri, highest powers first.
_NDTRI_MIDDLE = (
    *(-59.9633501014107895267, 98.0010754185999661536, -56.6762857469070293439),
    *(13.9312609387279679503, -1.23916583867381258016),
)
_NDTRI_MIDDLE_DIVISOR = (
    *(1.0, 1.95448858338141759834, 4.67627912898881538453, 86.3602421390890590575, -225.462687854119370527),
    *(200.260212380060660359, -82.0372256168333339912, 15.9056225126211695515, -1.18331621121330003142),
)
_NDTRI_TAIL = (
    *(4.05544892305962419923, 31.5251094599893866154, 57.1628192246421288162, 44.0805073893200834700),
    *(14.6849561928858024014, 2.18663306850790267539, -1.40256079171354495875e-1, -3.50424626827848203418e-2),
    -8.57456785154685413611e-4,
)
_NDTRI_TAIL_DIVISOR = (
    *(1.0, 15.7799883256466749731, 45.3907635128879210584, 41.3172038254672030440, 15.0425385692907503408),
    *(2.50464946208309415979, -1.42182922854787788574e-1, -3.80806407691578277194e-2, -9.33259480895457427372e-4),
)
_NDTRI_END = (
    *(3.23774891776946035970, 6.91522889068984211695, 3.93881025292474443415, 1.33303460815807542389),
    *(2.01485389549179081538e-1, 1.23716634817820021358e-2, 3.01581553508235416007e-4, 2.65806974686737550832e-6),
    6.23974539184983293730e-9,
)
_NDTRI_END_DIVISOR = (
    *(1.0, 6.02427039364742014255, 3.67983563856160859403, 1.37702099489081330271, 2.16236993594496635890e-1),
    *(1.34204006088543189037e-2, 3.28014464682127739104e-4, 2.89247864745380683936e-6, 6.79019408009981274425e-9),
)
_TAIL = 0.13533528323661269189  # exp(-2)


@decomposition_of("aten.special_ndtri.default", "prims.ndtri.default")
def _ndtri(values: Tensor) -> Tensor:
    """Quantiles of the normal distribution, in float64 (Cephes's ndtri)."""
    wide = values.double()
    upper = wide > 1 - _TAIL
    share = torch.where(upper, 1 - wide, wide)
    centered = share.clamp(_TAIL, 1) - 0.5
    square = centered * centered
    middle = centered + centered * square * ratio(_NDTRI_MIDDLE, _NDTRI_MIDDLE_DIVISOR, square)
    root = torch.sqrt(-2 * torch.log(torch.where((share > 0) & (share < _TAIL), share, _TAIL)))
    inverse = 1 / root
    near, far = ratio(_NDTRI_TAIL, _NDTRI_TAIL_DIVISOR, inverse), ratio(_NDTRI_END, _NDTRI_END_DIVISOR, inverse)
    tail = root - torch.log(root) / root - inverse * torch.where(root < _FAR, near, far)
    found = torch.where(share > _TAIL, middle * math.sqrt(2 * math.pi), torch.where(upper, tail, -tail))
    found = torch.where(wide == 0, -math.inf, torch.where(wide == 1, math.inf, found))
    return torch.where((wide >= 0) & (wide <= 1), found, math.nan).to(float_dtype(values.dtype))


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
    return torch.where(torch.isinf(wide), torch.inf, result).to(float_dtype(values.dtype))


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
    return torch.where((fraction == 0) & reflected, pole, result).to(float_dtype(values.dtype))


@decomposition_of("aten.mvlgamma.default", "aten.special_multigammaln.default")
def _mvlgamma(values: Tensor, p: int) -> Tensor:
    """Sum over j below p of lgamma(x - j / 2), plus p (p - 1) / 4 log(pi)."""
    wide = values.double()
    total = torch.full_like(wide, p * (p - 1) / 4 * math.log(math.pi))
    for step in range(p):
        total = total + _lgamma(wide - step / 2)
    return total.to(float_dtype(values.dtype))


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
