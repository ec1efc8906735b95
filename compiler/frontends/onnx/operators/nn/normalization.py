"""LayerNormalization, RMSNormalization, InstanceNormalization, GroupNormalization and related operators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import require_multiple, require_shape, with_size
from compiler.frontends.onnx.broadcasting import broadcast
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.nn.spatial import spatial_rank
from compiler.frontends.onnx.operators.precision import cast, compute_dtype, widened
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim
from compiler.frontends.onnx.values import tensor_shape
from schedules.ir.tvm_types import Expr, IterVar, Tensor

# Normalizations over channels as tensor expressions.


def group_normalization_kernel(groups: int | None, epsilon: float, *, per_group: bool) -> Callable[..., Tensor]:
    """Normalize each group of channels of each sample; None makes every channel a group.

    The variance is the mean of squared differences from the mean: TVM's own operator subtracts the square of the mean
    from the mean of squares, which loses all digits if the mean is large. Scale and bias have the type of the
    computation, one per channel, or one per group.
    """

    def compute(data: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        wide = compute_dtype(data.dtype)
        samples, channels, *spatial = data.shape
        count = channels if groups is None else tirx.const(groups, "int64")
        depth = tirx.floordiv(channels, count)
        extents = [depth, *spatial]
        elements: Expr = tirx.const(1, wide)
        for extent in extents:
            elements = elements * extent.astype(wide)

        def load(sample: Expr, group: Expr, inner: list[IterVar]) -> Expr:
            return data(sample, group * depth + inner[0], *inner[1:]).astype(wide)

        def reduction() -> list[Expr]:
            return [te.reduce_axis((0, extent), name=f"r{axis}") for axis, extent in enumerate(extents)]

        inner = reduction()
        total = te.compute((samples, count), lambda n, g: te.sum(load(n, g, inner), axis=inner), name="sum")
        mean = te.compute((samples, count), lambda n, g: total(n, g) / elements, name="mean")
        outer = reduction()

        def squared(sample: Expr, group: Expr) -> Expr:
            difference = load(sample, group, outer) - mean(sample, group)
            return te.sum(difference * difference, axis=outer)

        squares = te.compute((samples, count), squared, name="squares")
        inverse = te.compute(
            (samples, count),
            lambda n, g: tirx.const(1, wide) / tirx.sqrt(squares(n, g) / elements + tirx.const(epsilon, wide)),
            name="inverse",
        )

        def element(sample: Expr, channel: Expr, *rest: Expr) -> Expr:
            group = tirx.floordiv(channel, depth)
            index = group if per_group else channel
            value = (data(sample, channel, *rest).astype(wide) - mean(sample, group)) * inverse(sample, group)
            return (value * scale(index) + bias(index)).astype(data.dtype)

        return te.compute(data.shape, element, name="group_norm")

    return compute


def local_response_kernel(size: int, alpha: float, beta: float, bias: float) -> Callable[..., Tensor]:
    """x / (bias + alpha / size * s) ** beta, s the sum of squares over channels c - (size-1)/2 .. c + size/2."""
    below = (size - 1) // 2

    def compute(data: Tensor) -> Tensor:
        wide = compute_dtype(data.dtype)
        tap = te.reduce_axis((0, size), name="tap")

        def squares(sample: Expr, channel: Expr, *rest: Expr) -> Expr:
            neighbour = channel + tap - below
            inside = tirx.all(neighbour >= 0, neighbour < data.shape[1])
            value = tirx.if_then_else(inside, data(sample, neighbour, *rest), tirx.const(0, data.dtype)).astype(wide)
            return te.sum(value * value, axis=tap)

        total = te.compute(data.shape, squares, name="squares")

        def element(*indices: Expr) -> Expr:
            base = tirx.const(bias, wide) + tirx.const(alpha / size, wide) * total(*indices)
            return (data(*indices).astype(wide) / _power(base, beta)).astype(data.dtype)

        return te.compute(data.shape, element, name="lrn")

    return compute


def _power(base: Expr, exponent: float) -> Expr:
    """base ** exponent; by vectorizable square roots if the exponent is a quarter, a half, ... up to 1."""
    quarters = exponent * 4
    if quarters not in (1, 2, 3, 4):
        return tirx.pow(base, tirx.const(exponent, base.ty.dtype))
    if quarters == 4:
        return base
    half = tirx.sqrt(base)
    if quarters == 2:
        return half
    return tirx.sqrt(half) if quarters == 1 else half * tirx.sqrt(half)


_MAX_FILL = 2**20


def _of_elements(convert: Callable[[NodeContext], Any]) -> Callable[[NodeContext], Any]:
    """Wrap a normalization's converter to return empty tensors unchanged: means divide by the size."""

    @functools.wraps(convert)
    def converted(context: NodeContext) -> Any:
        if 0 in [size for size in context.shape(0) if isinstance(size, int)] and not context.output_used(1):
            return context.value(0)
        return convert(context)

    return converted


