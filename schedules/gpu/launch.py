"""Kernel launches with one thread per point of loops."""

from __future__ import annotations

import math

from schedules.ir.expression import changed_block, substitute
from schedules.ir.stages import Axis, dtype_of, product, shape_of
from schedules.ir.tir import Expr, Index, Stmt, Var, s_tir, structural_map, tirx
from schedules.machine import dtype_bits

# Checks that every store of a kernel is inside thread-bound loops.

THREAD = tirx.ForKind.THREAD_BINDING


def is_bound(statement: Stmt) -> bool:
    """True if all work is inside thread-bound loops."""
    if isinstance(statement, tirx.For):
        return bool(statement.kind == THREAD) or is_bound(statement.body)
    if isinstance(statement, s_tir.SBlockRealize):
        return statement.block.init is None and is_bound(statement.block.body)
    if isinstance(statement, tirx.SeqStmt):
        return all(map(is_bound, statement.seq))
    if isinstance(statement, tirx.AttrStmt):
        return str(statement.attr_key) == "thread_extent" or is_bound(statement.body)
    return isinstance(statement, tirx.AllocBuffer)


def thread_loop(tag: str, variable: Var, extent: Index, body: Stmt) -> Stmt:
    """A loop whose iterations are threads or blocks of threads (`tag`: "threadIdx.x", ...)."""
    dtype = str(variable.ty.dtype)
    zero = tirx.IntImm(dtype, 0)
    extent = tirx.IntImm(dtype, extent) if isinstance(extent, int) else extent
    index = tirx.IterVar(None, tirx.Var(tag, variable.ty), tirx.IterVar.ThreadIndex, tag)
    return tirx.For(variable, zero, extent, THREAD, body, index)


def launch(block: Var, blocks: Index, thread: Var, threads: int, body: Stmt) -> Stmt:
    """Blocks of threads. An empty launch is an error: if the number of blocks is not known, there is at least one."""
    return thread_loop("blockIdx.x", block, blocks, thread_loop("threadIdx.x", thread, threads, body))


# Removes constructs that a launch cannot contain: loops marked parallel or vectorized, and large buffers.

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
    allocations: list[Expr] = []

    def stays(buffer: Expr) -> bool:
        size = product(shape_of(buffer))
        small = size is not None and size * dtype_bits(dtype_of(buffer)) <= 8 * _LOCAL_BYTES
        return str(buffer.ty.storage_scope) == "local" and small

    def allocation(node: Stmt) -> Stmt:
        if stays(node.buffer):
            return node
        allocations.append(node.buffer)
        return tirx.Evaluate(tirx.IntImm("int32", 0))

    def block(node: Stmt) -> Stmt:
        moved = [buffer for buffer in node.alloc_buffers if not stays(buffer)]
        if not moved:
            return node
        allocations.extend(moved)
        return changed_block(node, alloc_buffers=[buffer for buffer in node.alloc_buffers if stays(buffer)])

    statement = structural_map(statement, (tirx.AllocBuffer, allocation))
    return structural_map(statement, (s_tir.SBlock, block)), allocations


THREADS = 256
WARP = 32


def launched(axes: list[Axis], body: Stmt, threads: int = THREADS) -> Stmt:
    """A launch with one thread per point of the axes; an empty statement if there are known to be none."""
    dtype = str(axes[0].var.ty.dtype) if axes else "int32"
    total = product(axis.extent for axis in axes)
    if total is not None:
        threads = min(threads, max(WARP, WARP * math.ceil(total / WARP))) if axes else 1
    block, thread = (tirx.Var(name, tirx.IntImm(dtype, 0).ty) for name in ("block", "thread"))
    count = tirx.IntImm(dtype, threads)
    point = block * count + thread
    if total == 0:
        return launch(block, 1, thread, threads, tirx.Evaluate(tirx.IntImm("int32", 0)))
    size: Expr = tirx.IntImm(dtype, 1)
    values: dict[Var, Expr] = {}
    for position, axis in enumerate(reversed(axes)):
        extent = tirx.IntImm(dtype, axis.extent) if isinstance(axis.extent, int) else axis.extent
        extent = extent if str(extent.ty) == dtype else tirx.Cast(dtype, extent)
        rest = tirx.floordiv(point, size) if position else point
        value = rest if position == len(axes) - 1 else tirx.floormod(rest, extent)
        values[axis.var] = value if str(axis.var.ty) == dtype else tirx.Cast(str(axis.var.ty), value)
        size = size * extent
    body = substitute(body, values)
    if total is None or total % threads:
        body = tirx.IfThenElse(point < size, body, None)
    # An empty launch is an error, so for unknown sizes there is always at least one block.
    blocks: Index = max(1, math.ceil(total / threads)) if total is not None else tirx.floordiv(size, count) + 1
    return launch(block, blocks, thread, threads, body)
