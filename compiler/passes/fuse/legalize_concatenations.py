"""Concatenations of many tensors in steps of a few tensors each.

TVM's kernel chooses, for each element, between all tensors one after the other. Where sizes along the axis are dynamic,
each choice holds the sum of all sizes before it, too: code that grows with the square of their number. That of a
detector's 91 classes took 19 s to compile. Where they are known, the loop is cut at the edges of the tensors, unless
there are too many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax, topi
from tvm.relax.transform.legalize_ops.manipulate import _concat as engine_concat
from tvm.tirx import IntImm

from compiler.passes.rewriting.matching import shape_of

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_MOST, _MOST_STATIC = 8, 24  # tensors of a step, with dynamic sizes and with known ones


def legalize_concat(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`concat`: more tensors than those of a step are first joined in runs of that length, and these again."""
    pieces = _fields(builder, call.args[0])
    if pieces is None or call.attrs.axis is None:
        return engine_concat(builder, call)
    most = _MOST if _are_dynamic(call, pieces) else _MOST_STATIC
    if len(pieces) <= most:
        return engine_concat(builder, call)
    axis = int(call.attrs.axis)
    while len(pieces) > most:
        runs = [pieces[start : start + most] for start in range(0, len(pieces), most)]
        pieces = [
            run[0] if len(run) == 1 else builder.emit(builder.call_te(topi.concatenate, run, axis)) for run in runs
        ]
    return builder.call_te(topi.concatenate, pieces, axis)


def _fields(builder: relax.BlockBuilder, operands: Expr) -> list[Expr] | None:
    while isinstance(operands, relax.Var):
        operands = builder.lookup_binding(operands)
    return list(operands.fields) if isinstance(operands, relax.Tuple) else None


def _are_dynamic(call: relax.Call, pieces: list[Expr]) -> bool:
    shapes = [shape_of(piece) for piece in pieces]
    return any(shape is not None and not isinstance(shape[int(call.attrs.axis)], int | IntImm) for shape in shapes)


LEGALIZATIONS = {"relax.concat": legalize_concat}
