"""Splits loops where a condition on the loop variable changes, so that padding and concatenation run without branches.

`if_then_else(ax < 3, a[ax], b[ax - 3])` over 8 becomes a copy of 3 and a copy of 5.
"""

from __future__ import annotations

import itertools
from typing import Any

from schedules.access import coefficient_of
from schedules.expression import constant_int, index, substitute
from schedules.inline import IF_THEN_ELSE, call_name
from schedules.kernel import Axis, Stage
from schedules.tir import structural_map, structural_walk, tirx, tvm

Expr = Any
_MAX_PIECES = 27
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


def split_branches(stage: Stage) -> list[Stage]:
    """The stage in pieces along its spatial axes, in each of which the conditions on those axes are decided.

    An axis whose conditions involve other variables, or whose pieces would become too many, is left whole.
    """
    trivial = {axis.var: index(0, str(axis.var.ty)) for axis in stage.axes if axis.extent == 1}
    init = None if stage.init is None else substitute(stage.init, trivial)
    body = substitute(stage.body, trivial)
    pieces = [Stage(stage.name, stage.axes, body, init, stage.annotations)]
    for position, axis in enumerate(stage.axes):
        if axis.reduce or not isinstance(axis.extent, int) or axis.extent < 2:
            continue
        cuts = _cuts(body, axis)
        if not cuts or len(pieces) * (len(cuts) + 1) > _MAX_PIECES:
            continue
        pieces = [part for piece in pieces for part in _cut(piece, position, cuts)]
    return pieces


def _cuts(body: Any, axis: Axis) -> list[int]:
    """The points inside the axis where a condition of a branch changes."""
    found: set[int] = set()

    def visit(call: Any) -> None:
        if call_name(call) == IF_THEN_ELSE:
            structural_walk(call.args[0], (_COMPARISONS, compare))

    def compare(node: Any) -> None:
        found.update(_thresholds(node, axis.var))

    structural_walk(body, (tvm.ir.Call, visit))
    return sorted(point for point in found if 0 < point < axis.extent)


def _thresholds(comparison: Any, var: Any) -> list[int]:
    """Where `a < b` and its like change along `var`; nothing when they do not depend on it alone, with step 1."""
    difference = comparison.a - comparison.b
    coefficient = coefficient_of(difference, var)
    if coefficient not in (1, -1):
        return []
    at_zero = tvm.sym.Analyzer().simplify(substitute(difference, {var: index(0, str(var.ty))}))
    offset = constant_int(at_zero)
    if not isinstance(offset, int):
        return []
    zero = -offset * coefficient  # where both sides are equal
    if isinstance(comparison, (tirx.EQ, tirx.NE)):
        return [zero, zero + 1]
    strict = isinstance(comparison, (tirx.LT, tirx.GT))
    falling = isinstance(comparison, (tirx.LT, tirx.LE)) == (coefficient == 1)
    # `v < 3` changes between 2 and 3, `v <= 3` between 3 and 4; `v > 3` between 3 and 4, `v >= 3` between 2 and 3.
    return [zero + (not strict if falling else strict)]


def _cut(stage: Stage, position: int, cuts: list[int]) -> list[Stage]:
    axis = stage.axes[position]
    edges = [0, *cuts, axis.extent]
    return [_part(stage, position, low, high) for low, high in itertools.pairwise(edges)]


def _part(stage: Stage, position: int, low: int, high: int) -> Stage:
    axis = stage.axes[position]
    dtype = str(axis.var.ty)
    var = tirx.Var(axis.name, dtype)
    analyzer = tvm.sym.Analyzer()
    analyzer.bind(axis.var, tvm.ir.Range(index(low, dtype), index(high, dtype)))
    decided = _decide(stage.body, analyzer)
    mapping = {axis.var: var + index(low, dtype) if low else var}
    axes = list(stage.axes)
    axes[position] = Axis(var, high - low)
    init = None if stage.init is None else substitute(stage.init, mapping)
    return Stage(stage.name, tuple(axes), substitute(decided, mapping), init, stage.annotations)


def _decide(body: Any, analyzer: Any) -> Any:
    def visit(call: Any) -> Any:
        if call_name(call) != IF_THEN_ELSE:
            return call
        condition = analyzer.simplify(call.args[0])
        known = constant_int(condition)
        if isinstance(known, int):
            return call.args[1] if known else call.args[2]
        return call if condition.same_as(call.args[0]) else tirx.if_then_else(condition, call.args[1], call.args[2])

    return structural_map(body, (tvm.ir.Call, visit))
