"""Counts the arithmetic operations of a kernel from its TensorIR, before it is scheduled.

An addition, subtraction, multiplication, division, minimum or maximum is one operation, and so is a call of exp, erf,
tanh and similar functions; a multiply-add is two. Arithmetic on indices, conditions and the initial values of
reductions is not counted, nor are the transforms of Winograd convolutions. Counts for kernels with symbolic sizes are
formulas.

This file also finds the tensors that a kernel gathers from (embedding tables).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import schedules.ir.load_tvm  # noqa: F401  (before the others, so that TVM loads without torch)

# isort: split
import tvm
from tvm import s_tir, tirx
from tvm.ir.prim import expr as prim

from compiler.support.formula import names_in
from schedules.annotations import KIND, TRANSFORM
from schedules.conv.compute import WINOGRAD
from schedules.conv.workload import WinogradWorkload
from schedules.ir.expression import buffers_loaded, nodes
from schedules.ir.tvm_types import Expr, Stmt

_ARITHMETIC = (prim.Add, prim.Sub, prim.Mul, prim.Div, prim.FloorDiv, prim.Mod, prim.FloorMod, prim.Min, prim.Max)
_INFIX = {prim.Add: "+", prim.Sub: "-", prim.Mul: "*", prim.FloorDiv: "//", prim.FloorMod: "%", prim.Div: "//"}
_PREFIX = {prim.Min: "min", prim.Max: "max"}
_FREE_CALLS = ("if_then_else", "likely", "reinterpret", "address_of", "tvm_access_ptr")


class UncountableError(Exception):
    """The amount of a kernel's work depends on data, or has an unknown form."""


@dataclass(frozen=True)
class OperationCount:
    """Operations of one kernel call.

    Attributes:
        formula: a number, or a formula of the names in `symbols`.
        symbols: where a call's arguments contain each size: (argument, axis); axis -1 is the argument itself.
        direct: for a Winograd convolution, the operations of the direct convolution with a symbolic batch as 1; else 0.
    """

    formula: str
    symbols: dict[str, tuple[int, int]] = field(default_factory=dict)
    direct: int = 0


def count_operations(function: tirx.PrimFunc) -> OperationCount | None:
    """Count a kernel's operations; None if they depend on its input data."""
    symbols = symbol_positions(function)
    totals: Counter[tuple[str, ...]] = Counter()
    try:
        _count_statement(function.body, (), 1, totals)
    except UncountableError:
        return None
    terms = ["*".join([str(count), *factors]) for factors, count in sorted(totals.items()) if count]
    formula = " + ".join(terms) or "0"
    used = names_in(formula)
    if not used <= set(symbols):
        return None
    positions = {name: index for name, index in symbols.items() if name in used}
    return OperationCount(formula, positions, _direct(function))


def _direct(function: tirx.PrimFunc) -> int:
    """Operations of the convolution that a kernel computes by Winograd's method."""
    operations = 0
    for block in nodes(function.body, s_tir.SBlock):
        if block.annotations.get(KIND) == WINOGRAD:
            work = WinogradWorkload.from_annotation(block.annotations)
            operations = work.flops * max(work.batch, 1)
    return operations


def count_kernels(mod: tvm.IRModule) -> dict[str, OperationCount]:
    """Counts by kernel name, for the kernels in a module that can be counted."""
    counts = {}
    for variable, function in mod.functions_items():
        if isinstance(function, tirx.PrimFunc):
            count = count_operations(function)
            if count is not None:
                counts[str(variable.name_hint)] = count
    return counts


def symbol_positions(function: tirx.PrimFunc) -> dict[str, tuple[int, int]]:
    """Positions of a kernel's sizes in a call's arguments, as in `OperationCount.symbols`."""
    positions: dict[str, tuple[int, int]] = {}
    for position, parameter in enumerate(function.params):
        if not isinstance(parameter.ty, tirx.BufferType):
            positions.setdefault(str(parameter.name), (position, -1))
            continue
        for axis, size in enumerate(parameter.ty.shape):
            if isinstance(size, tvm.ir.Var):
                positions.setdefault(str(size.name), (position, axis))
    return positions


