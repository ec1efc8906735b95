"""Rounding weights up or down so that products change least, not the weights themselves.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568, equations 21 to 24
without an activation function: with d the change of a filter's weights and H the Gram matrix (the sum of x x' over the
calibration data), the sum of squared changes of its outputs is d' H d. Each weight is floor(w / s) + h, where h is a
rectified sigmoid that a penalty drives to 0 or 1 while Adam lessens the sum. What it ends at is then improved weight by
weight (coordinate descent, as QuantEase, arXiv:2309.01885, does).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from compiler.compression.quantization.affine import Array, QuantizedWeight
from compiler.compression.quantization.gram_matrices import as_columns, from_columns
from compiler.compression.quantization.layers import Layer

_LOW, _HIGH = -0.1, 1.1  # what the sigmoid is stretched to before it is limited to 0 and 1
_ITERATIONS = 1000
# Of larger layers there are fewer iterations: about this many multiplications in all.
_MULTIPLICATIONS = 1e12
_FEWEST = 100
_RATE = 0.03
_PENALTY = 0.3
# The exponent of the penalty falls from the first to the last of these after a share of iterations without it.
_EXPONENTS, _WITHOUT = (20.0, 2.0), 0.2
_SWEEPS = 20


def rounded_by_adaround(weight: Array, steps: Array, gram: Array, low: int, high: int) -> Array:
    """Integers whose products with the data are near those of the weights.

    Args:
        weight: float32 (groups, depth, columns); a group's columns multiply the same data.
        steps: the scale of each weight, of a shape that broadcasts to that.
        gram: Gram matrices (sums of x x'), (groups, depth, depth).
        low, high: the least and the largest integer.

    Returns:
        int8 (groups, depth, columns).
    """
    steps = np.broadcast_to(steps.astype(np.float32), weight.shape)
    problem = _Problem(weight / steps, steps, _normalized(gram), low, high)
    return _descend(problem, _relaxed(problem)).astype(np.int8)


@dataclass(frozen=True)
class _Problem:
    """`target`: the weights in steps; `h`: the Gram matrices, the mean of each group's diagonal 1."""

    target: Array
    steps: Array
    h: Array
    low: int
    high: int

    def slope(self, integers: Array) -> Array:
        """H d of each column, d in the weights' own units."""
        result: Array = self.h @ ((integers - self.target) * self.steps)
        return result


def _normalized(gram: Array) -> Array:
    mean = np.einsum("gkk->g", gram).astype(np.float64) / gram.shape[-1]
    scaled: Array = gram / np.where(mean > 0, mean, 1).reshape(-1, 1, 1).astype(np.float32)
    return scaled


def _relaxed(problem: _Problem) -> Array:
    """Adam on the sigmoids' arguments, then the nearer of down and up."""
    down = np.clip(np.floor(problem.target), problem.low, problem.high)
    logits = _logits(problem.target - down)
    # The sum of each column in units of its own steps, so that the penalty weighs all of them equally.
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
    """(h, its slope)."""
    sigmoid = 1 / (1 + np.exp(-logits))
    stretched = sigmoid * (_HIGH - _LOW) + _LOW
    inside = (stretched > 0) & (stretched < 1)
    return np.clip(stretched, 0, 1), np.where(inside, sigmoid * (1 - sigmoid) * (_HIGH - _LOW), 0)


def _penalty_slope(share: Array, progress: float) -> Array:
    """Of |2 h - 1|**beta."""
    start, end = _EXPONENTS
    beta = end + 0.5 * (start - end) * (1 + np.cos(np.pi * progress))
    distance = 2 * share - 1
    slope: Array = 2 * beta * np.sign(distance) * np.abs(distance) ** (beta - 1)
    return slope


def _descend(problem: _Problem, integers: Array) -> Array:
    """Each weight in turn moved to where the sum is least, the others fixed, until none moves."""
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
    """A layer's int8 weights rounded by AdaRound, on the scales there are."""
    steps = as_columns(layer, np.broadcast_to(rounded.broadcast_scale(), layer.weight.shape))
    columns = rounded_by_adaround(as_columns(layer, layer.weight), steps, gram, -127, 127)
    return replace(rounded, values=from_columns(layer, columns))
