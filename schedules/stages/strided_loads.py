"""Vectors of elements that lie apart in memory, as whole vectors and permutations: steps, interleaved values, flips.

Of `a[2 * x]` for 16 neighbouring x, 31 elements are read as two vectors, which overlap rather than reach beyond the
last element, and one permutation picks those wanted.

Vectors of elements that lie where other vectors say: `a[b[i]]`.

The places are computed in vectors and the elements loaded one by one, which processors do as fast as by their
instructions for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from schedules.instructions.element_loops import VECTOR_DTYPES
from schedules.ir.access import Access, Stride
from schedules.ir.expression import buffers_loaded, index, map_loads, nodes, substitute
from schedules.ir.inline import has_branch
from schedules.ir.stages import dtype_of
from schedules.ir.tir import Buffer, Expr, Index, Node, Stmt, Var, structural_equal, tirx, tvm
from schedules.stages.collapsed_loops import Loop, LoopNest
from schedules.stages.lanes import picked, ramp, run_of_lanes

STRIDES = (-1, 2, 3, 4)
"""Between neighbours of a vector; what lies farther apart is read as single elements."""


def strided_axis(nest: LoopNest) -> Loop | None:
    """The spatial loop in which every store moves by one element and every load by none, one or a few; None where there
    is none, or a branch guards what is read."""
    if nest.stage.store is None or has_branch(nest.stage.body):
        return None
    for loop in reversed(nest.spatial):
        if all(_serves(nest, access, stride) for access, stride in zip(nest.accesses, loop.strides, strict=True)):
            return loop
    return None


def _serves(nest: LoopNest, access: Access, stride: Index | None) -> bool:
    if access.is_store:
        return bool(stride == 1)
    if stride in (0, 1):
        return True
    variables = [axis.var for axis in nest.stage.axes]
    used = [var for point in access.indices for var in nodes(point, tvm.ir.Var)]
    bound = all(any(var.same_as(each) for each in variables) for var in used)
    return stride in STRIDES and bound and str(access.buffer.dtype) != "bool"


class StridedLoads:
    """The loads of a nest that lie apart along an axis; none where all are contiguous."""

    def __init__(self, nest: LoopNest, axis: Loop) -> None:
        self.axis = axis
        apart = [
            (access, stride)
            for access, stride in zip(nest.accesses, axis.strides, strict=True)
            if stride in STRIDES and not access.is_store
        ]
        self._loads: list[tuple[Access, int]] = []
        for access, stride in apart:
            if not any(_is_same(access, known) for known, _ in self._loads):
                self._loads.append((access, stride))

    def read(self, start: Expr, lanes: int, rest: Mapping[Var, Expr]) -> tuple[list[Stmt], list[Expr]]:
        """Statements that read `lanes` elements of each load from `start` on, and the buffers that they fill;
        none of a single element."""
        if lanes == 1:
            return [], []
        statements: list[Stmt] = []
        buffers = []
        for access, stride in self._loads:
            held = tirx.decl_buffer([lanes], str(access.buffer.dtype), "apart", scope="local", layout=None)
            place = {**rest, self.axis.var: start}
            vector = _strided(access.buffer, [substitute(point, place) for point in access.indices], stride, lanes)
            statements.append(tirx.AllocBuffer(held))
            statements.append(tirx.BufferStore(held, vector, [ramp(index(0), lanes)]))
            buffers.append(held)
        return statements, buffers

    def placed(self, root: Node, buffers: list[Buffer], lane: Expr) -> Node:
        """An expression or statement of the nest that reads a lane of the buffers instead."""
        if not buffers:
            return root

        def replace(load: Expr) -> Expr:
            for (access, _), held in zip(self._loads, buffers, strict=True):
                if _is_load_of(load, access):
                    return tirx.BufferLoad(held, [lane])
            return None

        return map_loads(root, replace)


def _strided(buffer: Buffer, indices: list[Expr], stride: int, lanes: int) -> Expr:
    """The elements `stride` apart of which the first is at `indices`, as one vector."""
    *outer, last = indices
    lowest = min(stride * (lanes - 1), 0)
    places = {lane: stride * lane - lowest for lane in range(lanes)}
    span = max(places.values()) + 1
    parts = []
    while places:
        first = min([*places.values(), span - lanes])
        here = {lane: at - first for lane, at in places.items() if at < first + lanes}
        parts.append((run_of_lanes(buffer, outer, last + (lowest + first), lanes), here))
        places = {lane: at for lane, at in places.items() if lane not in here}
    return picked(parts, lanes)


def _is_same(left: Access, right: Access) -> bool:
    return bool(left.buffer.same_as(right.buffer)) and bool(structural_equal(list(left.indices), list(right.indices)))


def _is_load_of(load: Expr, access: Access) -> bool:
    return bool(load.source.same_as(access.buffer)) and bool(structural_equal(list(load.indices), list(access.indices)))


def gathered_axis(nest: LoopNest) -> Loop | None:
    """The spatial loop in which every store moves by one element, and every load by none or one, or as other loads
    say; None where there is none, or a branch guards what is read."""
    if nest.stage.store is None or has_branch(nest.stage.body):
        return None
    for loop in reversed(nest.spatial):
        if all(_is_gathered(access, stride) for access, stride in zip(nest.accesses, loop.strides, strict=True)):
            return loop
    return None


def _is_gathered(access: Access, stride: Stride) -> bool:
    if access.is_store:
        return bool(stride == 1)
    if stride is not None:
        return stride in (0, 1)
    return dtype_of(access.buffer) in VECTOR_DTYPES and any(buffers_loaded(point) for point in access.indices)
