"""Strides of a statement's memory accesses with respect to a loop variable.

Also simplifies indices by the bounds of their loops: index arithmetic left by reshapes obscures the memory access
pattern.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from schedules.ir.expression import (
    buffers_loaded,
    constant_int,
    index,
    map_accesses,
    map_loads,
    nodes,
    substitute,
    uses,
)
from schedules.ir.stages import Axis, Stage, is_compact, shape_of
from schedules.ir.tir import (
    Analyzer,
    Buffer,
    Expr,
    Index,
    Node,
    Stmt,
    StructuralKey,
    Var,
    structural_equal,
    structural_map,
    tirx,
    tvm,
)


def with_plain_indices(stage: Stage) -> Stage:
    """The stage with divisions, remainders, minima and maxima removed from its indices if the extents of its loops
    decide them."""
    if not _is_taken_apart(stage.body):
        return stage
    analyzer = bound_analyzer(stage.axes)

    def plain(buffer: Buffer, indices: Sequence[Expr]) -> tuple[Buffer, list[Expr]] | None:
        if not any(_is_taken_apart(point) for point in indices):
            return None
        return buffer, [_plain(point, analyzer) if _is_taken_apart(point) else point for point in indices]

    return Stage(stage.name, stage.axes, map_accesses(stage.body, plain), stage.init, stage.annotations)


def _plain(point: Expr, analyzer: Analyzer) -> Expr:
    """Remove quotients of negative numbers that TVM's simplifier keeps although its own bounds decide them."""
    point = analyzer.simplify(point)
    if not _is_taken_apart(point):
        return point

    def decided(quotient: Expr) -> Expr:
        bounds = analyzer.const_int_bound(quotient)
        low = int(bounds.min_value)
        return index(low, str(quotient.ty)) if low == int(bounds.max_value) else quotient

    return analyzer.simplify(structural_map(point, (tirx.FloorDiv, decided)))


def bound_analyzer(axes: Iterable[Axis]) -> Analyzer:
    """An analyzer that knows the ranges of these axes."""
    analyzer = tvm.sym.Analyzer()
    for axis in axes:
        dtype, extent = str(axis.var.ty), axis.extent
        length = index(extent, dtype) if isinstance(extent, int) else extent
        analyzer.bind(axis.var, tvm.ir.Range.from_min_extent(index(0, dtype), length))
    return analyzer


def _is_taken_apart(root: Expr) -> bool:
    return bool(nodes(root, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max))


Stride = Any  # an int, a symbolic expression, or None if irregular


@dataclass(frozen=True, eq=False)
class Access:
    """One load or store: the buffer and its indices."""

    buffer: Expr
    indices: tuple[Expr, ...]
    is_store: bool

    def is_at(self, buffer: Buffer, indices: Sequence[Expr]) -> bool:
        """True if it accesses this position."""
        return bool(self.buffer.same_as(buffer)) and bool(structural_equal(list(self.indices), list(indices)))

    def stride(self, var: Var) -> Stride:
        """Elements moved when `var` grows by one; None if that is not constant."""
        if not is_compact(self.buffer):
            return None if any(uses(each, var) for each in self.indices) else 0
        total: Index = 0
        for size, point in _with_sizes(self.buffer, self.indices):
            coefficient = coefficient_of(point, var)
            if coefficient is None:
                return None
            total = coefficient * size + total if coefficient else total
        return simplified(total)


def _with_sizes(buffer: Buffer, indices: Sequence[Expr]) -> list[tuple[Index, Expr]]:
    """Each index with its stride in elements."""
    shape = shape_of(buffer)
    return [(reduce(lambda a, b: a * b, shape[i + 1 :], 1), point) for i, point in enumerate(indices)]


def with_flat_indices(root: Stmt, buffers: Sequence[Expr]) -> Node:
    """Replace indices that are quotients and remainders of one number by that number, in accesses of these buffers.

    TVM simplifies each index on its own, within the bounds of its variables, and cannot recombine them if vectors do
    not divide rows: `x[(8 * i + lane) // 28, (8 * i + lane) % 28]` would be read lane by lane. Not for buffers that a
    kernel allocates, whose sizes follow from the indices.
    """
    known: dict[StructuralKey, Expr] = {}  # a kernel repeats a few of them very often

    def moved(buffer: Buffer, indices: Sequence[Expr]) -> tuple[Buffer, Sequence[Expr]] | None:
        divided = sum(bool(nodes(point, tirx.FloorDiv, tirx.FloorMod)) for point in indices)
        if divided < 2 or any(str(point.ty) not in ("int32", "int64") for point in indices):  # or vectors
            return None
        if not is_compact(buffer) or not any(buffer.same_as(each) for each in buffers):
            return None
        offset = reduce(lambda a, b: a + b, (point * size for size, point in _with_sizes(buffer, indices)))
        key = StructuralKey(offset)
        if key not in known:
            known[key] = tvm.sym.Analyzer().simplify(offset)
        if nodes(known[key], tirx.FloorDiv, tirx.FloorMod):
            return None
        return buffer, [index(0, str(known[key].ty))] * (len(indices) - 1) + [known[key]]

    return map_accesses(root, moved)


def coefficient_of(expr: Expr, var: Var) -> int | None:
    """The constant factor of `var` in a linear expression; 0 when absent, None when not linear."""
    if isinstance(expr, tirx.IntImm):
        return 0
    if isinstance(expr, tvm.ir.Var):
        return 1 if expr.same_as(var) else 0
    if isinstance(expr, (tirx.Add, tirx.Sub)):
        left, right = coefficient_of(expr.a, var), coefficient_of(expr.b, var)
        if left is None or right is None:
            return None
        return left + right if isinstance(expr, tirx.Add) else left - right
    if isinstance(expr, tirx.Mul):
        for factor, operand in ((constant_int(expr.a), expr.b), (constant_int(expr.b), expr.a)):
            if isinstance(factor, int):
                inner = coefficient_of(operand, var)
                return None if inner is None else factor * inner
    if isinstance(expr, tirx.Cast):
        return coefficient_of(expr.value, var)
    return _difference(expr, var) if uses(expr, var) else 0


def _difference(expr: Expr, var: Var) -> int | None:
    """f(v + 1) - f(v) if TVM proves it constant."""
    if buffers_loaded(expr):
        return None
    moved = substitute(expr, {var: var + tirx.IntImm(str(var.ty), 1)})
    step = constant_int(tvm.sym.Analyzer().simplify(moved - expr))
    return step if isinstance(step, int) else None


def simplified(value: Index) -> Stride:
    return value if isinstance(value, int) else constant_int(tvm.sym.Analyzer().simplify(value))


def accesses_of(root: Node) -> list[Access]:
    """Every load and store below a statement or expression."""
    return [
        Access(
            each.buffer if isinstance(each, tirx.BufferStore) else each.source,
            tuple(each.indices),
            isinstance(each, tirx.BufferStore),
        )
        for each in nodes(root, tvm.ir.TensorLoad, tirx.BufferStore)
    ]


def used_outside_indices(root: Stmt, var: Var) -> bool:
    """True if a variable occurs in a value or a condition, not only in the indices of loads and stores."""
    without_loads = map_loads(root, lambda load: tirx.Var("loaded", load.ty))
    stored = [store for store in accesses_of(without_loads) if store.is_store]
    in_stores = sum(_count(point, var) for store in stored for point in store.indices)
    return _count(without_loads, var) > in_stores


def _count(root: Node, var: Var) -> int:
    return sum(bool(node.same_as(var)) for node in nodes(root, tvm.ir.Var))
