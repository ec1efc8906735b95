"""Weights of a checkpoint in the form that kernels read: as they are stored, or rounded to another precision."""

from __future__ import annotations

import numpy as np

from compiler.errors import OptionError
from compiler.frontends.gguf_blocks import read_gguf_blocks
from compiler.frontends.llm.group_rounding import GROUP, best_scales, rounded_by_gptq
from compiler.frontends.llm.weights import FLOAT_KINDS, Array, Matrix
from compiler.passes.rewriting.block_weights import BlockWeight
from compiler.support.optional import optional_module

_NUMBERS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ROWS_AT_ONCE = 256  # what stays in the caches


def packed(weight: Matrix, precision: str | None, gram: Array | None = None) -> BlockWeight:
    """A weight in the form that kernels read; `precision` as of `LanguageModelOptions`, `gram` one of its `grams`.

    Raises OptionError where quantized weights would be rounded once more.
    """
    if weight.kind in FLOAT_KINDS:
        if precision == "int4" and gram is not None:
            integers, scales = rounded_by_gptq(np.asarray(weight.data, np.float32), gram)
            return BlockWeight.of_integers(integers[:, : weight.depth], scales, None, GROUP, 4)
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
    """The weight as float32: (rows, depth)."""
    if weight.kind in FLOAT_KINDS:
        return np.asarray(weight.data, np.float32)
    gguf = optional_module("gguf", "generate", "reads GGUF files")
    values: Array = gguf.dequantize(weight.data, gguf.GGMLQuantizationType[weight.kind])
    return values


def _rounded(values: Array, bits: int) -> BlockWeight:
    """Groups of neighbours as symmetric integers, with a float16 scale per group."""
    rows, depth = values.shape
    groups = -(-depth // GROUP)
    integers = np.zeros((rows, groups * GROUP), np.int8)
    scales = np.zeros((rows, groups), np.float16)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = np.zeros((len(values[start : start + _ROWS_AT_ONCE]), groups * GROUP), np.float32)
        part[:, :depth] = values[start : start + _ROWS_AT_ONCE]
        blocks = part.reshape(len(part), groups, GROUP)
        scale = _byte_scales(blocks) if bits == 8 else best_scales(blocks)
        rounded = _to_integers(blocks, scale.astype(np.float32), bits)
        integers[start : start + len(part)] = rounded.reshape(len(part), -1)
        scales[start : start + len(part)] = scale
    return BlockWeight.of_integers(integers[:, :depth], scales, None, GROUP, bits)


def _byte_scales(blocks: Array) -> Array:
    """The largest number of a group becomes 127."""
    scales: Array = (abs(blocks).max(-1) / np.float32(127)).astype(np.float16)
    return scales


def _to_integers(blocks: Array, scales: Array, bits: int) -> Array:
    """Rounded to the nearest multiple of the scale of the group; 0 where that is 0."""
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    most = (1 << (bits - 1)) - 1
    return np.clip(np.rint(blocks * inverse[..., None]), -most - 1, most).astype(np.int8)
