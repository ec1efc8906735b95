"""Signal processing: DFT, STFT, MelWeightMatrix. onnx defines the window functions in terms of other operators.

The discrete Fourier transform as matmuls: direct for short lengths, factored for long composite ones.

A length n1 * n2 costs n * (n1 + n2) multiplications instead of n * n (Cooley and Tukey, 1965):
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import require, require_shape
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.precision import cast, widened
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import Constant, tensor_shape
from schedules.ir.tvm_types import Expr


@converter("DFT", since=17)
def dft_17(context: NodeContext) -> relax.Expr:
    """DFT with the axis as an attribute."""
    return _dft(context, context.axis(context.attribute("axis", 1), context.rank(0)))


@converter("DFT", since=20)
def dft(context: NodeContext) -> relax.Expr:
    """DFT with the axis as an operand, by default the last one before the complex pair."""
    return _dft(context, context.axis(context.scalar(2, -2), context.rank(0)))


def _dft(context: NodeContext, axis: int) -> relax.Expr:
    inverse, onesided = bool(context.attribute("inverse", 0)), bool(context.attribute("onesided", 0))
    rank = context.rank(0)
    if axis == rank - 1:
        context.invalid("the last axis holds the real and imaginary parts; it cannot be transformed")
    order = [*(k for k in range(rank - 1) if k != axis), axis]
    data = _complex(context, widened(context, context.input(0)), order)
    stored = tensor_shape(data.real)[-1]
    if inverse and onesided:
        stored = context.arithmetic.multiply(context.arithmetic.subtract(stored, 1), 2)
    length = context.shape_values(1)[0] if context.has_input(1) else stored
    if not isinstance(length, int) or not isinstance(stored, int):
        require(context, length, "at least", 1)
        result = _transform_of_any_length(context, data, length, inverse=inverse, onesided=onesided)
        return cast(context, _packed(context, result, order), context.dtype(0))
    if length < 1:
        context.invalid(f"the transform's length is {length}")
    if inverse and onesided:
        data = _whole_spectrum(context, _resized(context, data, length // 2 + 1), length)
    else:
        data = _resized(context, data, length)
    result = transform(context, data, length, inverse=inverse)
    if inverse:
        scale = context.literal(1.0 / length, str(result.real.ty.dtype))
        result = _each_part(result, lambda part: context.emit(R.multiply(part, scale)))
    if onesided and inverse:
        result = Complex(result.real)
    elif onesided:
        result = _each_part(result, lambda part: _sliced(context, part, 0, length // 2 + 1))
    return cast(context, _packed(context, result, order), context.dtype(0))


def _complex(context: NodeContext, data: relax.Expr, order: list[int]) -> Complex:
    """Return the parts of a tensor whose last axis holds one or two of them, with the transformed axis moved last."""
    parts = tensor_shape(data)[-1]
    if parts not in (1, 2):
        context.invalid(f"the last axis must hold 1 or 2 numbers, not {parts}")
    axis = len(order)

    def part(index: int) -> relax.Expr:
        plane = context.emit(R.squeeze(context.emit(R.strided_slice(data, [axis], [index], [index + 1])), [axis]))
        return context.emit(R.permute_dims(plane, order)) if order != sorted(order) else plane

    return Complex(part(0), part(1) if parts == 2 else None)


def _each_part(data: Complex, function: Callable[[Expr], Expr]) -> Complex:
    return Complex(function(data.real), None if data.imaginary is None else function(data.imaginary))


def _sliced(context: NodeContext, tensor: relax.Expr, begin: int, end: int) -> relax.Expr:
    return context.emit(R.strided_slice(tensor, [len(tensor_shape(tensor)) - 1], [begin], [end]))


def _resized(context: NodeContext, data: Complex, length: int) -> Complex:
    """Crop or zero-pad to a length."""
    current = tensor_shape(data.real)[-1]
    if current > length:
        return _each_part(data, lambda part: _sliced(context, part, 0, length))
    if current < length:
        return _each_part(data, lambda part: _padded(context, part, length - current))
    return data


def _padded(context: NodeContext, tensor: relax.Expr, count: int) -> relax.Expr:
    widths = [0, 0] * (len(tensor_shape(tensor)) - 1) + [0, count]
    return context.emit(R.nn.pad(tensor, widths))


def _whole_spectrum(context: NodeContext, half: Complex, length: int) -> Complex:
    """Return the spectrum of a real signal from its first half: the rest is its conjugated mirror image."""
    mirrored = length - (length // 2 + 1)
    if half.imaginary is None:
        half = Complex(half.real, context.emit(R.zeros_like(half.real)))
    if mirrored == 0:
        return half

    def extended(part: relax.Expr, sign: int) -> relax.Expr:
        axis = len(tensor_shape(part)) - 1
        tail = context.emit(R.flip(_sliced(context, part, 1, 1 + mirrored), axis))
        return context.emit(R.concat([part, tail if sign > 0 else context.emit(R.negative(tail))], axis))

    assert half.imaginary is not None
    return Complex(extended(half.real, 1), extended(half.imaginary, -1))


def _packed(context: NodeContext, data: Complex, order: list[int]) -> relax.Expr:
    """Return the parts on a last axis, with the transformed axis moved back."""
    inverse = [int(k) for k in np.argsort(order)]

    def placed(part: relax.Expr) -> relax.Expr:
        return context.emit(R.permute_dims(part, inverse)) if order != sorted(order) else part

    if data.imaginary is None:
        return context.emit(R.expand_dims(placed(data.real), len(order)))
    return context.emit(R.stack([placed(data.real), placed(data.imaginary)], axis=len(order)))


@converter("STFT", since=17)
def stft(context: NodeContext) -> relax.Expr:
    """Transform sliding windows of a signal of shape (batch, samples, 1 or 2), or (batch, samples)."""
    step = context.scalar(1)
    window_length = context.shape(2)[0] if context.has_input(2) else None
    length = context.scalar(3, window_length)
    if not isinstance(length, int):
        context.refuse("the frame's length is not known when compiling; give frame_length or a window of fixed size")
    if step < 1 or length < 1:
        context.invalid(f"frame step {step} and length {length} must be positive")
    signal = widened(context, context.input(0))
    # ONNX Runtime accepts a real signal without its last axis, so exporters omit it.
    data = Complex(signal) if context.rank(0) == 2 else _complex(context, signal, [0, 1])
    if context.has_input(2):
        require_shape(context, context.shape(2), [length], "the window")
    window = widened(context, context.input(2)) if context.has_input(2) else None
    framed = _each_part(data, lambda part: _frames(context, part, window, step, length))
    result = transform(context, framed, length)
    # A complex signal's spectrum is not symmetric, so only a real signal's can be halved.
    if context.attribute("onesided", 1) and data.imaginary is None:
        result = _each_part(result, lambda part: _sliced(context, part, 0, length // 2 + 1))
    return cast(context, _packed(context, result, [0, 1, 2]), context.dtype(0))


def _frames(context: NodeContext, signal: relax.Expr, window: relax.Expr | None, step: int, length: int) -> relax.Expr:
    """Return windows of shape (batch, frames, length) of a signal, times the window function."""
    samples = tensor_shape(signal)[1]
    if isinstance(samples, int) and samples < length:
        context.invalid(f"the signal of {samples} samples is shorter than one frame of {length}")
    arithmetic = context.arithmetic
    count = arithmetic.add(arithmetic.floor_divide(arithmetic.subtract(samples, length), step), 1)

    def compute(source: te.Tensor, *weights: te.Tensor) -> te.Tensor:
        def element(b: Expr, frame: Expr, position: Expr) -> Expr:
            value = source(b, frame * step + position)
            return value * weights[0](position) if weights else value

        return te.compute((source.shape[0], expression(count), length), element, name="frames")

    arguments = [signal] if window is None else [signal, window]
    return context.emit_te(compute, *arguments, primfunc_name_hint="frames")


@converter("MelWeightMatrix", since=17)
def mel_weight_matrix(context: NodeContext) -> Constant:
    """Return onnx's weights from linear frequencies to the mel scale; all operands are numbers."""
    bins, length, rate = (int(context.scalar(k)) for k in range(3))
    low, high = (float(context.scalar(k)) for k in (3, 4))
    spectrum = length // 2 + 1
    low_mel, high_mel = (2595 * np.log10(1 + hertz / 700) for hertz in (low, high))
    points = np.arange(bins + 2) * ((high_mel - low_mel) / (bins + 2)) + low_mel
    edges = np.floor((length + 1) * (700 * (np.power(10, points / 2595) - 1)) / rate).astype(int)
    weights = np.zeros((spectrum, bins))
    for index in range(bins):
        lower, center, upper = edges[index : index + 3]
        if center == lower:
            weights[center, index] = 1
        else:
            weights[lower : center + 1, index] = (np.arange(lower, center + 1) - lower) / (center - lower)
        if upper > center:
            weights[center:upper, index] = (upper - np.arange(center, upper)) / (upper - center)
    dtype = dtypes.NAMES[context.attribute("output_datatype", 1)]
    return Constant(weights.astype(dtypes.numpy_dtype(dtype)), dtype)