def _count_statement(statement: Stmt, factors: tuple[str, ...], times: int, totals: Counter[tuple[str, ...]]) -> None:
    """Add the operations of `statement`, which runs `times` * product(factors) times, to `totals`, keyed by factors."""
    if isinstance(statement, tirx.For):
        extent = size_formula(statement.extent)
        if extent.isdecimal():
            _count_statement(statement.body, factors, times * int(extent), totals)
        else:
            _count_statement(statement.body, tuple(sorted([*factors, extent])), times, totals)
    elif isinstance(statement, tirx.SeqStmt):
        for each in statement.seq:
            _count_statement(each, factors, times, totals)
    elif isinstance(statement, s_tir.SBlockRealize):
        if TRANSFORM in statement.block.annotations:
            return
        _count_statement(statement.block.body, factors, times, totals)
    elif isinstance(statement, tirx.BufferStore):
        totals[factors] += times * _operations(statement.value)
    elif isinstance(statement, tirx.IfThenElse):
        # Counted as if always executed, because the frequency of the condition is unknown.
        _count_statement(statement.then_case, factors, times, totals)
        if statement.else_case is not None:
            _count_statement(statement.else_case, factors, times, totals)
    elif isinstance(statement, tirx.Evaluate | tirx.Bind | tirx.AllocBuffer | tirx.DeclBuffer | tirx.AssertStmt):
        totals[factors] += 0
    elif isinstance(statement, tirx.AttrStmt):
        _count_statement(statement.body, factors, times, totals)
    else:
        raise UncountableError(type(statement).__name__)


def _operations(value: Expr) -> int:
    """Operations in an expression, excluding those in indices and conditions."""
    if isinstance(value, _ARITHMETIC):
        return 1 + _operations(value.a) + _operations(value.b)
    if isinstance(value, prim.Cast):
        return _operations(value.value)
    if isinstance(value, prim.Select):
        return max(_operations(value.true_value), _operations(value.false_value))
    if isinstance(value, tvm.ir.Call):
        name = str(getattr(value.op, "name", "")).rpartition(".")[2]
        if name == "if_then_else":
            return max(map(_operations, value.args[1:]))
        below = sum(_operations(argument) for argument in value.args)
        is_float = str(value.ty).startswith(("float", "bfloat"))
        return below + (1 if is_float and name not in _FREE_CALLS else 0)
    return 0


def size_formula(extent: Expr) -> str:
    """An expression of sizes as text for `evaluate`. Raises UncountableError for other expressions."""
    if isinstance(extent, tirx.IntImm):
        return str(int(extent.value))
    if isinstance(extent, tvm.ir.Var):
        name = str(extent.name)
        if not name.isidentifier():
            raise UncountableError(f"a size named {name!r}")
        return name
    if isinstance(extent, prim.Cast):
        return size_formula(extent.value)
    if type(extent) in _INFIX:
        return f"({size_formula(extent.a)} {_INFIX[type(extent)]} {size_formula(extent.b)})"
    if type(extent) in _PREFIX:
        return f"{_PREFIX[type(extent)]}({size_formula(extent.a)}, {size_formula(extent.b)})"
    raise UncountableError(f"an extent of {extent}")


def gathered_parameters(function: tirx.PrimFunc) -> frozenset[int]:
    """The positions of the parameters that the kernel only gathers from."""
    looked_up: set[int] = set()
    otherwise: set[int] = set()
    for load in buffers_loaded(function.body):
        position = next((at for at, each in enumerate(function.params) if each.same_as(load.source)), None)
        if position is not None:
            (looked_up if any(map(buffers_loaded, load.indices)) else otherwise).add(position)
    return frozenset(looked_up - otherwise)


def gathered_by_kernel(mod: tvm.IRModule) -> dict[str, frozenset[int]]:
    """These positions by kernel name, for the kernels that have any."""
    positions_of = {
        str(variable.name_hint): gathered_parameters(function)
        for variable, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }
    return {name: positions for name, positions in positions_of.items() if positions}
