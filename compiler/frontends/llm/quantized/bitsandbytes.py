"""bitsandbytes: NF4 and FP4 in blocks of neighbors, optionally with quantized scales, and LLM.int8().

4 bits: `weight` uint8, two numbers per byte, the first in the high half, of the flattened weight; `weight.quant_map` is
the table of the 16 codes' values, `weight.absmax` the scale of each block, or, with `weight.nested_absmax`, codes of
such scales; `weight.quant_state.bitsandbytes__nf4` (or `fp4`) is a JSON text with shape and sizes. 8 bits: `weight`
int8 (rows, depth) times `SCB` (rows,) over 127.
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/functional.py (QuantState)
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from compiler.errors import InvalidModelError
from compiler.frontends.llm.quantized.parts import Parts, Scheme, whole
from compiler.frontends.llm.settings import Settings
from compiler.frontends.llm.weights import Array, Groups, Matrix

_STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")
_MAX_STATE = 4096  # bytes


def _four_bits_shape(parts: Parts) -> tuple[int, int]:
    end, state = _state(parts)
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise parts.wrong(end, "has no two-dimensional shape")
    return shape[0], shape[1]


def _four_bits(parts: Parts) -> Matrix:
    rows, depth = _four_bits_shape(parts)
    end, state = _state(parts)
    block = state.get("blocksize")
    if type(block) is not int or block < 1:
        raise parts.wrong(end, "has no block size")
    count = rows * depth
    stored = parts.integers(".weight", ("uint8",)).reshape(-1)
    if stored.size != -(-count // 2):
        raise parts.wrong(".weight", f"holds {stored.size} bytes for {rows} x {depth} numbers of 4 bits")
    codes = np.empty(2 * stored.size, np.uint8)
    codes[0::2], codes[1::2] = stored >> 4, stored & 15
    scales = _scales(parts, end, state, -(-count // block))
    # Blocks are consecutive in the flattened weight, so a block may span two rows.
    size = math.gcd(depth, block)
    each = np.repeat(scales, block // size)[: count // size].reshape(rows, depth // size)
    table = parts.floats(".weight.quant_map", (16,)).astype(np.float32)
    return Matrix("TABLE4", codes[:count].reshape(rows, depth), depth, Groups(size, each, table=table))


def _state(parts: Parts) -> tuple[str, dict[str, Any]]:
    """Return the quantization state of a weight, and the name suffix of the tensor that stores it."""
    end = next(each for each in _STATES if parts.has(each))
    if math.prod(parts.shape(end)) <= _MAX_STATE:
        try:
            state = json.loads(parts.integers(end, ("uint8",)).tobytes())
        except (ValueError, RecursionError):
            state = None
        if isinstance(state, dict):
            return end, state
    raise parts.wrong(end, "is not a JSON object")


def _scales(parts: Parts, end: str, state: dict[str, Any], blocks: int) -> Array:
    """Return the scale of each block, float32."""
    if not parts.has(".weight.nested_absmax"):
        return parts.floats(".weight.absmax", (blocks,)).astype(np.float32)
    size, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(size) is not int or size < 1 or not isinstance(offset, int | float) or not math.isfinite(offset):
        raise parts.wrong(end, "has no block size and offset of nested scales")
    codes = parts.integers(".weight.absmax", ("uint8",), (blocks,))
    table = parts.floats(".weight.nested_quant_map", (256,)).astype(np.float32)
    nested = parts.floats(".weight.nested_absmax", (-(-blocks // size),)).astype(np.float32)
    found: Array = table[codes] * np.repeat(nested, size)[:blocks] + np.float32(offset)
    return found


def _eight_bits(parts: Parts) -> Matrix:
    rows, depth = parts.matrix_shape(".weight")
    if parts.has(".weight_format") and parts.integers(".weight_format", ("uint8", "int8")).any():
        raise parts.wrong(".weight_format", "is a layout other than row-major (0), which is not supported")
    values = parts.integers(".weight", ("int8",))
    scales = parts.floats(".SCB").reshape(-1).astype(np.float32)
    if scales.size != rows:
        raise parts.wrong(".SCB", f"holds {scales.size} scales, expected {rows}")
    return Matrix("INT8", values, depth, Groups(whole(depth), scales[:, None] / np.float32(127)))


def bitsandbytes(settings: Settings) -> tuple[Scheme, ...]:
    """Return the schemes of bitsandbytes: 4-bit and 8-bit weights, which may be mixed in a model. Raises
    InvalidModelError if the config enables neither."""
    if not (settings.flag("load_in_4bit") or settings.flag("load_in_8bit")):
        raise InvalidModelError(f"{settings.path}: bitsandbytes with neither 'load_in_4bit' nor 'load_in_8bit'")
    numbers = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
    ends = (".weight", *(f".weight{each}" for each in numbers), *_STATES)
    return (
        Scheme(_STATES, ends, _four_bits_shape, _four_bits),
        Scheme(
            (".SCB",), (".weight", ".SCB", ".weight_format"), lambda parts: parts.matrix_shape(".weight"), _eight_bits
        ),
    )
