"""Workarounds for TVM's handling of bfloat16 and 8-bit floats, which it stores as integers of the same width.

Seen with apache-tvm 0.27: a load inside the value of a Let is taken for the integer that holds it (a maximum of 48640.0
for numbers near 1), and a vector that repeats one element has no form that can be stored.
"""

from __future__ import annotations

from schedules.ir.expression import substitute
from schedules.ir.inline import buffers_free_variables
from schedules.ir.tir import Expr, Node, Stmt, structural_map, structural_walk, tirx, tvm

_PREFIXES = ("bfloat16", "float8", "float6", "float4")


def inline_narrow_lets(root: Node) -> Node:
    """Inline variables that are bound to values computed from narrow floats."""

    def replace(let: Expr) -> Expr:
        if not _reads_narrow(let.value):
            return let
        # Variables bound in the body may read it now.
        return inline_narrow_lets(substitute(let.body, {let.var: let.value}))

    return structural_map(root, (tirx.Let, replace))


def serialize_narrow_repeats(root: Stmt) -> Stmt:
    """Serialize vectorized loops that broadcast a narrow float to all lanes."""

    def serialize(loop: Stmt) -> Stmt:
        if loop.kind != tirx.ForKind.VECTORIZED or not _repeats_narrow(loop):
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return structural_map(root, (tirx.For, serialize))


def _is_narrow(expr: Expr) -> bool:
    return str(expr.ty).startswith(_PREFIXES)


def _reads_narrow(value: Expr) -> bool:
    found = False

    def visit(load: Expr) -> None:
        nonlocal found
        found = found or _is_narrow(load)

    structural_walk(value, (tvm.ir.TensorLoad, visit))
    return found


def _repeats_narrow(loop: Stmt) -> bool:
    found = False

    def visit(store: Stmt) -> None:
        nonlocal found
        if _is_narrow(store.value):
            found = found or not any(used.same_as(loop.loop_var) for used in buffers_free_variables(store.value))

    structural_walk(loop.body, (tirx.BufferStore, visit))
    return found
