"""Operators on complex numbers that the exporter converts for real ones alone: by the real and the imaginary part."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compiler.frontends.torch.decomposition import decomposition_of, is_dynamic
from compiler.frontends.torch.operators.elementwise import negative

_COMPLEX = (torch.complex64, torch.complex128)
_PRODUCTS = range(1, 5)  # exponents


def _parts(values: Tensor) -> tuple[Tensor, Tensor]:
    if values.is_conj():  # marked as conjugated, which `view_as_real` does not take
        real, imaginary = _parts(values.conj())
        return real, -imaginary
    pairs = torch.view_as_real(values)
    return pairs[..., 0], pairs[..., 1]


def _joined(real: Tensor, imaginary: Tensor) -> Tensor:
    return torch.view_as_complex(torch.stack((real, imaginary), -1))


def _moves(name: str, operator: Callable[..., Any]) -> None:
    """An operator that only moves elements is applied to both parts."""

    def decomposition(values: Tensor, *arguments: Any, **named: Any) -> Any:
        if not values.is_complex() or named.get("dtype") is not None:
            return NotImplemented
        real, imaginary = (operator(each, *arguments, **named) for each in _parts(values))
        if isinstance(real, Tensor):
            return _joined(real, imaginary)
        return [_joined(*each) for each in zip(real, imaginary, strict=True)]

    decomposition_of(name, dtypes=_COMPLEX)(decomposition)


_ATEN = torch.ops.aten
for _operator in (
    *(_ATEN.select.int, _ATEN.unsqueeze.default, _ATEN.squeeze.dims, _ATEN.expand.default),
    *(_ATEN.repeat.default, _ATEN.index.Tensor, _ATEN.index_select.default, _ATEN.gather.default),
    *(_ATEN.constant_pad_nd.default, _ATEN.unfold.default, _ATEN.diagonal.default, _ATEN.tril.default),
    *(
        _ATEN.triu.default,
        _ATEN.split.Tensor,
        _ATEN.split_with_sizes.default,
        _ATEN.unbind.int,
        *(_ATEN.zeros_like.default, _ATEN.pad.default),
    ),
):
    _moves(str(_operator), _operator)


def _squeezes_symbols(node: torch.fx.Node) -> bool:
    """True for complex numbers, which are pairs of real ones, and for dynamic sizes."""
    (source,) = node.all_input_nodes
    value: Tensor = source.meta["val"]
    return value.is_complex() or is_dynamic(value.shape)


@decomposition_of("aten.squeeze.default", condition=_squeezes_symbols)
def _squeeze(values: Tensor) -> Tensor:
    """Without the axes of size 1, as `torch.export` takes them: a dynamic size is another one."""
    sizes: Sequence[Any] = values.shape
    axes = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and size == 1]
    if values.is_complex():
        return _joined(*(each.squeeze(axes) for each in _parts(values)))
    return values.squeeze(axes) if is_dynamic(sizes) else NotImplemented


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


@decomposition_of("aten.where.self", dtypes=_COMPLEX)
def _where(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    if not (first.is_complex() and second.is_complex()):
        return NotImplemented
    pairs = zip(_parts(first), _parts(second), strict=True)
    return _joined(*(torch.where(condition, one, other) for one, other in pairs))


@decomposition_of("aten.masked_fill.Scalar", dtypes=_COMPLEX)
def _masked_fill(values: Tensor, mask: Tensor, value: complex) -> Tensor:
    if not values.is_complex():
        return NotImplemented
    real, imaginary = _parts(values)
    return _joined(real.masked_fill(mask, complex(value).real), imaginary.masked_fill(mask, complex(value).imag))


@decomposition_of("aten.pow.Tensor_Scalar", dtypes=_COMPLEX)
def _power(values: Tensor, exponent: complex) -> Tensor:
    """A small whole power is a product; others are computed by size and angle."""
    if not (values.is_complex() and isinstance(exponent, int | float)):
        return NotImplemented
    if exponent in _PRODUCTS:
        return functools.reduce(torch.mul, [values] * int(exponent))
    return torch.polar(values.abs() ** exponent, values.angle() * exponent)


@decomposition_of("aten.mul.Tensor", "aten.mul.Scalar", dtypes=_COMPLEX)
def _times_number(values: Tensor, number: Any) -> Tensor:
    if isinstance(number, Tensor) or not (values.is_complex() or isinstance(number, complex)):
        return NotImplemented
    factor = complex(number)
    if not values.is_complex():
        return _joined(values * factor.real, values * factor.imag)
    real, imaginary = _parts(values)
    return _joined(real * factor.real - imaginary * factor.imag, real * factor.imag + imaginary * factor.real)


@decomposition_of("aten.mm.default", "aten.bmm.default", dtypes=_COMPLEX)
def _product(first: Tensor, second: Tensor) -> Tensor:
    if not (first.is_complex() and second.is_complex()):
        return NotImplemented
    (a, b), (c, d) = _parts(first), _parts(second)
    return _joined(a @ c - b @ d, a @ d + b @ c)


@decomposition_of("aten.einsum.default", dtypes=_COMPLEX)
def _einsum(equation: str, operands: list[Tensor], *, path: list[int] | None = None) -> Tensor:
    if len(operands) > 2 or not all(each.is_complex() for each in operands):
        return NotImplemented
    parts = [_parts(each) for each in operands]
    if len(parts) == 1:
        return _joined(*(torch.einsum(equation, each) for each in parts[0]))

    def product(first: int, second: int) -> Tensor:
        return torch.einsum(equation, parts[0][first], parts[1][second])

    return _joined(product(0, 0) - product(1, 1), product(0, 1) + product(1, 0))


@decomposition_of("aten._neg_view.default")
def _negative_view(values: Tensor) -> Tensor:
    """The imaginary part of a conjugate."""
    return torch.neg(values)


@decomposition_of("aten.exp.default", dtypes=_COMPLEX)
def _exp(values: Tensor) -> Tensor:
    if not values.is_complex():
        return NotImplemented
    real, angle = _parts(values)
    size = torch.exp(real)
    return _joined(size * torch.cos(angle), size * torch.sin(angle))


@decomposition_of("aten.log.default", dtypes=_COMPLEX)
def _log(values: Tensor) -> Tensor:
    if not values.is_complex():
        return NotImplemented
    real, imaginary = _parts(values)
    return _joined(torch.log(torch.hypot(real, imaginary)), torch.atan2(imaginary, real))


@decomposition_of("aten.sqrt.default", dtypes=_COMPLEX)
def _sqrt(values: Tensor) -> Tensor:
    """With a real part that is not negative."""
    if not values.is_complex():
        return NotImplemented
    real, imaginary = _parts(values)
    size = torch.hypot(real, imaginary)
    root = torch.sqrt((size + real).clamp(min=0) / 2)
    other = torch.sqrt((size - real).clamp(min=0) / 2)
    return _joined(root, torch.where(negative(imaginary), -other, other))
