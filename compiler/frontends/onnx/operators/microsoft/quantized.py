"""com.microsoft: operators on quantized tensors, as written by ONNX Runtime's quantizer.

Those without an integer form follow their definition: dequantize, compute, quantize.

com.microsoft: weights quantized in blocks: MatMulNBits, and GatherBlockQuantized for embedding look-ups.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import require, require_indices
from compiler.frontends.onnx.broadcasting import broadcast, elementwise
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.math.matrix import matrix_product
from compiler.frontends.onnx.operators.microsoft.fused import (
    DOMAIN,
    attributes_of,
    channels_first,
    channels_last,
    embedded,
    given,
    refuse_unusual,
)
from compiler.frontends.onnx.operators.precision import cast
from compiler.frontends.onnx.operators.quantization.integer_products import (
    Operand,
    integer_matmul,
    multiplier,
    operand,
    requantized,
)
from compiler.frontends.onnx.operators.quantization.linear import (
    Parameters,
    dequantize_linear,
    dynamically_quantized,
    quantize_linear,
    quantized,
)
from compiler.frontends.onnx.operators.tensor.indexing import elementwise_index, known_indices
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import expression
from compiler.frontends.onnx.values import Constant, Runtime, TensorValue, Value, tensor_shape
from compiler.passes.rewriting.block_weights import BlockWeight, block_product, block_rows
from compiler.passes.rewriting.grouped_weights import grouped_rows
from schedules.instructions.unpack_bits import TABLES
from schedules.ir.tvm_types import Expr

converter("QuantizeLinear", domain=DOMAIN)(quantize_linear)
converter("DequantizeLinear", domain=DOMAIN)(dequantize_linear)


def dequantized_input(context: NodeContext, op: Composer, index: int) -> TensorValue:
    """Return the float value of input `index`, whose scale and zero point are the next two inputs."""
    return op("DequantizeLinear", context.value(index), context.value(index + 1), given(context, index + 2))


def quantized_output(context: NodeContext, op: Composer, value: Value, index: int, like: int = 0) -> Value:
    """Quantize a float value with the scale and zero point in inputs `index` and `index + 1`."""
    zero = given(context, index + 1)
    if zero is None:
        zero = op("Cast", 0.0, to=op.number(context.dtype(like)))
    result: Value = op("QuantizeLinear", value, context.value(index), zero)
    return result


@converter("QLinearAdd", domain=DOMAIN)
def qlinear_add(context: NodeContext) -> Value:
    """a, a_scale, a_zero, b, b_scale, b_zero, c_scale, c_zero; rounded like in ONNX Runtime.

    Ties are common, since ratios of scales are often powers of two: the zero points are summed first, and each product
    is added in one step if the CPU has fused multiply-add, as in ONNX Runtime.
    """
    ratios = [multiplier(context, [1], 6, None), multiplier(context, [4], 6, None)]
    zeros = [_zero(context, index) for index in (2, 5, 7)]
    shifts = [context.emit(R.multiply(ratio, zero)) for ratio, zero in zip(ratios, zeros[:2], strict=True)]
    constant = context.emit(R.subtract(zeros[2], context.emit(R.add(*shifts))))
    left, right = (
        context.emit(R.multiply(cast(context, operand, "float32"), ratio))
        for operand, ratio in zip(broadcast(context, [context.input(0), context.input(3)]), ratios, strict=True)
    )
    total = context.emit(R.add(left, context.emit(R.add(right, constant))))
    dtype = context.dtype(0)
    nothing = Parameters(relax.const(1.0, "float32"), context.literal(0, dtype), None)
    return quantized(context, total, nothing, dtype)


@converter("QLinearMul", domain=DOMAIN)
def qlinear_mul(context: NodeContext) -> Value:
    """a, a_scale, a_zero, b, b_scale, b_zero, c_scale, c_zero; the integer product is scaled once."""
    ratio = multiplier(context, [1, 4], 6, None)
    zeros = [_zero(context, index) for index in (2, 5, 7)]

    def function(a: Expr, b: Expr, scale: Expr, *zero: Expr) -> Expr:
        product = (a.astype("float32") - zero[0]) * (b.astype("float32") - zero[1])
        return _saturated(product * scale + zero[2], context.dtype(0))

    operands = [context.input(0), context.input(3), ratio, *zeros]
    return context.runtime(elementwise(context, "qlinear_mul", function, *operands), context.dtype(0))


def _zero(context: NodeContext, index: int) -> relax.Expr:
    """Return a zero point as a float32 scalar."""
    if not context.has_input(index):
        return relax.const(0.0, "float32")
    expr = cast(context, context.input(index), "float32")
    return expr if not tensor_shape(expr) else context.reshape(expr, ())


def _saturated(value: Expr, dtype: str) -> Expr:
    low, high = (tirx.const(float(limit), "float32") for limit in dtypes.integer_limits(dtype))
    return tirx.min(tirx.max(tirx.nearbyint(value), low), high).astype(dtype)


@converter("QLinearSigmoid", "QLinearLeakyRelu", domain=DOMAIN)
def qlinear_activation(context: NodeContext) -> Value:
    """x, x_scale, x_zero, y_scale, y_zero."""
    op = Composer(context)
    alpha: dict[str, Any] = (
        {"alpha": context.attribute("alpha", 0.01)} if context.operator == "QLinearLeakyRelu" else {}
    )
    result = op(context.operator.removeprefix("QLinear"), dequantized_input(context, op, 0), **alpha)
    return quantized_output(context, op, result, 3)


@converter("QLinearSoftmax", domain=DOMAIN)
def qlinear_softmax(context: NodeContext) -> Value:
    """Softmax with the semantics of `opset`: before 13, over all axes from `axis` on."""
    op = Composer(context)
    x = dequantized_input(context, op, 0)
    axis = context.axis(context.attribute("axis", -1), context.rank(0))
    if context.attribute("opset", 13) >= 13:
        return quantized_output(context, op, op("Softmax", x, axis=axis), 3)
    flat = op("Softmax", op("Flatten", x, axis=axis), axis=1)
    return quantized_output(context, op, op("Reshape", flat, op("Shape", context.value(0))), 3)


@converter("QLinearAveragePool", "QLinearGlobalAveragePool", domain=DOMAIN)
def qlinear_pool(context: NodeContext) -> Value:
    """Average pooling; with channels_last, the channels are the last axis."""
    op, last = Composer(context), bool(context.attribute("channels_last", 0))
    x = dequantized_input(context, op, 0)
    names = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
    pool, attributes = context.operator.removeprefix("QLinear"), attributes_of(context, *names)
    result = op(pool, channels_first(op, x) if last else x, **attributes)
    return quantized_output(context, op, channels_last(op, result) if last else result, 3)


@converter("QLinearConv", domain=DOMAIN)
def qlinear_conv(context: NodeContext) -> Value:
    """QLinearConv; with channels_last, the channels of data and result are the last axis, and weights are unchanged."""
    op, last, x = Composer(context), bool(context.attribute("channels_last", 0)), context.tensor(0)
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    inputs = [given(context, index) for index in range(1, 9)]
    result = op("QLinearConv", channels_first(op, x) if last else x, *inputs, **attributes_of(context, *names))
    return channels_last(op, result) if last else result


@converter("QEmbedLayerNormalization", domain=DOMAIN)
def quantized_embed_layer_normalization(context: NodeContext) -> list[TensorValue]:
    """EmbedLayerNormalization with quantized tables, gamma and beta, followed by their scales and zero points."""
    op = Composer(context)
    tables = [
        op("DequantizeLinear", context.value(2 + index), context.value(8 + index), given(context, 13 + index))
        if context.has_input(2 + index)
        else None
        for index in range(5)
    ]
    return embedded(context, tables, position_input=None)


@converter("QLinearReduceMean", domain=DOMAIN)
def qlinear_reduce_mean(context: NodeContext) -> Value:
    """data, data_scale, data_zero, reduced_scale, reduced_zero."""
    op = Composer(context)
    axes = context.attribute("axes", list(range(context.rank(0))))
    mean = op("ReduceMean", dequantized_input(context, op, 0), int64s(*axes), keepdims=context.attribute("keepdims", 1))
    return quantized_output(context, op, mean, 3)


@converter("QLinearConcat", domain=DOMAIN)
def qlinear_concat(context: NodeContext) -> Value:
    """y_scale, y_zero, then each tensor with its scale and zero point."""
    op = Composer(context)
    parts = [dequantized_input(context, op, index) for index in range(2, len(context.node.input), 3)]
    return quantized_output(context, op, op("Concat", *parts, axis=context.required_attribute("axis")), 0, like=2)


@converter("QLinearWhere", domain=DOMAIN)
def qlinear_where(context: NodeContext) -> Value:
    """condition, x, x_scale, x_zero, y, y_scale, y_zero, z_scale, z_zero."""
    op = Composer(context)
    x, y = dequantized_input(context, op, 1), dequantized_input(context, op, 4)
    return quantized_output(context, op, op("Where", context.value(0), x, y), 7, like=1)


@converter("QGemm", domain=DOMAIN)
def qgemm(context: NodeContext) -> Value | relax.Expr:
    """alpha * A' * B' + C with quantized A and B and int32 C: a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale,
    y_zero.

    Without y_scale the result is float.
    """
    a, b = operand(context, 0, 2, -1), _columns_operand(context)
    sums = integer_matmul(context, _transposed(context, a, "transA"), b)
    if context.has_input(6):
        sums = context.emit(R.add(sums, context.input(6)))
    alpha = context.attribute("alpha", 1.0)
    if context.has_input(7):
        factor = multiplier(context, [1, 4], 7, None)
        if alpha != 1.0:
            factor = context.emit(R.multiply(factor, relax.const(alpha, "float32")))
        return requantized(context, sums, factor, 8)
    result = context.emit(R.multiply(cast(context, sums, "float32"), _product_of_scales(context, 1, 4)))
    return result if alpha == 1.0 else R.multiply(result, relax.const(alpha, "float32"))


def _columns_operand(context: NodeContext) -> Operand:
    """Return B with one zero point per column of the matmul, which is a row of B if transposed."""
    transposed = bool(context.attribute("transB", 0))
    return _transposed(context, operand(context, 3, 5, 0 if transposed else -1), "transB")


def _transposed(context: NodeContext, item: Operand, attribute: str) -> Operand:
    if not context.attribute(attribute, 0):
        return item
    zero = item.zero_point
    if zero is not None and len(tensor_shape(zero)) == 2:
        zero = context.emit(R.permute_dims(zero))
    return Operand(context.emit(R.permute_dims(item.data)), zero)


def _product_of_scales(context: NodeContext, first: int, second: int) -> relax.Expr:
    left, right = (cast(context, context.input(index), "float32") for index in (first, second))
    return context.emit(R.multiply(left, right))


@converter("MatMulIntegerToFloat", domain=DOMAIN)
def matmul_integer_to_float(context: NodeContext) -> relax.Expr:
    """a, b, a_scale, b_scale, a_zero, b_zero, bias."""
    sums = integer_matmul(context, operand(context, 0, 4, -2), operand(context, 1, 5, -1))
    a_scale = context.input(2)
    if len(context.shape(2)) == 1 and context.shape(2)[0] != 1:
        a_scale = context.emit(R.expand_dims(a_scale, [1]))
    factor = context.emit(R.multiply(a_scale, context.input(3)))
    result = context.emit(R.multiply(cast(context, sums, str(factor.ty.dtype)), factor))
    return context.emit(R.add(result, context.input(6))) if context.has_input(6) else result


@converter("DynamicQuantizeMatMul", domain=DOMAIN)
def dynamic_quantize_matmul(context: NodeContext) -> relax.Expr:
    """A float A, dynamically quantized to uint8, times b: a, b, b_scale, b_zero, bias."""
    data, scale, zero = dynamically_quantized(context, context.input(0))
    assert isinstance(data, Runtime)
    left = Operand(data.expr, context.emit(R.astype(zero, "int32")))
    sums = integer_matmul(context, left, operand(context, 1, 3, -1))
    factor = context.emit(R.multiply(scale, context.input(2)))
    result = context.emit(R.multiply(cast(context, sums, "float32"), factor))
    return context.emit(R.add(result, context.input(4))) if context.has_input(4) else result


INT8_DATA = 4  # the accuracy level


@converter("GatherBlockQuantized", domain=DOMAIN)
def gather_block_quantized(context: NodeContext) -> Expr:
    """Look up entries of a table that is quantized in blocks: data, indices, scales, zero points.

    uint8 data hold `bits` per value, low bits first; without zero points, zero is the middle of the range for uint8
    data, and 0 otherwise.
    """
    op, bits = Composer(context), int(context.attribute("bits", 4))
    stored = _stored_table(context, bits)
    if stored is not None:
        return op("Cast", context.runtime(stored, "float32"), to=op.number(context.dtype(2)))
    data, scales = context.constant(0), context.constant(2).astype(np.float32)
    zeros = context.constant(3) if context.has_input(3) else None
    axis = context.axis(context.attribute("quantize_axis", 1), data.ndim)
    block = int(context.attribute("block_size", 128))
    middle = 0.0
    if context.dtype(0) == "uint8":
        middle = float(2 ** (bits - 1))
        data = unpacked(data, bits)
        zeros = None if zeros is None else unpacked(zeros, bits)[tuple(slice(size) for size in scales.shape)]
    length = data.shape[axis]
    offset = np.float32(middle) if zeros is None else _spread(zeros.astype(np.float32), block, axis, length)
    table = (data.astype(np.float32) - offset) * _spread(scales, block, axis, length)
    stored = op("Cast", table, to=op.number(context.dtype(2)))
    return op("Gather", stored, context.value(1), axis=context.attribute("gather_axis", 0))


def _stored_table(context: NodeContext, bits: int) -> Expr | None:
    """Look up rows of a table in its blocks, as float32; None if blocks are not runs of a row."""
    data, scales = context.constant(0), context.constant(2)
    block = int(context.attribute("block_size", 128))
    along = context.axis(context.attribute("quantize_axis", 1), data.ndim) == 1
    if data.ndim != 2 or not along or context.axis(context.attribute("gather_axis", 0), 2) != 0 or block % 4:
        return None
    zeros: np.ndarray | None = context.constant(3) if context.has_input(3) else None
    if context.dtype(0) == "uint8":
        data = unpacked(data, bits)
        zeros = np.full((1, 1), 2 ** (bits - 1), np.uint8) if zeros is None else unpacked(zeros, bits)
    signed = np.int8 if data.dtype.kind == "i" else np.uint8
    if zeros is not None and zeros.size > 1:
        zeros = zeros[:, : scales.shape[1]]
    weight = BlockWeight.of_integers(
        data.astype(signed), scales, None if zeros is None else zeros.astype(signed), block, bits
    )
    size = weight.columns
    known = known_indices(context, 1, size)
    if known is None:
        require_indices(context, 1, size)
        positions = elementwise_index(context, context.input(1), expression(size))
    else:
        positions = Constant(known).expr()
    return block_rows(context.block_builder, positions, weight)


def _spread(values: np.ndarray, block: int, axis: int, length: int) -> np.ndarray:
    """Repeat each block's value for all of its elements."""
    return np.take(np.repeat(values, block, axis), range(length), axis)


