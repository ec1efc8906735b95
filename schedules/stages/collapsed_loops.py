"""The loops of one stage, ready for code: neighbours collapsed, strides known, the vector axis chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schedules.ir.access import Access, Stride, accesses_of, used_outside_indices
from schedules.ir.expression import buffers_loaded, index, nodes, substitute, unflattened
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import Expr, Index, Stmt, Var, tirx
from schedules.machine import Machine, dtype_bits


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop, and how far each access of the body moves per step (None: irregularly)."""

    var: Var
    extent: Index
    strides: tuple[Stride, ...]

    @property
    def is_static(self) -> bool:
        return isinstance(self.extent, int)


@dataclass(frozen=True, eq=False)
class LoopNest:
    """A stage whose adjacent loops are collapsed where memory accesses are contiguous across them."""

    stage: Stage
    spatial: tuple[Loop, ...]
    reduction: tuple[Loop, ...]
    accesses: tuple[Access, ...]

    @property
    def stores(self) -> tuple[int, ...]:
        """Indices of the accesses that are stores."""
        return tuple(i for i, access in enumerate(self.accesses) if access.is_store)

    def is_contiguous(self, loop: Loop) -> bool:
        """True if every access stands still or moves by one element, at least one of them by one."""
        return set(loop.strides) <= {0, 1} and 1 in loop.strides

    def lanes(self, machine: Machine, axis: Loop | None = None) -> int:
        """Lanes of a vector such that the widest element type touched or computed with fills one register.

        What is read for an index alone, and is the same for a whole vector along `axis`, counts for nothing.
        """
        strides = (None,) * len(self.accesses) if axis is None else axis.strides
        pairs = zip(self.accesses, strides, strict=True)
        touched = [access for access, stride in pairs if stride != 0 or not self._is_index(access)]
        widest = max((dtype_bits(str(access.buffer.dtype)) for access in touched), default=32)
        # Of what narrower elements are converted to, floats alone: index arithmetic does not count.
        casts = [str(cast.ty) for cast in nodes(self.stage.body, tirx.Cast)]
        widest = max([widest, *(dtype_bits(dtype) for dtype in casts if "float" in dtype)])
        return max(1, machine.vector_bits // widest)

    def _is_index(self, access: Access) -> bool:
        """True if it is read for an index of another access."""
        loads = [load for each in self.accesses for point in each.indices for load in buffers_loaded(point)]
        return not access.is_store and any(access.is_at(load.source, load.indices) for load in loads)


def loop_nest_of(stage: Stage) -> LoopNest:
    """Analyze a stage. Loops of extent 1 vanish; the body may be rewritten to collapsed variables."""
    stage = stage.without_single()
    axes, body, init = stage.axes, stage.body, stage.init
    accesses = tuple(accesses_of(body))
    loops = {id(axis): Loop(axis.var, axis.extent, tuple(a.stride(axis.var) for a in accesses)) for axis in axes}
    free = {id(axis) for axis in axes if _may_collapse(axis, body, init)}

    mapping: dict[Var, Expr] = {}
    spatial = _collapse([axis for axis in axes if not axis.reduce], loops, free, mapping)
    reduction = _collapse([axis for axis in axes if axis.reduce], loops, free, mapping)
    body = substitute(body, mapping)
    init = None if init is None else substitute(init, mapping)
    kept = tuple(Axis(loop.var, loop.extent) for loop in spatial)
    kept += tuple(Axis(loop.var, loop.extent, reduce=True) for loop in reduction)
    collapsed = Stage(stage.name, kept, body, init, stage.annotations)
    return LoopNest(collapsed, tuple(spatial), tuple(reduction), tuple(accesses_of(body)) if mapping else accesses)


def _may_collapse(axis: Axis, body: Stmt, init: Stmt | None) -> bool:
    """Only index arithmetic may use the variable: a collapsed one costs two divisions elsewhere."""
    if not isinstance(axis.extent, int) or axis.extent == 0:
        return False
    return not used_outside_indices(body, axis.var) and (init is None or not used_outside_indices(init, axis.var))


def _collapse(axes: Sequence[Axis], loops: dict[int, Loop], free: set[int], mapping: dict[Var, Expr]) -> list[Loop]:
    """Merge an axis with the one before it if every access is contiguous across them."""
    result: list[Loop] = []
    members: list[list[Axis]] = []
    for axis in axes:
        loop = loops[id(axis)]
        if result and id(axis) in free and id(members[-1][-1]) in free and _seamless(result[-1], loop):
            outer = result.pop()
            result.append(Loop(outer.var, outer.extent * loop.extent, loop.strides))
            members[-1].append(axis)
        else:
            result.append(loop)
            members.append([axis])
    for position, group in enumerate(members):
        if len(group) > 1:
            result[position] = _fused(result[position], group, mapping)
    return result


def _seamless(outer: Loop, inner: Loop) -> bool:
    return all(
        isinstance(a, int) and isinstance(b, int) and a == b * inner.extent
        for a, b in zip(outer.strides, inner.strides, strict=True)
    )


def _fused(loop: Loop, group: Sequence[Axis], mapping: dict[Var, Expr]) -> Loop:
    """One variable for a group of axes; each becomes a quotient or remainder, which flattening folds away again."""
    dtype = str(group[0].var.ty)
    var = tirx.Var("_".join(axis.name for axis in group), dtype)
    places = unflattened(var, [index(axis.extent, dtype) for axis in group])
    mapping.update((axis.var, place) for axis, place in zip(group, places, strict=True))
    return Loop(var, loop.extent, loop.strides)
