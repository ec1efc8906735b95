"""The loops of one stage, ready for code: neighbors collapsed, strides known, the vector axis chosen.

Splits loops whose index is divided, so that memory is accessed contiguously.

`b[c] = a[c // 16, c % 16]` over 96 becomes 6 runs of 16: blocked layouts, heads, windows and channel shuffles are read
and written like that. If the factor does not divide an extent, the remainder becomes its own stage, and so does the
part before the first block if blocks begin inside the loop (`a[(c + 15) // 16, (c + 15) % 16]`). If an index is the
minimum or maximum of two, the parts before and after their intersection are stages as well: mirrored or repeated edges
(`a[min(x, 30 - x)]`).

Splits loops where a condition on the loop variable changes, so that padding and concatenation run without branches.
For a loop of dynamic extent, the condition compares its variable with a size.

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
from schedules.ir.expression import (
    buffers_loaded,
    constant_int,
    expression,
    index,
    maximum,
    minimum,
    nodes,
    substitute,
    unflattened,
    uses,
)
from schedules.ir.inline import IF_THEN_ELSE, call_name, has_branch
from schedules.ir.size_proofs import is_nonnegative
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import (
    Analyzer,
    Expr,
    Index,
    Stmt,
    Var,
    structural_equal,
    structural_map,
    structural_walk,
    tirx,
    tvm,
)
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
    variables = [axis.var for axis in axes]
    free = {id(axis) for axis in axes if _may_collapse(axis, variables, body, init)}

    mapping: dict[Var, Expr] = {}
    spatial = _collapse([axis for axis in axes if not axis.reduce], loops, free, mapping)
    reduction = _collapse([axis for axis in axes if axis.reduce], loops, free, mapping)
    body = substitute(body, mapping)
    init = None if init is None else substitute(init, mapping)
    nest_axes = tuple(Axis(loop.var, loop.extent) for loop in spatial)
    nest_axes += tuple(Axis(loop.var, loop.extent, reduce=True) for loop in reduction)
    collapsed = Stage(stage.name, nest_axes, body, init, stage.annotations)
    return LoopNest(collapsed, tuple(spatial), tuple(reduction), tuple(accesses_of(body)) if mapping else accesses)


def _may_collapse(axis: Axis, variables: Sequence[Var], body: Stmt, init: Stmt | None) -> bool:
    """True if only index arithmetic uses the variable: elsewhere a collapsed variable costs two divisions."""
    ragged = not isinstance(axis.extent, int) and any(uses(axis.extent, var) for var in variables)
    if axis.extent == 0 or ragged:
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
            result.append(Loop(outer.var, simplified(outer.extent * loop.extent), loop.strides))
            members[-1].append(axis)
        else:
            result.append(loop)
            members.append([axis])
    for position, group in enumerate(members):
        if len(group) > 1:
            result[position] = _fused(result[position], group, mapping)
    return result


def _seamless(outer: Loop, inner: Loop) -> bool:
    pairs = zip(outer.strides, inner.strides, strict=True)
    return all(a is not None and b is not None and _equal(a, simplified(b * inner.extent)) for a, b in pairs)


def _equal(a: Index, b: Index) -> bool:
    difference = simplified(a - b)
    return (
        difference == 0 if isinstance(difference, int) else is_nonnegative(difference) and is_nonnegative(-difference)
    )


def _fused(loop: Loop, group: Sequence[Axis], mapping: dict[Var, Expr]) -> Loop:
    """One variable for a group of axes. Each becomes a quotient or remainder, which flattening later folds. If an
    extent is dynamic, the last index becomes the whole offset, which may exceed its dimension, and the others 0."""
    dtype = str(group[0].var.ty)
    var = tirx.Var("_".join(axis.name for axis in group), dtype)
    if all(isinstance(axis.extent, int) for axis in group):
        positions = unflattened(var, [index(axis.extent, dtype) for axis in group])
    else:
        positions = [*(index(0, dtype) for _ in group[1:]), var]
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
_MAX_TERMS = 32  # of a size at which a loop is cut: every index of the parts repeats it
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
        if axis.reduce or (isinstance(axis.extent, int) and axis.extent < 2):
            continue
        if not isinstance(axis.extent, int):
            pieces = _split_at_sizes(pieces, position)
            continue
        cuts = [_cuts(piece, position) for piece in pieces]
        if len(pieces) + sum(map(len, cuts)) <= _MAX_PIECES:
            pieces = [part for piece, at in zip(pieces, cuts, strict=True) for part in _cut_at(piece, position, at)]
    return pieces


def _by_remainders(stage: Stage) -> Stage:
    """Split loops if a branch depends on their remainders; the inner loop runs over the remainders."""
    for position, axis in enumerate(stage.axes):
        if axis.reduce:
            continue
        factors = [each for each in _remainders(stage, axis.var) if axis.extent != each and _divides(each, axis.extent)]
        if factors:
            return _by_remainders(split_axis(stage, position, max(factors))[0])
    return stage


def _divides(factor: int, extent: Index) -> bool:
    return bool(simplified(tirx.floormod(expression(extent), index(factor))) == 0)


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


@dataclass(frozen=True, eq=False)
class _Switch:
    """A comparison, minimum or maximum that is `before` below index `at` of a loop, and `after` from there on."""

    node: Expr
    at: Expr
    before: Expr
    after: Expr


def _split_at_sizes(pieces: list[Stage], position: int) -> list[Stage]:
    """The stages split along an axis of dynamic extent where comparisons of its index with sizes change, as far as the
    number of parts allows."""
    done: list[Stage] = []
    waiting = list(pieces)
    while waiting:
        piece = waiting.pop(0)
        switch = _switch(piece, position) if len(done) + len(waiting) + 2 <= _MAX_PIECES else None
        if switch is None:
            done.append(piece)
        else:
            waiting = _sides(piece, position, switch) + waiting
    return done


def _switch(stage: Stage, position: int) -> _Switch | None:
    """The first comparison, minimum or maximum of the axis' index and a size."""
    var = stage.axes[position].var
    points = [point for access in accesses_of(stage.body) for point in access.indices]
    limits = [each for point in points for each in nodes(point, tirx.Min, tirx.Max)]
    chosen = [each.condition for point in points for each in nodes(point, tirx.Select)]
    compared = [each for condition in chosen for each in nodes(condition, *_REVERSED)]
    for node in [*_in_conditions(stage, *_REVERSED), *compared, *limits]:
        difference = node.a - node.b
        factor = coefficient_of(difference, var)
        if factor not in (1, -1) or len(nodes(difference, tirx.Add, tirx.Sub, tirx.Min, tirx.Max)) > _MAX_TERMS:
            continue
        rest = tvm.sym.Analyzer().simplify(substitute(difference, {var: index(0, str(var.ty))}))
        if buffers_loaded(rest) or any(uses(rest, axis.var) for axis in stage.axes):
            continue
        return _switch_of(node, factor, rest)
    return None


