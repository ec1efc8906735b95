"""Simplifies indices by the bounds of their loops: index arithmetic left by reshapes obscures the memory access
pattern."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from schedules.ir.expression import index, map_loads, map_stores, nodes
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import Analyzer, Expr, Stmt, structural_map, tirx, tvm


def with_plain_indices(stage: Stage) -> Stage:
    """The stage with divisions, remainders, minima and maxima gone from its indices where the extents of its loops
    decide them."""
    if not _is_taken_apart(stage.body):
        return stage
    analyzer = bound_analyzer(stage.axes)

    def plain(indices: Sequence[Expr]) -> list[Expr] | None:
        if not any(_is_taken_apart(point) for point in indices):
            return None
        return [_plain(point, analyzer) if _is_taken_apart(point) else point for point in indices]

    def load(node: Expr) -> Expr | None:
        indices = plain(node.indices)
        return None if indices is None else tirx.BufferLoad(node.source, indices)

    def store(node: Stmt) -> Stmt | None:
        indices = plain(node.indices)
        return None if indices is None else tirx.BufferStore(node.buffer, node.value, indices)

    body = map_stores(map_loads(stage.body, load), store)
    return Stage(stage.name, stage.axes, body, stage.init, stage.annotations)


def _plain(point: Expr, analyzer: Analyzer) -> Expr:
    """TVM's simplifier keeps quotients of negative numbers that its own bounds decide."""
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
