"""The discrete Fourier transform as matrix products: direct for short lengths, factored for long composite ones.

A length n1 * n2 costs n * (n1 + n2) products in place of n * n (Cooley and Tukey, 1965):
X[k1 + n1 k2] = sum over j2 of W_n^(j2 k1) W_n2^(j2 k2) (sum over j1 of W_n1^(j1 k1) x[j1 n2 + j2]).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.symbolic import expression
from compiler.frontends.onnx.values import Constant, tensor_shape

# Up to these lengths one product with the whole matrix: a real tensor needs half the products of a complex one, and
# small factors of a complex one round least, their roots of unity being few.
_DIRECT_REAL_LENGTH = 256
_DIRECT_COMPLEX_LENGTH = 8


@dataclass(frozen=True)
class Complex:
    """A complex tensor as two real ones; `imaginary` is None for a real tensor."""

    real: relax.Expr
    imaginary: relax.Expr | None = None


def transform(context: NodeContext, data: Complex, length: int, *, inverse: bool = False) -> Complex:
    """The transform along the last axis, which has that length; the inverse is not scaled."""
    first = _divisor(length)
    direct = _DIRECT_REAL_LENGTH if data.imaginary is None else _DIRECT_COMPLEX_LENGTH
    if length <= direct or first == 1:
        return _multiply(context, data, _roots(length, inverse)[_products(length)])
    second = length // first
    data = _each(data, lambda tensor: _split(context, tensor, first, second))
    data = transform(context, _each(data, lambda tensor: _swap(context, tensor)), first, inverse=inverse)
    twiddles = _roots(length, inverse)[np.outer(np.arange(second), np.arange(first)) % length]
    data = _each(_scale(context, data, twiddles), lambda tensor: _swap(context, tensor))
    data = transform(context, data, second, inverse=inverse)
    return _each(data, lambda tensor: _join(context, _swap(context, tensor), length))


def _divisor(length: int) -> int:
    """The largest divisor that is at most the square root."""
    return next(d for d in range(math.isqrt(length), 0, -1) if length % d == 0)


def _roots(length: int, inverse: bool) -> np.ndarray:
    """exp(-2 pi i k / length), or its conjugate, for k below length; in float64."""
    sign = 2j if inverse else -2j
    return np.exp(sign * np.pi * np.arange(length) / length)


def _products(length: int) -> np.ndarray:
    return np.outer(np.arange(length), np.arange(length)) % length


def _constant(values: np.ndarray, dtype: str) -> relax.Expr:
    return Constant(np.ascontiguousarray(values, dtype=dtype), dtype).expr()


def _multiply(context: NodeContext, data: Complex, matrix: np.ndarray) -> Complex:
    dtype = str(data.real.ty.dtype)
    cosines, sines = _constant(matrix.real, dtype), _constant(matrix.imag, dtype)
    real = context.emit(R.matmul(data.real, cosines))
    imaginary = context.emit(R.matmul(data.real, sines))
    if data.imaginary is None:
        return Complex(real, imaginary)
    crossed = context.emit(R.matmul(data.imaginary, sines))
    straight = context.emit(R.matmul(data.imaginary, cosines))
    return Complex(context.emit(R.subtract(real, crossed)), context.emit(R.add(imaginary, straight)))


def _scale(context: NodeContext, data: Complex, factors: np.ndarray) -> Complex:
    """The elementwise product with complex constants; the data is complex."""
    assert data.imaginary is not None
    dtype = str(data.real.ty.dtype)
    cosines, sines = _constant(factors.real, dtype), _constant(factors.imag, dtype)
    real = R.subtract(context.emit(R.multiply(data.real, cosines)), context.emit(R.multiply(data.imaginary, sines)))
    imaginary = R.add(context.emit(R.multiply(data.real, sines)), context.emit(R.multiply(data.imaginary, cosines)))
    return Complex(context.emit(real), context.emit(imaginary))


def _each(data: Complex, function: Callable[[relax.Expr], relax.Expr]) -> Complex:
    return Complex(function(data.real), None if data.imaginary is None else function(data.imaginary))


def _split(context: NodeContext, tensor: relax.Expr, first: int, second: int) -> relax.Expr:
    leading = [expression(size) for size in tensor_shape(tensor)[:-1]]
    return context.emit(R.reshape(tensor, [*leading, first, second]))


def _join(context: NodeContext, tensor: relax.Expr, length: int) -> relax.Expr:
    leading = [expression(size) for size in tensor_shape(tensor)[:-2]]
    return context.emit(R.reshape(tensor, [*leading, length]))


def _swap(context: NodeContext, tensor: relax.Expr) -> relax.Expr:
    rank = len(tensor_shape(tensor))
    return context.emit(R.permute_dims(tensor, [*range(rank - 2), rank - 1, rank - 2]))
