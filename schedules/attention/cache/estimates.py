"""Estimated cycles of attention over a cache."""

from __future__ import annotations

from dataclasses import dataclass

from schedules.instructions.products.product import Product
from schedules.machine import Machine

_SOFTMAX = 12.0  # of a vector of scores


@dataclass(frozen=True)
class CacheSizes:
    """Sizes of a call, `keys` of them seen by the last of its queries, one less by each before it."""

    batch: int
    queries: int
    heads: int
    size: int
    value_size: int
    keys: int

    @property
    def scores(self) -> float:
        """Scores of all queries."""
        return self.batch * self.heads * self.queries * (self.keys - (self.queries - 1) / 2)

    @property
    def operations(self) -> float:
        """Multiplications and additions of both products."""
        return 2 * self.scores * (self.size + self.value_size)


def cache_cycles(sizes: CacheSizes, machine: Machine, tiles: Product | None) -> float:
    """Single-core cycles, in float32 vectors or by an instruction with tile accumulators."""
    rate = 1.0 if tiles is None else tiles.rate_on(machine)
    lanes = machine.lanes("float32")
    return sizes.operations / (2 * lanes * machine.fma_ports * rate) + sizes.scores / lanes * _SOFTMAX
