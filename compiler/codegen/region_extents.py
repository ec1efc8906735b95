"""Passes the extent of the next parallel loop to the thread pool, so that it does not start more threads than that.

TVM's generated code launches a region without the extent of its loop. Here it calls the barrier of parallel regions
before, for a region of one part whose counter holds the extent. There TVM's own barrier has nothing to wait for; that
of the thread pool reads the extent (`device/cpp/thread_pool.c`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm
from tvm import tirx

from schedules.instructions.finish import with_import
from schedules.ir.tir import structural_map

if TYPE_CHECKING:
    from schedules.ir.tvm_types import PrimFunc, Stmt

_TOLD = "tensorwright_extent"
_MOST = 4096  # threads: larger extents use all threads
_TEXT = f"""
@__TVMBackendParallelBarrier = external global ptr

define i32 @{_TOLD}(i32 %extent) {{
  %counter = alloca i32
  %group = alloca {{ ptr, i32 }}
  %barrier = load ptr, ptr @__TVMBackendParallelBarrier
  %none = icmp eq ptr %barrier, null
  br i1 %none, label %end, label %tell
tell:
  %count = getelementptr {{ ptr, i32 }}, ptr %group, i64 0, i32 1
  store i32 %extent, ptr %counter
  store ptr %counter, ptr %group
  store i32 1, ptr %count
  %status = call i32 %barrier(i32 0, ptr %group)
  br label %end
end:
  ret i32 0
}}
"""


def with_extents(mod: tvm.IRModule) -> tvm.IRModule:
    """Lowered kernels that announce the extents of their parallel loops."""
    changed = {
        var: _with_extents(function) for var, function in mod.functions_items() if isinstance(function, tirx.PrimFunc)
    }
    return tvm.IRModule({**dict(mod.functions_items()), **changed}, attrs=mod.attrs)


def _with_extents(function: PrimFunc) -> PrimFunc:
    told = False

    def visit(loop: Stmt) -> Stmt:
        nonlocal told
        extent = loop.extent
        if loop.kind != tirx.ForKind.PARALLEL or (isinstance(extent, tirx.IntImm) and int(extent) >= _MOST):
            return loop
        told = True
        bounded = extent if isinstance(extent, tirx.IntImm) else tirx.min(extent, tirx.IntImm(str(extent.ty), _MOST))
        tell = tirx.call_extern("int32", _TOLD, tirx.Cast("int32", bounded))
        # Nothing follows, but sets a debug location of its own: else what follows has one of the loop's function.
        return tirx.SeqStmt([tirx.Evaluate(tell), loop, tirx.Evaluate(tirx.IntImm("int32", 0))])

    body = structural_map(function.body, (tirx.For, visit))
    return function.with_body(with_import(body, _TEXT)) if told else function
