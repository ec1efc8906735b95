"""Parallel loops over chunks become launches of one function, which the kernel calls itself where there is one chunk.

Whether several threads pay is known when a kernel of dynamic sizes runs. Its code exists once for both ways: LLVM
takes most of the time of a compilation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm
from tvm import tirx

from schedules.codegen.nest import CHUNKED
from schedules.ir.tir import structural_map

if TYPE_CHECKING:
    from schedules.ir.tvm_types import PrimFunc, Stmt

_SCOPE = "compute_scope"  # TVM's code generator makes a function of what stands in it


def with_chunk_functions(mod: tvm.IRModule) -> tvm.IRModule:
    """Lowered kernels whose loops with the mark `CHUNKED` hold functions of their own."""
    changed = {
        var: _with_functions(function)
        for var, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc) and function.attrs and "global_symbol" in function.attrs
    }
    return tvm.IRModule({**dict(mod.functions_items()), **changed}, attrs=mod.attrs)


def _with_functions(function: PrimFunc) -> PrimFunc:
    symbol = str(function.attrs["global_symbol"])
    count = 0

    def visit(loop: Stmt) -> Stmt:
        nonlocal count
        if CHUNKED not in loop.annotations:
            return loop
        name = f"{symbol}_chunk{count}_"
        count += 1
        return _called_or_launched(loop, name)

    return function.with_body(structural_map(function.body, (tirx.For, visit)))


def _called_or_launched(loop: Stmt, name: str) -> Stmt:
    """TVM gives the function the variables that its body reads, in their order, so the call can pass the same ones."""
    scope = tirx.AttrStmt(tirx.IntImm("int32", 0), _SCOPE, tvm.ir.StringImm(name), loop.body)
    launch = tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.PARALLEL, _then_nothing(scope))
    arguments = [
        loop.min if each.same_as(loop.loop_var) else each for each in tirx.analysis.undefined_vars(loop.body, [])
    ]
    called = tirx.call_extern("int32", name, *arguments)
    failed = tirx.Evaluate(tvm.tirx.call_intrin("int32", "tirx.tvm_throw_last_error"))
    call = tirx.IfThenElse(tirx.NE(called, tirx.IntImm("int32", 0)), failed, None)
    # The function is generated at the launch, which therefore comes first.
    one = tirx.IntImm(str(loop.extent.ty), 1)
    return tirx.IfThenElse(tirx.NE(loop.extent, one), _then_nothing(launch), call)


def _then_nothing(statement: Stmt) -> Stmt:
    """A statement, and one after it that sets a debug location of its own: else TVM gives what follows a function that
    of its last statement, which LLVM refuses."""
    return tirx.SeqStmt([statement, tirx.Evaluate(tirx.IntImm("int32", 0))])