# Up to these lengths, one matmul with the whole matrix: a real tensor needs half the multiplications of a complex one,
# and small complex factors, with few roots of unity, have the smallest rounding error.
_DIRECT_REAL_LENGTH = 256
_DIRECT_COMPLEX_LENGTH = 8


@dataclass(frozen=True)
class Complex:
    """A complex tensor as two real ones; `imaginary` is None for a real tensor."""

    real: relax.Expr
    imaginary: relax.Expr | None = None


def transform(context: NodeContext, data: Complex, length: int, *, inverse: bool = False) -> Complex:
    """Transform along the last axis, which has that length; the inverse is not scaled."""
    first = next(d for d in range(math.isqrt(length), 0, -1) if length % d == 0)
    direct = _DIRECT_REAL_LENGTH if data.imaginary is None else _DIRECT_COMPLEX_LENGTH
    if length <= direct or first == 1:
        return _multiply(context, data, _roots(length, inverse)[_products(length)])
    second = length // first
    data = _each_part(data, lambda tensor: context.reshape(tensor, [*tensor_shape(tensor)[:-1], first, second]))
    data = transform(context, _each_part(data, lambda tensor: _swap(context, tensor)), first, inverse=inverse)
    twiddles = _roots(length, inverse)[np.outer(np.arange(second), np.arange(first)) % length]
    data = _each_part(_scale(context, data, twiddles), lambda tensor: _swap(context, tensor))
    data = transform(context, data, second, inverse=inverse)
    return _each_part(data, lambda tensor: _join(context, _swap(context, tensor), length))


