"""The minimum time for work on a machine, by its arithmetic or by the bytes that it must move.

The roofline model (Williams, Waterman, Patterson 2009): time >= max(operations / peak, bytes / bandwidth).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from schedules.machine import Machine

ASSUMED_HERTZ = 3.0e9
_CACHE_BYTES_PER_CYCLE = 32
"""Bandwidth of the last-level cache for one core: half a cache line per cycle, according to vendors' optimization
manuals."""


@dataclass(frozen=True)
class Roofline:
    """The limits of a machine.

    Attributes:
        peak: float32 operations per second, all cores: lanes x 2 (multiply-add) x ports x cores x clock.
        memory_bandwidth: bytes per second from main memory.
        cache_bytes: the size of that cache.
        cache_bytes: the size of that cache.
        source: the origin of the clock and bandwidth values, as text.
    """

    peak: float
    memory_bandwidth: float
    cache_bandwidth: float
    cache_bytes: int
    source: str

    @classmethod
    def of(cls, machine: Machine, *, measured: bool) -> Roofline:
        """The limits of a machine from its description. `measured`: the machine is this one: read its clock and measure
        its memory, which takes 0.1 s. Otherwise both are assumed, as `source` says."""
        hertz = (_clock() if measured else None) or ASSUMED_HERTZ
        bandwidth = _memory_bandwidth() if measured else machine.memory_rate * hertz
        how = "measured here" if measured else "as described"
        return cls(
            peak=machine.lanes("float32") * 2 * machine.fma_ports * machine.cores * hertz,
            memory_bandwidth=bandwidth,
            cache_bandwidth=_CACHE_BYTES_PER_CYCLE * machine.cores * hertz,
            cache_bytes=max(machine.l3_bytes, machine.l2_bytes),
            source=f"{hertz / 1e9:.2f} GHz, memory {bandwidth / 1e9:.0f} GB/s ({how})",
        )

    def seconds(self, operations: int, nbytes: int) -> float:
        """The minimum time for a number of float32 operations on a number of bytes."""
        bandwidth = self.cache_bandwidth if nbytes <= self.cache_bytes else self.memory_bandwidth
        return max(operations / self.peak, nbytes / bandwidth)


def _clock() -> float | None:
    """The processor's clock rate in Hz: its maximum if the system reports it."""
    import psutil

    frequency = psutil.cpu_freq()
    if frequency is None:
        return None
    megahertz = frequency.max or frequency.current
    return megahertz * 1e6 if megahertz and megahertz > 100 else None


def _memory_bandwidth() -> float:
    """Bytes read and written per second by a copy larger than any cache: the best of several measurements."""
    source = np.ones(64 << 20, dtype=np.uint8)
    destination = np.zeros_like(source)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        np.copyto(destination, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best
