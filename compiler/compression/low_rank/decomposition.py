"""Weights as products of smaller ones.

A matrix by its singular values. A convolution in one of two forms, whichever needs fewer multiplications: as a matrix
(filters against everything else), which makes a convolution of few filters and a 1x1 one (Denton et al.,
arXiv:1404.0736); or by Tucker's decomposition of filters and channels, which makes a 1x1, a small and a 1x1 convolution
(Kim et al., arXiv:1511.06530), its factors by HOSVD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.passes.rewriting.matching import Array


@dataclass(frozen=True, eq=False)
class Factors:
    """The weights of the layers that take a layer's place, in order.

    Attributes:
        weights: float32; matrices (in, out), or convolutions (out, in, *kernel) of which one has the whole kernel.
        product: what they multiply to, in the layer's own shape.
        multiplications: a position of the output (of stride 1).
    """

    weights: tuple[Array, ...]
    product: Array
    multiplications: int


def rank_for(singular: Array, energy: float, multiple: int) -> int:
    """The smallest rank that keeps this share of the sum of squares, rounded up to whole vectors."""
    kept = np.cumsum(singular.astype(np.float64) ** 2)
    if not kept[-1]:
        return 1
    rank = int(np.searchsorted(kept, energy * kept[-1] * (1 - 1e-12)) + 1)
    return min(-(-rank // multiple) * multiple, len(singular))


def factor_matrix(weight: Array, energy: float, multiple: int) -> Factors:
    """(in, out) as (in, rank) times (rank, out)."""
    left, singular, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    rank = rank_for(singular, energy, multiple)
    root = np.sqrt(singular[:rank])
    first, second = left[:, :rank] * root, root[:, None] * right[:rank]
    return _factors([first, second], first @ second, first.size + second.size)


def factor_filters(weight: Array, energy: float, multiple: int) -> Factors:
    """(out, in, *kernel) as `rank` filters and a 1x1 convolution of them."""
    out = weight.shape[0]
    matrix = factor_matrix(weight.reshape(out, -1).T, energy, multiple)
    first, second = matrix.weights
    rank = first.shape[1]
    weights = [first.T.reshape(rank, *weight.shape[1:]), second.T.reshape(out, rank, *_ones(weight))]
    return _factors(weights, matrix.product.T.reshape(weight.shape), matrix.multiplications)


def factor_tucker(weight: Array, energy: float, multiple: int) -> Factors:
    """(out, in, *kernel) as a 1x1 convolution, one between fewer channels and fewer filters, and a 1x1 one.

    Each of the two modes may lose half of what may be lost: the squared error is at most the sum of what both lose
    (De Lathauwer et al., 2000, property 10).
    """
    out, channels = weight.shape[:2]
    exact = weight.astype(np.float64).reshape(out, channels, -1)
    share = 1 - (1 - energy) / 2
    filters = _basis(exact.reshape(out, -1), share, multiple)
    inputs = _basis(exact.transpose(1, 0, 2).reshape(channels, -1), share, multiple)
    core = np.einsum("oik,of,ic->fck", exact, filters, inputs, optimize=True)
    product = np.einsum("fck,of,ic->oik", core, filters, inputs, optimize=True).reshape(weight.shape)
    small = core.reshape(*core.shape[:2], *weight.shape[2:])
    weights = [
        inputs.T.reshape(*inputs.T.shape, *_ones(weight)),
        small,
        filters.reshape(*filters.shape, *_ones(weight)),
    ]
    return _factors(weights, product, sum(each.size for each in weights))


def factor_convolution(weight: Array, energy: float, multiple: int) -> Factors:
    """The decomposition with fewer multiplications."""
    ways = [factor_filters(weight, energy, multiple)]
    if any(size > 1 for size in weight.shape[2:]):
        ways.append(factor_tucker(weight, energy, multiple))
    return min(ways, key=lambda way: way.multiplications)


def _basis(matrix: Array, energy: float, multiple: int) -> Array:
    """The leading left singular vectors, (rows, rank)."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    singular = np.sqrt(np.maximum(values[::-1], 0))
    basis: Array = vectors[:, ::-1][:, : rank_for(singular, energy, multiple)]
    return basis


def _ones(weight: Array) -> tuple[int, ...]:
    return (1,) * (weight.ndim - 2)


def _factors(weights: Sequence[Array], product: Array, multiplications: int) -> Factors:
    return Factors(tuple(each.astype(np.float32) for each in weights), product.astype(np.float32), multiplications)