def _transform_of_any_length(
    context: NodeContext, data: Complex, length: Dim, *, inverse: bool = False, onesided: bool = False
) -> Complex:
    """Transform along the last axis, whose length is dynamic, with the whole matrix, computed at run time.

    Data shorter than `length` are zero-padded, longer data are cropped. The inverse is scaled; with `onesided` it takes
    the first half of the spectrum of a real signal, and the forward transform returns it.
    """
    arithmetic = context.arithmetic
    dtype = str(data.real.ty.dtype)
    half = arithmetic.add(arithmetic.floor_divide(length, 2), 1)
    sizes = (tensor_shape(data.real)[-1], half if onesided and not inverse else length, length)

    def matrix(part: Callable[[Expr], Expr], sign: int) -> relax.Expr:
        def compute(rows: Expr, columns: Expr, count: Expr) -> te.Tensor:
            def element(row: Expr, column: Expr) -> Expr:
                phase = row * column % count
                phase = tirx.Select(phase * 2 > count, phase - count, phase)
                angle = tirx.Cast(dtype, phase) / tirx.Cast(dtype, count) * tirx.const(2 * math.pi, dtype)
                value = part(angle) * tirx.const(float(sign), dtype)
                value = value / tirx.Cast(dtype, count) if inverse else value
                if inverse and onesided:  # the other half is the mirror image
                    twice = tirx.all(row > 0, row * 2 != count)
                    value = tirx.Select(twice, value * tirx.const(2.0, dtype), value)
                used = row * 2 <= count if inverse and onesided else row < count
                return tirx.Select(used, value, tirx.const(0.0, dtype))

            return te.compute((rows, columns), element, name="roots")

        return context.emit_te(compute, *map(expression, sizes), primfunc_name_hint="roots")

    cosines, sines = matrix(tirx.cos, 1), matrix(tirx.sin, 1 if inverse else -1)
    real = context.emit(R.matmul(data.real, cosines))
    if inverse and onesided:
        if data.imaginary is None:
            return Complex(real)
        return Complex(context.emit(R.subtract(real, context.emit(R.matmul(data.imaginary, sines)))))
    return _with_imaginary(context, data, real, cosines, sines)


