"""The matrices of Winograd's minimal filtering F(m x m, 3 x 3), of stride 1 and 2, and their accuracy.

By Toom-Cook (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv:1509.09308): with m + 1
interpolation points and infinity, Y = A^T [(G g G^T) * (B^T d B)] A takes (m + 2)^2 multiplications for m^2 outputs
instead of 9 m^2. The points decide the rounding error (Barabasz et al., arXiv:1803.10986). These points were found by
search among small dyadic numbers, which keep the input and output matrices exact in binary: for F(4,3) they have less
than half of the error of the usual 0, 1, -1, 2, -2.

For stride 2, a row of outputs is two sums of stride 1: the outer taps over the even inputs, F(m, 2), and the middle tap
over the odd ones, where nothing can be saved. Together they have the form of stride 1 with 2m + 1 inputs along a tile's
edge: (2m + 1)^2 multiplications for 9 m^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import gcd, lcm, log2

import numpy as np
from numpy.typing import NDArray

Matrix = tuple[tuple[float, ...], ...]

KERNEL = 3
_HALF = Fraction(1, 2)
_POINTS: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)),
    6: (Fraction(0), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2), _HALF, -_HALF),
}

_HALVES: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(0), Fraction(1)),
    4: (_HALF, -_HALF, Fraction(3, 2), Fraction(-3, 2)),
}
"""The points of F(m, 2), for stride 2, found in the same way."""

ERROR_BOUND: dict[int, float] = {2: 3e-7, 4: 8e-7, 6: 3e-6}
"""Root mean square error relative to that of the result, in float32, for 16 to 512 channels of non-negative normal data
and normal weights; the direct sum has about 2e-7. Tests check the kernels against these. Most of it comes from the sums
over channels, whose terms the transforms make larger, and grows with the root of the channels that are summed at a time
(`winograd_nest.CHANNELS_OF_PART`): with 512 at once it was 1.8e-6 with tiles of 4."""

ERROR_BOUND_OF_HALVES: dict[int, float] = {2: 3e-7, 4: 5e-7}
"""The same for stride 2."""

TILES = tuple(sorted(_POINTS))


@dataclass(frozen=True)
class Transforms:
    """B^T (`input`), G (`weight`), A^T (`output`), row by row."""

    tile: int
    input: Matrix
    weight: Matrix
    output: Matrix


def bounds(stride: int) -> dict[int, float]:
    """Supported tile sizes for a stride, and the error of each."""
    return {1: ERROR_BOUND, 2: ERROR_BOUND_OF_HALVES}.get(stride, {})


def edge_of(tile: int, stride: int = 1) -> int:
    """Number of inputs, and of frequencies, along each edge of a tile."""
    return (tile - 1) * stride + KERNEL


@cache
def transforms(tile: int, stride: int = 1) -> Transforms:
    """The matrices of F(tile x tile, 3 x 3). Raises KeyError for a tile that is not in `bounds(stride)`."""
    if stride == 1:
        return Transforms(tile, *(_floats(each) for each in _toom_cook(_POINTS[tile], tile, KERNEL)))
    into, weight, out = _toom_cook(_HALVES[tile], tile, 2)
    zero, one = Fraction(0), Fraction(1)
    inputs = edge_of(tile, stride)
    rows = [[row[column // 2] if column % 2 == 0 else zero for column in range(inputs)] for row in into]
    rows += [[one if column == 2 * i + 1 else zero for column in range(inputs)] for i in range(tile)]
    taps = [[first, zero, last] for first, last in weight] + [[zero, one, zero]] * tile
    output = [row + [one if column == i else zero for column in range(tile)] for i, row in enumerate(out)]
    return Transforms(tile, _floats(rows), _floats(taps), _floats(output))


_Exact = list[list[Fraction]]


def _toom_cook(points: tuple[Fraction, ...], tile: int, taps: int) -> tuple[_Exact, _Exact, _Exact]:
    """B^T, G and A^T of F(tile, taps)."""
    edge = tile + taps - 1
    inverse = _inverse(_vandermonde(points, edge))
    rows = [[inverse[j][i] for j in range(edge)] for i in range(edge)]
    weight = _vandermonde(points, taps)
    evaluate = _vandermonde(points, tile)
    for i, row in enumerate(rows):
        scale = _dyadic_scale(row)
        rows[i] = [entry / scale for entry in row]
        weight[i] = [entry * scale for entry in weight[i]]
    return rows, weight, [[evaluate[j][i] for j in range(edge)] for i in range(tile)]


def spread_weight(weight: np.ndarray, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """`matrix` g `matrix`^T of each filter g: (filters, channels, 3, 3) -> (filters, channels, edge, edge)."""
    return np.tensordot(np.tensordot(weight.astype(np.float64), matrix, axes=(2, 1)), matrix, axes=(2, 1))


@cache
def weight_matrix(tile: int, stride: int = 1) -> NDArray[np.float64]:
    """`spread_weight` as one matrix: (9, edge^2), from the filter's elements to the transformed filter's."""
    matrix = np.array(transforms(tile, stride).weight)
    return np.ascontiguousarray(np.kron(matrix, matrix).T)


def _vandermonde(points: tuple[Fraction, ...], columns: int) -> list[list[Fraction]]:
    """One row of powers per point; for the point at infinity, only the highest power."""
    rows = [[point**power for power in range(columns)] for point in points]
    return [*rows, [Fraction(int(power == columns - 1)) for power in range(columns)]]


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    size = len(matrix)
    work = [list(row) + [Fraction(int(i == j)) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(row for row in range(column, size) if work[row][column] != 0)
        work[column], work[pivot] = work[pivot], work[column]
        head = work[column][column]
        work[column] = [entry / head for entry in work[column]]
        for row in range(size):
            factor = work[row][column]
            if row != column and factor != 0:
                work[row] = [entry - factor * top for entry, top in zip(work[row], work[column], strict=True)]
    return [row[size:] for row in work]


def _dyadic_scale(row: list[Fraction]) -> Fraction:
    """Divisor of a row that makes its entries dyadic and close to 1."""
    unit = Fraction(gcd(*(entry.numerator for entry in row)), lcm(*(entry.denominator for entry in row)))
    return unit * Fraction(2) ** round(log2(max(abs(entry) for entry in row) / unit))


def _floats(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(float(entry) for entry in row) for row in rows)
