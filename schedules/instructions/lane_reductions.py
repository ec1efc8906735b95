"""All lanes of an int32 vector joined into one number."""

from __future__ import annotations

from schedules.ir.tir import Expr, tirx


def reduced(operation: str, value: Expr, lanes: int) -> Expr:
    """The lanes joined by one of LLVM's reductions of integers: "add", "smax", ..."""
    return tirx.call_llvm_pure_intrin("int32", f"llvm.vector.reduce.{operation}", value) if lanes > 1 else value
