"""Special functions against mpmath, which torch's sympy brings, in float64 and float32; PyTorch's own Bessel functions
are off by up to 1e-6."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.special import (
    airy_ai,
    bessel_j0,
    bessel_j1,
    bessel_y0,
    bessel_y1,
    erfcx,
    i0,
    i0e,
    i1,
    i1e,
    log_ndtr,
    modified_bessel_k0,
    modified_bessel_k1,
    ndtri,
    scaled_modified_bessel_k0,
    scaled_modified_bessel_k1,
)

import compiler
from compiler.errors import UnsupportedModelError

Function = Callable[[Tensor], Tensor]
Reference = Callable[[Any], Any]

POSITIVE = [1e-30, 1e-8, 1e-3, 0.1, 0.5, 0.99, 1.0, 1.5, 1.99, 2.0, 2.2, 3.7, 4.99, 5.3, 7.9, 8.1, 12.3, 30.0, 88.0]
ANY = [0.0, *POSITIVE, *(-each for each in POSITIVE)]

BESSEL: dict[str, tuple[Function, Reference]] = {
    "j0": (bessel_j0, lambda x: mpmath.besselj(0, x)),
    "j1": (bessel_j1, lambda x: mpmath.besselj(1, x)),
    "i0": (i0, lambda x: mpmath.besseli(0, x)),
    "i1": (i1, lambda x: mpmath.besseli(1, x)),
    "i0e": (i0e, lambda x: mpmath.besseli(0, x) * mpmath.exp(-abs(x))),
    "i1e": (i1e, lambda x: mpmath.besseli(1, x) * mpmath.exp(-abs(x))),
    "airy": (airy_ai, mpmath.airyai),
}
SECOND_KIND: dict[str, tuple[Function, Reference]] = {
    "y0": (bessel_y0, lambda x: mpmath.bessely(0, x)),
    "y1": (bessel_y1, lambda x: mpmath.bessely(1, x)),
    "k0": (modified_bessel_k0, lambda x: mpmath.besselk(0, x)),
    "k1": (modified_bessel_k1, lambda x: mpmath.besselk(1, x)),
    "k0e": (scaled_modified_bessel_k0, lambda x: mpmath.besselk(0, x) * mpmath.exp(x)),
    "k1e": (scaled_modified_bessel_k1, lambda x: mpmath.besselk(1, x) * mpmath.exp(x)),
}
ERRORS: dict[str, tuple[Function, Reference]] = {
    "erfc": (torch.erfc, mpmath.erfc),
    "erfcx": (erfcx, lambda x: mpmath.exp(x * x) * mpmath.erfc(x)),
    "log_ndtr": (log_ndtr, lambda x: mpmath.log(mpmath.erfc(-x / mpmath.sqrt(2)) / 2)),
}


class Functions(nn.Module):
    def __init__(self, functions: list[Function]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(each(x) for each in self.functions)


def results(functions: Mapping[str, Function], x: Tensor) -> dict[str, np.ndarray]:
    module = compiler.compile(Functions(list(functions.values())).eval(), example_inputs=(x,), threads=1)
    return dict(zip(functions, module.run([x.numpy()]).values(), strict=True))


def check(functions: Mapping[str, tuple[Function, Reference]], values: list[float], tolerance: float = 1e-13) -> None:
    """Compare float64 with the reference, relative to it or, near roots, to 1; and float32 with rounded float64."""
    x = torch.tensor(values, dtype=torch.float64)
    found = results({name: function for name, (function, _) in functions.items()}, x)
    for name, (_, reference) in functions.items():
        with mpmath.workdps(100):
            wanted = np.array([float(reference(mpmath.mpf(each))) for each in values])
        bound = tolerance * np.where(np.abs(wanted) > 1e-3, np.maximum(np.abs(wanted), 0.1), np.abs(wanted)) + 1e-300
        wrong = np.flatnonzero(~(np.abs(found[name] - wanted) <= bound))
        assert not wrong.size, (name, [(values[i], found[name][i], wanted[i]) for i in wrong[:3]])


def test_bessel_functions() -> None:
    check(BESSEL, ANY)


def test_bessel_functions_of_the_second_kind() -> None:
    check(SECOND_KIND, POSITIVE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_bessel_functions_of_other_types(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1, 3, 9, -2]).to(dtype)
    functions = {"i0": i0, "k1": modified_bessel_k1, "airy": airy_ai}
    for name, found in results(functions, x).items():
        exact = functions[name](x.double()).to(torch.float32)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6, err_msg=name)


def test_ends_of_bessel_functions() -> None:
    x = torch.tensor([0.0, -1.0, math.inf, -math.inf, math.nan], dtype=torch.float64)
    functions = {"y1": bessel_y1, "k0": modified_bessel_k0, "airy": airy_ai}
    for name, found in results(functions, x).items():
        np.testing.assert_allclose(found, functions[name](x), err_msg=name)


def test_errors_of_float64() -> None:
    # 1 - erfc and log(1 - p) of large arguments lose what float64 does not hold
    check(ERRORS, [each for each in ANY if -26 < each < 26], tolerance=1e-12)


def test_quantiles_of_the_normal_distribution() -> None:
    shares = [1e-300, 1e-100, 1e-15, 1e-14, 1e-5, 0.1, 0.135, 0.136, 0.3, 0.5, 0.6, 0.864, 0.865, 0.99, 1 - 1e-9]
    check({"ndtri": (ndtri, lambda p: _quantile(p))}, shares)
    ends = torch.tensor([0.0, 1.0, -0.1, 1.1, math.nan, 0.25])
    np.testing.assert_allclose(results({"ndtri": ndtri}, ends)["ndtri"], ndtri(ends), rtol=1e-6)


def _quantile(share: Any) -> Any:
    """By Newton's method from float64's value."""
    x = mpmath.mpf(float(ndtri(torch.tensor(float(share), dtype=torch.float64))))
    for _ in range(4):
        x += (share - mpmath.ncdf(x)) / mpmath.npdf(x)
    return x


def test_zeta_functions() -> None:
    numbers = [1e-3, 0.3, 1.0, 2.5, 8.0, 20.0, 1e3, -0.3, -1.5, -7.25]
    orders = {f"polygamma {n}": _polygamma(n) for n in (1, 4)}
    check({**orders, "zeta": (lambda q: torch.special.zeta(4.0, q), lambda q: mpmath.zeta(4, q))}, numbers, 1e-12)
    x = torch.tensor([-1.0, 0.5, 1.0, 1.001, 1.5, 3.0, 4.0, 40.0, math.nan], dtype=torch.float64)
    places = (0.3, -2.0, -2.5)
    functions = {str(q): _zeta_from(q) for q in places}
    for name, found in results(functions, x).items():
        np.testing.assert_allclose(found, functions[name](x), rtol=1e-12, atol=1e-300, err_msg=name)


def _polygamma(n: int) -> tuple[Function, Reference]:
    return lambda x: torch.polygamma(n, x), lambda x: mpmath.polygamma(n, x)


def _zeta_from(q: float) -> Function:
    return lambda x: torch.special.zeta(x, q)


POLYNOMIALS = ("hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p")
CHEBYSHEV = tuple(f"{shifted}chebyshev_polynomial_{kind}" for shifted in ("", "shifted_") for kind in "tuvw")
NUMBERS = torch.tensor([-3.2, -1.0, -0.9, -0.3, 0.0, 0.2, 0.5, 0.7, 1.0, 1.0 + 1e-9, 2.5], dtype=torch.float64)


@pytest.mark.parametrize("degree", [-1, 0, 1, 5, 20])
def test_orthogonal_polynomials(degree: int) -> None:
    """PyTorch's recurrences, in float64."""
    functions = {name: _of_degree(name, degree) for name in (*POLYNOMIALS, *CHEBYSHEV)}
    for name, found in results(functions, NUMBERS).items():
        wanted = functions[name](NUMBERS).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12, err_msg=name)


def _of_degree(name: str, degree: object) -> Function:
    function = getattr(torch.special, name)
    return lambda x: function(x, degree)


def test_degrees_that_are_tensors() -> None:
    degrees = torch.arange(-1, len(NUMBERS) - 1)
    functions = {name: _of_degree(name, degrees) for name in CHEBYSHEV}
    for name, found in results(functions, NUMBERS).items():
        wanted = functions[name](NUMBERS).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12, err_msg=name)
    model = Functions([_of_degree("legendre_polynomial_p", degrees)]).eval()
    with pytest.raises(UnsupportedModelError, match="legendre_polynomial_p"):
        compiler.compile(model, example_inputs=(NUMBERS,), threads=1)


def test_hermite_polynomials_end_like_those_of_pytorch() -> None:
    x = NUMBERS.float()
    functions = {"h": _of_degree("hermite_polynomial_h", 200), "he": _of_degree("hermite_polynomial_he", 129)}
    assert all(np.isnan(found).all() for found in results(functions, x).values())
