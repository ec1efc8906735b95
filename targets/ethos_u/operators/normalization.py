"""Softmax, and layer and root-mean-square normalization of the last axes, in 32-bit integers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from schedules.ir.tvm_types import Call
from targets.ethos_u.fixed_point import LARGEST, FixedPoint
from targets.ethos_u.kernels import Kernel
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Array, Emitter, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.tosa import Tensor
from targets.ethos_u.view import View

# Layer and root-mean-square normalization of the last axes, in 32-bit integers.
#
# The deviation from the mean has 5 fractional bits, the mean of its squares 14 (up to 30 bits in total), the reciprocal
# root of that 14, and the normalized value 12, before it is multiplied, shifted and rounded to the result's scale.

_MAX_SIZE = 65536
_FRACTION = 5  # fractional bits of a deviation in steps of the operand
_SQUARES = 4  # fractional bits of the mean of squares, in addition to twice those
# Fractional bits of the normalized value, from those of the mean of squares and of its reciprocal root.
_POINT = 14 + _FRACTION - (2 * _FRACTION + _SQUARES) // 2
_MEAN_BITS = 2 * _FRACTION + _SQUARES
_LARGEST_EPSILON = 1 << 29


@operator("relax.nn.layer_norm")
def layer_normalization(view: View, call: Call, result: Result) -> Step:
    """layer_norm(dequantize(x), gamma, beta) of the last axes."""
    return _normalization(view, call, result, centered=True)


@operator("relax.nn.rms_norm")
def root_mean_square(view: View, call: Call, result: Result) -> Step:
    """rms_norm(dequantize(x), weight) of the last axes."""
    return _normalization(view, call, result, centered=False)


@operator("kernel.group_norm")
def group_normalization(view: View, call: Call, result: Result) -> Step:
    """A kernel that normalizes each channel of dequantize(x), with a scale and a bias for it."""
    data = view.quantized(call.args[1].fields[0])
    kernel = Kernel(view, call)
    size = math.prod(data.shape[2:])
    if len(kernel.constants) != 2 or data.shape[0] != 1 or not 1 < size <= _MAX_SIZE:
        raise Unsupported(f"it normalizes {size} elements of {data.shape[0]} samples")
    gamma, beta = (each.astype(np.float64).reshape(-1) for each in kernel.constants)
    if gamma.size != data.shape[1]:
        raise Unsupported("it normalizes several channels at once")
    epsilon = _integer_epsilon(_epsilon_of(kernel, data), data)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        rows, put_back = emitter.rows(inputs[0], range(2, len(data.shape)))
        deviation = _deviations(emitter, rows, data, size, centered=True)
        normal = _normalized(emitter, deviation, size, epsilon)
        positions = (1, -1, 1, 1)
        return put_back(_scaled(emitter, normal, gamma.reshape(positions), beta.reshape(positions), result))

    return Step("group normalization", "x".join(map(str, data.shape)), (data,), result.output, 0, emit)


def _epsilon_of(kernel: Kernel, data: Quantized) -> float:
    """Epsilon that the kernel adds to the variance, from the result for two small numbers, which it shrinks. Raises
    Unsupported if it does not normalize the channels one by one."""
    channels, size = data.shape[1], math.prod(data.shape[2:])
    plain = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    small = np.zeros((channels, size))
    small[:, 0], small[:, 1] = 1e-3, -1e-3
    epsilon = (1e-3 / float(kernel(small.reshape(data.shape), plain).ravel()[0])) ** 2 - small[0].var()
    numbers = np.random.default_rng(0).normal(size=(channels, size)) + np.arange(channels)[:, None]
    wanted = (numbers - numbers.mean(1, keepdims=True)) / np.sqrt(numbers.var(1, keepdims=True) + epsilon)
    if not np.allclose(kernel(numbers.reshape(data.shape), plain).reshape(channels, size), wanted, atol=1e-3):
        raise Unsupported("it normalizes several channels at once")
    return epsilon


def _integer_epsilon(epsilon: float, data: Quantized) -> int:
    """Epsilon in steps of the mean of squares."""
    steps = max(1, round(epsilon / data.scale**2 * 2.0**_MEAN_BITS))
    if steps > _LARGEST_EPSILON:
        raise Unsupported("its epsilon is far above a step of its operand")
    return steps


def _normalization(view: View, call: Call, result: Result, *, centered: bool) -> Step:
    data = view.quantized(call.args[0])
    rank = len(data.shape)
    axes = sorted(int(axis) % rank for axis in call.attrs.axes)
    if axes != list(range(axes[0], rank)):
        raise Unsupported(f"it normalizes the axes {axes} of {rank}, and not the last ones")
    size = math.prod(data.shape[axes[0] :])
    if size > _MAX_SIZE:
        raise Unsupported(f"it normalizes {size} elements, and 32 bits hold sums of {_MAX_SIZE}")
    factors = [_numbers(view, argument, size) for argument in call.args[1:]]
    gamma, beta = (each.reshape(1, 1, 1, -1) for each in (factors[0], factors[1] if centered else np.zeros(size)))
    epsilon = _integer_epsilon(float(call.attrs.epsilon), data)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        rows, put_back = emitter.rows(inputs[0], axes)
        deviation = _deviations(emitter, rows, data, size, centered=centered)
        normal = _normalized(emitter, deviation, size, epsilon)
        return put_back(_scaled(emitter, normal, gamma, beta, result))

    name = "layer normalization" if centered else "normalization by root mean square"
    return Step(name, "x".join(map(str, data.shape)), (data,), result.output, 0, emit)


def _numbers(view: View, argument: object, size: int) -> Array:
    numbers = view.number(argument)
    if numbers is None or numbers.size != size:
        raise Unsupported("its scale and bias are not constants of the normalized size")
    return numbers.reshape(-1)


def _deviations(emitter: Emitter, rows: Tensor, data: Quantized, size: int, *, centered: bool) -> Tensor:
    """x, minus its mean if `centered`, in steps of the operand with a fraction."""
    graph, fixed = emitter.graph, FixedPoint(emitter.graph)
    x = graph.rescale(rows, [1.0], "int32", zero=data.zero)
    if not centered:
        return graph.rescale(x, [2.0**_FRACTION], "int32")
    count = graph.constant(np.full((1, 1, 1, 1), size, np.int32))
    deviation = fixed.subtract(fixed.multiply(x, count), fixed.sums(x))
    return graph.rescale(deviation, [2.0**_FRACTION / size], "int32")


def _normalized(emitter: Emitter, deviation: Tensor, size: int, epsilon: int) -> Tensor:
    """deviation / sqrt(mean of squares + epsilon), with 12 fractional bits."""
    graph, fixed = emitter.graph, FixedPoint(emitter.graph)
    squares = graph.rescale(fixed.multiply(deviation, deviation), [2.0**_SQUARES / size], "int32")
    root, half = fixed.reciprocal_root(fixed.add(fixed.sums(squares), epsilon))
    return fixed.shift_right(fixed.multiply(deviation, root), fixed.minus_from(15, half))


def _scaled(emitter: Emitter, normal: Tensor, gamma: Array, beta: Array, result: Result) -> Tensor:
    """The result: normal * gamma + beta; normalized values are at most the root of their number."""
    graph, fixed = emitter.graph, FixedPoint(emitter.graph)
    reach = math.sqrt(normal.shape[-1]) * np.abs(gamma).max() + np.abs(beta).max()
    gain = (2**31 - 1) / 2.0**_POINT / (float(reach) or 1.0) / 2
    factors, shifts = (
        graph.constant(np.rint(numbers * scale).astype(np.int32))
        for numbers, scale in ((gamma, gain), (beta, gain * 2.0**_POINT))
    )
    sums = fixed.add(fixed.multiply(normal, factors), shifts)
    return emitter.finished(sums, [2.0**-_POINT / gain / result.output.scale], result)


# Softmax and its logarithm along one axis: exponentials of the distance to the maximum from tables, and their sum.
#
# All intermediate values are 32-bit integers, rounded to 15 bits or more, and once more to the result's scale. The
# logarithm of the sum comes from a table indexed by its leading 8 bits, accurate to 0.002.

_SOFTMAX_POINT = 20  # binary places of logarithms
_MIN_STEP = 2.0**-7  # smallest step of a result for which an error of 2**-9 in the logarithm is small
_LARGEST_STEP = 8.0  # of an operand: 255 of them fit 31 bits including the binary places


@operator("relax.nn.softmax")
def softmax(view: View, call: Call, result: Result) -> Step:
    """softmax(dequantize(x))."""
    data, axis = _described(view, call)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        rows, put_back = emitter.rows(inputs[0], [axis])
        fixed = FixedPoint(emitter.graph)
        _, powers = _powers(emitter, fixed, rows, data)
        inverse, shift = fixed.reciprocal(fixed.sums(powers))
        # powers * inverse * 2**(shift - 45), and shift is 16 at most.
        share = fixed.shift_right(fixed.multiply(powers, inverse), fixed.minus_from(16, shift))
        return put_back(emitter.finished(share, [2.0**-29 / result.output.scale], result))

    return Step("softmax", data.sizes, (data,), result.output, 0, emit)


@operator("relax.nn.log_softmax")
def log_softmax(view: View, call: Call, result: Result) -> Step:
    """log(softmax(dequantize(x))): the distance to the maximum, minus the logarithm of the sum."""
    data, axis = _described(view, call)
    if result.output.scale < _MIN_STEP:
        raise Unsupported(f"its result has steps of {result.output.scale:.3g}, and a logarithm is exact to 2**-9")
    if data.scale > _LARGEST_STEP:
        raise Unsupported(f"its operand has steps of {data.scale:.3g}, and 32 bits hold those of {_LARGEST_STEP:g}")

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        rows, put_back = emitter.rows(inputs[0], [axis])
        fixed = FixedPoint(emitter.graph)
        distance, powers = _powers(emitter, fixed, rows, data)
        logarithm = fixed.logarithm(fixed.sums(powers), _SOFTMAX_POINT)
        # The exponentials are scaled by LARGEST.
        logarithm = fixed.subtract(logarithm, round(math.log(LARGEST) * 2.0**_SOFTMAX_POINT))
        found = fixed.subtract(fixed.times(distance, round(data.scale * 2.0**_SOFTMAX_POINT)), logarithm)
        return put_back(emitter.finished(found, [2.0**-_SOFTMAX_POINT / result.output.scale], result))

    return Step("log_softmax", data.sizes, (data,), result.output, 0, emit)


def _described(view: View, call: Call) -> tuple[Quantized, int]:
    """The operand and the axis."""
    data = view.quantized(call.args[0])
    axis = int(call.attrs.axis) % len(data.shape)
    if data.shape[axis] > _MAX_SIZE:
        raise Unsupported(f"it divides by sums of {data.shape[axis]}, and 32 bits hold those of {_MAX_SIZE}")
    return data, axis


def _powers(emitter: Emitter, fixed: FixedPoint, rows: Tensor, data: Quantized) -> tuple[Tensor, Tensor]:
    """The distances to the maximum of each row, in steps, and LARGEST times their exponentials."""
    graph = emitter.graph
    wide = [graph.rescale(each, [1.0], "int32") for each in (rows, graph.reduce("REDUCE_MAX", rows))]
    distance = fixed.subtract(*wide)
    exponentials = np.rint(LARGEST * np.exp((np.arange(256) - 255) * data.scale))
    return distance, fixed.looked_up(graph.rescale(distance, [1.0], "int8", output_zero=127), exponentials)
