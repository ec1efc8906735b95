"""group-operators and fuse-kernels: TVM's FuseOps moves the calls of each future kernel into a function, and FuseTIR
merges them into one kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import tvm
from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.ir.transform import PassContext

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable, bindings_of, update_functions
from compiler.passes.rewriting.substitution import leaves
from schedules.ir.tir import structural_map, structural_walk
from schedules.ir.tvm_types import GlobalVar, PrimFunc, Var

MAX_OPERATORS = 64
"""Largest number of operators per kernel: inlining, splitting and compiling a kernel scale worse than linearly in it.
TVM's own limit is 256."""


@graph_pass("group-operators", summary="Group operators into kernels")
def group_operators(mod: IRModule, context: PipelineContext) -> IRModule:
    """Equal groups share one function, so the model nodes that they compute are recorded per call."""
    with PassContext(config={"relax.FuseOps.max_depth": MAX_OPERATORS}), context.tvm_target():
        grouped = relax.transform.FuseOps()(_with_outputs_for_casts(mod))
    context.tracker.follow_grouping(mod, grouped)
    return grouped


def _with_outputs_for_casts(mod: IRModule) -> IRModule:
    """Return the module with values that have both a MatchCast and other uses as outputs of their dataflow blocks.

    FuseOps has no edge from a value to its MatchCast, and would group the value with a use that depends on the cast.
    """
    changed = {}
    for variable, function in mod.functions_items():
        if not isinstance(function, relax.Function):
            continue
        reads = Counter(leaf for leaf in leaves(function) if isinstance(leaf, relax.DataflowVar))
        cast = {each.value for each in bindings_of(function.body) if isinstance(each, relax.MatchCast)}
        outputs = {each: relax.Var(str(each.name), each.ty) for each in cast if reads.get(each, 0) > 1}
        if outputs:
            changed[variable] = _substituted(function, outputs)
    return update_functions(mod, changed)


def _substituted(function: relax.Function, outputs: Mapping[Var, Var]) -> relax.Function:
    return structural_map(function, (relax.DataflowVar, lambda var: outputs.get(var, var)))


Order = list[int]  # new parameter order: the old position of each


@graph_pass("fuse-kernels", summary="Merge each group into one TensorIR function", required=True)
def fuse_kernels(mod: IRModule, context: PipelineContext) -> IRModule:
    """Each group becomes one kernel, whose scalar arguments are in order of use."""
    with context.tvm_target():
        fused = relax.transform.FuseTIR()(mod)
    old_kernels = {var.name_hint for var, each in mod.functions_items() if isinstance(each, tirx.PrimFunc)}
    orders = {}
    for var, function in fused.functions_items():
        if isinstance(function, tirx.PrimFunc) and var.name_hint not in old_kernels:
            order = order_of_use(function)
            if order != sorted(order):
                orders[var] = order
    return _reordered(fused, orders) if orders else fused


def order_of_use(kernel: PrimFunc) -> Order:
    """Return the new parameter order, with scalars in order of use: first in tensor sizes, then in the body."""
    positions = [index for index, parameter in enumerate(kernel.params) if not tirx.is_buffer_var(parameter)]
    uses: dict[Var, None] = {}

    def note(variable: Var) -> None:
        uses.setdefault(variable)

    for parameter in kernel.params:
        if tirx.is_buffer_var(parameter):
            for size in parameter.ty.shape:
                structural_walk(size, (tvm.ir.Var, note))
    structural_walk(kernel.body, (tvm.ir.Var, note))
    rank = {variable: number for number, variable in enumerate(uses)}
    by_use = sorted(positions, key=lambda index: rank.get(kernel.params[index], len(rank)))
    order = list(range(len(kernel.params)))
    for index, source in zip(positions, by_use, strict=True):
        order[index] = source
    return order


def _reordered(mod: IRModule, orders: Mapping[GlobalVar, Order]) -> IRModule:
    """Apply new parameter orders to kernels and their calls; FuseTIR's kernels are called only by `call_tir`."""
    kernels = {var: _picked(mod[var].params, order) for var, order in orders.items()}
    functions = {
        var: tirx.PrimFunc(kernels[var], each.body, each.ret_type, each.attrs, each.span) if var in kernels else each
        for var, each in mod.functions_items()
    }
    rules = RuleTable()

    @rules.on("relax.call_tir", "relax.call_tir_inplace")
    def reorder(_graph: Graph, call: Call) -> Expr | None:
        order = orders.get(call.args[0])
        if order is None:
            return None
        arguments = call.args[1].fields
        given = relax.Tuple(_picked(arguments, order[: len(arguments)]))
        return relax.Call(call.op, [call.args[0], given, *call.args[2:]], call.attrs, call.ty_args)

    return rules.apply_once(IRModule(functions, mod.attrs, mod.global_infos))


def _picked(values: Sequence[Expr], order: Order) -> list[Expr]:
    return [values[source] for source in order]