@converter("LayerNormalization", since=17)
@_of_elements
def layer_normalization(context: NodeContext) -> list[relax.Expr | None]:
    """Zero mean and unit variance over the axes from `axis` on, then scale and bias; also the statistics if
    requested."""
    axes = _trailing_axes(context)
    data = widened(context, _with_parameter_sizes(context, axes, (1, 2)))
    dtype = context.dtype(0)
    statistics: list[relax.Expr | None] = []
    if context.output_used(1) or context.output_used(2):
        _, mean, inverse = _standardized(context, data, axes, _epsilon(context))
        stash = _stash_dtype(context)
        statistics = [cast(context, mean, stash), cast(context, inverse, stash)]
    shape = tensor_shape(data)[axes[0] :]
    # The operator requires scale and bias of exactly the normalized shape.
    scale, bias = _exact_parameter(context, 1, shape, 1.0), _exact_parameter(context, 2, shape, 0.0)
    if scale is not None and bias is not None and dtype != "float64":
        result = context.emit(R.nn.layer_norm(data, scale, bias, axes, epsilon=_epsilon(context)))
    else:
        result = _standardized(context, data, axes, _epsilon(context))[0]
        result = _affine(context, result, 1, 2)
    return [cast(context, result, dtype), *statistics]


@converter("RMSNormalization", since=23)
@_of_elements
def rms_normalization(context: NodeContext) -> relax.Expr:
    """Unit root mean square over the axes from `axis` on, then a scale."""
    axes = _trailing_axes(context)
    data = widened(context, _with_parameter_sizes(context, axes, (1,)))
    dtype = str(data.ty.dtype)
    scale = _exact_parameter(context, 1, tensor_shape(data)[axes[0] :], 1.0)
    # The operator cannot normalize over all axes.
    if scale is not None and axes[0] > 0:
        result = context.emit(R.nn.rms_norm(data, scale, axes, epsilon=_epsilon(context)))
    else:
        mean = context.emit(R.mean(R.multiply(data, data), axis=axes, keepdims=True))
        inverse = context.emit(R.rsqrt(R.add(mean, context.literal(_epsilon(context), dtype))))
        result = _affine(context, context.emit(R.multiply(data, inverse)), 1, None)
    return cast(context, result, context.dtype(1))


@converter("InstanceNormalization")
@_of_elements
def instance_normalization(context: NodeContext) -> relax.Expr:
    """Zero mean and unit variance of each channel of each sample, then a scale and a bias per channel."""
    return _group_normalization(context, None)


@converter("GroupNormalization", since=18)
@_of_elements
def group_normalization_18(context: NodeContext) -> relax.Expr:
    """GroupNormalization 18: like version 21, but with a scale and a bias per group."""
    return _group_normalization(context, int(context.required_attribute("num_groups")), per_group=True)


@converter("GroupNormalization", since=21)
@_of_elements
def group_normalization(context: NodeContext) -> relax.Expr:
    """Zero mean and unit variance of each group of channels of each sample, then a scale and a bias per channel."""
    return _group_normalization(context, int(context.required_attribute("num_groups")))


def _group_normalization(context: NodeContext, groups: int | None, *, per_group: bool = False) -> relax.Expr:
    spatial_rank(context, minimum=0)
    channels = context.shape(0)[1]
    if groups is not None and (groups < 1 or (isinstance(channels, int) and channels % groups)):
        context.invalid(f"{channels} channels do not divide into {groups} groups")
    if groups is not None:
        require_multiple(context, channels, groups)
    for index in (1, 2):
        expected = groups if per_group and groups is not None else channels
        require_shape(context, context.shape(index), [expected], f"its input {index}")
    parameters = [widened(context, context.input(index)) for index in (1, 2)]
    kernel = group_normalization_kernel(groups, _epsilon(context), per_group=per_group)
    return context.emit_te(kernel, context.input(0), *parameters, primfunc_name_hint="group_norm")


