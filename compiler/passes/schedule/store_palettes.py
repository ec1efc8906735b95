"""store-palettes: weights of few distinct values are stored as a palette and a code of a few bits for each.

Nothing is rounded: the values are those that `share_weights` left. They are expanded when the module is loaded, behind
whatever packing or transforming a weight went through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from tvm import te
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.matching import Array
from compiler.passes.schedule.narrow_storage import Packed, store_narrow

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Tensor

MOST_BITS = 8
_FEWEST = 1024  # elements; a palette of 256 is as large
_PROBE = 4096


@graph_pass("store-palettes", summary="Store weights of few distinct values as a palette and codes of 1 to 8 bits")
def store_palettes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Adds to `context.expansions`; the module stays as it is."""
    store_narrow(mod, context.expansions, _packed, "expand_palette")
    return mod


def _packed(array: Array) -> Packed | None:
    """None where a palette saves nothing."""
    if array.dtype != np.float32 or array.size < _FEWEST:
        return None
    stored = palette_codes(array)
    return None if stored is None else Packed(stored, _expand(array.shape, *stored))


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


def _expand(shape: tuple[int, ...], codes: Array, palette: Array) -> Callable[..., Tensor]:
    bits = int(len(palette) - 1).bit_length()

    def expand(packed: te.Tensor, values: te.Tensor) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            flat: Expr = 0
            for index, size in zip(indices, shape, strict=True):
                flat = flat * size + index
            first = flat * bits
            low, high = packed[first // 8].astype("int32"), packed[first // 8 + 1].astype("int32")
            pair = low | (high << 8)
            return values[(pair >> (first % 8).astype("int32")) & ((1 << bits) - 1)]

        return te.compute(shape, element, name="expand_palette")

    return expand
