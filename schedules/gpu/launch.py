"""Launches of a thread for each point of loops."""

from __future__ import annotations

import math

from schedules.gpu.binding import thread_loop
from schedules.ir.expression import substitute
from schedules.ir.stages import Axis, product
from schedules.ir.tir import Expr, Index, Stmt, Var, tirx

THREADS = 256
WARP = 32


def launched(axes: list[Axis], body: Stmt, threads: int = THREADS) -> Stmt:
    """A launch of a thread for each point of the axes; where there is known to be none, nothing is done."""
    dtype = str(axes[0].var.ty.dtype) if axes else "int32"
    total = product(axis.extent for axis in axes)
    if total is not None:
        threads = min(threads, max(WARP, WARP * math.ceil(total / WARP))) if axes else 1
    block, thread = (tirx.Var(name, tirx.IntImm(dtype, 0).ty) for name in ("block", "thread"))
    count = tirx.IntImm(dtype, threads)
    point = block * count + thread
    if total == 0:
        nothing = tirx.Evaluate(tirx.IntImm("int32", 0))
        return thread_loop("blockIdx.x", block, 1, thread_loop("threadIdx.x", thread, threads, nothing))
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
    # An empty launch is an error, so where the size is not known there is always a block.
    blocks: Index = max(1, math.ceil(total / threads)) if total is not None else tirx.floordiv(size, count) + 1
    return thread_loop("blockIdx.x", block, blocks, thread_loop("threadIdx.x", thread, threads, body))
