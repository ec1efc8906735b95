"""Why one thread computes a scheduled kernel, or a part of it."""

from __future__ import annotations

import math

from schedules.annotations import SERIAL_REASON
from schedules.codegen.parallel import MIN_PARALLEL_WORK
from schedules.cuts import least_parallel_cycles
from schedules.ir.expression import constant_int, nodes
from schedules.ir.tir import s_tir, tirx, tvm
from schedules.ir.tvm_types import Call, PrimFunc, Stmt

_STEPS_OF_A_STORE = 4  # the most usual ones of `schedules.codegen.parallel.work`
_PACKED_CALLS = ("tirx.tvm_call_packed", "tirx.tvm_call_cpacked")


def serial_reason(function: PrimFunc, cores: int) -> str | None:
    """The reason why one thread computes a kernel scheduled for several cores, or a part of it; None if all significant
    work is parallel."""
    shared, marked, called = _threads_of(function.body)
    if cores == 1:
        return "compiled for one core"
    least = MIN_PARALLEL_WORK * least_parallel_cycles(cores) / least_parallel_cycles(2)

    def is_little(statement: Stmt) -> bool:
        return _STEPS_OF_A_STORE * _stores(statement) < least

    if not shared and is_little(function.body):
        return "too little work"
    reasons = [str(loop.annotations[SERIAL_REASON]) for loop in marked if not is_little(loop)]
    reasons += [f"a call of {name}" for name in called]
    return ", ".join(dict.fromkeys(reasons)) or (None if shared else "no loop that threads may share")


def _threads_of(body: Stmt) -> tuple[bool, list[Stmt], list[str]]:
    """True if a loop is parallel; marked loops that are neither inside nor around one; and the functions called."""
    called = [str(call.args[0].value) for call in nodes(body, tvm.ir.Call) if _is_packed(call)]
    shared = [loop for loop in _loops(body) if _is_shared(loop)]
    inside = [each for loop in shared for each in _loops(loop.body)]
    marked = [
        loop
        for loop in _loops(body)
        if SERIAL_REASON in loop.annotations
        and not any(loop.same_as(each) for each in inside)
        and not any(map(_is_shared, _loops(loop.body)))
    ]
    return bool(shared), marked, called


def _loops(statement: Stmt) -> list[Stmt]:
    return nodes(statement, tirx.For)


def _is_shared(loop: Stmt) -> bool:
    extent = constant_int(loop.extent)
    return loop.kind == tirx.ForKind.PARALLEL and not (isinstance(extent, int) and extent <= 1)


def _is_packed(call: Call) -> bool:
    return str(getattr(call.op, "name", "")) in _PACKED_CALLS


def _stores(statement: Stmt) -> float:
    """Number of vectors or elements that a statement stores; infinite if a loop's extent is unknown."""
    if isinstance(statement, tirx.For):
        inner, extent = _stores(statement.body), constant_int(statement.extent)
        if not inner or statement.kind == tirx.ForKind.VECTORIZED:
            return inner
        return inner * extent if isinstance(extent, int) else math.inf
    if isinstance(statement, tirx.SeqStmt):
        return sum(map(_stores, statement.seq))
    if isinstance(statement, tirx.IfThenElse):
        otherwise = statement.else_case
        return max(_stores(statement.then_case), 0 if otherwise is None else _stores(otherwise))
    if isinstance(statement, tirx.While):
        return math.inf
    if isinstance(statement, s_tir.SBlockRealize):
        return _stores(statement.block.body)
    body = getattr(statement, "body", None)
    return float(isinstance(statement, tirx.BufferStore)) if body is None else _stores(body)
