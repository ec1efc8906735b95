"""legalize-operators: lower each Relax operator to a TensorIR function with TVM's pass, using our lowerings in place of
some of TVM's, and the target's in place of both. Ours:

- Normalizations in float64 and bfloat16, which TVM's own lowering rejects: y = (x - mean) / sqrt(mean((x - mean)**2) +
  epsilon) * scale + bias, computed in float64 or float32.
- Reshapes with dynamic sizes. TVM computes a reshape's indices by division, and with a dynamic size treats the kernel
  as not fusible. Reshapes that only add or drop dimensions of 1, such as squeeze and unsqueeze, keep their indices and
  fuse with their neighbors, as at fixed sizes. For the others, which TVM often cannot prove to keep the element order,
  the kernel is marked as a reshape (`RESHAPE`), so that `lower-reshapes` makes a view of it.
- Concatenations of many tensors, in steps of a few tensors each. TVM's kernel selects, for each element, between all
  tensors in sequence. With dynamic sizes along the axis, each condition also contains the sum of all preceding sizes:
  code quadratic in the number of tensors. A detector with 91 classes took 19 s to compile. With known sizes, the loop
  is split at the tensor boundaries, unless there are many more than the 48 layers of a DenseNet-201 block.
- Softmax in float32: elements are multiplied by the reciprocal of their sum, as in ONNX Runtime and oneDNN. TVM's own
  lowering divides each, a third of the time on Zen 4.
- Maxima and minima of floats that propagate NaN, and are -inf (or inf) for no elements. TVM's own lowering drops NaN,
  depending on the operand order, and starts from the largest finite number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from tvm import relax, te, tirx, topi
from tvm.ir import GenericConst, IRModule
from tvm.relax.transform.legalize_ops import nn, statistical
from tvm.relax.transform.legalize_ops.index import _strided_slice as tvm_strided_slice
from tvm.relax.transform.legalize_ops.manipulate import _concat as tvm_concat
from tvm.relax.transform.legalize_ops.manipulate import _reshape as tvm_reshape
from tvm.relax.transform.legalize_ops.manipulate import _tile as tvm_tile
from tvm.tirx import IntImm, const

from compiler.passes.canonicalize.spell_sizes import operators_without_shapes, spell_sizes
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.matching import (
    array_of,
    dtype_of,
    is_one,
    rank_of,
    same_shape,
    same_size,
    shape_of,
    without_ones,
)
from schedules.ir import tvm_private
from schedules.ir.expression import substitute
from schedules.ir.size_proofs import SizeSpellings
from schedules.ir.tvm_types import Attrs, Expr, Index, Tensor

_FLOATS = ("float16", "float32", "float64", "bfloat16")


def legalize_take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `take`; its mode "fast" promises indices in bounds, about which TVM warns each time."""
    axis, mode = call.attrs.axis, str(call.attrs.mode)
    if mode != "fast" or axis is None:
        flat = None if axis is None else int(axis)
        return builder.call_te(topi.take, call.args[0], call.args[1], flat, mode=mode)
    return builder.call_te(_take, call.args[0], call.args[1], int(axis), primfunc_name_hint="take")


