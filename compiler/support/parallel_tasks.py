"""How many tasks the parallel loops of a scheduled kernel have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.support.balance import UNKNOWN
from compiler.support.formula import names_in, with_names
from compiler.support.operation_count import UncountableError, size_formula, symbol_places
from schedules.ir.stages import walk
from schedules.ir.tir import tirx

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, PrimFunc, Stmt

_LONGEST = 1000  # characters of a formula


def parallel_tasks(function: PrimFunc) -> tuple[tuple[str, ...], dict[str, tuple[int, int]]]:
    """The extents of a kernel's parallel loops in their order, equal ones once: numbers, formulas of sizes, or
    `UNKNOWN`; and where a call's arguments give those sizes, as in `OperationCount`."""
    places = symbol_places(function)
    values: dict[str, Expr] = {}
    loops: list[Stmt] = []
    walk(function.body, tirx.Bind, lambda binding: values.update({str(binding.var.name): binding.value}))
    walk(function.body, tirx.For, lambda loop: loops.append(loop) if loop.kind == tirx.ForKind.PARALLEL else None)

    def formula(extent: Expr) -> str:
        def text_of(name: str) -> str:
            if name not in places and name not in values:
                raise UncountableError(f"a size named {name!r}")
            return name if name in places else f"({formula(values[name])})"

        text = with_names(size_formula(extent), text_of)
        if len(text) > _LONGEST:
            raise UncountableError("a long formula")
        return text

    def known(extent: Expr) -> str:
        try:
            return formula(extent)
        except UncountableError:
            return UNKNOWN

    tasks = tuple(dict.fromkeys(known(loop.extent) for loop in loops))
    used = {name for each in tasks if each != UNKNOWN for name in names_in(each)}
    return tasks, {name: places[name] for name in sorted(used)}
