"""store-palettes: weights of few distinct values are stored as a palette and a code of a few bits for each.

Nothing is rounded: the values are those that `share_weights` left. They come back when the module is loaded, behind
whatever packing or transforming a weight went through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te
from tvm.ir import GenericConst, IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.expansion import Expansion, Expansions
from compiler.passes.leaves import leaves
from compiler.passes.matching import Array, array_of
from compiler.passes.registry import graph_pass

MOST_BITS = 8
_FEWEST = 1024  # elements; a palette of 256 is as large
_PROBE = 4096

# What became of an array, by its identity, which is its own as long as the array is kept beside it.
Cache = dict[int, tuple[Array, "_Packed | None"]]


@graph_pass("store-palettes", summary="Store weights of few distinct values as a palette and codes of 1 to 8 bits")
def store_palettes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Adds to `context.expansions`; the module stays as it is."""
    expansions: Expansions = context.expansions
    packed: Cache = {}
    for _, function in mod.functions_items():
        if isinstance(function, relax.Function):
            for leaf in leaves(function.body):
                if isinstance(leaf, GenericConst):
                    _note(leaf, expansions, packed)
    return mod


def _note(constant: GenericConst, expansions: Expansions, packed: Cache) -> None:
    known = expansions.known.get(constant)
    arrays = (array_of(constant),) if known is None else known.stored
    for array in arrays:
        if id(array) not in packed:
            packed[id(array)] = array, _packed(array)
    found = [packed[id(array)][1] for array in arrays]
    if all(each is None for each in found):
        return
    stored: list[Array] = []
    for array, each in zip(arrays, found, strict=True):
        stored += [array] if each is None else each.stored

    def kernel(*parts: Any) -> Any:
        rest, whole = list(parts), []
        for each in found:
            whole.append(rest.pop(0) if each is None else each.expand(rest.pop(0), rest.pop(0)))
        return whole[0] if known is None else known.kernel(*whole)

    expansions.known[constant] = Expansion(tuple(stored), kernel, "expand_palette" if known is None else known.name)


@dataclass(frozen=True)
class _Packed:
    """What is stored of an array, and how it comes back."""

    stored: tuple[Array, Array]
    expand: Callable[..., Any]


def _packed(array: Array) -> _Packed | None:
    """None where a palette saves nothing."""
    if array.dtype != np.float32 or array.size < _FEWEST:
        return None
    stored = palette_codes(array)
    return None if stored is None else _Packed(stored, _expand(array.shape, *stored))


def palette_codes(array: Array) -> tuple[Array, Array] | None:
    """(codes packed into bytes, palette of float32) when there are at most 256 values; None otherwise."""
    flat = np.ascontiguousarray(array).ravel().view(np.uint32)  # by bits: two zeros are two values
    step = max(1, flat.size // _PROBE)
    if len(np.unique(flat[::step])) > 1 << MOST_BITS:
        return None
    values, codes = np.unique(flat, return_inverse=True)
    if len(values) > 1 << MOST_BITS:
        return None
    bits = max(1, int(len(values) - 1).bit_length())
    palette = np.zeros(1 << bits, np.float32)
    palette[: len(values)] = values.view(np.float32)
    digits = (codes.reshape(-1, 1) >> np.arange(bits)) & 1
    packed = np.packbits(digits.astype(np.uint8).ravel(), bitorder="little")
    return np.append(packed, np.uint8(0)), palette  # a byte more: codes are read two bytes at a time


def _expand(shape: tuple[int, ...], codes: Array, palette: Array) -> Callable[..., Any]:
    bits = int(len(palette) - 1).bit_length()

    def expand(packed: te.Tensor, values: te.Tensor) -> te.Tensor:
        def element(*indices: Any) -> Any:
            flat: Any = 0
            for index, size in zip(indices, shape, strict=True):
                flat = flat * size + index
            first = flat * bits
            low, high = packed[first // 8].astype("int32"), packed[first // 8 + 1].astype("int32")
            pair = low | (high << 8)
            return values[(pair >> (first % 8).astype("int32")) & ((1 << bits) - 1)]

        return te.compute(shape, element, name="expand_palette")

    return expand