def legalize_strided_slice(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `strided_slice`, simplifying its sizes to numbers if provable.

    For the first of n + 1 rows, TVM's kernel has `min(1, n + 1) - min(0, n + 1)`. A broadcast of the result would not
    recognize this as 1 and read out of bounds.
    """
    if not all(isinstance(each, relax.Tuple) for each in call.args[1:]):
        return tvm_strided_slice(builder, call)
    axes, begin, end, *steps = (list(each.fields) for each in call.args[1:])
    strides = steps[0] if steps else [const(1, "int64")] * len(axes)

    def sliced(data: te.Tensor) -> te.Tensor:
        result = topi.strided_slice(
            data, begin, end, strides, axes, slice_mode="end", assume_inbound=call.attrs.assume_inbound
        )
        spellings = SizeSpellings()
        sizes = [size if isinstance(size, IntImm) else spellings.of(size) for size in result.shape]
        if all(new.same_as(old) for new, old in zip(sizes, result.shape, strict=True)):
            return result
        (body,), axis = result.op.body, [each.var for each in result.op.axis]

        def element(*indices: Expr) -> Expr:
            return substitute(body, dict(zip(axis, indices, strict=True)))

        return te.compute(sizes, element, name=result.op.name, tag=result.op.tag)

    return builder.call_te(sliced, call.args[0], primfunc_name_hint="strided_slice")


def legalize_broadcast_to(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `broadcast_to` when a size may be 1 without proof: TVM's kernel assumes that it equals the target size."""
    source, target = shape_of(call.args[0]), shape_of(call)
    if source is None or target is None:
        return _tvm_broadcast_to(builder, call)
    pairs = zip(source, target[len(target) - len(source) :], strict=True)
    if all(isinstance(size, int) or same_size(size, result) for size, result in pairs):
        return _tvm_broadcast_to(builder, call)

    def repeated(data: te.Tensor) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            at = indices[len(indices) - len(data.shape) :]
            zero = const(0, "int64")
            return data(*(tirx.Select(size == 1, zero, each) for size, each in zip(data.shape, at, strict=True)))

        return te.compute(list(call.ty.shape.values), element, name="T_broadcast_to")

    return builder.call_te(repeated, call.args[0], primfunc_name_hint="broadcast_to")


_tvm_softmax = nn._nn_softmax
_tvm_broadcast_to = tvm_reshape(topi.broadcast_to, "broadcast_to")


def _take(data: te.Tensor, indices: te.Tensor, axis: int) -> te.Tensor:
    rank = len(indices.shape)
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])

    def element(*coordinates: Expr) -> Expr:
        index = indices(*coordinates[axis : axis + rank])
        return data(*coordinates[:axis], index, *coordinates[axis + rank :])

    return te.compute(shape, element, name="take")


