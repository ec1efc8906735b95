"""Reshapes become views: replace calls of kernels that only keep the element order by `relax.reshape`.

TVM's pass for this analyzes the kernel at every call for element order and equal element counts. It fails with an
internal error on some kernels that select between positions, such as reflection padding of a dynamic size, and its
proofs of equal dynamic counts took most of its time; here each kernel is analyzed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tvm
from tvm import relax, tirx
from tvm.ir import GlobalVar, IRModule, Var
from tvm.sym import Analyzer

from compiler.passes.context import PipelineContext
from compiler.passes.fuse.legalizations import RESHAPE
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Graph, RuleTable, bindings_of, operator_name, rewritable_functions
from schedules.ir.tir import StructuralKey, structural_walk
from schedules.ir.tvm_types import Call, Expr, Function, Node, Stmt

_CHOICES = (tirx.Min, tirx.Max, tirx.Select, tirx.IfThenElse, tvm.ir.Call)


@graph_pass("lower-reshapes", summary="Turn reshapes into views", required=True)
def lower_reshapes(mod: IRModule, _context: PipelineContext) -> IRModule:
    """Replace calls of kernels that only reshape by `relax.reshape` of their argument.

    Except those that leave their dataflow block as results of the function, which must have memory of their own, or of
    a branch.
    """
    sources = {
        var.name_hint: source
        for var, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc) and (source := _reshaped(function)) is not None
    }
    rules = RuleTable()
    results = {var for _, function in rewritable_functions(mod) for var in _results(function)}

    @rules.on("relax.call_tir")
    def view(graph: Graph, call: Call) -> Expr | None:
        source = sources.get(call.args[0].name_hint)
        operands = call.args[1]
        if source is None or not isinstance(operands, relax.Tuple):
            return None
        if graph.variable in results and not isinstance(graph.variable, relax.DataflowVar):
            return None
        shape = getattr(call.ty, "shape", None)
        if shape is None or any(isinstance(size, tirx.IntImm) and size.value == 0 for size in shape):
            return None  # a 0 in `relax.reshape` copies the argument's size
        return relax.op.reshape(operands.fields[source], shape)

    return rules.apply_once(mod)


def _results(function: Function) -> set[Var]:
    """Return the variables whose memory may be that of a result of the function or of a branch."""
    values = {binding.var: binding.value for binding in bindings_of(function.body)}
    waiting: list[Expr] = []
    structural_walk(function.body, [(relax.SeqExpr, lambda sequence: waiting.append(sequence.body))])
    found: set[Var] = set()
    while waiting:
        expr = waiting.pop()
        if isinstance(expr, relax.Var):
            if expr not in found:
                found.add(expr)
                waiting.append(values.get(expr))
        elif isinstance(expr, relax.Tuple):
            waiting.extend(expr.fields)
        elif isinstance(expr, relax.TupleGetItem):
            waiting.append(expr.tuple_value)
        elif operator_name(expr) == "relax.reshape":
            waiting.append(expr.args[0])
        elif isinstance(expr, relax.Call) and isinstance(expr.op, Var | GlobalVar):  # it may return an argument
            waiting.extend(expr.args)
    return found


def _reshaped(function: tirx.PrimFunc) -> int | None:
    """Return the index of the parameter that the kernel reshapes, or None.

    The kernel must be marked as a reshape, or have one store, of an element at a position that has no selection and
    that TVM can analyze, with equal element counts.
    """
    if function.attrs is not None and RESHAPE in function.attrs:
        return 0
    stores: list[Stmt] = []
    choices: list[Node] = []
    kept = (tirx.BufferStore, lambda store: _append(stores, store)), (_CHOICES, lambda choice: _append(choices, choice))
    structural_walk(function.body, list(kept))
    if len(stores) != 1 or choices or not isinstance(stores[0].value, tvm.ir.TensorLoad) or not _is_analyzed(function):
        return None
    source, result = stores[0].value.source, stores[0].buffer
    positions = [position for position, each in enumerate(function.params) if each.same_as(source)]
    if len(positions) != 1 or not _are_as_many(source.ty.shape, result.ty.shape):
        return None
    return positions[0]


def _is_analyzed(function: tirx.PrimFunc) -> bool:
    """True if TVM recognizes the kernel as a reshape; if its divisibility proofs fail, the kernel stays a copy."""
    try:
        return bool(relax.analysis.has_reshape_pattern(function))
    except tvm.error.InternalError:
        return False


def _are_as_many(left: Sequence[Expr], right: Sequence[Expr]) -> bool:
    """True if two shapes have equal element counts for all values of the symbolic sizes."""
    ours, theirs = _factors(left), _factors(right)
    for key, (factor, count) in list(ours.items()):
        shared = min(count, theirs.get(key, (factor, 0))[1])
        for each in (ours, theirs):
            if shared:
                each[key] = factor, each[key][1] - shared
    return bool(Analyzer().can_prove_equal(_product(ours.values()), _product(theirs.values())))


def _factors(sizes: Iterable[Expr]) -> dict[StructuralKey, tuple[Expr, int]]:
    """Return the factors of a product, each with its count."""
    factors: dict[StructuralKey, tuple[Expr, int]] = {}
    waiting = list(sizes)
    while waiting:
        size = waiting.pop()
        if isinstance(size, tirx.Mul):
            waiting += [size.a, size.b]
        else:
            key = StructuralKey(size)
            factors[key] = size, factors.get(key, (size, 0))[1] + 1
    return factors


def _product(factors: Iterable[tuple[Expr, int]]) -> Expr:
    total: Expr = tirx.IntImm("int64", 1)
    for factor, count in factors:
        for _ in range(count):
            total = total * factor
    return total


def _append(found: list[Node], node: Node) -> None:
    found.append(node)
