"""Maxima and minima of floats that propagate NaN, and are -inf (or inf) for no elements.

TVM's own lowering drops NaN, depending on the order, and starts from the largest finite number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tvm import relax, te, tirx, topi
from tvm.relax.transform.legalize_ops import nn, statistical

from compiler.passes.rewriting.matching import dtype_of, rank_of

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Attrs, Expr, Tensor

Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]
_FLOATS = ("float16", "float32", "float64")


def _reducer(dtype: str, *, greatest: bool) -> Callable[..., Expr]:
    """In the form that `schedules.ir.reduction` recognizes."""

    def combine(own: Expr, value: Expr) -> Expr:
        best = tirx.max(own, value) if greatest else tirx.min(own, value)
        return tirx.Select(tirx.isnan(own), own, tirx.Select(tirx.isnan(value), value, best))

    return te.comm_reducer(combine, lambda _: tirx.const(-math.inf if greatest else math.inf, dtype), name="extremum")


def _extremum(name: str) -> Legalize:
    """`max` and `min` over axes; of no element, the infinity that no element is beyond."""
    own: Legalize = statistical._statistical(getattr(topi, name))

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        dtype, rank = dtype_of(call.args[0]), rank_of(call.args[0])
        if dtype not in _FLOATS or rank is None:
            return own(builder, call)
        axes = range(rank) if call.attrs.axis is None else [int(axis) % rank for axis in call.attrs.axis]
        keep = bool(call.attrs.keepdims)
        reducer = _reducer(dtype, greatest=name == "max")
        return builder.call_te(lambda x: _reduced(x, list(axes), keep, reducer), call.args[0], primfunc_name_hint=name)

    return legalize


def _reduced(data: te.Tensor, axes: Sequence[int], keep: bool, reducer: Callable[..., Expr]) -> te.Tensor:
    if not axes:
        return te.compute(data.shape, lambda *place: data(*place), name="reduced")
    reduced = {axis: te.reduce_axis((0, data.shape[axis]), f"k{axis}") for axis in axes}
    kept = [axis for axis in range(len(data.shape)) if keep or axis not in reduced]
    shape = [tirx.const(1, "int64") if axis in reduced else data.shape[axis] for axis in kept]

    def element(*indices: Expr) -> Expr:
        position = dict(zip(kept, indices, strict=True))
        place = [reduced[a].var if a in reduced else position[a] for a in range(len(data.shape))]
        return reducer(data(*place), axis=list(reduced.values()))

    return te.compute(shape, element, name="reduced")


def _max_pool(rank: int) -> Legalize:
    own: Legalize = getattr(nn, f"_nn_max_pool{rank}d")

    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        attrs = call.attrs
        layout = str(attrs.layout)
        plain = layout.isalpha() and layout.isupper() and layout == (str(attrs.out_layout) or layout)
        if dtype_of(call.args[0]) not in _FLOATS or not plain:
            return own(builder, call)
        spatial = [layout.index(letter) for letter in "DHW"[-rank:]]

        return builder.call_te(
            lambda data: _pooled(data, spatial, attrs), call.args[0], primfunc_name_hint=f"max_pool{rank}d"
        )

    return legalize


def _pooled(data: te.Tensor, spatial: Sequence[int], attrs: Attrs) -> te.Tensor:
    """Maximum pooling, with output sizes as Relax infers them."""
    rank = len(spatial)
    taps = [te.reduce_axis((0, int(size)), f"tap{axis}") for axis, size in zip(spatial, attrs.pool_size, strict=True)]
    before, after = [int(p) for p in attrs.padding[:rank]], [int(p) for p in attrs.padding[rank:]]
    shape = list(data.shape)
    for i, axis in enumerate(spatial):
        extent = int(attrs.dilation[i]) * (int(attrs.pool_size[i]) - 1) + 1
        free, stride = data.shape[axis] + before[i] + after[i] - extent, int(attrs.strides[i])
        rounded = free + stride - 1 if attrs.ceil_mode else free
        shape[axis] = tirx.floordiv(rounded, stride) + 1
    reducer = _reducer(data.dtype, greatest=True)
    source = _bordered(data, spatial, before, after, attrs)

    def element(*indices: Expr) -> Expr:
        place = list(indices)
        for i, axis in enumerate(spatial):
            place[axis] = indices[axis] * int(attrs.strides[i]) + taps[i] * int(attrs.dilation[i])
        return reducer(source(*place), axis=taps)

    return te.compute(shape, element, name="max_pool")


def _bordered(
    data: te.Tensor, spatial: Sequence[int], before: Sequence[int], after: Sequence[int], attrs: Attrs
) -> Tensor:
    """The data with -inf around it, as far as windows reach."""
    low, high = [0] * len(data.shape), [0] * len(data.shape)
    for i, axis in enumerate(spatial):
        low[axis], high[axis] = before[i], after[i] + (int(attrs.strides[i]) - 1 if attrs.ceil_mode else 0)
    if not any(low) and not any(high):
        return data
    return topi.nn.pad(data, low, high, tirx.const(-math.inf, data.dtype), name="bordered")


LEGALIZATIONS: dict[str, Legalize] = {
    "relax.max": _extremum("max"),
    "relax.min": _extremum("min"),
    **{f"relax.nn.max_pool{rank}d": _max_pool(rank) for rank in (1, 2, 3)},
}
