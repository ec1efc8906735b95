"""Splits loops whose index is divided, so that memory is accessed contiguously.

`b[c] = a[c // 16, c % 16]` over 96 becomes 6 runs of 16: blocked layouts, heads, windows and shuffles of channels are
read and written so. What is left of an extent that the factor does not divide becomes a stage of its own, and so does
what lies before the first block where blocks begin inside of the loop (`a[(c + 15) // 16, (c + 15) % 16]`). Where an
index is the smaller or larger of two, what lies before and behind the place where they meet are stages as well: edges
that are mirrored or repeated (`a[min(x, 30 - x)]`).
"""

from __future__ import annotations

from schedules.ir.access import accesses_of, coefficient_of
from schedules.ir.expression import constant_int, index, substitute
from schedules.ir.index_arithmetic import with_plain_indices
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import Expr, Index, Var, structural_walk, tirx, tvm

_LEAST_RUN = 4  # shorter runs are no better than single elements
_MOST_PIECES = 8


def split_axes(stage: Stage) -> list[Stage]:
    """The stage split into parts whose indices divide no axis, where that is possible."""
    done: list[Stage] = []
    waiting = [stage]
    while waiting:
        piece = waiting.pop(0)
        found = _next_split(piece) if len(done) + len(waiting) < _MOST_PIECES else None
        if found is None:
            done.append(piece)
        else:
            waiting = [with_plain_indices(each) for each in found] + waiting
    return done


def _next_split(stage: Stage) -> list[Stage] | None:
    """The stage split along an axis that an index divides, or along which an index changes direction; None when there
    is none."""
    found, turns = _divided_axes(stage)
    for position, axis in enumerate(stage.axes):
        seams = [-offset % factor for divided, factor, offset in found if divided == position and offset % factor]
        seams += [place for turning, place in turns if turning == position]
        inside = sorted(seam for seam in seams if 0 < seam < axis.extent)
        if inside and not axis.reduce:  # the blocks begin inside of the loop
            return _cut(stage, position, inside[0])
        factors = [factor for divided, factor, offset in found if divided == position and not offset % factor]
        serving = [factor for factor in factors if _serves(axis, factor)]
        if serving:
            return split_axis(stage, position, max(serving))
    return None


def _divided_axes(stage: Stage) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """(position, factor, offset) for each `(axis + offset) // factor`, or remainder, of an axis of known extent, and
    (position, place) for each smaller or larger of two where the other one begins to be taken."""
    found: list[tuple[int, int, int]] = []
    turns: list[tuple[int, int]] = []
    static = [(position, axis.var) for position, axis in enumerate(stage.axes) if isinstance(axis.extent, int)]

    def divide(node: Expr) -> None:
        factor = constant_int(node.b)
        if not isinstance(factor, int) or factor < _LEAST_RUN:
            return
        for position, var in static:
            if coefficient_of(node.a, var) == 1:
                rest = _without(node.a, var)
                if isinstance(rest, int):
                    found.append((position, factor, rest))

    def turn(node: Expr) -> None:
        difference = node.a - node.b
        for position, var in static:
            factor = coefficient_of(difference, var)
            rest = _without(difference, var) if factor else None
            if factor and isinstance(rest, int):
                turns.append((position, (-rest if factor > 0 else rest) // abs(factor) + 1))

    for access in accesses_of(stage.body):
        for point in access.indices:
            structural_walk(point, [((tirx.FloorDiv, tirx.FloorMod), divide), ((tirx.Min, tirx.Max), turn)])
    return found, turns


def _without(expr: Expr, var: Var) -> Index:
    """Value of an expression where a variable is 0: an int when it is constant."""
    return constant_int(tvm.sym.Analyzer().simplify(substitute(expr, {var: index(0, str(var.ty))})))


def _serves(axis: Axis, factor: int) -> bool:
    if not _LEAST_RUN <= factor < axis.extent:
        return False
    return not axis.reduce or axis.extent % factor == 0


def _cut(stage: Stage, position: int, seam: int) -> list[Stage]:
    """The axis in two parts, which meet at `seam`."""
    axis = stage.axes[position]
    parts = [Axis(tirx.Var(axis.name, str(axis.var.ty)), extent) for extent in (seam, axis.extent - seam)]
    return [
        stage.with_axes(position, (part,), part.var + index(start, str(part.var.ty)) if start else part.var)
        for part, start in zip(parts, (0, seam), strict=True)
    ]


def split_axis(stage: Stage, position: int, factor: int) -> list[Stage]:
    """The axis as two, and what the factor leaves of it."""
    axis = stage.axes[position]
    dtype = str(axis.var.ty)
    whole, rest = divmod(axis.extent, factor)
    outer = Axis(tirx.Var(f"{axis.name}_outer", dtype), whole, axis.reduce)
    inner = Axis(tirx.Var(f"{axis.name}_inner", dtype), factor, axis.reduce)
    pieces = [stage.with_axes(position, (outer, inner), outer.var * index(factor, dtype) + inner.var)]
    if rest:
        last = Axis(tirx.Var(f"{axis.name}_rest", dtype), rest, axis.reduce)
        pieces.append(stage.with_axes(position, (last,), index(whole * factor, dtype) + last.var))
    return pieces
