"""Horizontal sums of n vectors of n lanes, packed in one vector: the last step of dot products.

A tree of shuffles that stay within 128 bits as long as possible: two for each vector but one, whereas summing each
vector by itself needs a shuffle and an addition for each halving.
"""

from __future__ import annotations

from collections.abc import Sequence

from schedules.instructions.llvm_functions import register_operator, symbol, vector
from schedules.ir.tir import Expr, tirx, tvm
from schedules.machine import Machine

# Horizontal reduction of an int32 vector.


def reduced(operation: str, value: Expr, lanes: int) -> Expr:
    """Reduce the lanes by one of LLVM's integer reductions: "add", "smax", ..."""
    return tirx.call_llvm_pure_intrin("int32", f"llvm.vector.reduce.{operation}", value) if lanes > 1 else value


ROW_SUMS = "tensorwright.row_sums"
OPERATORS = (ROW_SUMS,)
_GROUP = 4  # lanes of 128 bits


def row_sums(rows: Sequence[Expr]) -> Expr:
    """Lane j is the sum over all lanes of row j. Not elementwise: in a vectorized loop of n lanes, the arguments are
    the elements `lane` of n rows."""
    return tvm.ir.Call(tvm.ir.Op.get(ROW_SUMS), list(rows), ret_ty=tirx.FloatImm("float32", 0.0).ty)


def has_row_sums(lanes: int) -> bool:
    """True if there is a reduction tree for this number of lanes."""
    return lanes & (lanes - 1) == 0


def definitions(lanes: frozenset[int], machine: Machine) -> str:
    """LLVM IR of the functions for these numbers of lanes, those that are powers of two."""
    return "\n".join([*(_text(count) for count in sorted(lanes) if has_row_sums(count)), ""])


def _text(lanes: int) -> str:
    kind = vector("float", lanes)
    names = [f"%v{row}" for row in range(lanes)]
    arguments = ", ".join(f"{kind} {name}" for name in names)
    lines = [f"define {kind} @{symbol('row_sums', lanes)}({arguments}) alwaysinline nounwind {{"]
    level = 0
    while len(names) > 1:
        low, high = _masks(lanes, level)
        folded: list[str] = []
        for first, second in zip(names[::2], names[1::2], strict=True):
            name = f"%s{level}_{len(folded)}"
            for half, mask in (("l", low), ("h", high)):
                order = ", ".join(f"i32 {lane}" for lane in mask)
                operands = f"{kind} {first}, {kind} {second}, <{lanes} x i32> <{order}>"
                lines.append(f"  {name}{half} = shufflevector {operands}")
            lines.append(f"  {name} = fadd {kind} {name}l, {name}h")
            folded.append(name)
        names, level = folded, level + 1
    return "\n".join([*lines, f"  ret {kind} {names[0]}", "}"])


def _masks(lanes: int, level: int) -> tuple[list[int], list[int]]:
    """Two shuffles of a pair of vectors whose sum folds it: lanes within 128 bits first, then runs of 128 bits."""
    if lanes >= _GROUP and level < 2:
        run = 1 << level  # lanes that stay together
        low, high = [], []
        for start in range(0, lanes, _GROUP):
            for position in range(0, _GROUP // 2, run):
                for operand in (0, lanes):
                    low += [operand + start + position + i for i in range(run)]
                    high += [operand + start + _GROUP // 2 + position + i for i in range(run)]
        return low, high
    run = min(_GROUP, lanes // 2) if lanes < _GROUP else _GROUP
    starts = [operand + start for operand in (0, lanes) for start in range(0, lanes, 2 * run)]
    return tuple([start + shift + i for start in starts for i in range(run)] for shift in (0, run))  # type: ignore[return-value]


register_operator(ROW_SUMS, "of float32 vectors")
