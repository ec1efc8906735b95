"""Splits loops where a condition on the loop variable changes, so that padding and concatenation run without branches.

`if_then_else(ax < 3, a[ax], b[ax - 3])` over 8 becomes a copy of 3 and a copy of 5. A condition on blocks and on what
lies in a block, `16 * ax + bx < 33`, leaves the blocks around the one that it cuts, and the parts of that one. Where a
condition is on a remainder, `ax % 2 == 1`, the loop becomes one over the steps of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from schedules.ir.access import coefficient_of
from schedules.ir.expression import constant_int, index, substitute
from schedules.ir.index_arithmetic import bound_analyzer
from schedules.ir.inline import IF_THEN_ELSE, call_name, has_branch
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import Analyzer, Call, Expr, Stmt, Var, structural_map, structural_walk, tirx, tvm
from schedules.stages.axis_splitting import split_axis

_MAX_PIECES = 27
_MOST_REMAINDERS = 4
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


def split_branches(stage: Stage) -> list[Stage]:
    """The stage split along its spatial axes into parts in which the conditions on those axes are decided.

    An axis that would be split into too many parts is left whole.
    """
    trivial = {axis.var: index(0, str(axis.var.ty)) for axis in stage.axes if axis.extent == 1}
    init = None if stage.init is None else substitute(stage.init, trivial)
    body = substitute(stage.body, trivial)
    stage = Stage(stage.name, stage.axes, body, init, stage.annotations)
    if has_branch(body):
        stage = _decided(_by_remainders(stage))
    pieces = [stage]
    for position, axis in enumerate(stage.axes):
        if axis.reduce or not isinstance(axis.extent, int) or axis.extent < 2:
            continue
        cuts = [_cuts(piece, position) for piece in pieces]
        if len(pieces) + sum(map(len, cuts)) <= _MAX_PIECES:
            pieces = [part for piece, at in zip(pieces, cuts, strict=True) for part in _cut(piece, position, at)]
    return pieces


def _by_remainders(stage: Stage) -> Stage:
    """Loops of known extent, on whose remainders a branch depends, as two, the inner one over the remainders."""
    for position, axis in enumerate(stage.axes):
        if axis.reduce or not isinstance(axis.extent, int):
            continue
        factors = [each for each in _remainders(stage, axis.var) if axis.extent % each == 0 and axis.extent > each]
        if factors:
            return _by_remainders(split_axis(stage, position, max(factors))[0])
    return stage


def _remainders(stage: Stage, var: Var) -> list[int]:
    """The factors of `var % factor` in the conditions of branches."""
    found: list[int] = []

    def visit(call: Call) -> None:
        if call_name(call) == IF_THEN_ELSE:
            structural_walk(call.args[0], (tirx.FloorMod, remainder))

    def remainder(node: Expr) -> None:
        factor = constant_int(node.b)
        if node.a.same_as(var) and isinstance(factor, int) and 1 < factor <= _MOST_REMAINDERS:
            found.append(factor)

    structural_walk(stage.body, (tvm.ir.Call, visit))
    return found


def _decided(stage: Stage) -> Stage:
    """The stage without the branches that the extents of its loops decide."""
    body = _decide(stage.body, bound_analyzer(stage.axes))
    return Stage(stage.name, stage.axes, body, stage.init, stage.annotations)


def _cuts(stage: Stage, position: int) -> list[int]:
    """The points inside an axis where a condition of a branch changes, or where another axis begins to decide it."""
    axis = stage.axes[position]
    others = [each for each in stage.axes if each is not axis]
    found: set[int] = set()

    def visit(call: Call) -> None:
        if call_name(call) == IF_THEN_ELSE:
            structural_walk(call.args[0], (_COMPARISONS, compare))

    def compare(node: Expr) -> None:
        found.update(_thresholds(node, axis.var, others))

    structural_walk(stage.body, (tvm.ir.Call, visit))
    return sorted(point for point in found if 0 < point < axis.extent)


def _thresholds(comparison: Expr, var: Var, others: Sequence[Axis]) -> list[int]:
    """Values of `var` at which `a < b` and its like change. Nothing when they do not depend on it in a linear way, or
    other axes move them by more than a step of `var` does."""
    difference = comparison.a - comparison.b
    factor = coefficient_of(difference, var)
    if not factor:
        return []
    analyzer = bound_analyzer(others)
    rest = analyzer.simplify(substitute(difference, {var: index(0, str(var.ty))}))
    if not isinstance(constant_int(rest), int) and abs(factor) == 1:
        return []
    bounds = analyzer.const_int_bound(rest)
    low, high = int(bounds.min_value), int(bounds.max_value)
    if high - low >= abs(factor):
        return []
    orders = (tirx.GT, tirx.LE)
    if factor < 0:  # a < b as b > a
        factor, low, high, orders = -factor, -high, -low, (tirx.LT, tirx.GE)
    # The first step at which factor * var + rest is at least 0, or at least 1, for some of the rest and for all of it.
    least = (0, 1) if isinstance(comparison, (tirx.EQ, tirx.NE)) else (1,) if isinstance(comparison, orders) else (0,)
    return [-((bound - each) // factor) for each in least for bound in (low, high)]


def _cut(stage: Stage, position: int, cuts: list[int]) -> list[Stage]:
    if not cuts:
        return [stage]
    edges = [0, *cuts, stage.axes[position].extent]
    return [_part(stage, position, low, high) for low, high in itertools.pairwise(edges)]


def _part(stage: Stage, position: int, low: int, high: int) -> Stage:
    axis = stage.axes[position]
    dtype = str(axis.var.ty)
    var = tirx.Var(axis.name, dtype)
    analyzer = bound_analyzer([each for each in stage.axes if each is not axis])
    analyzer.bind(axis.var, tvm.ir.Range(index(low, dtype), index(high, dtype)))
    decided = _decide(stage.body, analyzer)
    place = index(low, dtype) if high - low == 1 else var + index(low, dtype) if low else var
    whole = Stage(stage.name, stage.axes, decided, stage.init, stage.annotations)
    return whole.with_axes(position, [Axis(var, high - low)], place)


def _decide(body: Stmt, analyzer: Analyzer) -> Stmt:
    def visit(call: Call) -> Expr:
        if call_name(call) != IF_THEN_ELSE:
            return call
        condition = analyzer.simplify(call.args[0])
        known = constant_int(condition)
        if isinstance(known, int):
            return call.args[1] if known else call.args[2]
        return call if condition.same_as(call.args[0]) else tirx.if_then_else(condition, call.args[1], call.args[2])

    return structural_map(body, (tvm.ir.Call, visit))
