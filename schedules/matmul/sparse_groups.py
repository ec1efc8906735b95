"""The layout of N:M sparse constant weights: N of every M neighbours along the depth are nonzero.

A weight is a matrix (depth, columns) cut into panels of `width` columns, a vector of the machine. Each group of M rows
is stored as N rows of values and, for each of these and each column, which of the M it is:

    values: float32 (panels, depth / M * N, width)
    words: int32 (panels, ceil(depth / M / groups of a word), width), the choices of several groups in the bits of one
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WORD_BITS = 32


@dataclass(frozen=True)
class Groups:
    """N of M: `keep` of every `of`, where `of` is a power of two."""

    keep: int
    of: int

    @property
    def bits(self) -> int:
        """Bits per index."""
        return (self.of - 1).bit_length()

    @property
    def per_word(self) -> int:
        """Number of groups whose indices share a word."""
        return _WORD_BITS // self.bits // self.keep

    def shift(self, group: int, choice: int) -> int:
        """The lowest bit of an index within its word; `group` counts within the word."""
        return (group * self.keep + choice) * self.bits


def most_kept(weight: np.ndarray, of: int) -> int:
    """Maximum number of nonzeros among `of` neighbours along the depth of a (depth, columns) weight."""
    depth, columns = weight.shape
    counts = np.count_nonzero(weight.reshape(depth // of, of, columns), axis=1)
    return int(counts.max(initial=0))


def pack_groups_of(panels: np.ndarray, groups: Groups) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(values, words) of a weight given as (panels, depth, width)."""
    count, depth, width = panels.shape
    total = depth // groups.of
    grouped = panels.reshape(count, total, groups.of, width)
    # What is not zero first, in order; a zero fills up.
    order = np.argsort(grouped == 0, axis=2, kind="stable")[:, :, : groups.keep]
    values = np.take_along_axis(grouped, order, axis=2).reshape(count, total * groups.keep, width)
    words = np.zeros((count, -(-total // groups.per_word), width), np.uint32)
    for group in range(total):
        for choice in range(groups.keep):
            shift = np.uint32(groups.shift(group % groups.per_word, choice))
            words[:, group // groups.per_word] |= order[:, group, choice].astype(np.uint32) << shift
    return np.ascontiguousarray(values, np.float32), words.view(np.int32)
