"""Rounding weights to few bits with one scale per group: to the nearest level, or so that later weights make up for it.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv:2210.17323,
algorithm 1. With H the Gram matrix (the sum of x x' over the calibration data) and U the upper Cholesky factor of its
inverse, rounding row k by an error e changes the rows j > k by -(e / U[k, k]) U[k, j], which least changes the
products.
"""

from __future__ import annotations

import numpy as np

from compiler.compression.quantization.affine import Array

# Added to the diagonal of H, as a share of its mean.
_DAMPING = 0.01
_BLOCK = 128
# The largest weight of a group may be cut to this share of itself where the others gain by it.
_SHARES = np.linspace(1.0, 0.7, 13)


def group_scales(weight: Array, bits: int, dtype: str) -> Array:
    """The scale of each column of a group (rows, columns) with the least sum of squared errors."""
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
    """The scale as its type holds it; 1 where it is 0 there."""
    stored = np.clip(scale, 0, float(np.finfo(dtype).max)).astype(dtype).astype(np.float32)
    return np.where(stored > 0, stored, np.float32(1)).astype(np.float32)


def levels(weight: Array, scale: Array, bits: int) -> Array:
    """The nearest integers, of -2**(bits - 1) to 2**(bits - 1) - 1."""
    most = 2 ** (bits - 1)
    return np.clip(np.rint(weight / scale), -most, most - 1)


def rounded_to_nearest(weight: Array, group: int, bits: int, dtype: str) -> tuple[Array, Array]:
    """(int8 (depth, columns), float32 scales (groups, columns))."""
    parts = [weight[start : start + group] for start in range(0, len(weight), group)]
    scales = [group_scales(part, bits, dtype) for part in parts]
    values = [levels(part, scale, bits) for part, scale in zip(parts, scales, strict=True)]
    return np.concatenate(values).astype(np.int8), np.stack(scales)


def rounded_by_gptq(weight: Array, gram: Array, group: int, bits: int, dtype: str) -> tuple[Array, Array]:
    """As `rounded_to_nearest`, with the errors of products on the calibration's data made small.

    Args:
        gram: the Gram matrix (sum of x x') of the data, (depth, depth).
    """
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
    """U with U' U = the inverse of H, its diagonal raised until it has one."""
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