def _with_parameter_sizes(context: NodeContext, axes: Sequence[int], parameters: Sequence[int]) -> relax.Expr:
    """Return the data with the sizes of scale and bias, which must broadcast to it."""
    data = context.input(0)
    for index in parameters:
        shape = context.shape(index) if context.has_input(index) else ()
        if len(shape) > len(axes):
            context.invalid(f"its input {index} has rank {len(shape)} for {len(axes)} normalized axes")
        for axis, size in zip(axes[len(axes) - len(shape) :], shape, strict=True):
            if not (isinstance(size, int) and size == 1):
                data = with_size(context, data, axis, size)
    return data


def _epsilon(context: NodeContext) -> float:
    return float(context.attribute("epsilon", 1e-5))


def _trailing_axes(context: NodeContext) -> list[int]:
    rank = context.rank(0)
    return list(range(context.axis(context.attribute("axis", -1), rank), rank))


def _stash_dtype(context: NodeContext) -> str:
    number = context.attribute("stash_type", 1)
    name = dtypes.dtype_name(number)
    if name is None or not dtypes.is_float(name):
        context.invalid(f"stash_type {number} is not a floating-point type")
    return name


def _exact_parameter(context: NodeContext, index: int, shape: Sequence[Dim], default: float) -> relax.Expr | None:
    """Return input `index` if it has exactly that shape, a constant if missing, None if it must be broadcast."""
    arithmetic = context.arithmetic
    if not context.has_input(index):
        static = [size for size in shape if isinstance(size, int)]
        if len(static) != len(shape) or np.prod(static) > _MAX_FILL:
            return None
        return context.literal(default, compute_dtype(context.dtype(0)), tuple(static))
    stored_shape = context.shape(index)
    tensor = widened(context, context.input(index))
    same = len(stored_shape) == len(shape) and all(
        arithmetic.equal_is_proved(a, b) for a, b in zip(stored_shape, shape, strict=True)
    )
    return cast(context, tensor, compute_dtype(context.dtype(0))) if same else None


