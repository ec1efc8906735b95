"""com.microsoft: GatherBlockQuantized, how embeddings of few bits are looked up."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer
from compiler.frontends.onnx.operators.microsoft_fused import DOMAIN
from compiler.frontends.onnx.operators.microsoft_quantized import unpacked
from compiler.frontends.onnx.registry import converter


@converter("GatherBlockQuantized", domain=DOMAIN)
def gather_block_quantized(context: NodeContext) -> Any:
    """Entries of a table that is quantized in blocks: data, indices, scales, zero points.

    Data of type uint8 hold `bits` a value, low bits first; without zero points the middle of the range of uint8 data
    is zero, and 0 otherwise.
    """
    op, bits = Composer(context), int(context.attribute("bits", 4))
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


def _spread(values: np.ndarray, block: int, axis: int, length: int) -> np.ndarray:
    """Each value of a block for all of its elements."""
    return np.take(np.repeat(values, block, axis), range(length), axis)
