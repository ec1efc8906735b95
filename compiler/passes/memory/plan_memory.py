"""plan-memory: share storage between tensors that are never alive together.

Tensors of known size, or of bounded size if the caller gives bounds of symbols, are assigned to a few storages that
are allocated on entry. Results of a function own their memory. Tensors of unbounded size share storage with those of
equal symbolic size, allocated at the first of them. In functions with branches these do not share: a storage allocated
in one branch does not exist after it if the other branch was taken.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass

from tvm import relax, tirx
from tvm.ir import GlobalVar, IRModule
from tvm.sym import Analyzer

from compiler.errors import InvalidModelError
from compiler.passes.context import PipelineContext
from compiler.passes.memory.liveness import ALLOCATE, Allocation, Liveness, assign, peak_of_live_bytes
from compiler.passes.memory.update_states import InPlaceKernels
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import operator_name, with_body
from compiler.support.operation_count import UncountableError, size_formula
from schedules.ir.tir import StructuralKey
from schedules.ir.tvm_types import Binding, Expr, Function, Index, SeqExpr, Var

_LONGEST_FORMULA = 1000  # characters
MAX_BYTES = 1 << 47
"""The address space of a process on current machines."""


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of one function's activations, including results but not parameters and inputs.

    Attributes:
        peak: the plan's peak.
        without_reuse: the sum of all tensors.
        lower_bound: the most bytes alive at one time; in-place reuse can go below.
        in_place: number of tensors written over an operand.
        unplanned: number of tensors without a known bound, which are not counted.
    """

    peak: int
    without_reuse: int
    lower_bound: int
    in_place: int
    unplanned: int


@graph_pass("plan-memory", summary="Share storage between tensors that are never alive together", required=True)
def plan_memory(mod: IRModule, context: PipelineContext) -> IRModule:
    """Reports a `MemoryReport` as a dict for each function that allocates; reads `context.shape_bounds`."""
    reports, dynamic = {}, {}
    changed: dict[GlobalVar, Function] = {}
    kernels = InPlaceKernels(mod)
    for variable, function in mod.functions_items():
        if not isinstance(function, relax.Function):
            continue
        liveness = Liveness(mod, function, context.shape_bounds)
        if liveness.allocations:
            changed[variable], reports[variable.name_hint], formula = _planned(function, liveness, kernels)
            dynamic[str(variable.name_hint)] = formula
    context.report.dynamic_memory = dynamic
    context.report.memory = {name: asdict(report) for name, report in reports.items()}
    return relax.transform.Normalize()(kernels.module(changed) if changed else mod)


def _has_branch(sequence: SeqExpr) -> bool:
    values = (binding.value for block in sequence.blocks for binding in block.bindings)
    return any(isinstance(value, relax.If) for value in values)


def _planned(function: Function, liveness: Liveness, kernels: InPlaceKernels) -> tuple[Function, MemoryReport, str]:
    """Return the function, the report, and the bytes of tensors of unbounded size as a symbolic formula."""
    every = list(liveness.allocations.values())
    known = [each for each in every if each.lifetime is not None and each.size is not None]
    shared = [each for each in known if not each.escapes]
    lifetimes = [each.lifetime for each in shared if each.lifetime is not None]
    in_place = _in_place(shared)
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
    positions = {each.variable: storages[index] for each, index in zip(shared, chosen, strict=True)}
    if not _has_branch(function.body):
        positions.update(_symbolic_positions(every, len(storages)))
    old = {each.variable: each.in_place for each in every if each.is_updated and each.variable in positions}
    updated = {new for new, source in old.items() if source in positions and positions[new] is positions[source]}
    rewrite = _Rewrite(positions, {storage.variable for storage in storages}, updated, kernels)
    return rewrite.function(function, storages), report, _dynamic_bytes(every, positions)


def _in_place(allocations: Sequence[Allocation]) -> dict[int, int]:
    """Map each tensor, by index, to the one whose memory it may reuse."""
    position = {each.variable: index for index, each in enumerate(allocations)}
    pairs = [(position[each.variable], each.in_place) for each in allocations if each.in_place is not None]
    return {new: position[old] for new, old in pairs if old in position}


