"""Removes what a launch may not hold: loops marked parallel or vectorized, and large buffers."""

from __future__ import annotations

from schedules.ir.stages import dtype_of, product, shape_of
from schedules.ir.tir import Expr, Stmt, s_tir, structural_map, tirx
from schedules.machine import dtype_bits

_LOCAL_BYTES = 4 << 10


def without_parallel_loops(statement: Stmt) -> Stmt:
    """The statement with parallel and vectorized loops made serial."""

    def replace(loop: Stmt) -> Stmt:
        if loop.kind not in (tirx.ForKind.PARALLEL, tirx.ForKind.VECTORIZED):
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return structural_map(statement, (tirx.For, replace))


def take_allocations(statement: Stmt) -> tuple[Stmt, list[Expr]]:
    """The statement without its allocations of buffers that are not private to a thread, and these buffers."""
    taken: list[Expr] = []

    def stays(buffer: Expr) -> bool:
        size = product(shape_of(buffer))
        small = size is not None and size * dtype_bits(dtype_of(buffer)) <= 8 * _LOCAL_BYTES
        return str(buffer.ty.storage_scope) == "local" and small

    def allocation(node: Stmt) -> Stmt:
        if stays(node.buffer):
            return node
        taken.append(node.buffer)
        return tirx.Evaluate(tirx.IntImm("int32", 0))

    def block(node: Stmt) -> Stmt:
        moved = [buffer for buffer in node.alloc_buffers if not stays(buffer)]
        if not moved:
            return node
        taken.extend(moved)
        kept = [buffer for buffer in node.alloc_buffers if stays(buffer)]
        return s_tir.SBlock(
            node.iter_vars,
            node.reads,
            node.writes,
            node.name_hint,
            node.body,
            node.init,
            kept,
            node.match_buffers,
            node.annotations,
        )

    statement = structural_map(statement, (tirx.AllocBuffer, allocation))
    return structural_map(statement, (s_tir.SBlock, block)), taken
