"""The loops of one stage, ready for code: neighbors collapsed, strides known, the vector axis chosen.

Splits loops whose index is divided, so that memory is accessed contiguously.

`b[c] = a[c // 16, c % 16]` over 96 becomes 6 runs of 16: blocked layouts, heads, windows and channel shuffles are read
and written like that. If the factor does not divide an extent, the remainder becomes its own stage, and so does the
part before the first block if blocks begin inside the loop (`a[(c + 15) // 16, (c + 15) % 16]`). If an index is the
minimum or maximum of two, the parts before and after their intersection are stages as well: mirrored or repeated edges
(`a[min(x, 30 - x)]`).

Splits loops where a condition on the loop variable changes, so that padding and concatenation run without branches.

`if_then_else(ax < 3, a[ax], b[ax - 3])` over 8 becomes a copy of 3 and a copy of 5. A condition on blocks and on
positions in a block, `16 * ax + bx < 33`, yields the blocks around the split one, and the parts of that one. For a
condition on a remainder, `ax % 2 == 1`, the loop becomes one over the steps of each remainder.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from schedules.ir.access import (
    Access,
    Stride,
    accesses_of,
    bound_analyzer,
    coefficient_of,
    simplified,
    used_outside_indices,
    with_plain_indices,
)
from schedules.ir.expression import buffers_loaded, constant_int, index, nodes, substitute, unflattened
from schedules.ir.inline import IF_THEN_ELSE, call_name, has_branch
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import Analyzer, Call, Expr, Index, Stmt, Var, structural_map, structural_walk, tirx, tvm
from schedules.machine import Machine, dtype_bits


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop, and the stride of each access of the body (None: irregular)."""

    var: Var
    extent: Index
    strides: tuple[Stride, ...]

    @property
    def is_static(self) -> bool:
        return isinstance(self.extent, int)


