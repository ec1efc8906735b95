"""GPTQ: columns of a weight are rounded one after another, and those behind make up for the error in the results.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2023), with a scale
for each group of neighbours, chosen when its turn comes.
"""

from __future__ import annotations

import numpy as np

from compiler.frontends.llm.group_rounding import GROUP, best_scales
from compiler.frontends.llm.weights import Array

_DAMPING = 0.01  # of the mean of the diagonal, added to it
_LEAST, _MOST = -8, 7


def rounded_by_gptq(values: Array, gram: Array) -> tuple[Array, Array]:
    """Round a weight to 4 bits so that its products with data, not its elements, change least.

    Args:
        values: float32 (rows, depth).
        gram: the sum of x xᵀ over the data x, float32 (depth, depth).

    Returns:
        integers, int8 (rows, groups * 32), and scales, float16 (rows, groups), as `best_scales` has them.
    """
    rows, depth = values.shape
    groups = -(-depth // GROUP)
    left = np.zeros((rows, groups * GROUP), np.float32)
    left[:, :depth] = values
    factors = _factors(gram, groups * GROUP)
    integers = np.empty(left.shape, np.int8)
    scales = np.empty((rows, groups), np.float16)
    for group in range(groups):
        first, end = group * GROUP, (group + 1) * GROUP
        own = factors[first:end, first:end]
        importance = 1 / np.square(np.diagonal(own))
        scale = best_scales(left[:, None, first:end], importance[None])[:, 0]
        errors = _round_group(left[:, first:end], scale.astype(np.float32), own, integers[:, first:end])
        left[:, end:] -= errors @ factors[first:end, end:]
        scales[:, group] = scale
    return integers, scales


def _factors(gram: Array, size: int) -> Array:
    """The upper Cholesky factor of the inverse of the damped matrix, float32 (size, size)."""
    whole = np.zeros((size, size), np.float64)
    whole[: len(gram), : len(gram)] = gram
    mean = float(np.mean(np.diagonal(gram))) or 1.0
    whole[np.diag_indices(size)] += _DAMPING * mean
    upper: Array = np.linalg.cholesky(np.linalg.inv(whole)).T
    return np.ascontiguousarray(upper, np.float32)


def _round_group(values: Array, scale: Array, factors: Array, integers: Array) -> Array:
    """Round the columns of a group into `integers`; their errors (rows, 32), each over its factor."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    columns = np.ascontiguousarray(values.T)
    errors = np.empty_like(columns)
    for at in range(GROUP):
        whole = np.clip(np.rint(columns[at] * inverse), _LEAST, _MOST)
        integers[:, at] = whole
        errors[at] = (columns[at] - whole * scale) / factors[at, at]
        if at + 1 < GROUP:
            columns[at + 1 :] -= factors[at, at + 1 :, None] * errors[at]
    return np.ascontiguousarray(errors.T)
