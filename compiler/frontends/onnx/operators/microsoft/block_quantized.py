"""com.microsoft: weights quantized in blocks: MatMulNBits, and GatherBlockQuantized, how embeddings are looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import require_indices
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN
from compiler.frontends.onnx.operators.tensor.indexing import elementwise_index, known_indices
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import expression
from compiler.frontends.onnx.values import Constant, Value
from compiler.passes.rewriting.block_weights import BlockWeight, block_product, block_rows
from compiler.passes.rewriting.grouped_weights import grouped_rows

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_INT8_DATA = 4  # the accuracy level


@converter("GatherBlockQuantized", domain=DOMAIN)
def gather_block_quantized(context: NodeContext) -> Expr:
    """Entries of a table that is quantized in blocks: data, indices, scales, zero points.

    Data of type uint8 hold `bits` a value, low bits first; without zero points the middle of the range of uint8 data
    is zero, and 0 otherwise.
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
    """Rows of a table looked up in its blocks, as float32; None where blocks are not runs of a row."""
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
        places = elementwise_index(context, context.input(1), expression(size))
    else:
        places = Constant(known).expr()
    return block_rows(context.block_builder, places, weight)


def _spread(values: np.ndarray, block: int, axis: int, length: int) -> np.ndarray:
    """Each value of a block for all of its elements."""
    return np.take(np.repeat(values, block, axis), range(length), axis)


@converter("MatMulNBits", domain=DOMAIN)
def matmul_n_bits(context: NodeContext) -> Value:
    """A times the transposed B of packed 2, 4 or 8-bit integers (N, blocks, bytes): a, b, scales, zeros, g_idx, bias.

    Without zero points the middle of the range is zero.
    """
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
        # Each column says which block's scale and zero point are its own.
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
    """The matmul with unmodified integers; None if scales are computed, or zero points are not integers.

    At accuracy level 4 the data are rounded to 8-bit integers, as ONNX Runtime does.
    """
    scales, zeros = context.known(2), None
    if scales is None or context.has_input(4):
        return None
    rows, blocks, block = weights.shape
    rounds = int(context.attribute("accuracy_level", 0)) == _INT8_DATA and block % 4 == 0
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


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Integers packed into bytes along the last axis, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return values.reshape(*packed.shape[:-1], -1).astype(np.uint8)