def _roots(length: int, inverse: bool) -> np.ndarray:
    """Return exp(-2 pi i k / length), or its conjugate, for k below length, in float64."""
    sign = 2j if inverse else -2j
    return np.exp(sign * np.pi * np.arange(length) / length)


def _products(length: int) -> np.ndarray:
    return np.outer(np.arange(length), np.arange(length)) % length


def _constant(values: np.ndarray, dtype: str) -> relax.Expr:
    return Constant(np.ascontiguousarray(values, dtype=dtype), dtype).expr()


def _multiply(context: NodeContext, data: Complex, matrix: np.ndarray) -> Complex:
    dtype = str(data.real.ty.dtype)
    cosines, sines = _constant(matrix.real, dtype), _constant(matrix.imag, dtype)
    return _with_imaginary(context, data, context.emit(R.matmul(data.real, cosines)), cosines, sines)


def _with_imaginary(
    context: NodeContext, data: Complex, real: relax.Expr, cosines: relax.Expr, sines: relax.Expr
) -> Complex:
    """Return the remaining parts of a matmul with a complex matrix; `real` is the matmul of the real parts."""
    imaginary = context.emit(R.matmul(data.real, sines))
    if data.imaginary is None:
        return Complex(real, imaginary)
    crossed = context.emit(R.matmul(data.imaginary, sines))
    straight = context.emit(R.matmul(data.imaginary, cosines))
    return Complex(context.emit(R.subtract(real, crossed)), context.emit(R.add(imaginary, straight)))


def _scale(context: NodeContext, data: Complex, factors: np.ndarray) -> Complex:
    """Multiply elementwise by complex constants; the data are complex."""
    assert data.imaginary is not None
    dtype = str(data.real.ty.dtype)
    cosines, sines = _constant(factors.real, dtype), _constant(factors.imag, dtype)
    real = R.subtract(context.emit(R.multiply(data.real, cosines)), context.emit(R.multiply(data.imaginary, sines)))
    imaginary = R.add(context.emit(R.multiply(data.real, sines)), context.emit(R.multiply(data.imaginary, cosines)))
    return Complex(context.emit(real), context.emit(imaginary))


def _join(context: NodeContext, tensor: relax.Expr, length: int) -> relax.Expr:
    return context.reshape(tensor, [*tensor_shape(tensor)[:-2], length])


def _swap(context: NodeContext, tensor: relax.Expr) -> relax.Expr:
    rank = len(tensor_shape(tensor))
    return context.emit(R.permute_dims(tensor, [*range(rank - 2), rank - 1, rank - 2]))
