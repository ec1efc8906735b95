"""Weights of a checkpoint in the form that kernels read: as they are stored, or rounded to another precision."""

from __future__ import annotations

import numpy as np

from compiler.errors import OptionError
from compiler.frontends.gguf_blocks import read_gguf_blocks
from compiler.frontends.llm.weights import FLOAT_KINDS, Array, Matrix
from compiler.passes.rewriting.block_weights import BlockWeight
from compiler.support.optional import optional_module

_NUMBERS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_GROUP = 32
_ROWS_AT_ONCE = 2048
_TRIALS = 15  # scales that are tried for a group of 4-bit integers


def packed(weight: Matrix, precision: str | None) -> BlockWeight:
    """A weight as the kernels read it; `precision` as of `LanguageModelOptions`.

    Raises OptionError where quantized weights would be rounded once more.
    """
    if weight.kind in FLOAT_KINDS:
        if precision in ("int8", "int4"):
            return _rounded(weight.data, 8 if precision == "int8" else 4)
        return BlockWeight.of_floats(np.asarray(weight.data), precision or _NUMBERS[weight.kind])
    if precision in ("int8", "int4"):
        raise OptionError(
            f"the weights are quantized already ({weight.kind}): rounding them again to {precision} would lose more",
            "leave out the precision to keep them as they are",
        )
    if precision is not None:
        return BlockWeight.of_floats(dequantized(weight), precision)
    return read_gguf_blocks(weight.data, weight.kind, (weight.rows, weight.depth))


def dequantized(weight: Matrix) -> Array:
    """The numbers as float32: (rows, depth)."""
    if weight.kind in FLOAT_KINDS:
        return np.asarray(weight.data, np.float32)
    gguf = optional_module("gguf", "generate", "reads GGUF files")
    values: Array = gguf.dequantize(weight.data, gguf.GGMLQuantizationType[weight.kind])
    return values


def _rounded(values: Array, bits: int) -> BlockWeight:
    """Groups of neighbours as symmetric integers with a float16 scale each."""
    rows, depth = values.shape
    groups = -(-depth // _GROUP)
    integers = np.zeros((rows, groups * _GROUP), np.int8)
    scales = np.zeros((rows, groups), np.float16)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = np.zeros((len(values[start : start + _ROWS_AT_ONCE]), groups * _GROUP), np.float32)
        part[:, :depth] = values[start : start + _ROWS_AT_ONCE]
        blocks = part.reshape(len(part), groups, _GROUP)
        scale = _byte_scales(blocks) if bits == 8 else _nibble_scales(blocks)
        rounded = _to_integers(blocks, scale.astype(np.float32), bits)
        integers[start : start + len(part)] = rounded.reshape(len(part), -1)
        scales[start : start + len(part)] = scale
    return BlockWeight.of_integers(integers[:, :depth], scales, None, _GROUP, bits)


def _byte_scales(blocks: Array) -> Array:
    """The largest number of a group becomes 127."""
    scales: Array = (abs(blocks).max(-1) / np.float32(127)).astype(np.float16)
    return scales


def _nibble_scales(blocks: Array) -> Array:
    """Of some scales near the one that makes the largest number -8, the one of the smallest squared error."""
    place = abs(blocks).argmax(-1)[..., None]
    largest = np.take_along_axis(blocks, place, -1)[..., 0]
    best = (largest / np.float32(-8)).astype(np.float16)
    least = np.full(best.shape, np.inf, np.float32)
    for trial in range(_TRIALS):
        scale = (largest / np.float32(-8 + 0.15 * (trial - _TRIALS // 2))).astype(np.float16)
        wide = scale.astype(np.float32)
        error = ((_to_integers(blocks, wide, 4) * wide[..., None] - blocks) ** 2).sum(-1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _to_integers(blocks: Array, scales: Array, bits: int) -> Array:
    """Rounded to the nearest multiple of the scale of the group; 0 where that is 0."""
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    most = (1 << (bits - 1)) - 1
    return np.clip(np.rint(blocks * inverse[..., None]), -most - 1, most).astype(np.int8)
