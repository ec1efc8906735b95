"""A kernel that copies an operand and overwrites parts of the copy becomes one that writes these parts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import s_tir, tirx

from compiler.errors import InternalError
from compiler.passes.rewriting.state_writes import UPDATES
from schedules.ir.tir import structural_walk

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, PrimFunc, Stmt


def in_place_kernel(kernel: PrimFunc, operand: int) -> PrimFunc:
    """The kernel without that operand and without its first statement, which copies it to the result.

    Raises InternalError where it is not of the form that `UPDATES` promises.
    """
    removed = kernel.params[operand]
    body = _without_copy(kernel.body)
    reads: list[Expr] = []
    structural_walk(body, (tirx.Var, lambda variable: reads.append(variable) if variable.same_as(removed) else None))
    if reads:
        raise InternalError(f"a kernel that updates {removed.name!r} reads it after it was copied")
    params = [each for index, each in enumerate(kernel.params) if index != operand]
    attrs = {name: value for name, value in dict(kernel.attrs or {}).items() if name != UPDATES}
    return tirx.PrimFunc(params, body, kernel.ret_type).with_attr(attrs)


def _without_copy(statement: Stmt) -> Stmt:
    """The sequence behind blocks and scopes, without its first statement."""
    if isinstance(statement, tirx.SeqStmt):
        rest = list(statement.seq)[1:]
        return rest[0] if len(rest) == 1 else tirx.SeqStmt(rest)
    if isinstance(statement, tirx.AttrStmt):
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, _without_copy(statement.body))
    if isinstance(statement, s_tir.SBlockRealize):
        block = statement.block
        body = _without_copy(block.body)
        inner = s_tir.SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            body,
            block.init,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )
        return s_tir.SBlockRealize(statement.iter_values, statement.predicate, inner)
    raise InternalError(
        f"a kernel that updates an operand does not begin with its copy but with {type(statement).__name__}"
    )
