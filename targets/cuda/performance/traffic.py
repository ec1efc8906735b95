"""Memory traffic of an access of a block's threads: 32-byte sectors, and passes over shared memory's banks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WARP = 32
SECTOR = 32
_LINE = 128
_BANKS = 32
_BANK_BYTES = 4
_PASS_BYTES = 128
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Access:
    """One access.

    Attributes:
        passes: cycles that the unit for loads and stores is busy with it.
        sectors: the distinct ones of global memory that all warps touch, by number.
        of_warps: sectors, each warp's counted by itself.
    """

    passes: int
    sectors: NDArray[np.int64]
    of_warps: int


class Traffic:
    """Accesses of a block of `lanes` threads, a multiple of 32; analyses of equal patterns are kept.

    Args:
        l1_pass: cycles for 128 bytes of global memory, out of the L1 cache.
    """

    def __init__(self, lanes: int, l1_pass: int = 1) -> None:
        self._lanes, self._l1_pass = lanes, l1_pass
        self._known: dict[Any, tuple[int, NDArray[np.int64], int]] = {}

    def of_global(self, addresses: int | NDArray[np.int64], nbytes: int, mask: Mask | None) -> Access:
        """An access of `nbytes` a thread to global memory."""
        own, base = self._relative(addresses, mask)
        key = (own.tobytes(), base % _LINE, nbytes, None if mask is None else mask.tobytes())
        if key not in self._known:
            self._known[key] = self._sectors(own + base % _LINE, nbytes, mask)
        passes, sectors, of_warps = self._known[key]
        return Access(passes, sectors + base // _LINE * (_LINE // SECTOR), of_warps)

    def of_shared(self, addresses: int | NDArray[np.int64], nbytes: int, mask: Mask | None) -> int:
        """Passes of an access of `nbytes` a thread to shared memory."""
        own, base = self._relative(addresses, mask)
        key = ("shared", own.tobytes(), base % _PASS_BYTES, nbytes, None if mask is None else mask.tobytes())
        if key not in self._known:
            passes = self._bank_passes(own + base % _PASS_BYTES, nbytes, mask)
            self._known[key] = (passes, np.zeros(0, np.int64), 0)
        return self._known[key][0]

    def _relative(self, addresses: int | NDArray[np.int64], mask: Mask | None) -> tuple[NDArray[np.int64], int]:
        own = np.broadcast_to(np.asarray(addresses, np.int64), (self._lanes,))
        active = own if mask is None else own[mask]
        base = int(active.min()) if active.size else 0
        base -= base % _LINE
        return own - base, base

    def _warps(self, values: NDArray[np.int64], mask: Mask | None) -> NDArray[np.int64]:
        """(warps, 32); what threads that take no part would touch is -1."""
        if mask is not None:
            values = np.where(mask, values, -1)
        return values.reshape(-1, WARP)

    def _sectors(self, own: NDArray[np.int64], nbytes: int, mask: Mask | None) -> tuple[int, NDArray[np.int64], int]:
        sectors = self._warps(own // SECTOR, mask)
        distinct = _distinct(sectors)
        active = (sectors >= 0).sum(axis=1)
        lines = np.maximum(_distinct(np.where(sectors < 0, -1, sectors // (_LINE // SECTOR))), 1)
        passes = np.maximum(lines, -(-active * nbytes // _PASS_BYTES) * self._l1_pass) * (active > 0)
        unique = np.unique(sectors)
        return int(passes.sum()), unique[unique >= 0], int(distinct.sum())

    def _bank_passes(self, own: NDArray[np.int64], nbytes: int, mask: Mask | None) -> int:
        words = max(1, nbytes // _BANK_BYTES)
        if (own % min(nbytes, 16)).any():
            return self._bank_passes(own // _BANK_BYTES * _BANK_BYTES, _BANK_BYTES, mask) * words
        first = self._warps(own // _BANK_BYTES, mask)[:, :, None]
        touched = np.where(first < 0, -1, first + np.arange(words)).reshape(len(first), -1)
        ordered = np.sort(touched, axis=1)
        fresh = np.ones_like(ordered, dtype=bool)
        fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        fresh &= ordered >= 0
        counts = np.zeros((len(ordered), _BANKS), np.int64)
        rows = np.broadcast_to(np.arange(len(ordered))[:, None], ordered.shape)
        np.add.at(counts, (rows[fresh], ordered[fresh] % _BANKS), 1)
        # What many threads read at one place is fetched once, and still handed to each of them.
        returned = -(-(first[:, :, 0] >= 0).sum(axis=1) * nbytes // _PASS_BYTES)
        return int(np.maximum(counts.max(axis=1), returned).sum())


def _distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of distinct values in each row that are not negative."""
    ordered = np.sort(values, axis=1)
    steps = (ordered[:, 1:] != ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    found: NDArray[np.int64] = steps.sum(axis=1) + (ordered[:, 0] >= 0)
    return found


class FirstLevel:
    """Hits of a block in the L1 cache: sectors that it touched, until they are more than fit in."""

    def __init__(self, nbytes: int) -> None:
        self._most = max(nbytes // SECTOR, 1)
        self._held: set[int] = set()

    def misses(self, sectors: NDArray[np.int64]) -> int:
        """Number of sectors that have to be fetched."""
        fresh = set(sectors.tolist()) - self._held
        if len(self._held) + len(fresh) > self._most:
            self._held.clear()
        self._held |= fresh
        return len(fresh)