@converter("MatMulNBits", domain=DOMAIN)
def matmul_n_bits(context: NodeContext) -> Value:
    """A times the transposed B of packed 2, 4 or 8-bit integers (N, blocks, bytes): a, b, scales, zeros, g_idx, bias.

    Without zero points, zero is the middle of the range.
    """
    refuse_unusual(context, weight_prepacked=0)
    rows, size = int(context.required_attribute("N")), int(context.required_attribute("K"))
    bits, block = int(context.attribute("bits", 4)), int(context.required_attribute("block_size"))
    if bits not in (2, 4, 8):
        context.refuse(f"weights of {bits} bits are not supported")
    blocks = -(-size // block)
    op = Composer(context)
    packed = context.constant(1).reshape(rows, blocks, -1)
    weights = unpacked(packed, bits)[:, :, :block]
    narrow = _narrow_product(context, op, weights, bits, size)
    if narrow is not None:
        return narrow
    zeros: Any = np.float32(2 ** (bits - 1))
    scales = op("Reshape", context.value(2), int64s(rows, blocks, 1))
    if context.has_input(3):
        raw = context.constant(3)
        if raw.dtype == np.uint8:
            zeros = unpacked(raw.reshape(rows, -1), bits)[:, :blocks].reshape(rows, blocks, 1).astype(np.float32)
        else:
            zeros = raw.reshape(rows, blocks, 1).astype(np.float32)
    dtype = op.number(context.dtype(2))
    if context.has_input(4):
        # For each column, the block whose scale and zero point it uses.
        order = context.constant(4).astype(np.int64)
        weights, scales = weights.reshape(rows, -1, 1), op("Gather", scales, order, axis=1)
        zeros = zeros if np.ndim(zeros) == 0 else zeros[:, order]
        weights = weights[:, : len(order)]
    shifted = op("Cast", op("Sub", op("Cast", weights, to=1), zeros), to=dtype)
    matrix = op("Reshape", op("Mul", shifted, scales), int64s(rows, -1))
    if blocks * block != size and not context.has_input(4):
        matrix = op("Slice", matrix, int64s(0), int64s(size), int64s(1))
    result: Value = op("MatMul", context.value(0), op("Transpose", matrix, perm=[1, 0]))
    return op("Add", result, context.value(5)) if context.has_input(5) else result


def _narrow_product(context: NodeContext, op: Composer, weights: np.ndarray, bits: int, size: int) -> Value | None:
    """Return the matmul with unmodified integers; None if scales are computed, or zero points are not integers.

    At accuracy level 4 the data are rounded to 8-bit integers, like in ONNX Runtime.
    """
    scales, zeros = context.known(2), None
    if scales is None or context.has_input(4):
        return None
    rows, blocks, block = weights.shape
    rounds = int(context.attribute("accuracy_level", 0)) == INT8_DATA and block % 4 == 0
    if context.has_input(3):
        raw = context.constant(3)
        if raw.dtype != np.uint8:
            return None
        zeros = unpacked(raw.reshape(rows, -1), bits)[:, :blocks]
    else:
        zeros = np.full((rows, blocks), 2 ** (bits - 1), np.uint8)
    values, scales = weights.reshape(rows, -1)[:, :size], scales.reshape(rows, blocks)
    wide = op("Cast", context.value(0), to=op.number("float32"))
    if rounds:
        weight = BlockWeight.of_integers(values, scales, zeros, block, bits)
        product = block_product(context.block_builder, context.importer.builder.materialize(wide), weight)
        result: Value = context.runtime(product, "float32")
    else:
        matrix = grouped_rows(values, scales, zeros, block, context.emit)
        result = op("MatMul", wide, context.runtime(context.emit(R.permute_dims(matrix)), "float32"))
    if context.has_input(5):
        result = op("Add", result, op("Cast", context.value(5), to=op.number("float32")))
    dtype = context.dtype(0)
    assert dtype is not None
    return op("Cast", result, to=op.number(dtype))


# Values of the 16 codes of 4-bit floats, by quant_type:
# https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/functional.py (create_fp4_map); NF4.
_FP4 = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
_BNB4_CODES: tuple[tuple[float, ...], ...] = ((*_FP4, *(-value for value in _FP4)), TABLES["nf4"])


@converter("MatMulBnb4", domain=DOMAIN)
def matmul_bnb4(context: NodeContext) -> relax.Expr:
    """A times the transposed B (N, K) of 4-bit floats: a, codes (the high half of a byte first), scales.

    Blocks are consecutive in the flattened B, so a block may span two rows.
    """
    rows, depth, block = (int(context.required_attribute(name)) for name in ("N", "K", "block_size"))
    kind = int(context.required_attribute("quant_type"))
    if kind not in range(len(_BNB4_CODES)):
        context.invalid(f"quant_type must be 0 (FP4) or 1 (NF4), not {kind}")
    if not context.attribute("transB", 1):
        context.refuse("transB=0, of backward passes, is not supported")
    packed = context.constant(1).reshape(-1)
    if packed.size != -(-rows * depth // 2):
        context.invalid(f"{packed.size} bytes do not hold {rows} x {depth} numbers of 4 bits")
    codes = np.stack([packed >> 4, packed & 15], -1).reshape(-1)[: rows * depth].reshape(rows, depth)
    group = math.gcd(depth, block)
    absmax = context.constant(2).reshape(-1).astype(np.float32)
    if absmax.size != -(-rows * depth // block):
        context.invalid(f"{absmax.size} scales are not those of {rows} x {depth} numbers in blocks of {block}")
    by_step = np.repeat(absmax, block // group)
    scales = by_step[: rows * depth // group].reshape(rows, -1)
    data, dtype = cast(context, context.input(0), "float32"), context.dtype(0)
    if group % 4 == 0:
        weight = BlockWeight.of_codes(codes, scales, group, _BNB4_CODES[kind])
        require(context, tensor_shape(data)[-1], "equal", depth)
        return cast(context, block_product(context.block_builder, data, weight, "float32"), dtype)
    matrix = np.asarray(_BNB4_CODES[kind], np.float32)[codes] * np.repeat(scales, group, 1)
    return cast(context, matrix_product(context, data, Constant(matrix.T).expr()), dtype)


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Unpack integers packed into bytes along the last axis, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return values.reshape(*packed.shape[:-1], -1).astype(np.uint8)
