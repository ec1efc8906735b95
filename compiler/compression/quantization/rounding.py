"""Rounding of weights against calibration data: GPTQ and AdaRound.

Gram matrices (X Xᵀ) of layer inputs, used by GPTQ and AdaRound.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compiler.compression.quantization.affine import Array, QuantizedWeight
from compiler.compression.quantization.layers import Layer
from compiler.passes.rewriting.graph import Var

# Rounds weights to few bits with one scale per group: to the nearest level, or with compensation by later weights.
#
# Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv:2210.17323,
# algorithm 1. With H the Gram matrix (the sum of x x' over the calibration data) and U the upper Cholesky factor of its
# inverse, rounding row k by an error e changes the rows j > k by -(e / U[k, k]) U[k, j], which minimizes the change of
# the matmul's result.


# Added to the diagonal of H, relative to its mean.
_DAMPING = 0.01
_BLOCK = 128
# The largest weight of a group may be clipped to this fraction of itself if the others gain by it.
_SHARES = np.linspace(1.0, 0.7, 13)


def group_scales(weight: Array, bits: int, dtype: str) -> Array:
    """The scale of each column of a group (rows, columns) with the smallest sum of squared errors."""
    most = 2 ** (bits - 1) - 1
    largest = np.abs(weight).max(axis=0).astype(np.float64)
    best = np.full(largest.shape, np.inf)
    chosen = np.ones(largest.shape, np.float32)
    for share in _SHARES:
        scale = _storable(largest * share / most, dtype)
        error = ((levels(weight, scale, bits) * scale - weight) ** 2).sum(axis=0)
        better = error < best
        best, chosen = np.where(better, error, best), np.where(better, scale, chosen).astype(np.float32)
    return chosen


def _storable(scale: Array, dtype: str) -> Array:
    """The scale rounded to its stored type; 1 if it is 0 there."""
    stored = np.clip(scale, 0, float(np.finfo(dtype).max)).astype(dtype).astype(np.float32)
    return np.where(stored > 0, stored, np.float32(1)).astype(np.float32)


def levels(weight: Array, scale: Array, bits: int) -> Array:
    """The nearest integers, from -2**(bits - 1) to 2**(bits - 1) - 1."""
    most = 2 ** (bits - 1)
    return np.clip(np.rint(weight / scale), -most, most - 1)


def rounded_to_nearest(weight: Array, group: int, bits: int, dtype: str) -> tuple[Array, Array]:
    """(int8 (depth, columns), float32 scales (groups, columns))."""
    parts = [weight[start : start + group] for start in range(0, len(weight), group)]
    scales = [group_scales(part, bits, dtype) for part in parts]
    values = [levels(part, scale, bits) for part, scale in zip(parts, scales, strict=True)]
    return np.concatenate(values).astype(np.int8), np.stack(scales)


def rounded_by_gptq(weight: Array, gram: Array, group: int, bits: int, dtype: str) -> tuple[Array, Array]:
    """Like `rounded_to_nearest`, minimizing the error of the matmul's result on the calibration data. `gram`: the Gram
    matrix (sum of x x') of the data, (depth, depth)."""
    rest = weight.astype(np.float32).copy()
    upper = _inverse_factor(gram)
    depth = len(rest)
    values = np.zeros(rest.shape, np.int8)
    scales: list[Array] = []
    step = min(_BLOCK, group)
    for start in range(0, depth, step):
        stop = min(start + step, depth)
        errors = np.zeros((stop - start, rest.shape[1]), np.float32)
        for k in range(start, stop):
            if k % group == 0:
                scales.append(group_scales(rest[k : k + group], bits, dtype))
            values[k] = levels(rest[k], scales[-1], bits)
            errors[k - start] = (rest[k] - values[k] * scales[-1]) / upper[k, k]
            rest[k + 1 : stop] -= np.outer(upper[k, k + 1 : stop], errors[k - start])
        rest[stop:] -= upper[start:stop, stop:].T @ errors
    return values, np.stack(scales)


def _inverse_factor(gram: Array) -> Array:
    """U with U' U = the inverse of H, whose diagonal is increased until it has one."""
    h = gram.astype(np.float64)
    mean = float(np.mean(np.diag(h))) or 1.0
    damping = _DAMPING * mean
    while True:
        try:
            inverse = np.linalg.inv(np.linalg.cholesky(h + damping * np.eye(len(h))))
            factor = np.linalg.cholesky(inverse.T @ inverse)
            return np.ascontiguousarray(factor.T, dtype=np.float32)
        except np.linalg.LinAlgError:
            damping *= 10


# Rounds weights up or down so that the matmul's result changes least, not the weights themselves.
#
# Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568, equations 21 to 24
# without an activation function: with d the change of a filter's weights and H the Gram matrix (the sum of x x' over
# the calibration data), the sum of squared changes of its outputs is d' H d. Each weight is floor(w / s) + h, where h
# is a rectified sigmoid that a penalty drives to 0 or 1 while Adam reduces the sum. The result is then improved weight
# by weight (coordinate descent, like QuantEase, arXiv:2309.01885).


_LOW, _HIGH = -0.1, 1.1  # range of the stretched sigmoid before it is clamped to [0, 1]
_ITERATIONS = 1000
# Larger layers run fewer iterations: about this many multiplications in total.
_MULTIPLICATIONS = 1e12
_FEWEST = 100
_RATE = 0.03
_PENALTY = 0.3
# The exponent of the penalty falls from the first to the second of these, after a fraction of iterations without it.
_EXPONENTS, _WITHOUT = (20.0, 2.0), 0.2
_SWEEPS = 20


def rounded_by_adaround(weight: Array, steps: Array, gram: Array, low: int, high: int) -> Array:
    """Integers whose products with the data are close to those of the weights.

    Args:
        weight: float32 (groups, depth, columns); a group's columns multiply the same data.
        steps: the scale of each weight, broadcastable to that shape.
        gram: Gram matrices (sums of x x'), (groups, depth, depth).
        low, high: the smallest and the largest integer.

    Returns:
        int8 (groups, depth, columns).
    """
    steps = np.broadcast_to(steps.astype(np.float32), weight.shape)
    problem = _Problem(weight / steps, steps, _normalized(gram), low, high)
    return _descend(problem, _relaxed(problem)).astype(np.int8)


@dataclass(frozen=True)
class _Problem:
    """`target`: the weights in steps; `h`: the Gram matrices, scaled to a mean diagonal of 1 per group."""

    target: Array
    steps: Array
    h: Array
    low: int
    high: int

    def slope(self, integers: Array) -> Array:
        """H d of each column, with d in the weights' own units."""
        result: Array = self.h @ ((integers - self.target) * self.steps)
        return result


def _normalized(gram: Array) -> Array:
    mean = np.einsum("gkk->g", gram).astype(np.float64) / gram.shape[-1]
    scaled: Array = gram / np.where(mean > 0, mean, 1).reshape(-1, 1, 1).astype(np.float32)
    return scaled


def _relaxed(problem: _Problem) -> Array:
    """Adam on the sigmoids' arguments, then rounding to the nearer of down and up."""
    down = np.clip(np.floor(problem.target), problem.low, problem.high)
    logits = _logits(problem.target - down)
    # The sum of each column in units of its own steps, so that the penalty has the same weight for all.
    unit = problem.steps / (problem.steps.astype(np.float64) ** 2).mean(axis=1, keepdims=True).astype(np.float32)
    count = _iterations(problem.target.shape)
    first, second = np.zeros_like(logits), np.zeros_like(logits)
    for step in range(count):
        share, inner = _up(logits)
        slope = 2 * problem.slope(np.minimum(down + share, problem.high)) * unit
        progress = (step / count - _WITHOUT) / (1 - _WITHOUT)
        if progress > 0:
            slope -= _PENALTY * _penalty_slope(share, progress)
        slope *= inner
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope * slope
        corrected = np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
        logits -= _RATE / (1 - 0.9 ** (step + 1)) * first / corrected
    return np.minimum(down + (_up(logits)[0] >= 0.5), problem.high)


def _iterations(shape: tuple[int, ...]) -> int:
    groups, depth, columns = shape
    return int(np.clip(_MULTIPLICATIONS / (groups * depth * depth * columns), _FEWEST, _ITERATIONS))


def _logits(share: Array) -> Array:
    stretched = (np.clip(share, 1e-3, 1 - 1e-3) - _LOW) / (_HIGH - _LOW)
    return np.log(stretched / (1 - stretched)).astype(np.float32)


def _up(logits: Array) -> tuple[Array, Array]:
    """(h, its derivative)."""
    sigmoid = 1 / (1 + np.exp(-logits))
    stretched = sigmoid * (_HIGH - _LOW) + _LOW
    inside = (stretched > 0) & (stretched < 1)
    return np.clip(stretched, 0, 1), np.where(inside, sigmoid * (1 - sigmoid) * (_HIGH - _LOW), 0)


def _penalty_slope(share: Array, progress: float) -> Array:
    """Derivative of |2 h - 1|**beta."""
    start, end = _EXPONENTS
    beta = end + 0.5 * (start - end) * (1 + np.cos(np.pi * progress))
    distance = 2 * share - 1
    slope: Array = 2 * beta * np.sign(distance) * np.abs(distance) ** (beta - 1)
    return slope


def _descend(problem: _Problem, integers: Array) -> Array:
    """Move each weight in turn to the minimum with the others fixed, until none moves."""
    slope = problem.slope(integers)
    diagonal = np.einsum("gkk->gk", problem.h)
    for _ in range(_SWEEPS):
        moved = False
        for k in np.flatnonzero((diagonal > 0).all(axis=0)):
            best = np.rint(integers[:, k] - slope[:, k] / (diagonal[:, k, None] * problem.steps[:, k]))
            change = np.clip(best, problem.low, problem.high) - integers[:, k]
            if change.any():
                integers[:, k] += change
                slope += problem.h[:, :, k, None] * (change * problem.steps[:, k])[:, None]
                moved = True
        if not moved:
            break
    return integers


def adarounded(layer: Layer, rounded: QuantizedWeight, gram: Array) -> QuantizedWeight:
    """A layer's int8 weights rounded by AdaRound, with the existing scales."""
    steps = as_columns(layer, np.broadcast_to(rounded.broadcast_scale(), layer.weight.shape))
    columns = rounded_by_adaround(as_columns(layer, layer.weight), steps, gram, -127, 127)
    return replace(rounded, values=from_columns(layer, columns))


# Positions of a convolution taken from each sample: neighbors see nearly the same data.
_POSITIONS = 2048


def as_columns(layer: Layer, weight: Array) -> Array:
    """A layer's weights as (groups, depth, columns), one filter per column; a matrix is one group."""
    if layer.operator.is_matrix:
        return weight[None]
    filters = weight.reshape(_groups(layer), -1, int(np.prod(weight.shape[1:])))
    return np.ascontiguousarray(filters.swapaxes(1, 2))


def from_columns(layer: Layer, columns: Array) -> Array:
    """The inverse of `as_columns`."""
    if layer.operator.is_matrix:
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
        """Add the data of a sample, by variable, without non-finite values."""
        for key, layer in self._layers.items():
            if not np.isfinite(tensors[layer.data]).all():
                continue
            rows = _rows(layer, tensors[layer.data])
            with np.errstate(over="ignore", invalid="ignore"):
                square = rows.swapaxes(1, 2) @ rows
            self._sums[key] = square if key not in self._sums else self._sums[key] + square

    def of(self, layer: Layer) -> Array | None:
        """float32 (groups, depth, depth); None for a layer not requested, or if the sums overflow float32."""
        found = self._sums.get(_key(layer)) if _is_known(layer) else None
        return found if found is not None and np.isfinite(found).all() else None


def _is_known(layer: Layer) -> bool:
    """True for a matmul or a convolution that is not transposed."""
    return layer.operator.is_matrix or (layer.operator.filters == 0 and not layer.is_look_up)


def _key(layer: Layer) -> tuple[Any, ...]:
    if layer.operator.is_matrix:
        return (layer.data,)
    attrs = layer.call.attrs
    geometry = (attrs.strides, attrs.padding, attrs.dilation, [attrs.groups], layer.weight.shape[2:])
    return (layer.data, *(tuple(int(each) for each in part) for part in geometry))


def _rows(layer: Layer, data: Array) -> Array:
    """Operands multiplied by the filters: float32 (groups, rows, depth)."""
    if layer.operator.is_matrix:
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
    windows = np.moveaxis(windows, 1, 1 + rank)  # (batch, *positions, channels, *kernel)
    positions = windows.shape[: 1 + rank]
    total = int(np.prod(positions))
    chosen = np.unique(np.linspace(0, total - 1, min(total, _POSITIONS)).astype(np.int64))
    rows = windows[np.unravel_index(chosen, positions)].astype(np.float32)
    return np.ascontiguousarray(rows.reshape(len(chosen), _groups(layer), -1).swapaxes(0, 1))
