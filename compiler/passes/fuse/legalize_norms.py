"""Lowering of normalizations in the types that TVM's own lowering refuses: float64 and bfloat16.

y = (x - mean) / sqrt(mean((x - mean)**2) + epsilon) * scale + bias, computed in float64 or float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tvm import relax, te, tirx, topi

from compiler.passes.rewriting.matching import dtype_of, rank_of
from schedules.ir import tvm_private

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Index

_TVM_TYPES = ("float16", "float32")
Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]


def legalize_layer_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`nn.layer_norm`: statistics over `axes`, scale and bias along them."""
    if dtype_of(call) in _TVM_TYPES:
        return tvm_private.legalize_layer_norm(builder, call)
    axes = [axis % _rank(call) for axis in _integers(call.attrs.axes)]

    def kernel(data: te.Tensor, scale: te.Tensor, bias: te.Tensor) -> te.Tensor:
        shape = [size if axis in axes else 1 for axis, size in enumerate(data.shape)]
        return _narrow(call, data, _normalized(_wide(data), axes, call), scale, bias, shape)

    return builder.call_te(kernel, *call.args, primfunc_name_hint="layer_norm")


def legalize_instance_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`nn.instance_norm`: statistics over `axes`, scale and bias along the channels."""
    if dtype_of(call) in _TVM_TYPES:
        return tvm_private.legalize_instance_norm(builder, call)
    axes, channel = _integers(call.attrs.axes), int(call.attrs.channel_axis) % _rank(call)

    def kernel(data: te.Tensor, scale: te.Tensor, bias: te.Tensor) -> te.Tensor:
        shape = [size if axis == channel else 1 for axis, size in enumerate(data.shape)]
        return _narrow(call, data, _normalized(_wide(data), axes, call), scale, bias, shape)

    return builder.call_te(kernel, *call.args, primfunc_name_hint="instance_norm")


def legalize_group_norm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`nn.group_norm`: statistics over `axes` and a group of channels, scale and bias along the channels."""
    if dtype_of(call) in _TVM_TYPES:
        return tvm_private.legalize_group_norm(builder, call)
    groups, channel = int(call.attrs.num_groups), int(call.attrs.channel_axis) % _rank(call)
    # The channels become two axes, (groups, channels of a group).
    axes = [channel + 1, *(axis % _rank(call) + (axis % _rank(call) > channel) for axis in _integers(call.attrs.axes))]

    def kernel(data: te.Tensor, scale: te.Tensor, bias: te.Tensor) -> te.Tensor:
        sizes = list(data.shape)
        split = topi.reshape(_wide(data), [*sizes[:channel], groups, sizes[channel] // groups, *sizes[channel + 1 :]])
        result = topi.reshape(_normalized(split, axes, call), sizes)
        shape = [size if axis == channel else 1 for axis, size in enumerate(sizes)]
        return _narrow(call, data, result, scale, bias, shape)

    return builder.call_te(kernel, *call.args, primfunc_name_hint="group_norm")


LEGALIZATIONS: dict[str, Legalize] = {
    "relax.nn.layer_norm": legalize_layer_norm,
    "relax.nn.instance_norm": legalize_instance_norm,
    "relax.nn.group_norm": legalize_group_norm,
}


def _rank(call: relax.Call) -> int:
    return rank_of(call.args[0]) or 1


def _integers(values: Sequence[Expr]) -> list[int]:
    return [int(value) for value in values]


def _wide(data: te.Tensor) -> te.Tensor:
    return topi.cast(data, "float64" if str(data.dtype) == "float64" else "float32")


def _normalized(values: te.Tensor, axes: Sequence[int], call: relax.Call) -> te.Tensor:
    """Less the mean, over the root of the mean square of that; two steps keep the digits of a large mean."""
    count: Expr = tirx.const(1, values.dtype)
    for axis in axes:
        count = count * values.shape[axis].astype(values.dtype)
    mean = topi.divide(topi.sum(values, axes, keepdims=True), count)
    difference = topi.subtract(values, mean)
    variance = topi.divide(topi.sum(topi.multiply(difference, difference), axes, keepdims=True), count)
    epsilon = tirx.const(float(call.attrs.epsilon), values.dtype)
    return topi.divide(difference, topi.sqrt(topi.add(variance, epsilon)))


def _narrow(
    call: relax.Call, data: te.Tensor, result: te.Tensor, scale: te.Tensor, bias: te.Tensor, shape: Sequence[Index]
) -> te.Tensor:
    """Scaled and shifted as the call asks for, in the type of `data`."""
    if call.attrs.scale:
        result = topi.multiply(result, topi.cast(topi.reshape(scale, shape), result.dtype))
    if call.attrs.center:
        result = topi.add(result, topi.cast(topi.reshape(bias, shape), result.dtype))
    return topi.cast(result, data.dtype)
