"""Tensors that a kernel writes for other kernels to read, recorded from the graph before lowering."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.rewriting.graph import operator_name

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Call, Expr, Type

_CALLS = ("relax.call_tir", "relax.call_tir_inplace")


class KernelTable:
    """Observer of a compilation: pass `passes()` to `run_pipeline`, then `kernels()` returns the table."""

    def __init__(self) -> None:
        self._results: dict[str, int] = {}
        self._places: dict[str, list[int]] = {}
        self._calls: Counter[str] = Counter()

    def passes(self) -> dict[str, Any]:
        """Return passes that record the results of calls before and after workspaces are added."""
        return {"after:apply-schedules": self._before, "after:lift-workspaces": self._after}

    def _before(self, mod: IRModule, context: PipelineContext) -> IRModule:
        for name, call in _calls(mod):
            self._results[name] = len(_types(call))
        return mod

    def _after(self, mod: IRModule, context: PipelineContext) -> IRModule:
        for name, call in _calls(mod):
            self._calls[name] += 1
            given = len(call.args[1].fields)
            in_place = [int(index) for index in getattr(call.attrs, "inplace_indices", ())] or [-1] * len(_types(call))
            places = []
            for index in in_place:
                places.append(index if index >= 0 else given)
                given += index < 0
            self._places[name] = places[: self._results.get(name, len(places))]
        return mod

    def kernels(self, operations: dict[str, Any]) -> dict[str, Any]:
        """Return the table for a pack; `operations`: report of the pass "count-operations"."""
        return {
            name: {
                "results": places,
                "operations": number_of(getattr(operations.get(name), "formula", "0")),
                "calls": self._calls[name],
            }
            for name, places in self._places.items()
        }


def _calls(mod: IRModule) -> list[tuple[str, Call]]:
    calls: list[tuple[str, Any]] = []

    def visit(expression: Expr) -> None:
        if isinstance(expression, relax.Call) and operator_name(expression) in _CALLS:
            calls.append((str(expression.args[0].name_hint), expression))

    for _, function in mod.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return calls


def _types(call: Call) -> list[Type]:
    types = call.ty_args[0]
    return list(types.fields) if isinstance(types, relax.TupleType) else [types]


def number_of(formula: str) -> int:
    """Evaluate a formula such as "2*3 + 4"; 0 if it contains names."""
    if not re.fullmatch(r"[\d*+ ]+", formula):
        return 0
    return sum(math.prod(int(factor) for factor in term.split("*")) for term in formula.split("+"))
