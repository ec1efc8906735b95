"""Packing of checkpoint weights for kernels: unchanged, or rounded to another precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import ml_dtypes  # noqa: F401  (numpy's 8-bit types, by name)
import numpy as np

from compiler.frontends.gguf_blocks import read_gguf_blocks
from compiler.frontends.llm.group_rounding import GROUP, best_scales, rounded_by_gptq
from compiler.frontends.llm.weights import FLOAT_KINDS, Array, Experts, Matrix
from compiler.passes.rewriting.block_weights import BlockWeight, Empty
from compiler.support.optional import optional_module

_NUMBERS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_ROWS_AT_ONCE = 4096  # rows converted at a time, to limit temporary copies
_ROWS_IN_CACHES = 256


def packed(weight: Matrix, precision: str | None, gram: Array | None = None, *, empty: Empty = np.empty) -> BlockWeight:
    """Pack a weight for kernels, some rows at a time.

    Args:
        weight: of any kind; float32 replaces weights with group sizes that kernels do not support (no multiple of 4).
        precision: see `LanguageModelOptions`; already quantized weights are quantized again.
        gram: a Gram matrix from the options' `grams`.
        empty: allocates the arrays of the weight.
    """
    vary = _zeros_vary([weight])
    step = weight.rows if gram is not None else _ROWS_AT_ONCE
    rows = (weight.taken(slice(start, start + step)) for start in range(0, weight.rows, step))
    whole = BlockWeight.of_rows(weight.rows, (_packed(each, precision, gram, vary=vary) for each in rows), empty)
    return replace(whole, order=_order(weight, precision))


def _packed(weight: Matrix, precision: str | None, gram: Array | None, *, vary: bool) -> BlockWeight:
    if weight.kind not in FLOAT_KINDS and (precision is not None or not _kernels_read(weight)):
        weight = Matrix("F32", dequantized(weight), weight.depth)
    if weight.kind in FLOAT_KINDS:
        if precision == "int4" and gram is not None:
            integers, scales = rounded_by_gptq(np.asarray(weight.data, np.float32), gram)
            return BlockWeight.of_integers(integers[:, : weight.depth], scales, None, GROUP, 4)
        if precision in ("int8", "int4"):
            return _rounded(weight.data, 8 if precision == "int8" else 4)
        return BlockWeight.of_floats(np.asarray(weight.data), precision or _NUMBERS[weight.kind])
    if weight.groups is None:
        return read_gguf_blocks(weight.data, weight.kind, (weight.rows, weight.depth))
    groups = weight.groups
    if weight.kind in _FLOAT8:
        return BlockWeight.of_codes(weight.data, groups.scales, groups.size, _FLOAT8[weight.kind])
    if groups.table is not None:
        return BlockWeight.of_codes(weight.data, groups.scales, groups.size, groups.table.tolist())
    bits = int(weight.kind.removeprefix("INT"))
    return BlockWeight.of_integers(weight.data, groups.scales, groups.zeros, groups.size, bits, vary=vary)


def _kernels_read(weight: Matrix) -> bool:
    """True if kernels support a weight's groups, which they read in fours."""
    return weight.groups is None or math.gcd(weight.groups.size, 4) == 4


def packed_experts(run: Sequence[Experts], precision: str | None, empty: Empty = np.empty) -> BlockWeight:
    """Pack the weights of a mixture's experts one after another; the parts of a run are adjacent within each expert."""
    vary = _zeros_vary([weight for part in run for weight in part.weights])
    each = zip(*(part.weights for part in run), strict=True)
    weights = (_packed_expert(Matrix.joined(parts), precision, vary=vary) for parts in each)
    return BlockWeight.of_experts(len(run[0].weights), sum(part.rows for part in run), weights, empty)


def _packed_expert(weight: Matrix, precision: str | None, *, vary: bool) -> BlockWeight:
    return replace(_packed(weight, precision, None, vary=vary), order=_order(weight, precision))


def _order(weight: Matrix, precision: str | None) -> Array | None:
    """Return the order of the input features of a packed weight."""
    kept = weight.groups is not None and precision is None and _kernels_read(weight)
    return weight.groups.order if weight.groups is not None and kept else None


def _zeros_vary(weights: Sequence[Matrix]) -> bool:
    """True if zero points exist and are not all equal."""
    zeros = [each.groups.zeros for each in weights if each.groups is not None and each.groups.zeros is not None]
    return bool(zeros) and any(bool((each != zeros[0].flat[0]).any()) for each in zeros)


def dequantized(weight: Matrix) -> Array:
    """Return the weight as float32: (rows, depth), in the order of the input features."""
    if weight.kind in FLOAT_KINDS:
        return np.asarray(weight.data, np.float32)
    if weight.groups is None:
        gguf = optional_module("gguf", "generate", "reads GGUF files")
        blocks: Array = gguf.dequantize(weight.data, gguf.GGMLQuantizationType[weight.kind])
        return blocks
    groups, values = weight.groups, weight.data
    if weight.kind in _FLOAT8:
        values = values.view(_FLOAT8[weight.kind]).astype(np.float32)
    elif groups.table is not None:
        values = groups.table[values]
    group_index = np.minimum(np.arange(weight.depth) // groups.size, groups.scales.shape[1] - 1)
    result = values.astype(np.float32)
    if groups.zeros is not None:
        result -= groups.zeros.astype(np.float32)[:, group_index]
    result *= groups.scales.astype(np.float32)[:, group_index]
    if groups.order is None:
        return result
    ordered = np.empty_like(result)
    ordered[:, groups.order] = result
    return ordered


def _rounded(values: Array, bits: int) -> BlockWeight:
    """Quantize groups of neighbors to symmetric integers, with a float16 scale per group."""
    rows, depth = values.shape
    groups = -(-depth // GROUP)
    integers = np.zeros((rows, groups * GROUP), np.int8)
    scales = np.zeros((rows, groups), np.float16)
    for start in range(0, rows, _ROWS_IN_CACHES):
        part = np.zeros((len(values[start : start + _ROWS_IN_CACHES]), groups * GROUP), np.float32)
        part[:, :depth] = values[start : start + _ROWS_IN_CACHES]
        blocks = part.reshape(len(part), groups, GROUP)
        scale = _byte_scales(blocks) if bits == 8 else best_scales(blocks)
        rounded = _to_integers(blocks, scale.astype(np.float32), bits)
        integers[start : start + len(part)] = rounded.reshape(len(part), -1)
        scales[start : start + len(part)] = scale
    return BlockWeight.of_integers(integers[:, :depth], scales, None, GROUP, bits)


def _byte_scales(blocks: Array) -> Array:
    """Return scales that map the largest number of a group to 127."""
    scales: Array = (abs(blocks).max(-1) / np.float32(127)).astype(np.float16)
    return scales


def _to_integers(blocks: Array, scales: Array, bits: int) -> Array:
    """Round to the nearest multiple of the group's scale; 0 if the scale is 0."""
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    most = (1 << (bits - 1)) - 1
    return np.clip(np.rint(blocks * inverse[..., None]), -most - 1, most).astype(np.int8)
