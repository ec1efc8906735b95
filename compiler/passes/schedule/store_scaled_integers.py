"""store-scaled-integers: weights that are int8 integers times a scale per output channel are stored as those.

Nothing is rounded: the values are those that quantizing weights alone (or training with rounding) left, found behind
whatever packing a weight went through. They are restored bit for bit when the module is loaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tvm import te
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.matching import Array
from compiler.passes.schedule.narrow_storage import Packed, store_narrow

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_FEWEST = 4096  # elements; fewer are not worth a kernel that runs when the module is loaded
# The largest integer of a filter: it is 127 where weights are rounded to the nearest, perhaps less where otherwise, or
# where the filter is a phase of a transposed one. A product of scale and integer was rounded: divided again, it may be
# the scale's neighbour.
_MOST = range(127, 0, -1)
_PROBED = 64


@graph_pass("store-scaled-integers", summary="Store weights that are 8-bit integers times a scale per channel as such")
def store_scaled_integers(mod: IRModule, context: PipelineContext) -> IRModule:
    """Adds to `context.expansions`; the module stays as it is."""
    store_narrow(mod, context.expansions, packed_integers, "expand_integers")
    return mod


def packed_integers(array: Array) -> Packed | None:
    """None where no scale per output channel gives the numbers back exactly."""
    if array.dtype != np.float32 or array.size < _FEWEST or array.ndim < 2:
        return None
    last = array.ndim - 1
    # Filters lie along the first axis, or in blocks: along the first and the last.
    for axes in ((0,), (0, last), (last,)):
        if 8 * np.prod([array.shape[axis] for axis in axes]) > array.size:
            continue
        if _may_be_scaled(array, axes) and (found := _scaled(array, axes)) is not None:
            return Packed(found, _expanded)
    return None


def _may_be_scaled(array: Array, axes: Sequence[int]) -> bool:
    """True if a few numbers of a filter are integers on some scale of it: of other weights none are."""
    place = [array.shape[axis] // 2 if axis in axes else slice(None) for axis in range(array.ndim)]
    values = np.ravel(array[tuple(place)])
    largest, some = np.abs(values).max(), values[np.flatnonzero(values)[:_PROBED]]
    if not some.size or not np.isfinite(largest):
        return False
    nearest = largest / np.arange(1, _MOST[0] + 1, dtype=np.float32)
    scales = np.concatenate([nearest, np.nextafter(nearest, np.float32(0)), np.nextafter(nearest, np.float32(np.inf))])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        exact = np.rint(some / scales[:, None]) * scales[:, None] == some
    return bool(exact.all(1).any())


def _scaled(array: Array, axes: Sequence[int]) -> tuple[Array, Array] | None:
    """(int8 integers, float32 scales that broadcast over them), whose products are the array."""
    ahead = np.moveaxis(array, axes, range(len(axes)))
    filters = np.ascontiguousarray(ahead).reshape(-1, int(np.prod(ahead.shape[len(axes) :])))
    largest = np.abs(filters).max(1, keepdims=True)
    if not np.isfinite(largest).all():
        return None
    scales, rest = np.ones(largest.shape, np.float32), np.flatnonzero(largest)
    for most, end in itertools.product(_MOST, (None, 0, np.inf)):
        if not rest.size:
            break
        candidate = largest[rest] / np.float32(most)
        if end is not None:
            candidate = np.nextafter(candidate, np.float32(end))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            exact = (np.rint(filters[rest] / candidate) * candidate == filters[rest]).all(1)
        scales[rest[exact]] = candidate[exact]
        rest = rest[~exact]
    if rest.size:
        return None
    wide = scales.reshape([size if axis in axes else 1 for axis, size in enumerate(array.shape)])
    return np.rint(array / wide).astype(np.int8), wide


def _expanded(integers: te.Tensor, scales: te.Tensor) -> te.Tensor:
    sizes = [int(size) for size in scales.shape]

    def element(*at: Expr) -> Expr:
        place = [0 if size == 1 else index for size, index in zip(sizes, at, strict=True)]
        return integers(*at).astype("float32") * scales(*place)

    return te.compute(integers.shape, element, name="expand_integers")
