"""Operators implemented by LLVM IR functions, one for each number of lanes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from schedules.ir.expression import vector_lanes
from schedules.ir.tir import Expr, tirx, tvm
from schedules.ir.tvm_private import declare_operator

PREFIX = "tensorwright."


def symbol(name: str, lanes: int) -> str:
    """LLVM symbol of the function `name` for a number of lanes."""
    return f"tensorwright_{name}_x{lanes}"


def vector(scalar: str, lanes: int) -> str:
    """LLVM vector type with a number of elements."""
    return scalar if lanes == 1 else f"<{lanes} x {scalar}>"


def splat(value: object, lanes: int, scalar: str = "i32") -> str:
    """Broadcast a constant to all lanes."""
    return str(value) if lanes == 1 else f"splat ({scalar} {value})"


@cache
def _known_operators() -> set[str]:
    """Names of TVM's operators, cached: there are about a thousand."""
    return {str(name) for name in tvm.ir.Op.list_op_names()}


def register_operator(full: str, summary: str, named: Callable[[str, int], str] = symbol) -> None:
    """Register `PREFIX` + name with TVM, once: pure, elementwise, lowered to a call of `named(name, lanes)`."""
    if full in _known_operators():
        return
    _known_operators().add(full)
    name = full.removeprefix(PREFIX)

    def lower(node: Expr) -> Expr:
        return tirx.call_pure_extern(str(node.ty), named(name, vector_lanes(node)), *node.args)

    declare_operator(full, f"{name} {summary}")
    tvm.ir.register_op_attr(full, "TVectorizable", True)
    tvm.ir.register_op_attr(full, "TCallEffectKind", 1)  # pure
    tvm.ir.register_op_attr(full, "TScriptPrinterName", full.replace(".", "_"))
    tirx.register_intrin_lowering(full, target="llvm", f=lower)
