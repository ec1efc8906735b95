"""Assignment of tensors to storages: live intervals, sizes, and a greedy assignment.

The assignment is "greedy by size for shared objects" of Pisarchyk and Lee, arXiv:2001.03288: from the largest tensor
to the smallest, each takes the smallest storage that is free while it lives, or a new one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ALIGNMENT = 64  # of storages, in bytes; what TVM's allocator gives


@dataclass(frozen=True)
class Lifetime:
    """A tensor of `size` bytes that is written first at time `start` and read last at time `end`."""

    size: int
    start: int
    end: int


@dataclass
class Storage:
    """Memory that tensors use one after the other."""

    size: int
    _spans: list[tuple[int, int, int]] = field(default_factory=list)  # (start, end, tensor), sorted, disjoint

    def admits(self, lifetime: Lifetime, before: int | None) -> bool:
        """True if nothing lives here meanwhile; tensor `before` may end in the very moment this one starts."""
        position = bisect_left(self._spans, (lifetime.start, -1, -1))
        if position < len(self._spans) and self._spans[position][0] <= lifetime.end:
            return False
        if position == 0:
            return True
        _, end, tensor = self._spans[position - 1]
        return end < lifetime.start or (end == lifetime.start and tensor == before)

    def put(self, tensor: int, lifetime: Lifetime) -> None:
        """Let `tensor` live here."""
        insort(self._spans, (lifetime.start, lifetime.end, tensor))


def assign(lifetimes: Sequence[Lifetime], in_place: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """The storage of each tensor, and the size of each storage in bytes.

    Args:
        in_place: tensor -> a tensor that may become it: one that is read last where this one is written.
    """
    storages: list[Storage] = []
    chosen = [-1] * len(lifetimes)
    order = sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].start))
    for tensor in order:
        lifetime = lifetimes[tensor]
        free = [i for i, storage in enumerate(storages) if storage.admits(lifetime, in_place.get(tensor))]
        if not free:
            storages.append(Storage(aligned(lifetime.size)))
            free = [len(storages) - 1]
        source = in_place.get(tensor)
        same = [i for i in free if source is not None and chosen[source] == i]
        chosen[tensor] = same[0] if same else min(free, key=lambda i: storages[i].size)
        storages[chosen[tensor]].put(tensor, lifetime)
    return chosen, [storage.size for storage in storages]


def aligned(size: int) -> int:
    """`size` rounded up to a multiple of `ALIGNMENT`, at least one."""
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT


def peak_of_live_bytes(lifetimes: Sequence[Lifetime]) -> int:
    """The most bytes alive at one time: no planner without in-place reuse can do with less."""
    changes: dict[int, int] = {}
    for lifetime in lifetimes:
        changes[lifetime.start] = changes.get(lifetime.start, 0) + aligned(lifetime.size)
        changes[lifetime.end + 1] = changes.get(lifetime.end + 1, 0) - aligned(lifetime.size)
    live = peak = 0
    for time in sorted(changes):
        live += changes[time]
        peak = max(peak, live)
    return peak