def _standardized(
    context: NodeContext, data: relax.Expr, axes: Sequence[int], epsilon: float
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """Normalize to zero mean and unit variance over axes; also return mean and inverse standard deviation, axes
    kept."""
    mean = context.emit(R.mean(data, axis=list(axes), keepdims=True))
    centered = context.emit(R.subtract(data, mean))
    variance = context.emit(R.mean(R.multiply(centered, centered), axis=list(axes), keepdims=True))
    inverse = context.emit(R.rsqrt(R.add(variance, context.literal(epsilon, str(data.ty.dtype)))))
    return context.emit(R.multiply(centered, inverse)), mean, inverse


def _affine(context: NodeContext, result: relax.Expr, scale: int, bias: int | None) -> relax.Expr:
    """Multiply the result by input `scale` and add input `bias`, both broadcast to it."""
    dtype = str(result.ty.dtype)
    for index, operation in ((scale, R.multiply), (bias, R.add)):
        if index is not None and context.has_input(index):
            result, factor = broadcast(context, [result, cast(context, context.input(index), dtype)])
            result = context.emit(operation(result, factor))
    return result


@converter("MeanVarianceNormalization", since=9)
@_of_elements
def mean_variance_normalization(context: NodeContext) -> relax.Expr:
    """(x - mean) / (standard deviation + 1e-9) over axes."""
    axes = context.axes(context.attribute("axes", [0, 2, 3]), context.rank(0))
    data = widened(context, context.input(0))
    mean = context.emit(R.mean(data, axis=axes, keepdims=True))
    centered = context.emit(R.subtract(data, mean))
    variance = context.emit(R.mean(R.multiply(centered, centered), axis=axes, keepdims=True))
    deviation = context.emit(R.add(R.sqrt(variance), context.literal(1e-9, str(data.ty.dtype))))
    return cast(context, context.emit(R.divide(centered, deviation)), context.dtype(0))


@converter("LpNormalization")
@_of_elements
def lp_normalization(context: NodeContext) -> relax.Expr:
    """Divide by the 1- or 2-norm along an axis; zeros stay zero."""
    order = context.attribute("p", 2)
    if order not in (1, 2):
        context.invalid(f"p must be 1 or 2, not {order}")
    axis = context.axis(context.attribute("axis", -1), context.rank(0))
    data = widened(context, context.input(0))
    dtype = str(data.ty.dtype)
    sizes = context.emit(R.abs(data) if order == 1 else R.multiply(data, data))
    norm = context.emit(R.sum(sizes, axis=[axis], keepdims=True))
    if order == 2:
        norm = context.emit(R.sqrt(norm))
    zero, one = context.literal(0.0, dtype), context.literal(1.0, dtype)
    divisor = context.emit(R.where(R.equal(norm, zero), one, norm))
    return cast(context, context.emit(R.divide(data, divisor)), context.dtype(0))


@converter("LRN")
def local_response_normalization(context: NodeContext) -> relax.Expr:
    """x / (bias + alpha / size * sum of squares over `size` neighboring channels) ** beta."""
    spatial_rank(context, minimum=0)
    size = int(context.required_attribute("size"))
    if size < 1:
        context.invalid(f"size must be at least 1, not {size}")
    alpha, beta, bias = (
        float(context.attribute(name, default)) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    kernel = local_response_kernel(size, alpha, beta, bias)
    return context.emit_te(kernel, context.input(0), primfunc_name_hint="lrn")


@converter("BatchNormalization")
def batch_normalization(context: NodeContext) -> relax.Expr | list[relax.Expr | None]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, with given statistics, or the batch's own."""
    spatial_rank(context, minimum=0)
    if _is_training(context):
        return _trained_batch(context)
    dtype = context.dtype(0)
    data = widened(context, _with_statistics_sizes(context))
    wide = str(data.ty.dtype)
    parameters = [cast(context, context.input(index), wide) for index in (1, 2, 3, 4)]
    if context.rank(1) != 1:
        return cast(context, _elementwise_batch_norm(context, data, parameters), dtype)
    result = context.emit(R.nn.batch_norm(data, *parameters, axis=1, epsilon=_epsilon(context), training=False))
    return cast(context, context.emit(relax.TupleGetItem(result, 0)), dtype)


def _with_statistics_sizes(context: NodeContext) -> relax.Expr:
    """Return the data with as many channels as there are parameters: per channel, or (in old opsets) per element."""
    data, last = context.input(0), 2 if context.rank(1) == 1 else context.rank(0)
    for index in (1, 2, 3, 4):
        require_shape(context, context.shape(index), context.shape(0)[1:last], f"its input {index}")
    for axis, size in enumerate(context.shape(1), 1):
        data = with_size(context, data, axis, size)
    return data


def _is_training(context: NodeContext) -> bool:
    if context.opset >= 14:
        return bool(context.attribute("training_mode", 0))
    if context.opset >= 7:
        return any(context.output_used(index) for index in (1, 2, 3, 4))
    return not context.attribute("is_test", 0)


def _elementwise_batch_norm(context: NodeContext, data: relax.Expr, parameters: list[relax.Expr]) -> relax.Expr:
    """Normalize in the obsolete non-spatial form: one parameter per element of the sample."""
    scale, bias, mean, variance = parameters
    deviation = context.emit(R.sqrt(R.add(variance, context.literal(_epsilon(context), str(data.ty.dtype)))))
    return context.emit(R.add(R.multiply(R.divide(R.subtract(data, mean), deviation), scale), bias))


def _trained_batch(context: NodeContext) -> list[relax.Expr | None]:
    dtype, statistics = context.dtype(0), context.dtype(3)
    data = widened(context, _with_statistics_sizes(context))
    wide, rank = str(data.ty.dtype), context.rank(0)
    if not context.attribute("spatial", 1) or context.rank(1) != 1:
        context.refuse("training without the attribute spatial")
    axes = [axis for axis in range(rank) if axis != 1]
    mean = context.emit(R.mean(data, axis=axes, keepdims=True))
    centered = context.emit(R.subtract(data, mean))
    variance = context.emit(R.mean(R.multiply(centered, centered), axis=axes, keepdims=True))
    inverse = context.emit(R.rsqrt(R.add(variance, context.literal(_epsilon(context), wide))))
    channels = tensor_shape(data)[1]
    shape = [1, channels, *[1] * (rank - 2)]
    scale, bias = (context.reshape(cast(context, context.input(i), wide), shape) for i in (1, 2))
    result = context.emit(R.add(R.multiply(R.multiply(centered, inverse), scale), bias))
    momentum = float(context.attribute("momentum", 0.9))
    running: list[relax.Expr | None] = []
    for index, current in ((3, mean), (4, variance)):
        decayed = R.multiply(cast(context, context.input(index), wide), context.literal(momentum, wide))
        added = R.multiply(context.reshape(current, [channels]), context.literal(1.0 - momentum, wide))
        running.append(cast(context, context.emit(R.add(decayed, added)), statistics))
    return [cast(context, result, dtype), *running]
