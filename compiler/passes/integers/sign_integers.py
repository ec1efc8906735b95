"""sign-integers: convert uint8 tensors to int8 by subtracting 128, for targets with int8 dot products only.

    quantize(x, scale, zero, uint8)  => unsigned(quantize(x, scale, zero - 128, int8))
    conv(unsigned(y), w)             => conv(y, w) + 128 * sum of w          (also matmul)
    max_pool(unsigned(y))            => unsigned(max_pool(y))                (also moves, pad, clip, concat)
    float(unsigned(y))               => float(int32(y) + 128)

where unsigned(y) = uint8(int32(y) + 128). All are exact. A product of other uint8 data subtracts 128 first.

center-weights: store weights that are bytes plus an offset as int8, and correct the sum by the offset.

    matmul(x, w) => matmul(x, w - c) + c * sum of each row of x
    conv(x, w)   => conv(x, w - c) + c * conv(x, 1)

uint8 weights minus their zero point range from -255 to 255, and no CPU multiplies such numbers by bytes. `c` is the
middle of each filter's range; all sums are in int32 and wrap alike, so the results are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import Array, as_constant, constant_array, dtype_of, is_scalar_constant, rank_of

rules = RuleTable()

_CONVOLUTIONS = tuple(f"relax.nn.conv{rank}d" for rank in (1, 2, 3))
_MOVES = (
    *(f"relax.{name}" for name in ("reshape", "permute_dims", "squeeze", "expand_dims", "flatten", "broadcast_to")),
    *(f"relax.nn.max_pool{rank}d" for rank in (1, 2, 3)),
)
_SHIFT = 128


@graph_pass("sign-integers", summary="Store 8-bit tensors as int8 for targets with int8 products only")
def sign_integers(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring; for targets with `signed_integers`."""
    return rules.apply(mod) if context.target is not None and context.target.signed_integers else mod


def unsigned(graph: Graph, signed: Expr) -> Expr:
    """uint8(int32(y) + 128)"""
    return relax.op.astype(_plus_shift(graph, signed), "uint8")


def _plus_shift(graph: Graph, signed: Expr) -> Expr:
    wide = graph.emit(relax.op.astype(signed, "int32"))
    return graph.emit(relax.op.add(wide, as_constant(np.asarray(_SHIFT, np.int32))))


def signed_source(graph: Graph, expr: Expr) -> Expr | None:
    """Return y if a uint8 tensor is unsigned(y) or a constant."""
    if dtype_of(expr) != "uint8":
        return None
    constant = constant_array(graph, expr)
    if constant is not None:
        return as_constant((constant.astype(np.int16) - _SHIFT).astype(np.int8))
    narrowed = graph.call(expr, "relax.astype")
    added = None if narrowed is None else graph.call(narrowed.args[0], "relax.add")
    if added is None or not is_scalar_constant(graph, added.args[1], _SHIFT):
        return None
    widened = graph.call(added.args[0], "relax.astype")
    return widened.args[0] if widened is not None and dtype_of(widened.args[0]) == "int8" else None


@rules.on("relax.quantize")
def quantize(graph: Graph, call: Call) -> Expr | None:
    """quantize(x, scale, zero, uint8) => unsigned(quantize(x, scale, zero - 128, int8))"""
    zero = signed_source(graph, call.args[2])
    if str(call.attrs.out_dtype) != "uint8" or zero is None:
        return None
    result = relax.op.quantize(call.args[0], call.args[1], zero, call.attrs.axis, "int8")
    return unsigned(graph, graph.emit(result))


@rules.on("relax.dequantize")
def dequantize(graph: Graph, call: Call) -> Expr | None:
    """dequantize(unsigned(y), scale, zero) => dequantize(y, scale, zero - 128)"""
    if constant_array(graph, call.args[0]) is not None:
        return None
    signed, zero = signed_source(graph, call.args[0]), signed_source(graph, call.args[2])
    if signed is None or zero is None:
        return None
    return relax.op.dequantize(signed, call.args[1], zero, call.attrs.axis, str(call.attrs.out_dtype))