def legalize_relu(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `nn.relu`, max(0, x): for a comparison with NaN TVM returns the second operand, so that NaN stays NaN."""
    zero = tirx.const(0, dtype_of(call))
    return builder.call_te(_elementwise(lambda x: te.max(zero, x)), call.args[0], primfunc_name_hint="relu")


def legalize_softmax(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `nn.softmax`; in float32, e / sum(e) becomes e * (1 / sum(e)), with 1 ulp more of error."""
    if dtype_of(call) != "float32":
        return _tvm_softmax(builder, call)

    def scaled(data: te.Tensor, axis: int) -> te.Tensor:
        normalized = topi.nn.softmax(data, axis)
        exponentials, total = normalized.op.input_tensors
        at = axis % len(data.shape)

        def element(*indices: Expr) -> Expr:
            return exponentials(*indices) * (const(1.0, "float32") / total(*indices[:at], *indices[at + 1 :]))

        return te.compute(data.shape, element, name="T_softmax_norm", tag="softmax_output", attrs={"axis": axis})

    return builder.call_te(scaled, call.args[0], call.attrs.axis, primfunc_name_hint="softmax")


def legalize_clip(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `clip` to two numbers, max(low, min(high, x)), in the order that keeps NaN."""
    low, high = (tirx.const(limit.value, dtype_of(call)) for limit in call.args[1:])
    limited = _elementwise(lambda x: te.max(low, te.min(high, x)))
    return builder.call_te(limited, call.args[0], primfunc_name_hint="clip")


def _elementwise(function: Callable[[Expr], Expr]) -> Callable[[te.Tensor], te.Tensor]:
    return lambda data: te.compute(data.shape, lambda *indices: function(data(*indices)), name="compute")


def legalize_not(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `logical_not` as a selection: TVM would rewrite `not x < y` to `y <= x`, which differs for NaN."""
    return builder.call_te(_elementwise(_inverted), call.args[0], primfunc_name_hint="logical_not")


def legalize_not_equal(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `not_equal` of floats, true if one is NaN: TVM generates an ordered comparison, which is false."""
    if not dtype_of(call.args[0]).startswith(("float", "bfloat")):
        return tvm_private.legalize_binary(topi.not_equal)(builder, call)

    def compare(left: Expr, right: Expr) -> te.Tensor:
        equal = topi.equal(left, right)
        return te.compute(equal.shape, lambda *indices: _inverted(equal(*indices)), name="not_equal")

    return tvm_private.legalize_binary(compare)(builder, call)


def _inverted(condition: Expr) -> Expr:
    """Invert in integers, which TVM does not treat as a comparison of floats."""
    return tirx.EQ(tirx.Cast("int8", condition), tirx.const(0, "int8"))


def legalize_divide(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `divide`; TVM would fold 0 / x to 0, although 0 / 0 and 0 / NaN are NaN, and fail on x / 0."""
    (numerator, divisor), dtype = map(_one_number, call.args), dtype_of(call.args[0])
    if dtype not in _FLOATS:
        return tvm_private.legalize_binary(topi.divide)(builder, call)
    if numerator == 0 and array_of(call.args[0]).ndim == 0:
        return builder.call_te(_zero_over(numerator, dtype), call.args[1], primfunc_name_hint="divide")
    if divisor == 0 and array_of(call.args[1]).ndim == 0:
        return builder.call_te(_over_zero(divisor, dtype), call.args[0], primfunc_name_hint="divide")
    return tvm_private.legalize_binary(topi.divide)(builder, call)


def legalize_multiply(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `multiply`; TVM would fold x * 0 to 0, although it can be NaN or -0."""
    dtype = dtype_of(call.args[0])
    for factor, operand in (call.args, reversed(call.args)):
        number = _one_number(factor)
        if dtype in _FLOATS and number == 0 and array_of(factor).ndim == 0:
            return builder.call_te(_times_zero(number, dtype), operand, primfunc_name_hint="multiply")
    return tvm_private.legalize_binary(topi.multiply)(builder, call)


def _exact(function: Callable[[Expr, str], Expr], dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """Lift an elementwise function of a value and its dtype; bfloat16, which has no arithmetic, goes through
    float32."""
    if dtype != "bfloat16":
        return _elementwise(lambda x: function(x, dtype))
    return _elementwise(lambda x: tirx.Cast(dtype, function(tirx.Cast("float32", x), "float32")))


def _times_zero(zero: float, dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """x * zero: zero with the combined sign, NaN if x is infinite or NaN."""

    def product(x: Expr, dtype: str) -> Expr:
        infinity, nan = tirx.const(math.inf, dtype), tirx.const(math.nan, dtype)
        below = tirx.Select(x > tirx.const(-math.inf, dtype), _signed_zero(x, zero, dtype), nan)
        return tirx.Select(x < infinity, below, nan)

    return _exact(product, dtype)


def _signed_zero(x: Expr, zero: float, dtype: str) -> Expr:
    """Zero with the sign of x * zero, set as a bit: TVM folds a selection between 0.0 and -0.0 to 0.0."""
    integer = dtype.replace("float", "int")
    sign = tirx.min_value(integer)
    bits = tirx.reinterpret(integer, x) & sign
    return tirx.reinterpret(dtype, bits ^ sign if math.copysign(1.0, zero) < 0 else bits)


def _over_zero(zero: float, dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """x / zero: infinity with the combined sign, NaN if x is 0 or NaN."""
    infinity = math.copysign(math.inf, zero)

    def quotient(x: Expr, dtype: str) -> Expr:
        nothing, positive, negative, nan = (tirx.const(value, dtype) for value in (0.0, infinity, -infinity, math.nan))
        return tirx.Select(x > nothing, positive, tirx.Select(x < nothing, negative, nan))

    return _exact(quotient, dtype)


def _zero_over(zero: float, dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """zero / x: zero with the combined sign, NaN if x is 0 or NaN."""

    def quotient(x: Expr, dtype: str) -> Expr:
        nothing, nan = tirx.const(0.0, dtype), tirx.const(math.nan, dtype)
        signed = _signed_zero(x, zero, dtype)
        # A single "or" condition would become x != 0, which holds for NaN.
        return tirx.Select(x > nothing, signed, tirx.Select(x < nothing, signed, nan))

    return _exact(quotient, dtype)


def legalize_quantize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `quantize` of float32: clamp, round half to even (TVM's own rounds half away from zero), shift.

    Clamping before rounding is exact there and keeps values within int32, as vector instructions need.
    """
    data, scale, zero = call.args
    out = str(call.attrs.out_dtype)
    if dtype_of(data) != "float32" or out not in ("int8", "uint8", "int16", "uint16"):
        return tvm_private.legalize_quantize(builder, call)
    low, high = (int(limit(out).value) for limit in (tirx.min_value, tirx.max_value))
    axis = int(call.attrs.axis) % max(rank_of(data) or 1, 1)
    numbers = [_one_number(each) for each in (scale, zero)]
    operands = [each for each, number in zip((scale, zero), numbers, strict=True) if number is None]

    def kernel(values: te.Tensor, *parameters: te.Tensor) -> te.Tensor:
        def point(*at: Expr) -> Expr:
            remaining = iter(parameters)
            step, shift = (_parameter(number, remaining, at, axis) for number in numbers)
            scaled = values(*at) if step == 1.0 else values(*at) / _typed(step, "float32")
            offset = _typed(shift, "int32")
            least, most = _typed(low - shift, "float32"), _typed(high - shift, "float32")
            limited = te.min(te.max(scaled, least), most)  # NaN becomes the lower limit, as in ONNX Runtime
            return tirx.Cast(out, tirx.Cast("int32", tirx.nearbyint(limited)) + offset)

        return te.compute(values.shape, point, name="quantized")

    return builder.call_te(kernel, data, *operands, primfunc_name_hint="quantize")


def _one_number(parameter: relax.Expr) -> float | int | None:
    """Return the value of a one-element constant."""
    if not isinstance(parameter, GenericConst) or array_of(parameter).size != 1:
        return None
    number: float | int = array_of(parameter).reshape(()).item()
    return number


def _parameter(number: float | int | None, remaining: Iterator[te.Tensor], at: tuple[Expr, ...], axis: int) -> Expr:
    """Return a quantization parameter at a position: a Python number if known."""
    if number is not None:
        return number
    tensor = next(remaining)
    whole = all(isinstance(size, tirx.IntImm) and size.value == 1 for size in tensor.shape)
    value = tensor(*(0 for _ in tensor.shape)) if whole else tensor(at[axis])
    return value if str(tensor.dtype) == "float32" else tirx.Cast("int32", value)


def _typed(value: Expr, dtype: str) -> Expr:
    return tirx.const(value, dtype) if isinstance(value, int | float) else tirx.Cast(dtype, value)


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


def _rank(call: relax.Call) -> int:
    return rank_of(call.args[0]) or 1


def _integers(values: Sequence[Expr]) -> list[int]:
    return [int(value) for value in values]


def _wide(data: te.Tensor) -> te.Tensor:
    return topi.cast(data, "float64" if str(data.dtype) == "float64" else "float32")


def _normalized(values: te.Tensor, axes: Sequence[int], call: relax.Call) -> te.Tensor:
    """Subtract the mean and divide by the standard deviation; two passes keep precision for a large mean."""
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
    """Scale and shift as the call requires, in the type of `data`."""
    if call.attrs.scale:
        result = topi.multiply(result, topi.cast(topi.reshape(scale, shape), result.dtype))
    if call.attrs.center:
        result = topi.add(result, topi.cast(topi.reshape(bias, shape), result.dtype))
    return topi.cast(result, data.dtype)


RESHAPE = "tensorwright.reshape"  # attribute of a kernel that only reshapes its first parameter


def legalize_reshape(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `reshape`: each axis of the result other than 1 reads its own axis of the operand."""
    source, target = shape_of(call.args[0]), shape_of(call)
    if source is None or target is None or all(isinstance(size, IntImm) for size in target):
        return tvm_reshape(topi.reshape, "reshape")(builder, call)
    if not same_shape(without_ones(source), without_ones(target)):
        return builder.call_te(
            topi.reshape, call.args[0], target, primfunc_name_hint="reshape", primfunc_attrs={RESHAPE: True}
        )

    def reshaped(data: te.Tensor) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            wide = iter(index for index, size in zip(indices, target, strict=True) if not is_one(size))
            return data(*(const(0, "int64") if is_one(size) else next(wide) for size in source))

        # Sizes of the kernel's own operand: with other symbols for them, it is not known to keep the element order.
        own = (each for each, size in zip(data.shape, source, strict=True) if not is_one(size))
        return te.compute([size if is_one(size) else next(own) for size in target], element, name="reshape")

    return builder.call_te(reshaped, call.args[0], primfunc_name_hint="reshape")


def legalize_tile(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `tile` along dynamic sizes as a broadcast and a view: TVM's kernel divides each index by a size."""
    counts, source, target = _integers(call.attrs.repeats), shape_of(call.args[0]), shape_of(call)
    if source is None or target is None or len(counts) > len(source):
        return tvm_tile(builder, call)
    counts = [1] * (len(source) - len(counts)) + counts
    if all(count == 1 or isinstance(size, int | IntImm) for count, size in zip(counts, source, strict=True)):
        return tvm_tile(builder, call)

    def repeated(data: te.Tensor) -> te.Tensor:
        pairs = zip(counts, data.shape, strict=True)
        sizes = [size for count, each in pairs for size in ((each,) if count == 1 else (count, each))]

        def element(*indices: Expr) -> Expr:
            given = iter(indices)
            return data(*(next(given) if count == 1 else (next(given), next(given))[1] for count in counts))

        return te.compute(sizes, element, name="tile")

    wide = builder.emit(builder.call_te(repeated, call.args[0], primfunc_name_hint="tile"))
    return builder.call_te(topi.reshape, wide, target, primfunc_name_hint="reshape", primfunc_attrs={RESHAPE: True})


_MAX_DYNAMIC = 8  # tensors of dynamic sizes joined at once, and per step
_MAX_STATIC = 64  # tensors of known sizes joined at once
_STATIC_STEP = 24  # and per step: one more copy, but loops without branches


def legalize_concat(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower `concat`: more tensors than fit one step are first joined in runs of that length, and these again."""
    pieces = _fields(builder, call.args[0])
    if pieces is None or call.attrs.axis is None:
        return tvm_concat(builder, call)
    most, step = (_MAX_DYNAMIC, _MAX_DYNAMIC) if _are_dynamic(call, pieces) else (_MAX_STATIC, _STATIC_STEP)
    if len(pieces) <= most:
        return tvm_concat(builder, call)
    axis = int(call.attrs.axis)
    while len(pieces) > step:
        runs = [pieces[start : start + step] for start in range(0, len(pieces), step)]
        pieces = [
            run[0] if len(run) == 1 else builder.emit(builder.call_te(topi.concatenate, run, axis)) for run in runs
        ]
    return builder.call_te(topi.concatenate, pieces, axis)


def _fields(builder: relax.BlockBuilder, operands: Expr) -> list[Expr] | None:
    while isinstance(operands, relax.Var):
        operands = builder.lookup_binding(operands)
    return list(operands.fields) if isinstance(operands, relax.Tuple) else None


def _are_dynamic(call: relax.Call, pieces: list[Expr]) -> bool:
    shapes = [shape_of(piece) for piece in pieces]
    return any(shape is not None and not isinstance(shape[int(call.attrs.axis)], int | IntImm) for shape in shapes)


_MAXIMA_TYPES = ("float16", "float32", "float64")


def _reducer(dtype: str, *, greatest: bool) -> Callable[..., Expr]:
    """Return the reducer in the form that `schedules.ir.reduction` recognizes."""

    def combine(total: Expr, value: Expr) -> Expr:
        best = tirx.max(total, value) if greatest else tirx.min(total, value)
        return tirx.Select(tirx.isnan(total), total, tirx.Select(tirx.isnan(value), value, best))

    return te.comm_reducer(combine, lambda _: tirx.const(-math.inf if greatest else math.inf, dtype), name="extremum")


def _extremum(name: str) -> Legalize:
    """Lower `max` and `min` over axes; over no elements the result is -inf or inf."""
    legalize_in_tvm: Legalize = statistical._statistical(getattr(topi, name))

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        dtype, rank = dtype_of(call.args[0]), rank_of(call.args[0])
        if dtype not in _MAXIMA_TYPES or rank is None:
            return legalize_in_tvm(builder, call)
        axes = range(rank) if call.attrs.axis is None else [int(axis) % rank for axis in call.attrs.axis]
        keep = bool(call.attrs.keepdims)
        reducer = _reducer(dtype, greatest=name == "max")
        return builder.call_te(
            lambda x: reduce_axes(x, list(axes), keep, reducer), call.args[0], primfunc_name_hint=name
        )

    return legalize


def reduce_axes(data: te.Tensor, axes: Sequence[int], keep: bool, reducer: Callable[..., Expr]) -> te.Tensor:
    """Reduce axes with a commutative reducer."""
    if not axes:
        return te.compute(data.shape, lambda *coordinates: data(*coordinates), name="reduced")
    reduced = {axis: te.reduce_axis((0, data.shape[axis]), f"k{axis}") for axis in axes}
    remaining = [axis for axis in range(len(data.shape)) if keep or axis not in reduced]
    shape = [tirx.const(1, "int64") if axis in reduced else data.shape[axis] for axis in remaining]

    def element(*indices: Expr) -> Expr:
        position = dict(zip(remaining, indices, strict=True))
        coordinates = [reduced[a].var if a in reduced else position[a] for a in range(len(data.shape))]
        return reducer(data(*coordinates), axis=list(reduced.values()))

    return te.compute(shape, element, name="reduced")


def _max_pool(rank: int) -> Legalize:
    legalize_in_tvm: Legalize = getattr(nn, f"_nn_max_pool{rank}d")

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        attrs = call.attrs
        layout = str(attrs.layout)
        plain = layout.isalpha() and layout.isupper() and layout == (str(attrs.out_layout) or layout)
        if dtype_of(call.args[0]) not in _MAXIMA_TYPES or not plain:
            return legalize_in_tvm(builder, call)
        spatial = [layout.index(letter) for letter in "DHW"[-rank:]]

        return builder.call_te(
            lambda data: _pooled(data, spatial, attrs), call.args[0], primfunc_name_hint=f"max_pool{rank}d"
        )

    return legalize


def _pooled(data: te.Tensor, spatial: Sequence[int], attrs: Attrs) -> te.Tensor:
    """Maximum pooling, with output sizes as Relax infers them."""
    rank = len(spatial)
    taps = [te.reduce_axis((0, int(size)), f"tap{axis}") for axis, size in zip(spatial, attrs.pool_size, strict=True)]
    pads_before, pads_after = [int(p) for p in attrs.padding[:rank]], [int(p) for p in attrs.padding[rank:]]
    shape = list(data.shape)
    for i, axis in enumerate(spatial):
        extent = int(attrs.dilation[i]) * (int(attrs.pool_size[i]) - 1) + 1
        free, stride = data.shape[axis] + pads_before[i] + pads_after[i] - extent, int(attrs.strides[i])
        rounded = free + stride - 1 if attrs.ceil_mode else free
        shape[axis] = tirx.floordiv(rounded, stride) + 1
    reducer = _reducer(data.dtype, greatest=True)
    source = _bordered(data, spatial, pads_before, pads_after, attrs)

    def element(*indices: Expr) -> Expr:
        position = list(indices)
        for i, axis in enumerate(spatial):
            position[axis] = indices[axis] * int(attrs.strides[i]) + taps[i] * int(attrs.dilation[i])
        return reducer(source(*position), axis=taps)

    return te.compute(shape, element, name="max_pool")


def _bordered(
    data: te.Tensor, spatial: Sequence[int], pads_before: Sequence[int], pads_after: Sequence[int], attrs: Attrs
) -> Tensor:
    """Pad the data with -inf as far as windows reach."""
    low, high = [0] * len(data.shape), [0] * len(data.shape)
    for i, axis in enumerate(spatial):
        low[axis], high[axis] = pads_before[i], pads_after[i] + (int(attrs.strides[i]) - 1 if attrs.ceil_mode else 0)
    if not any(low) and not any(high):
        return data
    return topi.nn.pad(data, low, high, tirx.const(-math.inf, data.dtype), name="bordered")


LEGALIZATIONS: dict[str, Legalize] = {
    "relax.broadcast_to": legalize_broadcast_to,
    "relax.clip": legalize_clip,
    "relax.divide": legalize_divide,
    "relax.logical_not": legalize_not,
    "relax.multiply": legalize_multiply,
    "relax.not_equal": legalize_not_equal,
    "relax.nn.relu": legalize_relu,
    "relax.nn.softmax": legalize_softmax,
    "relax.quantize": legalize_quantize,
    "relax.strided_slice": legalize_strided_slice,
    "relax.take": legalize_take,
    "relax.tile": legalize_tile,
    "relax.nn.layer_norm": legalize_layer_norm,
    "relax.nn.instance_norm": legalize_instance_norm,
    "relax.nn.group_norm": legalize_group_norm,
    "relax.reshape": legalize_reshape,
    "relax.concat": legalize_concat,
    "relax.max": _extremum("max"),
    "relax.min": _extremum("min"),
    **{f"relax.nn.max_pool{rank}d": _max_pool(rank) for rank in (1, 2, 3)},
}


@graph_pass("legalize-operators", summary="Lower each operator to a TensorIR function", required=True)
def legalize_operators(mod: IRModule, context: PipelineContext) -> IRModule:
    """Replace every operator that has a lowering by a call of a TensorIR function.

    A kernel's result has the sizes of its expression, so an operator after it may lose its shape and is skipped at
    first: its sizes are normalized and it is lowered in the next iteration. Each iteration lowers at least one.
    """
    of_target = {} if context.target is None else context.target.legalizations()
    lower = relax.transform.LegalizeOps({**LEGALIZATIONS, **of_target})
    with context.tvm_target():
        mod = lower(mod)
        lost = operators_without_shapes(mod)
        while lost:
            mod = lower(spell_sizes(mod, context))
            before, lost = lost, operators_without_shapes(mod)
            if lost >= before:
                break
    return mod
