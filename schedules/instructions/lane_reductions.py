"""Horizontal reduction of an int32 vector."""

from __future__ import annotations

from schedules.ir.tir import Expr, tirx


def reduced(operation: str, value: Expr, lanes: int) -> Expr:
    """Reduce the lanes by one of LLVM's integer reductions: "add", "smax", ..."""
    return tirx.call_llvm_pure_intrin("int32", f"llvm.vector.reduce.{operation}", value) if lanes > 1 else value
