"""Cost model of sparse convolution: estimated cycles against those of the dense algorithms."""

from __future__ import annotations

from schedules.conv.defaults import tile_for
from schedules.conv.folded import tile_cycles
from schedules.conv.winograd_tiling import winograd_cycles
from schedules.conv.workload import ConvWorkload
from schedules.machine import Machine

# of products whose rows are not known
# In convolutions a block's name is taken apart as well, which short tiles do not hide: (pixels of a tile, cost).
_LONG_TILE, _IN_LONG_TILES, _IN_SHORT_TILES = 20, 1.15, 1.42
# How much of its estimate a convolution by Winograd's method takes where its weights stay in a cache.
_WINOGRAD = 0.7


def conv_pays(kept: float, work: ConvWorkload, tile: int | None, machine: Machine) -> bool:
    """True if a convolution that keeps this fraction of its blocks is faster than the dense one, which uses Winograd
    tiles of size `tile`, or none."""
    pixels, _ = tile_for(work, machine)
    name = _IN_LONG_TILES if pixels >= _LONG_TILE else _IN_SHORT_TILES
    if tile is None or work.is_open:
        return kept * name < 1
    return kept * name * tile_cycles(work, machine) < _WINOGRAD * winograd_cycles(work, tile, machine)