def _dynamic_bytes(allocations: Sequence[Allocation], positions: Mapping[Var, _Storage]) -> str:
    """Return a formula such as "128*n"; "0" without such tensors, "" if there is no such form."""
    sizes: dict[Var, Expr] = {}
    for allocation in allocations:
        if allocation.size is None and allocation.lifetime is not None:
            if allocation.formula is None:
                return ""
            storage = positions.get(allocation.variable)
            sizes[allocation.variable if storage is None else storage.variable] = allocation.formula
    total: Expr = tirx.IntImm("int64", 0)
    for size in sizes.values():
        total = total + size
    try:
        formula = size_formula(Analyzer().simplify(total))
    except UncountableError:
        return ""
    if formula.startswith("("):  # parentheses around the whole formula
        formula = formula[1:-1]
    return formula if len(formula) <= _LONGEST_FORMULA else ""


class _Storage:
    """A storage: its variable and the binding that allocates it. `size` is in bytes and may be symbolic."""

    def __init__(self, index: int, size: Index) -> None:
        call = relax.op.memory.alloc_storage(relax.ShapeExpr([size]), 0, "global", "uint8")
        value = relax.BlockBuilder().normalize(call)
        self.variable = relax.Var(f"storage{index}", value.ty)
        self.binding = relax.VarBinding(self.variable, value)


def _symbolic_positions(allocations: Sequence[Allocation], first: int) -> dict[Var, _Storage]:
    """Return the storage of each tensor of unbounded size that is not a result, numbered from `first`; equal sizes
    share."""
    alike: dict[Hashable, list[Allocation]] = {}
    for allocation in allocations:
        if allocation.formula is not None and allocation.lifetime is not None and not allocation.escapes:
            alike.setdefault(StructuralKey(allocation.formula), []).append(allocation)
    positions: dict[Var, _Storage] = {}
    for group in alike.values():
        lifetimes = [each.lifetime for each in group if each.lifetime is not None]
        chosen, sizes = assign(lifetimes, _in_place(group))
        storages = [_Storage(first + index, group[0].formula) for index in range(len(sizes))]
        first += len(storages)
        positions.update((each.variable, storages[index]) for each, index in zip(group, chosen, strict=True))
    return positions


class _Rewrite:
    """Assigns tensors to their storages; those of `updated` are written without copying their old value.

    `allocated` are the storages allocated on entry; others are allocated by their first tensor.
    """

    def __init__(
        self, positions: dict[Var, _Storage], allocated: set[Expr], updated: set[Expr], kernels: InPlaceKernels
    ) -> None:
        self._positions, self._allocated, self._updated, self._kernels = positions, allocated, updated, kernels

    def function(self, function: Function, storages: list[_Storage]) -> Function:
        """Return the function, with the storages allocated on entry."""
        body = self._sequence(function.body)
        entry = relax.BindingBlock([storage.binding for storage in storages])
        blocks = [entry, *body.blocks] if storages else body.blocks
        whole = relax.SeqExpr(blocks, body.body, body.span)
        return with_body(function, whole)

    def _sequence(self, sequence: SeqExpr) -> SeqExpr:
        blocks = [
            relax.BindingBlock([each for binding in block.bindings for each in self._binding(binding)], block.span)
            for block in sequence.blocks
        ]
        return relax.SeqExpr(blocks, sequence.body, sequence.span)

    def _binding(self, binding: Binding) -> list[Binding]:
        value = binding.value
        if isinstance(value, relax.If):
            branches = [self._sequence(each) for each in (value.true_branch, value.false_branch)]
            return [relax.VarBinding(binding.var, relax.If(value.cond, *branches, value.span))]
        if isinstance(value, relax.Call) and self._kernels.updates(value) and value.args[-1] in self._updated:
            return [relax.VarBinding(binding.var, self._kernels.call(value))]
        if operator_name(value) != ALLOCATE or binding.var not in self._positions:
            return [binding]
        storage = self._positions[binding.var]
        storage_binding = [] if storage.variable in self._allocated else [storage.binding]
        self._allocated.add(storage.variable)
        shape, dtype, device = list(value.args)[:3]
        call = relax.op.memory.alloc_tensor(storage.variable, 0, shape, dtype, device)
        return [*storage_binding, relax.VarBinding(binding.var, call)]
