"""Vectors of elements that lie where other vectors say: `a[b[i]]`.

The places are computed in vectors and the elements loaded one by one, which processors do as fast as by their
instructions for it.
"""

from __future__ import annotations

from schedules.instructions.element_loops import VECTOR_DTYPES
from schedules.ir.access import Access, Stride
from schedules.ir.expression import buffers_loaded
from schedules.ir.inline import has_branch
from schedules.ir.stages import dtype_of
from schedules.stages.collapsed_loops import Loop, LoopNest


def gathered_axis(nest: LoopNest) -> Loop | None:
    """The spatial loop in which every store moves by one element, and every load by none or one, or as other loads
    say; None where there is none, or a branch guards what is read."""
    if nest.stage.store is None or has_branch(nest.stage.body):
        return None
    for loop in reversed(nest.spatial):
        if all(_serves(access, stride) for access, stride in zip(nest.accesses, loop.strides, strict=True)):
            return loop
    return None


def _serves(access: Access, stride: Stride) -> bool:
    if access.is_store:
        return bool(stride == 1)
    if stride is not None:
        return stride in (0, 1)
    return dtype_of(access.buffer) in VECTOR_DTYPES and any(buffers_loaded(point) for point in access.indices)
