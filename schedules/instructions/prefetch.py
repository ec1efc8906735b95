"""Prefetching in a form that lets LLVM keep accumulators in registers.

LLVM assumes that the intrinsic may write the memory that it points to. In the body of a parallel loop it cannot prove
that this is not a tile's sums, so they were stored to memory at each step: a convolution took 2.4 times as long, or
longer. The call is therefore wrapped and marked as touching no memory that the program can see.
"""

from __future__ import annotations

from schedules.ir.tir import Call, Expr, Stmt, tirx

SYMBOLS = {level: f"tensorwright_prefetch_l{level}" for level in (1, 2)}


def _definition(level: int) -> str:
    call = f"call void @llvm.prefetch.p0(ptr %address, i32 0, i32 {4 - level}, i32 1)"
    return f"""
define i32 @{SYMBOLS[level]}(ptr %address) alwaysinline nounwind {{
  {call} nounwind willreturn memory(inaccessiblemem: readwrite)
  ret i32 0
}}
"""


DEFINITIONS = "declare void @llvm.prefetch.p0(ptr, i32 immarg, i32 immarg, i32 immarg)" + "".join(
    _definition(level) for level in SYMBOLS
)


def prefetch_statement(element: Expr, level: int = 2) -> Stmt:
    """Prefetch the cache line of a loaded element into a level of cache, for reading."""
    return tirx.Evaluate(tirx.call_extern("int32", SYMBOLS[level], tirx.address_of(element)))


def is_prefetch(call: Call) -> bool:
    """True if a call was made by `prefetch_statement`."""
    is_extern = str(getattr(call.op, "name", "")) == "tirx.call_extern"
    return is_extern and str(getattr(call.args[0], "value", "")) in SYMBOLS.values()