@rules.on(*_CONVOLUTIONS)
def convolution(graph: Graph, call: Call) -> Expr | None:
    """conv(unsigned(y), w) => conv(pad(y, -128), w) + 128 * sum of w"""
    rank = len(call.attrs.strides)
    layouts = str(call.attrs.data_layout)[:2], str(call.attrs.kernel_layout)[:2], str(call.attrs.out_layout)[:2]
    weight = constant_array(graph, call.args[1])
    if layouts[:2] != ("NC", "OI") or layouts[2] not in ("NC", "") or weight is None or weight.dtype != np.int8:
        return None
    data = _factor(graph, call, even_unknown=int(call.attrs.groups) == 1)
    if data is None:
        return None
    padding = [int(each) for each in call.attrs.padding]
    if any(padding):
        widths = [0, 0, 0, 0, *(width for i in range(rank) for width in (padding[i], padding[i + rank]))]
        data = graph.emit(relax.op.nn.pad(data, widths, "constant", -_SHIFT))
    function = getattr(relax.op.nn, f"conv{rank}d")
    product = function(
        data,
        call.args[1],
        strides=call.attrs.strides,
        padding=[0] * (2 * rank),
        dilation=call.attrs.dilation,
        groups=call.attrs.groups,
        data_layout=call.attrs.data_layout,
        kernel_layout=call.attrs.kernel_layout,
        out_dtype="int32",
    )
    sums = weight.astype(np.int32).sum(axis=tuple(range(1, rank + 2)), dtype=np.int32)
    offset = as_constant((sums * _SHIFT).reshape(-1, *[1] * rank))
    return relax.op.add(graph.emit(product), offset)


@rules.on("relax.matmul")
def matmul(graph: Graph, call: Call) -> Expr | None:
    """matmul(unsigned(y), w) => matmul(y, w) + 128 * column sums of w"""
    weight = constant_array(graph, call.args[1])
    if weight is None or weight.dtype != np.int8 or weight.ndim != 2 or (rank_of(call.args[0]) or 0) < 2:
        return None
    data = _factor(graph, call, even_unknown=True)
    if data is None:
        return None
    product = graph.emit(relax.op.matmul(data, call.args[1], out_dtype="int32"))
    sums = weight.astype(np.int32).sum(axis=0, dtype=np.int32)
    return relax.op.add(product, as_constant(sums * _SHIFT))


def _factor(graph: Graph, call: Call, *, even_unknown: bool) -> Expr | None:
    """Return the data of an integer product as int8 if it is uint8."""
    if dtype_of(call) != "int32" or dtype_of(call.args[0]) != "uint8":
        return None
    signed = signed_source(graph, call.args[0])
    if signed is not None or not even_unknown:
        return signed
    wide = graph.emit(relax.op.astype(call.args[0], "int32"))
    moved = graph.emit(relax.op.subtract(wide, as_constant(np.asarray(_SHIFT, np.int32))))
    return graph.emit(relax.op.astype(moved, "int8"))


@rules.on(*_MOVES)
def move(graph: Graph, call: Call) -> Expr | None:
    """move(unsigned(y)) => unsigned(move(y))"""
    signed = _moved_source(graph, call.args[0])
    if signed is None:
        return None
    moved = relax.Call(call.op, [signed, *list(call.args)[1:]], call.attrs, call.ty_args)
    return unsigned(graph, graph.emit(moved))


def _moved_source(graph: Graph, expr: Expr) -> Expr | None:
    return None if constant_array(graph, expr) is not None else signed_source(graph, expr)


@rules.on("relax.nn.pad")
def pad(graph: Graph, call: Call) -> Expr | None:
    """pad(unsigned(y), v) => unsigned(pad(y, v - 128))"""
    signed = _moved_source(graph, call.args[0])
    if signed is None:
        return None
    mode, value = str(call.attrs.pad_mode), float(call.attrs.pad_value)
    widths = [int(width) for width in call.attrs.pad_width]
    return unsigned(graph, graph.emit(relax.op.nn.pad(signed, widths, mode, value - _SHIFT)))


@rules.on("relax.clip")
def clip(graph: Graph, call: Call) -> Expr | None:
    """clip(unsigned(y), low, high) => unsigned(clip(y, low - 128, high - 128))"""
    signed = _moved_source(graph, call.args[0])
    bounds: list[Any] = [getattr(each, "value", None) for each in call.args[1:3]]
    low, high = (getattr(each, "value", each) for each in bounds)
    if signed is None or not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    low, high = (int(np.clip(each, 0, 255)) - _SHIFT for each in (low, high))
    return unsigned(graph, graph.emit(relax.op.clip(signed, low, high)))


