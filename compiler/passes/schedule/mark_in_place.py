"""mark-in-place: mark the operands that an elementwise kernel may overwrite with its result.

The kernel must be one block that reads the operand only at the index it writes, and have one result of the same shape
and data type. Then, under any schedule, each element is last read before it is written.
"""

from __future__ import annotations

import tvm
from tvm.ir import IRModule
from tvm.tirx import PrimFunc
from tvm_ffi import structural_equal

from compiler.passes.context import PipelineContext
from compiler.passes.memory.liveness import IN_PLACE
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import with_functions
from compiler.passes.rewriting.matching import plain
from schedules.ir.tvm_types import Buffer, Expr, Stmt


@graph_pass("mark-in-place", summary="Mark the operands that each elementwise kernel may overwrite")
def mark_in_place(mod: IRModule, context: PipelineContext) -> IRModule:
    """Marks are read by `plan-memory`; a separate pass, since schedules obscure what a kernel computes."""
    changed = {}
    for variable, function in mod.functions_items():
        if isinstance(function, PrimFunc) and IN_PLACE not in (function.attrs or {}):
            operands = overwritable_operands(function)
            if operands:
                changed[variable] = function.with_attr(IN_PLACE, operands)
    return with_functions(mod, changed)


def overwritable_operands(function: PrimFunc) -> list[int]:
    """Return the positions of the parameters that the last one, the result, may overwrite."""
    block = _only_block(function.body)
    buffers = list(function.params)  # a tensor parameter is its buffer's variable
    if block is None or not buffers or not all(tvm.tirx.is_buffer_var(buffer) for buffer in buffers):
        return []
    result = buffers[-1]
    store = block.body
    if not isinstance(store, tvm.tirx.BufferStore) or not store.buffer.same_as(result):
        return []
    if block.init is not None or any(int(each.iter_type) != 0 for each in block.iter_vars):
        return []
    indices = list(store.indices)
    return [
        position
        for position, buffer in enumerate(buffers[:-1])
        if _alike(buffer, result) and _read_only_at(block, buffer, indices)
    ]


def _only_block(body: Stmt) -> Stmt | None:
    """Return the only block below the root and plain loops, or None."""
    tirx = tvm.tirx
    while True:
        if isinstance(body, tvm.s_tir.SBlockRealize):
            block = body.block
            if list(block.iter_vars):
                return block
            if list(block.alloc_buffers):
                return None
            body = block.body
        elif isinstance(body, tirx.For):
            body = body.body
        else:
            return None


def _alike(buffer: Buffer, result: Expr) -> bool:
    shape, other = list(buffer.ty.shape), list(result.ty.shape)
    same = len(shape) == len(other) and str(buffer.dtype) == str(result.dtype)
    return same and all(structural_equal(a, b) for a, b in zip(shape, other, strict=True))


def _read_only_at(block: Stmt, buffer: Buffer, indices: list[Expr]) -> bool:
    reads = [region for region in block.reads if region.source.same_as(buffer)]
    for region in reads:
        for span, index in zip(region.region, indices, strict=True):
            if not structural_equal(span.min, index) or plain(span.extent) != 1:
                return False
    return len(reads) == 1