@dataclass(frozen=True, eq=False)
class LoopNest:
    """A stage whose adjacent loops are collapsed if memory accesses are contiguous across them."""

    stage: Stage
    spatial: tuple[Loop, ...]
    reduction: tuple[Loop, ...]
    accesses: tuple[Access, ...]

    @property
    def stores(self) -> tuple[int, ...]:
        """Indices of the accesses that are stores."""
        return tuple(i for i, access in enumerate(self.accesses) if access.is_store)

    def is_contiguous(self, loop: Loop) -> bool:
        """True if every access moves by one element or none, at least one of them by one."""
        return set(loop.strides) <= {0, 1} and 1 in loop.strides

    def lanes(self, machine: Machine, axis: Loop | None = None) -> int:
        """Lanes of a vector such that the widest element type loaded, stored or computed fills one register.

        Values read only for an index, and constant over a whole vector along `axis`, are not counted.
        """
        strides = (None,) * len(self.accesses) if axis is None else axis.strides
        pairs = zip(self.accesses, strides, strict=True)
        touched = [access for access, stride in pairs if stride != 0 or not self._is_index(access)]
        widest = max((dtype_bits(str(access.buffer.dtype)) for access in touched), default=32)
        # Only floats count among the types that narrower elements are cast to: index arithmetic does not.
        casts = [str(cast.ty) for cast in nodes(self.stage.body, tirx.Cast)]
        widest = max([widest, *(dtype_bits(dtype) for dtype in casts if "float" in dtype)])
        return max(1, machine.vector_bits // widest)

    def _is_index(self, access: Access) -> bool:
        """True if it is read only for an index of another access."""
        loads = [load for each in self.accesses for point in each.indices for load in buffers_loaded(point)]
        return not access.is_store and any(access.is_at(load.source, load.indices) for load in loads)


def loop_nest_of(stage: Stage) -> LoopNest:
    """Analyze a stage. Loops of extent 1 are removed; the body may be rewritten in terms of collapsed variables."""
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
    nest_axes = tuple(Axis(loop.var, loop.extent) for loop in spatial)
    nest_axes += tuple(Axis(loop.var, loop.extent, reduce=True) for loop in reduction)
    collapsed = Stage(stage.name, nest_axes, body, init, stage.annotations)
    return LoopNest(collapsed, tuple(spatial), tuple(reduction), tuple(accesses_of(body)) if mapping else accesses)


def _may_collapse(axis: Axis, body: Stmt, init: Stmt | None) -> bool:
    """True if only index arithmetic uses the variable: elsewhere a collapsed variable costs two divisions."""
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
    """One variable for a group of axes; each becomes a quotient or remainder, which flattening later folds."""
    dtype = str(group[0].var.ty)
    var = tirx.Var("_".join(axis.name for axis in group), dtype)
    positions = unflattened(var, [index(axis.extent, dtype) for axis in group])
    mapping.update((axis.var, position) for axis, position in zip(group, positions, strict=True))
    return Loop(var, loop.extent, loop.strides)


_MIN_RUN = 4  # shorter runs are no better than single elements
_MAX_SPLIT_PIECES = 8


def split_axes(stage: Stage) -> list[Stage]:
    """The stage split into parts in which no index divides an axis, if possible."""
    done: list[Stage] = []
    waiting = [stage]
    while waiting:
        piece = waiting.pop(0)
        pieces = _next_split(piece) if len(done) + len(waiting) < _MAX_SPLIT_PIECES else None
        if pieces is None:
            done.append(piece)
        else:
            waiting = [with_plain_indices(each) for each in pieces] + waiting
    return done


def _next_split(stage: Stage) -> list[Stage] | None:
    """The stage split along an axis that an index divides, or along which an index changes direction; None if there is
    none."""
    splits, bends = _divided_axes(stage)
    for position, axis in enumerate(stage.axes):
        seams = [-offset % factor for divided, factor, offset in splits if divided == position and offset % factor]
        seams += [seam for bent, seam in bends if bent == position]
        inside = sorted(seam for seam in seams if 0 < seam < axis.extent)
        if inside and not axis.reduce:  # the blocks begin inside the loop
            return _cut_at(stage, position, inside[:1])
        factors = [factor for divided, factor, offset in splits if divided == position and not offset % factor]
        serving = [factor for factor in factors if _serves(axis, factor)]
        if serving:
            return split_axis(stage, position, max(serving))
    return None


def _divided_axes(stage: Stage) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """(position, factor, offset) for each `(axis + offset) // factor`, or remainder, of an axis of known extent, and
    (position, index) for each minimum or maximum, at which the other operand takes over."""
    divided: list[tuple[int, int, int]] = []
    bends: list[tuple[int, int]] = []
    static = [(position, axis.var) for position, axis in enumerate(stage.axes) if isinstance(axis.extent, int)]

    def divide(node: Expr) -> None:
        factor = constant_int(node.b)
        if not isinstance(factor, int) or factor < _MIN_RUN:
            return
        for position, var in static:
            if coefficient_of(node.a, var) == 1:
                rest = _without(node.a, var)
                if isinstance(rest, int):
                    divided.append((position, factor, rest))

    def bend(node: Expr) -> None:
        difference = node.a - node.b
        for position, var in static:
            factor = coefficient_of(difference, var)
            rest = _without(difference, var) if factor else None
            if factor and isinstance(rest, int):
                bends.append((position, (-rest if factor > 0 else rest) // abs(factor) + 1))

    for access in accesses_of(stage.body):
        for point in access.indices:
            structural_walk(point, [((tirx.FloorDiv, tirx.FloorMod), divide), ((tirx.Min, tirx.Max), bend)])
    return divided, bends


def _without(expr: Expr, var: Var) -> Index:
    """Value of an expression with a variable set to 0: an int if constant."""
    return constant_int(tvm.sym.Analyzer().simplify(substitute(expr, {var: index(0, str(var.ty))})))


def _serves(axis: Axis, factor: int) -> bool:
    if not _MIN_RUN <= factor < axis.extent:
        return False
    return not axis.reduce or axis.extent % factor == 0


def split_axis(stage: Stage, position: int, factor: int) -> list[Stage]:
    """Split an axis into two, with a stage for the remainder; the factor must divide an axis of unknown length."""
    axis = stage.axes[position]
    dtype = str(axis.var.ty)
    if isinstance(axis.extent, int):
        parts, rest = divmod(axis.extent, factor)
    else:
        parts, rest = simplified(tirx.floordiv(axis.extent, index(factor, dtype))), 0
    outer = Axis(tirx.Var(f"{axis.name}_outer", dtype), parts, axis.reduce)
    inner = Axis(tirx.Var(f"{axis.name}_inner", dtype), factor, axis.reduce)
    pieces = [stage.with_axes(position, (outer, inner), outer.var * index(factor, dtype) + inner.var)]
    if rest:
        last = Axis(tirx.Var(f"{axis.name}_rest", dtype), rest, axis.reduce)
        pieces.append(stage.with_axes(position, (last,), index(parts * factor, dtype) + last.var))
    return pieces


_MAX_PIECES = 27
_MAX_REMAINDERS = 4
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


def split_branches(stage: Stage) -> list[Stage]:
    """The stage split along its spatial axes into parts in which the conditions on those axes are decided.

    An axis that would be split into too many parts is not split.
    """
    stage = replace(stage.without_single(), axes=stage.axes)
    if has_branch(stage.body):
        stage = _decided(_by_remainders(stage))
    pieces = [stage]
    for position, axis in enumerate(stage.axes):
        if axis.reduce or not isinstance(axis.extent, int) or axis.extent < 2:
            continue
        cuts = [_cuts(piece, position) for piece in pieces]
        if len(pieces) + sum(map(len, cuts)) <= _MAX_PIECES:
            pieces = [part for piece, at in zip(pieces, cuts, strict=True) for part in _cut_at(piece, position, at)]
    return pieces


def _by_remainders(stage: Stage) -> Stage:
    """Split loops of known extent if a branch depends on their remainders; the inner loop runs over the remainders."""
    for position, axis in enumerate(stage.axes):
        if axis.reduce or not isinstance(axis.extent, int):
            continue
        factors = [each for each in _remainders(stage, axis.var) if axis.extent % each == 0 and axis.extent > each]
        if factors:
            return _by_remainders(split_axis(stage, position, max(factors))[0])
    return stage


def _remainders(stage: Stage, var: Var) -> list[int]:
    """The factors of `var % factor` in the conditions of branches."""
    factors = [constant_int(each.b) for each in _in_conditions(stage, tirx.FloorMod) if each.a.same_as(var)]
    return [factor for factor in factors if isinstance(factor, int) and 1 < factor <= _MAX_REMAINDERS]


def _in_conditions(stage: Stage, *kinds: type) -> list[Expr]:
    """The nodes of some classes in the conditions of branches."""
    calls = [call for call in nodes(stage.body, tvm.ir.Call) if call_name(call) == IF_THEN_ELSE]
    return [each for call in calls for each in nodes(call.args[0], *kinds)]


def _decided(stage: Stage) -> Stage:
    """The stage without branches that are decided by the extents of its loops."""
    body = _decide(stage.body, bound_analyzer(stage.axes))
    return Stage(stage.name, stage.axes, body, stage.init, stage.annotations)


def _cuts(stage: Stage, position: int) -> list[int]:
    """The points inside an axis where a condition of a branch changes, or where another axis begins to decide it."""
    axis = stage.axes[position]
    others = [each for each in stage.axes if each is not axis]
    found = {point for each in _in_conditions(stage, *_COMPARISONS) for point in _thresholds(each, axis.var, others)}
    return sorted(point for point in found if 0 < point < axis.extent)


def _thresholds(comparison: Expr, var: Var, axes: Sequence[Axis]) -> list[int]:
    """Values of `var` at which `a < b` or a similar comparison changes. Empty if it is not linear in `var`, or if other
    axes move it by more than a step of `var` does."""
    difference = comparison.a - comparison.b
    factor = coefficient_of(difference, var)
    if not factor:
        return []
    analyzer = bound_analyzer(axes)
    rest = analyzer.simplify(substitute(difference, {var: index(0, str(var.ty))}))
    if not isinstance(constant_int(rest), int) and abs(factor) == 1:
        return []
    bounds = analyzer.const_int_bound(rest)
    low, high = int(bounds.min_value), int(bounds.max_value)
    if high - low >= abs(factor):
        return []
    orders = (tirx.GT, tirx.LE)
    if factor < 0:  # rewrite a < b as b > a
        factor, low, high, orders = -factor, -high, -low, (tirx.LT, tirx.GE)
    # The first step at which factor * var + rest is at least 0, or at least 1, for any and for every value of the rest.
    minimum = (0, 1) if isinstance(comparison, (tirx.EQ, tirx.NE)) else (1,) if isinstance(comparison, orders) else (0,)
    return [-((bound - each) // factor) for each in minimum for bound in (low, high)]


def _cut_at(stage: Stage, position: int, cuts: list[int]) -> list[Stage]:
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
    value = index(low, dtype) if high - low == 1 else var + index(low, dtype) if low else var
    whole = Stage(stage.name, stage.axes, decided, stage.init, stage.annotations)
    return whole.with_axes(position, [Axis(var, high - low)], value)


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
