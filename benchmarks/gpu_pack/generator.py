"""Counter-based random numbers, which depend only on a seed and a position: the same here, in the C++ program of a pack
(`cpp/generator.cc`) and in its Python script. Needs only numpy, since the script runs on machines without this
project.

The bits of position i are those of SplitMix64 (Steele et al. 2014) after i + 1 steps from the seed.
"""

from __future__ import annotations

import hashlib

import numpy as np

Array = np.ndarray
LARGEST = 127
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_PART = np.uint64(0xFFFF)


def seed_of(*words: str) -> int:
    """Return a seed for a name; fits 48 bits."""
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:6], "little")


def bits(seed: int, count: int) -> Array:
    """uint64 (count,): the bits of the positions 0 to count - 1."""
    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) * _STEP + np.uint64(seed)
        state = (state ^ (state >> np.uint64(30))) * _FIRST
        state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def weights(seed: int, count: int, row: int) -> Array:
    """int8 (count,): uniform from -127 to 127, and 127 at the start of each row, so that a quantizer's scale of a row
    is the weights' own unit. As integers times a power of two they are exact in every precision."""
    values = ((bits(seed, count) >> np.uint64(32)) % np.uint64(2 * LARGEST + 1)).astype(np.int16) - LARGEST
    values[::row] = LARGEST
    return values.astype(np.int8)


def reals(seed: int, count: int) -> Array:
    """float32 (count,): nearly normal, of mean 0 and standard deviation 1.15, within -4 and 4: sums of four parts."""
    drawn = bits(seed, count)
    parts = [((drawn >> np.uint64(shift)) & _PART).astype(np.int64) for shift in (0, 16, 32, 48)]
    total: Array = np.sum(parts, axis=0)
    return np.asarray((total - 2 * 0xFFFF) / 32768, np.float32)


def integers(seed: int, count: int, low: int, high: int) -> Array:
    """int64 (count,): uniform from low to high - 1."""
    return (bits(seed, count) % np.uint64(high - low)).astype(np.int64) + low


def positions(seed: int, count: int, size: int) -> Array:
    """int64 (min(count, size),): positions among `size` elements, possibly repeated; all of them if there are few."""
    return np.arange(size) if size <= count else integers(seed, count, 0, size)
