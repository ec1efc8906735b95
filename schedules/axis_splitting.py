"""Splits loops whose index is taken apart, so that memory is walked in straight lines.

`b[c] = a[c // 16, c % 16]` over 96 becomes 6 runs of 16: blocked layouts, heads, windows and shuffles of channels are
read and written so. What is left of an extent that the factor does not divide becomes a stage of its own.
"""

from __future__ import annotations

from typing import Any

from schedules.access import accesses_of
from schedules.expression import constant_int, index, substitute
from schedules.index_arithmetic import with_plain_indices
from schedules.kernel import Axis, Stage
from schedules.tir import structural_walk, tirx

Expr = Any
_LEAST_RUN = 4  # shorter runs are no better than single elements
_MOST_PIECES = 8


def split_axes(stage: Stage) -> list[Stage]:
    """The stage in pieces, none of whose axes is taken apart by an index where that could be helped."""
    done: list[Stage] = []
    waiting = [stage]
    while waiting:
        piece = waiting.pop(0)
        found = _factor_of_axis(piece) if len(done) + len(waiting) < _MOST_PIECES else None
        if found is None:
            done.append(piece)
        else:
            waiting = [with_plain_indices(each) for each in _split(piece, *found)] + waiting
    return done


def _factor_of_axis(stage: Stage) -> tuple[int, int] | None:
    """(position of an axis, what an index divides it by), or None."""
    factors: dict[int, set[int]] = {}
    positions = {axis.var: position for position, axis in enumerate(stage.axes) if isinstance(axis.extent, int)}

    def visit(node: Any) -> None:
        factor, position = constant_int(node.b), positions.get(node.a)
        if position is not None and isinstance(factor, int) and _serves(stage.axes[position], factor):
            factors.setdefault(position, set()).add(factor)

    for access in accesses_of(stage.body):
        for point in access.indices:
            structural_walk(point, ((tirx.FloorDiv, tirx.FloorMod), visit))
    return next(((position, max(found)) for position, found in sorted(factors.items())), None)


def _serves(axis: Axis, factor: int) -> bool:
    if not _LEAST_RUN <= factor < axis.extent:
        return False
    return not axis.reduce or axis.extent % factor == 0


def _split(stage: Stage, position: int, factor: int) -> list[Stage]:
    """The axis as two, and what the factor leaves of it."""
    axis = stage.axes[position]
    dtype = str(axis.var.ty)
    whole, rest = divmod(axis.extent, factor)
    outer = Axis(tirx.Var(f"{axis.name}_outer", dtype), whole, axis.reduce)
    inner = Axis(tirx.Var(f"{axis.name}_inner", dtype), factor, axis.reduce)
    pieces = [_with_axes(stage, position, (outer, inner), outer.var * index(factor, dtype) + inner.var)]
    if rest:
        last = Axis(tirx.Var(f"{axis.name}_rest", dtype), rest, axis.reduce)
        pieces.append(_with_axes(stage, position, (last,), index(whole * factor, dtype) + last.var))
    return pieces


def _with_axes(stage: Stage, position: int, axes: tuple[Axis, ...], value: Expr) -> Stage:
    """The stage with other axes in the place of one, whose variable has a value in terms of theirs."""
    place = {stage.axes[position].var: value}
    init = None if stage.init is None else substitute(stage.init, place)
    every = (*stage.axes[:position], *axes, *stage.axes[position + 1 :])
    return Stage(stage.name, every, substitute(stage.body, place), init, stage.annotations)
