"""Checks that threads of the graphics processor do everything that a kernel stores."""

from __future__ import annotations

from schedules.ir.tir import Index, PrimFunc, Stmt, Var, s_tir, tirx

THREAD = tirx.ForKind.THREAD_BINDING


def is_bound(function: PrimFunc) -> bool:
    """True if no statement of a PrimFunc but loops and blocks lies outside of all thread-bound loops."""
    return _is_bound(function.body)


def _is_bound(statement: Stmt) -> bool:
    if isinstance(statement, tirx.For):
        return bool(statement.kind == THREAD) or _is_bound(statement.body)
    if isinstance(statement, s_tir.SBlockRealize):
        return statement.block.init is None and _is_bound(statement.block.body)
    if isinstance(statement, tirx.SeqStmt):
        return all(_is_bound(each) for each in statement.seq)
    if isinstance(statement, tirx.AttrStmt):
        return str(statement.attr_key) == "thread_extent" or _is_bound(statement.body)
    return isinstance(statement, tirx.AllocBuffer)


def thread_loop(tag: str, variable: Var, extent: Index, body: Stmt) -> Stmt:
    """A loop whose iterations are threads or blocks of threads (`tag`: "threadIdx.x", ...)."""
    dtype = str(variable.ty.dtype)
    zero = tirx.IntImm(dtype, 0)
    extent = tirx.IntImm(dtype, extent) if isinstance(extent, int) else extent
    index = tirx.IterVar(None, tirx.Var(tag, variable.ty), tirx.IterVar.ThreadIndex, tag)
    return tirx.For(variable, zero, extent, THREAD, body, index)
