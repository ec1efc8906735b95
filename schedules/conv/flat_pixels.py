"""Flattens images of dynamic size to one long row: pointwise convolutions may process pixels across row ends.

The remainder of a register tile then occurs once per image, not once per row, and rows may be short.
"""

from __future__ import annotations

from schedules.codegen.nest import name_opaque
from schedules.conv.dynamic_sizes import Sizes
from schedules.conv.workload import WindowWorkload
from schedules.ir.tir import Index, Stmt
from schedules.stages.fused_kernel import FusedKernel


def flat_sizes(work: WindowWorkload, fused: FusedKernel, sizes: Sizes) -> Sizes | None:
    """Sizes of images flattened into the last dimension; None if the window is larger than one pixel, sizes are static,
    or the epilogue uses a pixel's row."""
    ones = (1,) * work.rank
    plain = work.kernel == work.strides == ones and not work.reaches_outside and not any(map(any, work.pad))
    if work.rank == 1 or not work.is_open or not plain or not fused.ignores_rows(2, work.rank):
        return None
    pixels: Index = 1
    for size in sizes.out:
        pixels = pixels * size
    bindings: list[Stmt] = [*sizes.bindings]
    pixels = name_opaque("image_pixels", pixels, bindings)
    flat = (*ones[:-1], pixels)
    return Sizes(flat, flat, (0,) * work.rank, tuple(bindings))
