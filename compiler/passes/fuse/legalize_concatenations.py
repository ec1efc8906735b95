"""Concatenations of many tensors whose sizes along the axis are dynamic, in steps of a few tensors each.

TVM's kernel chooses, for each element, between all tensors one after the other, and each choice holds the sum of all
sizes before it: code that grows with the square of their number. That of a detector's 91 classes took 19 s to compile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax, topi
from tvm.relax.transform.legalize_ops.manipulate import _concat as engine_concat
from tvm.tirx import IntImm

from compiler.passes.rewriting.matching import shape_of

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_MOST = 8  # tensors of a step


def legalize_concat(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`concat`: more than `_MOST` tensors are first joined in runs of that length, and these again."""
    pieces = _fields(builder, call.args[0])
    if pieces is None or len(pieces) <= _MOST or call.attrs.axis is None or not _are_dynamic(call, pieces):
        return engine_concat(builder, call)
    axis = int(call.attrs.axis)
    while len(pieces) > _MOST:
        runs = [pieces[start : start + _MOST] for start in range(0, len(pieces), _MOST)]
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
