"""k-means of the numbers of one tensor (weight sharing: Han et al., "Deep Compression", arXiv:1510.00149, section 3).

In one dimension the numbers of a centre are those between the middles to its neighbours, so one sort is all the search
there is. Centres start where the best ones lie for many of them: as dense as the cube root of the numbers' density
(Panter and Dite, 1951), which gives the few large weights, that matter most, centres of their own.
"""

from __future__ import annotations

import numpy as np

from compiler.passes.matching import Array

_ROUNDS = 300
_BINS = 1024


def cluster(values: Array, bits: int) -> Array:
    """`values` (float32) with each replaced by the nearest of at most `2**bits` centres, 0 among them.

    0 is one of the centres so that weights that were pruned stay so, and padding needs no value of its own.
    """
    ordered = np.sort(values.reshape(-1)).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.unique(np.concatenate([_first_centres(ordered, 2**bits - 1), [0.0]]))
    for _ in range(_ROUNDS):
        ends = _ends(ordered, centres)
        counts = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(counts, 1)
        moved = np.where((counts > 0) & (centres != 0), means, centres)
        if np.array_equal(moved, centres):
            break
        centres = np.sort(moved)
    table = np.unique(centres.astype(np.float32))
    middles = (table[1:].astype(np.float64) + table[:-1]) / 2
    nearest: Array = table[np.searchsorted(middles, values)]
    return nearest


def _first_centres(ordered: Array, count: int) -> Array:
    counts, edges = np.histogram(ordered, _BINS)
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    places: Array = np.interp((np.arange(count) + 0.5) / count * mass[-1], mass, edges)
    return places


def _ends(ordered: Array, centres: Array) -> Array:
    """Where each centre's numbers begin, and the end of the last one's."""
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[0], np.searchsorted(ordered, middles), [len(ordered)]])
