"""Concatenations of many tensors in steps of a few tensors each.

TVM's kernel chooses, for each element, between all tensors one after the other. Where sizes along the axis are dynamic,
each choice holds the sum of all sizes before it, too: code that grows with the square of their number. That of a
detector's 91 classes took 19 s to compile. Where they are known, the loop is cut at the edges of the tensors, unless
there are many more than the layers of a block of DenseNet-201 (48).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import relax, topi
from tvm.relax.transform.legalize_ops.manipulate import _concat as engine_concat
from tvm.tirx import IntImm

from compiler.passes.rewriting.matching import shape_of

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_MOST = 8  # tensors of dynamic sizes that are joined at once, and in a step
_MOST_STATIC = 64  # tensors of known sizes that are joined at once
_STATIC_STEP = 24  # and in a step: one more copy, but the loops decide nothing


def legalize_concat(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """`concat`: more tensors than those of a step are first joined in runs of that length, and these again."""
    pieces = _fields(builder, call.args[0])
    if pieces is None or call.attrs.axis is None:
        return engine_concat(builder, call)
    most, step = (_MOST, _MOST) if _are_dynamic(call, pieces) else (_MOST_STATIC, _STATIC_STEP)
    if len(pieces) <= most:
        return engine_concat(builder, call)
    axis = int(call.attrs.axis)
    while len(pieces) > step:
        runs = [pieces[start : start + step] for start in range(0, len(pieces), step)]
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
