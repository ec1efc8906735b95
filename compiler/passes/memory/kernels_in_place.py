"""A kernel that copies an operand and overwrites parts of the copy becomes one that writes these parts alone."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import relax, s_tir, tirx
from tvm.ir import GlobalVar, IRModule

from compiler.errors import InternalError
from compiler.passes.rewriting.substitution import leaves
from schedules.annotations import CALLS, UPDATES
from schedules.ir.tir import structural_walk
from schedules.ir.tvm_private import set_type
from schedules.ir.tvm_types import Call, Expr, Function, PrimFunc, Stmt


class InPlaceKernels:
    """The kernels of a module that update an operand, each made to write in place where that is asked for."""

    def __init__(self, mod: IRModule) -> None:
        self._mod = mod
        self._made: dict[GlobalVar, PrimFunc] = {}
        self._replaced: set[str] = set()

    def updates(self, call: Call) -> bool:
        """True if a call is one of a kernel that updates an operand."""
        return isinstance(call.op, GlobalVar) and UPDATES in (self._mod[call.op].attrs or {})

    def call(self, call: Call) -> Call:
        """The call of a kernel that updates an operand, which shares its memory with the result, in place."""
        kernel = self._mod[call.op]
        operand = int(kernel.attrs[UPDATES])
        arguments = [each for index, each in enumerate(call.args) if index != operand]
        name = f"{call.op.name_hint}_in_place"
        self._replaced.add(str(call.op.name_hint))
        known = next((var for var in (*self._mod.functions, *self._made) if var.name_hint == name), None)
        if known is None:
            known = GlobalVar(name)
            self._made[known] = in_place_kernel(kernel, operand)
            set_type(known, self._made[known].ty)
        return relax.Call(known, arguments, call.attrs, call.ty_args, call.span, ret_ty=call.ty)

    def module(self, changed: Mapping[GlobalVar, Function]) -> IRModule:
        """The module with changed Relax functions and the kernels that they call, without those called no more."""
        functions = {**dict(self._mod.functions_items()), **self._made, **changed}
        used = {name for each in functions.values() for name in named(each)}
        unused = self._replaced - used
        kept = {variable: each for variable, each in functions.items() if variable.name_hint not in unused}
        return IRModule(kept, self._mod.attrs, self._mod.global_infos)


def named(function: Function | PrimFunc) -> set[str]:
    """The names of the global functions that a function calls."""
    if isinstance(function, tirx.PrimFunc):
        return set(map(str, (function.attrs or {}).get(CALLS, ())))
    return {leaf.name_hint for leaf in leaves(function.body) if isinstance(leaf, GlobalVar)}


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
