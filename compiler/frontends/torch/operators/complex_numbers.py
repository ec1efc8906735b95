"""Operators on complex numbers that the exporter converts only for real ones, in terms of real and imaginary parts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of
from compiler.frontends.torch.operators.elementwise import atan2, copysign, hypot, negative
from compiler.frontends.torch.operators.ordering import cumprod
from compiler.frontends.torch.operators.special_functions import expm1, log1p
from compiler.support.powers import by_squaring

_COMPLEX = (torch.complex64, torch.complex128)
_PRODUCTS = range(1, 5)  # exponents


def _parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the real and the imaginary part, which is zero for real numbers."""
    if not values.is_complex():
        return values, torch.zeros_like(values)
    if values.is_conj():  # marked as conjugated, which `view_as_real` rejects
        real, imaginary = _parts(values.conj())
        return real, -imaginary
    pairs = torch.view_as_real(values)
    return pairs[..., 0], pairs[..., 1]


def _joined(real: Tensor, imaginary: Tensor) -> Tensor:
    return torch.view_as_complex(torch.stack((real, imaginary), -1))


def _takes_complex(node: torch.fx.Node) -> bool:
    """True for an operator with a complex operand, a tensor or a number."""
    values = [each.meta.get("val") for each in node.all_input_nodes]
    return any(isinstance(each, Tensor) and each.is_complex() for each in values) or any(
        isinstance(each, complex) for each in node.args
    )


def _of_complex(*operators: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a decomposition for complex operands; the exporter handles operators with only real ones."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def decomposition(*arguments: Any, **named: Any) -> Any:
            operands = [part for each in arguments for part in (each if isinstance(each, list) else [each])]
            complex_operand = any(
                isinstance(each, complex) or (isinstance(each, Tensor) and each.is_complex()) for each in operands
            )
            return function(*arguments, **named) if complex_operand else NotImplemented

        decomposition_of(*operators, condition=_takes_complex)(decomposition)
        return function

    return register


def _applies_to_parts(operator: torch._ops.OpOverload) -> None:
    """Apply an operator that moves or adds elements to the real and imaginary parts of its operands."""

    def decomposition(values: Tensor, *arguments: Any, **named: Any) -> Any:
        if not values.is_complex() or named.get("dtype") is not None:
            return NotImplemented
        results = [operator(*(_part(each, index) for each in (values, *arguments)), **named) for index in range(2)]
        if isinstance(results[0], Tensor):
            return _joined(*results)
        return [_joined(*each) for each in zip(*results, strict=True)]

    decomposition_of(str(operator), dtypes=_COMPLEX)(decomposition)


def _part(operand: Any, index: int) -> Any:
    return _parts(operand)[index] if isinstance(operand, Tensor) and operand.is_complex() else operand


_ATEN = torch.ops.aten
for _operator in (
    *(_ATEN.select.int, _ATEN.unsqueeze.default, _ATEN.squeeze.dims, _ATEN.expand.default, _ATEN.repeat.default),
    *(_ATEN.index.Tensor, _ATEN.index_select.default, _ATEN.gather.default, _ATEN.constant_pad_nd.default),
    *(_ATEN.unfold.default, _ATEN.diagonal.default, _ATEN.tril.default, _ATEN.triu.default, _ATEN.split.Tensor),
    *(_ATEN.split_with_sizes.default, _ATEN.unbind.int, _ATEN.zeros_like.default, _ATEN.pad.default),
    *(_ATEN.tile.default, _ATEN.diag_embed.default, _ATEN.trace.default, _ATEN.cumsum.default, _ATEN.lerp.Scalar),
    *(_ATEN.index_put.default, _ATEN.index_add.default, _ATEN.scatter.src, _ATEN.scatter_add.default),
):
    _applies_to_parts(_operator)


@decomposition_of("aten.squeeze.default", dtypes=_COMPLEX)
def _squeeze(values: Tensor) -> Tensor:
    """Remove the axes of size 1 like `torch.export`, which assumes that dynamic sizes are not 1."""
    if not values.is_complex():
        return NotImplemented
    sizes: Sequence[Any] = values.shape
    axes = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and size == 1]
    return _joined(*(each.squeeze(axes) for each in _parts(values)))


