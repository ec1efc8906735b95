"""plan-memory: tensors that are never alive together share storage.

Tensors of known size, or of bounded size where the caller gives bounds of symbols, are assigned to a few storages that
are allocated on entry. Results of a function own their memory. Tensors of unbounded size are left to TVM's
planner, which shares storage between those of equal symbolic size, but not in a module with branches: there it
hands storage that one branch allocates to code after it, which crashes when the other branch was taken.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tvm import relax
from tvm.ir import IRModule
from tvm.sym import Analyzer
from tvm.tirx import IntImm

from compiler.errors import InvalidModelError
from compiler.passes.context import PipelineContext
from compiler.passes.memory.assignment import assign, peak_of_live_bytes
from compiler.passes.memory.liveness import ALLOCATE, Liveness
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import operator_name
from compiler.passes.rewriting.tvm_target import tvm_target

_LOOSE = 4096  # a size that a bound may stand for at run time
_UNBOUNDED = 2**63 - 1
MAX_BYTES = 1 << 47
"""What a process can address on the machines there are."""


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of activations of one function, results included, parameters and inputs not.

    Attributes:
        peak: what the plan holds at once.
        without_reuse: the sum of all tensors.
        lower_bound: the most that is alive at one time; in-place reuse can go below.
        in_place: how many tensors are written over an operand.
        unplanned: how many tensors have no known bound and are not counted.
    """

    peak: int
    without_reuse: int
    lower_bound: int
    in_place: int
    unplanned: int


@graph_pass("plan-memory", summary="Share storage between tensors that are never alive together", required=True)
def plan_memory(mod: IRModule, context: PipelineContext) -> IRModule:
    """Reports a `MemoryReport` as a dict for each function that allocates; reads `context.shape_bounds`."""
    reports = {}
    changed = {}
    for variable, function in mod.functions_items():
        if not isinstance(function, relax.Function):
            continue
        liveness = Liveness(mod, function, context.shape_bounds)
        if liveness.allocations:
            changed[variable], reports[variable.name_hint] = _planned(function, liveness)
    context.report.memory = {name: asdict(report) for name, report in reports.items()}
    if changed:
        mod = mod.clone()
        for variable, function in changed.items():
            mod.update_func(variable, function)
    mod = relax.transform.Normalize()(mod)
    functions = [function for function in mod.functions.values() if isinstance(function, relax.Function)]
    if any(_has_branch(function.body) or _has_loose_bound(function.body) for function in functions):
        return mod
    with tvm_target(context):
        return relax.transform.StaticPlanBlockMemory()(mod)


def _has_branch(sequence: Any) -> bool:
    values = (binding.value for block in sequence.blocks for binding in block.bindings)
    return any(isinstance(value, relax.If) for value in values)


def _has_loose_bound(sequence: Any) -> bool:
    """Whether a tensor of unknown size has one of its sizes bounded, by `min(n, 100000)`, and that by much.

    TVM's planner allocates the bound.
    """
    analyzer = Analyzer()
    for block in sequence.blocks:
        for binding in block.bindings:
            if operator_name(binding.value) != ALLOCATE or not isinstance(binding.value.args[0], relax.ShapeExpr):
                continue
            sizes = [size for size in binding.value.args[0].values if not isinstance(size, IntImm)]
            bounds = [int(analyzer.const_int_bound(size).max_value) for size in sizes]
            if any(_LOOSE < bound < _UNBOUNDED for bound in bounds):
                return True
    return False


def _planned(function: Any, liveness: Liveness) -> tuple[Any, MemoryReport]:
    every = list(liveness.allocations.values())
    known = [each for each in every if each.lifetime is not None]
    shared = [each for each in known if not each.escapes]
    lifetimes = [each.lifetime for each in shared if each.lifetime is not None]
    position = {each.variable: index for index, each in enumerate(shared)}
    in_place = {position[each.variable]: position[each.in_place] for each in shared if each.in_place in position}
    chosen, sizes = assign(lifetimes, in_place)
    owned = sum(each.size or 0 for each in known if each.escapes)
    report = MemoryReport(
        peak=sum(sizes) + owned,
        without_reuse=sum(each.size or 0 for each in known),
        lower_bound=peak_of_live_bytes([each.lifetime for each in known if each.lifetime is not None]),
        in_place=sum(chosen[new] == chosen[old] for new, old in in_place.items()),
        unplanned=sum(each.size is None for each in every),
    )
    if report.peak > MAX_BYTES:
        raise InvalidModelError(
            f"one run would need {report.peak} bytes of memory, more than can be addressed",
            "check the shapes of the model's inputs",
        )
    storages = [_Storage(index, size) for index, size in enumerate(sizes)]
    places = {each.variable: storages[index].variable for each, index in zip(shared, chosen, strict=True)}
    return _rewrite(function, places, storages), report


class _Storage:
    """A storage: its variable and the binding that allocates it."""

    def __init__(self, index: int, size: int) -> None:
        call = relax.op.memory.alloc_storage(relax.ShapeExpr([size]), 0, "global", "uint8")
        value = relax.BlockBuilder().normalize(call)
        self.variable = relax.Var(f"storage{index}", value.ty)
        self.binding = relax.VarBinding(self.variable, value)


def _rewrite(function: Any, places: dict[Any, Any], storages: list[_Storage]) -> Any:
    body = _rewrite_sequence(function.body, places)
    entry = relax.BindingBlock([storage.binding for storage in storages])
    blocks = [entry, *body.blocks] if storages else body.blocks
    whole = relax.SeqExpr(blocks, body.body, body.span)
    return relax.Function(function.params, whole, function.ret_ty, function.is_pure, function.attrs, function.span)


def _rewrite_sequence(sequence: Any, places: dict[Any, Any]) -> Any:
    blocks = [
        relax.BindingBlock([_rewrite_binding(binding, places) for binding in block.bindings], block.span)
        for block in sequence.blocks
    ]
    return relax.SeqExpr(blocks, sequence.body, sequence.span)


def _rewrite_binding(binding: Any, places: dict[Any, Any]) -> Any:
    value = binding.value
    if isinstance(value, relax.If):
        branches = [_rewrite_sequence(branch, places) for branch in (value.true_branch, value.false_branch)]
        return relax.VarBinding(binding.var, relax.If(value.cond, *branches, value.span))
    if operator_name(value) != ALLOCATE or binding.var not in places:
        return binding
    shape, dtype, device = list(value.args)[:3]
    call = relax.op.memory.alloc_tensor(places[binding.var], 0, shape, dtype, device)
    return relax.VarBinding(binding.var, call)
