"""Which loops run on several threads, and whether that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from schedules.ir.expression import index
from schedules.ir.inline import operations
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import Machine

# Some 7 microseconds of work on one core in vectors, more without. Sharing it among spinning threads was measured to
# take 3 (Zen 4, two cores), and what another core wrote has to come over as well.
MIN_PARALLEL_WORK = 98304
_EXPENSIVE_WEIGHT = 4  # of an exponential, in vectors
# Chunks a core, so that threads which start late or run slowly are balanced.
CHUNKS_PER_CORE = 4


@dataclass(frozen=True)
class Extent:
    """A loop that may be made parallel: a name, its extent and its variable's dtype."""

    name: str
    extent: Any
    dtype: str = "int64"


def work(extents: Sequence[Any], body: Any) -> Any:
    """A rough count of elementary steps of a body run over loops: a number, or an expression of symbolic extents."""
    cheap, expensive = operations(body)
    weight = max(1, round(1 + cheap / 4 + _EXPENSIVE_WEIGHT * expensive))
    total: Any = weight
    for extent in extents:
        total = total * extent
    return total


def pays_off(amount: Any, machine: Machine, least: int = MIN_PARALLEL_WORK) -> bool | Expr:
    """Whether to use several threads for an amount of work; a condition when the amount is symbolic."""
    if machine.cores <= 1:
        return False
    return amount >= least if isinstance(amount, int | float) else amount >= index(least, str(amount.ty))


def loops(
    extents: Sequence[Extent],
    body: Callable[[list[Expr]], Stmt],
    machine: Machine,
    *,
    parallel: bool | Expr,
) -> Stmt:
    """Nested loops; when `parallel`, enough of the outer ones are fused into one that every core gets its share.

    A condition for `parallel` is decided when the kernel runs.
    """
    if not extents:
        return body([])
    if not isinstance(parallel, bool):
        many = loops(extents, body, machine, parallel=True)
        return tirx.IfThenElse(parallel, many, loops(extents, body, machine, parallel=False))
    fused = _leading(extents, machine) if parallel else 0
    variables = [tirx.Var(each.name, each.dtype) for each in extents[fused:]]
    if not fused:
        return _nest(extents, variables, body(list(variables)))
    head = extents[:fused]
    total = head[0].extent
    for each in head[1:]:
        total = total * each.extent
    var = tirx.Var("_".join(each.name for each in head), head[0].dtype)
    inner = _nest(extents[fused:], variables, body([*_decoded(var, head), *variables]))
    return _for(var, total, inner, tirx.ForKind.PARALLEL)


def _leading(extents: Sequence[Extent], machine: Machine) -> int:
    """How many leading loops to fuse."""
    enough = CHUNKS_PER_CORE * machine.cores
    product = 1
    for position, each in enumerate(extents):
        product *= each.extent if isinstance(each.extent, int) else 1
        if product >= enough:
            return position + 1
    return len(extents)


def _decoded(var: Any, head: Sequence[Extent]) -> list[Expr]:
    """The loop variables of fused loops."""
    values: list[Expr] = []
    rest: Expr = var
    for each in reversed(head[1:]):
        values.append(tirx.FloorMod(rest, _as_expr(each.extent, each.dtype)))
        rest = tirx.FloorDiv(rest, _as_expr(each.extent, each.dtype))
    return [rest, *reversed(values)]


def _nest(extents: Sequence[Extent], variables: Sequence[Any], body: Stmt) -> Stmt:
    for each, var in reversed(list(zip(extents, variables, strict=True))):
        body = _for(var, each.extent, body, tirx.ForKind.SERIAL)
    return body


def _as_expr(value: Any, dtype: str) -> Expr:
    return index(value, dtype) if isinstance(value, int) else value


def _for(var: Any, extent: Any, body: Stmt, kind: Any) -> Stmt:
    dtype = str(var.ty)
    return tirx.For(var, index(0, dtype), _as_expr(extent, dtype), kind, body)


def repeat(
    name: str, extent: Any, body: Callable[[Any], Stmt], kind: Any = tirx.ForKind.SERIAL, dtype: str = "int64"
) -> Stmt:
    """One loop from 0; of extent 1, its body at 0."""
    if isinstance(extent, int) and extent == 1:
        return body(index(0, dtype))
    var = tirx.Var(name, dtype)
    return _for(var, extent, body(var), kind)


def in_sequence(statements: Sequence[Stmt]) -> Stmt:
    """One statement of several; none at all is a statement without effect."""
    if not statements:
        return tirx.Evaluate(tirx.IntImm("int32", 0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))