@decomposition_of("aten.zeros.default", dtypes=_COMPLEX)
def _zeros(size: list[Any], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _new_zeros(torch.empty(()), size, dtype=dtype)


@decomposition_of("aten.new_zeros.default", dtypes=_COMPLEX)
def _new_zeros(like: Tensor, size: list[Any], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    dtype = dtype or like.dtype
    if not dtype.is_complex:
        return NotImplemented
    return torch.view_as_complex(torch.zeros([*size, 2], dtype=dtype.to_real()))


@decomposition_of("aten.copy.default", dtypes=_COMPLEX)
def _copy(values: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.expand(values.shape) if values.is_complex() and source.dtype == values.dtype else NotImplemented


@_of_complex("aten.where.self")
def _where(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    pairs = zip(_parts(first), _parts(second), strict=True)
    return _joined(*(torch.where(condition, one, other) for one, other in pairs))


@_of_complex("aten.where.ScalarOther")
def _where_number(condition: Tensor, values: Tensor, number: complex) -> Tensor:
    real, imaginary = _parts(values)
    return _joined(torch.where(condition, real, number.real), torch.where(condition, imaginary, number.imag))


@_of_complex("aten.masked_fill.Scalar")
def _masked_fill(values: Tensor, mask: Tensor, number: complex) -> Tensor:
    return _where_number(~mask, values, number) if values.is_complex() else NotImplemented


@_of_complex("aten.ones_like.default")
def _ones_like(values: Tensor, **_: Any) -> Tensor:
    real, _imaginary = _parts(values)
    return _joined(torch.ones_like(real), torch.zeros_like(real))


@_of_complex("aten.eq.Tensor", "aten.eq.Scalar")
def _equal(first: Tensor, second: Tensor | complex) -> Tensor:
    (a, b), (c, d) = _parts(first), _parts(second) if isinstance(second, Tensor) else (second.real, second.imag)
    return (a == c) & (b == d)


@_of_complex("aten.ne.Tensor", "aten.ne.Scalar")
def _unequal(first: Tensor, second: Tensor | complex) -> Tensor:
    return ~_equal(first, second)


@_of_complex("aten.isnan.default")
def _isnan(values: Tensor) -> Tensor:
    real, imaginary = _parts(values)
    return real.isnan() | imaginary.isnan()


@_of_complex("aten.isinf.default")
def _isinf(values: Tensor) -> Tensor:
    real, imaginary = _parts(values)
    return real.isinf() | imaginary.isinf()


@_of_complex("aten.isfinite.default")
def _isfinite(values: Tensor) -> Tensor:
    real, imaginary = _parts(values)
    return real.isfinite() & imaginary.isfinite()


@_of_complex("aten.mul.Tensor", "aten.mul.Scalar")
def _times_number(values: Tensor, number: Any) -> Tensor:
    if isinstance(number, Tensor):
        return NotImplemented
    factor = complex(number)
    if not values.is_complex():
        return _joined(values * factor.real, values * factor.imag)
    real, imaginary = _parts(values)
    return _joined(real * factor.real - imaginary * factor.imag, real * factor.imag + imaginary * factor.real)


@_of_complex("aten.square.default")
def _square(values: Tensor) -> Tensor:
    return values * values


@_of_complex("aten.addcmul.default")
def _plus_product(values: Tensor, first: Tensor, second: Tensor, *, value: float = 1) -> Tensor:
    return values + first * second * value


@_of_complex("aten.dot.default")
def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum()


@_of_complex("aten.vdot.default")
def _conjugate_dot(first: Tensor, second: Tensor) -> Tensor:
    return (_conjugate(first) * second).sum()


def _conjugate(values: Tensor) -> Tensor:
    real, imaginary = _parts(values)
    return _joined(real, -imaginary)


@_of_complex("aten.mm.default", "aten.bmm.default")
def _product(first: Tensor, second: Tensor) -> Tensor:
    (a, b), (c, d) = _parts(first), _parts(second)
    return _joined(a @ c - b @ d, a @ d + b @ c)


@_of_complex("aten.addmm.default", "aten.baddbmm.default")
def _plus_matmul(values: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return values * beta + _product(first, second) * alpha


@_of_complex("aten.linear.default")
def _linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    (a, b), (c, d) = _parts(values), _parts(weight)
    found = _joined(a @ c.mT - b @ d.mT, a @ d.mT + b @ c.mT)
    return found if bias is None else found + bias


@_of_complex("aten.einsum.default")
def _einsum(equation: str, operands: list[Tensor], *, path: list[int] | None = None) -> Tensor:
    if len(operands) > 2:
        return NotImplemented
    parts = [_parts(each) for each in operands]
    if len(parts) == 1:
        return _joined(*(torch.einsum(equation, each) for each in parts[0]))

    def product(first: int, second: int) -> Tensor:
        return torch.einsum(equation, parts[0][first], parts[1][second])

    return _joined(product(0, 0) - product(1, 1), product(0, 1) + product(1, 0))


@_of_complex("aten.prod.dim_int")
def _product_along(values: Tensor, axis: int, keepdim: bool = False) -> Tensor:
    products = cumprod(values, axis)
    if products is NotImplemented:
        return NotImplemented
    return products.narrow(axis, values.shape[axis] - 1, 1).squeeze([] if keepdim else [axis])


@_of_complex("aten.prod.default")
def _product_of_all(values: Tensor) -> Tensor:
    return _product_along(values.reshape(-1), 0)


@_of_complex("aten.var.correction", "aten.var.dim")
def _variance(values: Tensor, *arguments: Any, **named: Any) -> Tensor:
    real, imaginary = _parts(values)
    return torch.var(real, *arguments, **named) + torch.var(imaginary, *arguments, **named)


@_of_complex("aten.std.correction", "aten.std.dim")
def _deviation(values: Tensor, *arguments: Any, **named: Any) -> Tensor:
    return _variance(values, *arguments, **named).sqrt()


@_of_complex("aten.linalg_vector_norm.default")
def _norm(values: Tensor, *arguments: Any, **named: Any) -> Tensor:
    return torch.linalg.vector_norm(hypot(*_parts(values)), *arguments, **named)


@decomposition_of("aten._neg_view.default")
def _negative_view(values: Tensor) -> Tensor:
    """Return the imaginary part of a conjugate."""
    return torch.neg(values)


@_of_complex("aten.sgn.default")
def _sgn(values: Tensor) -> Tensor:
    """Divide by the absolute value; zero for zero."""
    real, imaginary = _parts(values)
    size = hypot(real, imaginary)
    size = torch.where(size == 0, 1.0, size)
    return _joined(real / size, imaginary / size)


def _largest(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the larger magnitude of the two parts, and both magnitudes divided by it, so that their squares stay in
    range."""
    first, second = real.abs(), imaginary.abs()
    largest = torch.maximum(first, second)
    scale = torch.where(largest == 0, 1.0, largest)
    return largest, first / scale, second / scale


@_of_complex("aten.sqrt.default")
def _sqrt(values: Tensor) -> Tensor:
    """Square root with a non-negative real part. The larger part is computed from a sum, and the smaller one from the
    product of both, half the imaginary part: a difference would cancel close to the real axis.
    """
    real, imaginary = _parts(values)
    largest, first, second = _largest(real, imaginary)
    larger = torch.sqrt(largest) * torch.sqrt((first + torch.sqrt(first * first + second * second)) / 2)
    larger = torch.where(real.isinf() | imaginary.isinf(), math.inf, larger)
    smaller = torch.where((larger == 0) | imaginary.isinf(), imaginary, imaginary / larger / 2)
    below = negative(real)
    return _joined(torch.where(below, smaller.abs(), larger), copysign(torch.where(below, larger, smaller), imaginary))


@_of_complex("aten.rsqrt.default")
def _reciprocal_sqrt(values: Tensor) -> Tensor:
    return torch.reciprocal(_sqrt(values))


@_of_complex("aten.exp.default")
def _exp(values: Tensor) -> Tensor:
    """Computed in two factors, of which the first overflows only if the product does."""
    real, angle = _parts(values)
    half = torch.exp(real / 2)
    return _joined(half * torch.cos(angle) * half, torch.where(angle == 0, angle, half * torch.sin(angle) * half))


@_of_complex("aten.expm1.default")
def _expm1(values: Tensor) -> Tensor:
    real, angle = _parts(values)
    sine = torch.sin(angle / 2)
    return _joined(expm1(real) * torch.cos(angle) - 2 * sine * sine, torch.exp(real) * torch.sin(angle))


@_of_complex("aten.log.default")
def _log(values: Tensor) -> Tensor:
    real, imaginary = _parts(values)
    largest, first, second = _largest(real, imaginary)
    ratio = torch.minimum(first, second)
    size = torch.where(largest.isinf(), largest, torch.log(largest) + log1p(ratio * ratio) / 2)
    return _joined(size, atan2(imaginary, real))


@_of_complex("aten.log2.default")
def _log2(values: Tensor) -> Tensor:
    return _times_number(_log(values), 1 / math.log(2))


@_of_complex("aten.log10.default")
def _log10(values: Tensor) -> Tensor:
    return _times_number(_log(values), 1 / math.log(10))


@_of_complex("aten.pow.Tensor_Scalar")
def _power(values: Tensor, exponent: complex) -> Tensor:
    """Small integer powers are products; others are computed from magnitude and angle."""
    if exponent in _PRODUCTS:
        return by_squaring(values, int(exponent.real), torch.mul)
    if exponent.imag:
        return _power_of(values, torch.full((), exponent.real), torch.full((), exponent.imag))
    return torch.polar(values.abs() ** exponent.real, values.angle() * exponent.real)


@_of_complex("aten.pow.Tensor_Tensor")
def _power_tensor(values: Tensor, exponent: Tensor) -> Tensor:
    return _power_of(values, *_parts(exponent))


@_of_complex("aten.pow.Scalar")
def _power_of_number(number: complex, exponent: Tensor) -> Tensor:
    return _power_of(torch.full((), number.real), *_parts(exponent))


def _power_of(values: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    """exp(exponent * log(values)), with the exponent in parts; zero for zeros and an exponent with positive real
    part."""
    size, angle = _parts(_log(values))
    exponent = _joined(real * size - imaginary * angle, real * angle + imaginary * size)
    zero = (size == -math.inf) & (real > 0)
    return _where_number(~zero, _exp(exponent), 0.0)


@_of_complex("aten.cosh.default")
def _cosh(values: Tensor) -> Tensor:
    real, angle = _parts(values)
    return _joined(torch.cosh(real) * torch.cos(angle), torch.sinh(real) * torch.sin(angle))


@_of_complex("aten.sinh.default")
def _sinh(values: Tensor) -> Tensor:
    real, angle = _parts(values)
    return _joined(torch.sinh(real) * torch.cos(angle), torch.cosh(real) * torch.sin(angle))


@_of_complex("aten.tanh.default")
def _tanh(values: Tensor) -> Tensor:
    """sinh / cosh, both divided by the hyperbolic cosine of the real part, which would overflow before the quotient
    does."""
    real, angle = _parts(values)
    hyperbolic, secant, cosine = torch.tanh(real), 1 / torch.cosh(real), torch.cos(angle)
    size = hyperbolic * hyperbolic + (cosine * secant) ** 2
    return _joined(hyperbolic / size, torch.sin(angle) * cosine * secant * secant / size)


@_of_complex("aten.cos.default")
def _cos(values: Tensor) -> Tensor:
    return _cosh(_times_i(values))


@_of_complex("aten.sin.default")
def _sin(values: Tensor) -> Tensor:
    return _times_i(_sinh(_times_i(values)), -1)


@_of_complex("aten.tan.default")
def _tan(values: Tensor) -> Tensor:
    return _times_i(_tanh(_times_i(values)), -1)


def _times_i(values: Tensor, sign: int = 1) -> Tensor:
    """Multiply by i, or -i."""
    real, imaginary = _parts(values)
    return _joined(-imaginary * sign, real * sign)


@_of_complex("aten.sigmoid.default")
def _sigmoid(values: Tensor) -> Tensor:
    return torch.reciprocal(1 + _exp(-values))


def _takes_sizes(node: torch.fx.Node) -> bool:
    """True for a transform of complex numbers to given sizes."""
    return _takes_complex(node) and len(node.args) > 1 and node.args[1] is not None


def _resized(values: Tensor, sizes: Sequence[Any], axes: Sequence[int]) -> Tensor:
    """Cut axes, or fill them up with zeros."""
    for size, axis in zip(sizes, axes, strict=True):
        missing = size - values.shape[axis]
        if missing > 0:
            edges = [0, 0] * (values.ndim - 1 - axis % values.ndim) + [0, missing]
            values = _joined(*(torch.nn.functional.pad(part, edges) for part in _parts(values)))
        elif missing < 0:
            values = values.narrow(axis, 0, size)
    return values


def _transforms_to_sizes(name: str, rank: int | None, *, real: bool) -> None:
    """Resize the input of a transform, so that the exporter does not pad complex numbers.

    Args:
        rank: 1 for transforms of one axis; None for those of any number, by default of the last ones.
        real: the result is real: its last size belongs to about half as many complex numbers.
    """
    operator = getattr(_ATEN, name).default

    def transform(values: Tensor, sizes: Any = None, axes: Any = None, norm: str | None = None) -> Tensor:
        if sizes is None or not values.is_complex():
            return NotImplemented
        given = [sizes] if rank == 1 else list(sizes)
        taken = list(range(-len(given), 0)) if axes is None else [axes] if rank == 1 else list(axes)
        wanted = [*given[:-1], given[-1] // 2 + 1] if real else given
        if all(values.shape[axis] == size for size, axis in zip(wanted, taken, strict=True)):
            return NotImplemented
        values = _resized(values, wanted, taken)
        return operator(values, *([given[0], taken[0]] if rank == 1 else [given, taken]), norm)

    decomposition_of(f"aten.{name}.default", condition=_takes_sizes)(transform)


for _name, _rank, _real in (
    *(("fft_fft", 1, False), ("fft_ifft", 1, False), ("fft_irfft", 1, True), ("fft_hfft", 1, True)),
    *(("fft_fft2", 2, False), ("fft_ifft2", 2, False), ("fft_irfft2", 2, True)),
    *(("fft_fftn", None, False), ("fft_ifftn", None, False), ("fft_irfftn", None, True)),
):
    _transforms_to_sizes(_name, _rank, real=_real)