_ORDERS: dict[type, tuple[int, bool]] = {
    tirx.LT: (0, True),
    tirx.LE: (1, True),
    tirx.GT: (1, False),
    tirx.GE: (0, False),
    tirx.Min: (1, True),
    tirx.Max: (0, False),
}
"""For `index + rest < 0` and others: the steps from `-rest` to where the result changes, and the result, or whether the
first operand is chosen, before."""
_REVERSED: dict[type, type] = {tirx.LT: tirx.GT, tirx.LE: tirx.GE, tirx.GT: tirx.LT, tirx.GE: tirx.LE}


def _switch_of(node: Expr, factor: int, rest: Expr) -> _Switch:
    """Where `factor * index + rest`, the difference of a node's operands, changes what the node is."""
    kind = type(node)
    if isinstance(node, (tirx.Min, tirx.Max)):
        steps, first = _ORDERS[kind]
        before, after = (node.a, node.b) if first is (factor == 1) else (node.b, node.a)
    else:
        steps, first = _ORDERS[kind if factor == 1 else _REVERSED[kind]]
        before, after = (tirx.IntImm("bool", value) for value in (first, not first))
    at = (-rest if factor == 1 else rest) + index(steps, str(rest.ty))
    return _Switch(node, tvm.sym.Analyzer().simplify(at), before, after)


def _sides(stage: Stage, position: int, switch: _Switch) -> list[Stage]:
    """The parts of a stage before and after a switch; only one of them if the switch is not inside the axis."""
    axis = stage.axes[position]
    at, simplify = switch.at, tvm.sym.Analyzer().simplify
    if is_nonnegative(simplify(-at)):
        return [_replaced(stage, switch.node, switch.after)]
    if is_nonnegative(simplify(at - axis.extent)):
        return [_replaced(stage, switch.node, switch.before)]
    if not is_nonnegative(at):
        at = maximum(at, index(0, str(at.ty)))
    if not is_nonnegative(simplify(axis.extent - at)):
        at = minimum(at, axis.extent)
    parts = ((switch.before, index(0, str(at.ty)), at), (switch.after, at, simplify(axis.extent - at)))
    return [
        _with_range(_replaced(stage, switch.node, value), position, start, extent) for value, start, extent in parts
    ]


def _replaced(stage: Stage, node: Expr, value: Expr) -> Stage:
    """The stage with a node, and others equal to it, replaced, and without branches that this decides."""
    body = structural_map(stage.body, (type(node), lambda each: value if structural_equal(each, node) else each))
    return Stage(stage.name, stage.axes, _decide(body, tvm.sym.Analyzer()), stage.init, stage.annotations)


def _with_range(stage: Stage, position: int, start: Expr, extent: Expr) -> Stage:
    """The stage for `extent` steps of an axis, from `start` on."""
    axis = stage.axes[position]
    var = tirx.Var(axis.name, str(axis.var.ty))
    return stage.with_axes(position, [Axis(var, constant_int(extent))], var + start)


def _decide(body: Stmt, analyzer: Analyzer) -> Stmt:
    def visit(node: Expr) -> Expr:
        if isinstance(node, tirx.Select):
            make, parts = tirx.Select, (node.condition, node.true_value, node.false_value)
        elif call_name(node) == IF_THEN_ELSE:
            make, parts = tirx.if_then_else, tuple(node.args)
        else:
            return node
        condition = analyzer.simplify(parts[0])
        known = constant_int(condition)
        if isinstance(known, int):
            return parts[1] if known else parts[2]
        return node if condition.same_as(parts[0]) else make(condition, *parts[1:])

    return structural_map(body, ((tvm.ir.Call, tirx.Select), visit))
