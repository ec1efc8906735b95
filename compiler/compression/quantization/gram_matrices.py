"""Gram matrices (X Xᵀ) of layer inputs, used by GPTQ and AdaRound."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from compiler.compression.quantization.affine import Array
from compiler.compression.quantization.layers import Layer
from compiler.passes.rewriting.graph import Var

# Positions of a convolution taken from each sample: neighbours see nearly the same data.
_POSITIONS = 2048


def as_columns(layer: Layer, weight: Array) -> Array:
    """A layer's weights as (groups, depth, columns), one filter per column; a matrix is one group."""
    if layer.product.is_matrix:
        return weight[None]
    filters = weight.reshape(_groups(layer), -1, int(np.prod(weight.shape[1:])))
    return np.ascontiguousarray(filters.swapaxes(1, 2))


def from_columns(layer: Layer, columns: Array) -> Array:
    """The inverse of `as_columns`."""
    if layer.product.is_matrix:
        matrix: Array = columns[0]
        return matrix
    return np.ascontiguousarray(columns.swapaxes(1, 2)).reshape(layer.weight.shape)


def _groups(layer: Layer) -> int:
    return int(layer.call.attrs.groups)


class GramMatrices:
    """Gram matrices of layers over the tensors added; layers that read the same data in the same form share one."""

    def __init__(self, layers: Collection[Layer]) -> None:
        self._layers = {_key(layer): layer for layer in layers if _is_known(layer)}
        self._sums: dict[tuple[Any, ...], Array] = {}

    def add(self, tensors: Mapping[Var, Array]) -> None:
        """Take in the data of a sample, by variable; what is not finite is left out."""
        for key, layer in self._layers.items():
            if not np.isfinite(tensors[layer.data]).all():
                continue
            rows = _rows(layer, tensors[layer.data])
            with np.errstate(over="ignore", invalid="ignore"):
                square = rows.swapaxes(1, 2) @ rows
            self._sums[key] = square if key not in self._sums else self._sums[key] + square

    def of(self, layer: Layer) -> Array | None:
        """float32 (groups, depth, depth); None of a layer not asked for, or whose sums float32 does not hold."""
        found = self._sums.get(_key(layer)) if _is_known(layer) else None
        return found if found is not None and np.isfinite(found).all() else None


def _is_known(layer: Layer) -> bool:
    """True if it is a matrix product or a convolution that is not transposed."""
    return layer.product.is_matrix or (layer.product.filters == 0 and not layer.is_look_up)


def _key(layer: Layer) -> tuple[Any, ...]:
    if layer.product.is_matrix:
        return (layer.data,)
    attrs = layer.call.attrs
    geometry = (attrs.strides, attrs.padding, attrs.dilation, [attrs.groups], layer.weight.shape[2:])
    return (layer.data, *(tuple(int(each) for each in part) for part in geometry))


def _rows(layer: Layer, data: Array) -> Array:
    """Operands that the filters multiply: float32 (groups, rows, depth)."""
    if layer.product.is_matrix:
        return data.reshape(1, -1, data.shape[-1]).astype(np.float32)
    attrs, kernel = layer.call.attrs, layer.weight.shape[2:]
    rank = len(kernel)
    strides, padding, dilation = (
        [int(each) for each in part] for part in (attrs.strides, attrs.padding, attrs.dilation)
    )
    padded = np.pad(data, [(0, 0), (0, 0), *((padding[i], padding[i + rank]) for i in range(rank))])
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(2, 2 + rank)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilation)))]
    windows = np.moveaxis(windows, 1, 1 + rank)  # (batch, *places, channels, *kernel)
    places = windows.shape[: 1 + rank]
    total = int(np.prod(places))
    chosen = np.unique(np.linspace(0, total - 1, min(total, _POSITIONS)).astype(np.int64))
    rows = windows[np.unravel_index(chosen, places)].astype(np.float32)
    return np.ascontiguousarray(rows.reshape(len(chosen), _groups(layer), -1).swapaxes(0, 1))