@rules.on("relax.concat")
def concat(graph: Graph, call: Call) -> Expr | None:
    """concat(unsigned(a), unsigned(b)) => unsigned(concat(a, b))"""
    fields = graph.definition(call.args[0])
    if not isinstance(fields, relax.Tuple) or dtype_of(call) != "uint8":
        return None
    signed = [signed_source(graph, each) for each in fields.fields]
    if any(each is None for each in signed) or all(constant_array(graph, each) is not None for each in fields.fields):
        return None
    return unsigned(graph, graph.emit(relax.op.concat(signed, call.attrs.axis)))


@rules.on("relax.astype")
def conversion(graph: Graph, call: Call) -> Expr | None:
    """float(unsigned(y)) => float(int32(y) + 128)"""
    signed = _moved_source(graph, call.args[0])
    dtype = dtype_of(call)
    if signed is None or dtype not in ("int32", "int64", "float32"):
        return None
    wide = _plus_shift(graph, signed)
    return wide if dtype == "int32" else relax.op.astype(wide, dtype)


center_rules = RuleTable()


@graph_pass("center-weights", summary="Store wider weights as int8 plus an offset")
def center_weights(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return center_rules.apply(mod)


def _centered(graph: Graph, call: Call, axes: tuple[int, ...]) -> tuple[Array, Array] | None:
    """Return (int8 weights, int32 offset subtracted from them), with offsets shared along `axes`."""
    values = constant_array(graph, call.args[1])
    if values is None or values.dtype not in (np.int16, np.uint8) or values.size == 0:
        return None
    if dtype_of(call) != "int32" or dtype_of(call.args[0]) not in ("int8", "uint8"):
        return None
    wide = values.astype(np.int32)
    low, high = (bound(wide, axis=axes, keepdims=True) for bound in (np.min, np.max))
    if np.any(high - low > 255):
        return None
    # None, or one offset for all if that suffices; otherwise one per filter.
    middle = low + 128
    if low.min() >= -128 and high.max() <= 127:
        middle = np.zeros_like(middle)
    elif high.max() - low.min() <= 255:
        middle = np.full_like(middle, low.min() + 128)
    return (wide - middle).astype(np.int8), middle


@center_rules.on("relax.matmul")
def centered_matmul(graph: Graph, call: Call) -> Expr | None:
    """matmul(x, w) => matmul(x, w - c) + c * rowsum(x)"""
    if rank_of(call.args[1]) != 2 or (rank_of(call.args[0]) or 0) < 2:
        return None
    centered = _centered(graph, call, (0,))
    if centered is None:
        return None
    weight, offset = centered
    product = graph.emit(relax.op.matmul(call.args[0], as_constant(weight), out_dtype="int32"))
    if not np.any(offset):
        return product
    wide = graph.emit(relax.op.astype(call.args[0], "int32"))
    rows = graph.emit(relax.op.sum(wide, axis=[-1], keepdims=True))
    return relax.op.add(product, graph.emit(relax.op.multiply(rows, as_constant(offset.reshape(-1)))))


@center_rules.on("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
def centered_convolution(graph: Graph, call: Call) -> Expr | None:
    """conv(x, w) => conv(x, w - c) + c * conv(x, 1)"""
    rank = len(call.attrs.strides)
    if str(call.attrs.kernel_layout)[:2] != "OI" or str(call.attrs.out_layout)[:2] not in ("NC", ""):
        return None
    centered = _centered(graph, call, tuple(range(1, rank + 2)))
    if centered is None:
        return None
    weight, offset = centered
    groups, filters = int(call.attrs.groups), weight.shape[0]
    ones = np.ones((groups, *weight.shape[1:]), np.int8)
    product = graph.emit(relax.Call(call.op, [call.args[0], as_constant(weight)], call.attrs))
    if not np.any(offset):
        return product
    windows = graph.emit(relax.Call(call.op, [call.args[0], as_constant(ones)], call.attrs))
    if 1 < groups < filters:
        windows = graph.emit(relax.op.repeat(windows, filters // groups, axis=1))
    offset = offset.reshape(-1, *[1] * rank)
    return relax.op.add(product, graph.emit(relax.op.multiply(windows, as_constant(offset))))
